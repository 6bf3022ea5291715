"""A batch of random numbers in the form that a segmentor trains on, so that no data set is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def segmentation_batch(
    batch: int, size: Sequence[int], num_classes: int, device: str, channels: int = 3
) -> tuple[Tensor, list[Any]]:
    """Normalised images [B, C, H, W] and mmseg's data samples with random labels [1, H, W]."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    height_width = tuple(size)
    meta = {
        "img_shape": height_width,
        "ori_shape": height_width,
        "pad_shape": height_width,
        "scale_factor": (1.0, 1.0),
        "flip": False,
    }
    labels = torch.randint(num_classes, (batch, 1, *height_width)).to(device)
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label), metainfo=meta) for label in labels]
    return torch.randn(batch, channels, *height_width).to(device), samples
