"""Soft-label distillation (Eq. 4; reference sections 4 and 9) by a softmax or a sigmoid, at any size."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frskd_plugin.core.blocks import Size
from frskd_plugin.core.checks import check_one_of, check_positive_int, check_temperature
from frskd_plugin.core.immediate_gradient import with_known_gradient

LOSS_VARIANTS = ("published", "equations")
SOFT_LABELS = ("auto", "softmax", "sigmoid")
NORMALIZERS = ("auto", "positions", "foreground")
# criteria of torch and timm that decide each class on its own, by the names of class or function
SIGMOID_CRITERIA = frozenset(
    "BCEWithLogitsLoss MultiLabelSoftMarginLoss SoftMarginLoss BinaryCrossEntropy AsymmetricLossMultiLabel "
    "binary_cross_entropy_with_logits multilabel_soft_margin_loss soft_margin_loss sigmoid_focal_loss".split()
)
SOFTMAX_CRITERIA = frozenset(
    "CrossEntropyLoss LabelSmoothingCrossEntropy SoftTargetCrossEntropy JsdCrossEntropy AsymmetricLossSingleLabel "
    "cross_entropy".split()
)
# of a piece of one resized map: on a CPU what lies in the cache of a core, elsewhere what keeps the device busy
CPU_PIECE_BYTES, PIECE_BYTES = 2**21, 2**26


def criterion_soft_label(criterion: Any) -> str | None:
    """Return how one or several criteria turn logits into probabilities: 'softmax', 'sigmoid', or None if not known.

    Known are the criteria of torch and timm, partial ones too, and those with an attribute ``use_sigmoid`` (OpenMMLab).

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
    if student_logits.shape == teacher_logits.shape and student_logits.shape[1] == 1:
        raise ValueError(
            f"A softmax over one logit is always 1 and teaches nothing, got logits {list(student_logits.shape)}: give "
            "soft_label='sigmoid', or a network of two classes."
        )
    log_softmax = functools.partial(F.log_softmax, dim=1)
    return _divergence(student_logits, teacher_logits, temperature, variant, valid, log_softmax)


def mean_prediction(logits: Tensor, other_logits: Tensor, soft_label: str = "auto") -> Tensor:
    """Return the ensemble of two classifiers as logits: the mean of their probabilities, not of their logits.

    A softmax of the result gives that mean; with 'sigmoid', each class on its own, a sigmoid does. Both logits are
    [B, K, ...]; 'auto' takes 'sigmoid' for one logit.
    """
    if soft_label == "sigmoid" or (soft_label == "auto" and logits.shape[1] == 1):
        yes = torch.logaddexp(F.logsigmoid(logits), F.logsigmoid(other_logits))
        return yes - torch.logaddexp(F.logsigmoid(-logits), F.logsigmoid(-other_logits))
    return torch.logaddexp(F.log_softmax(logits, dim=1), F.log_softmax(other_logits, dim=1)) - math.log(2)


def expected_foreground(logits: Tensor, valid: Tensor | None = None) -> Tensor:
    """Sum of each position's top class probability, at least 1: how many positions show an object by these logits.

    A smooth, label-free stand-in for the number of positive positions, by which dense heads divide their own loss, of
    logits [B, K, ...] and the positions ``valid`` [B, ...] that count.
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
    ``KL(q || p) = q log(q / p) + (1 - q) log((1 - q) / (1 - p))``, divided as ``normalize`` says; otherwise like
    `soft_label_loss`. Its gradient in a logit is ``(p - q) * T`` ('published') over the divisor.

    Almost all positions of a detector are background on which both agree, so a mean over the positions falls with the
    number of anchors. 'foreground' divides by `expected_foreground` of the teacher, as a dense head divides its own
    loss by the number of positive positions: both then weigh alike, for any number of anchors.

    Args:
        student_logits: [B, K, ...], K classes and any number of positions behind them.
        teacher_logits: the same shape; gets no gradient.
        temperature, variant: as in `soft_label_loss`.
        normalize: 'foreground'; 'positions' for the mean over batch and positions; or 'auto', 'foreground' for logits
            [B, K, N] of N anchors and 'positions' for all others.
        valid: bool [B, ...], the positions that count, in the sum and in the divisor.

    >>> import torch
    >>> student, teacher = torch.zeros(1, 2, 1), torch.tensor([[[0.0], [1.0]]])
    >>> round(binary_soft_label_loss(student, teacher, normalize="positions").item(), 4)
    0.1109
    """
    foreground = normalize == "foreground" or (normalize == "auto" and student_logits.ndim == 3)
    return _divergence(student_logits, teacher_logits, temperature, variant, valid, _log_outcomes, foreground)


def _divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    variant: str,
    valid: Tensor | None,
    log_probabilities: Callable[[Tensor], Tensor],
    foreground: bool = False,
) -> Tensor:
    """Return the KL divergence of all valid positions over their number, or over the expected foreground."""
    _check_logits(student_logits, teacher_logits, valid)
    with torch.autocast(student_logits.device.type, enabled=False):
        dtype = torch.promote_types(student_logits.dtype, torch.float32)
        student, teacher = (
            log_probabilities(finite_logits(x.to(dtype), min(temperature, 1.0)) / temperature)
            for x in (student_logits, teacher_logits.detach())
        )
        given, target = (teacher, student) if variant == "equations" else (student, teacher)
        if valid is None:
            total = F.kl_div(given, target, reduction="sum", log_target=True)
            divisor: Any = student_logits.numel() // student_logits.shape[1]
        else:
            each = F.kl_div(given, target, reduction="none", log_target=True)
            total = each.masked_fill(~valid.unsqueeze(1), 0).sum()
            divisor = valid.sum().clamp(min=1).to(dtype)
        if foreground:
            divisor = expected_foreground(teacher_logits, valid).to(dtype)
        return total / divisor if variant == "equations" else total * (temperature**2 / divisor)


def _log_outcomes(logits: Tensor) -> Tensor:
    """Return the logarithms of both outcomes [2, ...] of each logit."""
    return torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)])


def finite_logits(logits: Tensor, share: float = 1.0) -> Tensor:
    """Return logits with a masked class's -inf as a number, of a ``share`` of the largest: 0 * inf would be NaN."""
    return logits.clamp(min=torch.finfo(logits.dtype).min * share / 2)


_MEAN_LOSSES: dict[str, Callable[..., Tensor]] = {
    "softmax": soft_label_loss,
    "sigmoid": functools.partial(binary_soft_label_loss, normalize="positions"),
}
_resize = functools.partial(F.interpolate, mode="bilinear")


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
        temperature, variant: as in `soft_label_loss`.
        align_corners: of the interpolation; ``teacher_align_corners`` of the teacher's, None is as the student's.
        rows: rows of a piece; None takes about 2 MiB of each map on a CPU, up to 64 MiB elsewhere.
        soft_label: 'softmax' for `soft_label_loss`, 'sigmoid' for `binary_soft_label_loss` over the positions.
        valid: bool [B, H, W] of that size, the positions that count.

    Raises:
        ValueError: if the logits are not maps of one batch and the same classes.
    """
    _check_maps(student_logits, teacher_logits, size, valid)
    (batch, classes), (height, width) = student_logits.shape[:2], size
    if rows is None:
        limit = CPU_PIECE_BYTES if student_logits.device.type == "cpu" else PIECE_BYTES
        rows = max(1, limit // (classes * width * 4))
    check_positive_int("rows", rows)
    mean_loss = functools.partial(_MEAN_LOSSES[soft_label], temperature=temperature, variant=variant)
    teacher_corners = align_corners if teacher_align_corners is None else teacher_align_corners
    needs_gradient = torch.is_grad_enabled() and student_logits.requires_grad
    dtype = torch.promote_types(student_logits.dtype, torch.float32)

    def of_image(student: Tensor, teacher: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the loss of one image, a mean (with ``valid`` a sum) over its positions, and its gradient."""
        # in NCHW whatever came: a softmax over channels_last maps of few classes is slow
        student, teacher = (finite_logits(x.detach().to(dtype)).contiguous() for x in (student, teacher))
        student.requires_grad_(needs_gradient)
        # axis by axis, as bilinear interpolation goes: heights at once, widths, which make the maps large, by pieces
        with torch.set_grad_enabled(needs_gradient):
            columns = _resize(student, (height, student.shape[3]), align_corners=align_corners)
        teacher_columns = _resize(teacher, (height, teacher.shape[3]), align_corners=teacher_corners)
        total, gradients = student.new_zeros(()), []
        for start in range(0, height, rows):
            leaf = columns.detach()[:, :, start : start + rows].requires_grad_(needs_gradient)
            target = teacher_columns[:, :, start : start + rows]
            target = _resize(target, (target.shape[2], width), align_corners=teacher_corners)
            counted = None if valid is None else valid[:, start : start + rows]
            share = leaf.shape[2] / height if counted is None else counted.sum()
            with torch.set_grad_enabled(needs_gradient):
                resized = _resize(leaf, (leaf.shape[2], width), align_corners=align_corners)
                loss = share * mean_loss(resized, target, valid=counted)
            if needs_gradient:
                gradients += torch.autograd.grad(loss, leaf)
            total += loss.detach()
        if needs_gradient:
            (gradient,) = torch.autograd.grad(columns, student, torch.cat(gradients, dim=2))
            return total, gradient
        return total, torch.zeros_like(student)

    divisor = batch if valid is None else valid.sum().clamp(min=1)
    total, gradients = 0.0, []
    for image in range(batch):
        part = slice(image, image + 1)
        value, gradient = of_image(student_logits[part], teacher_logits[part], None if valid is None else valid[part])
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
        """Logits [B, K, ...] twice -> scalar; with ``size``, maps of logits as in `resized_soft_label_loss`.

        Raises:
            ValueError: if the shapes do not fit.
        """
        kind = self.soft_label
        if kind == "auto":
            kind = "sigmoid" if student_logits.shape[1] == 1 else "softmax"
        form = (self.temperature, self.variant)
        if size is not None and not (kind == "sigmoid" and self.normalize == "foreground"):
            both = (student_logits, teacher_logits)  # a mean over the positions, which can be taken piece by piece
            return resized_soft_label_loss(*both, size, *form, align_corners, None, teacher_align_corners, kind, valid)
        if size is not None:
            _check_maps(student_logits, teacher_logits, size, valid)
            teacher_corners = align_corners if teacher_align_corners is None else teacher_align_corners
            student_logits = _resize(finite_logits(student_logits), size, align_corners=align_corners)
            teacher_logits = _resize(finite_logits(teacher_logits.detach()), size, align_corners=teacher_corners)
        if kind == "sigmoid":
            return binary_soft_label_loss(student_logits, teacher_logits, *form, self.normalize, valid)
        return soft_label_loss(student_logits, teacher_logits, *form, valid)


class BinarySoftLabelLoss(SoftLabelLoss):
    """Module form of `binary_soft_label_loss`, with the defaults of a detector."""

    def __init__(self, temperature: float = 1.0, variant: str = "published", normalize: str = "foreground") -> None:
        super().__init__(temperature, variant, "sigmoid", normalize)


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
