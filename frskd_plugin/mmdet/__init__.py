"""mmdetection adapter. Importing it imports mmdet's models, and says what is missing where that cannot be."""

from frskd_plugin.mmdet.operators import check_operators

check_operators()  # before mmdetection is imported, whose own error does not name the cure

from frskd_plugin.mmdet.dense_head import FRSKDDenseHead  # noqa: E402
from frskd_plugin.mmdet.detector import FRSKDSingleStage  # noqa: E402

__all__ = ["FRSKDDenseHead", "FRSKDSingleStage"]
