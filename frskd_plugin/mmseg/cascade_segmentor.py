"""Any cascade of decode heads of mmseg (OCRNet, PointRend), trained with FRSKD."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from mmseg.models.segmentors.cascade_encoder_decoder import CascadeEncoderDecoder
from mmseg.models.segmentors.encoder_decoder import EncoderDecoder
from mmseg.utils import SampleList, add_prefix
from torch import Tensor

from frskd_plugin.mmseg.early_losses import early_losses
from frskd_plugin.mmseg.frskd_head import FRSKDHead
from frskd_plugin.mmseg.self_taught import SelfTaughtSegmentor
from frskd_plugin.mmseg.semantic_logits import loss_and_logits
from frskd_plugin.mmseg.teacher_head import check_student_head


class FRSKDCascadeEncoderDecoder(SelfTaughtSegmentor, CascadeEncoderDecoder):
    """``CascadeEncoderDecoder`` with a self-teacher at training time; see `SelfTaughtSegmentor` for what it promises.

    The soft label is for the last stage's map. In training each stage runs once, where mmseg runs all but the last
    twice; losses are the same but for the dropout between the two runs.

    Args:
        self_teacher: config of `FRSKDHead`; its ``head`` is by default a copy of the first stage (`teacher_head`).
        decode_head: configs of the student's heads, a stage each.
        num_stages: how many there are.
        **kwargs: of mmseg's ``CascadeEncoderDecoder``.

    Raises:
        ValueError: if a decode head cannot be served.
    """

    def __init__(
        self, *, self_teacher: dict[str, Any], decode_head: Sequence[dict[str, Any]], num_stages: int, **kwargs: Any
    ) -> None:
        name = type(self).__name__
        if isinstance(decode_head, dict) or len(decode_head) != num_stages:
            got = 1 if isinstance(decode_head, dict) else len(decode_head)
            raise ValueError(
                f"{name} takes a list of {num_stages} decode heads (num_stages={num_stages}), got {got}. Make the two "
                "agree; a single head, as a dict, belongs into FRSKDEncoderDecoder."
            )
        for stage, head in enumerate(decode_head):
            check_student_head(head["type"], name, behind_another=stage > 0)
        heads = copy.deepcopy(list(decode_head))
        # mmseg asks for a list, and for `num_stages` before its own base class
        super().__init__(decode_head=list(decode_head), num_stages=num_stages, **kwargs)
        self._add_self_teacher(self_teacher, heads)

    def _decode_head_forward_train(self, inputs: Sequence[Tensor], data_samples: SampleList) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        before: list[Tensor] = []  # the output of the stage before
        for stage, head in enumerate(self.decode_head):
            with early_losses(head, self.self_teacher.early_gradients):
                stage_losses, logits = loss_and_logits(
                    head, [inputs, *before], data_samples, self.train_cfg, self.test_cfg
                )
            losses |= add_prefix(stage_losses, f"decode_{stage}")
            before = [logits]
        corners = getattr(self.decode_head[-1], "align_corners", None)
        return losses | add_prefix(self.self_teacher.loss(inputs, logits, data_samples, corners), "self_teacher")

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict[str, Any]]) -> Tensor:
        """The last stage's map of images [B, 3, H, W]; in the view `as_self_teacher` that of its single head."""
        kind = EncoderDecoder if isinstance(self.decode_head, FRSKDHead) else CascadeEncoderDecoder
        return kind.encode_decode(self, inputs, batch_img_metas)
