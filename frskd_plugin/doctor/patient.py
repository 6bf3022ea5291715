"""What the doctor asks of a model, whatever framework it comes from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from frskd_plugin.core.frskd_loss import FRSKDLoss


@dataclass(frozen=True)
class Step:
    """What one training step computed, with its graph. A method may run student and self-teacher several times.

    Attributes:
        feats: the student's maps [B, C_i, H_i, W_i], a list for each pass.
        logits: the student's logits, of each pass.
        refined_feats: the self-teacher's maps [B, D_i, H_i, W_i], a list for each pass; empty without one.
        teacher_logits: its logits, of each pass.
        terms: the terms of the loss, weighted, each a scalar.
    """

    feats: list[list[Tensor]]
    logits: list[Tensor]
    refined_feats: list[list[Tensor]]
    teacher_logits: list[Tensor]
    terms: dict[str, Tensor]


class Patient:
    """A model in training, with a batch. Subclasses know one kind of model each.

    Args:
        model: all of it, student and method.
        images: [B, C, H, W].
    """

    title: str
    method_name: str
    has_self_teacher: bool

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.model = model
        self.images = images

    def step(self) -> Step:
        """The forward pass and the losses of a training step."""
        raise NotImplementedError

    def plain_step(self) -> Tensor:
        """The loss of the plain network's training step."""
        raise NotImplementedError

    def evaluate(self) -> tuple[Tensor, Tensor] | None:
        """Logits as the model gives them in evaluation, and the plain network's; None where they are one."""
        raise NotImplementedError

    def method_modules(self) -> dict[str, nn.Module]:
        """What exists for training alone: the outermost modules by name; empty for a plain network."""
        raise NotImplementedError

    def self_teacher(self) -> list[nn.Module]:
        """Those of them that make the targets of the distillation; empty where there is no self-teacher."""
        raise NotImplementedError

    def classifier(self) -> list[nn.Module]:
        """The student's classifier or decode head; empty where it is not known."""
        raise NotImplementedError

    def weights(self) -> dict[str, float]:
        """Weights of those terms whose weight is known."""
        raise NotImplementedError

    def map_indices(self) -> tuple[int, ...] | None:
        """The student's own numbers of the maps, in the order of the levels; None: they are counted."""
        return None

    def student_parameters(self) -> dict[str, nn.Parameter]:
        """By name, without the method's."""
        own = {id(parameter) for parameter in self.method_parameters().values()}
        return {name: p for name, p in self.model.named_parameters() if id(p) not in own}

    def method_parameters(self) -> dict[str, nn.Parameter]:
        """By name, as `method_modules` are called."""
        return {
            f"{prefix}.{name}": parameter
            for prefix, module in self.method_modules().items()
            for name, parameter in module.named_parameters()
        }

    def distill_losses(self) -> list[FRSKDLoss]:
        """The modules whose ``factor`` a schedule drives."""
        return [module for module in self.model.modules() if isinstance(module, FRSKDLoss)]


def tensors(values: object) -> list[Tensor]:
    """The tensors in lists, tuples and dicts, in order.

    >>> import torch
    >>> len(tensors([torch.zeros(1), {"a": (torch.zeros(1), None)}]))
    2
    """
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, Mapping):
        values = values.values()
    if isinstance(values, Iterable) and not isinstance(values, str):
        return [tensor for value in values for tensor in tensors(value)]
    return []
