"""The hooks and optimizer wrappers of this package in real runs: warm-up, the teacher's validation, pictures, speed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn

from frskd_plugin.core.frskd_loss import FRSKDLoss
from frskd_plugin.core.schedule import distill_factor
from frskd_plugin.methods import Method
from frskd_plugin.mmengine.attention import ClassifierAttentionPictureHook, attention_panels, picture_of
from frskd_plugin.mmengine.hooks import CompileHook, DistillWarmupHook, MethodProgressHook
from frskd_plugin.mmengine.optim import AutocastOptimWrapper
from tests.helpers.real_runs import assert_equal, final_weights, scalars, train
from tests.helpers.tiny_classification import tiny_config as tiny_classifier
from tests.helpers.tiny_classification import write_cifar
from tests.helpers.tiny_mmseg import tiny_config

COMPILED = dict(type="CompileHook", backend="eager")  # what dynamo captures, run by torch as it is
LAID_OUT = dict(type="ChannelsLastHook")


def with_hooks(config: Config, *hooks: dict[str, Any]) -> Config:
    config.custom_hooks = [*config.custom_hooks, *hooks]
    config.visualizer.vis_backends = [dict(type="LocalVisBackend")]
    return config


@pytest.fixture
def frskd(data_root: Path) -> Config:
    config = tiny_config(data_root, epochs=3, workers=0, batch_size=4, frskd=True)
    config.val_evaluator.type = "SelfTeacherIoUMetric"
    return config


# Warm-up and validation


def test_warm_up_by_epoch_is_right_after_a_resume(frskd: Config, tmp_path: Path) -> None:
    hooks = (dict(type="DistillWarmupHook", begin=1, end=3), dict(type="SelfTeacherValidationHook"))
    train(with_hooks(frskd, *hooks), tmp_path, train_cfg__max_epochs=2)
    steps = [line for line in scalars(tmp_path) if "loss" in line]
    assert [line["epoch"] for line in steps] == [1, 1, 2, 2]
    assert [line["distill_factor"] for line in steps] == pytest.approx(
        [distill_factor(line["epoch"] - 1, 1, 3) for line in steps]
    )
    assert all((line["self_teacher.loss_feat"] > 0) == (line["epoch"] > 1) for line in steps)
    scores = [line for line in scalars(tmp_path) if "mIoU" in line]
    assert len(scores) == 2 and all("self_teacher.mIoU" in line for line in scores)
    runner = train(frskd, tmp_path, resume=True)
    assert runner.model.self_teacher.loss_distill.factor == 1.0
    assert not any("factor" in key for key in runner.model.state_dict())
    assert not runner.model.predict_self_teacher  # on while validating only


def test_warm_up_by_iteration_without_scores_of_the_self_teacher_and_pictures(frskd: Config, tmp_path: Path) -> None:
    warm_up = dict(type="DistillWarmupHook", begin=2, end=6, by_epoch=False)
    no_scores, pictures = dict(type="SelfTeacherValidationHook", enabled=False), dict(type="AttentionPictureHook")
    train(with_hooks(frskd, warm_up, no_scores, pictures), tmp_path)
    lines = scalars(tmp_path)
    # the logger shows the mean over its window of one iteration
    factors = [line["distill_factor"] for line in lines if "loss" in line]
    assert factors == pytest.approx([distill_factor(step, 2, 6) for step in range(6)])
    scores = [line for line in lines if "mIoU" in line]
    assert scores and not any("self_teacher.mIoU" in line for line in scores)
    check_grid(tmp_path, rows=3, columns=4)


def test_warm_up_that_has_nothing_to_count_or_to_weight() -> None:
    by_epoch = EpochBasedTrainLoop.__new__(EpochBasedTrainLoop)
    hook, gated = DistillWarmupHook(begin=1), FRSKDLoss(schedule="gate")
    for model, loop, message in (
        (nn.Linear(1, 1), by_epoch, "found no FRSKDLoss in the model. Give the model a `self_teacher`"),
        (gated, by_epoch, "sets the factor on alpha and beta, and so do `schedule` and `warmup`"),
        (FRSKDLoss(), object(), "counts epochs, and object counts iterations: set `by_epoch=False`"),
    ):
        with pytest.raises(ValueError, match=message):
            hook.before_train(SimpleNamespace(model=model, train_loop=loop, max_epochs=2))
    with pytest.raises(ValueError, match="begin=5 and end=3"):
        DistillWarmupHook(begin=5, end=3)
    with pytest.raises(ValueError, match="begin=5 and end=3"):  # of a training that is shorter
        DistillWarmupHook(begin=5).before_train(SimpleNamespace(model=FRSKDLoss(), train_loop=by_epoch, max_epochs=3))


def test_progress_reaches_a_schedule_and_a_method_by_epoch_and_in_a_loop_of_iterations() -> None:
    told: list[tuple[float, float]] = []

    class Told(Method):
        def set_progress(self, epoch: float, max_epochs: float) -> None:
            told.append((epoch, max_epochs))

    loss, scalars = FRSKDLoss(schedule="linear", warmup=0.5), {}
    hub = SimpleNamespace(update_scalar=scalars.__setitem__)
    runner = SimpleNamespace(model=nn.Sequential(loss, Told(student=None)), message_hub=hub)
    vars(runner).update(train_loop=EpochBasedTrainLoop.__new__(EpochBasedTrainLoop), epoch=3, max_epochs=4)
    hook = MethodProgressHook()
    hook.before_train_iter(runner, 0)  # not at each step of an epoch
    assert loss.factor == 1
    hook.before_train_epoch(runner)
    assert loss.factor == 0.5 and scalars == {"train/distill_factor": 0.5}
    vars(runner).update(train_loop=None, train_dataloader=range(10), iter=35, max_iters=40)
    hook.before_train_epoch(runner)
    hook.before_train_iter(runner, 0)
    assert loss.factor == 0.75 and told == [(3, 4), (3.5, 4)]


# Pictures


def check_grid(work_dir: Path, rows: int, columns: int) -> None:
    """Check the size of a segmentor's pictures: a row of labels, and one of maps for each network."""
    pictures = sorted((work_dir / "attention").glob("*.png"))
    assert [picture.stem for picture in pictures] == ["image_0", "image_1"]
    height, width = cv2.imread(str(pictures[0])).shape[:2]
    assert height / rows == pytest.approx(230, rel=0.01) and width / columns == pytest.approx(200, rel=0.01)


def test_pictures_of_a_plain_segmentor(data_root: Path, tmp_path: Path) -> None:
    config = tiny_config(data_root, epochs=1, workers=0, batch_size=4)
    train(with_hooks(config, dict(type="AttentionPictureHook", num_images=2)), tmp_path)
    check_grid(tmp_path, rows=2, columns=3)


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cifar(tmp_path_factory.mktemp("cifar"), train=36, test=16)


def pictures(**settings: object) -> dict[str, Any]:
    return dict(type="ClassifierAttentionPictureHook", num_images=1, **settings)


def drawn(work_dir: Path) -> list[str]:
    folder = work_dir / "attention"
    return sorted(file.relative_to(folder).as_posix() for file in folder.glob("**/*.png"))


def test_pictures_of_epochs_change_nothing_that_is_trained(cifar: Path, tmp_path: Path) -> None:
    train(tiny_classifier(cifar, epochs=2), tmp_path / "without")
    runner = train(with_hooks(tiny_classifier(cifar, epochs=2), pictures(interval=1)), tmp_path / "with")
    assert drawn(tmp_path / "without") == []
    assert drawn(tmp_path / "with") == ["epoch_1/image_0.png", "image_0.png"]
    assert_equal(*(final_weights(tmp_path / name, 2) for name in ("without", "with")))

    model, sample = runner.model.eval(), runner.val_dataloader.dataset[1]
    with torch.no_grad():
        inputs = model.data_preprocessor(dict(inputs=sample["inputs"][None]))["inputs"]
        feats, logits = model.network.student_forward(inputs)
        refined_feats, teacher_logits = model.network.method.self_teacher(feats)
    axes = picture_of(model, sample["inputs"], 1, ["first", "second"]).axes
    for row, name, scores, maps in (
        (axes[:4], "student", logits, feats),
        (axes[4:], "self-teacher", teacher_logits, refined_feats),
    ):
        predicted = int(scores.argmax())
        label = ["first", "second"][predicted] if predicted < 2 else f"class {predicted}"
        assert row[0].get_title() == f"second\n{name}: {label}"
        assert np.array_equal(row[0].images[0].get_array(), sample["inputs"].permute(1, 2, 0).numpy())
        for axis, panel in zip(row[1:], attention_panels(maps, (32, 32)), strict=True):
            np.testing.assert_array_equal(axis.images[1].get_array(), panel)


def test_baseline_has_one_row_and_iterations_can_be_counted(cifar: Path, tmp_path: Path) -> None:
    config = tiny_classifier(cifar, "baseline_cifar100_wrn_16_2", epochs=1)
    runner = train(with_hooks(config, pictures(interval=2, by_epoch=False)), tmp_path)
    assert drawn(tmp_path) == ["image_0.png", "iter_2/image_0.png"]  # of 3 iterations, the last one after the training
    figure = picture_of(runner.model.eval(), runner.val_dataloader.dataset[0]["inputs"], 0)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[0].startswith("class 0\nstudent: class ")
    assert titles[1:] == [f"student, block {block}" for block in (1, 2, 3)]


@pytest.mark.parametrize("setting", ["num_images", "interval"])
def test_bad_settings_of_pictures(setting: str) -> None:
    message = f"ClassifierAttentionPictureHook: {setting} must be an integer of 0 or more, got -1"
    with pytest.raises(ValueError, match=message):
        ClassifierAttentionPictureHook(**{setting: -1})


# Compilation, memory format, bfloat16


def run(data_root: Path, work_dir: Path, *hooks: dict[str, Any], **settings: Any) -> Runner:
    config = tiny_config(data_root, epochs=2, workers=0, frskd=True)
    config.custom_hooks = [*config.custom_hooks, *hooks]
    return train(config, work_dir, **settings)


@pytest.fixture(scope="module")
def plain(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return run(data_root, tmp_path_factory.mktemp("plain"))


def assert_close(runner: Runner, other: Runner) -> None:
    """Compare weights of steps whose kernels may be others on some CPUs."""
    found, expected = runner.model.state_dict(), other.model.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_compiled_parts_train_to_the_same_weights(
    plain: Runner, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled, compile_ = [], torch.compile

    def compile_ours(forward: Any, **options: Any) -> Any:
        compiled.append(type(forward.__self__).__name__)
        return compile_(forward, **options) if compiled[-1] == "SelfTeacherNeck" else forward

    monkeypatch.setattr(torch, "compile", compile_ours)
    runner = run(data_root, tmp_path, COMPILED)
    assert compiled == ["TinyBackbone", "FCNHead", "SelfTeacherNeck", "FCNHead"]
    assert_close(runner, plain)
    assert not any("forward" in vars(module) for module in runner.model.modules())
    for hook, message in (
        (CompileHook(parts=["head"]), "FRSKDEncoderDecoder has no part 'head' to compile"),
        (CompileHook(), "found none of backbone, neck.* in Linear: name what to compile"),
    ):
        model = runner.model if hook.parts else nn.Linear(1, 1)
        with pytest.raises(ValueError, match=message):
            hook.before_train(SimpleNamespace(model=model))


def test_channels_last_trains_alike_and_resumes_exactly(plain: Runner, data_root: Path, tmp_path: Path) -> None:
    runner = run(data_root, tmp_path / "whole", LAID_OUT)
    last = torch.channels_last
    assert runner.model.backbone.body.weight.is_contiguous(memory_format=last)
    maps = runner.model.extract_feat(torch.randn(2, 3, 32, 32))
    assert all(feat.is_contiguous(memory_format=last) and not feat.is_contiguous() for feat in maps)
    assert_close(runner, plain)

    run(data_root, tmp_path / "half", LAID_OUT, train_cfg__max_epochs=1)
    resumed = run(data_root, tmp_path / "half", LAID_OUT, resume=True)
    assert resumed.model.backbone.body.weight.is_contiguous(memory_format=last)
    # the first run's schedule was that of two epochs, as its config says
    assert_equal(runner.model.state_dict(), resumed.model.state_dict())


def test_forward_runs_in_bfloat16_and_accumulation_is_kept() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapper = AutocastOptimWrapper(optimizer=optimizer, device_type="cpu")
    with wrapper.optim_context(model):
        output = model(torch.ones(1, 2))
    assert output.dtype is torch.bfloat16
    wrapper.update_params(output.float().square().sum())
    assert model.weight.dtype is torch.float32 and model.weight.grad is None
    assert model(torch.ones(1, 2)).dtype is torch.float32
    wrapper = AutocastOptimWrapper(optimizer=optimizer, accumulative_counts=4, device_type="cpu")
    wrapper.initialize_count_status(model, 0, 8)
    assert not wrapper.should_sync()
    for dtype, message in (
        (torch.float64, "dtype must be 'bfloat16' or torch.bfloat16, got torch.float64"),
        ("float16", "does not scale the loss, so float16 gradients would vanish.*type='AmpOptimWrapper'"),
    ):
        with pytest.raises(ValueError, match=message):
            AutocastOptimWrapper(dtype=dtype, optimizer=None)
