"""Take the weights of a network out of the files that timm, Lightning, mmengine and this package write."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import adapt_input_conv, clean_state_dict, load_state_dict, model_entrypoint
from torch import Tensor, nn

from frskd_plugin.core.checkpoint_file import BrokenCheckpointError, read_checkpoint, safe_torch_load

# The entries of a training checkpoint with weights in them, in the order in which timm prefers them.
_ENTRIES = {"state_dict_ema": "EMA", "model_ema": "EMA", "state_dict": "", "model": ""}
_LIGHTNING = "pytorch-lightning_version"
# Where the plain network's weights lie in what `frskd_plugin.wrap` returns, alone or in a `TimmClassifier` or a
# Lightning module; beside them lie those of the method.
_STUDENT = re.compile(r"(?:\w+\.){0,2}?student\.")
_BACKBONE = "backbone.model."  # a `TimmFeatureExtractor` in a segmentor or detector
_SELF_TEACHER = "self_teacher."  # of a segmentor


def create_model(model_name: str, pretrained: bool = False, **settings: Any) -> nn.Module:
    """Build a network with ``timm.create_model``, which reads files (``checkpoint_path``) as `read_checkpoint` does.

    Raises:
        BrokenCheckpointError: a file cannot be read without running code.
        ValueError: an unknown name.
    """
    check_model_name(model_name)
    with safe_torch_load():
        return timm.create_model(model_name, pretrained=pretrained, **settings)


def check_model_name(model_name: str) -> None:
    """Raise ValueError for a name that timm does not know, naming the closest ones."""
    if ":" in model_name or timm.is_model(model_name):  # 'hf-hub:...' and 'local-dir:...' are resolved by timm
        return
    close = difflib.get_close_matches(model_name.split(".")[0], timm.list_models(), n=5, cutoff=0.5)
    hint = f"Did you mean {', '.join(close)}?" if close else "timm.list_models() lists the names."
    raise ValueError(f"timm {timm.__version__} has no model {model_name!r}. {hint}")


def read_weights(path: str | Path, whole: bool = False) -> tuple[dict[str, Tensor], str]:
    """Read the plain network's weights out of a file, under the network's own names.

    Args:
        path: a training checkpoint of timm (its EMA where there is one, as timm does it), Lightning or mmengine, with a
            method of this package or without; an exported student; a state_dict (.pth, .pt, .ckpt, .safetensors).
        whole: read the method's weights too: ``student.*`` and ``method.*`` of what `frskd_plugin.wrap` returns or of
            an `FRSKDTask`, or a segmentor's with ``self_teacher.*``.

    Returns:
        The weights, and where in the file they were: 'state_dict_ema (EMA)'.

    Raises:
        FileNotFoundError: there is no such file.
        BrokenCheckpointError: it cannot be read without running code, or holds no weights.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint {path} not found; expected a .pth or .safetensors file")
    if Path(path).suffix != ".safetensors":
        return weights_of(read_checkpoint(path), path, whole)
    try:
        content = load_state_dict(str(path), device="cpu")
    except Exception as error:  # of the safetensors library, whatever the bytes lead to
        raise BrokenCheckpointError(
            f"checkpoint {path} cannot be read as safetensors ({type(error).__name__}: {error})"
        ) from error
    return weights_of(content, path, whole)


def weights_of(content: Any, name: str | Path, whole: bool = False) -> tuple[dict[str, Tensor], str]:
    """Do what `read_weights` does with the content of a file, which is called `name` in errors.

    >>> weights, entry = weights_of({"state_dict_ema": {"student.fc.bias": torch.ones(1)}, "state_dict": {}}, "a.pth")
    >>> list(weights), entry
    (['fc.bias'], 'state_dict_ema (EMA)')
    """
    if not isinstance(content, dict):
        content = {}
    entry = next((key for key in _ENTRIES if isinstance(content.get(key), dict)), None)
    weights = content if entry is None else content[entry]
    weights = {key: value for key, value in weights.items() if isinstance(key, str) and isinstance(value, Tensor)}
    weights.pop("n_averaged", None)  # the counter of torch's AveragedModel
    if not weights:
        raise BrokenCheckpointError(
            f"{name} holds no weights: expected a state_dict of tensors, or a dict with one under 'state_dict'"
        )
    averaged = _ENTRIES.get(entry or "") or ("EMA" if "ema_state_dict" in content else "")  # of mmengine, which swaps
    text = (entry or "the file itself is a state_dict") + (f" ({averaged})" if averaged else "")
    weights = clean_state_dict(weights)
    task_state = content.get("task_state_ema" if entry == "state_dict_ema" else "task_state")
    if whole and isinstance(task_state, dict) and isinstance(task_state.get("method"), dict):  # of `FRSKDTask`
        weights = {f"student.{key}": value for key, value in weights.items()}
        weights |= {f"method.{key}": value for key, value in task_state["method"].items()}
    prefixes = {match[0] for match in map(_STUDENT.match, weights) if match}
    if prefixes:
        prefix = min(prefixes, key=len).removesuffix("student." if whole else "")
    elif _LIGHTNING in content or all(key.startswith("model.") for key in weights):
        prefix = "model."
    else:
        return {key: value for key, value in weights.items() if whole or not key.startswith(_SELF_TEACHER)}, text
    plain = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    return clean_state_dict(plain) or weights, text


def load_trunk_checkpoint(model: nn.Module, checkpoint: str | Path) -> None:
    """Load the weights of a timm classifier, its trunk, or a segmentor's backbone, see `read_weights`, into `model`.

    Layouts of timm's downloads, position embeddings of another size and a first convolution with another number of
    image channels are converted as timm does.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read as weights, or holds those of another architecture.
    """
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f"checkpoint={str(checkpoint)!r} is not a file. Give the path of a timm state_dict.")
    name = model.pretrained_cfg.get("architecture", type(model).__name__)
    try:
        state_dict, _ = read_weights(checkpoint)
    except BrokenCheckpointError as error:
        raise ValueError(f"{checkpoint} cannot be read as the weights of {name!r}: {error}") from error
    backbone = {key: value for key, value in state_dict.items() if key.startswith(_BACKBONE)}
    state_dict = {key.removeprefix(_BACKBONE): value for key, value in (backbone or state_dict).items()}
    for key in (f"{layer}.weight" for layer in _as_tuple(model.pretrained_cfg.get("first_conv"))):
        expected, got = model.state_dict().get(key), state_dict.get(key)
        if expected is not None and got is not None and got.ndim == 4 and got.shape[1] == 3 != expected.shape[1]:
            state_dict[key] = adapt_input_conv(expected.shape[1], got)
    if _differences(model, state_dict):
        state_dict = _convert(model, name, state_dict)
    differences = _differences(model, state_dict)
    if differences:
        shown = "; ".join(differences[:5]) + (f"; and {len(differences) - 5} more" if len(differences) > 5 else "")
        raise ValueError(
            f"{checkpoint} does not hold the weights of {name!r}: {shown}. Give model_name of the architecture that "
            f"the file was saved from, with the same model arguments. tools/export.py writes those "
            f"of a training checkpoint's student."
        )
    model.load_state_dict({key: state_dict[key] for key in model.state_dict()})


def _differences(model: nn.Module, state_dict: dict[str, Tensor]) -> list[str]:
    """List what keeps `state_dict` from being this model's; keys of the removed classifier do not count."""
    expected = model.state_dict()
    classifiers = tuple(f"{name}." for name in _as_tuple(model.pretrained_cfg.get("classifier")))
    found = [f"{key} is missing" for key in expected if key not in state_dict]
    found += [
        f"{key} is {list(state_dict[key].shape)}, expected {list(value.shape)}"
        for key, value in expected.items()
        if key in state_dict and state_dict[key].shape != value.shape
    ]
    extra = (key for key in state_dict if key not in expected)
    return found + [f"{key} is unknown" for key in extra if not key.startswith(classifiers)]


def _convert(model: nn.Module, name: str, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert a checkpoint as the model's own file in timm does, by timm's convention of a name."""
    convert = getattr(sys.modules[model_entrypoint(name).__module__], "checkpoint_filter_fn", None)
    try:
        with torch.no_grad():
            return state_dict if convert is None else convert(dict(state_dict), model)
    except Exception:  # a converter that stumbles over foreign keys: the comparison tells what is wrong
        return state_dict


def _as_tuple(names: str | Iterable[str] | None) -> tuple[str, ...]:
    if names is None:
        return ()
    return (names,) if isinstance(names, str) else tuple(names)
