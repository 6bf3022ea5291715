"""Runs of a table: what is known of each, in a JSON file a run, and the processes that train what is missing."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import frskd_plugin
from frskd_plugin.commands import Terminated
from frskd_plugin.commands.config import locate_config
from frskd_plugin.commands.json_log import LOGS, json_lines
from frskd_plugin.commands.reproduce_plan import Run, flat
from frskd_plugin.core.atomic_write import atomic_write
from frskd_plugin.mmengine.export import export_student
from frskd_plugin.mmengine.hooks import RESULT_NAME, best_entry
from frskd_plugin.mmengine.resume import resume_state
from frskd_plugin.version import __version__

START_NAME = "start.json"  # in a run's folder: its settings, when it was started and how long it took until then
LOG_NAME = "train.log"
SEGMENTATION_SCORE = "mIoU"
PACKAGES = ("torch", "torchvision", "timm", "numpy", "onedl-mmengine", "mmengine", "onedl-mmsegmentation")
DATA_FOLDERS = {"voc": "VOCdevkit"}  # of the others: their name
TAIL_LINES = 3
POLL_SECONDS = 0.1
Entry = dict[str, float]


@dataclass(frozen=True)
class Store:
    """Folders of runs and of their records."""

    work_dir: Path  # holds a folder for each run, with its log and checkpoints, and ``teachers``
    out: Path  # holds the tables, and ``runs`` with a record of each run
    published: Path | None = None  # a folder like ``out`` whose records count too, and into which nothing is written

    def folder(self, run: Run) -> Path:
        """Return the folder in which it trains."""
        return self.work_dir / run.name

    def record_file(self, run: Run) -> Path:
        """Return its JSON file."""
        return self.out / "runs" / f"{run.name}.json"

    def teacher_file(self, run: Run) -> Path:
        """Return the file of the plain network that it ends with, kept where it is to teach others."""
        return self.work_dir / "teachers" / f"{run.name}.pth"

    def read(self, run: Run) -> dict[str, Any] | None:
        """Return its record; None where there is none of exactly these settings."""
        return next((record for record in self.records_of(run) if record["seed"] == run.seed), None)

    def records_of(self, run: Run) -> list[dict[str, Any]]:
        """Return the records of all seeds of a run; those without a device, of earlier versions, count too."""
        return [read_json(file) for file in self.record_files(run)]

    def record_files(self, run: Run) -> list[Path]:
        """Return the files of `records_of`, by seed."""
        found: dict[int, Path] = {}
        for stem, identity in ((run.stem, run.identity), (run.old_stem, run.old_identity)):
            for folder in filter(None, (self.out, self.published)):
                for file in (folder / "runs").glob(f"{stem}_seed*.json"):
                    record = read_json(file)
                    if record.get("identity") == identity and isinstance(record.get("seed"), int):
                        found.setdefault(record["seed"], file)
        return [found[seed] for seed in sorted(found)]

    def is_done(self, run: Run, teaches: bool = False) -> bool:
        """Tell whether its record is there; of a run that ended without one (the tool was killed) it is made now.

        Args:
            run: the run.
            teaches: its network is needed too.
        """
        if self.read(run) is None and not self.finish(run):
            return False
        return not teaches or self.teacher_file(run).is_file() or self._keep_teacher(run)

    def begin(self, run: Run) -> None:
        """Note that a run starts, or goes on: the time that it has taken ends with the last epoch that it wrote."""
        start = {"identity": run.identity, "seed": run.seed, "seconds": self._seconds(run), "started": time.time()}
        write_json(self.folder(run) / START_NAME, start)

    def finish(self, run: Run) -> bool:
        """Write the record of a run whose last epoch is scored; False where that is missing."""
        history = read_history(self.folder(run))
        start = read_json(self.folder(run) / START_NAME)
        if not history or history[-1]["epoch"] != run.epochs or start.get("identity") != run.identity:
            return False
        metric = SEGMENTATION_SCORE if SEGMENTATION_SCORE in history[-1] else "top1"
        record = {
            "name": run.name,
            "identity": run.identity,
            "seed": run.seed,
            "metric": metric,
            "last": history[-1],
            "best": best_entry(history, metric),
            "history": history,
            "seconds": round(self._seconds(run), 1),
            "versions": versions(),
        }
        write_json(self.record_file(run), record)
        return True

    def _seconds(self, run: Run) -> float:
        start = read_json(self.folder(run) / START_NAME)
        written = [path.stat().st_mtime for path in score_files(self.folder(run))]
        return start["seconds"] + max(0.0, max(written) - start["started"]) if start and written else 0.0

    def _keep_teacher(self, run: Run) -> bool:
        """Export the network; False where the last checkpoint is gone and the run has to be made or ended again."""
        checkpoint, meta = resume_state(self.folder(run)) or (None, {})
        if checkpoint is None or meta.get("epoch") != run.epochs:
            return False
        self.teacher_file(run).parent.mkdir(parents=True, exist_ok=True)
        export_student(checkpoint, self.teacher_file(run))
        return True


def score_files(folder: Path) -> list[Path]:
    """Return what a run writes at each validation: a classifier ``result.json``, a segmentor its JSON logs."""
    result = folder / RESULT_NAME
    return [result] if result.is_file() else sorted(folder.glob(LOGS))


def read_history(folder: Path) -> list[Entry]:
    """Read the scores of every validated epoch so far, ``{'epoch': 1, 'top1': ..}``; a resumed epoch counts once."""
    found: dict[int, Entry] = {}
    for file in score_files(folder):
        if file.name == RESULT_NAME:
            return read_json(file).get("history", [])
        for line in json_lines(file):
            if SEGMENTATION_SCORE in line:
                scores = {key: value for key, value in line.items() if key != "step"}
                found[line["step"]] = {"epoch": line["step"], **scores}
    return [found[epoch] for epoch in sorted(found)]


def read_json(file: Path) -> dict[str, Any]:
    """Read an object; nothing where there is no such file.

    Raises:
        ValueError: it is damaged.
    """
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no JSON file ({error}); remove it, and the run is read or made again") from error
    return content if isinstance(content, dict) else {}


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write an object, whole or not at all."""
    atomic_write(file, json.dumps(content, indent=1).encode())


def versions() -> dict[str, str]:
    """Return those of this package and of the ones that decide what a training does."""
    found = {"frskd_plugin": __version__}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def training_command(run: Run, store: Store, data: Path) -> list[str]:
    """Return the command line of a run, as a user would type it; it goes on from a checkpoint where there is one."""
    method: list[str] = []
    if run.method is not None:  # every classifier starts from a config of the plain network
        settings = flat(run.settings)
        if run.teacher is not None:
            settings["teacher.checkpoint"] = store.teacher_file(run.teacher).resolve()
        options = [f"{key}={value}" for key, value in settings.items()]
        method = ["--method", run.method, *(["--method-options", *options] if options else [])]
    config, recipe = locate_config(run.config)
    return [
        *(sys.executable, "-m", "frskd_plugin", "train", str(config), *(["--recipe", recipe] if recipe else [])),
        *("--data-root", str(data / DATA_FOLDERS.get(run.data, run.data))),
        *("--work-dir", str(store.folder(run)), "--seed", str(run.seed), "--resume"),
        *method,
        *run.arguments,
        *(["--cfg-options", *run.options] if run.options else []),
    ]


@dataclass
class Trainer:
    """Trains runs that are not done, each in a process of its own, which holds the run's folder."""

    store: Store
    make_command: Callable[[Run], Sequence[str]]
    devices: Sequence[str] = ("cuda",)  # 'cpu', 'cuda' or 'cuda:1'; the processes take turns
    jobs: int = 1  # processes at a time
    threads: int | None = None  # of each process; None leaves it to the environment
    on_done: Callable[[Run], object] = lambda run: None  # is called after each run that ended well
    say: Callable[[str], None] = functools.partial(print, flush=True)  # takes lines for the user

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
            name -> what went wrong, of the runs that failed.
        """
        teachers = {run.teacher.name for run in runs if run.teacher is not None}
        waiting = [run for run in runs if not self.store.is_done(run, run.name in teachers)]
        total, began = len(waiting), time.monotonic()
        self.say(f"{len(runs) - total} of {len(runs)} runs are done, {total} to go")
        failures: dict[str, str] = {}
        running: dict[int, tuple[Run, subprocess.Popen[bytes]]] = {}  # by slot
        try:
            while waiting or running:
                unfinished = {run.name for run in (*waiting, *(run for run, _ in running.values()))}
                for run in list(waiting):
                    teacher = run.teacher.name if run.teacher is not None else None
                    free = set(range(self.jobs)) - set(running)
                    if teacher in failures:
                        waiting.remove(run)
                        failures[run.name] = f"its teacher {teacher} failed"
                        self.say(f"FAILED   {run.name}: {failures[run.name]}")
                    elif free and teacher not in unfinished:
                        waiting.remove(run)
                        running[min(free)] = run, self._start(run, min(free))
                time.sleep(POLL_SECONDS)
                for slot, (run, process) in list(running.items()):
                    if process.poll() is None:
                        continue
                    del running[slot]
                    if reason := self._end(run, process.returncode, run.name in teachers):
                        failures[run.name] = reason
                        self.say(f"FAILED   {run.name}: {reason}")
                    if left := len(waiting) + len(running):
                        hours = (time.monotonic() - began) / (total - left) * left / 3600
                        self.say(f"         {left} of {total} to go, about {hours:.1f} h at this pace")
        except (KeyboardInterrupt, Terminated) as stop:
            stop.args = ("the same command goes on from here",)
            raise
        finally:  # nothing goes on behind the user's back, and all of it can be resumed
            for _, process in running.values():
                process.terminate()
            for _, process in running.values():
                process.wait()
        return failures

    def _start(self, run: Run, slot: int) -> subprocess.Popen[bytes]:
        self.store.begin(run)
        with open(self.store.folder(run) / LOG_NAME, "ab") as log:
            process = subprocess.Popen(
                list(self.make_command(run)), stdout=log, stderr=subprocess.STDOUT, env=self.environment(slot)
            )
        self.say(f"started  {run.name}")
        return process

    def _end(self, run: Run, status: int, teaches: bool) -> str | None:
        """Record a run whose process has ended; returns what went wrong, if anything."""
        if status == 0 and self.store.finish(run) and self.store.is_done(run, teaches):
            record = self.store.read(run) or {}
            self.say(f"finished {run.name}: {record['metric']} {record['last'][record['metric']]:.2f}")
            self.on_done(run)
            return None
        log = self.store.folder(run) / LOG_NAME
        reason = f"status {status}" if status else f"it ended before epoch {run.epochs} was scored"
        lines = log.read_text(errors="replace").strip().splitlines()[-TAIL_LINES:]
        return "\n    ".join([f"{reason}; {log} ends with", *lines])
