"""A look whether a data set is where the config says, before anything else goes wrong."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def require_files(name: str, data_root: str | None, paths: Iterable[str], hint: str) -> None:
    """Check that each path (relative to ``data_root``) exists.

    Raises:
        FileNotFoundError: Names the first one that is missing, and gives the hint.
    """
    for path in paths:
        expected = Path(data_root or "") / path
        if not expected.exists():
            raise FileNotFoundError(
                f"{name}: {expected} is missing (data_root={data_root!r}; tools/train.py --data-root DIR sets it). "
                f"{hint}"
            )
