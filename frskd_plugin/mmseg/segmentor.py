"""Segmentors of mmseg that train with FRSKD, their parts as plain networks, and the head of the paper's."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors.cascade_encoder_decoder import CascadeEncoderDecoder
from mmseg.models.segmentors.encoder_decoder import EncoderDecoder
from mmseg.registry import MODELS
from mmseg.utils import SampleList, add_prefix
from torch import Tensor, nn

import frskd_plugin.mmengine.optim  # noqa: F401  (the self-teacher trains at the rate of the head)
from frskd_plugin.core.checks import check_one_of, check_positive_int
from frskd_plugin.core.dry_run import forked_rng, record_calls
from frskd_plugin.core.soft_label import mean_prediction
from frskd_plugin.mmseg.frskd_head import FRSKDHead
from frskd_plugin.mmseg.heads import (
    as_logits,
    check_student_head,
    early_losses,
    first_of,
    loss_and_logits,
    teacher_head,
)
from frskd_plugin.timm.parts import PARTS, soft_label_of

# What a segmentor of mmseg runs at inference; auxiliary heads and preprocessor stay behind.
_INFERENCE_PARTS = ("backbone", "neck", "decode_head")
_BRANCHES_IN_TRAINING = {"PIDNet": True, "DDRNet": True}  # backbones that hand out all of them then only


class EffDetSegHead(BaseDecodeHead):
    """3x3 convolution, BN, ReLU, 3x3 convolution on one level of the pyramid, without dropout (reference section 9).

    Args:
        in_channels: channels of the level that ``in_index`` names.
        channels: channels between the two convolutions, with ``norm_cfg`` behind the first.
        norm_cfg: batch normalisation by default.
        dropout_ratio: of the classifier's input; the published head has none.
        **kwargs: of mmseg's ``BaseDecodeHead``, ``num_classes`` among them.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int = 256,
        *,
        norm_cfg: dict[str, Any] | None = None,
        dropout_ratio: float = 0.0,
        **kwargs: Any,
    ) -> None:
        norm_cfg = {"type": "BN", "requires_grad": True} if norm_cfg is None else norm_cfg
        check_positive_int("num_classes", kwargs.get("num_classes", 1))
        super().__init__(in_channels, channels, norm_cfg=norm_cfg, dropout_ratio=dropout_ratio, **kwargs)
        self.conv = ConvModule(in_channels, channels, 3, padding=1, bias=True, norm_cfg=norm_cfg, act_cfg=self.act_cfg)
        self.conv_seg = nn.Conv2d(channels, self.out_channels, 3, padding=1)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Maps [B, C, H_i, W_i] -> logits [B, num_classes, H, W] at the size of the level read."""
        return self.cls_seg(self.conv(self._transform_inputs(inputs)))


class FRSKDEncoderDecoder(EncoderDecoder):
    """``EncoderDecoder`` with a self-teacher at training time.

    Inference is the plain segmentor's, bit for bit, and never runs the self-teacher. A checkpoint without the keys
    ``self_teacher.*`` loads strictly into the plain config.

    Args:
        self_teacher: config of `FRSKDHead`; `teacher_head` says which ``head`` it has by default, as a rule a copy of
            ``decode_head``.
        decode_head: config of the student's head.
        **kwargs: of mmseg's ``EncoderDecoder``.

    Attributes:
        predict_self_teacher: whether ``predict`` adds the predictions of the teacher and of the ensemble of both to
            each sample, ``pred_self_teacher`` and ``pred_ensemble``. `SelfTeacherValidationHook` switches it on.

    Raises:
        ValueError: if the decode head cannot be served, or has no classes.
    """

    self_teacher: FRSKDHead
    predict_self_teacher: bool = False

    def __init__(self, *, self_teacher: dict[str, Any], decode_head: Any, **kwargs: Any) -> None:
        name, is_single = type(self).__name__, isinstance(decode_head, dict)
        heads = [decode_head] if is_single else list(decode_head or [])
        if is_single == isinstance(self, CascadeEncoderDecoder) or len(heads) != kwargs.get("num_stages", 1):
            raise ValueError(
                "FRSKDEncoderDecoder takes one decode head, as a dict, and FRSKDCascadeEncoderDecoder a list of "
                f"`num_stages` of them; {name} got {'a dict' if is_single else f'a list of {len(heads)}'} and "
                f"num_stages={kwargs.get('num_stages')}."
            )
        for stage, head in enumerate(heads):
            check_student_head(head["type"], name, behind_another=stage > 0)
            where = "decode_head" if is_single else f"decode_head.{stage}"
            check_positive_int(f"{where}.num_classes", head.get("num_classes", 1))
        if "head" not in self_teacher:
            self_teacher = {**self_teacher, "head": teacher_head(heads)}
        super().__init__(decode_head=decode_head if is_single else heads, **kwargs)
        # Random numbers of its own: with one seed, the student starts as the plain segmentor does.
        with forked_rng(torch.initial_seed() + 1):
            self.self_teacher = MODELS.build(self_teacher)

    def _decode_head_forward_train(self, inputs: Sequence[Tensor], data_samples: SampleList) -> dict[str, Tensor]:
        """Compute the losses of the head, or of the stages of a cascade, and of the self-teacher."""
        heads: dict[str, Any] = {"decode": self.decode_head}
        if isinstance(self.decode_head, nn.ModuleList):
            heads = {f"decode_{stage}": head for stage, head in enumerate(self.decode_head)}
        losses: dict[str, Tensor] = {}
        before: list[Tensor] = []  # the output of the stage before
        for name, head in heads.items():
            with early_losses(head, self.self_teacher.early_gradients):
                own, logits = loss_and_logits(head, [inputs, *before], data_samples, self.train_cfg, self.test_cfg)
            losses |= add_prefix(own, name)
            before = [logits]
        corners = getattr(head, "align_corners", None)
        teacher_losses = self.self_teacher.loss(inputs, logits, data_samples, corners, own)
        return losses | add_prefix(teacher_losses, "self_teacher")

    def as_self_teacher(self) -> EncoderDecoder:
        """Return this segmentor with the self-teacher in place of the decode head; parameters are shared."""
        teacher = copy.copy(self)
        teacher._modules = {**self._modules, "decode_head": self.self_teacher}
        return teacher

    def make_part(self, part: str) -> nn.Module:
        """Return a copy as plain network of images [B, C, H, W]: logits [B, K, H, W]; see `frskd_plugin.unwrap`."""
        return SegmentationNetwork(copy.deepcopy(self), part).requires_grad_(False)

    def extract_feat(self, inputs: Tensor) -> Any:
        """Return the maps of images [B, 3, H, W]; those of all branches in the view `as_self_teacher`."""
        if not isinstance(self.decode_head, FRSKDHead):
            return super().extract_feat(inputs)
        with all_branches(self.backbone):
            return super().extract_feat(inputs)

    def distilled_maps(self, inputs: Tensor) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """Return the student's maps [B, C_i, H_i, W_i] of images, highest resolution first, and the self-teacher's."""
        feats = self.self_teacher.levels(self.as_self_teacher().extract_feat(inputs))
        return feats, self.self_teacher.neck(feats)

    def predict(self, inputs: Tensor, data_samples: SampleList | None = None) -> SampleList:
        """Predict images [B, 3, H, W] as the plain segmentor does; see ``predict_self_teacher``."""
        if not self.predict_self_teacher:
            return super().predict(inputs, data_samples)
        teacher = self.as_self_teacher()
        with record_calls(teacher, "inference") as teacher_logits:
            teacher_results = EncoderDecoder.predict(teacher, inputs, _clones(data_samples))
        with record_calls(self, "inference") as logits:
            results = super().predict(inputs, data_samples)
        own = as_logits(self.decode_head, logits[0])
        mean = mean_prediction(own, teacher_logits[0], soft_label_of(self.self_teacher))
        ensemble = teacher.postprocess_result(mean, _clones(data_samples))
        for result, teacher_result, both in zip(results, teacher_results, ensemble, strict=True):
            result.pred_self_teacher = teacher_result.pred_sem_seg
            result.pred_ensemble = both.pred_sem_seg
        return results


def _clones(data_samples: SampleList | None) -> SampleList | None:
    return None if data_samples is None else [sample.clone() for sample in data_samples]


class FRSKDCascadeEncoderDecoder(FRSKDEncoderDecoder, CascadeEncoderDecoder):
    """``CascadeEncoderDecoder`` (OCRNet, PointRend) with a self-teacher; it promises what `FRSKDEncoderDecoder` does.

    The soft label is for the last stage's map. In training each stage runs once, where mmseg runs all but the last
    twice; losses are the same but for the dropout between the two runs.

    Args:
        self_teacher: config of `FRSKDHead`; its ``head`` is by default a copy of the first stage (`teacher_head`).
        decode_head: configs of the student's heads, a stage each.
        **kwargs: of mmseg's ``CascadeEncoderDecoder``, ``num_stages`` among them.
    """

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict[str, Any]]) -> Tensor:
        """Return the last stage's map of images [B, 3, H, W]; in the view `as_self_teacher` that of its single head."""
        kind = EncoderDecoder if isinstance(self.decode_head, FRSKDHead) else CascadeEncoderDecoder
        return kind.encode_decode(self, inputs, batch_img_metas)


class SegmentationNetwork(nn.Module):
    """An encoder-decoder of mmseg from normalised images to logits of the same size, in mode 'whole'.

    Args:
        segmentor: in eval mode; its parameters are shared, not copied.
        part: 'student'; of one with a self-teacher also 'self_teacher' (in place of the decode head) or 'ensemble', the
            mean of both probabilities (`mean_prediction`).

    Raises:
        ValueError: it is tested in another mode than 'whole', an unknown part, or no self-teacher for it.
    """

    def __init__(self, segmentor: Any, part: str = "student") -> None:
        super().__init__()
        mode = (segmentor.test_cfg or {}).get("mode", "whole")
        if mode != "whole":
            raise ValueError(
                f"a segmentor with test_cfg.mode={mode!r} cannot be exported: Python lays the windows, image by image. "
                "Set model.test_cfg=dict(mode='whole') (--cfg-options model.test_cfg.mode=whole), and let the program "
                "around the exported network cut the windows, if it needs any."
            )
        teacher = getattr(segmentor, "self_teacher", None)
        if check_one_of("part", part, PARTS) != "student" and not isinstance(teacher, nn.Module):
            raise ValueError(
                f"part={part!r}: {type(segmentor).__name__} has no self-teacher; part='student' is all of it."
            )
        self.model = _with_modules(segmentor, _INFERENCE_PARTS)
        self.self_teacher = self.soft_label = None
        if part == "self_teacher":
            self.model._modules["decode_head"] = _with_modules(teacher, ("neck", "head"))
        elif part == "ensemble":
            self.self_teacher, self.soft_label = _with_modules(teacher, ("neck", "head")), soft_label_of(teacher)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, K, H, W] of images [B, C, H, W]."""
        size = images.shape[-2:]
        metas = [{"img_shape": size, "ori_shape": size, "pad_shape": size}]
        with record_calls(self.model, "extract_feat") as feats:
            logits = self.model.encode_decode(images, metas)
        if self.self_teacher is None:
            return logits
        if first_of(_BRANCHES_IN_TRAINING, type(self.model.backbone)):
            with all_branches(self.model.backbone):
                feats = [self.model.extract_feat(images)]
        others = self.self_teacher.predict(feats[0], metas, self.model.test_cfg)
        return mean_prediction(as_logits(self.model.decode_head, logits), others, self.soft_label or "auto")


def _with_modules(module: nn.Module, names: tuple[str, ...]) -> Any:
    """Return a copy that shares these submodules and has no others."""
    made = copy.copy(module)
    made._modules = {name: module._modules[name] for name in names if module._modules.get(name) is not None}
    return made


@contextmanager
def all_branches(backbone: nn.Module) -> Iterator[None]:
    """Let a backbone hand out what it does in training, while its layers (batch normalisation) stay as they are."""
    training = backbone.training
    try:
        backbone.training = training or bool(first_of(_BRANCHES_IN_TRAINING, type(backbone)))
        yield
    finally:
        backbone.training = training
