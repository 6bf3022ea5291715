"""Figure 4: accuracy over beta, a line for each alpha, with error bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from frskd_plugin.reproduce.report import mean_and_deviation
from frskd_plugin.reproduce.tables import Table

Points = dict[float, list[tuple[float, float, float]]]  # alpha -> (beta, mean, deviation), by rising beta


def points_of(table: Table, scores: Mapping[tuple[str, int], Sequence[float]], number: int) -> Points:
    """What was run of a column; one seed has no deviation, 0."""
    points: Points = {}
    for row in table.rows:
        values = scores[row.key, number]
        if values:
            mean, deviation = mean_and_deviation(values)
            points.setdefault(row.settings["alpha"], []).append((row.settings["beta"], mean, deviation or 0.0))
    return points


def draw(table: Table, scores: Mapping[tuple[str, int], Sequence[float]], title: str, file: Path) -> None:
    """One axis for each column, as PNG.

    Args:
        table: the grid, whose rows have alpha and beta.
        scores: (row's key, number of the column) -> a score for each seed.
        title: says under which conditions they were made.
        file: picture to write.
    """
    figure = Figure(figsize=(4.5 * len(table.columns), 3.6), layout="constrained")
    figure.suptitle(title, fontsize=9)
    for number, column in enumerate(table.columns):
        axis = figure.add_subplot(1, len(table.columns), number + 1, xlabel="beta", title=column.label)
        axis.set_ylabel("last epoch's top-1 accuracy (%)")
        axis.set_xscale("log")
        betas = sorted({row.settings["beta"] for row in table.rows})
        axis.set_xticks(betas, [f"{beta:g}" for beta in betas], minor=False)
        axis.minorticks_off()
        for alpha, line in points_of(table, scores, number).items():
            beta, mean, deviation = zip(*line, strict=True)
            axis.errorbar(beta, mean, deviation, marker=".", capsize=3, label=f"alpha {alpha:g}")
        if axis.has_data():
            axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    file.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(file))
