"""FRSKD, the paper's method (Eq. 5), and FRSKD\\F, the same with ``beta=0``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from frskd_plugin.core.checks import check_positive_int
from frskd_plugin.core.frskd_loss import FRSKDLoss
from frskd_plugin.core.self_teacher import SelfTeacher
from frskd_plugin.methods.base import Criterion, Method, StudentForward, StudentInfo
from frskd_plugin.methods.teacher_width import teacher_share, width_within

_logger = logging.getLogger(__name__)

DEFAULT_MAX_SHARE = 0.75


class FRSKD(Method):
    """``CE(student) + CE(self-teacher) + alpha * L_KD + beta * L_F``; the distillation terms train the student alone.

    Args:
        student: the network to train.
        alpha: weight of the soft labels.
        beta: weight of the feature distillation; 0 is FRSKD\\F.
        temperature: of the soft labels.
        width: the self-teacher's channels are ``width`` times the student's, at each level (the paper: 2). 'auto' takes
            2, 1, or 1 with a limit to the channels, whatever keeps its MACs within ``max_share`` of the student's.
        max_share: for ``width='auto'``, the limit of self-teacher's MACs / student's MACs.
        max_channels: upper limit of the self-teacher's channels at any level.
        depth: separable convolutions a node; None is the variant's own.
        variant: 'published' (the authors' code, which the paper's alpha and beta belong to) or 'equations'.
        rectify_input: see `SelfTeacherNeck`.
        feature_loss: takes (feats, refined_feats) and gives a scalar; None is `AttentionTransferLoss`.

    Raises:
        TypeError: for arguments of the wrong type.
        ValueError: for arguments out of range, or fewer than two feature maps.
    """

    def __init__(
        self,
        student: StudentInfo,
        alpha: float = 2.0,
        beta: float = 100.0,
        temperature: float = 4.0,
        width: int | str = 2,
        max_share: float = DEFAULT_MAX_SHARE,
        max_channels: int | None = None,
        depth: int | None = None,
        variant: str = "published",
        rectify_input: bool = True,
        feature_loss: nn.Module | None = None,
    ) -> None:
        super().__init__(student)
        self.loss_distill = FRSKDLoss(alpha, beta, temperature, variant, feature_loss)
        form: dict[str, Any] = {"depth": depth, "variant": variant, "rectify_input": rectify_input}
        auto = width == "auto"
        if auto:
            chosen, max_channels = width_within(student, max_share, max_channels, **form)
        else:
            chosen = check_positive_int("width", width)
        self.self_teacher = SelfTeacher(
            student.in_channels, student.num_classes, chosen, max_channels=max_channels, **form
        )
        self.width, self.max_channels = chosen, max_channels
        _tell_cost(teacher_share(student, chosen, max_channels, **form), chosen, max_channels, auto)

    def forward(
        self, student: StudentForward, images: Tensor, targets: Tensor, criterion: Criterion
    ) -> dict[str, Tensor]:
        """Weighted ``loss_ce, loss_teacher_ce, loss_kd, loss_feat``; logits ``output``, ``teacher_output`` [B, K]."""
        feats, logits = student(images)
        refined_feats, teacher_logits = self.self_teacher(feats)  # not detached: its loss trains the trunk too
        return {
            "loss_ce": criterion(logits, targets),
            "loss_teacher_ce": criterion(teacher_logits, targets),
            **self.loss_distill(logits, teacher_logits, feats, refined_feats),
            "output": logits,
            "teacher_output": teacher_logits,
        }

    def teacher_logits(self, feats: Sequence[Tensor]) -> Tensor:
        """See `Method.teacher_logits`."""
        return self.self_teacher(feats)[1]


def _tell_cost(share: float, width: int, max_channels: int | None, auto: bool) -> None:
    """Say what was chosen, or that a choice is a dear one; at WARNING, which is seen without any set-up of logging."""
    if auto:
        limit = "" if max_channels is None else f", at most {max_channels} channels a level"
        _logger.warning("FRSKD: width='auto' chose width=%s%s: %.2f of the student's MACs", width, limit, share)
    elif share > 1:
        _logger.warning(
            "FRSKD: the self-teacher of width=%s needs %.1f times the student's MACs; width='auto' keeps to %s of them",
            width,
            share,
            DEFAULT_MAX_SHARE,
        )
