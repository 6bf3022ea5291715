"""The shipped detectors, shrunk, trained by mmengine's Runner on a drawn data set, validated, exported, loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from frskd_plugin.mmengine.export import export_student
from tests.mmdet.tiny_coco import build, make_batch, training_config, write_coco

EPOCHS = 6
STEPS = 2  # an epoch: eight images in batches of four


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco") / "coco")


@pytest.fixture(scope="module", params=["retinanet", "atss"])
def runner(request: pytest.FixtureRequest, data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """A finished run."""
    work_dir = tmp_path_factory.mktemp(f"frskd_{request.param}")
    runner = Runner.from_cfg(training_config(request.param, data_root, work_dir, EPOCHS))
    runner.train()
    return runner


def history(runner: Runner, name: str) -> list[float]:
    return runner.message_hub.get_scalar(f"train/{name}").data[0].tolist()


def test_losses_fall_and_every_term_takes_part(runner: Runner) -> None:
    assert type(runner.model).__name__ == "FRSKDSingleStage"
    for name in ("loss_cls", "loss_bbox", "self_teacher.loss_cls", "self_teacher.loss_bbox"):
        values = history(runner, name)
        assert len(values) == EPOCHS * STEPS
        assert all(0 < value < 10 for value in values)
    own = [
        sum(pair) for pair in zip(history(runner, "loss_cls"), history(runner, "self_teacher.loss_cls"), strict=True)
    ]
    epochs = [sum(own[start : start + STEPS]) for start in range(0, len(own), STEPS)]
    assert min(epochs) < 0.9 * epochs[0]  # not the last: with full distillation the steps there follow the rounding


def test_distillation_warms_up_and_validation_gives_coco_scores(runner: Runner) -> None:
    for name in ("self_teacher.loss_kd", "self_teacher.loss_feat"):
        values = history(runner, name)
        assert values[:STEPS] == [0, 0]
        assert all(value > 0 for value in values[STEPS:])
    assert 0 <= runner.message_hub.get_scalar("val/coco/bbox_mAP_50").current() <= 1


def test_student_is_exported_into_the_stock_detector(runner: Runner, tmp_path: Path) -> None:
    source = Path(runner.work_dir) / f"epoch_{EPOCHS}.pth"
    target, config_path, *_ = export_student(source, tmp_path / "student.pth")
    config = Config.fromfile(config_path)
    assert config.model.type == "SingleStageDetector"
    assert "self_teacher" not in config.model
    assert config.train_dataloader.dataset.type == "CocoDataset"
    student = build(config.model).eval()
    student.load_state_dict(torch.load(target, weights_only=True)["state_dict"], strict=True)
    images, samples = make_batch(batch=1)
    trained = runner.model.eval()
    with torch.no_grad():
        expected = trained.predict(images, [sample.clone() for sample in samples])[0].pred_instances
        actual = student.predict(images, samples)[0].pred_instances
    assert len(actual) > 0
    assert torch.equal(actual.bboxes, expected.bboxes)
    assert torch.equal(actual.scores, expected.scores)
