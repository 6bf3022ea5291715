"""`FRSKDEncoderDecoder`: losses, who gets a gradient, and that inference is the plain segmentor's."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from frskd_plugin.core import AttentionTransferLoss
from frskd_plugin.mmseg.frskd_head import FRSKDHead
from tests.helpers.segmentors import CLASSES, build, effdet, fcn, make_batch, with_frskd

PLAIN = {"effdet": effdet(), "effdet_published": effdet("published"), "fcn": fcn()}
FRSKD = {
    "effdet": with_frskd(effdet()),
    "effdet_published": with_frskd(effdet("published"), variant="published_seg"),
    "effdet_bifpn": with_frskd(effdet(), variant="published"),
    "fcn": with_frskd(fcn()),
    "fcn_equations": with_frskd(fcn(), variant="equations", width=2),
}
LOSS_KEYS = {"decode.loss_ce", "decode.acc_seg"}
TEACHER_KEYS = {f"self_teacher.{name}" for name in ("loss_ce", "acc_seg", "loss_kd", "loss_feat")}


def total(losses):
    return sum(value for name, value in losses.items() if "loss" in name)


@pytest.mark.parametrize("name", FRSKD)
def test_every_parameter_learns_and_distillation_trains_the_student_alone(name):
    model = build(FRSKD[name]).train()
    losses = model.loss(*make_batch())
    auxiliary = {key for key in losses if key.startswith("aux.")}
    assert set(losses) == LOSS_KEYS | TEACHER_KEYS | auxiliary
    assert all(losses[key] > 0 for key in losses if "loss" in key)
    (losses["self_teacher.loss_kd"] + losses["self_teacher.loss_feat"]).backward(retain_graph=True)
    assert [key for key, p in model.self_teacher.named_parameters() if p.grad is not None] == []
    assert next(model.decode_head.parameters()).grad is not None
    model.zero_grad()
    total(losses).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []
    dead = [key for key, p in model.named_parameters() if p.grad.abs().max() == 0]
    # the published segmentation form shifts each channel just before batch normalisation, which removes every shift
    assert [key for key in dead if not key.endswith("conv.bias")] == []


def test_teacher_loss_trains_the_trunk_and_not_the_students_head():
    model = build(FRSKD["effdet"]).train()
    model.loss(*make_batch())["self_teacher.loss_ce"].backward()
    assert all(p.grad is not None for p in model.backbone.parameters())
    assert all(p.grad is not None for p in model.self_teacher.parameters())
    assert all(p.grad is None for p in model.decode_head.parameters())


def test_losses_equal_an_independent_formula():
    model = build(FRSKD["effdet"]).double().train()
    images, samples = make_batch()
    images = images.double()
    losses = copy.deepcopy(model).loss(images, samples)

    labels = torch.stack([sample.gt_sem_seg.data[0] for sample in samples])
    feats = model.neck(model.backbone(images))
    refined_feats = model.self_teacher.neck(feats)
    student, teacher = (
        F.interpolate(head(maps), labels.shape[1:], mode="bilinear", align_corners=False)
        for head, maps in ((model.decode_head, feats), (model.self_teacher.head, refined_feats))
    )
    p, q = student.log_softmax(1), teacher.log_softmax(1)
    expected = {
        "decode.loss_ce": F.cross_entropy(student, labels, ignore_index=255),
        "self_teacher.loss_ce": F.cross_entropy(teacher, labels, ignore_index=255),
        "self_teacher.loss_kd": (q.exp() * (q - p)).sum(1).mean(),
        "self_teacher.loss_feat": 50 * AttentionTransferLoss()(feats, refined_feats),
    }
    for key, value in expected.items():
        torch.testing.assert_close(losses[key], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mode", ["whole", "slide"])
@pytest.mark.parametrize("name", ["effdet", "fcn"])
def test_inference_is_the_plain_segmentors(name, mode, monkeypatch):
    test_cfg = {"mode": mode} if mode == "whole" else {"mode": mode, "crop_size": (48, 48), "stride": (16, 16)}
    plain = build({**PLAIN[name], "test_cfg": test_cfg}).eval()
    model = build({**FRSKD[name], "test_cfg": test_cfg}, seed=1).eval()
    student = {key: value for key, value in model.state_dict().items() if not key.startswith("self_teacher.")}
    plain.load_state_dict(student, strict=True)

    monkeypatch.setattr(FRSKDHead, "forward", lambda *_: pytest.fail("the self-teacher was called at inference"))
    monkeypatch.setattr(model.self_teacher.neck, "forward", lambda *_: pytest.fail("the self-teacher was called"))
    images, samples = make_batch(batch=1)
    with torch.no_grad():
        expected = plain.predict(images, [sample.clone() for sample in samples])[0]
        actual = model.predict(images, samples)[0]
    assert torch.equal(actual.seg_logits.data, expected.seg_logits.data)
    assert torch.equal(actual.pred_sem_seg.data, expected.pred_sem_seg.data)
    assert "pred_self_teacher" not in actual


def test_self_teacher_predicts_on_demand():
    model = build(FRSKD["effdet"]).eval()
    images, samples = make_batch()
    model.predict_self_teacher = True
    with torch.no_grad():
        results = model.predict(images, samples)
        feats = model.extract_feat(images)
        refined_feats, logits = model.self_teacher(feats)
    expected = F.interpolate(logits, (64, 64), mode="bilinear", align_corners=False).argmax(1, keepdim=True)
    for result, label in zip(results, expected, strict=True):
        assert torch.equal(result.pred_self_teacher.data, label)
        assert result.pred_sem_seg.shape == (64, 64)
    assert model.as_self_teacher().backbone is model.backbone
    assert model.decode_head is not model.self_teacher  # the view changed nothing


def test_warm_up_keeps_the_teachers_loss_alone():
    model = build(FRSKD["effdet"]).train()
    model.self_teacher.loss_distill.factor = 0.0
    losses = model.loss(*make_batch())
    assert losses["self_teacher.loss_kd"].item() == losses["self_teacher.loss_feat"].item() == 0
    total(losses).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("kind", ["effdet", "fcn"])
def test_gate_compares_the_losses_of_the_two_heads(kind):
    config = copy.deepcopy(FRSKD[kind])
    plain = build(config).train()
    config["self_teacher"]["loss_distill"] = {**config["self_teacher"]["loss_distill"], "schedule": "gate"}
    model = build(config).train()
    gate = model.self_teacher.loss_distill.gate
    gate.mean.fill_(0.4)
    torch.manual_seed(0)  # dropout
    losses = model.loss(*make_batch())
    torch.manual_seed(0)
    expected = plain.loss(*make_batch())
    lead = losses["decode.loss_ce"] - losses["self_teacher.loss_ce"]
    torch.testing.assert_close(gate.mean, 0.95 * 0.4 + 0.05 * lead.detach())
    for name, value in expected.items():
        factor = gate.mean if name in ("self_teacher.loss_kd", "self_teacher.loss_feat") else 1
        torch.testing.assert_close(losses[name], factor * value, msg=name)


def test_teacher_copies_the_students_head():
    config = with_frskd(fcn())
    config["decode_head"]["loss_decode"] = {
        "type": "CrossEntropyLoss",
        "class_weight": [1.0, 2.0, 3.0, 4.0, 5.0],
        "loss_weight": 0.5,
    }
    config["decode_head"]["sampler"] = {"type": "OHEMPixelSampler", "thresh": 0.7, "min_kept": 100}
    before = copy.deepcopy(config)
    model = build(config)
    assert config == before
    assert model.self_teacher.head.loss_decode.class_weight == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert type(model.self_teacher.head.sampler).__name__ == "OHEMPixelSampler"
    assert not any(key.startswith("auxiliary") for key in model.self_teacher.state_dict())


def test_teacher_reads_several_levels():
    config = with_frskd(fcn(), width=2)
    config["decode_head"] |= {"in_channels": [16, 32], "in_index": [1, 2], "input_transform": "resize_concat"}
    model = build(config).train()
    assert model.self_teacher.neck.end_level == 2
    assert model.self_teacher.head.in_channels == 2 * (16 + 32)
    total(model.loss(*make_batch())).backward()
    # the student's own last stage is read by the self-teacher alone
    assert all(p.grad is not None for p in model.parameters())


def with_head(head):
    config = with_frskd(fcn())
    config["decode_head"] = head
    return config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            with_head(
                {"type": "PointHead", "in_channels": [64], "in_index": [3], "channels": 16, "num_classes": CLASSES}
            ),
            "FRSKDEncoderDecoder cannot serve the decode head PointHead",
        ),
        (with_head([fcn()["decode_head"]] * 2), "cannot serve a cascade of decode heads"),
        (with_head({**fcn()["decode_head"], "num_classes": 0}), "`decode_head.num_classes` must be >= 1, got 0"),
        (with_frskd(fcn(), end_level=1), "must end at the highest level its head reads .*end_level=1"),
        (with_frskd(effdet(), channels="scaled"), "`variant='efficientdet'` is a stack of BiFPN layers of one width"),
        (with_frskd(fcn(), in_channels=[64]), "at least 2 levels"),
    ],
)
def test_refuses_at_build(config, message):
    with pytest.raises(ValueError, match=message):
        build(config)


def test_wrong_channels_are_named():
    model = build(with_frskd(fcn(), in_channels=[8, 16, 32, 128])).train()
    with pytest.raises(ValueError, match="feature map 3 must have 128 channels, got 64"):
        model.loss(*make_batch())


def test_head_outside_a_segmentor_needs_a_config():
    with pytest.raises(ValueError, match="FRSKDHead needs `head`"):
        FRSKDHead(neck={}, loss_distill={})
