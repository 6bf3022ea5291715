"""Any encoder-decoder of mmseg, trained with FRSKD."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from mmseg.utils import SampleList, add_prefix
from torch import Tensor

from frskd_plugin.mmseg.early_losses import early_losses
from frskd_plugin.mmseg.self_taught import SelfTaughtSegmentor
from frskd_plugin.mmseg.semantic_logits import loss_and_logits
from frskd_plugin.mmseg.teacher_head import check_student_head


class FRSKDEncoderDecoder(SelfTaughtSegmentor):
    """``EncoderDecoder`` with a self-teacher at training time; see `SelfTaughtSegmentor` for what it promises.

    Args:
        self_teacher: config of `FRSKDHead`; `teacher_head` says which ``head`` it has by default, as a rule a copy of
            ``decode_head``.
        decode_head: config of the student's head.
        **kwargs: of mmseg's ``EncoderDecoder``.

    Raises:
        ValueError: if the decode head cannot be served.
    """

    def __init__(self, *, self_teacher: dict[str, Any], decode_head: dict[str, Any], **kwargs: Any) -> None:
        if not isinstance(decode_head, dict):
            raise ValueError(
                "FRSKDEncoderDecoder cannot serve a cascade of decode heads "
                f"({', '.join(str(head.get('type')) for head in decode_head)}): give one head as a dict, or use "
                "FRSKDCascadeEncoderDecoder."
            )
        check_student_head(decode_head["type"], type(self).__name__)
        head = copy.deepcopy(decode_head)
        super().__init__(decode_head=decode_head, **kwargs)
        self._add_self_teacher(self_teacher, head)

    def _decode_head_forward_train(self, inputs: Sequence[Tensor], data_samples: SampleList) -> dict[str, Tensor]:
        with early_losses(self.decode_head, self.self_teacher.early_gradients):
            losses, logits = loss_and_logits(self.decode_head, [inputs], data_samples, self.train_cfg, self.test_cfg)
        corners = getattr(self.decode_head, "align_corners", None)
        teacher_losses = self.self_teacher.loss(inputs, logits, data_samples, corners)
        return add_prefix(losses, "decode") | add_prefix(teacher_losses, "self_teacher")
