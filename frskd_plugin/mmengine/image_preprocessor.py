"""Batches of uint8 images to normalised floats, on the device that trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from torch import Tensor


class ImagePreprocessor(BaseDataPreprocessor):
    """Moves a batch ``dict(inputs, targets)`` to the device, and makes its uint8 images normalised floats there.

    Args:
        mean: of each channel, in 0..255.
        std: of each channel, in 0..255.
        non_blocking: do not wait for copies from pinned memory.

    Raises:
        ValueError: `mean` and `std` differ in length, or a std is not above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], non_blocking: bool = True) -> None:
        super().__init__(non_blocking)
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError(f"mean and std must have a number for each channel, std above 0; got {mean} and {std}")
        # not in checkpoints: they belong to the config
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Inputs [B, C, H, W] or views [B, V, C, H, W], uint8, to float32; the rest of the batch to the device.

        Raises:
            ValueError: inputs of another shape or type.
        """
        inputs = data["inputs"]
        if not isinstance(inputs, Tensor):
            raise ValueError(
                f"ImagePreprocessor expects inputs as one tensor [B, C, H, W], got {type(inputs).__name__}; set "
                f"collate_fn=dict(type='default_collate') in the data loader's config"
            )
        if inputs.dtype is not torch.uint8 or inputs.ndim not in (4, 5) or inputs.shape[-3] != len(self.mean):
            raise ValueError(
                f"ImagePreprocessor expects uint8 images [B, {len(self.mean)}, H, W], got {list(inputs.shape)} of "
                f"{inputs.dtype}; transforms of the data set must neither scale nor normalise"
            )
        data = self.cast_data(data)
        return {**data, "inputs": (data["inputs"].float() - self.mean) / self.std}
