"""SAD, self attention distillation (Hou et al., 2019): each map learns the attention of the next deeper one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from frskd_plugin.core.checks import check_not_negative
from frskd_plugin.methods.base import Criterion, Method, StudentForward, StudentInfo, Terms


def spatial_attention(feat: Tensor, size: Sequence[int]) -> Tensor:
    """Softmax over the channel sum of squares, resized bilinearly to ``size`` (psi): [B, C, h, w] -> [B, H * W]."""
    with torch.autocast(feat.device.type, enabled=False):  # the sum would overflow half precision
        feat = feat.to(torch.promote_types(feat.dtype, torch.float32))
        energy = feat.square().sum(dim=1, keepdim=True)
        resized = F.interpolate(energy, size=tuple(size), mode="bilinear", align_corners=False)
        return resized.flatten(1).softmax(dim=1)


def attention_distance(feat: Tensor, deeper: Tensor) -> Tensor:
    """Mean over batch and positions of ``(psi(feat) - psi(deeper))^2``, both at the size of the larger map.

    Maps [B, C, H, W] and [B, D, h, w]; the deeper one gets no gradient.
    """
    size = max(feat.shape[2:], deeper.shape[2:], key=lambda shape: shape[0] * shape[1])
    return F.mse_loss(spatial_attention(feat, size), spatial_attention(deeper.detach(), size))


class SAD(Method):
    """``CE + w * sum_m mean (psi(F_m) - sg psi(F_{m+1}))^2`` from a start epoch on.

    Args:
        student: the network to train; at least two maps.
        weight: w.
        start_epoch: epochs of plain training before the attention is distilled.
    """

    least_maps = 2
    capturable = True

    def __init__(self, student: StudentInfo, weight: float = 0.1, start_epoch: float = 0) -> None:
        super().__init__(student)
        if not start_epoch >= 0:
            raise ValueError(f"`start_epoch` counts epochs from 0, got {start_epoch}.")
        self.weight, self.start_epoch = check_not_negative("weight", weight), float(start_epoch)
        # not the epoch itself: torch.compile would compile anew for each value that the forward pass reads
        self.has_started = self.start_epoch <= 0

    def set_progress(self, epoch: float, max_epochs: float) -> None:
        super().set_progress(epoch, max_epochs)
        self.has_started = self.progress[0] >= self.start_epoch

    def forward(self, student: StudentForward, images: Tensor, targets: Tensor, criterion: Criterion) -> Terms:
        """Return ``loss_ce`` and the weighted ``loss_attention``; before the start epoch that is 0 and not computed."""
        feats, logits = student(images)
        attention = logits.new_zeros(())
        if self.weight and self.has_started:
            pairs = zip(feats, feats[1:], strict=False)
            attention = self.weight * torch.stack([attention_distance(f, g) for f, g in pairs]).sum()
        return {"loss_ce": criterion(logits, targets), "loss_attention": attention, "output": logits}
