"""Pickles that hold nothing but data: arrays, lists, dicts, text, bytes and numbers.

Unpickling runs whatever functions the file names. A data set comes from the internet, so this reader knows only the
few names that `read_checkpoint` knows, and refuses a file that names any other.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from frskd_plugin.core.checkpoint_file import known_name, plain


def _latin1(text: str, encoding: str) -> bytes:
    """Return the bytes that Python 3 writes as text in the pickle format of Python 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it encodes text as {encoding!r}")
    return text.encode("latin1")


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable:
        return _latin1 if (module, name) == ("_codecs", "encode") else known_name(module, name)


def read_plain_pickle(path: Path) -> Any:
    """Return the content of a pickle of Python 2 or 3; text of Python 2 comes as bytes.

    Raises:
        ValueError: The file is damaged, or holds anything but arrays, lists, dicts, text, bytes and numbers.
    """
    try:
        with path.open("rb") as file:
            return plain(_PlainUnpickler(file, encoding="bytes").load())
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises whatever the bytes lead to
        raise ValueError(
            f"{path} cannot be read as a pickle of arrays and lists ({type(error).__name__}: {error}); "
            "unpack the published archive again"
        ) from error
