"""Losses that are differentiated as soon as they are computed: same values and gradients, nothing kept."""

from __future__ import annotations

import pytest
import torch

from frskd_plugin.core.dry_run import count_forward
from frskd_plugin.core.immediate_gradient import differentiate_immediately, with_known_gradient


def terms(x):
    wide = x.repeat(1, 50)
    return {"loss_a": wide.exp().mean(), "accuracy": x.detach().max(), "loss_b": (x.sin() * 2).sum()}


def total(found):
    """Terms weighted differently: each needs a gradient of its own."""
    return 2 * found["loss_a"] - 5 * found["loss_b"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_those_of_the_function(dtype):
    x, y = (torch.linspace(-1, 2, 12, dtype=dtype).view(3, 4).requires_grad_() for _ in range(2))
    expected, actual = terms(x), differentiate_immediately(terms, y)
    assert list(actual) == list(expected)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert not actual["accuracy"].requires_grad
    total(expected).backward()
    total(actual).backward()
    torch.testing.assert_close(y.grad, x.grad)
    assert y.grad.dtype == dtype
    calls = []  # without gradients the function is simply called
    differentiate_immediately(lambda z: calls.append(z) or {}, y.detach())
    with torch.no_grad():
        differentiate_immediately(lambda z: calls.append(z) or {}, y)
    assert not calls[0].requires_grad and calls[1] is y


def test_gradient_goes_on_behind_x_and_by_finite_differences():
    weight = torch.rand(4, 4, dtype=torch.float64, requires_grad=True)
    inputs = torch.rand(3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda w: total(differentiate_immediately(terms, inputs @ w)), (weight,))


def test_it_can_be_differentiated_once():
    x = torch.rand(3, requires_grad=True)
    value = with_known_gradient(x, x.square().sum(), 2 * x).square()
    (gradient,) = torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_only_the_gradients_are_kept():
    x = torch.rand(3, 4, requires_grad=True)
    with count_forward(torch.nn.Identity()) as plain:
        expected = terms(x)
    with count_forward(torch.nn.Identity()) as early:
        actual = differentiate_immediately(terms, x)
    assert plain.kept >= 3 * 200 * 4
    assert early.kept == 2 * 3 * 4 * 4
    assert expected.keys() == actual.keys()


def test_half_precision_is_differentiated_in_float32():
    seen = []
    x = torch.tensor([1e-4], dtype=torch.float16, requires_grad=True)
    # in float16 this gradient would be 0: 1e-9 is below its smallest number; 2**16 is a loss scale
    found = differentiate_immediately(lambda y: seen.append(y.dtype) or {"loss": (1e-9 * y).sum()}, x)
    (2.0**16 * found["loss"]).backward()
    assert seen == [torch.float32]
    assert x.grad.item() == pytest.approx(6.5536e-5, rel=1e-3)


def test_results_must_be_scalars():
    with pytest.raises(ValueError, match=r"gradients of scalars, got 'loss' of shape \[2\].*reduction='mean'"):
        differentiate_immediately(lambda x: {"loss": 2 * x}, torch.rand(2, requires_grad=True))
