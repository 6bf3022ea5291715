"""Which detectors and heads FRSKD can serve; the others are refused when built, by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from mmdet.models.dense_heads import TOODHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.registry import MODELS

from frskd_plugin.mmengine.registration import registered_type

OTHER_DETECTORS = {
    "rpn_head": "a two-stage detector",
    "roi_head": "a two-stage detector",
    "mask_head": "an instance segmentor",
    "encoder": "a detection transformer",
    "decoder": "a detection transformer",
}


def check_single_stage(settings: Mapping[str, Any], owner: str) -> None:
    """Refuse the parts of detectors that are more than backbone, neck and one dense head.

    Args:
        settings: of the detector's config, beside ``backbone``, ``neck`` and ``bbox_head``.
        owner: who asks.

    Raises:
        ValueError: naming the parts and what would serve.
    """
    found = {key: settings[key] for key in OTHER_DETECTORS if settings.get(key) is not None}
    if found:
        types = {key: str(part.get("type", "")) if isinstance(part, Mapping) else "" for key, part in found.items()}
        parts = ", ".join(f"{key} {kind}".strip() for key, kind in types.items())
        raise ValueError(
            f"{owner} cannot serve {OTHER_DETECTORS[next(iter(found))]} ({parts}): it distils the class scores of one "
            "dense head over a pyramid. Use a single-stage detector (RetinaNet, FCOS, ATSS, GFL, ...)."
        )


def check_servable(head: str | type, owner: str) -> None:
    """Refuse a type of head whose training loss is not ``forward`` followed by ``loss_by_feat`` of class logits.

    Args:
        head: the class, or its name in mmdet's registry. The class is asked, before one is built.
        owner: who asks.

    Raises:
        ValueError: naming the head and what would serve.
    """
    head_type = registered_type(MODELS, head)
    if head_type is None:
        raise ValueError(f"{owner}: there is no head {head!r} in mmdet's registry. Check the spelling.")
    reason = _refusal(head_type)
    if reason:
        raise ValueError(
            f"{owner} cannot serve the head {head_type.__name__}: {reason}. Use one of mmdet's dense heads that keep "
            "`BaseDenseHead.loss` and give class logits first (RetinaHead, FCOSHead, ATSSHead, GFLHead, SSDHead, ...)."
        )


def _refusal(head_type: Any) -> str | None:
    if not issubclass(head_type, BaseDenseHead):
        return "it is not a dense head"
    if head_type.loss is not BaseDenseHead.loss:
        return "it makes its loss in a way of its own"
    if list(inspect.signature(head_type.loss_by_feat).parameters)[1:2] != ["cls_scores"]:  # behind `self`
        return "its output does not begin with class scores"
    if issubclass(head_type, TOODHead):
        return "it gives probabilities in place of logits"
    return None
