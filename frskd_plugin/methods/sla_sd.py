"""SLA-SD, self-supervised label augmentation with self-distillation (Lee et al., 2020)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from frskd_plugin.core.checks import check_not_negative, check_temperature
from frskd_plugin.core.soft_label import soft_label_loss
from frskd_plugin.methods.base import Criterion, Method, StudentForward, StudentInfo
from frskd_plugin.methods.rotation import ROTATIONS, JointHead, aggregate_logits, joint_targets, rotate_images


class SLASD(Method):
    """``CE(joint, 4 y + k) + CE(single, y) + w T^2 KL(sg agg || single)``, in one pass over four rotations.

    A joint classifier of class and rotation reads the last map; agg is its mean over the rotations,
    ``mean_k joint_k[:, k::4]``. The student's own classifier learns from the unrotated images alone and is deployed.

    Args:
        student: the network to train; its images must be square.
        weight: w.
        temperature: T; the published FRSKD+SLA uses 4.

    Raises:
        ValueError: a setting out of range.
    """

    def __init__(self, student: StudentInfo, weight: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__(student)
        self.weight = check_not_negative("weight", weight)
        self.temperature = check_temperature(temperature)
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
            "loss_joint_ce": F.cross_entropy(joint_logits, joint_targets(targets)),
            "loss_kd": self.weight * soft_label_loss(logits, aggregate_logits(joint_logits), self.temperature),
            "output": logits,
        }
