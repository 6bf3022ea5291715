"""The recipes: that they load, that twins differ in the method alone, and that segmentors follow the paper."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS

import frskd_plugin  # noqa: F401  (registers the components)
from frskd_plugin.mmengine.config_tools import set_data_root

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
LEAVES = sorted(path.stem for path in CONFIGS.glob("*.py"))
# method's type, and the hooks that come with it
TWINS = {
    "EncoderDecoder": ("FRSKDEncoderDecoder", ["DistillWarmupHook", "SelfTeacherValidationHook"]),
    "RetinaNet": ("FRSKDSingleStage", ["DistillWarmupHook"]),
    "ATSS": ("FRSKDSingleStage", ["DistillWarmupHook"]),
}


def load(name: str) -> Config:
    return Config.fromfile(CONFIGS / f"{name}.py")


@pytest.mark.parametrize("name", LEAVES)
def test_leaf_is_short_loads_and_survives_a_dump(name):
    code = [line for line in (CONFIGS / f"{name}.py").read_text().splitlines() if line.strip() and line[0] != "#"]
    assert len(code) <= 15
    config = load(name)
    assert config.custom_imports["imports"] == ["frskd_plugin"]
    assert not [key for key in config if key.startswith("_")]
    assert Config.fromstring(config.pretty_text, ".py").to_dict() == config.to_dict()
    assert config.default_hooks.checkpoint.type == "AtomicCheckpointHook"
    assert "StepSeedHook" in [hook.type for hook in config.custom_hooks]


@pytest.mark.parametrize("name", [name for name in LEAVES if name.startswith("baseline")])
def test_twins_differ_in_the_method_alone(name):
    baseline, frskd = load(name).to_dict(), load(name.replace("baseline", "frskd")).to_dict()
    plain, model = baseline.pop("model"), frskd.pop("model")
    hooks, more_hooks = baseline.pop("custom_hooks"), frskd.pop("custom_hooks")
    if "method" in plain:
        assert (plain.pop("method"), model.pop("method")["name"]) == ({"name": "baseline"}, "frskd")
        assert more_hooks == hooks
    else:
        assert model.pop("self_teacher")
        kind, added = TWINS[plain.pop("type")]
        assert model.pop("type") == kind
        assert [hook["type"] for hook in more_hooks if hook not in hooks] == added
        assert more_hooks[: len(hooks)] == hooks
    assert plain == model
    # The plain segmentor reads P2 alone; every other model uses all its parameters.
    unused = baseline.pop("find_unused_parameters", False)
    assert unused is ("effdet" in name and "coco" not in name)
    assert not frskd.pop("find_unused_parameters", False)
    assert baseline == frskd
    for warm_up in (hook for hook in more_hooks if hook["type"] == "DistillWarmupHook"):
        assert warm_up["end"] / 2 <= warm_up["begin"] < warm_up["end"] == frskd["train_cfg"]["max_epochs"]
    if "camvid" in name:
        assert plain["decode_head"]["num_classes"] == 11


@pytest.mark.parametrize(("model", "channels", "backbone"), [("d0", 64, "b0"), ("d1", 88, "b1")])
def test_voc_follows_the_paper(model, channels, backbone):
    config = load(f"frskd_voc_effdet_{model}")
    wrapper, loader, net = config.optim_wrapper, config.train_dataloader, config.model
    assert wrapper.optimizer == dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=5e-4)
    assert wrapper.clip_grad == dict(type="value", clip_value=2.0)
    assert loader.batch_size * wrapper.accumulative_counts == 32
    assert config.param_scheduler == dict(type="MultiStepLR", milestones=[40], gamma=0.1, by_epoch=True)
    (warmup,) = [hook for hook in config.custom_hooks if hook.type == "DistillWarmupHook"]
    assert (warmup.begin, warmup.end, warmup.by_epoch, config.train_cfg.max_epochs) == (40, 60, True, 60)
    assert tuple(net.data_preprocessor["size"]) == (512, 512)
    assert net.backbone.model_name == f"tf_efficientnet_{backbone}.aa_in1k" and net.backbone.pretrained
    layers = dict(channels=channels, variant="efficientdet")
    assert net.neck == dict(type="BiFPN", in_channels=[24, 40, 112, 320], num_levels=6, repeat=3, **layers)
    head = net.decode_head
    assert (head.in_channels, head.in_index, head.channels, head.num_classes) == (channels, 0, 256, 21)
    assert head.loss_decode.avg_non_ignore
    assert net.self_teacher.neck == dict(type="SelfTeacherNeck", in_channels=[channels] * 6, repeat=2, **layers)
    assert net.self_teacher.loss_distill == dict(type="FRSKDLoss", alpha=1.0, beta=50.0, temperature=1.0)

    parts = loader.dataset.dataset.datasets
    lists = [f"{year}/ImageSets/Segmentation/frskd_train.txt" for year in ("VOC2007", "VOC2012")]
    assert [part.ann_file for part in parts] == lists
    assert config.val_dataloader.dataset.ann_file == "VOC2007/ImageSets/Segmentation/test.txt"


def test_paper_protocol_changes_the_training_lists_alone():
    usual = load("_base_/datasets/voc0712").to_dict()
    paper = load("_base_/datasets/voc0712_paper_protocol").to_dict()
    for part in paper["train_dataloader"]["dataset"]["dataset"]["datasets"]:
        assert part["ann_file"].endswith("/frskd_train_paper_protocol.txt")
        part["ann_file"] = part["ann_file"].replace("_paper_protocol", "")
    assert paper == usual


@pytest.mark.parametrize("head", ["retinanet", "atss"])
def test_levels_and_channels_of_the_detectors_fit(head, tmp_path):
    config = load(f"frskd_coco_{head}_effdet_d0")
    model = config.model
    backbone = MODELS.build({**model.backbone, "pretrained": False})
    neck, teacher = MODELS.build(model.neck), MODELS.build(model.self_teacher.neck)
    assert backbone.strides == (8, 16, 32)
    assert list(backbone.out_channels) == neck.in_channels
    assert neck.out_channels == teacher.in_channels == teacher.out_channels == [64] * 5
    assert model.bbox_head.in_channels == 64
    assert model.bbox_head.anchor_generator.strides == [8, 16, 32, 64, 128]
    assert model.bbox_head.get("num_ins", 5) == 5

    set_data_root(config, tmp_path)
    for evaluator in (config.val_evaluator, config.test_evaluator):
        assert evaluator.ann_file == f"{tmp_path}/annotations/instances_val2017.json"
    assert config.train_dataloader.dataset.dataset.data_root == str(tmp_path)
