"""Distillation terms of FRSKD (Eq. 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from frskd_plugin.core.blocks import Size
from frskd_plugin.core.checks import check_not_negative, check_one_of, check_share
from frskd_plugin.core.feature_losses import REDUCTIONS, AttentionTransferLoss
from frskd_plugin.core.schedule import SCHEDULES, Gate, ScheduledWeight, scheduled_factor
from frskd_plugin.core.soft_label import SoftLabelLoss


def _weight(name: str, doc: str) -> property:
    """Property whose number lies in a `ScheduledWeight` that the module keeps as ``_name``."""

    def get(loss: FRSKDLoss) -> float:
        return getattr(loss, f"_{name}").value

    def set_checked(loss: FRSKDLoss, value: float) -> None:
        getattr(loss, f"_{name}").set(check_not_negative(name, value))
        if name == "factor":
            loss._awaits_progress = False

    return property(get, set_checked, doc=doc)


class FRSKDLoss(nn.Module):
    """``factor * (alpha * L_KD + beta * L_F)``; the cross-entropies of Eq. 5 stay with the classifiers.

    ``alpha``, ``beta`` and ``factor`` (1 at first) are attributes that may be set at any time of a training: that
    takes effect in the next step, also in one that ``torch.compile`` compiled or a CUDA graph captured. What is 0 is
    not computed, so a step from 0 to a weight, or back, compiles anew and needs a new capture.

    Args:
        alpha: weight of the soft labels.
        beta: weight of the feature distillation; 0 gives FRSKD\\F.
        temperature: of the soft labels.
        variant: 'published' (the authors' code, which the paper's alpha and beta belong to) or 'equations' (Eq. 3, 4).
        feature_loss: takes (feats, refined_feats) and gives a scalar; None is `AttentionTransferLoss`.
        feature_reduction: of the attention transfer: 'mean' (the authors' code, which the paper's beta belongs to) or
            'batchmean', see `attention_transfer_loss`.
        soft_label: 'softmax' over the classes (`soft_label_loss`), or 'sigmoid', each class on its own
            (`binary_soft_label_loss`: one logit, multi-label, detectors with focal loss). 'auto' takes 'sigmoid' for
            one logit; methods, segmentors and detectors choose for it by their own criterion.
        schedule: of ``factor``: 'constant'; 'linear' or 'rampup', see `scheduled_factor`, driven by `set_progress`; or
            'gate', an extension of the paper: both terms are multiplied by a `Gate`, which is open as far as the
            self-teacher is ahead of the student.
        warmup: share of the training, 0..1, that goes by before anything is distilled; needs `set_progress` too.

    Attributes:
        gate: the `Gate`; None where ``schedule`` is another.

    Raises:
        ValueError: for a setting out of range, or a ``feature_reduction`` beside a ``feature_loss``.

    >>> import torch
    >>> loss = FRSKDLoss(alpha=2, beta=100, temperature=4)
    >>> logits, feats = torch.rand(2, 10), [torch.rand(2, 8, 4, 4)]
    >>> {name: round(value.item(), 6) for name, value in loss(logits, logits, feats, feats).items()}
    {'loss_kd': 0.0, 'loss_feat': 0.0}
    """

    def __init__(
        self,
        alpha: float = 2.0,
        beta: float = 100.0,
        temperature: float = 4.0,
        variant: str = "published",
        feature_loss: nn.Module | None = None,
        soft_label: str = "auto",
        feature_reduction: str = "mean",
        schedule: str = "constant",
        warmup: float = 0.0,
    ) -> None:
        super().__init__()
        self._alpha = ScheduledWeight(check_not_negative("alpha", alpha))
        self._beta = ScheduledWeight(check_not_negative("beta", beta))
        self._factor = ScheduledWeight(1.0)
        self.schedule = check_one_of("schedule", schedule, SCHEDULES)
        self.warmup = check_share("warmup", warmup, "the training without distillation")
        self.gate = Gate() if schedule == "gate" else None
        self._awaits_progress = self.follows_progress
        self.soft_label_loss = SoftLabelLoss(temperature, variant, soft_label)
        check_one_of("feature_reduction", feature_reduction, REDUCTIONS)
        attention_transfer = AttentionTransferLoss(variant, feature_reduction)
        if feature_loss is not None and feature_reduction != "mean":
            raise ValueError(
                f"`feature_reduction={feature_reduction!r}` belongs to the attention transfer, got `feature_loss="
                f"{type(feature_loss).__name__}` beside it: leave one of them out."
            )
        self.feature_loss = attention_transfer if feature_loss is None else feature_loss

    alpha = _weight("alpha", "Weight of the soft labels.")
    beta = _weight("beta", "Weight of the feature distillation.")
    factor = _weight("factor", "Factor on both terms; a schedule that follows the progress sets it at each step of it.")

    @property
    def follows_progress(self) -> bool:
        """True where the schedule or the warm-up asks how far training is."""
        return self.schedule in ("linear", "rampup") or self.warmup > 0

    def set_progress(self, step: float, total: float) -> None:
        """Set the factor for ``step`` of ``total`` epochs or steps; a constant schedule leaves it as it is."""
        if not total > 0:
            raise ValueError(f"`total` counts the epochs or steps of the training and must be > 0, got {total}.")
        if self.follows_progress:
            self.factor = scheduled_factor(self.schedule, self.warmup, step / total)

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        feats: Sequence[Tensor],
        refined_feats: Sequence[Tensor],
        size: Size | None = None,
        align_corners: bool = False,
        teacher_align_corners: bool | None = None,
        valid: Tensor | None = None,
        own_losses: tuple[Tensor, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return the weighted terms ``loss_kd`` and ``loss_feat``; a term of weight 0 is 0 and not computed.

        Args:
            student_logits: [B, K], or with any number of positions, such as [B, K, H, W].
            teacher_logits: the same shape; gets no gradient.
            feats: the student's maps [B, C_i, H_i, W_i].
            refined_feats: the self-teacher's maps [B, D_i, H_i, W_i]; get no gradient.
            size: height and width at which the soft labels of logits [B, K, h, w] are compared, by bilinear
                interpolation; the two may then differ in size. None compares them as they are.
            align_corners: of that interpolation.
            teacher_align_corners: the same for the teacher's logits; None is as the student's.
            valid: bool [B] or [B, H, W] at that size, the positions that count for the soft labels; None is all.
            own_losses: scalars, the losses of student and self-teacher against the targets, for ``schedule='gate'``.

        Raises:
            RuntimeError: in train mode, if the schedule was never told the progress.
            ValueError: if shapes or numbers of levels disagree, or the gate gets no losses.
        """
        if self.training and self._awaits_progress:
            raise RuntimeError(
                f"With schedule={self.schedule!r} and warmup={self.warmup:g} the distillation must know how far the "
                "training is: call model.method.set_progress(epoch, max_epochs) at the start of each epoch (FRSKDTask: "
                "task.set_progress), or steps in place of epochs; with mmengine add dict(type='MethodProgressHook') to "
                "`custom_hooks`."
            )
        gate = None
        if self.gate is not None:
            if own_losses is None:
                raise ValueError(
                    "schedule='gate' compares the losses of student and self-teacher against the targets: give both as "
                    "`own_losses`, or take another schedule."
                )
            gate = self.gate(*own_losses)
        soft, feature = student_logits.new_zeros(()), zero_loss(student_logits, self.feature_loss)
        if self._factor.on and self._alpha.on:
            corners = (align_corners, teacher_align_corners)
            soft = self.soft_label_loss(student_logits, teacher_logits, size, *corners, valid)
            soft = _gated(self._factor(self._alpha(soft)), gate)
        if self._factor.on and self._beta.on:
            feature = _gated(self._factor(self._beta(self.feature_loss(feats, refined_feats))), gate)
        return {"loss_kd": soft, "loss_feat": feature}


def _gated(loss: Tensor, gate: Tensor | None) -> Tensor:
    return loss if gate is None else (loss * gate).to(loss.dtype)


def own_losses(distill: nn.Module, student: Any, teacher: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the argument ``own_losses`` of distillation terms with a gate; nothing for others.

    ``student`` and ``teacher`` are each a loss, or a dict of losses as OpenMMLab's heads give them: entries with
    ``loss`` in their name count, a list of them for each of its parts.

    >>> losses = {"loss_cls": [torch.tensor(1.0), torch.tensor(2.0)], "loss_bbox": torch.ones(4), "acc": torch.ones(1)}
    >>> own_losses(FRSKDLoss(schedule="gate"), losses, torch.tensor(3.0))
    {'own_losses': (tensor(4.), tensor(3.))}
    """
    if getattr(distill, "gate", None) is None:
        return {}
    return {"own_losses": (_sum_of(student), _sum_of(teacher))}


def _sum_of(losses: Any) -> Tensor:
    if isinstance(losses, Mapping):
        losses = [value for name, value in losses.items() if "loss" in name]
    return losses.mean() if isinstance(losses, Tensor) else torch.stack([_sum_of(loss) for loss in losses]).sum()


def zero_loss(like: Tensor, module: nn.Module) -> Tensor:
    """A loss of zero that gives a module's parameters a gradient of zeros: DDP stops where one gets none."""
    # sums of nothing: 0 times a parameter would not be 0 where that is infinite
    nothing = [p.flatten()[:0].sum().to(like) for p in module.parameters() if p.requires_grad]
    return sum(nothing, start=like.new_zeros(()))
