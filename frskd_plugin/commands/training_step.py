"""Training steps, plain and with a method, of classifiers and the paper's segmentors: time, MACs, memory, launches."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.benchmark.utils.timer import timer  # a clock that waits for the GPU

import frskd_plugin.timm  # noqa: F401  (registers the CIFAR networks)
from frskd_plugin.check import classification_batch, segmentation_batch
from frskd_plugin.check_step import AMP_DTYPES
from frskd_plugin.commands.console import progress
from frskd_plugin.core.compiled_parts import CompiledParts
from frskd_plugin.core.dry_run import ForwardCost, count_forward, count_launches
from frskd_plugin.methods import method_class
from frskd_plugin.timm.wrap import wrap

NUM_CLASSES = 100
METHODS = ("baseline", "frskd")
BATCH, DEFAULT_BATCH = 32, {"resnet18_cifar": 16}
SEGMENTORS = ("effdet_d0", "effdet_d1")
SEGMENTOR_SIZE, SEGMENTOR_BATCH = 512, 2


@dataclass(frozen=True)
class StepSettings:
    """Settings of a step; ``size`` and ``batch`` of None are the model's own."""

    batch: int | None = None
    size: int | None = None
    device: str = "cpu"
    amp: str | None = None
    compile: bool = False
    channels_last: bool = False

    @property
    def memory_format(self) -> torch.memory_format:
        """Return the layout of images and weights."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


class TrainingStep:
    """zero_grad, forward, backward, and SGD with momentum on one batch.

    The learning rate is tiny: the weights of a random network stay finite however many steps are timed. ``inputs``,
    images first, may be replaced between the steps; ``loss`` is called with the network and them. ``parts`` of the
    network, '' being all, are compiled with ``settings.compile``.
    """

    def __init__(
        self,
        network: nn.Module,
        inputs: Sequence[Any],
        settings: StepSettings,
        loss: Callable[..., Tensor],
        parts: Sequence[str] = ("",),
    ) -> None:
        self.network = network.to(settings.device).to(memory_format=settings.memory_format).train()
        self.inputs = (inputs[0].contiguous(memory_format=settings.memory_format), *inputs[1:])
        self.device_type = torch.device(settings.device).type
        self.amp_dtype = AMP_DTYPES[settings.amp] if settings.amp else None
        self.optimizer = torch.optim.SGD(network.parameters(), lr=1e-5, momentum=0.9, weight_decay=1e-4)
        self.scaler = torch.amp.GradScaler(self.device_type, enabled=settings.amp == "fp16")
        self._loss = partial(loss, network)
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


def training_steps(name: str, settings: StepSettings, **options: Any) -> list[TrainingStep]:
    """Return the plain step and the FRSKD step of a timm model or one of `SEGMENTORS`, with random weights.

    ``options`` are of the method for a classifier, of `FRSKDHead` for a segmentor.

    Raises:
        ValueError: the model cannot be wrapped, or not for images of this size.
        ImportError: mmsegmentation is not installed.
    """
    torch.manual_seed(0)
    make = segmentor_step if name in SEGMENTORS else classifier_step
    return [make(name, method, settings, **options) for method in METHODS]


def classifier_step(
    name: str, method: str, settings: StepSettings, num_classes: int = NUM_CLASSES, **options: Any
) -> TrainingStep:
    """Return the step of a timm model with a method, on random images such as it asks for.

    'baseline' is the model alone, as whoever does not use this package trains it.

    Raises:
        ValueError: the model cannot be wrapped, or not for images of this size.
    """
    student = timm.create_model(name, num_classes=num_classes)
    channels, *own_size = student.pretrained_cfg.get("input_size", (3, 224, 224))
    input_size = (channels, *([settings.size] * 2 if settings.size else own_size))
    batch = settings.batch or DEFAULT_BATCH.get(name, BATCH)
    inputs = classification_batch(method_class(method).needs, batch, input_size, num_classes, settings.device)
    if method == "baseline":
        return TrainingStep(student, inputs[:2], settings, lambda net, x, y: F.cross_entropy(net(x), y))
    wrapped = wrap(student, method, input_size=input_size, **options)
    return TrainingStep(wrapped, inputs, settings, lambda net, x, y, extra: net(x, y, **extra)["loss"])


def segmentor_step(name: str, method: str, settings: StepSettings, **options: Any) -> TrainingStep:
    """Return the step of one of `SEGMENTORS` as the config of the paper describes it."""
    try:
        from mmengine.registry import init_default_scope
        from mmseg.registry import MODELS

        from frskd_plugin.commands.config import load_config
        from frskd_plugin.mmengine.hooks import default_parts
    except ImportError as error:
        raise ImportError(f"{name} needs mmengine and mmsegmentation, which cannot be imported: {error}") from error
    init_default_scope("mmseg")
    model = load_config(f"{method}_voc_{name}").model
    model.backbone.pretrained = False
    if method == "frskd":
        model.self_teacher.update(options)
    network = MODELS.build(model)
    size, batch = settings.size or SEGMENTOR_SIZE, settings.batch or SEGMENTOR_BATCH
    inputs = segmentation_batch(batch, (size, size), network.decode_head.num_classes, settings.device)
    # compiled as in training with --compile
    parts = default_parts(network)
    return TrainingStep(network, inputs, settings, lambda net, x, y: net.parse_losses(net(x, y, "loss"))[0], parts)


def interleaved_medians(turns: Sequence[Callable[[], float]], repeat: int, warmup: int, what: str) -> list[float]:
    """Return the medians of functions that return seconds; they run in turn: first, second, first, second, ...

    So a busy machine slows all of them alike, which `torch.utils.benchmark.Timer`, whose clock this is, leaves open.
    """
    rounds = [[turn() for turn in turns] for _ in progress(range(warmup + repeat), what, "rounds")]
    return [statistics.median(values) for values in zip(*rounds[warmup:], strict=True)]


def seconds_of(step: Callable[[], object]) -> float:
    """Measure the seconds of a call, with all that it started on the GPU."""
    start = timer()
    step()
    return timer() - start


def forward_cost(step: TrainingStep) -> ForwardCost:
    """Count the multiply-accumulates of a forward pass, and the bytes that it keeps for the backward pass."""
    with count_forward(step.network) as cost:
        loss = step.loss(compiled=False)  # the graph must live until everything is counted
    del loss
    return cost


def peak_of_step(step: TrainingStep) -> int:
    """Measure the most bytes that a step has on the GPU beyond what lay there before."""
    step()  # momentum buffers exist now
    step.optimizer.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def launches_of_step(step: TrainingStep) -> int:
    """Count the kernels of forward and backward on a GPU, with `torch.profiler`; elsewhere the operators, no views."""

    def both() -> None:
        step.optimizer.zero_grad(set_to_none=True)
        step.loss().backward()

    both()  # what is compiled is so now
    if step.device_type != "cuda":
        return count_launches(both)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        both()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())
