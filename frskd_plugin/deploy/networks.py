"""Networks from images to logits, as they go into a file: nothing but what inference runs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

# What a segmentor of mmseg runs at inference; auxiliary heads and preprocessor stay behind.
_INFERENCE_PARTS = ("backbone", "neck", "decode_head")


class SegmentationNetwork(nn.Module):
    """An encoder-decoder of mmseg from normalised images to logits of the same size, in mode 'whole'.

    Args:
        segmentor: in eval mode; its parameters are shared, not copied.

    Raises:
        ValueError: it is tested in another mode than 'whole'.
    """

    def __init__(self, segmentor: Any) -> None:
        super().__init__()
        mode = (segmentor.test_cfg or {}).get("mode", "whole")
        if mode != "whole":
            raise ValueError(
                f"a segmentor that is tested with test_cfg.mode={mode!r} cannot be exported: the windows are laid by "
                "Python, image by image. Set model.test_cfg=dict(mode='whole') (--cfg-options model.test_cfg.mode="
                "whole), and let the program around the exported network cut the windows, if it needs any."
            )
        self.model = copy.copy(segmentor)
        self.model._modules = {name: segmentor._modules[name] for name in _INFERENCE_PARTS if hasattr(segmentor, name)}
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> logits [B, K, H, W]."""
        size = images.shape[-2:]
        meta = {"img_shape": size, "ori_shape": size, "pad_shape": size}
        return self.model.encode_decode(images, [meta])


class NormalizedNetwork(nn.Module):
    """A network with the normalisation of its images in front of it.

    Args:
        network: takes normalised images.
        mean: of each channel of what it takes, in 0..255.
        std: of each channel.
        flip_channels: whether the network takes BGR.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, mean: Sequence[float], std: Sequence[float], flip_channels: bool = False
    ) -> None:
        super().__init__()
        self.network = network
        self.flip_channels = flip_channels
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """RGB images [B, 3, H, W], float32 in 0..255 -> logits."""
        images = images.flip(1) if self.flip_channels else images
        return self.network((images - self.mean) / self.std)
