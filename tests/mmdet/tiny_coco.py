"""Detectors and a COCO-format data set, small enough to train real runs in a test: the shipped configs, shrunk."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from PIL import Image, ImageDraw

import frskd_plugin  # noqa: F401  (registers the components)
from frskd_plugin.mmengine.config_tools import set_data_root

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CLASSES = ("square", "disc", "bar")
SIZE = 128
CHANNELS = 32

FCOS_HEAD = dict(type="FCOSHead", num_classes=len(CLASSES), in_channels=CHANNELS, feat_channels=CHANNELS)
FCOS_HEAD |= dict(stacked_convs=1, strides=[8, 16, 32, 64, 128], norm_cfg=dict(type="GN", num_groups=8))
FCOS_HEAD |= dict(loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0))
SOFTMAX_LOSS = dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0)


def write_coco(root: Path, num_images: int = 8) -> Path:
    """Write a folder in COCO's layout with drawn images; training and validation have the same ones."""
    rng = np.random.default_rng(0)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for folder in ("annotations", "train2017", "val2017"):
        (root / folder).mkdir(parents=True)
    for image_id in range(num_images):
        picture = Image.fromarray(rng.integers(0, 60, size=(SIZE, SIZE, 3), dtype=np.uint8))
        for label in range(len(CLASSES)):
            annotations.append(draw(ImageDraw.Draw(picture), rng, label, image_id, len(annotations) + 1))
        name = f"{image_id:012d}.jpg"
        images.append(dict(id=image_id, file_name=name, width=SIZE, height=SIZE))
        for folder in ("train2017", "val2017"):
            picture.save(root / folder / name)
    categories = [dict(id=label + 1, name=name) for label, name in enumerate(CLASSES)]
    content = json.dumps(dict(images=images, annotations=annotations, categories=categories))
    for split in ("train2017", "val2017"):
        (root / "annotations" / f"instances_{split}.json").write_text(content)
    return root


def draw(canvas: ImageDraw.ImageDraw, rng: np.random.Generator, label: int, image_id: int, number: int) -> dict:
    """Draw one object of a class and give its annotation."""
    width, height = (24, 64) if CLASSES[label] == "bar" else [int(rng.integers(24, 56))] * 2
    x, y = int(rng.integers(0, SIZE - width)), int(rng.integers(0, SIZE - height))
    color = tuple(255 if channel == label else 90 for channel in range(3))
    shape = canvas.ellipse if CLASSES[label] == "disc" else canvas.rectangle
    shape((x, y, x + width - 1, y + height - 1), fill=color)
    box = dict(bbox=[x, y, width, height], area=width * height, iscrowd=0)
    return dict(id=number, image_id=image_id, category_id=label + 1, segmentation=[], **box)


def shrunk_config(kind: str, frskd: bool) -> Config:
    """A shipped config of COCO ('retinanet' or 'atss') on a tiny timm EfficientNet, FRSKD's or its baseline.

    The kinds 'fcos' and 'softmax' (a RetinaNet with a background class) change the head.
    """
    shipped = "atss" if kind in ("atss", "fcos") else "retinanet"
    config = Config.fromfile(CONFIGS / f"{'frskd' if frskd else 'baseline'}_coco_{shipped}_effdet_d0.py")
    model = config.model
    model.data_preprocessor.batch_augments[0].size = (SIZE, SIZE)
    model.backbone.update(model_name="test_efficientnet", pretrained=False)
    model.neck.update(in_channels=[32, 48, 64], channels=CHANNELS, repeat=1)
    model.bbox_head.update(num_classes=len(CLASSES), in_channels=CHANNELS, feat_channels=CHANNELS, stacked_convs=1)
    if shipped == "atss":
        model.bbox_head.norm_cfg = dict(type="GN", num_groups=8)
    if kind == "fcos":
        model.bbox_head = FCOS_HEAD
        model.train_cfg = None
    if kind == "softmax":
        model.bbox_head.loss_cls = SOFTMAX_LOSS
    model.test_cfg.score_thr = 0.0  # an untrained network is sure of nothing
    if frskd:
        model.self_teacher.neck.update(in_channels=[CHANNELS] * 5, channels=CHANNELS)
    else:
        model.type = "SingleStageDetector"
    return config


def training_config(kind: str, data_root: Path, work_dir: Path, epochs: int) -> Config:
    """A run of a few steps on the data that `write_coco` wrote, validated once, in this process."""
    config = shrunk_config(kind, frskd=True)
    set_data_root(config, data_root)
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        dataset = loader.dataset.get("dataset", loader.dataset)
        dataset.metainfo = dict(classes=CLASSES)
        for step in dataset.pipeline:
            for key in ("scale", "crop_size"):
                if key in step:
                    step[key] = (SIZE, SIZE)
    config.train_dataloader.batch_size = 4
    config.train_cfg.update(max_epochs=epochs, val_interval=epochs)
    config.param_scheduler = None
    config.visualizer.vis_backends = []
    config.visualizer.name = config.experiment_name = work_dir.name
    config.work_dir, config.launcher = str(work_dir), "none"
    (warmup,) = [hook for hook in config.custom_hooks if hook.type == "DistillWarmupHook"]
    warmup.update(begin=1, end=epochs)
    return config


def build(model: Any, seed: int = 0) -> torch.nn.Module:
    """The detector of a config, initialised from a seed."""
    init_default_scope("mmdet")
    from mmdet.registry import MODELS

    torch.manual_seed(seed)
    detector = MODELS.build(copy.deepcopy(model))
    detector.init_weights()
    return detector


def make_batch(batch: int = 2, size: tuple[int, int] = (SIZE, SIZE), seed: int = 0) -> tuple[torch.Tensor, list[Any]]:
    """Normalised images [B, 3, H, W] and data samples with two boxes each."""
    from mmdet.structures import DetDataSample

    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, 3, *size, generator=generator)
    meta = dict(img_shape=size, ori_shape=size, pad_shape=size, scale_factor=(1.0, 1.0))
    samples = []
    for _ in range(batch):
        boxes = torch.tensor([[10.0, 12.0, 62.0, 70.0], [40.0, 50.0, 120.0, 116.0]])
        sample = DetDataSample(metainfo=meta)
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([0, 2]))
        sample.ignored_instances = InstanceData(bboxes=boxes[:0], labels=torch.zeros(0, dtype=torch.long))
        samples.append(sample)
    return images, samples
