"""One timm model as the backbone of an FRSKD segmentor: trained for a step, then asked for a prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch import Tensor, nn

from frskd_plugin.check import segmentation_batch
from frskd_plugin.coverage.choice import BATCH, smallest_fit
from frskd_plugin.coverage.fault import Fault, check_finite, check_gradients
from frskd_plugin.timm.feature_extractor import TimmFeatureExtractor

NUM_CLASSES = 5
LR = 1e-3


def examine_segmentor(name: str) -> dict[str, Any]:
    """What there is to tell of a model that passes as the backbone of an `FRSKDEncoderDecoder`.

    An FCN head reads its last map, the self-teacher (width 1) all of them. One step of SGD on two random images, in
    which every parameter must get a gradient, then one prediction.

    Returns:
        image, levels, strides and channels, see `frskd_plugin.coverage.report`.

    Raises:
        Fault: the loss is not finite, a parameter has no gradient, or the prediction has not the size of the image.
        Exception: whatever the model raises.
    """
    fit = smallest_fit(name, TimmFeatureExtractor, _maps_of)
    channels = [count for count, _, _ in fit.maps]
    torch.manual_seed(0)
    model = _build({"type": "TimmFeatureExtractor", "model_name": name, **fit.kwargs}, channels)
    images, samples = segmentation_batch(BATCH, (fit.size, fit.size), NUM_CLASSES, "cpu")

    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    losses = model.loss(images, samples)
    check_finite(losses)
    model.parse_losses(losses)[0].backward()
    check_gradients(model)
    optimizer.step()

    model.eval()
    with torch.no_grad():
        predicted = model.predict(images, samples)[0].pred_sem_seg.data
    if predicted.shape != (1, fit.size, fit.size):
        raise Fault(f"the prediction is {list(predicted.shape)} for an image of {fit.size}x{fit.size}")
    return {
        "image": fit.size,
        "levels": list(model.backbone.out_indices),
        "strides": fit.strides,
        "channels": channels,
    }


def _maps_of(backbone: nn.Module, images: Tensor) -> Sequence[Tensor]:
    return backbone(images)


def _build(backbone: dict[str, Any], channels: list[int]) -> nn.Module:
    """The segmentor as a config would describe it."""
    config = {
        "type": "FRSKDEncoderDecoder",
        "data_preprocessor": {"type": "SegDataPreProcessor"},
        "backbone": backbone,
        "decode_head": {
            "type": "FCNHead",
            "in_channels": channels[-1],
            "in_index": len(channels) - 1,
            "channels": 16,
            "num_convs": 1,
            "num_classes": NUM_CLASSES,
        },
        "self_teacher": {
            "type": "FRSKDHead",
            "neck": {"type": "SelfTeacherNeck", "in_channels": channels, "width": 1},
            "loss_distill": {"type": "FRSKDLoss", "alpha": 1.0, "beta": 50.0, "temperature": 1.0},
        },
        "train_cfg": {},
        "test_cfg": {"mode": "whole"},
    }
    init_default_scope("mmseg")
    return MODELS.build(ConfigDict(config))
