"""One training step and one evaluation of a model, measured: maps, cost, terms of the loss and their gradients."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from frskd_plugin.check_report import Cost, Evaluation, Level, Report, Term
from frskd_plugin.core.checks import check_one_of
from frskd_plugin.core.dry_run import count_forward, forked_rng
from frskd_plugin.core.feature_losses import AttentionTransferLoss
from frskd_plugin.core.frskd_loss import FRSKDLoss
from frskd_plugin.core.schedule import TrunkGradient

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
FP16_SCALE = 1024.0  # as training scales the loss, so that small gradients do not vanish


@dataclass
class Step:
    """Results of one training step, with their graph. A method may run student and self-teacher several times."""

    feats: list[list[Tensor]]  # the student's maps [B, C_i, H_i, W_i], a list for each pass
    logits: list[Tensor]  # the student's, of each pass
    refined_feats: list[list[Tensor]]  # the self-teacher's maps [B, D_i, H_i, W_i], a list for each pass
    teacher_logits: list[Tensor]
    terms: dict[str, Tensor]  # of the loss, weighted, each a scalar


@dataclass
class Subject:
    """Model with a batch, and the ways to run it."""

    title: str
    method: str  # name of its class
    module: nn.Module  # all of it, student and method
    images: Tensor  # [B, C, H, W], or [B, views, C, H, W]
    step: Callable[[], Step]
    plain_step: Callable[[], Tensor]  # the loss of the plain network
    evaluate: Callable[[], tuple[Tensor, Tensor] | None]  # logits in evaluation, and the plain network's
    method_modules: dict[str, nn.Module]  # what exists for training alone, the outermost modules by name
    self_teacher: list[nn.Module]  # those of them that make the targets of the distillation
    classifier: list[nn.Module]  # the student's, or its decode heads
    weights: dict[str, float]  # of those terms whose weight is known
    map_indices: tuple[int, ...] | None = None  # the student's own numbers of the maps; None: they are counted
    warm_up: Callable[[], object] | None = None  # a step before, for a method that learns from the batch before
    remarks: tuple[str, ...] = ()  # what was changed for the dry run
    unused_allowed: bool = False  # parameters of the student may be left without a gradient
    scheduled: bool = False  # the distillation starts at a lower weight

    def parameters(self) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
        """Return the student's and the method's parameters by name."""
        method = {f"{prefix}.{n}": p for prefix, m in self.method_modules.items() for n, p in m.named_parameters()}
        own = {id(parameter) for parameter in method.values()}
        return {name: p for name, p in self.module.named_parameters() if id(p) not in own}, method


def dry_run(subject: Subject, amp: str | None = None) -> Report:
    """Run the step and the evaluation of `check_model`; the model is as before afterwards.

    Raises:
        ValueError: an unknown ``amp``.
    """
    if amp is not None:
        check_one_of("amp", amp, tuple(AMP_DTYPES))
    autocast = partial(torch.autocast, subject.images.device.type, AMP_DTYPES.get(amp or ""), amp is not None)
    losses = [module for module in subject.module.modules() if isinstance(module, FRSKDLoss)]
    with _restored(subject.module):
        if not subject.module.training:
            subject.module.train()
        scheduled = [text for loss in losses for text in _distil_whole(loss)]
        shares = [text for module in subject.module.modules() for text in _open_trunk(module)]
        if subject.warm_up is not None:
            with torch.no_grad():
                subject.warm_up()
        with torch.enable_grad():
            with autocast(), count_forward(subject.module) as plain:
                loss = subject.plain_step()
            del loss
            with autocast(), count_forward(subject.module) as whole:
                step = subject.step()
            terms, reached = _differentiate(subject, step, FP16_SCALE if amp == "fp16" else 1.0)
        levels = _levels(subject, step)
        with torch.no_grad(), autocast():
            evaluation = _evaluate(subject)
    student, method = subject.parameters()
    batch = len(subject.images)
    return Report(
        model=subject.title,
        method=subject.method,
        images=tuple(subject.images.shape),
        device=str(subject.images.device),
        amp=amp,
        levels=levels,
        cost=Cost(
            student_parameters=sum(p.numel() for p in student.values()),
            teacher_parameters=sum(p.numel() for p in method.values()),
            student_macs=plain.macs // batch,
            teacher_macs=(whole.macs - plain.macs) // batch,
            student_memory=plain.kept,
            teacher_memory=whole.kept - plain.kept,
        ),
        terms=terms,
        evaluation=evaluation,
        untrained_student=tuple(n for n, p in student.items() if p.requires_grad and id(p) not in reached),
        untrained_teacher=tuple(n for n, p in method.items() if p.requires_grad and id(p) not in reached),
        unused_allowed=subject.unused_allowed,
        scheduled=subject.scheduled or bool(scheduled),
        beta_per_position=_beta_per_position(losses, levels),
        remarks=(*subject.remarks, *scheduled, *shares),
    ).judged()


def _distil_whole(loss: FRSKDLoss) -> Iterator[str]:
    """Take the factor and the gate of a schedule away; say so where the model has them."""
    if loss.factor != 1 or loss.schedule != "constant" or loss.warmup:
        lowered = f"schedule={loss.schedule!r}" if loss.factor == 1 else f"the factor {loss.factor:g}"
        yield f"the model has {lowered}; the step was taken with the whole distillation"
    loss.factor = 1.0
    if loss.gate is not None:
        loss.gate.eval().mean.fill_(1.0)


def _open_trunk(module: nn.Module) -> Iterator[str]:
    """Let the whole gradient of the self-teacher's own losses through where its share grows with the training."""
    if isinstance(module, TrunkGradient) and module.share == "linear":
        module.set_progress(1, 1)
        yield "the model has trunk_gradient='linear'; the step was taken with the share of 1 that a training ends with"


@contextmanager
def _restored(module: nn.Module) -> Iterator[None]:
    """Run a block on random numbers from a fixed seed; give back modes, attributes, buffers and random states."""
    attributes = [(part, dict(vars(part)), dict(part._buffers)) for part in module.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with forked_rng(seed=0):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for part, own, registered in attributes:
            vars(part).clear()
            vars(part).update(own)
            part._buffers.update(registered)


def _differentiate(subject: Subject, step: Step, scale: float) -> tuple[tuple[Term, ...], set[int]]:
    """Return the terms with the norms of their gradients, and the ids of the tensors that a gradient reaches."""
    student, method = ([*parameters.values()] for parameters in subject.parameters())
    num_levels = max(map(len, step.feats), default=0)
    maps = [[feats[i] for feats in step.feats if i < len(feats)] for i in range(num_levels)]
    groups: dict[str, list[Tensor]] = {
        "logits": step.logits,
        "student": student,
        "classifier": [p for module in subject.classifier for p in module.parameters()],
        "teacher": [p for module in subject.self_teacher for p in module.parameters()] or method,
        "targets": [*(feat for feats in step.refined_feats for feat in feats), *step.teacher_logits],
    }
    wanted = list({id(t): t for group in (*maps, *groups.values(), method) for t in group if t.requires_grad}.values())
    terms: list[Term] = []
    reached: set[int] = set()
    for name, value in step.terms.items():
        found: dict[int, Tensor] = {}
        if value.requires_grad and wanted:
            # `scale` keeps small gradients from vanishing; autograd.grad leaves every `.grad` alone
            grads = torch.autograd.grad(value, wanted, value.new_tensor(scale), retain_graph=True, allow_unused=True)
            found = {id(t): grad / scale for t, grad in zip(wanted, grads, strict=True) if grad is not None}
        reached |= found.keys()
        norms = {key: _norm([found.get(id(t)) for t in group]) for key, group in groups.items()}
        on_maps = tuple(_norm([found.get(id(t)) for t in group]) for group in maps)
        terms.append(Term(name, value.item(), subject.weights.get(name), on_maps, **norms))
    return tuple(terms), reached


def _norm(gradients: Sequence[Tensor | None]) -> float | None:
    """Return the L2 norm of several gradients together, in float32 at least; None where there is none."""
    norms = [
        torch.linalg.vector_norm(gradient, dtype=torch.promote_types(gradient.dtype, torch.float32)).double()
        for gradient in gradients
        if gradient is not None
    ]
    return torch.stack(norms).square().sum().sqrt().item() if norms else None


def _levels(subject: Subject, step: Step) -> tuple[Level, ...]:
    """Describe the maps of the first pass, that of the images themselves."""
    levels = []
    refined = step.refined_feats[0] if step.refined_feats else []
    for i, feat in enumerate(step.feats[0] if step.feats else []):
        level = Level(
            index=subject.map_indices[i] if subject.map_indices else i,
            channels=feat.shape[1],
            size=(feat.shape[2], feat.shape[3]),
            stride=round(subject.images.shape[-2] / feat.shape[2]),
            constant=_is_constant(feat),
            trains=feat.requires_grad,
        )
        for other in refined[i : i + 1]:  # none where the self-teacher's graph ends before
            size, constant = (other.shape[2], other.shape[3]), _is_constant(other)
            level = replace(level, refined_channels=other.shape[1], refined_size=size, refined_constant=constant)
        levels.append(level)
    return tuple(levels)


def _is_constant(feat: Tensor) -> bool:
    """Tell if a map [B, C, H, W] is the same at every position; one of a single position: in all images."""
    flat = feat.flatten(2) if feat.shape[2] * feat.shape[3] > 1 else feat.reshape(1, -1)
    return bool((flat.amax(-1) == flat.amin(-1)).all())


def _evaluate(subject: Subject) -> Evaluation | None:
    ran: set[nn.Module] = set()
    subject.module.eval()
    handle = register_module_forward_pre_hook(lambda module, inputs: ran.add(module))
    try:
        logits = subject.evaluate()
    finally:
        handle.remove()
    if logits is None:
        return None
    modules = ((p, n, m) for p, outer in subject.method_modules.items() for n, m in outer.named_modules())
    names = tuple(f"{prefix}.{name}".rstrip(".") for prefix, name, module in modules if module in ran)
    deployed, plain = (tensor.double() for tensor in logits)
    if deployed.shape != plain.shape:
        return Evaluation(names, math.inf)
    same = torch.allclose(deployed, plain, rtol=0, atol=0, equal_nan=True)
    return Evaluation(names, 0.0 if same else (deployed - plain).abs().max().item())


def _beta_per_position(losses: Sequence[FRSKDLoss], levels: Sequence[Level]) -> float | None:
    """Return ``beta / (H W)`` of the deepest map that has several positions: with one, attention is always 1."""
    sizes = [height * width for height, width in (level.size for level in levels) if height * width > 1]
    for loss in losses:
        feature_loss = loss.feature_loss
        if isinstance(feature_loss, AttentionTransferLoss) and sizes and feature_loss.variant == "published":
            return loss.beta / (min(sizes) if feature_loss.reduction == "mean" else 1)
    return None
