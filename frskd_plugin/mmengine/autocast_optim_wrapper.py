"""Mixed precision without loss scaling, also on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from torch import nn

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class AutocastOptimWrapper(OptimWrapper):
    """An `OptimWrapper` whose forward passes run under `torch.autocast`.

    For bfloat16, which needs no loss scaling, on any device; mmengine's `AmpOptimWrapper` refuses to run on the CPU.
    On CUDA with float16 take mmengine's `AmpOptimWrapper`: it scales the loss.

    Args:
        dtype: 'bfloat16', or the `torch.dtype`.
        device_type: 'cpu', 'cuda', ...; None is the device on which mmengine trains.
        kwargs: further arguments of `OptimWrapper`.

    Raises:
        ValueError: another dtype; float16 needs the loss scaled.
    """

    def __init__(self, dtype: str | torch.dtype = "bfloat16", device_type: str | None = None, **kwargs: Any) -> None:
        resolved = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
        if resolved is torch.float16:
            raise ValueError(
                "AutocastOptimWrapper does not scale the loss, so float16 gradients would vanish; "
                "use dtype='bfloat16', or type='AmpOptimWrapper' for float16 on CUDA"
            )
        if resolved is not torch.bfloat16:
            raise ValueError(f"AutocastOptimWrapper: dtype must be 'bfloat16' or torch.bfloat16, got {dtype!r}")
        super().__init__(**kwargs)
        self.dtype = resolved
        self.device_type = torch.device(device_type or get_device()).type

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), torch.autocast(self.device_type, dtype=self.dtype):
            yield
