from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from frskd_plugin.timm import TimmFeatureExtractor
from tests.helpers.model_tester import ModelTester, same, scalar, without_gradient

TINY_SWIN = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2), "window_size": 4}
TINY_VIT = {"embed_dim": 32, "depth": 4, "num_heads": 2}

# name, model arguments, size, maps of that size (channels, height)
FAMILIES = [
    ("test_resnet", {}, 64, [(32, 32), (32, 16), (48, 8), (192, 4), (96, 2)]),
    ("mobilenetv3_small_050.lamb_in1k", {}, 64, [(16, 32), (8, 16), (16, 8), (24, 4), (288, 2)]),
    ("convnext_atto", {}, 64, [(40, 16), (80, 8), (160, 4), (320, 2)]),
    ("swin_tiny_patch4_window7_224", TINY_SWIN, 96, [(16, 24), (32, 12), (64, 6), (128, 3)]),
    ("vit_tiny_patch16_224", TINY_VIT, 64, [(32, 4), (32, 4), (32, 4), (32, 4)]),
    ("wrn_16_2", {}, 32, [(32, 32), (64, 16), (128, 8)]),
    # its head holds the last stages
    ("selecsls42", {}, 64, [(32, 32), (128, 16), (288, 8), (480, 4), (1024, 2), (1280, 1)]),
]


class TestResNetBackbone(ModelTester):
    sizes = (64, 71)

    def make_model(self) -> nn.Module:
        return TimmFeatureExtractor("test_resnet", out_indices=(1, 2, 3))

    def make_inputs(self, size: int) -> tuple:
        return (torch.randn(2, 3, size, size),)


@pytest.mark.parametrize(("name", "kwargs", "size", "maps"), FAMILIES, ids=[f[0] for f in FAMILIES])
def test_maps_of_family(name: str, kwargs: dict, size: int, maps: list[tuple[int, int]]) -> None:
    backbone = TimmFeatureExtractor(name, **kwargs)
    feats = backbone(torch.randn(2, 3, size, size))
    assert isinstance(feats, tuple)
    assert [tuple(f.shape[1:]) for f in feats] == [(channels, side, side) for channels, side in maps]
    assert backbone.out_channels == tuple(f.shape[1] for f in feats)
    assert backbone.strides == tuple(size // f.shape[2] for f in feats)
    scalar(feats).backward()
    assert without_gradient(backbone) == []


@pytest.mark.parametrize(
    ("name", "kwargs", "sizes"),
    [
        ("swin_tiny_patch4_window7_224", TINY_SWIN, [(64, 96), (100, 60)]),
        ("vit_tiny_patch16_224", TINY_VIT, [(64, 96), (50, 60)]),
        ("deit_tiny_distilled_patch16_224", TINY_VIT, [(32, 48)]),
    ],
)
def test_transformers_take_any_size(name: str, kwargs: dict, sizes: list[tuple[int, int]]) -> None:
    backbone = TimmFeatureExtractor(name, out_indices=-1, **kwargs)
    for height, width in sizes:
        stride = backbone.strides[0]
        (feat,) = backbone(torch.randn(1, 3, height, width))
        assert feat.shape[1:] == (backbone.out_channels[0], -(-height // stride), -(-width // stride))


@pytest.mark.parametrize(
    ("name", "stages", "first_trained"),
    [("test_resnet", 2, "layer3"), ("mobilenetv3_small_050", 1, "blocks.1"), ("convnext_atto", 1, "stages.1")],
)
def test_frozen_stages(name: str, stages: int, first_trained: str) -> None:
    backbone = TimmFeatureExtractor(name, frozen_stages=stages).eval().train()
    before = {k: v.clone() for k, v in backbone.state_dict().items() if k.endswith("running_mean")}
    scalar(backbone(torch.randn(2, 3, 64, 64))).backward()
    trained = [n for n, p in backbone.model.named_parameters() if p.grad is not None]
    assert trained[0].startswith(first_trained) and without_gradient(backbone) == []
    frozen = {n for n, p in backbone.model.named_parameters() if not p.requires_grad}
    assert frozen and frozen.isdisjoint(trained)
    norms = [name for name, m in backbone.model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:  # a frozen one keeps its statistics
        kept = torch.equal(before[f"model.{norm}.running_mean"], backbone.model.get_submodule(norm).running_mean)
        assert kept is (f"{norm}.weight" in frozen), norm


def test_norm_eval_keeps_every_batch_norm_in_eval_mode() -> None:
    backbone = TimmFeatureExtractor("test_resnet", norm_eval=True).train()
    assert backbone.training and backbone.model.layer4.training
    assert not any(m.training for m in backbone.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize("name", ["test_resnet", "vit_tiny_patch16_224"])
def test_checkpoint_of_a_classifier_loads_and_gives_its_maps(name: str, tmp_path) -> None:
    kwargs = {"img_size": 64, **TINY_VIT} if name.startswith("vit") else {}
    classifier = timm.create_model(name, num_classes=7, **kwargs).eval()
    torch.save({"state_dict": classifier.state_dict(), "epoch": 3}, tmp_path / "model.pth")
    backbone = TimmFeatureExtractor(name, checkpoint=tmp_path / "model.pth", out_indices=(-4, -2), **kwargs).eval()
    images = torch.randn(2, 3, 64, 64)
    expected = classifier.forward_intermediates(images, indices=list(backbone.out_indices), intermediates_only=True)
    assert all(torch.equal(got, wanted) for got, wanted in zip(backbone(images), expected, strict=True))


def test_checkpoint_is_adapted_to_image_channels_and_image_size(tmp_path) -> None:
    classifier = timm.create_model("test_resnet")
    torch.save(classifier.state_dict(), tmp_path / "rgb.pth")
    grey = TimmFeatureExtractor("test_resnet", checkpoint=str(tmp_path / "rgb.pth"), in_chans=1)
    first = "conv1.0.weight"
    torch.testing.assert_close(grey.model.state_dict()[first], classifier.state_dict()[first].sum(dim=1, keepdim=True))
    torch.save(timm.create_model("vit_tiny_patch16_224", img_size=64, **TINY_VIT).state_dict(), tmp_path / "v.pth")
    backbone = TimmFeatureExtractor("vit_tiny_patch16_224", checkpoint=tmp_path / "v.pth", img_size=96, **TINY_VIT)
    assert backbone.model.pos_embed.shape[1] == 6 * 6 + 1


def test_checkpoint_errors(tmp_path) -> None:
    def load(name: str = "test_resnet", **settings) -> None:
        TimmFeatureExtractor(name, checkpoint=file, **settings)

    file = tmp_path / "resnet.pth"
    with pytest.raises(FileNotFoundError, match="is not a file. Give the path of a timm state_dict"):
        load()
    torch.save(timm.create_model("test_resnet").state_dict(), file)
    with pytest.raises(ValueError, match="not hold the weights of 'test_vit': .*is missing.*more. .*same model arg"):
        load("test_vit")
    torch.save(timm.create_model("wrn_16_2", k=1).state_dict(), file)
    with pytest.raises(ValueError, match="'wrn_16_2': .*is unknown"):
        load("wrn_16_2", k=1, depth=10)
    with pytest.raises(ValueError, match=r"'wrn_16_2': .*expected \[32, 16, 3, 3\].*and \d+ more"):
        load("wrn_16_2", k=2)
    file.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="cannot be read as the weights of 'test_resnet'"):
        load()
    torch.save({"lr": 0.1}, file)
    with pytest.raises(ValueError, match="holds no weights: expected a state_dict of tensors"):
        load()
    with pytest.raises(ValueError, match="exclude each other: set pretrained=False"):
        load(pretrained=True)


def test_weights_that_cannot_be_fetched_say_what_to_do(monkeypatch) -> None:
    create_model = timm.create_model

    def offline(name: str, pretrained: bool = False, **kwargs):
        if pretrained:
            raise OSError("no route to host")
        return create_model(name, pretrained=False, **kwargs)

    monkeypatch.setattr(timm, "create_model", offline)
    message = "no route to host.*checkpoint='FILE'.*from scratch with pretrained=False"
    with pytest.raises(RuntimeError, match=message) as caught:
        TimmFeatureExtractor("test_resnet", pretrained=True)
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize(
    ("name", "settings", "error", "message"),
    [
        ("resnet81", {}, ValueError, "has no model 'resnet81'. Did you mean .*resnet18"),
        ("resnet18", {"out_indices": (1, 5)}, ValueError, r"5 feature maps \(0: 64 channels at stride 2, .*from 0..4"),
        ("resnet18", {"out_indices": (3, 1)}, ValueError, r"ascending order .* e.g. \(1, 3\)"),
        ("resnet18", {"frozen_stages": 5}, ValueError, r"frozen_stages=5 does not fit 'resnet18'.* up to 4"),
        ("poolformer_s12", {"frozen_stages": 1}, ValueError, "leave frozen_stages=-1"),
        ("resnet18", {"no_such_argument": 1}, TypeError, "no_such_argument"),
    ],
)
def test_bad_arguments(name, settings, error, message) -> None:
    with pytest.raises(error, match=message):
        TimmFeatureExtractor(name, **settings)


def test_bad_images() -> None:
    backbone = TimmFeatureExtractor("test_resnet")
    for shape in [(3, 32, 32), (2, 4, 32, 32), (7,)]:
        with pytest.raises(ValueError, match=r"expects images \[B, 3, H, W\], got a tensor"):
            backbone(torch.zeros(shape))


def test_maps_out_of_order_are_handed_out_highest_resolution_first(monkeypatch):
    plain = TimmFeatureExtractor("test_resnet", out_indices=(1, 2, 3)).eval()
    images, create = torch.randn(1, 3, 64, 64), timm.create_model

    def create_swapped(*args, **kwargs):  # as if the network made its map of stride 8 before that of stride 4
        model = create(*args, **kwargs)
        infos = [dict(info) for info in model.feature_info]
        infos[1]["reduction"], infos[2]["reduction"] = 8, 4
        model.feature_info = infos
        return model

    monkeypatch.setattr(timm, "create_model", create_swapped)
    backbone = TimmFeatureExtractor("test_resnet", out_indices=(1, 2, 3)).eval()
    backbone.load_state_dict(plain.state_dict())
    assert (backbone.strides, backbone.out_channels, backbone.out_indices) == ((4, 8, 16), (48, 32, 192), (2, 1, 3))
    first, second, third = plain(images)
    assert same(backbone(images), (second, first, third))
