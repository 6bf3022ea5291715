"""tools/plot_scores.py reads the logs of a run and of its resumed part."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from frskd_plugin import commands
from tests.helpers.real_runs import load_tool


def write_log(folder: Path, lines: list[dict]) -> None:
    (folder / "vis_data").mkdir(parents=True)
    (folder / "vis_data" / "scalars.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "frskd"
    write_log(run / "1", [{"loss": 1.0, "step": 1}, {"mIoU": 10.0, "self_teacher.mIoU": 12.0, "step": 1}])
    write_log(run / "2", [{"mIoU": 30.0, "self_teacher.mIoU": 11.0, "step": 2}])
    load_tool("plot_scores").main([str(run), "-o", str(tmp_path / "curves.png")])
    printed = capsys.readouterr().out
    assert "frskd: 30.00 at epoch 2, best 30.00" in printed
    assert "frskd, self-teacher: 11.00 at epoch 2, best 12.00" in printed
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_seeds_become_one_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, top1 in ((0, 60.0), (1, 64.0)):
        lines = [{"top1": 10.0, "step": 1}, {"top1": top1, "teacher_top1": top1 + 1, "step": 2}]
        write_log(tmp_path / f"frskd_seed{seed}" / "1", lines)
    runs = [str(tmp_path / f"frskd_seed{seed}") for seed in (0, 1)]
    load_tool("plot_scores").main([*runs, "-o", str(tmp_path / "curves.png")])
    printed = capsys.readouterr().out
    assert "frskd: 62.00 +- 2.83 (2 runs) at epoch 2" in printed
    assert "frskd, self-teacher: 63.00 +- 2.83 (2 runs) at epoch 2" in printed


def test_seeds_without_a_common_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        write_log(tmp_path / f"frskd_seed{seed}" / "1", [{"top1": 10.0, "step": 1 + seed}])
    assert commands.run("plot_scores", [str(tmp_path / f"frskd_seed{seed}") for seed in (0, 1)]) == 2
    assert "frskd: its runs were validated in no epoch that all of them have" in capsys.readouterr().err


def test_folder_without_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.run("plot_scores", [str(tmp_path)]) == 2
    assert "holds no log; expected the work folder of a run" in capsys.readouterr().err
    write_log(tmp_path / "1", [{"loss": 1.0, "epoch": 1, "iter": 1, "step": 1}])
    assert commands.run("plot_scores", [str(tmp_path)]) == 2
    assert "holds no log with a validation; expected a run with one of mIoU" in capsys.readouterr().err
