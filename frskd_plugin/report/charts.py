"""Which curves of which runs stand in one chart, and in which section of the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from frskd_plugin.report.run_logs import Entry, RunLogs
from frskd_plugin.report.scores import is_teacher, score_keys, student_key

Point = tuple[float, float]
MAX_POINTS = 400  # of a curve, about as many as the chart has pixels
# Larger values are drawn as what they stand for, a loss that has gone to infinity.
LARGEST = 1e100

SCORES, LOSSES, SCHEDULE, TRAINING, TIME = "Validation scores", "Losses", "Schedule", "Training batches", "Time"
_TITLES = {
    "top1": "top-1 accuracy (%)",
    "top5": "top-5 accuracy (%)",
    "mIoU": "mean intersection over union (%)",
    "aAcc": "pixel accuracy (%)",
    "mAcc": "mean accuracy of the classes (%)",
    "loss": "total loss",
    "loss_ce": "student, cross-entropy",
    "decode.loss_ce": "student, cross-entropy",
    "loss_teacher_ce": "self-teacher, cross-entropy",
    "self_teacher.loss_ce": "self-teacher, cross-entropy",
    "loss_kd": "soft labels, times alpha",
    "self_teacher.loss_kd": "soft labels, times alpha",
    "loss_feat": "feature distillation, times beta",
    "self_teacher.loss_feat": "feature distillation, times beta",
    "lr": "learning rate",
    "distill_factor": "factor on alpha and beta",
    "train_top1": "top-1 accuracy on the batch (%)",
    "time": "seconds a step",
    "data_time": "seconds a step waits for data",
    "memory": "memory of the GPU (MB)",
}


@dataclass(frozen=True)
class Curve:
    """A curve.

    Attributes:
        label: the run, and the network where the chart shows both.
        run: number of the run, which gives colour and marker.
        dashed: it is the self-teacher's.
        points: (position, value), by position.
        left_out: how many points were left out, because there are more than can be seen.
    """

    label: str
    run: int
    dashed: bool
    points: tuple[Point, ...]
    left_out: int = 0


@dataclass(frozen=True)
class Chart:
    """Curves of one quantity.

    Attributes:
        key: its name in the logs.
        title: in words.
        unit: of the positions, 'epoch' or 'iteration'.
        end: the last position of all charts with this unit, so that they can be compared.
        log_scale: whether values are drawn on a logarithmic scale.
        curves: at least one.
    """

    key: str
    title: str
    unit: str
    end: float
    log_scale: bool
    curves: tuple[Curve, ...]


def charts_of(runs: Sequence[RunLogs], names: Sequence[str]) -> dict[str, list[Chart]]:
    """Section -> its charts; sections without any are left out.

    Args:
        runs: in the order of their numbers.
        names: of the runs, for the labels.
    """
    # (section, key, unit) -> curves; runs that count in other units get charts of their own
    curves: dict[tuple[str, str, str], list[Curve]] = {}
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        keys = score_keys(run.validation)
        for key in keys:
            has_teacher = any(is_teacher(other) and student_key(other) == student_key(key) for other in keys)
            label = f"{name}, {'self-teacher' if is_teacher(key) else 'student'}" if has_teacher else name
            curve = make_curve(label, number, is_teacher(key), points_of(run.validation, key))
            curves.setdefault((SCORES, student_key(key), run.validation_unit), []).append(curve)
        for key in dict.fromkeys(key for entry in run.training for key in entry.values):
            curve = make_curve(name, number, False, points_of(run.training, key))
            curves.setdefault((section_of(key), key, run.training_unit), []).append(curve)
    sections: dict[str, list[Chart]] = {section: [] for section in (SCORES, LOSSES, SCHEDULE, TRAINING, TIME)}
    ends: dict[str, float] = {}
    for (_, _, unit), found in curves.items():
        ends[unit] = max(ends.get(unit, 0.0), *(curve.points[-1][0] for curve in found))
    for (section, key, unit), found in curves.items():
        log_scale = key.endswith("lr") and spans_decades(found)
        sections[section].append(Chart(key, _TITLES.get(key, key), unit, ends[unit], log_scale, tuple(found)))
    return {section: charts for section, charts in sections.items() if charts}


def section_of(key: str) -> str:
    """Where a value of a training step belongs.

    >>> section_of("decode.loss_ce"), section_of("base_lr"), section_of("grad_norm"), section_of("time")
    ('Losses', 'Schedule', 'Training batches', 'Time')
    """
    if key.rpartition(".")[2].startswith("loss"):
        return LOSSES
    if key.endswith("lr") or key in ("momentum", "distill_factor"):
        return SCHEDULE
    return TIME if key in ("time", "data_time", "memory") else TRAINING


def points_of(entries: Iterable[Entry], key: str) -> list[Point]:
    """The values of one name."""
    return [(entry.position, entry.values[key]) for entry in entries if key in entry.values]


def make_curve(label: str, run: int, dashed: bool, points: Sequence[Point]) -> Curve:
    """A curve of as many points as can be seen."""
    kept = thin(points)
    return Curve(label, run, dashed, tuple(kept), len(points) - len(kept))


def is_drawable(value: float) -> bool:
    """Whether a value has a place in a chart."""
    return math.isfinite(value) and abs(value) < LARGEST


def spans_decades(curves: Iterable[Curve]) -> bool:
    """Whether all values are positive and the largest is fifty times the smallest."""
    values = [value for curve in curves for _, value in curve.points if is_drawable(value)]
    return bool(values) and min(values) > 0 and max(values) >= 50 * min(values)


def thin(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """Points that a curve looks the same with: both ends, and of each group of neighbours the lowest and the highest.

    The first value of a group that is not finite stays too, so that a gap stays one.

    >>> thin([(x, 5.0 if x == 3 else 0.0) for x in range(10)], limit=4)
    [(0, 0.0), (3, 5.0), (5, 0.0), (9, 0.0)]
    """
    if len(points) <= limit:
        return list(points)
    kept = {0, len(points) - 1}
    size = math.ceil(2 * len(points) / limit)
    for begin in range(0, len(points), size):
        group = range(begin, min(begin + size, len(points)))
        drawable = [place for place in group if is_drawable(points[place][1])]
        if drawable:
            kept |= {min(drawable, key=lambda p: points[p][1]), max(drawable, key=lambda p: points[p][1])}
        kept |= set([place for place in group if not is_drawable(points[place][1])][:1])
    return [points[place] for place in sorted(kept)]
