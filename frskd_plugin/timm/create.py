"""Builds a timm model without its classifier and fills it with pretrained weights or those of a local file."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

import timm
import torch
from torch import nn

# Arguments by which timm's models with a fixed input size (Swin, ViT) accept any size instead.
ANY_SIZE_KWARGS = {"strict_img_size": False, "dynamic_img_size": True, "dynamic_img_pad": True}


def create_trunk(model_name: str, pretrained: bool, **model_kwargs: Any) -> nn.Module:
    """The timm model without classifier, for any image size where the model has an argument for that.

    Raises:
        ValueError: The model name is unknown.
        RuntimeError: The pretrained weights could not be had; says how to go on without them.
    """
    check_model_name(model_name)
    model_kwargs.setdefault("num_classes", 0)
    model_kwargs = {**_any_size_kwargs(model_name, model_kwargs), **model_kwargs}
    if not pretrained:
        return timm.create_model(model_name, pretrained=False, **model_kwargs)
    try:
        return timm.create_model(model_name, pretrained=True, **model_kwargs)
    except TypeError:  # a wrong argument of the model, not of the weights
        raise
    except Exception as error:  # hub, proxy, disk: every library in between raises its own classes
        raise RuntimeError(
            f"The pretrained weights of {model_name!r} could not be loaded ({type(error).__name__}: {error}). Give a "
            f"file you have with checkpoint='FILE' and pretrained=False (a timm state_dict, .safetensors or .pth), or "
            f"train from scratch with pretrained=False alone."
        ) from error


def check_model_name(model_name: str) -> None:
    """Raises: ValueError, with the closest names, when timm does not know the model."""
    if ":" in model_name or timm.is_model(model_name):  # 'hf-hub:...' and 'local-dir:...' are resolved by timm
        return
    close = difflib.get_close_matches(model_name.split(".")[0], timm.list_models(), n=5, cutoff=0.5)
    hint = f"Did you mean {', '.join(close)}?" if close else "timm.list_models() lists the names."
    raise ValueError(f"timm {timm.__version__} has no model {model_name!r}. {hint}")


def _any_size_kwargs(model_name: str, model_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Those of `ANY_SIZE_KWARGS` that the model's class takes."""
    try:
        with torch.device("meta"):  # only the class is of interest: no memory, no random numbers
            model = timm.create_model(model_name, pretrained=False, **model_kwargs)
    except (NotImplementedError, RuntimeError):  # a constructor that needs real numbers
        model = timm.create_model(model_name, pretrained=False, **model_kwargs)
    # Subclasses hand their **kwargs on, so the arguments of every base class count.
    classes = [cls for cls in type(model).__mro__ if issubclass(cls, nn.Module)]
    names = {name for cls in classes for name in inspect.signature(cls).parameters}
    return {name: value for name, value in ANY_SIZE_KWARGS.items() if name in names}
