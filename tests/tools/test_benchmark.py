from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from frskd_plugin.benchmark.command import main

ROOT = Path(__file__).parents[2]
TINY = ["--threads", "1", "--repeat", "1", "--batch", "2"]
KEYS = {"model", "plain_s", "frskd_s", "ratio", "plain_macs", "frskd_macs", "mac_ratio", "plain_memory", "frskd_memory"}


def rows_of(file: Path) -> list[dict]:
    rows = json.loads(file.read_text())
    for row in rows:
        assert row.keys() >= KEYS
        assert row["ratio"] == pytest.approx(row["frskd_s"] / row["plain_s"])
        assert 0 < row["plain_memory"] < row["frskd_memory"]
    return rows


def test_classifiers_as_a_command(tmp_path: Path) -> None:
    names = ["wrn_16_2", "wrn_16_2_published", "resnet18_cifar"]
    command = [
        sys.executable,
        "tools/benchmark.py",
        "step",
        "--model",
        *names,
        *TINY,
        "--json",
        str(tmp_path / "a/b.json"),
    ]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "a" / "b.json")
    assert [row["model"] for row in rows] == names
    # the self-teacher's projections stand before the up-sampling: 1.67 and 1.71 otherwise
    assert [row["mac_ratio"] for row in rows] == pytest.approx([1.55, 1.55, 1.57], abs=0.03)
    assert [row["plain_macs"] for row in rows[1:]] == [101_118_464, 555_468_800]
    assert "MACs" in done.stdout and "keeps for the backward pass" in done.stdout


def test_channels_last_and_amp(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cost.json"
    options = ["--channels-last", "--amp", "bf16", "--size", "16", "--json", str(file)]
    assert main(["step", "--model", "wrn_16_2", *TINY, *options]) == 0
    (row,) = rows_of(file)
    assert row["channels_last"] and row["amp"] == "bf16"
    assert "channels_last, bf16" in capsys.readouterr().out


def test_json_alone_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["step", "--model", "wrn_16_2", *TINY, "--size", "16", "--amp", "--json"]) == 0
    printed = capsys.readouterr()
    (row,) = json.loads(printed.out)
    assert row.keys() >= KEYS and row["amp"] == "bf16"
    assert "wrn_16_2: batch" in printed.err


def test_segmentor(tmp_path: Path) -> None:
    pytest.importorskip("mmseg", reason="the segmentor needs mmsegmentation")
    file = tmp_path / "cost.json"
    assert main(["step", "--model", "effdet_d0", *TINY, "--size", "128", "--json", str(file)]) == 0
    (row,) = rows_of(file)
    assert row["model"] == "effdet_d0" and 1.0 < row["mac_ratio"] < 2.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model", "wrn_16_3"],
            "has no model 'wrn_16_3'. Did you mean wrn_16_2.*Segmentors are: effdet_d0, effdet_d1",
        ),
        (["--model", "wrn_16_2", "--device", "nowhere"], "device 'nowhere' cannot be used here"),
        (["--model", "wrn_16_2", "--repeat", "0"], "'0' is not a whole number above 0"),
    ],
)
def test_mistakes_end_in_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["step", *arguments])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert re.search(message, error)
