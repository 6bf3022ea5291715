"""The hooks of the method in a real run: warm-up, the teacher's validation, the picture; and bfloat16 training."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import cv2
import pytest
import torch
from mmengine.config import Config

from frskd_plugin.core.frskd_loss import distill_factor
from frskd_plugin.mmengine.hooks import DistillWarmupHook
from frskd_plugin.mmengine.optim import AutocastOptimWrapper
from tests.helpers.real_runs import train
from tests.helpers.tiny_mmseg import tiny_config


def scalars(work_dir: Path) -> list[dict]:
    (log,) = work_dir.glob("*/vis_data/scalars.json")
    return [json.loads(line) for line in log.read_text().splitlines()]


def with_hooks(config: Config, *hooks: dict) -> Config:
    config.custom_hooks = [*config.custom_hooks, *hooks]
    config.visualizer.vis_backends = [dict(type="LocalVisBackend")]
    config.val_evaluator.type = "SelfTeacherIoUMetric"
    return config


@pytest.fixture
def frskd(data_root: Path) -> Config:
    return tiny_config(data_root, epochs=3, workers=0, batch_size=4, frskd=True)


def test_warm_up_by_epoch(frskd: Config, tmp_path: Path) -> None:
    hooks = (dict(type="DistillWarmupHook", begin=1), dict(type="SelfTeacherValidationHook"))
    runner = train(with_hooks(frskd, *hooks), tmp_path)
    steps = [line for line in scalars(tmp_path) if "loss" in line]
    assert [line["epoch"] for line in steps] == [1, 1, 2, 2, 3, 3]
    assert [line["distill_factor"] for line in steps] == pytest.approx(
        [distill_factor(line["epoch"] - 1, 1, 3) for line in steps]
    )
    assert all((line["self_teacher.loss_feat"] > 0) == (line["epoch"] > 1) for line in steps)
    scores = [line for line in scalars(tmp_path) if "mIoU" in line]
    assert len(scores) == 3 and all("self_teacher.mIoU" in line for line in scores)
    assert not runner.model.predict_self_teacher  # on while validating only


def test_warm_up_is_right_after_a_resume(frskd: Config, tmp_path: Path) -> None:
    config = with_hooks(frskd, dict(type="DistillWarmupHook", begin=1, end=3))
    train(config, tmp_path, train_cfg__max_epochs=2)
    runner = train(config, tmp_path, resume=True)
    assert runner.model.self_teacher.loss_distill.factor == 1.0
    assert not any("factor" in key for key in runner.model.state_dict())


def test_warm_up_by_iteration(frskd: Config, tmp_path: Path) -> None:
    config = with_hooks(frskd, dict(type="DistillWarmupHook", begin=2, end=6, by_epoch=False))
    train(config, tmp_path)
    factors = [line["distill_factor"] for line in scalars(tmp_path) if "loss" in line]
    # the logger shows the mean over its window of one iteration
    assert factors == pytest.approx([distill_factor(step, 2, 6) for step in range(6)])


def test_self_teacher_is_not_scored_when_switched_off(frskd: Config, tmp_path: Path) -> None:
    config = with_hooks(frskd, dict(type="SelfTeacherValidationHook", enabled=False))
    train(config, tmp_path, train_cfg__max_epochs=1)
    (score,) = (line for line in scalars(tmp_path) if "mIoU" in line)
    assert "self_teacher.mIoU" not in score


@pytest.mark.parametrize("kind", ["plain", "frskd"])
def test_picture(data_root: Path, tmp_path: Path, kind: str) -> None:
    config = tiny_config(data_root, epochs=1, workers=0, batch_size=4, frskd=kind == "frskd")
    train(with_hooks(config, dict(type="AttentionPictureHook", num_images=2)), tmp_path)
    pictures = sorted((tmp_path / "attention").glob("*.png"))
    assert [picture.stem for picture in pictures] == ["image_0", "image_1"]
    height, width = cv2.imread(str(pictures[0])).shape[:2]
    # a row of labels and a row of maps a network; as many columns as the longer of them
    rows, columns = (3, 4) if kind == "frskd" else (2, 3)
    assert height / rows == pytest.approx(230, rel=0.01) and width / columns == pytest.approx(200, rel=0.01)


def test_bfloat16_trains_on_the_cpu(frskd: Config, tmp_path: Path) -> None:
    config = with_hooks(frskd)
    float32 = copy.deepcopy(config)
    config.optim_wrapper.type = "AutocastOptimWrapper"
    runner = train(config, tmp_path, train_cfg__max_epochs=1, optim_wrapper__dtype="bfloat16")
    assert all(torch.isfinite(p).all() and p.dtype == torch.float32 for p in runner.model.parameters())
    wide = train(float32, tmp_path / "float32", train_cfg__max_epochs=1)
    pairs = zip(runner.model.parameters(), wide.model.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)  # it did compute in bfloat16


def test_baseline_with_the_warm_up_is_refused(data_root: Path, tmp_path: Path) -> None:
    config = with_hooks(tiny_config(data_root, workers=0), dict(type="DistillWarmupHook", begin=1))
    with pytest.raises(ValueError, match="found no FRSKDLoss in the model. Give the model a `self_teacher`"):
        train(config, tmp_path)


def test_bad_settings(frskd: Config, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="begin=5 and end=3"):
        DistillWarmupHook(begin=5, end=3)
    with pytest.raises(ValueError, match="does not scale the loss, so float16 gradients would vanish"):
        AutocastOptimWrapper(dtype="float16", optimizer=None)
    frskd.train_cfg = dict(type="IterBasedTrainLoop", max_iters=2, val_interval=2)
    frskd.train_dataloader.sampler.type = "SeededInfiniteSampler"
    frskd.param_scheduler = []
    frskd.default_hooks.checkpoint.by_epoch = False
    with pytest.raises(
        ValueError, match="counts epochs, and IterBasedTrainLoop counts iterations: set `by_epoch=False`"
    ):
        train(with_hooks(frskd, dict(type="DistillWarmupHook", begin=1)), tmp_path)
