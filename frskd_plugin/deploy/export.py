"""Writes a student to a file, and checks the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from frskd_plugin.deploy.check import check_difference, check_only_student
from frskd_plugin.deploy.formats import FORMATS, FileFormat
from frskd_plugin.deploy.student import Student

DEFAULT_TOLERANCE = 1e-4
ANY_STEP = 32  # how much larger the second images are, where every size is allowed


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the file.
        parameters: how many it holds, all of them the student's.
        sizes: of the images it was tried on, [B, C, H, W] each.
        differences: of its logits from torch's, as a share of torch's largest logit, for each size.
    """

    path: Path
    parameters: int
    sizes: tuple[tuple[int, ...], ...]
    differences: tuple[float, ...]


def export_student_file(
    student: Student,
    path: str | Path,
    file_format: str,
    size: Sequence[int] | None = None,
    batch: int = 1,
    dynamic: str | int | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
) -> Exported:
    """Write the student to a file, run the file, and compare it with torch.

    Args:
        student: the network.
        path: of the file; it is removed again if it does not pass.
        file_format: 'onnx' or 'torch_export'.
        size: height and width of the images; None: those of the student.
        batch: images in a batch.
        dynamic: None: batch and size are fixed. 'batch': any batch. An int: any batch, and any height and width that
            are multiples of it.
        tolerance: largest allowed difference, as a share of torch's largest logit.

    Raises:
        ImportError: a package that the format needs is missing.
        ValueError: an argument is out of range, or the network cannot be traced.
        CheckError: the file does not compute what torch does, or holds more than the student.
    """
    path = Path(path)
    made = _format(file_format, path)
    if not tolerance > 0:
        raise ValueError(f"--tolerance must be > 0 (a share of the largest logit), got {tolerance}")
    made.require()
    sizes = image_sizes(student, size, batch, dynamic)
    program = trace(student, sizes[0], dynamic)
    path.parent.mkdir(parents=True, exist_ok=True)
    unchecked = path.with_name(f".{path.stem}.unchecked{path.suffix}")
    try:
        made.write(program, unchecked)
        parameters = check_only_student(made.tensors(unchecked), student.network)
        differences = check_difference(made.read(unchecked), student.network, sizes, tolerance)
        unchecked.replace(path)  # an earlier file stays where the new one is no good
    finally:
        unchecked.unlink(missing_ok=True)
    return Exported(path, parameters, tuple(sizes), tuple(differences))


def _format(name: str, path: Path) -> FileFormat:
    if name not in FORMATS:
        raise ValueError(f"--format must be one of {', '.join(FORMATS)}, got {name!r}")
    if path.suffix not in FORMATS[name].suffixes:
        raise ValueError(f"a file of --format {name} ends in {' or '.join(FORMATS[name].suffixes)}, got {path}")
    return FORMATS[name]


def image_sizes(
    student: Student, size: Sequence[int] | None, batch: int, dynamic: str | int | None
) -> list[tuple[int, int, int, int]]:
    """Images to trace with, and further ones to try the file on.

    Raises:
        ValueError: a number is out of range, or the size is no multiple of what ``dynamic`` says.
    """
    channels, height, width = student.input_size
    height, width = size or (height, width)
    if min(batch, height, width) < 1:
        raise ValueError(f"--batch and --size must be above 0, got {batch} and {height} {width}")
    if dynamic is None:
        return [(batch, channels, height, width)]
    first = (max(batch, 2), channels, height, width)  # torch takes a batch of 1 for one that is always 1
    if dynamic == "batch":
        return [first, (1, channels, height, width)]
    if not isinstance(dynamic, int) or dynamic < 1:
        raise ValueError(f"--dynamic takes 'batch', or the number that height and width are multiples of: {dynamic!r}")
    if height % dynamic or width % dynamic:
        raise ValueError(f"--size {height} {width} must be multiples of {dynamic}, as --dynamic {dynamic} says")
    step = dynamic if dynamic > 1 else ANY_STEP
    return [first, (first[0] + 1, channels, height + step, width + 2 * step), (1, channels, height, width)]


def trace(student: Student, size: Sequence[int], dynamic: str | int | None = None) -> ExportedProgram:
    """The program of the network for images [B, C, H, W].

    Raises:
        ValueError: torch cannot trace it, or not for all the sizes asked for.
    """
    shapes = None if dynamic is None else (_dynamic_dims(dynamic),)
    images = torch.rand(*size)
    try:
        with torch.no_grad():
            program = torch.export.export(student.network, (images,), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # the tracer's own kinds of errors
        hint = "" if dynamic is None else _hint(dynamic)
        raise ValueError(
            f"torch.export cannot trace the network on images {list(size)}: {type(error).__name__}: "
            f"{str(error).strip().splitlines()[0]}{hint}"
        ) from error
    for node in program.graph.nodes:  # the lines of source, with the paths of this machine
        node.meta.pop("stack_trace", None)
    return program


def _dynamic_dims(dynamic: str | int) -> dict[int, object]:
    if dynamic == "batch":
        return {0: Dim.DYNAMIC}
    if dynamic == 1:
        return {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    return {0: Dim("batch"), 2: dynamic * Dim("height_parts"), 3: dynamic * Dim("width_parts")}


def _hint(dynamic: str | int) -> str:
    if dynamic == "batch":
        return " Leave --dynamic out, with --batch of the size you need."
    return (
        " A network whose maps must halve evenly takes sizes in multiples: --dynamic 32, --dynamic 128. One that is "
        "made for one size takes --dynamic batch."
    )
