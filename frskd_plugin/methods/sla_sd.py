"""SLA-SD, self-supervised label augmentation with self-distillation (Lee et al., 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frskd_plugin.core.checks import check_not_negative
from frskd_plugin.core.soft_label import SoftLabelLoss
from frskd_plugin.methods.base import Criterion, Method, StudentForward, StudentInfo, Terms
from frskd_plugin.methods.targets import choose_soft_label, ignored_label

ROTATIONS = 4


def rotate_images(images: Tensor) -> Tensor:
    """Return each image in its four rotations, counter-clockwise, [B, C, S, S] -> [4 B, C, S, S].

    Raises:
        ValueError: the images are not square.
    """
    if images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise ValueError(
            f"Quarter turns need square images [B, C, S, S], got {list(images.shape)}: crop or resize them to a square."
        )
    rotated = torch.stack([images.rot90(k, (2, 3)) for k in range(ROTATIONS)], dim=1).flatten(0, 1)
    channels_last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    return rotated.contiguous(memory_format=torch.channels_last) if channels_last else rotated


def check_softmax(soft_label: str, owner: str) -> None:
    """Raise ValueError, with the method's name, for soft labels by a sigmoid."""
    if soft_label != "softmax":
        raise ValueError(
            f"{owner} cannot make soft labels by a sigmoid (one logit, multi-label): its joint classifier of class and "
            "rotation is a softmax. Use another method or, where each image has one label, soft_label='softmax'."
        )


def joint_targets(targets: Tensor, ignored: int = -100) -> Tensor:
    """Targets of class and rotation: labels [B] -> [4 B], the ignored one as -100; soft labels [B, K] -> [4 B, 4 K].

    >>> import torch
    >>> joint_targets(torch.tensor([0, 2])).tolist()
    [0, 1, 2, 3, 8, 9, 10, 11]
    """
    if targets.ndim == 1:
        targets = targets.long().unsqueeze(1)
        joint = ROTATIONS * targets + torch.arange(ROTATIONS, device=targets.device)
        return joint.masked_fill(targets == ignored, -100).flatten()
    eye = torch.eye(ROTATIONS, device=targets.device, dtype=targets.dtype)
    return torch.einsum("bc,kl->bkcl", targets, eye).flatten(2).flatten(0, 1)


def aggregate_logits(joint_logits: Tensor) -> Tensor:
    """Mean over the rotations of the logits that name the right one, [4 B, 4 K] -> [B, K]."""
    rows, columns = joint_logits.shape
    split = joint_logits.view(rows // ROTATIONS, ROTATIONS, columns // ROTATIONS, ROTATIONS)
    return split.diagonal(dim1=1, dim2=3).mean(dim=-1)


class JointHead(nn.Linear):
    """Linear classifier of K classes and four rotations on an average-pooled map, [4 B, C, H, W] -> [4 B, 4 K]."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(in_channels, ROTATIONS * num_classes)

    def forward(self, feat: Tensor) -> Tensor:
        return super().forward(feat.mean(dim=(2, 3)))


class SLASD(Method):
    """``CE(joint, 4 y + k) + CE(single, y) + w T^2 KL(sg agg || single)``, in one pass over four rotations.

    A joint classifier of class and rotation reads the last map; agg is its mean over the rotations,
    ``mean_k joint_k[:, k::4]``. The student's own classifier learns from the unrotated images alone and is deployed.

    Args:
        student: the network to train; its images must be square.
        weight: w.
        temperature: T; the published FRSKD+SLA uses 4.
        soft_label: 'softmax', or 'auto', which is that too.

    Raises:
        ValueError: a criterion that decides each class on its own (one logit, multi-label).
    """

    capturable = True

    def __init__(
        self, student: StudentInfo, weight: float = 1.0, temperature: float = 1.0, soft_label: str = "auto"
    ) -> None:
        super().__init__(student)
        self.weight = check_not_negative("weight", weight)
        check_softmax(choose_soft_label(soft_label, student), "SLA-SD")
        self.soft_label_loss = SoftLabelLoss(temperature)
        self.joint_head = JointHead(student.in_channels[-1], student.num_classes)

    def forward(self, student: StudentForward, images: Tensor, targets: Tensor, criterion: Criterion) -> Terms:
        """Return ``loss_ce, loss_joint_ce`` (always the plain cross-entropy) and the weighted ``loss_kd``.

        Raises:
            ValueError: the images are not square.
        """
        feats, all_logits = student(rotate_images(images))
        logits = all_logits[::ROTATIONS]
        joint_logits = self.joint_head(feats[-1])
        return {
            "loss_ce": criterion(logits, targets),
            "loss_joint_ce": F.cross_entropy(joint_logits, joint_targets(targets, ignored_label(criterion))),
            "loss_kd": self.weight * self.soft_label_loss(logits, aggregate_logits(joint_logits)),
            "output": logits,
        }
