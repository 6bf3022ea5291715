"""The complete step of a wrapped model equals the authors' numbers on their network (reference section 6)."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

import frskd_plugin
from frskd_plugin.core import attention_map
from tests.helpers.published_student import published_state, published_student
from tests.helpers.reference import DATA, assert_close, grads, load_reference, statistics

TOL = 2e-7  # float64 against numbers stored as float32


@pytest.fixture(scope="module")
def arrays():
    return dict(np.load(DATA / "frskd_step.npz"))


@pytest.fixture(scope="module")
def loaded(arrays):
    """Student and self-teacher with the stored weights, in float64."""
    model = frskd_plugin.wrap(published_student(arrays, torch.float64), alpha=2, beta=100, temperature=4, width=2)
    load_reference(model.method.self_teacher, arrays, prefix="teacher.")
    return model


@pytest.fixture
def model(loaded):
    return copy.deepcopy(loaded)


@pytest.fixture
def image(arrays):
    return torch.from_numpy(arrays["image"]).double().requires_grad_()


def parts(model):
    return model.student, model.method.self_teacher


def step_losses(model, arrays, image):
    """The four terms of Eq. 5, unweighted, and the total; the networks are in the mode that they were set to."""
    model.training = True  # asks for the losses, whatever the mode of the networks
    losses = model(image, torch.from_numpy(arrays["labels"]))
    return {
        "ce_student": losses["loss_ce"],
        "ce_teacher": losses["loss_teacher_ce"],
        "kd": losses["loss_kd"] / 2,
        "feature": losses["loss_feat"] / 100,
        "total": losses["loss"],
    }


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_outputs_terms_and_gradients_equal_reference(model, arrays, image, mode):
    check_outputs(copy.deepcopy(model).train(mode == "train"), arrays, image, mode)
    student, teacher = parts(model.train(mode == "train"))
    losses = step_losses(model, arrays, image)
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
    after = published_state(arrays, "train.after.student.")
    assert len(after) == 12
    for name, value in after.items():
        assert_close(student.state_dict()[name], value, TOL, name)
    for key, value in statistics(teacher).items():
        assert_close(value, arrays[f"train.after.teacher.{key}"], TOL, key)


def check_outputs(model, arrays, image, mode):
    feats, logits = model.student_forward(image)
    refined_feats, teacher_logits = model.method.self_teacher(feats)
    for who, maps, found in (("student", feats, logits), ("teacher", refined_feats, teacher_logits)):
        assert_close(found, arrays[f"{mode}.logits_{who}"], TOL)
        for i, feat in enumerate(maps):
            assert_close(attention_map(feat), arrays[f"{mode}.map_{who}.{i}"], TOL)
            if mode == "train":
                assert_close(feat[0], arrays[f"train.feat_{who}0.{i}"], TOL)


@pytest.mark.parametrize("term", ["ce_student", "ce_teacher", "kd", "feature", "total"])
def test_each_term_trains_who_it_should(model, arrays, image, term):
    stored = json.loads((DATA / "frskd_step_gradnorms.json").read_text())["train"]["grad_norms"][term]
    student, teacher = parts(model.train())
    step_losses(model, arrays, image)[term].backward()
    student_grads = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    for found, norms in ((student_grads, stored["student"]), (grads(teacher), stored["teacher"])):
        wanted = {name: norm for name, norm in norms.items() if norm is not None}
        assert {name: grad.norm().item() for name, grad in found.items()} == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def test_five_sgd_steps_equal_reference(model, arrays, image):
    student, teacher = parts(model.train())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=0.01)
    for k in range(5):
        total = step_losses(model, arrays, image)["total"]
        assert total.item() == pytest.approx(float(arrays[f"traj.total.{k}"]), rel=1e-6)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert_close(teacher.neck.layers[0].td_nodes["0"].fusion_weights, arrays["traj.td_fuse.0"], 1e-6)
    assert_close(teacher.head.weight, arrays["traj.head.weight"], 1e-6)
    assert_close(student.fc.weight, arrays["traj.fc.weight"], 1e-6)
    assert_close(student.group3.bn.weight, arrays["traj.group3.bn.weight"], 1e-6)
