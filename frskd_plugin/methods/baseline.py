"""Methods without distillation: the plain network, and label smoothing (Szegedy et al., 2016)."""

from __future__ import annotations

from torch import Tensor

from frskd_plugin.methods.base import Criterion, Method, StudentForward, StudentInfo, Terms
from frskd_plugin.methods.targets import choose_soft_label, soft_loss


class Baseline(Method):
    """``loss_ce``, the criterion of the student's logits, and nothing else."""

    capturable = True

    def forward(self, student: StudentForward, images: Tensor, targets: Tensor, criterion: Criterion) -> Terms:
        _, logits = student(images)
        return {"loss_ce": criterion(logits, targets), "output": logits}


class LabelSmoothing(Method):
    """``CE`` against ``(1 - s) y + s / K``; by a sigmoid, where each class has two outcomes, ``(1 - s) y + s / 2``.

    Soft labels y are smoothed too.

    Args:
        student: the network to train.
        smoothing: s, the share that all K classes divide among them.
        soft_label: see `choose_soft_label`.

    Raises:
        ValueError: a share that is not in 0..1.
    """

    makes_soft_targets = True
    capturable = True

    def __init__(self, student: StudentInfo, smoothing: float = 0.1, soft_label: str = "auto") -> None:
        super().__init__(student)
        if not 0 <= smoothing < 1:
            raise ValueError(f"`smoothing` is a share of the label and must be in 0..1, below 1, got {smoothing}.")
        self.smoothing = float(smoothing)
        self.soft_label = choose_soft_label(soft_label, student)

    def forward(self, student: StudentForward, images: Tensor, targets: Tensor, criterion: Criterion) -> Terms:
        _, logits = student(images)
        share = self.smoothing / (logits.shape[1] if self.soft_label == "softmax" else 2)
        loss = soft_loss(criterion, logits, targets, lambda y: (1 - self.smoothing) * y + share)
        return {"loss_ce": loss, "output": logits}
