"""Hooks of a training: progress of the method, weights of its terms, validation, results, layout, compilation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce_params, broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop
from torch import nn

from frskd_plugin.core.atomic_write import atomic_write
from frskd_plugin.core.compiled_parts import CompiledParts
from frskd_plugin.core.frskd_loss import FRSKDLoss
from frskd_plugin.core.schedule import TrunkGradient, distill_factor
from frskd_plugin.methods import Method


def unwrap_model(model: Any) -> Any:
    """Return the model itself, out of a DDP wrapper."""
    return model.module if is_model_wrapper(model) else model


class MethodProgressHook(Hook):
    """Call `set_progress` of methods, `FRSKDLoss` and `TrunkGradient` before each epoch.

    In a loop that counts iterations it is called before each of them. The progress follows from the runner's epoch or
    iteration alone, so it is right after a resume.
    """

    def before_train_epoch(self, runner: Any) -> None:
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            self._set(runner, runner.epoch, runner.max_epochs)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):  # in passes over the data
            steps = len(runner.train_dataloader)
            self._set(runner, runner.iter / steps, runner.max_iters / steps)

    @staticmethod
    def _set(runner: Any, epoch: float, max_epochs: float) -> None:
        for module in runner.model.modules():
            if isinstance(module, Method | FRSKDLoss | TrunkGradient):
                module.set_progress(epoch, max_epochs)
            if isinstance(module, FRSKDLoss) and module.follows_progress:
                runner.message_hub.update_scalar("train/distill_factor", module.factor)


class DistillWarmupHook(Hook):
    """Set the factor on alpha and beta: 0 before ``begin``, then ``exp(-5 (1 - t)^2)`` up to 1 at ``end``.

    The factor follows from the runner's epoch or iteration alone, so it is right after a resume.

    Args:
        begin: epochs (or iterations) without distillation; the self-teacher's own loss is trained from the start.
        end: epochs (or iterations) after which the factor is 1; None is the end of the training.
        by_epoch: count epochs, not iterations.

    Raises:
        ValueError: the ramp ends before it begins; when the training begins, the model has no `FRSKDLoss` or one with a
            schedule of its own, or the loop counts iterations only.
    """

    def __init__(self, begin: int, end: int | None = None, by_epoch: bool = True) -> None:
        distill_factor(0, begin, begin if end is None else end)  # checks both
        self.begin, self.end, self.by_epoch = begin, end, by_epoch

    def before_train(self, runner: Any) -> None:
        losses = _losses(runner)
        if not losses:
            raise ValueError(
                "DistillWarmupHook found no FRSKDLoss in the model. Give the model a `self_teacher` with "
                "`loss_distill=dict(type='FRSKDLoss', ...)` (a classifier: `method=dict(name='frskd', ...)`), or take "
                "the hook out of `custom_hooks`."
            )
        if any(loss.schedule != "constant" or loss.follows_progress for loss in losses):
            raise ValueError(
                "DistillWarmupHook sets the factor on alpha and beta, and so do `schedule` and `warmup` of the model's "
                "FRSKDLoss: take the hook out of `custom_hooks`, or those two out of `loss_distill` (`method`)."
            )
        if self.by_epoch and not isinstance(runner.train_loop, EpochBasedTrainLoop):
            raise ValueError(
                f"DistillWarmupHook counts epochs, and {type(runner.train_loop).__name__} counts iterations: set "
                "`by_epoch=False` and give `begin` and `end` in iterations."
            )
        distill_factor(0, self.begin, self._end(runner))

    def before_train_epoch(self, runner: Any) -> None:
        if self.by_epoch:
            self._set(runner, runner.epoch)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if not self.by_epoch:
            self._set(runner, runner.iter)

    def _end(self, runner: Any) -> int:
        if self.end is not None:
            return self.end
        return runner.max_epochs if self.by_epoch else runner.max_iters

    def _set(self, runner: Any, step: int) -> None:
        factor = distill_factor(step, self.begin, self._end(runner))
        for loss in _losses(runner):
            loss.factor = factor
        runner.message_hub.update_scalar("train/distill_factor", factor)


def _losses(runner: Any) -> list[FRSKDLoss]:
    return [module for module in runner.model.modules() if isinstance(module, FRSKDLoss)]


class SelfTeacherValidationHook(Hook):
    """Let the self-teacher predict beside the student at each validation, so that both accuracies are logged.

    It costs a second pass through the network. Without the hook, or with ``enabled=False``, the teacher never runs
    outside training. Models need the attribute ``predict_self_teacher``: `FRSKDEncoderDecoder`, `TimmClassifier`.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled

    def before_val_epoch(self, runner: Any) -> None:
        self._set(runner, self.enabled)

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        self._set(runner, False)

    @staticmethod
    def _set(runner: Any, value: bool) -> None:
        model = unwrap_model(runner.model)
        if hasattr(model, "predict_self_teacher"):
            model.predict_self_teacher = value


RESULT_NAME = "result.json"
Entry = dict[str, float]


def best_entry(history: list[Entry], metric: str) -> Entry:
    """Return the entry with the highest score; of several, the first."""
    return max(history, key=lambda entry: entry[metric])


class BestAndLastHook(Hook):
    """Write ``result.json`` into the work folder at each validation, and log last and best epoch after the training.

    The file is written atomically and holds ``config``, ``seed``, ``metric``, ``last``, ``best`` and ``history``: an
    entry ``{'epoch': .., 'top1': .., ...}`` for each validation, without a gap where a run was killed and went on.

    ``metric`` is the score that decides which epoch is best, the higher the better.
    """

    priority = "LOWEST"  # after the hooks that log the scores and keep the best checkpoint

    def __init__(self, metric: str = "top1") -> None:
        self.metric = metric
        self.history: list[Entry] = []

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        if not runner._resume:
            return
        # the main process knows: on other machines the folder may not be there
        shared = [read_history(Path(runner.work_dir) / RESULT_NAME)]
        broadcast_object_list(shared)
        self.history = [entry for entry in shared[0] if entry["epoch"] <= checkpoint["meta"]["epoch"]]

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        if runner._train_loop is None or isinstance(runner._train_loop, dict):  # validation alone: tools/test.py
            return
        metrics = {name: float(value) for name, value in (metrics or {}).items()}
        if self.metric not in metrics:
            raise ValueError(f"BestAndLastHook: metric must be one of {', '.join(metrics)}; got {self.metric!r}")
        self.history = [entry for entry in self.history if entry["epoch"] != runner.epoch]
        self.history.append({"epoch": runner.epoch, **metrics})
        if is_main_process():
            result = {
                "config": Path(runner.cfg.filename or runner.experiment_name).stem,
                "seed": runner.seed,
                "max_epochs": runner.max_epochs,
                "metric": self.metric,
                "last": self.history[-1],
                "best": best_entry(self.history, self.metric),
                "history": self.history,
            }
            atomic_write(Path(runner.work_dir) / RESULT_NAME, json.dumps(result, indent=1).encode())

    def after_train(self, runner: Any) -> None:
        if not self.history:
            return
        for name, entry in (("last", self.history[-1]), ("best", best_entry(self.history, self.metric))):
            scores = ", ".join(f"{key} {value:.2f}" for key, value in entry.items() if key != "epoch")
            runner.logger.info("%s epoch (%d): %s", name, entry["epoch"], scores)


def read_history(path: Path) -> list[Entry]:
    """Return the history in a ``result.json``; empty where there is none."""
    if not path.is_file():
        return []
    try:
        return [dict(entry, epoch=int(entry["epoch"])) for entry in json.loads(path.read_bytes())["history"]]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); remove it to go on without the scores in it") from error


class SyncStatisticsHook(Hook):
    """Average the buffers of floats, such as batch normalisation's statistics, after each epoch and before validation.

    mmengine's `SyncBuffersHook` takes integers too, and an average of PS-KD's table, bits of predictions, overflows.
    """

    _averaged = False

    def after_train_epoch(self, runner: Any) -> None:
        self._average(runner)
        self._averaged = True

    def before_val_epoch(self, runner: Any) -> None:
        if not self._averaged:  # in the middle of an epoch, in loops that count iterations
            self._average(runner)
        self._averaged = False

    @staticmethod
    def _average(runner: Any) -> None:
        if runner.distributed:
            all_reduce_params([buffer for buffer in runner.model.buffers() if buffer.is_floating_point()], op="mean")


class ChannelsLastHook(Hook):
    """Lay the weights out as [B, H, W, C] in memory, before a checkpoint is loaded into them.

    Convolutions hand the layout on to their outputs. Names, shapes and values stay; sums are taken in another order.
    """

    priority = "VERY_HIGH"

    def before_run(self, runner: Any) -> None:
        runner.model.to(memory_format=torch.channels_last)


DEFAULT_PARTS = ("backbone", "neck", "decode_head", "self_teacher.neck", "self_teacher.head")


class CompileHook(Hook):
    """Run networks of a segmentor through ``torch.compile`` while it trains (`CompiledParts`).

    mmengine's ``compile=True`` takes the whole model, whose losses break the graph at each step. Only the size of the
    first batch runs compiled; a smaller last batch, validation and test run as ever.

    Args:
        parts: names of modules in the model; None: those of backbone, neck, decode head and self-teacher that it has.
        any_size: run every size compiled, not only that of the first batch.
        options: of ``torch.compile``, such as ``mode='max-autotune'``.
    """

    def __init__(self, parts: Sequence[str] | None = None, any_size: bool = False, **options: Any) -> None:
        self.parts, self.any_size, self.options = parts, any_size, options
        self._compiled: CompiledParts | None = None

    def before_train(self, runner: Any) -> None:
        model = unwrap_model(runner.model)
        parts = default_parts(model) if self.parts is None else self.parts
        if not parts:
            raise ValueError(
                f"CompileHook found none of {', '.join(DEFAULT_PARTS)} in {type(model).__name__}: name what to compile "
                f"with `parts`, or take the hook out of `custom_hooks`."
            )
        self._compiled = CompiledParts(model, parts, self.any_size, **self.options)

    def after_train(self, runner: Any) -> None:
        if self._compiled is not None:
            self._compiled.restore()
            self._compiled = None


def default_parts(model: nn.Module) -> list[str]:
    """Return those of `DEFAULT_PARTS` that a model has."""
    names = {name for name, _ in model.named_modules(remove_duplicate=False)}
    return [name for name in DEFAULT_PARTS if name in names]
