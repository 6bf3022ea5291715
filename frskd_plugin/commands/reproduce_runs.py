"""Runs of a table: what is known of each, in a JSON file a run, and the processes that train what is missing."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import frskd_plugin
from frskd_plugin.commands import Terminated
from frskd_plugin.commands.config import locate_config
from frskd_plugin.commands.json_log import LOGS, json_lines
from frskd_plugin.commands.reproduce_plan import Run, flat
from frskd_plugin.commands.side_by_side import PAUSED
from frskd_plugin.core.atomic_write import atomic_write
from frskd_plugin.mmengine.export import export_student
from frskd_plugin.mmengine.hooks import RESULT_NAME, Entry, best_entry
from frskd_plugin.mmengine.hooks import read_history as read_result
from frskd_plugin.mmengine.registration import installed_versions
from frskd_plugin.mmengine.resume import newest_checkpoint
from frskd_plugin.version import __version__

SEGMENTATION_SCORE = "mIoU"
PACKAGES = ("torch", "torchvision", "timm", "numpy")
RECORD = {"identity": dict, "seed": int, "last": dict}  # what is needed of a record
TELL_SECONDS = 30.0
TRAIN_RUNS = "--train-runs"  # `frskd reproduce` as the process that trains
say = functools.partial(print, flush=True)
say_once = functools.cache(say)


@dataclass(frozen=True)
class Store:
    """Folders of runs and of their records."""

    work_dir: Path  # holds a folder for each run, with its log and checkpoints, and ``teachers``
    out: Path  # holds the tables, and ``runs`` with a record of each run
    published: Path | None = None  # a folder like ``out`` whose records count too, and into which nothing is written

    def folder(self, run: Run) -> Path:
        """Return the folder in which a run trains."""
        return self.work_dir / run.name

    def log(self, run: Run) -> Path:
        """Return the file with all that its process writes."""
        return self.folder(run) / "train.log"

    def record_file(self, run: Run) -> Path:
        """Return its JSON file."""
        return self.out / "runs" / f"{run.name}.json"

    def teacher_file(self, run: Run) -> Path:
        """Return the file of the plain network that it ends with, kept where it is to teach others."""
        return self.work_dir / "teachers" / f"{run.name}.pth"

    def records_of(self, run: Run) -> dict[Path, dict[str, Any]]:
        """Return the records of all seeds of a run, by seed; one's own come before those that are published.

        A damaged one is named and passed over.
        """
        found: dict[int, tuple[Path, dict[str, Any]]] = {}
        for folder in filter(None, (self.out, self.published)):
            for file in sorted((folder / "runs").glob(f"{run.setup}_*_seed*.json")):
                record = read_or_name(file, RECORD)
                if record and run.is_of(record["identity"]):
                    found.setdefault(record["seed"], (file, record))
        return dict(found[seed] for seed in sorted(found))

    def read(self, run: Run) -> dict[str, Any] | None:
        """Return its record; None where there is none of exactly these settings.

        Raises:
            ValueError: its file is damaged.
        """
        read_json(self.record_file(run), RECORD)
        return next((record for record in self.records_of(run).values() if record["seed"] == run.seed), None)

    def is_done(self, run: Run, teaches: bool = False) -> bool:
        """Tell whether its record is there, and its network where it ``teaches``; a run that ended gets them now.

        Raises:
            ValueError: its record, ``result.json`` or log is damaged.
        """
        if self.read(run) is None and not self._finish(run):
            return False
        return not teaches or self.teacher_file(run).is_file() or self._keep_teacher(run)

    def _finish(self, run: Run) -> bool:
        """Write the record of a run whose last epoch is scored; False where that is missing."""
        history = read_history(self.folder(run))
        if not history or history[-1]["epoch"] != run.epochs:
            return False
        metric = next((m for m in (SEGMENTATION_SCORE, "top1") if all(m in entry for entry in history)), None)
        if metric is None:
            raise ValueError(f"{self.folder(run)} has a validation without top1 or mIoU; remove it to train again")
        record = {
            "name": run.name,
            "identity": run.identity,
            "seed": run.seed,
            "metric": metric,
            "last": history[-1],
            "best": best_entry(history, metric),
            "history": history,
            "seconds": round(training_seconds(self.folder(run)), 1),
            "versions": {"frskd_plugin": __version__, **{n: version(n) for n in PACKAGES}, **installed_versions()},
        }
        write_json(self.record_file(run), record)
        return True

    def _keep_teacher(self, run: Run) -> bool:
        """Export the network; False where the last checkpoint is gone and the run has to be made or ended again."""
        found, _ = newest_checkpoint(self.folder(run))
        if found is None or found[1].get("epoch") != run.epochs:
            return False
        self.teacher_file(run).parent.mkdir(parents=True, exist_ok=True)
        export_student(found[0], self.teacher_file(run))
        return True


def read_history(folder: Path) -> list[Entry]:
    """Read the scores of every validated epoch so far, ``{'epoch': 1, 'top1': ..}``; a resumed epoch counts once.

    A classifier writes them into ``result.json``, a segmentor into its JSON logs.
    """
    if (folder / RESULT_NAME).is_file():
        return read_result(folder / RESULT_NAME)
    found: dict[int, Entry] = {}
    for file in sorted(folder.glob(LOGS)):
        for line in json_lines(file):
            if SEGMENTATION_SCORE in line:
                epoch = line.pop("step")
                found[epoch] = {"epoch": epoch, **line}
    return [found[epoch] for epoch in sorted(found)]


def training_seconds(folder: Path) -> float:
    """Sum the time of all starts of a run, each from the name of mmengine's log to its last line."""
    logs = folder.glob("[0-9]*_[0-9]*/[0-9]*_[0-9]*.log")
    return sum(log.stat().st_mtime - time.mktime(time.strptime(log.stem, "%Y%m%d_%H%M%S")) for log in logs)


def read_json(file: Path, kinds: Mapping[str, type] | None = None) -> dict[str, Any]:
    """Read an object with values of these kinds; nothing where there is no such file.

    Raises:
        ValueError: it is damaged.
    """
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no JSON file ({error}); remove it, and the run is read or made again") from error
    content = content if isinstance(content, dict) else {}
    if wrong := [key for key, kind in (kinds or {}).items() if not isinstance(content.get(key), kind)]:
        raise ValueError(f"{file} is damaged: no {', '.join(wrong)}; remove it, and the run is read or made again")
    return content


def read_or_name(file: Path, kinds: Mapping[str, type] | None = None) -> dict[str, Any]:
    """Read an object; nothing where the file is damaged, which is said once."""
    try:
        return read_json(file, kinds)
    except ValueError as error:
        say_once(f"passed over: {error}")
        return {}


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write an object, whole or not at all."""
    atomic_write(file, json.dumps(content, indent=1).encode())


def training_arguments(run: Run, store: Store, data: Path) -> list[str]:
    """Return the arguments of ``frskd train``, as a user would type them to begin a run or to go on with it."""
    method: list[str] = []
    if run.method is not None:  # every classifier starts from a config of the plain network
        settings = flat(run.settings)
        if run.teacher is not None:
            settings["teacher.checkpoint"] = store.teacher_file(run.teacher).resolve()
        options = [f"{key}={value}" for key, value in settings.items()]
        method = ["--method", run.method, *(["--method-options", *options] if options else [])]
    config, recipe = locate_config(run.config)
    return [
        *(str(config), *(["--recipe", recipe] if recipe else [])),
        *("--data-root", str(data / ("VOCdevkit" if run.data == "voc" else run.data))),
        *("--work-dir", str(store.folder(run)), "--seed", str(run.seed), "--resume"),
        *method,
        *run.arguments,
        *(["--cfg-options", *run.options] if run.options else []),
    ]


def training_process(runs: Sequence[Run], store: Store, data: Path, deadline: float | None) -> list[str]:
    """Return the command line of a process that trains all of them, see `train_side_by_side`."""
    work = {
        "commands": [training_arguments(run, store, data) for run in runs],
        "logs": [str(store.log(run)) for run in runs],
        "deadline": deadline,
    }
    return [sys.executable, "-m", "frskd_plugin", "reproduce", TRAIN_RUNS, json.dumps(work)]


@dataclass
class Trainer:
    """Training of the runs that are not done, in processes that hold the runs' folders."""

    store: Store
    data: Path  # holds a folder for each data set
    devices: Sequence[str] = ("cuda",)  # 'cpu', 'cuda' or 'cuda:1'; the processes take turns
    jobs: int = 1  # processes at a time
    side_by_side: int = 1  # runs of a process
    threads: int | None = None  # of each process; None leaves it to the environment
    deadline: float | None = None  # `time.time` after which none is started
    on_done: Callable[[], object] = lambda: None  # is called after each run that ended well

    def environment(self, slot: int) -> dict[str, str]:
        """Return that of the process in a slot: mmengine trains on the first GPU that it sees."""
        extra = {} if self.threads is None else {"OMP_NUM_THREADS": str(self.threads)}
        kind, _, index = self.devices[slot % len(self.devices)].partition(":")
        if kind == "cpu":
            extra["CUDA_VISIBLE_DEVICES"] = ""
        elif index:
            # the index counts the GPUs that this process sees, which a scheduler may have chosen
            visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
            extra["CUDA_VISIBLE_DEVICES"] = visible[int(index)] if visible else index
        package = str(Path(frskd_plugin.__file__).parent.parent)
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        return {**os.environ, "PYTHONPATH": path, **extra}

    def train(self, runs: Sequence[Run]) -> dict[str, str]:
        """Train what is missing, in this order, and go on when one fails.

        Returns:
            label -> what went wrong, of the runs that failed.
        """
        self._teachers = {run.teacher.name for run in runs if run.teacher is not None}
        self._failures: dict[str, str] = {}  # by name
        self._paused = 0
        self._waiting = [run for run in runs if not self._is_settled(run)]
        progress = Progress(self.store, list(self._waiting))
        running: dict[int, tuple[list[Run], subprocess.Popen[bytes]]] = {}  # by slot
        try:
            while running or (self._waiting and not self._is_late()):
                for slot in range(self.jobs):
                    busy = [run for group, _ in running.values() for run in group]
                    if slot not in running and not self._is_late() and (group := self._next_group(busy)):
                        running[slot] = group, self._start(group, slot)
                time.sleep(0.1)
                for slot, (group, process) in list(running.items()):
                    if process.poll() is not None:
                        del running[slot]
                        for run in group:
                            self._end(run, process.returncode)
                progress.tell()
        except (KeyboardInterrupt, Terminated) as stop:
            stop.args = ("the same command goes on from here",)
            raise
        finally:  # nothing goes on behind the user's back, and all of it can be resumed
            for _, process in running.values():
                process.terminate()
            for _, process in running.values():
                process.wait()
        if left := len(self._waiting) + self._paused:
            say(f"the time is up; {left} runs are left, the same command goes on with them")
        return {run.label: self._failures[run.name] for run in runs if run.name in self._failures}

    def _is_settled(self, run: Run) -> bool:
        """Tell whether nothing of it is to be trained: it is done, or fails by a damaged file."""
        try:
            return self.store.is_done(run, run.name in self._teachers)
        except ValueError as error:
            self._fail(run, str(error))
            return True

    def _is_late(self) -> bool:
        return self._paused > 0 or (self.deadline is not None and time.time() > self.deadline)

    def _next_group(self, busy: Sequence[Run]) -> list[Run]:
        """Take runs whose teachers are there; those whose teacher failed fail with it."""
        unfinished = {run.name for run in (*self._waiting, *busy)}
        group: list[Run] = []
        for run in list(self._waiting):
            if run.teacher is not None and run.teacher.name in self._failures:
                self._waiting.remove(run)
                self._fail(run, f"its teacher failed ({run.teacher.label})")
            elif len(group) < self.side_by_side and (run.teacher is None or run.teacher.name not in unfinished):
                self._waiting.remove(run)
                group.append(run)
        return group

    def _start(self, group: Sequence[Run], slot: int) -> subprocess.Popen[bytes]:
        for run in group:
            self.store.folder(run).mkdir(parents=True, exist_ok=True)
            say(f"started  {run.label}: {self.store.log(run)}")
        command = training_process(group, self.store, self.data, self.deadline)
        with open(self.store.log(group[0]), "ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=self.environment(slot))

    def _end(self, run: Run, status: int) -> None:
        """Record a run whose process has ended, or say what went wrong."""
        if self._is_settled(run):
            if run.name not in self._failures:
                say(f"finished {run.label}: {scores_text(read_history(self.store.folder(run))[-1])}")
                self.on_done()
            return
        log = self.store.log(run)
        lines = log.read_text(errors="replace").strip().splitlines()[-3:] if log.is_file() else []
        if lines[-1:] == [PAUSED]:
            self._paused += 1
            say(f"paused   {run.label}")
            return
        reason = f"status {status}" if status else f"it ended before epoch {run.epochs} was scored"
        self._fail(run, "\n    ".join([f"{reason}; {log} ends with", *lines]))

    def _fail(self, run: Run, reason: str) -> None:
        self._failures[run.name] = reason
        say(f"FAILED   {run.label}: {reason}")


def scores_text(entry: Entry) -> str:
    """Write the scores of an epoch.

    >>> scores_text({"epoch": 3, "top1": 70.5, "teacher_top1": 72.0})
    'epoch 3, top1 70.50, teacher_top1 72.00'
    """
    return ", ".join([f"epoch {entry['epoch']}", *(f"{k} {v:.2f}" for k, v in entry.items() if k != "epoch")])


class Progress:
    """Lines about how far runs are, with the time left for all by the epochs that were scored since it was made."""

    def __init__(self, store: Store, runs: Sequence[Run]) -> None:
        self._store, self._runs = store, runs
        self._began = self._told = time.monotonic()
        self._epochs = [self._last(run)["epoch"] for run in runs]
        self._first = sum(self._epochs)

    def tell(self) -> None:
        """Write a line for each run that has got on, at most every `TELL_SECONDS`."""
        now, before = time.monotonic(), sum(self._epochs)
        if now - self._told < TELL_SECONDS:
            return
        self._told = now
        for index, run in enumerate(self._runs):
            if self._epochs[index] < run.epochs and (last := self._last(run))["epoch"] > self._epochs[index]:
                self._epochs[index] = last["epoch"]
                say(f"         {run.label}: {scores_text(last)} (of {run.epochs} epochs)")
        if (done := sum(self._epochs)) > before:
            left = sum(run.epochs for run in self._runs) - done
            hours = (now - self._began) / (done - self._first) * left / 3600
            say(f"         all of them: about {hours:.1f} h to go")

    def _last(self, run: Run) -> Entry:
        with suppress(IndexError, ValueError):  # nothing is scored yet, or damaged, which the end of the run tells
            return read_history(self._store.folder(run))[-1]
        return {"epoch": 0}
