"""What a forward pass costs apart from time: multiply-accumulates, and the memory it keeps for the backward pass."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass
class ForwardCost:
    """Filled when the block of `count_forward` ends.

    Attributes:
        macs: multiply-accumulates of convolutions and matrix products.
        kept: bytes of the tensors that are kept for the backward pass, weights and buffers not counted.
    """

    macs: int = 0
    kept: int = 0


@contextmanager
def count_forward(network: nn.Module) -> Iterator[ForwardCost]:
    """Count what the block does. Its result must live until the block ends: what is freed by then is not kept.

    Args:
        network: whose weights and buffers are not counted as kept.

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


class _Kept:
    """A tensor that the graph keeps; it goes when the graph lets go of it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
