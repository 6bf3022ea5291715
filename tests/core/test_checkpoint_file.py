"""Checkpoints are data: what others write is read, and nothing that a file says is run."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch

from frskd_plugin.core import checkpoint_file
from frskd_plugin.core.checkpoint_file import BrokenCheckpointError, read_checkpoint


def saved(content: Any, folder: Path, **options: Any) -> Path:
    torch.save(content, folder / "a.pth", **options)
    return folder / "a.pth"


def test_what_trainers_write_beside_tensors_is_read(tmp_path: Path) -> None:
    plain = {"epoch": 3, "nested": (1.0, {"empty": b"", "raw": b"\0\xff"}), "whole": True, "name": "mIoU"}
    content = {
        "weight": torch.arange(3.0),
        "epoch": np.int64(3),
        "nested": (np.float16(1), {"empty": b"", "raw": b"\0\xff"}),
        "whole": np.bool_(True),
        "name": np.str_("mIoU"),
        "args": argparse.Namespace(lr=0.1, betas=[np.float64(0.9)]),
        "path": PurePosixPath("/runs/a"),
    }
    got = read_checkpoint(saved(content, tmp_path))
    assert torch.equal(got.pop("weight"), content["weight"])
    assert got == {**plain, "args": argparse.Namespace(lr=0.1, betas=[0.9]), "path": "/runs/a"}
    assert type(got["whole"]) is bool and type(got["epoch"]) is int and type(got["args"].betas[0]) is float


@pytest.mark.parametrize(
    "array",
    [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3)), np.zeros((0, 2), np.float32)],
    ids=["C", "Fortran", "empty"],
)
def test_arrays_come_as_arrays(array: np.ndarray, tmp_path: Path) -> None:
    got = read_checkpoint(saved([array], tmp_path))[0]
    assert type(got) is np.ndarray and got.dtype == array.dtype
    np.testing.assert_array_equal(got, array)


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"], ids=["numpy 1", "numpy 2"])
def test_numbers_of_either_numpy(module: bytes, tmp_path: Path) -> None:
    file = saved({"a": np.float64(2.5)}, tmp_path, _use_new_zipfile_serialization=False)
    file.write_bytes(file.read_bytes().replace(b"numpy._core.multiarray", module))
    assert read_checkpoint(file) == {"a": 2.5}


def test_an_object_at_many_places_and_in_itself_is_read_once(tmp_path: Path) -> None:
    content: dict[str, Any] = {"array": np.ones(2)}
    content |= {"again": content["array"], "self": content}
    deep: list[Any] = []
    for _ in range(60):  # 2**60 paths lead to the innermost
        deep = [deep, deep]
    content["deep"] = deep
    got = read_checkpoint(saved(content, tmp_path))
    assert got["self"] is got and got["again"] is got["array"]


def test_log_buffers_of_mmengine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logging = pytest.importorskip("mmengine.logging")
    file = saved({"loss": logging.HistoryBuffer([1.0, 3.0], [1, 1])}, tmp_path)
    got = read_checkpoint(file)["loss"]
    assert type(got) is logging.HistoryBuffer and got.statistics("mean") == 2.0
    assert [array.tolist() for array in got.data] == [[1.0, 3.0], [1, 1]]
    monkeypatch.delitem(sys.modules, "mmengine.logging.history_buffer")  # as where mmengine is not installed
    got = read_checkpoint(file)["loss"]
    assert got["log_history"].tolist() == [1.0, 3.0] and got["max_length"] == 1_000_000


class Call:
    """An object that is pickled as the call of a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.args


RAN: list[str] = []


def run_me(*args: Any) -> None:
    RAN.append("ran")


def climb() -> Any:
    """The builtin `eval`, by way of a function's globals: each step is an attribute of what torch allows."""
    builtins = Call(getattr, torch._utils._rebuild_tensor, "__builtins__")
    get = Call(getattr, builtins, "get")
    call = torch._tensor._rebuild_from_type_v2
    eval_ = Call(call, get, Call(getattr, get, "__class__"), ("eval",), None)
    code = f"__import__('sys').modules[{__name__!r}].run_me()"
    return Call(call, eval_, Call(getattr, None, "__class__"), (code,), None)


def log_with_functions() -> Any:
    buffer = pytest.importorskip("mmengine.logging").HistoryBuffer([1.0], [1])
    buffer._statistics_methods = {"mean": run_me}
    return buffer


def pointers_as_numbers() -> Any:
    scalar, (kind, _) = np.float64(1).__reduce__()
    return Call(scalar, Call(np.dtype, "O8", False, True), b"\1" * 8)


HOSTILE: dict[str, tuple[Callable[[], Any], str]] = {
    "a function": (lambda: Call(run_me), r"test_checkpoint_file\.run_me"),
    "a module that torch blocks": (lambda: Call(sys.exit, 3), "sys.exit"),
    "a chain of getattr": (climb, "getattr"),
    "a method of what is read": (lambda: Call(getattr, argparse.Namespace, "__init__"), r"getattr\(__init__\)"),
    "a log with functions": (log_with_functions, "run_me"),
    "an array of objects": (lambda: np.array([Call(run_me)], dtype=object), r"numpy\.dtype\(O8\)"),
    "an array of records": (lambda: np.zeros(1, dtype=[("a", "O")]), r"numpy\.dtype\(V8\)"),
    "an array of text": (lambda: np.array(["a"]), r"numpy\.ndarray\(U1\)"),
    "pointers as numbers": (pointers_as_numbers, r"numpy\.dtype\(O8\)"),
    "a partial": (lambda: functools.partial(run_me), r"functools\.partial"),
    "a module": (lambda: torch.nn.Linear(1, 1), r"torch\.nn\.modules\.linear\.Linear"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_needs_more_than_data_is_refused(name: str, tmp_path: Path) -> None:
    make, holds = HOSTILE[name]
    file = saved({"state_dict": {"weight": torch.ones(1)}, "x": make()}, tmp_path)
    allowed = torch.serialization.get_safe_globals()
    # what the program allows itself does not count: with the builtin getattr everything is reached
    torch.serialization.add_safe_globals([getattr])
    try:
        with pytest.raises(BrokenCheckpointError, match=f"a.pth was not read: it holds .*{holds}") as raised:
            read_checkpoint(file)
        assert set(torch.serialization.get_safe_globals()) == {*allowed, getattr}  # and nothing of ours stays allowed
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(allowed)
    assert "only tensors and plain data are read" in str(raised.value) and "weights_only=False" in str(raised.value)
    assert "\n" not in str(raised.value) and not RAN


@pytest.mark.parametrize("damage", ["empty", "text", "half"])
def test_a_damaged_file(damage: str, tmp_path: Path) -> None:
    file = saved({"weight": torch.ones(100)}, tmp_path)
    file.write_bytes({"empty": b"", "text": b"no checkpoint", "half": file.read_bytes()[:300]}[damage])
    with pytest.raises(BrokenCheckpointError, match="a.pth cannot be read: it is truncated, damaged or not a"):
        read_checkpoint(file)


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "a.pth", tmp_path):
        with pytest.raises(FileNotFoundError, match="not found; expected a .pth file"):
            read_checkpoint(path)


def test_a_torch_that_knows_no_names_reads_tensors_and_refuses_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_file, "_KNOWS_SAFE_GLOBALS", False)
    assert read_checkpoint(saved({"a": torch.ones(1), "b": 0.5}, tmp_path))["b"] == 0.5
    with pytest.raises(BrokenCheckpointError, match=r"it holds argparse.Namespace, .* 2\.4 and later can"):
        read_checkpoint(saved({"args": argparse.Namespace()}, tmp_path))
