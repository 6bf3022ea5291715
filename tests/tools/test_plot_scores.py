"""`frskd plot_scores` reads the logs of runs and of their resumed parts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from frskd_plugin.commands import run


def write_log(folder: Path, *lines: dict) -> None:
    (folder / "vis_data").mkdir(parents=True)
    (folder / "vis_data" / "scalars.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_log(tmp_path / "seg" / "1", {"loss": 1.0, "step": 1}, {"mIoU": 10.0, "self_teacher.mIoU": 12.0, "step": 1})
    write_log(tmp_path / "seg" / "2", {"mIoU": 30.0, "self_teacher.mIoU": 11.0, "step": 2})
    for seed, top1 in ((0, 60.0), (1, 64.0)):
        last = {"top1": top1, "teacher_top1": top1 + 1, "step": 2}
        write_log(tmp_path / f"cls_seed{seed}" / "1", {"top1": 10.0, "step": 1}, last)
    runs = [str(tmp_path / name) for name in ("seg", "cls_seed0", "cls_seed1")]
    assert run("plot_scores", [*runs, "-o", str(tmp_path / "curves.png")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "seg: 30.00 at epoch 2, best 30.00",
        "seg, self-teacher: 11.00 at epoch 2, best 12.00",
        "cls: 62.00 +- 2.83 (2 runs) at epoch 2, best 62.00 +- 2.83 (2 runs)",
        "cls, self-teacher: 63.00 +- 2.83 (2 runs) at epoch 2, best 63.00 +- 2.83 (2 runs)",
    ]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_runs_by_iterations_of_one_name_with_a_score_that_is_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, score in (("a", math.nan), ("b", 20.0)):
        lines = {"loss": 1.0, "iter": 50, "step": 50}, {"mIoU": score, "step": 100}, {"mIoU": 10.0, "step": 200}
        write_log(Path(folder, "frskd", "1"), *lines)
    assert run("plot_scores", ["a/frskd", "b/frskd"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "a/frskd: 10.00 at iteration 200, best 10.00",
        "b/frskd: 10.00 at iteration 200, best 20.00",
    ]


def test_runs_that_cannot_be_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        write_log(tmp_path / f"frskd_seed{seed}" / "1", {"top1": 10.0, "step": 1 + seed})
    write_log(tmp_path / "by_iterations" / "1", {"loss": 1.0, "iter": 1, "step": 1}, {"top1": 10.0, "step": 1})
    write_log(tmp_path / "no_validation" / "1", {"loss": 1.0, "epoch": 1, "iter": 1, "step": 1})
    for names, message in (
        (["frskd_seed0", "frskd_seed1"], "frskd: its runs were validated in no epoch that all of them have"),
        (["frskd_seed0", "by_iterations"], "frskd_seed0 was validated by epochs and "),
        (["frskd_seed0", "frskd_seed0"], "frskd_seed0 was given 2 times; give each run once"),
        (["nothing"], "expected the work folder of a run"),
        (["no_validation"], "holds no log with a validation; expected a run with one of mIoU"),
    ):
        assert run("plot_scores", [str(tmp_path / name) for name in names]) == 2
        assert message in capsys.readouterr().err
