"""Parts of a wrapped model that can be deployed: the student, the self-teacher on its trunk, the ensemble of both."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from frskd_plugin.core.checks import check_one_of
from frskd_plugin.core.dry_run import evaluating, probe_images
from frskd_plugin.core.soft_label import mean_prediction
from frskd_plugin.methods.base import Method
from frskd_plugin.methods.one import ONE
from frskd_plugin.timm.probe import maps_alone, split_forward, usual_input_size

PARTS = ("student", "self_teacher", "ensemble")


class SelfTeacherNetwork(nn.Module):
    """Trunk of a student with the self-teacher on it: images [B, C, H, W] -> logits [B, K].

    Args:
        student: a timm model; what lies behind the maps is taken out of it unless the ensemble is asked for.
        self_teacher: gives refined maps and logits for the student's maps.
        out_indices: which maps, highest resolution first.
        ensemble: 'softmax' or 'sigmoid': the mean of both predictions, see `mean_prediction`; None: the self-teacher's.
    """

    def __init__(
        self, student: nn.Module, self_teacher: nn.Module, out_indices: Sequence[int], ensemble: str | None = None
    ) -> None:
        super().__init__()
        self.out_indices, self.ensemble = tuple(out_indices), ensemble
        self.student = student if ensemble else _pruned(student, self.out_indices)
        self.self_teacher = self_teacher

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] -> logits [B, K]."""
        if self.ensemble is None:
            return self.self_teacher(maps_alone(self.student, images, self.out_indices))[1]
        feats, logits = split_forward(self.student, images, self.out_indices)
        return mean_prediction(logits, self.self_teacher(feats)[1], self.ensemble)


class BranchEnsemble(nn.Module):
    """Gated ensemble of `ONE`: images [B, C, H, W] -> logits [B, K]."""

    def __init__(self, student: nn.Module, method: Method, out_indices: Sequence[int]) -> None:
        super().__init__()
        self.student, self.method, self.out_indices = student, method, tuple(out_indices)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] -> logits [B, K]."""
        return self.method.evaluate(lambda x: split_forward(self.student, x, self.out_indices), images)[1]


def make_part(student: nn.Module, method: Method, out_indices: Sequence[int], part: str) -> nn.Module:
    """Return a part of a wrapped model, see `frskd_plugin.unwrap`; ValueError for one that the method does not have."""
    if check_one_of("part", part, PARTS) == "student":
        return student
    name = type(method).__name__
    made: nn.Module
    if isinstance(method, ONE) and part == "ensemble":
        student, method = copy.deepcopy((student, method))  # together: the method knows a module of the student
        made = BranchEnsemble(student, method, out_indices)
    elif has_self_teacher(method):
        student, teacher = copy.deepcopy((student, method.self_teacher))
        made = SelfTeacherNetwork(student, teacher, out_indices, soft_label_of(method) if part == "ensemble" else None)
    else:
        other = " Its ensemble of branches is part='ensemble'." if isinstance(method, ONE) else ""
        raise ValueError(f"part={part!r}: {name} has no self-teacher that reads the student's maps.{other}")
    return made.eval().requires_grad_(False)


def has_self_teacher(method: Method) -> bool:
    """Tell if a method's teacher reads the student's maps."""
    return isinstance(getattr(method, "self_teacher", None), nn.Module)


def soft_label_of(method: nn.Module) -> str:
    """Return how the logits of a model with FRSKD's loss become probabilities: 'softmax', 'sigmoid' or 'auto'."""
    return getattr(getattr(method.loss_distill, "soft_label_loss", None), "soft_label", "auto")


def _pruned(student: nn.Module, indices: Sequence[int]) -> nn.Module:
    """Return a copy without classifier and layers behind the last map, or the student where timm cannot cut it so."""
    images = probe_images(student, usual_input_size(student))
    pruned = copy.deepcopy(student)
    try:
        pruned.prune_intermediate_layers(sorted(indices), prune_norm=True, prune_head=True)
        with evaluating(student), evaluating(pruned):
            both = (maps_alone(network, images, indices) for network in (student, pruned))
            return pruned if all(torch.equal(*pair) for pair in zip(*both, strict=True)) else student
    except Exception:  # whatever a model raises that has no such function, or cannot be cut there
        return student
