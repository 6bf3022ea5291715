"""The table of mmsegmentation's families, as lines of text, JSON and Markdown."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from frskd_plugin.coverage.family_explanation import TEMPLATE
from frskd_plugin.coverage.report import OK, markdown_table, text_of, versions

COLUMNS = ("family", "config", "image", "channels", "teacher_head", "plain", "result")
NOT_RUN = "the plain config does not run"


@dataclass(frozen=True)
class FamilyRow:
    """What became of one family.

    Attributes:
        family: name of the folder of configs.
        config: the one that was tried.
        plain: 'ok' where the plain config trains on a CPU, or its error.
        result: 'ok', or the reason.
        image: height and width of the images.
        channels: of the maps that are distilled, highest resolution first.
        teacher_head: class of the self-teacher's head.
    """

    family: str
    config: str
    plain: str = OK
    result: str = OK
    image: int | None = None
    channels: list[int] | None = None
    teacher_head: str | None = None

    @property
    def ok(self) -> bool:
        """Whether FRSKD passes, or has nothing to pass as the plain config does not run."""
        return self.result == OK or self.plain != OK


def line(row: FamilyRow, seconds: float) -> str:
    """One line for the terminal."""
    facts = [text_of(value) for value in (row.image, row.channels, row.teacher_head) if value is not None]
    told = " | ".join([*facts, OK]) if row.result == OK else row.result
    return f"{row.family:<14} {row.config:<64} {told}  ({seconds:.1f} s)"


def summary(rows: Sequence[FamilyRow]) -> str:
    """How many passed, and how many could not be tried.

    >>> summary([FamilyRow("fcn", "a"), FamilyRow("ccnet", "b", plain="RuntimeError: no operators", result="-")])
    '2 families: 1 ok, 1 whose plain config does not run, 0 that remain'
    """
    passed = sum(row.result == OK for row in rows)
    not_run = sum(row.plain != OK for row in rows)
    return (
        f"{len(rows)} families: {passed} ok, {not_run} whose plain config does not run, "
        f"{len(rows) - passed - not_run} that remain"
    )


def write_json(file: Path, rows: Sequence[FamilyRow]) -> None:
    """A list with an object for each row."""
    objects = [dataclasses.asdict(row) for row in rows]
    file.write_text(json.dumps(objects, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_markdown(file: Path, rows: Sequence[FamilyRow], command: str, machine: str) -> None:
    """The table, in the text of `frskd_plugin.coverage.family_explanation`."""
    trained = [row for row in rows if row.plain == OK]
    not_run = [row for row in rows if row.plain != OK]
    text = TEMPLATE.format(
        command=command,
        date=date.today().isoformat(),
        versions=versions(),
        machine=machine,
        summary=summary(rows),
        table=markdown_table(COLUMNS, [[text_of(getattr(row, name)) for name in COLUMNS] for row in trained]),
        not_run=markdown_table(("family", "config", "error"), [[r.family, r.config, r.plain] for r in not_run]),
    )
    file.write_text(text, encoding="utf-8")
