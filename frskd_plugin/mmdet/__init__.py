"""mmdetection adapter. Importing it imports mmdet's models, and says what is missing where that cannot be."""

import importlib
import importlib.util

from frskd_plugin.mmengine.registration import MISSING_OPERATORS


def check_operators() -> None:
    """Make sure that mmdetection and mmcv's compiled operators can be imported.

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


check_operators()  # before mmdetection is imported, whose own error does not name the cure

from frskd_plugin.mmdet.detector import FRSKDDenseHead, FRSKDSingleStage  # noqa: E402

__all__ = ["FRSKDDenseHead", "FRSKDSingleStage"]
