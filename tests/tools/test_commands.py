"""Command lines: one table, the same `run` behind `frskd NAME`, `python -m frskd_plugin NAME` and tools/NAME.py."""

from __future__ import annotations

import importlib
import os
import runpy
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from frskd_plugin import _moved, commands
from tests.helpers.real_runs import REPOSITORY


def test_every_command_has_a_module_and_a_tool() -> None:
    for name in commands.COMMANDS:
        assert callable(importlib.import_module(f"frskd_plugin.commands.{name}").main)
        assert f'run("{name}")' in (REPOSITORY / "tools" / f"{name}.py").read_text()
    tools = {path.stem for path in (REPOSITORY / "tools").glob("*.py")}
    assert tools == {*commands.COMMANDS, *commands.OLD_NAMES}


def test_the_three_ways_in_are_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [str(tmp_path), "--train", "x"]
    assert commands.main(["make_drawn_voc", *options]) == 2
    wanted = capsys.readouterr().err
    assert "frskd make_drawn_voc: error: argument --train" in wanted
    monkeypatch.setattr(sys, "argv", ["make_drawn_voc.py", *options])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(REPOSITORY / "tools" / "make_drawn_voc.py"), run_name="__main__")
    assert capsys.readouterr().err == wanted
    monkeypatch.setattr(sys, "argv", ["frskd", "make-drawn-voc", *options])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_module("frskd_plugin", run_name="__main__")
    assert capsys.readouterr().err == wanted


def test_names(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert commands.main(["--help"]) == 0
    assert "frskd NAME [options]" in capsys.readouterr().out
    assert commands.main([]) == 2
    assert commands.main(["trian"]) == 2
    assert "no command 'trian'; did you mean train?" in capsys.readouterr().err
    assert commands.main(["qqqq"]) == 2
    assert "no command 'qqqq'; expected one of train, test, convert" in capsys.readouterr().err
    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(main=lambda argv: 7))
    assert commands.main(["frskdify", "a.py"]) == 7
    assert capsys.readouterr().err == "frskdify is now called convert: frskd convert\n"


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("alpha must be >= 0,\n  got -1"), 2, "alpha must be >= 0, got -1"),
        (OSError(28, "No space left on device", "a.pth"), 2, "[Errno 28] No space left on device: 'a.pth'"),
        (ImportError(), 2, "ImportError: raise error (test_commands.py, line "),
        (AssertionError(), 3, "AssertionError: raise error (test_commands.py, line "),
        (ModuleNotFoundError("No module named 'mmseg'", name="mmseg.models"), 2, r"install 'frskd_plugin[onedl]'"),
        (ModuleNotFoundError("No module named 'mmdet'", name="mmdet"), 2, "docs/detection.md says how to install"),
        (KeyError("loss"), 3, "KeyError: loss; run again with --debug for the traceback"),
        (RuntimeError("mat1 and mat2\ndiffer"), 3, "RuntimeError: mat1 and mat2 differ; run again with --debug"),
    ],
)
def test_an_error_is_one_line(error: Exception, status: int, line: str, monkeypatch, capsys) -> None:
    def fail(argv: list[str]) -> None:
        assert argv == ["a.py"]
        raise error

    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(main=fail))
    assert commands.run("train", ["a.py"]) == status
    out, err = capsys.readouterr()
    assert not out and err.startswith("frskd train: error: ") and line in err and err.count("\n") == 1
    assert commands.run("train", ["a.py", "--debug"]) == status
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    commands.run("train", ["a.py"])
    assert capsys.readouterr().err.endswith(" (process 1)\n")


def test_moved_modules_are_found_under_their_old_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(_moved.MOVED, "frskd_plugin.gone.inner.module", "frskd_plugin.core.frskd_loss")
    monkeypatch.setitem(_moved.MOVED, "frskd_plugin.gone", "frskd_plugin.core.self_teacher")
    from frskd_plugin.core import frskd_loss, self_teacher

    with pytest.warns(DeprecationWarning, match="frskd_plugin.gone.inner.module is now frskd_plugin.core.frskd_loss"):
        old = importlib.import_module("frskd_plugin.gone.inner.module")
    assert old is frskd_loss and frskd_loss.__spec__.name == frskd_loss.__name__ == "frskd_plugin.core.frskd_loss"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from frskd_plugin.gone import SelfTeacher
    assert SelfTeacher is self_teacher.SelfTeacher
    monkeypatch.setitem(_moved.MOVED, "frskd_plugin.gone.command", "frskd_plugin.commands.report")
    with pytest.warns(DeprecationWarning, match="frskd_plugin.gone.command is now"):
        command = importlib.import_module("frskd_plugin.gone.command")
    assert command.main(["no_such_folder"]) == 2 and command.PAGE_NAME == "report.html"
    assert "frskd report: error: no_such_folder is not a folder" in capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError, match="frskd_plugin.nowhere"):
        importlib.import_module("frskd_plugin.nowhere")
    for name in [name for name in sys.modules if name.startswith("frskd_plugin.gone")]:
        monkeypatch.delitem(sys.modules, name)


def test_new_names_of_moved_modules_exist() -> None:
    for old, new in _moved.MOVED.items():  # by their files: mmdet's are not to be imported without it
        path = REPOSITORY / new.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), f"{old} -> {new}"


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Interrupt as in a terminal: what a shell starts in the background begins with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(
    ("number", "status", "name"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")]
)
def test_a_signal_ends_in_one_line(
    number: signal.Signals, status: int, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(argv: list[str]) -> None:
        try:
            os.kill(os.getpid(), number)
        except BaseException as error:
            if argv:  # as libraries with a bare `except` do
                raise SyntaxError("failed to format") from error
            raise

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("frskd_plugin.commands.train.main", wait)
    for arguments in ([], ["swallow"]):
        assert commands.run("train", arguments) == status
        assert capsys.readouterr().err == f"frskd train: stopped by {name}\n"
    assert signal.getsignal(signal.SIGTERM) is before
