"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import io
import os
import re
import secrets
import stat
from pathlib import Path
from typing import Any

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")


def atomic_write(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old file or the whole new one, whenever the process ends.

    Where writing fails (a full disk), `path` stays as it was. The new file has the mode of the one that it replaces.
    Where `path` is a link, the link is replaced and the file that it names stays as it is.

    Raises:
        OSError: the file cannot be written, or `path` is a folder, a device or a pipe.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    replaced = _mode_of_file(path)
    # Nobody can guess the name, and a file or link that has it nevertheless is an error (O_EXCL): in a folder that
    # others may write to, nothing is written through their links.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with open(descriptor, "wb") as file:
            if replaced is not None and hasattr(os, "fchmod"):
                os.fchmod(descriptor, replaced)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def save_figure(figure: Any, path: str | Path, **options: Any) -> None:
    """Write a figure of matplotlib with `atomic_write`, in the format of the suffix of `path`, PNG without one.

    Raises:
        ValueError: matplotlib does not know the format.
        OSError: the file cannot be written.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format=Path(path).suffix[1:].lower() or "png", **options)
    atomic_write(path, buffer.getvalue())


def temporary_files(folder: str | Path) -> list[Path]:
    """Return what killed writers left in a folder (and what a writer is writing just now)."""
    return sorted(path for path in Path(folder).glob(".*.tmp") if _TEMPORARY.fullmatch(path.name))


def _mode_of_file(path: Path) -> int | None:
    """Return the permissions of a file that is there; None for a new file, or in place of a link."""
    try:
        target = path.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(target.st_mode):
        raise OSError(f"{path} is a folder, a device or a pipe; expected the path of a file")
    return None if path.is_symlink() else stat.S_IMODE(target.st_mode)


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself last over a power cut; file systems that cannot are left alone."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
