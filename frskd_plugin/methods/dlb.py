"""DLB, self-distillation from the last mini-batch (Shen et al., 2022)."""

from __future__ import annotations

from torch import Tensor

from frskd_plugin.core.checks import can_read, check_not_negative
from frskd_plugin.core.soft_label import SoftLabelLoss
from frskd_plugin.methods.base import Criterion, DataNeeds, Method, StudentForward, StudentInfo, Terms
from frskd_plugin.methods.targets import choose_soft_label


class DLB(Method):
    """``CE(z) + w T^2 KL(sg p_before || p)``, the latter on the half of the batch that the step before had too.

    Each image goes through the network in two steps, augmented anew in each, forward and backward: an epoch costs twice
    the plain network's. ``loss_ce`` is the mean over both halves of a batch, ``loss_kd`` over the first.

    The logits of a batch's second half are kept for the next step: `forward` changes that state, as batch normalisation
    changes its statistics. It is forgotten at the start of an epoch (`set_progress`) and is not saved, so the first
    step of an epoch, and the first after a resume, is plain cross-entropy. This differs from the official loop, one
    sequence of batches that no epoch interrupts: here an epoch begins with two new halves, and its last half is filled
    up with the images that it began with.

    Args:
        student: the network to train. The first half of a batch must be the second half of the one before, in its
            order, each time augmented anew.
        weight: w.
        temperature: T.
        soft_label: see `choose_soft_label`.
    """

    needs = DataNeeds(order="overlap")

    def __init__(
        self, student: StudentInfo, weight: float = 1.0, temperature: float = 3.0, soft_label: str = "auto"
    ) -> None:
        super().__init__(student)
        self.weight = check_not_negative("weight", weight)
        self.soft_label_loss = SoftLabelLoss(temperature, soft_label=choose_soft_label(soft_label, student))
        self._before: tuple[Tensor, Tensor] | None = None  # logits and targets of the last batch's second half

    def set_progress(self, epoch: float, max_epochs: float) -> None:
        if int(epoch) != int(self.progress[0]):
            self._before = None
        super().set_progress(epoch, max_epochs)

    def forward(self, student: StudentForward, images: Tensor, targets: Tensor, criterion: Criterion) -> Terms:
        """Return ``loss_ce`` of the images [2 B, C, H, W] and ``loss_kd``, which is 0 where nothing was kept.

        Raises:
            ValueError: an odd batch; or (looked at on a CPU) a first half of other targets than the last second half.
        """
        half = len(images) // 2
        if len(images) != 2 * half:
            raise ValueError(f"DLB splits each batch in two halves, got {len(images)} images (`DLB.needs`).")
        _, logits = student(images)
        soft = logits.new_zeros(())
        if self._before is not None:
            before, labels = self._before
            if labels.shape != targets[:half].shape or (can_read(targets) and not labels.equal(targets[:half])):
                raise ValueError(
                    "DLB needs batches whose first half is the second half of the one before, in the same order; the "
                    "targets say that this one's is not. Use a sampler of overlapping batches (`DLB.needs`), no Mixup "
                    "or CutMix, and call set_progress at the start of each epoch."
                )
            soft = self.weight * self.soft_label_loss(logits[:half], before)
        self._before = (logits[half:].detach().clone(), targets[half:].clone())
        return {"loss_ce": criterion(logits, targets), "loss_kd": soft, "output": logits}
