"""The decode heads that FRSKD serves, and the head that a self-teacher gets."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from mmseg.models.decode_heads.cascade_decode_head import BaseCascadeDecodeHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS

from frskd_plugin.mmengine.registration import registered_type
from frskd_plugin.mmseg.student_outputs import first_of

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
# The map that a plain head reads in the place of one of these: that of the branch which predicts. Others: the last.
_MAIN_MAP = {"PIDHead": 1}
# Settings that mean the same in every head.
_COMMON = ("num_classes", "out_channels", "threshold", "dropout_ratio", "align_corners", "ignore_index", "norm_cfg")


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
    in_index = first_of(_MAIN_MAP, head_type_of(first["type"])) or -1
    loss = {"type": "CrossEntropyLoss", "use_sigmoid": settings.get("out_channels") == 1, "avg_non_ignore": True}
    plain = {"type": "FCNHead", "channels": 128, "num_convs": 1, "concat_input": False, "norm_cfg": {"type": "BN"}}
    return {**plain, "in_index": in_index, "loss_decode": loss, **settings}
