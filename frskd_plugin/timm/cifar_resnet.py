"""ResNets for 32x32 images: timm's ResNet with a 3x3 stride-1 stem and no max-pool (reference sections 10 and 11)."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

from frskd_plugin.timm.cifar_classifier import cifar_cfg

__all__ = ["CifarResNet"]

default_cfgs = generate_default_cfgs(
    {name: cifar_cfg(first_conv="conv1", pool_size=(4, 4)) for name in ("resnet18_cifar", "resnet34_cifar")}
)


class CifarResNet(ResNet):
    """timm's ResNet for small images; feature maps at strides 1 (stem), 1, 2, 4, 8.

    The state dict has the keys of timm's ResNet. Initial values are PyTorch's defaults, as in the paper's runs.
    """

    def __init__(self, *args: Any, in_chans: int = 3, **kwargs: Any) -> None:
        super().__init__(*args, in_chans=in_chans, **kwargs)
        factory = {"device": self.conv1.weight.device, "dtype": self.conv1.weight.dtype}
        self.conv1 = nn.Conv2d(in_chans, self.conv1.out_channels, 3, padding=1, bias=False, **factory)
        self.maxpool = nn.Identity()
        for info in self.feature_info:
            info["reduction"] = max(1, info["reduction"] // 4)

    def init_weights(self, zero_init_last: bool = True) -> None:
        """Leave PyTorch's default initial values: timm's (He fan-out, last BN zero) are not those of the paper."""


def _create(name: str, pretrained: bool, layers: tuple[int, ...], **kwargs: Any) -> CifarResNet:
    return build_model_with_cfg(CifarResNet, name, pretrained, block=BasicBlock, layers=layers, **kwargs)


@register_model
def resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-18 for 32x32 images, features 64, 128, 256, 512 at 32, 16, 8, 4 pixels."""
    return _create("resnet18_cifar", pretrained, (2, 2, 2, 2), **kwargs)


@register_model
def resnet34_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-34 for 32x32 images, features as `resnet18_cifar`."""
    return _create("resnet34_cifar", pretrained, (3, 4, 6, 3), **kwargs)
