"""bfloat16 on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from frskd_plugin.mmengine.optim import AutocastOptimWrapper


def make(**settings: object) -> AutocastOptimWrapper:
    return AutocastOptimWrapper(optimizer=torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1), **settings)


def test_forward_runs_in_bfloat16_and_parameters_stay_float32() -> None:
    model = nn.Linear(2, 2)
    wrapper = AutocastOptimWrapper(optimizer=torch.optim.SGD(model.parameters(), lr=0.1), device_type="cpu")
    with wrapper.optim_context(model):
        output = model(torch.ones(1, 2))
    assert output.dtype is torch.bfloat16
    wrapper.update_params(output.float().square().sum())
    assert model.weight.dtype is torch.float32 and model.weight.grad is None
    assert model(torch.ones(1, 2)).dtype is torch.float32


def test_gradient_accumulation_is_kept() -> None:
    wrapper = make(accumulative_counts=4, device_type="cpu")
    wrapper.initialize_count_status(nn.Linear(2, 2), 0, 8)
    assert not wrapper.should_sync()


@pytest.mark.parametrize("dtype", ["float32", torch.float64, "half"])
def test_other_dtypes_are_refused(dtype: str | torch.dtype) -> None:
    with pytest.raises(ValueError, match="dtype must be 'bfloat16' or torch.bfloat16"):
        make(dtype=dtype)


def test_float16_is_sent_to_the_wrapper_that_scales() -> None:
    with pytest.raises(ValueError, match="does not scale the loss.*type='AmpOptimWrapper'"):
        make(dtype="float16")
