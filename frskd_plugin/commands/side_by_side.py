"""Several trainings in one process, a step of each in turn, so that together they fill a GPU.

Each runs ``frskd train`` in a thread of its own, on a CUDA stream of its own, and one thread runs at a time: it hands
over after each step. What a process has once, such as the states of the random generators, belongs to the thread that
runs: it is exchanged at each turn. So every training computes what it computes alone, to the bit where the device does.
The GPU works on what all of them have launched.
"""

from __future__ import annotations

import random
import shlex
import sys
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner.checkpoint import CheckpointLoader
from mmengine.utils import ManagerMixin

from frskd_plugin.commands import Terminated, describe, train
from frskd_plugin.commands.runner import locked
from frskd_plugin.mmengine.resume import safe_loading

PAUSED = "paused: the time is up, the same command goes on from here"


def train_side_by_side(commands: Sequence[Sequence[str]], logs: Sequence[Path], deadline: float | None = None) -> int:
    """Train what several command lines of ``frskd train`` say; returns how many failed.

    Args:
        commands: their arguments.
        logs: a file for each, to which its output is added; of a single one it goes where this process writes.
        deadline: `time.time` at which they stop, each at the end of an epoch; None lets them end.
    """
    if len(commands) == 1:
        _train(commands[0], deadline, lambda: None)
        return 0
    if any("--compile" in command for command in commands):  # all of them compile the code of the same classes
        import torch._dynamo

        torch._dynamo.config.recompile_limit *= len(commands)
    with ExitStack() as stack:
        files = [stack.enter_context(open(log, "a", buffering=1)) for log in logs]
        turns = [Turn(partial(_train, command, deadline), file) for command, file in zip(commands, files, strict=True)]
        run_in_turn(turns)
    return sum(turn.error is not None for turn in turns)


def _train(command: Sequence[str], deadline: float | None, pause: Callable[[], None]) -> None:
    print("frskd train", shlex.join(command))
    config, args = train.read_command(command)
    limit = DeadlineHook(deadline)
    with safe_loading(), locked(config.work_dir):
        train.train(config, args, hooks=[TurnHook(pause), limit])
    if limit.stopped:
        print(PAUSED)


class Turn:
    """A function in a thread of its own, which runs only while `advance` waits for it.

    Args:
        work: is given a function to call where another may go on.
        output: file in place of stdout and stderr.
    """

    def __init__(self, work: Callable[[Callable[[], None]], None], output: TextIO) -> None:
        self.ended = False
        self.error: BaseException | None = None
        self._stop: BaseException | None = None
        own = {"managed": {}, "output": (output, output), "cuda": [g.clone_state() for g in _cuda_generators()]}
        self._state = _process_state() | own
        self._may_go, self._is_back = threading.Semaphore(0), threading.Semaphore(0)
        # a daemon: a step that hangs must not outlive a process that is told to stop twice
        threading.Thread(target=self._run, args=(work,), daemon=True).start()

    def advance(self) -> None:
        """Let it go on until its next pause, or its end."""
        outer = _process_state()
        _set_process_state(self._state)
        try:
            self._may_go.release()
            try:
                self._is_back.acquire()
            except BaseException:  # Ctrl-C, SIGTERM: a step is not left half done
                self._is_back.acquire()
                raise
        finally:
            self._state = _process_state()
            _set_process_state(outer)

    def stop(self, reason: BaseException) -> None:
        """Raise an exception of this type out of its pause, and wait for its end."""
        self._stop = reason
        while not self.ended:
            self.advance()

    def _run(self, work: Callable[[Callable[[], None]], None]) -> None:
        try:
            self._wait()
            with torch.cuda.stream(torch.cuda.Stream()) if torch.cuda.is_available() else nullcontext():
                work(self._pause)
        except BaseException as error:
            self.error = error
            if not isinstance(error, (KeyboardInterrupt, Terminated)):
                traceback.print_exc()
            print(f"stopped: {describe(error) if isinstance(error, Exception) else error}")
        self.ended = True
        self._is_back.release()

    def _pause(self) -> None:
        self._is_back.release()
        self._wait()

    def _wait(self) -> None:
        self._may_go.acquire()
        if self._stop is not None:
            raise type(self._stop)


def run_in_turn(turns: Sequence[Turn]) -> None:
    """Advance all until their end; one that fails leaves the others alone, a signal stops all."""
    try:
        while waiting := [turn for turn in turns if not turn.ended]:
            for turn in waiting:
                turn.advance()
    except BaseException as signal:
        for turn in turns:
            turn.stop(signal)
        raise


def _process_state() -> dict[str, Any]:
    """Read what a process has once and a training changes."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        # not their numbers: a CUDA graph reads seed and offset where the state that it was captured with keeps them
        "cuda": [generator.graphsafe_get_state() for generator in _cuda_generators()],
        # loggers, message hubs, scopes, visualizers: the one that was made last is the current one
        "managed": {kind: kind._instance_dict for kind in _kinds(ManagerMixin)},
        "loaders": CheckpointLoader._schemes,  # `safe_loading` replaces them while it trains
        "output": (sys.stdout, sys.stderr),
    }


def _set_process_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    for generator, generator_state in zip(_cuda_generators(), state["cuda"], strict=True):
        generator.graphsafe_set_state(generator_state)
    for kind in _kinds(ManagerMixin):
        kind._instance_dict = state["managed"].get(kind, OrderedDict())
    CheckpointLoader._schemes = state["loaders"]
    sys.stdout, sys.stderr = state["output"]


def _cuda_generators() -> Sequence[torch.Generator]:
    if not torch.cuda.is_available():
        return ()
    torch.cuda.init()
    return torch.cuda.default_generators


def _kinds(kind: Any) -> Iterator[Any]:
    for child in kind.__subclasses__():
        yield child
        yield from _kinds(child)


class TurnHook(Hook):
    """Let another training take its step, before the losses of this one are waited for."""

    priority = "VERY_HIGH"

    def __init__(self, pause: Callable[[], None]) -> None:
        self.pause = pause

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.pause()

    after_val_iter = after_train_iter


class DeadlineHook(Hook):
    """End a training after the checkpoint of an epoch, where the next one would come too late (`time.time`)."""

    priority = "LOWEST"  # after the hook that saves

    def __init__(self, deadline: float | None) -> None:
        self.deadline, self.stopped = deadline, False
        self._last = time.time()

    def after_train_epoch(self, runner: Any) -> None:
        """Look at the clock, where this epoch was saved."""
        now, epoch = time.time(), runner.epoch + 1
        is_saved = (Path(runner.work_dir) / f"epoch_{epoch}.pth").is_file()
        if self.deadline is None or epoch == runner.max_epochs or not is_saved:
            return
        if now + (now - self._last) > self.deadline:
            self.stopped = runner.train_loop.stop_training = True
        self._last = now
