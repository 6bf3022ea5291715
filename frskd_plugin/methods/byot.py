"""BYOT, "be your own teacher" (Zhang et al., 2019): classifiers after the earlier stages learn from the last one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frskd_plugin.core.checks import check_not_negative
from frskd_plugin.core.soft_label import SoftLabelLoss
from frskd_plugin.methods.base import Criterion, Method, StudentForward, StudentInfo
from frskd_plugin.methods.targets import choose_soft_label

SQUEEZE = 4  # the bottleneck's inner width is a quarter of the last map's


class EarlyClassifier(nn.Module):
    """Bottleneck to width and size of the last map, average pooling, linear classifier.

    The bottleneck is 1x1 to a quarter of the width, k x k with stride k to the last map's size, 1x1 to the width, each
    with BN and ReLU.

    Args:
        in_channels: channels of the stage's map.
        out_channels: channels of the last map.
        stride: height and width of this map over those of the last.
        num_classes: number of classes.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Sequence[int], num_classes: int) -> None:
        super().__init__()
        inner = max(1, out_channels // SQUEEZE)
        self.bottleneck = nn.Sequential(
            *_conv_bn_relu(in_channels, inner, (1, 1)),
            *_conv_bn_relu(inner, inner, stride),
            *_conv_bn_relu(inner, out_channels, (1, 1)),
        )
        self.fc = nn.Linear(out_channels, num_classes)

    def forward(self, feat: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, H, W] -> pooled features [B, D] and logits [B, K]."""
        pooled = self.bottleneck(feat).mean(dim=(2, 3))
        return pooled, self.fc(pooled)


def _conv_bn_relu(in_channels: int, out_channels: int, kernel: Sequence[int]) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(in_channels, out_channels, tuple(kernel), stride=tuple(kernel), bias=False)
    return conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)


class BYOT(Method):
    """``CE(z) + sum_i (1-a) CE(z_i) + a T^2 KL(sg p || p_i) + b ||F_i - sg F||^2`` over the stages but the last.

    F are average-pooled features, and their squared differences are summed over all elements, the batch included, as
    in the authors' code, which ``b`` belongs to. The stages are the student's maps: for a ResNet give
    ``out_indices=(1, 2, 3, 4)``, or the stem gets a classifier too.

    Args:
        student: the network to train; at least two maps.
        alpha: a, the share of the soft labels.
        beta: b, the weight of the feature term.
        temperature: T.
        soft_label: 'softmax', 'sigmoid' (one logit, multi-label), or 'auto' by the criterion, see `choose_soft_label`.

    Raises:
        ValueError: a share that is not in 0..1, another setting out of range, or a network of one map.
    """

    def __init__(
        self,
        student: StudentInfo,
        alpha: float = 0.1,
        beta: float = 1e-6,
        temperature: float = 3.0,
        soft_label: str = "auto",
    ) -> None:
        super().__init__(student)
        if not 0 <= alpha <= 1:
            raise ValueError(f"`alpha` is the share of the soft labels and must be in 0..1, got {alpha}.")
        if len(student.in_channels) < 2:
            raise ValueError("BYOT classifies after each stage but the last: it needs two maps, got one.")
        self.alpha = float(alpha)
        self.beta = check_not_negative("beta", beta)
        self.soft_label_loss = SoftLabelLoss(temperature, soft_label=choose_soft_label(soft_label, student))
        *sizes, last = student.map_sizes
        *channels, width = student.in_channels
        strides = [[max(1, n // m) for n, m in zip(size, last, strict=True)] for size in sizes]
        self.heads = nn.ModuleList(
            EarlyClassifier(c, width, stride, student.num_classes) for c, stride in zip(channels, strides, strict=True)
        )

    def forward(
        self, student: StudentForward, images: Tensor, targets: Tensor, criterion: Criterion
    ) -> dict[str, Tensor]:
        """Weighted ``loss_ce, loss_early_ce, loss_kd, loss_feat``, the last three summed over the early stages."""
        feats, logits = student(images)
        deepest = feats[-1].mean(dim=(2, 3)).detach()
        pooled, early = zip(*(head(feat) for head, feat in zip(self.heads, feats, strict=False)), strict=True)
        cross_entropy = torch.stack([criterion(z, targets) for z in early]).sum()
        soft = torch.stack([self.soft_label_loss(z, logits) for z in early]).sum()
        distance = torch.stack([F.mse_loss(f, deepest, reduction="sum") for f in pooled]).sum()
        return {
            "loss_ce": criterion(logits, targets),
            "loss_early_ce": (1 - self.alpha) * cross_entropy,
            "loss_kd": self.alpha * soft,
            "loss_feat": self.beta * distance,
            "output": logits,
        }
