"""A timm model together with the method that trains it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from timm.models import group_parameters
from timm.optim import auto_group_layers
from torch import Tensor, nn

from frskd_plugin.methods.base import Criterion, Method
from frskd_plugin.methods.targets import check_targets, check_terms
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

    def forward(self, images: Tensor, targets: Tensor | None = None, **extra: Tensor) -> dict[str, Tensor] | Tensor:
        """Train mode: the losses of a batch. Eval mode: the plain student's logits [B, K]; the method is not run.

        Args:
            images: [B, C, H, W].
            targets: in train mode labels [B] or soft labels [B, K].
            extra: in train mode what the method asks for beside them, see `DataNeeds`.

        Returns:
            In train mode ``loss`` (the total), its parts ``loss_*``, and ``output``, the student's logits [B, K].

        Raises:
            TypeError: targets that are no tensor.
            ValueError: train mode without targets; an empty batch, labels that are no classes (looked at on a CPU) or
                other targets that the criterion cannot take; a criterion that does not reduce its loss.
        """
        if not self.training:
            return self.student(images)
        if targets is None:
            raise ValueError(
                "In training mode this model computes its losses: call model(images, targets). For predictions call "
                "model.eval() first; frskd_plugin.unwrap(model) is the plain network."
            )
        targets = check_targets(images, targets, self.criterion, getattr(self.student, "num_classes", None))
        terms = self.method(self.student_forward, images, targets, self.criterion, **extra)
        check_terms(terms, self.criterion)
        parts = [value for name, value in terms.items() if name.startswith("loss_")]
        return {"loss": sum(parts[1:], parts[0]), **terms}

    def student_forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """The student's maps [B, C_i, H_i, W_i], level 0 = highest resolution, and its logits [B, K], in one pass."""
        return split_forward(self.student, images, self.out_indices)

    def teacher_logits(self, images: Tensor) -> Tensor | None:
        """Logits [B, K] of the method's own teacher: self-teacher, ensemble or `KD`'s; None where it has none."""
        return self.method.evaluate(self.student_forward, images)[1]

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that the student keeps from weight decay; timm's optimizer factory asks for them."""
        names = self.student.no_weight_decay() if hasattr(self.student, "no_weight_decay") else ()
        return {f"student.{name}" for name in names}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Name -> layer, for timm's layer-wise learning rates; the method's modules go with the head."""
        if hasattr(self.student, "group_matcher"):
            layers = group_parameters(self.student, self.student.group_matcher(coarse=coarse), reverse=True)
        else:
            layers = auto_group_layers(self.student)
        numbers = {f"student.{name}": number for name, number in layers.items()}
        head = max(numbers.values(), default=0)
        return lambda name: numbers.get(name, head)
