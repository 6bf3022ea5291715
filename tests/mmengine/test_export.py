"""The config that goes beside an exported student."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config

from frskd_plugin.mmengine.export import export_student, plain_config
from tests.helpers.real_runs import train
from tests.helpers.tiny_mmseg import tiny_config


def test_exported_config_trains_on_without_this_package(data_root: Path, tmp_path: Path) -> None:
    config = tiny_config(data_root, epochs=1, workers=0, frskd=True)
    config.custom_hooks += [dict(type="DistillWarmupHook", begin=0, end=1, by_epoch=True)]
    train(config, tmp_path / "frskd")
    target, config_path, *_ = export_student(tmp_path / "frskd" / "epoch_1.pth", tmp_path / "student.pth")
    exported = Config.fromfile(config_path)
    for ours in ("FRSKD", "self_teacher", "SeededDataset", "AtomicCheckpointHook", "StepSeedHook", "LoadChecked"):
        assert ours not in exported.pretty_text
    # Nothing but stock components and the test's own backbone is left, so frskd_plugin is not imported.
    assert exported.custom_imports.imports == ["tests.helpers.tiny_mmseg"]
    assert train(exported, tmp_path / "plain", load_from=str(target)).epoch == 1


def test_what_only_this_package_has_keeps_its_import() -> None:
    config = Config(
        dict(
            custom_imports=dict(imports=["frskd_plugin"], allow_failed_imports=False),
            model=dict(
                type="FRSKDEncoderDecoder",
                backbone=dict(type="TimmFeatureExtractor", model_name="resnet18", pretrained=True, checkpoint="a.pth"),
                neck=dict(type="BiFPN", in_channels=[8, 16]),
                self_teacher=dict(type="FRSKDHead"),
            ),
            val_evaluator=dict(type="SelfTeacherIoUMetric", iou_metrics=["mIoU"]),
            custom_hooks=[dict(type="DistillWarmupHook"), dict(type="EMAHook"), dict(type="AttentionPictureHook")],
            load_from="pretrained.pth",
        )
    )
    before = config.pretty_text
    plain = plain_config(config)
    assert config.pretty_text == before
    assert plain.custom_imports.imports == ["frskd_plugin"]
    assert plain.model == dict(
        type="EncoderDecoder",
        backbone=dict(type="TimmFeatureExtractor", model_name="resnet18", pretrained=False),
        neck=dict(type="BiFPN", in_channels=[8, 16]),
    )
    assert plain.val_evaluator.type == "IoUMetric"
    assert plain.custom_hooks == [dict(type="EMAHook")] and plain.load_from is None


def test_nothing_of_the_run_is_left_in_the_config() -> None:
    hooks = ("CompileHook", "ChannelsLastHook", "SyncStatisticsHook", "StepSeedHook")
    config = Config(
        dict(
            model=dict(type="FRSKDEncoderDecoder", self_teacher=dict(type="FRSKDHead")),
            custom_hooks=[dict(type=name) for name in hooks],
            model_wrapper_cfg=dict(type="SyncBNDataParallel", sync_bn=True),
            work_dir="work_dirs/frskd_fcn",
            launcher="pytorch",
        )
    )
    plain = plain_config(config)
    assert plain.custom_hooks == [] and plain.launcher == "none"
    assert "work_dir" not in plain and "model_wrapper_cfg" not in plain
    config.model_wrapper_cfg = dict(type="MMFullyShardedDataParallel")  # the user's choice
    assert plain_config(config).model_wrapper_cfg.type == "MMFullyShardedDataParallel"
