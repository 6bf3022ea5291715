"""The maps that a method sees are the model's own: timm's ``features_only`` where it goes another way, else a hook."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import frskd_plugin

TINY_SWIN = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2), "window_size": 4, "img_size": 96}
TINY_DENSENET = {"growth_rate": 4, "block_config": (1, 1, 1, 1)}

# name, arguments, image size, layout of the maps that features_only gives
BY_FEATURES_ONLY = [
    ("test_resnet", {}, 64, "NCHW"),
    ("test_efficientnet", {}, 64, "NCHW"),
    ("test_convnext", {}, 64, "NCHW"),
    ("densenet121", TINY_DENSENET, 64, "NCHW"),
    ("test_maxvit", {"img_size": 64}, 64, "NCHW"),
    ("test_mambaout", {}, 64, "NHWC"),
    ("swin_tiny_patch4_window7_224", TINY_SWIN, 96, "NHWC"),
]

# name, arguments, image size, the modules that the levels come from, prefix tokens, side of each map
BY_HOOK = [
    ("test_vit", {"img_size": 64}, 64, ["blocks.0", "blocks.2", "blocks.3", "blocks.5"], 1, [4, 4, 4, 4]),
    ("deit_tiny_distilled_patch16_224", {"img_size": 64, "depth": 2}, 64, ["blocks.0", "blocks.1"], 2, [4, 4]),
    ("levit_128s", {"img_size": 128}, 128, ["stages.0", "stages.1", "stages.2"], 0, [8, 4, 2]),
    ("cait_xxs24_224", {"img_size": 64, "depth": 2}, 64, ["blocks.0", "blocks.1"], 0, [4, 4]),
]


@pytest.mark.parametrize(("name", "kwargs", "size", "layout"), BY_FEATURES_ONLY, ids=[c[0] for c in BY_FEATURES_ONLY])
def test_maps_equal_those_of_features_only(name: str, kwargs: dict, size: int, layout: str) -> None:
    model = make(name, **kwargs)
    wrapped = frskd_plugin.wrap(model, width=1, input_size=(3, size, size)).eval()
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        feats, _ = wrapped.student_forward(images)
        expected = features_only(name, kwargs, wrapped.out_indices, model)(images)
    if layout == "NHWC":
        expected = [feat.permute(0, 3, 1, 2) for feat in expected]
    assert [feat.shape for feat in feats] == [feat.shape for feat in expected]
    assert all(torch.equal(got, wanted) for got, wanted in zip(feats, expected, strict=True))


@pytest.mark.parametrize(("name", "kwargs", "size", "modules", "prefix", "sides"), BY_HOOK, ids=[c[0] for c in BY_HOOK])
def test_maps_are_the_tokens_of_the_blocks_laid_out(
    name: str, kwargs: dict, size: int, modules: list[str], prefix: int, sides: list[int]
) -> None:
    model = make(name, **kwargs)
    wrapped = frskd_plugin.wrap(model, width=1, input_size=(3, size, size)).eval()
    images = torch.randn(2, 3, size, size)
    tokens: dict[str, Tensor] = {}
    for module in modules:
        model.get_submodule(module).register_forward_hook(
            lambda _, inputs, output, module=module: tokens.__setitem__(module, output)
        )
    with torch.no_grad():
        model(images)
        expected = [lay_out(tokens[module], prefix, side) for module, side in zip(modules, sides, strict=True)]
        feats, _ = wrapped.student_forward(images)
    assert len(feats) == len(expected)
    assert all(torch.equal(got, wanted) for got, wanted in zip(feats, expected, strict=True))


def make(name: str, **kwargs) -> nn.Module:
    """A small model in eval mode whose batch norms do something."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **kwargs).eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def features_only(name: str, kwargs: dict, out_indices: tuple[int, ...], model: nn.Module) -> nn.Module:
    """timm's own extractor of these maps with the weights of the model; it renames ``a.0.b`` to ``a_0.b``."""
    extractor = timm.create_model(name, features_only=True, out_indices=out_indices, **kwargs).eval()
    assert not hasattr(extractor, "forward_intermediates")
    assert type(extractor).__name__ != "FeatureGetterNet"  # which is forward_intermediates itself
    weights = {key.replace(".", "_"): value for key, value in model.state_dict().items()}
    extractor.load_state_dict({key: weights[key.replace(".", "_")] for key in extractor.state_dict()})
    return extractor


def lay_out(tokens: Tensor, prefix: int, side: int) -> Tensor:
    """Tokens [B, prefix + side * side, C], row by row, as a map [B, C, side, side]."""
    rows = [tokens[:, prefix + side * y : prefix + side * (y + 1)].mT for y in range(side)]
    assert tokens.shape[1] == prefix + side * side
    return torch.stack(rows, dim=2)
