"""Soft labels compared at another size than that of the logits, without ever holding the resized logits whole."""

from __future__ import annotations

import torch
from torch import Tensor

from frskd_plugin.core.checks import check_positive_int
from frskd_plugin.core.early_gradient import with_known_gradient
from frskd_plugin.core.resize import Size, resize_bilinear
from frskd_plugin.core.soft_label import soft_label_loss

# of a piece of one resized map: on a CPU what lies in the cache of a core, elsewhere what keeps the device busy
CPU_PIECE_BYTES, PIECE_BYTES = 2**21, 2**26


def resized_soft_label_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    size: Size,
    temperature: float = 4.0,
    variant: str = "published",
    align_corners: bool = False,
    rows: int | None = None,
) -> Tensor:
    """`soft_label_loss` of both maps of logits, resized to ``size`` (bilinear) some rows of an image at a time.

    Value and gradient are those of resizing first, up to rounding. The student's gradient is computed along with the
    loss, so that of both resized maps a piece of ``rows`` rows is there at a time, and nothing of them is kept for the
    backward pass. On a CPU that is the faster way too: the pieces stay in the cache.

    Args:
        student_logits: [B, K, h, w].
        teacher_logits: [B, K, h', w']; gets no gradient.
        size: height and width at which they are compared.
        temperature: T, divides both logits.
        variant: 'published' or 'equations'.
        align_corners: of the interpolation.
        rows: rows of a piece; None takes about 2 MiB of each map on a CPU, up to 64 MiB elsewhere.

    Raises:
        TypeError: if ``rows`` is not an int.
        ValueError: if the logits are not maps of one batch and the same classes, or ``rows`` is below 1.

    >>> import torch
    >>> student, teacher = torch.randn(2, 5, 4, 4), torch.randn(2, 5, 8, 8)
    >>> whole = soft_label_loss(*(resize_bilinear(x, (16, 16), False) for x in (student, teacher)))
    >>> torch.allclose(resized_soft_label_loss(student, teacher, (16, 16), rows=3), whole)
    True
    """
    _check_maps(student_logits, teacher_logits)
    batch, classes = student_logits.shape[:2]
    if rows is None:
        limit = CPU_PIECE_BYTES if student_logits.device.type == "cpu" else PIECE_BYTES
        rows = max(1, limit // (classes * size[1] * 4))
    check_positive_int("rows", rows)
    needs_gradient = torch.is_grad_enabled() and student_logits.requires_grad
    total, gradients = 0.0, []
    for student, teacher in zip(student_logits.detach().split(1), teacher_logits.detach().split(1), strict=True):
        value, gradient = _of_image(student, teacher, size, (temperature, variant), align_corners, rows, needs_gradient)
        total = total + value / batch
        gradients.append(gradient / batch)
    return with_known_gradient(student_logits, total, torch.cat(gradients)) if needs_gradient else total


def _of_image(
    student: Tensor,
    teacher: Tensor,
    size: Size,
    form: tuple[float, str],
    align_corners: bool,
    rows: int,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """The loss of one image, [1, K, h, w] each, and its gradient in the student's logits, zeros where not needed.

    Bilinear interpolation goes axis by axis: the heights at once, the widths, which make the maps large, by pieces.
    """
    height, width = size
    dtype = torch.promote_types(student.dtype, torch.float32)
    # in NCHW whatever came: a softmax over channels_last maps of few classes is slow
    student, teacher = student.to(dtype).contiguous(), teacher.to(dtype).contiguous()
    student.requires_grad_(needs_gradient)
    with torch.set_grad_enabled(needs_gradient):
        student_columns = resize_bilinear(student, (height, student.shape[3]), align_corners)
    teacher_columns = resize_bilinear(teacher, (height, teacher.shape[3]), align_corners)
    total, gradients = student.new_zeros(()), []
    student_pieces = student_columns.detach().split(rows, dim=2)
    for student_piece, teacher_piece in zip(student_pieces, teacher_columns.split(rows, dim=2), strict=True):
        share = student_piece.shape[2] / height
        target = resize_bilinear(teacher_piece, (teacher_piece.shape[2], width), align_corners)
        with torch.set_grad_enabled(needs_gradient):
            leaf = student_piece.requires_grad_(needs_gradient)
            resized = resize_bilinear(leaf, (leaf.shape[2], width), align_corners)
            loss = share * soft_label_loss(resized, target, *form)
        if needs_gradient:
            gradients += torch.autograd.grad(loss, leaf)
        total += loss.detach()
    if not needs_gradient:
        return total, torch.zeros_like(student)
    (gradient,) = torch.autograd.grad(student_columns, student, torch.cat(gradients, dim=2))
    return total, gradient


def _check_maps(student_logits: Tensor, teacher_logits: Tensor) -> None:
    if student_logits.ndim != 4 or teacher_logits.ndim != 4 or student_logits.shape[:2] != teacher_logits.shape[:2]:
        raise ValueError(
            "Soft labels of maps need logits [B, K, H, W] of one batch and the same classes, got "
            f"{list(student_logits.shape)} and {list(teacher_logits.shape)}. Give both heads the same classes."
        )
