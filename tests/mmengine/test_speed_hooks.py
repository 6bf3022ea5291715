"""CompileHook and ChannelsLastHook in real runs of a segmentor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.runner import Runner
from torch import Tensor

from frskd_plugin.mmengine.hooks import CompileHook
from tests.helpers.real_runs import train
from tests.helpers.tiny_mmseg import tiny_config

COMPILED = dict(type="CompileHook", backend="eager")  # what dynamo captures, run by torch as it is
LAID_OUT = dict(type="ChannelsLastHook")


def run(data_root: Path, work_dir: Path, *hooks: dict[str, Any], **settings: Any) -> Runner:
    config = tiny_config(data_root, epochs=2, workers=0, frskd=True)
    config.custom_hooks = [*config.custom_hooks, *hooks]
    return train(config, work_dir, **settings)


def weights(runner: Runner) -> dict[str, Tensor]:
    return runner.model.state_dict()


@pytest.fixture(scope="module")
def plain(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return run(data_root, tmp_path_factory.mktemp("plain"))


def test_compiled_parts_train_to_the_same_weights(
    plain: Runner, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled, compile_ = [], torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, **kw: compiled.append(type(f.__self__).__name__) or compile_(f, **kw)
    )
    runner = run(data_root, tmp_path, COMPILED)
    assert compiled == ["TinyBackbone", "FCNHead", "SelfTeacherNeck", "FCNHead"]
    found = weights(runner)
    assert found.keys() == weights(plain).keys()
    for name, value in weights(plain).items():  # dynamo's graph may choose other kernels on some CPUs
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=name)
    assert not any("forward" in vars(module) for module in runner.model.modules())


def test_parts_can_be_named(data_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="FRSKDEncoderDecoder has no part 'head' to compile"):
        run(data_root, tmp_path, {**COMPILED, "parts": ["head"]})


def test_a_model_without_such_parts_is_told() -> None:
    runner = type("Runner", (), {"model": torch.nn.Linear(1, 1)})
    with pytest.raises(ValueError, match="found none of backbone, neck.* in Linear: name what to compile"):
        CompileHook().before_train(runner)


def test_channels_last_trains_alike_and_resumes_exactly(plain: Runner, data_root: Path, tmp_path: Path) -> None:
    runner = run(data_root, tmp_path / "whole", LAID_OUT)
    last = torch.channels_last
    assert runner.model.backbone.body.weight.is_contiguous(memory_format=last)
    maps = runner.model.extract_feat(torch.randn(2, 3, 32, 32))
    assert all(feat.is_contiguous(memory_format=last) and not feat.is_contiguous() for feat in maps)
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(runner)[name], value, rtol=1e-3, atol=1e-4, msg=name)

    run(data_root, tmp_path / "half", LAID_OUT, train_cfg__max_epochs=1)
    resumed = run(data_root, tmp_path / "half", LAID_OUT, resume=True)
    assert resumed.model.backbone.body.weight.is_contiguous(memory_format=last)
    # the first run's schedule was that of two epochs, as its config says
    assert [name for name, value in weights(runner).items() if not torch.equal(value, weights(resumed)[name])] == []
