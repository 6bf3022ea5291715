"""Optimizer wrappers: mixed precision without loss scaling, and a self-teacher that counts as a part of the head."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn


class AutocastOptimWrapper(OptimWrapper):
    """An `OptimWrapper` whose forward passes run under `torch.autocast` in bfloat16, which needs no loss scaling.

    mmengine's `AmpOptimWrapper` refuses to run on the CPU; for float16 on CUDA take that one: it scales the loss.

    Args:
        dtype: 'bfloat16', or the `torch.dtype`; others are refused (ValueError).
        device_type: 'cpu', 'cuda', ...; None is the device on which mmengine trains.
        kwargs: further arguments of `OptimWrapper`.
    """

    def __init__(self, dtype: str | torch.dtype = "bfloat16", device_type: str | None = None, **kwargs: Any) -> None:
        if dtype in ("float16", torch.float16):
            raise ValueError(
                "AutocastOptimWrapper does not scale the loss, so float16 gradients would vanish; "
                "use dtype='bfloat16', or type='AmpOptimWrapper' for float16 on CUDA"
            )
        if dtype not in ("bfloat16", torch.bfloat16):
            raise ValueError(f"AutocastOptimWrapper: dtype must be 'bfloat16' or torch.bfloat16, got {dtype!r}")
        super().__init__(**kwargs)
        self.dtype = torch.bfloat16
        self.device_type = torch.device(device_type or get_device()).type

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), torch.autocast(self.device_type, dtype=self.dtype):
            yield


# Under the default's name too, from when a model with a self-teacher is first built: no config has to name it, whoever
# trains. Registered here and not in registration.py, for mmengine.optim is slow to import.
@OPTIM_WRAPPER_CONSTRUCTORS.register_module(
    name=["SelfTeacherOptimWrapperConstructor", "DefaultOptimWrapperConstructor"], force=True
)
class SelfTeacherOptimWrapperConstructor:
    """Constructor of an optimizer wrapper that gives a self-teacher the settings of the student's head.

    Rules of ``paramwise_cfg`` know parameters by name. Stock configs multiply the learning rate of ``head`` (SegFormer
    by 10), and the self-teacher's neck is as new as the head is: so it is named ``decode_head.self_teacher.*`` while
    the groups are made. Building a model with a self-teacher registers it in place of mmengine's own constructor. A
    config with another ``constructor`` keeps that; for both, name this one, and the other as ``paramwise_cfg.base``.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None) -> None:
        rules = None if paramwise_cfg is None else dict(paramwise_cfg)
        base = rules.pop("base", None) if rules else None
        config = {"type": base or DefaultOptimWrapperConstructor, "optim_wrapper_cfg": optim_wrapper_cfg}
        self.base = OPTIM_WRAPPER_CONSTRUCTORS.build({**config, "paramwise_cfg": rules})

    def __call__(self, model: nn.Module) -> OptimWrapper:
        return self.base(with_teacher_in_head(getattr(model, "module", model)))


def with_teacher_in_head(model: nn.Module) -> nn.Module:
    """Return a view of a model, with its parameters, in which its self-teacher is named as a part of the head."""
    head = next((name for name in ("decode_head", "bbox_head") if name in model._modules), None)
    teacher = model._modules.get("self_teacher")
    if head is None or teacher is None:
        return model
    inside = copy.copy(teacher)  # a rule for `neck` means the student's
    inside._modules = {"fusion" if name == "neck" else name: child for name, child in teacher._modules.items()}
    view = copy.copy(model)
    view._modules = {  # in the order of the model, which is that of the optimizer's state in a checkpoint
        f"{head}.self_teacher" if child is teacher else name: inside if child is teacher else child
        for name, child in model._modules.items()
    }
    return view
