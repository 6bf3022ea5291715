"""Pickles that hold nothing but data: arrays, lists, dicts, text, bytes and numbers.

Unpickling runs whatever functions the file names. A data set comes from the internet, so this reader knows only the
few functions that build numpy arrays, and refuses a file that names any other.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def _latin1(text: str, encoding: str) -> bytes:
    """What Python 3 writes for bytes in the pickle format of Python 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it encodes text as {encoding!r}")
    return text.encode("latin1")


def _allowed_functions() -> dict[tuple[str, str], Callable]:
    """What builds arrays, under the module names of numpy 1 and 2, taken from the numpy that is installed."""
    reconstruct: Any = np.zeros(1).__reduce__()[0]
    from_buffer: Any = np.zeros(1).__reduce_ex__(5)[0]
    allowed: dict[tuple[str, str], Callable] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _latin1,
    }
    for core in ("numpy.core", "numpy._core"):
        allowed[f"{core}.multiarray", "_reconstruct"] = reconstruct
        allowed[f"{core}.numeric", "_frombuffer"] = from_buffer
    return allowed


_ALLOWED = _allowed_functions()


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not data")
        return _ALLOWED[module, name]


def read_plain_pickle(path: Path) -> Any:
    """The content of a pickle of Python 2 or 3; text of Python 2 comes as bytes.

    Raises:
        ValueError: The file is damaged, or holds anything but arrays, lists, dicts, text, bytes and numbers.
    """
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file, encoding="bytes").load()
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises whatever the bytes lead to
        raise ValueError(
            f"{path} cannot be read as a pickle of arrays and lists ({type(error).__name__}: {error}); "
            "unpack the published archive again"
        ) from error
