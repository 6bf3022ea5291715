"""The self-teacher of a single-stage detector: feature network, a dense head of its own, and the distillation terms."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.models.dense_heads import TOODHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.utils import unpack_gt_instances
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmengine.model import BaseModule
from torch import Tensor

from frskd_plugin.core.checks import join_losses
from frskd_plugin.core.frskd_loss import FRSKDLoss, own_losses
from frskd_plugin.mmengine.registration import registered_type

DenseOutput = tuple[list[Tensor], ...]  # class scores first, a list with a map for each level each

OTHER_DETECTORS = {
    "rpn_head": "a two-stage detector",
    "roi_head": "a two-stage detector",
    "mask_head": "an instance segmentor",
    "encoder": "a detection transformer",
    "decoder": "a detection transformer",
}


def check_single_stage(settings: Mapping[str, Any], owner: str) -> None:
    """Refuse a detector that is more than backbone, neck and one dense head; ``owner`` is named in the message."""
    found = {key: settings[key] for key in OTHER_DETECTORS if settings.get(key) is not None}
    if found:
        types = {key: str(part.get("type", "")) if isinstance(part, Mapping) else "" for key, part in found.items()}
        parts = ", ".join(f"{key} {kind}".strip() for key, kind in types.items())
        raise ValueError(
            f"{owner} cannot serve {OTHER_DETECTORS[next(iter(found))]} ({parts}): it distils the class scores of one "
            "dense head over a pyramid. Use a single-stage detector (RetinaNet, FCOS, ATSS, GFL, ...)."
        )


def check_servable(head: str | type, owner: str) -> None:
    """Refuse a head (its class, or the name of that) whose loss is not ``loss_by_feat`` of class logits first."""
    head_type = registered_type(MODELS, head)
    if head_type is None:
        raise ValueError(f"{owner}: there is no head {head!r} in mmdet's registry. Check the spelling.")
    reason = _refusal(head_type)
    if reason:
        raise ValueError(
            f"{owner} cannot serve the head {head_type.__name__}: {reason}. Use one of mmdet's dense heads that keep "
            "`BaseDenseHead.loss` and give class logits first (RetinaHead, FCOSHead, ATSSHead, GFLHead, SSDHead, ...)."
        )


def _refusal(head_type: Any) -> str | None:
    if not issubclass(head_type, BaseDenseHead):
        return "it is not a dense head"
    if head_type.loss is not BaseDenseHead.loss:
        return "it makes its loss in a way of its own"
    if list(inspect.signature(head_type.loss_by_feat).parameters)[1:2] != ["cls_scores"]:  # behind `self`
        return "its output does not begin with class scores"
    if issubclass(head_type, TOODHead):
        return "it gives probabilities in place of logits"
    return None


def class_logits(cls_scores: Sequence[Tensor], num_classes: int) -> Tensor:
    """Return class scores of all levels, in mmdet's layout [B, A * K, H_i, W_i], as one tensor [B, K, N] over anchors.

    K counts the background where the head has a class for it (``cls_out_channels``).

    >>> class_logits([torch.zeros(2, 9 * 20, 4, 4), torch.zeros(2, 9 * 20, 2, 2)], num_classes=20).shape
    torch.Size([2, 20, 180])
    """
    levels = [scores.unflatten(1, (-1, num_classes)).transpose(1, 2).flatten(2) for scores in cls_scores]
    return torch.cat(levels, dim=2)


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
        self,
        feats: Sequence[Tensor],
        student_scores: Sequence[Tensor],
        data_samples: SampleList,
        student_losses: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The teacher head's own losses, ``loss_kd`` and ``loss_feat``.

        Args:
            feats: the student's maps [B, C, H_i, W_i], not detached: the teacher's loss trains the trunk too.
            student_scores: the class logits of the student's head, [B, A * K, H_i, W_i] each.
            data_samples: ground truth.
            student_losses: of the student's head, which ``schedule='gate'`` compares with the teacher's.
        """
        refined_feats, output = self(feats)
        num_classes = self.head.cls_out_channels
        student_logits, teacher_logits = (class_logits(scores, num_classes) for scores in (student_scores, output[0]))
        losses = dense_losses(self.head, output, data_samples)
        own = {} if student_losses is None else own_losses(self.loss_distill, student_losses, losses)
        terms = self.loss_distill(student_logits, teacher_logits, feats, refined_feats, **own)
        return join_losses(losses, terms, type(self.head).__name__)
