"""What the matrix prints: the table, and under it the tests that failed, were skipped or left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from scripts.matrix.rows import Row
from scripts.matrix.suite import Counts

MOST_NAMED = 20
HEADINGS = ("row", "passed", "failed", "skipped", "seconds", "result", "versions")


@dataclass
class Outcome:
    """What came of one row.

    Args:
        row: the row.
        versions: of what is really installed, by name.
        counts: what pytest counted.
        seconds: that the tests took.
        problem: why there is no result, or why the result is not to be trusted; None: nothing is wrong but the tests.
    """

    row: Row
    versions: dict[str, str] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    seconds: float = 0.0
    problem: str | None = None

    @property
    def is_ok(self) -> bool:
        """Whether tests were run and none failed."""
        return self.problem is None and not self.counts.failed and self.counts.passed > 0


def exit_status(outcomes: Sequence[Outcome]) -> int:
    """0 where every row is well, else 1."""
    return 0 if outcomes and all(outcome.is_ok for outcome in outcomes) else 1


def table(outcomes: Sequence[Outcome]) -> str:
    """One line a row, in aligned columns.

    Example:
        >>> print(table([Outcome(Row("main", "as pinned"), {"torch": "2.11.0", "timm": "1.0.31"}, Counts(7), 12.3)]))
        row   passed  failed  skipped  seconds  result  versions
        main  7       0       0        12       ok      torch 2.11.0, timm 1.0.31
    """
    lines = [HEADINGS]
    for outcome in outcomes:
        counts = outcome.counts
        numbers = (counts.passed, len(counts.failed), counts.skipped.total(), round(outcome.seconds))
        versions = ", ".join(f"{name} {version}" for name, version in outcome.versions.items())
        lines.append((outcome.row.name, *map(str, numbers), "ok" if outcome.is_ok else "FAILED", versions))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def details(outcome: Outcome) -> list[str]:
    """Why a row failed, and which tests it did not run."""
    name = outcome.row.name
    lines = [f"{name}: {outcome.problem}"] if outcome.problem else []
    failed = outcome.counts.failed
    lines += [f"{name}: failed: {test}" for test in failed[:MOST_NAMED]]
    if len(failed) > MOST_NAMED:
        lines.append(f"{name}: failed: and {len(failed) - MOST_NAMED} more")
    lines += [f"{name}: skipped {count}: {reason}" for reason, count in sorted(outcome.counts.skipped.items())]
    lines += [f"{name}: left out {item.tests}: {item.reason}" for item in outcome.row.left_out]
    return lines
