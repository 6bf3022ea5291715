"""Soft labels by a softmax, by a sigmoid and at another size: independent formulas, gradients, memory, bad input."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import timm.loss
import torch
import torch.nn.functional as F
from torch import nn

from frskd_plugin.core import (
    BinarySoftLabelLoss,
    FRSKDLoss,
    SoftLabelLoss,
    binary_soft_label_loss,
    resized_soft_label_loss,
    soft_label_loss,
)
from frskd_plugin.core.dry_run import count_forward
from frskd_plugin.core.soft_label import criterion_soft_label, expected_foreground

FORMULAS = {
    "softmax": soft_label_loss,
    "positions": partial(binary_soft_label_loss, normalize="positions"),
    "foreground": binary_soft_label_loss,
}
kinds = pytest.mark.parametrize("kind", FORMULAS)
variants = pytest.mark.parametrize("variant", ["published", "equations"])


def logits(*size, seed=0, dtype=torch.float64):
    """Logits [2, 4, *size]."""
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(2, 4, *size, generator=generator, dtype=torch.float64)).to(dtype)


@pytest.fixture
def pair():
    return logits(5), logits(5, seed=1)


def written_out(student, teacher, kind, temperature, variant):
    """Divergence by numpy: of one distribution over the classes, or of one of two outcomes for each class."""

    def outcomes(x):
        odds = np.exp(x.numpy() / temperature)
        return odds / odds.sum(1, keepdims=True) if kind == "softmax" else np.stack([odds, 1 + 0 * odds]) / (1 + odds)

    def kl(first, second):
        return (first * np.log(first / second)).sum()

    p, q = outcomes(student), outcomes(teacher)
    divisor = teacher.numel() / teacher.shape[1]
    if kind == "foreground":  # which does not depend on the temperature
        divisor = max(1.0, teacher.sigmoid().amax(1).sum().item())
    return (temperature**2 * kl(q, p) if variant == "published" else kl(p, q)) / divisor


@kinds
@variants
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_equals_an_independent_formula(pair, kind, variant, temperature):
    actual = FORMULAS[kind](*pair, temperature, variant)
    assert actual.item() == pytest.approx(written_out(*pair, kind, temperature, variant), rel=1e-12)
    form = ("softmax", "auto") if kind == "softmax" else ("sigmoid", kind)
    assert torch.equal(SoftLabelLoss(temperature, variant, *form)(*pair), actual)


@kinds
@variants
def test_gradient_by_finite_differences_and_none_for_the_teacher(kind, variant):
    student, teacher = logits(2, 2)[:1].requires_grad_(), logits(2, 2, seed=1)[:1].requires_grad_()
    loss = partial(FORMULAS[kind], temperature=2.0, variant=variant)
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher.detach()), (student,))
    loss(student, teacher).backward()
    assert teacher.grad is None and student.grad.any()


def test_extreme_logits_stay_finite():
    student = torch.tensor([[[80.0], [-80.0]]], requires_grad=True)
    loss = binary_soft_label_loss(student, -student.detach())
    loss.backward()
    assert loss.item() == pytest.approx(160.0)  # KL = 80 for each class; one position shows an object
    torch.testing.assert_close(student.grad, torch.tensor([[[1.0], [-1.0]]]))


@pytest.mark.parametrize("formula", [*FORMULAS.values(), partial(resized_soft_label_loss, size=(8, 8))])
def test_half_precision_is_computed_in_float32(formula):
    student, teacher = (logits(4, 4, seed=seed, dtype=torch.bfloat16) for seed in (0, 1))
    with torch.autocast("cpu", torch.bfloat16):
        loss = formula(student.requires_grad_(), teacher)
    loss.backward()
    assert loss.dtype == torch.float32 and student.grad.dtype == torch.bfloat16
    expected = formula(student.detach().float(), teacher.float())
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-6, atol=0)


def test_more_background_changes_the_mean_and_not_the_foreground_form():
    student, teacher = torch.tensor([[[2.0]]]), torch.tensor([[[4.0]]])
    background = torch.full((1, 1, 999), -30.0)
    padded = [torch.cat([x, background], dim=2) for x in (student, teacher)]
    for normalize, ratio in (("foreground", 1.0), ("positions", 1000.0)):
        alone = binary_soft_label_loss(student, teacher, normalize=normalize)
        torch.testing.assert_close(binary_soft_label_loss(*padded, normalize=normalize) * ratio, alone)
    assert expected_foreground(torch.full((2, 3, 4), -50.0)).item() == 1  # never below one position
    assert expected_foreground(torch.full((2, 3, 4), 50.0)).item() == 8


@kinds
@variants
def test_a_class_masked_on_both_sides_counts_for_nothing(pair, kind, variant):
    form = ("softmax", "auto") if kind == "softmax" else ("sigmoid", kind)
    resized = partial(SoftLabelLoss(2.0, variant, *form), size=(7, 9))
    maps = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
    for loss, given in ((partial(FORMULAS[kind], temperature=2.0, variant=variant), pair), (resized, maps)):
        student, teacher = (torch.cat([x, torch.full_like(x[:, :1], -torch.inf)], dim=1) for x in given)
        value = loss(student.requires_grad_(), teacher)
        value.backward()
        torch.testing.assert_close(value, loss(*given), rtol=1e-12, atol=0)
        assert student.grad.isfinite().all() and not student.grad[:, -1].any() and student.grad[:, 0].all()


@kinds
def test_positions_that_do_not_count(pair, kind):
    valid = torch.arange(10).view(2, 5) % 3 > 0
    kept = [x.movedim(1, -1)[valid].T[None] for x in pair]
    torch.testing.assert_close(FORMULAS[kind](*pair, 2.0, valid=valid), FORMULAS[kind](*kept, 2.0))
    with pytest.raises(ValueError, match="`valid` must say of each position whether it counts, .* got torch.int64"):
        FORMULAS[kind](*pair, valid=valid.long())


def test_frskd_loss_takes_a_sigmoid_by_name_and_for_one_logit(pair):
    loss = FRSKDLoss(alpha=2.0, beta=0.0, temperature=2.0, variant="equations", soft_label="sigmoid")
    expected = 2 * binary_soft_label_loss(*pair, temperature=2.0, variant="equations")
    assert torch.equal(loss(*pair, [], [])["loss_kd"], expected)
    student, teacher = torch.zeros(4, 1), torch.full((4, 1), 2.0)
    expected = 3 * binary_soft_label_loss(student, teacher, 2.0, normalize="positions")
    assert torch.equal(FRSKDLoss(3.0, 0.0, 2.0)(student, teacher, [], [])["loss_kd"], expected) and expected > 0


def test_criteria_are_known_by_name():
    known = {
        "sigmoid": [
            nn.BCEWithLogitsLoss(),
            partial(F.binary_cross_entropy_with_logits, reduction="mean"),
            timm.loss.BinaryCrossEntropy(),
            timm.loss.AsymmetricLossMultiLabel(),
            type("Own", (nn.BCEWithLogitsLoss,), {})(),
        ],
        "softmax": [
            nn.CrossEntropyLoss(),
            timm.loss.SoftTargetCrossEntropy(),
            nn.ModuleList([nn.CrossEntropyLoss(), nn.BCEWithLogitsLoss()]),
        ],
        None: [nn.MSELoss(), lambda z, y: z.mean()],
    }
    for kind, criteria in known.items():
        assert [criterion_soft_label(criterion) for criterion in criteria] == [kind] * len(criteria)


ZEROS = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SoftLabelLoss(temperature=0), "`temperature` divides the logits and must be > 0, got 0"),
        (lambda: SoftLabelLoss(variant="paper"), "`variant` must be one of 'published', 'equations', got 'paper'"),
        (lambda: BinarySoftLabelLoss(normalize="mean"), "`normalize` must be one of 'auto', 'positions', 'foreground'"),
        (lambda: FRSKDLoss(soft_label="tanh"), "`soft_label` must be one of 'auto', 'softmax', 'sigmoid', got 'tanh'"),
        (lambda: soft_label_loss(ZEROS, ZEROS[:1]), r"one shape, got \[2, 3, 4, 4\] and \[1, 3, 4, 4\]. Both need"),
        (lambda: binary_soft_label_loss(ZEROS, ZEROS[:, :2]), r"one shape, got \[2, 3, 4, 4\] and \[2, 2, 4, 4\]"),
        (lambda: soft_label_loss(ZEROS[:, :1], ZEROS[:, :1]), r"over one logit .* got logits \[2, 1, 4, 4\]: give"),
        (lambda: resized_soft_label_loss(ZEROS, ZEROS[:, :2], (8, 8)), "one batch and the same classes, got"),
        (lambda: resized_soft_label_loss(ZEROS[..., 0, 0], ZEROS, (8, 8)), r"need logits \[B, K, H, W\].*got \[2, 3\]"),
        (lambda: resized_soft_label_loss(ZEROS, ZEROS, (8, 8), rows=0), "`rows` must be >= 1, got 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def resized_first(student, teacher, size, kind, variant, corners, valid=None):
    """Both maps resized, then the mean over the positions that count."""
    large = [
        F.interpolate(x, size, mode="bilinear", align_corners=c)
        for x, c in zip((student, teacher), corners, strict=True)
    ]
    if valid is not None:
        large = [x.movedim(1, -1)[valid] for x in large]  # [N, K]
    return FORMULAS[kind](*large, 2.5, variant)


def value_and_gradient(loss, student):
    leaf = student.clone().requires_grad_()
    value = loss(leaf)
    (3 * value).backward()
    return value.detach(), leaf.grad


@pytest.mark.parametrize(
    ("small", "other", "size"),
    [((5, 7), (5, 7), (20, 28)), ((4, 4), (8, 8), (13, 30)), ((9, 6), (9, 6), (4, 5)), ((3, 5), (6, 5), (1, 5))],
)
@pytest.mark.parametrize("kind", ["softmax", "positions"])
@variants
@pytest.mark.parametrize("corners", [(False, False), (True, True), (True, False)])  # the student's and the teacher's
def test_pieces_equal_resizing_first(small, other, size, kind, variant, corners):
    valid = torch.rand(2, *size, generator=torch.Generator().manual_seed(2)) > 0.4
    valid[1, 3:] = False
    for dtype, tolerance, counted in (
        (torch.float64, 1e-11, None),
        (torch.float64, 1e-11, valid),
        (torch.float32, 1e-6, None),
    ):
        student, teacher = logits(*small, dtype=dtype), logits(*other, seed=1, dtype=dtype)
        given = dict(teacher=teacher, size=size, kind=kind, variant=variant, corners=corners, valid=counted)
        expected, expected_grad = value_and_gradient(partial(resized_first, **given), student)
        form = dict(
            temperature=2.5, variant=variant, soft_label="softmax" if kind == "softmax" else "sigmoid", valid=counted
        )
        form |= dict(align_corners=corners[0], teacher_align_corners=None if corners[1] == corners[0] else corners[1])
        for rows in (1, 3, None):
            teacher.requires_grad_()
            pieces = partial(resized_soft_label_loss, teacher_logits=teacher, size=size, rows=rows, **form)
            layout = torch.contiguous_format if rows else torch.channels_last
            value, grad = value_and_gradient(pieces, student.contiguous(memory_format=layout))
            torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)
            assert (grad - expected_grad).abs().max() <= tolerance * expected_grad.abs().max().clamp(min=1)
            assert value.dtype == grad.dtype == dtype and teacher.grad is None
    nothing = partial(resized_soft_label_loss, teacher_logits=teacher, size=size, valid=torch.zeros_like(valid))
    value, grad = value_and_gradient(nothing, student)
    assert value == 0 and not grad.any()


def test_keeps_nothing_of_the_large_size():
    """Resizing first keeps maps of 64 x 64; the pieces keep the gradient at 8 x 8 and nothing else."""
    student, teacher = logits(8, 8).requires_grad_(), logits(8, 8, seed=1)
    with count_forward(torch.nn.Identity()) as before:
        kept_first = resized_first(student, teacher, (64, 64), "softmax", "published", (False, False))
    with count_forward(torch.nn.Identity()) as after:
        kept_now = resized_soft_label_loss(student, teacher, (64, 64), 2.5, rows=4)
    assert before.kept >= 2 * 8 * 2 * 4 * 64 * 64 and after.kept == 8 * student.numel()
    torch.testing.assert_close(kept_now, kept_first)
    with torch.no_grad():
        assert torch.equal(resized_soft_label_loss(student, teacher, (64, 64), 2.5, rows=4), kept_now.detach())


def test_no_tensor_of_both_large_maps_is_made():
    """No operation sees more than a piece: not in the forward pass, not in the backward pass."""
    rows, width, classes = 4, 64, 4
    largest = []

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            found = result if isinstance(result, (tuple, list)) else [result]
            largest.extend(x.numel() for x in found if isinstance(x, torch.Tensor))
            return result

    student, teacher = logits(8, 8).requires_grad_(), logits(8, 8, seed=1)
    with Largest():
        resized_soft_label_loss(student, teacher, (64, width), rows=rows).backward()
    assert max(largest) == max(classes * 64 * 8, classes * rows * width)  # the first: an image resized in height alone


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("normalize", ["auto", "foreground"])
def test_frskd_loss_at_a_size(kind, normalize):
    student, teacher = logits(4, 4).requires_grad_(), logits(2, 2, seed=1).requires_grad_()
    loss = FRSKDLoss(alpha=3.0, beta=0.0, temperature=2.0, soft_label=kind)
    loss.soft_label_loss.normalize = normalize
    formula = FORMULAS["softmax" if kind == "softmax" else "positions" if normalize == "auto" else normalize]
    large = [F.interpolate(x.detach(), (6, 6), mode="bilinear", align_corners=True) for x in (student, teacher)]
    value = loss(student, teacher, [], [], size=(6, 6), align_corners=True)["loss_kd"]
    torch.testing.assert_close(value.detach(), 3 * formula(*large, 2.0), rtol=1e-12, atol=0)
    value.backward()
    assert student.grad.any() and teacher.grad is None
