"""Last and best validation of a run, student and self-teacher."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frskd_plugin.mmengine.best_and_last_hook import RESULT_NAME, best_entry
from frskd_plugin.report.run_logs import Entry, RunLogs

# how the metrics of this package call the self-teacher's scores
TEACHER_PREFIXES = ("teacher_", "self_teacher.")
MAIN_METRICS = ("top1", "mIoU")
_TIMES = ("time", "data_time", "memory")
_KEYS = ("metric", "last", "best")


@dataclass(frozen=True)
class Scores:
    """Of a run.

    Attributes:
        metric: the score that decides which validation is best, the higher the better.
        last: the last validation.
        best: the best one; of several, the first.
    """

    metric: str
    last: Entry
    best: Entry


def student_key(key: str) -> str:
    """The name of the student's score that belongs to a score, which may be the self-teacher's.

    >>> student_key("teacher_top1"), student_key("self_teacher.mIoU"), student_key("top5")
    ('top1', 'mIoU', 'top5')
    """
    for prefix in TEACHER_PREFIXES:
        key = key.removeprefix(prefix)
    return key


def is_teacher(key: str) -> bool:
    """Whether a score is the self-teacher's."""
    return key.startswith(TEACHER_PREFIXES)


def score_keys(entries: Iterable[Entry]) -> list[str]:
    """The names of all scores, in the order in which they come; seconds and memory are none."""
    return [key for key in dict.fromkeys(key for entry in entries for key in entry.values) if key not in _TIMES]


def read_result(work_dir: Path) -> dict[str, Any]:
    """What `BestAndLastHook` wrote; nothing where there is no such file, say before the first validation.

    Raises:
        ValueError: it is damaged.
    """
    file = work_dir / RESULT_NAME
    if not file.is_file():
        return {}
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(result, dict) or not all(key in result for key in _KEYS):
            raise ValueError(f"it lacks one of {', '.join(_KEYS)}")
        for key in ("last", "best"):
            _entry(result[key])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{file} is damaged: expected the JSON object that BestAndLastHook writes, with {', '.join(_KEYS)} "
            f"({error}); remove it, and the scores are taken from the logs"
        ) from error
    return result


def scores_of(run: RunLogs, result: dict[str, Any]) -> Scores | None:
    """Last and best of ``result.json`` where it belongs to the last validation in the logs, else of the logs.

    Args:
        run: its logs.
        result: of `read_result`.

    Returns:
        None before the first validation.
    """
    if result and (not run.validation or run.validation[-1].position == result["last"]["epoch"]):
        return Scores(result["metric"], _entry(result["last"]), _entry(result["best"]))
    keys = [key for key in score_keys(run.validation) if not is_teacher(key)]
    if not keys:
        return None
    metric = next((key for key in (result.get("metric"), *MAIN_METRICS) if key in keys), keys[0])
    scored = [entry for entry in run.validation if math.isfinite(entry.values.get(metric, math.nan))]
    places = [{"place": place, metric: entry.values[metric]} for place, entry in enumerate(scored)]
    last = run.validation[-1]
    return Scores(metric, last, scored[int(best_entry(places, metric)["place"])] if scored else last)


def _entry(scores: dict[str, Any]) -> Entry:
    values = {key: float(value) for key, value in scores.items()}
    return Entry(values.pop("epoch"), values)
