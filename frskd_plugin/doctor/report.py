"""What an examination found, as plain data."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Level:
    """One feature map of the student and, where the method has a self-teacher, its refined map.

    Attributes:
        index: of the map as the student counts them.
        channels: of the student's map.
        size: height and width.
        stride: the images' height divided by the map's, rounded.
        constant: whether it is the same at every position, so that it holds nothing to learn from.
        trains: whether the part of the student that makes it trains.
        refined_channels: of the refined map; None without one, like the two that follow.
        refined_size: height and width of the refined map.
        refined_constant: as ``constant``.
    """

    index: int
    channels: int
    size: tuple[int, int]
    stride: int
    constant: bool
    trains: bool
    refined_channels: int | None = None
    refined_size: tuple[int, int] | None = None
    refined_constant: bool | None = None


@dataclass(frozen=True)
class Term:
    """One term of the loss. Norms are L2; None where no gradient arrives, 0.0 where one arrives that is zero.

    Attributes:
        name: its key in the model's dict of losses.
        value: weighted, as it is added to the total.
        weight: as far as the doctor knows it.
        maps: norm of its gradient on each of the student's maps; None also for a map that it does not read: the path
            to the logits of a ViT runs through tokens, not through the maps that are made of them.
        logits: norm on the student's logits.
        student: norm on all parameters of the student that train.
        classifier: norm on those of the student's classifier, or of its decode head.
        teacher: norm on the parameters of the self-teacher; of all the method's modules where it has none.
        targets: norm on what the self-teacher hands out, refined maps and logits.
    """

    name: str
    value: float
    weight: float | None
    maps: tuple[float | None, ...]
    logits: float | None
    student: float | None
    classifier: float | None
    teacher: float | None
    targets: float | None

    @property
    def is_distillation(self) -> bool:
        """Whether it is one of the two whose target is the self-teacher's output, a constant."""
        return self.name.rpartition(".")[2] in ("loss_kd", "loss_feat")


@dataclass(frozen=True)
class Cost:
    """What the method adds to training. At inference it adds nothing.

    Attributes:
        student_parameters: of the plain network.
        teacher_parameters: of the self-teacher and whatever else the method owns.
        student_macs: multiply-accumulates of one image's forward pass through the plain network, as it trains.
        teacher_macs: what the method adds to them.
        student_memory: bytes that a plain step keeps for its backward pass, for the whole batch.
        teacher_memory: what the method adds to them; weights, gradients and the optimizer's state not counted.
    """

    student_parameters: int
    teacher_parameters: int
    student_macs: int
    teacher_macs: int
    student_memory: int
    teacher_memory: int


@dataclass(frozen=True)
class Evaluation:
    """What evaluation does: it must be the plain network's.

    Attributes:
        ran: names of the method's modules that were run.
        difference: largest difference of the logits to those of the plain network.
    """

    ran: tuple[str, ...]
    difference: float


@dataclass(frozen=True)
class Report:
    """An examination.

    Attributes:
        model: what was examined, in words.
        method: name of the method's class.
        images: shape of the batch.
        device: of the images.
        amp: type of the autocast, or None.
        levels: highest resolution first.
        cost: of the method.
        terms: of the loss.
        evaluation: None for a plain network, which has nothing to differ from.
        untrained_student: parameters of the student that require a gradient and get none from any term.
        untrained_teacher: the same of the method's modules.
        still_teacher: parameters of the method whose gradient is zero.
        unused_allowed: the config says that parameters may be left without a gradient (``find_unused_parameters``).
        remarks: what a reader should know.
        faults: what is wrong, why it matters and how to mend it; empty for a healthy model.
    """

    model: str
    method: str
    images: tuple[int, ...]
    device: str
    amp: str | None
    levels: tuple[Level, ...]
    cost: Cost
    terms: tuple[Term, ...]
    evaluation: Evaluation | None
    untrained_student: tuple[str, ...]
    untrained_teacher: tuple[str, ...]
    still_teacher: tuple[str, ...]
    unused_allowed: bool = False
    remarks: tuple[str, ...] = field(default=())
    faults: tuple[str, ...] = field(default=())

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON: numbers that are not finite become text, which JSON has no number for."""
        return {"healthy": self.healthy, **_plain(dataclasses.asdict(self))}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
