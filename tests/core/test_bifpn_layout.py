"""BiFPN works in channels_last inside while it trains on a CPU; what goes out has the layout of what came in."""

from __future__ import annotations

import copy

import pytest
import torch

from frskd_plugin.core import BiFPN
from frskd_plugin.core.blocks import common_layout


@pytest.mark.parametrize("variant", ["efficientdet", "published"])
def test_training_in_either_layout_gives_the_same_and_keeps_the_layout(variant):
    torch.manual_seed(0)
    neck = BiFPN([6, 6, 6], channels=6, repeat=2, variant=variant).double().train()
    feats = [torch.randn(2, 6, s, s, dtype=torch.float64) for s in (8, 4, 2)]
    twin = copy.deepcopy(neck)
    plain = [feat.clone().requires_grad_() for feat in feats]
    last = [feat.contiguous(memory_format=torch.channels_last).requires_grad_() for feat in feats]
    expected, actual = neck(plain), twin(last)
    assert all(feat.is_contiguous() for feat in expected)
    assert all(feat.is_contiguous(memory_format=torch.channels_last) for feat in actual)
    sum(feat.square().sum() for feat in expected).backward()
    sum(feat.square().sum() for feat in actual).backward()
    for a, e in zip((*actual, *(x.grad for x in last)), (*expected, *(x.grad for x in plain)), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-12)


def test_training_computes_what_evaluation_does():
    """Without batch statistics both modes are one function; only the layout inside differs."""
    torch.manual_seed(0)
    neck = BiFPN([6, 6], channels=6, repeat=2).double().train()
    for module in neck.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    feats = [torch.randn(2, 6, s, s, dtype=torch.float64) for s in (6, 3)]
    trained = neck(feats)
    for a, e in zip(trained, neck.eval()(feats), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-14)


def test_common_layout():
    one, other = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    assert common_layout([one, other]) is common_layout([one]) is torch.contiguous_format
    assert common_layout([other, torch.rand(2, 3, 1, 1)]) is torch.channels_last
