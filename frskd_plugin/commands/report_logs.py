"""The logs of a run: the values of all its starts joined, and what only its text logs and its result know."""

from __future__ import annotations

import heapq
import math
import re
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from frskd_plugin.commands.json_log import LOGS, PLACES, is_number, json_lines, parse_json
from frskd_plugin.mmengine.hooks import RESULT_NAME

# how the metrics of this package call the self-teacher's scores
TEACHER_PREFIXES = ("teacher_", "self_teacher.")
MAIN_METRICS = ("top1", "mIoU")
NOT_SCORES = ("time", "data_time", "memory")

_STEPS = re.compile(r"Epoch\(train\)\s*\[\s*\d+\]\[\s*\d+/(\d+)\]")
_NAMES = r"Python|PyTorch|TorchVision|OpenCV|MMEngine|GPU \d[\d,]*|seed|frskd_plugin|timm|(?:onedl-)?mm(?!engine)[\w-]+"
_FACT = re.compile(rf"^ {{4}}({_NAMES}): (\S.*)$")
_TIME = re.compile(r"^(\d{4})/(\d\d)/(\d\d) (\d\d:\d\d:\d\d) - ")
_CLASSES_END = re.compile(r"(?:Epoch|Iter)\(val\)\s*(?:\[\s*(\d+)\])?\[")


@dataclass(frozen=True)
class Series:
    """The values of one name, by position."""

    positions: np.ndarray  # [N], in the unit of the run: 2.5 epochs are the middle of the third epoch
    values: np.ndarray  # [N], which need not be finite

    def at(self, position: float) -> float | None:
        """Return the value at a position, None where there is none."""
        place = int(np.searchsorted(self.positions, position))
        found = place < len(self.positions) and self.positions[place] == position
        return float(self.values[place]) if found else None


@dataclass
class TextLog:
    """The text log of one start of a run; None, or nothing, where it does not tell."""

    facts: dict[str, str] = field(default_factory=dict)  # 'Python', 'PyTorch', 'seed', 'GPU 0', ... -> its value
    steps_per_epoch: int | None = None
    begin: str | None = None  # of the log, 'YYYY-MM-DD hh:mm:ss'
    end: str | None = None  # of the last entry so far
    # class -> IoU of the student and, where it predicts, of the self-teacher, in the last validation, and its epoch
    class_iou: dict[str, list[str]] = field(default_factory=dict)
    class_epoch: int | None = None


@dataclass(frozen=True)
class RunLogs:
    """The logs of a run."""

    work_dir: Path
    folders: tuple[Path, ...]  # of its starts, oldest first
    text_logs: tuple[TextLog, ...]  # one for each of these
    training: dict[str, Series]  # name -> values of the training steps
    training_unit: str  # of their positions, 'epoch' or 'iteration'
    validation: dict[str, Series]  # name -> scores of the validations
    validation_unit: str

    @property
    def unit(self) -> str:
        """The training's unit, where there is a training."""
        return self.training_unit if self.training else self.validation_unit

    @property
    def reached(self) -> float:
        """The position of the last entry in that unit."""
        scores = self.validation if self.unit == self.validation_unit else {}
        return max((float(s.positions[-1]) for s in (*self.training.values(), *scores.values())), default=0.0)


@dataclass(frozen=True)
class Scores:
    """The last and the best validation of a run."""

    metric: str  # the score that decides which validation is best, the higher the better
    last: dict[str, float]  # 'epoch' (its position) and every score
    best: dict[str, float]  # of several, the first


class _Columns:
    """The values of many log lines by name, eight bytes each."""

    def __init__(self) -> None:
        self.rows = 0
        self._columns: dict[str, tuple[array[int], array[float]]] = {}

    def add(self, content: dict[str, Any]) -> int:
        """Take up a line; returns its number."""
        for key, value in content.items():
            if key not in PLACES and is_number(value):
                rows, values = self._columns.setdefault(key, (array("q"), array("d")))
                rows.append(self.rows)
                values.append(float(value))
        self.rows += 1
        return self.rows - 1

    def series(self, rows: Any, positions: np.ndarray) -> dict[str, Series]:
        """Give each value the position of its line; values of lines that are not among ``rows`` are dropped."""
        place = np.full(self.rows, np.nan)
        place[np.asarray(rows, dtype=np.int64)] = positions
        found = {}
        for key, (lines, values) in self._columns.items():
            where = place[np.frombuffer(lines, dtype=np.int64)]
            order = np.argsort(where, kind="stable")[: np.count_nonzero(~np.isnan(where))]  # NaN comes last
            if len(order):
                found[key] = Series(where[order], np.frombuffer(values, dtype=np.float64)[order])
        return found


def read_run(work_dir: str | Path) -> RunLogs:
    """Read what a run has logged so far. A later start wins over what earlier ones had done beyond its beginning.

    Raises:
        ValueError: there is no log, nothing in it yet, or one is damaged.
    """
    work_dir = Path(work_dir)
    files = sorted(file for file in work_dir.glob(LOGS) if file.is_file())
    if not files:
        state = "holds no log" if work_dir.is_dir() else "is not a folder"
        raise ValueError(
            f"{work_dir} {state}; expected the work folder of a run, with {LOGS}, which tools/train.py writes through "
            "the LocalVisBackend of the config's vis_backends"
        )
    training, validation = _Columns(), _Columns()
    starts, steps, epochs = array("q"), array("d"), array("d")  # of the training lines; an epoch that is missing is NaN
    kept: list[int] = []  # training lines that no later start has made again
    newest: dict[float, int] = {}  # step of a validation -> its line
    latest_first: list[float] = []  # heap of these steps, negated
    for start, file in enumerate(files):
        for line in json_lines(file):
            step, epoch = line["step"], line.get("epoch", math.nan)
            if "iter" not in line:  # a validation
                if step not in newest:
                    heapq.heappush(latest_first, -step)
                newest[step] = validation.add(line)
                continue
            # two starts in one second share a folder, so a step back begins a new one too
            if kept and (start != starts[kept[-1]] or step <= steps[kept[-1]]):
                while kept and not _is_before(epochs[kept[-1]], epoch, steps[kept[-1]], step):
                    kept.pop()
                # what a start validates before its first step belongs to the epoch that it goes on from
                while latest_first and -latest_first[0] >= (step if math.isnan(epoch) else epoch):
                    del newest[-heapq.heappop(latest_first)]
            kept.append(training.add(line))
            starts.append(start)
            steps.append(step)
            epochs.append(epoch)
    if not kept and not newest:
        raise ValueError(
            f"{work_dir} has no entry in its logs yet ({files[-1]}); a run logs first after "
            "default_hooks.logger.interval steps, or at the end of its first epoch"
        )
    folders = tuple(file.parents[1] for file in files)
    text_logs = tuple(read_text_log(folder) for folder in folders)
    rows = np.array(kept, dtype=np.int64)
    step_of, epoch_of = np.asarray(steps)[rows], np.asarray(epochs)[rows]
    counts_epochs = not np.isnan(epoch_of).any()
    # the text log alone says how many steps an epoch has
    per_epoch = np.array([log.steps_per_epoch or 0 for log in text_logs])[np.asarray(starts, dtype=np.int64)[rows]]
    has_steps = counts_epochs and bool((per_epoch > 0).all())
    if has_steps and len(rows):
        # at the end of the step; counted within its epoch, as a start may have other batches than the last
        step_of = np.maximum(epoch_of, 1) - 1 + ((step_of - 1) % per_epoch + 1) / per_epoch
    return RunLogs(
        work_dir,
        folders,
        text_logs,
        training.series(rows, step_of),
        "epoch" if has_steps else "iteration",
        validation.series(list(newest.values()), np.array(list(newest), dtype=np.float64)),
        "epoch" if counts_epochs else "iteration",
    )


def _is_before(epoch: float, first_epoch: float, step: float, first_step: float) -> bool:
    """Tell whether a training step was there when the start with this first step began."""
    return step < first_step if math.isnan(epoch + first_epoch) else epoch < first_epoch


def read_text_log(folder: Path) -> TextLog:
    """Read the log ``STAMP.log`` in the folder ``STAMP`` of a start; an empty one where there is no such file."""
    file, log = folder / f"{folder.name}.log", TextLog()
    if not file.is_file():
        return log
    tables: list[dict[str, str]] = []  # of the validation that is being read: the student's, the self-teacher's
    column: int | None = None
    with open(file, encoding="utf-8", errors="replace", newline="\n") as lines:
        for line in lines:
            if time := _TIME.match(line):
                log.end = "{}-{}-{} {}".format(*time.groups())
                log.begin = log.begin or log.end
                if log.steps_per_epoch is None and (steps := _STEPS.search(line)):
                    log.steps_per_epoch = int(steps[1])
                if tables and (validation := _CLASSES_END.search(line)):
                    log.class_epoch = int(validation[1]) if validation[1] else None
                    names = dict.fromkeys(name for table in tables for name in table)
                    log.class_iou = {name: [table.get(name, "") for table in tables] for name in names}
                    tables = []
            elif fact := _FACT.match(line):
                log.facts[fact[1]] = fact[2].rstrip()
            elif line.startswith("|"):
                cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
                if cells[0] == "Class":
                    column = cells.index("IoU") if "IoU" in cells else None
                    tables += [{}] if column else []
                elif tables and column and column < len(cells):
                    tables[-1][cells[0]] = cells[column]
    return log


def is_teacher(key: str) -> bool:
    """Tell whether a score is the self-teacher's."""
    return key.startswith(TEACHER_PREFIXES)


def student_key(key: str) -> str:
    """Return the name of the student's score that belongs to a score, which may be the self-teacher's.

    >>> student_key("teacher_top1"), student_key("self_teacher.mIoU"), student_key("top5")
    ('top1', 'mIoU', 'top5')
    """
    for prefix in TEACHER_PREFIXES:
        key = key.removeprefix(prefix)
    return key


def read_result(work_dir: Path) -> dict[str, Any]:
    """Read what `BestAndLastHook` wrote; nothing where there is no such file, say before the first validation.

    Raises:
        ValueError: it is damaged.
    """
    file = work_dir / RESULT_NAME
    if not file.is_file():
        return {}
    try:
        result = parse_json(file.read_text(encoding="utf-8"))
        if not isinstance(result, dict) or not isinstance(result.get("metric"), str):
            raise ValueError("it has no metric")
        for name in ("last", "best"):
            entry = result.get(name)
            if not isinstance(entry, dict) or "epoch" not in entry or not all(map(is_number, entry.values())):
                raise ValueError(f"{name} is no epoch with its scores")
    except ValueError as error:
        raise ValueError(
            f"{file} is damaged: expected the JSON object that BestAndLastHook writes, with metric, last, best "
            f"({error}); remove it, and the scores are taken from the logs"
        ) from error
    return result


def scores_of(run: RunLogs, result: dict[str, Any]) -> Scores | None:
    """Take last and best from ``result.json`` where it belongs to the last validation in the logs, else from the logs.

    Returns:
        None before the first validation.
    """
    scores = {key: series for key, series in run.validation.items() if key not in NOT_SCORES}
    last = max((float(series.positions[-1]) for series in scores.values()), default=None)
    if result and last in (None, result["last"]["epoch"]):
        return Scores(result["metric"], result["last"], result["best"])
    keys = [key for key in scores if not is_teacher(key)]
    if last is None or not keys:
        return None

    def entry(position: float) -> dict[str, float]:
        found = {key: series.at(position) for key, series in scores.items()}
        return {"epoch": position, **{key: value for key, value in found.items() if value is not None}}

    metric = next((key for key in (result.get("metric"), *MAIN_METRICS) if key in keys), keys[0])
    values = np.where(np.isfinite(scores[metric].values), scores[metric].values, -np.inf)
    best = float(scores[metric].positions[int(np.argmax(values))]) if np.isfinite(values).any() else last
    return Scores(metric, entry(last), entry(best))


def position_text(position: float) -> str:
    """Write a position as people read it.

    >>> position_text(40000.0), position_text(2.5)
    ('40000', '2.5')
    """
    return f"{position:.2f}".rstrip("0").rstrip(".")
