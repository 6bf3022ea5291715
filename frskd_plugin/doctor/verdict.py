"""What an examination means: each rule takes a report and says, in plain words, what is wrong and how to mend it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

from frskd_plugin.doctor.report import Report, Term

MOST_NAMES = 5


def with_verdict(report: Report, remarks: Iterable[str] = ()) -> Report:
    """The report with every rule's faults and remarks, behind the ``remarks`` that are given."""
    faults = [fault for rule in FAULTS for fault in rule(report)]
    found = [remark for rule in REMARKS for remark in rule(report)]
    return dataclasses.replace(report, faults=tuple(faults), remarks=(*report.remarks, *remarks, *found))


def not_finite(report: Report) -> Iterator[str]:
    """A term, or a gradient of it, is infinite or not a number."""
    for term in report.terms:
        if not math.isfinite(term.value):
            yield (
                f"{term.name} is {term.value}. One step with it destroys the weights. Look at the images and at the "
                "model's initial weights; where it happens with autocast alone, use bf16 or float32."
            )
        elif any(norm is not None and not math.isfinite(norm) for norm in _norms(term)):
            yield (
                f"The gradient of {term.name} is not finite, although the term is ({term.value:g}): something divides "
                "by zero or takes the root of it. Add a small constant there; with fp16, try bf16 or float32."
            )


def zero_terms(report: Report) -> Iterator[str]:
    """A term that has a weight is zero."""
    for term in report.terms:
        if term.value == 0 and not _zero_by_choice(term):
            weight = "" if term.weight is None else f" although its weight is {term.weight:g}"
            yield (
                f"{term.name} is 0{weight}: it trains nothing. On random data student and target never agree by "
                "themselves. Look for maps of one position or of zeros (levels above), for a target that is the "
                "student's own output, and for a factor that switches the term off. If you want it off, give weight 0."
            )


def idle_terms(report: Report) -> Iterator[str]:
    """A term trains nothing of a student that trains."""
    if not any(level.trains for level in report.levels):
        return
    for term in report.terms:
        if term.student is None and term.value != 0:
            reason = "the student's side of it is detached"
            if term.teacher is not None:
                reason = "the student's maps are detached before they enter the self-teacher"
            yield (
                f"{term.name} gives the student no gradient: {reason}, or computed without a graph. Remove the "
                "`detach()` or `no_grad()` on the student's side; only the targets of the distillation are constants."
            )


def open_targets(report: Report) -> Iterator[str]:
    """A distillation term gives a gradient to the self-teacher."""
    if not _has_self_teacher(report):
        return
    for term in report.terms:
        places = []
        if term.is_distillation:
            places += [f"its outputs (norm {term.targets:.3g})"] if term.targets is not None else []
            places += [f"its parameters (norm {term.teacher:.3g})"] if term.teacher is not None else []
        if places:
            yield (
                f"The target of {term.name} is not detached: the term gives the self-teacher a gradient, on "
                f"{' and '.join(places)}, so that the teacher also learns to imitate the student. Call `.detach()` on "
                "the refined maps and the teacher's logits before the term compares them."
            )


def untrained_teacher(report: Report) -> Iterator[str]:
    """A parameter of the method has no gradient."""
    if report.untrained_teacher:
        yield (
            f"{_count(report.untrained_teacher, 'parameter')} of the method get no gradient from any term: "
            f"{_names(report.untrained_teacher)}. DistributedDataParallel would stop, and a map that they make would "
            "be noise. Let the graph end at the level that the teacher's classifier reads (leave `end_level` out), or "
            "remove what is not used; what is frozen on purpose has requires_grad=False."
        )


def untrained_student(report: Report) -> Iterator[str]:
    """A parameter of the student that trains has no gradient."""
    if report.untrained_student and not report.unused_allowed:
        yield (
            f"{_count(report.untrained_student, 'parameter')} of the student require a gradient and get none from any "
            f"term: {_names(report.untrained_student)}. They would stay as they are, and DistributedDataParallel would "
            "stop. Remove that part of the network, freeze it (requires_grad=False), or, where it is meant to be so, "
            "say find_unused_parameters=True."
        )


def dead_maps(report: Report) -> Iterator[str]:
    """A map is the same everywhere."""
    for level in report.levels:
        for constant, whose in (
            (level.constant, "student's map"),
            (level.refined_constant, "self-teacher's refined map"),
        ):
            if constant:
                yield (
                    f"The {whose} {level.index} ({level.size[0]}x{level.size[1]}) is constant: there is nothing in it "
                    "to learn from. Look for a dead activation, weights of zero, or a stage that does not see the "
                    "images; leave the level out with `out_indices` if it has to be so."
                )


def evaluation(report: Report) -> Iterator[str]:
    """Evaluation is not the plain network's."""
    if report.evaluation is None:
        return
    if report.evaluation.ran:
        yield (
            f"Evaluation runs the method: {_names(report.evaluation.ran)}. In eval mode the model must be the plain "
            "network. Run the self-teacher in training alone (`if self.training`); of a segmentor or TimmClassifier, "
            "set predict_self_teacher=False."
        )
    if report.evaluation.difference != 0:
        yield (
            f"In evaluation the logits differ from the plain network's by up to {report.evaluation.difference:.3g}: "
            "what is deployed would not be what was trained. Let the eval branch of `forward` return the student's "
            "own output."
        )


def chosen_zeros(report: Report) -> Iterator[str]:
    """A term is off, and was meant to be."""
    for term in report.terms:
        if term.value == 0 and _zero_by_choice(term):
            why = "is switched off by its weight of 0" if term.weight == 0 else "was not computed in this step"
            yield f"{term.name} {why}"


def undistilled_levels(report: Report) -> Iterator[str]:
    """The feature loss does not reach a level."""
    if not _has_self_teacher(report):
        return
    for term in report.terms:
        if not term.name.endswith("loss_feat") or term.value == 0:
            continue
        for level, norm in zip(report.levels, term.maps, strict=False):
            if level.trains and not norm:
                why = ", whose attention map of one position is always 1" if level.size == (1, 1) else ""
                yield f"{term.name} does not train the student's map {level.index}{why}"


def still_teacher(report: Report) -> Iterator[str]:
    """Parameters of the method whose gradient is zero at this point."""
    if report.still_teacher:
        yield (
            f"the gradient of {_count(report.still_teacher, 'parameter')} of the method is exactly zero on this batch: "
            f"{_names(report.still_teacher)}"
        )


def allowed_unused(report: Report) -> Iterator[str]:
    """Parameters without a gradient that the config allows."""
    if report.untrained_student and report.unused_allowed:
        yield (
            f"{_count(report.untrained_student, 'parameter')} of the student get no gradient, as the config's "
            f"find_unused_parameters=True allows: {_names(report.untrained_student)}"
        )


FAULTS = (
    not_finite,
    zero_terms,
    idle_terms,
    open_targets,
    untrained_teacher,
    untrained_student,
    dead_maps,
    evaluation,
)
REMARKS = (chosen_zeros, undistilled_levels, still_teacher, allowed_unused)


def _zero_by_choice(term: Term) -> bool:
    """Its weight is 0; or, where nobody knows the weight, it is a constant 0 that was never computed."""
    return term.weight == 0 or (term.weight is None and all(norm is None for norm in _norms(term)))


def _norms(term: Term) -> Sequence[float | None]:
    return (*term.maps, term.logits, term.student, term.teacher, term.targets)


def _has_self_teacher(report: Report) -> bool:
    return any(level.refined_channels is not None for level in report.levels)


def _count(names: Sequence[str], what: str) -> str:
    return f"{len(names)} {what}{'' if len(names) == 1 else 's'}"


def _names(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
