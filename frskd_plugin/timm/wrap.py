"""``wrap`` makes a timm model train with a method of this package; ``unwrap`` gives the timm model back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from timm.models import group_parameters
from timm.optim import auto_group_layers
from timm.utils import unwrap_model
from torch import Tensor, nn

from frskd_plugin.core.checks import check_positive_int
from frskd_plugin.core.soft_label import criterion_soft_label
from frskd_plugin.methods import make_method, method_class
from frskd_plugin.methods.base import Criterion, Method, total_loss
from frskd_plugin.methods.targets import check_targets, check_terms
from frskd_plugin.timm.frozen_teacher import make_teacher
from frskd_plugin.timm.parts import make_part
from frskd_plugin.timm.probe import choose_indices, probe_student, split_forward

# Where other libraries keep the model that they wrap: DistributedDataParallel, AveragedModel and ModelEmaV3;
# torch.compile; timm's tasks; Lightning modules; timm's first ModelEma.
_INNER = ("module", "_orig_mod", "trainable_module", "model", "ema")
_OWN_ATTRIBUTES = ("student", "method", "criterion", "out_indices")


class DistilledModel(nn.Module):
    """A timm model with the method that trains it: in training a loss, in evaluation the plain model.

    It answers timm's questions (``pretrained_cfg``, ``get_classifier()``, ``forward_features()``, ...) as the student
    does: an attribute that it does not have is read from the student, and set there.

    Attributes:
        student: the very timm model that came in.
        method: the training method with its own modules (`FRSKD` has ``self_teacher``).
        criterion: the loss of logits against targets.
        out_indices: which of the student's feature maps the method sees, highest resolution first.
    """

    def __init__(
        self,
        student: nn.Module,
        method: Method,
        criterion: Criterion,
        out_indices: Sequence[int],
        num_logits: int,
    ) -> None:
        super().__init__()
        self.student = student
        self.method = method
        self.criterion = criterion
        self.out_indices = tuple(out_indices)
        self._said_and_gives = (getattr(student, "num_classes", None), num_logits)

    @property
    def num_logits(self) -> int:
        """Number K of the student's logits.

        A classifier that was replaced by hand (``model.fc = nn.Linear(512, 10)``) leaves the student's ``num_classes``
        as it was; then the number that `wrap` saw counts.
        """
        said, gives = self._said_and_gives
        says: Any = getattr(self.student, "num_classes", said)
        return gives if says == said else says

    def __getattr__(self, name: str) -> Any:
        modules = self.__dict__.get("_modules", {})
        if name.startswith("_") or name in modules or not hasattr(modules.get("student"), name):
            return super().__getattr__(name)
        return getattr(modules["student"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        own = name.startswith("_") or name in vars(self) or name in _OWN_ATTRIBUTES or hasattr(type(self), name)
        student = None if own else self._modules.get("student")
        if student is not None and hasattr(student, name):
            setattr(student, name, value)
        else:
            super().__setattr__(name, value)

    def forward(self, images: Tensor, targets: Tensor | None = None, **extra: Tensor) -> dict[str, Tensor] | Tensor:
        """Return in eval mode the plain student's logits [B, K], in train mode the losses of a batch.

        These are ``loss`` (the total), its parts ``loss_*``, and ``output``, the student's logits.

        Args:
            images: [B, C, H, W].
            targets: in train mode labels [B] or soft labels [B, K].
            extra: in train mode what the method asks for beside them, see `DataNeeds`.

        Raises:
            TypeError: images (a batch of patches for NaFlex models) or targets that are no tensor.
            ValueError: train mode without targets; an empty batch, labels that are no classes (looked at on a CPU) or
                other targets that the criterion cannot take; a criterion that does not reduce its loss.
        """
        if not self.training:
            return self.student(images)
        if not isinstance(images, Tensor):
            raise TypeError(
                f"A wrapped model takes images [B, C, H, W], got {type(images).__name__}. Batches of NaFlex models "
                "(dicts of patches of images of any shape) have no maps to distil: train without the NaFlex loader."
            )
        if targets is None:
            raise ValueError(
                "In training mode this model computes its losses: call model(images, targets). For predictions call "
                "model.eval() first; frskd_plugin.unwrap(model) is the plain network."
            )
        targets = check_targets(images, targets, self.criterion, self.num_logits, self.method.makes_soft_targets)
        terms = self.method(self.student_forward, images, targets, self.criterion, **extra)
        total = total_loss(terms, self.method)
        check_terms(terms, self.criterion)
        return {"loss": total, **terms}

    def student_forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the student's maps [B, C_i, H_i, W_i], highest resolution first, and logits [B, K], in one pass."""
        if hasattr(self.student, "set_requires_gradient_sync"):  # FSDP2 gathers parameters for `forward` alone
            from torch.distributed.fsdp import register_fsdp_forward_method

            for name in {"forward_intermediates", "forward_head"} - vars(self.student).keys():
                register_fsdp_forward_method(self.student, name)
        return split_forward(self.student, images, self.out_indices)

    def teacher_logits(self, images: Tensor) -> Tensor | None:
        """Return the logits [B, K] of the method's own teacher: self-teacher, ensemble or `KD`'s; None without one."""
        return self.method.evaluate(self.student_forward, images)[1]

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay, the student's, for timm's optimizer factory."""
        names = self.student.no_weight_decay() if hasattr(self.student, "no_weight_decay") else ()
        return {f"student.{name}" for name in names}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Return name -> layer for timm's layer-wise learning rates; the method's modules go with the head."""
        if hasattr(self.student, "group_matcher"):
            layers = group_parameters(self.student, self.student.group_matcher(coarse=coarse), reverse=True)
        else:
            layers = auto_group_layers(self.student)
        numbers = {f"student.{name}": number for name, number in layers.items()}
        head = max(numbers.values(), default=0)
        return lambda name: numbers.get(name, head)

    def reset_classifier(self, num_classes: int, *args: Any, **kwargs: Any) -> None:
        """Give the student, by its own ``reset_classifier``, and the method a new classifier.

        Raises:
            ValueError: 0 classes, or a method that cannot follow; nothing has changed then.
        """
        check_positive_int("num_classes", num_classes)
        self.method.reset_classifier(num_classes)
        self.student.reset_classifier(num_classes, *args, **kwargs)
        self._said_and_gives = (num_classes, num_classes)


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

    The model is neither copied nor changed. It is run once in eval mode on two random images, to see its maps and that
    they and the logits can be had in one pass.

    Args:
        model: a timm model with a classifier. The method's modules are made on its device and in its dtype.
        method: name of the method, see `frskd_plugin.methods`.
        out_indices: which feature maps the method sees, as timm's ``features_only`` counts them; by default the last
            map of each of the four lowest resolutions (a ResNet's stages without its stem), or four evenly spaced ones
            where all have one resolution (plain ViT).
        criterion: loss of logits [B, K] against targets; by default cross-entropy, for labels and for soft labels.
        input_size: (channels, height, width) of the images that are tried, where timm's own entry for the model does
            not fit.
        settings: of the method. 'frskd' chooses alpha, beta, width and schedule for the network where they are left
            out; the paper's for CIFAR-100 are alpha=2, beta=100, temperature=4, width=2. 'kd' needs a ``teacher``, see
            `make_teacher`.

    Raises:
        TypeError: it is no timm model but something around one, a criterion that cannot be called, or a setting that
            the method does not have.
        ValueError: the model cannot be split into maps and classifier, drops patches in training, is wrapped already,
            or a setting is wrong.

    >>> import timm, torch
    >>> model = wrap(timm.create_model("test_resnet", num_classes=10), input_size=(3, 64, 64))
    >>> losses = model(torch.rand(2, 3, 64, 64), torch.tensor([3, 7]))
    >>> list(losses)
    ['loss', 'loss_ce', 'loss_teacher_ce', 'loss_kd', 'loss_feat', 'output', 'teacher_output']
    >>> model.eval()(torch.rand(2, 3, 64, 64)).shape
    torch.Size([2, 10])
    >>> type(unwrap(model)).__name__
    'ResNet'
    """
    _check_model(model, method)
    if isinstance(criterion, type) or not (criterion is None or callable(criterion)):
        raise TypeError(
            "`criterion` is called with logits and targets: expected an object such as nn.CrossEntropyLoss(), got "
            f"{criterion}."
        )
    criterion = F.cross_entropy if criterion is None else criterion
    student = dataclasses.replace(probe_student(model, input_size), criterion=criterion)
    if student.num_classes == 1 and criterion_soft_label(criterion) == "softmax":
        raise ValueError(
            "The cross-entropy of one logit (num_classes=1) is always 0: give criterion=torch.nn.BCEWithLogitsLoss() "
            "and targets [B, 1], or num_classes=2."
        )
    indices = choose_indices(student, out_indices, method_class(method).least_maps)
    student = student.with_maps(indices)
    if "teacher" in settings:
        teacher = make_teacher(settings["teacher"], student.num_classes, student.input_size, out_indices)
        settings = {**settings, "teacher": teacher}
    made = make_method(method, student, **settings)
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    if parameter is not None:
        made.to(device=parameter.device, dtype=parameter.dtype)
    wrapped = DistilledModel(model, made, criterion, indices, student.num_classes)
    # `wrapped.train(mode)` would reach into the model, where the caller may keep frozen layers in eval mode
    made.train(model.training)
    wrapped.training = model.training
    return wrapped


def unwrap(model: nn.Module, part: str = "student") -> nn.Module:
    """Return the very timm model that was given to `wrap`; or another part of what was trained, as a plain network.

    Args:
        model: what `wrap` made, or a module that holds one such (DDP, FSDP, torch.compile, an EMA, a task of timm); or
            a segmentor of mmseg that was trained with FRSKD.
        part: 'student'; 'self_teacher', the student's trunk with the self-teacher on it; or 'ensemble', the mean of
            both probabilities (`mean_prediction`), of ONE its gated ensemble. The latter two, and each part of a
            segmentor, are copies in eval mode without gradients: images [B, C, H, W] -> logits [B, K] or [B, K, H, W].

    Raises:
        TypeError: there is no wrapped model in it.
        ValueError: there are several in it, an unknown part, or a method that has no such part.
    """
    wrapped = _find_wrapped(model)
    if wrapped is not None:
        return make_part(wrapped.student, wrapped.method, wrapped.out_indices, part)
    segmentor = unwrap_model(model)
    if hasattr(segmentor, "make_part"):
        return segmentor.make_part(part)
    raise TypeError(f"unwrap expects a model made by frskd_plugin.wrap, got {type(model).__name__}.")


def _check_model(model: nn.Module, method: str) -> None:
    owner = type(model).__name__
    if _find_wrapped(model) is not None:
        raise ValueError(f"{owner} is wrapped already: frskd_plugin.unwrap(model) gives the timm model.")
    for name in _INNER:  # whose attributes may reach through, and the training would go around it
        if hasattr(getattr(model, name, None), "forward_intermediates"):
            raise TypeError(
                f"{owner} holds a timm model: wrap that one first (`wrap(model.{name})`), and compile the result or "
                f"put it into DDP or an EMA."
            )
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"wrap expects a classifier of timm, such as timm.create_model('resnet18', num_classes=100), got {owner}."
        )
    for name, module in model.named_modules():
        drops_patches = type(module).__name__.startswith("PatchDropout") and getattr(module, "prob", 0) > 0
        if drops_patches and method != "baseline":
            raise ValueError(
                f"{owner} drops patches in training (`{name}`), so its tokens make no feature maps: create it with "
                f"patch_drop_rate=0."
            )


def _find_wrapped(model: object) -> DistilledModel | None:
    if isinstance(model, DistilledModel):
        return model
    for name in _INNER:
        if name == "ema" and isinstance(model, nn.Module):
            continue  # beside the model that it averages
        inner = getattr(model, name, None)
        found = _find_wrapped(inner) if isinstance(inner, nn.Module) and inner is not model else None
        if found is not None:
            return found
    if not isinstance(model, nn.Module):
        return None
    inside = {name: module for name, module in model.named_modules() if isinstance(module, DistilledModel)}
    if len(inside) > 1:
        raise ValueError(
            f"{type(model).__name__} holds several wrapped models ({', '.join(inside)}): unwrap one of them, such as "
            f"unwrap(model.{next(iter(inside))})."
        )
    return next(iter(inside.values()), None)
