"""A segmentor, a data set and configs small enough to train real runs in a test, also in another process.

Configs import this module by `custom_imports`, so it registers its parts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from PIL import Image
from torch import Tensor, nn

from tests.helpers import real_runs  # noqa: F401  registers the hooks of the configs below

NUM_CLASSES = 4
CLASSES = ("background", "square", "disc", "bar")
PALETTE = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]


@MODELS.register_module(force=True)
class TinyBackbone(nn.Module):
    """Two convolutions: maps of 8 channels at stride 4 and 16 channels at stride 8, with dropout in between."""

    def __init__(self, dropout: float = 0.2, norm: bool = True, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 8, 3, stride=4, padding=1)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.dropout = nn.Dropout2d(dropout)
        self.body = nn.Conv2d(8, 16, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        high = torch.relu(self.norm(self.stem(x)))
        return high, torch.relu(self.body(self.dropout(high)))


def write_dataset(root: Path, num_images: int = 8, size: int = 32) -> Path:
    """Write a VOC devkit folder of `num_images` random images; the same list serves for training and validation."""
    rng = np.random.default_rng(0)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    names = [f"image_{index}" for index in range(num_images)]
    for name in names:
        labels = np.zeros((size, size), dtype=np.uint8)
        for label in range(1, NUM_CLASSES):
            y, x = rng.integers(0, size - 8, size=2)
            labels[y : y + 8, x : x + 8] = label
        labels[0] = 255
        image = labels[..., None] * 40 + rng.integers(0, 60, size=(size, size, 3), dtype=np.uint8)
        cv2.imwrite(str(root / "JPEGImages" / f"{name}.jpg"), image.astype(np.uint8))
        Image.fromarray(labels).save(root / "SegmentationClass" / f"{name}.png")
    for split in ("train", "val"):
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root


def frskd_model() -> dict[str, Any]:
    """The settings that turn the tiny segmentor into an FRSKD one."""
    return dict(
        type="FRSKDEncoderDecoder",
        self_teacher=dict(
            type="FRSKDHead",
            neck=dict(type="SelfTeacherNeck", in_channels=[8, 16], width=1),
            loss_distill=dict(type="FRSKDLoss", alpha=1.0, beta=50.0, temperature=1.0),
        ),
    )


def tiny_config(data_root: Path, epochs: int = 3, workers: int = 0, batch_size: int = 2, frskd: bool = False) -> Config:
    """A training config with every kind of random augmentation that the real configs have."""
    load = [dict(type="LoadCheckedImage"), dict(type="LoadCheckedAnnotations", num_classes=NUM_CLASSES)]
    augment = [
        dict(type="RandomResize", scale=(32, 32), ratio_range=(0.8, 1.5), keep_ratio=True),
        dict(type="RandomCrop", crop_size=(24, 24), cat_max_ratio=0.9),
        dict(type="RandomFlip", prob=0.5),
        dict(type="PhotoMetricDistortion"),
    ]

    def dataset(split: str, transforms: list[dict[str, Any]]) -> dict[str, Any]:
        return dict(
            type="BaseSegDataset",
            **dict(img_suffix=".jpg", seg_map_suffix=".png", reduce_zero_label=False, data_root=str(data_root)),
            serialize_data=False,  # which collects garbage first
            data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClass"),
            ann_file=f"ImageSets/Segmentation/{split}.txt",
            metainfo=dict(classes=CLASSES, palette=PALETTE),
            pipeline=[*load, *transforms, dict(type="PackSegInputs")],
        )

    mean_and_std = dict(mean=[120.0] * 3, std=[60.0] * 3, bgr_to_rgb=True)
    head = dict(type="FCNHead", in_channels=16, in_index=1, channels=8, num_convs=1, concat_input=False)
    head |= dict(num_classes=NUM_CLASSES, norm_cfg=dict(type="BN"), align_corners=False)
    train_dataset = dict(type="SeededDataset", dataset=dataset("train", augment))
    val_dataloader = dict(batch_size=1, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False))
    val_dataloader["dataset"] = dataset("val", [])
    evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
    config = dict(
        default_scope="mmseg",
        custom_imports=dict(imports=["frskd_plugin", "tests.helpers.tiny_mmseg"]),
        env_cfg=dict(mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0), dist_cfg=dict(backend="nccl")),
        visualizer=dict(type="SegLocalVisualizer", vis_backends=[], name="visualizer"),
        log_level="INFO",
        randomness=dict(seed=3),
        model=dict(
            type="EncoderDecoder",
            data_preprocessor=dict(
                type="SegDataPreProcessor", **mean_and_std, pad_val=0, seg_pad_val=255, size=(24, 24)
            ),
            backbone=dict(type="TinyBackbone"),
            decode_head=dict(head, loss_decode=dict(type="CrossEntropyLoss", loss_weight=1.0, avg_non_ignore=True)),
            train_cfg=dict(),
            test_cfg=dict(mode="whole"),
        ),
        train_dataloader=dict(
            batch_size=batch_size,
            num_workers=workers,
            persistent_workers=workers > 0,
            sampler=dict(type="SeededSampler", shuffle=True),
            dataset=train_dataset,
        ),
        val_dataloader=val_dataloader,
        test_dataloader=val_dataloader,
        val_evaluator=evaluator,
        test_evaluator=evaluator,
        optim_wrapper=dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.05, momentum=0.9)),
        param_scheduler=[dict(type="PolyLR", eta_min=1e-4, power=0.9, begin=0, end=epochs, by_epoch=True)],
        train_cfg=dict(type="EpochBasedTrainLoop", max_epochs=epochs, val_interval=1),
        val_cfg=dict(type="ValLoop"),
        test_cfg=dict(type="TestLoop"),
        default_hooks=dict(
            logger=dict(type="LoggerHook", interval=1),
            checkpoint=dict(type="AtomicCheckpointHook", interval=1, max_keep_ckpts=2, save_best="mIoU"),
        ),
        custom_hooks=[dict(type="StepSeedHook"), dict(type="EndHook"), dict(type="DumpRankHook")],
    )
    config = Config(config)
    if frskd:
        config.merge_from_dict(dict(model=frskd_model()))
    return config
