"""mmsegmentation adapter. Importing it imports mmseg's models, and raises the real reason where that fails."""

from frskd_plugin.mmseg.cascade_segmentor import FRSKDCascadeEncoderDecoder
from frskd_plugin.mmseg.effdet_seg_head import EffDetSegHead
from frskd_plugin.mmseg.frskd_head import FRSKDHead
from frskd_plugin.mmseg.segmentor import FRSKDEncoderDecoder

__all__ = ["EffDetSegHead", "FRSKDCascadeEncoderDecoder", "FRSKDEncoderDecoder", "FRSKDHead"]
