"""The maps that a method sees are what the network's own stages and blocks hand on, as a hook sees it."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

import frskd_plugin

TINY_SWIN = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2), "window_size": 4, "img_size": 96}

# arguments and image size, layout of what the modules hand on: NCHW, NHWC or the number of prefix tokens [B, N, C]
NETWORKS = {
    "test_resnet": ({}, 64, "NCHW"),
    "test_efficientnet": ({}, 64, "NCHW"),
    "test_convnext": ({}, 64, "NCHW"),
    "test_maxvit": ({"img_size": 64}, 64, "NCHW"),
    "test_mambaout": ({}, 64, "NHWC"),
    "swin_tiny_patch4_window7_224": (TINY_SWIN, 96, "NHWC"),
    "test_vit": ({"img_size": 64}, 64, 1),
    "deit_tiny_distilled_patch16_224": ({"img_size": 64, "depth": 2}, 64, 2),
    "levit_128s": ({"img_size": 128}, 128, 0),
    "cait_xxs24_224": ({"img_size": 64, "depth": 2}, 64, 0),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_are_those_of_the_networks_own_modules(name: str) -> None:
    kwargs, size, layout = NETWORKS[name]
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **kwargs).eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm):  # which would do nothing
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    wrapped = frskd_plugin.wrap(model, width=1, input_size=(3, size, size)).eval()
    images, expected = torch.randn(2, 3, size, size), []
    for i in wrapped.out_indices:
        module = model.get_submodule(model.feature_info[i]["module"])
        module.register_forward_hook(lambda *args: expected.append(as_map(args[-1], layout)))
    with torch.no_grad():
        model(images)
        wanted = list(expected)
        feats, _ = wrapped.student_forward(images)
    assert [feat.shape[1] for feat in feats] == [model.feature_info[i]["num_chs"] for i in wrapped.out_indices]
    assert len(feats) > 1 and all(torch.equal(*pair) for pair in zip(feats, wanted, strict=True))


def as_map(x: Tensor, layout: str | int) -> Tensor:
    if isinstance(layout, str):
        return x if layout == "NCHW" else x.permute(0, 3, 1, 2)
    tokens = x[:, layout:].mT
    side = int(tokens.shape[2] ** 0.5)
    return tokens.unflatten(2, (side, side))
