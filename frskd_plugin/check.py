"""Dry run of a model before it trains: its maps, cost, losses and gradients, and what is wrong with them."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._pytree import tree_leaves

import frskd_plugin.timm  # noqa: F401  (registers the CIFAR networks)
from frskd_plugin.check_report import Cost, Evaluation, Level, Report, Term
from frskd_plugin.core.checks import check_one_of
from frskd_plugin.core.dry_run import count_forward, forked_rng, image_channels, record_calls
from frskd_plugin.core.feature_losses import AttentionTransferLoss
from frskd_plugin.core.frskd_loss import FRSKDLoss
from frskd_plugin.methods import method_settings
from frskd_plugin.methods.base import DataNeeds
from frskd_plugin.methods.targets import check_targets, soft_targets
from frskd_plugin.timm.checkpoint import create_model
from frskd_plugin.timm.parts import has_self_teacher
from frskd_plugin.timm.probe import usual_input_size
from frskd_plugin.timm.wrap import DistilledModel, wrap

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
FP16_SCALE = 1024.0  # as training scales the loss, so that small gradients do not vanish
CLASSIFIER_BATCH, SEGMENTOR_BATCH, SEGMENTOR_SIZE = 4, 2, (512, 512)


def check_model(
    model: nn.Module | str | Path,
    images: Tensor | None = None,
    targets: Any = None,
    amp: str | None = None,
    extra: Mapping[str, Tensor] | None = None,
    **settings: Any,
) -> Report:
    """Run one training step and one evaluation of a model, and report what is right and wrong with them.

    The model is as before afterwards: weights, gradients, statistics of batch normalisation, modes, random states. A
    model in train mode is run in the mixture of modes that it is in; one in eval mode is put in train mode for it.

    Args:
        model: what `frskd_plugin.wrap` made, a `TimmClassifier`, or a segmentor of mmseg (DDP and compiled models are
            looked into); or the name of a timm model or of a config file, which is built with random weights.
        images: a batch, as the model takes it in training: [B, C, H, W], normalised, on its device; None: random ones.
        targets: labels [B] or soft labels [B, K]; for a segmentor mmseg's data samples.
        amp: 'bf16' or 'fp16' for autocast.
        extra: what a classifier's method is given beside them (`DataNeeds`), such as ``index`` [B].
        settings: of random images ``input_size`` (channels, height, width) and ``batch``, how many are new in a step;
            of a model that is built ``device``; of a timm model ``method``, ``settings`` of `frskd_plugin.wrap` and
            ``model_kwargs`` of ``timm.create_model``; of a config ``cfg_options``, which override it.

    Raises:
        TypeError: a model of another kind, or a setting that the method does not have.
        ValueError: an unknown ``amp``, model or method, or a config without a model.
        FileNotFoundError: there is no such config.
        ImportError: mmengine or mmsegmentation is missing.

    >>> import timm, frskd_plugin
    >>> model = frskd_plugin.wrap(
    ...     timm.create_model("test_resnet", num_classes=10), beta=1, width=1, input_size=(3, 64, 64)
    ... )
    >>> report = check_model(model, torch.randn(4, 3, 64, 64), torch.tensor([1, 2, 3, 4]))
    >>> report.healthy, [term.name for term in report.terms]
    (True, ['loss_ce', 'loss_teacher_ce', 'loss_kd', 'loss_feat'])
    """
    return dry_run(prepare(model, images, targets, extra, **settings), amp)


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
    scheduled = [f"the factor {loss.factor:g}" for loss in losses if loss.factor != 1]
    scheduled += [f"schedule={loss.schedule!r}" for loss in losses if loss.schedule != "constant" or loss.warmup]
    with _restored(subject.module):
        if not subject.module.training:
            subject.module.train()
        for loss in losses:  # whatever a schedule has set
            loss.factor = 1.0
            if loss.gate is not None:
                loss.gate.eval().mean.fill_(1.0)
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
    remarks = [f"the model has {scheduled[0]}; the step was taken with the whole distillation"] if scheduled else []
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
        remarks=(*subject.remarks, *remarks),
    ).judged()


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
        index = subject.map_indices[i] if subject.map_indices else i
        size, stride = (feat.shape[2], feat.shape[3]), round(subject.images.shape[-2] / feat.shape[2])
        more = [(g.shape[1], (g.shape[2], g.shape[3]), _is_constant(g)) for g in refined[i : i + 1]]
        levels.append(Level(index, feat.shape[1], size, stride, _is_constant(feat), feat.requires_grad, *sum(more, ())))
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


# The model and its batch


def is_config(name: str) -> bool:
    """Tell if a name means a config file and no timm model.

    >>> is_config("configs/frskd_voc_effdet_d0.py"), is_config("resnet18")
    (True, False)
    """
    return name.endswith(".py") or Path(name).is_file()


def prepare(
    model: nn.Module | str | Path,
    images: Tensor | None = None,
    targets: Any = None,
    extra: Mapping[str, Tensor] | None = None,
    *,
    input_size: Sequence[int] | None = None,
    batch: int | None = None,
    device: str = "cpu",
    method: str = "frskd",
    settings: Mapping[str, Any] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    cfg_options: Mapping[str, Any] | None = None,
) -> Subject:
    """Build what is named and draw a batch where none is given: `check_model` without the run, with its arguments."""
    with forked_rng(seed=0):  # one name gives one model and one batch, and the caller's random numbers stay
        known: dict[str, Any] = {}
        if isinstance(model, (str, Path)) and is_config(str(model)):
            model, config_size, known = _build_config(str(model), cfg_options, batch, device)
            input_size = input_size or config_size
        elif isinstance(model, (str, Path)):
            student = create_model(str(model), **(model_kwargs or {})).to(device)
            model = wrap(student, method, input_size=input_size, **{**_training_set(method, batch), **(settings or {})})
        model = unwrap_model(model)
        network = getattr(model, "network", model)
        if isinstance(network, DistilledModel):
            if images is None:
                images, targets, extra = _classifier_batch(network, input_size, batch, getattr(model, "mix", None))
                if network.method.needs.order == "overlap":  # the first step has no batch before it to learn from
                    known["warm_up"] = partial(network.forward, images, targets, **extra)
            subject = _classifier(network, images, targets, extra or {})
        elif hasattr(model, "decode_head"):
            if images is None:
                channels, *size = input_size or (None, *SEGMENTOR_SIZE)
                channels = channels or image_channels(model.backbone)
                images, targets = segmentation_batch(
                    batch or SEGMENTOR_BATCH, size, model.num_classes, _device(model), channels
                )
            subject = _segmentor(model, images, targets)
        else:
            raise TypeError(
                f"check_model expects a model of frskd_plugin.wrap, a TimmClassifier or an encoder-decoder of mmseg, "
                f"got {type(model).__name__}. A timm model is checked as frskd_plugin.wrap(model)."
            )
    return dataclasses.replace(subject, **known)


def _training_set(method: str, batch: int | None) -> dict[str, int]:
    """Return the setting for a method that has to know its training set's size (PS-KD): the batch is all of it."""
    return {"num_samples": batch or CLASSIFIER_BATCH} if "num_samples" in method_settings(method) else {}


def _build_config(
    path: str, cfg_options: Mapping[str, Any] | None, batch: int | None, device: str
) -> tuple[nn.Module, Sequence[int] | None, dict[str, Any]]:
    """Return the model of a config, the size of its images, and the settings of the `Subject`."""
    from mmengine.logging import MMLogger
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import MODELS, init_default_scope

    from frskd_plugin.mmengine.config_tools import explained_build, override, read_config, without_pretrained

    config = read_config(path)
    override(config, cfg_options or {})
    if not config.get("model"):
        raise ValueError(f"{path} has no `model`: give the config of a training run, such as configs/frskd_*.py.")
    init_default_scope(config.get("default_scope") or "mmengine")
    model_config, changed = without_pretrained(config.model)
    model_config.pop("compile", None)  # one step is not worth it, and hooks look into its layers
    if "name" in (model_config.get("method") or {}):
        model_config.method = {**_training_set(model_config.method.name, batch), **model_config.method}
    logger = MMLogger.get_current_instance()
    level = logger.level
    try:
        logger.setLevel(logging.WARNING)  # else a line for each parameter
        with explained_build(path):
            model = MODELS.build(model_config)
        if hasattr(model, "init_weights"):
            model.init_weights()
    finally:
        logger.setLevel(level)
    remarks = ["random weights stand in for the pretrained ones of the config"] if changed else []
    hooks = [hook for hook in config.get("custom_hooks") or [] if hook.get("type") == "DistillWarmupHook"]
    remarks += [
        "the config's DistillWarmupHook keeps the distillation at factor 0 before "
        f"{'epoch' if hook.get('by_epoch', True) else 'iteration'} {hook.get('begin')}; this step was taken at factor 1"
        for hook in hooks
    ]
    size = config.model.get("input_size")
    crop = getattr(getattr(model, "data_preprocessor", None), "size", None) or config.get("crop_size")
    if size is None and crop and hasattr(model, "decode_head"):
        size = (None, *crop)  # as many channels as the backbone takes
    model = (model if device.startswith("cuda") else revert_sync_batchnorm(model)).to(device)
    unused_allowed = bool(config.get("find_unused_parameters", False))
    return model, size, {"remarks": tuple(remarks), "unused_allowed": unused_allowed, "scheduled": bool(hooks)}


def _device(model: nn.Module) -> str:
    return str(next(model.parameters()).device)


def _classifier_batch(
    network: DistilledModel, size: Sequence[int] | None, batch: int | None, mix: Any
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    num_classes, size = network.student.num_classes, usual_input_size(network.student, size)
    images, targets, extra = classification_batch(
        network.method.needs, batch or CLASSIFIER_BATCH, size, num_classes, _device(network)
    )
    if mix is not None:  # Mixup or CutMix of the config, as in training
        images, targets = mix(images, targets, num_classes)
    try:
        check_targets(images, targets, network.criterion, num_classes)
    except ValueError:  # of a criterion that takes soft labels alone
        targets = soft_targets(targets, images.new_zeros(len(targets), num_classes))
    return images, targets, extra


def classification_batch(
    needs: DataNeeds, batch: int, input_size: Sequence[int], num_classes: int, device: str
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Draw images [B, C, H, W], or [B, views, C, H, W], labels [B] and, where a method asks for it, ``index`` [B].

    ``batch`` counts the images that are new in a step, as a loader does; with partners of a class, or an overlap with
    the batch before, there are twice as many.
    """
    labels = torch.randint(max(num_classes, 2), (batch,), device=device)  # one logit has labels 0 and 1
    if needs.order != "any":  # both orders have the labels of one half in the other
        labels = labels.repeat(2)
    views = (needs.views,) if needs.views > 1 else ()
    images = torch.randn(len(labels), *views, *input_size, device=device)
    return images, labels, {"index": torch.arange(len(labels), device=device)} if needs.index else {}


def segmentation_batch(
    batch: int, size: Sequence[int], num_classes: int, device: str, channels: int = 3
) -> tuple[Tensor, list[Any]]:
    """Draw normalised images [B, C, H, W] and mmseg's data samples with random labels [1, H, W]."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    shape = tuple(size)
    meta = {"img_shape": shape, "ori_shape": shape, "pad_shape": shape, "scale_factor": (1.0, 1.0), "flip": False}
    labels = torch.randint(num_classes, (batch, 1, *shape)).to(device)
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label), metainfo=meta) for label in labels]
    return torch.randn(batch, channels, *shape).to(device), samples


def _classifier(model: DistilledModel, images: Tensor, targets: Tensor, extra: Mapping[str, Tensor]) -> Subject:
    method = model.method
    plain_images = images[:, 0] if images.ndim == 5 else images
    teacher = method.self_teacher if has_self_teacher(method) else None

    def step() -> Step:
        with record_calls(model, "student_forward") as passes, _calls(teacher) as refined:
            losses = model.forward(images, targets, **extra)  # also where it is compiled
        return Step(
            feats=[list(feats) for feats, _ in passes],
            logits=[logits for _, logits in passes],
            refined_feats=[list(maps) for maps, _ in refined],
            teacher_logits=[logits for _, logits in refined],
            terms={name: value for name, value in losses.items() if name.startswith("loss_")},
        )

    # a tuple where the model has a head for distillation too
    found = model.student.get_classifier() if hasattr(model.student, "get_classifier") else ()
    loss = getattr(method, "loss_distill", None)
    return Subject(
        title=type(model.student).__name__,
        method=type(method).__name__,
        module=model,
        images=images,
        step=step,
        plain_step=lambda: model.criterion(model.student(plain_images), targets),
        evaluate=lambda: (model.forward(plain_images), model.student(plain_images)),
        method_modules={"method": method},
        self_teacher=[] if teacher is None else [teacher],
        classifier=[module for module in _as_list(found) if isinstance(module, nn.Module)],
        weights={"loss_kd": loss.alpha, "loss_feat": loss.beta} if isinstance(loss, FRSKDLoss) else {},
        map_indices=model.out_indices,
    )


def _segmentor(model: Any, images: Tensor, samples: list[Any]) -> Subject:
    from mmseg.models.segmentors.cascade_encoder_decoder import CascadeEncoderDecoder
    from mmseg.models.segmentors.encoder_decoder import EncoderDecoder

    from frskd_plugin.mmseg.heads import flat_maps, select_maps, semantic_logits

    teacher = getattr(model, "self_teacher", None)
    heads = _as_list(model.decode_head)  # one, or the stages of a cascade
    plain = model
    if teacher is not None:  # mmseg's own segmentor; parameters are shared, not copied
        plain = copy.copy(model)
        plain.__class__ = CascadeEncoderDecoder if len(heads) > 1 else EncoderDecoder
        plain._modules = {name: module for name, module in model._modules.items() if name != "self_teacher"}

    def logits_of(output: Any) -> Tensor:
        logits = semantic_logits(heads[-1], output)
        return _tensors(output)[0] if logits is None else logits  # none of points

    def step() -> Step:
        with record_calls(model, "extract_feat") as feats, _calls(heads[-1]) as outputs, _calls(teacher) as refined:
            _, terms = model.parse_losses(model.loss(images, samples))
        indices = None if teacher is None else teacher.feat_indices
        return Step(
            feats=[select_maps(flat_maps(maps), indices) for maps in feats],
            logits=[logits_of(output) for output in outputs],
            refined_feats=[_tensors(maps) for maps, _ in refined],
            teacher_logits=[_tensors(output)[0] for _, output in refined],
            terms={name: value for name, value in terms.items() if "loss" in name and name != "loss"},  # their sum
        )

    def plain_step() -> Tensor:
        plain.training = model.training  # a copy has a mode of its own
        return plain.parse_losses(plain.loss(images, samples))[0]

    def evaluate() -> tuple[Tensor, Tensor] | None:
        if teacher is None:
            return None
        plain.training = model.training
        results = [network.predict(images, [sample.clone() for sample in samples]) for network in (model, plain)]
        ours, theirs = (torch.stack([sample.seg_logits.data for sample in result]) for result in results)
        return ours, theirs

    return Subject(
        title=f"{type(model.backbone).__name__} with {type(heads[-1]).__name__}",
        method=type(model).__name__,
        module=model,
        images=images,
        step=step,
        plain_step=plain_step,
        evaluate=evaluate,
        method_modules={} if teacher is None else {"self_teacher": teacher},
        # not its `loss_distill`, whose regressors belong to the student's side
        self_teacher=[] if teacher is None else [m for n, m in teacher.named_children() if n != "loss_distill"],
        classifier=heads,
        weights=_segmentor_weights(model, teacher),
    )


def _segmentor_weights(model: Any, teacher: Any) -> dict[str, float]:
    """Return the weights by mmseg's names of the losses: prefix of the head, name of the loss."""
    heads = {"self_teacher": getattr(teacher, "head", None)}
    for prefix, head in (("decode", model.decode_head), ("aux", getattr(model, "auxiliary_head", None))):
        stages = isinstance(head, nn.ModuleList)
        heads |= {f"{prefix}_{i}" if stages else prefix: stage for i, stage in enumerate(_as_list(head))}
    weights = {
        f"{prefix}.{getattr(loss, 'loss_name', 'loss')}": float(loss.loss_weight)
        for prefix, head in heads.items()
        for loss in _as_list(getattr(head, "loss_decode", ()))
        if hasattr(loss, "loss_weight")
    }
    for loss in model.modules():
        if isinstance(loss, FRSKDLoss):
            weights |= {"self_teacher.loss_kd": loss.alpha, "self_teacher.loss_feat": loss.beta}
    return weights


def __getattr__(name: str) -> Any:
    """Hand out what the old names of this module meant."""
    old_names: dict[str, Any] = {"examine": check_model, "describe": str}
    if name not in old_names:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"`{name}` is now `{old_names[name].__name__}`", DeprecationWarning, stacklevel=2)
    return old_names[name]


def _calls(module: nn.Module | None) -> AbstractContextManager[list[Any]]:
    return nullcontext([]) if module is None else record_calls(module, "forward")


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (nn.ModuleList, list, tuple)) else [value]


def _tensors(values: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
