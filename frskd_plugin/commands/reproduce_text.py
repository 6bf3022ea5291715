"""A table as Markdown, our numbers beside the paper's with their conditions; Figure 4 as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

from frskd_plugin.commands.benchmark import grid_head, grid_line
from frskd_plugin.commands.reproduce_cost import Count, StepCost
from frskd_plugin.commands.reproduce_plan import (
    SCORE_LABELS,
    Row,
    Scale,
    Score,
    Table,
    milestones_of,
    plan_cell,
    read_leaf,
)
from frskd_plugin.commands.reproduce_runs import Store
from frskd_plugin.core.atomic_write import save_figure

DASH = "–"
Scores = Mapping[tuple[str, int], Sequence[float]]


def sample_score(values: Sequence[float]) -> Score:
    """Return the mean and the deviation of a sample (over n - 1), None for that of one value."""
    return Score(fmean(values), stdev(values) if len(values) > 1 else None)


def score_text(score: Score | None) -> str:
    """Write a number of the paper, or a dash.

    >>> score_text(Score(73.27, 0.45)), score_text(Score(69.76)), score_text(None)
    ('73.27 ± 0.45', '69.76', '–')
    """
    if score is None:
        return DASH
    return f"{score.mean:.2f}" + ("" if score.std is None else f" ± {score.std:.2f}")


def scores_of(table: Table, scale: Scale, store: Store) -> dict[tuple[str, int], list[float]]:
    """Collect (row's key, number of the column) -> the last epoch's score of each seed that was run."""
    return {
        (row.key, number): [
            record["last"][column.score] for record in store.records_of(plan_cell(table, row, column, scale))
        ]
        for row in table.rows
        for number, column in enumerate(table.columns)
    }


def markdown(
    table: Table,
    scale: Scale,
    scores: Scores,
    costs: Mapping[str, StepCost],
    ratios: Mapping[str, tuple[Count, Count]] | None = None,
    extra: Sequence[str] = (),
) -> str:
    """Write the whole file: `scores_of` the table, ``costs`` by network, Table 6's ``ratios``, and ``extra`` lines."""
    names = {c.score: SCORE_LABELS[c.score] for c in table.columns}
    title = table.title if scale.is_paper else f"{table.title} (reduced runs)"
    meaning = (
        f"Last epoch's {' and '.join(names.values())} in percent: mean ± standard deviation of the sample, number of "
        f"seeds in brackets. {DASH}: not run."
    )
    parts = [f"# {title}", conditions(table, scale), meaning, _scores_text(table, scale, scores, costs)]
    if ratios is not None:
        parts.append(_sizes_text(table.rows, ratios))
    if costs:
        batches = ", ".join(f"{name} {cost.batch} images" for name, cost in costs.items())
        parts.append(
            "Step: time of a training step over that of the plain network, random images, steps in turn in one process "
            f"({batches} a step; data loading and a pretrained teacher's own training not counted)."
        )
    return "\n\n".join([*parts, *table.notes, *extra]) + "\n"


def conditions(table: Table, scale: Scale) -> str:
    """Say how the runs compare with the paper's."""
    config = plan_cell(table, table.rows[0], table.columns[0], Scale()).config
    full = read_leaf(config).train_cfg.max_epochs
    if scale.is_paper:
        return f"The paper's schedule: {full} epochs, all training images."
    images = "all training images"
    if scale.images_per_class is not None:
        images = f"the first {scale.images_per_class} training images of each class"
    milestones = ",".join(map(str, milestones_of(config, scale)))
    changes = [f"{scale.epochs_of(config)} of {full} epochs (learning rate / 10 after {milestones})"]
    changes += [images, *(f"`{option}`" for option in scale.options)]
    if scale.arguments:
        changes.append(f"`{' '.join(scale.arguments)}`")
    return (
        f"**Not the paper's conditions:** {'; '.join(changes)}. The paper's numbers stand beside for orientation and "
        f"are of {full} epochs on all images: compare the rows with each other, not with them."
    )


def _scores_text(table: Table, scale: Scale, scores: Scores, costs: Mapping[str, StepCost]) -> str:
    paper = ["paper" if scale.is_paper else "paper (full runs)"] if table.scores else []
    models = {column.model: column.label.split(", ")[1] for column in table.columns if column.model in costs}
    header = ["method", *(title for column in table.columns for title in (column.label, *paper))]
    body = []
    for row in table.rows:
        cells = [row.label.replace("\\", "\\\\")]
        for number, column in enumerate(table.columns):
            values = scores[row.key, number]
            cells.append(f"{score_text(sample_score(values))} ({len(values)})" if values else DASH)
            cells += [score_text(table.scores.get((row.key, column)))] if table.scores else []
        ratios = [costs[model].ratios.get(row.key) for model in models]
        body.append(cells + [DASH if ratio is None else f"× {ratio:.2f}" for ratio in ratios])
    return _grid([*header, *(f"step, {label}" for label in models.values())], body)


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
    return f"{_grid(header, body)}\n\n{remark}"


def _grid(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    return "\n".join([*grid_head(header), *map(grid_line, body)])


def points_of(table: Table, scores: Scores, number: int) -> dict[float, list[tuple[float, float, float]]]:
    """Collect alpha -> (beta, mean, deviation), by rising beta, of a column; one seed has no deviation, 0."""
    points: dict[float, list[tuple[float, float, float]]] = {}
    for row in table.rows:
        if scores[row.key, number] and "alpha" in row.settings:
            score = sample_score(scores[row.key, number])
            points.setdefault(row.settings["alpha"], []).append((row.settings["beta"], score.mean, score.std or 0.0))
    return points


def draw(table: Table, scores: Scores, title: str, file: Path) -> None:
    """Draw Figure 4 into a file: accuracy over beta, a line with error bars for each alpha, an axis for each column.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(table.columns), 3.6), layout="constrained")
    figure.suptitle(title, fontsize=9)
    for number, column in enumerate(table.columns):
        axis = figure.add_subplot(1, len(table.columns), number + 1, xlabel="beta", title=column.label)
        axis.set_ylabel("last epoch's top-1 accuracy (%)")
        axis.set_xscale("log")
        betas = sorted({row.settings["beta"] for row in table.rows if "beta" in row.settings})
        axis.set_xticks(betas, [f"{beta:g}" for beta in betas], minor=False)
        axis.minorticks_off()
        for alpha, line in points_of(table, scores, number).items():
            beta, mean, deviation = zip(*line, strict=True)
            axis.errorbar(beta, mean, deviation, marker=".", capsize=3, label=f"alpha {alpha:g}")
        if axis.has_data():
            axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    save_figure(figure, file)
