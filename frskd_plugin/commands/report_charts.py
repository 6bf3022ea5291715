"""The charts of a report: which curves stand together, and their drawing by matplotlib."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from frskd_plugin.commands.report_logs import NOT_SCORES, RunLogs, Series, is_teacher, position_text, student_key

SECTIONS = ("Validation scores", "Losses", "Schedule", "Training batches", "Time")
TITLES = {
    "top1": "top-1 accuracy (%)",
    "top5": "top-5 accuracy (%)",
    "mIoU": "mean intersection over union (%)",
    "aAcc": "pixel accuracy (%)",
    "mAcc": "mean accuracy of the classes (%)",
    "loss": "total loss",
    "loss_teacher_ce": "self-teacher, cross-entropy",
    "self_teacher.loss_ce": "self-teacher, cross-entropy",
    **dict.fromkeys(("loss_ce", "decode.loss_ce"), "student, cross-entropy"),
    **dict.fromkeys(("loss_kd", "self_teacher.loss_kd"), "soft labels, times alpha"),
    **dict.fromkeys(("loss_feat", "self_teacher.loss_feat"), "feature distillation, times beta"),
    "lr": "learning rate",
    "distill_factor": "factor on alpha and beta",
    "train_top1": "top-1 accuracy on the batch (%)",
    "time": "seconds a step",
    "data_time": "seconds a step waits for data",
    "memory": "memory of the GPU (MB)",
}
MAX_POINTS = 400  # of a curve, about as many as the chart has pixels
LARGEST = 1e100  # a value beyond it leaves a gap, as infinity does
MAX_MARKERS = 30  # longer curves have a few, which tell the runs apart without colours
# of the runs, each with a contrast to white of 4.5 or more
COLOURS = ("#0b5cad", "#b4430a", "#13723a", "#8e2a8b", "#0b6b7a", "#7a5200", "#b3123f", "#4b5563")
# matplotlib's marker, and the same for the legend: filled for the student, hollow for the self-teacher
MARKERS = (("o", "●○"), ("s", "■□"), ("D", "◆◇"), ("^", "▲△"), ("v", "▼▽"), ("p", "⬟⬠"), ("h", "⬢⬡"), ("*", "★☆"))
STYLE = {
    "svg.fonttype": "none",
    "font.size": 13,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
}


class Curve(NamedTuple):
    """Values of one run, thinned to what can be seen; `dashed` where they are the self-teacher's, ``total`` logged."""

    label: str
    run: int
    dashed: bool
    points: Series
    total: int

    @property
    def drawn(self) -> np.ndarray:
        """The values; NaN, a gap, where one has no place in a chart."""
        return np.where(_has_place(self.points.values), self.points.values, np.nan)


class Chart(NamedTuple):
    """The curves of one quantity, over ``unit``s from 0 to ``end``, which all charts of that unit share."""

    key: str
    unit: str
    end: float
    log_scale: bool
    curves: Sequence[Curve]

    @property
    def title(self) -> str:
        """The quantity in words."""
        return TITLES.get(self.key, self.key)

    @property
    def label(self) -> str:
        """A sentence for each curve: where it begins and ends, and its range."""
        texts = [f"{self.title} over {self.unit}s."]
        for curve in self.curves:
            y = curve.drawn[~np.isnan(curve.drawn)]
            text = f"from {y[0]:.4g} to {y[-1]:.4g}, lowest {y.min():.4g}, highest {y.max():.4g}" if len(y) else ""
            texts.append(f"{curve.label}: {text or 'no finite value'}.")
        return " ".join(texts)

    @property
    def notes(self) -> Iterator[str]:
        """Remarks: what is not drawn as it was logged."""
        if self.log_scale:
            yield "Logarithmic scale."
        for curve in self.curves:
            count, odd = len(curve.drawn), curve.points.positions[np.isnan(curve.drawn)]
            if len(odd):
                first = f"{'first ' if len(odd) > 1 else ''}at {self.unit} {position_text(odd[0])}"
                yield f"{curve.label}: {len(odd)} of {count} values are not finite, {first}."
            if count < curve.total:
                yield f"{curve.label}: {count} of {curve.total} values are shown, every peak among them."

    @property
    def rows(self) -> list[tuple[float, list[float | None]]]:
        """The values as a table: position, and a value or nothing for each curve."""
        columns = [dict(zip(c.points.positions.tolist(), c.points.values.tolist(), strict=True)) for c in self.curves]
        return [(x, [column.get(x) for column in columns]) for x in sorted({x for column in columns for x in column})]


def charts_of(runs: Sequence[RunLogs], names: Sequence[str]) -> dict[str, list[Chart]]:
    """Collect the charts of each section from runs and their names; sections without any are left out."""
    # (section, key, unit) -> curves; runs that count in other units get charts of their own
    curves: dict[tuple[str, str, str], list[Curve]] = {}
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        scores = {key: series for key, series in run.validation.items() if key not in NOT_SCORES}
        of_teachers = {student_key(key) for key in scores if is_teacher(key)}
        for key, series in scores.items():
            label = f"{name}, {'self-teacher' if is_teacher(key) else 'student'}"
            curve = _curve(label if student_key(key) in of_teachers else name, number, is_teacher(key), series)
            curves.setdefault((SECTIONS[0], student_key(key), run.validation_unit), []).append(curve)
        for key, series in run.training.items():
            curve = _curve(name, number, False, series)
            curves.setdefault((section_of(key), key, run.training_unit), []).append(curve)
    ends: dict[str, float] = {}
    for (_, _, unit), found in curves.items():
        ends[unit] = max(ends.get(unit, 0.0), *(float(curve.points.positions[-1]) for curve in found))
    sections: dict[str, list[Chart]] = {section: [] for section in SECTIONS}
    for (section, key, unit), found in curves.items():
        values = np.concatenate([curve.drawn for curve in found])
        values = values[~np.isnan(values)]
        spans_decades = len(values) > 0 and values.min() > 1 / LARGEST and values.max() >= 50 * values.min()
        sections[section].append(Chart(key, unit, ends[unit], key.endswith("lr") and bool(spans_decades), found))
    return {section: charts for section, charts in sections.items() if charts}


def _curve(label: str, run: int, dashed: bool, series: Series) -> Curve:
    kept = thin(series.values)
    return Curve(label, run, dashed, Series(series.positions[kept], series.values[kept]), len(series.values))


def section_of(key: str) -> str:
    """Return the section in which a value of a training step belongs.

    >>> section_of("decode.loss_ce"), section_of("base_lr"), section_of("grad_norm"), section_of("time")
    ('Losses', 'Schedule', 'Training batches', 'Time')
    """
    if key.rpartition(".")[2].startswith("loss"):
        return "Losses"
    if key.endswith("lr") or key in ("momentum", "distill_factor"):
        return "Schedule"
    return "Time" if key in NOT_SCORES else "Training batches"


def _has_place(values: np.ndarray) -> np.ndarray:
    return np.abs(values) < LARGEST  # False for NaN


def thin(values: np.ndarray, limit: int = MAX_POINTS) -> np.ndarray:
    """Choose points that a curve looks the same with: both ends, and of each group the lowest and the highest.

    The first value of a group that cannot be drawn stays too, so that a gap stays one.

    Returns:
        About ``limit`` places in the values [N], ascending.

    >>> thin(np.array([0.0, 0.0, 0.0, 5.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]), limit=4)
    array([0, 3, 5, 9])
    """
    if len(values) <= limit:
        return np.arange(len(values))
    kept = {0, len(values) - 1}
    for places in np.array_split(np.arange(len(values)), limit // 2):
        fits = _has_place(values[places])
        inside = places[fits]
        if len(inside):
            kept |= {int(inside[values[inside].argmin()]), int(inside[values[inside].argmax()])}
        kept |= set(places[~fits][:1].tolist())
    return np.array(sorted(kept))


def draw(chart: Chart) -> bytes:
    """Draw a chart as an SVG file."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, StrMethodFormatter

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(440 / 72, 250 / 72), layout="constrained")
        axes = figure.add_subplot(xlabel=chart.unit, xlim=(0, chart.end or 1))
        axes.grid(axis="y", color="#d5d9de")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=chart.end >= 2))
        if chart.log_scale:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(base=10))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.minorticks_off()
        for number, curve in enumerate(chart.curves):
            line, fill = ((0, (4, 3)), "white") if curve.dashed else ("-", COLOURS[curve.run])
            few = np.count_nonzero(~np.isnan(curve.drawn)) <= MAX_MARKERS
            axes.plot(
                curve.points.positions,
                curve.drawn,
                linestyle=line,
                color=COLOURS[curve.run],
                marker=MARKERS[curve.run][0],
                markerfacecolor=fill,
                markevery=None if few else math.ceil(len(curve.drawn) / 8),
                clip_on=False,
                gid=f"curve{number}",
            )
        if all(np.isnan(curve.drawn).all() for curve in chart.curves):
            axes.text(0.5, 0.5, "no finite value", ha="center", transform=axes.transAxes)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
