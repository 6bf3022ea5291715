"""What is known of each run: whether it is done, and its scores, in one JSON file a run."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from frskd_plugin.core.atomic_write import atomic_write
from frskd_plugin.mmengine.best_and_last_hook import RESULT_NAME, best_entry
from frskd_plugin.mmengine.export import export_student
from frskd_plugin.mmengine.json_log import LOGS, json_lines
from frskd_plugin.mmengine.resume import resume_state
from frskd_plugin.reproduce.plan import Run
from frskd_plugin.version import __version__

START_NAME = "start.json"  # in a run's folder: its settings, when it was started and how long it took until then
SEGMENTATION_SCORE = "mIoU"
PACKAGES = ("torch", "torchvision", "timm", "numpy", "onedl-mmengine", "mmengine", "onedl-mmsegmentation")
Entry = dict[str, float]


@dataclass(frozen=True)
class Store:
    """Folders of runs and of their records.

    Args:
        work_dir: holds a folder for each run, with its log and checkpoints, and ``teachers``.
        out: holds the tables, and ``runs`` with a record of each run.
    """

    work_dir: Path
    out: Path

    def folder(self, run: Run) -> Path:
        """Where it trains."""
        return self.work_dir / run.name

    def record_file(self, run: Run) -> Path:
        """Its JSON file."""
        return self.out / "runs" / f"{run.name}.json"

    def teacher_file(self, run: Run) -> Path:
        """The plain network that it ends with, kept where it is to teach others."""
        return self.work_dir / "teachers" / f"{run.name}.pth"

    def read(self, run: Run) -> dict[str, Any] | None:
        """Its record; None where there is none of exactly these settings."""
        record = read_json(self.record_file(run))
        return record if record.get("identity") == run.identity and record.get("seed") == run.seed else None

    def records_of(self, run: Run) -> list[dict[str, Any]]:
        """The records of all seeds of a run."""
        found = map(read_json, sorted((self.out / "runs").glob(f"{run.stem}_seed*.json")))
        return sorted((r for r in found if r.get("identity") == run.identity), key=lambda record: record["seed"])

    def is_done(self, run: Run, teaches: bool = False) -> bool:
        """Whether its record is there; of a run that ended without one (the tool was killed) it is made now.

        Args:
            run: the run.
            teaches: whether its network is needed too.
        """
        if self.read(run) is None and not self.finish(run):
            return False
        return not teaches or self.teacher_file(run).is_file() or self._keep_teacher(run)

    def begin(self, run: Run) -> None:
        """Note that a run starts, or goes on: the time that it has taken ends with the last epoch that it wrote."""
        file = self.folder(run) / START_NAME
        start = {"identity": run.identity, "seed": run.seed, "seconds": self._seconds(run), "started": time.time()}
        atomic_write(file, json.dumps(start, indent=1).encode())

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
        atomic_write(self.record_file(run), json.dumps(record, indent=1).encode())
        return True

    def _seconds(self, run: Run) -> float:
        start = read_json(self.folder(run) / START_NAME)
        written = [path.stat().st_mtime for path in score_files(self.folder(run))]
        if not start or not written:
            return 0.0
        return start["seconds"] + max(0.0, max(written) - start["started"])

    def _keep_teacher(self, run: Run) -> bool:
        """Export the network; False where the last checkpoint is gone and the run has to be made or ended again."""
        checkpoint, meta = resume_state(self.folder(run)) or (None, {})
        if checkpoint is None or meta.get("epoch") != run.epochs:
            return False
        file = self.teacher_file(run)
        file.parent.mkdir(parents=True, exist_ok=True)
        export_student(checkpoint, file)
        return True


def score_files(folder: Path) -> list[Path]:
    """What a run writes at each validation: a classifier ``result.json``, a segmentor its JSON logs, one a start."""
    result = folder / RESULT_NAME
    return [result] if result.is_file() else sorted(folder.glob(LOGS))


def read_history(folder: Path) -> list[Entry]:
    """The scores of every validated epoch so far, ``{'epoch': 1, 'top1': ..}``; a resumed epoch counts once."""
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
    """What a JSON file holds; nothing where there is no such file.

    Raises:
        ValueError: it is damaged.
    """
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is no JSON file ({error}); remove it, and the run is read or made again") from error
    return content if isinstance(content, Mapping) else {}  # type: ignore[return-value]


def versions() -> dict[str, str]:
    """Of this package and of those that decide what a training does."""
    found = {"frskd_plugin": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
