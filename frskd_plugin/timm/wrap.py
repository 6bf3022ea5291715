"""``wrap`` makes a timm model train with a method of this package; ``unwrap`` gives the timm model back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import nn

from frskd_plugin.core.soft_label import criterion_soft_label
from frskd_plugin.methods import StudentInfo, make_method
from frskd_plugin.methods.base import Criterion
from frskd_plugin.timm.distilled_model import DistilledModel
from frskd_plugin.timm.feature_indices import choose_indices
from frskd_plugin.timm.frozen_teacher import make_teacher
from frskd_plugin.timm.probe import probe_student

# Where other libraries keep the model that they wrap: DistributedDataParallel, ModelEmaV3; torch.compile; timm's tasks;
# timm's first ModelEma.
_INNER = ("module", "_orig_mod", "trainable_module", "ema")


def wrap(
    model: nn.Module,
    method: str = "frskd",
    *,
    out_indices: Sequence[int] | None = None,
    criterion: Criterion | None = None,
    input_size: Sequence[int] | None = None,
    **settings: Any,
) -> DistilledModel:
    """Make a timm classifier train with a method of this package.

    In training the result takes images and targets and returns the losses; in evaluation it is the plain model. The
    model itself is neither copied nor changed. It is run once in eval mode on two random images, to see its maps and
    that they and the logits can be had in one pass.

    Args:
        model: a timm model with a classifier. The method's modules are made on its device and in its dtype.
        method: name of the method, see `frskd_plugin.methods`.
        out_indices: which feature maps the method sees, as timm's ``features_only`` counts them; by default the last
            map of each resolution, or four evenly spaced ones where all have one resolution (plain ViT).
        criterion: loss of logits [B, K] against targets; by default cross-entropy, for labels and for soft labels.
        input_size: (channels, height, width) of the images that are tried, where timm's own entry for the model does
            not fit.
        settings: of the method; for 'frskd' among others alpha=2, beta=100, temperature=4, width=2 (or 'auto'); for
            'kd' the ``teacher``, see `make_teacher`.

    Raises:
        TypeError: it is no timm model but something around one, a criterion that cannot be called, or a setting that
            the method does not have.
        ValueError: the model cannot be split into maps and classifier, drops patches in training, is wrapped already,
            or a setting is wrong.

    >>> import timm, torch
    >>> model = wrap(timm.create_model("resnet18", num_classes=10), out_indices=(1, 2, 3, 4), input_size=(3, 64, 64))
    >>> losses = model(torch.rand(2, 3, 64, 64), torch.tensor([3, 7]))
    >>> list(losses)
    ['loss', 'loss_ce', 'loss_teacher_ce', 'loss_kd', 'loss_feat', 'output', 'teacher_output']
    >>> model.eval()(torch.rand(2, 3, 64, 64)).shape
    torch.Size([2, 10])
    >>> type(unwrap(model)).__name__
    'ResNet'
    """
    if _find_wrapped(model) is not None:
        raise ValueError(f"{type(model).__name__} is wrapped already: frskd_plugin.unwrap(model) gives the timm model.")
    _check_bare(model)
    if isinstance(criterion, type) or not (criterion is None or callable(criterion)):
        raise TypeError(
            f"`criterion` is called with logits and targets: expected nn.BCEWithLogitsLoss(), got {criterion}."
        )
    criterion = F.cross_entropy if criterion is None else criterion
    probe = probe_student(model, input_size)
    if probe.num_classes == 1 and criterion_soft_label(criterion) == "softmax":
        raise ValueError(
            "The cross-entropy of one logit (num_classes=1) is always 0: give criterion=torch.nn.BCEWithLogitsLoss() "
            "and targets [B, 1], or num_classes=2."
        )
    if method != "baseline":
        _check_all_patches(model)
    indices = choose_indices(probe.maps, out_indices, type(model).__name__)
    student = StudentInfo(
        module=model,
        in_channels=[probe.maps[i][0] for i in indices],
        map_sizes=[probe.maps[i][1:] for i in indices],
        num_classes=probe.num_classes,
        macs=probe.macs,
        input_size=probe.input_size,
        criterion=criterion,
    )
    if "teacher" in settings:
        teacher = make_teacher(settings["teacher"], probe.num_classes, probe.input_size, out_indices)
        settings = {**settings, "teacher": teacher}
    made = make_method(method, student, **settings)
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    if parameter is not None:
        made.to(device=parameter.device, dtype=parameter.dtype)
    wrapped = DistilledModel(model, made, criterion, indices)
    # `wrapped.train(mode)` would reach into the model, where the caller may keep frozen layers in eval mode
    made.train(model.training)
    wrapped.training = model.training
    return wrapped


def unwrap(model: nn.Module) -> nn.Module:
    """The very timm model that was given to `wrap`, also from inside DDP, torch.compile or an EMA.

    Raises:
        TypeError: there is no wrapped model in it.
    """
    wrapped = _find_wrapped(model)
    if wrapped is None:
        raise TypeError(f"unwrap expects a model made by frskd_plugin.wrap, got {type(model).__name__}.")
    return wrapped.student


def _check_bare(model: nn.Module) -> None:
    """Refuse what holds the timm model: its attributes may reach through, and the training would go around it."""
    for name in _INNER:
        if hasattr(getattr(model, name, None), "forward_intermediates"):
            raise TypeError(
                f"{type(model).__name__} holds a timm model: wrap that one first (`wrap(model.{name})`), and compile "
                f"the result or put it into DDP or an EMA."
            )


def _check_all_patches(model: nn.Module) -> None:
    """Refuse a ViT that drops patches in training: what is left of its tokens is no map."""
    for name, module in model.named_modules():
        if type(module).__name__.startswith("PatchDropout") and getattr(module, "prob", 0) > 0:
            raise ValueError(
                f"{type(model).__name__} drops patches in training (`{name}`), so its tokens make no feature maps: "
                f"create it with patch_drop_rate=0."
            )


def _find_wrapped(model: object) -> DistilledModel | None:
    """The `DistilledModel` in it, through any number of outer wrappers; None where there is none."""
    while not isinstance(model, DistilledModel):
        inner = next(
            (getattr(model, name) for name in _INNER if isinstance(getattr(model, name, None), nn.Module)), None
        )
        if inner is None:
            return None
        model = inner
    return model
