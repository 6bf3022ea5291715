"""The logs of a run: the values of all its starts joined, and what only its text logs and its result know."""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from frskd_plugin.commands.console import progress
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


class Series(NamedTuple):
    """The values of one name by position, both [N]: 2.5 epochs are the middle of the third epoch."""

    positions: np.ndarray
    values: np.ndarray


@dataclass
class TextLog:
    """The text log of one start of a run; None, or nothing, where it does not tell."""

    facts: dict[str, str] = field(default_factory=dict)  # 'Python', 'PyTorch', 'seed', 'GPU 0', ... -> its value
    steps_per_epoch: int | None = None
    begin: str | None = None  # of the log, 'YYYY-MM-DD hh:mm:ss'
    end: str | None = None  # of the last entry so far
    class_iou: dict[str, list[str]] = field(default_factory=dict)  # class -> student's, self-teacher's; last validation
    class_epoch: int | None = None  # of that validation


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
        """Unit of the training steps; of the validations where no step is logged."""
        return self.training_unit if self.training else self.validation_unit

    @property
    def reached(self) -> float:
        """Position of the last entry that is counted in `unit`."""
        scores = self.validation if self.unit == self.validation_unit else {}
        return max((float(s.positions[-1]) for s in (*self.training.values(), *scores.values())), default=0.0)


class Scores(NamedTuple):
    """The last and the best validation of a run: 'epoch' (its position) and every score."""

    metric: str  # the score that decides which validation is best, the higher the better
    last: dict[str, float]
    best: dict[str, float]  # of several, the first


class _Entry(NamedTuple):
    """Line of a JSON log. A later start that begins at this place, or before it, replaces it."""

    start: int
    step: float
    epoch: float  # NaN where steps are not counted in epochs
    values: dict[str, float]

    @property
    def place(self) -> float:
        return self.step if math.isnan(self.epoch) else self.epoch


def names_of(work_dirs: Sequence[Path]) -> list[str]:
    """Name the runs by their folders, or by the whole paths where folders share a name.

    >>> names_of([Path("a/frskd"), Path("b/frskd"), Path("b/baseline")])
    ['a/frskd', 'b/frskd', 'baseline']
    """
    paths = [work_dir.resolve() for work_dir in work_dirs]
    for path, count in Counter(paths).items():
        if count > 1:
            raise ValueError(f"{path} was given {count} times; give each run once")
    names = Counter(path.name for path in paths)
    return [path.name if names[path.name] == 1 else str(d) for path, d in zip(paths, work_dirs, strict=True)]


def read_run(work_dir: str | Path) -> RunLogs:
    """Read what a run has logged so far. What a start did beyond the place where the next one went on is left out.

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
    steps: list[_Entry] = []  # of the training; in both lists those that no later start has made again
    validations: list[_Entry] = []
    total = sum(file.read_bytes().count(b"\n") for file in files)
    lines = ((start, line) for start, file in enumerate(files) for line in json_lines(file))
    for start, line in progress(lines, f"reading {work_dir.name}", "lines", total):
        # names are kept once for all lines of a long log
        values = {sys.intern(k): float(v) for k, v in line.items() if k not in PLACES and is_number(v)}
        entry = _Entry(start, line["step"], line.get("epoch", math.nan), values)
        if "iter" not in line:
            _drop_from(validations, entry.place)
            validations.append(entry)
            continue
        # two starts in one second share a folder, so a step back begins a new one too
        if steps and (start != steps[-1].start or entry.step <= steps[-1].step):
            _drop_from(steps, entry.place)
            # what a start validates before its first step belongs to the epoch that it goes on from
            _drop_from(validations, entry.place)
        steps.append(entry)
    if not steps and not validations:
        raise ValueError(
            f"{work_dir} has no entry in its logs yet ({files[-1]}); a run logs first after "
            "default_hooks.logger.interval steps, or at the end of its first epoch"
        )
    folders = tuple(file.parents[1] for file in files)
    text_logs = tuple(read_text_log(folder) for folder in folders)
    counts_epochs = not any(math.isnan(entry.epoch) for entry in steps)
    per_epoch = [text_logs[entry.start].steps_per_epoch for entry in steps]  # which the text logs alone say
    unit, positions = "iteration", [entry.step for entry in steps]
    if counts_epochs and all(per_epoch):
        unit = "epoch"
        # at the end of the step; counted within its epoch, as a start may have other batches than the last
        positions = [
            max(entry.epoch, 1) - 1 + ((entry.step - 1) % (count or 1) + 1) / (count or 1)
            for entry, count in zip(steps, per_epoch, strict=True)
        ]
    scores = _series(validations, [entry.step for entry in validations])
    validation_unit = "epoch" if counts_epochs else "iteration"
    return RunLogs(work_dir, folders, text_logs, _series(steps, positions), unit, scores, validation_unit)


def _drop_from(entries: list[_Entry], place: float) -> None:
    while entries and entries[-1].place >= place:
        entries.pop()


def _series(entries: Sequence[_Entry], positions: Sequence[float]) -> dict[str, Series]:
    columns: dict[str, list[tuple[float, float]]] = {}
    for entry, position in zip(entries, positions, strict=True):
        for name, value in entry.values.items():
            columns.setdefault(name, []).append((position, value))
    return {name: Series(*np.array(sorted(pairs, key=lambda pair: pair[0])).T) for name, pairs in columns.items()}


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


def student_key(key: str) -> str:
    """Return the name of the student's score that belongs to a score, which may be the self-teacher's.

    >>> student_key("teacher_top1"), student_key("self_teacher.mIoU"), student_key("top5")
    ('top1', 'mIoU', 'top5')
    """
    for prefix in TEACHER_PREFIXES:
        key = key.removeprefix(prefix)
    return key


def is_teacher(key: str) -> bool:
    """Tell whether a score is the self-teacher's."""
    return student_key(key) != key


def scores_of(run: RunLogs) -> Scores | None:
    """Return the last and the best validation; None before the first."""
    scores = {
        key: dict(zip(series.positions.tolist(), series.values.tolist(), strict=True))
        for key, series in run.validation.items()
        if key not in NOT_SCORES
    }
    keys = [key for key in scores if not is_teacher(key)]
    if not keys:
        return None
    try:
        result = parse_json((run.work_dir / RESULT_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        result = None  # `BestAndLastHook` has not written it yet
    chosen = result.get("metric") if isinstance(result, dict) else None
    # a metric of mmengine may have a `prefix`: road/mIoU
    main = [key for name in MAIN_METRICS for key in keys if key.rpartition("/")[2] == name]
    metric = chosen if chosen in keys else (main or keys)[0]
    last = max(position for by_position in scores.values() for position in by_position)
    finite = {position: value for position, value in scores[metric].items() if math.isfinite(value)}
    best = max(finite, key=lambda position: finite[position], default=last)
    entries = [{"epoch": at, **{key: s[at] for key, s in scores.items() if at in s}} for at in (last, best)]
    return Scores(metric, *entries)


def position_text(position: float) -> str:
    """Write a position as people read it.

    >>> position_text(40000.0), position_text(2.5)
    ('40000', '2.5')
    """
    return f"{position:.2f}".rstrip("0").rstrip(".")
