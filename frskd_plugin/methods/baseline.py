"""Plain network, which every method is compared with."""

from __future__ import annotations

from torch import Tensor

from frskd_plugin.methods.base import Criterion, Method, StudentForward, Terms


class Baseline(Method):
    """``loss_ce``, the criterion of the student's logits, and nothing else."""

    capturable = True

    def forward(self, student: StudentForward, images: Tensor, targets: Tensor, criterion: Criterion) -> Terms:
        """See `Method.forward`."""
        _, logits = student(images)
        return {"loss_ce": criterion(logits, targets), "output": logits}
