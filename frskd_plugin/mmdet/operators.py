"""Asks for mmdetection and for mmcv's compiled operators before mmdetection does; its message names the cure."""

from __future__ import annotations

import importlib
import importlib.util

from frskd_plugin.mmengine.registration import MISSING_OPERATORS


def check_operators() -> None:
    """Make sure that mmdetection can be imported.

    Raises:
        ImportError: mmdetection is not installed, or mmcv's operators are missing or made for another torch.
    """
    if importlib.util.find_spec("mmdet") is None:
        raise ImportError(
            f"mmdetection is not installed. To the onedl forks: `pip install onedl-mmdetection`. {MISSING_OPERATORS}."
        )
    try:
        importlib.import_module("mmcv._ext")
    except ImportError as error:
        raise ImportError(f"{MISSING_OPERATORS} ({error}).") from error
