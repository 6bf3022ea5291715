"""A trained timm classifier as the teacher of `KD`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from frskd_plugin.timm.checkpoint import create_model, load_trunk_checkpoint
from frskd_plugin.timm.probe import choose_indices, probe_student, split_forward


class FrozenTeacher(nn.Module):
    """A copy of a timm classifier, images -> (feats, logits), in eval mode whatever ``train()`` says.

    Args:
        model: a timm model with a classifier; it stays as it is.
        out_indices, input_size: see `frskd_plugin.wrap`, which tells what is refused too.
        mean, std: of each channel of images in 0..1, that it was trained with; None is those of its ``pretrained_cfg``.

    Attributes:
        normalisation: mean and std of the images that it takes; None where they are not known.
    """

    def __init__(
        self,
        model: nn.Module,
        out_indices: Sequence[int] | None = None,
        input_size: Sequence[int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.out_indices = choose_indices(probe_student(model, input_size), out_indices)
        self.model = copy.deepcopy(model).requires_grad_(False)
        cfg = getattr(model, "pretrained_cfg", None) or {}
        self.normalisation = (cfg.get("mean") if mean is None else mean, cfg.get("std") if std is None else std)
        self.train(False)

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Stay in eval mode."""
        return super().train(False)

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Images [B, C, H, W] -> maps, level 0 = highest resolution, and logits [B, K]."""
        return split_forward(self.model, images, self.out_indices)


def make_teacher(
    teacher: nn.Module | Mapping[str, Any],
    num_classes: int,
    input_size: Sequence[int],
    out_indices: Sequence[int] | None = None,
) -> nn.Module:
    """Make the teacher of `KD`.

    Args:
        teacher: a trained timm model; or ``dict(model_name=..., checkpoint=FILE)``, or with ``pretrained=True``, and
            further arguments of ``timm.create_model`` and `FrozenTeacher`; or a module that maps images to (feats,
            logits) already.
        num_classes: of the student, for a teacher given by name.
        input_size: (channels, height, width) of the images.
        out_indices: which maps the teacher hands out, where ``teacher`` does not say.

    Raises:
        TypeError: anything else.
        ValueError: an unknown name, a teacher without weights, or a file of another model.
        FileNotFoundError: there is no such checkpoint.
    """
    if isinstance(teacher, nn.Module):
        return FrozenTeacher(teacher, out_indices, input_size) if hasattr(teacher, "forward_intermediates") else teacher
    if not isinstance(teacher, Mapping) or "model_name" not in teacher:
        raise TypeError(
            f"`teacher` must be a trained timm model or dict(model_name='resnet34', checkpoint=FILE), got {teacher!r}."
        )
    settings = {"num_classes": num_classes, **teacher}
    name, checkpoint = settings.pop("model_name"), settings.pop("checkpoint", None)
    out_indices = settings.pop("out_indices", out_indices)
    normalisation = {part: settings.pop(part) for part in ("mean", "std") if part in settings}
    if checkpoint is None and not settings.get("pretrained"):
        raise ValueError(
            f"The teacher {name!r} has no weights: give checkpoint=FILE, or pretrained=True for timm's own."
        )
    model = create_model(name, **settings)
    if checkpoint is not None:
        load_trunk_checkpoint(model, checkpoint)  # a model with a classifier gets the classifier too
    return FrozenTeacher(model, out_indices, input_size, **normalisation)
