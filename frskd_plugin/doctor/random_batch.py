"""Batches of random numbers in the form that a model trains on, so that no data set is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from frskd_plugin.methods.base import Method


def classification_batch(
    method: Method, batch: int, input_size: Sequence[int], num_classes: int, device: str
) -> tuple[Tensor, Tensor]:
    """Images [B, C, H, W], or [B, views, C, H, W] where the method needs several views, and labels [B].

    Raises:
        ValueError: an odd batch for a method that needs pairs of one class.
    """
    needs = method.needs
    views = [needs.views] if needs.views > 1 else []
    images, labels = torch.randn(batch, *views, *input_size), torch.randint(num_classes, (batch,))
    if needs.order == "class_pairs":
        if batch % 2:
            raise ValueError(f"{type(method).__name__} needs pairs of one class: give an even --batch, got {batch}.")
        labels[batch // 2 :] = labels[: batch // 2]
    return images.to(device), labels.to(device)


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
