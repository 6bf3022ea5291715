"""Soft-label distillation (Eq. 4; reference sections 4 and 9) by a softmax or a sigmoid, at any size."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frskd_plugin.core.blocks import Size, resize_bilinear
from frskd_plugin.core.checks import check_one_of, check_positive_int, check_temperature
from frskd_plugin.core.immediate_gradient import with_known_gradient

LOSS_VARIANTS = ("published", "equations")
SOFT_LABELS = ("auto", "softmax", "sigmoid")
NORMALIZERS = ("auto", "positions", "foreground")
# criteria of torch and timm that decide each class on its own, by the names of class or function
SIGMOID_CRITERIA = frozenset(
    {
        "BCEWithLogitsLoss",
        "MultiLabelSoftMarginLoss",
        "SoftMarginLoss",
        "BinaryCrossEntropy",
        "AsymmetricLossMultiLabel",
        "binary_cross_entropy_with_logits",
        "multilabel_soft_margin_loss",
        "soft_margin_loss",
        "sigmoid_focal_loss",
    }
)
SOFTMAX_CRITERIA = frozenset(
    {
        "CrossEntropyLoss",
        "LabelSmoothingCrossEntropy",
        "SoftTargetCrossEntropy",
        "JsdCrossEntropy",
        "AsymmetricLossSingleLabel",
        "cross_entropy",
    }
)
# of a piece of one resized map: on a CPU what lies in the cache of a core, elsewhere what keeps the device busy
CPU_PIECE_BYTES, PIECE_BYTES = 2**21, 2**26


def criterion_soft_label(criterion: Any) -> str | None:
    """Return how a criterion turns logits into probabilities: 'softmax', 'sigmoid', or None where that is not known.

    Known are the criteria of torch and timm, partial ones too, and those with an attribute ``use_sigmoid`` (OpenMMLab).

    Args:
        criterion: a loss of logits against targets, or several of them.

    >>> criterion_soft_label(nn.BCEWithLogitsLoss()), criterion_soft_label(F.cross_entropy), criterion_soft_label(min)
    ('sigmoid', 'softmax', None)
    """
    if isinstance(criterion, Iterable):
        kinds = {criterion_soft_label(one) for one in criterion} - {None}
        return kinds.pop() if len(kinds) == 1 else "softmax" if kinds else None
    while isinstance(criterion, functools.partial):
        criterion = criterion.func
    use_sigmoid = getattr(criterion, "use_sigmoid", None)
    if isinstance(use_sigmoid, bool):
        return "sigmoid" if use_sigmoid else "softmax"
    names = {getattr(criterion, "__name__", ""), *(base.__name__ for base in type(criterion).__mro__)}
    return "sigmoid" if names & SIGMOID_CRITERIA else "softmax" if names & SOFTMAX_CRITERIA else None


def soft_label_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 4.0,
    variant: str = "published",
    valid: Tensor | None = None,
) -> Tensor:
    """Divergence of the student's from the teacher's softened prediction; the teacher is a constant.

    'published': ``T^2 * KL(teacher || student)``. 'equations': ``KL(student || teacher)``, no factor. Both are the mean
    over the batch and over all positions, and are computed in float32 at least. A class whose logit is -inf on both
    sides counts for nothing.

    Args:
        student_logits: [B, K] or, a position each, [B, K, H, W]; K is at least 2.
        teacher_logits: the same shape; gets no gradient.
        temperature: T, divides both logits.
        variant: 'published' or 'equations'.
        valid: bool [B] or [B, H, W], the positions that count; the mean is over these, and 0 where there is none.

    Raises:
        ValueError: if the shapes differ, or there is one logit, whose softmax is always 1.

    >>> import torch
    >>> logits = torch.tensor([[1.0, 2.0, 3.0]])
    >>> round(soft_label_loss(logits, logits.flip(1), temperature=1.0).item(), 4)
    1.1504
    """
    _check_logits(student_logits, teacher_logits, valid)
    if student_logits.shape[1] == 1:
        raise ValueError(
            f"A softmax over one logit is always 1 and teaches nothing, got logits {list(student_logits.shape)}: give "
            "soft_label='sigmoid', or a network of two classes."
        )
    with torch.autocast(student_logits.device.type, enabled=False):
        dtype = torch.promote_types(student_logits.dtype, torch.float32)
        student = F.log_softmax(_softened(student_logits, dtype, temperature), dim=1)
        teacher = F.log_softmax(_softened(teacher_logits.detach(), dtype, temperature), dim=1)
        return _divergence(student, teacher, temperature, variant, _positions(student_logits, valid), valid)


def mean_prediction(logits: Tensor, other_logits: Tensor, soft_label: str = "auto") -> Tensor:
    """Return the ensemble of two classifiers as logits: the mean of their probabilities, not of their logits.

    With 'softmax' they are the logarithms of the mean, so that a softmax gives it back; with 'sigmoid', each class on
    its own, so that a sigmoid does.

    Args:
        logits: [B, K] or, a position each, [B, K, H, W].
        other_logits: the same shape.
        soft_label: 'softmax' or 'sigmoid'; 'auto' takes 'sigmoid' for one logit.

    >>> import torch
    >>> first, second = torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.4, 0.6]]).log()
    >>> [round(share, 4) for share in mean_prediction(first, second).exp().flatten().tolist()]
    [0.6, 0.4]
    """
    if soft_label == "sigmoid" or (soft_label == "auto" and logits.shape[1] == 1):
        yes = torch.logaddexp(F.logsigmoid(logits), F.logsigmoid(other_logits))
        return yes - torch.logaddexp(F.logsigmoid(-logits), F.logsigmoid(-other_logits))
    return torch.logaddexp(F.log_softmax(logits, dim=1), F.log_softmax(other_logits, dim=1)) - math.log(2)


def expected_foreground(logits: Tensor, valid: Tensor | None = None) -> Tensor:
    """Sum of each position's top class probability, at least 1: how many positions show an object by these logits.

    A smooth, label-free stand-in for the number of positive positions, by which dense heads divide their own loss.

    Args:
        logits: [B, K, ...], before the sigmoid.
        valid: bool [B, ...], the positions that count.

    >>> import torch
    >>> expected_foreground(torch.tensor([[[0.0, 0.0, 0.0, -99.0], [-9.0, -9.0, -9.0, -99.0]]])).item()
    1.5
    """
    with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
        dtype = torch.promote_types(logits.dtype, torch.float32)
        confidence = logits.amax(dim=1).to(dtype).sigmoid()
        return (confidence if valid is None else confidence * valid).sum().clamp(min=1)


def binary_soft_label_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    variant: str = "published",
    normalize: str = "foreground",
    valid: Tensor | None = None,
) -> Tensor:
    """Divergence of Bernoulli distributions, one a class and position; the teacher is a constant.

    With p = sigmoid(student / T) and q = sigmoid(teacher / T), the sum over all classes and positions of
    ``KL(q || p) = q log(q / p) + (1 - q) log((1 - q) / (1 - p))``, divided as ``normalize`` says. 'published' and
    'equations' differ as in `soft_label_loss`: ``T^2 KL(q || p)``, or ``KL(p || q)`` and no factor. Computed in float32
    at least. Its gradient in a logit is ``(p - q) * T`` ('published') over the divisor.

    Almost all positions of a detector are background on which both agree, so a mean over the positions falls with the
    number of anchors. 'foreground' divides by `expected_foreground` of the teacher, as a dense head divides its own
    loss by the number of positive positions: both then weigh alike, for any number of anchors.

    Args:
        student_logits: [B, K, ...], K classes and any number of positions behind them.
        teacher_logits: the same shape; gets no gradient.
        temperature: T, divides both logits.
        variant: 'published' or 'equations'.
        normalize: 'foreground'; 'positions' for the mean over batch and positions, as `soft_label_loss` takes it; or
            'auto', 'foreground' for logits [B, K, N] of N anchors and 'positions' for all others.
        valid: bool [B, ...], the positions that count, in the sum and in the divisor.

    Raises:
        ValueError: if the shapes differ.

    >>> import torch
    >>> student, teacher = torch.zeros(1, 2, 1), torch.tensor([[[0.0], [1.0]]])
    >>> round(binary_soft_label_loss(student, teacher, normalize="positions").item(), 4)
    0.1109
    >>> binary_soft_label_loss(teacher, teacher).item()
    0.0
    """
    _check_logits(student_logits, teacher_logits, valid)
    with torch.autocast(student_logits.device.type, enabled=False):
        dtype = torch.promote_types(student_logits.dtype, torch.float32)
        student = _log_outcomes(_softened(student_logits, dtype, temperature))
        teacher = _log_outcomes(_softened(teacher_logits.detach(), dtype, temperature))
        if normalize == "foreground" or (normalize == "auto" and student_logits.ndim == 3):
            divisor: Tensor | int = expected_foreground(teacher_logits, valid).to(dtype)
        else:
            divisor = _positions(student_logits, valid)
        return _divergence(student, teacher, temperature, variant, divisor, valid)


def resized_soft_label_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    size: Size,
    temperature: float = 4.0,
    variant: str = "published",
    align_corners: bool = False,
    rows: int | None = None,
    teacher_align_corners: bool | None = None,
    soft_label: str = "softmax",
    valid: Tensor | None = None,
) -> Tensor:
    """Mean soft-label loss of both maps of logits, resized to ``size`` (bilinear) some rows of an image at a time.

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
        teacher_align_corners: of the interpolation of the teacher's logits; None is as the student's.
        soft_label: 'softmax' for `soft_label_loss`, 'sigmoid' for `binary_soft_label_loss` over the positions.
        valid: bool [B, H, W] of that size, the positions that count.

    Raises:
        TypeError: if ``rows`` is not an int.
        ValueError: if the logits are not maps of one batch and the same classes, or ``rows`` is below 1.

    >>> import torch
    >>> student, teacher = torch.randn(2, 5, 4, 4), torch.randn(2, 5, 8, 8)
    >>> whole = soft_label_loss(*(resize_bilinear(x, (16, 16), False) for x in (student, teacher)))
    >>> torch.allclose(resized_soft_label_loss(student, teacher, (16, 16), rows=3), whole)
    True
    """
    _check_maps(student_logits, teacher_logits, size, valid)
    batch, classes = student_logits.shape[:2]
    if rows is None:
        limit = CPU_PIECE_BYTES if student_logits.device.type == "cpu" else PIECE_BYTES
        rows = max(1, limit // (classes * size[1] * 4))
    check_positive_int("rows", rows)
    loss = functools.partial(_MEAN_LOSSES[soft_label], temperature=temperature, variant=variant)
    corners = (align_corners, align_corners if teacher_align_corners is None else teacher_align_corners)
    needs_gradient = torch.is_grad_enabled() and student_logits.requires_grad
    divisor = batch if valid is None else valid.sum().clamp(min=1)
    total, gradients = 0.0, []
    for image in range(batch):
        student, teacher = (x.detach()[image : image + 1] for x in (student_logits, teacher_logits))
        counted = None if valid is None else valid[image : image + 1]
        value, gradient = _of_image(student, teacher, size, loss, corners, rows, counted, needs_gradient)
        total = total + value / divisor
        gradients.append(gradient / divisor)
    return with_known_gradient(student_logits, total, torch.cat(gradients)) if needs_gradient else total


class SoftLabelLoss(nn.Module):
    """Module form of the soft-label losses.

    Args:
        temperature: T > 0.
        variant: 'published' or 'equations'.
        soft_label: 'softmax' (`soft_label_loss`), 'sigmoid' (`binary_soft_label_loss`), or 'auto', 'sigmoid' for one
            logit and 'softmax' for more.
        normalize: of 'sigmoid', see `binary_soft_label_loss`.

    Raises:
        ValueError: for a temperature that is not positive, or an unknown variant, soft label or normalisation.
    """

    def __init__(
        self,
        temperature: float = 4.0,
        variant: str = "published",
        soft_label: str = "softmax",
        normalize: str = "auto",
    ) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        self.variant = check_one_of("variant", variant, LOSS_VARIANTS)
        self.soft_label = check_one_of("soft_label", soft_label, SOFT_LABELS)
        self.normalize = check_one_of("normalize", normalize, NORMALIZERS)

    def extra_repr(self) -> str:
        """Settings of the loss."""
        return f"{self.temperature}, {self.variant!r}, soft_label={self.soft_label!r}"

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        size: Size | None = None,
        align_corners: bool = False,
        teacher_align_corners: bool | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, K, ...] twice -> scalar.

        Args:
            student_logits: [B, K, ...].
            teacher_logits: the same shape; gets no gradient.
            size: height and width at which maps of logits are compared, see `resized_soft_label_loss`; None compares
                them as they are.
            align_corners: of that interpolation.
            teacher_align_corners: the same for the teacher's logits; None is as the student's.
            valid: bool [B, ...], the positions that count, at ``size`` where it is given.

        Raises:
            ValueError: if the shapes do not fit.
        """
        kind = self.soft_label
        if kind == "auto":
            kind = "sigmoid" if student_logits.shape[1] == 1 else "softmax"
        form = (self.temperature, self.variant)
        foreground = kind == "sigmoid" and self.normalize == "foreground"
        teacher_corners = align_corners if teacher_align_corners is None else teacher_align_corners
        if size is not None and not foreground:  # a mean over the positions, which can be taken piece by piece
            both = (student_logits, teacher_logits)
            return resized_soft_label_loss(*both, size, *form, align_corners, None, teacher_corners, kind, valid)
        if size is not None:
            _check_maps(student_logits, teacher_logits, size, valid)
            student_logits = resize_bilinear(finite_logits(student_logits), size, align_corners)
            teacher_logits = resize_bilinear(finite_logits(teacher_logits.detach()), size, teacher_corners)
        if kind == "sigmoid":
            return binary_soft_label_loss(student_logits, teacher_logits, *form, self.normalize, valid)
        return soft_label_loss(student_logits, teacher_logits, *form, valid)


class BinarySoftLabelLoss(SoftLabelLoss):
    """Module form of `binary_soft_label_loss`, with the defaults of a detector.

    Args:
        temperature: T > 0.
        variant: 'published' or 'equations'.
        normalize: 'foreground', 'positions' or 'auto'.

    Raises:
        ValueError: for a temperature that is not positive, or an unknown variant or normalisation.
    """

    def __init__(self, temperature: float = 1.0, variant: str = "published", normalize: str = "foreground") -> None:
        super().__init__(temperature, variant, "sigmoid", normalize)


_MEAN_LOSSES: dict[str, Callable[..., Tensor]] = {
    "softmax": soft_label_loss,
    "sigmoid": functools.partial(binary_soft_label_loss, normalize="positions"),
}


def _softened(logits: Tensor, dtype: torch.dtype, temperature: float) -> Tensor:
    """Return logits over T in ``dtype``, finite."""
    return finite_logits(logits.to(dtype), min(temperature, 1.0)) / temperature


def finite_logits(logits: Tensor, share: float = 1.0) -> Tensor:
    """Return logits with a masked class's -inf as a number, of a ``share`` of the largest: 0 * inf would be NaN.

    >>> import torch
    >>> finite_logits(torch.tensor([1.0, -torch.inf])).softmax(0).tolist()
    [1.0, 0.0]
    """
    return logits.clamp(min=torch.finfo(logits.dtype).min * share / 2)


def _log_outcomes(logits: Tensor) -> Tensor:
    """Return the logarithms of both outcomes [2, ...] of each logit."""
    return torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)])


def _positions(logits: Tensor, valid: Tensor | None) -> Tensor | int:
    """Count the positions of logits [B, K, ...], of the valid ones at least 1."""
    return logits.numel() // logits.shape[1] if valid is None else valid.sum().clamp(min=1)


def _divergence(
    student: Tensor, teacher: Tensor, temperature: float, variant: str, divisor: Tensor | int, valid: Tensor | None
) -> Tensor:
    """Return the KL divergence of log-probabilities, summed over all valid positions, over the divisor."""
    given, target = (teacher, student) if variant == "equations" else (student, teacher)
    if valid is None:
        total = F.kl_div(given, target, reduction="sum", log_target=True)
    else:
        each = F.kl_div(given, target, reduction="none", log_target=True)
        total = each.masked_fill(~valid.unsqueeze(1), 0).sum()
    if isinstance(divisor, Tensor):
        divisor = divisor.to(total.dtype)
    return total / divisor if variant == "equations" else total * (temperature**2 / divisor)


def _of_image(
    student: Tensor,
    teacher: Tensor,
    size: Size,
    mean_loss: Callable[..., Tensor],
    align_corners: tuple[bool, bool],
    rows: int,
    valid: Tensor | None,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Return the loss of one image, a mean (with ``valid`` a sum) over its positions, and the student's gradient."""
    height, width = size
    corners, teacher_corners = align_corners
    # bilinear interpolation goes axis by axis: the heights at once, the widths, which make the maps large, by pieces
    dtype = torch.promote_types(student.dtype, torch.float32)
    # in NCHW whatever came: a softmax over channels_last maps of few classes is slow
    student, teacher = (finite_logits(x.to(dtype)).contiguous() for x in (student, teacher))
    student.requires_grad_(needs_gradient)
    with torch.set_grad_enabled(needs_gradient):
        student_columns = resize_bilinear(student, (height, student.shape[3]), corners)
    teacher_columns = resize_bilinear(teacher, (height, teacher.shape[3]), teacher_corners)
    total, gradients = student.new_zeros(()), []
    student_pieces, teacher_pieces = student_columns.detach().split(rows, dim=2), teacher_columns.split(rows, dim=2)
    for number, (student_piece, teacher_piece) in enumerate(zip(student_pieces, teacher_pieces, strict=True)):
        counted = None if valid is None else valid[:, number * rows : (number + 1) * rows]
        share = student_piece.shape[2] / height if counted is None else counted.sum()
        target = resize_bilinear(teacher_piece, (teacher_piece.shape[2], width), teacher_corners)
        with torch.set_grad_enabled(needs_gradient):
            leaf = student_piece.requires_grad_(needs_gradient)
            resized = resize_bilinear(leaf, (leaf.shape[2], width), corners)
            loss = share * mean_loss(resized, target, valid=counted)
        if needs_gradient:
            gradients += torch.autograd.grad(loss, leaf)
        total += loss.detach()
    if not needs_gradient:
        return total, torch.zeros_like(student)
    (gradient,) = torch.autograd.grad(student_columns, student, torch.cat(gradients, dim=2))
    return total, gradient


def _check_logits(student_logits: Tensor, teacher_logits: Tensor, valid: Tensor | None) -> None:
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"Student and teacher logits must have one shape, got {list(student_logits.shape)} and "
            f"{list(teacher_logits.shape)}. Both need the same batch and classes and, to segment or to detect, the "
            "same positions."
        )
    if valid is not None:
        _check_valid(valid, [student_logits.shape[0], *student_logits.shape[2:]])


def _check_maps(student_logits: Tensor, teacher_logits: Tensor, size: Size, valid: Tensor | None) -> None:
    if student_logits.ndim != 4 or teacher_logits.ndim != 4 or student_logits.shape[:2] != teacher_logits.shape[:2]:
        raise ValueError(
            "Soft labels of maps need logits [B, K, H, W] of one batch and the same classes, got "
            f"{list(student_logits.shape)} and {list(teacher_logits.shape)}. Give both heads the same classes."
        )
    if valid is not None:
        _check_valid(valid, [student_logits.shape[0], *size])


def _check_valid(valid: Tensor, shape: list[int]) -> None:
    if valid.dtype != torch.bool or list(valid.shape) != shape:
        raise ValueError(
            f"`valid` must say of each position whether it counts, bool {shape}, got {valid.dtype} {list(valid.shape)}."
        )
