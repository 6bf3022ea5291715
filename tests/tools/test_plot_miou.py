"""tools/plot_miou.py reads the logs of a run and of its resumed part."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.tiny_mmseg import load_tool


def write_log(folder: Path, lines: list[dict]) -> None:
    (folder / "vis_data").mkdir(parents=True)
    (folder / "vis_data" / "scalars.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "frskd"
    write_log(run / "1", [{"loss": 1.0, "step": 1}, {"mIoU": 10.0, "self_teacher.mIoU": 12.0, "step": 1}])
    write_log(run / "2", [{"mIoU": 30.0, "self_teacher.mIoU": 11.0, "step": 2}])
    load_tool("plot_miou").main([str(run), "-o", str(tmp_path / "curves.png")])
    printed = capsys.readouterr().out
    assert "frskd: 30.00 at epoch 2, best 30.00" in printed
    assert "frskd, self-teacher: 11.00 at epoch 2, best 12.00" in printed
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_folder_without_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_tool("plot_miou").main([str(tmp_path)])
    assert "holds no log with a validation" in capsys.readouterr().err
