"""The paper's networks for 32x32 images, under their timm names."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from timm.layers import create_classifier
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models import checkpoint as checkpoint_module
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
from torch.nn import functional as F

from frskd_plugin.timm.probe import check_out_indices

__all__ = ["CifarResNet", "WideResNet", "WideResNetPublished"]

CIFAR_MEAN = (0.5071, 0.4865, 0.4409)
CIFAR_STD = (0.2673, 0.2564, 0.2762)


def _cfg(first_conv: str, pool_size: tuple[int, int]) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 100,
        "input_size": (3, 32, 32),
        "pool_size": pool_size,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": CIFAR_MEAN,
        "std": CIFAR_STD,
        "first_conv": first_conv,
        "classifier": "fc",
        "license": "apache-2.0",
    }


default_cfgs = generate_default_cfgs(
    {name: _cfg("conv1", (4, 4)) for name in ("resnet18_cifar", "resnet34_cifar")}
    | {name: _cfg("stem", (8, 8)) for name in ("wrn_16_2", "wrn_16_2_published")}
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


class WideResNet(nn.Module):
    """Standard WRN-``depth``-``k`` (Zagoruyko and Komodakis, 2016): a stem of 16 channels and three groups of blocks.

    The maps that it hands out are rectified; what feeds the next group is not. One batch norm follows the last group.

    Args:
        depth: layers, 6n + 4.
        k: width; the groups have 16k, 32k and 64k channels at strides 1, 2, 4.
        num_classes, in_chans, global_pool, drop_rate: as of every timm model.

    Raises:
        ValueError: a depth that is not 6n + 4, or k below 1.

    >>> sum(p.numel() for p in WideResNet(depth=16, k=2, num_classes=100).parameters())
    703284
    """

    num_groups = 3
    block: type[nn.Module] = WideBlock
    norm_in_groups = False  # a batch norm behind each group, in place of the one behind the last

    def __init__(
        self,
        depth: int = 16,
        k: int = 2,
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth={depth} of a wide ResNet must be 6n + 4: 10, 16, 22, 28, ...")
        if k < 1:
            raise ValueError(f"k={k} of a wide ResNet (its width) must be at least 1.")
        channels, blocks = (16 * k, 32 * k, 64 * k), (depth - 4) // 6
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.num_features = self.head_hidden_size = channels[-1]
        self.grad_checkpointing = False
        self.feature_info = [
            {"num_chs": c, "reduction": 2**i, "module": f"group{i + 1}"} for i, c in enumerate(channels)
        ]
        self.global_pool, self.fc = create_classifier(channels[-1], num_classes, pool_type=global_pool)
        self.stem = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False)
        for i, (before, after) in enumerate(pairwise((16, *channels))):
            self.add_module(f"group{i + 1}", self._make_group(before, after, blocks, stride=2 if i else 1))
        self.norm = nn.Identity() if self.norm_in_groups else nn.BatchNorm2d(channels[-1])
        self.init_weights()

    def _make_group(self, in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        group = nn.Sequential()
        for i in range(blocks):
            group.add_module(f"block{i}", self.block(channels if i else in_channels, channels, 1 if i else stride))
        if self.norm_in_groups:
            group.add_module("bn", nn.BatchNorm2d(channels))
        return group

    def init_weights(self) -> None:
        """Draw convolutions from N(0, 2 / (k^2 c_out)), He's fan-out; zero classifier bias, PyTorch's defaults else."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(self.fc, nn.Linear):
            nn.init.zeros_(self.fc.bias)

    def rectify(self, x: Tensor, group: int) -> Tensor:
        """Return the map of a group (from 0) as it is handed out, from that group's output [B, C, H, W]."""
        return F.relu(self.norm(x) if group == 2 else x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return ``(last, maps)``, or with ``intermediates_only`` the maps alone, as every timm model does.

        ``indices`` chooses groups, an int the last ones; ``norm`` changes nothing: the maps are normalised already.

        Raises:
            ValueError: an index that does not exist, or a format other than NCHW.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r}: the maps of a convolutional network are 'NCHW'.")
        wanted = self._groups(self.num_groups if indices is None else indices)
        maps = []
        x = self.stem(x)
        for i in range(wanted[-1] + 1 if stop_early else self.num_groups):
            group = getattr(self, f"group{i + 1}")
            checkpointed = self.grad_checkpointing and not torch.jit.is_scripting()
            x = checkpoint_module(group, x) if checkpointed else group(x)
            if i in wanted:
                maps.append(self.rectify(x, i))
        if intermediates_only:
            return maps
        return maps[-1] if wanted[-1] == i else self.rectify(x, i), maps

    def _groups(self, indices: int | list[int]) -> tuple[int, ...]:
        """Return the indices of groups, an int the last ones, counted from 0."""
        indices = list(range(-indices, 0)) if isinstance(indices, int) else indices
        return check_out_indices(indices, self.feature_info, type(self).__name__)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the rectified map of the last group, [B, num_features, H / 4, W / 4]."""
        return self.forward_intermediates(x, indices=1)[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits [B, num_classes] of the last map; ``pre_logits`` gives the pooled features instead."""
        x = self.global_pool(x)
        if self.drop_rate:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, num_classes] of images [B, in_chans, H, W]."""
        return self.forward_head(self.forward_features(x))

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what lies behind the last chosen map, and the classifier; gives the indices counted from 0."""
        wanted = self._groups(indices)
        for i in range(wanted[-1] + 1, self.num_groups):
            setattr(self, f"group{i + 1}", nn.Identity())
        self.num_groups = wanted[-1] + 1
        self.feature_info = self.feature_info[: self.num_groups]
        self.num_features = self.head_hidden_size = self.feature_info[-1]["num_chs"]
        if self.num_groups < 3:
            self.norm = nn.Identity()  # it belongs to the last group's features
        if prune_head or self.num_groups < 3:
            self.reset_classifier(0, "")
        return list(wanted)

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """Return the linear layer, or its name."""
        return "fc" if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Make a new classifier for ``num_classes`` (0: none), in the model's device and dtype."""
        weight = self.stem.weight
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        self.num_classes = num_classes
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=pool_type)
        self.fc.to(device=weight.device, dtype=weight.dtype)  # timm before 1.0.21 takes neither in `create_classifier`
        self.global_pool.train(self.training)
        self.fc.train(self.training)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns by which timm groups parameters: stem, groups (not coarse: their blocks), the last norm."""
        blocks = r"^group(\d+)" if coarse else r"^group(\d+)(?:\.block(\d+))?"
        return {"stem": r"^stem", "blocks": blocks, "norm": [(r"^norm", (99999,))]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each group in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable


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


class WideResNetPublished(WideResNet):
    """The wide ResNet that the paper's tables were run with (reference section 5), which is not the standard one.

    A block has one batch norm, between its convolutions, and a group ends in one; none stands before the first ReLU.
    The batch norm that the authors' network owns but never uses is not built. Arguments as `WideResNet`.

    >>> sum(p.numel() for p in WideResNetPublished(depth=16, k=2, num_classes=100).parameters())
    702804
    """

    block = PublishedBlock
    norm_in_groups = True


def _create_wide(kind: type[WideResNet], name: str, pretrained: bool, **kwargs: Any) -> Any:
    # timm's features_only=True takes the maps through forward_intermediates ("getter"), so that they are rectified
    feature_cfg = {"out_indices": (0, 1, 2), "feature_cls": "getter"}
    return build_model_with_cfg(kind, name, pretrained, feature_cfg=feature_cfg, **{"depth": 16, "k": 2, **kwargs})


@register_model
def wrn_16_2(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """Standard WRN-16-2, features 32, 64, 128 at 32, 16, 8 pixels."""
    return _create_wide(WideResNet, "wrn_16_2", pretrained, **kwargs)


@register_model
def wrn_16_2_published(pretrained: bool = False, **kwargs: Any) -> WideResNetPublished:
    """Authors' WRN-16-2, features 32, 64, 128 at 32, 16, 8 pixels."""
    return _create_wide(WideResNetPublished, "wrn_16_2_published", pretrained, **kwargs)
