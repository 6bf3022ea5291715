"""The self-teacher of a segmentor: feature network, a head of its own, and the distillation terms."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from mmengine.model import BaseModule
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from mmseg.utils import SampleList
from torch import Tensor

from frskd_plugin.core.bifpn import BiFPN
from frskd_plugin.core.checks import check_in_channels, check_level
from frskd_plugin.core.self_teacher_neck import SelfTeacherNeck
from frskd_plugin.mmengine.registration import registered_type


def check_servable(head: str | type, owner: str) -> None:
    """Refuse a type of decode head whose training loss is not ``forward`` followed by ``loss_by_feat``.

    Args:
        head: the class, or its name in mmseg's registry. The class is asked, before one is built.
        owner: who asks.

    Raises:
        ValueError: naming the head and what would serve.
    """
    head_type = registered_type(MODELS, head)
    if head_type is None:
        raise ValueError(
            f"{owner}: there is no decode head {head!r} in mmseg's registry. Check the spelling and `custom_imports`."
        )
    if getattr(head_type, "loss", None) is not BaseDecodeHead.loss:
        name = head_type.__name__
        raise ValueError(
            f"{owner} cannot serve the decode head {name}: FRSKD needs its logits once, from `forward`, and its loss "
            f"from `loss_by_feat`, and {name} makes its loss in another way. Use one of mmseg's single heads that keep "
            "`BaseDecodeHead.loss` (FCNHead, ASPPHead, PSPHead, UPerHead, SegformerHead, ...)."
        )


def first_logits(output: Tensor | Sequence[Tensor]) -> Tensor:
    """The segmentation logits [B, K, H, W] of a head that may hand out auxiliary outputs behind them."""
    return output if isinstance(output, Tensor) else output[0]


class FRSKDHead(BaseModule):
    """Self-teacher of `FRSKDEncoderDecoder`; everything of it lives under ``self_teacher.`` in a checkpoint.

    Its graph ends at the highest level that its head reads, so that every parameter receives a gradient.

    Args:
        neck: config of the feature network, as a rule ``dict(type='SelfTeacherNeck', in_channels=[...], ...)``.
        loss_distill: config of the distillation terms, ``dict(type='FRSKDLoss', alpha=, beta=, temperature=)``.
        head: config of the teacher's head. `FRSKDEncoderDecoder` gives a copy of the student's, with its losses, class
            weights and sampler; only ``in_channels`` follows from the neck.
        init_cfg: mmengine's initialisation config.

    Raises:
        ValueError: if the head cannot be served, or reads a level that the neck does not have.
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
                "FRSKDHead needs `head`, the config of a decode head. Inside FRSKDEncoderDecoder leave it out and the "
                "student's is copied; elsewhere give one."
            )
        neck, head = copy.deepcopy(neck), copy.deepcopy(head)
        check_servable(head["type"], type(self).__name__)
        self.neck = self._build_neck(neck, head.get("in_index", -1))
        head["in_channels"] = self._head_channels(head.get("in_index", -1))
        self.head = MODELS.build(head)
        self.loss_distill = MODELS.build(loss_distill)

    @staticmethod
    def _build_neck(neck: dict[str, Any], in_index: int | Sequence[int]) -> Any:
        if neck.get("type") in ("SelfTeacherNeck", "BiFPN", SelfTeacherNeck, BiFPN):
            num_levels = neck.get("num_levels") or len(check_in_channels(neck["in_channels"]))
            read = [in_index] if isinstance(in_index, int) else in_index
            end_level = max(check_level("in_index", level, num_levels) for level in read)
            if neck.setdefault("end_level", end_level) != end_level:
                raise ValueError(
                    f"The self-teacher's graph must end at the highest level its head reads (in_index={in_index}, "
                    f"level {end_level}), got end_level={neck['end_level']}. Leave `end_level` out."
                )
        return MODELS.build(neck)

    def _head_channels(self, in_index: int | Sequence[int]) -> int | list[int]:
        channels = self.neck.out_channels
        if isinstance(channels, int):
            return channels if isinstance(in_index, int) else [channels] * len(in_index)
        return channels[in_index] if isinstance(in_index, int) else [channels[i] for i in in_index]

    @property
    def threshold(self) -> float | None:
        """Threshold of a binary head, as mmseg's post-processing asks for it."""
        return self.head.threshold

    def forward(self, feats: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], Any]:
        """The student's maps [B, C_i, H_i, W_i] -> refined maps [B, D_i, H_i, W_i] and the head's output."""
        refined_feats = self.neck(feats)
        return refined_feats, self.head(refined_feats)

    def loss(self, feats: Sequence[Tensor], student_logits: Tensor, data_samples: SampleList) -> dict[str, Tensor]:
        """The teacher's own loss, ``loss_kd`` and ``loss_feat``.

        Args:
            feats: the student's maps [B, C_i, H_i, W_i], not detached: the teacher's loss trains the trunk too.
            student_logits: [B, K, H, W] at the head's resolution.
            data_samples: ground truth, ``gt_sem_seg`` [1, H, W] each.
        """
        refined_feats, output = self(feats)
        losses = self.head.loss_by_feat(output, data_samples)
        teacher_logits = first_logits(output)
        if self.loss_distill.active and self.loss_distill.alpha:
            # Soft labels are compared at the size of the labels, where the cross-entropies stand.
            size = data_samples[0].gt_sem_seg.data.shape[-2:]
            student_logits = resize(student_logits, size, mode="bilinear", align_corners=self.head.align_corners)
            teacher_logits = resize(
                teacher_logits.detach(), size, mode="bilinear", align_corners=self.head.align_corners
            )
        return losses | self.loss_distill(student_logits, teacher_logits, feats, refined_feats)

    def predict(self, feats: Sequence[Tensor], batch_img_metas: list[dict[str, Any]], test_cfg: Any) -> Tensor:
        """The teacher's logits [B, K, H, W] at image size, as a decode head's ``predict`` gives them."""
        return self.head.predict(self.neck(feats), batch_img_metas, test_cfg)
