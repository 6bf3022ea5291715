"""A segmentor of mmseg, `FRSKDEncoderDecoder` or plain, as the doctor sees it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from mmseg.models.segmentors.cascade_encoder_decoder import CascadeEncoderDecoder
from mmseg.models.segmentors.encoder_decoder import EncoderDecoder
from mmseg.utils import SampleList
from torch import Tensor, nn

from frskd_plugin.core.listening import listening
from frskd_plugin.doctor.patient import Patient, Step, tensors
from frskd_plugin.mmseg.feature_list import flat_maps, select_maps
from frskd_plugin.mmseg.semantic_logits import semantic_logits


class SegmentorPatient(Patient):
    """See `Patient`.

    Args:
        model: an encoder-decoder of mmseg.
        images: normalised, [B, 3, H, W].
        data_samples: ground truth, ``gt_sem_seg`` [1, H, W] each.
    """

    model: EncoderDecoder

    def __init__(self, model: EncoderDecoder, images: Tensor, data_samples: SampleList) -> None:
        super().__init__(model, images)
        self.data_samples = data_samples
        self.has_self_teacher = isinstance(getattr(model, "self_teacher", None), nn.Module)
        heads = self._decode_heads()
        self.title = f"{type(model.backbone).__name__} with {type(heads[-1]).__name__}"
        self.method_name = type(model).__name__

    def _decode_heads(self) -> list[nn.Module]:
        """One, or the stages of a cascade."""
        return _as_list(self.model.decode_head)

    def step(self) -> Step:
        """See `Patient.step`."""
        with ExitStack() as stack:
            feats = stack.enter_context(listening(self.model, "extract_feat"))
            outputs = stack.enter_context(listening(self._decode_heads()[-1], "forward"))
            refined = []
            if self.has_self_teacher:
                refined = stack.enter_context(listening(self.model.self_teacher, "forward"))
            losses = self.model.loss(self.images, self.data_samples)
        return Step(
            feats=[self._maps(maps) for maps in feats],
            logits=[self._logits(output) for output in outputs],
            refined_feats=[tensors(maps) for maps, _ in refined],
            teacher_logits=[tensors(output)[0] for _, output in refined],
            terms=_terms(losses),
        )

    def _maps(self, maps: Any) -> list[Tensor]:
        """What backbone and neck hand out, in the order of the self-teacher's levels."""
        indices = self.model.self_teacher.feat_indices if self.has_self_teacher else None
        return select_maps(flat_maps(maps), indices)

    def _logits(self, output: Any) -> Tensor:
        """Of the map that is predicted; where the head gives none (points), what it gives."""
        logits = semantic_logits(self._decode_heads()[-1], output)
        return tensors(output)[0] if logits is None else logits

    def plain_step(self) -> Tensor:
        """See `Patient.plain_step`."""
        terms = list(_terms(self._plain().loss(self.images, self.data_samples)).values())
        return sum(terms[1:], terms[0])

    def _plain(self) -> EncoderDecoder:
        """The segmentor of mmseg that is trained; parameters are shared, not copied."""
        if not self.has_self_teacher:
            return self.model
        plain = copy.copy(self.model)
        plain.__class__ = CascadeEncoderDecoder if len(self._decode_heads()) > 1 else EncoderDecoder
        plain._modules = {name: module for name, module in self.model._modules.items() if name != "self_teacher"}
        return plain

    def evaluate(self) -> tuple[Tensor, Tensor] | None:
        """See `Patient.evaluate`."""
        if not self.has_self_teacher:
            return None
        return self._predict(self.model), self._predict(self._plain())

    def _predict(self, model: EncoderDecoder) -> Tensor:
        results = model.predict(self.images, [sample.clone() for sample in self.data_samples])
        return torch.stack([result.seg_logits.data for result in results])

    def method_modules(self) -> dict[str, nn.Module]:
        """See `Patient.method_modules`."""
        return {"self_teacher": self.model.self_teacher} if self.has_self_teacher else {}

    def self_teacher(self) -> list[nn.Module]:
        """See `Patient.self_teacher`: not its ``loss_distill``, whose regressors belong to the student's side."""
        if not self.has_self_teacher:
            return []
        return [module for name, module in self.model.self_teacher.named_children() if name != "loss_distill"]

    def classifier(self) -> list[nn.Module]:
        """See `Patient.classifier`."""
        return self._decode_heads()

    def weights(self) -> dict[str, float]:
        """See `Patient.weights`."""
        weights = {}
        for prefix, head in self._heads():
            for loss in _as_list(getattr(head, "loss_decode", [])):
                if hasattr(loss, "loss_weight"):
                    weights[f"{prefix}.{getattr(loss, 'loss_name', 'loss')}"] = float(loss.loss_weight)
        for loss in self.distill_losses():
            weights |= {"self_teacher.loss_kd": loss.alpha, "self_teacher.loss_feat": loss.beta}
        return weights

    def _heads(self) -> Iterator[tuple[str, Any]]:
        """The heads by the prefix that mmseg gives to the names of their losses."""
        auxiliary = getattr(self.model, "auxiliary_head", None)
        for prefix, head in (("decode", self.model.decode_head), ("aux", auxiliary)):
            if isinstance(head, nn.ModuleList):
                yield from ((f"{prefix}_{index}", stage) for index, stage in enumerate(head))
            elif head is not None:
                yield prefix, head
        if self.has_self_teacher:
            yield "self_teacher", self.model.self_teacher.head


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (nn.ModuleList, list, tuple)) else [value]


def _terms(losses: dict[str, Any]) -> dict[str, Tensor]:
    """Those that mmengine adds to the total: 'loss' in the name, lists summed, each the mean of its elements."""
    terms = {}
    for name, value in losses.items():
        if "loss" in name:
            means = [tensor.mean() for tensor in tensors(value)]
            terms[name] = sum(means[1:], means[0])
    return terms
