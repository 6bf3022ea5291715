"""What every segmentor with a self-teacher has in common."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmseg.models.segmentors.encoder_decoder import EncoderDecoder
from mmseg.registry import MODELS
from mmseg.utils import SampleList
from torch import Tensor, nn

import frskd_plugin.mmengine.optim  # noqa: F401  (the self-teacher trains at the rate of the head)
from frskd_plugin.core.dry_run import forked_rng
from frskd_plugin.mmseg.frskd_head import FRSKDHead
from frskd_plugin.mmseg.semantic_logits import first_of
from frskd_plugin.mmseg.teacher_head import teacher_head

# Backbones that hand out all their branches in training mode only.
_BRANCHES_IN_TRAINING = {"PIDNet": True, "DDRNet": True}


class SelfTaughtSegmentor(EncoderDecoder):
    """An encoder-decoder with a self-teacher at training time; subclasses say how the decode head is trained.

    Inference is the plain segmentor's, bit for bit, and never runs the self-teacher. A checkpoint without the keys
    ``self_teacher.*`` loads strictly into the plain config.

    Attributes:
        predict_self_teacher: whether ``predict`` adds the teacher's prediction, ``pred_self_teacher``, to each sample.
            `SelfTeacherValidationHook` switches it on while validating.
    """

    self_teacher: FRSKDHead
    predict_self_teacher: bool = False

    def _add_self_teacher(
        self, self_teacher: dict[str, Any], decode_head: dict[str, Any] | Sequence[dict[str, Any]]
    ) -> None:
        """Build it; its head is by default the one that `teacher_head` chooses for the student's."""
        if "head" not in self_teacher:
            self_teacher = {**self_teacher, "head": teacher_head(decode_head)}
        # Random numbers of its own: with one seed, the student starts as the plain segmentor does.
        with forked_rng(torch.initial_seed() + 1):
            self.self_teacher = MODELS.build(self_teacher)

    def as_self_teacher(self) -> EncoderDecoder:
        """This segmentor with the self-teacher in place of the decode head; parameters are shared, not copied."""
        teacher = copy.copy(self)
        teacher._modules = {**self._modules, "decode_head": self.self_teacher}
        return teacher

    def extract_feat(self, inputs: Tensor) -> Any:
        """What backbone and neck hand out for images [B, 3, H, W]; in the view `as_self_teacher` all branches."""
        if not isinstance(self.decode_head, FRSKDHead):
            return super().extract_feat(inputs)
        with _all_branches(self.backbone):
            return super().extract_feat(inputs)

    def distilled_maps(self, inputs: Tensor) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """The student's maps [B, C_i, H_i, W_i] of images, highest resolution first, and the self-teacher's of them."""
        feats = self.self_teacher.levels(self.as_self_teacher().extract_feat(inputs))
        return feats, self.self_teacher.neck(feats)

    def predict(self, inputs: Tensor, data_samples: SampleList | None = None) -> SampleList:
        """The plain segmentor's prediction of images [B, 3, H, W]; see ``predict_self_teacher``."""
        if not self.predict_self_teacher:
            return super().predict(inputs, data_samples)
        samples = None if data_samples is None else [sample.clone() for sample in data_samples]
        teacher_results = EncoderDecoder.predict(self.as_self_teacher(), inputs, samples)
        results = super().predict(inputs, data_samples)
        for result, teacher_result in zip(results, teacher_results, strict=True):
            result.pred_self_teacher = teacher_result.pred_sem_seg
        return results


@contextmanager
def _all_branches(backbone: nn.Module) -> Iterator[None]:
    """Let a backbone hand out what it does in training, while its layers (batch normalisation) stay as they are."""
    training = backbone.training
    try:
        backbone.training = training or first_of(_BRANCHES_IN_TRAINING, type(backbone)) is not None
        yield
    finally:
        backbone.training = training
