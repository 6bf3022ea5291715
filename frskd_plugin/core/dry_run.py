"""Dry runs of a network: cost of a forward pass, recorded calls, image channels, modes and random numbers restored."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


@dataclass
class ForwardCost:
    """Multiply-accumulates of convolutions and matrix products; bytes kept for the backward pass, without weights."""

    macs: int = 0
    kept: int = 0


@contextmanager
def count_forward(network: nn.Module) -> Iterator[ForwardCost]:
    """Count the products that a block computes, and the bytes that its graphs still keep when it ends.

    >>> layer = nn.Linear(3, 5)
    >>> with count_forward(layer) as cost:
    ...     y = layer(torch.rand(2, 3))
    >>> cost  # 2 * 3 * 5; the input, 6 floats, is kept for the weight's gradient
    ForwardCost(macs=30, kept=24)
    """
    cost = ForwardCost()
    own = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    alive: weakref.WeakSet[_Kept] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Kept:
        kept = _Kept(tensor.detach())  # with its history it would hold the graph that holds it
        alive.add(kept)
        return kept

    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor),
    ):
        yield cost
    cost.macs = counter.get_total_flops() // 2
    storages = {kept.tensor.untyped_storage().data_ptr(): kept.tensor.untyped_storage().nbytes() for kept in alive}
    cost.kept = sum(nbytes for pointer, nbytes in storages.items() if pointer not in own)


def count_launches(call: Callable[[], object]) -> int:
    """Count the operators that a call runs, backward pass included; views and empty tensors launch none."""
    with _LaunchCounter() as counter:
        call()
    return counter.count


class _LaunchCounter(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not operator.is_view and not operator.__name__.startswith("empty")
        return operator(*args, **(kwargs or {}))


class _Kept:
    """A tensor that the graph keeps; it goes when the graph lets go of it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@contextmanager
def record_calls(owner: object, name: str) -> Iterator[list[Any]]:
    """Record the results of every call of ``owner.name`` during the block, in order, on this one object alone.

    Hooks of torch do not see a ``forward`` that is called as a method; this does. Nothing of it is left behind.
    """
    method = getattr(owner, name)
    before = {key: value for key, value in vars(owner).items() if key == name}
    results: list[Any] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        results.append(result)
        return result

    vars(owner)[name] = call
    try:
        yield results
    finally:
        del vars(owner)[name]
        vars(owner).update(before)


PROBE_BATCH = 2


def image_channels(network: nn.Module, default: int = 3) -> int:
    """Return the image channels of a network: ``in_chans`` of a module (timm), else its first convolution's input."""
    for module in network.modules():
        channels = getattr(module, "in_chans", None)
        if isinstance(channels, int) and not isinstance(channels, bool) and channels > 0:
            return channels
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return default


def probe_images(network: nn.Module, size: Sequence[int]) -> Tensor:
    """Return `PROBE_BATCH` random images [B, *size], always the same, on a network's device and in its dtype."""
    parameter = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    images = torch.randn(PROBE_BATCH, *size, generator=torch.Generator().manual_seed(0))
    return images.to(parameter.device, parameter.dtype)


@contextmanager
def forked_rng(seed: int | None = None) -> Iterator[None]:
    """Give a block random numbers of its own, on the CPU and on CUDA devices, and restore the caller's after it.

    Without a seed the block goes on from the caller's state. CUDA is not initialised for it.
    """
    uses_cuda = torch.cuda.is_initialized() or torch.empty(0).device.type == "cuda"
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if uses_cuda else []):
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would leave CUDA a seed for when it starts
            if uses_cuda:
                torch.cuda.manual_seed_all(seed)
        yield


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Run a block in eval mode without gradients; every module and parameter gets its own state back."""
    training = [module for module in network.modules() if module.training]
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    network.eval()
    try:
        # torch's FLOP counter hooks each input of a module that asks for a gradient, which fails under `no_grad` where
        # a network hands a parameter to a module (CaIT's and PiT's class token)
        for parameter in trained:
            parameter.requires_grad_(False)
        with torch.no_grad():
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True
