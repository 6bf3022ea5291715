"""Configs that build a model without fetching weights for it."""

from __future__ import annotations

import copy
from typing import Any

# settings that name weights: of timm and mmseg, of `TimmFeatureExtractor`, of ``timm.create_model``
_WEIGHTS = ("pretrained", "checkpoint", "checkpoint_path")


def without_pretrained(config: Any) -> tuple[Any, bool]:
    """A copy of a model's config that loads and downloads nothing, and whether that made a difference.

    >>> without_pretrained(dict(backbone=dict(pretrained=True)))
    ({'backbone': {'pretrained': False}}, True)
    """
    config, changed = copy.deepcopy(config), False
    if isinstance(config, dict):
        for key, value in config.items():
            pretrained_init = key == "init_cfg" and isinstance(value, dict) and value.get("type") == "Pretrained"
            if value and (key in _WEIGHTS or pretrained_init):
                config[key], changed = (False if value is True else None), True
            else:
                config[key], inside = without_pretrained(value)
                changed = changed or inside
    elif isinstance(config, (list, tuple)):
        pairs = [without_pretrained(item) for item in config]
        config, changed = type(config)(item for item, _ in pairs), any(inside for _, inside in pairs)
    return config, changed
