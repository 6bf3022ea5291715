"""Any single-stage detector of mmdet, trained with FRSKD, and its self-teacher: feature network and dense head."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.models.dense_heads import TOODHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors.single_stage import SingleStageDetector
from mmdet.models.utils import unpack_gt_instances
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmengine.model import BaseModule
from torch import Tensor

import frskd_plugin.mmengine.optim  # noqa: F401  (the self-teacher trains at the rate of the head)
from frskd_plugin.core.checks import join_losses
from frskd_plugin.core.dry_run import forked_rng
from frskd_plugin.core.frskd_loss import FRSKDLoss, own_losses
from frskd_plugin.mmengine.registration import registered_type

OTHER_PARTS = ("rpn_head", "roi_head", "mask_head", "encoder", "decoder")
DenseOutput = tuple[list[Tensor], ...]  # class scores first, a list with a map for each level each


def check_servable(head: str | type, owner: str) -> None:
    """Refuse a head (its class, or the name of that) whose loss is not ``loss_by_feat`` of class logits first."""
    head_type: Any = registered_type(MODELS, head)
    if head_type is None:
        raise ValueError(f"{owner}: there is no head {head!r} in mmdet's registry. Check the spelling.")
    if not issubclass(head_type, BaseDenseHead):
        reason = "it is not a dense head"
    elif head_type.loss is not BaseDenseHead.loss:
        reason = "it makes its loss in a way of its own"
    elif list(inspect.signature(head_type.loss_by_feat).parameters)[1:2] != ["cls_scores"]:  # behind `self`
        reason = "its output does not begin with class scores"
    elif issubclass(head_type, TOODHead):
        reason = "it gives probabilities in place of logits"
    else:
        return
    raise ValueError(
        f"{owner} cannot serve the head {head_type.__name__}: {reason}. Use one of mmdet's dense heads that keep "
        "`BaseDenseHead.loss` and give class logits first (RetinaHead, FCOSHead, ATSSHead, GFLHead, SSDHead, ...)."
    )


def class_logits(cls_scores: Sequence[Tensor], num_classes: int) -> Tensor:
    """Return class scores of all levels, in mmdet's layout [B, A * K, H_i, W_i], as one tensor [B, K, N] over anchors.

    K counts the background where the head has a class for it (``cls_out_channels``).

    >>> class_logits([torch.zeros(2, 9 * 20, 4, 4), torch.zeros(2, 9 * 20, 2, 2)], num_classes=20).shape
    torch.Size([2, 20, 180])
    """
    levels = [scores.unflatten(1, (-1, num_classes)).transpose(1, 2).flatten(2) for scores in cls_scores]
    return torch.cat(levels, dim=2)


def dense_losses(head: Any, output: DenseOutput, data_samples: SampleList) -> dict[str, Any]:
    """Compute the head's own losses of what its ``forward`` gave, as mmdet's ``BaseDenseHead.loss`` does."""
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
        """Return refined maps [B, D, H_i, W_i] of the student's maps [B, C, H_i, W_i], and the head's output."""
        refined_feats = self.neck(feats)
        return refined_feats, self.head(refined_feats)

    def loss(
        self,
        feats: Sequence[Tensor],
        student_scores: Sequence[Tensor],
        data_samples: SampleList,
        student_losses: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Compute the teacher head's own losses, ``loss_kd`` and ``loss_feat``.

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


class FRSKDSingleStage(SingleStageDetector):
    """``SingleStageDetector`` (RetinaNet, FCOS, ATSS, ...) with a self-teacher at training time.

    The neck's maps (P3-P7) pass through the self-teacher, whose dense head is a copy of the student's. Losses: the
    student's as the plain detector names them (``loss_cls``, ``loss_bbox``, ...), the teacher's own with the prefix
    ``self_teacher.``, and ``self_teacher.loss_kd`` and ``self_teacher.loss_feat``.

    Inference is the plain detector's, bit for bit, and never runs the self-teacher. A checkpoint without the keys
    ``self_teacher.*`` loads strictly into the plain config.

    Args:
        self_teacher: config of `FRSKDDenseHead`; its ``head`` is by default a copy of ``bbox_head``.
        bbox_head: config of the student's dense head, one that keeps mmdet's ``BaseDenseHead.loss``.
        train_cfg: of the head, such as its assigner; the teacher's head has the same.
        test_cfg: of the head.
        **kwargs: of mmdet's ``SingleStageDetector``.

    Raises:
        ValueError: for a two-stage detector or a transformer, or a head that cannot be served.
    """

    def __init__(
        self,
        *,
        self_teacher: dict[str, Any],
        bbox_head: dict[str, Any] | None = None,
        train_cfg: dict[str, Any] | None = None,
        test_cfg: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        others = [name for name in OTHER_PARTS if kwargs.get(name) is not None]
        if others:
            raise ValueError(
                f"FRSKDSingleStage cannot serve a detector with {', '.join(others)} (of two stages, an instance "
                "segmentor, a transformer): it distils the class scores of one dense head over a pyramid. Use a "
                "single-stage detector (RetinaNet, FCOS, ATSS, GFL, ...)."
            )
        if not isinstance(bbox_head, dict):
            raise ValueError(f"FRSKDSingleStage needs `bbox_head`, the config of one dense head, got {bbox_head!r}.")
        check_servable(bbox_head["type"], type(self).__name__)
        # mmdet writes train_cfg and test_cfg into the config of the head
        head = copy.deepcopy(bbox_head)
        head.update(copy.deepcopy({"train_cfg": train_cfg, "test_cfg": test_cfg}))
        super().__init__(bbox_head=copy.deepcopy(bbox_head), train_cfg=train_cfg, test_cfg=test_cfg, **kwargs)
        # Random numbers of its own: with one seed, the student starts as the plain detector does.
        with forked_rng(torch.initial_seed() + 1):
            self.self_teacher = MODELS.build({"head": head, **self_teacher})

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Any]:
        """Compute the losses of images [B, 3, H, W], keyed as the class says."""
        feats = self.extract_feat(batch_inputs)
        output = self.bbox_head(feats)
        losses = dense_losses(self.bbox_head, output, batch_data_samples)
        teacher_losses = self.self_teacher.loss(feats, output[0], batch_data_samples, losses)
        return losses | {f"self_teacher.{name}": value for name, value in teacher_losses.items()}
