"""Leaves a model that belongs to somebody else as it was: modes, buffers, random numbers, weights of its losses."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn


@contextmanager
def unharmed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Give back every module's mode and attributes, every buffer (statistics of batch normalisation) and random state.

    Within the block the random numbers start from a fixed seed, so that one model gets one report. Gradients need no
    care: the doctor asks `torch.autograd.grad` for them, which leaves ``.grad`` alone.
    """
    attributes = [(module, dict(vars(module)), dict(module._buffers)) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for module, own, registered in attributes:
            vars(module).clear()
            vars(module).update(own)
            module._buffers.update(registered)


@contextmanager
def running(modules: dict[str, nn.Module]) -> Iterator[list[str]]:
    """The names of the modules that are run during the block, each once."""
    ran: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: None if name in ran else ran.append(name))
        for name, module in modules.items()
    ]
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def full_weights(losses: list[Any]) -> Iterator[None]:
    """The distillation terms at their full weights, whatever a schedule has set."""
    factors = [loss.factor for loss in losses]
    try:
        for loss in losses:
            loss.factor = 1.0
        yield
    finally:
        for loss, factor in zip(losses, factors, strict=True):
            loss.factor = factor
