"""timm side: the feature extractor, and the paper's CIFAR networks under their timm names."""

from __future__ import annotations

from frskd_plugin.timm import cifar_networks  # noqa: F401  (registers the models)
from frskd_plugin.timm.feature_extractor import TimmFeatureExtractor

__all__ = ["TimmFeatureExtractor"]
