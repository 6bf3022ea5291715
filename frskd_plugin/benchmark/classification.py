"""A timm classifier's training step, plain and with FRSKD (the paper's settings for classification)."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import frskd_plugin.timm  # noqa: F401  (registers the CIFAR networks)
from frskd_plugin.benchmark.training_step import StepSettings, TrainingStep
from frskd_plugin.timm.wrap import wrap

NUM_CLASSES = 100
METHODS = ("baseline", "frskd")
DEFAULT_BATCH = {"resnet18_cifar": 16}
# networks of this package whose maps leave a ReLU, so that the self-teacher need not rectify them again
RECTIFIED = ("resnet18_cifar", "resnet34_cifar", "wrn_16_2", "wrn_16_2_published")


class PlainLoss(nn.Module):
    """Cross-entropy of a timm model, as whoever does not use this package trains it."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` and labels ``[B]`` to a scalar."""
        return F.cross_entropy(self.student(images), labels)


class WrappedLoss(nn.Module):
    """The total loss of a model that `frskd_plugin.wrap` returned."""

    def __init__(self, wrapped: nn.Module) -> None:
        super().__init__()
        self.wrapped = wrapped

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` and labels ``[B]`` to a scalar."""
        return self.wrapped(images, labels)["loss"]


def classifier_loss(name: str, method: str, size: int | None, width: int | str) -> tuple[nn.Module, tuple[int, ...]]:
    """A network of random weights that gives the loss of a batch, and its image size (channels, height, width).

    Args:
        name: timm model.
        method: one of `METHODS`.
        size: height and width of the images; None is the model's own.
        width: of the self-teacher.

    Raises:
        ValueError: The model cannot be wrapped, or not for images of this size.
    """
    student = timm.create_model(name, num_classes=NUM_CLASSES)
    channels, *own_size = student.pretrained_cfg.get("input_size", (3, 224, 224))
    input_size = (channels, *([size, size] if size else own_size))
    if method == "baseline":
        return PlainLoss(student), input_size
    rectify_input = name not in RECTIFIED
    return WrappedLoss(
        wrap(student, method, input_size=input_size, width=width, rectify_input=rectify_input)
    ), input_size


def classification_steps(name: str, settings: StepSettings) -> tuple[TrainingStep, TrainingStep, int]:
    """The plain step, the FRSKD step, and the batch size.

    Raises:
        ValueError: The model cannot be wrapped, or not for images of this size.
    """
    batch = settings.batch or DEFAULT_BATCH.get(name, 32)
    torch.manual_seed(0)
    (plain, input_size), (frskd, _) = (classifier_loss(name, m, settings.size, settings.width) for m in METHODS)
    images = torch.randn(batch, *input_size, device=settings.device).contiguous(memory_format=settings.memory_format)
    inputs = (images, torch.randint(NUM_CLASSES, (batch,), device=settings.device))
    return TrainingStep(plain, inputs, settings), TrainingStep(frskd, inputs, settings), batch
