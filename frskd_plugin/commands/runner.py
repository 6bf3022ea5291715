"""The runner of a config, which opens its data before it trains, and its work folder, which one training holds."""

from __future__ import annotations

import importlib
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn

from frskd_plugin.commands import text_of
from frskd_plugin.commands.console import output_held, quiet, write_held
from frskd_plugin.mmengine.resume import newest_checkpoint

LOCK_NAME = ".lock"


class _QuietRunner(Runner):
    """Runner whose console shows what concerns the user; its log file has everything."""

    def build_logger(self, *args: Any, **kwargs: Any) -> Any:
        logger = super().build_logger(*args, **kwargs)
        quiet(logger)
        return logger

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        with output_held():  # mmengine prints every key that does not fit, of which `WeightsFitHook` says enough
            try:
                checkpoint = super().load_checkpoint(*args, **kwargs)
            except RuntimeError as error:  # EMAHook's, which loads weights before `WeightsFitHook` compares them
                if "loading state_dict" not in str(error):
                    raise
                raise ValueError(f"{self._load_from} does not fit the model of this config: {error}") from error
        write_held(self.logger)
        return checkpoint


def build_runner(config: Config) -> Runner:
    """Build the runner of a config, whose ``runner_type`` may name one of the user's own."""
    if config.get("default_scope") in ("mmseg", "mmdet"):
        with output_held():
            importlib.import_module(f"{config.default_scope}.utils").register_all_modules(init_default_scope=False)
    return RUNNERS.build(config) if "runner_type" in config else _QuietRunner.from_cfg(config)


def open_data(runner: Runner, *loops: str) -> None:
    """Open the data sets of a runner's loops ('train', 'val', 'test'): what is wrong with them shows at once."""
    for loop in loops:
        try:
            built = getattr(runner, f"{loop}_loop")  # the property builds it
        except AssertionError as error:  # mmseg's, where a list of images is not there
            raise ValueError(
                f"{loop}_dataloader: {text_of(error)}; check its data_root (--data-root sets it) and ann_file, which "
                f"start from {Path.cwd()} where they are relative"
            ) from error
        dataset = getattr(getattr(built, "dataloader", None), "dataset", None)
        if dataset is not None:
            check_classes(f"{loop}_dataloader", dataset, getattr(runner.model, "module", runner.model))


def check_classes(name: str, dataset: Any, model: nn.Module) -> None:
    """Compare the labels of a data set with the classes of a model, where both tell them.

    Args:
        name: of the data set in the config, for messages.
        dataset: with ``targets`` (of our classification data sets) or ``metainfo['classes']``, also inside of others.
        model: a classifier, segmentor or detector.

    Raises:
        ValueError: the data set has labels that the model has no class for.
    """
    setting, num_classes = _classes_of(model)
    if num_classes is None:
        return
    found = len((getattr(dataset, "metainfo", None) or {}).get("classes") or ())
    while not hasattr(dataset, "targets") and hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    if len(getattr(dataset, "targets", ())):
        found = int(torch.as_tensor(dataset.targets).max()) + 1
    if found > num_classes:
        raise ValueError(
            f"{name}: the data set has labels 0..{found - 1}, but {setting} is {num_classes}: set it to the number of "
            "the data set's classes, or give the data that the model is for"
        )


def _classes_of(model: nn.Module) -> tuple[str, int | None]:
    """Return the setting of the number of classes, as a config names it, and its value; None if the model is silent."""
    if hasattr(model, "network"):
        return "model.student.num_classes", getattr(model.network.student, "num_classes", None)
    for part in ("decode_head", "bbox_head"):
        if (head := getattr(model, part, None)) is not None:
            head = head[-1] if isinstance(head, nn.ModuleList) else head
            return f"model.{part}.num_classes", getattr(head, "num_classes", None)
    return "", None


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Hold a folder for this process. The system lets go of it when the process ends, in whatever way.

    Raises:
        ValueError: another process holds it; the error says which.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # no link is followed: what it names would be written over
    descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    try:
        try:
            _lock(descriptor)
        except (BlockingIOError, PermissionError) as error:
            os.lseek(descriptor, 0, os.SEEK_SET)
            owner = os.read(descriptor, 200).decode(errors="replace").strip()
            raise ValueError(
                f"{folder} is in use by another training ({owner or 'process unknown'}): wait for its end, or give "
                f"another --work-dir"
            ) from error
        except OSError as error:
            print_log(
                f"{folder} cannot be locked ({error}): start no second training in it.", "current", logging.WARNING
            )
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # behind the text, which others are to read
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        # Not flock: a data-loading worker would inherit it and hold it for seconds after the training was killed.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_main() -> bool:
    """Tell if this is the only process of a run, or the first; also before they have found each other."""
    return os.environ.get("RANK", "0") == "0"


def what_is_lost(work_dir: str | Path, runner: Runner | None = None) -> str:
    """Say which checkpoint ``--resume`` would go on from, and how many iterations are lost."""
    done = runner.iter if runner is not None else 0
    found, _ = newest_checkpoint(work_dir)
    meta = found[1] if found else {}
    count = max(0, done - meta.get("iter", done)) if found else done
    lost = f"{count} iteration{' is' if count == 1 else 's are'} lost" if count else "nothing is lost"
    if found is None:
        return f"{work_dir} holds no checkpoint yet; {lost}"
    return f"--resume goes on from {found[0]} (epoch {meta.get('epoch')}, iteration {meta.get('iter')}); {lost}"
