"""Costs of the methods: seconds of a training step beside the plain network's, estimates of runs, Table 6's sizes."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import frskd_plugin.timm  # noqa: F401  (registers the CIFAR networks)
from frskd_plugin.check import classification_batch
from frskd_plugin.commands.reproduce_plan import FOR_ALL, IMAGES_PER_CLASS, TABLES, TEACHER_OF, Run, read_leaf
from frskd_plugin.commands.training_step import (
    SEGMENTORS,
    StepSettings,
    TrainingStep,
    interleaved_medians,
    seconds_of,
    training_steps,
)
from frskd_plugin.core.blocks import FusionNode, Resize
from frskd_plugin.core.self_teacher import SelfTeacher
from frskd_plugin.data.image_folder import IMAGE_SETS
from frskd_plugin.methods import method_class
from frskd_plugin.timm.wrap import wrap

# images in a step on a CPU: so many that the ratio is that of the recipe's batch, in bearable time
CPU_BATCH_SMALL, CPU_BATCH = 32, 8
SMALL_IMAGE = 64  # pixels of a side
# images of VOC 2007 and 2012 trainval with a segmentation, and of VOC 2007 test
VOC_IMAGES = (3335, 210)
TEACHER_FACTOR = 2.0  # ResNet34's multiply-accumulates over ResNet18's, with maps of any size
WEIGHTS = ("alpha", "beta")  # settings that do not change what a step computes, unless they are 0


@dataclass(frozen=True)
class StepCost:
    """Seconds of a network's training steps."""

    batch: int  # images in a step; of methods with views or partners, those without them
    plain: float  # seconds of the plain network's step
    forward: float  # seconds of its forward pass alone
    ratios: Mapping[str, float]  # row's key -> its step over the plain one


def method_step(run: Run, batch: int, device: str) -> TrainingStep:
    """Build a step of a run's network and method on random images, with random weights, the teacher's too."""
    model = read_leaf(run.config).model
    classes = model.student.num_classes
    student = timm.create_model(run.model, num_classes=classes)
    settings: dict[str, Any] = dict(run.settings)
    if run.teacher is not None:
        settings["teacher"] = timm.create_model(run.teacher.model, num_classes=classes)
    method, size = run.method or "baseline", student.pretrained_cfg["input_size"]
    wrapped = wrap(student, method, out_indices=model.out_indices, **settings)
    inputs = classification_batch(method_class(method).needs, batch, size, classes, device)
    return TrainingStep(
        wrapped,
        inputs,
        StepSettings(device=device),
        lambda network, images, targets, extra: network(images, targets, **extra)["loss"],
    )


def measure(runs: Mapping[str, Run], repeat: int, device: str) -> StepCost:
    """Time the steps of the network that all runs share, in turn; equal steps are timed once.

    Args:
        runs: row's key -> its run.
        repeat: steps that are timed.
        device: where.

    Raises:
        ImportError: it is a segmentor, and mmsegmentation is not installed.
    """
    signatures = {key: step_signature(run) for key, run in runs.items()}
    first = next(iter(runs.values()))
    torch.manual_seed(0)
    if first.model in SEGMENTORS:
        (plain, frskd), (batch, *_) = training_steps(first.model, StepSettings(device=device))
        steps = {signatures["baseline"]: plain, signatures["frskd"]: frskd}
        forward_pass: Callable[[], Any] = plain.loss
    else:
        small = timm.get_pretrained_cfg(first.model).input_size[-1] <= SMALL_IMAGE
        batch = CPU_BATCH_SMALL if small else CPU_BATCH
        if device.startswith("cuda"):
            batch = read_leaf(first.config).train_dataloader.batch_size
        plain = method_step(Run(first.config, first.data, first.model, "baseline"), batch, device)
        steps = {signatures[key]: method_step(run, batch, device) for key, run in runs.items()}
        forward_pass = functools.partial(plain.network.student, plain.inputs[0])
    turns = [functools.partial(seconds_of, step) for step in (plain, torch.no_grad()(forward_pass), *steps.values())]
    plain_s, forward_s, *seconds = interleaved_medians(turns, repeat, 2, f"steps of {first.model}")
    times = dict(zip(steps, seconds, strict=True))
    return StepCost(batch, plain_s, forward_s, {key: times[s] / plain_s for key, s in signatures.items()})


def step_signature(run: Run) -> str:
    """Write what decides the cost of a step."""
    settings: dict[str, Any] = {k: bool(v) if k in WEIGHTS else v for k, v in run.settings.items()}
    return json.dumps([run.method or run.config, settings], sort_keys=True)


def images_of(run: Run) -> tuple[int, int]:
    """Count the images of an epoch: those it trains on, and those it is scored on.

    >>> images_of(Run("baseline_cifar100_wrn_16_2", "cifar100", "wrn_16_2", "baseline"))
    (50000, 10000)
    """
    if run.data not in IMAGE_SETS:
        return VOC_IMAGES
    images = IMAGE_SETS[run.data]
    limits = [option.partition("=")[2] for option in run.options if f".{IMAGES_PER_CLASS}=" in option]
    train = int(limits[0]) * images.num_classes if limits else images.images["train"]
    return train, next(count for split, count in images.images.items() if split != "train")


def estimate_seconds(run: Run, costs: Mapping[str, StepCost]) -> float | None:
    """Estimate the seconds of a run, without loading images; None where its network was not measured."""
    cost, factor, key = costs.get(run.model), 1.0, run.row.key
    if cost is None:  # a teacher, by its student
        student = next((small for small, large in TEACHER_OF.items() if large == run.model), "")
        cost, factor, key = costs.get(student), TEACHER_FACTOR, "baseline"
    if cost is None or key not in cost.ratios:
        return None
    train, scored = images_of(run)
    return factor * run.epochs * (cost.ratios[key] * cost.plain * train + cost.forward * scored) / cost.batch


def total_text(seconds: Sequence[float], at_once: int) -> str:
    """Write the time of all together.

    >>> total_text([1800.0, 5400.0], at_once=2)
    '2.0 h of training, 1.5 h with 2 at a time (from a few steps on random images; data loading is not in it)'
    """
    hours = sum(seconds) / 3600
    wall = max([hours / at_once, *(s / 3600 for s in seconds)])
    together = f", {wall:.1f} h with {at_once} at a time" if at_once > 1 else ""
    return f"{hours:.1f} h of training{together} (from a few steps on random images; data loading is not in it)"


# --- Table 6's sizes

CHANNELS, SIZES = (32, 64, 128), (32, 16, 8)  # the maps of WRN-16-2
DEPTH = 2  # separable convolutions a node: what the paper's ratios belong to
UNUSED_PARAMS = 256  # of a batch norm that the authors' WRN owns and never uses


class Count(NamedTuple):
    """A network's trainable parameters and what it computes for one image, or the same over another network's."""

    params: float
    macs: float  # multiply-accumulates of convolutions and linear layers
    operations: float  # these, and what `_operations` counts

    def over(self, other: Count) -> Count:
        """Divide each number by the other's."""
        return Count(*(ours / theirs for ours, theirs in zip(self, other, strict=True)))


def _operations(module: nn.Module, x: Tensor, y: Tensor) -> int:
    """Count what a module does beside multiply-accumulates, by the rule with which the paper's FLOPs come out."""
    if isinstance(module, nn.BatchNorm2d):
        return 2 * x.numel()
    if isinstance(module, Resize):
        if module.mode == "max":
            return x.numel()
        return 0 if module.project_first else x.shape[1] * y[0, 0].numel()
    # the ReLU behind a node is no layer of the authors' code: there it costs nothing, and is taken off again
    return -y.numel() if isinstance(module, FusionNode) else 0


def count(network: nn.Module, inputs: Any) -> Count:
    """Count a network on the inputs of one image: a ReLU costs 1 an element, other layers what `_operations` says."""
    layers: list[int] = []
    for module in network.eval().modules():
        if isinstance(module, (nn.BatchNorm2d, Resize, FusionNode)):
            module.register_forward_hook(lambda module, x, y: layers.append(_operations(module, x[0], y)))
    relus = dict.fromkeys((torch.ops.aten.relu, torch.ops.aten.relu_), lambda x, *_, **__: math.prod(x))
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=relus) as counter:
        network(inputs)
    relu = sum(counter.get_flop_counts()["Global"].get(operator, 0) for operator in relus)
    macs = (counter.get_total_flops() - relu) // 2
    return Count(sum(p.numel() for p in network.parameters()), macs, macs + relu + sum(layers))


def authors_self_teacher(*args: Any, **settings: Any) -> SelfTeacher:
    """Build a self-teacher that computes as the authors' does: it up-samples before it projects."""
    teacher = SelfTeacher(*args, **{**settings, "rectify_input": False})
    for module in teacher.modules():
        if isinstance(module, Resize):
            module.project_first = False
    return teacher


@functools.cache
def table6_ratios() -> dict[str, tuple[Count, Count]]:
    """Count the rows of Table 6, self-teacher over classifier: the authors' networks, and those of this package.

    Ours give the same results in fewer operations.

    >>> authors, ours = table6_ratios()["bifpnc_256"]
    >>> f"{authors.params:.2f} {authors.operations:.2f}"
    '0.59 0.68'
    """
    ratios = {}
    with torch.device("meta"):
        image = torch.empty(1, 3, 32, 32)
        feats = [torch.empty(1, c, size, size) for c, size in zip(CHANNELS, SIZES, strict=True)]
        ours, authors = (count(timm.create_model(name), image) for name in ("wrn_16_2", "wrn_16_2_published"))
        authors = authors._replace(params=authors.params + UNUSED_PARAMS)
        for row in TABLES["table6"].rows:
            settings = {"depth": DEPTH, **(row.settings or {"width": FOR_ALL["width"]})}
            ratios[row.key] = (
                count(authors_self_teacher(CHANNELS, 100, **settings), feats).over(authors),
                count(SelfTeacher(CHANNELS, 100, **settings), feats).over(ours),
            )
    return ratios
