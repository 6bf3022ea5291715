"""Finds the checkpoint from which a run goes on, and reads checkpoints without running code from them."""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log

LAST_CHECKPOINT = "last_checkpoint"
_NUMBERED = re.compile(r"(?P<kind>.*?)(?P<step>\d+)\.pth")


# torch before 2.5 cannot be told which classes are safe, so it cannot read the logs in a checkpoint that way.
_KNOWS_SAFE_GLOBALS = hasattr(torch.serialization, "safe_globals")


class BrokenCheckpointError(ValueError):
    """A checkpoint that is truncated, damaged or no checkpoint of mmengine."""


def checkpoint_globals() -> list[type | Callable[..., Any]]:
    """What checkpoints of mmengine hold besides tensors: its log buffers and numpy numbers (a best score, for one)."""
    core = getattr(np, "_core", None) or np.core
    dtypes = [
        getattr(np.dtypes, f"{name}DType") for name in ("Float16", "Float32", "Float64", "Int32", "Int64", "Bool")
    ]
    # `getattr` is what pickle writes for the methods that a HistoryBuffer holds.
    return [HistoryBuffer, np.ndarray, np.dtype, core.multiarray._reconstruct, core.multiarray.scalar, getattr, *dtypes]


def allow_checkpoint_globals() -> None:
    """Let `torch.load(weights_only=True)`, as mmengine calls it, read checkpoints that hold numpy numbers.

    Without it mmengine falls back to `weights_only=False`, which runs whatever the file says, or fails.
    """
    if _KNOWS_SAFE_GLOBALS:
        torch.serialization.add_safe_globals(checkpoint_globals())


@contextmanager
def checkpoint_globals_allowed() -> Iterator[None]:
    """As `allow_checkpoint_globals`, for a block.

    `torch.serialization.safe_globals` would on leaving also forbid what was allowed before.
    """
    if not _KNOWS_SAFE_GLOBALS:
        yield
        return
    missing = [name for name in checkpoint_globals() if name not in torch.serialization.get_safe_globals()]
    with torch.serialization.safe_globals(missing):
        yield


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of mmengine on the CPU with `weights_only=True`.

    Raises:
        FileNotFoundError: there is no such file.
        BrokenCheckpointError: it is truncated or damaged, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} not found; expected a .pth file written in training")
    try:
        with checkpoint_globals_allowed():
            checkpoint = torch.load(path, map_location="cpu", weights_only=_KNOWS_SAFE_GLOBALS)
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError, ... for a damaged file
        raise BrokenCheckpointError(
            f"checkpoint {path} ({path.stat().st_size} bytes) cannot be read: it is truncated, damaged or not a "
            f"checkpoint ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no text'})"
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise BrokenCheckpointError(f"{path} is not a checkpoint of mmengine: it has no 'state_dict'")
    return checkpoint


def find_resume_checkpoint(work_dir: str | Path) -> Path | None:
    """The newest whole checkpoint of a training run; None where there is none and the run starts from the beginning.

    A damaged one is reported with its name and the one before it is taken.

    Raises:
        BrokenCheckpointError: there are checkpoints and none of them can be read.
    """
    found = _find_whole_checkpoint(Path(work_dir))
    return found[0] if found else None


def resume_state(work_dir: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """As `find_resume_checkpoint`, with the checkpoint's `meta` (seed, epoch, iteration) beside the path."""
    found = _find_whole_checkpoint(Path(work_dir))
    return (found[0], found[1].get("meta", {})) if found else None


def _find_whole_checkpoint(work_dir: Path) -> tuple[Path, dict[str, Any]] | None:
    candidates = _candidates(work_dir)
    for path in candidates:
        try:
            checkpoint = load_checkpoint(path)
            _check_sums(path)
            if "optimizer" not in checkpoint or "message_hub" not in checkpoint:
                raise BrokenCheckpointError(f"{path} holds weights only, nothing to resume from")
        except BrokenCheckpointError as error:
            print_log(f"Not resuming from {path.name}: {error}", logger="current", level=logging.WARNING)
            continue
        if path != candidates[0]:
            print_log(f"Resuming from {path.name} instead.", logger="current", level=logging.WARNING)
        return path, checkpoint
    if candidates:
        raise BrokenCheckpointError(
            f"none of the {len(candidates)} checkpoints in {work_dir} can be resumed from "
            f"({', '.join(path.name for path in candidates)}); remove them, or train without --resume, to start again"
        )
    print_log(f"No checkpoint in {work_dir}: training starts from the beginning.", logger="current")
    return None


def _check_sums(path: Path) -> None:
    """Compare the stored bytes with their checksums, which `torch.load` does not do."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise BrokenCheckpointError(f"checkpoint {path} is damaged: the checksum of {damaged} in it is wrong")


def _candidates(work_dir: Path) -> list[Path]:
    """Numbered checkpoints of the run that `last_checkpoint` belongs to, newest first.

    Files with a higher number that are older than the one it names are left over from an earlier run in the same
    folder. A newer one was written just before the process was killed, when `last_checkpoint` was still the old one.
    """
    last = _last_checkpoint(work_dir)
    folder = last.parent if last else work_dir
    files: dict[Path, int] = {}
    kind = _kind(last) if last else None
    for path in folder.glob("*.pth"):
        match = _NUMBERED.fullmatch(path.name)
        if match is None or match["kind"].startswith("best_") or (kind is not None and match["kind"] != kind):
            continue
        files[path] = int(match["step"])
    if last is None:
        return sorted(files, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    newest_first = sorted(files, key=lambda path: files[path], reverse=True)
    if last not in files:  # gone, or named without a number
        return [last, *newest_first] if last.is_file() else newest_first
    written = last.stat().st_mtime_ns
    return [path for path in newest_first if files[path] <= files[last] or path.stat().st_mtime_ns > written]


def _kind(path: Path) -> str | None:
    match = _NUMBERED.fullmatch(path.name)
    return match["kind"] if match else None


def _last_checkpoint(work_dir: Path) -> Path | None:
    """What `last_checkpoint` names; in `work_dir` itself where it is there, for the folder may have been moved."""
    try:
        named = Path((work_dir / LAST_CHECKPOINT).read_text().strip())
    except FileNotFoundError:
        return None
    here = work_dir / named.name
    return here if here.is_file() else named
