"""The student's weights out of any of the files that this package, timm or mmengine writes."""

from __future__ import annotations

from pathlib import Path

from timm.models import load_state_dict
from torch import Tensor, nn

from frskd_plugin.mmengine.classifier import STUDENT_PREFIX
from frskd_plugin.mmengine.export import TEACHER_PREFIX
from frskd_plugin.mmengine.resume import checkpoint_globals_allowed

# Where the plain network's weights lie: in `TimmClassifier`, in what `frskd_plugin.wrap` returns.
_STUDENT_PREFIXES = (STUDENT_PREFIX, "student.")


def student_weights(path: str | Path) -> dict[str, Tensor]:
    """The plain network's weights, under its own names.

    Args:
        path: a training checkpoint of a classifier or a segmentor, with FRSKD or without; an exported student; the
            state_dict of a wrapped or a plain timm model (.pth, .pt, .safetensors).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or holds no weights.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint {path} not found; expected a .pth or .safetensors file")
    try:
        with checkpoint_globals_allowed():
            weights = load_state_dict(str(path), device="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and safetensors errors differ; all mean the same to the user
        raise ValueError(
            f"checkpoint {path} cannot be read as weights ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no text'})"
        ) from error
    weights = without_teacher({key: value for key, value in weights.items() if isinstance(value, Tensor)})
    if not weights:
        raise ValueError(f"checkpoint {path} holds no weights: expected a state_dict, or a dict with one in it")
    return weights


def without_teacher(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The student's part of a state_dict, under the plain network's names.

    >>> import torch
    >>> list(without_teacher({"student.fc.bias": torch.ones(1), "method.self_teacher.head.bias": torch.ones(1)}))
    ['fc.bias']
    >>> list(without_teacher({"decode_head.conv.bias": torch.ones(1), "self_teacher.head.conv.bias": torch.ones(1)}))
    ['decode_head.conv.bias']
    """
    for prefix in _STUDENT_PREFIXES:
        student = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        if student:
            return student
    return {key: value for key, value in weights.items() if not key.startswith(TEACHER_PREFIX)}


def load_strictly(network: nn.Module, weights: dict[str, Tensor], name: str | Path) -> None:
    """Load, and say in one line what does not fit.

    Raises:
        ValueError: a weight is missing, unknown or of another shape.
    """
    try:
        missing, unknown = network.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # of shapes; its first line names the class alone
        raise ValueError(f"{name} does not fit the network: {str(error).splitlines()[-1].strip()}") from error
    if missing or unknown:
        examples = [*missing, *unknown]
        raise ValueError(
            f"{name} does not fit the network: {len(missing)} weights are missing and {len(unknown)} are unknown "
            f"({', '.join(examples[:3])}{', ...' if len(examples) > 3 else ''}). Give the config or model that the "
            "file was trained with."
        )
