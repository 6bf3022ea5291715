"""README works: the examples run, the config lines build, the files and commands it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import timm
import torch
from mmengine.config import Config

from frskd_plugin.methods import method_names
from tests.helpers.segmentors import build, make_batch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
WRAP, TASK, CONFIG_LINES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


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


def test_number_of_methods_and_named_make_targets():
    assert "[thirteen methods]" in README and len(method_names()) == 13
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"^ {4}make ([a-z-]+)", README, flags=re.MULTILINE)) <= set(targets)
