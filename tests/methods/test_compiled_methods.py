"""Student, method and losses are one function to `torch.compile`, for every method, and a schedule compiles nothing."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import timm
import torch
from torch._dynamo.testing import CompileCounter

import frskd_plugin
from frskd_plugin.methods import method_names
from tests.helpers.toy_classifier import ToyClassifier, toy_batch

SETTINGS: dict[str, dict[str, Any]] = {"ps_kd": {"num_samples": 8}, "one": {"rampup_epochs": 10}}
CASES = [(name, SETTINGS.get(name, {})) for name in method_names()]
CASES.append(("kd", {"feature_loss": "overhaul"}))


@pytest.mark.parametrize(("name", "settings"), CASES, ids=[f"{n}-{'-'.join(map(str, s.values()))}" for n, s in CASES])
def test_step_is_one_graph(name: str, settings: dict[str, Any]) -> None:
    torch._dynamo.reset()
    network: Any = ToyClassifier
    if name == "one" or "feature_loss" in settings:  # a last stage to copy, batch normalisation before each ReLU
        network = functools.partial(timm.create_model, "wrn_16_2", num_classes=3, depth=10, k=1)
        settings = {**settings, "input_size": (3, 8, 8)}
    if name == "kd":
        settings = {**settings, "teacher": network()}
    model = frskd_plugin.wrap(network(), name, **settings).train()
    needs = model.method.needs
    images, targets = toy_batch(4)
    if needs.order != "any":
        images, targets = torch.cat([images, images.flip(0)]), torch.cat([targets, targets])
    if needs.views > 1:
        images = torch.stack([images] * needs.views, dim=1)
    extra = {"index": torch.arange(4)} if needs.index else {}
    counter = CompileCounter()
    compiled = torch.compile(model.forward, backend=counter, fullgraph=True)  # a break raises
    for epoch in range(2):
        model.method.set_progress(epoch, 10)
        assert compiled(images, targets, **extra)["loss"].isfinite()
    assert counter.frame_count == 1
