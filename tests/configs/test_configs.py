"""The recipes: that they load, say what the paper says, and that twins differ in the self-teacher alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
LEAVES = sorted(path.name for path in CONFIGS.glob("*.py"))
SEGMENTORS = [name for name in LEAVES if name.split("_")[1] in ("voc", "camvid")]
MODELS = ("effdet_d0", "effdet_d1", "fcn_r18")
DATA_SETS = ("voc", "camvid")


def load(name: str) -> Config:
    return Config.fromfile(CONFIGS / name)


def without(config: dict, *keys: str) -> dict:
    return {key: value for key, value in config.items() if key not in keys}


def hook(config: Config, name: str) -> dict:
    (found,) = [h for h in config.custom_hooks if h["type"] == name]
    return found


def test_leaves():
    expected = {f"{kind}_{data}_{model}.py" for kind in ("baseline", "frskd") for data in DATA_SETS for model in MODELS}
    assert expected <= set(LEAVES)


@pytest.mark.parametrize("name", LEAVES)
def test_leaf_is_short_loads_and_survives_a_dump(name):
    code = [line for line in (CONFIGS / name).read_text().splitlines() if line.strip() and not line.startswith("#")]
    assert len(code) <= 15
    config = load(name)
    assert config.custom_imports["imports"] == ["frskd_plugin"]
    assert not [key for key in config if key.startswith("_")]
    assert Config.fromstring(config.pretty_text, ".py").to_dict() == config.to_dict()


@pytest.mark.parametrize("data", DATA_SETS)
@pytest.mark.parametrize("model", MODELS)
def test_twins_differ_in_the_self_teacher_alone(data, model):
    baseline, frskd = load(f"baseline_{data}_{model}.py"), load(f"frskd_{data}_{model}.py")
    changed = ("model", "custom_hooks", "find_unused_parameters")
    assert without(baseline.to_dict(), *changed) == without(frskd.to_dict(), *changed)
    assert without(baseline.model, "type") == without(frskd.model, "type", "self_teacher")
    assert (baseline.model.type, frskd.model.type) == ("EncoderDecoder", "FRSKDEncoderDecoder")
    added = [h["type"] for h in frskd.custom_hooks if h not in baseline.custom_hooks]
    assert added == ["DistillWarmupHook", "SelfTeacherValidationHook"]
    assert frskd.custom_hooks[: len(baseline.custom_hooks)] == baseline.custom_hooks
    assert not frskd.get("find_unused_parameters", False)
    # The plain segmentor reads P2 alone; a stock model uses all its parameters.
    assert baseline.get("find_unused_parameters", False) is model.startswith("effdet")


@pytest.mark.parametrize(("model", "channels", "backbone"), [("d0", 64, "b0"), ("d1", 88, "b1")])
def test_voc_follows_the_paper(model, channels, backbone):
    config = load(f"frskd_voc_effdet_{model}.py")
    wrapper = config.optim_wrapper
    assert wrapper.optimizer == dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=5e-4)
    assert wrapper.clip_grad == dict(type="value", clip_value=2.0)
    assert config.train_dataloader.batch_size * wrapper.accumulative_counts == 32
    assert config.train_dataloader.batch_size == 16
    assert config.train_cfg.type == "EpochBasedTrainLoop"
    assert config.train_cfg.max_epochs == 60
    assert config.param_scheduler == dict(type="MultiStepLR", milestones=[40], gamma=0.1, by_epoch=True)
    warmup = hook(config, "DistillWarmupHook")
    assert (warmup.begin, warmup.end, warmup.by_epoch) == (40, 60, True)

    net = config.model
    assert tuple(net.data_preprocessor["size"]) == (512, 512)
    assert net.backbone.model_name == f"tf_efficientnet_{backbone}.aa_in1k"
    assert net.backbone.pretrained is True
    assert net.neck == dict(
        type="BiFPN",
        in_channels=[24, 40, 112, 320],
        channels=channels,
        num_levels=6,
        repeat=3,
        variant="efficientdet",
    )
    head = net.decode_head
    assert (head.in_channels, head.in_index, head.channels, head.num_classes) == (channels, 0, 256, 21)
    assert head.loss_decode.avg_non_ignore is True
    teacher = net.self_teacher
    assert teacher.neck == dict(
        type="SelfTeacherNeck", in_channels=[channels] * 6, channels=channels, repeat=2, variant="efficientdet"
    )
    assert teacher.loss_distill == dict(type="FRSKDLoss", alpha=1.0, beta=50.0, temperature=1.0)


def test_voc_data():
    config = load("baseline_voc_effdet_d0.py")
    assert config.train_dataloader.sampler == dict(type="SeededSampler", shuffle=True)
    assert config.train_dataloader.dataset.type == "SeededDataset"
    parts = config.train_dataloader.dataset.dataset.datasets
    assert [part.ann_file for part in parts] == [
        f"{year}/ImageSets/Segmentation/frskd_train.txt" for year in ("VOC2007", "VOC2012")
    ]
    for part in parts:
        steps = {step.type: step for step in part.pipeline}
        assert tuple(steps["RandomCrop"].crop_size) == (512, 512)
        assert tuple(steps["RandomResize"].ratio_range) == (0.5, 2.0)
        assert steps["RandomFlip"].prob == 0.5
    assert config.val_dataloader.dataset.ann_file == "VOC2007/ImageSets/Segmentation/test.txt"


def test_paper_protocol_changes_the_training_lists_alone():
    usual = load("_base_/datasets/voc0712.py").to_dict()
    paper = load("_base_/datasets/voc0712_paper_protocol.py").to_dict()
    parts = paper["train_dataloader"]["dataset"]["dataset"]["datasets"]
    for part in parts:
        assert part["ann_file"].endswith("/frskd_train_paper_protocol.txt")
        part["ann_file"] = part["ann_file"].replace("_paper_protocol", "")
    assert paper == usual


@pytest.mark.parametrize("model", MODELS)
def test_camvid(model):
    config = load(f"frskd_camvid_{model}.py")
    assert config.model.decode_head.num_classes == 11
    assert tuple(config.model.data_preprocessor["size"]) == tuple(config.crop_size)
    if model.startswith("effdet"):
        assert config.model.backbone.pretrained is False
    warmup = hook(config, "DistillWarmupHook")
    assert warmup.end == config.train_cfg.max_epochs
    assert warmup.begin == pytest.approx(warmup.end * 2 / 3, abs=1)
    splits = [config[f"{key}_dataloader"].dataset for key in ("val", "test")]
    assert [Path(split.ann_file).stem for split in splits] == ["val", "test"]


@pytest.mark.parametrize("data", DATA_SETS)
def test_stock_model_needs_no_network(data):
    model = load(f"frskd_{data}_fcn_r18.py").model
    assert model.pretrained is None
    assert model.self_teacher.neck == dict(type="SelfTeacherNeck", in_channels=[64, 128, 256, 512], width=1)


@pytest.mark.parametrize("name", SEGMENTORS)
def test_checkpoints_and_logs(name):
    config = load(name)
    checkpoint = config.default_hooks.checkpoint
    assert checkpoint.type == "AtomicCheckpointHook"
    assert checkpoint.interval == 1
    assert checkpoint.max_keep_ckpts >= 2
    assert checkpoint.save_best == "mIoU"
    assert "TensorboardVisBackend" in [backend.type for backend in config.vis_backends]
    assert config.log_processor.by_epoch is True
    assert {"StepSeedHook", "AttentionPictureHook"} <= {h["type"] for h in config.custom_hooks}
