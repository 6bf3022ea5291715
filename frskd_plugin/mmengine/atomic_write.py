"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

BACKEND_NAME = "frskd_atomic"


def atomic_write(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old file or the whole new one, whenever the process ends.

    The bytes go to a hidden file in the same folder, which takes the place of `path` once they are on the disk. Where
    writing fails (a full disk), the hidden file is removed and `path` stays as it was.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # One writer a folder (the main process), so a fixed name is enough: what a killed run left is written over.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself last over a power cut; file systems that cannot are left alone."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class AtomicLocalBackend(LocalBackend):
    """mmengine's file backend for local paths whose writes are atomic (`backend_args=dict(backend='frskd_atomic')`)."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        atomic_write(filepath, obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = "utf-8") -> None:
        atomic_write(filepath, obj.encode(encoding))


register_backend(BACKEND_NAME, AtomicLocalBackend, force=True)
