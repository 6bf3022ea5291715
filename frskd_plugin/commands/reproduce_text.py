"""A table as Markdown, our numbers beside the paper's with their conditions; Figure 4 as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

from frskd_plugin.commands.benchmark import table_lines
from frskd_plugin.commands.reproduce_cost import Count, StepCost
from frskd_plugin.commands.reproduce_plan import PAPER, Column, Row, Scale, Table, plan_cell, read_leaf
from frskd_plugin.core.atomic_write import save_figure

DASH = "–"
Scores = Mapping[tuple[str, Column], Sequence[float]]  # row's key and column -> the last epoch's of each seed


def score_text(values: Sequence[float]) -> str:
    """Write the mean and the deviation of a sample (over n - 1), with its size.

    >>> score_text([69.0, 70.0]), score_text([69.76]), score_text([])
    ('69.50 ± 0.71 (2)', '69.76 (1)', '–')
    """
    if not values:
        return DASH
    return f"{fmean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "") + f" ({len(values)})"


def markdown(
    table: Table,
    scale: Scale,
    scores: Scores,
    costs: Mapping[str, StepCost],
    ratios: Mapping[str, tuple[Count, Count]] | None = None,
) -> str:
    """Write the whole text: a table's ``scores``, ``costs`` by network, and Table 6's ``ratios``."""
    names = dict.fromkeys(PAPER["scores"][column.score] for column in table.columns)
    parts = [
        f"# {table.title}" + ("" if scale.is_paper else " (reduced runs)"),
        conditions(table, scale),
        f"Last epoch's {' and '.join(names)} in percent: mean ± standard deviation of the sample, number of seeds in "
        f"brackets. {DASH}: not run.",
        _scores_text(table, scale, scores, costs),
    ]
    if ratios is not None:
        parts.append(_sizes_text(table.rows, ratios))
    if costs:
        batches = ", ".join(f"{name} {cost['batch']} images" for name, cost in costs.items())
        parts.append(
            "Step: time of a training step over that of the plain network, random images, steps in turn in one process "
            f"({batches} a step; data loading and a pretrained teacher's own training not counted)."
        )
    return "\n\n".join([*parts, *table.notes]) + "\n"


def conditions(table: Table, scale: Scale) -> str:
    """Say how the runs compare with the paper's."""
    config = plan_cell(table, table.rows[0], table.columns[0], Scale()).config
    full = read_leaf(config).train_cfg.max_epochs
    if scale.is_paper:
        return f"The paper's schedule: {full} epochs, all training images."
    milestones, count = ",".join(map(str, scale.milestones(config))), scale.images_per_class
    changes = [
        f"{scale.epochs_of(config)} of {full} epochs (learning rate / 10 after {milestones})",
        "all training images" if count is None else f"the first {count} training images of each class",
        *(f"`{option}`" for option in (*scale.options, " ".join(scale.arguments)) if option),
    ]
    return (
        f"**Not the paper's conditions:** {'; '.join(changes)}. The paper's numbers stand beside for orientation and "
        f"are of {full} epochs on all images: compare the rows with each other, not with them."
    )


def _scores_text(table: Table, scale: Scale, scores: Scores, costs: Mapping[str, StepCost]) -> str:
    has_numbers = any(row.scores for row in table.rows)
    paper = ["paper" if scale.is_paper else "paper (full runs)"] * has_numbers
    models = {column.model: column.label.split(", ")[1] for column in table.columns if column.model in costs}
    header = ["method", *(title for column in table.columns for title in (column.label, *paper))]
    body = []
    for row in table.rows:
        cells = [row.label.replace("\\", "\\\\")]
        for column in table.columns:
            cells += [score_text(scores[row.key, column]), *([row.scores.get(column, DASH)] * has_numbers)]
        ratios = [costs[model]["ratios"].get(row.key) for model in models]
        body.append(cells + [DASH if ratio is None else f"× {ratio:.2f}" for ratio in ratios])
    return "\n".join(table_lines([*header, *(f"step, {label}" for label in models.values())], body))


def _sizes_text(rows: Sequence[Row], ratios: Mapping[str, tuple[Count, Count]]) -> str:
    """Write Table 6's sizes: the paper's ratios, the authors' graph counted two ways, and what runs here."""
    header = [
        "self-teacher / classifier",
        *("parameters", "paper", "FLOPs, all operations", "paper", "FLOPs, conv. and linear only"),
        *("parameters here", "MACs here"),
    ]
    body = []
    for row in rows:
        if row.key in ratios:
            (authors, ours), (params, flops) = ratios[row.key], row.ratios
            values = [authors.params, params, authors.operations, flops, authors.macs, ours.params, ours.macs]
            body.append([row.label, *(f"× {value:.2f}" for value in values)])
    remark = (
        "The first five are of the authors' networks, counted from their layers with two separable convolutions a "
        "node. All operations: multiply-accumulates, 2 for each element of a batch normalisation's input, 1 for each "
        "of a ReLU layer's and of a max-pooling's input and of an up-sampling's output. Here: this package's "
        "self-teacher on the standard WRN-16-2, convolutions and linear layers; it computes the same graph, and "
        "projects before it up-samples."
    )
    return "\n".join([*table_lines(header, body), "", remark])


def draw(table: Table, scores: Scores, title: str, file: Path) -> None:
    """Draw Figure 4 into a file: accuracy over beta, a line with error bars for each alpha, an axis for each column.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(table.columns), 3.6), layout="constrained")
    figure.suptitle(title, fontsize=9)
    betas = sorted({row.settings["beta"] for row in table.rows if "beta" in row.settings})
    for axis, column in zip(figure.subplots(1, len(table.columns), squeeze=False)[0], table.columns, strict=True):
        axis.set(xlabel="beta", ylabel="last epoch's top-1 accuracy (%)", title=column.label, xscale="log")
        axis.set_xticks(betas, [f"{beta:g}" for beta in betas])
        axis.minorticks_off()
        for alpha in dict.fromkeys(row.settings.get("alpha") for row in table.rows):
            line = [row for row in table.rows if row.settings.get("alpha") == alpha and scores[row.key, column]]
            if alpha is not None and line:
                values = [scores[row.key, column] for row in line]
                errors = [stdev(sample) if len(sample) > 1 else 0.0 for sample in values]
                x = [row.settings["beta"] for row in line]
                axis.errorbar(x, [*map(fmean, values)], errors, marker=".", capsize=3, label=f"alpha {alpha:g}")
        if axis.has_data():
            axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    save_figure(figure, file)
