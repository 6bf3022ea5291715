"""Distillation terms of FRSKD (Eq. 5)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from frskd_plugin.core.blocks import Size
from frskd_plugin.core.checks import check_not_negative
from frskd_plugin.core.feature_losses import AttentionTransferLoss
from frskd_plugin.core.schedule import ScheduledWeight
from frskd_plugin.core.soft_label import SoftLabelLoss


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
            'batchmean', which does not depend on the resolution and wants another beta, see `attention_transfer_loss`.
        soft_label: how the classifiers turn logits into probabilities: 'softmax' over the classes
            (`soft_label_loss`), or 'sigmoid', each class on its own (`binary_soft_label_loss`: one logit, multi-label,
            detectors with focal loss). 'auto' takes 'sigmoid' for one logit; methods, segmentors and detectors choose
            for it by their own criterion. A sigmoid's sum is divided by the number of positions or, for logits
            [B, K, N] of N anchors, by `expected_foreground`.

    Raises:
        ValueError: for a negative weight, a temperature that is not positive, an unknown variant, reduction or soft
            label, or a ``feature_reduction`` beside a ``feature_loss`` that has its own.

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
    ) -> None:
        super().__init__()
        self._alpha = ScheduledWeight(check_not_negative("alpha", alpha))
        self._beta = ScheduledWeight(check_not_negative("beta", beta))
        self._factor = ScheduledWeight(1.0)
        self.soft_label_loss = SoftLabelLoss(temperature, variant, soft_label)
        attention_transfer = AttentionTransferLoss(variant, feature_reduction)
        if feature_loss is not None and feature_reduction != "mean":
            raise ValueError(
                f"`feature_reduction={feature_reduction!r}` belongs to the attention transfer, got `feature_loss="
                f"{type(feature_loss).__name__}` beside it: leave one of them out."
            )
        self.feature_loss = attention_transfer if feature_loss is None else feature_loss

    @property
    def alpha(self) -> float:
        """Weight of the soft labels; may be set at any time of a training."""
        return self._alpha.value

    @alpha.setter
    def alpha(self, value: float) -> None:
        self._alpha.set(check_not_negative("alpha", value))

    @property
    def beta(self) -> float:
        """Weight of the feature distillation; may be set at any time of a training."""
        return self._beta.value

    @beta.setter
    def beta(self, value: float) -> None:
        self._beta.set(check_not_negative("beta", value))

    @property
    def factor(self) -> float:
        """Multiply both terms; may be set at any time of a training, 0 skips their computation."""
        return self._factor.value

    @factor.setter
    def factor(self, value: float) -> None:
        self._factor.set(check_not_negative("factor", value))

    @property
    def active(self) -> bool:
        """True while any term is computed."""
        return self._factor.on and (self._alpha.on or self._beta.on)

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

        Raises:
            ValueError: if shapes or numbers of levels disagree.
        """
        soft, feature = student_logits.new_zeros(()), zero_loss(student_logits, self.feature_loss)
        if self._factor.on and self._alpha.on:
            corners = (align_corners, teacher_align_corners)
            soft = self.soft_label_loss(student_logits, teacher_logits, size, *corners, valid)
            soft = self._factor(self._alpha(soft))
        if self._factor.on and self._beta.on:
            feature = self._factor(self._beta(self.feature_loss(feats, refined_feats)))
        return {"loss_kd": soft, "loss_feat": feature}


def zero_loss(like: Tensor, module: nn.Module) -> Tensor:
    """A loss of zero that keeps a module's parameters in the graph: DDP stops where one gets no gradient.

    Args:
        like: any tensor of the dtype and device of the loss.
        module: its trained parameters get a gradient of zeros.

    >>> import torch
    >>> layer = nn.Linear(2, 1)
    >>> zero_loss(torch.ones(1), layer).backward()
    >>> layer.weight.grad
    tensor([[0., 0.]])
    """
    # sums of nothing: 0 times a parameter would not be 0 where that is infinite
    nothing = [p.flatten()[:0].sum().to(like) for p in module.parameters() if p.requires_grad]
    return sum(nothing, start=like.new_zeros(()))
