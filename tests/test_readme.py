"""What README shows works: the examples run, the config lines build, the files and commands it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from mmengine.config import Config

import frskd_plugin
from frskd_plugin.methods import method_names, registry
from tests.helpers.segmentors import build, make_batch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
WRAP, TASK, CONFIG_LINES, OWN_METHOD = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_wrap_example_trains_and_leaves_the_plain_model():
    names: dict = {}
    exec(WRAP, names)
    assert {"loss", "loss_ce", "loss_teacher_ce", "loss_kd", "loss_feat", "output"} <= set(names["losses"])
    assert all(parameter.grad is not None for parameter in names["model"].parameters())
    assert torch.equal(names["student"](names["images"]), names["logits"])


def test_task_example_keeps_student_and_teacher_apart():
    names: dict = {}
    exec(TASK, names)
    student = timm.create_model("resnet18", num_classes=10)
    student.load_state_dict(names["checkpoint"]["state_dict"], strict=True)
    assert set(names["plain"].state_dict()) == set(student.state_dict())
    assert names["checkpoint"]["task_state"] and names["loss"] > 0


def test_config_lines_turn_a_plain_config_into_an_frskd_one(tmp_path):
    plain = ROOT / "configs" / "baseline_camvid_fcn_r18.py"
    file = tmp_path / "frskd.py"
    file.write_text(CONFIG_LINES.replace("./my_fcn_r18.py", str(plain)))
    config = Config.fromfile(file)
    model = build(config.model.to_dict()).train()
    losses = model.loss(*make_batch(size=(64, 64)))
    assert losses["self_teacher.loss_feat"] > 0 and losses["self_teacher.loss_kd"] > 0


def test_method_of_ones_own_trains(monkeypatch):
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    exec(OWN_METHOD, {})
    model = frskd_plugin.wrap(timm.create_model("test_resnet", num_classes=10), method="confidence_penalty", weight=2)
    losses = model(torch.randn(4, 3, 64, 64), torch.arange(4))
    log_p = F.log_softmax(losses["output"], dim=1)
    penalty = 2 * (log_p.exp() * log_p).sum(dim=1).mean()
    torch.testing.assert_close(losses["loss"], F.cross_entropy(losses["output"], torch.arange(4)) + penalty)
    losses["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_every_method_is_named():
    table = README.split("## Other training methods")[1].split("In your own loop")[0]
    assert set(method_names()) == set(re.findall(r"`([a-z_]+)`", table)) - {"wrap", "beta"}


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\b(?:tools|configs|docs)/[\w./]+\.\w+", README))))
def test_named_files_exist(path):
    assert (ROOT / path).is_file()


def test_named_make_targets_exist():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"^ {4}make ([a-z-]+)", README, flags=re.MULTILINE)) <= set(targets)
