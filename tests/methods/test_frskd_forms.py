"""FRSKD's ablations (Tables 5 and 6), and FRSKD+SLA against the authors' numbers (reference section 7)."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import frskd_plugin
from frskd_plugin.core import HintLoss, OverhaulLoss, attention_transfer_loss
from frskd_plugin.core.preactivations import forward_with_preactivations
from frskd_plugin.core.schedule import TrunkGradient
from frskd_plugin.methods.frskd import auto_beta
from frskd_plugin.methods.sla_sd import aggregate_logits, joint_targets, rotate_images
from tests.helpers.published_student import published_student
from tests.helpers.reference import DATA, assert_close, grads, load_reference, numbered
from tests.methods.method_tester import CLASSES, SIZE, FormTester, MethodTester, fake_student, make_double, wrap

TOL = 2e-7  # float64 against numbers stored as float32


class TestHint(FormTester):
    method = "frskd"
    settings = {"feature_loss": "hint"}
    lr = 0.001

    def test_regressors_end_at_the_refined_width(self):
        loss = self.make(width=1).method.loss_distill.feature_loss
        assert isinstance(loss, HintLoss) and loss.refined_channels == [16, 32, 64]


class TestOverhaul(FormTester):
    method = "frskd"
    settings = {"feature_loss": "overhaul", "beta": "auto"}
    lr = 0.001

    def test_compares_what_enters_the_relus(self):
        model = self.make().double()
        (images, targets), _ = self.batch()
        images = images.double()
        losses = model(images, targets)
        twin = copy.deepcopy(model)
        student = twin.student
        first = student.group1(student.stem(images))
        second = student.group2(first)
        before = [first, second, student.norm(student.group3(second))]
        refined, logits = twin.method.self_teacher([x.relu() for x in before])
        assert min(x.min().item() for x in refined) < 0
        assert isinstance(model.method.loss_distill.feature_loss, OverhaulLoss)
        expected = 0.01 * twin.method.loss_distill.feature_loss(before, refined)
        torch.testing.assert_close(losses["loss_feat"], expected)
        torch.testing.assert_close(losses["teacher_output"], logits)

    def test_in_place_relus_keep_result_and_gradient(self):
        torch.manual_seed(0)
        conv, relu = nn.Conv2d(3, 4, 3).double(), nn.ReLU(inplace=True)
        images = torch.randn(2, 3, 6, 6, dtype=torch.float64)
        feats, _, (before,) = forward_with_preactivations(lambda x: ([relu(conv(x))], x), images)
        assert torch.equal(before, conv(images)) and torch.equal(feats[0], conv(images).relu())
        expected = torch.autograd.grad((conv(images) ** 2).sum(), conv.weight)[0]
        torch.testing.assert_close(torch.autograd.grad((before**2).sum(), conv.weight)[0], expected)


class TestConstantWidth(FormTester):
    method = "frskd"
    settings = {"channels": 24, "repeat": 2, "checkpoint_teacher": True}

    def test_settings_reach_the_self_teacher(self):
        neck = self.make().method.self_teacher.neck
        assert neck.out_channels == [24, 24, 24] and [layer.checkpoint for layer in neck.layers] == [True, True]


def test_batchmean_weighs_each_level_by_its_number_of_positions():
    info, feats, logits = fake_student()  # levels of 8 x 8 and 4 x 4
    method = make_double("frskd", info, feature_reduction="batchmean", beta=0.25)
    refined, _ = method.self_teacher(feats)
    levels = [attention_transfer_loss(f, g) for f, g in zip(feats, refined, strict=True)]
    losses = method(lambda _: (feats, logits), None, torch.tensor([0, 1, 2, 3]), F.cross_entropy)
    torch.testing.assert_close(losses["loss_feat"], 0.25 * (64 * levels[0] + 16 * levels[1]), rtol=1e-12, atol=0)


class TestFRSKD(MethodTester):
    method = "frskd"
    settings = {"alpha": 2, "beta": 100, "trunk_gradient": 0.25}

    @pytest.mark.parametrize("method", ["frskd", "frskd_sla"])
    def test_gate_compares_the_cross_entropies_and_weighs_both_terms(self, method):
        settings = {"alpha": 2, "beta": 100, "width": 1}
        model, plain = (wrap(method, schedule=schedule, **settings) for schedule in ("gate", "constant"))
        plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.endswith("gate.mean")})
        gate = model.method.loss_distill.gate
        gate.mean.fill_(0.4)
        (images, targets), _ = self.batch()
        losses, expected = model(images, targets), plain(images, targets)
        lead = losses["loss_ce"] - losses["loss_teacher_ce"]
        torch.testing.assert_close(gate.mean, 0.95 * 0.4 + 0.05 * lead.detach())
        for name in ("loss_kd", "loss_feat"):
            torch.testing.assert_close(losses[name], gate.mean * expected[name])
        others = [name for name in expected if name.startswith("loss_") and name not in ("loss_kd", "loss_feat")]
        assert all(torch.equal(losses[name], expected[name]) for name in others)

    @pytest.mark.parametrize("method", ["frskd", "frskd_sla"])
    def test_trunk_gradient_scales_what_the_self_teachers_losses_send_into_the_student_and_nothing_else(self, method):
        (images, targets), _ = self.batch()
        plain = wrap(method, width=1, alpha=2, beta=100).double()

        def gradients(share, progress=None):
            model = copy.deepcopy(plain)
            model.method.trunk_gradient = TrunkGradient(share)
            if progress is not None:
                model.method.set_progress(progress, 4)
            losses = model(images.double(), targets)
            names = [name for name in losses if name.startswith("loss_")]
            trunk = model.student.stem.weight
            mine = [name for name in names if "teacher" in name]
            student, teacher = (
                torch.autograd.grad(sum(losses[name] for name in group), trunk, retain_graph=True)[0]
                for group in ([name for name in names if name not in (*mine, "loss_sla_kd")], mine)
            )
            own = torch.autograd.grad(losses[mine[0]], model.method.self_teacher.head.weight)[0]
            return {name: losses[name].detach() for name in names}, student, teacher, own

        losses, student, teacher, own = gradients(1)
        for share, progress, factor in (
            (0.25, None, 0.25),
            (0, None, 0),
            ("linear", None, 0.3),
            ("linear", 3, 0.75),
            ("linear", -1, 0),
        ):
            found = gradients(share, progress)
            assert all(torch.equal(found[0][name], value) for name, value in losses.items())
            torch.testing.assert_close(found[1], student)
            torch.testing.assert_close(found[2], factor * teacher)
            torch.testing.assert_close(found[3], own)

    @pytest.mark.parametrize("share", [1.5, -0.1, float("nan"), "gate"])
    def test_trunk_gradient_must_be_a_share(self, share):
        with pytest.raises(ValueError, match="`trunk_gradient`.*0..1"):
            TrunkGradient(share)


class TestDefaults:
    """`DEFAULTS` where alpha, beta and schedule are left out; the paper's constant weights where one is given."""

    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            ({}, (1, 25, "gate", "linear")),  # the deepest map has 4x4 positions: 100 * 16 / 64
            ({"schedule": "linear"}, (1, 25, "linear", "linear")),
            ({"alpha": 2, "beta": 100}, (2, 100, "constant", 1)),
            ({"alpha": 3}, (3, 25, "constant", 1)),
            ({"beta": "auto", "schedule": "gate", "trunk_gradient": "linear"}, (1, 25, "gate", "linear")),
            ({"feature_reduction": "batchmean", "trunk_gradient": 0.5}, (1, 25 / 16, "gate", 0.5)),
            ({"variant": "equations"}, (1, 25 / 16, "gate", "linear")),
            ({"feature_loss": "hint"}, (1, 100, "gate", "linear")),
            ({"feature_loss": "overhaul"}, (1, 0.01, "gate", "linear")),
        ],
    )
    def test_weights(self, settings, expected):
        method = wrap("frskd", width=1, **settings).method
        loss = method.loss_distill
        assert (loss.alpha, loss.beta, loss.schedule, method.trunk_gradient.share) == expected

    def test_beta_belongs_to_the_deepest_map_and_ends_at_the_papers(self):
        info, _, _ = fake_student()
        for size, beta in (((2, 2), 6.25), ((7, 7), 76.5625), ((8, 8), 100), ((16, 8), 100)):
            assert auto_beta(dataclasses.replace(info, map_sizes=[(32, 32), size])) == beta
        assert auto_beta(dataclasses.replace(info, map_sizes=[(32, 32), (20, 20)]), "batchmean") == 0.25

    def test_set_progress_reaches_the_schedule(self):
        model, batch = (
            wrap("frskd", width=1, schedule="linear", warmup=0.2),
            (torch.randn(2, *SIZE), torch.ones(2).long()),
        )
        with pytest.raises(RuntimeError, match="must know how far"):
            model(*batch)
        model.method.set_progress(6, 10)
        assert model.method.loss_distill.factor == pytest.approx(0.5) and model(*batch)["loss_feat"] > 0


class TestFRSKDSLA(MethodTester):
    method = "frskd_sla"
    lr = 0.005


class TestFRSKDSLAInOnePass(FormTester):
    method = "frskd_sla"
    settings = {"single_pass": True}
    lr = 0.005

    def test_terms_are_those_of_one_pass_over_the_rotations(self):
        info, feats, all_logits = fake_student(batch=16)
        method = make_double(self.method, info, single_pass=True, alpha=2, beta=100, width=1)
        images, targets = torch.randn(4, 3, 8, 8), torch.tensor([1, 3, 0, 2])
        seen = []
        losses = method(lambda x: (seen.append(x), (feats, all_logits))[1], images, targets, F.cross_entropy)
        assert len(seen) == 1 and torch.equal(seen[0], rotate_images(images))
        assert torch.equal(losses["output"], all_logits[::4])
        refined, teacher_all = method.self_teacher(feats)
        u, v = method.joint_head(feats[-1]), method.teacher_joint_head(refined[-1])
        s, t = all_logits[::4], teacher_all[::4]
        both = torch.cat([s, aggregate_logits(u)]), torch.cat([t, aggregate_logits(v)])
        expected = method.loss_distill(*both, feats, refined)
        torch.testing.assert_close(losses["loss_kd"], expected["loss_kd"])
        torch.testing.assert_close(losses["loss_feat"], expected["loss_feat"])
        torch.testing.assert_close(losses["loss_joint_ce"], F.cross_entropy(u, joint_targets(targets)))


def load_joint_heads(method, arrays):
    heads = {"fc_student": method.joint_head, "fc_teacher": method.teacher_joint_head}
    for key, head in heads.items():
        head.load_state_dict({n: torch.from_numpy(arrays[f"{key}.{n}"]) for n in ("weight", "bias")})
    return heads


def test_sla_loss_and_gradients_equal_reference():
    """The networks are replaced by what the file says that they return (sla.npz)."""
    arrays = dict(np.load(DATA / "sla.npz"))
    names = ("feat_s", "feat_t", "rot_feat_s", "rot_feat_t")
    leaf = {name: [x.double().requires_grad_() for x in numbered(arrays, name)] for name in names}
    logits = {k: torch.from_numpy(arrays[k]).double().requires_grad_() for k in ("logits_s", "logits_t")}
    info = dataclasses.replace(fake_student()[0], in_channels=[8, 16])
    method = make_double("frskd_sla", info, alpha=2, beta=100)
    heads = load_joint_heads(method, arrays)
    images, labels = torch.from_numpy(arrays["image"]).double(), torch.from_numpy(arrays["labels"])
    assert_close(rotate_images(images), arrays["rotated_images"], TOL)
    assert np.array_equal(joint_targets(labels), arrays["joint_labels"])
    unused = torch.zeros(12, CLASSES, dtype=torch.float64)
    given = iter([(leaf["feat_s"], logits["logits_s"]), (leaf["rot_feat_s"], unused)])
    refined = iter([(leaf["feat_t"], logits["logits_t"]), (leaf["rot_feat_t"], unused)])
    method.self_teacher.forward = lambda feats: next(refined)

    losses = method(lambda x: next(given), images, labels, F.cross_entropy)
    terms = {k: v for k, v in losses.items() if k.startswith("loss_")}
    total = sum(terms.values())
    total.backward()
    for name, found in {
        "ce_s": terms["loss_ce"],
        "ce_t": terms["loss_teacher_ce"],
        "joint_ce_s": terms["loss_joint_ce"],
        "joint_ce_t": terms["loss_teacher_joint_ce"],
        "sla_kd": terms["loss_sla_kd"],
        "distill_kd": terms["loss_kd"] / 2,
        "distill_feature": terms["loss_feat"] / 100,
        "total": total,
    }.items():
        assert_close(found, arrays[f"loss.{name}"], TOL, name)

    found = {f"{name}.{i}": x.grad for name in names for i, x in enumerate(leaf[name])}
    found |= {name: x.grad for name, x in logits.items()}
    found |= {f"{key}.{n}": p.grad for key, head in heads.items() for n, p in head.named_parameters()}
    stored = {k.removeprefix("total.grad."): v for k, v in arrays.items() if k.startswith("total.grad.")}
    assert {name for name, grad in found.items() if grad is not None} == set(stored)
    for name, grad in stored.items():
        assert_close(found[name], grad, TOL, name)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_sla_step_equals_reference(mode):
    """The complete step with the networks of frskd_step.npz (sla_step.npz)."""
    step, arrays = dict(np.load(DATA / "frskd_step.npz")), dict(np.load(DATA / "sla_step.npz"))
    norms = json.loads((DATA / "sla_step_gradnorms.json").read_text())[mode]["grad_norms"]
    student = published_student(step, torch.float64)
    model = frskd_plugin.wrap(student, "frskd_sla", alpha=2, beta=100, temperature=4, width=2)
    method = model.method
    load_reference(method.self_teacher, step, prefix="teacher.")
    load_joint_heads(method, arrays)
    model.train(mode == "train")
    model.training = True  # asks for the losses, whatever the mode of the networks
    losses = model(torch.from_numpy(step["image"]).double(), torch.from_numpy(step["labels"]))
    losses["loss"].backward()

    distill = losses["loss_kd"] + losses["loss_feat"]
    for name, found in {
        "loss.total": losses["loss"],
        "loss.distill": distill,
        "loss.sla": losses["loss"] - distill,
        "logits_s": losses["output"],
        "logits_t": losses["teacher_output"],
        "grad.fc_student.weight": method.joint_head.weight.grad,
        "grad.fc_teacher.weight": method.teacher_joint_head.weight.grad,
        "grad.student.stem.weight": student.stem.weight.grad,
        "grad.student.fc.weight": student.fc.weight.grad,
        "grad.teacher.head.weight": method.self_teacher.head.weight.grad,
    }.items():
        assert_close(found, arrays[f"{mode}.{name}"], TOL, name)
    student_grads = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    for found, stored in ((student_grads, norms["student"]), (grads(method.self_teacher), norms["teacher"])):
        wanted = {name: norm for name, norm in stored.items() if norm is not None}
        assert {name: grad.norm().item() for name, grad in found.items()} == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    if mode == "train":  # two updates of the running statistics
        assert_close(student.group3.bn.running_mean, arrays["train.after.group3.bn.mean"], TOL)
        assert_close(student.group3.bn.running_var, arrays["train.after.group3.bn.var"], TOL)


def test_a_feature_loss_of_ones_own():
    class Mean(nn.Module):
        def forward(self, feats, refined_feats):
            return sum(f.mean() for f in feats)

    model = wrap("frskd", feature_loss=Mean(), beta=3)
    images = torch.randn(4, *SIZE)
    expected = 3 * sum(f.mean() for f in copy.deepcopy(model).student_forward(images)[0])
    torch.testing.assert_close(model(images, torch.tensor([0, 1, 2, 3]))["loss_feat"], expected)
