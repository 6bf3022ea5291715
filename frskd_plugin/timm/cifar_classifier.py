"""Base of the CIFAR networks: what timm is told about them, and the interface by which it drives a classifier."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from timm.layers import create_classifier
from timm.models import checkpoint as checkpoint_module
from torch import Tensor, nn
from torch.nn import functional as F

from frskd_plugin.timm.probe import check_out_indices

CIFAR_MEAN = (0.5071, 0.4865, 0.4409)
CIFAR_STD = (0.2673, 0.2564, 0.2762)
# How timm's features_only=True takes the maps: through forward_intermediates, so that they are rectified.
FEATURE_CFG = {"out_indices": (0, 1, 2), "feature_cls": "getter"}


def cifar_cfg(first_conv: str, pool_size: tuple[int, int]) -> dict[str, Any]:
    """A timm ``pretrained_cfg`` of a network for 32x32 images; its classifier is called ``fc``."""
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


def num_blocks(depth: int) -> int:
    """Blocks in each of the three groups.

    >>> num_blocks(16)
    2

    Raises:
        ValueError: ``depth`` is not 6n + 4.
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"depth={depth} of a wide ResNet must be 6n + 4: 10, 16, 22, 28, ...")
    return (depth - 4) // 6


def group_channels(k: int) -> tuple[int, int, int]:
    """Channels of the three groups.

    >>> group_channels(2)
    (32, 64, 128)

    Raises:
        ValueError: ``k`` is below 1.
    """
    if k < 1:
        raise ValueError(f"k={k} of a wide ResNet (its width) must be at least 1.")
    return 16 * k, 32 * k, 64 * k


class CifarClassifier(nn.Module):
    """Base of the wide ResNets WRN-``depth``-``k``: a stem and ``group1`` .. ``group3``, which a subclass makes.

    The features of a group, as handed out, are rectified (`rectify`); what feeds the next group is the group's output.

    Args:
        depth: layers, 6n + 4.
        k: width; the groups have 16k, 32k and 64k channels.
        num_classes: width of the logits; 0: no classifier.
        in_chans: channels of the images.
        global_pool: timm's name of the pooling before the classifier.
        drop_rate: dropout before the classifier.
    """

    num_groups = 3

    def __init__(
        self,
        depth: int,
        k: int,
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        channels, blocks = group_channels(k), num_blocks(depth)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.num_features = self.head_hidden_size = channels[-1]
        self.grad_checkpointing = False
        self.feature_info = [
            {"num_chs": c, "reduction": 2**i, "module": f"group{i + 1}"} for i, c in enumerate(channels)
        ]
        self.global_pool, self.fc = create_classifier(channels[-1], num_classes, pool_type=global_pool)
        self.stem = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False)
        for i, (before, after) in enumerate(pairwise((16, *channels))):
            self.add_module(f"group{i + 1}", self.make_group(before, after, blocks, stride=2 if i else 1))

    def make_group(self, in_channels: int, channels: int, blocks: int, stride: int) -> nn.Module:
        """A group of ``blocks`` blocks, the first of which changes channels and resolution."""
        raise NotImplementedError

    def rectify(self, x: Tensor, group: int) -> Tensor:
        """Feature map of group ``group`` (from 0) as it is handed out, from that group's output ``[B, C, H, W]``."""
        raise NotImplementedError

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Maps after the chosen groups (all by default; an int takes the last ones), as every timm model gives them.

        Returns ``(last, maps)``, or the maps alone with ``intermediates_only``. ``norm`` changes nothing: the maps
        are normalised already.

        Raises:
            ValueError: An index that does not exist, or a format other than NCHW.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r}: the maps of a convolutional network are 'NCHW'.")
        if indices is None or isinstance(indices, int):
            indices = list(range(-(indices or self.num_groups), 0))
        wanted = check_out_indices(indices, self.feature_info, type(self).__name__)
        maps = []
        x = self.stem(x)
        for i in range(max(wanted) + 1 if stop_early else self.num_groups):
            x = self._run_group(i, x)
            if i in wanted:
                maps.append(self.rectify(x, i))
        if intermediates_only:
            return maps
        last = maps[-1] if wanted[-1] == i else self.rectify(x, i)
        return last, maps

    def forward_features(self, x: Tensor) -> Tensor:
        """Rectified map of the last group, ``[B, num_features, H / 4, W / 4]``."""
        x = self.stem(x)
        for i in range(self.num_groups):
            x = self._run_group(i, x)
        return self.rectify(x, self.num_groups - 1)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits ``[B, num_classes]`` of the last map; ``pre_logits`` gives the pooled features instead."""
        x = self.global_pool(x)
        if self.drop_rate:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, num_classes]`` of images ``[B, in_chans, H, W]``."""
        return self.forward_head(self.forward_features(x))

    def _run_group(self, i: int, x: Tensor) -> Tensor:
        group = getattr(self, f"group{i + 1}")
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_module(group, x)
        return group(x)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the groups behind the last chosen map, and the classifier; gives the indices counted from 0."""
        if isinstance(indices, int):
            indices = list(range(-indices, 0))
        wanted = check_out_indices(indices, self.feature_info, type(self).__name__)
        for i in range(wanted[-1] + 1, self.num_groups):
            setattr(self, f"group{i + 1}", nn.Identity())
        self.num_groups = wanted[-1] + 1
        self.feature_info = self.feature_info[: self.num_groups]
        self.num_features = self.head_hidden_size = self.feature_info[-1]["num_chs"]
        if prune_head or self.num_groups < 3:
            self.reset_classifier(0, "")
        return list(wanted)

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """The linear layer, or its name."""
        return "fc" if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier for ``num_classes`` (0: none), in the model's device and dtype."""
        weight = self.stem.weight
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        self.num_classes = num_classes
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=pool_type)
        self.fc.to(device=weight.device, dtype=weight.dtype)  # timm before 1.0.21 takes neither in `create_classifier`
        self.global_pool.train(self.training)
        self.fc.train(self.training)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Patterns by which timm groups parameters: the stem, then the groups (or, not coarse, their blocks)."""
        return {"stem": r"^stem", "blocks": r"^group(\d+)" if coarse else r"^group(\d+)(?:\.block(\d+))?"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each group in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable
