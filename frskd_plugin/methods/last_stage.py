"""Copies of a network from its last stage on, and the map that they share with the network itself."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

TOLERANCE = 1e-4


@dataclass
class _Call:
    """One run of a module: when it began and ended, and what it was given and gave."""

    name: str
    begin: int
    given: tuple[Any, ...]
    end: int = -1
    given_size: tuple[int, int] | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class LastStage:
    """Where a network's last stage begins.

    Attributes:
        name: of the first module that works at the lowest resolution.
        channels: of the map that it takes.
        branch: a copy of the network that takes that map instead of images, in
            ``branch.forward_head(branch.forward_features(shared))``; its weights are the network's.
    """

    name: str
    channels: int
    branch: nn.Module = field(repr=False)


def find_last_stage(network: nn.Module, images: Tensor) -> LastStage:
    """Cut a timm CNN before the module that makes its lowest resolution; the network stays as it is.

    Everything that ran before the cut becomes an identity in the copy. That the copy gives the network's own logits
    when it is fed the map that the network has there is tried on the images.

    Args:
        network: a timm model.
        images: [B, C, H, W], on its device.

    Raises:
        ValueError: the last maps are no images, all have one size, or no cut gives equal logits; by name, with reason.
    """
    name = type(network).__name__
    trial = copy.deepcopy(network).eval()
    with torch.no_grad():
        calls, last, logits = _record(trial, images)
        if last.ndim != 4:
            raise ValueError(_refusal(name, f"its last map is {list(last.shape)} and not [B, C, H, W]"))
        tried = []
        for call in _candidates(calls, (last.shape[2], last.shape[3])):
            branch = copy.deepcopy(network)
            _cut(branch, calls, call)
            (shared,) = call.given
            reason = _difference(branch, shared, logits)
            if reason is None:
                return LastStage(call.name, shared.shape[1], branch)
            tried.append(f"{call.name}: {reason}")
    if not tried:
        raise ValueError(_refusal(name, "no module of it halves the size of a map [B, C, H, W] for the last time"))
    raise ValueError(_refusal(name, f"a copy gives other logits when it begins at {'; '.join(tried[:3])}"))


def _refusal(name: str, reason: str) -> str:
    return f"{name} has no last stage that can be copied: {reason}. Use another method, or a CNN such as a ResNet."


def _record(network: nn.Module, images: Tensor) -> tuple[list[_Call], Tensor, Tensor]:
    """Every run of every module, in the order of their beginning; the last map; the logits."""
    calls: list[_Call] = []
    open_calls: list[_Call] = []
    names = {module: name for name, module in network.named_modules() if name}
    clock = iter(range(10**9))

    def begin(module: nn.Module, args: tuple[object, ...]) -> None:
        # a copy, for an in-place module may change the map later
        given = tuple(arg.clone() if isinstance(arg, Tensor) else arg for arg in args)
        open_calls.append(_Call(names[module], next(clock), given, given_size=_size(*args)))
        calls.append(open_calls[-1])

    def end(module: nn.Module, args: tuple[object, ...], output: object) -> None:
        call = open_calls.pop()
        call.end, call.size = next(clock), _size(output)

    handles = [h for m in names for h in (m.register_forward_pre_hook(begin), m.register_forward_hook(end))]
    try:
        last, _ = network.forward_intermediates(images, output_fmt="NCHW")
        logits = network.forward_head(last)
    finally:
        for handle in handles:
            handle.remove()
    return calls, last, logits


def _size(*values: object) -> tuple[int, int] | None:
    """Height and width of the one map [B, C, H, W]; None for anything else."""
    first = values[0] if len(values) == 1 else None
    return (first.shape[2], first.shape[3]) if isinstance(first, Tensor) and first.ndim == 4 else None


def _candidates(calls: Sequence[_Call], final: tuple[int, int]) -> list[_Call]:
    """Calls that make the lowest resolution of the one before it, outermost and earliest first."""

    def area(size: tuple[int, int] | None) -> int:
        return 0 if size is None else size[0] * size[1]

    shrinking = [call for call in calls if call.size == final and area(call.given_size) > area(final)]
    least = min((area(call.given_size) for call in shrinking), default=0)
    names = [call.name for call in calls]
    return [call for call in shrinking if area(call.given_size) == least and names.count(call.name) == 1]


def _cut(branch: nn.Module, calls: Sequence[_Call], stage: _Call) -> None:
    """Put identities in the place of all that ran before the stage."""
    later = {call.name for call in calls if call.end > stage.begin}
    before = {call.name for call in calls} - later
    for name in before:
        parents = [name[:i] for i, letter in enumerate(name) if letter == "."]
        if not before.intersection(parents):
            branch.set_submodule(name, nn.Identity())


def _difference(branch: nn.Module, shared: Tensor, logits: Tensor) -> str | None:
    """What is wrong with a branch's logits; None where they are the network's."""
    modes = [(module, module.training) for module in branch.modules()]
    branch.eval()
    try:
        found = run_branch(branch, shared)
    except Exception as error:  # whatever a model raises when an identity stands where it expects a layer
        return f"{type(error).__name__}: {error}"
    finally:
        for module, mode in modes:
            module.training = mode
    if found.shape != logits.shape or not torch.allclose(found, logits, rtol=TOLERANCE, atol=TOLERANCE):
        return "the logits differ"
    return None


def run_branch(branch: nn.Module, shared: Tensor) -> Tensor:
    """Logits [B, K] of the shared map [B, C, H, W]."""
    return branch.forward_head(branch.forward_features(shared))


@torch.no_grad()
def draw_anew(module: nn.Module) -> nn.Module:
    """Give a copy weights of its own: each tensor's values in a random order, running statistics as at the start.

    Timm's models have no common function that initialises them. Their initial values are, tensor by tensor, independent
    draws from one distribution or all alike, so another order is another draw of the same initialisation, whatever it
    is; of a pretrained network it keeps the scale of the weights.

    >>> import torch
    >>> layer = torch.nn.Linear(50, 50)
    >>> before = layer.weight.clone()
    >>> torch.equal(draw_anew(layer).weight, before), torch.equal(layer.weight.sort().values, before.sort().values)
    (False, False)
    >>> torch.equal(layer.weight.flatten().sort().values, before.flatten().sort().values)
    True
    """
    for parameter in module.parameters():
        values = parameter.flatten()
        order = torch.randperm(values.numel(), device="cpu").to(values.device)
        parameter.copy_(values[order].view_as(parameter))
    for part in module.modules():
        if hasattr(part, "reset_running_stats"):
            part.reset_running_stats()
    return module


@contextmanager
def watch_input(module: nn.Module) -> Iterator[list[Tensor]]:
    """While it is entered, the list gets what the module is given; nothing of the module remains changed."""
    given: list[Tensor] = []
    # an in-place module must not change what the branches read
    handle = module.register_forward_pre_hook(lambda _, args: given.append(args[0].clone()))
    try:
        yield given
    finally:
        handle.remove()
