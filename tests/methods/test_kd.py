"""Distillation from a pretrained teacher, and what makes one of a timm model."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

import frskd_plugin
from frskd_plugin.core import AttentionTransferLoss, HintLoss, OverhaulLoss
from frskd_plugin.core.preactivations import find_map_norms, forward_with_preactivations
from frskd_plugin.methods.kd import KD
from frskd_plugin.timm.cifar_networks import CIFAR_MEAN, CIFAR_STD
from frskd_plugin.timm.frozen_teacher import FrozenTeacher
from tests.methods.method_tester import CLASSES, SIZE, MethodTester, ce, check_terms, kl, wrap


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
        images, twin = images.double(), copy.deepcopy(model)
        losses = model(images, targets)
        with torch.no_grad():
            feats, logits = twin.student_forward(images)
            teacher_feats, teacher_logits = model.method.teacher(images)
            if kind == "overhaul":  # a group of the wide ResNet ends in a sum, which the next group normalises first
                teacher, feats = model.method.teacher.model, unrectified(twin.student, images)
                first, second, third = unrectified(teacher, images)
                teacher_feats = [teacher.group2.block0.bn1(first), teacher.group3.block0.bn1(second), third]
            expected = {"loss_ce": ce(logits, targets), "loss_kd": 0.5 * kl(teacher_logits, logits, 2)}
            if kind != "none":
                expected["loss_feat"] = beta * twin.method.feature_loss(feats, teacher_feats)
        check_terms(losses, expected)
        kinds = {"none": type(None), "hint": HintLoss, "attention": AttentionTransferLoss, "overhaul": OverhaulLoss}
        assert type(model.method.feature_loss) is kinds[kind]
        if kind == "overhaul":
            loss = model.method.feature_loss
            margins = torch.stack([loss.get_buffer(f"margin{i}").unique() for i in range(3)])
            torch.testing.assert_close(margins, torch.full_like(margins, -((2 / torch.pi) ** 0.5)))  # E[x | x < 0]

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

    @pytest.mark.parametrize("copier", [copy.deepcopy, lambda model: ModelEmaV3(model).module, AveragedModel])
    def test_copies_share_the_teacher_until_it_moves(self, copier):
        model = self.make(feature_loss="overhaul")
        twin = copier(model)
        method = next(m for m in twin.modules() if isinstance(m, KD))
        assert method.teacher is model.method.teacher
        assert not any("teacher" in key for key in twin.state_dict())
        twin.double()
        assert {p.dtype for p in method.teacher.parameters()} == {torch.float64}
        assert {p.dtype for p in model.method.teacher.parameters()} == {torch.float32}
        model.float()  # moves nothing
        assert torch.equal(*(m.teacher.model.fc.weight.float() for m in (method, model.method)))

    def test_teacher_sees_images_normalised_for_it(self):
        raw = torch.rand(8, *SIZE)
        mean, std = [0.2, 0.3, 0.4], [0.5, 0.25, 0.1]

        def seen(**settings):
            teacher = FrozenTeacher(make_teacher(), input_size=SIZE, mean=mean, std=std)
            model = frskd_plugin.wrap(make_teacher(), "kd", input_size=SIZE, teacher=teacher, **settings)
            return model(normalised(raw, *pair), self.batch()[0][1])["teacher_output"], model, teacher

        pair = (CIFAR_MEAN, CIFAR_STD)  # the student's own entry in timm
        found, model, teacher = seen()
        torch.testing.assert_close(found, teacher(normalised(raw, mean, std))[1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.teacher_logits(normalised(raw, *pair)), found)
        pair = ([0.1] * 3, [0.7] * 3)
        found, *_ = seen(student_mean=pair[0], student_std=pair[1])
        torch.testing.assert_close(found, teacher(normalised(raw, mean, std))[1], rtol=1e-4, atol=1e-5)

    def test_equal_or_unknown_normalisation_leaves_the_images(self):
        other = FrozenTeacher(make_teacher(), input_size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3)
        grey = FrozenTeacher(make_teacher(), input_size=SIZE, mean=(0.5,), std=(0.5,))
        assert self.make(student_mean=CIFAR_MEAN, student_std=CIFAR_STD).method.image_scale is None
        assert wrap("kd", teacher=other).method.image_scale is None  # the student has no entry in timm
        assert frskd_plugin.wrap(make_teacher(), "kd", input_size=SIZE, teacher=grey).method.image_scale is None
        with pytest.raises(ValueError, match=r"`student_std` must have a number for each of the images' 3 channels"):
            self.make(student_std=[0.5])

    def test_teacher_by_name_and_file_or_as_a_module_that_stays_as_it_is(self, tmp_path):
        teacher = make_teacher().eval()
        torch.save(teacher.state_dict(), tmp_path / "teacher.pth")
        model = wrap("kd", teacher={"model_name": "wrn_16_2", "checkpoint": tmp_path / "teacher.pth"})
        images = torch.randn(2, *SIZE)
        assert torch.equal(model.method.teacher(images)[1], teacher(images))
        wrap("kd", teacher=teacher.train()).double()
        assert teacher.training and all(p.requires_grad and p.dtype == torch.float32 for p in teacher.parameters())
        frozen = FrozenTeacher(make_teacher(), input_size=SIZE)
        assert wrap("kd", teacher=frozen).method.teacher is frozen


class Pooled(nn.Module):
    """A teacher whose maps no batch normalisation makes."""

    def forward(self, images):
        return [F.adaptive_avg_pool2d(images, s) for s in (16, 8, 4)], images.new_zeros(len(images), CLASSES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (lambda: {}, "'kd' needs the setting 'teacher'"),
        (lambda: {"teacher": {"model_name": "wrn_16_2"}}, "'wrn_16_2' has no weights: give checkpoint=FILE"),
        (lambda: {"teacher": "resnet34"}, r"`teacher` must be a trained timm model .*got 'resnet34'"),
        (lambda: {"teacher": make_teacher(7)}, r"the student's 5 classes, its logits are \[2, 7\]"),
        (
            lambda: {"teacher": timm.create_model("resnet18", num_classes=CLASSES), "feature_loss": "attention"},
            "compares maps of one size",
        ),
        (
            lambda: {"teacher": make_teacher(), "feature_loss": "attention", "beta": 0},
            "'attention'` with `beta=0` trains nothing",
        ),
        (lambda: {"teacher": Pooled().train()}, "The teacher must be in eval mode"),
        (lambda: {"teacher": Pooled().eval(), "feature_loss": "overhaul"}, r"the teacher's maps \[0, 1, 2\] have none"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises((TypeError, ValueError), match=message):
        wrap("kd", **settings())


def normalised(images, mean, std):
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    return (images - mean) / std


def unrectified(net, images):
    """Maps of the standard wide ResNet before their ReLU."""
    first = net.group1(net.stem(images))
    second = net.group2(first)
    return [first, second, net.norm(net.group3(second))]


MAP_NORMS = {
    # a group ends in a sum: the next one normalises it first
    "wrn_16_2": ["group2.block0.bn1 takes", "group3.block0.bn1 takes", "norm"],
    "wrn_16_2_published": ["group1.bn", "group2.bn", "group3.bn"],
    # stages of one block, whose shortcut is normalised last
    "test_resnet": ["layer1.0.bn2", "layer2.0.bn2", "layer3.0.bn3", "layer4.0.bn2"],
    # BatchNormAct2d
    "regnety_002": ["s1.b1.conv3.bn", "s2.b1.conv3.bn", "s3.b4.conv3.bn", "s4.b7.conv3.bn"],
    "densenet121": [*(f"features.transition{i}.norm takes" for i in (1, 2, 3)), "features.norm5"],
    "seresnet18": [None, None, None, None],  # rescaled by a gate behind the norm
}


@pytest.mark.parametrize("name", MAP_NORMS)
def test_norms_are_those_that_make_or_take_the_maps(name):
    size = (3, 32, 32) if name.startswith("wrn") else (3, 64, 64)
    teacher = FrozenTeacher(timm.create_model(name, num_classes=CLASSES), input_size=size)
    found = find_map_norms(teacher, torch.randn(2, *size))
    said = [n and n.name.removeprefix("model.") + ("" if n.makes_map else " takes") for n in found]
    assert said == MAP_NORMS[name]
    # in eval mode what a norm makes alone, or takes, is that norm's own output
    for before, norm in zip(forward_with_preactivations(teacher, torch.randn(2, *size))[2], found, strict=True):
        assert norm is None or before.shape[1] == teacher.get_submodule(norm.name).num_features
