"""What needs a CUDA device: a segmentor's step, mixed precision with mmengine's wrapper, resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import nn

from tests.helpers.real_runs import final_weights, train
from tests.helpers.segmentors import build, effdet, make_batch, with_frskd
from tests.helpers.tiny_mmseg import tiny_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none"),
]


@pytest.fixture
def config(data_root: Path) -> Config:
    return tiny_config(data_root, epochs=2, workers=0, batch_size=4, frskd=True)


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_segmentor_step(dtype: torch.dtype | None) -> None:
    model = build(with_frskd(effdet())).cuda().train()
    images, samples = make_batch()
    samples = [sample.cuda() for sample in samples]
    with torch.autocast("cuda", dtype, enabled=dtype is not None):
        losses = model.loss(images.cuda(), samples)
    total = sum(value for name, value in losses.items() if "loss" in name)
    total.backward()
    assert torch.isfinite(total)
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_step_equals_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    # torch's CUDA kernels of these two multiply by 1/6 rounded to float32 in double too, which moves loss_feat by 7e-8
    monkeypatch.setattr(nn.Hardsigmoid, "forward", lambda self, x: (x + 3).clamp(0, 6) / 6)
    monkeypatch.setattr(nn.Hardswish, "forward", lambda self, x: x * (x + 3).clamp(0, 6) / 6)
    model = build(with_frskd(effdet())).double().train()
    images, samples = make_batch()
    expected = model.loss(images.double(), samples)
    actual = model.cuda().loss(images.double().cuda(), [sample.cuda() for sample in samples])
    for name, value in expected.items():
        torch.testing.assert_close(actual[name].cpu(), value, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_amp_trains_with_mmengines_wrapper(config: Config, tmp_path: Path, dtype: str) -> None:
    settings = dict(optim_wrapper__type="AmpOptimWrapper", optim_wrapper__dtype=dtype)
    runner = train(config, tmp_path, **settings)
    assert all(torch.isfinite(p).all() and p.device.type == "cuda" for p in runner.model.parameters())


def test_resume_goes_on_from_the_checkpoint(config: Config, tmp_path: Path) -> None:
    train(config, tmp_path / "run", train_cfg__max_epochs=1)
    runner = train(config, tmp_path / "run", resume=True)
    train(config, tmp_path / "whole")
    assert runner.iter == 4
    expected = final_weights(tmp_path / "whole", 2)
    for key, value in final_weights(tmp_path / "run", 2).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=1e-4)  # CUDA sums in no fixed order
