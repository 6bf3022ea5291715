"""One dry training step of a model, and what it shows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from timm.utils import unwrap_model
from torch import Tensor, nn

from frskd_plugin.benchmark.training_step import AMP_DTYPES
from frskd_plugin.core.forward_cost import ForwardCost, count_forward
from frskd_plugin.doctor.classifier import ClassifierPatient
from frskd_plugin.doctor.gradients import Reached, examine_terms
from frskd_plugin.doctor.patient import Patient, Step
from frskd_plugin.doctor.report import Cost, Evaluation, Level, Report
from frskd_plugin.doctor.unharmed import full_weights, running, unharmed
from frskd_plugin.doctor.verdict import with_verdict
from frskd_plugin.timm.wrap import DistilledModel

FP16_SCALE = 1024.0  # as training scales the loss, so that small gradients do not vanish


def examine(
    model: nn.Module, images: Tensor, targets: Any, amp: str | None = None, extra: Mapping[str, Tensor] | None = None
) -> Report:
    """Run one training step and one evaluation of a model of yours, and report what is right and wrong with them.

    The model is as before afterwards: weights, gradients, statistics of batch normalisation, modes, random states. A
    model in train mode is examined in the mixture of modes that it is in; one in eval mode is put in train mode for it.

    Args:
        model: what `frskd_plugin.wrap` made, a `TimmClassifier`, or a segmentor of mmseg; DDP is looked into.
        images: a batch, as the model takes it in training: [B, C, H, W], normalised, on its device.
        targets: labels [B] or soft labels [B, K]; for a segmentor mmseg's data samples.
        amp: 'bf16' or 'fp16' for autocast.
        extra: what a classifier's method is given beside them (`DataNeeds`), such as ``index`` [B].

    Returns:
        A `Report`: ``report.healthy``, ``report.faults``, ``report.terms``, ...; ``print(describe(report))`` shows it.

    Raises:
        TypeError: it is a model of another kind.
        ValueError: an unknown ``amp``.

    >>> import timm, frskd_plugin
    >>> model = frskd_plugin.wrap(timm.create_model("test_resnet", num_classes=10), input_size=(3, 64, 64))
    >>> report = examine(model, torch.randn(4, 3, 64, 64), torch.tensor([1, 2, 3, 4]))
    >>> report.healthy, [term.name for term in report.terms]
    (True, ['loss_ce', 'loss_teacher_ce', 'loss_kd', 'loss_feat'])
    """
    model = unwrap_model(model)
    network = getattr(model, "network", model)
    if isinstance(network, DistilledModel):
        return examine_patient(ClassifierPatient(network, images, targets, extra), amp)
    if hasattr(model, "decode_head"):
        from frskd_plugin.doctor.segmentor import SegmentorPatient

        return examine_patient(SegmentorPatient(model, images, targets), amp)
    raise TypeError(
        f"examine expects a model of frskd_plugin.wrap, a TimmClassifier or a segmentor of mmseg, got "
        f"{type(model).__name__}. A timm model is examined as frskd_plugin.wrap(model)."
    )


def examine_patient(patient: Patient, amp: str | None = None, unused_allowed: bool = False) -> Report:
    """The examination itself; see `examine`.

    Args:
        patient: model and batch.
        amp: 'bf16', 'fp16' or None.
        unused_allowed: whether parameters of the student may be left without a gradient.

    Raises:
        ValueError: an unknown ``amp``.
    """
    if amp is not None and amp not in AMP_DTYPES:
        raise ValueError(f"`amp` must be one of {', '.join(map(repr, AMP_DTYPES))} or None, got {amp!r}.")
    device = patient.images.device
    losses = patient.distill_losses()
    scheduled = [loss.factor for loss in losses if loss.factor != 1]
    with ExitStack() as stack:
        stack.enter_context(unharmed(patient.model, device))
        stack.enter_context(full_weights(losses))
        if not patient.model.training:
            patient.model.train()
        with torch.enable_grad():
            step, cost, plain_cost = _train(patient, amp)
            terms, reached = examine_terms(patient, step, FP16_SCALE if amp == "fp16" else 1.0)
        student, method = patient.student_parameters(), patient.method_parameters()
        report = Report(
            model=patient.title,
            method=patient.method_name,
            images=tuple(patient.images.shape),
            device=str(device),
            amp=amp,
            levels=tuple(_levels(patient, step)),
            cost=_cost(student, method, len(patient.images), plain_cost, cost),
            terms=tuple(terms),
            evaluation=_evaluate(patient, amp),
            untrained_student=_without(student, reached.any),
            untrained_teacher=_without(method, reached.any),
            still_teacher=_still(method, reached),
            unused_allowed=unused_allowed,
        )
    remarks = [f"the schedule had set the factor {scheduled[0]:g}; the step was taken at factor 1"] if scheduled else []
    return with_verdict(report, remarks)


def _train(patient: Patient, amp: str | None) -> tuple[Step, ForwardCost, ForwardCost]:
    """The step, what its forward pass costs, and what the plain network's costs."""
    with _autocast(patient, amp), count_forward(patient.model) as plain_cost:
        loss = patient.plain_step()
    del loss
    with _autocast(patient, amp), count_forward(patient.model) as cost:
        step = patient.step()
    return step, cost, plain_cost


def _autocast(patient: Patient, amp: str | None) -> torch.autocast:
    return torch.autocast(patient.images.device.type, dtype=AMP_DTYPES.get(amp or ""), enabled=amp is not None)


def _levels(patient: Patient, step: Step) -> list[Level]:
    """From the first pass: the images themselves."""
    feats = step.feats[0] if step.feats else []
    refined = step.refined_feats[0] if step.refined_feats else []
    indices = patient.map_indices() or range(len(feats))
    levels = []
    for i, feat in enumerate(feats):
        size = _size(feat)
        stride = round(patient.images.shape[-2] / size[0])
        level = Level(indices[i], feat.shape[1], size, stride, is_constant(feat), feat.requires_grad)
        if i < len(refined):
            level = dataclasses.replace(
                level,
                refined_channels=refined[i].shape[1],
                refined_size=_size(refined[i]),
                refined_constant=is_constant(refined[i]),
            )
        levels.append(level)
    return levels


def _size(feat: Tensor) -> tuple[int, int]:
    return feat.shape[2], feat.shape[3]


def is_constant(feat: Tensor) -> bool:
    """Whether a map [B, C, H, W] is the same at every position; a map of one position: for all images and channels.

    >>> is_constant(torch.zeros(2, 3, 4, 4)), is_constant(torch.rand(2, 3, 4, 4)), is_constant(torch.rand(2, 3, 1, 1))
    (True, False, False)
    """
    feat = feat.detach()
    flat = feat.flatten(2) if feat.shape[2] * feat.shape[3] > 1 else feat.reshape(1, -1)
    return bool((flat.amax(-1) == flat.amin(-1)).all())


def _cost(
    student: dict[str, nn.Parameter],
    method: dict[str, nn.Parameter],
    batch: int,
    plain: ForwardCost,
    whole: ForwardCost,
) -> Cost:
    return Cost(
        student_parameters=sum(p.numel() for p in student.values()),
        teacher_parameters=sum(p.numel() for p in method.values()),
        student_macs=plain.macs // batch,
        teacher_macs=(whole.macs - plain.macs) // batch,
        student_memory=plain.kept,
        teacher_memory=whole.kept - plain.kept,
    )


def _without(parameters: dict[str, nn.Parameter], reached: set[int]) -> tuple[str, ...]:
    """Names of those that train and were not reached."""
    return tuple(name for name, p in parameters.items() if p.requires_grad and id(p) not in reached)


def _still(parameters: dict[str, nn.Parameter], reached: Reached) -> tuple[str, ...]:
    return tuple(name for name in _without(parameters, reached.nonzero) if id(parameters[name]) in reached.any)


def _evaluate(patient: Patient, amp: str | None) -> Evaluation | None:
    modules = {
        f"{prefix}.{name}".rstrip("."): module
        for prefix, outer in patient.method_modules().items()
        for name, module in outer.named_modules()
    }
    patient.model.eval()
    with torch.no_grad(), _autocast(patient, amp), running(modules) as ran:
        logits = patient.evaluate()
    if logits is None:
        return None
    deployed, plain = (tensor.double() for tensor in logits)
    if deployed.shape != plain.shape:
        return Evaluation(tuple(ran), math.inf)
    if torch.allclose(deployed, plain, rtol=0, atol=0, equal_nan=True):
        return Evaluation(tuple(ran), 0.0)
    return Evaluation(tuple(ran), (deployed - plain).abs().max().item())
