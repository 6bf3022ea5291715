"""Small segmentors of mmseg's stranger families: cascades, heads with losses of their own, odd lists of maps.

``FAMILIES`` gives, for each, the plain config and what the self-teacher has to be told (none of it for most).
"""

from __future__ import annotations

from typing import Any

import torch
from mmengine.model import BaseModule
from mmengine.structures import PixelData
from mmseg.models.decode_heads.mask2former_head import Mask2FormerHead
from mmseg.registry import MODELS
from torch import nn

from tests.helpers.segmentors import CLASSES, CROSS_ENTROPY, DISTILL, fcn, make_batch

BN = {"type": "BN"}
RESNET = {**fcn()["backbone"], "strides": (1, 2, 1, 1), "dilations": (1, 1, 2, 4)}  # maps of 16, 8, 8 and 8 pixels
CHANNELS = [8, 16, 32, 64]
COMMON = {"num_classes": CLASSES, "channels": 16, "norm_cfg": BN, "dropout_ratio": 0.0}
FCN = {"type": "FCNHead", **COMMON, "in_channels": 64, "in_index": 3, "num_convs": 1, "loss_decode": CROSS_ENTROPY}


@MODELS.register_module(force=True)
class TinyMaskHead(Mask2FormerHead):
    """mmseg's own `loss` and `predict` of mask classification, over two layers of queries without a transformer."""

    def __init__(self, num_classes: int, in_channels: int, queries: int = 6) -> None:
        BaseModule.__init__(self)
        self.num_classes = self.out_channels = num_classes
        self.align_corners, self.ignore_index = False, 255
        self.queries = nn.Parameter(torch.randn(2, queries, in_channels))
        self.classify = nn.Linear(in_channels, num_classes + 1)

    def forward(self, x: Any, batch_data_samples: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        masks = [torch.einsum("qc,bchw->bqhw", layer, x[-1]) for layer in self.queries]
        pooled = x[-1].mean((2, 3))[:, None]
        return [self.classify(layer + pooled) for layer in self.queries], masks

    def loss_by_feat(
        self, all_cls_scores: Any, all_mask_preds: Any, batch_gt_instances: Any, batch_img_metas: Any
    ) -> dict[str, torch.Tensor]:
        scores = sum(cls.logsumexp(-1).mean() for cls in all_cls_scores)
        return {"loss_cls": scores.square(), "loss_mask": sum(mask.square().mean() for mask in all_mask_preds)}


def plain(decode_head: Any, backbone: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A plain segmentor; a list of heads makes a cascade."""
    config = {**fcn(), "type": "EncoderDecoder", "backbone": backbone or RESNET, "decode_head": decode_head, **more}
    del config["auxiliary_head"]
    if isinstance(decode_head, list):
        config |= {"type": "CascadeEncoderDecoder", "num_stages": len(decode_head)}
    return config


def head(kind: str, **settings: Any) -> dict[str, Any]:
    """A head on the last map."""
    return {"type": kind, **COMMON, "in_channels": 64, "in_index": 3, "loss_decode": CROSS_ENTROPY, **settings}


def knet() -> dict[str, Any]:
    updater = dict(type="KernelUpdator", in_channels=16, feat_channels=16, out_channels=16)
    update = dict(
        type="KernelUpdateHead",
        **dict(num_classes=CLASSES, num_heads=2, num_mask_fcs=1, feedforward_channels=16),
        **dict(in_channels=16, out_channels=16),
        feat_transform_cfg=dict(conv_cfg=dict(type="Conv2d"), act_cfg=None),
        kernel_updator_cfg=dict(updater, act_cfg=dict(type="ReLU"), norm_cfg=dict(type="LN")),
    )
    stages = dict(num_stages=2, kernel_update_head=[update, update], kernel_generate_head=FCN)
    return plain({"type": "IterativeDecodeHead", **stages})


def ohem(weight: float = 1.0) -> dict[str, Any]:
    return {"type": "OhemCrossEntropy", "thres": 0.9, "min_kept": 100, "loss_weight": weight}


def pidnet() -> dict[str, Any]:
    losses = [CROSS_ENTROPY, ohem(), {"type": "BoundaryLoss", "loss_weight": 20.0}, ohem()]
    backbone = {"type": "PIDNet", "channels": 4, "ppm_channels": 8, "norm_cfg": BN, "num_branch_blocks": 2}
    return plain({"type": "PIDHead", **COMMON, "in_channels": 16, "loss_decode": losses}, backbone)


def ddrnet() -> dict[str, Any]:
    backbone = {"type": "DDRNet", "channels": 4, "ppm_channels": 8, "norm_cfg": BN}
    return plain({"type": "DDRHead", **COMMON, "in_channels": 16, "loss_decode": [ohem(), ohem(0.4)]}, backbone)


def vit(**settings: Any) -> dict[str, Any]:
    small = dict(img_size=64, embed_dims=16, num_layers=2, num_heads=2, mlp_ratio=1, out_indices=(0, 1))
    return {"type": "VisionTransformer", "final_norm": True, **small, **settings}


def dpt() -> dict[str, Any]:
    settings = {"embed_dims": 16, "post_process_channels": [8] * 4, "readout_type": "project"}
    levels = {"in_channels": (16,) * 4, "in_index": (0, 1, 2, 3), "input_transform": "multiple_select"}
    backbone = vit(num_layers=4, out_indices=(0, 1, 2, 3), output_cls_token=True)
    return plain(head("DPTHead", **settings, **levels), backbone)


def segmenter() -> dict[str, Any]:
    layers = {"num_layers": 1, "num_heads": 2, "embed_dims": 16, "norm_cfg": {"type": "LN"}}
    return plain(head("SegmenterMaskTransformerHead", in_channels=16, in_index=0, **layers), vit(out_indices=1))


def unet() -> dict[str, Any]:
    small = {"num_stages": 3, "strides": (1, 1, 1), "enc_num_convs": (2, 2, 2), "dec_num_convs": (2, 2)}
    sampling = {"downsamples": (True, True), "enc_dilations": (1, 1, 1), "dec_dilations": (1, 1)}
    reading = {"in_channels": 4, "channels": 4, "in_index": -1, "num_convs": 0, "concat_input": False}
    return plain({**FCN, **reading}, {"type": "UNet", "base_channels": 4, **small, **sampling, "norm_cfg": BN})


POINTS = {"num_points": 16, "oversample_ratio": 3, "importance_sample_ratio": 0.75}
SUBDIVISION = {"mode": "whole", "subdivision_steps": 2, "subdivision_num_points": 64, "scale_factor": 2}
POINT = dict(type="PointHead", in_channels=[8], in_index=[0], channels=8, num_fcs=2, dropout_ratio=-1)
POINT |= dict(num_classes=CLASSES, loss_decode=CROSS_ENTROPY)
IN_ORDER: dict[str, Any] = {"neck": {"in_channels": CHANNELS}}

FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ocrnet": (
        plain([{**FCN, "loss_decode": {**CROSS_ENTROPY, "loss_weight": 0.4}}, head("OCRHead", ocr_channels=8)]),
        IN_ORDER,
    ),
    "point_rend": (plain([FCN, POINT], train_cfg=POINTS, test_cfg=SUBDIVISION), IN_ORDER),
    "knet": (knet(), IN_ORDER),
    "encnet": (plain(head("EncHead", num_codes=4, in_channels=[16, 32], in_index=(1, 2))), IN_ORDER),
    "danet": (plain(head("DAHead", pam_channels=4)), IN_ORDER),
    "dmnet": (plain(head("DMHead", filter_sizes=(1, 3))), IN_ORDER),  # takes views of its maps
    "deeplabv3plus": (
        plain(head("DepthwiseSeparableASPPHead", dilations=(1, 2), c1_in_channels=8, c1_channels=4)),
        IN_ORDER,
    ),
    "pidnet": (pidnet(), {"neck": {"in_channels": [8, 16, 8]}}),
    "ddrnet": (ddrnet(), {"neck": {"in_channels": [8, 16]}}),
    "dpt": (dpt(), {"neck": {"in_channels": [16] * 4}}),
    "unet": (unet(), {"neck": {"in_channels": [4, 8, 16], "width": 2}, "feat_indices": (2, 1, 0)}),
    "segmenter": (segmenter(), {"neck": {"in_channels": [16, 16]}, "extra_levels": 1}),
    "mask2former": (plain({"type": "TinyMaskHead", "num_classes": CLASSES, "in_channels": 64}), IN_ORDER),
}


def frskd(name: str, **self_teacher: Any) -> dict[str, Any]:
    """The FRSKD config of a family."""
    config, told = FAMILIES[name]
    kind = "FRSKDCascadeEncoderDecoder" if "num_stages" in config else "FRSKDEncoderDecoder"
    made = {"type": "FRSKDHead", "loss_distill": DISTILL, **told, **self_teacher}
    made["neck"] = {"type": "SelfTeacherNeck", "width": 1, **made["neck"]}
    return {**config, "type": kind, "self_teacher": made}


def edge_batch(batch: int = 2) -> tuple[torch.Tensor, list[Any]]:
    """A batch with edges, which PIDNet learns beside the classes."""
    images, samples = make_batch(batch)
    for sample in samples:
        sample.gt_edge_map = PixelData(data=(sample.gt_sem_seg.data == 0).float())
    return images, samples
