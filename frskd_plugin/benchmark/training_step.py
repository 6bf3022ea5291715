"""One training step of a network that returns its loss: zero_grad, forward, backward, SGD."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from frskd_plugin.core.compiled_parts import CompiledParts

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StepSettings:
    """How a step is run. ``size`` and ``batch`` of None are the model's own; ``width`` is a classifier's teacher's.

    ``self_teacher`` are names and values that a segmentor's config is given for its self-teacher.
    """

    batch: int | None = None
    size: int | None = None
    device: str = "cpu"
    amp: str | None = None
    compile: bool = False
    channels_last: bool = False
    width: int | str = 2
    self_teacher: tuple[tuple[str, object], ...] = ()

    @property
    def memory_format(self) -> torch.memory_format:
        """Layout of images and weights."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


class TrainingStep:
    """Calls ``network(*inputs)``, which gives the scalar loss, and updates the network by SGD with momentum.

    The learning rate is tiny: the weights of a random network stay finite however many steps are timed. ``inputs`` may
    be replaced between the steps. With ``settings.compile`` the ``parts`` of the network are compiled, '' being all.
    """

    def __init__(
        self, network: nn.Module, inputs: tuple[object, ...], settings: StepSettings, parts: Sequence[str] = ("",)
    ) -> None:
        self.network = network.to(settings.device).to(memory_format=settings.memory_format).train()
        self.inputs = inputs
        self.device_type = torch.device(settings.device).type
        self.amp_dtype = AMP_DTYPES[settings.amp] if settings.amp else None
        self.optimizer = torch.optim.SGD(network.parameters(), lr=1e-5, momentum=0.9, weight_decay=1e-4)
        self.scaler = torch.amp.GradScaler(self.device_type, enabled=settings.amp == "fp16")
        self._compiled = CompiledParts(network, parts if settings.compile else ())

    def loss(self, compiled: bool = True) -> Tensor:
        """The loss of the batch, with its graph."""
        autocast = torch.autocast(self.device_type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None)
        with autocast, nullcontext() if compiled else self._compiled.disabled():
            return self.network(*self.inputs)

    def __call__(self) -> None:
        """One step."""
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(self.loss()).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
