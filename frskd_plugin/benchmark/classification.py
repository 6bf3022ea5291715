"""A timm classifier's training step, plain and with FRSKD (the paper's settings for classification)."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import frskd_plugin.timm  # noqa: F401  (registers the CIFAR networks)
from frskd_plugin.benchmark.training_step import StepSettings, TrainingStep
from frskd_plugin.core.frskd_loss import FRSKDLoss
from frskd_plugin.core.self_teacher import SelfTeacher
from frskd_plugin.timm.create import check_model_name
from frskd_plugin.timm.feature_indices import default_out_indices

NUM_CLASSES = 100
DEFAULT_BATCH = {"resnet18_cifar": 16}
# networks of this package whose maps leave a ReLU, so that the self-teacher need not rectify them again
RECTIFIED = ("resnet18_cifar", "resnet34_cifar", "wrn_16_2", "wrn_16_2_published")


class PlainClassifier(nn.Module):
    """Cross-entropy of a timm model."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` and labels ``[B]`` to a scalar."""
        return F.cross_entropy(self.student(images), labels)


class FRSKDClassifier(nn.Module):
    """Equation 5 with a timm model as the student."""

    def __init__(self, student: nn.Module, rectify_input: bool) -> None:
        super().__init__()
        self.student = student
        self.indices = list(default_out_indices(student.feature_info))
        channels = [student.feature_info[i]["num_chs"] for i in self.indices]
        self.self_teacher = SelfTeacher(channels, num_classes=NUM_CLASSES, rectify_input=rectify_input)
        self.distill = FRSKDLoss(alpha=2.0, beta=100.0, temperature=4.0)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` and labels ``[B]`` to a scalar."""
        last, feats = self.student.forward_intermediates(images, indices=self.indices)
        logits = self.student.forward_head(last)
        refined_feats, teacher_logits = self.self_teacher(feats)
        losses = self.distill(logits, teacher_logits, feats, refined_feats)
        return F.cross_entropy(logits, labels) + F.cross_entropy(teacher_logits, labels) + sum(losses.values())


def classification_steps(name: str, settings: StepSettings) -> tuple[TrainingStep, TrainingStep, int]:
    """The plain step, the FRSKD step, and the batch size.

    Raises:
        ValueError: timm does not know the model.
    """
    check_model_name(name)
    batch = settings.batch or DEFAULT_BATCH.get(name, 32)
    torch.manual_seed(0)
    plain, frskd = (timm.create_model(name, num_classes=NUM_CLASSES) for _ in range(2))
    input_size = plain.pretrained_cfg.get("input_size", (3, 224, 224))
    height, width = (settings.size, settings.size) if settings.size else input_size[1:]
    images = torch.randn(batch, input_size[0], height, width, device=settings.device)
    images = images.contiguous(memory_format=settings.memory_format)
    inputs = (images, torch.randint(NUM_CLASSES, (batch,), device=settings.device))
    return (
        TrainingStep(PlainClassifier(plain), inputs, settings),
        TrainingStep(FRSKDClassifier(frskd, rectify_input=name not in RECTIFIED), inputs, settings),
        batch,
    )
