"""Care for the work folder of a training: one training at a time, and a line about what a stopped one leaves."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.logging import print_log
from mmengine.runner import Runner

from frskd_plugin.mmengine.resume import newest_checkpoint

LOCK_NAME = ".lock"


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Hold a folder for this process. The system lets go of it when the process ends, in whatever way.

    Raises:
        ValueError: another process holds it; the error says which.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # no link is followed: what it names would be written over
    descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    try:
        try:
            _lock(descriptor)
        except (BlockingIOError, PermissionError) as error:
            os.lseek(descriptor, 0, os.SEEK_SET)
            owner = os.read(descriptor, 200).decode(errors="replace").strip()
            raise ValueError(
                f"{folder} is in use by another training ({owner or 'process unknown'}): wait for its end, or give "
                f"another --work-dir"
            ) from error
        except OSError as error:
            print_log(
                f"{folder} cannot be locked ({error}): start no second training in it.", "current", logging.WARNING
            )
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # behind the text, which others are to read
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        # Not flock: a data-loading worker would inherit it and hold it for seconds after the training was killed.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_main() -> bool:
    """Tell if this is the only process of a run, or the first; also before they have found each other."""
    return os.environ.get("RANK", "0") == "0"


def what_is_lost(work_dir: str | Path, runner: Runner | None = None) -> str:
    """Return the checkpoint that ``--resume`` would take, and the iterations that are lost with the rest."""
    done = runner.iter if runner is not None else 0
    found, _ = newest_checkpoint(work_dir)
    meta = found[1] if found else {}
    count = max(0, done - meta.get("iter", done)) if found else done
    lost = f"{count} iteration{' is' if count == 1 else 's are'} lost" if count else "nothing is lost"
    if found is None:
        return f"{work_dir} holds no checkpoint yet; {lost}"
    return f"--resume goes on from {found[0]} (epoch {meta.get('epoch')}, iteration {meta.get('iter')}); {lost}"
