"""Decode heads of mmseg: the maps they read, the logits they predict, which of them a self-teacher can have."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmseg.models.decode_heads.cascade_decode_head import BaseCascadeDecodeHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from mmseg.utils import SampleList
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from frskd_plugin.core.blocks import max_pool_to, spatial_size
from frskd_plugin.core.dry_run import record_calls
from frskd_plugin.core.immediate_gradient import differentiate_immediately
from frskd_plugin.mmengine.registration import registered_type

# Heads that hand out several maps in training: which of them `predict` takes (others: the first).
_PREDICTED = {"PIDHead": 1, "IterativeDecodeHead": -1}
# Heads that classify masks: where class scores and masks stand in their output.
_CLASSES_AND_MASKS = {"MaskFormerHead": (0, 1), "Mask2FormerHead": (0, 1), "SideAdapterCLIPHead": (1, 0)}
_LEAST_SCORE = 1e-6
# Heads that keep `BaseDecodeHead.loss` but do not pick plain maps by `in_index`.
_OTHER_INPUTS = {
    "PIDHead": "it takes the three branches of its backbone",
    "DDRHead": "it takes the two branches of its backbone",
    "DPTHead": "it takes a class token beside each map",
}
_NO_CLASSES = {"VPDDepthHead": "it predicts depth, which has no classes to make soft labels of"}
_NOT_ALONE = (
    "it takes the output of a head before it. Use FRSKDCascadeEncoderDecoder with a list of heads, the first of which "
    "is a single one such as FCNHead"
)
_NOT_BEHIND = (
    "it stands behind another head, whose output it does not take. Expected OCRHead, PointHead or another "
    "BaseCascadeDecodeHead there"
)
# Settings that mean the same in every head.
_COMMON = ("num_classes", "out_channels", "threshold", "dropout_ratio", "align_corners", "ignore_index", "norm_cfg")


def flat_maps(feats: Any) -> list[Tensor]:
    """Return the feature maps [B, C_i, H_i, W_i] in a tensor or in nested lists and tuples, in order of appearance.

    Class tokens and other tensors that are no maps are left out, and so is a map that was handed out before.

    Raises:
        ValueError: there is no map.
    """
    tensors = [leaf for leaf in tree_leaves(feats) if isinstance(leaf, Tensor)]
    maps: list[Tensor] = []
    for tensor in tensors:
        if tensor.ndim == 4 and not any(tensor is other for other in maps):
            maps.append(tensor)
    if not maps:
        raise ValueError(
            f"FRSKD distils feature maps [B, C, H, W], and the backbone (or neck) hands out none: got "
            f"{type(feats).__name__} with tensors of shapes {[list(tensor.shape) for tensor in tensors]}. Let it hand "
            "out maps."
        )
    return maps


def select_maps(
    maps: Sequence[Tensor], feat_indices: Sequence[int] | None = None, extra_levels: int = 0
) -> list[Tensor]:
    """Return the self-teacher's levels, highest resolution first: the maps [B, C_i, H_i, W_i] of these indices.

    ``extra_levels`` are made of the last one, each the 3x3 max-pooling with stride 2 of the one before (as EfficientDet
    makes P6 and P7), for a backbone that hands out a single map.

    >>> maps = [torch.rand(1, 8, s, s) for s in (4, 16, 8)]
    >>> [tuple(feat.shape[2:]) for feat in select_maps(maps, (1, 2, 0), extra_levels=1)]
    [(16, 16), (8, 8), (4, 4), (2, 2)]
    """
    indices = range(len(maps)) if feat_indices is None else feat_indices
    if max(indices) >= len(maps):
        raise ValueError(
            f"`feat_indices` names the map {max(indices)}, but the backbone (or neck) hands out {len(maps)}: expected "
            f"indices in 0..{len(maps) - 1}, got {list(indices)}."
        )
    levels = [maps[index] for index in indices]
    for _ in range(extra_levels):
        height, width = spatial_size(levels[-1])
        levels.append(max_pool_to(levels[-1], ((height + 1) // 2, (width + 1) // 2)))
    return levels


def first_of(table: dict[str, Any], head_type: type) -> Any:
    """Return a table's entry for a class or the nearest of its bases, by name; None where it has none."""
    return next((table[base.__name__] for base in head_type.__mro__ if base.__name__ in table), None)


def loss_and_logits(
    head: nn.Module, inputs: Sequence[Any], data_samples: SampleList, train_cfg: Any, test_cfg: Any
) -> tuple[dict[str, Tensor], Tensor]:
    """Return a head's own training losses, and the logits [B, K, H, W] of the semantic map that it predicts.

    ``inputs`` are what its ``loss`` takes before the samples: the maps and, in a cascade, the last stage's output.
    """
    with record_calls(head, "forward") as outputs:
        losses = head.loss(*inputs, data_samples, train_cfg)
    logits = semantic_logits(head, outputs[0]) if outputs else None
    if logits is None:  # PointRend classifies points in training
        size = data_samples[0].gt_sem_seg.data.shape[-2:]
        logits = head.predict(*inputs, [{"img_shape": torch.Size(size)}] * len(data_samples), test_cfg)
    return losses, logits


def semantic_logits(head: nn.Module, output: Any) -> Tensor | None:
    """Return the logits [B, K, H, W] that ``head.predict`` makes of an output of ``head.forward``; None of points."""
    where = first_of(_CLASSES_AND_MASKS, type(head))
    if where is not None:
        return _mask_class_logits(*(output[index][-1] for index in where))
    if not isinstance(output, Tensor):
        output = output[first_of(_PREDICTED, type(head)) or 0]
    is_map = isinstance(output, Tensor) and output.ndim == 4 and output.shape[1] == head.out_channels
    return output if is_map else None


def as_logits(head: nn.Module, predicted: Tensor) -> Tensor:
    """Return what ``head.predict`` gave as logits [B, K, H, W]; mask classification gives scores."""
    return predicted.clamp(min=_LEAST_SCORE).log() if first_of(_CLASSES_AND_MASKS, type(head)) else predicted


def _mask_class_logits(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Log of MaskFormer's class scores (Section 3.4): [B, Q, K + 1], last "no object"; [B, Q, H, W] -> [B, K, H, W]."""
    scores = torch.einsum("bqk,bqhw->bkhw", class_logits.softmax(-1)[..., :-1], mask_logits.sigmoid())
    return scores.clamp(min=_LEAST_SCORE).log()


@contextmanager
def early_losses(head: nn.Module, wanted: bool = True) -> Iterator[None]:
    """Let ``head.loss_by_feat`` keep nothing but the gradient in the head's own logits, for a block.

    mmseg's losses keep an up-sampled map of logits for the backward pass. Values and gradients are the same without.
    Left as they are: outputs that are no single tensor, and losses with weights of their own to train.
    """
    losses = [module for name, module in head.named_modules() if name.startswith("loss")]
    if not wanted or any(parameter.requires_grad for loss in losses for parameter in loss.parameters()):
        yield
        return
    loss_by_feat = head.loss_by_feat

    def early(output: Any, *args: Any) -> dict[str, Tensor]:  # of samples and, in PointRend, of points
        if not isinstance(output, Tensor):
            return loss_by_feat(output, *args)
        return differentiate_immediately(lambda logits: loss_by_feat(logits, *args), output)

    vars(head)["loss_by_feat"] = early
    try:
        yield
    finally:
        del vars(head)["loss_by_feat"]


def head_type_of(head: str | type, owner: str = "the self-teacher") -> type:
    """Return the class of a decode head, or behind its name in mmseg's registry."""
    head_type = registered_type(MODELS, head)
    if head_type is None:
        raise ValueError(
            f"{owner}: there is no decode head {head!r} in mmseg's registry. Check the spelling and `custom_imports`."
        )
    return head_type


def check_servable(head: str | type, owner: str = "the self-teacher") -> None:
    """Refuse a decode head (its class, or the name of that) that cannot stand on the self-teacher's refined maps."""
    head_type = head_type_of(head, owner)
    reason = first_of(_OTHER_INPUTS | _NO_CLASSES, head_type)
    if reason is None and getattr(head_type, "loss", None) is not BaseDecodeHead.loss:
        reason = "its training loss is not `forward` followed by `loss_by_feat`"
    if reason is not None:
        raise ValueError(
            f"{owner} cannot serve the decode head {head_type.__name__} on refined maps: {reason}. Use one of mmseg's "
            "single heads that keep `BaseDecodeHead.loss` (FCNHead, ASPPHead, PSPHead, UPerHead, SegformerHead, ...)."
        )


def check_student_head(head: str | type, owner: str, behind_another: bool = False) -> None:
    """Refuse a student's head that predicts no classes, or is (not) one of the later stages of a cascade."""
    head_type = head_type_of(head, owner)
    reason = first_of(_NO_CLASSES, head_type)
    if reason is None and issubclass(head_type, BaseCascadeDecodeHead) != behind_another:
        reason = _NOT_BEHIND if behind_another else _NOT_ALONE
    if reason is not None:
        raise ValueError(f"{owner} cannot serve the decode head {head_type.__name__}: {reason}.")


def teacher_head(decode_head: dict[str, Any] | Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the config of the head that a self-teacher gets where none is asked for.

    1. A copy of the student's head with its losses, class weights and sampler, where `check_servable` lets it pass.
    2. Of a cascade (a list): such a copy of its first stage, which reads maps alone, with the losses of the last stage
       that makes its loss from a map, as the first one's often weighs less.
    3. Otherwise (branches, class tokens, mask classification) a plain ``FCNHead``, 3x3 convolution and classifier, with
       the student's classes, on the map that the student's prediction comes from. Its loss is a cross-entropy.

    Raises:
        ValueError: a plain head is needed and the student's does not say its number of classes.
    """
    stages = [decode_head] if isinstance(decode_head, dict) else list(decode_head)
    try:
        check_servable(stages[0]["type"])
    except ValueError:
        return _plain_head(stages[0], stages[-1])
    head = copy.deepcopy(dict(stages[0]))
    for stage in stages[1:]:
        makes_loss = getattr(head_type_of(stage["type"]), "loss_by_feat", None)
        if makes_loss is BaseDecodeHead.loss_by_feat and "loss_decode" in stage:
            head["loss_decode"] = copy.deepcopy(stage["loss_decode"])
    return head


def _reading_part(head: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a head's config that says which maps it reads: itself, or the head inside it (K-Net)."""
    return head.get("kernel_generate_head", head)


def maps_read(head: dict[str, Any]) -> list[int]:
    """Return the indices of the student's maps that a head's output depends on."""
    in_index = _reading_part(head).get("in_index", -1)
    indices = [in_index] if isinstance(in_index, int) else list(in_index)
    # EncHead selects several maps and, without lateral convolutions, uses the last of them alone
    only_last = first_of({"EncHead": True}, head_type_of(head["type"])) and not head.get("add_lateral", False)
    return indices[-1:] if only_last else indices


def fitted(head: dict[str, Any], levels: list[int], channels: int | Sequence[int]) -> dict[str, Any]:
    """Return a head's config that reads these of the levels, whose channels are given for each (or for all)."""
    made = copy.deepcopy(head)
    reading = _reading_part(made)

    def of(level: int) -> int:
        return channels if isinstance(channels, int) else channels[level]

    widths = [of(level) for level in levels]
    is_one = isinstance(reading.get("in_index", -1), int)
    reading["in_index"], reading["in_channels"] = (levels[0], widths[0]) if is_one else (levels, widths)
    if reading.get("num_convs") == 0:  # FCNHead classifies its input as it is
        reading["channels"] = sum(widths)
    if reading.get("c1_in_channels"):  # DeepLabV3+ reads map 0 too, whatever its `in_index`
        reading["c1_in_channels"] = of(0)
    return made


def _plain_head(first: dict[str, Any], last: dict[str, Any]) -> dict[str, Any]:
    head_type = head_type_of(last["type"])
    if "num_classes" not in last:
        raise ValueError(
            f"The self-teacher can neither copy the decode head {head_type.__name__} nor make a plain one without its "
            "`num_classes`. Give it these, or give `self_teacher.head`, the config of a head such as FCNHead."
        )
    # in a head of another base, such as mmdet's, the same names mean other things
    names = _COMMON if issubclass(head_type, BaseDecodeHead) else ("num_classes", "align_corners", "ignore_index")
    settings = {name: copy.deepcopy(last[name]) for name in names if last.get(name) is not None}
    in_index = first_of(_PREDICTED, head_type_of(first["type"])) or -1  # the map of the branch that predicts
    loss = {"type": "CrossEntropyLoss", "use_sigmoid": settings.get("out_channels") == 1, "avg_non_ignore": True}
    plain = {"type": "FCNHead", "channels": 128, "num_convs": 1, "concat_input": False, "norm_cfg": {"type": "BN"}}
    return {**plain, "in_index": in_index, "loss_decode": loss, **settings}
