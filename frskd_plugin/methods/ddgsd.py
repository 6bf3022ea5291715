"""DDGSD, data-distortion guided self-distillation (Xu and Liu, 2019): two views of an image agree."""

from __future__ import annotations

from torch import Tensor

from frskd_plugin.core.checks import check_not_negative
from frskd_plugin.core.soft_label import SoftLabelLoss
from frskd_plugin.methods.base import Criterion, DataNeeds, Method, StudentForward, StudentInfo, Terms
from frskd_plugin.methods.targets import choose_soft_label


class DDGSD(Method):
    """``CE_a + CE_b + lambda T^2 [KL(sg p_b || p_a) + KL(sg p_a || p_b)] + mu ||mean f_a - mean f_b||^2``.

    a and b are two augmented views of each image, f the average-pooled last maps and their means those over the batch.
    Both views go through the network in one pass, so they share batch statistics.

    Args:
        student: the network to train. Batches hold images [B, 2, C, H, W], both views of an image, and its one target.
        weight: lambda.
        mean_weight: mu.
        temperature: T.
        soft_label: see `choose_soft_label`.
    """

    needs = DataNeeds(views=2)
    capturable = True

    def __init__(
        self,
        student: StudentInfo,
        weight: float = 1.0,
        mean_weight: float = 5e-4,
        temperature: float = 3.0,
        soft_label: str = "auto",
    ) -> None:
        super().__init__(student)
        self.weight = check_not_negative("weight", weight)
        self.mean_weight = check_not_negative("mean_weight", mean_weight)
        self.soft_label_loss = SoftLabelLoss(temperature, soft_label=choose_soft_label(soft_label, student))

    def forward(self, student: StudentForward, images: Tensor, targets: Tensor, criterion: Criterion) -> Terms:
        """Return ``loss_ce`` of both views [B, 2, C, H, W], ``loss_kd``, ``loss_mean``; ``output`` of the first view.

        Raises:
            ValueError: there are not two views.
        """
        if images.ndim != 5 or images.shape[1] != 2:
            raise ValueError(
                f"DDGSD needs two augmented views of each image, [B, 2, C, H, W], got {list(images.shape)}: let the "
                "data set augment each image twice (`DDGSD.needs`)."
            )
        feats, logits = student(images.transpose(0, 1).flatten(0, 1))
        a, b = logits.chunk(2)
        mean_a, mean_b = (half.mean(dim=0) for half in feats[-1].mean(dim=(2, 3)).chunk(2))
        agree = self.soft_label_loss(a, b) + self.soft_label_loss(b, a)
        return {
            "loss_ce": criterion(a, targets) + criterion(b, targets),
            "loss_kd": self.weight * agree,
            "loss_mean": self.mean_weight * (mean_a - mean_b).square().sum(),
            "output": a,
        }
