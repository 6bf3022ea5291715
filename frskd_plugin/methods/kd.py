"""Distillation from a pretrained teacher (Hinton et al., 2015), with a feature loss or without: Table 7."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from frskd_plugin.core.attention import AttentionTransferLoss
from frskd_plugin.core.checks import check_not_negative, check_one_of
from frskd_plugin.core.hint import HintLoss
from frskd_plugin.core.overhaul import OverhaulLoss
from frskd_plugin.core.soft_label import SoftLabelLoss
from frskd_plugin.methods.base import Criterion, Method, StudentForward, StudentInfo
from frskd_plugin.methods.preactivations import forward_with_preactivations, norms_behind

# feature losses and their usual weights: FitNet's in later comparisons, attention transfer's and overhaul's own
FEATURE_BETAS = {"none": 0.0, "hint": 100.0, "attention": 1000.0, "overhaul": 1e-3}
PROBE_BATCH = 2


class KD(Method):
    """``CE(z) + alpha T^2 KL(sg teacher || z) + beta L_F``.

    The teacher stays in eval mode and gets no gradient. It is no submodule: optimizers, DDP, checkpoints and
    ``train()`` do not see it, and ``to()`` moves it along. So a checkpoint is no larger for it, and whoever resumes
    builds the same method again, with the same teacher.

    Args:
        student: the network to train.
        teacher: images -> (feats, logits), in eval mode, with maps as many and as large as the student's.
            `frskd_plugin.wrap` makes it from a timm model or from ``dict(model_name=..., checkpoint=FILE)``.
        alpha: weight of the soft labels.
        temperature: T.
        feature_loss: 'none', 'hint' (FitNet), 'attention' (attention transfer) or 'overhaul'; Table 7 has the last
            three, each with the soft labels.
        beta: weight of the feature loss; None is 100 for 'hint', 1000 for 'attention', 0.001 for 'overhaul'.

    Raises:
        TypeError: the teacher is no module.
        ValueError: a teacher whose classes or maps do not fit the student's, or a setting out of range.
    """

    def __init__(
        self,
        student: StudentInfo,
        teacher: nn.Module,
        alpha: float = 1.0,
        temperature: float = 4.0,
        feature_loss: str = "none",
        beta: float | None = None,
    ) -> None:
        super().__init__(student)
        if not isinstance(teacher, nn.Module):
            raise TypeError(f"`teacher` must be a module, images -> (feats, logits), got {type(teacher).__name__}.")
        self.kind = check_one_of("feature_loss", feature_loss, [*FEATURE_BETAS])
        self.alpha = check_not_negative("alpha", alpha)
        self.beta = check_not_negative("beta", FEATURE_BETAS[self.kind] if beta is None else beta)
        if self.kind != "none" and not self.beta:
            raise ValueError(f"`feature_loss={self.kind!r}` with `beta=0` trains nothing: use feature_loss='none'.")
        self.soft_label_loss = SoftLabelLoss(temperature)
        self._teacher = (teacher,)  # a tuple hides it from nn.Module
        images = _probe_images(teacher, student.input_size)
        channels = _check_fit(student, *_run_quietly(teacher, images), compare_maps=self.kind != "none")
        self.feature_loss = self._make_feature_loss(student.in_channels, channels, images)

    @property
    def teacher(self) -> nn.Module:
        """The teacher, on the device of the method."""
        return self._teacher[0]

    def _make_feature_loss(
        self, in_channels: Sequence[int], teacher_channels: Sequence[int], images: Tensor
    ) -> nn.Module | None:
        if self.kind == "attention":
            return AttentionTransferLoss()
        if self.kind == "hint":
            return HintLoss(in_channels, teacher_channels)
        if self.kind == "overhaul":
            norms = norms_behind(self.teacher, images)
            lacking = [level for level, norm in enumerate(norms) if norm is None]
            if lacking:
                raise ValueError(
                    f"feature_loss='overhaul' reads its margins from the batch normalisation before each map's ReLU; "
                    f"the teacher's maps {lacking} have none. Use 'hint' or 'attention', or leave those maps out."
                )
            return OverhaulLoss(in_channels, [norm for norm in norms if norm is not None])
        return None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KD:
        self.teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(
        self, student: StudentForward, images: Tensor, targets: Tensor, criterion: Criterion
    ) -> dict[str, Tensor]:
        """Weighted ``loss_ce, loss_kd`` and, with a feature loss, ``loss_feat``; logits ``output, teacher_output``."""
        overhaul = self.kind == "overhaul"
        with torch.no_grad():
            teacher_feats, teacher_logits, *before = _run(self.teacher, images, overhaul)
        feats, logits, *own_before = _run(student, images, overhaul)
        terms = {
            "loss_ce": criterion(logits, targets),
            "loss_kd": self.alpha * self.soft_label_loss(logits, teacher_logits),
        }
        if self.feature_loss is not None:
            maps, teacher_maps = (own_before[0], before[0]) if overhaul else (feats, teacher_feats)
            terms["loss_feat"] = self.beta * self.feature_loss(maps, teacher_maps)
        return {**terms, "output": logits, "teacher_output": teacher_logits}


def _run(network: StudentForward | nn.Module, images: Tensor, preactivations: bool) -> Any:
    return forward_with_preactivations(network, images) if preactivations else network(images)


def _probe_images(teacher: nn.Module, size: Sequence[int]) -> Tensor:
    parameter = next((p for p in teacher.parameters() if p.is_floating_point()), torch.empty(0))
    images = torch.randn(PROBE_BATCH, *size, generator=torch.Generator().manual_seed(0))
    return images.to(parameter.device, parameter.dtype)


def _run_quietly(teacher: nn.Module, images: Tensor) -> tuple[Sequence[Tensor], Tensor]:
    if any(module.training for module in teacher.modules()):
        raise ValueError("The teacher must be in eval mode: its batch statistics would follow the student's images.")
    with torch.no_grad():
        feats, logits = teacher(images)
    return feats, logits


def _check_fit(student: StudentInfo, feats: Sequence[Tensor], logits: Tensor, compare_maps: bool) -> list[int]:
    """The teacher's channels, once its logits and, if asked for, its maps are seen to fit the student's."""
    if logits.ndim != 2 or logits.shape[1] != student.num_classes:
        raise ValueError(
            f"The teacher must know the student's {student.num_classes} classes, its logits are {list(logits.shape)}: "
            "train it on the same data, or give the file of one that was."
        )
    sizes, own = [tuple(feat.shape[2:]) for feat in feats], [tuple(size) for size in student.map_sizes]
    if compare_maps and sizes != own:
        raise ValueError(
            f"Feature distillation compares maps of one size, the student's have {own} and the teacher's {sizes}: "
            "choose `out_indices` that match, for the student and for the teacher."
        )
    return [feat.shape[1] for feat in feats]
