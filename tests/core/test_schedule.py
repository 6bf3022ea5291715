"""Weights of the distillation that change in the course of a training: ramps, warm-up and the gate."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import Tensor

from frskd_plugin.core import FRSKDLoss
from frskd_plugin.core.schedule import ScheduledWeight, TrunkGradient

FEATS, REFINED = [torch.rand(2, 3, 4, 4)], [torch.rand(2, 6, 4, 4)]
LOGITS = torch.randn(2, 5), torch.randn(2, 5)
WHOLE = FRSKDLoss(2, 100, 4)(*LOGITS, FEATS, REFINED)


def terms(loss: FRSKDLoss, lead: float | None = None) -> dict[str, Tensor]:
    """The terms where the self-teacher's loss is lower by `lead` than the student's."""
    own = None if lead is None else (torch.tensor(1.0 + lead, requires_grad=True), torch.tensor(1.0))
    return loss(*LOGITS, FEATS, REFINED, own_losses=own)


def assert_scaled(found: dict[str, Tensor], factor: float) -> None:
    for name, value in WHOLE.items():
        torch.testing.assert_close(found[name], factor * value)


@pytest.mark.parametrize(
    ("settings", "factors"),
    [
        ({"schedule": "linear"}, [0.0, 0.25, 0.5, 0.75, 1.0]),
        ({"schedule": "rampup"}, [math.exp(-5 * (1 - t) ** 2) for t in (0.0, 0.25, 0.5, 0.75, 1.0)]),
        ({"schedule": "rampup", "warmup": 0.5}, [0.0, 0.0, math.exp(-5), math.exp(-1.25), 1.0]),
        ({"schedule": "linear", "warmup": 0.75}, [0.0, 0.0, 0.0, 0.0, 1.0]),
        ({"schedule": "constant", "warmup": 0.5}, [0.0, 0.0, 1.0, 1.0, 1.0]),
        ({"schedule": "linear", "warmup": 1.0}, [0.0, 0.0, 0.0, 0.0, 1.0]),
    ],
)
@pytest.mark.parametrize("total", [4, 1000])  # epochs or steps
def test_factor_follows_the_progress(settings: dict, factors: list[float], total: int) -> None:
    loss = FRSKDLoss(2, 100, 4, **settings)
    for done, factor in enumerate(factors):
        loss.set_progress(done * total / 4, total)
        assert loss.factor == pytest.approx(factor)
        assert_scaled(terms(loss), factor)
    loss.set_progress(1.5 * total, total)  # a training that goes on
    assert loss.factor == 1


def test_a_constant_schedule_leaves_a_factor_set_by_hand() -> None:
    loss = FRSKDLoss()
    loss.factor = 0.3
    loss.set_progress(1, 2)
    assert loss.factor == 0.3 and not loss.follows_progress


@pytest.mark.parametrize("settings", [{"schedule": "linear"}, {"schedule": "rampup"}, {"warmup": 0.1}])
def test_a_schedule_that_was_never_told_the_progress_stops(settings: dict) -> None:
    loss = FRSKDLoss(2, 100, 4, **settings)
    with pytest.raises(RuntimeError, match=r"must know how far .*set_progress\(.*MethodProgressHook"):
        terms(loss)
    assert_scaled(terms(copy.deepcopy(loss).eval()), 1)
    loss.factor = 0.5  # a schedule of one's own
    assert_scaled(terms(loss), 0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_gate_is_the_clipped_moving_average_of_the_lead(dtype: torch.dtype) -> None:
    loss = FRSKDLoss(2, 100, 4, schedule="gate").to("meta").to_empty(device="cpu").to(dtype)
    mean = 0.0
    for lead in (2.0, 3.0, -1.0, 30.0):
        found = terms(loss, lead)
        mean = 0.95 * mean + 0.05 * lead
        assert loss.gate.mean.dtype == torch.float32 and loss.gate.mean.item() == pytest.approx(mean, rel=1e-5)
        assert_scaled(found, min(mean, 1))
    assert mean > 1 and loss.factor == 1
    for lead in (-60.0, float("nan"), float("inf")):  # a step that a GradScaler skips leaves no trace
        assert_scaled(terms(loss, lead), 0)
    assert loss.gate.mean.item() == pytest.approx(0.95 * mean - 3, rel=1e-5)


def test_gate_gives_the_own_losses_no_gradient_and_rests_in_eval_mode() -> None:
    loss = FRSKDLoss(2, 100, 4, schedule="gate")
    loss.gate.mean.fill_(0.5)
    own = torch.tensor(3.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    student = LOGITS[0].clone().requires_grad_()
    before = loss(student, LOGITS[1], FEATS, REFINED, own_losses=own)
    terms(loss, 2.0)  # a second forward pass before the first one's backward: the graph keeps no buffer
    before["loss_kd"].backward()
    assert student.grad.any() and own[0].grad is None and own[1].grad is None
    mean = loss.gate.mean.item()
    assert_scaled(terms(loss.eval(), 9.0), mean)
    assert loss.gate.mean.item() == mean


def test_gate_is_in_the_checkpoint_and_goes_on_exactly_and_others_have_no_keys() -> None:
    loss, file = FRSKDLoss(2, 100, 4, schedule="gate"), io.BytesIO()
    for lead in (1.7, 3.1):
        terms(loss, lead)
    torch.save(loss.state_dict(), file)
    file.seek(0)
    resumed = FRSKDLoss(2, 100, 4, schedule="gate")
    resumed.load_state_dict(torch.load(file, weights_only=True), strict=True)
    found, expected = terms(resumed, 2.3), terms(loss, 2.3)
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert list(loss.state_dict()) == ["gate.mean"]
    assert not FRSKDLoss(schedule="rampup", warmup=0.5).state_dict()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_progress_between_forward_and_backward_changes_nothing(dtype: torch.dtype) -> None:
    weight, trunk = ScheduledWeight(100.3), TrunkGradient("linear")
    loss, feat = (torch.tensor(3.0, dtype=dtype, requires_grad=True) for _ in range(2))
    (same,), weighed = trunk([feat]), weight(loss)
    assert torch.equal(weighed, 100.3 * loss)  # half precision rounds no earlier than the product
    weight.set(0.7)
    trunk.set_progress(1, 2)
    (same + weighed).backward()
    torch.testing.assert_close([loss.grad.item(), feat.grad.item()], [100.3, 0.3], rtol=1e-2, atol=0)
    assert weight(loss) == 0.7 * loss


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: FRSKDLoss(schedule="cosine"), ValueError, "`schedule` must be one of 'constant', .*'gate', got 'cos"),
        (lambda: FRSKDLoss(warmup=40), ValueError, "`warmup` is the share of .* must be in 0..1, got 40"),
        (lambda: FRSKDLoss(warmup="0.5"), TypeError, "`warmup` must be a number, got '0.5'"),
        (lambda: FRSKDLoss().set_progress(0, 0), ValueError, "`total` counts .* must be > 0, got 0"),
        (lambda: terms(FRSKDLoss(schedule="gate")), ValueError, "compares the losses .*: give both as `own_losses`"),
    ],
)
def test_bad_input(build, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        build()
