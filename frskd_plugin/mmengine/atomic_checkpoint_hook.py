"""A `CheckpointHook` after which there always is a whole checkpoint to go on from."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook

from frskd_plugin.core.atomic_write import atomic_write
from frskd_plugin.mmengine.atomic_write import BACKEND_NAME
from frskd_plugin.mmengine.resume import LAST_CHECKPOINT, allow_checkpoint_globals, find_resume_checkpoint


class AtomicCheckpointHook(CheckpointHook):
    """mmengine's `CheckpointHook`, safe against a killed process and a full disk.

    * Every checkpoint and `last_checkpoint` is written atomically, and `last_checkpoint` only after the checkpoint.
    * Old checkpoints are removed only after the new one is whole, and at least two are kept.
    * `resume=True` without `load_from` goes on from the newest whole checkpoint: a damaged one is reported.

    The arguments are those of `CheckpointHook`. Checkpoints on remote storage (`out_dir` with a scheme, or
    `backend_args`) are written by their own backend.

    Raises:
        ValueError: `max_keep_ckpts` is neither -1 (keep all) nor at least 2.
        TypeError: an argument is none of `CheckpointHook`.
    """

    def __init__(self, *args: Any, max_keep_ckpts: int = -1, **kwargs: Any) -> None:
        if max_keep_ckpts != -1 and max_keep_ckpts < 2:
            raise ValueError(
                f"AtomicCheckpointHook: max_keep_ckpts must be at least 2, so that a damaged newest checkpoint leaves "
                f"one to go on from, or -1 to keep all; got {max_keep_ckpts}. "
                f"Set default_hooks.checkpoint.max_keep_ckpts=2"
            )
        super().__init__(*args, max_keep_ckpts=max_keep_ckpts, **kwargs)
        if self.args:  # mmengine would notice at the first checkpoint only
            raise TypeError(f"AtomicCheckpointHook got an unexpected keyword argument {next(iter(self.args))!r}")

    def before_run(self, runner: Any) -> None:
        """Choose the checkpoint of an automatic resume, before the runner looks for one."""
        allow_checkpoint_globals()
        if runner._resume and runner._load_from is None:
            found = find_resume_checkpoint(runner.work_dir)
            runner._load_from = None if found is None else str(found)
            runner._resume = found is not None

    def before_train(self, runner: Any) -> None:
        is_local = "://" not in str(self.out_dir or runner.work_dir)
        if self.file_client_args is None and self.backend_args is None and is_local:
            self.backend_args = dict(backend=BACKEND_NAME)
        super().before_train(runner)

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict[str, Any]) -> None:
        kept = list(self.keep_ckpt_ids) if self.max_keep_ckpts > 0 else []
        outdated: Sequence[int] = ()
        if self.max_keep_ckpts > 0:
            # A step that is saved again (after a new best score) moves to the end.
            steps = [kept_step for kept_step in kept if kept_step != step] + [step]
            outdated, steps = steps[: -self.max_keep_ckpts], steps[-self.max_keep_ckpts :]
            self.keep_ckpt_ids = deque(steps, self.max_keep_ckpts)
            runner.message_hub.update_info("keep_ckpt_ids", steps)

        earlier, name = self.last_ckpt, self.filename_tmpl.format(step)
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
            self.last_ckpt = earlier
            if self.max_keep_ckpts > 0:
                self.keep_ckpt_ids = deque(kept, self.max_keep_ckpts)
            raise _explained(error, name, runner.work_dir) from error
        if is_main_process():
            for old_step in outdated:
                self._remove(self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old_step)))

    def _save_best_checkpoint(self, runner: Any, metrics: dict[str, Any]) -> None:
        """As mmengine's, but the previous best file goes only when the new one is whole.

        mmengine removes the file it remembers before it writes; so it is made to forget it for that long. Scores are
        stored as Python numbers: with numpy's, checkpoints could not be read with `weights_only=True`.
        """
        if not self.save_best:
            return
        metrics = {name: value.item() if isinstance(value, np.generic) else value for name, value in metrics.items()}
        single = hasattr(self, "best_ckpt_path")
        previous: dict[str, str | None] = {"": self.best_ckpt_path} if single else dict(self.best_ckpt_path_dict)
        self._remember_best(dict.fromkeys(previous))
        try:
            super()._save_best_checkpoint(runner, metrics)
        except OSError as error:
            self._remember_best(previous)
            raise _explained(error, "the best checkpoint", runner.work_dir) from error
        current = {"": self.best_ckpt_path} if single else dict(self.best_ckpt_path_dict)
        self._remember_best({key: current.get(key) or path for key, path in previous.items()})
        if is_main_process():
            for key, path in previous.items():
                if path and current.get(key) and path != current[key]:
                    self._remove(path)

    def _remember_best(self, paths: dict[str, str | None]) -> None:
        if hasattr(self, "best_ckpt_path"):
            self.best_ckpt_path = paths[""]
        else:
            self.best_ckpt_path_dict.update(paths)

    def _remove(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):  # checkpoints of deepspeed are folders
            self.file_backend.rmtree(path)


def _explained(error: OSError, name: str, work_dir: str) -> OSError:
    """`error` with what to do about it; an error that was explained already is given back as it is."""
    if getattr(error, "explained", False):
        return error
    try:
        last = (Path(work_dir) / LAST_CHECKPOINT).read_text().strip()
        advice = f"then the same command with --resume goes on from {last}"
    except FileNotFoundError:
        advice = "then start the run again (no checkpoint had been written yet)"
    reason = os.strerror(error.errno) if error.errno else str(error)
    explained = OSError(
        error.errno,
        f"cannot write {name} to {work_dir}: {reason}. Earlier checkpoints are untouched. "
        f"Free space there or set another --work-dir; {advice}",
    )
    explained.explained = True  # type: ignore[attr-defined]
    return explained
