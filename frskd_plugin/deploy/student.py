"""The plain student that a config or a timm name and a file of weights make together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import timm
from torch import Tensor, nn

import frskd_plugin.timm  # noqa: F401  (registers the CIFAR networks)
from frskd_plugin.check import is_config
from frskd_plugin.deploy.networks import NormalizedNetwork, SegmentationNetwork
from frskd_plugin.deploy.weights import load_strictly
from frskd_plugin.timm.checkpoint import read_weights
from frskd_plugin.timm.create import check_model_name
from frskd_plugin.timm.probe import DEFAULT_INPUT_SIZE


@dataclass(frozen=True)
class Student:
    """What is to be written to a file.

    Attributes:
        network: images [B, C, H, W] -> logits, in eval mode.
        input_size: channels, height and width of the images, if nothing else is asked for.
        dense: whether the logits are a map [B, K, H, W], and not [B, K].
        mean: of each channel of what the network takes, in 0..255; None: it takes images as they are.
        std: of each channel.
        channel_order: of the images, 'RGB' or 'BGR'.
        normalized: whether the network normalises its images itself.
        weights: where in the checkpoint its weights were.
    """

    network: nn.Module
    input_size: tuple[int, int, int]
    dense: bool
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channel_order: str = "RGB"
    normalized: bool = False
    weights: str = "state_dict"

    def images_text(self) -> str:
        """What the images have to be."""
        if self.normalized:
            return "RGB, float32 in 0..255"
        if self.mean is None or self.std is None:
            return f"{self.channel_order}, float32, as the network was trained with"
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"{self.channel_order}, float32, (image in 0..255 - [{mean}]) / [{std}]"


def with_normalization(student: Student) -> Student:
    """The student that takes RGB images in 0..255.

    Raises:
        ValueError: it is not known what its images were normalised with.
    """
    if student.mean is None or student.std is None:
        raise ValueError(
            "--with-normalization: neither the config nor timm says what the images were normalised with; leave it "
            "out and normalise before the network."
        )
    network = NormalizedNetwork(student.network, student.mean, student.std, student.channel_order == "BGR")
    return replace(student, network=network, channel_order="RGB", normalized=True)


def open_student(
    name: str,
    checkpoint: str,
    model_kwargs: dict[str, Any] | None = None,
    cfg_options: dict[str, Any] | None = None,
) -> Student:
    """The plain network, with the weights of ``checkpoint``.

    Args:
        name: a config file, plain or FRSKD, or the name of a timm model.
        checkpoint: see `read_weights`.
        model_kwargs: of ``timm.create_model``, for a timm model.
        cfg_options: settings that override the config.

    Raises:
        FileNotFoundError: a file is missing.
        ImportError: what the config needs (mmsegmentation) is not installed.
        ValueError: there is no such model, the config has none that can be exported, or the weights do not fit.
        TypeError: a setting that the model does not have.
    """
    if not is_config(name):
        weights, entry = read_weights(checkpoint)
        student = _timm_student(dict(model_name=name, **(model_kwargs or {})), weights, checkpoint)
        return replace(student, weights=entry)

    from frskd_plugin.mmengine.config_tools import is_classifier, read_config

    config = read_config(name)
    config.merge_from_dict(cfg_options or {})
    weights, entry = read_weights(checkpoint)
    if is_classifier(config):
        preprocessor = config.model.get("data_preprocessor") or {}
        student = _timm_student(
            config.model.student.to_dict(),
            weights,
            checkpoint,
            config.model.get("input_size"),
            preprocessor.get("mean"),
            preprocessor.get("std"),
        )
        return replace(student, weights=entry)
    if not (config.get("model") or {}).get("decode_head"):
        raise ValueError(
            f"{name}: model.type={(config.get('model') or {}).get('type')!r} cannot be exported: expected a "
            "TimmClassifier, or an encoder-decoder of mmseg with a decode head."
        )
    return replace(_segmentor(config, weights, checkpoint), weights=entry)


def _timm_student(
    kwargs: dict[str, Any],
    weights: dict[str, Tensor],
    checkpoint: str,
    input_size: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Student:
    kwargs = {key: value for key, value in kwargs.items() if key not in ("pretrained", "checkpoint_path")}
    check_model_name(kwargs["model_name"])
    network = timm.create_model(pretrained=False, **kwargs)
    classes = _num_classes(network, weights)
    if "num_classes" not in kwargs and classes not in (None, network.num_classes):
        network = timm.create_model(pretrained=False, num_classes=classes, **kwargs)
    load_strictly(network, weights, checkpoint)
    cfg = getattr(network, "pretrained_cfg", None) or {}
    channels, height, width = input_size or cfg.get("input_size") or DEFAULT_INPUT_SIZE
    if mean is None and cfg.get("mean") and cfg.get("std"):  # timm's are of images in 0..1
        mean, std = [255 * value for value in cfg["mean"]], [255 * value for value in cfg["std"]]
    return Student(
        network=network.eval(),
        input_size=(kwargs.get("in_chans", channels), height, width),
        dense=False,
        mean=None if mean is None else tuple(mean),
        std=None if std is None else tuple(std),
    )


def _num_classes(network: nn.Module, weights: dict[str, Tensor]) -> int | None:
    """Classes of the classifier whose weights these are; None where timm does not say which layer that is."""
    names = (getattr(network, "pretrained_cfg", None) or {}).get("classifier") or ()
    name = names if isinstance(names, str) else next(iter(names), "")
    bias = weights.get(f"{name}.bias")
    return None if bias is None else bias.shape[0]


def _segmentor(config: Any, weights: dict[str, Tensor], checkpoint: str) -> Student:
    from mmengine.registry import DefaultScope

    from frskd_plugin.mmengine.export import plain_config
    from frskd_plugin.mmseg.feature_maps import build_plain, image_size_of

    plain = plain_config(config)
    with DefaultScope.overwrite_default_scope(plain.get("default_scope") or "mmseg"):
        segmentor = build_plain(plain)
    load_strictly(segmentor, weights, checkpoint)
    preprocessor = plain.model.get("data_preprocessor") or {}
    mean, std = preprocessor.get("mean"), preprocessor.get("std")
    return Student(
        network=SegmentationNetwork(segmentor.eval()),
        input_size=(len(mean or (0, 0, 0)), *image_size_of(plain)),
        dense=True,
        mean=None if mean is None else tuple(mean),
        std=None if std is None else tuple(std),
        # mmcv reads BGR
        channel_order="RGB" if preprocessor.get("bgr_to_rgb") or preprocessor.get("rgb_to_bgr") else "BGR",
    )
