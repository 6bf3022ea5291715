"""Any encoder-decoder of mmseg, trained with FRSKD."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from mmseg.models.segmentors.encoder_decoder import EncoderDecoder
from mmseg.registry import MODELS
from mmseg.utils import SampleList, add_prefix
from torch import Tensor

from frskd_plugin.mmseg.frskd_head import check_servable, first_logits


class FRSKDEncoderDecoder(EncoderDecoder):
    """``EncoderDecoder`` with a self-teacher at training time.

    Inference is the plain segmentor's, bit for bit, and never runs the self-teacher. A checkpoint without the keys
    ``self_teacher.*`` loads strictly into the plain config.

    Args:
        self_teacher: config of `FRSKDHead`; its ``head`` is by default a copy of ``decode_head``.
        decode_head: config of the student's head, one that keeps mmseg's ``BaseDecodeHead.loss``.
        **kwargs: of mmseg's ``EncoderDecoder``.

    Attributes:
        predict_self_teacher: whether ``predict`` adds the teacher's prediction, ``pred_self_teacher``, to each sample.
            `SelfTeacherValidationHook` switches it on while validating.

    Raises:
        ValueError: if the decode head cannot be served.
    """

    def __init__(self, *, self_teacher: dict[str, Any], decode_head: dict[str, Any], **kwargs: Any) -> None:
        if not isinstance(decode_head, dict):
            raise ValueError(
                "FRSKDEncoderDecoder cannot serve a cascade of decode heads "
                f"({', '.join(str(head.get('type')) for head in decode_head)}): give one head as a dict."
            )
        check_servable(decode_head["type"], type(self).__name__)
        head = copy.deepcopy(decode_head)
        super().__init__(decode_head=decode_head, **kwargs)
        # Random numbers of its own: with one seed, the student starts as the plain segmentor does.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch.initial_seed() + 1)
            self.self_teacher = MODELS.build({"head": head, **self_teacher})
        self.predict_self_teacher = False

    def _decode_head_forward_train(self, inputs: Sequence[Tensor], data_samples: SampleList) -> dict[str, Tensor]:
        output = self.decode_head.forward(inputs)
        losses = add_prefix(self.decode_head.loss_by_feat(output, data_samples), "decode")
        teacher_losses = self.self_teacher.loss(inputs, first_logits(output), data_samples)
        return losses | add_prefix(teacher_losses, "self_teacher")

    def as_self_teacher(self) -> EncoderDecoder:
        """This segmentor with the self-teacher in place of the decode head; parameters are shared, not copied."""
        teacher = copy.copy(self)
        teacher._modules = {**self._modules, "decode_head": self.self_teacher}
        return teacher

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
