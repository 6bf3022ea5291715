"""`FRSKDSingleStage`: losses, who gets a gradient, and that inference is the plain detector's."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from frskd_plugin.core import AttentionTransferLoss
from frskd_plugin.mmdet import FRSKDDenseHead, FRSKDSingleStage
from frskd_plugin.mmdet.detector import class_logits
from tests.helpers.model_tester import without_gradient
from tests.mmdet.tiny_coco import CHANNELS, CLASSES, build, make_batch, shrunk_config

KINDS = ("retinanet", "atss", "fcos", "softmax")
FRSKD = {kind: shrunk_config(kind, frskd=True).model for kind in KINDS}
PLAIN = {kind: shrunk_config(kind, frskd=False).model for kind in KINDS}


def scalar(value):
    """A term of the losses; most heads give one a level."""
    return sum(value) if isinstance(value, (list, tuple)) else value


def student_weights(model):
    return {key: value for key, value in model.state_dict().items() if not key.startswith("self_teacher.")}


def untouched(module):
    return all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_the_student_is_the_plain_detector_and_every_parameter_learns(kind):
    plain, model = build(PLAIN[kind]).train(), build(FRSKD[kind]).train()
    weights = model.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in plain.state_dict().items())
    plain.load_state_dict(student_weights(model), strict=True)
    losses, expected = model.loss(*make_batch()), plain.loss(*make_batch())
    assert set(losses) == {*expected, *(f"self_teacher.{name}" for name in [*expected, "loss_kd", "loss_feat"])}
    assert {name: scalar(value).item() > 0 for name, value in losses.items()} == dict.fromkeys(losses, True)
    assert all(torch.equal(scalar(losses[name]), scalar(value)) for name, value in expected.items())
    (losses["self_teacher.loss_kd"] + losses["self_teacher.loss_feat"]).backward(retain_graph=True)
    assert untouched(model.self_teacher)
    assert all(p.grad is not None for p in model.neck.parameters())
    assert any(p.grad is not None for p in model.bbox_head.parameters())
    model.parse_losses(losses)[0].backward()
    assert without_gradient(model) == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_teacher_loss_trains_the_trunk_and_not_the_students_head():
    model = build(FRSKD["retinanet"]).train()
    losses = model.loss(*make_batch())
    sum(scalar(losses[f"self_teacher.{name}"]) for name in ("loss_cls", "loss_bbox")).backward()
    assert untouched(model.bbox_head)
    for part in (model.backbone, model.neck, model.self_teacher):
        assert without_gradient(part) == []


def by_position(scores, num_classes):
    """Class scores as mmdet itself lays them out for its losses: [all anchors of all levels and images, K]."""
    return torch.cat([score.permute(0, 2, 3, 1).reshape(-1, num_classes) for score in scores])


@pytest.mark.parametrize("kind", KINDS)
def test_distillation_equals_an_independent_formula(kind):
    config = copy.deepcopy(FRSKD[kind])
    config.self_teacher.loss_distill.update(alpha=3.0, temperature=2.0)
    model = build(config).train()
    images, samples = make_batch()
    losses = copy.deepcopy(model).loss(images, samples)

    feats = model.extract_feat(images)
    refined_feats = model.self_teacher.neck(feats)
    classes = model.bbox_head.cls_out_channels
    student, teacher = (
        by_position(head(maps)[0], classes).double()
        for head, maps in ((model.bbox_head, feats), (model.self_teacher.head, refined_feats))
    )
    if kind == "softmax":
        assert classes == len(CLASSES) + 1
        p, q = (student / 2).log_softmax(1), (teacher / 2).log_softmax(1)
        soft = (q.exp() * (q - p)).sum(1).mean()
    else:
        p, q = (student / 2).sigmoid(), (teacher / 2).sigmoid()
        kl = F.binary_cross_entropy(p, q.detach(), reduction="sum") - F.binary_cross_entropy(q, q, reduction="sum")
        soft = kl / teacher.sigmoid().amax(1).sum().clamp(min=1)
    actual = losses["self_teacher.loss_kd"]
    torch.testing.assert_close(actual.double(), 3 * 2**2 * soft, rtol=1e-4, atol=1e-6)
    expected = 50 * AttentionTransferLoss()(feats, refined_feats)
    torch.testing.assert_close(losses["self_teacher.loss_feat"], expected, rtol=1e-5, atol=1e-7)


def test_class_logits_keep_the_scores_of_an_anchor_together():
    scores = [torch.rand(2, 9 * 4, 3, 5), torch.rand(2, 9 * 4, 2, 3)]
    expected = torch.cat([score.permute(0, 2, 3, 1).reshape(2, -1, 4) for score in scores], dim=1)
    actual = class_logits(scores, num_classes=4).transpose(1, 2)
    assert actual.shape == expected.shape
    # the order of the anchors differs, and the same one serves student and teacher
    for one, other in zip(actual, expected, strict=True):
        assert {tuple(anchor) for anchor in one.tolist()} == {tuple(anchor) for anchor in other.tolist()}


@pytest.mark.parametrize("kind", KINDS)
def test_inference_is_the_plain_detectors(kind, monkeypatch):
    plain, model = build(PLAIN[kind]).eval(), build(FRSKD[kind], seed=1).eval()
    plain.load_state_dict(student_weights(model), strict=True)
    monkeypatch.setattr(FRSKDDenseHead, "forward", lambda *_: pytest.fail("the self-teacher was called at inference"))
    monkeypatch.setattr(model.self_teacher.neck, "forward", lambda *_: pytest.fail("the self-teacher was called"))
    images, samples = make_batch(size=(201, 136))
    with torch.no_grad():
        expected = plain.predict(images, copy.deepcopy(samples))
        actual = model.predict(images, copy.deepcopy(samples))
        assert all(map(torch.equal, plain(images)[0], model(images)[0]))
    for one, other in zip(actual, expected, strict=True):
        assert len(one.pred_instances) > 0
        for key in ("bboxes", "scores", "labels"):
            assert torch.equal(one.pred_instances[key], other.pred_instances[key])


def test_neck_hands_out_p3_to_p7_and_the_teacher_the_same_sizes():
    model = build(FRSKD["retinanet"]).eval()
    feats = model.extract_feat(torch.rand(1, 3, 256, 384))
    assert [tuple(feat.shape[1:]) for feat in feats] == [
        (CHANNELS, 256 // stride, 384 // stride) for stride in (8, 16, 32, 64, 128)
    ]
    refined_feats, output = model.self_teacher(feats)
    assert [feat.shape for feat in refined_feats] == [feat.shape for feat in feats]
    assert [score.shape[2:] for score in output[0]] == [feat.shape[2:] for feat in feats]


def test_teacher_copies_the_students_head_and_no_config_is_changed():
    config = copy.deepcopy(FRSKD["atss"])
    config.bbox_head.loss_cls.alpha = 0.4
    config.train_cfg.assigner.topk = 5
    before = copy.deepcopy(config)
    model = build(config)
    assert config == before
    teacher = model.self_teacher.head
    assert teacher.loss_cls.alpha == 0.4
    assert teacher.assigner.topk == 5
    shapes = {key: value.shape for key, value in model.bbox_head.state_dict().items()}
    assert {key: value.shape for key, value in teacher.state_dict().items()} == shapes
    assert not torch.equal(teacher.atss_cls.weight, model.bbox_head.atss_cls.weight)


def test_callers_config_survives_the_class_itself():
    config = copy.deepcopy(FRSKD["retinanet"])
    before = copy.deepcopy(config)
    FRSKDSingleStage(**{key: value for key, value in config.items() if key != "type"})
    assert config == before


def test_teacher_of_another_width_and_warm_up():
    config = copy.deepcopy(FRSKD["retinanet"])
    config.self_teacher.neck = dict(
        type="SelfTeacherNeck", in_channels=[CHANNELS] * 5, channels=16, variant="published"
    )
    model = build(config).train()
    assert model.self_teacher.head.in_channels == 16
    model.self_teacher.loss_distill.factor = 0.0
    losses = model.loss(*make_batch())
    assert losses["self_teacher.loss_kd"].item() == losses["self_teacher.loss_feat"].item() == 0
    model.parse_losses(losses)[0].backward()
    assert without_gradient(model) == []


def test_bfloat16_autocast():
    model = build(FRSKD["atss"]).train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.loss(*make_batch())
    assert losses["self_teacher.loss_kd"].dtype == losses["self_teacher.loss_feat"].dtype == torch.float32
    model.parse_losses(losses)[0].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_images_without_objects():
    model = build(FRSKD["atss"]).train()
    images, samples = make_batch()
    for sample in samples:
        sample.gt_instances = sample.gt_instances[:0]
    losses = model.loss(images, samples)
    model.parse_losses(losses)[0].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert losses["self_teacher.loss_kd"] > 0


def changed(**settings):
    config = copy.deepcopy(FRSKD["retinanet"])
    config.update(settings)
    return config


def with_teacher(part, **settings):
    config = copy.deepcopy(FRSKD["retinanet"])
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
