"""FRSKD with rotations, FRSKD+SLA of Tables 1 and 2 (reference section 7)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from frskd_plugin.core.checks import check_not_negative
from frskd_plugin.core.frskd_loss import own_losses
from frskd_plugin.core.soft_label import SoftLabelLoss
from frskd_plugin.methods.base import Criterion, Method, StudentForward, StudentInfo, Terms
from frskd_plugin.methods.frskd import FRSKD
from frskd_plugin.methods.sla_sd import (
    ROTATIONS,
    JointHead,
    aggregate_logits,
    check_softmax,
    joint_targets,
    rotate_images,
)
from frskd_plugin.methods.targets import ignored_label


class FRSKDSLA(FRSKD):
    """FRSKD over plain and rotated images, with SLA-SD in the student and in the self-teacher alike.

    With s, t the logits of student and self-teacher on the plain images, u, v their joint logits of class and rotation
    on the rotated ones, and agg the mean over the rotations, the loss is ``sla + distill``::

        sla = CE(s, y) + CE(t, y) + CE(u, 4y+k) + CE(v, 4y+k) + w T^2 (KL(sg agg(u) || s) + KL(sg agg(v) || t))
        distill = alpha L_KD([s; agg(u)], [t; agg(v)]) + beta L_F(maps of all images, refined maps of all images)

    Args:
        student: the network to train; its images must be square.
        sla_weight: w.
        single_pass: False is the published form: the plain images go through both networks in a pass of their own, and
            once more among the rotations (5 B images a step). True takes the plain images from one pass over the four
            rotations (4 B images): batch statistics are then those of all rotations, and L_F averages over 4 B maps.
        frskd: settings of `FRSKD`.

    Raises:
        ValueError: a criterion that decides each class on its own (one logit, multi-label), or as `FRSKD`.
    """

    def __init__(self, student: StudentInfo, sla_weight: float = 1.0, single_pass: bool = False, **frskd: Any) -> None:
        super().__init__(student, **frskd)
        check_softmax(self.loss_distill.soft_label_loss.soft_label, "FRSKD+SLA")
        self.sla_weight = check_not_negative("sla_weight", sla_weight)
        self.single_pass = bool(single_pass)
        self.soft_label_loss = SoftLabelLoss(self.loss_distill.soft_label_loss.temperature)
        self.joint_head = JointHead(student.in_channels[-1], student.num_classes)
        self.teacher_joint_head = JointHead(self.self_teacher.neck.out_channels[-1], student.num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        Method.reset_classifier(self, num_classes)  # refuses: the joint heads belong to the old classes

    def forward(self, student: StudentForward, images: Tensor, targets: Tensor, criterion: Criterion) -> Terms:
        """Return FRSKD's terms, ``loss_joint_ce``, ``loss_teacher_joint_ce`` and the weighted ``loss_sla_kd``.

        The joint classifiers always learn by the plain cross-entropy.

        Raises:
            ValueError: the images are not square.
        """
        rotated = rotate_images(images)
        if not self.single_pass:
            feats, logits, plain_maps = self.run_student(student, images)
            plain_refined, teacher_logits = self.run_self_teacher(feats)
        feats, all_logits, maps = self.run_student(student, rotated)
        refined, all_teacher_logits = self.run_self_teacher(feats)
        if self.single_pass:
            logits, teacher_logits = all_logits[::ROTATIONS], all_teacher_logits[::ROTATIONS]
            all_maps, all_refined = maps, list(refined)
        else:
            all_maps = [torch.cat(pair) for pair in zip(plain_maps, maps, strict=True)]
            all_refined = [torch.cat(pair) for pair in zip(plain_refined, refined, strict=True)]

        last = F.relu(refined[-1]) if self.preactivation else refined[-1]
        joint, teacher_joint = self.joint_head(feats[-1]), self.teacher_joint_head(last)
        labels = joint_targets(targets, ignored_label(criterion))
        agg, teacher_agg = aggregate_logits(joint), aggregate_logits(teacher_joint)
        own = self.soft_label_loss(logits, agg) + self.soft_label_loss(teacher_logits, teacher_agg)
        loss, teacher_loss = criterion(logits, targets), criterion(teacher_logits, targets)
        return {
            "loss_ce": loss,
            "loss_teacher_ce": teacher_loss,
            "loss_joint_ce": F.cross_entropy(joint, labels),
            "loss_teacher_joint_ce": F.cross_entropy(teacher_joint, labels),
            "loss_sla_kd": self.sla_weight * own,
            # the student's aggregate is no constant here: it learns from the self-teacher's
            **self.loss_distill(
                torch.cat([logits, agg]),
                torch.cat([teacher_logits, teacher_agg]),
                all_maps,
                all_refined,
                **own_losses(self.loss_distill, loss, teacher_loss),
            ),
            "output": logits,
            "teacher_output": teacher_logits,
        }
