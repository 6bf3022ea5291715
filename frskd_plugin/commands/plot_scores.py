"""Draw the validation curves of several runs into one picture, student and self-teacher; seeds become one curve.

frskd plot_scores work_dirs/baseline_camvid_effdet_d0 work_dirs/frskd_camvid_effdet_d0 -o miou.png
frskd plot_scores work_dirs/baseline_seed* work_dirs/frskd_seed* -o top1.png   # mean, with the range shaded
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from math import isfinite, nan
from pathlib import Path
from statistics import mean, stdev

from matplotlib.figure import Figure

from frskd_plugin.commands.arguments import command_parser
from frskd_plugin.commands.report_logs import names_of, read_run
from frskd_plugin.core.atomic_write import save_figure

# name in the logs -> (label of the axis, ending of the curve's name)
SCORES = {
    "mIoU": ("mIoU (%)", ""),
    "self_teacher.mIoU": ("mIoU (%)", ", self-teacher"),
    "top1": ("top-1 accuracy (%)", ""),
    "teacher_top1": ("top-1 accuracy (%)", ", self-teacher"),
}
Curve = dict[int, float]  # epoch, or iteration -> score


def read_curves(work_dirs: Sequence[Path]) -> tuple[dict[tuple[str, str], list[Curve]], str]:
    """Read (name without its seed, score) -> the curve of each seed, from the logs of runs and their resumed parts.

    Returns:
        The curves, and what they are over: 'epoch' or 'iteration'.

    Raises:
        ValueError: a folder comes twice or holds no validation, a log is damaged, or runs count in other units.
    """
    curves: dict[tuple[str, str], list[Curve]] = {}
    units: dict[str, Path] = {}
    for name, work_dir in zip(names_of(work_dirs), work_dirs, strict=True):
        run = read_run(work_dir)
        if not SCORES.keys() & run.validation.keys():
            raise ValueError(
                f"{work_dir} holds no log with a validation; expected a run with one of {', '.join(SCORES)}."
            )
        units.setdefault(run.validation_unit, work_dir)
        for key in (key for key in SCORES if key in run.validation):
            positions, values = run.validation[key]
            curve = dict(zip(map(int, positions), map(float, values), strict=True))
            curves.setdefault((re.sub(r"_seed\d+$", "", name), key), []).append(curve)
    unit, *others = units
    if others:
        raise ValueError(
            f"{units[unit]} was validated by {unit}s and {units[others[0]]} by {others[0]}s; draw a picture of each"
        )
    return curves, unit


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all options."""
    parser = command_parser("plot_scores", __doc__)
    parser.add_argument("work_dirs", nargs="+", type=Path, help="folders that tools/train.py wrote; seeds: NAME_seedN")
    parser.add_argument("-o", "--out", type=Path, default=Path("scores.png"), help="picture to write")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Draw, and print the scores that all runs of a name have last."""
    args = build_parser().parse_args(argv)
    figure = Figure(figsize=(6, 3.6), layout="tight")
    curves, unit = read_curves(args.work_dirs)
    axis = figure.add_subplot(xlabel=unit)
    for (name, key), runs in curves.items():
        positions = sorted(set.intersection(*map(set, runs)))
        if not positions:
            raise ValueError(f"{name}: its runs were validated in no {unit} that all of them have")
        values = [[run[position] for run in runs] for position in positions]
        title, of_teacher = SCORES[key]
        label, style = name + of_teacher, "--" if of_teacher else "-"
        (line,) = axis.plot(positions, [*map(mean, values)], style, marker=".", label=label)
        if len(runs) > 1:
            axis.fill_between(positions, [*map(min, values)], [*map(max, values)], color=line.get_color(), alpha=0.15)
        axis.set_ylabel(title)
        best = describe([max(filter(isfinite, run.values()), default=nan) for run in runs])
        print(f"{label}: {describe(values[-1])} at {unit} {positions[-1]}, best {best}")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    save_figure(figure, args.out)


def describe(values: Sequence[float]) -> str:
    """Write the value, or mean and standard deviation of several."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{mean(values):.2f} +- {stdev(values):.2f} ({len(values)} runs)"
