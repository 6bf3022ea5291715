"""What `FRSKDSingleStage` refuses when it is built, by name."""

from __future__ import annotations

import copy

import pytest

from frskd_plugin.mmdet import FRSKDDenseHead
from tests.helpers.tiny_coco import CHANNELS, build, make_batch, shrunk_config

MODEL = shrunk_config("retinanet", frskd=True).model


def changed(**settings):
    config = copy.deepcopy(MODEL)
    config.update(settings)
    return config


def with_teacher(part, **settings):
    config = copy.deepcopy(MODEL)
    config.self_teacher[part].update(settings)
    return config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            changed(rpn_head=dict(type="RPNHead"), roi_head=dict(type="StandardRoIHead")),
            "cannot serve a detector with rpn_head, roi_head .*: it distils",
        ),
        (changed(bbox_head=None), "needs `bbox_head`, the config of one dense head, got None"),
        (changed(bbox_head=dict(type="TOODHead")), "head TOODHead: it gives probabilities in place of logits"),
        (changed(bbox_head=dict(type="CenterNetHead")), "CenterNetHead: its output does not begin with class scores"),
        (changed(bbox_head=dict(type="LDHead")), "head LDHead: it makes its loss in a way of its own"),
        (changed(bbox_head=dict(type="Shared2FCBBoxHead")), "head Shared2FCBBoxHead: it is not a dense head"),
        (changed(bbox_head=dict(type="NoSuchHead")), "there is no head 'NoSuchHead' in mmdet's registry"),
        (
            with_teacher("neck", channels="scaled", variant="published", in_channels=[16] * 4 + [CHANNELS]),
            "give its neck one width",
        ),
        (with_teacher("neck", in_channels=[CHANNELS]), "at least 2 levels"),
        (
            with_teacher("loss_distill", soft_label="softmax"),
            "classes by a sigmoid, got .*'softmax'",
        ),
    ],
)
def test_refuses_at_build(config, message):
    with pytest.raises(ValueError, match=message):
        build(config)


def test_wrong_levels_and_a_head_outside_a_detector_are_named():
    model = build(with_teacher("neck", in_channels=[CHANNELS] * 4)).train()
    with pytest.raises(ValueError, match="SelfTeacherNeck was built for 4 feature maps"):
        model.loss(*make_batch())
    with pytest.raises(ValueError, match="FRSKDDenseHead needs `head`"):
        FRSKDDenseHead(neck={}, loss_distill={})
