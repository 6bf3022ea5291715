from __future__ import annotations

import pytest
import timm

from frskd_plugin.timm.probe import probe_student

TINY_VIT = {"embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 10}


def test_frozen_parameters_and_modes_are_as_before() -> None:
    model = timm.create_model("test_vit", img_size=32).train()
    model.blocks[0].requires_grad_(False)
    model.blocks[0].eval()
    macs = probe_student(timm.create_model("test_vit", img_size=32)).macs
    trained = [parameter.requires_grad for parameter in model.parameters()]
    training = [module.training for module in model.modules()]
    assert probe_student(model).macs == macs
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    assert [module.training for module in model.modules()] == training
    assert not all(trained) and not all(training)


def test_a_model_that_hands_a_parameter_to_a_module_or_fails_stays_trainable() -> None:
    """PiT and CaIT hand over their class token."""
    pit = timm.create_model("pit_ti_224", base_dims=(8,) * 3, depth=(1,) * 3, img_size=64, num_classes=10)
    probe = probe_student(pit)
    assert probe.in_channels == [16, 32, 64] and probe.map_sizes == [(7, 7), (4, 4), (2, 2)] and probe.macs > 0
    cait = timm.create_model("cait_xxs24_224", **TINY_VIT, img_size=32)
    with pytest.raises(ValueError, match=r"failed on images \[2, 3, 48, 48\]"):
        probe_student(cait, (3, 48, 48))
    for model in (pit, cait):
        assert all(parameter.requires_grad for parameter in model.parameters()) and model.training


@pytest.mark.parametrize(
    ("name", "kwargs", "size"),
    [
        ("test_vit", {"img_size": (32, 64)}, (32, 64)),
        ("cait_xxs24_224", {**TINY_VIT, "img_size": 64}, (64, 64)),  # known to its first layer alone
        ("swin_tiny_patch4_window7_224", {"img_size": 96, "embed_dim": 12, "depths": (1, 1, 1, 1)}, (96, 96)),
        ("test_resnet", {}, (160, 160)),
        ("test_resnet", {"in_chans": 1}, (160, 160)),
        ("test_vit", {"in_chans": 1}, (160, 160)),
    ],
)
def test_images_are_those_that_the_model_was_made_for(name: str, kwargs: dict, size: tuple[int, int]) -> None:
    assert probe_student(timm.create_model(name, **kwargs)).input_size == (kwargs.get("in_chans", 3), *size)
