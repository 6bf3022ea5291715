"""Report of a dry run: what was seen, the rules that judge it, and its text."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# The paper's beta of 100 was tuned on deepest maps of 8x8 (WideResNet) and 4x4 (ResNet18): its weight for a position.
USUAL_BETA_PER_POSITION, MOST_BETA_PER_POSITION = 100 / 8**2, 100 / 4**2
MOST_NAMES = 5


@dataclass(frozen=True)
class Level:
    """Feature map of the student and, where the method has a self-teacher, its refined map (None without)."""

    index: int  # as the student counts its maps
    channels: int
    size: tuple[int, int]  # height and width
    stride: int  # the images' height divided by the map's, rounded
    constant: bool  # the same at every position: there is nothing in it to learn from
    trains: bool  # the part of the student that makes it does
    refined_channels: int | None = None
    refined_size: tuple[int, int] | None = None
    refined_constant: bool | None = None


@dataclass(frozen=True)
class Term:
    """Term of the loss. Norms are L2; None where no gradient arrives, 0.0 where one arrives that is zero."""

    name: str  # its key in the model's dict of losses
    value: float  # weighted, as it is added to the total
    weight: float | None  # where it is known
    # norm of its gradient on each of the student's maps; None also for a map that it does not read: the path to the
    # logits of a ViT runs through tokens, not through the maps that are made of them
    maps: tuple[float | None, ...]
    logits: float | None  # on the student's logits
    student: float | None  # on all parameters of the student that train
    classifier: float | None  # on those of the student's classifier, or of its decode head
    teacher: float | None  # on the parameters of the self-teacher; of all the method's modules where it has none
    targets: float | None  # on what the self-teacher hands out, refined maps and logits

    @property
    def norms(self) -> tuple[float | None, ...]:
        """Return all norms but the classifier's, which is part of the student's."""
        return (*self.maps, self.logits, self.student, self.teacher, self.targets)

    @property
    def kind(self) -> str:
        """Return the last part of the name: 'loss_kd' of 'self_teacher.loss_kd'."""
        return self.name.rpartition(".")[2]

    @property
    def off(self) -> bool:
        """Tell if the weight is 0; or, where nobody knows it, if the term is a constant that was never computed."""
        return self.weight == 0 or (self.weight is None and all(norm is None for norm in self.norms))


@dataclass(frozen=True)
class Cost:
    """Cost that the method adds to training (``teacher_*``, all of its modules); at inference it adds nothing."""

    student_parameters: int
    teacher_parameters: int
    student_macs: int  # multiply-accumulates of one image's forward pass through the plain network, as it trains
    teacher_macs: int
    student_memory: int  # bytes that a plain step keeps for its backward pass, for the whole batch
    teacher_memory: int  # weights, gradients and the optimizer's state not counted


@dataclass(frozen=True)
class Evaluation:
    """Modules of the method that ran in evaluation, and the largest difference of the logits to the plain network's."""

    ran: tuple[str, ...]
    difference: float


@dataclass(frozen=True)
class Report:
    """Result of a dry run; ``print(report)`` shows it."""

    model: str  # what was run, in words
    method: str  # name of its class
    images: tuple[int, ...]  # shape of the batch
    device: str
    amp: str | None  # type of the autocast
    levels: tuple[Level, ...]  # highest resolution first
    cost: Cost
    terms: tuple[Term, ...]
    evaluation: Evaluation | None  # None for a plain network, which has nothing to differ from
    untrained_student: tuple[str, ...]  # parameters that require a gradient and get none from any term
    untrained_teacher: tuple[str, ...]  # the same of the method's modules
    unused_allowed: bool = False  # by the config (``find_unused_parameters``)
    scheduled: bool = False  # the distillation starts at a lower weight than it was run at
    # weight of the feature loss for a position of the deepest map; None where it is not a mean over the positions
    beta_per_position: float | None = None
    remarks: tuple[str, ...] = ()  # what a reader should know
    warnings: tuple[str, ...] = ()  # what trains, but may do harm or cost too much, with the cure
    problems: tuple[str, ...] = ()  # what is wrong, why it matters and how to mend it

    @property
    def healthy(self) -> bool:
        """Tell if there is neither a problem nor a warning."""
        return not self.problems and not self.warnings

    @property
    def has_self_teacher(self) -> bool:
        """Tell if a self-teacher refines the student's maps."""
        return any(level.refined_channels is not None for level in self.levels)

    @property
    def faults(self) -> tuple[str, ...]:
        """Old name of ``problems``."""
        warnings.warn("`Report.faults` is now `Report.problems`.", DeprecationWarning, stacklevel=2)
        return self.problems

    def judged(self) -> Report:
        """Return the report with its problems and warnings, and more remarks."""
        return dataclasses.replace(
            self,
            remarks=(*self.remarks, *_remarks(self)),
            warnings=tuple(_warnings(self)),
            problems=(*_problems_of_terms(self), *_problems_of_parts(self)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON: numbers that are not finite become text."""
        return {"healthy": self.healthy, **json.loads(json.dumps(dataclasses.asdict(self)), parse_constant=str)}

    def __str__(self) -> str:
        images = "x".join(map(str, self.images[1:]))
        settings = f"{self.images[0]} images {images}, {self.device}, {self.amp or 'no autocast'}"
        parts = [
            f"{self.model}, {self.method}: one training step, {settings}",
            _level_table(self) if self.levels else "The method takes no maps of the student.",
            _cost_table(self.cost),
            _term_table(self),
            "\n".join(f"Remark: {remark}." for remark in self.remarks),
            _list("WARNING", self.warnings),
            _list("PROBLEM", self.problems),
            "Healthy: every term trains what it should, and evaluation is the plain network's." if self.healthy else "",
        ]
        return "\n\n".join(part for part in parts if part)


# The rules


def _problems_of_terms(report: Report) -> Iterator[str]:
    trains = any(level.trains for level in report.levels)
    for term in report.terms:
        name = term.name
        if not math.isfinite(term.value):
            yield (
                f"{name} is {term.value}, and one step with it destroys the weights. Look at the images and at the "
                "model's initial weights; where it happens with autocast alone, use bf16 or float32."
            )
        elif any(norm is not None and not math.isfinite(norm) for norm in term.norms):
            yield (
                f"The gradient of {name} is not finite, although the term is ({term.value:g}). Add a small constant "
                "where something divides by zero or takes the root of it; with fp16, try bf16 or float32."
            )
        if term.value == 0 and not term.off:
            weight = "" if term.weight is None else f" although its weight is {term.weight:g}"
            yield (
                f"{name} is 0{weight}: it trains nothing. Look for maps of one position or of zeros, for logits of a "
                "single class under softmax (`soft_label='sigmoid'`), for a target that is the student's own output, "
                "and for a factor that switches the term off. If you want it off, give weight 0."
            )
        if trains and term.student is None and term.value != 0:
            side = "the student's side of it is detached"
            if term.teacher is not None:
                side = "the student's maps are detached before they enter the self-teacher"
            yield (
                f"{name} gives the student no gradient: {side}, or computed without a graph. Remove the `detach()` or "
                "`no_grad()` on the student's side; only the targets of the distillation are constants."
            )
        sides = (("outputs", term.targets), ("parameters", term.teacher))
        places = [f"its {side} (norm {norm:.3g})" for side, norm in sides if norm is not None]
        if report.has_self_teacher and term.kind in ("loss_kd", "loss_feat") and places:
            yield (
                f"The target of {name} is not detached: the self-teacher gets a gradient on {' and '.join(places)}, "
                "and so learns to imitate the student. Call `.detach()` on the refined maps and the teacher's logits "
                "before the term compares them."
            )


def _problems_of_parts(report: Report) -> Iterator[str]:
    if report.untrained_teacher:
        yield (
            f"No term gives a gradient to these parameters of the method: {_names(report.untrained_teacher)}. "
            "DistributedDataParallel would stop, and a map that they make would be noise. Let the graph end at the "
            "level that the teacher's classifier reads (leave `end_level` out), or remove what is not used; what is "
            "frozen on purpose has requires_grad=False."
        )
    if report.untrained_student and not report.unused_allowed:
        yield (
            f"No term gives a gradient to these parameters of the student: {_names(report.untrained_student)}. They "
            "would stay as they are, and DistributedDataParallel would stop. Remove or freeze them "
            "(requires_grad=False) or, where it is meant to be so, say find_unused_parameters=True."
        )
    for level in report.levels:
        for constant, whose in ((level.constant, "student's"), (level.refined_constant, "self-teacher's refined")):
            if constant:
                yield (
                    f"The {whose} map {level.index} ({level.size[0]}x{level.size[1]}) is constant: there is nothing in "
                    "it to learn from. Look for a dead activation, weights of zero, or a stage that does not see the "
                    "images; leave the level out with `out_indices` if it has to be so."
                )
    if report.evaluation is not None and report.evaluation.ran:
        yield (
            f"Evaluation runs the method: {_names(report.evaluation.ran)}. In eval mode the model must be the plain "
            "network: run the self-teacher in training alone (`if self.training`); of a segmentor or TimmClassifier, "
            "set predict_self_teacher=False."
        )
    if report.evaluation is not None and report.evaluation.difference != 0:
        yield (
            f"In evaluation the logits differ from the plain network's by up to {report.evaluation.difference:.3g}, so "
            "what is deployed is not what was trained: let `forward` in eval mode return the student's own output."
        )


def _warnings(report: Report) -> Iterator[str]:
    if not report.has_self_teacher:
        return
    share = report.cost.teacher_macs / max(report.cost.student_macs, 1)
    if share > 1:
        yield (
            f"The method adds {share:.2f} times the student's MACs to a step, more passes of the student (rotations) "
            "among them. In each pass width='auto' keeps the self-teacher within 0.75 of the student; so do a smaller "
            "width and fewer large maps (`out_indices`)."
        )
    feature = next((term for term in report.terms if term.kind == "loss_feat" and term.value != 0), None)
    if feature is None:
        return
    per_position = report.beta_per_position
    if feature.weight and per_position and per_position > MOST_BETA_PER_POSITION:
        deepest = next(level.size for level in reversed(report.levels) if level.size != (1, 1))
        fitting = feature.weight * USUAL_BETA_PER_POSITION / per_position
        yield (
            f"beta={feature.weight:g} is too large for images of {report.images[-2]}x{report.images[-1]}: the feature "
            f"loss is a mean over the positions, and the deepest map has few ({deepest[0]}x{deepest[1]}). The paper's "
            f"beta of 100 belongs to deepest maps of 4x4 to 8x8. Give beta={fitting:.2g} or larger images."
        )
    own = [t for t in report.terms if t.kind not in ("loss_kd", "loss_feat", "loss_teacher_ce")]
    own = [term for term in own if not term.name.startswith(("self_teacher.", "aux"))]
    ratios = {}
    for i, level in enumerate(report.levels):
        reference = math.hypot(*(term.maps[i] or 0 for term in own))
        ratios[level.index] = (feature.maps[i] or 0) / reference if reference > 0 else 0.0
    above = {index: ratio for index, ratio in ratios.items() if ratio > 1}
    if above and not report.scheduled and all(map(math.isfinite, above.values())):
        weight = f"beta={feature.weight / max(above.values()):.2g}" if feature.weight else "a smaller weight"
        yield (
            f"{feature.name} pulls at the student's maps more than the student's own loss does "
            f"({', '.join(f'map {index}: {ratio:.2g} times' for index, ratio in above.items())}), so that imitation "
            f"comes before the task. The paper's settings on CIFAR give 0.2 to 0.4 times at the start. Give {weight}, "
            "or a warm-up."
        )


def _remarks(report: Report) -> Iterator[str]:
    for term in report.terms:
        if term.value == 0 and term.off:
            why = "is switched off by its weight of 0" if term.weight == 0 else "was not computed in this step"
            yield f"{term.name} {why}"
        elif report.has_self_teacher and term.kind == "loss_feat" and term.value != 0:
            for level, norm in zip(report.levels, term.maps, strict=False):
                if level.trains and not norm:
                    why = ", whose attention map of one position is always 1" if level.size == (1, 1) else ""
                    yield f"{term.name} does not train the student's map {level.index}{why}"
    if report.untrained_student and report.unused_allowed:
        yield (
            "parameters of the student get no gradient, as the config's find_unused_parameters=True allows: "
            f"{_names(report.untrained_student)}"
        )


def _names(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


# The report as text


def _list(word: str, texts: Sequence[str]) -> str:
    head = f"{len(texts)} {word}{'' if len(texts) == 1 else 'S'}"
    return "\n".join([head, *(f"  {i}. {text}" for i, text in enumerate(texts, 1))]) if texts else ""


def _table(title: str, rows: Sequence[Sequence[object]]) -> str:
    """Return rows as aligned columns under a title, the first to the left and the others to the right."""
    first, *others = zip(*[[str(cell) for cell in row] for row in rows], strict=True)
    columns = [[cell.ljust(max(map(len, first))) for cell in first]]
    columns += [[cell.rjust(max(map(len, column))) for cell in column] for column in others]
    return "\n".join([title, *("  " + "  ".join(row).rstrip() for row in zip(*columns, strict=True))])


def _level_table(report: Report) -> str:
    def shape(channels: int | None, size: tuple[int, int] | None) -> str:
        return "-" if channels is None or size is None else f"{channels}, {size[0]}x{size[1]}"

    rows: list[list[object]] = [["map", "stride", "student", "self-teacher"]]
    for lv in report.levels:
        rows.append([lv.index, lv.stride, shape(lv.channels, lv.size), shape(lv.refined_channels, lv.refined_size)])
    width = 4 if report.has_self_teacher else 3
    return _table("Matched levels (channels, height x width)", [row[:width] for row in rows])


def _cost_table(cost: Cost) -> str:
    rows: list[list[object]] = [["", "student", "method adds", "share"]]
    for name, student, teacher, unit, digits in (
        ("parameters (M)", cost.student_parameters, cost.teacher_parameters, 1e6, 3),
        ("MACs of an image (M)", cost.student_macs, cost.teacher_macs, 1e6, 1),
        ("kept for backward (MiB)", cost.student_memory, cost.teacher_memory, 2**20, 1),
    ):
        numbers = [f"{number / unit:.{digits}f}" for number in (student, teacher)]
        rows.append([name, *numbers, f"{teacher / student:.2f}" if student else "-"])
    return _table("Cost of a training step; at inference nothing is added", rows)


def _term_table(report: Report) -> str:
    maps = [f"map {level.index}" for level in report.levels]
    teacher = ["self-teacher", "targets"] if report.has_self_teacher else ["method"]
    rows: list[list[object]] = [["term", "weight", "value", *maps, "logits", "student", "classifier", *teacher]]
    for term in report.terms:
        norms = [*term.maps, term.logits, term.student, term.classifier, term.teacher, term.targets]
        weight = "-" if term.weight is None else f"{term.weight:g}"
        texts = ["-" if norm is None else f"{norm:.2e}" for norm in norms[: 3 + len(maps) + len(teacher)]]
        rows.append([term.name, weight, f"{term.value:.4g}", *texts])
    return _table("Terms of the loss (weighted) and the norms of their gradients", rows)
