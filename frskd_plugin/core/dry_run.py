"""Tools for a dry run of somebody's network: its number of image channels, its modes and random numbers left alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

DEFAULT_CHANNELS = 3


def image_channels(network: nn.Module, default: int = DEFAULT_CHANNELS) -> int:
    """Return the number of image channels (bands) that a network takes.

    It is what the network, or a module in it, keeps as ``in_chans`` (timm), otherwise the input of its first
    convolution, otherwise ``default``.

    >>> image_channels(nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3)))
    4
    """
    for module in network.modules():
        channels = getattr(module, "in_chans", None)
        if isinstance(channels, int) and not isinstance(channels, bool) and channels > 0:
            return channels
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return default


@contextmanager
def forked_rng(seed: int | None = None) -> Iterator[None]:
    """Give a block random numbers of its own, on the CPU and on CUDA devices, and restore the caller's after it.

    CUDA is not initialised for it: where nothing has used CUDA yet, there is nothing to restore.

    Args:
        seed: of the block; None lets it go on from the caller's state.

    >>> before = torch.get_rng_state()
    >>> with forked_rng(3):
    ...     first = torch.rand(1)
    >>> with forked_rng(3):
    ...     first == torch.rand(1)
    tensor([True])
    >>> torch.equal(before, torch.get_rng_state())
    True
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
    """Run a block in eval mode without gradients; every module and parameter gets its own state back.

    The parameters themselves must not ask for a gradient: torch's FLOP counter hooks each input of a module that does,
    which fails under ``no_grad`` where a network hands a parameter to a module (CaIT's and PiT's class token).
    """
    training = [module for module in network.modules() if module.training]
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    network.eval()
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        with torch.no_grad():
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True
