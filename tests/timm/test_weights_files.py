"""The plain network's weights out of every file that timm, Lightning, mmengine and this package write."""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import frskd_plugin
from frskd_plugin.export import open_student
from frskd_plugin.timm import TimmFeatureExtractor
from frskd_plugin.timm.checkpoint import create_model, read_weights, weights_of
from tests.helpers.model_tester import same

PLAIN = {"conv1.weight": torch.ones(1), "fc.bias": torch.zeros(1)}
EMA = {key: value + 2 for key, value in PLAIN.items()}
METHOD = {"method.self_teacher.head.bias": torch.ones(1), "criterion.weight": torch.ones(1)}


def prefixed(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in weights.items()}


def wrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**prefixed("student.", weights), **METHOD}


LIGHTNING = {"pytorch-lightning_version": "2.5.0", "hyper_parameters": {"lr": 0.1}, "loops": {}, "callbacks": {}}
FILES: dict[str, tuple[dict[str, Any], dict[str, Tensor], str]] = {
    "a state_dict": (PLAIN, PLAIN, "the file itself is a state_dict"),
    "of a wrapped model": (wrapped(PLAIN), PLAIN, "the file itself is a state_dict"),
    "of DDP and compile": (prefixed("module._orig_mod.", wrapped(PLAIN)), PLAIN, "the file itself is a state_dict"),
    "of compile inside": (prefixed("student._orig_mod.", PLAIN), PLAIN, "the file itself is"),
    "timm's training": (
        {"epoch": 3, "arch": "resnet18", "args": argparse.Namespace(lr=0.1), "state_dict": wrapped(PLAIN)},
        PLAIN,
        "state_dict",
    ),
    "timm's training with EMA": (
        {"args": argparse.Namespace(), "state_dict": wrapped(PLAIN), "state_dict_ema": wrapped(EMA)},
        EMA,
        "state_dict_ema (EMA)",
    ),
    "an EMA that was not kept": ({"state_dict": PLAIN, "state_dict_ema": None}, PLAIN, "state_dict"),
    "torch's AveragedModel": (
        {"state_dict_ema": {**prefixed("module.", wrapped(EMA)), "n_averaged": torch.ones(1)}},
        EMA,
        "state_dict_ema (EMA)",
    ),
    "DeiT's": ({"model": PLAIN, "model_ema": EMA, "args": argparse.Namespace()}, EMA, "model_ema (EMA)"),
    "Lightning, wrapped": ({**LIGHTNING, "state_dict": prefixed("model.", wrapped(PLAIN))}, PLAIN, "state_dict"),
    "Lightning, plain": (
        {**LIGHTNING, "state_dict": {**prefixed("model.", PLAIN), "metric.total": torch.ones(1)}},
        PLAIN,
        "state_dict",
    ),
    "mmengine, a classifier": ({"state_dict": prefixed("network.", wrapped(PLAIN)), "meta": {}}, PLAIN, "state_dict"),
    "mmengine, with EMAHook": (
        {"state_dict": prefixed("network.", wrapped(EMA)), "ema_state_dict": {"steps": torch.ones(1)}},
        EMA,
        "state_dict (EMA)",
    ),
    "mmengine, a segmentor": (
        {"state_dict": {"backbone.x": torch.ones(1), "self_teacher.x": torch.ones(1)}},
        {"backbone.x": torch.ones(1)},
        "state_dict",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_weights_of_the_plain_network_and_where_they_were(name: str) -> None:
    content, expected, entry = FILES[name]
    weights, found = weights_of(content, "a.ckpt")
    assert {key: value.item() for key, value in weights.items()} == {k: v.item() for k, v in expected.items()}
    assert found.startswith(entry)


def test_a_tasks_checkpoint_holds_the_method_beside_the_student() -> None:
    content = {"state_dict": PLAIN, "task_state": {"method": {"x": torch.zeros(1)}}}
    averaged = {"state_dict_ema": EMA, "task_state_ema": {"method": {"x": torch.ones(1)}}}
    for found, student, method in ((content, PLAIN, 0), ({**content, **averaged}, EMA, 1)):
        weights, _ = weights_of(found, "a.pth", whole=True)
        assert same(weights, {**prefixed("student.", student), "method.x": torch.full((1,), float(method))})
        assert same(weights_of(found, "a.pth")[0], student)


def test_files_that_timm_reads_run_nothing(tmp_path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.ones(1), "x": subprocess.run}}, tmp_path / "a.pth")
    arguments = {"checkpoint_path": str(tmp_path / "a.pth")}
    for settings in (arguments, {"pretrained": True, "pretrained_cfg_overlay": {"file": str(tmp_path / "a.pth")}}):
        with pytest.raises(ValueError, match=r"a.pth was not read: it holds \w+.run, and only tensors"):
            TimmFeatureExtractor("test_resnet", **settings)
    loaded = timm.create_model("test_resnet", num_classes=5).state_dict()
    torch.save(loaded, tmp_path / "a.pth")
    assert same(create_model("test_resnet", num_classes=5, **arguments).state_dict(), loaded)


def test_safetensors(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    pytest.importorskip("safetensors.torch").save_file(wrapped(PLAIN), file)
    assert read_weights(file)[0].keys() == PLAIN.keys()
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="a.safetensors cannot be read as safetensors"):
        read_weights(file)
    with pytest.raises(FileNotFoundError, match="none.safetensors not found"):
        read_weights(tmp_path / "none.safetensors")


@pytest.mark.parametrize("content", [3, {}, {"state_dict": 3}, {"state_dict": {1: torch.ones(1)}}])
def test_no_weights(content: Any) -> None:
    with pytest.raises(ValueError, match="a.pth holds no weights: expected a state_dict of tensors"):
        weights_of(content, "a.pth")


def test_a_backbone_takes_the_weights_of_a_training(tmp_path: Path) -> None:
    plain = timm.create_model("test_resnet", num_classes=5)
    model = frskd_plugin.wrap(plain, width=1, input_size=(3, 32, 32))
    holder = nn.ModuleDict({"network": model}).state_dict()  # as a classifier of mmengine holds it
    backbone = TimmFeatureExtractor("test_resnet")
    segmentor = {**prefixed("backbone.", backbone.state_dict()), "decode_head.x": torch.ones(1)}
    for name, content in (("classifier", holder), ("segmentor", segmentor)):
        torch.save({"state_dict": content, "meta": {}}, tmp_path / f"{name}.pth")
        loaded = TimmFeatureExtractor("test_resnet", checkpoint=tmp_path / f"{name}.pth").model.state_dict()
        wanted = plain.state_dict() if name == "classifier" else backbone.model.state_dict()
        assert loaded and all(torch.equal(value, wanted[key]) for key, value in loaded.items())
    with pytest.raises(ValueError, match="tools/export.py writes those of a training checkpoint's student"):
        TimmFeatureExtractor("test_vit", checkpoint=tmp_path / "classifier.pth")


def test_both_exports_take_the_same_weights(tmp_path: Path) -> None:
    export = pytest.importorskip("frskd_plugin.mmengine.export")
    networks = [timm.create_model("test_resnet", num_classes=5) for _ in range(2)]
    plain, averaged = ({**prefixed("student.", network.state_dict()), **METHOD} for network in networks)
    torch.save({"state_dict": plain, "state_dict_ema": averaged}, tmp_path / "last.pth")
    made = export.export_student(tmp_path / "last.pth", tmp_path / "student.pth")
    student = open_student("test_resnet", str(tmp_path / "last.pth"))
    assert student.weights == made.entry == "state_dict_ema (EMA)" and made.config is None
    for weights in (torch.load(tmp_path / "student.pth", weights_only=True), student.network.state_dict()):
        assert same(weights, networks[1].state_dict())
