"""Interface of the training methods, and the description of the network that they are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

# images [B, 3, H, W] -> (feats, logits [B, K]); feats as a list, level 0 = highest resolution
StudentForward = Callable[[Tensor], tuple[list[Tensor], Tensor]]
# (logits [B, K], targets) -> scalar; targets are labels [B] or soft labels [B, K]
Criterion = Callable[[Tensor, Tensor], Tensor]
# what a method gives: scalars ``loss_*`` and logits ``output`` [B, K], with a teacher also ``teacher_output``
Terms = dict[str, Tensor]


@dataclass(frozen=True)
class StudentInfo:
    """Facts that a method may know of the student when it builds its own modules.

    Attributes:
        module: the network itself; to be looked at or copied, never changed or kept.
        in_channels: channels of each map, level 0 = highest resolution.
        map_sizes: height and width of each map at the network's usual image size.
        num_classes: number of classes.
        macs: multiply-accumulates of one image's forward pass at that size.
        input_size: channels, height and width of those images.
        criterion: the loss of logits against targets that it will train by; None where that is not known.
    """

    module: nn.Module
    in_channels: Sequence[int]
    map_sizes: Sequence[tuple[int, int]]
    num_classes: int
    macs: int
    input_size: tuple[int, int, int]
    criterion: Criterion | None = None

    def with_maps(self, indices: Sequence[int]) -> StudentInfo:
        """Return the facts of the same network with these of its maps, in this order."""
        sizes = [self.map_sizes[i] for i in indices]
        return replace(self, in_channels=[self.in_channels[i] for i in indices], map_sizes=sizes)


def total_loss(terms: Mapping[str, Tensor], method: nn.Module) -> Tensor:
    """Return the sum of the terms ``loss_*`` that a method gives.

    Raises:
        TypeError: ``terms`` is no dict.
        ValueError: there is none of that name, or ``loss`` itself is among them.
    """
    name = type(method).__name__
    if not isinstance(terms, Mapping):
        raise TypeError(f"The method {name} must return a dict of its terms, got {type(terms).__name__}.")
    if "loss" in terms:
        raise ValueError(f"The method {name} returns `loss`, which is the sum of its terms: name the term `loss_...`.")
    parts = [value for key, value in terms.items() if key.startswith("loss_")]
    if not parts:
        only = ", ".join(terms) or "nothing"
        raise ValueError(f"The method {name} returns no term `loss_...` to train with, only {only}.")
    return sum(parts[1:], parts[0])


@dataclass(frozen=True)
class DataNeeds:
    """Requests of a method to its batches beyond images and targets.

    Attributes:
        views: augmented views of each image; above 1, images come as [B, views, C, H, W].
        order: 'any', 'class_pairs' (the second half of a batch holds partners of the first half's classes) or
            'overlap' (the first half of a batch is the second half of the one before).
        index: whether the samples' indices come along as ``index`` [B].
    """

    views: int = 1
    order: str = "any"
    index: bool = False


class Method(nn.Module):
    """A way of training a classifier: the terms of its loss, and the modules that exist for training alone.

    A subclass takes a `StudentInfo` and its own settings, and overrides `forward`.

    Attributes:
        needs: what it asks of its batches.
        makes_soft_targets: whether it hands soft labels [B, K] to the criterion, whatever the targets are.
        least_maps: number of the student's feature maps that it cannot do without.
        capturable: whether a CUDA graph may hold its step: `forward` waits for no value of a tensor, and what it
            remembers or reads from outside lies in buffers that are changed in place, or in attributes that are numbers
            or switches, set at the start of an epoch.
        progress: epochs trained so far and epochs in all, for weights that follow a schedule; see `set_progress`.
    """

    needs = DataNeeds()
    makes_soft_targets = False
    least_maps = 1
    capturable = False

    def __init__(self, student: StudentInfo) -> None:
        super().__init__()
        self.progress = (0.0, 1.0)

    def set_progress(self, epoch: float, max_epochs: float) -> None:
        """Set the epochs trained so far and in all; a training loop calls this at the start of each epoch.

        A loop that counts steps may call it at each of them, with a fraction as ``epoch``, or with steps in place of
        epochs where the method has no setting that counts epochs.
        """
        self.progress = (float(epoch), float(max_epochs))

    def forward(self, student: StudentForward, images: Tensor, targets: Tensor, criterion: Criterion) -> Terms:
        """Return the terms of the loss, whose names begin with ``loss_``, and the student's logits as ``output``.

        Args:
            student: the forward pass, images -> (feats, logits).
            images: [B, C, H, W].
            targets: labels [B] or soft labels [B, K].
            criterion: the loss of logits against targets.
        """
        raise NotImplementedError(f"{type(self).__name__} must override forward")

    def reset_classifier(self, num_classes: int) -> None:
        """Prepare for a student with a new classifier of ``num_classes``; a method with a classifier overrides it.

        Raises:
            ValueError: the method has weights or a teacher that belong to the old classes.
        """
        if self.state_dict() or getattr(self, "teacher", None) is not None:
            raise ValueError(
                f"{type(self).__name__} cannot follow reset_classifier({num_classes}): call it on the plain model "
                "(frskd_plugin.unwrap(model)), and wrap that again."
            )

    def teacher_logits(self, feats: Sequence[Tensor]) -> Tensor | None:
        """Return the logits [B, K] of a teacher that reads the student's maps; None where there is none.

        A teacher that reads something else overrides `evaluate`.
        """
        return None

    def evaluate(self, student: StudentForward, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return logits [B, K] of the student and of the method's own teacher (None without one), for validation."""
        feats, logits = student(images)
        return logits, self.teacher_logits(feats)
