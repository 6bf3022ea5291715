"""tools/coverage_timm.py: a few families in this process, and what it says where something goes wrong."""

from __future__ import annotations

import json
import operator
import os
import runpy
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from frskd_plugin.coverage import choice, isolated
from frskd_plugin.coverage.choice import smallest_fit, smallest_model
from frskd_plugin.coverage.classifier import examine_classifier
from frskd_plugin.coverage.command import main
from frskd_plugin.coverage.fault import Fault, check_finite, check_gradients
from frskd_plugin.timm.wrap import DistilledModel

ROOT = Path(__file__).resolve().parents[2]
WRN = {
    "module": "cifar_wrn",
    "model": "wrn_16_2",
    "result": "ok",
    "image": 32,
    "levels": [0, 1, 2],
    "strides": [1, 2, 4],
    "channels": [32, 64, 128],
}
PIT = {
    "module": "pit",
    "model": "pit_ti_224",
    "result": "ok",
    "image": 64,
    "levels": [0, 1, 2],
    "strides": [9.14, 16, 32],
    "channels": [64, 128, 256],
}
STARNET = {
    "module": "starnet",
    "model": "starnet_s050",
    "result": "ok",
    "image": 64,
    "levels": [0, 1, 2, 3],
    "strides": [4, 8, 16, 32],
    "channels": [16, 32, 64, 128],
}


def test_families_as_classifiers_and_as_backbones(tmp_path, capsys) -> None:
    pytest.importorskip("mmseg", reason="the segmentor needs mmsegmentation")
    files = [tmp_path / "made" / "rows.json", tmp_path / "table.md"]
    options = ["--in-process", "--modules", "cifar_wrn", "pit", "starnet"]
    options += ["--json", str(files[0]), "--markdown", str(files[1])]
    assert main([*options, "--classifier", "--segmentor"]) == 0
    rows = json.loads(files[0].read_text())
    chosen = [(row.pop("share"), row.pop("width")) for row in rows[:3]]
    assert rows == [{"kind": kind, **row} for kind in ("classifier", "segmentor") for row in (WRN, PIT, STARNET)]
    assert chosen[0] == (0.54, "2")
    assert all(0 < share <= 0.75 for share, _ in chosen)

    text = files[1].read_text()
    assert "classifier: 3 of 3 modules ok, segmentor: 3 of 3 modules ok" in text
    assert "python tools/coverage_timm.py --in-process --modules cifar_wrn pit starnet" in text
    assert "Every row is ok." in text
    assert "| cifar_wrn | wrn_16_2 | 32 | 0 1 2 | 1 2 4 | 32 64 128 | 0.54 | 2 | ok |" in text
    assert "| cifar_wrn | wrn_16_2 | 32 | 0 1 2 | 1 2 4 | 32 64 128 | ok |" in text
    assert capsys.readouterr().out.count("| ok  (") == 6


def test_a_module_that_fails_is_told_and_the_rest_goes_on(tmp_path, monkeypatch, capsys) -> None:
    def fail(name: str) -> dict:
        if name == "pit_ti_224":
            raise RuntimeError("sizes\n  differ")
        return {"image": 32}

    monkeypatch.setattr("frskd_plugin.coverage.classifier.examine_classifier", fail)
    files = [tmp_path / "rows.json", tmp_path / "table.md"]
    options = ["--in-process", "--json", str(files[0]), "--markdown", str(files[1])]
    assert main([*options, "--modules", "pit", "cifar_wrn"]) == 1
    results = {row["module"]: row["result"] for row in json.loads(files[0].read_text())}
    assert results == {"pit": "RuntimeError: sizes differ", "cifar_wrn": "ok"}
    assert "- `pit` (pit_ti_224) as a classifier: RuntimeError: sizes differ" in files[1].read_text()
    assert "classifier: 1 of 2 modules ok" in capsys.readouterr().out


def test_a_module_of_which_no_model_can_be_chosen(monkeypatch, capsys) -> None:
    monkeypatch.setattr(choice, "_num_parameters", lambda name: 1 / 0)
    assert main(["--in-process", "--modules", "cifar_wrn"]) == 1
    assert "no model could be chosen: ZeroDivisionError: division by zero" in capsys.readouterr().out


def test_unknown_modules_end_in_one_line(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["coverage_timm.py", "--modules", "resnet", "resnot"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ROOT / "tools" / "coverage_timm.py"), run_name="__main__")
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "has no models in a module resnot: give names of timm.list_modules(), such as beit" in error
    assert error.count("\n") == 1


def test_segmentors_without_mmseg_end_in_one_line(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "frskd_plugin.coverage.segmentor", None)
    with pytest.raises(SystemExit) as caught:
        main(["--segmentor", "--modules", "cifar_wrn"])
    assert caught.value.code == 2
    assert "A segmentor needs a package that cannot be imported" in capsys.readouterr().err


def test_the_smallest_model_has_the_fewest_parameters() -> None:
    assert smallest_model("visformer") == "visformer_tiny"
    assert smallest_model("cifar_resnet") == "resnet18_cifar"


def test_a_process_of_its_own_gives_the_result_or_tells_how_it_ended(monkeypatch) -> None:
    monkeypatch.setattr(isolated, "PRELOAD", [isolated.__name__])  # the examinations are not needed here
    assert isolated.isolated(operator.add, 2, 3, timeout=60) == 5
    with pytest.raises(Fault, match="^TypeError: unsupported operand"):
        isolated.isolated(operator.add, 2, "3", timeout=60)
    with pytest.raises(Fault, match="^its process was ended by SIGABRT$"):
        isolated.isolated(os.abort, timeout=60)
    with pytest.raises(Fault, match="^its process ended with status 3$"):
        isolated.isolated(os._exit, 3, timeout=60)
    with pytest.raises(Fault, match=r"^no result after 0.2 s$"):
        isolated.isolated(time.sleep, 600, timeout=0.2)


def test_want_of_memory_is_suspected_where_the_system_killed_the_process() -> None:
    assert isolated._how_it_ended(-9) == "its process was ended by SIGKILL (the system may have run out of memory)"


class TwoStrides(nn.Module):
    """Takes images whose size can be divided by 8."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_info = [{"reduction": 8}, {"reduction": 32}]

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [nn.functional.avg_pool2d(images, stride, ceil_mode=True) for stride in (8, 32)]


def test_the_smallest_image_keeps_the_strides_apart_and_leaves_no_single_pixel() -> None:
    fit = smallest_fit("test_resnet", make_two_strides, nn.Module.__call__)
    assert (fit.size, fit.kwargs, fit.strides) == (64, {}, [8, 32])
    assert fit.maps == [(3, 8, 8), (3, 2, 2)]


def make_two_strides(name: str) -> nn.Module:
    return TwoStrides()


def test_a_model_that_cannot_do_without_numbers_is_run_in_earnest() -> None:
    def read_numbers(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
        assert images.sum().item() == 0
        return model(images)

    assert smallest_fit("test_resnet", make_two_strides, read_numbers).size == 64


def test_a_model_that_takes_no_size_at_all() -> None:
    def refuse(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
        raise ValueError(f"not {images.shape[-1]}")

    with pytest.raises(Fault, match="^no image size up to 160 works: ValueError: not 160$"):
        smallest_fit("test_resnet", make_two_strides, refuse)


def test_what_a_step_is_examined_for() -> None:
    check_finite({"loss": torch.tensor(1.0), "acc": torch.tensor(float("nan"))})
    with pytest.raises(Fault, match="^loss_kd is not finite: nan$"):
        check_finite({"loss_kd": torch.tensor(float("nan"))})
    layer = nn.Linear(2, 2)
    with pytest.raises(Fault, match="^2 parameters get no gradient: weight, bias$"):
        check_gradients(layer)
    layer.weight.grad, layer.bias.grad = torch.zeros(2, 2), torch.full((2,), float("inf"))
    with pytest.raises(Fault, match="^1 parameters get a gradient that is not finite: bias$"):
        check_gradients(layer)


def test_logits_that_are_not_the_plain_models_are_a_fault(monkeypatch) -> None:
    forward = DistilledModel.forward

    def disturbed(self, images, targets=None):
        result = forward(self, images, targets)
        return result if self.training else result + 1e-6

    monkeypatch.setattr(DistilledModel, "forward", disturbed)
    with pytest.raises(Fault, match="^in evaluation it does not give the plain model's logits$"):
        examine_classifier("wrn_16_2")


def test_a_parameter_that_timm_froze_is_no_fault():
    model = torch.nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    model(torch.rand(1, 2)).sum().backward()
    check_gradients(model)
    model.weight.grad = None
    with pytest.raises(Fault, match="1 parameters get no gradient: weight"):
        check_gradients(model)
