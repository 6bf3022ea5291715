"""The rows of the table, and the table as lines of text, JSON and Markdown."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from frskd_plugin.coverage.explanation import ALL_OK, NOT_OK, TEMPLATE

OK = "ok"
TITLES = {"classifier": "Classifiers", "segmentor": "Backbones of a segmentor"}
# OpenMMLab comes under two names
PACKAGES = ("torch", "timm", "mmengine", "onedl-mmengine", "mmsegmentation", "onedl-mmsegmentation")


@dataclass(frozen=True)
class Row:
    """What became of one module.

    Attributes:
        kind: 'classifier' or 'segmentor'.
        module: of timm.
        model: the one that was tried; None where none could be chosen.
        result: 'ok', or the reason.
        image: height and width of the images.
        levels: indices of the maps, level 0 = highest resolution.
        strides: image size / map size of each level.
        channels: of each level.
        share: self-teacher's MACs / student's MACs.
        width: the self-teacher's, as ``width='auto'`` chose it.
    """

    kind: str
    module: str
    model: str | None = None
    result: str = OK
    image: int | None = None
    levels: list[int] | None = None
    strides: list[float] | None = None
    channels: list[int] | None = None
    share: float | None = None
    width: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the model passed."""
        return self.result == OK


COLUMNS = {
    "classifier": ("module", "model", "image", "levels", "strides", "channels", "share", "width", "result"),
    "segmentor": ("module", "model", "image", "levels", "strides", "channels", "result"),
}


def cells(row: Row) -> list[str]:
    """The row as text, in the order of `COLUMNS`.

    >>> cells(Row("segmentor", "resnet", "resnet10t", image=64, levels=[0, 1], strides=[2, 4.5], channels=[8, 16]))
    ['resnet', 'resnet10t', '64', '0 1', '2 4.5', '8 16', 'ok']
    """
    return [text_of(getattr(row, name)) for name in COLUMNS[row.kind]]


def text_of(value: object) -> str:
    """A value as the text of a cell; nothing for None.

    >>> text_of([4, 8.5]), text_of(None)
    ('4 8.5', '')
    """
    if isinstance(value, list):
        return " ".join(str(item) for item in value)
    return "" if value is None else str(value)


def line(row: Row, seconds: float) -> str:
    """One line for the terminal."""
    module, model, *middle, result = cells(row)
    facts = " | ".join(text for text in middle if text)
    return f"{module:<26} {model:<36} {result if not row.ok else facts + ' | ' + OK}  ({seconds:.1f} s)"


def summary(rows: Sequence[Row]) -> str:
    """How many passed, of each kind.

    >>> summary([Row("classifier", "a"), Row("classifier", "b", result="no gradient")])
    'classifier: 1 of 2 modules ok'
    """
    by_kind = {kind: [row.ok for row in rows if row.kind == kind] for kind in COLUMNS}
    return ", ".join(f"{kind}: {sum(oks)} of {len(oks)} modules ok" for kind, oks in by_kind.items() if oks)


def write_json(file: Path, rows: Sequence[Row]) -> None:
    """A list with an object for each row; what a kind does not have is left out."""
    objects = [{k: v for k, v in dataclasses.asdict(row).items() if k in ("kind", *COLUMNS[row.kind])} for row in rows]
    file.write_text(json.dumps(objects, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_markdown(file: Path, rows: Sequence[Row], command: str) -> None:
    """A table of each kind, in the text of `frskd_plugin.coverage.explanation`."""
    tables = [table(kind, [row for row in rows if row.kind == kind]) for kind in COLUMNS]
    bad = [f"- `{row.module}` ({row.model}) as a {row.kind}: {row.result}" for row in rows if not row.ok]
    text = TEMPLATE.format(
        command=command,
        date=date.today().isoformat(),
        versions=versions(),
        summary=summary(rows),
        failures=NOT_OK.format(rows="\n".join(bad)) if bad else ALL_OK,
        tables="\n\n".join(text for text in tables if text),
    )
    file.write_text(text, encoding="utf-8")


def table(kind: str, rows: Sequence[Row]) -> str:
    """A Markdown table under its title; nothing for no rows."""
    if not rows:
        return ""
    return f"## {TITLES[kind]}\n\n{markdown_table(COLUMNS[kind], [cells(row) for row in rows])}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of cells of text.

    >>> print(markdown_table(["model", "result"], [["a|b", "ok"]]))
    | model | result |
    | --- | --- |
    | a\\|b | ok |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells_) + " |" for cells_ in lines)


def versions() -> str:
    """Python and those packages of `PACKAGES` that are installed."""
    found = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)
