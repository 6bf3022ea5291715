"""Read the JSON logs that mmengine's LocalVisBackend writes, one object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOGS = "*/vis_data/scalars.json"  # in the work folder, one for each start of a run
PLACES = ("epoch", "iter", "step")  # where an entry belongs, and no values
LARGEST_PLACE = 2**53  # beyond it a float no longer tells neighbours apart


def parse_json(text: str) -> Any:
    """Parse JSON that anyone may have written: a number too long for a float is infinite.

    Raises:
        ValueError: it is no JSON, or nested too deep.

    >>> parse_json('{"step": 7, "loss": 1' + 400 * "0" + "}")
    {'step': 7, 'loss': inf}
    """
    try:
        return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < 19 else float(digits))
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def json_lines(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the entries of a log; a last line that a killed process left unfinished is passed over.

    Raises:
        ValueError: another line is no entry of a log.
    """
    with open(file, encoding="utf-8", errors="replace", newline="\n") as lines:  # a long log never stands in memory
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                content = parse_json(line)
            except ValueError:
                if not line.endswith("\n"):
                    return
                content = None
            places = [content.get(key, 0) for key in PLACES] if isinstance(content, dict) and "step" in content else []
            if not places or not all(is_number(place) and abs(place) <= LARGEST_PLACE for place in places):
                raise ValueError(
                    f"{file}, line {number}: expected a JSON object with the numbers of a step, as mmengine's "
                    f'LocalVisBackend writes it ({{..., "step": 1}}), got {line[:60].rstrip()!r}'
                )
            yield content


def is_number(value: Any) -> bool:
    """Tell whether a JSON value is a number; true and false are none.

    >>> is_number(1.5), is_number(True), is_number("1")
    (True, False, False)
    """
    return isinstance(value, (int, float)) and not isinstance(value, bool)
