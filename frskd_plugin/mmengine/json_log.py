"""Reads the JSON logs that mmengine's LocalVisBackend writes, one object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOGS = "*/vis_data/scalars.json"  # in the work folder, one for each start of a run
PLACES = ("epoch", "iter", "step")  # where an entry belongs, and no values


def json_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The entries of a log; a last line that a killed process left unfinished is passed over.

    Raises:
        ValueError: another line is no entry of a log.
    """
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except ValueError:
            if number == len(lines):  # no line end behind it
                return
            content = None
        places = [content.get(key, 0) for key in PLACES] if isinstance(content, dict) and "step" in content else [None]
        if not all(map(is_number, places)):
            raise ValueError(
                f"{file}, line {number}: expected a JSON object with the numbers of a step, as mmengine's "
                f'LocalVisBackend writes it ({{..., "step": 1}}), got {line[:60]!r}'
            )
        yield content


def is_number(value: Any) -> bool:
    """Whether a JSON value is one; true and false are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
