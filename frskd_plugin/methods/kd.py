"""Distillation from a pretrained teacher (Hinton et al., 2015), with a feature loss or without: Table 7."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from frskd_plugin.core.checks import check_not_negative, check_one_of
from frskd_plugin.core.dry_run import probe_images
from frskd_plugin.core.feature_losses import AttentionTransferLoss, HintLoss, OverhaulLoss
from frskd_plugin.core.preactivations import find_map_norms, forward_with_preactivations, normalise
from frskd_plugin.core.soft_label import SoftLabelLoss
from frskd_plugin.methods.base import Criterion, Method, StudentForward, StudentInfo, Terms
from frskd_plugin.methods.targets import choose_soft_label

# feature losses and their usual weights: FitNet's in later comparisons, attention transfer's and overhaul's own
FEATURE_BETAS = {"none": 0.0, "hint": 100.0, "attention": 1000.0, "overhaul": 1e-3}


class _Shared(tuple):
    """A tuple that copies of its owner share: an EMA of a model holds the same frozen teacher, not a second one."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self


class KD(Method):
    """``CE(z) + alpha T^2 KL(sg teacher || z) + beta L_F``.

    The teacher stays in eval mode and gets no gradient. It is no submodule: optimizers, DDP, checkpoints and
    ``train()`` do not see it. A resumed run builds the method again, with the same teacher. Copies of the model, such
    as an EMA, share it. ``to()`` moves it along: the model then holds a teacher of its own, and its copies keep theirs.

    Args:
        student: the network to train.
        teacher: images -> (feats, logits), in eval mode, with maps as many and as large as the student's.
            `frskd_plugin.wrap` makes it from a timm model or from ``dict(model_name=..., checkpoint=FILE)``.
        alpha: weight of the soft labels.
        temperature: T.
        feature_loss: 'none', 'hint' (FitNet), 'attention' (attention transfer) or 'overhaul'; Table 7 has the last
            three, each with the soft labels.
        beta: weight of the feature loss; None is 100 for 'hint', 1000 for 'attention', 0.001 for 'overhaul'.
        student_mean: mean of each channel, in 0..1, that the images of a batch are normalised with; None is that of the
            student's ``pretrained_cfg`` (`TimmClassifier`: of the data preprocessor). Where the teacher's mean or std
            are known and differ (`FrozenTeacher`), its images are changed to them.
        student_std: their std, likewise.
        soft_label: see `choose_soft_label`.

    Raises:
        TypeError: the teacher is no module.
        ValueError: a teacher whose classes or maps do not fit the student's, or with 'overhaul' have no normalisation.
    """

    capturable = True

    def __init__(
        self,
        student: StudentInfo,
        teacher: nn.Module,
        alpha: float = 1.0,
        temperature: float = 4.0,
        feature_loss: str = "none",
        beta: float | None = None,
        student_mean: Sequence[float] | None = None,
        student_std: Sequence[float] | None = None,
        soft_label: str = "auto",
    ) -> None:
        super().__init__(student)
        if not isinstance(teacher, nn.Module):
            raise TypeError(f"`teacher` must be a module, images -> (feats, logits), got {type(teacher).__name__}.")
        self.kind = check_one_of("feature_loss", feature_loss, [*FEATURE_BETAS])
        self.alpha = check_not_negative("alpha", alpha)
        self.beta = check_not_negative("beta", FEATURE_BETAS[self.kind] if beta is None else beta)
        if self.kind != "none" and not self.beta:
            raise ValueError(f"`feature_loss={self.kind!r}` with `beta=0` trains nothing: use feature_loss='none'.")
        self.soft_label_loss = SoftLabelLoss(temperature, soft_label=choose_soft_label(soft_label, student))
        self._teacher = _Shared((teacher,))  # a tuple hides it from nn.Module
        change = _teacher_change(student, teacher, student_mean, student_std)
        for name, values in zip(("image_scale", "image_shift"), change or (None, None), strict=True):
            buffer = None if values is None else torch.tensor(values).view(-1, 1, 1)
            self.register_buffer(name, buffer, persistent=False)
        if any(module.training for module in teacher.modules()):
            raise ValueError(
                "The teacher must be in eval mode: its batch statistics would follow the student's images."
            )
        images = probe_images(teacher, student.input_size)
        with torch.no_grad():
            feats, logits = teacher(images)
        channels = _check_fit(student, feats, logits, compare_maps=self.kind != "none")
        self.feature_loss: nn.Module | None = None
        if self.kind == "attention":
            self.feature_loss = AttentionTransferLoss()
        elif self.kind == "hint":
            self.feature_loss = HintLoss(student.in_channels, channels)
        elif self.kind == "overhaul":
            self.feature_loss = self._make_overhaul_loss(student.in_channels, images)

    @property
    def teacher(self) -> nn.Module:
        """Teacher, on the device of the method."""
        return self._teacher[0]

    def _make_overhaul_loss(self, in_channels: Sequence[int], images: Tensor) -> OverhaulLoss:
        found = find_map_norms(self.teacher, images)
        lacking = [level for level, norm in enumerate(found) if norm is None]
        if lacking:
            raise ValueError(
                f"feature_loss='overhaul' reads its margins from the batch normalisation that makes each map before "
                f"its ReLU; the teacher's maps {lacking} have none. Use 'hint' or 'attention', or leave those maps out."
            )
        norms = [norm for norm in found if norm is not None]
        self._to_normalise = [None if norm.makes_map else norm.name for norm in norms]
        return OverhaulLoss(in_channels, [self.teacher.get_submodule(norm.name) for norm in norms])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KD:
        teacher = self.teacher
        if any(fn(tensor) is not tensor for tensor in (*teacher.parameters(), *teacher.buffers())):
            self._teacher = _Shared((copy.deepcopy(teacher)._apply(fn, recurse),))
        return super()._apply(fn, recurse)

    def forward(self, student: StudentForward, images: Tensor, targets: Tensor, criterion: Criterion) -> Terms:
        """Return weighted ``loss_ce, loss_kd`` and, with a feature loss, ``loss_feat``."""
        teacher_maps, teacher_logits = self._run_teacher(images)
        if self.kind == "overhaul":
            _, logits, maps = forward_with_preactivations(student, images)
        else:
            maps, logits = student(images)
        terms = {
            "loss_ce": criterion(logits, targets),
            "loss_kd": self.alpha * self.soft_label_loss(logits, teacher_logits),
        }
        if self.feature_loss is not None:
            terms["loss_feat"] = self.beta * self.feature_loss(maps, teacher_maps)
        return {**terms, "output": logits, "teacher_output": teacher_logits}

    @torch.no_grad()
    def _run_teacher(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the teacher's maps, for 'overhaul' as batch normalisation made them, and its logits."""
        if self.image_scale is not None:
            images = images * self.image_scale + self.image_shift
        if self.kind != "overhaul":
            return self.teacher(images)
        _, logits, maps = forward_with_preactivations(self.teacher, images)
        names = zip(maps, self._to_normalise, strict=True)
        return [x if name is None else normalise(self.teacher.get_submodule(name), x) for x, name in names], logits

    def evaluate(self, student: StudentForward, images: Tensor) -> tuple[Tensor, Tensor]:
        return student(images)[1], self._run_teacher(images)[1]


def _teacher_change(
    student: StudentInfo, teacher: nn.Module, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[list[float], list[float]] | None:
    """Return scale and shift that make images normalised for the student those for the teacher; None to leave them."""
    channels = student.input_size[0]
    for name, values in (("student_mean", mean), ("student_std", std)):
        if values is not None and (len(values) != channels or (name == "student_std" and min(values) <= 0)):
            raise ValueError(
                f"`{name}` must have a number for each of the images' {channels} channels, in 0..1 (a std above 0), "
                f"got {values}."
            )
    cfg = getattr(student.module, "pretrained_cfg", None) or {}
    own: Any = (cfg.get("mean") if mean is None else mean, cfg.get("std") if std is None else std)
    wanted: Any = getattr(teacher, "normalisation", (None, None))
    # a mean or std of another number of channels belongs to other images
    if any(values is None or len(values) != channels for values in (*own, *wanted)):
        return None
    both = list(zip(*own, *wanted, strict=True))
    if all(math.isclose(m, n, rel_tol=1e-5) and math.isclose(s, t, rel_tol=1e-5) for m, s, n, t in both):
        return None
    # (x std_s + mean_s - mean_t) / std_t, as timm's ``DistillationTeacher`` has it
    return [s / t for _, s, _, t in both], [(m - n) / t for m, _, n, t in both]


def _check_fit(student: StudentInfo, feats: Sequence[Tensor], logits: Tensor, compare_maps: bool) -> list[int]:
    """Return the teacher's channels; refuse logits, and if asked for maps, that do not fit the student's."""
    if logits.ndim != 2 or logits.shape[1] != student.num_classes:
        raise ValueError(
            f"The teacher must know the student's {student.num_classes} classes, its logits are {list(logits.shape)}: "
            "train it on the same data, or give the file of one that was."
        )
    sizes, own = [tuple(feat.shape[2:]) for feat in feats], [tuple(size) for size in student.map_sizes]
    if compare_maps and sizes != own:
        raise ValueError(
            f"Feature distillation compares maps of one size, the student's have {own} and the teacher's {sizes}: "
            "choose `out_indices` that match, for the student and for the teacher."
        )
    return [feat.shape[1] for feat in feats]
