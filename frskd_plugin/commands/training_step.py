"""Training steps, plain and with FRSKD, of classifiers and of the paper's segmentors: time, MACs and memory."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.benchmark.utils.timer import timer  # a clock that waits for the GPU

import frskd_plugin.timm  # registers the CIFAR networks
from frskd_plugin.check import AMP_DTYPES, segmentation_batch
from frskd_plugin.core.compiled_parts import CompiledParts
from frskd_plugin.core.dry_run import ForwardCost, count_forward
from frskd_plugin.timm.wrap import wrap

NUM_CLASSES = 100
METHODS = ("baseline", "frskd")
DEFAULT_BATCH = {"resnet18_cifar": 16}
# networks of this package whose maps leave a ReLU, so that the self-teacher need not rectify them again
RECTIFIED = ("resnet18_cifar", "resnet34_cifar", "wrn_16_2", "wrn_16_2_published")
SEGMENTORS = ("effdet_d0", "effdet_d1")
SEGMENTOR_SIZE, SEGMENTOR_BATCH = 512, 2
MEMORY_MEANING = {
    "cuda": "peak of torch.cuda.max_memory_allocated during a step, above what lay on the GPU before it",
    "cpu": "bytes of the tensors that the forward pass keeps for the backward pass, weights not counted",
}
PEAK_MEANING = "peak of the resident memory of a process that takes two steps, Python and PyTorch included"


@dataclass(frozen=True)
class StepSettings:
    """Settings of a step. ``size`` and ``batch`` of None are the model's own; ``width`` is a classifier's teacher's.

    ``self_teacher`` are names and values that a segmentor's config is given for its self-teacher.
    """

    batch: int | None = None
    size: int | None = None
    device: str = "cpu"
    amp: str | None = None
    compile: bool = False
    channels_last: bool = False
    width: int | str = 2
    self_teacher: tuple[tuple[str, object], ...] = ()

    @property
    def memory_format(self) -> torch.memory_format:
        """Return the layout of images and weights."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


class TrainingStep:
    """zero_grad, forward, backward, and SGD with momentum on one batch.

    The learning rate is tiny: the weights of a random network stay finite however many steps are timed. ``inputs`` may
    be replaced between the steps.

    Args:
        network: is moved to the device and trained.
        inputs: the batch.
        settings: device, layout, autocast and compilation.
        parts: what of the network is compiled with ``settings.compile``, '' being all.
        loss: network and inputs to the scalar loss; None: the network gives it.
    """

    def __init__(
        self,
        network: nn.Module,
        inputs: tuple[object, ...],
        settings: StepSettings,
        parts: Sequence[str] = ("",),
        loss: Callable[..., Tensor] | None = None,
    ) -> None:
        self.network = network.to(settings.device).to(memory_format=settings.memory_format).train()
        self.inputs = inputs
        self.device_type = torch.device(settings.device).type
        self.amp_dtype = AMP_DTYPES[settings.amp] if settings.amp else None
        self.optimizer = torch.optim.SGD(network.parameters(), lr=1e-5, momentum=0.9, weight_decay=1e-4)
        self.scaler = torch.amp.GradScaler(self.device_type, enabled=settings.amp == "fp16")
        self._loss = network if loss is None else partial(loss, network)
        self._compiled = CompiledParts(network, parts if settings.compile else ())

    def loss(self, compiled: bool = True) -> Tensor:
        """Compute the loss of the batch, with its graph."""
        autocast = torch.autocast(self.device_type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None)
        with autocast, nullcontext() if compiled else self._compiled.disabled():
            return self._loss(*self.inputs)

    def __call__(self) -> None:
        """Take one step."""
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(self.loss()).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()


# The steps


def training_steps(name: str, settings: StepSettings) -> tuple[TrainingStep, TrainingStep, int]:
    """Return the plain step, the FRSKD step, and the batch size, of a timm model or one of `SEGMENTORS`.

    Raises:
        ValueError: the model cannot be wrapped, or not for images of this size.
        ImportError: mmsegmentation is not installed.
    """
    return (segmentation_steps if name in SEGMENTORS else classification_steps)(name, settings)


def classification_steps(name: str, settings: StepSettings) -> tuple[TrainingStep, TrainingStep, int]:
    """Return `training_steps` with the paper's settings for classification."""
    batch = settings.batch or DEFAULT_BATCH.get(name, 32)
    torch.manual_seed(0)
    networks = [classifier(name, method, settings.size, settings.width) for method in METHODS]
    input_size = networks[0][2]
    images = torch.randn(batch, *input_size, device=settings.device).contiguous(memory_format=settings.memory_format)
    inputs = (images, torch.randint(NUM_CLASSES, (batch,), device=settings.device))
    plain, frskd = (TrainingStep(network, inputs, settings, loss=loss) for network, loss, _ in networks)
    return plain, frskd, batch


def classifier(
    name: str, method: str, size: int | None, width: int | str
) -> tuple[nn.Module, Callable[..., Tensor], tuple[int, ...]]:
    """Return a network of random weights, its loss, and its image size (channels, height, width).

    Args:
        name: timm model.
        method: one of `METHODS`.
        size: height and width of the images; None is the model's own.
        width: of the self-teacher.

    Raises:
        ValueError: the model cannot be wrapped, or not for images of this size.
    """
    student = timm.create_model(name, num_classes=NUM_CLASSES)
    channels, *own_size = student.pretrained_cfg.get("input_size", (3, 224, 224))
    input_size = (channels, *([size, size] if size else own_size))
    if method == "baseline":  # as whoever does not use this package trains it
        return student, lambda network, images, labels: F.cross_entropy(network(images), labels), input_size
    wrapped = wrap(student, method, input_size=input_size, width=width, rectify_input=name not in RECTIFIED)
    return wrapped, lambda network, images, labels: network(images, labels)["loss"], input_size


def segmentation_steps(name: str, settings: StepSettings) -> tuple[TrainingStep, TrainingStep, int]:
    """Return `training_steps` of both networks as the configs of the paper describe them."""
    try:
        from frskd_plugin.mmengine.hooks import default_parts

        configs = [read_segmentor(f"{kind}_voc_{name}.py") for kind in ("baseline", "frskd")]
        size, batch = settings.size or SEGMENTOR_SIZE, settings.batch or SEGMENTOR_BATCH
        torch.manual_seed(0)
        configs[1].model.self_teacher.update(dict(settings.self_teacher))
        networks = [build_segmentor(config) for config in configs]
    except ImportError as error:
        raise ImportError(
            f"The segmentor {name} needs mmengine and mmsegmentation, which cannot be imported: {error}"
        ) from error
    num_classes = networks[0].decode_head.num_classes
    images, samples = segmentation_batch(batch, (size, size), num_classes, settings.device)
    inputs = (images.contiguous(memory_format=settings.memory_format), samples)
    plain, frskd = (  # compiled as in training with --compile
        TrainingStep(network, inputs, settings, default_parts(network), segmentor_loss) for network in networks
    )
    return plain, frskd, batch


def segmentor_loss(segmentor: Any, images: Tensor, data_samples: list[Any]) -> Tensor:
    """Sum the losses of an mmseg segmentor on normalised images [B, 3, H, W] and their samples."""
    return segmentor.parse_losses(segmentor(images, data_samples, mode="loss"))[0]


def read_segmentor(config: str) -> Any:
    """Read a config file of this project, for random weights.

    Raises:
        FileNotFoundError: the config lies neither beside the package nor in its wheel.
    """
    from mmengine.config import Config

    package = Path(frskd_plugin.__file__).parent
    folders = [package.parent / "configs", package / ".mim" / "configs"]
    file = next((folder / config for folder in folders if (folder / config).is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"{config} was not found in {' or '.join(map(str, folders))}: install the package anew."
        )
    read = Config.fromfile(file)
    read.model.backbone.pretrained = False
    return read


def build_segmentor(config: Any) -> nn.Module:
    """Build the model of a config."""
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    init_default_scope("mmseg")
    return MODELS.build(config.model)


# What is measured


def interleaved_medians(steps: Sequence[Callable[[], object]], repeat: int, warmup: int = 2) -> list[float]:
    """Return the median seconds of each function; they run in turn: first, second, first, second, ...

    So a busy machine slows all of them alike, which `torch.utils.benchmark.Timer`, whose clock this is, leaves open.

    Raises:
        ValueError: ``repeat`` is below 1.
    """
    return medians_of_turns([partial(seconds_of, step) for step in steps], repeat, warmup)


def medians_of_turns(turns: Sequence[Callable[[], float]], repeat: int, warmup: int) -> list[float]:
    """Return the medians of functions that return seconds, run in turn: a turn may prepare before it measures.

    Raises:
        ValueError: ``repeat`` is below 1.
    """
    if repeat < 1:
        raise ValueError(f"repeat={repeat} must be at least 1: a median needs a measurement.")
    rounds = [[turn() for turn in turns] for _ in range(warmup + repeat)][warmup:]
    return [statistics.median(values) for values in zip(*rounds, strict=True)]


def seconds_of(step: Callable[[], object]) -> float:
    """Measure the seconds of a call, with all that it started on the GPU."""
    start = timer()
    step()
    return timer() - start


def forward_macs(step: TrainingStep, batch: int) -> int:
    """Count the multiply-accumulates of convolutions and matrix products of one forward pass, per image."""
    return _forward_cost(step).macs // batch


def step_memory(step: TrainingStep) -> int:
    """Return the bytes that a step needs beyond weights and optimizer; see `MEMORY_MEANING`."""
    if step.device_type != "cuda":
        return _forward_cost(step).kept
    step()  # momentum buffers exist now
    step.optimizer.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _forward_cost(step: TrainingStep) -> ForwardCost:
    with count_forward(step.network) as cost:
        loss = step.loss(compiled=False)  # the graph must live until everything is counted
    del loss
    return cost


def peak_memory(
    name: str,
    settings: StepSettings,
    steps: Callable[[str, StepSettings], tuple[TrainingStep, TrainingStep, int]] = training_steps,
) -> tuple[int, int]:
    """Return the peak bytes of the plain step and of the FRSKD step, each measured in a fresh process.

    Args:
        name: the network.
        settings: how a step is run; on a CPU.
        steps: makes them.

    Raises:
        ValueError: the device is not a CPU, or the system does not tell the memory of a process.
        OSError: a process was killed, as a rule because the machine has too little memory.
    """
    if torch.device(settings.device).type != "cpu":
        raise ValueError(
            f"--peak measures the memory of a process, which says nothing about {settings.device}: leave it out, the "
            "memory of a GPU is a peak anyway."
        )
    if sys.platform == "win32":
        raise ValueError("--peak reads the memory of a process as Linux and macOS tell it: leave it out.")
    peaks = []
    for which in (0, 1):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            try:
                peaks.append(pool.submit(_peak_of, steps, name, settings, which, torch.get_num_threads()).result())
            except BrokenProcessPool as error:
                raise OSError(
                    f"The process that measured the memory of {name} was killed; give it a smaller --batch or --size."
                ) from error
    return peaks[0], peaks[1]


def _peak_of(steps: Callable[..., Any], name: str, settings: StepSettings, which: int, threads: int) -> int:
    import resource  # not on Windows

    torch.set_num_threads(threads)
    step = steps(name, settings)[which]
    for _ in range(2):  # the second has momentum buffers beside everything else
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
