"""Soft labels at another size, taken piece by piece: equal to resizing first, and nothing of that size is kept."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from frskd_plugin.core import FRSKDLoss, binary_soft_label_loss, resized_soft_label_loss, soft_label_loss
from frskd_plugin.core.dry_run import count_forward
from tests.core.equations import bilinear

SIZES = [((5, 7), (5, 7), (20, 28)), ((4, 4), (8, 8), (13, 30)), ((9, 6), (9, 6), (4, 5)), ((3, 5), (6, 5), (1, 5))]


def logits(size, dtype=torch.float64, seed=0, batch=2, classes=4):
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(batch, classes, *size, generator=generator, dtype=torch.float64)).to(dtype)


def resized_first(student_logits, teacher_logits, size, temperature, variant, align_corners):
    """The formula that the pieces have to equal."""
    both = (
        F.interpolate(x, size, mode="bilinear", align_corners=align_corners) for x in (student_logits, teacher_logits)
    )
    return soft_label_loss(*both, temperature, variant)


def value_and_gradient(loss, student):
    leaf = student.clone().requires_grad_()
    value = loss(leaf)
    (3 * value).backward()
    return value.detach(), leaf.grad


@pytest.mark.parametrize(("small", "other", "size"), SIZES)
@pytest.mark.parametrize("variant", ["published", "equations"])
@pytest.mark.parametrize("align_corners", [False, True])
def test_equals_resizing_first(small, other, size, variant, align_corners):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        student = logits(small, dtype)
        settings = dict(
            teacher_logits=logits(other, dtype, seed=1),
            size=size,
            temperature=2.5,
            variant=variant,
            align_corners=align_corners,
        )
        expected, expected_grad = value_and_gradient(partial(resized_first, **settings), student)
        for rows in (1, 3, None):
            value, grad = value_and_gradient(partial(resized_soft_label_loss, **settings, rows=rows), student)
            torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)
            assert (grad - expected_grad).abs().max() <= tolerance * expected_grad.abs().max().clamp(min=1)
            assert value.dtype == grad.dtype == dtype


def test_equals_an_independent_formula():
    """Interpolation as matrices, softmax and KL divergence written out."""
    student, teacher = logits((4, 6)), logits((4, 6), seed=1)
    p, q = ((bilinear(x, (9, 12)) / 2).exp() for x in (teacher, student))
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    expected = 4 * (p * (p.log() - q.log())).sum(1).mean()
    actual = resized_soft_label_loss(student, teacher, (9, 12), temperature=2.0, rows=2)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("variant", ["published", "equations"])
def test_gradient_by_finite_differences(variant):
    student, teacher = logits((2, 3)).requires_grad_(), logits((4, 3), seed=1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: resized_soft_label_loss(x, teacher.detach(), (5, 6), 2.0, variant, rows=2), (student,)
    )
    resized_soft_label_loss(student, teacher, (5, 6), 2.0, variant).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


def test_keeps_nothing_of_the_large_size():
    """Resizing first keeps maps of 64 x 64; the pieces keep the gradient at 8 x 8 and nothing else."""
    student, teacher = logits((8, 8), torch.float32).requires_grad_(), logits((8, 8), torch.float32, seed=1)
    large = 2 * 4 * 64 * 64 * 4
    with count_forward(torch.nn.Identity()) as before:
        kept_first = resized_first(student, teacher, (64, 64), 1.0, "published", False)
    with count_forward(torch.nn.Identity()) as after:
        kept_now = resized_soft_label_loss(student, teacher, (64, 64), 1.0, rows=4)
    assert before.kept >= 2 * large
    assert after.kept == student.numel() * 4
    torch.testing.assert_close(kept_now, kept_first)


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

    student, teacher = logits((8, 8)).requires_grad_(), logits((8, 8), seed=1)
    with Largest():
        resized_soft_label_loss(student, teacher, (64, width), rows=rows).backward()
    columns = classes * 64 * 8  # an image resized in height alone
    assert max(largest) == max(columns, classes * rows * width)


def test_without_gradients_the_value_is_the_same():
    student, teacher = logits((4, 4)).requires_grad_(), logits((4, 4), seed=1)
    with torch.no_grad():
        value = resized_soft_label_loss(student, teacher, (8, 8))
    assert not value.requires_grad
    torch.testing.assert_close(value, resized_soft_label_loss(student, teacher, (8, 8)).detach(), rtol=0, atol=0)
    assert not resized_soft_label_loss(student.detach(), teacher, (8, 8)).requires_grad


def test_half_precision_is_computed_in_float32():
    student, teacher = logits((4, 4), torch.bfloat16).requires_grad_(), logits((4, 4), torch.bfloat16, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        value = resized_soft_label_loss(student, teacher, (8, 8))
    value.backward()
    expected = resized_first(student.detach().float(), teacher.float(), (8, 8), 4.0, "published", False)
    assert value.dtype == torch.float32 and student.grad.dtype == torch.bfloat16
    torch.testing.assert_close(value.detach(), expected, rtol=1e-6, atol=0)


def test_channels_last_logits_give_the_same():
    student, teacher = logits((4, 6)), logits((4, 6), seed=1)
    last = student.contiguous(memory_format=torch.channels_last)
    expected = value_and_gradient(lambda x: resized_soft_label_loss(x, teacher, (8, 12)), student)
    actual = value_and_gradient(lambda x: resized_soft_label_loss(x, teacher, (8, 12)), last)
    for a, e in zip(actual, expected, strict=True):  # a layout may add up in another order
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("soft_label", ["softmax", "sigmoid"])
def test_frskd_loss_at_a_size(soft_label):
    student, teacher = logits((4, 4)).requires_grad_(), logits((2, 2), seed=1).requires_grad_()
    loss = FRSKDLoss(alpha=3.0, beta=0.0, temperature=2.0, soft_label=soft_label)
    formula = partial(binary_soft_label_loss, normalize="positions") if soft_label == "sigmoid" else soft_label_loss
    large = [F.interpolate(x.detach(), (6, 6), mode="bilinear", align_corners=True) for x in (student, teacher)]
    value = loss(student, teacher, [], [], size=(6, 6), align_corners=True)["loss_kd"]
    torch.testing.assert_close(value.detach(), 3 * formula(*large, 2.0), rtol=1e-12, atol=0)
    value.backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: resized_soft_label_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, 4), (8, 8)),
            ValueError,
            r"one batch and the same classes, got \[2, 3, 4, 4\] and \[2, 4, 4, 4\]",
        ),
        (
            lambda: resized_soft_label_loss(torch.zeros(2, 3), torch.zeros(2, 3), (8, 8)),
            ValueError,
            r"need logits \[B, K, H, W\].*got \[2, 3\]",
        ),
        (
            lambda: resized_soft_label_loss(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), (8, 8), rows=0),
            ValueError,
            "`rows` must be >= 1, got 0",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("soft_label", ["softmax", "sigmoid"])
@pytest.mark.parametrize("variant", ["published", "equations"])
def test_positions_that_do_not_count_and_the_teachers_own_corners(soft_label, variant):
    formula = binary_soft_label_loss if soft_label == "sigmoid" else soft_label_loss
    extra = {"normalize": "positions"} if soft_label == "sigmoid" else {}
    student, teacher = logits((4, 5)), logits((3, 3), seed=1)
    valid = torch.rand(2, 9, 11, generator=torch.Generator().manual_seed(2)) > 0.4
    valid[1, 3:] = False

    def first(x):
        large = F.interpolate(x, (9, 11), mode="bilinear", align_corners=True)
        target = F.interpolate(teacher, (9, 11), mode="bilinear", align_corners=False)
        counted = [z.movedim(1, -1)[valid] for z in (large, target)]  # [N, K]: the mean is over these alone
        return formula(*counted, 2.0, variant, **extra)

    def pieces(x):
        settings = dict(teacher_align_corners=False, soft_label=soft_label, valid=valid)
        return resized_soft_label_loss(x, teacher, (9, 11), 2.0, variant, True, 2, **settings)

    (expected, expected_grad), (value, grad) = value_and_gradient(first, student), value_and_gradient(pieces, student)
    torch.testing.assert_close(value, expected, rtol=1e-11, atol=0)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-13)
    valid.fill_(False)
    value, grad = value_and_gradient(pieces, student)
    assert value == 0 and not grad.any()
