"""Table 6's sizes, counted from the layers of the authors' networks, and those of this package's self-teacher.

This package computes the same graph with fewer operations (it projects before it up-samples, and reads a map once for
two laterals), so that counting what it runs would not give the paper's numbers: both are counted.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import frskd_plugin.timm  # noqa: F401  (registers the CIFAR networks)
from frskd_plugin.core.self_teacher import SelfTeacher
from frskd_plugin.timm.probe import probe_student

CHANNELS, SIZES, NUM_CLASSES = (32, 64, 128), (32, 16, 8), 100  # the maps of WRN-16-2
DEPTH = 2  # separable convolutions a node: what the paper's ratios belong to
# settings of `SelfTeacher` for the rows of Table 6
TEACHERS: dict[str, dict[str, Any]] = {
    "bifpn_128": {"channels": 128},
    "bifpn_256": {"channels": 256},
    "bifpnc_128": {"width": 1},
    "bifpnc_256": {"width": 2},
}


@dataclass
class Count:
    """A running count for one image.

    Attributes:
        params: trainable parameters.
        macs: multiply-accumulates of convolutions and linear layers.
        others: 2 for each element that enters a batch normalisation, 1 for each that enters a ReLU layer or leaves an
            up-sampling or enters a max-pooling; a ReLU that is no layer of its own costs nothing (reference section
            10: the rule by which the paper's FLOPs come out).
    """

    params: int = 0
    macs: int = 0
    others: int = 0

    @property
    def operations(self) -> int:
        """All of them."""
        return self.macs + self.others

    def conv(self, c_in: int, c_out: int, size: int, kernel: int = 1, groups: int = 1) -> None:
        """Without bias, to a map of ``size`` x ``size``."""
        weights = c_in // groups * c_out * kernel**2
        self.params += weights
        self.macs += weights * size**2

    def linear(self, c_in: int, c_out: int) -> None:
        """With bias."""
        self.params += (c_in + 1) * c_out
        self.macs += c_in * c_out

    def norm(self, channels: int, size: int) -> None:
        """Batch normalisation."""
        self.params += 2 * channels
        self.others += 2 * channels * size**2

    def pointwise(self, channels: int, size: int) -> None:
        """ReLU layer, max-pooling (of such a map) or up-sampling (to such a map)."""
        self.others += channels * size**2

    def conv_norm_relu(self, c_in: int, c_out: int, size: int) -> None:
        """1x1 convolution, batch normalisation, ReLU."""
        self.conv(c_in, c_out, size)
        self.norm(c_out, size)
        self.pointwise(c_out, size)

    def node(self, inputs: int, channels: int, size: int, depth: int) -> None:
        """Fusion by one scalar for each input, and separable convolutions with ReLU between them."""
        self.params += inputs
        self.others += inputs  # the scalars go through a ReLU layer
        for index in range(depth):
            if index:
                self.pointwise(channels, size)
            self.conv(channels, channels, size, kernel=3, groups=channels)
            self.conv(channels, channels, size)
            self.norm(channels, size)


def count_wide_resnet(channels: Sequence[int] = CHANNELS, size: int = 32, num_classes: int = NUM_CLASSES) -> Count:
    """The authors' WRN of two blocks a group (reference section 5), with the batch norm that it owns and never uses."""
    count, width = Count(), 16
    count.conv(3, width, size, kernel=3)
    for c in channels:
        before, size = size, size if c == channels[0] else size // 2
        count.pointwise(width, before)
        count.conv(width, c, size)  # the shortcut
        for index in range(2):
            count.conv(c if index else width, c, size, kernel=3)
            count.norm(c, size)
            count.pointwise(c, size)
            count.conv(c, c, size, kernel=3)
            if not index:
                count.pointwise(c, size)
        count.norm(c, size)
        width = c
    count.pointwise(width, size)  # the ReLU before the classifier; those on the other maps are no layers
    count.linear(width, num_classes)
    count.params += 2 * width
    return count


def count_self_teacher(
    channels: Sequence[int] = CHANNELS,
    sizes: Sequence[int] = SIZES,
    *,
    width: int | None = None,
    constant: int | None = None,
    depth: int = DEPTH,
    num_classes: int = NUM_CLASSES,
) -> Count:
    """The authors' self-teacher (reference sections 2 and 3).

    Args:
        channels: of the student's maps, highest resolution first.
        sizes: height of each map.
        width: BiFPNc with ``width`` times these channels; or
        constant: BiFPN of that many channels at every level.
        depth: separable convolutions a node.
        num_classes: of its classifier.

    Raises:
        ValueError: not just one of ``width`` and ``constant`` is given.
    """
    if (width is None) == (constant is None):
        raise ValueError(f"give either `width` (BiFPNc) or `constant` (BiFPN), got {width} and {constant}.")
    out = [constant or c * (width or 1) for c in channels]
    count, top = Count(), len(out) - 1
    for i, (c, d, size) in enumerate(zip(channels, out, sizes, strict=True)):
        count.conv_norm_relu(c, d, size)  # the top-down path's lateral
        if i < top:
            count.pointwise(out[i + 1], size)  # up-sampled before it is projected
            if width:
                count.conv_norm_relu(out[i + 1], d, size)
            count.node(2, d, size, depth)
        if i > 0:
            count.conv_norm_relu(c, d, size)  # the bottom-up path's lateral
            count.pointwise(out[i - 1], sizes[i - 1])  # max-pooled before it is projected
            if width:
                count.conv_norm_relu(out[i - 1], d, size)
            count.node(2 if i == top else 3, d, size, depth)
    count.linear(out[-1], num_classes)
    return count


@dataclass(frozen=True)
class Ratios:
    """Self-teacher over classifier.

    Attributes:
        params: parameters.
        macs: convolutions and linear layers alone.
        operations: all operations, which is what the paper prints.
        own_params: of this package's self-teacher and its standard WRN-16-2.
        own_macs: multiply-accumulates that this package's self-teacher executes.
    """

    params: float
    macs: float
    operations: float
    own_params: float
    own_macs: float


@functools.cache
def table6_ratios() -> dict[str, Ratios]:
    """The rows of Table 6.

    >>> ratios = table6_ratios()["bifpnc_256"]
    >>> f"{ratios.params:.2f} {ratios.operations:.2f}"
    '0.59 0.68'
    """
    student = timm.create_model("wrn_16_2", num_classes=NUM_CLASSES)
    student_macs, student_params = probe_student(student).macs, _params(student)
    classifier = count_wide_resnet()
    ratios = {}
    for key, settings in TEACHERS.items():
        teacher = count_self_teacher(width=settings.get("width"), constant=settings.get("channels"))
        own_params, own_macs = _own_size(settings)
        ratios[key] = Ratios(
            teacher.params / classifier.params,
            teacher.macs / classifier.macs,
            teacher.operations / classifier.operations,
            own_params / student_params,
            own_macs / student_macs,
        )
    return ratios


def _own_size(settings: dict[str, Any]) -> tuple[int, int]:
    """Parameters and multiply-accumulates of this package's self-teacher on WRN-16-2."""
    with torch.device("meta"):
        teacher = SelfTeacher(CHANNELS, NUM_CLASSES, **settings).eval()
        feats = [torch.empty(1, c, size, size) for c, size in zip(CHANNELS, SIZES, strict=True)]
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            teacher(feats)
    return _params(teacher), counter.get_total_flops() // 2


def _params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
