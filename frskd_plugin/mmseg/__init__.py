"""mmsegmentation adapter. Importing it imports mmseg's models, and raises the real reason where that fails."""

from frskd_plugin.mmseg.frskd_head import FRSKDHead
from frskd_plugin.mmseg.segmentor import EffDetSegHead, FRSKDCascadeEncoderDecoder, FRSKDEncoderDecoder

__all__ = ["EffDetSegHead", "FRSKDCascadeEncoderDecoder", "FRSKDEncoderDecoder", "FRSKDHead"]
