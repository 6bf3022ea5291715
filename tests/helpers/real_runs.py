"""Runs of the real Runner and of the command lines in tools/, in a test's own process or in another.

It registers its hooks for the configs of the tiny networks, and needs neither mmcv nor mmseg.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor
from yapf.yapflib import yapf_api

from frskd_plugin.commands import run
from frskd_plugin.commands import train as train_tool

REPOSITORY = Path(__file__).resolve().parents[2]
yapf_api.FormatCode = lambda text, **settings: (text, True)  # in other processes too; why says tests/conftest.py


@HOOKS.register_module(force=True)
class EndHook(Hook):
    """Ends the training in the middle of an epoch: the process as `kill -9` does, or the run with KeyboardInterrupt."""

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if os.environ.get("TINY_KILL_AT_ITER") == str(runner.iter + 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ.get("TINY_STOP_AT_ITER") == str(runner.iter + 1):
            raise KeyboardInterrupt


@HOOKS.register_module(force=True)
class DumpRankHook(Hook):
    """Writes the weights and buffers that each rank ends with."""

    priority = "LOWEST"

    def after_train(self, runner: Any) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        torch.save(model.state_dict(), Path(runner.work_dir) / f"rank_{runner.rank}.pth")


def write_config(path: Path, config: Config) -> Path:
    config.dump(path)
    return path


def train(config: Config, work_dir: Path, **settings: Any) -> Runner:
    """Train in this process; `settings` override the config (`train_cfg.max_epochs`, ... with dots as `__`)."""
    config = Config(config.to_dict())
    config.merge_from_dict({name.replace("__", "."): value for name, value in settings.items()})
    config.work_dir = str(work_dir)
    config.launcher = "none"
    # mmengine shares logger, message hub and visualizer between runs of one name.
    config.experiment_name = config.visualizer.name = f"tiny_{uuid.uuid4().hex}"
    runner = Runner.from_cfg(config)
    runner.train()
    return runner


def training_config(file: str | Path, *options: object) -> Config:
    """The config that tools/train.py makes of a file and its options."""
    return train_tool.read_command([str(file), *map(str, options)])[0]


def command(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command line in this process, which is quicker than `run_tool`."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run(name, [str(argument) for argument in arguments])
    return subprocess.CompletedProcess([name, *arguments], status, out.getvalue(), err.getvalue())


def run_tool(*command: object, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run a command line in another process, with one thread and this repository, and return stdout and stderr."""
    paths = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, **extra}
    places = dict(cwd=REPOSITORY, env=env, start_new_session=True, timeout=300)
    return subprocess.run([*map(str, command)], capture_output=True, text=True, **places)


def final_weights(work_dir: Path, epoch: int) -> dict[str, Tensor]:
    from frskd_plugin.mmengine.resume import load_checkpoint

    return load_checkpoint(work_dir / f"epoch_{epoch}.pth")["state_dict"]


def scalars(work_dir: Path) -> list[dict[str, Any]]:
    """The lines of the log of a run's only start."""
    (log,) = work_dir.glob("*/vis_data/scalars.json")
    return [json.loads(line) for line in log.read_text().splitlines()]


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []
