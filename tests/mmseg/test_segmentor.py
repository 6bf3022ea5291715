"""What FRSKD promises for every segmentor: losses, who gets a gradient, and that inference is the plain one's."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from mmseg.models.decode_heads import point_head

import frskd_plugin
from frskd_plugin.check import prepare
from frskd_plugin.core import AttentionTransferLoss
from frskd_plugin.mmseg.frskd_head import FRSKDHead
from frskd_plugin.mmseg.heads import teacher_head
from frskd_plugin.timm.parts import PARTS
from tests.helpers.model_tester import without_gradient
from tests.helpers.segmentors import CLASSES, build, effdet, fcn, make_batch, with_frskd
from tests.mmseg.head_families import FAMILIES, edge_batch, frskd

SEGMENTORS = {
    "effdet": (effdet(), with_frskd(effdet())),
    "effdet_published": (effdet("published"), with_frskd(effdet("published"), variant="published_seg")),
    "effdet_bifpn": (effdet(), with_frskd(effdet(), variant="published")),
    "fcn": (fcn(), with_frskd(fcn())),
    "fcn_equations": (fcn(), with_frskd(fcn(), variant="equations", width=2)),
    **{name: (plain, frskd(name)) for name, (plain, _) in FAMILIES.items()},
}
EFFDET, FCN = SEGMENTORS["effdet"][1], SEGMENTORS["fcn"][1]
# the teacher's head where it is no copy of the student's, or of a cascade's first stage
OTHER_HEADS = {"ocrnet": "FCNHead", "point_rend": "FCNHead", "pidnet": "FCNHead", "ddrnet": "FCNHead", "dpt": "FCNHead"}
OTHER_HEADS["mask2former"] = "FCNHead"


@pytest.fixture(autouse=True)
def operators(monkeypatch):
    """PointRend's sampling, which mmcv has only with compiled operators; here by its definition."""

    def point_sample(feat, points, align_corners=False, **kwargs):
        return F.grid_sample(feat, 2 * points[:, :, None].to(feat) - 1, align_corners=align_corners, **kwargs)[..., 0]

    monkeypatch.setattr(point_head, "point_sample", point_sample)


def total(losses):
    return sum(part for name, value in losses.items() if "loss" in name for part in value.flatten())


def clones(samples):
    return [sample.clone() for sample in samples]


@pytest.mark.parametrize("name", SEGMENTORS)
def test_the_student_is_the_plain_segmentor_and_every_parameter_learns(name, monkeypatch):
    plain, model = map(build, SEGMENTORS[name])
    weights = model.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in plain.state_dict().items())
    heads = list(model.decode_head) if "Cascade" in type(model).__name__ else [model.decode_head]
    assert type(model.self_teacher.head).__name__ == OTHER_HEADS.get(name, type(heads[0]).__name__)

    calls = []
    images, samples = edge_batch()
    with monkeypatch.context() as patch:
        for index, head in enumerate(heads):
            patch.setattr(head, "forward", lambda *a, f=head.forward, i=index: calls.append(i) or f(*a))
        torch.manual_seed(3)  # PointRend draws its points
        losses = model.train().loss(images, samples)
    # PointRend classifies the points of its loss, and then those of the map, twice refined
    assert calls == ([0, 1, 1, 1] if name == "point_rend" else list(range(len(heads))))
    assert not any({"forward", "loss_by_feat"} & set(vars(module)) for module in model.modules())
    torch.manual_seed(3)
    expected = plain.train().loss(images, clones(samples))
    own = {key: value for key, value in losses.items() if not key.startswith("self_teacher.")}
    assert own.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(own[key], value)
    assert all(torch.isfinite(value).all() for value in losses.values())
    assert losses["self_teacher.loss_kd"] > 0 and losses["self_teacher.loss_feat"] > 0

    (losses["self_teacher.loss_kd"] + losses["self_teacher.loss_feat"]).backward(retain_graph=True)
    assert all(p.grad is None for p in model.self_teacher.parameters())
    assert any(p.grad is not None for p in heads[-1].parameters())
    model.zero_grad()
    total(losses).backward()
    assert without_gradient(model) == []

    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    model.zero_grad()
    model = pickle.loads(pickle.dumps(copy.deepcopy(model))).eval()
    student = {key: value for key, value in model.state_dict().items() if not key.startswith("self_teacher.")}
    plain.load_state_dict(student, strict=True)
    with torch.no_grad():
        with monkeypatch.context() as patch:
            patch.setattr(type(model.self_teacher.neck), "forward", lambda *_: pytest.fail("the self-teacher was run"))
            expected, actual = (network.predict(images, clones(samples)) for network in (plain.eval(), model))
        model.predict_self_teacher = True
        both = model.predict(images, clones(samples))
        model.predict_self_teacher = False
        parts = {part: frskd_plugin.unwrap(model, part)(images).argmax(1, keepdim=True) for part in PARTS}
    for i, (one, other, with_teacher) in enumerate(zip(expected, actual, both, strict=True)):
        assert torch.equal(one.seg_logits.data, other.seg_logits.data)
        assert torch.equal(one.seg_logits.data, with_teacher.seg_logits.data)
        assert "pred_self_teacher" not in other
        for part, key in zip(PARTS, ("pred_sem_seg", "pred_self_teacher", "pred_ensemble"), strict=True):
            assert torch.equal(parts[part][i], getattr(with_teacher, key).data)
    assert not any(module.training for module in model.modules())


def test_inference_in_windows_is_the_plain_segmentors():
    windows = {"mode": "slide", "crop_size": (48, 48), "stride": (16, 16)}
    plain, model = (build({**config, "test_cfg": windows}).eval() for config in SEGMENTORS["fcn"])
    images, samples = make_batch(batch=1)
    with torch.no_grad():
        expected, actual = (network.predict(images, clones(samples))[0] for network in (plain, model))
    assert torch.equal(actual.seg_logits.data, expected.seg_logits.data)


def test_teacher_loss_trains_the_trunk_and_not_the_students_head():
    model = build(EFFDET).train()
    model.loss(*make_batch())["self_teacher.loss_ce"].backward()
    assert without_gradient(model.backbone) == without_gradient(model.self_teacher) == []
    assert all(p.grad is None for p in model.decode_head.parameters())


def test_losses_equal_an_independent_formula():
    model = build(EFFDET).double().train()
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


@pytest.mark.parametrize("name", ["effdet", "fcn", "ocrnet", "point_rend", "knet"])
def test_early_gradients_are_the_same(name):
    late, early = SEGMENTORS[name][1], copy.deepcopy(SEGMENTORS[name][1])
    early["self_teacher"]["early_gradients"] = True
    (model, losses), (other, other_losses) = (train_step(config) for config in (late, early))
    for key, value in losses.items():
        torch.testing.assert_close(other_losses[key], value, rtol=1e-6, atol=1e-8, msg=key)
    for (key, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-8, msg=key)


def train_step(config):
    """Losses of one step in float64, and the model with its gradients."""
    model = build(config).double().train()
    images, samples = edge_batch()
    torch.manual_seed(3)  # dropout, and PointRend's points
    losses = model.loss(images.double(), samples)
    total(losses).backward()
    return model, losses


def test_gate_compares_the_losses_of_the_two_heads_and_warm_up_keeps_the_teachers_alone():
    config = copy.deepcopy(FCN)
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

    plain.self_teacher.loss_distill.factor = 0.0
    losses = plain.loss(*make_batch())
    assert losses["self_teacher.loss_kd"].item() == losses["self_teacher.loss_feat"].item() == 0
    total(losses).backward()
    assert without_gradient(plain) == []


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


def test_the_teachers_head_of_each_family():
    model = build(frskd("ocrnet"))  # a copy of the first stage with the loss of the last one
    assert model.decode_head[0].loss_decode.loss_weight == 0.4
    assert model.self_teacher.head.loss_decode.loss_weight == 1.0
    assert model.self_teacher.head.channels == model.decode_head[0].channels

    head = build(
        frskd("pidnet")
    ).self_teacher.head  # a plain one, with the student's classes and the branch that predicts
    assert (head.num_classes, head.in_index, head.in_channels, head.channels) == (5, 1, 16, 128)
    assert head.dropout is None
    assert build(frskd("mask2former")).self_teacher.head.dropout.p == 0.1
    assert build(frskd("dpt")).self_teacher.head.in_index == 3
    mine = build(frskd("pidnet", head={"type": "FCNHead", "in_index": 2, "channels": 4, "num_classes": 5}))
    assert (mine.self_teacher.head.in_channels, mine.self_teacher.neck.end_level) == (8, 2)

    config = frskd("knet")  # K-Net decides its classes by the losses of the head inside
    inner = config["decode_head"]["kernel_generate_head"]
    inner["loss_decode"] = {"type": "CrossEntropyLoss", "use_sigmoid": True}
    assert build(config).self_teacher.loss_distill.soft_label_loss.soft_label == "sigmoid"


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


FIRST, OCR = FAMILIES["ocrnet"][0]["decode_head"]


def with_head(head, name="fcn"):
    return {**SEGMENTORS[name][1], "decode_head": head}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (with_head([FIRST, FIRST], "ocrnet"), "cannot serve the decode head FCNHead: it stands behind another head"),
        (
            with_head([OCR, OCR], "ocrnet"),
            "cannot serve the decode head OCRHead: it takes .* Use FRSKDCascade",
        ),
        (
            with_head(FIRST, "ocrnet"),
            "FRSKDCascadeEncoderDecoder got a dict and num_stages=2",
        ),
        (with_head(OCR), "cannot serve the decode head OCRHead: it takes"),
        (with_head({"type": "VPDDepthHead"}), "VPDDepthHead: it predicts depth"),
        (with_head({"type": "NoHead"}), "no decode head 'NoHead' in mmseg's registry"),
        (
            with_head([FCN["decode_head"]] * 2),
            "takes one decode head, .*; FRSKDEncoderDecoder got a list of 2",
        ),
        (with_head({**FCN["decode_head"], "num_classes": 0}), "`decode_head.num_classes` must be >= 1, got 0"),
        (with_frskd(fcn(), end_level=1), "must end at the highest level its head reads .*end_level=1"),
        (with_frskd(effdet(), channels="scaled"), "`variant='efficientdet'` is a stack of BiFPN layers of one width"),
        (with_frskd(fcn(), in_channels=[64]), "at least 2 levels"),
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
        (frskd("segmenter", extra_levels=2), "receives 0 maps .* makes 2 more, but its neck has 2 levels"),
        (
            frskd("danet", feat_indices=(4, 0, 1, 2)),
            r"that the self-teacher receives \(indices \[4, 0, 1, 2\]\), got \[3\]",
        ),
    ],
)
def test_refuses_at_build(config, message):
    with pytest.raises(ValueError, match=message):
        build(config)


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="can neither copy the decode head TinyMaskHead nor"):
        teacher_head({"type": "TinyMaskHead"})
    with pytest.raises(ValueError, match="FRSKDHead needs `head`"):
        FRSKDHead(neck={}, loss_distill={})
    model = build(with_frskd(fcn(), in_channels=[8, 16, 32, 128])).train()
    with pytest.raises(ValueError, match="feature map 3 must have 128 channels, got 64"):
        model.loss(*make_batch())
    model = build(frskd("ddrnet", neck={"in_channels": [8, 16, 8]}, feat_indices=(0, 1, 2)))
    with pytest.raises(ValueError, match=r"`feat_indices` names the map 2, but the backbone .* hands out 2"):
        model.train().loss(*edge_batch())
    with pytest.raises(ValueError, match=r"hands out none: got list with tensors of shapes \[\[2, 16\]\]"):
        model.self_teacher([torch.rand(2, 16)])


@pytest.mark.parametrize(("share", "factor"), [(0.25, 0.25), ("linear", 0.5)])
def test_trunk_gradient_scales_what_the_self_teachers_own_losses_send_into_the_student(share, factor):
    results = []
    for given in (1.0, share):
        config = copy.deepcopy(FCN)
        config["self_teacher"]["trunk_gradient"] = given
        model = build(config).double()
        model.self_teacher.trunk_gradient.set_progress(2, 4)
        images, samples = make_batch()
        losses = model.loss(images.double(), samples)
        own, distilled = (
            losses["self_teacher.loss_ce"],
            losses["self_teacher.loss_kd"] + losses["self_teacher.loss_feat"],
        )
        weight = next(model.backbone.parameters())
        results.append((losses, *(torch.autograd.grad(t, weight, retain_graph=True)[0] for t in (own, distilled))))
    (expected, own, distilled), (losses, scaled, same) = results
    assert all(torch.equal(losses[name], value) for name, value in expected.items())
    torch.testing.assert_close(scaled, factor * own)
    torch.testing.assert_close(same, distilled)


def test_bfloat16_autocast_trains():
    model, (images, samples) = build(FCN).train(), make_batch()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.loss(images, samples)
    model.parse_losses(losses)[0].backward()
    assert without_gradient(model) == [] and all(p.grad.isfinite().all() for p in model.parameters())
