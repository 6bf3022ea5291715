"""How wide a self-teacher may be for a given share of the student's cost."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from frskd_plugin.core.checks import check_positive_int
from frskd_plugin.core.self_teacher import SelfTeacher
from frskd_plugin.methods.base import StudentInfo

AUTO_WIDTHS = (2, 1)  # the paper's choice first
CHANNEL_STEP = 8  # limits to the channels are multiples of this


def teacher_share(student: StudentInfo, width: int, max_channels: int | None = None, **settings: Any) -> float:
    """A self-teacher's multiply-accumulates as a share of the student's, both for one image.

    Args:
        student: the network.
        width: see `SelfTeacher`, like all that follow.
        max_channels: limit of the channels of each level.
        settings: the other settings.
    """
    with torch.device("meta"):  # shapes suffice to count: no memory, no time, no random numbers
        teacher = SelfTeacher(
            student.in_channels, student.num_classes, width, max_channels=max_channels, **settings
        ).eval()
        sizes = zip(student.in_channels, student.map_sizes, strict=True)
        feats = [torch.empty(1, channels, *size) for channels, size in sizes]
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            teacher(feats)
    return counter.get_total_flops() / 2 / student.macs


def check_width(width: object) -> int | str:
    """Return ``width`` when it is an int of at least 1, or 'auto'.

    Raises:
        TypeError: if it is neither an int nor a name.
        ValueError: if it is too small, or another name.
    """
    if width == "auto":
        return "auto"
    if isinstance(width, str):
        raise ValueError(f"`width` must be an int >= 1 or 'auto', got {width!r}.")
    return check_positive_int("width", width)


def width_within(
    student: StudentInfo, max_share: float, max_channels: int | None = None, **settings: Any
) -> tuple[int, int | None]:
    """The largest ``(width, max_channels)`` whose self-teacher stays within ``max_share`` of the student's MACs.

    Width 2 and 1 are tried first; where 1 is too much, the channels of the levels are limited, to a multiple of 8.

    Args:
        student: the network.
        max_share: limit of self-teacher's MACs / student's MACs, above 0.
        max_channels: the user's own limit to the channels.
        settings: other settings of `SelfTeacher`.

    Raises:
        ValueError: ``max_share`` is not positive, or not even 8 channels a level keep within it.
    """
    if not max_share > 0:
        raise ValueError(f"`max_share` must be > 0 (self-teacher's MACs / student's MACs), got {max_share}.")

    def fits(width: int, limit: int | None) -> bool:
        return teacher_share(student, width, limit, **settings) <= max_share

    for width in AUTO_WIDTHS:
        if fits(width, max_channels):
            return width, max_channels
    widest = min(max(student.in_channels), max_channels or max(student.in_channels))
    low, high = 0, widest // CHANNEL_STEP + 1  # in steps: `low` fits (0: unknown), `high` does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(1, middle * CHANNEL_STEP) else (low, middle)
    if low == 0:
        least = teacher_share(student, 1, CHANNEL_STEP, **settings)
        raise ValueError(
            f"`width='auto'`: even {CHANNEL_STEP} channels a level cost {least:.2f} of the student's MACs, more than "
            f"max_share={max_share}. Leave the largest maps out (`out_indices`), or raise `max_share`."
        )
    return 1, low * CHANNEL_STEP
