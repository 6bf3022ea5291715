"""Read checkpoints of timm, Lightning, mmengine and torch without running code from them.

torch's reader with ``weights_only=True`` knows tensors and plain data; what those four write beside them (numbers of
numpy, mmengine's logs, command-line arguments) is known here by name, and each name stands for something of ours that
can do nothing but hold that data.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import pickle
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import torch

# torch before 2.4 cannot be told of any name.
_KNOWS_SAFE_GLOBALS = hasattr(torch.serialization, "clear_safe_globals")
_HISTORY_BUFFER = "mmengine.logging.history_buffer"
# how torch, old torch and `_refusal` name what they refuse; and what torch says where it has no name for it
_FORBIDDEN = re.compile(r"(?:GLOBAL|Unsupported class) (\w+(?:\.\w+)*(?:\([^()]*\))?)")
_NOT_DATA = re.compile("unrecognized function|Can only (?:create|build)")
_NUMPY_TYPES = {
    "b1": torch.bool,
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
}
_LOCK = threading.Lock()
_KNOWN: list[Any] = [argparse.Namespace]
T = TypeVar("T")


class BrokenCheckpointError(ValueError):
    """A checkpoint that is truncated or damaged, holds something else, or needs code to be read."""


def read_checkpoint(file: str | Path | IO[bytes], map_location: Any = "cpu") -> Any:
    """Return what `torch.save` wrote: tensors and plain data, never anything that the file could run.

    Numbers of numpy come as Python's, its arrays as arrays, paths as text, mmengine's log buffers as such where
    mmengine is loaded. Nothing of this is allowed to other callers of ``torch.load``.

    Raises:
        FileNotFoundError: there is no such file.
        BrokenCheckpointError: it is damaged, or holds anything else; says what, and how to convert it.
    """
    name = str(getattr(file, "name", "the file")) if hasattr(file, "read") else str(file)
    if isinstance(file, (str, Path)) and not Path(file).is_file():
        raise FileNotFoundError(f"checkpoint {file} not found; expected a .pth file written in training")
    try:
        with _known_names():
            content = torch.serialization.load(file, map_location=map_location, weights_only=True)
        return plain(content)
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError, ... for a damaged file
        raise BrokenCheckpointError(_explanation(name, error)) from error


@contextlib.contextmanager
def safe_torch_load() -> Iterator[None]:
    """Let ``torch.load`` be `read_checkpoint` for a block, in which a library reads files."""
    before = torch.load
    torch.load = lambda file, map_location=None, **unused: read_checkpoint(file, map_location)
    try:
        yield
    finally:
        torch.load = before


def _explanation(name: str, error: Exception) -> str:
    text = str(error) if isinstance(error, pickle.UnpicklingError) else ""
    found = _FORBIDDEN.search(text)
    if not found and not _NOT_DATA.search(text):
        # behind torch's advice to read the file in a way that runs code
        reason = (text.partition("WeightsUnpickler error: ")[2] or str(error) or "no text").strip().splitlines()[0]
        return (
            f"checkpoint {name} cannot be read: it is truncated, damaged or not a checkpoint "
            f"({type(error).__name__}: {reason})"
        )
    old = "" if _KNOWS_SAFE_GLOBALS else f"; torch {torch.__version__} can read no more than that, 2.4 and later can"
    return (
        f"checkpoint {name} was not read: it holds {found[1] if found else 'objects'}, and only tensors "
        f"and plain data are read, for anything else could run code{old}. If you trust the file, write its weights "
        f"alone: x = torch.load(FILE, weights_only=False), then torch.save(x['state_dict'], NEW_FILE), or of a whole "
        f"model x.state_dict()"
    )


@contextlib.contextmanager
def _known_names() -> Iterator[None]:
    """Let torch know our names alone for a block: what else is allowed may be ``getattr``, which leads anywhere."""
    if not _KNOWS_SAFE_GLOBALS:
        yield
        return
    with _LOCK:
        before = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(_KNOWN)
        try:
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(before)


def known_name(module: str, name: str) -> Any:
    """Return what a name in a pickle stands for, or raise UnpicklingError."""
    for known in _KNOWN:
        if (known.__module__, known.__qualname__) == (module, name):
            return known
    raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not data")


def _refusal(name: str, argument: Any) -> pickle.UnpicklingError:
    return pickle.UnpicklingError(
        f"GLOBAL {name}({argument if isinstance(argument, str) else type(argument).__name__})"
    )


def _stands_for(*names: str) -> Callable[[T], T]:
    """Make torch's reader take a class or function of ours for these names: it goes by the names that they bear."""

    def register(ours: T) -> T:
        for name in names:
            known: Any = ours if isinstance(ours, type) else functools.partial(cast(Any, ours))
            known.__module__, _, known.__qualname__ = name.rpartition(".")
            known.__name__ = known.__qualname__
            _KNOWN.append(known)
        return ours

    return register


@_stands_for("numpy.dtype")
class _NumpyType:
    """The type of numpy's numbers: one that is a number of torch too, or text."""

    def __init__(self, name: Any, align: Any = False, copy: Any = False) -> None:
        self.name = name if isinstance(name, str) else name.decode() if isinstance(name, bytes) else ""
        self.is_text = re.fullmatch(r"U\d+", self.name) is not None
        if not self.is_text and self.name not in _NUMPY_TYPES:
            raise _refusal("numpy.dtype", name)

    def __setstate__(self, state: Any) -> None:
        if state[1] in ((">", b">") if sys.byteorder == "little" else ("<", b"<")):
            raise ValueError("numbers of numpy in the byte order of another machine")

    def values(self, data: bytes) -> torch.Tensor:
        """Return the numbers in the bytes, [N]."""
        kind = _NUMPY_TYPES[self.name]
        return torch.frombuffer(bytearray(data), dtype=kind) if data else torch.empty(0, dtype=kind)


@_stands_for("numpy.ndarray")
class _NumpyArray:
    """An array of numpy, until `plain` makes one."""

    values: torch.Tensor

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, is_fortran, data = state
        if type(kind) is not _NumpyType or kind.is_text:
            raise _refusal("numpy.ndarray", getattr(kind, "name", kind))
        values = kind.values(data)
        axes = range(len(shape))[::-1]
        self.values = values.reshape(shape[::-1]).permute(*axes) if is_fortran else values.reshape(shape)


@_stands_for("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
def _numpy_array(*unused: Any) -> _NumpyArray:
    return _NumpyArray()


@_stands_for("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer")
def _array_of_buffer(data: Any, kind: Any, shape: Any, order: Any) -> _NumpyArray:
    array = _NumpyArray()
    array.__setstate__((1, shape, kind, order in ("F", b"F"), data))
    return array


@_stands_for("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
def _number(kind: Any, data: bytes) -> Any:
    if type(kind) is not _NumpyType:
        raise _refusal("numpy.scalar", kind)
    if kind.is_text:
        return data.decode(f"utf-32-{sys.byteorder[0]}e").rstrip("\0")
    return kind.values(data).item()


@_stands_for(f"{_HISTORY_BUFFER}.HistoryBuffer")
class _LogBuffer:
    """A log of mmengine, until `plain` makes one."""

    def __setstate__(self, state: Any) -> None:
        self.state = {key: state.get(key, []) for key in ("_log_history", "_count_history", "max_length")}


@_stands_for("builtins.getattr")
def _method_of_log_buffer(owner: Any, name: Any) -> None:
    """Answer what old mmengine wrote beside its logs, ``HistoryBuffer.mean`` and the like; a new buffer has its own."""
    if owner is not _LogBuffer or name not in ("min", "max", "current", "mean"):
        raise _refusal("getattr", name)


@_stands_for("builtins.bytes")
def _no_bytes() -> bytes:
    return b""


@_stands_for(*(f"pathlib.{kind}" for kind in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")))
@_stands_for("pathlib._local.PosixPath", "pathlib._local.WindowsPath")
def _path(*parts: Any) -> str:
    return str(Path(*parts))


def plain(value: Any, done: dict[int, Any] | None = None) -> Any:
    """Put what they stand for in the place of our stand-ins, at any depth; dicts and lists are changed."""
    # what was made of which object: a file may hold one at many places, and in itself
    done = {} if done is None else done
    if id(value) in done:
        return done[id(value)][1]
    if isinstance(value, torch.Tensor) or not hasattr(value, "__len__") and not hasattr(value, "__dict__"):
        return value
    done[id(value)] = (value, value)  # holding the object keeps its id from being given to another
    if isinstance(value, dict):
        for key in value:
            value[key] = plain(value[key], done)
        return value
    if isinstance(value, list):
        value[:] = [plain(item, done) for item in value]
        return value
    if isinstance(value, argparse.Namespace):
        plain(vars(value), done)
        return value
    if type(value) is tuple:
        made: Any = tuple(plain(item, done) for item in value)
    elif isinstance(value, _NumpyArray):
        made = value.values.numpy()
    elif isinstance(value, _NumpyType):
        made = value.name
    elif isinstance(value, _LogBuffer):
        made = _log_buffer(*(plain(item, done) for item in value.state.values()))
    else:
        return value
    done[id(value)] = (value, made)
    return made


def _log_buffer(log_history: Any, count_history: Any, max_length: Any) -> Any:
    """Return mmengine's own buffer where its module is loaded, which users of a buffer have done; else the content."""
    module = sys.modules.get(_HISTORY_BUFFER)
    content = {"log_history": log_history, "count_history": count_history, "max_length": max_length}
    return content if module is None else module.HistoryBuffer(**content)
