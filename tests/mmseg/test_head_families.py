"""What FRSKD promises, kept for cascades, heads with losses of their own, and odd lists of maps."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from mmseg.models.decode_heads import point_head

import frskd_plugin
from frskd_plugin.check import prepare
from frskd_plugin.mmseg.teacher_head import teacher_head
from frskd_plugin.timm.parts import PARTS
from tests.helpers.head_families import FAMILIES, edge_batch, frskd
from tests.helpers.model_tester import without_gradient
from tests.helpers.segmentors import CLASSES, build

TEACHER_HEADS = {
    "ocrnet": "FCNHead",
    "point_rend": "FCNHead",
    "knet": "IterativeDecodeHead",
    "encnet": "EncHead",
    "danet": "DAHead",
    "dmnet": "DMHead",
    "deeplabv3plus": "DepthwiseSeparableASPPHead",
    "pidnet": "FCNHead",
    "ddrnet": "FCNHead",
    "dpt": "FCNHead",
    "unet": "FCNHead",
    "segmenter": "SegmenterMaskTransformerHead",
    "mask2former": "FCNHead",
}


@pytest.fixture(autouse=True)
def operators(monkeypatch):
    """PointRend's sampling, which mmcv has only with compiled operators; here by its definition."""

    def point_sample(feat, points, align_corners=False, **kwargs):
        return F.grid_sample(feat, 2 * points[:, :, None].to(feat) - 1, align_corners=align_corners, **kwargs)[..., 0]

    monkeypatch.setattr(point_head, "point_sample", point_sample)


def total(losses):
    return sum(
        part for name, value in losses.items() if "loss" in name for part in ([value] if value.ndim == 0 else value)
    )


def train_step(model):
    torch.manual_seed(3)
    losses = model.train().loss(*edge_batch())
    total(losses).backward()
    return losses


@pytest.mark.parametrize("name", FAMILIES)
def test_the_student_is_the_plain_segmentor_and_every_parameter_learns(name, monkeypatch):
    assert set(TEACHER_HEADS) == set(FAMILIES)
    plain, model = build(FAMILIES[name][0]), build(frskd(name))
    weights = model.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in plain.state_dict().items())
    assert type(model.self_teacher.head).__name__ == TEACHER_HEADS[name]

    heads = list(model.decode_head) if "Cascade" in type(model).__name__ else [model.decode_head]
    calls = []
    with monkeypatch.context() as patch:
        for index, head in enumerate(heads):
            forward = head.forward
            patch.setattr(head, "forward", lambda *a, f=forward, i=index: calls.append(i) or f(*a))
        losses = train_step(model)
    # PointRend classifies the points of its loss, and then those of the map, twice refined
    assert calls == ([0, 1, 1, 1] if name == "point_rend" else list(range(len(heads))))
    assert without_gradient(model) == []
    assert not any({"forward", "loss_by_feat"} & set(vars(module)) for module in model.modules())

    terms = {key.replace("pam_cam.", "").replace(".s0", ""): value for key, value in losses.items() if "loss" in key}
    assert all(torch.isfinite(value).all() for value in terms.values())
    assert "self_teacher.loss_ce" in terms
    assert terms["self_teacher.loss_kd"] > 0 and terms["self_teacher.loss_feat"] > 0
    images, samples = edge_batch()
    torch.manual_seed(3)  # PointRend draws its points
    expected = plain.train().loss(images, [sample.clone() for sample in samples])
    own = {key: value for key, value in losses.items() if not key.startswith("self_teacher.")}
    assert own.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(own[key], value)

    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    model.zero_grad()
    model = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    student = {key: value for key, value in model.state_dict().items() if not key.startswith("self_teacher.")}
    plain.load_state_dict(student, strict=True)
    with torch.no_grad():
        expected = plain.eval().predict(images, [sample.clone() for sample in samples])
        actual = model.eval().predict(images, [sample.clone() for sample in samples])
        model.predict_self_teacher = True
        both = model.predict(images, [sample.clone() for sample in samples])
        model.predict_self_teacher = False
        alone = model.as_self_teacher().predict(images, [sample.clone() for sample in samples])
        parts = {part: frskd_plugin.unwrap(model, part)(images).argmax(1, keepdim=True) for part in PARTS}
    for i, with_teacher in enumerate(both):
        for part, key in zip(PARTS, ("pred_sem_seg", "pred_self_teacher", "pred_ensemble"), strict=True):
            assert torch.equal(parts[part][i], getattr(with_teacher, key).data)
    for one, other, with_teacher, teacher in zip(expected, actual, both, alone, strict=True):
        assert torch.equal(one.seg_logits.data, other.seg_logits.data)
        assert torch.equal(one.seg_logits.data, with_teacher.seg_logits.data)
        assert with_teacher.pred_self_teacher.shape == one.pred_sem_seg.shape
        assert torch.equal(with_teacher.pred_self_teacher.data, teacher.pred_sem_seg.data)
    assert not any(module.training for module in model.modules())


def predicted_in_training(model, name, images):
    """The student's map [B, K, h, w] in training, worked out from mmseg's own parts."""
    feats = model.extract_feat(images)
    heads = model.decode_head
    if name == "ocrnet":
        return heads[1].forward(feats, heads[0].forward(feats))
    output = heads(feats, None) if name == "mask2former" else heads.forward(feats)
    if name == "mask2former":
        classes, masks = output[0][1].softmax(-1)[..., :-1], output[1][1].sigmoid()
        return (classes.transpose(1, 2) @ masks.flatten(2)).view(*masks.shape[:1], -1, *masks.shape[2:]).log()
    picked = {"knet": -1, "pidnet": 1, "ddrnet": 0, "danet": 0, "encnet": 0}
    return output[picked[name]] if name in picked else output


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"point_rend", "segmenter"}))
def test_the_soft_label_is_on_the_map_that_is_predicted(name):
    model = build(frskd(name)).double().train()
    model.self_teacher.head.dropout = None  # a plain head's own, where the student's says nothing of it
    images, samples = edge_batch()
    images = images.double()
    loss = copy.deepcopy(model).loss(images, samples)["self_teacher.loss_kd"]

    student = predicted_in_training(model, name, images)
    refined, teacher = model.self_teacher(copy.deepcopy(model).extract_feat(images))
    if not isinstance(teacher, torch.Tensor):
        teacher = teacher[-1 if name == "knet" else 0]
    corners = model.self_teacher.head.align_corners
    p, q = (
        F.interpolate(logits, (64, 64), mode="bilinear", align_corners=corners).log_softmax(1)
        for logits in (student, teacher)
    )
    torch.testing.assert_close(loss, (q.exp() * (q - p)).sum(1).mean(), rtol=1e-6, atol=1e-9)


def test_the_point_head_learns_from_the_soft_label():
    model = build(frskd("point_rend")).train()
    model.loss(*edge_batch())["self_teacher.loss_kd"].backward()
    assert all(p.grad is not None for p in model.decode_head.parameters())
    assert all(p.grad is None for p in model.self_teacher.parameters())


@pytest.mark.parametrize("name", ["ocrnet", "point_rend", "knet", "danet"])
def test_early_gradients_are_the_same(name):
    late, early = build(frskd(name)).double(), build(frskd(name, early_gradients=True)).double()
    for model in (late, early):
        images, samples = edge_batch()
        torch.manual_seed(3)
        total(model.train().loss(images.double(), samples)).backward()
    for (key, one), other in zip(late.named_parameters(), early.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-8, msg=key)


def test_a_cascades_teacher_copies_the_first_stage_with_the_last_ones_loss():
    model = build(frskd("ocrnet"))
    assert model.decode_head[0].loss_decode.loss_weight == 0.4
    assert model.self_teacher.head.loss_decode.loss_weight == 1.0
    assert model.self_teacher.head.channels == model.decode_head[0].channels


def test_k_net_decides_its_classes_by_the_losses_of_the_head_inside():
    config = frskd("knet")
    inner = config["decode_head"]["kernel_generate_head"]
    inner["loss_decode"] = {"type": "CrossEntropyLoss", "use_sigmoid": True}
    assert build(config).self_teacher.loss_distill.soft_label_loss.soft_label == "sigmoid"


def test_a_plain_head_takes_the_students_classes_and_reads_the_branch_that_predicts():
    head = build(frskd("pidnet")).self_teacher.head
    assert (head.num_classes, head.in_index, head.in_channels, head.channels) == (5, 1, 16, 128)
    assert head.dropout is None
    assert build(frskd("mask2former")).self_teacher.head.dropout.p == 0.1
    assert build(frskd("dpt")).self_teacher.head.in_index == 3
    mine = build(frskd("pidnet", head={"type": "FCNHead", "in_index": 2, "channels": 4, "num_classes": 5}))
    assert (mine.self_teacher.head.in_channels, mine.self_teacher.neck.end_level) == (8, 2)


def test_maps_in_another_order_are_told_by_their_index():
    model = build(frskd("unet"))
    sizes = [feat.shape[-1] for feat in model.extract_feat(edge_batch()[0])]
    feats, refined = model.distilled_maps(edge_batch()[0])
    assert (sizes, [feat.shape[-1] for feat in feats]) == ([16, 32, 64], [64, 32, 16])
    assert [feat.shape[1:] for feat in refined] == [(8, 64, 64), (16, 32, 32), (32, 16, 16)]
    head = model.self_teacher.head  # without convolutions it is as wide as the map it reads
    assert (head.in_index, head.in_channels, head.channels) == (0, 8, 8)


def test_a_single_map_is_joined_by_its_pooled_copy():
    model = build(frskd("segmenter"))
    images = edge_batch()[0]
    feats, _ = model.distilled_maps(images)
    (only,) = model.extract_feat(images)
    assert torch.equal(feats[0], only)
    assert torch.equal(feats[1], F.max_pool2d(only, 3, 2, ceil_mode=True))


@pytest.mark.parametrize("name", ["ocrnet", "unet", "pidnet"])
def test_the_dry_run_sees_the_levels_and_the_predicted_map(name):
    model = build(frskd(name)).train()
    subject = prepare(model, *edge_batch())
    step = subject.step()
    assert [feat.shape[2:] for feat in step.feats[0]] == [feat.shape[2:] for feat in step.refined_feats[0]]
    assert step.logits[0].shape[1] == CLASSES
    own = [value for key, value in step.terms.items() if not key.startswith("self_teacher.")]
    torch.testing.assert_close(subject.plain_step(), sum(own))
    model.eval()
    logits, expected = subject.evaluate()
    assert torch.equal(logits, expected)


def with_stages(*heads, kind="FRSKDCascadeEncoderDecoder"):
    config = frskd("ocrnet") if kind == "FRSKDCascadeEncoderDecoder" else {**frskd("danet")}
    return {**config, "decode_head": list(heads) if len(heads) > 1 else heads[0]}


OCR, FIRST = FAMILIES["ocrnet"][0]["decode_head"][1], FAMILIES["ocrnet"][0]["decode_head"][0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (with_stages(FIRST, FIRST), "cannot serve the decode head FCNHead behind another head"),
        (with_stages(OCR, OCR), "cannot serve the decode head OCRHead alone: .* Use FRSKDCascadeEncoderDecoder"),
        (with_stages(FIRST), "takes a list of 2 decode heads .*got 1.* belongs into FRSKDEncoderDecoder"),
        (with_stages(OCR, kind="single"), "cannot serve the decode head OCRHead alone"),
        (with_stages({"type": "VPDDepthHead"}, kind="single"), "VPDDepthHead: it predicts depth"),
        (with_stages({"type": "NoHead"}, kind="single"), "no decode head 'NoHead' in mmseg's registry"),
        (
            frskd("danet", head={"type": "PIDHead", "in_channels": 16}),
            "FRSKDHead cannot serve the decode head PIDHead on refined maps: it takes the three branches",
        ),
        (
            frskd("mask2former", head={"type": "TinyMaskHead"}),
            "TinyMaskHead on refined maps: its training loss is not `forward` followed by `loss_by_feat`",
        ),
        (frskd("danet", feat_indices=(0, 1, 2, 2)), r"each once, counted from 0, got \[0, 1, 2, 2\]"),
        (frskd("danet", feat_indices=(0, 1, 2)), r"receives 3 maps .* its neck has 4 levels"),
        (
            frskd("danet", feat_indices=(4, 0, 1, 2)),
            r"that the self-teacher receives \(indices \[4, 0, 1, 2\]\), got 3",
        ),
    ],
)
def test_refuses_at_build(config, message):
    with pytest.raises(ValueError, match=message):
        build(config)


def test_a_head_that_cannot_be_copied_has_to_say_its_classes():
    with pytest.raises(ValueError, match="cannot copy the decode head TinyMaskHead, .* config has no `num_classes`"):
        teacher_head({"type": "TinyMaskHead"})


def test_maps_that_are_not_there_are_named():
    model = build(frskd("ddrnet", neck={"in_channels": [8, 16, 8]}, feat_indices=(0, 1, 2)))
    with pytest.raises(ValueError, match=r"`feat_indices` names the map 2, but the backbone .* hands out 2"):
        model.train().loss(*edge_batch())


def test_a_backbone_without_maps_is_refused():
    model = build(frskd("danet")).train()
    model.extract_feat = lambda images: [torch.rand(2, 16)]
    with pytest.raises(ValueError, match=r"hands out none: got list with tensors of shapes \[\[2, 16\]\]"):
        model.self_teacher(model.extract_feat(None))
