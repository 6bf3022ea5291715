"""Reads the JSON logs that mmengine's LocalVisBackend writes, one object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def json_lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number, from 1, and content of each line; a last one that a killed process left unfinished is passed over.

    Raises:
        ValueError: another line is no JSON object.
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
        if not isinstance(content, dict):
            raise ValueError(
                f"{file}, line {number}: expected a JSON object with the numbers of a step, as mmengine's "
                f'LocalVisBackend writes it ({{..., "step": 1}}), got {line[:60]!r}'
            )
        yield number, content
