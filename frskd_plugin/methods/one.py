"""ONE, on-the-fly native ensemble (Lan et al., 2018): branches of the last stage learn from their gated ensemble."""

from __future__ import annotations

import copy
import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from frskd_plugin.core.checks import check_not_negative, check_positive_int
from frskd_plugin.core.dry_run import evaluating, probe_images
from frskd_plugin.core.schedule import ScheduledWeight, sigmoid_rampup
from frskd_plugin.core.soft_label import SoftLabelLoss, finite_logits
from frskd_plugin.methods.base import Criterion, Method, StudentForward, StudentInfo, Terms
from frskd_plugin.methods.targets import choose_soft_label

TOLERANCE = 1e-4


def find_last_stage(network: nn.Module, images: Tensor) -> tuple[str, int, nn.Module]:
    """Cut a timm CNN before the first module at its lowest resolution; the network stays as it is.

    Returns:
        The name of that module, the channels of the map that it takes, and a copy of the network, with its weights,
        that takes this map instead of images (`run_branch`): everything that ran before is an identity there. The
        images are used to try that it gives the network's own logits.

    Raises:
        ValueError: the last maps are no images, all have one size, or no cut gives equal logits; by name, with reason.
    """
    reasons = []
    with torch.no_grad():
        calls, last, logits = _record(copy.deepcopy(network).eval(), images)
        if last.ndim != 4:
            reasons = [f"its last map is {list(last.shape)} and not [B, C, H, W]"]
        for call in _candidates(calls, last.shape[2:]) if last.ndim == 4 else []:
            branch = copy.deepcopy(network)
            _cut(branch, calls, call)
            reason = _difference(branch, call.given, logits)
            if reason is None:
                return call.name, call.given.shape[1], branch
            reasons.append(f"a copy gives other logits when it begins at {call.name}: {reason}")
    told = "; ".join(reasons[:3]) or "no module of it halves the size of a map [B, C, H, W] for the last time"
    raise ValueError(
        f"{type(network).__name__} has no last stage that can be copied: {told}. Use another method, or a CNN "
        "such as a ResNet."
    )


@dataclass
class _Call:
    """One run of a module: when it began and ended, the map that it was given and the size of the one that it gave."""

    name: str
    begin: int
    given: Any
    end: int = -1
    size: torch.Size | None = None


def _record(network: nn.Module, images: Tensor) -> tuple[list[_Call], Tensor, Tensor]:
    """Return every run of every module, in the order of their beginning, the last map and the logits."""
    calls: list[_Call] = []
    open_calls: list[_Call] = []
    clock = itertools.count()

    def begin(name: str, args: tuple[object, ...]) -> None:
        is_map = len(args) == 1 and isinstance(args[0], Tensor) and args[0].ndim == 4
        # a copy, for an in-place module may change the map later
        open_calls.append(_Call(name, next(clock), args[0].clone() if is_map else None))  # type: ignore[attr-defined]
        calls.append(open_calls[-1])

    def end(module: nn.Module, args: tuple[object, ...], output: object) -> None:
        call = open_calls.pop()
        call.end = next(clock)
        call.size = output.shape[2:] if isinstance(output, Tensor) and output.ndim == 4 else None

    for name, module in network.named_modules():
        if name:
            module.register_forward_pre_hook(lambda _, args, name=name: begin(name, args))
            module.register_forward_hook(end)
    last, _ = network.forward_intermediates(images, output_fmt="NCHW")
    return calls, last, network.forward_head(last)


def _candidates(calls: Sequence[_Call], final: torch.Size) -> list[_Call]:
    """Return the calls that make the lowest resolution of the one before it, outermost and earliest first."""
    area = {id(call): call.given[0, 0].numel() for call in calls if call.given is not None and call.size == final}
    least = min((n for n in area.values() if n > final.numel()), default=0)
    names = [call.name for call in calls]
    return [call for call in calls if area.get(id(call)) == least and names.count(call.name) == 1]


def _cut(branch: nn.Module, calls: Sequence[_Call], stage: _Call) -> None:
    """Put identities in the place of all that ran before the stage."""
    before = {call.name for call in calls} - {call.name for call in calls if call.end > stage.begin}
    for name in before:
        parents = [name[:i] for i, letter in enumerate(name) if letter == "."]
        if not before.intersection(parents):
            branch.set_submodule(name, nn.Identity())


def _difference(branch: nn.Module, shared: Tensor, logits: Tensor) -> str | None:
    """Describe what is wrong with a branch's logits; None where they are the network's."""
    try:
        with evaluating(branch):
            found = run_branch(branch, shared)
    except Exception as error:  # whatever a model raises when an identity stands where it expects a layer
        return f"{type(error).__name__}: {error}"
    if found.shape != logits.shape or not torch.allclose(found, logits, rtol=TOLERANCE, atol=TOLERANCE):
        return "the logits differ"
    return None


def run_branch(branch: nn.Module, shared: Tensor) -> Tensor:
    """Return the logits [B, K] of the shared map [B, C, H, W]."""
    return branch.forward_head(branch.forward_features(shared))


@torch.no_grad()
def reinitialise(module: nn.Module) -> nn.Module:
    """Give a copy weights of its own: each tensor's values in a random order, running statistics as at the start.

    Timm's models have no common function that initialises them. Their initial values are, tensor by tensor, independent
    draws from one distribution or all alike, so another order is another draw of the same initialisation, whatever it
    is; of a pretrained network it keeps the scale of the weights.
    """
    for parameter in module.parameters():
        values = parameter.flatten()
        order = torch.randperm(values.numel(), device="cpu").to(values.device)
        parameter.copy_(values[order].view_as(parameter))
    for part in module.modules():
        if hasattr(part, "reset_running_stats"):
            part.reset_running_stats()
    return module


@contextmanager
def watch_input(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what a module is given during the block; nothing of the module remains changed."""
    given: list[Tensor] = []
    before = module._forward_pre_hooks
    # not `register_forward_pre_hook`, whose handle torch.compile cannot trace; torch's own keys count from 0
    module._forward_pre_hooks = OrderedDict(before)
    # an in-place module must not change what the branches read
    module._forward_pre_hooks[-1] = lambda _, args: given.append(args[0].clone())
    try:
        yield given
    finally:
        module._forward_pre_hooks = before or OrderedDict()  # traced code makes a plain dict of an empty one


class Gate(nn.Module):
    """Weights of the branches: average pooling, linear, batch norm, ReLU, softmax."""

    def __init__(self, in_channels: int, num_branches: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, num_branches, bias=False)
        self.norm = nn.BatchNorm1d(num_branches)

    def forward(self, shared: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, M], rows sum to 1."""
        return self.norm(self.linear(shared.mean(dim=(2, 3)))).relu().softmax(dim=1)


def ensemble_logits(gates: Tensor, branch_logits: Tensor) -> Tensor:
    """``z_e = sum_i g_i z_i`` of gates [B, M] and the branches' logits [B, M, K]."""
    return (gates.unsqueeze(2) * finite_logits(branch_logits)).sum(dim=1)


class ONE(Method):
    """``sum_i CE(z_i) + CE(z_e) + w(t) sum_i T^2 KL(sg p_e || p_i)`` over branches of the last stage.

    Branch 1 is the student itself, whose whole pass is run once; the others are copies of all that follows the last map
    of the second lowest resolution, classifier included, reinitialised (`reinitialise`). The weight is
    ``exp(-5 (1 - t / R)^2)`` in epoch t and 1 from epoch R on.

    Args:
        student: the network to train: a CNN whose last stage can be copied (`find_last_stage`).
        num_branches: branches, the student among them.
        temperature: T.
        weight: multiplies w(t).
        rampup_epochs: R.
        soft_label: see `choose_soft_label`.

    Raises:
        ValueError: a network whose last stage cannot be copied.
    """

    capturable = True

    def __init__(
        self,
        student: StudentInfo,
        num_branches: int = 3,
        temperature: float = 3.0,
        weight: float = 1.0,
        rampup_epochs: float = 80,
        soft_label: str = "auto",
    ) -> None:
        super().__init__(student)
        check_positive_int("num_branches", num_branches, least=2)
        self.soft_label_loss = SoftLabelLoss(temperature, soft_label=choose_soft_label(soft_label, student))
        self.weight = check_not_negative("weight", weight)
        if not rampup_epochs >= 0:
            raise ValueError(f"`rampup_epochs` counts epochs from 0, got {rampup_epochs}.")
        self.rampup_epochs = float(rampup_epochs)
        self._weight_now = ScheduledWeight(0.0)
        self.set_progress(*self.progress)
        images = probe_images(student.module, student.input_size)
        self.last_stage, channels, branch = find_last_stage(student.module, images)
        # The one module of the student that is kept, to read its input. A tuple hides it from nn.Module, and copies and
        # pickles of the whole model keep it the very module of their own student.
        self._stage = (student.module.get_submodule(self.last_stage),)
        self.branches = nn.ModuleList(reinitialise(copy.deepcopy(branch)) for _ in range(num_branches - 1))
        self.gate = Gate(channels, num_branches)

    def extra_repr(self) -> str:
        return f"last_stage={self.last_stage!r}, num_branches={len(self.branches) + 1}"

    def set_progress(self, epoch: float, max_epochs: float) -> None:
        super().set_progress(epoch, max_epochs)
        self._weight_now.set(self.weight * sigmoid_rampup(self.progress[0], self.rampup_epochs))

    def forward(self, student: StudentForward, images: Tensor, targets: Tensor, criterion: Criterion) -> Terms:
        """Return ``loss_ce, loss_branch_ce, loss_ensemble_ce, loss_kd``; ``teacher_output`` is the ensemble's.

        Raises:
            RuntimeError: the student no longer runs the stage that the method was built on.
        """
        every, ensemble = self._run(student, images)
        logits = every[0]
        soft = torch.stack([self.soft_label_loss(z, ensemble) for z in every]).sum()
        return {
            "loss_ce": criterion(logits, targets),
            "loss_branch_ce": torch.stack([criterion(z, targets) for z in every[1:]]).sum(),
            "loss_ensemble_ce": criterion(ensemble, targets),
            "loss_kd": self._weight_now(soft),
            "output": logits,
            "teacher_output": ensemble,
        }

    def evaluate(self, student: StudentForward, images: Tensor) -> tuple[Tensor, Tensor]:
        every, ensemble = self._run(student, images)
        return every[0], ensemble

    def _run(self, student: StudentForward, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the logits of each branch, the student's first, and of the ensemble."""
        with watch_input(self._stage[0]) as given:
            _, logits = student(images)
        if len(given) != 1:
            raise RuntimeError(
                f"ONE reads what goes into {self.last_stage!r}, which ran {len(given)} times: wrap the network again "
                "after a change to it."
            )
        (shared,) = given
        every = [logits, *(run_branch(branch, shared) for branch in self.branches)]
        return every, ensemble_logits(self.gate(shared), torch.stack(every, dim=1))
