"""Tools of a dry run: image channels, random numbers, cost of a forward pass."""

from __future__ import annotations

import gc
import weakref

import pytest
import timm
import torch
from torch import nn

from frskd_plugin.core.dry_run import count_forward, forked_rng, image_channels


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_channels_are_the_models(name):
    assert image_channels(timm.create_model(name, in_chans=5)) == 5
    assert image_channels(nn.Linear(2, 2)) == 3
    assert image_channels(nn.Linear(2, 2), default=1) == 1


def test_a_block_has_random_numbers_of_its_own():
    torch.manual_seed(7)
    with forked_rng(1):
        inner = torch.rand(1)
    drawn = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(1))
    torch.manual_seed(1)
    assert torch.equal(inner, torch.rand(1))
    torch.manual_seed(7)
    with forked_rng():
        assert torch.equal(drawn, torch.rand(1))
    assert torch.initial_seed() == 7


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
