"""CS-KD, class-wise self-knowledge distillation (Yun et al., 2020): images of one class agree."""

from __future__ import annotations

import torch
from torch import Tensor

from frskd_plugin.core.checks import can_read, check_not_negative
from frskd_plugin.core.soft_label import SoftLabelLoss
from frskd_plugin.methods.base import Criterion, DataNeeds, Method, StudentForward, StudentInfo, Terms
from frskd_plugin.methods.targets import choose_soft_label, ignored_label


class CSKD(Method):
    """``CE(z) + w T^2 KL(sg p(partner) || p)`` with a partner of its class for each image.

    The partners' pass is one of its own and has no gradient; in it batch normalisation takes the partners' statistics,
    and enters them in its running ones, as in the authors' code.

    Args:
        student: the network to train. Batches hold 2 B images: the second half are the partners of the first, in its
            order, so both halves of the targets are equal.
        weight: w; the authors take 3 for fine-grained data.
        temperature: T.
        soft_label: see `choose_soft_label`.
    """

    needs = DataNeeds(order="class_pairs")
    capturable = True

    def __init__(
        self, student: StudentInfo, weight: float = 1.0, temperature: float = 4.0, soft_label: str = "auto"
    ) -> None:
        super().__init__(student)
        self.weight = check_not_negative("weight", weight)
        self.soft_label_loss = SoftLabelLoss(temperature, soft_label=choose_soft_label(soft_label, student))

    def forward(self, student: StudentForward, images: Tensor, targets: Tensor, criterion: Criterion) -> Terms:
        """Return ``loss_ce`` of the first half of images [2 B, C, H, W], ``loss_kd``, and ``output`` of both halves.

        Raises:
            ValueError: an odd batch; or (looked at on a CPU) halves of other classes, or images without a label.
        """
        half = len(images) // 2
        readable = can_read(targets)
        if len(images) != 2 * half or (readable and not torch.equal(targets[:half], targets[half:])):
            raise ValueError(
                "CS-KD needs batches whose second half holds partners of the first half's classes, in the same order: "
                f"got {len(images)} images, and the halves of their targets differ. Use a sampler of class pairs "
                "(`CSKD.needs`), and no Mixup or CutMix."
            )
        if readable and targets.ndim == 1 and bool((targets == ignored_label(criterion)).any()):
            raise ValueError("CS-KD pairs images of one class, and some of the batch have no label: leave them out.")
        _, logits = student(images[:half])
        with torch.no_grad():
            _, partner_logits = student(images[half:])
        return {
            "loss_ce": criterion(logits, targets[:half]),
            "loss_kd": self.weight * self.soft_label_loss(logits, partner_logits),
            "output": torch.cat([logits, partner_logits]),
        }
