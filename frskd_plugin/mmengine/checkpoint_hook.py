"""Checkpoints of a run: written atomically, so that there always is a whole one to go on from."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import uuid
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_reduce, broadcast_object_list, get_world_size, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import BaseLoop, EpochBasedTrainLoop
from torch import nn

from frskd_plugin.core.atomic_write import atomic_write, temporary_files
from frskd_plugin.mmengine.hooks import unwrap_model
from frskd_plugin.mmengine.resume import (
    BEST_FILES,
    LAST_CHECKPOINT,
    RUN_NAME,
    BrokenCheckpointError,
    checkpoint_files,
    find_resume_checkpoint,
    last_checkpoint,
    load_checkpoint,
    read_run,
    safe_loading,
)

BACKEND_NAME = "frskd_atomic"
PARTIAL_GRADIENTS = "partial_gradients"


class AtomicLocalBackend(LocalBackend):
    """mmengine's file backend for local paths whose writes are atomic (`backend_args=dict(backend='frskd_atomic')`)."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        atomic_write(filepath, obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = "utf-8") -> None:
        atomic_write(filepath, obj.encode(encoding))


register_backend(BACKEND_NAME, AtomicLocalBackend, force=True)


class AtomicCheckpointHook(CheckpointHook):
    """mmengine's `CheckpointHook`, safe against a killed process and a full disk.

    * Every checkpoint is written atomically, `last_checkpoint` after it; at least two are kept, and an old one is
      removed only then.
    * `resume=True` without `load_from` goes on from the newest whole checkpoint: a damaged one is reported. Every run
      has an id, in its checkpoints and in ``run.json``, which tells them from those of an earlier run in the folder.
    * mmengine writes the checkpoint of an epoch before it validates. A run that was killed in between validates first
      when it goes on, so that no score is missing and the best checkpoint is the best one. Its left-overs are removed.
    * Gradients that are accumulated over several steps are stored too. With several processes each goes on with their
      mean, which gives the same sum.

    The arguments are those of `CheckpointHook`; `max_keep_ckpts` is -1 (keep all) or at least 2. Checkpoints on remote
    storage (`out_dir` with a scheme, or `backend_args`) are written by their own backend.
    """

    def __init__(self, *args: Any, max_keep_ckpts: int = -1, **kwargs: Any) -> None:
        if max_keep_ckpts != -1 and max_keep_ckpts < 2:
            raise ValueError(
                f"AtomicCheckpointHook: max_keep_ckpts must be at least 2, so that a damaged newest checkpoint leaves "
                f"one to go on from, or -1 to keep all; got {max_keep_ckpts}. "
                f"Set default_hooks.checkpoint.max_keep_ckpts=2"
            )
        super().__init__(*args, max_keep_ckpts=max_keep_ckpts, **kwargs)
        self._run_id: str | None = None
        self._resumed_meta: dict[str, Any] | None = None
        if self.args:  # mmengine would notice at the first checkpoint only
            raise TypeError(f"AtomicCheckpointHook got an unexpected keyword argument {next(iter(self.args))!r}")

    def before_run(self, runner: Any) -> None:
        """Choose the checkpoint of an automatic resume, before the runner looks for one."""
        runner.load_checkpoint = safe_loading()(runner.load_checkpoint)  # whoever has built the runner
        if runner._resume and runner._load_from is None:
            found = find_resume_checkpoint(runner.work_dir)
            runner._load_from = None if found is None else str(found)
            runner._resume = found is not None

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        if not runner._resume:
            return
        self._resumed_meta = dict(checkpoint["meta"])
        parameters = dict(unwrap_model(runner.model).named_parameters())
        for name, gradient in checkpoint.get(PARTIAL_GRADIENTS, {}).items():
            if name not in parameters or parameters[name].shape != gradient.shape:
                raise BrokenCheckpointError(f"{runner._load_from} is damaged: its gradient of {name} fits no weight")
            parameters[name].grad = gradient.to(parameters[name])

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        if self._run_id is not None:
            checkpoint["meta"]["run_id"] = self._run_id
        # those that no optimizer step has used: mmengine sets them to None after it
        parameters = unwrap_model(runner.model).named_parameters()
        gradients = {name: parameter.grad.cpu() for name, parameter in parameters if parameter.grad is not None}
        if gradients and "optimizer" in checkpoint:
            checkpoint[PARTIAL_GRADIENTS] = gradients

    def before_train(self, runner: Any) -> None:
        """Begin a run or take one up again: its id, its best checkpoint, a validation that it was killed in."""
        is_local = "://" not in str(self.out_dir or runner.work_dir)
        if self.file_client_args is None and self.backend_args is None and is_local:
            self.backend_args = dict(backend=BACKEND_NAME)
        info = runner.message_hub.runtime_info
        if "keep_ckpt_ids" in info:  # it comes from a file, and names what is removed
            info["keep_ckpt_ids"] = [step for step in info["keep_ckpt_ids"] if isinstance(step, int)]
        super().before_train(runner)
        run = [read_run(runner.work_dir)]
        broadcast_object_list(run)  # the main process knows: on other machines the folder may not be there
        resumed_meta = self._resumed_meta
        # A run that began before runs had an id goes on without one.
        self._run_id = uuid.uuid4().hex if resumed_meta is None else resumed_meta.get("run_id")
        validated = run[0].get("validated", 0) if self._run_id == run[0].get("run_id") else 0
        self._write_run(runner, validated)
        if is_main_process():
            _remove_temporary_files(Path(runner.work_dir))
        if resumed_meta is None:
            return
        if any(parameter.grad is not None for parameter in runner.model.parameters()):  # mmengine warns of a loss
            runner.logger.info("The gradients accumulated so far were in the checkpoint: none is lost.")
        self._move_best(runner)
        step = _step(runner)
        file = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))
        self.last_ckpt = file if self.file_backend.isfile(file) else None
        if validated < step and _validation_is_due(runner):
            runner.logger.info("The validation at %d had not ended before the run was: it is done now.", step)
            runner.val_loop.run()
        if is_local and is_main_process():
            self._remove_left_over(step)

    def after_val(self, runner: Any) -> None:
        if isinstance(runner._train_loop, BaseLoop):  # not in a validation alone
            self._write_run(runner, _step(runner))

    def _write_run(self, runner: Any, validated: int) -> None:
        if is_main_process():
            run = {"run_id": self._run_id, "validated": validated}
            atomic_write(Path(runner.work_dir) / RUN_NAME, json.dumps(run).encode())

    def _move_best(self, runner: Any) -> None:
        """Look for the best checkpoints in this folder alone: a file may name any path, which would be removed."""
        if not self.save_best:
            return
        for key, path in self._best_paths().items():
            name = Path(path).name if isinstance(path, str) else ""
            moved = self.file_backend.join_path(self.out_dir, name) if name.startswith("best_") else None
            runner.message_hub.update_info(f"best_ckpt_{key}" if key else "best_ckpt", moved)
            if key:
                self.best_ckpt_path_dict[key] = moved
            else:
                self.best_ckpt_path = moved

    def _remove_left_over(self, step: int) -> None:
        """Remove files of this run that it would have removed itself, had it not been killed."""
        kept = {Path(path).name for path in self._best_paths().values() if path} if self.save_best else set()
        files: list[Path] = []
        if self.max_keep_ckpts > 0:
            kept |= {self.filename_tmpl.format(kept_step) for kept_step in self.keep_ckpt_ids}
            steps = checkpoint_files(Path(self.out_dir)).items()
            files = [path for path, n in steps if n < step and path.name == self.filename_tmpl.format(n)]
        for path in [*files, *(Path(self.out_dir).glob(BEST_FILES) if self.save_best else [])]:
            if path.name in kept:
                continue
            try:
                meta = load_checkpoint(path).get("meta") or {}
            except (OSError, BrokenCheckpointError):
                continue
            number = meta.get("epoch" if self.by_epoch else "iter", step + 1)
            if meta.get("run_id", "") == self._run_id and number <= step:
                path.unlink(missing_ok=True)

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict[str, Any]) -> None:
        outdated: list[int] = []
        if self.max_keep_ckpts > 0:
            # A step that is saved again (after a new best score) moves to the end.
            steps = [kept for kept in self.keep_ckpt_ids if kept != step] + [step]
            outdated = steps[: -self.max_keep_ckpts]
            self.keep_ckpt_ids = deque(steps, self.max_keep_ckpts)
            runner.message_hub.update_info("keep_ckpt_ids", list(self.keep_ckpt_ids))

        _share_gradients(runner.model)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        try:
            runner.save_checkpoint(
                self.out_dir,
                name,
                self.file_client_args,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
            )
            if is_main_process():
                atomic_write(Path(runner.work_dir) / LAST_CHECKPOINT, str(self.last_ckpt).encode())
        except OSError as error:
            raise _explained(error, name, runner.work_dir) from error
        self._remove(self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old)) for old in outdated)

    def _save_best_checkpoint(self, runner: Any, metrics: dict[str, Any]) -> None:
        """Save a new best checkpoint as mmengine does, but remove the previous one after it is whole, not before."""
        if not self.save_best:
            return
        # with numpy's numbers, checkpoints could not be read with `weights_only=True`
        metrics = {name: value.item() if isinstance(value, np.generic) else value for name, value in metrics.items()}
        outdated: list[str] = []
        backend = self.file_backend
        self.file_backend = copy.copy(backend)
        self.file_backend.remove = self.file_backend.rmtree = outdated.append
        try:
            super()._save_best_checkpoint(runner, metrics)
        except KeyError as error:
            raise ValueError(
                f"default_hooks.checkpoint.save_best: no score is called {error.args[0]!r}; expected one of "
                f"{', '.join(metrics)}"
            ) from error
        except OSError as error:
            raise _explained(error, "the best checkpoint", runner.work_dir) from error
        finally:
            self.file_backend = backend
        self._remove(set(outdated) - set(self._best_paths().values()))

    def _best_paths(self) -> dict[str, str | None]:
        """Return the best checkpoint of each score; of a single score without its name."""
        return {"": self.best_ckpt_path} if hasattr(self, "best_ckpt_path") else dict(self.best_ckpt_path_dict)

    def _remove(self, paths: Iterable[str]) -> None:
        for path in paths if is_main_process() else ():
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):  # checkpoints of deepspeed are folders
                self.file_backend.rmtree(path)


def _step(runner: Any) -> int:
    return runner.epoch if isinstance(runner.train_loop, EpochBasedTrainLoop) else runner.iter


def _validation_is_due(runner: Any) -> bool:
    loop, step = runner.train_loop, _step(runner)
    last = loop.max_epochs if isinstance(loop, EpochBasedTrainLoop) else loop.max_iters
    return runner.val_loop is not None and step >= loop.val_begin and (step % loop.val_interval == 0 or step == last)


def _share_gradients(model: nn.Module) -> None:
    """Give each process the mean of the gradients that all have accumulated so far."""
    if get_world_size() == 1:
        return
    parameters = [p for p in unwrap_model(model).parameters() if p.requires_grad]
    present = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=parameters[0].device)
    all_reduce(present)
    for parameter, count in zip(parameters, present.tolist(), strict=True):
        if count:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            all_reduce(gradient, "mean")
            parameter.grad = gradient


def _remove_temporary_files(work_dir: Path) -> None:
    """Remove what a killed run was writing; an empty folder in the place of `last_checkpoint` would stop the next."""
    for folder in [work_dir, *(path for path in work_dir.iterdir() if path.is_dir())]:
        for path in temporary_files(folder):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        (work_dir / LAST_CHECKPOINT).rmdir()


def _explained(error: OSError, name: str, work_dir: str) -> OSError:
    """Return the error with what to do about it."""
    if isinstance(error.__cause__, OSError):  # of a step that is saved again after a new best score
        return error
    last = last_checkpoint(Path(work_dir))
    go_on = f"the same command with --resume goes on from {last}"
    advice = go_on if last else "start the run again (no checkpoint had been written yet)"
    reason = os.strerror(error.errno) if error.errno else str(error)
    return OSError(
        error.errno,
        f"cannot write {name} to {work_dir}: {reason}. Earlier checkpoints are untouched. "
        f"Free space there or set another --work-dir; then {advice}",
    )
