"""Costs of the methods: seconds of a training step beside the plain network's, estimates of runs, Table 6's sizes."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from operator import truediv
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from frskd_plugin.commands.reproduce_plan import FOR_ALL, TABLES, Run, Scale, read_leaf
from frskd_plugin.commands.training_step import (
    SEGMENTORS,
    StepSettings,
    TrainingStep,
    classifier_step,
    interleaved_medians,
    seconds_of,
    segmentor_step,
)
from frskd_plugin.core.blocks import FusionNode, Resize
from frskd_plugin.core.self_teacher import SelfTeacher
from frskd_plugin.data.image_folder import IMAGE_SETS

CPU_BATCHES, SMALL_IMAGE = (32, 8), 64  # images in a step, of small and of larger images; pixels of a side
VOC_IMAGES = 3335  # of VOC 2007 and 2012 trainval with a segmentation
WEIGHTS = ("alpha", "beta")  # settings that do not change what a step computes, unless they are 0
# images in a step, seconds of the plain network's (`plain`), row's key -> its step over the plain one (`ratios`)
StepCost = Mapping[str, Any]


def measure(runs: Mapping[str, Run], device: str) -> StepCost:
    """Time the steps of the network that all runs (row's key -> run) share, in turn; equal steps are timed once.

    Raises:
        ImportError: it is a segmentor, and mmsegmentation is not installed.
    """
    first = next(iter(runs.values()))
    plain = Run(first.config, first.data, first.model, "baseline")
    runs_by_cost = {step_signature(run): run for run in (plain, *runs.values())}
    torch.manual_seed(0)
    steps = {signature: _step(run, device) for signature, run in runs_by_cost.items()}
    turns = [functools.partial(seconds_of, step) for step in steps.values()]
    seconds = dict(zip(steps, interleaved_medians(turns, 5, 2, f"steps of {first.model}"), strict=True))
    of_plain = seconds[step_signature(plain)]
    ratios = {key: seconds[step_signature(run)] / of_plain for key, run in runs.items()}
    return {"batch": len(steps[step_signature(plain)].inputs[0]), "plain": of_plain, "ratios": ratios}


def _step(run: Run, device: str) -> TrainingStep:
    if run.model in SEGMENTORS:
        return segmentor_step(run.model, run.row.method, StepSettings(device=device))
    leaf, pixels = read_leaf(run.config), timm.get_pretrained_cfg(run.model).input_size[-1]
    # on a CPU so many images that the ratio is that of the recipe's batch, in bearable time
    batch = leaf.train_dataloader.batch_size if "cuda" in device else CPU_BATCHES[pixels > SMALL_IMAGE]
    options, classes = dict(run.settings, out_indices=leaf.model.out_indices), leaf.model.student.num_classes
    if run.teacher is not None:
        options["teacher"] = timm.create_model(run.teacher.model, num_classes=classes)
    return classifier_step(run.model, str(run.method), StepSettings(batch, device=device), classes, **options)


def step_signature(run: Run) -> str:
    """Write what decides the cost of a step."""
    settings = {key: bool(value) if key in WEIGHTS else value for key, value in run.settings.items()}
    return json.dumps([run.method or run.config, settings], sort_keys=True)


def estimate_seconds(run: Run, scale: Scale, costs: Mapping[str, StepCost]) -> float | None:
    """Estimate the training time of a run; None where its network was not measured, as that of a teacher."""
    cost = costs.get(run.model)
    if cost is None or run.row.key not in cost["ratios"]:
        return None
    images = VOC_IMAGES
    if run.data in IMAGE_SETS:
        known = IMAGE_SETS[run.data]
        images = known.num_classes * scale.images_per_class if scale.images_per_class else known.images["train"]
    return run.epochs * images / cost["batch"] * cost["plain"] * cost["ratios"][run.row.key]


# --- Table 6's sizes

CHANNELS, SIZES = (32, 64, 128), (32, 16, 8)  # the maps of WRN-16-2
DEPTH = 2  # separable convolutions a node: what the paper's ratios belong to
UNUSED_PARAMS = 256  # of a batch norm that the authors' WRN owns and never uses


class Count(NamedTuple):
    """A network's trainable parameters and what it computes for one image, or the same over another network's."""

    params: float
    macs: float  # multiply-accumulates of convolutions and linear layers
    operations: float  # these, and what `_operations` counts

    def __truediv__(self, other: Count) -> Count:
        return Count(*map(truediv, self, other))


def _operations(module: nn.Module, x: Tensor, y: Tensor) -> int:
    """Count what a module does beside multiply-accumulates, by the rule with which the paper's FLOPs come out."""
    if isinstance(module, nn.BatchNorm2d):
        return 2 * x.numel()
    if isinstance(module, Resize):
        return x.numel() if module.mode == "max" else x.shape[1] * y[0, 0].numel()
    # the ReLU behind a node is no layer of the authors' code: there it costs nothing, and is taken off again
    return -y.numel()


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
    """Build a self-teacher that up-samples before it projects, as the authors' does."""
    teacher = SelfTeacher(*args, rectify_input=False, **settings)
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
                count(authors_self_teacher(CHANNELS, 100, **settings), feats) / authors,
                count(SelfTeacher(CHANNELS, 100, **settings), feats) / ours,
            )
    return ratios
