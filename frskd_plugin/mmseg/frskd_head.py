"""The self-teacher of a segmentor: feature network, a head of its own, and the distillation terms."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from mmseg.utils import SampleList
from torch import Tensor

from frskd_plugin.core.bifpn import BiFPN
from frskd_plugin.core.checks import check_bool, check_in_channels, check_one_of, join_losses
from frskd_plugin.core.frskd_loss import FRSKDLoss, own_losses
from frskd_plugin.core.schedule import TrunkGradient
from frskd_plugin.core.self_teacher_neck import SelfTeacherNeck
from frskd_plugin.core.soft_label import criterion_soft_label
from frskd_plugin.mmseg.heads import (
    check_servable,
    early_losses,
    fitted,
    flat_maps,
    maps_read,
    select_maps,
    semantic_logits,
)

_logger = logging.getLogger(__name__)

KD_RESOLUTIONS = ("label", "head")


class FRSKDHead(BaseModule):
    """Self-teacher of an FRSKD segmentor; everything of it lives under ``self_teacher.`` in a checkpoint.

    Its graph ends at the highest level that its head reads, so that every parameter receives a gradient.

    Args:
        neck: config of the feature network, as a rule ``dict(type='SelfTeacherNeck', in_channels=[...], ...)``.
        loss_distill: config of the distillation terms, ``dict(type='FRSKDLoss', alpha=, beta=, temperature=)``. Its
            ``soft_label='auto'`` is a sigmoid where the head's losses are (``out_channels=1``, ``use_sigmoid=True``).
        head: config of the teacher's head. The segmentor gives what `teacher_head` says, as a rule a copy of the
            student's. Its ``in_index`` counts the student's maps; ``in_channels`` follows from the neck.
        feat_indices: which of the student's maps (`flat_maps`) the self-teacher receives, highest resolution first.
            None takes all in the order in which they come, which has to be that one.
        extra_levels: levels made of the last of these by max-pooling; one for a backbone with a single map.
        kd_resolution: where the soft labels are compared: 'label', at the size of the labels, as the cross-entropies
            are, or 'head', at the size of the student's logits: another, cheaper function.
        ignore_in_soft_label: leave pixels of the head's ``ignore_index``, which padding has too, out of the soft
            labels, of their sum and of its divisor. False takes all pixels, as the authors' code.
        early_gradients: compute the gradients of both heads' losses at once and keep no up-sampled map for the backward
            pass. Exact, as fast, and less memory; the losses then see float32 also under autocast.
        trunk_gradient: share of the gradient of the self-teacher's own losses that goes on into the student, 0..1, 1 as
            in the paper, or 'linear', for which `MethodProgressHook` tells the progress: see `TrunkGradient`.
        init_cfg: mmengine's initialisation config.

    Raises:
        ValueError: if the head cannot be served, or reads a map that the self-teacher does not receive.
    """

    def __init__(
        self,
        neck: dict[str, Any],
        loss_distill: dict[str, Any],
        head: dict[str, Any] | None = None,
        feat_indices: Sequence[int] | None = None,
        extra_levels: int = 0,
        kd_resolution: str = "label",
        early_gradients: bool = False,
        ignore_in_soft_label: bool = False,
        trunk_gradient: float | str = 1.0,
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
        self.feat_indices = None if feat_indices is None else _check_indices(feat_indices)
        self.extra_levels = extra_levels
        self.kd_resolution = check_one_of("kd_resolution", kd_resolution, KD_RESOLUTIONS)
        self.early_gradients = early_gradients
        self.ignore_in_soft_label = check_bool("ignore_in_soft_label", ignore_in_soft_label)
        self.trunk_gradient = TrunkGradient(trunk_gradient)
        levels = self._levels_of(maps_read(head), neck)
        self.neck = _build_neck(neck, max(levels))
        self.head = MODELS.build(fitted(head, levels, self.neck.out_channels))
        self.loss_distill = MODELS.build(_with_soft_label(loss_distill, self.head))

    def _levels_of(self, maps: list[int], neck: dict[str, Any]) -> list[int]:
        """Return the self-teacher's levels that hold these maps of the student."""
        if "in_channels" not in neck:  # another kind of neck, whose levels are the student's
            return maps
        num_levels = neck.get("num_levels") or len(check_in_channels(neck["in_channels"]))
        indices = range(num_levels - self.extra_levels) if self.feat_indices is None else self.feat_indices
        if not indices or len(indices) + self.extra_levels != num_levels:
            raise ValueError(
                f"The self-teacher receives {len(indices)} maps (feat_indices={self.feat_indices}) and makes "
                f"{self.extra_levels} more, but its neck has {num_levels} levels. Let `in_channels` list them all."
            )
        count = max(len(indices), max(indices) + 1)
        places = [index + count if index < 0 else index for index in maps]  # from the end of the maps, as in mmseg
        if not set(places) <= set(indices):
            raise ValueError(
                f"`in_index` must be a level in 0..{count - 1} that the self-teacher receives (indices "
                f"{list(indices)}), got {maps}. Name it in `feat_indices`, with its channels in the neck's "
                "`in_channels`, or give the self-teacher a `head` that reads another."
            )
        return [indices.index(place) for place in places]

    @property
    def threshold(self) -> float | None:
        """Threshold of a binary head, as mmseg's post-processing asks for it."""
        return self.head.threshold

    def levels(self, feats: Any) -> list[Tensor]:
        """Return the maps [B, C_i, H_i, W_i] that are distilled, highest first, of what the student hands out."""
        return select_maps(flat_maps(feats), self.feat_indices, self.extra_levels)

    def forward(self, feats: Any) -> tuple[tuple[Tensor, ...], Any]:
        """Return refined maps [B, D_i, H_i, W_i], a level each, and the head's output for the student's maps."""
        refined_feats = self.neck(self.trunk_gradient(self.levels(feats)))
        return refined_feats, self.head(_for_head(refined_feats))

    def loss(
        self,
        feats: Any,
        student_logits: Tensor,
        data_samples: SampleList,
        align_corners: bool | None = None,
        student_losses: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the teacher's own loss, ``loss_kd`` and ``loss_feat``.

        Args:
            feats: the student's maps [B, C_i, H_i, W_i], not detached: the teacher's loss trains the trunk too.
            student_logits: [B, K, H, W] at the head's resolution.
            data_samples: ground truth, ``gt_sem_seg`` [1, H, W] each.
            align_corners: of the student's head, by which its logits are resized; None is as the teacher's.
            student_losses: of the student's head, which ``schedule='gate'`` compares with the teacher's.

        Raises:
            ValueError: if the head has a loss named as one of the distillation terms.
        """
        refined_feats, output = self(feats)
        with early_losses(self.head, self.early_gradients):
            losses = self.head.loss_by_feat(output, data_samples)
        teacher_logits = semantic_logits(self.head, output)
        at_head = self.kd_resolution == "head"
        size = tuple(student_logits.shape[-2:] if at_head else data_samples[0].gt_sem_seg.data.shape[-2:])
        corners = self.head.align_corners
        settings: dict[str, Any] = {"valid": self._valid(data_samples, size)} if self.ignore_in_soft_label else {}
        if align_corners not in (None, corners):
            corners, settings["teacher_align_corners"] = align_corners, corners
        if student_losses is not None:
            settings |= own_losses(self.loss_distill, student_losses, losses)
        maps = self.levels(feats)
        terms = self.loss_distill(student_logits, teacher_logits, maps, refined_feats, size, corners, **settings)
        return join_losses(losses, terms, type(self.head).__name__)

    def _valid(self, data_samples: SampleList, size: tuple[int, ...]) -> Tensor:
        """Bool [B, *size]: pixels whose (nearest) label is not to be ignored."""
        labels = torch.stack([sample.gt_sem_seg.data for sample in data_samples])
        counted = (labels != self.head.ignore_index).float()
        return F.interpolate(counted, size, mode="nearest-exact").squeeze(1) > 0

    def predict(self, feats: Any, batch_img_metas: list[dict[str, Any]], test_cfg: Any) -> Tensor:
        """Return the teacher's logits [B, K, H, W] at image size, as a decode head's ``predict`` does."""
        return self.head.predict(_for_head(self.neck(self.levels(feats))), batch_img_metas, test_cfg)


def _for_head(refined_feats: Sequence[Tensor]) -> list[Tensor]:
    # Some of mmseg's heads take views of maps, which only the ordinary layout lets them (the neck's own is faster).
    return [feat.contiguous() for feat in refined_feats]


def _with_soft_label(loss_distill: dict[str, Any], head: Any) -> dict[str, Any]:
    """Return the config with its 'auto' settled by the teacher's head and its losses."""
    if loss_distill.get("type") not in ("FRSKDLoss", FRSKDLoss) or loss_distill.get("soft_label", "auto") != "auto":
        return loss_distill
    inner = getattr(head, "kernel_generate_head", head)  # K-Net has its losses in the head inside it
    own = criterion_soft_label(getattr(inner, "loss_decode", None))
    kind = "sigmoid" if head.out_channels == 1 else own or "softmax"
    if kind == "sigmoid":
        _logger.warning("Soft labels are made by a sigmoid, each class on its own, as the losses of the head are.")
    return {**loss_distill, "soft_label": kind}


def _check_indices(feat_indices: Sequence[int]) -> list[int]:
    indices = list(feat_indices)
    if not indices or min(indices) < 0 or len(set(indices)) != len(indices):
        raise ValueError(
            f"`feat_indices` must name maps of the backbone (or neck), each once, counted from 0, got {indices}."
        )
    return indices


def _build_neck(neck: dict[str, Any], end_level: int) -> Any:
    ours = neck.get("type") in ("SelfTeacherNeck", "BiFPN", SelfTeacherNeck, BiFPN)
    if ours and neck.setdefault("end_level", end_level) != end_level:
        raise ValueError(
            f"The self-teacher's graph must end at the highest level its head reads (level {end_level}), got "
            f"end_level={neck['end_level']}. Leave `end_level` out."
        )
    return MODELS.build(neck)
