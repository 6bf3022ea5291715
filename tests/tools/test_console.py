"""Console of a command: what it leaves to the log file, and progress."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytest
from mmengine.runner import Runner

from frskd_plugin import commands
from frskd_plugin.commands import console
from frskd_plugin.commands.runner import _QuietRunner
from tests.helpers.real_runs import write_config
from tests.helpers.tiny_mmseg import tiny_config


@pytest.mark.parametrize("verbose", [False, True])
def test_a_run_shows_its_scores_and_the_log_file_has_everything(
    verbose: bool, data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(data_root, epochs=1, workers=0, batch_size=8)
    config.experiment_name = f"tiny_{verbose}"  # mmengine shares loggers of one name
    file = write_config(tmp_path / "tiny.py", config)
    assert commands.run("train", [str(file), "--work-dir", str(tmp_path / "w"), *["--verbose"] * verbose]) == 0
    shown = capsys.readouterr().out
    (log,) = (tmp_path / "w").glob("*/*.log")
    for noise in ("System environment:", "Config:\n", "Hooks will be executed", "The prefix is not set"):
        assert noise in log.read_text() and (noise in shown) == verbose
    assert "mIoU" in shown and "frskd_plugin: " in shown


def test_what_imports_print_is_kept_for_the_log_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(console, "_held", [])
    logger = logging.getLogger("test_console")
    with caplog.at_level(logging.INFO, "test_console"), console.noise(shown=False):
        with console.output_held():
            print("no operators")
            warnings.warn("use mmcv, not mmcv-lite", stacklevel=1)
        console.quiet(logger)
        console.quiet(logger)
    assert capsys.readouterr().out == ""
    assert caplog.messages == ["Held back:\nuse mmcv, not mmcv-lite\nno operators"]


@pytest.mark.parametrize("verbose", [False, True])
def test_keys_that_mmengine_prints_are_noise(
    verbose: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(console, "_held", [])
    monkeypatch.setattr(Runner, "load_checkpoint", lambda self, path: print("missing keys") or {"path": path})
    runner = _QuietRunner.__new__(_QuietRunner)
    runner.logger = logging.getLogger("test_console")
    with caplog.at_level(logging.INFO, "test_console"), console.noise(shown=verbose):
        assert runner.load_checkpoint("a.pth") == {"path": "a.pth"}
    assert ("missing keys" in capsys.readouterr().out) == verbose
    assert caplog.messages == ([] if verbose else ["Held back:\nmissing keys"])


def test_long_work_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(console.progress("abc", "read", "letter")) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""
    clock = iter(range(0, 10000, 100))
    monkeypatch.setattr("tqdm.std.time", lambda: next(clock))
    assert list(console.progress(iter("abc"), "read", "letter", total=3)) == ["a", "b", "c"]
    assert "read:  67%" in capsys.readouterr().err
