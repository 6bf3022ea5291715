"""The standard wide ResNet for 32x32 images (Zagoruyko and Komodakis, 2016), pre-activation blocks."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from frskd_plugin.timm.cifar_classifier import FEATURE_CFG, CifarClassifier, cifar_cfg

__all__ = ["WideResNet"]

default_cfgs = generate_default_cfgs({"wrn_16_2": cifar_cfg(first_conv="stem", pool_size=(8, 8))})


class WideBlock(nn.Module):
    """BN, ReLU and a 3x3 convolution, twice; the shortcut is the input, or 1x1 of the normalised, rectified input."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut = None
        if in_channels != channels:
            self.shortcut = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_channels, H, W]`` to ``[B, channels, H / stride, W / stride]``, not normalised."""
        rectified = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(rectified))))
        return out + (x if self.shortcut is None else self.shortcut(rectified))


class WideResNet(CifarClassifier):
    """WRN-``depth``-``k``: stem of 16 channels, three groups of 16k, 32k and 64k channels at strides 1, 2, 4.

    One batch norm follows the last group (``norm``). The features of the earlier groups are their outputs, rectified.

    >>> sum(p.numel() for p in WideResNet(depth=16, k=2, num_classes=100).parameters())
    703284

    Raises:
        ValueError: A depth that is not 6n + 4, or k below 1.
    """

    def __init__(self, depth: int = 16, k: int = 2, **kwargs: Any) -> None:
        super().__init__(depth, k, **kwargs)
        self.norm = nn.BatchNorm2d(self.num_features)
        self.init_weights()

    def make_group(self, in_channels: int, channels: int, blocks: int, stride: int) -> nn.Module:
        """Blocks alone."""
        group = nn.Sequential()
        for i in range(blocks):
            group.add_module(
                f"block{i}", WideBlock(in_channels if i == 0 else channels, channels, stride if i == 0 else 1)
            )
        return group

    def init_weights(self) -> None:
        """He initialisation of the convolutions (fan-out), zero classifier bias, PyTorch's defaults elsewhere."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(self.fc, nn.Linear):
            nn.init.zeros_(self.fc.bias)

    def rectify(self, x: Tensor, group: int) -> Tensor:
        """The last group's output is normalised first, as the classifier sees it."""
        return F.relu(self.norm(x) if group == 2 else x)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """As the base class, with the norm behind the last group."""
        return {**super().group_matcher(coarse), "norm": [(r"^norm", (99999,))]}

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """As the base class; the norm goes where the last group goes (it belongs to that group's features)."""
        kept = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if self.num_groups < 3:
            self.norm = nn.Identity()
        return kept


@register_model
def wrn_16_2(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """Standard WRN-16-2, features 32, 64, 128 at 32, 16, 8 pixels."""
    settings = {"depth": 16, "k": 2, **kwargs}
    return build_model_with_cfg(WideResNet, "wrn_16_2", pretrained, feature_cfg=dict(FEATURE_CFG), **settings)
