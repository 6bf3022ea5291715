from __future__ import annotations

import json

import pytest
import timm
import torch
from timm.models import group_parameters
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import frskd_plugin.timm  # noqa: F401  (registers the networks)
from frskd_plugin.timm.cifar_networks import WideResNet, WideResNetPublished
from tests.helpers.model_tester import ModelTester
from tests.helpers.reference import DATA

NAMES = ["resnet18_cifar", "wrn_16_2", "wrn_16_2_published"]


class TestPublishedWideResNet(ModelTester):
    sizes = (32, 45)

    def make_model(self) -> nn.Module:
        return timm.create_model("wrn_16_2_published", num_classes=10)

    def make_inputs(self, size: int) -> tuple:
        return (torch.randn(2, 3, size, size),)


class TestWideResNet(TestPublishedWideResNet):
    def make_model(self) -> nn.Module:
        return timm.create_model("wrn_16_2", num_classes=10)


# --- sizes (reference section 10)


@pytest.mark.parametrize(
    ("name", "key", "unused"),
    [
        ("wrn_16_2_published", "wrn16x2 (3x32x32, 100 classes)", 256),  # a batch norm that is never used
        ("resnet18_cifar", "cifar_resnet18 (3x32x32, 100 classes)", 0),
    ],
)
def test_counts_equal_the_reference(name: str, key: str, unused: int) -> None:
    expected = json.loads((DATA / "counts.json").read_text())["classifiers"][key]
    model = timm.create_model(name, num_classes=100).eval()
    assert sum(p.numel() for p in model.parameters()) == expected["params"] - unused
    with FlopCounterMode(display=False) as counter:
        _, feats = model.forward_intermediates(torch.randn(1, 3, 32, 32))
        model.forward_head(feats[-1])
    assert counter.get_total_flops() == 2 * expected["macs"]
    assert [list(f.shape) for f in feats[-len(expected["feature_shapes"]) :]] == expected["feature_shapes"]


def test_resnet18_has_the_keys_of_timm() -> None:
    ours, theirs = timm.create_model("resnet18_cifar", num_classes=10), timm.create_model("resnet18", num_classes=10)
    different = [k for k, v in theirs.state_dict().items() if ours.state_dict()[k].shape != v.shape]
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert different == ["conv1.weight"] and ours.conv1.weight.shape == (64, 3, 3, 3)


# --- initial values (reference section 11)


def test_initial_values() -> None:
    torch.manual_seed(0)
    resnet = timm.create_model("resnet18_cifar", num_classes=100)
    bound = 1 / (512 * 9) ** 0.5  # PyTorch's default: uniform in +-1/sqrt(fan_in)
    assert resnet.layer4[1].conv2.weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert (resnet.layer1[0].bn2.weight == 1).all()
    wrn = timm.create_model("wrn_16_2_published", num_classes=100)
    assert wrn.group3.block1.conv2.weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)
    assert (wrn.fc.bias == 0).all()
    assert wrn.fc.weight.abs().max().item() == pytest.approx(1 / 128**0.5, rel=0.01)


# --- timm's interface


@pytest.mark.parametrize("name", NAMES)
def test_intermediates_and_head_equal_forward(name: str) -> None:
    model = timm.create_model(name, num_classes=10).eval()
    x = torch.randn(2, 3, 32, 32)
    last, feats = model.forward_intermediates(x)
    assert torch.equal(model.forward_head(last), model(x))
    assert torch.equal(model.forward_head(model.forward_features(x)), model(x))
    assert torch.equal(last, feats[-1])
    assert model.forward_head(last, pre_logits=True).shape == (2, model.num_features)
    assert [f.shape[1] for f in feats] == [info["num_chs"] for info in model.feature_info]
    assert [32 // f.shape[2] for f in feats] == [info["reduction"] for info in model.feature_info]
    assert all((f >= 0).all() for f in feats)
    (only,) = model.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)
    assert torch.equal(only, feats[1])
    for got, wanted in zip(model.forward_intermediates(x, indices=2, intermediates_only=True), feats[-2:], strict=True):
        assert torch.equal(got, wanted)
    features = timm.create_model(name, features_only=True, out_indices=(0, 1), feature_cls="getter").eval()
    features.load_state_dict({f"model.{k}": v for k, v in model.state_dict().items()}, strict=False)
    assert all(torch.equal(got, wanted) for got, wanted in zip(features(x), feats[:2], strict=True))
    expected = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    model.set_grad_checkpointing()
    for got, wanted in zip(torch.autograd.grad(model(x).sum(), list(model.parameters())), expected, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_classifier_can_be_replaced_and_metadata_are_timms(name: str) -> None:
    model = timm.create_model(name, in_chans=1).double()
    assert model.num_classes == 100 and model.pretrained_cfg["input_size"] == (3, 32, 32)
    groups = group_parameters(model, model.group_matcher(coarse=True))
    stages = 5 if name == "resnet18_cifar" else 4
    assert len(groups) in (stages, stages + 1)  # the classifier may be a group of its own
    assert sum(len(names) for names in groups.values()) == len(list(model.parameters()))
    assert model.get_classifier() is model.fc and model.get_classifier(name_only=True) == "fc"
    x = torch.randn(2, 1, 32, 32, dtype=torch.float64)
    for classes, width in ((7, 7), (0, model.num_features)):
        model.reset_classifier(classes)
        assert model.num_classes == classes and model(x).shape == (2, width)


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match=r"depth=15 of a wide ResNet must be 6n \+ 4"):
        WideResNetPublished(depth=15)
    with pytest.raises(ValueError, match="k=0 .* must be at least 1"):
        WideResNet(k=0)
    with pytest.raises(ValueError, match="has 3 feature maps.*Choose from 0..2"):
        WideResNet(num_classes=2).forward_intermediates(torch.zeros(1, 3, 8, 8), indices=[3])
    with pytest.raises(ValueError, match="output_fmt='NLC'"):
        WideResNet(num_classes=2).forward_intermediates(torch.zeros(1, 3, 8, 8), output_fmt="NLC")
