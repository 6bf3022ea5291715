"""The self-teacher of a single-stage detector: feature network, a dense head of its own, and the distillation terms."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from mmdet.models.utils import unpack_gt_instances
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmengine.model import BaseModule
from torch import Tensor

from frskd_plugin.core.checks import join_losses
from frskd_plugin.core.frskd_loss import FRSKDLoss
from frskd_plugin.mmdet.class_logits import class_logits
from frskd_plugin.mmdet.servable import check_servable

DenseOutput = tuple[list[Tensor], ...]  # class scores first, a list with a map for each level each


def dense_losses(head: Any, output: DenseOutput, data_samples: SampleList) -> dict[str, Any]:
    """The head's own losses of what its ``forward`` gave, as mmdet's ``BaseDenseHead.loss`` makes them."""
    gt_instances, gt_instances_ignore, img_metas = unpack_gt_instances(data_samples)
    return head.loss_by_feat(*output, gt_instances, img_metas, gt_instances_ignore)


class FRSKDDenseHead(BaseModule):
    """Self-teacher of `FRSKDSingleStage`; everything of it lives under ``self_teacher.`` in a checkpoint.

    Its dense head reads every level, so that every parameter receives a gradient.

    Args:
        neck: config of the feature network, ``dict(type='SelfTeacherNeck', in_channels=[C] * n, channels=D, ...)``. A
            dense head runs over all levels with one set of weights, so they need one width.
        loss_distill: config of the distillation terms, ``dict(type='FRSKDLoss', alpha=, beta=, temperature=)``. Its
            ``soft_label`` follows from the head: 'sigmoid' with focal losses, 'softmax' with a background class.
        head: config of the teacher's head. `FRSKDSingleStage` gives a copy of the student's ``bbox_head``, with its
            losses, anchors and assigner; only ``in_channels`` follows from the neck.
        init_cfg: mmengine's initialisation config.

    Raises:
        ValueError: if the head cannot be served, the levels are of several widths, or ``loss_distill`` is for another
            kind of head.
    """

    def __init__(
        self,
        neck: dict[str, Any],
        loss_distill: dict[str, Any],
        head: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if head is None:
            raise ValueError(
                "FRSKDDenseHead needs `head`, the config of a dense head. Inside FRSKDSingleStage leave it out and the "
                "student's is copied; elsewhere give one."
            )
        check_servable(head["type"], type(self).__name__)
        self.neck = MODELS.build(copy.deepcopy(neck))
        head = copy.deepcopy(head)
        head["in_channels"] = self._head_channels(head.get("in_channels"))
        self.head = MODELS.build(head)
        self.loss_distill = self._build_loss(loss_distill)

    def _head_channels(self, given: int | Sequence[int] | None) -> int | list[int]:
        channels = self.neck.out_channels
        channels = [channels] if isinstance(channels, int) else list(channels)
        if given is not None and not isinstance(given, int):  # SSDHead has weights for each level
            return channels
        if len(set(channels)) > 1:
            raise ValueError(
                f"The self-teacher's levels have {channels} channels, and a dense head runs over all of them with one "
                "set of weights: give its neck one width (`channels=64` in place of 'scaled')."
            )
        return channels[0]

    def _build_loss(self, config: dict[str, Any]) -> Any:
        soft_label = "sigmoid" if self.head.use_sigmoid_cls else "softmax"
        config = copy.deepcopy(config)
        if config.get("type") in ("FRSKDLoss", FRSKDLoss):
            if config.get("soft_label", "auto") not in ("auto", soft_label):
                raise ValueError(
                    f"{type(self.head).__name__} decides its classes by a {soft_label}, got "
                    f"loss_distill.soft_label={config['soft_label']!r}. Leave `soft_label` out."
                )
            config["soft_label"] = soft_label
        return MODELS.build(config)

    def forward(self, feats: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], DenseOutput]:
        """The student's maps [B, C, H_i, W_i] -> refined maps [B, D, H_i, W_i] and the head's output."""
        refined_feats = self.neck(feats)
        return refined_feats, self.head(refined_feats)

    def loss(
        self, feats: Sequence[Tensor], student_scores: Sequence[Tensor], data_samples: SampleList
    ) -> dict[str, Any]:
        """The teacher head's own losses, ``loss_kd`` and ``loss_feat``.

        Args:
            feats: the student's maps [B, C, H_i, W_i], not detached: the teacher's loss trains the trunk too.
            student_scores: the class logits of the student's head, [B, A * K, H_i, W_i] each.
            data_samples: ground truth.
        """
        refined_feats, output = self(feats)
        num_classes = self.head.cls_out_channels
        student_logits, teacher_logits = (class_logits(scores, num_classes) for scores in (student_scores, output[0]))
        losses = dense_losses(self.head, output, data_samples)
        terms = self.loss_distill(student_logits, teacher_logits, feats, refined_feats)
        return join_losses(losses, terms, type(self.head).__name__)
