"""What a training step of each method costs beside the plain network's, measured in turn in one process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn

import frskd_plugin.timm  # noqa: F401  (registers the CIFAR networks)
from frskd_plugin.benchmark.random_batch import classification_batch
from frskd_plugin.benchmark.segmentation import SEGMENTORS, segmentation_steps
from frskd_plugin.benchmark.timing import interleaved_medians
from frskd_plugin.benchmark.training_step import StepSettings, TrainingStep
from frskd_plugin.methods import method_class
from frskd_plugin.reproduce.plan import Run, read_leaf
from frskd_plugin.timm.wrap import wrap

# images in a step on a CPU: so many that the ratio is that of the recipe's batch, in bearable time
CPU_BATCH_SMALL, CPU_BATCH = 32, 8
SMALL_IMAGE = 64  # pixels of a side


@dataclass(frozen=True)
class StepCost:
    """Seconds of a network's training steps.

    Attributes:
        batch: images in a step; of methods with views or partners, those without them.
        plain: seconds of the plain network's step.
        forward: seconds of its forward pass alone.
        ratios: row's key -> its step over the plain one.
    """

    batch: int
    plain: float
    forward: float
    ratios: Mapping[str, float]

    def seconds(self, key: str, images: int, scored: int) -> float:
        """Of an epoch of ``images`` training images and ``scored`` images of validation, without loading them."""
        return (self.ratios[key] * self.plain * images + self.forward * scored) / self.batch


class MethodLoss(nn.Module):
    """The total loss of a wrapped model, on a batch and what else its method asks for."""

    def __init__(self, wrapped: nn.Module) -> None:
        super().__init__()
        self.wrapped = wrapped

    def forward(self, images: Tensor, targets: Tensor, extra: Mapping[str, Tensor]) -> Tensor:
        """A batch to a scalar."""
        return self.wrapped(images, targets, **extra)["loss"]


def method_step(run: Run, batch: int, device: str) -> TrainingStep:
    """A step of a run's network and method on random images, with random weights, the teacher's too."""
    model = read_leaf(run.config).model
    student = timm.create_model(run.model, num_classes=model.student.num_classes)
    settings: dict[str, Any] = dict(run.settings)
    if run.teacher is not None:
        settings["teacher"] = timm.create_model(run.teacher.model, num_classes=model.student.num_classes)
    input_size = student.pretrained_cfg["input_size"]
    method = run.method or "baseline"
    wrapped = wrap(student, method, out_indices=model.out_indices, **settings)
    inputs = classification_batch(method_class(method).needs, batch, input_size, model.student.num_classes, device)
    return TrainingStep(MethodLoss(wrapped), inputs, StepSettings(device=device))


def step_batch(run: Run, device: str) -> int:
    """Images in a step that is timed; on a GPU the recipe's."""
    if device.startswith("cuda"):
        return read_leaf(run.config).train_dataloader.batch_size
    return CPU_BATCH_SMALL if timm.get_pretrained_cfg(run.model).input_size[-1] <= SMALL_IMAGE else CPU_BATCH


def measure_classifier(runs: Mapping[str, Run], repeat: int, device: str) -> StepCost:
    """The steps of one network under each method.

    Args:
        runs: row's key -> its run.
        repeat: steps that are timed.
        device: where.
    """
    first = next(iter(runs.values()))
    batch = step_batch(first, device)
    torch.manual_seed(0)
    plain = method_step(Run(first.config, first.data, first.model, "baseline"), batch, device)
    steps = [method_step(run, batch, device) for run in runs.values()]
    student, images = plain.network.wrapped.student, plain.inputs[0]

    def forward() -> None:
        with torch.no_grad():
            student(images)

    plain_s, forward_s, *seconds = interleaved_medians([plain, forward, *steps], repeat)
    ratios = {key: s / plain_s for key, s in zip(runs, seconds, strict=True)}
    return StepCost(batch, plain_s, forward_s, ratios)


def measure_segmentor(name: str, repeat: int, device: str) -> StepCost:
    """The steps of a segmentor, plain and with FRSKD.

    Raises:
        ImportError: mmsegmentation is not installed.
    """
    plain, frskd, batch = segmentation_steps(name, StepSettings(device=device))

    def forward() -> None:
        with torch.no_grad():
            plain.loss()

    plain_s, forward_s, frskd_s = interleaved_medians([plain, forward, frskd], repeat, warmup=1)
    return StepCost(batch, plain_s, forward_s, {"baseline": 1.0, "frskd": frskd_s / plain_s})


def measure(runs: Mapping[str, Run], repeat: int, device: str) -> StepCost:
    """The steps of the network that all runs share; see `measure_classifier`, `measure_segmentor`."""
    name = next(iter(runs.values())).model
    return measure_segmentor(name, repeat, device) if name in SEGMENTORS else measure_classifier(runs, repeat, device)
