"""Label smoothing (Szegedy et al., 2016): the comparison that costs nothing."""

from __future__ import annotations

from torch import Tensor

from frskd_plugin.methods.base import Criterion, Method, StudentForward, StudentInfo
from frskd_plugin.methods.targets import soft_loss, soft_targets


class LabelSmoothing(Method):
    """``CE`` against ``(1 - s) y + s / K``.

    Args:
        student: the network to train.
        smoothing: s, the share that all K classes divide among them.

    Raises:
        ValueError: a share that is not in 0..1.
    """

    def __init__(self, student: StudentInfo, smoothing: float = 0.1) -> None:
        super().__init__(student)
        if not 0 <= smoothing < 1:
            raise ValueError(f"`smoothing` is a share of the label and must be in 0..1, below 1, got {smoothing}.")
        self.smoothing = float(smoothing)

    def forward(
        self, student: StudentForward, images: Tensor, targets: Tensor, criterion: Criterion
    ) -> dict[str, Tensor]:
        """See `Method.forward`; soft labels are smoothed too."""
        _, logits = student(images)
        smoothed = (1 - self.smoothing) * soft_targets(targets, logits) + self.smoothing / logits.shape[1]
        return {"loss_ce": soft_loss(criterion, logits, smoothed), "output": logits}
