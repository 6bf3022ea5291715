"""Makes the patient that a command line names: a timm model, or the model of a config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import frskd_plugin.timm  # noqa: F401  (registers the CIFAR networks)
from frskd_plugin.benchmark.random_batch import classification_batch
from frskd_plugin.doctor.classifier import ClassifierPatient
from frskd_plugin.doctor.patient import Patient
from frskd_plugin.doctor.random_batch import segmentation_batch
from frskd_plugin.methods import method_settings
from frskd_plugin.timm.create import check_model_name
from frskd_plugin.timm.probe import DEFAULT_INPUT_SIZE
from frskd_plugin.timm.wrap import DistilledModel, wrap

CLASSIFIER_BATCH = 4
SEGMENTOR_BATCH = 2
SEGMENTOR_SIZE = (512, 512)


@dataclass(frozen=True)
class Admission:
    """A patient, and what the examination has to know besides.

    Attributes:
        patient: model and batch.
        remarks: what was changed for the examination.
        unused_allowed: whether the config allows parameters without a gradient.
    """

    patient: Patient
    remarks: tuple[str, ...] = field(default=())
    unused_allowed: bool = False


def is_config(name: str) -> bool:
    """Whether a name means a config file and no timm model.

    >>> is_config("configs/frskd_voc_effdet_d0.py"), is_config("resnet18")
    (True, False)
    """
    return name.endswith(".py") or Path(name).is_file()


def admit_model(
    name: str,
    method: str = "frskd",
    settings: dict[str, Any] | None = None,
    model_kwargs: dict[str, Any] | None = None,
    input_size: Sequence[int] | None = None,
    batch: int | None = None,
    device: str = "cpu",
) -> Admission:
    """A timm model with random weights.

    Args:
        name: of the model.
        method: that trains it.
        settings: of `frskd_plugin.wrap`: of the method, and ``out_indices``.
        model_kwargs: of ``timm.create_model``.
        input_size: channels, height and width; None: what timm says of the model.
        batch: images that are new in a step, as a loader counts them.
        device: where it runs.

    Raises:
        ValueError: an unknown model or method, or one that cannot be wrapped.
        TypeError: a setting that the method does not have.
    """
    check_model_name(name)
    student = timm.create_model(name, pretrained=False, **(model_kwargs or {})).to(device)
    settings = {**_training_set(method, batch), **(settings or {})}
    network = wrap(student, method, input_size=input_size, **settings)
    return Admission(_classifier(network, input_size, batch, device))


def admit_config(
    path: str,
    cfg_options: dict[str, Any] | None = None,
    input_size: Sequence[int] | None = None,
    batch: int | None = None,
    device: str = "cpu",
) -> Admission:
    """The model of a config of mmengine, with random weights: a `TimmClassifier` or a segmentor of mmseg.

    Args:
        path: the config file.
        cfg_options: settings that override it.
        input_size: channels, height and width; None: those of the config.
        batch: images that are new in a step, as a loader counts them.
        device: where it runs.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: mmengine or mmsegmentation is missing.
        ValueError: the config has no model that the doctor knows, or cannot be built.
    """
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import MODELS, init_default_scope

    from frskd_plugin.mmengine.config_tools import explained_build, read_config
    from frskd_plugin.mmengine.without_pretrained import without_pretrained

    config = read_config(path)
    config.merge_from_dict(cfg_options or {})
    if not config.get("model"):
        raise ValueError(f"{path} has no `model`: give the config of a training run, such as configs/frskd_*.py.")
    init_default_scope(config.get("default_scope") or "mmengine")
    model_config, changed = without_pretrained(config.model)
    model_config.pop("compile", None)  # one step is not worth it, and hooks look into its layers
    if "name" in (model_config.get("method") or {}):
        for key, value in _training_set(model_config.method.name, batch).items():
            model_config.method.setdefault(key, value)
    with explained_build(path):
        model = MODELS.build(model_config)
    model.init_weights()
    model = (model if device.startswith("cuda") else revert_sync_batchnorm(model)).to(device)
    remarks = ["random weights stand in for the pretrained ones of the config"] if changed else []
    remarks += _schedule_remarks(config)
    unused_allowed = bool(config.get("find_unused_parameters", False))
    network = getattr(model, "network", None)
    if isinstance(network, DistilledModel):
        wanted = input_size or config.model.get("input_size")
        patient: Patient = _classifier(network, wanted, batch, device, model.mix)
    elif hasattr(model, "decode_head"):
        patient = _segmentor(model, config, input_size, batch, device)
    else:
        raise ValueError(
            f"{path}: the doctor knows TimmClassifier and the encoder-decoders of mmseg, and model.type is "
            f"{config.model.get('type')!r}."
        )
    return Admission(patient, tuple(remarks), unused_allowed)


def _schedule_remarks(config: Any) -> list[str]:
    return [
        f"the config's DistillWarmupHook keeps the distillation at factor 0 before {unit} {hook.get('begin')}; this "
        "step was taken at factor 1"
        for hook in config.get("custom_hooks") or []
        if hook.get("type") == "DistillWarmupHook"
        for unit in ["epoch" if hook.get("by_epoch", True) else "iteration"]
    ]


def _classifier(
    network: DistilledModel, input_size: Sequence[int] | None, batch: int | None, device: str, mix: Any = None
) -> Patient:
    student_config = getattr(network.student, "pretrained_cfg", None) or {}
    size = input_size or student_config.get("input_size") or DEFAULT_INPUT_SIZE
    num_classes = network.student.num_classes
    needs = network.method.needs
    images, targets, extra = classification_batch(needs, batch or CLASSIFIER_BATCH, size, num_classes, device)
    if mix is not None:  # Mixup or CutMix of the config, as in training
        images, targets = mix(images, targets, num_classes)
    if needs.order == "overlap":  # the first step of all has no batch before it to learn from
        with torch.no_grad():
            network.train()(images, targets, **extra)
    return ClassifierPatient(network.train(), images, targets, extra)


def _training_set(method: str, batch: int | None) -> dict[str, int]:
    """The size of a method's training set where it has to know it (PS-KD): here the batch is all there is."""
    return {"num_samples": batch or CLASSIFIER_BATCH} if "num_samples" in method_settings(method) else {}


def _segmentor(model: nn.Module, config: Any, input_size: Sequence[int] | None, batch: int | None, device: str) -> Any:
    from frskd_plugin.doctor.segmentor import SegmentorPatient

    size = (input_size or [])[1:] or getattr(model.data_preprocessor, "size", None) or config.get("crop_size")
    size = size or SEGMENTOR_SIZE
    channels = input_size[0] if input_size else 3
    images, samples = segmentation_batch(batch or SEGMENTOR_BATCH, size, model.num_classes, device, channels)
    return SegmentorPatient(model.train(), images, samples)
