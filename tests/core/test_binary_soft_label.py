"""The soft label of sigmoid heads against independent formulas in float64, its gradient, and bad input."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import timm.loss
import torch
import torch.nn.functional as F
from torch import nn

from frskd_plugin.core import BinarySoftLabelLoss, FRSKDLoss, SoftLabelLoss, binary_soft_label_loss, soft_label_loss
from frskd_plugin.core.soft_label import criterion_soft_label, expected_foreground

SHAPE = (2, 3, 5)  # images, classes, positions


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return [3 * torch.randn(SHAPE, dtype=torch.float64, generator=generator) for _ in range(2)]


def bernoulli_kl(first, second):
    """KL of Bernoulli distributions with these probabilities, summed, by numpy."""
    return float(np.sum(first * np.log(first / second) + (1 - first) * np.log((1 - first) / (1 - second))))


@pytest.mark.parametrize("normalize", ["foreground", "positions"])
@pytest.mark.parametrize("variant", ["published", "equations"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_equals_an_independent_formula(logits, temperature, variant, normalize):
    student, teacher = (1 / (1 + np.exp(-x.numpy() / temperature)) for x in logits)
    confidence = 1 / (1 + np.exp(-logits[1].numpy()))  # the number of objects does not depend on the temperature
    divisor = SHAPE[0] * SHAPE[2] if normalize == "positions" else max(1.0, confidence.max(axis=1).sum())
    if variant == "published":
        expected = temperature**2 * bernoulli_kl(teacher, student) / divisor
    else:
        expected = bernoulli_kl(student, teacher) / divisor
    actual = BinarySoftLabelLoss(temperature, variant, normalize)(*logits)
    assert actual.item() == pytest.approx(expected, rel=1e-12)


def test_a_class_is_a_softmax_over_its_two_outcomes(logits):
    student, teacher = (torch.stack([x, torch.zeros_like(x)], dim=1).flatten(2) for x in logits)
    by_softmax = soft_label_loss(student, teacher, temperature=2) * SHAPE[1]  # it takes a mean over the classes too
    torch.testing.assert_close(binary_soft_label_loss(*logits, temperature=2, normalize="positions"), by_softmax)


@pytest.mark.parametrize("variant", ["published", "equations"])
def test_equal_logits_cost_nothing_and_pull_nowhere(logits, variant):
    student = logits[0].float().requires_grad_()
    loss = binary_soft_label_loss(student, logits[0].float(), 2.0, variant)
    loss.backward()
    assert loss.item() == 0
    assert student.grad.abs().max() < 1e-7


def test_the_student_alone_gets_the_gradient(logits):
    student, teacher = (x.requires_grad_() for x in logits)
    binary_soft_label_loss(student, teacher, temperature=2).backward()
    assert teacher.grad is None
    expected = 2 * ((student / 2).sigmoid() - (teacher / 2).sigmoid()) / expected_foreground(teacher)
    torch.testing.assert_close(student.grad, expected.detach())


@pytest.mark.parametrize("variant", ["published", "equations"])
def test_gradient_is_numerically_right(logits, variant):
    student, teacher = logits
    assert torch.autograd.gradcheck(
        lambda x: binary_soft_label_loss(x, teacher, 2.0, variant), (student.requires_grad_(),)
    )


def test_extreme_logits_stay_finite():
    student = torch.tensor([[[80.0], [-80.0]]], requires_grad=True)
    loss = binary_soft_label_loss(student, -student.detach())
    loss.backward()
    assert loss.item() == pytest.approx(160.0)  # KL = 80 for each class; one position shows an object
    torch.testing.assert_close(student.grad, torch.tensor([[[1.0], [-1.0]]]))


def test_float32_under_autocast(logits):
    student, teacher = (x.to(torch.bfloat16) for x in logits)
    with torch.autocast("cpu", torch.bfloat16):
        loss = binary_soft_label_loss(student, teacher)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, binary_soft_label_loss(student.float(), teacher.float()))


def test_more_background_changes_the_mean_and_not_the_foreground_form():
    student, teacher = torch.tensor([[[2.0]]]), torch.tensor([[[4.0]]])
    background = torch.full((1, 1, 999), -30.0)
    padded = [torch.cat([x, background], dim=2) for x in (student, teacher)]
    for normalize, ratio in (("foreground", 1.0), ("positions", 1000.0)):
        alone = binary_soft_label_loss(student, teacher, normalize=normalize)
        torch.testing.assert_close(binary_soft_label_loss(*padded, normalize=normalize) * ratio, alone)


def test_foreground_is_never_below_one_position():
    assert expected_foreground(torch.full((2, 3, 4), -50.0)).item() == 1
    assert expected_foreground(torch.full((2, 3, 4), 50.0)).item() == 8


def test_frskd_loss_takes_it_by_name(logits):
    feats = [torch.rand(2, 4, 3, 3)]
    loss = FRSKDLoss(alpha=2.0, beta=0.0, temperature=2.0, variant="equations", soft_label="sigmoid")
    expected = 2 * binary_soft_label_loss(*logits, temperature=2.0, variant="equations")
    assert torch.equal(loss(*logits, feats, feats)["loss_kd"], expected)
    assert isinstance(FRSKDLoss().soft_label_loss, SoftLabelLoss)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BinarySoftLabelLoss(temperature=0), "`temperature` divides the logits and must be > 0"),
        (lambda: BinarySoftLabelLoss(variant="paper"), "`variant` must be one of 'published', 'equations'"),
        (lambda: BinarySoftLabelLoss(normalize="mean"), "`normalize` must be one of 'auto', 'positions', 'foreground'"),
        (lambda: FRSKDLoss(soft_label="tanh"), "`soft_label` must be one of 'auto', 'softmax', 'sigmoid', got 'tanh'"),
        (
            lambda: binary_soft_label_loss(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4)),
            r"one shape, got \[1, 2, 3\] and \[1, 2, 4\]. Both need the same batch and classes",
        ),
    ],
)
def test_bad_input(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("formula", [soft_label_loss, binary_soft_label_loss])
@pytest.mark.parametrize("variant", ["published", "equations"])
def test_a_class_masked_on_both_sides_counts_for_nothing(logits, formula, variant):
    student, teacher = logits
    expected = formula(student, teacher, 2.0, variant)
    masked = [torch.cat([x, torch.full_like(x[:, :1], -torch.inf)], dim=1) for x in logits]
    leaf = masked[0].requires_grad_()
    value = formula(leaf, masked[1], 2.0, variant)
    value.backward()
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    assert leaf.grad.isfinite().all() and not leaf.grad[:, -1].any() and leaf.grad[:, 0].all()


@pytest.mark.parametrize("normalize", ["foreground", "positions"])
def test_positions_that_do_not_count(logits, normalize):
    valid = torch.arange(SHAPE[0] * SHAPE[2]).view(SHAPE[0], SHAPE[2]) % 3 > 0
    kept = [x.movedim(1, -1)[valid].T[None] for x in logits]
    expected = binary_soft_label_loss(*kept, 2.0, normalize=normalize)
    torch.testing.assert_close(binary_soft_label_loss(*logits, 2.0, normalize=normalize, valid=valid), expected)
    with pytest.raises(
        ValueError, match="`valid` must say of each position whether it counts, bool .* got torch.int64"
    ):
        binary_soft_label_loss(*logits, valid=valid.long())


def test_auto_takes_a_sigmoid_for_one_logit_and_a_softmax_refuses_it():
    student, teacher = torch.zeros(4, 1), torch.full((4, 1), 2.0)
    loss = FRSKDLoss(alpha=3.0, beta=0.0, temperature=2.0)
    expected = 3 * binary_soft_label_loss(student, teacher, 2.0, normalize="positions")
    assert torch.equal(loss(student, teacher, [], [])["loss_kd"], expected) and expected > 0
    with pytest.raises(ValueError, match=r"A softmax over one logit .* got logits \[4, 1\]: give soft_label='sigmoid'"):
        soft_label_loss(student, teacher)


@pytest.mark.parametrize(
    ("criterion", "kind"),
    [
        (nn.BCEWithLogitsLoss(), "sigmoid"),
        (partial(F.binary_cross_entropy_with_logits, reduction="mean"), "sigmoid"),
        (nn.MultiLabelSoftMarginLoss(), "sigmoid"),
        (timm.loss.BinaryCrossEntropy(), "sigmoid"),
        (timm.loss.AsymmetricLossMultiLabel(), "sigmoid"),
        (type("Own", (nn.BCEWithLogitsLoss,), {})(), "sigmoid"),
        (nn.CrossEntropyLoss(), "softmax"),
        (timm.loss.SoftTargetCrossEntropy(), "softmax"),
        (nn.ModuleList([nn.CrossEntropyLoss(), nn.BCEWithLogitsLoss()]), "softmax"),
        (nn.MSELoss(), None),
        (lambda z, y: z.mean(), None),
    ],
)
def test_criteria_are_known_by_name(criterion, kind):
    assert criterion_soft_label(criterion) == kind
