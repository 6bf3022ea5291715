"""BYOT, "be your own teacher" (Zhang et al., 2019): classifiers after the earlier stages learn from the last one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frskd_plugin.core.checks import check_not_negative, check_one_of, check_share
from frskd_plugin.core.soft_label import SoftLabelLoss
from frskd_plugin.methods.base import Criterion, Method, StudentForward, StudentInfo, Terms
from frskd_plugin.methods.targets import choose_soft_label

SQUEEZE = 4  # the bottleneck's inner width is a quarter of the last map's


class EarlyClassifier(nn.Module):
    """Layers to the width of the last map, average pooling, linear classifier."""

    def __init__(self, layers: nn.Module, channels: int, num_classes: int) -> None:
        super().__init__()
        self.bottleneck = layers
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, feat: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, H, W] -> pooled features [B, D] and logits [B, K]."""
        pooled = self.bottleneck(feat).mean(dim=(2, 3))
        return pooled, self.fc(pooled)


Sizes = Sequence[tuple[int, int]]


def _bottleneck(channels: Sequence[int], sizes: Sizes) -> nn.Sequential:
    """Make the reimplementation's layers: 1x1 to a quarter of the width, k x k with stride k, 1x1 to the last width."""
    inner = max(1, channels[-1] // SQUEEZE)
    layers: list[nn.Module] = []
    for c, d, kernel in (
        (channels[0], inner, (1, 1)),
        (inner, inner, _stride(sizes[0], sizes[-1])),
        (inner, channels[-1], (1, 1)),
    ):
        layers += [nn.Conv2d(c, d, kernel, stride=kernel, bias=False), nn.BatchNorm2d(d), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _separable_branch(channels: Sequence[int], sizes: Sizes) -> nn.Sequential:
    """Make the layers of the authors' code: two separable 3x3 convolutions for each stage that follows."""
    layers: list[nn.Module] = []
    for (c, d), pair in zip(pairwise(channels), pairwise(sizes), strict=True):
        for width, stride in ((c, _stride(*pair)), (d, (1, 1))):
            depthwise = nn.Conv2d(c, c, 3, stride, padding=1, groups=c, bias=False)
            pointwise = nn.Conv2d(c, width, 1, bias=False)
            layers += [depthwise, pointwise, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _stride(size: Sequence[int], smaller: Sequence[int]) -> tuple[int, ...]:
    return tuple(max(1, n // m) for n, m in zip(size, smaller, strict=True))


class _Form(NamedTuple):
    alpha: float
    beta: float
    layers: Callable[[Sequence[int], Sizes], nn.Sequential]
    squared: bool  # T^2 with the soft labels, and the square of the features' distance


FORMS = {
    "reimplementation": _Form(0.1, 1e-6, _bottleneck, squared=True),
    "authors": _Form(0.3, 0.03, _separable_branch, squared=False),
}


class BYOT(Method):
    """``CE(z) + sum_i (1-a) CE(z_i) + a T^2 KL(sg p || p_i) + b ||F_i - sg F||^2`` over the maps but the last.

    F are average-pooled features, and their squared differences are summed over all elements, the batch included. This
    form, its ``b`` and its bottlenecks are those of a reimplementation that later comparisons took. The authors' code,
    ``form='authors'``, has separable convolutions in its branches, ``a KL`` without T^2 and ``b ||F_i - sg F||``, the
    norm over all elements and not its square. (It writes the KL as a cross-entropy, whose gradient is the same.)

    Args:
        student: the network to train; at least two maps.
        alpha: a, the share of the soft labels; None is 0.1, or 0.3 of the authors.
        beta: b, the weight of the feature term; None is 1e-6, or 0.03 of the authors.
        temperature: T.
        soft_label: see `choose_soft_label`.
        form: 'reimplementation' or 'authors'.

    Raises:
        ValueError: a share that is not in 0..1, another setting out of range, or a network of one map.
    """

    least_maps = 2
    capturable = True

    def __init__(
        self,
        student: StudentInfo,
        alpha: float | None = None,
        beta: float | None = None,
        temperature: float = 3.0,
        soft_label: str = "auto",
        form: str = "reimplementation",
    ) -> None:
        super().__init__(student)
        chosen = FORMS[check_one_of("form", form, [*FORMS])]
        self.alpha = check_share("alpha", chosen.alpha if alpha is None else alpha, "the soft labels")
        self.beta = check_not_negative("beta", chosen.beta if beta is None else beta)
        self.squared = chosen.squared
        self.soft_label_loss = SoftLabelLoss(temperature, soft_label=choose_soft_label(soft_label, student))
        channels, sizes = student.in_channels, student.map_sizes
        self.heads = nn.ModuleList(
            EarlyClassifier(chosen.layers(channels[i:], sizes[i:]), channels[-1], student.num_classes)
            for i in range(len(channels) - 1)
        )

    def forward(self, student: StudentForward, images: Tensor, targets: Tensor, criterion: Criterion) -> Terms:
        """Return weighted ``loss_ce, loss_early_ce, loss_kd, loss_feat``, the last three summed over early stages."""
        feats, logits = student(images)
        deepest = feats[-1].mean(dim=(2, 3)).detach()
        pooled, early = zip(*(head(feat) for head, feat in zip(self.heads, feats, strict=False)), strict=True)
        cross_entropy = torch.stack([criterion(z, targets) for z in early]).sum()
        soft = torch.stack([self.soft_label_loss(z, logits) for z in early]).sum()
        distance = torch.stack([F.mse_loss(f, deepest, reduction="sum") for f in pooled])
        if not self.squared:
            soft = soft / self.soft_label_loss.temperature**2
            distance = torch.stack([torch.linalg.vector_norm(f - deepest) for f in pooled])
        return {
            "loss_ce": criterion(logits, targets),
            "loss_early_ce": (1 - self.alpha) * cross_entropy,
            "loss_kd": self.alpha * soft,
            "loss_feat": self.beta * distance.sum(),
            "output": logits,
        }
