"""The demo: the whole of it on few images, what it says of its numbers, and the folder that it clears."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from mmengine.visualization import Visualizer

from frskd_plugin import commands
from frskd_plugin.commands import demo


def run_of(top1: float, teacher: float = 80.0) -> dict[str, float]:
    return {"epoch": 26, "top1": top1, "teacher_top1": teacher, "loss_before": 0.5, "loss_last": 0.4, "step": 0.1}


def test_it_trains_compares_reports_and_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    short = ["--cfg-options", "train_cfg.max_epochs=4", "default_hooks.checkpoint.interval=4"]

    def run(log: Path, threads: int, *command: object, **_: object) -> None:
        Visualizer._instance_dict.clear()  # mmengine's, one of a name in a process
        own = [*short, f"experiment_name={log.stem}"] if command[0] == "train" else []
        assert commands.run(str(command[0]), [*map(str, command[1:]), *own]) == 0

    draw_images = demo.draw_images
    monkeypatch.setattr(demo, "run", run)
    monkeypatch.setattr(demo.os, "sched_getaffinity", lambda process: {0}, raising=False)  # one run at a time
    monkeypatch.setattr(demo, "draw_images", lambda folder: draw_images(folder, train_per_class=7, test_per_class=2))
    assert demo.main(["--work-dir", str(tmp_path), "--seeds", "1"]) == 0
    said = capsys.readouterr().out
    assert "after 4 epochs" in said and "FRSKD, self-teacher" in said and "cifar100_gpu.md" in said
    assert "data:image/svg+xml" in (tmp_path / "runs" / "report.html").read_text()
    assert "fc.weight" in torch.load(tmp_path / "student" / "student.pth", weights_only=True)
    (tmp_path / "notes.txt").touch()
    demo.prepare_folder(tmp_path)  # of its own: begins anew, and leaves what is not its own
    assert not (tmp_path / "images").exists() and (tmp_path / "notes.txt").exists()


def test_it_says_how_to_read_what_comes() -> None:
    ahead = demo.summary([run_of(70), run_of(72)], [run_of(73), run_of(77)])
    assert "+4.0 points (standard error over the seeds 1.0)" in ahead and "seeds 0, 1" in ahead
    behind = demo.summary([run_of(70)], [run_of(69)])
    assert "-1.0 points (one seed" in behind and "Do not conclude from that" in behind


def test_it_does_not_clear_a_folder_of_others(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match="which the demo did not write: give another folder"):
        demo.main(["--work-dir", str(tmp_path)])


def test_it_draws_the_same_images_each_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        demo.draw_images(tmp_path / name, train_per_class=1, test_per_class=1)
    one, two = (sorted((tmp_path / name).rglob("*.png")) for name in ("one", "two"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two] and len(one) == 10


def test_a_command_that_fails_is_shown(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)trian ended with status 2; .*did you mean train"):
        demo.run(tmp_path / "log.txt", 1, "trian")


def test_a_failure_ends_the_other_trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"  # the plain network fails once the other one, which would take an hour, has begun
    wait_and_fail = f"until [ -e {tmp_path}/begun ]; do sleep 0.2; done; exit 3"
    begin = f"touch {tmp_path}/begun; exec sleep 3600"
    python.write_text(f'#!/bin/sh\ncase "$*" in *frskd_seed0*) {begin};; esac\n{wait_and_fail}\n')
    python.chmod(0o755)
    monkeypatch.setattr(demo.sys, "executable", str(python))
    popen, started = demo.subprocess.Popen, []
    monkeypatch.setattr(demo.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    with pytest.raises(RuntimeError, match="train ended with status 3"):
        demo.train_all(tmp_path, seeds=1, cores=2)
    assert sorted(process.returncode for process in started) == [-signal.SIGTERM, 3]
