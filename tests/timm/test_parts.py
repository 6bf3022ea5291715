"""`unwrap(model, part)`: self-teacher and ensemble as plain networks give what the wrapped model's own parts give."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import frskd_plugin

SIZE = (3, 64, 64)
IMAGES = torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(1))


def wrapped(method="frskd", name="test_resnet", num_classes=5, **settings):
    torch.manual_seed(0)
    student = timm.create_model(name, num_classes=num_classes)
    settings = {"input_size": SIZE, **({"width": 1} if method.startswith("frskd") else {}), **settings}
    model = frskd_plugin.wrap(student, method, **settings)
    model.student_forward(IMAGES)  # batch statistics
    return model.eval()


@pytest.mark.parametrize(
    ("settings", "gone"),
    [
        ({}, ("fc.",)),
        ({"method": "frskd_sla", "out_indices": (1, 2, 3)}, ("layer4.", "fc.")),
        ({"name": "test_vit", "input_size": (3, 160, 160)}, ("norm.", "head.")),
        ({"name": "wrn_16_2", "variant": "equations"}, ("fc.",)),
    ],
    ids=["frskd", "frskd_sla", "vit", "wrn"],
)
def test_parts_equal_the_wrapped_models_own(settings, gone):
    model = wrapped(**settings)
    images = torch.randn(3, *settings.get("input_size", SIZE))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        logits, teacher_logits = model(images), model.teacher_logits(images)
        teacher, both = (frskd_plugin.unwrap(model, part) for part in ("self_teacher", "ensemble"))
        assert torch.equal(teacher(images), teacher_logits)
        mean = (logits.softmax(1) + teacher_logits.softmax(1)) / 2
        torch.testing.assert_close(both(images).exp(), mean)
    # only what it needs, under the names of the wrapped model, and none of the wrapped model's own tensors
    student = model.student.state_dict()
    expected = {f"student.{key}" for key in student if not key.startswith(gone)}
    expected |= {f"self_teacher.{key}" for key in model.method.self_teacher.state_dict()}
    assert set(teacher.state_dict()) == expected
    for part in (teacher, both):
        assert not any(module.training for module in part.modules())
        assert not any(parameter.requires_grad for parameter in part.parameters())
        assert {p.data_ptr() for p in part.parameters()}.isdisjoint(p.data_ptr() for p in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert frskd_plugin.unwrap(model, "student") is model.student


@pytest.mark.parametrize("num_classes", [1, 4])
def test_an_ensemble_of_independent_classes_is_the_mean_of_sigmoids(num_classes):
    model = wrapped(num_classes=num_classes, criterion=nn.BCEWithLogitsLoss())
    with torch.no_grad():
        mean = (model(IMAGES).sigmoid() + model.teacher_logits(IMAGES).sigmoid()) / 2
        torch.testing.assert_close(frskd_plugin.unwrap(model, "ensemble")(IMAGES).sigmoid(), mean)


def test_the_ensemble_of_one_is_its_own():
    model = wrapped("one")
    ensemble = frskd_plugin.unwrap(model, "ensemble")
    with torch.no_grad():
        expected = model.teacher_logits(IMAGES)
        model.student.conv1[0].weight.zero_()  # a copy: what happens to the model later is not its business
        torch.testing.assert_close(ensemble(IMAGES), expected)


@pytest.mark.parametrize(
    ("method", "part", "message"),
    [
        ("baseline", "self_teacher", "part='self_teacher': Baseline has no self-teacher that reads the student's maps"),
        ("byot", "ensemble", "part='ensemble': BYOT has no self-teacher"),
        ("one", "self_teacher", "ONE has no self-teacher .* Its ensemble of branches is part='ensemble'"),
        ("frskd", "teacher", "`part` must be one of .*'self_teacher', 'ensemble'"),
    ],
)
def test_a_part_that_there_is_not_is_refused(method, part, message):
    with pytest.raises(ValueError, match=message):
        frskd_plugin.unwrap(wrapped(method), part)
