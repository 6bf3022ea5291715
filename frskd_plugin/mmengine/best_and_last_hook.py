"""Keeps the score of every epoch in one file, and says at the end which the last and the best one were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook

from frskd_plugin.core.atomic_write import atomic_write

RESULT_NAME = "result.json"
Entry = dict[str, float]


def best_entry(history: list[Entry], metric: str) -> Entry:
    """The entry with the highest score; of several, the first.

    >>> best_entry([{"epoch": 1, "top1": 60.0}, {"epoch": 2, "top1": 70.0}, {"epoch": 3, "top1": 70.0}], "top1")
    {'epoch': 2, 'top1': 70.0}
    """
    return max(history, key=lambda entry: entry[metric])


class BestAndLastHook(Hook):
    """Writes ``result.json`` into the work folder at each validation, and logs last and best epoch after the training.

    The file is written atomically and holds ``config``, ``seed``, ``metric``, ``last``, ``best`` and ``history``: an
    entry ``{'epoch': .., 'top1': .., ...}`` for each validation.

    A run that was killed before a validation had ended makes it up when it goes on (`AtomicCheckpointHook`), so that
    the history has no gap.

    Args:
        metric: the score that decides which epoch is best, the higher the better.
    """

    # After the hooks that log the scores and keep the best checkpoint.
    priority = "LOWEST"

    def __init__(self, metric: str = "top1") -> None:
        self.metric = metric
        self.history: list[Entry] = []

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Take up the history of a run that goes on; a new run starts with an empty one."""
        if not runner._resume:
            return
        # the main process knows: on other machines the folder may not be there
        shared = [read_history(Path(runner.work_dir) / RESULT_NAME)]
        broadcast_object_list(shared)
        self.history = [entry for entry in shared[0] if entry["epoch"] <= checkpoint["meta"]["epoch"]]

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Note the scores of a validation in the course of a training.

        Raises:
            ValueError: the metric is not among them.
        """
        if runner._train_loop is None or isinstance(runner._train_loop, dict):  # validation alone: tools/test.py
            return
        metrics = {name: float(value) for name, value in (metrics or {}).items()}
        if self.metric not in metrics:
            raise ValueError(f"BestAndLastHook: metric must be one of {', '.join(metrics)}; got {self.metric!r}")
        self.history = [entry for entry in self.history if entry["epoch"] != runner.epoch]
        self.history.append({"epoch": runner.epoch, **metrics})
        if is_main_process():
            atomic_write(Path(runner.work_dir) / RESULT_NAME, json.dumps(self._result(runner), indent=1).encode())

    def after_train(self, runner: Any) -> None:
        """Log both epochs."""
        if not self.history:
            return
        for name, entry in (("last", self.history[-1]), ("best", best_entry(self.history, self.metric))):
            scores = ", ".join(f"{key} {value:.2f}" for key, value in entry.items() if key != "epoch")
            runner.logger.info("%s epoch (%d): %s", name, entry["epoch"], scores)

    def _result(self, runner: Any) -> dict[str, Any]:
        return {
            "config": Path(runner.cfg.filename or runner.experiment_name).stem,
            "seed": runner.seed,
            "max_epochs": runner.max_epochs,
            "metric": self.metric,
            "last": self.history[-1],
            "best": best_entry(self.history, self.metric),
            "history": self.history,
        }


def read_history(path: Path) -> list[Entry]:
    """The history in a ``result.json``; empty where there is none.

    Raises:
        ValueError: the file is damaged.
    """
    if not path.is_file():
        return []
    try:
        return [dict(entry, epoch=int(entry["epoch"])) for entry in json.loads(path.read_bytes())["history"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); remove it to go on without the scores in it") from error
