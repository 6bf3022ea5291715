"""Small segmentors and batches for tests: the paper's form and a stock FCN, plain and with FRSKD."""

from __future__ import annotations

import copy

import torch
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

import frskd_plugin  # noqa: F401  (registers the components)

CLASSES = 5
PREPROCESSOR = {"type": "SegDataPreProcessor", "mean": [120.0] * 3, "std": [60.0] * 3, "pad_val": 0, "seg_pad_val": 255}
CROSS_ENTROPY = {"type": "CrossEntropyLoss", "use_sigmoid": False, "avg_non_ignore": True}
DISTILL = {"type": "FRSKDLoss", "alpha": 1.0, "beta": 50.0, "temperature": 1.0}


def effdet(variant="efficientdet", channels=8):
    """The paper's segmentor on a small timm network."""
    neck = dict(type="BiFPN", in_channels=[8, 16, 24, 288], channels=channels, repeat=2, variant=variant)
    head = dict(type="EffDetSegHead", in_channels=channels, in_index=0, channels=16, num_classes=CLASSES)
    return dict(
        type="EncoderDecoder",
        data_preprocessor=PREPROCESSOR,
        backbone=dict(type="TimmFeatureExtractor", model_name="mobilenetv3_small_050", out_indices=(1, 2, 3, 4)),
        neck=neck,
        decode_head=dict(head, loss_decode=CROSS_ENTROPY),
        train_cfg={},
        test_cfg={"mode": "whole"},
    )


def fcn():
    """A stock mmseg model: ResNetV1c and FCNHead, with an auxiliary head."""
    head = {"type": "FCNHead", "num_classes": CLASSES, "channels": 16, "num_convs": 1, "loss_decode": CROSS_ENTROPY}
    return dict(
        type="EncoderDecoder",
        data_preprocessor=PREPROCESSOR,
        backbone=dict(type="ResNetV1c", depth=18, base_channels=8, stem_channels=8, zero_init_residual=False),
        decode_head={**head, "in_channels": 64, "in_index": 3, "dropout_ratio": 0.1},
        auxiliary_head={**head, "in_channels": 32, "in_index": 2, "dropout_ratio": 0.0},
        train_cfg={},
        test_cfg={"mode": "whole"},
    )


def with_frskd(plain, **neck):
    """The few lines that turn a plain config into an FRSKD one."""
    default = {"in_channels": [8] * 6, "channels": 8, "repeat": 2, "variant": "efficientdet"}
    if plain["decode_head"]["type"] == "FCNHead":
        default = {"in_channels": [8, 16, 32, 64], "width": 1}
    neck = {"type": "SelfTeacherNeck", **default, **neck}
    self_teacher = {"type": "FRSKDHead", "neck": neck, "loss_distill": DISTILL}
    return {**copy.deepcopy(plain), "type": "FRSKDEncoderDecoder", "self_teacher": self_teacher}


def build(config, seed=0):
    """The model of a config, initialised from a seed."""
    init_default_scope("mmseg")
    torch.manual_seed(seed)
    model = MODELS.build(ConfigDict(copy.deepcopy(config)))
    model.init_weights()
    return model


def make_batch(batch=2, size=(64, 64), seed=0):
    """Normalised images [B, 3, H, W] and data samples with random labels, one row of them ignored."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, 3, *size, generator=generator)
    samples = []
    for _ in range(batch):
        label = torch.randint(0, CLASSES, (1, *size), generator=generator)
        label[:, 0] = 255
        meta = {"img_shape": size, "ori_shape": size, "pad_shape": size, "scale_factor": (1.0, 1.0), "flip": False}
        samples.append(SegDataSample(gt_sem_seg=PixelData(data=label), metainfo=meta))
    return images, samples
