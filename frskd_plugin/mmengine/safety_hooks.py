"""Hooks that stop a run before a number of it is wrong: a loss that is not finite, weights that do not fit."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel
from torch import Tensor, nn

from frskd_plugin.mmengine.deferred_log import fetch, is_logged
from frskd_plugin.mmengine.hooks import unwrap_model

AUXILIARY = ("self_teacher.", "network.method.", "auxiliary_head.")  # parts that only training uses


class FiniteLossHook(Hook):
    """Stop a training (FloatingPointError) whose loss is NaN or infinite, before a checkpoint holds what came of it.

    The losses of each step are looked at on the CPU at once, on other devices (not to wait for them) when they are
    logged, at the end of an epoch and before a checkpoint is written. Weights are looked at before they are written: a
    gradient can be infinite where the loss is not.

    Args:
        stop: end the training; False warns and goes on.
        interval: steps between two looks, on other devices than the CPU; None looks when losses are logged.
    """

    priority = "HIGH"  # after the hook that sets the learning rate, before those that log and save

    def __init__(self, stop: bool = True, interval: int | None = None) -> None:
        if interval is not None and interval < 1:
            raise ValueError(f"FiniteLossHook: interval must be at least 1, got {interval}")
        self.stop, self.interval = stop, interval
        self._steps: list[tuple[int, float, dict[str, Tensor]]] = []

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        values = {name: value.detach() for name, value in (outputs or {}).items() if isinstance(value, Tensor)}
        losses = {name: value for name, value in values.items() if "loss" in name and value.numel() == 1}
        if not losses:
            return
        rate = next(iter(runner.optim_wrapper.get_lr().values()))[0]
        self._steps.append((runner.iter, rate, losses))
        on_cpu = next(iter(losses.values())).device.type == "cpu"
        if on_cpu or (is_logged(runner, batch_idx) if self.interval is None else len(self._steps) >= self.interval):
            self._check(runner)

    def after_train_epoch(self, runner: Any) -> None:
        self._check(runner)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        self._check(runner)
        weights = checkpoint["state_dict"]
        for name, _ in unwrap_model(runner.model).named_parameters():
            if name in weights and not torch.isfinite(weights[name]).all():
                self._report(runner, f"weights are not finite after iteration {runner.iter}: {name}")
                return

    def _check(self, runner: Any) -> None:
        steps, self._steps = self._steps, []
        for (iteration, rate, _), values in zip(steps, fetch([losses for *_, losses in steps]), strict=True):
            if all(map(math.isfinite, values.values())):
                continue
            terms = {name: value for name, value in values.items() if name != "loss"} or values
            self._report(
                runner,
                f"loss is not finite at iteration {iteration + 1}, epoch {runner.epoch + 1}, learning rate {rate:.4g}: "
                f"{', '.join(f'{name} {value:.4g}' for name, value in terms.items())}",
            )
            return

    def _report(self, runner: Any, text: str) -> None:
        if not self.stop:
            runner.logger.warning(text)
            return
        last = runner.message_hub.runtime_info.get("last_ckpt")
        kept = f"the last good checkpoint is {last}" if last else "no checkpoint was written"
        raise FloatingPointError(
            f"{text}. The training stops; {kept}. "
            f"Lower the learning rate or the weight of that term, clip the gradients, or take bf16 in place of fp16; "
            f"--allow-nan (FiniteLossHook, stop=False) goes on all the same"
        )


class WeightsFitHook(Hook):
    """Refuse a checkpoint whose weights do not fit the model, where mmengine warns and goes on with random ones.

    A run that goes on needs all of its weights. A test (``test``) needs all but those of parts that only training uses
    (`AUXILIARY`), or whatever fits (``partial``). A training that starts from `load_from` may have another head, as in
    fine-tuning: the log says what was left out, and a checkpoint is refused if none of its weights fit the backbone.
    """

    priority = "LOW"  # after the hook that chooses averaged weights, before the one that resumes the run

    def __init__(self, test: bool = False, partial: bool = False) -> None:
        self.test, self.partial = test, partial

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        model = unwrap_model(runner.model)
        model = model.module if isinstance(model, BaseTTAModel) else model
        found = misfits(model, checkpoint.get("state_dict", checkpoint))
        if self.test:
            found = {
                kind: {k: text for k, text in keys.items() if not k.startswith(AUXILIARY)}
                for kind, keys in found.items()
            }
        if not any(found.values()):
            if runner._resume and (reason := _other_optimizer(runner, checkpoint)):
                raise ValueError(
                    f"{runner._load_from} does not fit the optimizer of this config: {reason}. Give the optimizer and "
                    f"paramwise_cfg that it was trained with, or start a training from its weights alone: leave "
                    f"--resume out and give --cfg-options load_from={runner._load_from}"
                )
            return
        what = f"{runner._load_from} does not fit the model of this config: {_listed(found)}"
        if runner._resume:
            raise ValueError(
                f"{what}. A run goes on with all of its weights: give its own config. To start a training from those "
                f"that fit, leave --resume out and give --cfg-options load_from={runner._load_from}"
            )
        if self.test and not self.partial:
            raise ValueError(
                f"{what}. Give the config that it was trained with, or --partial-load to test with random values in "
                f"place of what does not fit"
            )
        names = model.state_dict().keys()
        backbone = {name for name in names if name.startswith(("backbone.", "network.student."))} or set(names)
        if not backbone - found["missing"].keys() - found["shape"].keys():
            raise ValueError(f"{what}. Nothing of it fits the backbone; give a checkpoint of the same network")
        runner.logger.warning("Left out: %s", what)


def _other_optimizer(runner: Any, checkpoint: dict[str, Any]) -> str:
    """Say in what the optimizer of a checkpoint differs from the runner's, which torch would stumble over later."""
    optimizer = getattr(runner.optim_wrapper, "optimizer", None)  # of several there is none
    saved = (checkpoint.get("optimizer") or {}).get("param_groups")
    if optimizer is None or not saved:
        return ""
    numbers = {name for name, value in optimizer.defaults.items() if not isinstance(value, (bool, type(None)))}
    if missing := sorted(numbers - saved[0].keys()):
        return f"{type(optimizer).__name__} needs {', '.join(missing)}, which are not in it"
    before, now = ([len(group["params"]) for group in groups] for groups in (saved, optimizer.param_groups))
    if before != now:
        return f"it has {sum(before)} parameters in {len(before)} groups, and the config {sum(now)} in {len(now)}"
    return ""


def guard_training(runner: Any, allow_nan: bool = False) -> None:
    """Add both hooks to a runner that is to train; ``allow_nan`` goes on with a loss that is not finite."""
    runner.register_hook(WeightsFitHook())
    if not any(isinstance(hook, FiniteLossHook) for hook in runner.hooks):
        runner.register_hook(FiniteLossHook())
    for hook in runner.hooks:
        if isinstance(hook, FiniteLossHook) and allow_nan:
            hook.stop = False


def misfits(model: nn.Module, state_dict: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Load weights, and return the keys that do not fit: ``missing``, ``unexpected`` and of another ``shape``.

    A key's value is its text for a message. Counters of batches (``num_batches_tracked``) may be missing.

    >>> misfits(nn.Linear(2, 1), {"weight": torch.zeros(1, 3), "scale": torch.ones(1)})
    {'missing': {'bias': 'bias'}, 'unexpected': {'scale': 'scale'}, 'shape': {'weight': 'weight [1, 3] for [1, 2]'}}
    """
    found: dict[str, dict[str, str]] = {"missing": {}, "unexpected": {}, "shape": {}}
    try:
        model.load_state_dict({re.sub(r"^module\.", "", key): value for key, value in state_dict.items()})
    except RuntimeError as error:
        text = str(error)  # torch has the names in its text alone, for modules may rename keys while they load
        for kind in ("missing", "unexpected"):
            keys = re.findall(r'"([^"]+)"', "".join(re.findall(rf"{kind.capitalize()} key\(s\).*", text)))
            found[kind] = {key: key for key in keys if "num_batches_tracked" not in key}
        for key, given, own in re.findall(r"size mismatch for (\S+): .*?Size\((.*?)\).*Size\((.*?)\)", text):
            found["shape"][key] = f"{key} {given} for {own}"
        if not any(found.values()) and "num_batches_tracked" not in text:  # something that is no tensor
            raise ValueError(f"the weights cannot be loaded: {error}") from error
    return found


def _listed(found: dict[str, dict[str, str]]) -> str:
    parts = []
    for kind, keys in found.items():
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        parts += [f"{kind} {', '.join(list(keys.values())[:3])}{more}"] if keys else []
    return "; ".join(parts)
