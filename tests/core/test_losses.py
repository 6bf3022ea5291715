"""Distillation losses: the authors' numbers, independent formulas of Eq. 3, gradients, bad input."""

from __future__ import annotations

import copy
import json
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from frskd_plugin.core import (
    AttentionTransferLoss,
    FRSKDLoss,
    HintLoss,
    OverhaulLoss,
    SoftLabelLoss,
    attention_map,
    attention_transfer_loss,
    overhaul_margin,
    sigmoid_rampup,
)
from frskd_plugin.core.schedule import distill_factor
from tests.helpers.reference import DATA, assert_close, numbered

TOL = 2e-7  # float64 against numbers stored as float32


def load(name):
    return dict(np.load(DATA / f"{name}.npz"))


def leaves(arrays, name):
    return [x.double().requires_grad_() for x in numbered(arrays, name)]


def leaf(arrays, name):
    return torch.from_numpy(arrays[name]).double().requires_grad_()


@pytest.mark.parametrize("temperature", [1, 4])
@pytest.mark.parametrize(
    ("file", "s", "t", "prefix"), [("kd_loss", "student", "teacher", ""), ("seg_loss", "logits_s", "logits_t", "kd.")]
)
def test_soft_label_equals_reference(file, s, t, prefix, temperature):
    arrays = load(file)
    student, teacher = leaf(arrays, s), leaf(arrays, t)
    loss = SoftLabelLoss(temperature)(student, teacher)
    loss.backward()
    assert_close(loss, arrays[f"{prefix}T{temperature}.loss"], TOL)
    assert_close(student.grad, arrays[f"{prefix}T{temperature}.grad_{s}"], TOL)
    assert teacher.grad is None


@pytest.mark.parametrize("prefix", ["", "zero."])
def test_attention_transfer_equals_reference(prefix):
    arrays = load("att_loss")
    feats, refined_feats = leaves(arrays, f"{prefix}feat_s"), leaves(arrays, f"{prefix}feat_t")
    logits_s, logits_t = leaf(arrays, "logits_s"), leaf(arrays, "logits_t")
    for i, (feat, refined_feat) in enumerate(zip(feats, refined_feats, strict=True)):
        assert_close(attention_map(feat), arrays[f"{prefix}map_s.{i}"], TOL)
        assert_close(attention_map(refined_feat), arrays[f"{prefix}map_t.{i}"], TOL)
        assert_close(attention_transfer_loss(feat, refined_feat), arrays[f"{prefix}level.{i}"], TOL)

    losses = FRSKDLoss(alpha=2, beta=100, temperature=4)(logits_s, logits_t, feats, refined_feats)
    total = losses["loss_kd"] + losses["loss_feat"]
    total.backward()
    assert_close(losses["loss_feat"] / 100, arrays[f"{prefix}sum"], TOL)
    assert_close(losses["loss_kd"] / 2, arrays[f"{prefix}kd"], TOL)
    assert_close(total, arrays[f"{prefix}total"], TOL)
    assert_close(logits_s.grad, arrays[f"{prefix}total.grad_logits_s"], TOL)
    for i, feat in enumerate(feats):
        assert_close(feat.grad, arrays[f"{prefix}total.grad_feat_s.{i}"], TOL)
    assert logits_t.grad is None and all(g.grad is None for g in refined_feats)


def hint_loss(arrays):
    return HintLoss([8, 16, 32], [16, 32, 64])


def overhaul(arrays):
    norms = [nn.BatchNorm2d(channels).double() for channels in (16, 32, 64)]
    for i, norm in enumerate(norms):
        affine = {name: torch.from_numpy(arrays[f"bn.{i}.{name}"]) for name in ("weight", "bias")}
        norm.load_state_dict(affine, strict=False)
    loss = OverhaulLoss([8, 16, 32], norms)
    for i in range(3):
        assert_close(loss.state_dict()[f"margin{i}"], arrays[f"margin.{i}"], TOL)
    return loss


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(("file", "make", "beta"), [("fit_loss", hint_loss, 100), ("od_loss", overhaul, 0.01)])
def test_regression_losses_equal_reference(file, make, beta, mode):
    """Levels, total, every gradient, running statistics."""
    arrays = load(file)
    loss = make(arrays).double().train(mode == "train")
    for i, regressor in enumerate(loss.regressors):
        conv, bn = regressor.children()
        conv.load_state_dict({"weight": torch.from_numpy(arrays[f"p.reg.{i}.conv.weight"])})
        state = [torch.from_numpy(arrays[f"p.reg.{i}.bn.{name}"]) for name in ("weight", "bias", "mean", "var")]
        bn.load_state_dict(dict(zip(bn.state_dict(), state, strict=False)), strict=False)
    untouched = copy.deepcopy(loss)
    feats, refined_feats = leaves(arrays, "feat_s"), leaves(arrays, "feat_t")
    logits_s, logits_t = leaf(arrays, "logits_s"), leaf(arrays, "logits_t")
    terms = FRSKDLoss(2, beta, 4, feature_loss=loss)(logits_s, logits_t, feats, refined_feats)
    total = terms["loss_kd"] + terms["loss_feat"]
    total.backward()
    assert_close(terms["loss_feat"] / beta, arrays[f"{mode}.sum"], TOL)
    assert_close(total, arrays[f"{mode}.total"], TOL)
    assert_close(logits_s.grad, arrays[f"{mode}.total.grad_logits_s"], TOL)
    for i, (feat, regressor) in enumerate(zip(feats, loss.regressors, strict=True)):
        conv, bn = regressor.children()
        assert_close(feat.grad, arrays[f"{mode}.total.grad_feat_s.{i}"], TOL)
        assert_close(conv.weight.grad, arrays[f"{mode}.total.grad.reg.{i}.conv.weight"], TOL)
        assert_close(bn.weight.grad, arrays[f"{mode}.total.grad.reg.{i}.bn.weight"], TOL)
        if mode == "train":
            assert_close(bn.running_mean, arrays[f"train.after.reg.{i}.bn.mean"], TOL)
            assert_close(bn.running_var, arrays[f"train.after.reg.{i}.bn.var"], TOL)
    assert all(g.grad is None for g in refined_feats)
    for i, level in enumerate(untouched.levels(feats, refined_feats)):
        assert_close(level, arrays[f"{mode}.level.{i}"], TOL)


def test_overhaul_margins_stay_as_they_were_when_the_loss_was_built():
    norm = nn.BatchNorm2d(4)
    loss = OverhaulLoss([2], [norm])
    with torch.no_grad():
        norm.bias.fill_(0.5)
    torch.testing.assert_close(loss.margin0, torch.full((4,), float(load("od_loss")["margin_default_bn"])))
    assert overhaul_margin(norm.weight, norm.bias)[0] != loss.margin0[0]


def test_segmentation_step_equals_reference():
    arrays = load("seg_loss")
    logits_s, logits_t = leaf(arrays, "logits_s"), leaf(arrays, "logits_t")
    feats, refined_feats = leaves(arrays, "feat_s"), leaves(arrays, "feat_t")
    for i, level in enumerate(AttentionTransferLoss().levels(feats, refined_feats)):
        assert_close(level, arrays[f"att.level.{i}"], TOL)
    labels = torch.from_numpy(arrays["labels"])
    cross_entropy = nn.CrossEntropyLoss(ignore_index=255)
    terms = FRSKDLoss(float(arrays["step.alpha"]), float(arrays["step.beta"]), 1)(
        logits_s, logits_t, feats, refined_feats
    )
    total = cross_entropy(logits_s, labels) + cross_entropy(logits_t, labels) + sum(terms.values())
    total = total / float(arrays["step.accum"])
    total.backward()
    assert_close(total, arrays["step.total"], TOL)
    assert_close(logits_s.grad, arrays["step.grad_logits_s"], TOL)
    assert_close(logits_t.grad, arrays["step.grad_logits_t"], TOL)
    for i, feat in enumerate(feats):
        assert_close(feat.grad, arrays[f"step.grad_feat_s.{i}"], TOL)


def test_warmup_equals_reference():
    stored = json.loads((DATA / "seg_rampup.json").read_text())
    factors = [distill_factor(epoch, stored["warmup"], stored["epochs"]) for epoch in range(stored["epochs"])]
    assert factors == pytest.approx(stored["alpha_beta_factor"], abs=1e-12)
    assert sigmoid_rampup(5, 0) == 1.0
    with pytest.raises(ValueError, match="begin=60 and end=40"):
        distill_factor(0, 60, 40)


def test_attention_equals_an_independent_formula():
    """Eq. 3: L2 norm of the difference of the normalised maps; 'batchmean': 2 - 2 cos of maps of norm 1."""
    feats = [torch.randn(3, 4, *size, dtype=torch.float64) for size in ((6, 6), (3, 2))]
    refined = [torch.rand(3, 9, *feat.shape[2:], dtype=torch.float64) for feat in feats]
    forms = (AttentionTransferLoss("equations"), AttentionTransferLoss(), AttentionTransferLoss(reduction="batchmean"))
    for feat, target, *found in zip(feats, refined, *(form.levels(feats, refined) for form in forms), strict=True):
        a, b = ((x.numpy() ** 2).mean(1).reshape(3, -1) for x in (feat, target))
        a, b = (x / np.sqrt((x**2).sum(1, keepdims=True)) for x in (a, b))
        batchmean = (2 - 2 * (a * b).sum(1)).mean()
        expected = np.sqrt(((a - b) ** 2).sum(1)).mean(), batchmean / a.shape[1], batchmean
        assert [x.item() for x in found] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("variant", ["published", "equations"])
def test_agreeing_maps_have_no_loss_and_no_nan(variant):
    feats = [torch.rand(2, 4, 3, 3).requires_grad_(), torch.zeros(2, 4, 1, 1).requires_grad_()]
    AttentionTransferLoss(variant)(feats, [feat.detach() for feat in feats]).backward()
    assert all(torch.equal(feat.grad, torch.zeros_like(feat)) for feat in feats)


def test_gradients_by_finite_differences():
    feat = torch.rand(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    refined = torch.rand(2, 6, 4, 4, dtype=torch.float64)
    for settings in ({"variant": "published"}, {"variant": "equations"}, {"reduction": "batchmean"}):
        loss = partial(attention_transfer_loss, refined_feat=refined, **settings)
        assert torch.autograd.gradcheck(loss, (feat,))


@pytest.mark.parametrize("size", [1e-7, 5e-7, 1e-3])
def test_gradients_of_maps_below_eps(size):
    """A length that is clamped is a constant for the gradient, as in ``torch.nn.functional.normalize``."""
    feat, weight = torch.rand(2, 3, 2, 2, dtype=torch.float64), torch.rand(2, 4, dtype=torch.float64)
    feat = (size * feat).requires_grad_()
    energy = feat.square().sum(1).flatten(1)
    (expected,) = torch.autograd.grad((F.normalize(energy, eps=1e-12) * weight).sum(), feat)
    (actual,) = torch.autograd.grad((attention_map(feat) * weight).sum(), feat)
    torch.testing.assert_close(actual, expected)


def test_half_precision_maps_cannot_overflow():
    feat = torch.full((1, 64, 2, 2), 6e4, dtype=torch.float16)
    feat[0, :, 0, 0] = 0
    with torch.autocast("cpu", torch.bfloat16):
        assert attention_map(feat).dtype == torch.float32
        torch.testing.assert_close(attention_map(feat), torch.tensor([[0.0, 1.0, 1.0, 1.0]]) / 3**0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_weights_set_in_training_are_exact_and_no_part_of_the_state(dtype):
    """They lie on the device in double precision, whatever dtype the model is brought to."""
    logits, other = torch.randn(2, 5, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    feats, refined = [torch.rand(2, 3, 4, 4).double()], [torch.rand(2, 6, 4, 4).double()]
    unit = FRSKDLoss(1, 1, 4)(logits, other, feats, refined)
    loss = FRSKDLoss(2, 100, 4).to(dtype)
    buffers = [id(buffer) for buffer in loss.buffers()]
    loss.alpha, loss.beta, loss.factor = 0.1, 0.3, 0.7
    assert (loss.alpha, loss.beta, loss.factor) == (0.1, 0.3, 0.7) and loss.state_dict() == {}
    assert [id(buffer) for buffer in loss.buffers()] == buffers  # changed in place: a captured graph reads them
    found = loss(logits, other, feats, refined)
    assert found["loss_kd"].item() == pytest.approx(0.1 * 0.7 * unit["loss_kd"].item(), rel=1e-14)
    assert found["loss_feat"].item() == pytest.approx(0.3 * 0.7 * unit["loss_feat"].item(), rel=1e-14)
    twin = copy.deepcopy(loss).to("meta").to_empty(device="cpu")  # built without memory, then given some
    assert torch.equal(twin(logits, other, feats, refined)["loss_kd"], found["loss_kd"])
    for name in ("alpha", "beta", "factor"):
        with pytest.raises(ValueError, match=f"`{name}` weighs a loss and must be >= 0, got -1"):
            setattr(loss, name, -1)
    # what weighs nothing is not computed: maps that do not fit are not even looked at
    loss.beta = 0.0
    assert loss(logits, other, feats, [])["loss_feat"].item() == 0
    loss.factor = 0.0
    assert all(value.item() == 0 for value in loss(logits, other[:1], feats, []).values())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FRSKDLoss(alpha=-1), "`alpha` weighs a loss and must be >= 0, got -1"),
        (lambda: FRSKDLoss(beta=float("inf")), "`beta` weighs a loss and must be >= 0, got inf"),
        (lambda: AttentionTransferLoss(reduction="sum"), "`reduction` must be one of 'mean', 'batchmean'"),
        (lambda: FRSKDLoss(feature_reduction="sum"), "`feature_reduction` must be one of 'mean', 'batchmean'"),
        (lambda: HintLoss([8, 16], [16]), "must have the same levels"),
        (
            lambda: FRSKDLoss(feature_loss=HintLoss([4], [8]), feature_reduction="batchmean"),
            "belongs to the attention transfer, got `feature_loss=HintLoss`",
        ),
        (lambda: AttentionTransferLoss()([torch.zeros(1, 1, 1, 1)], []), "same levels, got 1 and 0 maps"),
    ],
)
def test_bad_input(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("shape", [(1, 8, 4, 4), (2, 8, 2, 2)])
@pytest.mark.parametrize("make", [AttentionTransferLoss, lambda: HintLoss([4], [8])])
def test_maps_of_another_batch_or_size_are_never_broadcast(make, shape):
    with pytest.raises(ValueError, match=r"level 0 must agree in B, H and W, got \[2, 4, 4, 4\] of the student and"):
        make()([torch.rand(2, 4, 4, 4)], [torch.rand(shape)])
