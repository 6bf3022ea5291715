"""Runs what is missing, several at a time, each in a process of its own; it may be killed and started again."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frskd_plugin.reproduce.plan import Run, find_recipe
from frskd_plugin.reproduce.records import Store

LOG_NAME, LOCK_NAME = "train.log", "train.lock"
DATA_FOLDERS = {"voc": "VOCdevkit"}  # of the others: their name
TAIL_LINES = 3
POLL_SECONDS = 0.1
MakeCommand = Callable[[Run], Sequence[str]]


@dataclass(frozen=True)
class Machine:
    """Where and how the processes run.

    Attributes:
        devices: 'cpu', 'cuda' or 'cuda:1'; the processes take turns.
        jobs: processes at a time.
        threads: of each process; None leaves it to the environment.
    """

    devices: Sequence[str] = ("cuda",)
    jobs: int = 1
    threads: int | None = None

    def environment(self, slot: int) -> dict[str, str]:
        """Of the process in a slot: mmengine trains on the first GPU that it sees."""
        extra = {} if self.threads is None else {"OMP_NUM_THREADS": str(self.threads)}
        kind, _, index = self.devices[slot % len(self.devices)].partition(":")
        if kind == "cpu":
            extra["CUDA_VISIBLE_DEVICES"] = ""
        elif index:
            # the index counts the GPUs that this process sees, which a scheduler may have chosen
            visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
            extra["CUDA_VISIBLE_DEVICES"] = visible[int(index)] if visible else index
        package = str(find_recipe("tools/train.py").parent.parent)
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        return {**os.environ, "PYTHONPATH": path, **extra}


def training_command(run: Run, store: Store, data: Path) -> list[str]:
    """``tools/train.py`` with everything that makes this run; it goes on from a checkpoint where there is one."""
    return [
        sys.executable,
        str(find_recipe("tools/train.py")),
        str(find_recipe(f"configs/{run.config}.py")),
        *("--data-root", str(data / DATA_FOLDERS.get(run.data, run.data))),
        *("--work-dir", str(store.folder(run))),
        *("--seed", str(run.seed)),
        "--resume",
        *method_arguments(run, store),
        *run.arguments,
        *(["--cfg-options", *run.options] if run.options else []),
    ]


def method_arguments(run: Run, store: Store) -> list[str]:
    """``--method`` and its settings: every classifier starts from a config of the plain network."""
    if run.method is None:
        return []
    settings = flat(run.settings)
    if run.teacher is not None:
        settings["teacher.checkpoint"] = store.teacher_file(run.teacher).resolve()
    options = [f"{key}={value}" for key, value in settings.items()]
    return ["--method", run.method, *(["--method-options", *options] if options else [])]


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with dots.

    >>> flat({"beta": 100.0, "teacher": {"model_name": "resnet34"}})
    {'beta': 100.0, 'teacher.model_name': 'resnet34'}
    """
    found = {}
    for key, value in settings.items():
        nested = {f"{key}.{name}": inner for name, inner in flat(value).items()} if isinstance(value, Mapping) else {}
        found.update(nested or {key: value})
    return found


@dataclass
class Job:
    """A process that trains."""

    run: Run
    slot: int
    process: subprocess.Popen[bytes]


class Trainer:
    """Trains runs that are not done.

    Args:
        store: folders of the runs.
        machine: where they run.
        make_command: the command line of a run.
        on_done: is called after each run that ended well.
        say: takes lines for the user.
    """

    def __init__(
        self,
        store: Store,
        machine: Machine,
        make_command: MakeCommand,
        on_done: Callable[[Run], object] = lambda run: None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.store, self.machine, self.make_command = store, machine, make_command
        self.on_done, self.say = on_done, say

    def train(self, runs: Sequence[Run]) -> dict[str, str]:
        """Train what is missing, in this order, and go on when one fails.

        Returns:
            name -> what went wrong, of the runs that failed.
        """
        teachers = {run.teacher.name for run in runs if run.teacher is not None}
        waiting = [run for run in runs if not self.store.is_done(run, run.name in teachers)]
        self.say(f"{len(runs) - len(waiting)} of {len(runs)} runs are done, {len(waiting)} to go")
        failures: dict[str, str] = {}
        jobs: list[Job] = []
        try:
            while waiting or jobs:
                self._start_ready(waiting, jobs, failures)
                time.sleep(POLL_SECONDS)
                for job in [job for job in jobs if job.process.poll() is not None]:
                    jobs.remove(job)
                    self._end(job, job.run.name in teachers, failures)
        finally:  # also on Ctrl-C: nothing goes on behind the user's back, and all of it can be resumed
            for job in jobs:
                job.process.terminate()
            for job in jobs:
                job.process.wait()
        return failures

    def _start_ready(self, waiting: list[Run], jobs: list[Job], failures: dict[str, str]) -> None:
        unfinished = {run.name for run in waiting} | {job.run.name for job in jobs}
        for run in list(waiting):
            teacher = run.teacher.name if run.teacher is not None else None
            if teacher in failures:
                waiting.remove(run)
                self._fail(run, f"its teacher {teacher} failed", failures)
            elif len(jobs) < self.machine.jobs and teacher not in unfinished:
                waiting.remove(run)
                slot = min(set(range(self.machine.jobs)) - {job.slot for job in jobs})
                job = self._start(run, slot, failures)
                jobs += [job] if job else []

    def _start(self, run: Run, slot: int, failures: dict[str, str]) -> Job | None:
        folder = self.store.folder(run)
        folder.mkdir(parents=True, exist_ok=True)
        # The process inherits the lock and keeps it even when this one is killed: no run is ever trained twice at once.
        with open(folder / LOCK_NAME, "w") as lock, open(folder / LOG_NAME, "ab") as log:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._fail(run, "another process trains it; start again when that has ended", failures)
                return None
            self.store.begin(run)
            process = subprocess.Popen(
                list(self.make_command(run)),
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.machine.environment(slot),
                pass_fds=[lock.fileno()],
            )
        self.say(f"started  {run.name}")
        return Job(run, slot, process)

    def _end(self, job: Job, teaches: bool, failures: dict[str, str]) -> None:
        run, status = job.run, job.process.returncode
        if status == 0 and self.store.finish(run) and self.store.is_done(run, teaches):
            record = self.store.read(run) or {}
            self.say(f"finished {run.name}: {record['metric']} {record['last'][record['metric']]:.2f}")
            self.on_done(run)
            return
        log = self.store.folder(run) / LOG_NAME
        reason = f"status {status}" if status else f"it ended before epoch {run.epochs} was scored"
        lines = log.read_text(errors="replace").strip().splitlines()[-TAIL_LINES:]
        self._fail(run, "\n    ".join([f"{reason}; {log} ends with", *lines]), failures)

    def _fail(self, run: Run, reason: str, failures: dict[str, str]) -> None:
        failures[run.name] = reason
        self.say(f"FAILED   {run.name}: {reason}")
