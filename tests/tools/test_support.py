"""frskd support: a few models of the matrix, and the row of one that fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from frskd_plugin.commands import run, support
from tests.support.steps import smallest_fit, smallest_model
from tests.support.test_timm import test_segmentor as try_segmentor

WRN = {"module": "wrn_16_2", "model": "wrn_16_2", "image": 32, "levels": [0, 1, 2], "strides": [1, 2, 4]}
BREAK = """
from frskd_plugin.timm.cifar_networks import CifarResNet
def fail(*args, **kwargs): raise RuntimeError("sizes\\n  differ")
CifarResNet.forward_head = fail
"""


def test_a_module_that_fails_is_told_and_the_rest_goes_on(tmp_path: Path, monkeypatch, capfd) -> None:
    (tmp_path / "break_resnet.py").write_text(BREAK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    page, rows = tmp_path / "made" / "table.md", tmp_path / "rows.json"
    options = ["--in-process", "--markdown", page, "--json", rows, "-p", "break_resnet"]
    options += ["--modules", "resnet18_cifar", "wrn_16_2"]
    assert run("coverage_timm", [str(option) for option in options]) == 1
    out, err = capfd.readouterr()
    assert "coverage_timm is now called support timm: frskd support timm" in err
    assert "classifier: 1 of 2 modules ok" in out and "(2 of 2, 0 min left)" in out
    broken, wrn = json.loads(rows.read_text())
    assert (broken["module"], broken["model"]) == ("resnet18_cifar", "resnet18_cifar")
    assert broken["result"] == "no image size up to 32 works: RuntimeError: sizes differ"
    assert wrn == {"kind": "classifier", **WRN, "channels": [32, 64, 128], "share": 0.54, "width": "2", "result": "ok"}
    text = page.read_text()
    assert "Written by `frskd support timm --in-process --markdown" in text
    assert "- `resnet18_cifar` (resnet18_cifar) as a classifier: no image size up to 32 works" in text
    assert "| wrn_16_2 | wrn_16_2 | 32 | 0 1 2 | 1 2 4 | 32 64 128 | 0.54 | 2 | ok |" in text


def test_a_backbone_and_a_family() -> None:
    pytest.importorskip("mmseg", reason="the segmentor needs mmsegmentation")
    from tests.support.test_mmseg import smallest_config
    from tests.support.test_mmseg import test_family as try_family

    facts: dict[str, object] = {}
    try_segmentor("wrn_16_2", facts.__setitem__)
    assert {"module": "wrn_16_2", **facts} == {**WRN, "channels": [32, 64, 128]}
    facts.clear()
    try_family("erfnet", facts.__setitem__)
    assert (facts["image"], facts["channels"], facts["teacher_head"]) == (64, [16, 16], "FCNHead")
    assert smallest_config("segformer").name.startswith("segformer_mit-b0_")
    with pytest.raises(pytest.skip.Exception, match="^custom_imports: ModuleNotFoundError: No module named 'mmpretr"):
        try_family("poolformer", facts.__setitem__)


@pytest.mark.parametrize("library", ["timm", "mmseg"])
def test_unknown_names_end_in_one_line(library: str, capsys) -> None:
    pytest.importorskip(library)
    assert run("support", [library, "--only", "resnot"]) == 2
    assert f"{library} has no resnot: expected names out of " in capsys.readouterr().err
    assert len(support.names(library)) > 45
    assert run("support", [library, "resnot"]) == 2
    assert "expected options behind the library, got 'resnot': names follow --only" in capsys.readouterr().err


def test_a_table_that_cannot_be_written_ends_before_the_work(tmp_path: Path, capsys) -> None:
    assert run("support", ["timm", "--only", "wrn_16_2", "--write", str(tmp_path)]) == 2
    assert "Is a directory" in capsys.readouterr().err


def test_the_smallest_image_keeps_the_strides_apart_and_leaves_no_single_pixel() -> None:
    class TwoStrides(nn.Module):
        feature_info = [{"reduction": 8}, {"reduction": 32}]

        def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
            return [nn.functional.avg_pool2d(images, stride, ceil_mode=True) for stride in (8, 32)]

    fit = smallest_fit("test_resnet", lambda name: TwoStrides(), lambda model, images: model(images))
    assert (fit.size, fit.kwargs, fit.strides, fit.maps) == (64, {}, [8, 32], [(3, 8, 8), (3, 2, 2)])
    assert smallest_model("visformer") == "visformer_tiny"


def test_timms_options_are_refused_with_mmseg(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("support", ["mmseg", "--classifier"]) == 2
    assert "--classifier and --segmentor are for timm: leave them out with mmseg" in capsys.readouterr().err
