"""Distillation from a pretrained teacher, and what makes one of a timm model."""

from __future__ import annotations

import copy
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from frskd_plugin.timm.frozen_teacher import FrozenTeacher
from tests.methods.method_tester import CLASSES, SIZE, MethodTester, ce, check_terms, kl, make_student, wrap


def make_teacher(num_classes=CLASSES):
    torch.manual_seed(7)
    return timm.create_model("wrn_16_2", num_classes=num_classes)


class TestKD(MethodTester):
    method = "kd"
    settings = {"teacher": make_teacher()}
    lr = 0.002

    @pytest.mark.parametrize(("kind", "beta"), [("none", 0), ("hint", 100), ("attention", 1000), ("overhaul", 1e-3)])
    def test_loss_is_the_formula(self, kind, beta):
        model = self.make(alpha=0.5, temperature=2, feature_loss=kind).double()
        (images, targets), _ = self.batch()
        images = images.double()
        losses = model(images, targets)
        with torch.no_grad():
            feats, logits = copy.deepcopy(model).student_forward(images)
            teacher_feats, teacher_logits = model.method.teacher(images)
        expected = {"loss_ce": ce(logits, targets), "loss_kd": 0.5 * kl(teacher_logits, logits, 2)}
        if kind == "hint":
            regressed = [r(f) for r, f in zip(model.method.feature_loss.regressors, feats, strict=True)]
            levels = [((r - g) ** 2).mean() for r, g in zip(regressed, teacher_feats, strict=True)]
        elif kind == "attention":
            maps = [[(x**2).mean(1).flatten(1) for x in xs] for xs in (feats, teacher_feats)]
            maps = [[m / m.norm(dim=1, keepdim=True) for m in ms] for ms in maps]
            levels = [((a - b) ** 2).mean() for a, b in zip(*maps, strict=True)]
        elif kind == "overhaul":
            levels = self.overhaul_levels(model, images)
        if kind != "none":
            expected["loss_feat"] = beta * sum(levels)
        check_terms(losses, expected)

    def overhaul_levels(self, model, images):
        """Between pre-activations, margins of the teacher's fresh norms: E[x | x < 0] of a standard normal."""
        with torch.no_grad():
            befores = [unrectified(copy.deepcopy(net), images) for net in (model.student, model.method.teacher.model)]
            levels = []
            for i, (f, g) in enumerate(zip(*befores, strict=True)):
                r = model.method.feature_loss.regressors[i](f)
                target = g.clamp_min(float(torch.tensor(-((2 / math.pi) ** 0.5))))  # kept in float32
                squared = (r - target) ** 2 * ((r > target) | (target > 0))
                levels.append(squared.sum() / len(images) / 2 ** (2 - i))
        return levels

    def test_teacher_is_frozen_hidden_and_moved_along(self):
        model = self.make()
        before = copy.deepcopy(model.method.teacher.state_dict())
        assert not any("teacher" in key for key in model.state_dict())
        assert not list(model.method.parameters())
        model.train()
        model(*self.batch()[0])["loss"].backward()
        assert not any(m.training for m in model.method.teacher.modules())
        assert all(p.grad is None for p in model.method.teacher.parameters())
        assert all(torch.equal(v, before[k]) for k, v in model.method.teacher.state_dict().items())
        assert {p.dtype for p in model.double().method.teacher.parameters()} == {torch.float64}
        assert model.method.teacher.train().training is False

    def test_users_teacher_stays_as_it_is(self):
        teacher = make_teacher().train()
        wrap("kd", teacher=teacher).double()
        assert teacher.training and all(p.requires_grad and p.dtype == torch.float32 for p in teacher.parameters())

    def test_teacher_by_name_and_file(self, tmp_path):
        teacher = make_teacher().eval()
        torch.save(teacher.state_dict(), tmp_path / "teacher.pth")
        model = wrap("kd", teacher={"model_name": "wrn_16_2", "checkpoint": tmp_path / "teacher.pth"})
        images = torch.randn(2, *SIZE)
        assert torch.equal(model.method.teacher(images)[1], teacher(images))

    def test_a_module_with_maps_and_logits_is_taken_as_it_is(self):
        teacher = FrozenTeacher(make_teacher(), input_size=SIZE)
        assert wrap("kd", teacher=teacher).method.teacher is teacher

    def test_refusals(self):
        with pytest.raises(TypeError, match="'kd' needs the setting 'teacher'"):
            wrap("kd")
        with pytest.raises(ValueError, match="'wrn_16_2' has no weights: give checkpoint=FILE"):
            wrap("kd", teacher={"model_name": "wrn_16_2"})
        with pytest.raises(TypeError, match=r"`teacher` must be a trained timm model .*got 'resnet34'"):
            wrap("kd", teacher="resnet34")
        with pytest.raises(ValueError, match=r"the student's 5 classes, its logits are \[2, 7\]"):
            wrap("kd", teacher=make_teacher(7))
        with pytest.raises(ValueError, match="compares maps of one size"):
            other = timm.create_model("resnet18", num_classes=CLASSES)
            wrap("kd", teacher=other, feature_loss="attention")
        with pytest.raises(ValueError, match="'attention'` with `beta=0` trains nothing"):
            wrap("kd", teacher=make_teacher(), feature_loss="attention", beta=0)

    def test_teacher_in_train_mode_is_refused(self):
        class Handmade(nn.Module):
            def forward(self, images):
                return [images], images.mean((2, 3))

        with pytest.raises(ValueError, match="The teacher must be in eval mode"):
            wrap("kd", teacher=Handmade().train())

    def test_overhaul_needs_batch_normalisation(self):
        class Plain(nn.Module):
            def forward(self, images):
                sizes = [16, 8, 4]
                return [F.adaptive_avg_pool2d(images, s) for s in sizes], images.new_zeros(len(images), CLASSES)

        with pytest.raises(ValueError, match=r"the teacher's maps \[0, 1, 2\] have none"):
            wrap("kd", teacher=Plain().eval(), feature_loss="overhaul")


def unrectified(net, images):
    """Maps of the standard wide ResNet before their ReLU."""
    first = net.group1(net.stem(images))
    second = net.group2(first)
    return [first, second, net.norm(net.group3(second))]


def test_unrectified_is_what_the_network_rectifies():
    net, images = make_student().eval(), torch.randn(2, *SIZE)
    _, feats = net.forward_intermediates(images)
    for feat, before in zip(feats, unrectified(net, images), strict=True):
        assert torch.equal(feat, before.relu())
