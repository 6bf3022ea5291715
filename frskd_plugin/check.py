"""Dry run of a model before it trains: its maps, cost, losses and gradients, and what is wrong with them."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import frskd_plugin.timm  # noqa: F401  (registers the CIFAR networks)
from frskd_plugin.check_report import Report
from frskd_plugin.check_step import Step, Subject, dry_run
from frskd_plugin.core.dry_run import forked_rng, image_channels, record_calls
from frskd_plugin.core.frskd_loss import FRSKDLoss
from frskd_plugin.methods import method_settings
from frskd_plugin.methods.base import DataNeeds
from frskd_plugin.methods.targets import check_targets, soft_targets
from frskd_plugin.timm.checkpoint import create_model
from frskd_plugin.timm.parts import has_self_teacher
from frskd_plugin.timm.probe import usual_input_size
from frskd_plugin.timm.wrap import DistilledModel, wrap

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

    The model is as before afterwards: weights, gradients, statistics of batch normalisation, modes, random states. The
    step leaves the modes of a model in train mode, so that layers in eval mode stay frozen; one in eval mode is put in
    train mode for it. Weights that a schedule changes are taken as the training ends with them.

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
        TypeError: a model of another kind, images without targets, or a setting that the method does not have.
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
    if (images is None) != (targets is None):
        raise TypeError("check_model takes images and targets together; without both it makes random ones.")
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
            return _classifier(network, images, targets, extra or {}, known)
        if hasattr(model, "decode_head"):
            if images is None:
                channels, *size = input_size or (None, *SEGMENTOR_SIZE)
                count, channels = batch or SEGMENTOR_BATCH, channels or image_channels(model.backbone)
                images, targets = segmentation_batch(count, size, model.num_classes, _device(model), channels)
            return _segmentor(model, images, targets, known)
    raise TypeError(
        f"check_model expects a model of frskd_plugin.wrap, a TimmClassifier or an encoder-decoder of mmseg, got "
        f"{type(model).__name__}. A timm model is checked as frskd_plugin.wrap(model)."
    )


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
    num_classes, size = network.num_logits, usual_input_size(network.student, size)
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


def _classifier(
    model: DistilledModel, images: Tensor, targets: Tensor, extra: Mapping[str, Tensor], known: Mapping[str, Any]
) -> Subject:
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
        **known,
    )


def _segmentor(model: Any, images: Tensor, samples: list[Any], known: Mapping[str, Any]) -> Subject:
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
        **known,
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
