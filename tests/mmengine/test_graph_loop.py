"""`GraphTrainLoop` trains as the ordinary loop does, to the bit: its step called, or recorded and replayed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS
from mmengine.runner import Runner

from frskd_plugin.core.checks import can_read
from frskd_plugin.data.tensor_images import TensorImages
from frskd_plugin.mmengine import graph_loop
from frskd_plugin.mmengine.method_data import provide_method_data
from tests.helpers.real_runs import train
from tests.helpers.recorded_step import record_step

STUDENT = dict(model_name="wrn_16_2", depth=10, k=1, num_classes=3)
ORDINARY, GRAPH = "EpochBasedTrainLoop", "GraphTrainLoop"


@DATASETS.register_module(force=True)
class ToyImages(TensorImages):
    """Fourteen images of noise: three batches of four, and a smaller one."""

    def __init__(self) -> None:
        images = torch.randint(256, (14, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        super().__init__(images, torch.arange(14) % 3, augment=True, padding=1)


@HOOKS.register_module(force=True)
class MeddlingHook(Hook):
    """Works at each iteration."""

    def after_train_iter(self, *args: Any, **kwargs: Any) -> None:
        pass


def toy_config(method: dict[str, Any], loop: str = GRAPH, **settings: Any) -> Config:
    config = Config(
        dict(
            model=dict(
                type="TimmClassifier",
                student=STUDENT,
                input_size=(3, 8, 8),
                method=method,
                data_preprocessor=dict(type="ImagePreprocessor", mean=[127.0] * 3, std=[64.0] * 3),
            ),
            train_dataloader=dict(
                batch_size=4,
                num_workers=0,
                collate_fn=dict(type="take_batch"),
                sampler=dict(type="SeededSampler", shuffle=True),
                dataset=dict(type="ToyImages"),
            ),
            train_cfg=dict(type=loop, max_epochs=3),
            optim_wrapper=dict(
                type="OptimWrapper", optimizer=dict(type="SGD", lr=0.05, momentum=0.9, weight_decay=1e-3)
            ),
            param_scheduler=dict(type="CosineAnnealingLR", T_max=3, by_epoch=True),
            default_hooks=dict(
                runtime_info=dict(type="DeferredInfoHook"),
                timer=dict(type="DeferredTimerHook"),
                logger=dict(type="LoggerHook", interval=2),
                checkpoint=dict(type="AtomicCheckpointHook", interval=1),
                finite_loss=dict(type="FiniteLossHook"),
            ),
            custom_hooks=[dict(type="StepSeedHook"), dict(type="MethodProgressHook")],
            visualizer=dict(type="Visualizer", vis_backends=[dict(type="LocalVisBackend")]),
            randomness=dict(seed=2),
        )
    )
    provide_method_data(config)
    config.merge_from_dict({name.replace("__", "."): value for name, value in settings.items()})
    return config


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    torch.manual_seed(7)
    file = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    torch.save(timm.create_model(**STUDENT).state_dict(), file)
    return dict(STUDENT, checkpoint=str(file))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record and replay in place of a capture; the number of captures so far, each with a replay at least."""
    captures = [0]

    def capture(step: Any, stream: Any) -> Any:
        captures[0] += 1
        with monkeypatch.context() as patch:
            for module in ("methods.targets", "methods.cs_kd", "methods.ps_kd", "data.mixing"):
                patch.setattr(f"frskd_plugin.{module}.can_read", lambda tensor: False)  # as of a GPU's tensors
            return record_step(step)

    monkeypatch.setattr(graph_loop, "WARM_UP", 1)
    monkeypatch.setattr(graph_loop, "capture_step", capture)
    return captures


def assert_same_weights(first: Runner, second: Runner) -> None:
    one, other = first.model.state_dict(), second.model.state_dict()
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


MIXUP = dict(model__mix=dict(type="Mixup", alpha=0.4))
CUTMIX = dict(model__mix=dict(type="CutMix", alpha=1.0))
STEPS = dict(param_scheduler=dict(type="MultiStepLR", milestones=[2], gamma=0.1, by_epoch=True))
CLIPPED = dict(optim_wrapper__clip_grad=dict(max_norm=0.5))
FUSED = dict(optim_wrapper__optimizer__fused=True)
BF16 = dict(optim_wrapper__type="AutocastOptimWrapper", optim_wrapper__dtype="bfloat16")
FRSKD = dict(name="frskd", alpha=2.0, beta=100.0, temperature=4.0, width=1)


@pytest.mark.parametrize(
    ("method", "settings", "captures"),
    [
        (dict(name="baseline"), {}, 3),
        (dict(name="baseline"), MIXUP, 3),
        (dict(name="baseline"), {**CUTMIX, **CLIPPED}, 3),
        (dict(name="label_smoothing"), STEPS, 2),
        (FRSKD, {**FUSED, **MIXUP}, 1),
        (FRSKD, BF16, 3),
        ({**FRSKD, "name": "frskd_sla"}, {}, 3),
        (dict(name="byot"), FUSED, 1),
        (dict(name="sad", start_epoch=1), FUSED, 2),
        (dict(name="one", rampup_epochs=3), FUSED, 1),
        (dict(name="ddgsd"), {}, 3),
        (dict(name="cs_kd"), {}, 3),
        (dict(name="sla_sd"), {}, 3),
        (dict(name="kd"), {}, 3),
        (dict(name="ps_kd"), FUSED, 1),
    ],
    ids=lambda value: value.get("name", "+".join(value)) if isinstance(value, dict) else "",
)
def test_replayed_steps_train_to_the_same_weights(
    method: dict[str, Any],
    settings: dict[str, Any],
    captures: int,
    recorded: list[int],
    teacher: dict[str, Any],
    tmp_path: Path,
) -> None:
    if method["name"] == "kd":
        method = {**method, "teacher": teacher}
    ordinary = train(toy_config(method, ORDINARY, **settings), tmp_path / "ordinary")
    assert recorded == [0]
    replayed = train(toy_config(method, GRAPH, **settings), tmp_path / "graph")
    assert recorded == [captures]
    assert_same_weights(ordinary, replayed)
    assert ordinary.optim_wrapper.inner_count == replayed.optim_wrapper.inner_count == replayed.iter == 12
    one, other = (losses(tmp_path / name) for name in ("ordinary", "graph"))
    assert one == other and len(one) == 6


def losses(work_dir: Path) -> list[dict[str, Any]]:
    (log,) = work_dir.glob("*/vis_data/scalars.json")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [{name: value for name, value in line.items() if "time" not in name} for line in lines]


def test_can_read():
    assert can_read(torch.ones(1)) and not can_read(torch.ones(1, device="meta"))
