"""The hooks that draw attention maps in the course of a training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config

from frskd_plugin.mmengine.attention import ClassifierAttentionPictureHook, attention_panels, picture_of
from tests.helpers.real_runs import final_weights, train
from tests.helpers.tiny_classification import tiny_config, write_cifar


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cifar(tmp_path_factory.mktemp("cifar"))


def with_hook(config: Config, **settings: object) -> Config:
    kind = "ClassifierAttentionPictureHook"
    config.custom_hooks = [hook for hook in config.custom_hooks if hook.type != kind]
    if settings:
        config.custom_hooks = [*config.custom_hooks, dict(type=kind, **settings)]
    return config


def drawn(work_dir: Path) -> list[str]:
    folder = work_dir / "attention"
    return sorted(file.relative_to(folder).as_posix() for file in folder.glob("**/*.png"))


def test_pictures_of_epochs_change_nothing_that_is_trained(cifar: Path, tmp_path: Path) -> None:
    train(with_hook(tiny_config(cifar)), tmp_path / "without")
    runner = train(with_hook(tiny_config(cifar), num_images=2, interval=2), tmp_path / "with")
    names = ("image_0.png", "image_1.png")
    assert drawn(tmp_path / "without") == []
    assert drawn(tmp_path / "with") == [*(f"epoch_2/{name}" for name in names), *names]
    plain, pictured = (final_weights(tmp_path / name, 3) for name in ("without", "with"))
    assert all(torch.equal(plain[key], pictured[key]) for key in plain)
    check_picture(runner)


def check_picture(runner) -> None:
    model, sample = runner.model.eval(), runner.val_dataloader.dataset[1]
    with torch.no_grad():
        inputs = model.data_preprocessor(dict(inputs=sample["inputs"][None]))["inputs"]
        feats, logits = model.network.student_forward(inputs)
        refined_feats, teacher_logits = model.network.method.self_teacher(feats)
    axes = picture_of(model, sample["inputs"], 1, ["first", "second"]).axes
    assert axes[0].get_title().startswith("second\nstudent: ") and axes[4].get_title().startswith(
        "second\nself-teacher: "
    )
    for axis, scores in ((axes[0], logits), (axes[4], teacher_logits)):
        predicted = int(scores.argmax())
        assert axis.get_title().endswith(["first", "second"][predicted] if predicted < 2 else f": class {predicted}")
        assert np.array_equal(axis.images[0].get_array(), sample["inputs"].permute(1, 2, 0).numpy())
    for row, maps in ((axes[1:4], feats), (axes[5:], refined_feats)):
        for axis, panel in zip(row, attention_panels(maps, (32, 32)), strict=True):
            np.testing.assert_array_equal(axis.images[1].get_array(), panel)


def test_baseline_has_one_row_and_iterations_can_be_counted(cifar: Path, tmp_path: Path) -> None:
    config = tiny_config(cifar, "baseline_cifar100_wrn_16_2", epochs=1)
    runner = train(with_hook(config, num_images=1, interval=2, by_epoch=False), tmp_path)
    assert drawn(tmp_path) == ["image_0.png", "iter_2/image_0.png"]  # of 4 iterations, the last one after the training
    figure = picture_of(runner.model.eval(), runner.val_dataloader.dataset[0]["inputs"], 0)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[0].startswith("class 0\nstudent: class ")
    assert titles[1:] == [f"student, block {block}" for block in (1, 2, 3)]


@pytest.mark.parametrize("setting", ["num_images", "interval"])
def test_bad_settings(setting: str) -> None:
    with pytest.raises(
        ValueError, match=f"ClassifierAttentionPictureHook: {setting} must be an integer of 0 or more, got -1"
    ):
        ClassifierAttentionPictureHook(**{setting: -1})
