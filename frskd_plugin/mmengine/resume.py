"""Find the checkpoint from which a run goes on, and read checkpoints without running code from them."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from mmengine.runner.checkpoint import CheckpointLoader

from frskd_plugin.core.checkpoint_file import BrokenCheckpointError, read_checkpoint, safe_torch_load

LAST_CHECKPOINT = "last_checkpoint"
RUN_NAME = "run.json"
BEST_FILES = "best_*_*[0-9].pth"
_NUMBERED = re.compile(r"(?P<kind>.*?)(?P<step>\d+)\.pth")


@contextmanager
def safe_loading() -> Iterator[None]:
    """Let every loader of mmengine (files, URLs, model zoos) go through `read_checkpoint`, for a block.

    mmengine's loaders try ``weights_only=True`` first, and then, or at once, without.
    """
    before = CheckpointLoader._schemes
    CheckpointLoader._schemes = OrderedDict((prefix, _safe(loader)) for prefix, loader in before.items())
    try:
        yield
    finally:
        CheckpointLoader._schemes = before


def _safe(loader: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(loader)
    def load(*args: Any, **kwargs: Any) -> Any:
        with safe_torch_load():
            content = loader(*args, **kwargs)
        if isinstance(content, dict) and isinstance(content.get("meta"), dict):
            content["meta"].pop("config", None)  # text of old mmcv, which `Runner.resume` would execute
        return content

    return load


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of mmengine on the CPU as `read_checkpoint` does; refuse one that holds something else."""
    checkpoint = read_checkpoint(path)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise BrokenCheckpointError(f"{path} is not a checkpoint of mmengine: it has no 'state_dict'")
    if not isinstance(checkpoint.get("meta", {}), dict):
        raise BrokenCheckpointError(f"{path} is not a checkpoint of mmengine: its 'meta' is no dict")
    return checkpoint


def find_resume_checkpoint(work_dir: str | Path) -> Path | None:
    """Return the path that `resume_state` finds."""
    found = resume_state(work_dir)
    return found[0] if found else None


def resume_state(work_dir: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """Return path and `meta` of the newest whole checkpoint of a training run; None where the run starts anew.

    A damaged one is reported by name, and the one before it is taken.

    Raises:
        BrokenCheckpointError: there are checkpoints and none of them can be read, or all are of an earlier run.
    """
    found, refused = newest_checkpoint(work_dir)
    if found is not None and refused:
        refused.append(f"Resuming from {found[0].name} instead.")
    for text in refused:
        print_log(text, logger="current", level=logging.WARNING)
    if found is None and refused:
        raise BrokenCheckpointError(
            f"none of the {len(refused)} checkpoints in {work_dir} can be resumed from ({'; '.join(refused)}); give "
            f"another work folder, --cfg-options load_from=FILE beside --resume, or --overwrite to start again"
        )
    if found is None:
        print_log(f"No checkpoint in {work_dir}: training starts from the beginning.", logger="current")
    return found


def newest_checkpoint(work_dir: str | Path) -> tuple[tuple[Path, dict[str, Any]] | None, list[str]]:
    """Return what `resume_state` does, and for each newer checkpoint a sentence that says why it was refused."""
    # A run of a version that gave no ids goes on without one: there, names and times tell runs apart.
    run_id, refused = read_run(work_dir).get("run_id"), []
    for path in _candidates(Path(work_dir)):
        try:
            meta = _load_whole(path)["meta"]
        except (OSError, BrokenCheckpointError) as error:
            refused.append(f"Not resuming from {path.name}: {error}")
            continue
        if run_id is None or meta.get("run_id") == run_id:
            return (path, meta), refused
        refused.append(f"Not resuming from {path.name}: it is of another run in the same folder")
    return None, refused


def refuse_to_start_over(work_dir: str | Path) -> None:
    """Raise ValueError if a folder, in which a run is to start from the beginning, holds the weights of another."""
    for path in _candidates(Path(work_dir)):
        with contextlib.suppress(OSError, BrokenCheckpointError):
            epoch = load_checkpoint(path).get("meta", {}).get("epoch", "?")
            raise ValueError(
                f"{work_dir} holds the checkpoints of a training (the newest is {path.name}, epoch {epoch}): give "
                f"--resume to go on from there, another --work-dir, or --overwrite to remove them and start again"
            )


def remove_run(work_dir: str | Path) -> None:
    """Remove a training's checkpoints and records from its folder, which the next one would take for its own."""
    work_dir = Path(work_dir)
    last = last_checkpoint(work_dir)
    kinds = {"epoch_", "iter_", _kind(last) if last else None}
    files = [path for path in checkpoint_files(work_dir) if _kind(path) in kinds]
    for path in [*files, *work_dir.glob(BEST_FILES), work_dir / "result.json", work_dir / RUN_NAME]:
        path.unlink(missing_ok=True)
    if (work_dir / LAST_CHECKPOINT).is_file():
        (work_dir / LAST_CHECKPOINT).unlink()


def _read(file: Path) -> bytes:
    return file.read_bytes() if file.is_file() else b""  # reading a pipe would wait for ever


def read_run(work_dir: str | Path) -> dict[str, Any]:
    """Return the record of a folder's run, ``run_id`` and ``validated`` (a step); empty where it is damaged or gone."""
    try:
        run = json.loads(_read(Path(work_dir) / RUN_NAME))
    except (OSError, ValueError, RecursionError):
        return {}
    kinds: dict[str, Any] = {"run_id": (str, type(None)), "validated": int}
    is_ours = isinstance(run, dict) and all(isinstance(run[key], kinds[key]) for key in kinds.keys() & run.keys())
    return run if is_ours else {}


def checkpoint_files(folder: Path) -> dict[Path, int]:
    """Return the numbered checkpoints in a folder, ``epoch_3.pth`` and the like, with their number."""
    matches = {path: _NUMBERED.fullmatch(path.name) for path in folder.glob("*.pth") if os.path.isfile(path)}
    return {path: int(found["step"]) for path, found in matches.items() if found and not path.name.startswith("best_")}


def _load_whole(path: Path) -> dict[str, Any]:
    """Read a checkpoint that a training can go on from."""
    checkpoint = load_checkpoint(path)
    if zipfile.is_zipfile(path):  # torch.load does not compare the stored bytes with their checksums
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise BrokenCheckpointError(f"checkpoint {path} is damaged: the checksum of {damaged} in it is wrong")
    if not {"optimizer", "message_hub"} <= checkpoint.keys() or not isinstance(checkpoint.get("meta"), dict):
        raise BrokenCheckpointError(f"{path} holds weights only, nothing to resume from")
    meta = checkpoint["meta"]
    parts = (checkpoint["optimizer"], checkpoint["message_hub"], meta.get("epoch", 0), meta.get("iter", 0))
    if not all(map(isinstance, parts, (dict, dict, int, int))):
        raise BrokenCheckpointError(f"{path} is damaged: its optimizer, logs, epoch or iteration are not mmengine's")
    return checkpoint


def _candidates(work_dir: Path) -> list[Path]:
    """List the checkpoints that the run of a folder may go on from, newest first."""
    last, files = last_checkpoint(work_dir), checkpoint_files(work_dir)
    if last is None:  # their times tell
        return sorted(files, key=lambda path: (_time(path), files[path]), reverse=True)
    kind = _kind(last)
    if kind is not None:
        of_kind = {path: step for path, step in files.items() if _kind(path) == kind}
        elsewhere = {path: step for path, step in checkpoint_files(last.parent).items() if _kind(path) == kind}
        files = of_kind or elsewhere or files
    newest_first = sorted(files, key=lambda path: files[path], reverse=True)
    if kind is None and os.path.isfile(last):  # a name without a number, by `filename_tmpl`
        return [last, *newest_first]
    if last not in files:
        return newest_first
    # A higher number that is older is of an earlier run in the folder; one that is newer was written just before the
    # process was killed, when `last_checkpoint` was still the old one.
    return [path for path in newest_first if files[path] <= files[last] or _time(path) > _time(last)]


def _kind(path: Path) -> str | None:
    match = _NUMBERED.fullmatch(path.name)
    return match["kind"] if match else None


def _time(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # removed since
        return 0


def last_checkpoint(work_dir: Path) -> Path | None:
    """Return the file that `last_checkpoint` names, or its namesake in `work_dir`, which may have moved.

    None where `last_checkpoint` is missing or not mmengine's: a folder, binary, blank, or the name of a best one.
    """
    try:
        text = _read(work_dir / LAST_CHECKPOINT).decode().strip()
    except (OSError, UnicodeDecodeError):
        return None
    named = Path(text)
    if not text or not text.isprintable() or not named.name or named.name.startswith("best_"):
        return None
    places = (work_dir / named.name, work_dir / named, named)
    return next((path for path in places if os.path.isfile(path)), places[1])
