"""Loads a local timm checkpoint into a model that lacks the classifier."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from timm.models import adapt_input_conv, load_state_dict, model_entrypoint
from torch import Tensor, nn


def load_trunk_checkpoint(model: nn.Module, checkpoint: str | Path) -> None:
    """Load the weights of a whole timm classifier, or of its trunk, into `model`, which has no classifier.

    Only tensors are read from the file (``weights_only``). Layouts that timm converts for its own downloads, and
    position embeddings of another size, are converted in the same way; a first convolution with another number of
    image channels is adapted as timm does.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read as weights, or holds those of another architecture.
    """
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f"checkpoint={str(checkpoint)!r} is not a file. Give the path of a timm state_dict.")
    name = model.pretrained_cfg.get("architecture", type(model).__name__)
    try:
        state_dict = load_state_dict(str(checkpoint), use_ema=True, weights_only=True)
    except Exception as error:  # pickle, zip and safetensors errors differ; all mean the same to the user
        raise ValueError(f"{checkpoint} cannot be read as the weights of {name!r}: {error}") from error
    if not state_dict or not all(isinstance(value, Tensor) for value in state_dict.values()):
        raise ValueError(f"{checkpoint} is not a state_dict of tensors (or a dict with one under 'state_dict').")

    state_dict = _adapt_first_conv(model, state_dict)
    if _differences(model, state_dict):
        state_dict = _convert(model, name, state_dict)
    differences = _differences(model, state_dict)
    if differences:
        shown = "; ".join(differences[:5]) + (f"; and {len(differences) - 5} more" if len(differences) > 5 else "")
        raise ValueError(
            f"{checkpoint} does not hold the weights of {name!r}: {shown}. Give model_name of the architecture that "
            f"the file was saved from, with the same model arguments."
        )
    model.load_state_dict({key: state_dict[key] for key in model.state_dict()})


def _differences(model: nn.Module, state_dict: dict[str, Tensor]) -> list[str]:
    """What keeps `state_dict` from being this model's; keys of the removed classifier do not count."""
    expected = model.state_dict()
    classifiers = _classifier_names(model)
    found = [f"{key} is missing" for key in expected if key not in state_dict]
    found += [
        f"{key} is {list(state_dict[key].shape)}, expected {list(value.shape)}"
        for key, value in expected.items()
        if key in state_dict and state_dict[key].shape != value.shape
    ]
    extra = (key for key in state_dict if key not in expected)
    return found + [f"{key} is unknown" for key in extra if not key.startswith(classifiers)]


def _classifier_names(model: nn.Module) -> tuple[str, ...]:
    return tuple(f"{name}." for name in _as_tuple(model.pretrained_cfg.get("classifier")))


def _adapt_first_conv(model: nn.Module, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the first convolution(s) for the model's number of image channels."""
    state_dict = dict(state_dict)
    for name in _as_tuple(model.pretrained_cfg.get("first_conv")):
        key = f"{name}.weight"
        expected, got = model.state_dict().get(key), state_dict.get(key)
        if expected is None or got is None or got.ndim != 4 or got.shape[1] != 3 or expected.shape[1] == 3:
            continue
        state_dict[key] = adapt_input_conv(expected.shape[1], got)
    return state_dict


def _convert(model: nn.Module, name: str, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the model's own file in timm does with a checkpoint; by timm's convention it is called like this."""
    module = sys.modules[model_entrypoint(name).__module__]
    convert = getattr(module, "checkpoint_filter_fn", None)
    if convert is None:
        return state_dict
    try:
        with torch.no_grad():
            return convert(dict(state_dict), model)
    except Exception:  # a converter that stumbles over foreign keys: the comparison tells what is wrong
        return state_dict


def _as_tuple(names: str | Iterable[str] | None) -> tuple[str, ...]:
    if names is None:
        return ()
    return (names,) if isinstance(names, str) else tuple(names)
