"""What a forward pass is said to keep: what the graph holds when the block ends."""

from __future__ import annotations

import gc
import weakref

import torch
from torch import nn

from frskd_plugin.core.dry_run import count_forward


class Mark:
    """Something that a weak reference can point to."""


def test_counts_what_is_still_kept_when_the_block_ends():
    network = nn.Sequential(nn.Linear(3, 5), nn.Sigmoid())
    with count_forward(network) as cost:
        freed = network(torch.rand(7, 3)).sum()
        del freed
        result = network(torch.rand(2, 3)).sum()
    assert cost.macs == 9 * 3 * 5
    assert cost.kept == (2 * 3 + 2 * 5) * 4  # the input of the linear layer, the output of the sigmoid
    result.backward()
    assert network[0].weight.grad is not None


def test_the_graph_is_freed_with_its_result():
    """Sigmoid keeps its output: a counter that held it with its history would keep the whole graph for ever."""
    x = torch.rand(2, 3, requires_grad=True)
    with count_forward(nn.Identity()):
        hidden = x.sigmoid()
        mark = hidden.grad_fn.metadata["mark"] = Mark()  # lives as long as this node of the graph
        result = hidden.sum()
    mark = weakref.ref(mark)
    assert mark() is not None
    del hidden, result
    gc.collect()
    assert mark() is None
