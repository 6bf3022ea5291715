"""Where the gradient of each loss term goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from frskd_plugin.doctor.patient import Patient, Step
from frskd_plugin.doctor.report import Term


@dataclass
class Reached:
    """Parameters by what arrived at them from any term: those that got a gradient, those that got one besides zero."""

    any: set[int] = field(default_factory=set)
    nonzero: set[int] = field(default_factory=set)


def gradient_norm(gradients: Sequence[Tensor | None]) -> float | None:
    """L2 norm of several gradients together, in float32 at least; None where there is none.

    >>> gradient_norm([torch.tensor([3.0]), None, torch.tensor([[4.0]])])
    5.0
    >>> gradient_norm([None])
    """
    norms = [
        torch.linalg.vector_norm(gradient, dtype=torch.promote_types(gradient.dtype, torch.float32)).double()
        for gradient in gradients
        if gradient is not None
    ]
    return torch.stack(norms).square().sum().sqrt().item() if norms else None


def examine_terms(patient: Patient, step: Step, scale: float = 1.0) -> tuple[list[Term], Reached]:
    """Differentiate each term alone, without touching any ``.grad``.

    Args:
        patient: whose step it was.
        step: its tensors, with their graph.
        scale: each term is multiplied by it for the backward pass, and its gradients are divided by it.
    """
    num_levels = max((len(feats) for feats in step.feats), default=0)
    student, method = patient.student_parameters(), patient.method_parameters()
    groups: dict[str, list[Tensor]] = {
        f"map {i}": [feats[i] for feats in step.feats if i < len(feats)] for i in range(num_levels)
    }
    groups |= {
        "logits": step.logits,
        "student": list(student.values()),
        "classifier": [p for module in patient.classifier() for p in module.parameters()],
        "teacher": [p for module in patient.self_teacher() for p in module.parameters()] or list(method.values()),
        "method": list(method.values()),
        "targets": [*(feat for feats in step.refined_feats for feat in feats), *step.teacher_logits],
    }
    weights, reached, terms = patient.weights(), Reached(), []
    for name, value in step.terms.items():
        gradients = _gradients(value, [tensor for group in groups.values() for tensor in group], scale)
        for key, gradient in gradients.items():
            reached.any.add(key)
            if gradient.count_nonzero() > 0:
                reached.nonzero.add(key)
        norms = {key: gradient_norm([gradients.get(id(tensor)) for tensor in group]) for key, group in groups.items()}
        terms.append(
            Term(
                name=name,
                value=value.item(),
                weight=weights.get(name),
                maps=tuple(norms[f"map {i}"] for i in range(num_levels)),
                **{key: norms[key] for key in ("logits", "student", "classifier", "teacher", "targets")},
            )
        )
    return terms, reached


def _gradients(term: Tensor, inputs: Sequence[Tensor], scale: float) -> dict[int, Tensor]:
    """The gradients that arrive, by the id of the tensor."""
    wanted = list({id(tensor): tensor for tensor in inputs if tensor.requires_grad}.values())
    if not term.requires_grad or not wanted:
        return {}
    found = torch.autograd.grad(term, wanted, term.new_tensor(scale), retain_graph=True, allow_unused=True)
    return {id(tensor): grad / scale for tensor, grad in zip(wanted, found, strict=True) if grad is not None}
