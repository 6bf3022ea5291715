"""A table as Markdown: our numbers beside the paper's, with the conditions under which they were made."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from frskd_plugin.reproduce.cost import StepCost
from frskd_plugin.reproduce.paper import TABLE_6_RATIOS, Score
from frskd_plugin.reproduce.plan import Scale, milestones, plan_cell, read_leaf
from frskd_plugin.reproduce.records import Store
from frskd_plugin.reproduce.sizes import Ratios
from frskd_plugin.reproduce.tables import SCORE_LABELS, Row, Table

DASH = "–"


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and the deviation of a sample (over n - 1); None for the deviation of one value.

    >>> mean_and_deviation([1.0, 2.0, 3.0]), mean_and_deviation([4.0])
    ((2.0, 1.0), (4.0, None))
    """
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def cell_text(values: Sequence[float]) -> str:
    """Our number: mean, deviation, and from how many seeds.

    >>> cell_text([70.0, 71.0]), cell_text([70.0]), cell_text([])
    ('70.50 ± 0.71 (2)', '70.00 (1)', '–')
    """
    return f"{score_text(Score(*mean_and_deviation(values)))} ({len(values)})" if values else DASH


def score_text(score: Score | None) -> str:
    """A number of the paper, or a dash.

    >>> score_text(Score(73.27, 0.45)), score_text(Score(69.76)), score_text(None)
    ('73.27 ± 0.45', '69.76', '–')
    """
    if score is None:
        return DASH
    return f"{score.mean:.2f}" + ("" if score.std is None else f" ± {score.std:.2f}")


def scores_of(table: Table, scale: Scale, store: Store) -> dict[tuple[str, int], list[float]]:
    """(row's key, number of the column) -> the last epoch's score of each seed that was run."""
    found = {}
    for row in table.rows:
        for number, column in enumerate(table.columns):
            records = store.records_of(plan_cell(table, row, column, scale, seed=0))
            found[row.key, number] = [record["last"][column.score] for record in records]
    return found


def markdown(
    table: Table,
    scale: Scale,
    store: Store,
    costs: Mapping[str, StepCost],
    ratios: Mapping[str, Ratios] | None = None,
    extra: Sequence[str] = (),
) -> str:
    """The whole file.

    Args:
        table: what to show.
        scale: of the runs.
        store: where their records are.
        costs: network -> steps, where they were measured.
        ratios: Table 6's sizes.
        extra: lines at the end, such as a picture.
    """
    scores = scores_of(table, scale, store)
    names = {c.score: SCORE_LABELS[c.score] for c in table.columns}
    title = table.title if scale.is_paper else f"{table.title} (reduced runs)"
    meaning = (
        f"Last epoch's {' and '.join(names.values())} in percent: mean ± standard deviation of the sample, number of "
        f"seeds in brackets. {DASH}: not run."
    )
    parts = [f"# {title}", conditions(table, scale), meaning]
    parts.append("\n".join(grid(_header(table, scale, costs), _body(table, scores, costs))))
    if ratios is not None:
        parts.append("\n".join(sizes_text(table.rows, ratios)))
    if costs:
        batches = ", ".join(f"{name} {cost.batch} images" for name, cost in costs.items())
        parts.append(
            "Step: time of a training step over that of the plain network, random images, steps in turn in one process "
            f"({batches} a step; data loading and a pretrained teacher's own training not counted)."
        )
    parts += table.notes
    return "\n\n".join([*parts, *extra]) + "\n"


def conditions(table: Table, scale: Scale) -> str:
    """How the runs compare with the paper's, in words."""
    leaf = read_leaf(plan_cell(table, table.rows[0], table.columns[0], Scale(), seed=0).config)
    full = leaf.train_cfg.max_epochs
    if scale.is_paper:
        return f"The paper's schedule: {full} epochs, all training images."
    images = "all training images"
    if scale.images_per_class is not None:
        images = f"the first {scale.images_per_class} training images of each class"
    changes = [f"{scale.epochs or full} of {full} epochs (learning rate / 10 after {milestones(leaf, scale)[1:-1]})"]
    changes += [images, *(f"`{option}`" for option in scale.options)]
    if scale.arguments:
        changes.append(f"`{' '.join(scale.arguments)}`")
    return (
        f"**Not the paper's conditions:** {'; '.join(changes)}. The paper's numbers stand beside for orientation and "
        f"are of {full} epochs on all images: compare the rows with each other, not with them."
    )


def _header(table: Table, scale: Scale, costs: Mapping[str, StepCost]) -> list[str]:
    paper = "paper" if scale.is_paper else "paper (full runs)"
    header = ["method"]
    for column in table.columns:
        header += [column.label, *([paper] if table.scores else [])]
    models = {column.model: column.label.split(", ")[1] for column in table.columns}
    return header + [f"step, {label}" for model, label in models.items() if model in costs]


def _body(
    table: Table, scores: Mapping[tuple[str, int], Sequence[float]], costs: Mapping[str, StepCost]
) -> list[list[str]]:
    body = []
    for row in table.rows:
        cells = [row.label.replace("\\", "\\\\")]
        for number, column in enumerate(table.columns):
            cells.append(cell_text(scores[row.key, number]))
            cells += [score_text(table.scores.get((row.key, column)))] if table.scores else []
        for model in dict.fromkeys(column.model for column in table.columns):
            if model in costs:
                ratio = costs[model].ratios.get(row.key)
                cells.append(DASH if ratio is None else f"× {ratio:.2f}")
        body.append(cells)
    return body


def sizes_text(rows: Sequence[Row], ratios: Mapping[str, Ratios]) -> list[str]:
    """Table 6's sizes: the paper's ratios, the authors' graph counted two ways, and what runs here."""
    header = [
        "self-teacher / classifier",
        *("parameters", "paper", "FLOPs, all operations", "paper", "FLOPs, conv. and linear only"),
        *("parameters here", "MACs here"),
    ]
    body = []
    for row in rows:
        r, (params, flops) = ratios[row.key], TABLE_6_RATIOS[row.key]
        values = [r.params, params, r.operations, flops, r.macs, r.own_params, r.own_macs]
        body.append([row.label, *(f"× {value:.2f}" for value in values)])
    remark = (
        "The first five are of the authors' networks, counted from their layers with two separable convolutions a "
        "node. All operations: multiply-accumulates, 2 for each element of a batch normalisation's input, 1 for each "
        "of a ReLU layer's and of a max-pooling's input and of an up-sampling's output. Here: this package's "
        "self-teacher on the standard WRN-16-2, convolutions and linear layers; it computes the same graph, and "
        "projects before it up-samples."
    )
    return [*grid(header, body), "", remark]


def grid(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table.

    >>> grid(["method", "top-1"], [["FRSKD", "73.27"]])
    ['| method | top-1 |', '|---|---|', '| FRSKD | 73.27 |']
    """
    rows = [header, *body]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "|---" * len(header) + "|", *lines[1:]]
