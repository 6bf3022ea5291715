"""Soft-label distillation of heads that decide each class on its own, by a sigmoid (detectors with focal loss)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frskd_plugin.core.checks import check_one_of, check_temperature
from frskd_plugin.core.soft_label import LOSS_VARIANTS

NORMALIZERS = ("foreground", "positions")


def expected_foreground(logits: Tensor) -> Tensor:
    """How many positions show an object, by these logits: the sum of each one's top class probability, at least 1.

    A smooth, label-free stand-in for the number of positive positions, by which dense heads divide their own loss.

    Args:
        logits: [B, K, ...], before the sigmoid.

    >>> import torch
    >>> expected_foreground(torch.tensor([[[0.0, 0.0, 0.0, -99.0], [-9.0, -9.0, -9.0, -99.0]]])).item()
    1.5
    """
    with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
        dtype = torch.promote_types(logits.dtype, torch.float32)
        return logits.amax(dim=1).to(dtype).sigmoid().sum().clamp(min=1)


def binary_soft_label_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    variant: str = "published",
    normalize: str = "foreground",
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
        normalize: 'foreground', or 'positions' for the mean over batch and positions, as `soft_label_loss` takes it.

    Raises:
        ValueError: if the shapes differ.

    >>> import torch
    >>> student, teacher = torch.zeros(1, 2, 1), torch.tensor([[[0.0], [1.0]]])
    >>> round(binary_soft_label_loss(student, teacher, normalize="positions").item(), 4)
    0.1109
    >>> binary_soft_label_loss(teacher, teacher).item()
    0.0
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"Student and teacher logits must have one shape, got {list(student_logits.shape)} and "
            f"{list(teacher_logits.shape)}. Both heads need the same classes and anchors."
        )
    with torch.autocast(student_logits.device.type, enabled=False):
        dtype = torch.promote_types(student_logits.dtype, torch.float32)
        student = _log_probabilities(student_logits.to(dtype) / temperature)
        teacher = _log_probabilities(teacher_logits.detach().to(dtype) / temperature)
        if normalize == "foreground":
            divisor = expected_foreground(teacher_logits).to(dtype)
        else:
            divisor = student.new_tensor(student_logits.numel() // student_logits.shape[1])
        if variant == "equations":
            return F.kl_div(teacher, student, reduction="sum", log_target=True) / divisor
        return temperature**2 * F.kl_div(student, teacher, reduction="sum", log_target=True) / divisor


def _log_probabilities(logits: Tensor) -> Tensor:
    """Logarithms of both outcomes [2, ...] of each logit."""
    return torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)])


class BinarySoftLabelLoss(nn.Module):
    """Module form of `binary_soft_label_loss`.

    Args:
        temperature: T > 0.
        variant: 'published' or 'equations'.
        normalize: 'foreground' or 'positions'.

    Raises:
        ValueError: for a temperature that is not positive, or an unknown variant or normalisation.
    """

    def __init__(self, temperature: float = 1.0, variant: str = "published", normalize: str = "foreground") -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        self.variant = check_one_of("variant", variant, LOSS_VARIANTS)
        self.normalize = check_one_of("normalize", normalize, NORMALIZERS)

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """[B, K, ...] twice -> scalar."""
        return binary_soft_label_loss(student_logits, teacher_logits, self.temperature, self.variant, self.normalize)
