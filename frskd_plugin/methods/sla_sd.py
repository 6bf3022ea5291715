"""SLA-SD, self-supervised label augmentation with self-distillation (Lee et al., 2020)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from frskd_plugin.core.checks import check_not_negative
from frskd_plugin.core.soft_label import SoftLabelLoss
from frskd_plugin.methods.base import Criterion, Method, StudentForward, StudentInfo
from frskd_plugin.methods.rotation import (
    ROTATIONS,
    JointHead,
    aggregate_logits,
    check_softmax,
    joint_targets,
    rotate_images,
)
from frskd_plugin.methods.targets import choose_soft_label, ignored_label


class SLASD(Method):
    """``CE(joint, 4 y + k) + CE(single, y) + w T^2 KL(sg agg || single)``, in one pass over four rotations.

    A joint classifier of class and rotation reads the last map; agg is its mean over the rotations,
    ``mean_k joint_k[:, k::4]``. The student's own classifier learns from the unrotated images alone and is deployed.

    Args:
        student: the network to train; its images must be square.
        weight: w.
        temperature: T; the published FRSKD+SLA uses 4.
        soft_label: 'softmax'; 'auto' is that too, and refuses what needs a sigmoid (one logit, multi-label).

    Raises:
        ValueError: a setting out of range, or a network that decides each class on its own.
    """

    def __init__(
        self, student: StudentInfo, weight: float = 1.0, temperature: float = 1.0, soft_label: str = "auto"
    ) -> None:
        super().__init__(student)
        self.weight = check_not_negative("weight", weight)
        check_softmax(choose_soft_label(soft_label, student), "SLA-SD")
        self.soft_label_loss = SoftLabelLoss(temperature)
        self.joint_head = JointHead(student.in_channels[-1], student.num_classes)

    def forward(
        self, student: StudentForward, images: Tensor, targets: Tensor, criterion: Criterion
    ) -> dict[str, Tensor]:
        """``loss_ce, loss_joint_ce`` and the weighted ``loss_kd``. The joint one is always the plain cross-entropy.

        Raises:
            ValueError: the images are not square.
        """
        feats, all_logits = student(rotate_images(images))
        logits = all_logits[::ROTATIONS]
        joint_logits = self.joint_head(feats[-1])
        return {
            "loss_ce": criterion(logits, targets),
            "loss_joint_ce": F.cross_entropy(joint_logits, joint_targets(targets, ignored_label(criterion))),
            "loss_kd": self.weight * self.soft_label_loss(logits, aggregate_logits(joint_logits)),
            "output": logits,
        }
