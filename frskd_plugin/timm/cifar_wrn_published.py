"""The wide ResNet that the paper's tables were run with (reference section 5), which is not the standard one.

A block has one batch norm, between its convolutions, and a group ends in one; none stands before the first ReLU. The
batch norm that the authors' network owns but never uses is not built.
"""

from __future__ import annotations

import math
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from frskd_plugin.timm.cifar_classifier import FEATURE_CFG, CifarClassifier, cifar_cfg

__all__ = ["WideResNetPublished"]

default_cfgs = generate_default_cfgs({"wrn_16_2_published": cifar_cfg(first_conv="stem", pool_size=(8, 8))})


class PublishedBlock(nn.Module):
    """``conv2(relu(bn(conv1(relu(x)))))`` plus the input itself, or a 1x1 projection of the rectified input."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut = None
        if in_channels != channels:
            self.shortcut = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_channels, H, W]`` to ``[B, channels, H / stride, W / stride]``, not rectified."""
        rectified = F.relu(x)
        out = self.conv2(F.relu(self.bn(self.conv1(rectified))))
        return out + (x if self.shortcut is None else self.shortcut(rectified))


class PublishedGroup(nn.Sequential):
    """Blocks ``block0`` .. and the batch norm ``bn`` behind them."""

    def __init__(self, in_channels: int, channels: int, blocks: int, stride: int) -> None:
        super().__init__()
        for i in range(blocks):
            self.add_module(
                f"block{i}", PublishedBlock(in_channels if i == 0 else channels, channels, stride if i == 0 else 1)
            )
        self.add_module("bn", nn.BatchNorm2d(channels))


class WideResNetPublished(CifarClassifier):
    """Authors' WRN-``depth``-``k``: stem of 16 channels, three groups of 16k, 32k and 64k channels at strides 1, 2, 4.

    >>> sum(p.numel() for p in WideResNetPublished(depth=16, k=2, num_classes=100).parameters())
    702804

    Raises:
        ValueError: A depth that is not 6n + 4, or k below 1.
    """

    def __init__(self, depth: int = 16, k: int = 2, **kwargs: Any) -> None:
        super().__init__(depth, k, **kwargs)
        self.init_weights()

    def make_group(self, in_channels: int, channels: int, blocks: int, stride: int) -> nn.Module:
        """Blocks and the batch norm behind them."""
        return PublishedGroup(in_channels, channels, blocks, stride)

    def init_weights(self) -> None:
        """Convolutions from N(0, 2 / (k^2 c_out)), zero classifier bias, PyTorch's defaults elsewhere (section 11)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        if isinstance(self.fc, nn.Linear):
            nn.init.zeros_(self.fc.bias)

    def rectify(self, x: Tensor, group: int) -> Tensor:
        """The group's last batch norm is part of the group already."""
        return F.relu(x)


@register_model
def wrn_16_2_published(pretrained: bool = False, **kwargs: Any) -> WideResNetPublished:
    """Authors' WRN-16-2, features 32, 64, 128 at 32, 16, 8 pixels."""
    settings = {"depth": 16, "k": 2, **kwargs}
    return build_model_with_cfg(
        WideResNetPublished, "wrn_16_2_published", pretrained, feature_cfg=dict(FEATURE_CFG), **settings
    )
