"""The recipes of COCO: that twins differ in the self-teacher alone, and that levels and channels fit each other."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS

import frskd_plugin  # noqa: F401  (registers the components)
from frskd_plugin.mmengine.config_tools import set_data_root

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
HEADS = {"retinanet": "RetinaNet", "atss": "ATSS"}


def load(kind: str, head: str) -> Config:
    return Config.fromfile(CONFIGS / f"{kind}_coco_{head}_effdet_d0.py")


def without(config: dict, *keys: str) -> dict:
    return {key: value for key, value in config.items() if key not in keys}


@pytest.mark.parametrize("head", HEADS)
def test_twins_differ_in_the_self_teacher_alone(head):
    baseline, frskd = load("baseline", head), load("frskd", head)
    assert without(baseline.to_dict(), "model", "custom_hooks") == without(frskd.to_dict(), "model", "custom_hooks")
    assert without(baseline.model, "type") == without(frskd.model, "type", "self_teacher")
    assert (baseline.model.type, frskd.model.type) == (HEADS[head], "FRSKDSingleStage")
    assert frskd.custom_hooks == [
        *baseline.custom_hooks,
        dict(type="DistillWarmupHook", begin=16, end=24, by_epoch=True),
    ]
    assert frskd.default_scope == "mmdet"


@pytest.mark.parametrize("head", HEADS)
def test_levels_and_channels_fit(head):
    model = load("frskd", head).model
    backbone = MODELS.build({**model.backbone, "pretrained": False})
    neck, teacher = MODELS.build(model.neck), MODELS.build(model.self_teacher.neck)
    assert backbone.strides == (8, 16, 32)
    assert list(backbone.out_channels) == neck.in_channels
    assert neck.out_channels == teacher.in_channels == teacher.out_channels == [64] * 5
    assert model.bbox_head.in_channels == 64
    assert model.bbox_head.anchor_generator.strides == [8, 16, 32, 64, 128]
    assert model.bbox_head.get("num_ins", 5) == 5
    assert model.self_teacher.neck.repeat == 2
    assert tuple(model.data_preprocessor.batch_augments[0]["size"]) == (512, 512)


def test_data_root_moves_the_metrics_file_too(tmp_path):
    config = load("frskd", "retinanet")
    set_data_root(config, tmp_path)
    for evaluator in (config.val_evaluator, config.test_evaluator):
        assert evaluator.ann_file == f"{tmp_path}/annotations/instances_val2017.json"
    assert config.train_dataloader.dataset.dataset.data_root == str(tmp_path)
