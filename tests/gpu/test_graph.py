"""A training step as one CUDA graph: `GraphTrainLoop` against the ordinary loop, and the example of docs/speed.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from mmengine.runner import Runner

import frskd_plugin
from tests.helpers.doc_pages import DOCS, blocks
from tests.helpers.images_run import GRAPH, ORDINARY, STUDENT, toy_config
from tests.helpers.real_runs import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none"),
]

ON_DEVICE = dict(train_dataloader__dataset__device="cuda")
MIXUP = dict(model__mix=dict(type="Mixup", alpha=0.4))
CUTMIX = dict(model__mix=dict(type="CutMix", alpha=1.0))
FUSED = dict(optim_wrapper__optimizer__fused=True)
BF16 = dict(optim_wrapper__type="AutocastOptimWrapper", optim_wrapper__dtype="bfloat16")


def assert_close_weights(one: Runner, other: Runner, rtol: float = 1e-3, atol: float = 1e-4) -> None:
    expected = other.model.state_dict()
    for name, value in one.model.state_dict().items():  # CUDA sums in no fixed order
        torch.testing.assert_close(value, expected[name], rtol=rtol, atol=atol, msg=lambda text: f"{name}: {text}")  # noqa: B023


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (
            dict(name="baseline"),
            dict(model__mix=dict(type="CutMix", alpha=1.0), optim_wrapper__clip_grad=dict(max_norm=1)),
        ),
        (dict(name="frskd", width=1, alpha=2.0, beta=100.0, schedule="linear"), {**FUSED, **MIXUP}),
        (dict(name="frskd", width=1), FUSED),
        (dict(name="frskd_sla", width=1), {}),
        (dict(name="byot"), FUSED),
        (dict(name="sad", start_epoch=1), {}),
        (dict(name="one", rampup_epochs=2), FUSED),
        (dict(name="ddgsd"), {}),
        (dict(name="cs_kd"), {}),
        (dict(name="sla_sd"), {}),
        (dict(name="kd"), FUSED),
        (dict(name="ps_kd"), FUSED),
        (dict(name="label_smoothing"), {}),
    ],
    ids=lambda value: value.get("name", "") if isinstance(value, dict) else None,
)
def test_captured_steps_train_as_the_ordinary_loop(
    method: dict[str, Any], settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if method["name"] == "kd":
        torch.save(timm.create_model(**STUDENT).state_dict(), tmp_path / "teacher.pth")
        method = {**method, "teacher": dict(STUDENT, checkpoint=str(tmp_path / "teacher.pth"))}
    monkeypatch.setattr("frskd_plugin.mmengine.graph_loop.WARM_UP", 1)
    configs = [toy_config(method, loop, **ON_DEVICE, **settings) for loop in (ORDINARY, GRAPH)]
    for config in configs:
        config.custom_hooks.append(dict(type="DoubleHook"))
    ordinary, captured = train(configs[0], tmp_path / "ordinary"), train(configs[1], tmp_path / "graph")
    assert captured.train_loop._step._replay is not None  # the last epoch ended with a graph
    assert captured.iter == ordinary.iter == 8
    assert_close_weights(captured, ordinary)


def test_compiled_step_in_bfloat16_is_captured_and_resumes(tmp_path: Path) -> None:
    settings = {**ON_DEVICE, **FUSED, **BF16, "model__compile": True, "model__channels_last": True}
    method = dict(name="frskd", width=1)
    whole = train(toy_config(method, GRAPH, **settings), tmp_path / "whole")
    train(toy_config(method, GRAPH, **settings, train_cfg__max_epochs=1), tmp_path / "resumed")
    resumed = train(toy_config(method, GRAPH, **settings), tmp_path / "resumed", resume=True)
    assert_close_weights(resumed, whole, rtol=2e-2, atol=2e-3)


def test_the_page_for_a_loop_of_your_own(capsys: pytest.CaptureFixture[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    loader = [
        (torch.randn(8, 3, 64, 64, generator=generator), torch.randint(10, (8,), generator=generator)) for _ in range(4)
    ]
    names: dict[str, Any] = {"loader": loader, "epochs": 2}
    (code,) = (block.text for block in blocks(DOCS / "speed.md") if block.kind == "python")
    torch.manual_seed(1)
    exec(compile(code, "speed.md", "exec"), names)
    assert len(capsys.readouterr().out.splitlines()) == 2

    torch.manual_seed(1)
    student = timm.create_model("resnet18", num_classes=10)
    model = frskd_plugin.wrap(student, alpha=2, beta=100, temperature=4, width=2)
    model = model.cuda().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, fused=True)
    for images, targets in [loader[0]] * 3 + loader * 2:
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(images.cuda().to(memory_format=torch.channels_last), targets.cuda())["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(names["loss"], loss.detach(), rtol=0.1, atol=0.1)  # eleven steps of bfloat16
