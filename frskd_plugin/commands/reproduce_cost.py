"""Costs of the methods: seconds of a training step beside the plain network's, estimates of runs, Table 6's sizes."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import frskd_plugin.timm  # noqa: F401  (registers the CIFAR networks)
from frskd_plugin.check import classification_batch
from frskd_plugin.commands.reproduce_plan import IMAGES_PER_CLASS, TEACHER_OF, Run, read_leaf
from frskd_plugin.commands.training_step import (
    SEGMENTORS,
    StepSettings,
    TrainingStep,
    interleaved_medians,
    segmentation_steps,
)
from frskd_plugin.core.self_teacher import SelfTeacher
from frskd_plugin.data.image_folder import IMAGE_SETS
from frskd_plugin.methods import method_class
from frskd_plugin.timm.probe import probe_student
from frskd_plugin.timm.wrap import wrap

# images in a step on a CPU: so many that the ratio is that of the recipe's batch, in bearable time
CPU_BATCH_SMALL, CPU_BATCH = 32, 8
SMALL_IMAGE = 64  # pixels of a side
# images of VOC 2007 and 2012 trainval with a segmentation, and of VOC 2007 test
VOC_IMAGES = (3335, 210)
TEACHER_FACTOR = 2.0  # ResNet34's multiply-accumulates over ResNet18's, with maps of any size


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


def method_step(run: Run, batch: int, device: str) -> TrainingStep:
    """Build a step of a run's network and method on random images, with random weights, the teacher's too."""
    model = read_leaf(run.config).model
    student = timm.create_model(run.model, num_classes=model.student.num_classes)
    settings: dict[str, Any] = dict(run.settings)
    if run.teacher is not None:
        settings["teacher"] = timm.create_model(run.teacher.model, num_classes=model.student.num_classes)
    input_size = student.pretrained_cfg["input_size"]
    method = run.method or "baseline"
    wrapped = wrap(student, method, out_indices=model.out_indices, **settings)
    inputs = classification_batch(method_class(method).needs, batch, input_size, model.student.num_classes, device)
    return TrainingStep(
        wrapped,
        inputs,
        StepSettings(device=device),
        loss=lambda network, images, targets, extra: network(images, targets, **extra)["loss"],
    )


def measure(runs: Mapping[str, Run], repeat: int, device: str) -> StepCost:
    """Time the steps of the network that all runs share, in turn.

    Args:
        runs: row's key -> its run.
        repeat: steps that are timed.
        device: where.

    Raises:
        ImportError: it is a segmentor, and mmsegmentation is not installed.
    """
    first = next(iter(runs.values()))
    torch.manual_seed(0)
    if first.model in SEGMENTORS:
        plain, frskd, batch = segmentation_steps(first.model, StepSettings(device=device))
        steps = {"baseline": plain, "frskd": frskd}
        forward_pass, warmup = plain.loss, 1
    else:
        small = timm.get_pretrained_cfg(first.model).input_size[-1] <= SMALL_IMAGE
        batch = CPU_BATCH_SMALL if small else CPU_BATCH
        if device.startswith("cuda"):
            batch = read_leaf(first.config).train_dataloader.batch_size
        plain = method_step(Run(first.config, first.data, first.model, "baseline"), batch, device)
        steps = {key: method_step(run, batch, device) for key, run in runs.items()}
        forward_pass, warmup = functools.partial(plain.network.student, plain.inputs[0]), 2
    plain_s, forward_s, *seconds = interleaved_medians(
        [plain, torch.no_grad()(forward_pass), *steps.values()], repeat, warmup
    )
    return StepCost(batch, plain_s, forward_s, {key: s / plain_s for key, s in zip(steps, seconds, strict=True)})


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


def estimate_seconds(run: Run, key: str, costs: Mapping[str, StepCost]) -> float | None:
    """Estimate the seconds of a run, without loading images; None where its network was not measured.

    Args:
        run: the run.
        key: of its row; a pretrained teacher's is that of the plain network.
        costs: network -> steps.
    """
    cost, factor = costs.get(run.model), 1.0
    if cost is None:  # a teacher, by its student
        student = next((small for small, large in TEACHER_OF.items() if large == run.model), "")
        cost, factor, key = costs.get(student), TEACHER_FACTOR, "baseline"
    if cost is None or key not in cost.ratios:
        return None
    train, scored = images_of(run)
    return factor * run.epochs * (cost.ratios[key] * cost.plain * train + cost.forward * scored) / cost.batch


def total_text(seconds: Sequence[float], jobs: int) -> str:
    """Write the time of all together.

    >>> total_text([1800.0, 5400.0], jobs=2)
    '2.0 h of training, 1.5 h with 2 at a time (from a few steps on random images; data loading is not in it)'
    """
    hours = sum(seconds) / 3600
    wall = max([hours / jobs, *(s / 3600 for s in seconds)])
    together = f", {wall:.1f} h with {jobs} at a time" if jobs > 1 else ""
    return f"{hours:.1f} h of training{together} (from a few steps on random images; data loading is not in it)"


# --- Table 6's sizes. This package computes the same graph with fewer operations (it projects before it up-samples,
# and reads a map once for two laterals): counting what it runs would not give the paper's numbers, so both are counted.

CHANNELS, SIZES, NUM_CLASSES = (32, 64, 128), (32, 16, 8), 100  # the maps of WRN-16-2
DEPTH = 2  # separable convolutions a node: what the paper's ratios belong to
# settings of `SelfTeacher` for the rows of Table 6
TEACHERS: dict[str, dict[str, Any]] = {
    "bifpn_128": {"channels": 128},
    "bifpn_256": {"channels": 256},
    "bifpnc_128": {"width": 1},
    "bifpnc_256": {"width": 2},
}


@dataclass
class Count:
    """A running count for one image, by the rule with which the paper's FLOPs come out.

    Attributes:
        params: trainable parameters.
        macs: multiply-accumulates of convolutions and linear layers.
        others: 2 for each element that enters a batch normalisation, 1 for each that enters a ReLU layer or leaves an
            up-sampling or enters a max-pooling; a ReLU that is no layer of its own costs nothing.
    """

    params: int = 0
    macs: int = 0
    others: int = 0

    @property
    def operations(self) -> int:
        """All of them."""
        return self.macs + self.others

    def conv(self, c_in: int, c_out: int, size: int, kernel: int = 1, groups: int = 1) -> None:
        """Add a convolution without bias, to a map of ``size`` x ``size``."""
        weights = c_in // groups * c_out * kernel**2
        self.params += weights
        self.macs += weights * size**2

    def norm(self, channels: int, size: int) -> None:
        """Add a batch normalisation."""
        self.params += 2 * channels
        self.others += 2 * channels * size**2

    def pointwise(self, channels: int, size: int) -> None:
        """Add a ReLU layer, a max-pooling (of such a map) or an up-sampling (to such a map)."""
        self.others += channels * size**2

    def conv_norm_relu(self, c_in: int, c_out: int, size: int) -> None:
        """Add a 1x1 convolution, batch normalisation, ReLU."""
        self.conv(c_in, c_out, size)
        self.norm(c_out, size)
        self.pointwise(c_out, size)

    def linear(self, c_in: int, c_out: int) -> None:
        """Add a fully connected layer: a convolution of one pixel, with a bias."""
        self.conv(c_in, c_out, 1)
        self.params += c_out

    def node(self, inputs: int, channels: int, size: int, depth: int) -> None:
        """Add a fusion by one scalar for each input, and separable convolutions with ReLU between them."""
        self.params += inputs
        self.others += inputs + (depth - 1) * channels * size**2  # the scalars go through a ReLU layer too
        for _ in range(depth):
            self.conv(channels, channels, size, kernel=3, groups=channels)
            self.conv(channels, channels, size)
            self.norm(channels, size)


def count_wide_resnet(channels: Sequence[int] = CHANNELS, size: int = 32, num_classes: int = NUM_CLASSES) -> Count:
    """Count the authors' WRN of two blocks a group, with the batch norm that it owns and never uses."""
    count, width = Count(), 16
    count.conv(3, width, size, kernel=3)
    for c in channels:
        before, size = size, size if c == channels[0] else size // 2
        count.pointwise(width, before)
        count.conv(width, c, size)  # the shortcut
        for index in range(2):
            count.conv(c if index else width, c, size, kernel=3)
            count.norm(c, size)
            count.pointwise(c, size)
            count.conv(c, c, size, kernel=3)
            if not index:
                count.pointwise(c, size)
        count.norm(c, size)
        width = c
    count.pointwise(width, size)  # the ReLU before the classifier; those on the other maps are no layers
    count.linear(width, num_classes)
    count.params += 2 * width
    return count


def count_self_teacher(
    channels: Sequence[int] = CHANNELS,
    sizes: Sequence[int] = SIZES,
    *,
    width: int | None = None,
    constant: int | None = None,
    depth: int = DEPTH,
    num_classes: int = NUM_CLASSES,
) -> Count:
    """Count the authors' self-teacher.

    Args:
        channels: of the student's maps, highest resolution first.
        sizes: height of each map.
        width: BiFPNc with ``width`` times these channels; or
        constant: BiFPN of that many channels at every level.
        depth: separable convolutions a node.
        num_classes: of its classifier.

    Raises:
        ValueError: not just one of ``width`` and ``constant`` is given.
    """
    if (width is None) == (constant is None):
        raise ValueError(f"give either `width` (BiFPNc) or `constant` (BiFPN), got {width} and {constant}.")
    out = [constant or c * (width or 1) for c in channels]
    count, top = Count(), len(out) - 1
    for i, (c, d, size) in enumerate(zip(channels, out, sizes, strict=True)):
        count.conv_norm_relu(c, d, size)  # the top-down path's lateral
        if i < top:
            count.pointwise(out[i + 1], size)  # up-sampled before it is projected
            if width:
                count.conv_norm_relu(out[i + 1], d, size)
            count.node(2, d, size, depth)
        if i > 0:
            count.conv_norm_relu(c, d, size)  # the bottom-up path's lateral
            count.pointwise(out[i - 1], sizes[i - 1])  # max-pooled before it is projected
            if width:
                count.conv_norm_relu(out[i - 1], d, size)
            count.node(2 if i == top else 3, d, size, depth)
    count.linear(out[-1], num_classes)
    return count


@dataclass(frozen=True)
class Ratios:
    """Self-teacher over classifier.

    Attributes:
        params: parameters.
        macs: convolutions and linear layers alone.
        operations: all operations, which is what the paper prints.
        own_params: of this package's self-teacher and its standard WRN-16-2.
        own_macs: multiply-accumulates that this package's self-teacher executes.
    """

    params: float
    macs: float
    operations: float
    own_params: float
    own_macs: float


@functools.cache
def table6_ratios() -> dict[str, Ratios]:
    """Count the rows of Table 6.

    >>> ratios = table6_ratios()["bifpnc_256"]
    >>> f"{ratios.params:.2f} {ratios.operations:.2f}"
    '0.59 0.68'
    """
    student = timm.create_model("wrn_16_2", num_classes=NUM_CLASSES)
    student_macs, student_params = probe_student(student).macs, sum(p.numel() for p in student.parameters())
    classifier = count_wide_resnet()
    ratios = {}
    for key, settings in TEACHERS.items():
        teacher = count_self_teacher(width=settings.get("width"), constant=settings.get("channels"))
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            own = SelfTeacher(CHANNELS, NUM_CLASSES, **settings).eval()
            own([torch.empty(1, c, size, size) for c, size in zip(CHANNELS, SIZES, strict=True)])
        ratios[key] = Ratios(
            teacher.params / classifier.params,
            teacher.macs / classifier.macs,
            teacher.operations / classifier.operations,
            sum(p.numel() for p in own.parameters()) / student_params,
            counter.get_total_flops() // 2 / student_macs,
        )
    return ratios
