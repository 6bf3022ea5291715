"""FRSKD, the paper's method (Eq. 5), FRSKD\\F (``beta=0``), and its ablations (Tables 5 and 6)."""

from __future__ import annotations

import bisect
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from frskd_plugin.core.checks import check_bool, check_one_of, check_positive_int
from frskd_plugin.core.feature_losses import HintLoss, OverhaulLoss
from frskd_plugin.core.frskd_loss import FRSKDLoss, own_losses
from frskd_plugin.core.preactivations import forward_with_preactivations
from frskd_plugin.core.schedule import TrunkGradient
from frskd_plugin.core.self_teacher import SelfTeacher
from frskd_plugin.core.self_teacher_neck import SelfTeacherNeck
from frskd_plugin.methods.base import Criterion, Method, StudentForward, StudentInfo, Terms
from frskd_plugin.methods.targets import choose_soft_label

_logger = logging.getLogger(__name__)

AUTO_WIDTHS = (2, 1)  # the paper's choice first
CHANNEL_STEP = 8  # limits to the channels are multiples of this
DEFAULT_MAX_SHARE = 0.75


def teacher_share(student: StudentInfo, width: int, max_channels: int | None = None, **settings: Any) -> float:
    """Return the multiply-accumulates of a `SelfTeacher` of these settings as a share of the student's."""
    settings["max_channels"] = max_channels
    with torch.device("meta"):  # shapes suffice to count: no memory, no time, no random numbers
        teacher = SelfTeacher(student.in_channels, student.num_classes, width, **settings).eval()
        sizes = zip(student.in_channels, student.map_sizes, strict=True)
        feats = [torch.empty(1, channels, *size) for channels, size in sizes]
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            teacher(feats)
    return counter.get_total_flops() / 2 / student.macs


def check_width(width: object) -> int | str:
    """Return ``width`` when it is an int of at least 1 or 'auto', else raise TypeError or ValueError."""
    if width == "auto":
        return "auto"
    if isinstance(width, str):
        raise ValueError(f"`width` must be an int >= 1 or 'auto', got {width!r}.")
    return check_positive_int("width", width)


def width_within(
    student: StudentInfo,
    max_share: float | None,
    max_channels: int | None = None,
    widths: Sequence[int] = AUTO_WIDTHS,
    **settings: Any,
) -> tuple[int, int | None]:
    """Return the largest ``(width, max_channels)`` whose self-teacher stays within ``max_share`` of the student's MACs.

    The ``widths`` are tried first; where the last, 1, is too much, the channels are limited, to a multiple of 8. A
    ``max_share`` of None is 0.75, or what 8 channels cost; ``max_channels`` is the user's own limit.

    Raises:
        ValueError: ``max_share`` is not positive, or not even 8 channels a level keep within it.
    """
    limit = DEFAULT_MAX_SHARE if max_share is None else max_share
    if not limit > 0:
        raise ValueError(f"`max_share` must be > 0 (self-teacher's MACs / student's MACs), got {max_share}.")

    def fits(width: int, channels: int | None) -> bool:
        return teacher_share(student, width, channels, **settings) <= limit

    for width in widths:
        if fits(width, max_channels):
            return width, max_channels
    widest = min(max(student.in_channels), max_channels or max(student.in_channels))
    steps = range(1, widest // CHANNEL_STEP + 1)
    fitting = bisect.bisect_left(steps, True, key=lambda n: not fits(1, n * CHANNEL_STEP))  # how many of them do
    if not fitting and max_share is None:
        return 1, min(CHANNEL_STEP, widest)
    if not fitting:
        least = teacher_share(student, 1, CHANNEL_STEP, **settings)
        raise ValueError(
            f"`width='auto'`: even {CHANNEL_STEP} channels a level cost {least:.2f} of the student's MACs, more than "
            f"max_share={max_share}. Leave the largest maps out (`out_indices`), or raise `max_share`."
        )
    return 1, fitting * CHANNEL_STEP


# For users who give none of the three: found on fine-tuning and short trainings (docs/choosing.md). The paper's for
# CIFAR-100 are alpha=2, beta=100, schedule='constant'; its configs name their own.
DEFAULTS: dict[str, Any] = {"alpha": 1.0, "beta": "auto", "schedule": "gate", "trunk_gradient": "linear"}
# feature losses by name, and the beta that goes with the scale of each: the reference's own examples
FEATURE_BETAS = {"attention": 100.0, "hint": 100.0, "overhaul": 0.01}
PAPER_POSITIONS = 8 * 8  # of WRN-16-2's deepest map on CIFAR, which the paper's beta of 100 was tuned for


def auto_beta(student: StudentInfo, reduction: str = "mean") -> float:
    """Return the beta of attention transfer for a network: the paper's 100 for a deepest map of 8x8, less for smaller.

    The mean over H x W positions makes the feature loss of a map grow as the map shrinks, so beta = 100 H W / 64, at
    most 100. With the sum over the positions ('batchmean'), which does not depend on the size, it is that / (H W).
    """
    height, width = student.map_sizes[-1]
    positions = height * width
    beta = FEATURE_BETAS["attention"] * min(1.0, positions / PAPER_POSITIONS)
    return beta if reduction == "mean" else beta / positions


class FRSKD(Method):
    """``CE(student) + CE(self-teacher) + alpha * L_KD + beta * L_F``; the distillation terms train the student alone.

    Without alpha, beta and schedule it takes `DEFAULTS`, which serve fine-tuning and short trainings too; the paper's
    for CIFAR-100 are alpha=2, beta=100, width=2.

    Args:
        student: the network to train.
        alpha: weight of the soft labels.
        beta: weight of the feature distillation; 0 is FRSKD\\F, 'auto' follows from the network (`auto_beta`; with
            'hint' and ``feature_loss`` modules 100, with 'overhaul' 0.01).
        temperature: of the soft labels.
        schedule: of both terms: 'constant' (the default where alpha or beta is given), 'linear' or 'rampup', which grow
            to 1 at the end of the training and need `set_progress`, or 'gate', see `FRSKDLoss`.
        warmup: share of the training, 0..1, without distillation; needs `set_progress`.
        trunk_gradient: share of the gradient of the self-teacher's cross-entropy that goes on into the student, 0..1 or
            'linear' (the default where neither alpha nor beta is given; else 1, the paper's): see `TrunkGradient`.
        width: the self-teacher's channels are ``width`` times the student's, at each level (the paper: 2). 'auto' takes
            2, 1, or 1 with a limit to the channels, whatever keeps its MACs within ``max_share`` of the student's.
        max_share: that limit; None is 0.75, and 8 channels a level where even these cost more.
        max_channels: upper limit of the self-teacher's channels at any level.
        channels: 'scaled' is BiFPNc; an int D is Table 6's BiFPN with D channels at every level, and ``width`` is not
            used.
        depth: separable convolutions a node; None is the variant's own.
        repeat: number of the self-teacher's layers.
        variant: 'published' (the authors' code, which the paper's alpha and beta belong to) or 'equations'.
        rectify_input: see `SelfTeacherNeck`.
        checkpoint_teacher: keep less of the self-teacher for the backward pass, and compute it again there.
        feature_loss: 'attention' (the paper's, `AttentionTransferLoss`), Table 5's 'hint' (`HintLoss`) and 'overhaul'
            (`OverhaulLoss`, between the maps before their ReLU, or as they are where they leave none), or a module
            that takes (feats, refined_feats) and gives a scalar.
        feature_reduction: of 'attention': 'mean' (the paper's beta belongs to it) or 'batchmean', see
            `attention_transfer_loss`.
        soft_label: see `choose_soft_label`.

    Raises:
        TypeError: for arguments of the wrong type.
        ValueError: for arguments out of range, or fewer than two feature maps.
    """

    least_maps = 2
    capturable = True

    def __init__(
        self,
        student: StudentInfo,
        alpha: float | None = None,
        beta: float | str | None = None,
        temperature: float = 4.0,
        width: int | str = "auto",
        max_share: float | None = None,
        max_channels: int | None = None,
        channels: str | int = "scaled",
        depth: int | None = None,
        repeat: int = 1,
        variant: str = "published",
        rectify_input: bool = True,
        checkpoint_teacher: bool = False,
        feature_loss: str | nn.Module = "attention",
        feature_reduction: str = "mean",
        soft_label: str = "auto",
        schedule: str | None = None,
        warmup: float = 0.0,
        trunk_gradient: float | str | None = None,
    ) -> None:
        super().__init__(student)
        if not isinstance(feature_loss, nn.Module):
            check_one_of("feature_loss", feature_loss, [*FEATURE_BETAS])
        chosen_here = alpha is None and beta is None
        if schedule is None:
            schedule = DEFAULTS["schedule"] if chosen_here else "constant"
        if trunk_gradient is None:
            trunk_gradient = DEFAULTS["trunk_gradient"] if chosen_here else 1.0
        self.trunk_gradient = TrunkGradient(trunk_gradient)
        alpha = DEFAULTS["alpha"] if alpha is None else alpha
        weight: Any = DEFAULTS["beta"] if beta is None else beta
        if weight == "auto":
            reduction = feature_reduction if variant == "published" else "batchmean"
            name = feature_loss if isinstance(feature_loss, str) else "hint"  # a loss of one's own weighs as that
            weight = auto_beta(student, reduction) if name == "attention" else FEATURE_BETAS[name]
        self.preactivation = feature_loss == "overhaul"
        form: dict[str, Any] = {
            "channels": channels,
            "depth": depth,
            "repeat": repeat,
            "variant": variant,
            "rectify_input": rectify_input,
            "checkpoint": check_bool("checkpoint_teacher", checkpoint_teacher),
            "preactivation": self.preactivation,
        }
        auto = check_width(width) == "auto" and channels == "scaled"
        if not auto:
            chosen = AUTO_WIDTHS[0] if width == "auto" else int(width)  # with `channels` it is not used
        else:
            chosen, max_channels = width_within(student, max_share, max_channels, **form)
        self.self_teacher = SelfTeacher(
            student.in_channels, student.num_classes, chosen, max_channels=max_channels, **form
        )
        made = _make_feature_loss(feature_loss, student.in_channels, self.self_teacher.neck)
        soft_label = choose_soft_label(soft_label, student)
        self.loss_distill = FRSKDLoss(
            alpha, weight, temperature, variant, made, soft_label, feature_reduction, schedule, warmup
        )
        if not weight and list(self.loss_distill.feature_loss.parameters()):
            raise ValueError(
                f"`feature_loss={feature_loss!r}` has weights of its own, which `beta=0` leaves without training: "
                "leave `feature_loss` out for FRSKD\\F."
            )
        self.width, self.max_channels = chosen, max_channels
        _log_cost(teacher_share(student, chosen, max_channels, **form), chosen, max_channels, auto)

    def set_progress(self, epoch: float, max_epochs: float) -> None:
        super().set_progress(epoch, max_epochs)
        self.loss_distill.set_progress(epoch, max_epochs)
        self.trunk_gradient.set_progress(epoch, max_epochs)

    def forward(self, student: StudentForward, images: Tensor, targets: Tensor, criterion: Criterion) -> Terms:
        """Return weighted ``loss_ce, loss_teacher_ce, loss_kd, loss_feat``; logits ``output``, ``teacher_output``."""
        feats, logits, maps = self.run_student(student, images)
        refined_feats, teacher_logits = self.run_self_teacher(feats)
        if logits.shape != teacher_logits.shape:
            raise ValueError(
                f"The student has {logits.shape[1]} classes and its self-teacher {teacher_logits.shape[1]}: after "
                f"`reset_classifier` wrap the model again."
            )
        loss, teacher_loss = criterion(logits, targets), criterion(teacher_logits, targets)
        own = own_losses(self.loss_distill, loss, teacher_loss)
        return {
            "loss_ce": loss,
            "loss_teacher_ce": teacher_loss,
            **self.loss_distill(logits, teacher_logits, maps, refined_feats, **own),
            "output": logits,
            "teacher_output": teacher_logits,
        }

    def run_student(self, student: StudentForward, images: Tensor) -> tuple[list[Tensor], Tensor, list[Tensor]]:
        """Return the student's maps, its logits, and the maps that the feature loss compares."""
        if self.preactivation:
            return forward_with_preactivations(student, images)
        feats, logits = student(images)
        return feats, logits, feats

    def run_self_teacher(self, feats: list[Tensor]) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return refined maps and logits, whose loss trains the student's trunk too (`trunk_gradient`)."""
        return self.self_teacher(self.trunk_gradient(feats))

    def reset_classifier(self, num_classes: int) -> None:
        self.self_teacher.reset_classifier(num_classes)

    def teacher_logits(self, feats: Sequence[Tensor]) -> Tensor:
        return self.self_teacher(feats)[1]


def _make_feature_loss(
    feature_loss: str | nn.Module, in_channels: Sequence[int], neck: SelfTeacherNeck
) -> nn.Module | None:
    """Return the loss of a name, or the user's own; None for `FRSKDLoss` to make the attention transfer."""
    if isinstance(feature_loss, nn.Module):
        return feature_loss
    if feature_loss == "attention":
        return None
    if feature_loss == "hint":
        return HintLoss(in_channels, neck.out_channels)
    return OverhaulLoss(in_channels, neck.output_norms())


def _log_cost(share: float, width: int, max_channels: int | None, auto: bool) -> None:
    """Log what was chosen, or that a choice is costly; at WARNING, which is seen without any set-up of logging."""
    if auto:
        limit = "" if max_channels is None else f", at most {max_channels} channels a level"
        level = logging.INFO if (width, limit) == (AUTO_WIDTHS[0], "") else logging.WARNING
        _logger.log(level, "FRSKD: width='auto' chose width=%s%s: %.2f of the student's MACs", width, limit, share)
    elif share > 1:
        _logger.warning(
            "FRSKD: the self-teacher of width=%s needs %.1f times the student's MACs; width='auto' keeps to %s of them",
            width,
            share,
            DEFAULT_MAX_SHARE,
        )
