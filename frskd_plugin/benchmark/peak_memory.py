"""Peak memory of a training step on a CPU: of a process that does nothing else."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import torch

from frskd_plugin.benchmark.training_step import StepSettings, TrainingStep

Steps = Callable[[str, StepSettings], tuple[TrainingStep, TrainingStep, int]]
PEAK_MEANING = "peak of the resident memory of a process that takes two steps, Python and PyTorch included"


def peak_memory(steps: Steps, name: str, settings: StepSettings) -> tuple[int, int]:
    """Bytes of the plain step and of the FRSKD step, each measured in a fresh process.

    Args:
        steps: `classification_steps` or `segmentation_steps`.
        name: the network.
        settings: how a step is run; on a CPU.

    Raises:
        ValueError: The device is not a CPU.
        OSError: A process was killed, as a rule because the machine has too little memory.
    """
    if torch.device(settings.device).type != "cpu":
        raise ValueError(
            f"--peak measures the memory of a process, which says nothing about {settings.device}: leave it out, the "
            "memory of a GPU is a peak anyway."
        )
    return _peak_of(steps, name, settings, 0), _peak_of(steps, name, settings, 1)


def _peak_of(steps: Steps, name: str, settings: StepSettings, which: int) -> int:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_measure, steps, name, settings, which, torch.get_num_threads()).result()
        except BrokenProcessPool as error:
            raise OSError(
                f"The process that measured the memory of {name} was killed; give it a smaller --batch or --size."
            ) from error


def _measure(steps: Steps, name: str, settings: StepSettings, which: int, threads: int) -> int:
    torch.set_num_threads(threads)
    plain, frskd, _ = steps(name, settings)
    step = (plain, frskd)[which]
    for _ in range(2):  # the second has momentum buffers beside everything else
        step()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
