"""A timm classifier, plain or with a training method, as a model of mmengine's Runner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.registry import MODELS, TRANSFORMS
from torch import Tensor, nn

import frskd_plugin.timm  # noqa: F401  (registers the CIFAR networks)
from frskd_plugin.core.checkpoint_file import read_checkpoint
from frskd_plugin.core.checks import check_positive_int
from frskd_plugin.core.compiled_parts import CompiledParts
from frskd_plugin.core.soft_label import mean_prediction
from frskd_plugin.methods import method_class, method_settings
from frskd_plugin.mmengine.stored_config import parse_config, stored_text
from frskd_plugin.timm.checkpoint import create_model
from frskd_plugin.timm.parts import has_self_teacher, soft_label_of
from frskd_plugin.timm.wrap import wrap

STUDENT_PREFIX = "network.student."  # of the plain network's weights in a checkpoint


class TimmClassifier(BaseModel):
    """`frskd_plugin.wrap` of a timm model, driven by mmengine.

    A batch is ``dict(inputs=uint8 [B, 3, H, W], targets=int64 [B])``, with ``index`` [B] or views [B, V, 3, H, W] for
    methods that ask for them, see `provide_method_data`. The plain network's weights alone load too, into the student.

    Args:
        student: arguments of ``timm.create_model``: ``model_name``, ``num_classes``, ...; ``pretrained`` is False by
            default.
        method: ``name`` of the method that trains it, and the method's settings; None is the plain network.
        out_indices: which feature maps the method sees; see `frskd_plugin.wrap`.
        criterion: config of a loss of logits against targets; None is cross-entropy.
        input_size: (channels, height, width) of the images, where timm's entry for the model does not fit.
        mix: config of what mixes a batch, `Mixup` or `CutMix`; None mixes nothing.
        channels_last: keep weights and images in that memory format.
        compile: train the network through ``torch.compile`` (`CompiledParts`); the names in a checkpoint stay. A dict
            holds its options.
        data_preprocessor: config of `ImagePreprocessor`.

    Attributes:
        network: the `DistilledModel`.
        predict_self_teacher: let predictions hold the logits of the method's own teacher, if it has one;
            `SelfTeacherValidationHook` switches it on while validating.

    Raises:
        ValueError: timm does not know the model, or it cannot be wrapped; a name is missing; ``mix`` with a method that
            compares the images of a batch.
        TypeError: the method has no such setting.
    """

    def __init__(
        self,
        student: dict[str, Any],
        method: dict[str, Any] | None = None,
        out_indices: Sequence[int] | None = None,
        criterion: dict[str, Any] | None = None,
        input_size: Sequence[int] | None = None,
        mix: dict[str, Any] | None = None,
        channels_last: bool = False,
        compile: bool | dict[str, Any] = False,
        data_preprocessor: dict[str, Any] | nn.Module | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor)
        method = dict(method or {"name": "baseline"})
        if "name" not in method:
            raise ValueError(f"TimmClassifier: `method` must have a name, such as dict(name='frskd'), got {method}")
        name = method.pop("name")
        if mix is not None:
            _check_mix(mix, name)
        if "student_mean" in method_settings(name) and hasattr(self.data_preprocessor, "mean"):
            for part in ("mean", "std"):
                values = getattr(self.data_preprocessor, part).double().flatten() / 255
                method.setdefault(f"student_{part}", values.tolist())
        teacher = method.get("teacher")
        if isinstance(teacher, Mapping) and teacher.get("checkpoint") is not None:
            method["teacher"] = {**_stored_normalisation(teacher["checkpoint"]), **teacher}
        network = wrap(
            _create_student(**student),
            name,
            out_indices=out_indices,
            criterion=None if criterion is None else MODELS.build(criterion),
            input_size=input_size,
            **method,
        )
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network.to(memory_format=self.memory_format)
        if compile:
            CompiledParts(self.network, [""], **(compile if isinstance(compile, dict) else {}))
        self.mix = None if mix is None else TRANSFORMS.build(mix)
        self.predict_self_teacher = False

    def init_weights(self) -> None:
        """Leave the weights as timm and the method have initialised them."""

    def forward(
        self,
        inputs: Tensor,
        targets: Tensor | None = None,
        mode: str = "tensor",
        index: Tensor | None = None,
        drawn: dict[str, Tensor] | None = None,
    ) -> Any:
        """Run `loss`, `predict` or, with ``mode='tensor'``, the plain network on normalised images: logits [B, K].

        ``drawn`` comes from the ``draw`` of ``mix``; None draws now.
        """
        if inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=self.memory_format)
        if mode == "loss":
            return self.loss(inputs, targets, index, drawn)
        if mode == "predict":
            return self.predict(inputs, targets)
        if mode == "tensor":
            return self.network.student(inputs)
        raise ValueError(f"TimmClassifier: mode must be 'loss', 'predict' or 'tensor', got {mode!r}")

    def loss(
        self,
        inputs: Tensor,
        targets: Tensor,
        index: Tensor | None = None,
        drawn: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return the terms ``loss_*`` of a batch, mixed first with ``mix``, and ``train_top1`` in percent."""
        if self.mix is not None:
            extra = () if drawn is None else (drawn,)
            inputs, targets = self.mix(inputs, targets, self.network.student.num_classes, *extra)
        output = self.network(inputs, targets, **({"index": index} if self.network.method.needs.index else {}))
        if "output" not in output:
            name = type(self.network.method).__name__
            raise ValueError(f"The method {name} returns no `output`, the student's logits [B, K], beside its losses.")
        terms = {name: value for name, value in output.items() if name.startswith("loss_")}
        return {**terms, "train_top1": 100 * top_k_hits(output["output"], targets, (1,)).float().mean()}

    def predict(self, inputs: Tensor, targets: Tensor) -> list[dict[str, Tensor]]:
        """Return a dict for each image with ``logits`` [K] and ``target``.

        With ``predict_self_teacher`` it holds the ``teacher_logits`` too, and those of a `mean_prediction` of student
        and self-teacher as ``ensemble_logits``.
        """
        if self.predict_self_teacher:
            logits, teacher_logits = self.network.method.evaluate(self.network.student_forward, inputs)
        else:
            logits, teacher_logits = self.network(inputs), None
        columns = {"logits": logits, "target": targets}
        if teacher_logits is not None:
            columns["teacher_logits"] = teacher_logits
            if has_self_teacher(self.network.method):
                kind = soft_label_of(self.network.method)
                columns["ensemble_logits"] = mean_prediction(logits, teacher_logits, kind)
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # torch and mmengine both hand over a copy of the caller's dict
        if not any(key.startswith(f"{prefix}network.") for key in state_dict):
            for name in self.network.student.state_dict():
                if prefix + name in state_dict:
                    state_dict[prefix + STUDENT_PREFIX + name] = state_dict.pop(prefix + name)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _stored_normalisation(checkpoint: str | Path) -> dict[str, list[float]]:
    """Return mean and std, in 0..1, of the data preprocessor in the config of a run's checkpoint."""
    if not Path(checkpoint).is_file() or Path(checkpoint).suffix == ".safetensors":
        return {}
    text = stored_text(read_checkpoint(checkpoint), str(checkpoint))
    config = {} if text is None else parse_config(text, f"the config in {checkpoint}")
    settings = (config.get("model") or {}).get("data_preprocessor") or config.get("data_preprocessor") or {}
    return {part: [value / 255 for value in settings[part]] for part in ("mean", "std") if settings.get(part)}


def _check_mix(mix: dict[str, Any], method: str) -> None:
    needs = method_class(method).needs
    if needs.views > 1 or needs.order != "any" or needs.index:
        does = "remembers its prediction of each image" if needs.index else "compares images of one label in a batch"
        raise ValueError(
            f"TimmClassifier: the method {method!r} {does}, which {mix.get('type')} would mix with others: set "
            f"mix=None, or choose another method."
        )


def _create_student(model_name: str | None = None, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    if model_name is None:
        raise ValueError("TimmClassifier: `student` must have a model_name, such as dict(model_name='resnet18')")
    if "num_classes" in kwargs:
        check_positive_int("student.num_classes", kwargs["num_classes"])
    return create_model(model_name, pretrained=pretrained, **kwargs)


class ImagePreprocessor(BaseDataPreprocessor):
    """Move a batch ``dict(inputs, targets)`` to the device, and make its uint8 images normalised floats there.

    ``mean`` and ``std`` of each channel are in 0..255; ``non_blocking`` does not wait for copies from pinned memory.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], non_blocking: bool = True) -> None:
        super().__init__(non_blocking)
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError(f"mean and std must have a number for each channel, std above 0; got {mean} and {std}")
        # not in checkpoints: they belong to the config
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Normalise inputs [B, C, H, W] or views [B, V, C, H, W], uint8 to float32, and move the rest of the batch."""
        inputs = data["inputs"]
        if not isinstance(inputs, Tensor):
            raise ValueError(
                f"ImagePreprocessor expects inputs as one tensor [B, C, H, W], got {type(inputs).__name__}; set "
                f"collate_fn=dict(type='default_collate') in the data loader's config"
            )
        if inputs.dtype is not torch.uint8 or inputs.ndim not in (4, 5) or inputs.shape[-3] != len(self.mean):
            raise ValueError(
                f"ImagePreprocessor expects uint8 images [B, {len(self.mean)}, H, W], got {list(inputs.shape)} of "
                f"{inputs.dtype}; transforms of the data set must neither scale nor normalise"
            )
        data = self.cast_data(data)
        return {**data, "inputs": (data["inputs"].float() - self.mean) / self.std}


def top_k_hits(logits: Tensor, targets: Tensor, top_k: Sequence[int]) -> Tensor:
    """Tell if the target is among the k highest logits [B, K], for each k: bool [B, len(top_k)].

    With k classes or fewer it always is. A single logit predicts class 1 where it is positive, for any k. Targets are
    labels [B], or soft labels [B, K], where each class of the greatest share counts as the target.

    >>> top_k_hits(torch.tensor([[0.1, 0.7, 0.2]]), torch.tensor([2]), (1, 2))
    tensor([[False,  True]])
    """
    if logits.shape[1] == 1:
        return ((logits > 0) == (targets.view_as(logits) > 0.5)).expand(-1, len(top_k))
    highest = logits.topk(min(max(top_k), logits.shape[1]), dim=1).indices
    if targets.ndim == 2:
        shares = targets.gather(1, highest)
        hits = (shares == targets.amax(1, keepdim=True)) & (shares > 0)
    else:
        hits = highest == targets[:, None]
    return torch.stack([hits[:, :k].any(dim=1) for k in top_k], dim=1)


class TopKAccuracyMetric(BaseMetric):
    """Accuracies ``top1`` and ``top5`` in percent, and ``teacher_top1``, ``ensemble_top1``, ... where those predict.

    With several processes each image counts once: what a sampler repeats to give all of them equally many is dropped.
    """

    default_prefix = ""

    def __init__(self, top_k: Sequence[int] = (1, 5), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not top_k or min(top_k) < 1:
            raise ValueError(f"TopKAccuracyMetric: top_k must be numbers of 1 or more, got {top_k}")
        self.top_k = tuple(top_k)

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Tensor]]) -> None:
        targets = torch.stack([sample["target"] for sample in data_samples])
        columns: dict[str, list[bool]] = {}
        for prefix in ("", "teacher_", "ensemble_"):
            if f"{prefix}logits" in data_samples[0]:
                logits = torch.stack([sample[f"{prefix}logits"] for sample in data_samples])
                hits = top_k_hits(logits, targets, self.top_k)
                columns |= {f"{prefix}top{k}": hits[:, i].tolist() for i, k in enumerate(self.top_k)}
        # one result an image, so that mmengine can put those of several processes in order
        self.results += [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def compute_metrics(self, results: list[dict[str, bool]]) -> dict[str, float]:
        return {name: 100 * sum(result[name] for result in results) / len(results) for name in results[0]}
