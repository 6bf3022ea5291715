"""PS-KD, progressive self-knowledge distillation (Kim et al., 2021): labels mixed with last epoch's predictions."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from frskd_plugin.core.schedule import scheduled_weight
from frskd_plugin.methods.base import Criterion, DataNeeds, Method, StudentForward, StudentInfo
from frskd_plugin.methods.prediction_store import PredictionStore
from frskd_plugin.methods.targets import choose_soft_label, ignored_label, leave_out_ignored, soft_loss, soft_targets

LEAST_PROBABILITY = 2.0**-24  # of float16, as predictions are kept: a row of zeros would be one that is not known


def mixed_targets(targets: Tensor, before: Tensor, alpha: float | Tensor) -> Tensor:
    """``(1 - alpha) y + alpha p``; where p is zero, nothing known of the image, y alone.

    Args:
        targets: distributions y [B, K].
        before: earlier predictions p [B, K], rows of probabilities or of zeros.
        alpha: share of the earlier prediction.

    >>> import torch
    >>> mixed_targets(torch.eye(2), torch.tensor([[0.5, 0.5], [0.0, 0.0]]), 0.5).tolist()
    [[0.75, 0.25], [0.0, 1.0]]
    """
    known = before.sum(dim=1, keepdim=True) > 0
    return torch.where(known, (1 - alpha) * targets + alpha * before.to(targets.dtype), targets)


class PSKD(Method):
    """``CE`` against ``(1 - alpha_t) y + alpha_t p``, p the prediction for the image in the epoch before.

    alpha_t = ``alpha`` * t / T in epoch t = 1 .. T. Predictions are gathered in the training pass itself, as in the
    authors' code, by the index of the sample; see `PredictionStore` for where they lie and how a run resumes. `forward`
    changes that table, as batch normalisation changes its statistics. What images without a prediction learn from, so
    all of them in the first epoch, is y.

    Args:
        student: the network to train. Batches come with the samples' places in the training set, ``index`` [B].
        num_samples: size of the training set.
        alpha: the share of the predictions in the last epoch.
        file: keeps the predictions in this file and not in the checkpoint (for ImageNet).
        soft_label: 'softmax', 'sigmoid' (one logit, multi-label), or 'auto' by the criterion, see `choose_soft_label`.

    Raises:
        TypeError: for arguments of the wrong type.
        ValueError: for arguments out of range.
    """

    needs = DataNeeds(index=True)

    def __init__(
        self,
        student: StudentInfo,
        num_samples: int,
        alpha: float = 0.8,
        file: str | Path | None = None,
        soft_label: str = "auto",
    ) -> None:
        super().__init__(student)
        if not 0 <= alpha <= 1:
            raise ValueError(f"`alpha` is the share of earlier predictions and must be in 0..1, got {alpha}.")
        self.alpha = float(alpha)
        self.soft_label = choose_soft_label(soft_label, student)
        self._alpha_now = scheduled_weight(self.alpha)
        self.predictions = PredictionStore(num_samples, student.num_classes, file)

    @property
    def alpha_now(self) -> float:
        """alpha_t of the epoch that `set_progress` told of."""
        return self._alpha_now.item()

    def set_progress(self, epoch: float, max_epochs: float) -> None:
        """See `Method.set_progress`."""
        super().set_progress(epoch, max_epochs)
        self._alpha_now.fill_(self.alpha * min(1.0, (int(epoch) + 1) / max_epochs))

    def forward(
        self,
        student: StudentForward,
        images: Tensor,
        targets: Tensor,
        criterion: Criterion,
        index: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """``loss_ce`` against the mixed targets.

        Args:
            student: the forward pass.
            images: [B, C, H, W].
            targets: labels [B] or soft labels [B, K].
            criterion: the loss of logits against soft labels.
            index: place of each sample in the training set, int64 [B].

        Raises:
            ValueError: no index, or one outside of the training set.
        """
        if index is None or index.shape != images.shape[:1]:
            raise ValueError(
                f"PS-KD needs the place of each of the {len(images)} samples in the training set: call model(images, "
                f"targets, index=index) with index [B], got {None if index is None else list(index.shape)}."
            )
        _, logits = student(images)
        before = self.predictions.read(index).to(logits.device)
        ignored = ignored_label(criterion)
        mixed = mixed_targets(soft_targets(targets, logits, ignored), before, self._alpha_now)
        mixed = leave_out_ignored(mixed, targets, ignored)
        self.predictions.write(index, _probabilities(logits.detach().float(), self.soft_label))
        return {"loss_ce": soft_loss(criterion, logits, mixed), "output": logits}


def _probabilities(logits: Tensor, soft_label: str) -> Tensor:
    if soft_label == "softmax":
        return logits.softmax(dim=1)
    return logits.sigmoid().clamp(min=LEAST_PROBABILITY)
