"""A report as text for a reader."""

from __future__ import annotations

from collections.abc import Sequence

from frskd_plugin.doctor.report import Cost, Level, Report, Term

MIB = 1024**2
NONE = "-"


def describe(report: Report) -> str:
    """Several lines; the verdict is the last part."""
    images = "x".join(map(str, report.images[1:]))
    settings = f"{report.images[0]} random images {images}, {report.device}, {report.amp or 'no autocast'}"
    parts = [
        f"{report.model}, {report.method}: one training step, {settings}",
        _levels(report.levels),
        _cost(report.cost),
        _terms(report.terms, report.levels),
        "\n".join(f"Remark: {remark}." for remark in report.remarks),
        _verdict(report),
    ]
    return "\n\n".join(part for part in parts if part)


def table(rows: Sequence[Sequence[object]]) -> str:
    """Rows as aligned columns, the first to the left and the others to the right.

    >>> print(table([["a", "long"], ["word", 7]]))
      a     long
      word     7
    """
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*texts, strict=True)]
    lines = []
    for first, *others in texts:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def _levels(levels: Sequence[Level]) -> str:
    if not levels:
        return "The method takes no maps of the student."
    with_teacher = any(level.refined_channels is not None for level in levels)
    rows: list[list[object]] = [["map", "stride", "student", *(["self-teacher"] if with_teacher else [])]]
    for level in levels:
        row: list[object] = [level.index, level.stride, _shape(level.channels, level.size)]
        rows.append(row + ([_shape(level.refined_channels, level.refined_size)] if with_teacher else []))
    return "Matched levels (channels, height x width)\n" + table(rows)


def _shape(channels: int | None, size: tuple[int, int] | None) -> str:
    return NONE if channels is None or size is None else f"{channels}, {size[0]}x{size[1]}"


def _cost(cost: Cost) -> str:
    rows: list[list[object]] = [["", "student", "method adds", "share"]]
    for name, student, teacher, unit, digits in (
        ("parameters (M)", cost.student_parameters, cost.teacher_parameters, 1e6, 3),
        ("MACs of an image (M)", cost.student_macs, cost.teacher_macs, 1e6, 1),
        ("kept for backward (MiB)", cost.student_memory, cost.teacher_memory, MIB, 1),
    ):
        numbers = [f"{number / unit:.{digits}f}" for number in (student, teacher)]
        rows.append([name, *numbers, f"{teacher / student:.2f}" if student else NONE])
    return "Cost of a training step; at inference nothing is added\n" + table(rows)


def _terms(terms: Sequence[Term], levels: Sequence[Level]) -> str:
    maps = [f"map {level.index}" for level in levels]
    with_teacher = any(level.refined_channels is not None for level in levels)
    teacher = ["self-teacher", "targets"] if with_teacher else ["method"]
    rows: list[list[object]] = [["term", "weight", "value", *maps, "logits", "student", "classifier", *teacher]]
    for term in terms:
        norms = [*term.maps, term.logits, term.student, term.classifier, term.teacher, term.targets]
        weight = NONE if term.weight is None else f"{term.weight:g}"
        texts = [NONE if norm is None else f"{norm:.2e}" for norm in norms[: 3 + len(maps) + len(teacher)]]
        rows.append([term.name, weight, f"{term.value:.4g}", *texts])
    return "Terms of the loss (weighted) and the norms of their gradients\n" + table(rows)


def _verdict(report: Report) -> str:
    if report.healthy:
        return "Verdict: healthy. Every term trains what it should, and evaluation is the plain network's."
    count = "1 FAULT" if len(report.faults) == 1 else f"{len(report.faults)} FAULTS"
    return "\n".join([f"Verdict: {count}", *(f"  {i}. {fault}" for i, fault in enumerate(report.faults, 1))])
