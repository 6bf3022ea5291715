"""Soft-label distillation (Eq. 4; reference sections 4 and 9)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frskd_plugin.core.checks import check_one_of, check_temperature

LOSS_VARIANTS = ("published", "equations")


def soft_label_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0, variant: str = "published"
) -> Tensor:
    """Divergence of the student's from the teacher's softened prediction; the teacher is a constant.

    'published': ``T^2 * KL(teacher || student)``. 'equations': ``KL(student || teacher)``, no factor. Both are the mean
    over the batch and over all positions, and are computed in float32 at least.

    Args:
        student_logits: [B, K] or, a position each, [B, K, H, W].
        teacher_logits: the same shape; gets no gradient.
        temperature: T, divides both logits.
        variant: 'published' or 'equations'.

    Raises:
        ValueError: if the shapes differ.

    >>> import torch
    >>> logits = torch.tensor([[1.0, 2.0, 3.0]])
    >>> round(soft_label_loss(logits, logits.flip(1), temperature=1.0).item(), 4)
    1.1504
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"Student and teacher logits must have one shape, got {list(student_logits.shape)} and "
            f"{list(teacher_logits.shape)}. Both need the same classes and, to segment, the same size."
        )
    with torch.autocast(student_logits.device.type, enabled=False):
        dtype = torch.promote_types(student_logits.dtype, torch.float32)
        student = F.log_softmax(student_logits.to(dtype) / temperature, dim=1)
        teacher = F.log_softmax(teacher_logits.detach().to(dtype) / temperature, dim=1)
        positions = student.numel() // student.shape[1]
        if variant == "equations":
            return F.kl_div(teacher, student, reduction="sum", log_target=True) / positions
        return temperature**2 * F.kl_div(student, teacher, reduction="sum", log_target=True) / positions


class SoftLabelLoss(nn.Module):
    """Module form of `soft_label_loss`.

    Args:
        temperature: T > 0.
        variant: 'published' or 'equations'.

    Raises:
        ValueError: for a temperature that is not positive, or an unknown variant.
    """

    def __init__(self, temperature: float = 4.0, variant: str = "published") -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        self.variant = check_one_of("variant", variant, LOSS_VARIANTS)

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """[B, K, ...] twice -> scalar."""
        return soft_label_loss(student_logits, teacher_logits, self.temperature, self.variant)
