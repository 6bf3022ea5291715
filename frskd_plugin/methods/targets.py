"""Checks of labels, soft labels and criteria; labels as distributions over the classes."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frskd_plugin.core.checks import can_read, check_one_of
from frskd_plugin.core.soft_label import SOFT_LABELS, criterion_soft_label, finite_logits
from frskd_plugin.methods.base import Criterion, StudentInfo

_logger = logging.getLogger(__name__)

# of timm's criteria, those that take labels alone
LABEL_CRITERIA = ("LabelSmoothingCrossEntropy", "JsdCrossEntropy", "AsymmetricLossSingleLabel")


def choose_soft_label(soft_label: str, student: StudentInfo) -> str:
    """Return how a method makes soft labels: 'softmax' over the classes, or 'sigmoid' (one logit, multi-label).

    'auto' is a sigmoid where the student's criterion is known to take one (`criterion_soft_label`), and says so.

    Raises:
        ValueError: an unknown name, or one logit with a softmax or with a criterion that is not known.
    """
    check_one_of("soft_label", soft_label, SOFT_LABELS)
    known = criterion_soft_label(student.criterion)
    chosen = known or "softmax" if soft_label == "auto" else soft_label
    if student.num_classes == 1 and chosen == "softmax":
        if soft_label == "auto" and student.criterion is None:
            chosen = "sigmoid"
        else:
            given = "soft_label='softmax'" if soft_label == "softmax" else f"criterion {name_of(student.criterion)}"
            raise ValueError(
                f"One logit (num_classes=1) has soft labels by a sigmoid alone, and {given} does not say that it takes "
                "one: give soft_label='sigmoid' where the logit's sigmoid is the probability of the class, or "
                "num_classes=2."
            )
    if soft_label == "auto" and chosen == "sigmoid":
        _logger.warning(
            "Soft labels are made by a sigmoid, each class on its own, as the criterion %s does "
            "(soft_label='softmax' compares them over all classes)",
            name_of(student.criterion),
        )
    return chosen


def name_of(criterion: Any) -> str:
    """Name of a criterion."""
    while isinstance(criterion, functools.partial):
        criterion = criterion.func
    return getattr(criterion, "__name__", type(criterion).__name__)


def ignored_label(criterion: Any) -> int:
    """Label of samples that a criterion leaves out: its ``ignore_index``, or that of torch's cross-entropy."""
    while isinstance(criterion, functools.partial):
        if "ignore_index" in criterion.keywords:
            return int(criterion.keywords["ignore_index"])
        criterion = criterion.func
    return int(getattr(criterion, "ignore_index", -100))


def check_targets(
    images: Tensor, targets: Tensor, criterion: Criterion, num_classes: int | None, makes_soft: bool = False
) -> Tensor:
    """Return the targets of a batch: labels of any integer type as int64, soft labels of integers as floats.

    The values of labels are looked at on a CPU alone: on a GPU the host would wait for it in every step. Where the
    criterion is not known (`criterion_soft_label`), only the number of targets is checked.

    Args:
        images: of any shape, the batch first.
        targets: labels [B] or soft labels [B, K].
        criterion: the loss of logits against targets.
        num_classes: K; None leaves values and width unchecked.
        makes_soft: whether the method hands soft labels of its own to the criterion.

    Raises:
        TypeError: the targets are no tensor.
        ValueError: an empty batch, or targets that the criterion cannot take.
    """
    if not isinstance(targets, Tensor):
        raise TypeError(f"Targets are a tensor, labels [B] or soft labels [B, K], got {type(targets).__name__}.")
    if isinstance(images, Tensor) and images.shape[0] == 0:
        raise ValueError(f"The batch is empty (images {list(images.shape)}), and its mean loss not defined: skip it.")
    if isinstance(images, Tensor) and (targets.ndim == 0 or len(targets) != len(images)):
        raise ValueError(f"Expected a target for each of the {len(images)} images, got {list(targets.shape)}.")
    whole = not targets.is_floating_point()
    kind = criterion_soft_label(criterion)
    if kind is None:
        return targets.long() if targets.ndim == 1 and whole else targets
    takes_labels, takes_soft = _targets_taken(criterion, kind, num_classes)
    if targets.ndim == 1 and whole and (takes_labels or makes_soft):
        targets = targets.long()
        if num_classes is not None:
            check_labels(targets, num_classes, ignored_label(criterion), criterion)
        return targets
    if targets.ndim == 2 and num_classes in (None, targets.shape[1]) and (takes_soft or makes_soft):
        if kind == "sigmoid" or not whole:
            return targets.to(torch.get_default_dtype()) if whole else targets
    wanted = ["labels [B] (integers)"] * takes_labels
    wanted += [f"soft labels [B, {'K' if num_classes is None else num_classes}] (floats)"] * takes_soft
    raise ValueError(
        f"The criterion {name_of(criterion)} takes {' or '.join(wanted)}, got {targets.dtype} {list(targets.shape)}."
    )


def _targets_taken(criterion: Criterion, kind: str, num_classes: int | None) -> tuple[bool, bool]:
    """Say of a known criterion whether it takes labels [B], and whether soft labels [B, K]."""
    name = name_of(criterion)
    if kind == "sigmoid":  # timm's makes labels one-hot; OpenMMLab's have their own rules
        return hasattr(criterion, "use_sigmoid") or (name == "BinaryCrossEntropy" and num_classes != 1), True
    soft = name not in LABEL_CRITERIA and ignored_label(criterion) < 0  # torch: no `ignore_index` with soft labels
    return name != "SoftTargetCrossEntropy", soft


def check_labels(labels: Tensor, num_classes: int, ignored: int, criterion: Criterion | None = None) -> None:
    """Raise ValueError for labels [B] outside of 0..K-1, and ignored ones that a library's criterion would count."""
    if not can_read(labels):
        return
    counted = labels[labels != ignored]
    least, most = 0, max(num_classes, 2) - 1  # one logit has labels 0 and 1
    wrong = counted[(counted < least) | (counted > most)]
    if wrong.numel():
        raise ValueError(
            f"Labels must be classes {least}..{most} (or {ignored}, to be ignored), got {wrong[0].item()}: make "
            f"num_classes={num_classes} fit the data set."
        )
    of_library = type(criterion).__module__.startswith(("torch.nn", "timm.loss")) and isinstance(criterion, nn.Module)
    if len(counted) < len(labels) and of_library and not hasattr(criterion, "ignore_index"):
        raise ValueError(
            f"The criterion {name_of(criterion)} has no ignore_index, so it cannot leave out the images of label "
            f"{ignored}: take them out of the batch, or use torch.nn.CrossEntropyLoss."
        )


def check_terms(terms: dict[str, Any], criterion: Criterion) -> None:
    """Raise ValueError for a term of the loss that is no scalar."""
    for name, value in terms.items():
        if name.startswith("loss") and (not isinstance(value, Tensor) or value.numel() != 1):
            got = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"`{name}` must be a scalar tensor, got {got}: let the criterion {name_of(criterion)} reduce its loss "
                "over the batch (reduction='mean')."
            )


def soft_targets(targets: Tensor, logits: Tensor, ignored: int = -100) -> Tensor:
    """Return a distribution [B, K] for each image, in the dtype of the logits: labels become one-hot, soft labels stay.

    Of one logit, labels are 0 or 1. The row of an ignored label is that of class 0, see `leave_out_ignored`.

    Raises:
        ValueError: targets of another batch or number of classes, or (on a CPU) a label that is no class.
    """
    if targets.ndim == 1 and targets.shape[0] == logits.shape[0] and not targets.is_floating_point():
        labels = targets.long()
        check_labels(labels, logits.shape[1], ignored)
        labels = labels.masked_fill(labels == ignored, 0)
        targets = labels.unsqueeze(1) if logits.shape[1] == 1 else F.one_hot(labels, logits.shape[1])
    if targets.shape != logits.shape:
        raise ValueError(
            f"Soft labels are made of labels [B] (integers) or soft labels [B, K] for logits {list(logits.shape)}, got "
            f"{targets.dtype} {list(targets.shape)}."
        )
    return targets.to(logits.dtype)


def leave_out_ignored(soft: Tensor, targets: Tensor, ignored: int) -> Tensor:
    """Return soft labels [B, K] of which a cross-entropy's mean over the batch is the mean over the labelled images.

    Rows of images without a label become 0, the others are multiplied by B over their number, as torch's cross-entropy
    divides; without such an image, or where the targets are soft labels, nothing changes.
    """
    if targets.ndim != 1:
        return soft
    labelled = targets != ignored
    return soft * (labelled * (len(targets) / labelled.sum().clamp(min=1))).to(soft.dtype).unsqueeze(1)


def soft_loss(criterion: Criterion, logits: Tensor, targets: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the criterion of logits [B, K] against ``change(soft_targets(targets))``, without unlabelled images.

    Raises:
        ValueError: the criterion takes labels only.
    """
    ignored, logits = ignored_label(criterion), finite_logits(logits)
    soft = leave_out_ignored(change(soft_targets(targets, logits, ignored)), targets, ignored)
    try:
        return criterion(logits, soft)
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        try:
            criterion(logits.detach(), soft.argmax(1))
        except Exception:  # whatever a user's criterion raises: it fails on something else
            pass
        else:
            raise ValueError(
                f"The method hands soft labels [B, K] to the criterion, and {name_of(criterion)} failed on them "
                f"({error}): leave `criterion` and its smoothing out, or give one for soft labels, such as timm's "
                f"SoftTargetCrossEntropy()."
            ) from error
        raise
