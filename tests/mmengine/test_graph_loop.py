"""`GraphTrainLoop` trains as the ordinary loop does, to the bit: its step called, or recorded and replayed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from mmengine.hooks import Hook, LoggerHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from frskd_plugin.commands.config import enable_cuda_graph
from frskd_plugin.mmengine import graph_loop
from frskd_plugin.mmengine.deferred_log import DeferredTimerHook
from frskd_plugin.mmengine.graph_loop import GraphTrainLoop
from tests.helpers.images_run import GRAPH, ORDINARY, STUDENT, toy_config
from tests.helpers.real_runs import assert_equal, scalars, train

aten = torch.ops.aten
# what makes the host wait for a GPU, which no capture allows
READS = {aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default}


def record_step(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Stand in for `capture_step` on a CPU: record the operators of a step, to run them again with the same constants.

    Recording changes no tensor, and a replay runs nothing of Python's.
    """
    recorder = _Recorder()
    with recorder:
        output = step()
    with torch.no_grad():
        for tensor, before in recorder.outside:
            tensor.copy_(before)
    return lambda: recorder.replay(output)


class _Recorder(TorchDispatchMode):
    """Tensors are told apart by their storage: autograd makes new objects of what it has saved."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []
        self.seen: set[int] = set()
        self.made: set[int] = set()
        self.outside: list[tuple[Tensor, Tensor]] = []  # what the step did not make, and its values before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            if _storage(tensor) not in self.seen:
                self.seen.add(_storage(tensor))
                self.outside.append((tensor.detach(), tensor.detach().clone()))
        result = func(*args, **kwargs)
        fresh = {_storage(tensor) for tensor in _tensors(result)} - self.seen
        self.made |= fresh
        self.seen |= fresh
        self.calls.append((func, args, kwargs, result))  # which keeps the storages alive, and apart
        return result

    @torch.no_grad()
    def replay(self, output: Tensor) -> Tensor:
        storages: dict[int, torch.UntypedStorage] = {}

        def now(value: Any) -> Any:
            if not isinstance(value, Tensor) or _storage(value) not in storages:
                return value
            new = torch.empty(0, dtype=value.dtype)
            return new.set_(storages[_storage(value)], value.storage_offset(), value.size(), value.stride())

        for func, args, kwargs, result in self.calls:
            found = func(*tree_map(now, args), **tree_map(now, kwargs))
            for before, after in zip(_tensors(result), _tensors(found), strict=True):
                if _storage(before) in self.made:
                    storages.setdefault(_storage(before), after.untyped_storage())
        return now(output)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@HOOKS.register_module(force=True)
class MeddlingHook(Hook):
    """Works at each iteration."""

    def after_train_iter(self, *args: Any, **kwargs: Any) -> None:
        pass


@HOOKS.register_module(force=True)
class FreezingHook(Hook):
    """Trains the first layer in the first epoch alone."""

    def before_train_epoch(self, runner: Runner) -> None:
        next(runner.model.parameters()).requires_grad_(runner.epoch == 0)


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
            # without the look at the labels that torch's own takes on a CPU alone
            patch.setattr(F, "one_hot", lambda labels, count: (labels[:, None] == torch.arange(count)).long())
            return record_step(step)

    monkeypatch.setattr(graph_loop, "WARM_UP", 1)
    monkeypatch.setattr(graph_loop, "capture_step", capture)
    return captures


MIXUP = dict(model__mix=dict(type="Mixup", alpha=0.4))
CUTMIX = dict(model__mix=dict(type="CutMix", alpha=1.0))
CLIPPED = dict(optim_wrapper__clip_grad=dict(max_norm=0.5))
FUSED = dict(optim_wrapper__optimizer__fused=True)
BF16 = dict(optim_wrapper__type="AutocastOptimWrapper", optim_wrapper__dtype="bfloat16")
FRSKD = dict(name="frskd", alpha=2.0, beta=100.0, temperature=4.0, width=1)


@pytest.mark.parametrize(
    ("method", "settings", "captures"),
    [
        (dict(name="baseline"), MIXUP, 2),
        (dict(name="baseline"), {**CUTMIX, **CLIPPED}, 2),
        (dict(name="label_smoothing"), {}, 2),
        (dict(name="baseline"), {**FUSED, "custom_hooks": [dict(type="StepSeedHook"), dict(type="FreezingHook")]}, 2),
        ({**FRSKD, "schedule": "linear"}, {**FUSED, **MIXUP}, 2),  # a factor of 0 leaves the terms out
        ({**FRSKD, "schedule": "gate"}, BF16, 2),
        ({**FRSKD, "name": "frskd_sla"}, FUSED, 1),
        (dict(name="byot"), FUSED, 1),
        (dict(name="sad", start_epoch=1), FUSED, 2),
        (dict(name="one", rampup_epochs=2), FUSED, 1),
        (dict(name="ddgsd"), {}, 2),
        (dict(name="cs_kd"), {}, 2),
        (dict(name="sla_sd"), FUSED, 1),
        (dict(name="kd"), FUSED, 1),
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
    assert_equal(ordinary.model.state_dict(), replayed.model.state_dict())
    assert ordinary.optim_wrapper.inner_count == replayed.optim_wrapper.inner_count == replayed.iter == 8
    one, other = (losses(tmp_path / name) for name in ("ordinary", "graph"))
    assert one == other and len(one) == 4


def losses(work_dir: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if "time" not in name} for line in scalars(work_dir)]


def test_the_step_itself_is_called_on_a_cpu_and_a_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    method = dict(name="one", rampup_epochs=2)
    whole = train(toy_config(method, ORDINARY, **MIXUP), tmp_path / "whole")
    train(toy_config(method, **MIXUP, train_cfg__max_epochs=1), tmp_path / "resumed")
    resumed = train(toy_config(method, **MIXUP), tmp_path / "resumed", resume=True)
    assert isinstance(resumed.train_loop, GraphTrainLoop)
    assert_equal(whole.model.state_dict(), resumed.model.state_dict())


def test_obstacles_are_named(tmp_path: Path) -> None:
    config = toy_config(
        dict(name="dlb"),
        train_cfg__graph="on",
        custom_hooks=[
            dict(type="MeddlingHook"),
            dict(type="EMAHook"),
            dict(type="DistillWarmupHook", begin=1, by_epoch=False),
        ],
        optim_wrapper__optimizer=dict(_delete_=True, type="Adam"),
        optim_wrapper__accumulative_counts=2,
        optim_wrapper__clip_grad=dict(max_norm=1.0, error_if_nonfinite=True),
        param_scheduler=dict(_delete_=True, type="LinearLR", by_epoch=False),
        train_dataloader__num_workers=1,
    )
    with pytest.raises(ValueError, match="--cuda-graph on: .* Leave that out, or give --cuda-graph auto") as raised:
        train(config, tmp_path)
    for reason in (
        "the hook MeddlingHook works at each iteration",
        "EMAHook waits for the device at each step",
        "DistillWarmupHook counts iterations",
        "the optimizer Adam is not `capturable`",
        "optim_wrapper.accumulative_counts=2",
        "optim_wrapper.clip_grad.error_if_nonfinite waits",
        "LinearLR changes 'lr' at each step",
        "train_dataloader has worker processes",
        "the method DLB keeps state on the host",
    ):
        assert reason in str(raised.value)


def test_auto_says_in_a_line_what_does_not_let_it_and_trains(recorded: list[int], tmp_path: Path) -> None:
    runner = train(toy_config(dict(name="dlb"), train_cfg=dict(type=GRAPH, graph="auto", max_epochs=1)), tmp_path)
    assert runner.iter == 3 and recorded == [0]
    (log,) = tmp_path.glob("*/*.log")
    assert "CUDA graph: off, for the method DLB keeps state on the host" in log.read_text()


@pytest.mark.parametrize("graph", ["on", "auto"])
def test_a_step_that_cannot_be_captured(graph: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(step: Any, stream: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graph_loop, "capture_step", fail)
    config = toy_config(FRSKD, train_cfg__graph=graph)
    if graph == "on":
        with pytest.raises(RuntimeError, match="cannot be captured as a CUDA graph: operation not.*graph off"):
            train(config, tmp_path / "graph")
    else:
        runner = train(config, tmp_path / "graph")
        assert_equal(
            runner.model.state_dict(), train(toy_config(FRSKD, ORDINARY), tmp_path / "ordinary").model.state_dict()
        )


def test_a_loss_that_is_not_finite_is_found(recorded: list[int], tmp_path: Path) -> None:
    config = toy_config(FRSKD, optim_wrapper__optimizer__lr=1e30)
    with pytest.raises(FloatingPointError, match="loss is not finite at iteration [23], epoch 1, learning rate 1e"):
        train(config, tmp_path)


def test_the_command_takes_the_loop_and_an_optimizer_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_config(FRSKD, ORDINARY)
    enable_cuda_graph(config, "auto")  # no CUDA here: nothing changes, and nothing is said
    assert config.train_cfg.type == ORDINARY and "fused" not in config.optim_wrapper.optimizer
    with pytest.raises(ValueError, match="--cuda-graph on: CUDA is not available here"):
        enable_cuda_graph(config, "on")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config.train_cfg = dict(by_epoch=True, max_epochs=2)
    enable_cuda_graph(config, "auto")
    assert config.train_cfg == dict(type=GRAPH, max_epochs=2, graph="auto") and config.optim_wrapper.optimizer.fused
    config.train_cfg = dict(by_epoch=False, max_iters=3)
    config.model.type = "EncoderDecoder"
    with pytest.raises(ValueError, match="is no TimmClassifier; train_cfg.type='IterBasedTrainLoop' does not count"):
        enable_cuda_graph(config, "on")


def test_deferred_hooks_log_what_mmengines_do(tmp_path: Path) -> None:
    config = toy_config(dict(name="baseline"), ORDINARY, default_hooks__logger__interval=3)
    train(config, tmp_path / "deferred")
    del config.default_hooks.runtime_info, config.default_hooks.timer
    train(config, tmp_path / "mmengine")
    one, other = (losses(tmp_path / name) for name in ("deferred", "mmengine"))
    assert one == other and len(one) == 2 and {"lr", "loss", "loss_ce", "train_top1"} <= one[0].keys()
    assert all(line["time"] > line["data_time"] > 0 for line in scalars(tmp_path / "deferred"))


def test_a_validation_between_two_steps_is_no_part_of_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now, hook, logged = [100.0], DeferredTimerHook(), {}
    monkeypatch.setattr("time.time", lambda: now[0])
    runner = SimpleNamespace(iter=0, max_iters=4, train_dataloader=range(9), hooks=[LoggerHook(interval=2)])
    runner.log_processor = SimpleNamespace(window_size=10, custom_cfg=[])
    runner.message_hub = SimpleNamespace(update_scalar=logged.__setitem__, update_info=logged.__setitem__)
    hook.before_train(runner)
    hook.before_train_epoch(runner)
    for runner.iter in range(4):
        now[0] += 1
        hook.before_train_iter(runner, runner.iter)
        now[0] += 2
        hook.after_train_iter(runner, runner.iter)
        if runner.iter in (1, 2):  # once where the log has all, and once where it has not
            hook.before_val_epoch(runner)
            now[0] += 1000
            hook.after_val_epoch(runner)
    assert logged == {"train/time": 3.0, "train/data_time": 1.0, "eta": 0.0}
    assert hook.time_sec_tot == 12.0
