"""mmengine's file backend whose writes are atomic."""

from __future__ import annotations

from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

from frskd_plugin.core.atomic_write import atomic_write

BACKEND_NAME = "frskd_atomic"


class AtomicLocalBackend(LocalBackend):
    """mmengine's file backend for local paths whose writes are atomic (`backend_args=dict(backend='frskd_atomic')`)."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        atomic_write(filepath, obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = "utf-8") -> None:
        atomic_write(filepath, obj.encode(encoding))


register_backend(BACKEND_NAME, AtomicLocalBackend, force=True)

__all__ = ["BACKEND_NAME", "AtomicLocalBackend", "atomic_write"]
