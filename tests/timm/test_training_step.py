"""The complete step of the method on the authors' network equals the authors' numbers (reference section 6)."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from frskd_plugin.core import FRSKDLoss, SelfTeacher, attention_map
from tests.helpers.published_student import published_student
from tests.helpers.reference import DATA, assert_close, grads, load_reference, statistics

TOL = 2e-7  # float64 against numbers stored as float32


@pytest.fixture
def arrays():
    return dict(np.load(DATA / "frskd_step.npz"))


@pytest.fixture
def networks(arrays):
    """Student and self-teacher with the stored weights, in float64."""
    teacher = load_reference(SelfTeacher([16, 32, 64], num_classes=10).double(), arrays, prefix="teacher.")
    return published_student(arrays, torch.float64), teacher


def forward(student, teacher, image):
    last, feats = student.forward_intermediates(image, output_fmt="NCHW")
    logits = student.forward_head(last)
    refined_feats, teacher_logits = teacher(feats)
    return feats, logits, refined_feats, teacher_logits


def step_losses(student, teacher, arrays, image=None):
    """The four terms of Eq. 5, unweighted, and the total."""
    image = torch.from_numpy(arrays["image"]).double() if image is None else image
    labels = torch.from_numpy(arrays["labels"])
    feats, logits, refined_feats, teacher_logits = forward(student, teacher, image)
    terms = FRSKDLoss(alpha=2, beta=100, temperature=4)(logits, teacher_logits, feats, refined_feats)
    losses = {
        "ce_student": F.cross_entropy(logits, labels),
        "ce_teacher": F.cross_entropy(teacher_logits, labels),
        "kd": terms["loss_kd"] / 2,
        "feature": terms["loss_feat"] / 100,
    }
    return losses | {"total": losses["ce_student"] + losses["ce_teacher"] + sum(terms.values())}


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_terms_and_gradients_equal_reference(networks, arrays, mode):
    student, teacher = (network.train(mode == "train") for network in networks)
    image = torch.from_numpy(arrays["image"]).double().requires_grad_()
    losses = step_losses(student, teacher, arrays, image)
    losses["total"].backward()
    for name, value in losses.items():
        assert_close(value, arrays[f"{mode}.loss.{name}"], TOL, name)
    assert_close(image.grad, arrays[f"{mode}.grad_image"], TOL, "grad_image")
    if mode == "eval":
        return
    for name, parameter in student.named_parameters():
        assert_close(parameter.grad, arrays[f"train.grad.student.{name}"], TOL, name)
    for key, grad in grads(teacher).items():
        assert_close(grad, arrays[f"train.grad.teacher.{key}"], TOL, key)
    for key, value in statistics(teacher).items():
        assert_close(value, arrays[f"train.after.teacher.{key}"], TOL, key)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_outputs_equal_reference(networks, arrays, mode):
    student, teacher = (network.train(mode == "train") for network in networks)
    feats, logits, refined_feats, teacher_logits = forward(student, teacher, torch.from_numpy(arrays["image"]).double())
    assert_close(logits, arrays[f"{mode}.logits_student"], TOL)
    assert_close(teacher_logits, arrays[f"{mode}.logits_teacher"], TOL)
    for i, (feat, refined_feat) in enumerate(zip(feats, refined_feats, strict=True)):
        assert_close(attention_map(feat), arrays[f"{mode}.map_student.{i}"], TOL)
        assert_close(attention_map(refined_feat), arrays[f"{mode}.map_teacher.{i}"], TOL)
        if mode == "train":
            assert_close(feat[0], arrays[f"train.feat_student0.{i}"], TOL)
            assert_close(refined_feat[0], arrays[f"train.feat_teacher0.{i}"], TOL)


@pytest.mark.parametrize("term", ["ce_student", "ce_teacher", "kd", "feature", "total"])
def test_each_term_trains_who_it_should(networks, arrays, term):
    stored = json.loads((DATA / "frskd_step_gradnorms.json").read_text())["train"]["grad_norms"][term]
    student, teacher = (network.train() for network in networks)
    step_losses(student, teacher, arrays)[term].backward()
    student_grads = {name: p.grad for name, p in student.named_parameters()}
    check_norms(student_grads, stored["student"])
    teacher_grads = grads(teacher)
    check_norms({key: teacher_grads.get(key) for key in stored["teacher"]}, stored["teacher"])


def check_norms(found, stored):
    assert set(found) == set(stored)
    for name, norm in stored.items():
        assert (found[name] is None) == (norm is None), name
        if norm is not None:
            assert found[name].norm().item() == pytest.approx(norm, rel=1e-6, abs=1e-9), name


def test_five_sgd_steps_equal_reference(networks, arrays):
    student, teacher = (network.train() for network in networks)
    parameters = [*student.parameters(), *teacher.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.02, momentum=0.9, weight_decay=0.01)
    for k in range(5):
        total = step_losses(student, teacher, arrays)["total"]
        assert total.item() == pytest.approx(float(arrays[f"traj.total.{k}"]), rel=1e-6)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert_close(teacher.neck.layers[0].td_nodes["0"].fusion_weights, arrays["traj.td_fuse.0"], 1e-6)
    assert_close(teacher.head.weight, arrays["traj.head.weight"], 1e-6)
    assert_close(student.fc.weight, arrays["traj.fc.weight"], 1e-6)
    assert_close(student.group3.bn.weight, arrays["traj.group3.bn.weight"], 1e-6)
