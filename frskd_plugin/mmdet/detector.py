"""Any single-stage detector of mmdet, trained with FRSKD."""

from __future__ import annotations

import copy
from typing import Any

import torch
from mmdet.models.detectors.single_stage import SingleStageDetector
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from torch import Tensor

import frskd_plugin.mmengine.optim  # noqa: F401  (the self-teacher trains at the rate of the head)
from frskd_plugin.core.dry_run import forked_rng
from frskd_plugin.mmdet.dense_head import check_servable, check_single_stage, dense_losses


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
        check_single_stage(kwargs, type(self).__name__)
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
        """The losses of images [B, 3, H, W], keyed as the class says."""
        feats = self.extract_feat(batch_inputs)
        output = self.bbox_head(feats)
        losses = dense_losses(self.bbox_head, output, batch_data_samples)
        teacher_losses = self.self_teacher.loss(feats, output[0], batch_data_samples, losses)
        return losses | {f"self_teacher.{name}": value for name, value in teacher_losses.items()}
