"""The page: one HTML file without scripts and without anything that lies outside of it."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from frskd_plugin.report.charts import Chart, charts_of, is_drawable
from frskd_plugin.report.facts import Facts
from frskd_plugin.report.pictures import Picture
from frskd_plugin.report.run_logs import RunLogs, position_text
from frskd_plugin.report.scores import TEACHER_PREFIXES, Scores, is_teacher, score_keys
from frskd_plugin.report.style import style_sheet
from frskd_plugin.report.svg import draw, swatch

# The policy makes the browser refuse whatever would be fetched.
_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<p class="muted">{subtitle}</p>
"""


@dataclass(frozen=True)
class RunPage:
    """What the page shows of a run.

    Attributes:
        name: of the run, unlike that of the others.
        logs: of the run.
        scores: last and best; None before the first validation.
        facts: title -> text.
        config: its text; None where it is not known.
        pictures: of attention maps.
        remarks: what a reader should know.
    """

    name: str
    logs: RunLogs
    scores: Scores | None
    facts: Facts
    config: str | None = None
    pictures: Sequence[Picture] = ()
    remarks: Sequence[str] = ()


def make_page(runs: Sequence[RunPage], title: str, subtitle: str) -> str:
    """The whole file.

    Args:
        runs: in the order of their colours.
        title: of the page.
        subtitle: a line below it.
    """
    parts = [_HEAD.format(title=escape(title), style=style_sheet(), subtitle=escape(subtitle))]
    parts += [f'<p class="note">{escape(remark)}</p>' for run in runs for remark in run.remarks]
    parts += ["<main>", *_scores(runs), *_facts(runs)]
    for section, charts in charts_of([run.logs for run in runs], [run.name for run in runs]).items():
        parts += [f"<section><h2>{escape(section)}</h2>", '<div class="charts">', *map(_chart, charts)]
        parts.append("</div></section>")
    parts += _pictures(runs)
    parts += _configs(runs)
    return "\n".join([*parts, "</main>", "</body>", "</html>", ""])


def number(value: float | None) -> str:
    """A value as it is read, with the exact one of the log beside it for machines; a dash where there is none.

    >>> number(16.660000001)
    '<data value="16.660000001">16.66</data>'
    """
    return "–" if value is None else f'<data value="{value!r}">{value:.5g}</data>'


def _scores(runs: Sequence[RunPage]) -> Iterator[str]:
    yield "<section><h2>Last and best scores</h2>"
    scored = [run for run in runs if run.scores is not None]
    if not scored:
        yield "<p>No validation yet.</p></section>"
        return
    yield '<div class="scroll" tabindex="0" role="region" aria-label="Last and best scores"><table>'
    yield "<caption>The best validation is the one with the student's highest score.</caption><thead><tr>"
    for title in ("run", "score", "validation", "at", "student", "self-teacher"):
        yield f'<th scope="col"{_class(title in ("at", "student", "self-teacher"))}>{title}</th>'
    yield "</tr></thead><tbody>"
    for run in scored:
        yield from _score_rows(run)
    yield "</tbody></table></div></section>"


def _score_rows(run: RunPage) -> Iterator[str]:
    scores = run.scores
    if scores is None:
        return
    keys = [key for key in score_keys((scores.last, scores.best)) if not is_teacher(key)]
    for key in sorted(keys, key=lambda key: key != scores.metric):  # the metric that decides comes first
        for name, entry in (("last", scores.last), ("best", scores.best)):
            teacher = next((entry.values[p + key] for p in TEACHER_PREFIXES if p + key in entry.values), None)
            yield (
                f'<tr><th scope="row">{escape(run.name)}</th><td>{escape(key)}</td><td>{name}</td>'
                f'<td class="number">{run.logs.validation_unit} {position_text(entry.position)}</td>'
                f'<td class="number">{number(entry.values.get(key))}</td><td class="number">{number(teacher)}</td></tr>'
            )


def _facts(runs: Sequence[RunPage]) -> Iterator[str]:
    yield "<section><h2>Facts</h2>"
    yield '<div class="scroll" tabindex="0" role="region" aria-label="Facts">'
    yield '<table><thead><tr><th scope="col">fact</th>'
    yield "".join(f'<th scope="col">{escape(run.name)}</th>' for run in runs)
    yield "</tr></thead><tbody>"
    for fact in dict.fromkeys(fact for run in runs for fact in run.facts):
        cells = "".join(f"<td>{escape(run.facts.get(fact, '–'))}</td>" for run in runs)
        yield f'<tr><th scope="row">{escape(fact)}</th>{cells}</tr>'
    yield "</tbody></table></div></section>"


def _chart(chart: Chart) -> str:
    key = "" if chart.title == chart.key else f" <code>{escape(chart.key)}</code>"
    legend = "".join(f"<li>{swatch(curve)}{escape(curve.label)}</li>" for curve in chart.curves)
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in _notes(chart))
    return (
        f"<figure><figcaption>{escape(chart.title)}{key}</figcaption>"
        f'<ul class="legend">{legend}</ul>{draw(chart)}{notes}{_values(chart)}</figure>'
    )


def _notes(chart: Chart) -> Iterator[str]:
    if chart.log_scale:
        yield "Logarithmic scale."
    for curve in chart.curves:
        odd = [x for x, value in curve.points if not is_drawable(value)]
        if odd:
            first = f"{'first ' if len(odd) > 1 else ''}at {chart.unit} {position_text(odd[0])}"
            yield f"{curve.label}: {len(odd)} of {len(curve.points)} values are not finite, {first}."
        if curve.left_out:
            total = curve.left_out + len(curve.points)
            yield f"{curve.label}: {len(curve.points)} of {total} values are shown, every peak among them."


def _values(chart: Chart) -> str:
    """The values as a table, which opens on demand."""
    columns = [dict(curve.points) for curve in chart.curves]
    head = "".join(f'<th scope="col" class="number">{escape(curve.label)}</th>' for curve in chart.curves)
    rows = [
        f'<tr><th scope="row" class="number"><data value="{position!r}">{position_text(position)}</data></th>'
        + "".join(f'<td class="number">{number(column.get(position))}</td>' for column in columns)
        + "</tr>"
        for position in sorted({position for column in columns for position in column})
    ]
    label = escape(f"Values: {chart.title}")
    return (
        f'<details><summary>Values</summary><div class="scroll" tabindex="0" role="region" aria-label="{label}">'
        f'<table><thead><tr><th scope="col" class="number">{chart.unit}</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></details>"
    )


def _pictures(runs: Sequence[RunPage]) -> Iterator[str]:
    if not any(run.pictures for run in runs):
        return
    yield "<section><h2>Attention maps</h2>"
    yield '<p class="muted">Blue is low, red is high; each map is stretched to its own range.</p>'
    for run in runs:
        for picture in run.pictures:
            caption = f"{run.name}: {picture.caption}" if len(runs) > 1 else picture.caption
            data = base64.b64encode(picture.png).decode()
            width, height = picture.size
            yield (
                f'<figure class="picture"><figcaption>{escape(caption)}</figcaption>'
                f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
                f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" '
                f'alt="{escape(picture.alt)}">'
                "</div></figure>"
            )
    yield "</section>"


def _configs(runs: Sequence[RunPage]) -> Iterator[str]:
    shown = [run for run in runs if run.config is not None]
    if shown:
        yield "<section><h2>Config</h2>"
        for run in shown:
            yield f"<details><summary>{escape(run.name)}</summary><pre>{escape(run.config or '')}</pre></details>"
        yield "</section>"


def _class(is_number: bool) -> str:
    return ' class="number"' if is_number else ""
