"""Draw the validation curves of several runs into one picture, student and self-teacher; seeds become one curve.

frskd plot_scores work_dirs/baseline_camvid_effdet_d0 work_dirs/frskd_camvid_effdet_d0 -o miou.png
frskd plot_scores work_dirs/baseline_seed* work_dirs/frskd_seed* -o top1.png   # mean, with the range shaded
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from matplotlib.figure import Figure

from frskd_plugin.commands.report_logs import read_run
from frskd_plugin.core.atomic_write import save_figure

# what is called so in the logs -> (axis, addition to the name of the curve)
SCORES = {
    "mIoU": ("mIoU (%)", ""),
    "self_teacher.mIoU": ("mIoU (%)", ", self-teacher"),
    "top1": ("top-1 accuracy (%)", ""),
    "teacher_top1": ("top-1 accuracy (%)", ", self-teacher"),
}
SEED = re.compile(r"_seed\d+$")
Curve = dict[int, float]  # epoch -> score


def read_scores(work_dir: Path) -> dict[str, Curve]:
    """Score -> epoch -> percent, from the JSON logs of a run and of its resumed parts.

    Raises:
        ValueError: if the folder holds no validation, or a log is damaged.
    """
    validation = read_run(work_dir).validation
    scores = {
        key: dict(zip(validation[key].positions.astype(int).tolist(), validation[key].values.tolist(), strict=True))
        for key in SCORES
        if key in validation
    }
    if not scores:
        raise ValueError(f"{work_dir} holds no log with a validation; expected a run with one of {', '.join(SCORES)}.")
    return scores


def curves_of(work_dirs: Sequence[Path]) -> dict[tuple[str, str], list[Curve]]:
    """(name without its seed, score) -> the curve of each seed.

    Raises:
        ValueError: if a folder holds no validation.
    """
    curves: dict[tuple[str, str], list[Curve]] = {}
    for work_dir in work_dirs:
        for key, curve in read_scores(work_dir).items():
            curves.setdefault((SEED.sub("", work_dir.name), key), []).append(curve)
    return curves


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all options."""
    parser = argparse.ArgumentParser(
        prog="frskd plot_scores", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work_dirs", nargs="+", type=Path, help="folders that tools/train.py wrote; seeds: NAME_seedN")
    parser.add_argument("-o", "--out", type=Path, default=Path("scores.png"), help="picture to write")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Draw, and print the scores that all runs of a name have last."""
    args = build_parser().parse_args(argv)
    figure = Figure(figsize=(6, 3.6), layout="tight")
    axis = figure.add_subplot(xlabel="epoch")
    for (name, key), runs in curves_of(args.work_dirs).items():
        label = name + SCORES[key][1]
        epochs = sorted(set.intersection(*(set(run) for run in runs)))
        if not epochs:
            raise ValueError(f"{name}: its runs were validated in no epoch that all of them have")
        values = [[run[epoch] for run in runs] for epoch in epochs]
        (line,) = axis.plot(epochs, [mean(v) for v in values], "--" if SCORES[key][1] else "-", marker=".", label=label)
        if len(runs) > 1:
            axis.fill_between(
                epochs, [min(v) for v in values], [max(v) for v in values], color=line.get_color(), alpha=0.15
            )
        axis.set_ylabel(SCORES[key][0])
        print(
            f"{label}: {describe(values[-1])} at epoch {epochs[-1]}, best {describe([max(r.values()) for r in runs])}"
        )
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    save_figure(figure, args.out)


def describe(values: Sequence[float]) -> str:
    """The value, or mean and standard deviation of several."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{mean(values):.2f} +- {stdev(values):.2f} ({len(values)} runs)"
