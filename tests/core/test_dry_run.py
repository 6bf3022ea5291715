"""Tools of a dry run: image channels, random numbers, order of maps."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from frskd_plugin.core.checks import check_order
from frskd_plugin.core.dry_run import forked_rng, image_channels
from frskd_plugin.core.self_teacher_neck import SelfTeacherNeck


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


@pytest.mark.parametrize("sizes", [(8, 16, 4), (4, 8, 16)])
def test_maps_out_of_order_are_refused(sizes):
    feats = [torch.rand(2, 8, size, size) for size in sizes]
    order = sorted(range(3), key=lambda i: -sizes[i])
    with pytest.raises(ValueError, match=rf"highest resolution first, got 8x8|got 4x4.*order \[{order[0]}, "):
        SelfTeacherNeck([8, 8, 8], width=1)(feats)
    check_order([feats[i] for i in order], "neck")
    check_order([feats[0], feats[0]], "neck")  # plain ViT: all of one size
