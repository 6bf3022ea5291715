"""A timm model together with the method that trains it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from frskd_plugin.methods.base import Criterion, Method
from frskd_plugin.timm.probe import split_forward


class DistilledModel(nn.Module):
    """What `frskd_plugin.wrap` returns: in training a loss, in evaluation the plain timm model.

    Attributes:
        student: the very timm model that came in.
        method: the training method with its own modules (`FRSKD` has ``self_teacher``).
        criterion: the loss of logits against targets.
        out_indices: which of the student's feature maps the method sees, highest resolution first.
    """

    def __init__(self, student: nn.Module, method: Method, criterion: Criterion, out_indices: Sequence[int]) -> None:
        super().__init__()
        self.student = student
        self.method = method
        self.criterion = criterion
        self.out_indices = tuple(out_indices)
        # `forward_intermediates` takes ascending indices and gives its maps in that order
        ascending = sorted(self.out_indices)
        self._level_order = [ascending.index(i) for i in self.out_indices]

    def forward(self, images: Tensor, targets: Tensor | None = None) -> dict[str, Tensor] | Tensor:
        """Train mode: the losses of a batch. Eval mode: the plain student's logits [B, K]; the method is not run.

        Args:
            images: [B, C, H, W].
            targets: in train mode labels [B] or soft labels [B, K].

        Returns:
            In train mode ``loss`` (the total), its parts ``loss_*``, and ``output``, the student's logits [B, K].

        Raises:
            ValueError: Train mode without targets.
        """
        if not self.training:
            return self.student(images)
        if targets is None:
            raise ValueError(
                "In training mode this model computes its losses: call model(images, targets). For predictions call "
                "model.eval() first; frskd_plugin.unwrap(model) is the plain network."
            )
        terms = self.method(self.student_forward, images, targets, self.criterion)
        parts = [value for name, value in terms.items() if name.startswith("loss_")]
        return {"loss": sum(parts[1:], parts[0]), **terms}

    def student_forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """The student's maps [B, C_i, H_i, W_i], level 0 = highest resolution, and its logits [B, K], in one pass."""
        feats, logits = split_forward(self.student, images, sorted(self.out_indices))
        return [feats[i] for i in self._level_order], logits

    def teacher_logits(self, images: Tensor) -> Tensor | None:
        """Logits [B, K] of the method's own teacher; None where it has none."""
        return self.method.teacher_logits(self.student_forward(images)[0])
