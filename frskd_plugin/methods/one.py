"""ONE, on-the-fly native ensemble (Lan et al., 2018): branches of the last stage learn from their gated ensemble."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from frskd_plugin.core.checks import check_not_negative, check_positive_int
from frskd_plugin.core.schedule import scheduled_weight, sigmoid_rampup, weighted
from frskd_plugin.core.soft_label import SoftLabelLoss
from frskd_plugin.methods.base import Criterion, Method, StudentForward, StudentInfo
from frskd_plugin.methods.last_stage import draw_anew, find_last_stage, run_branch, watch_input
from frskd_plugin.methods.targets import choose_soft_label

PROBE_BATCH = 2


class Gate(nn.Module):
    """Weights of the branches: average pooling, linear, batch norm, ReLU, softmax.

    Args:
        in_channels: channels of the shared map.
        num_branches: number of branches M.
    """

    def __init__(self, in_channels: int, num_branches: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, num_branches, bias=False)
        self.norm = nn.BatchNorm1d(num_branches)

    def forward(self, shared: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, M], rows sum to 1."""
        return self.norm(self.linear(shared.mean(dim=(2, 3)))).relu().softmax(dim=1)


def ensemble_logits(gates: Tensor, branch_logits: Tensor) -> Tensor:
    """``z_e = sum_i g_i z_i``.

    Args:
        gates: [B, M].
        branch_logits: [B, M, K].

    >>> import torch
    >>> ensemble_logits(torch.tensor([[0.25, 0.75]]), torch.tensor([[[4.0], [8.0]]])).tolist()
    [[7.0]]
    """
    return (gates.unsqueeze(2) * branch_logits).sum(dim=1)


class ONE(Method):
    """``sum_i CE(z_i) + CE(z_e) + w(t) sum_i T^2 KL(sg p_e || p_i)`` over branches of the last stage.

    Branch 1 is the student itself, whose whole pass is run once; the others are copies of all that follows the last map
    of the second lowest resolution, classifier included, drawn anew (`draw_anew`). The weight is
    ``exp(-5 (1 - t / R)^2)`` in epoch t and 1 from epoch R on.

    Args:
        student: the network to train: a CNN whose last stage can be copied (`find_last_stage`).
        num_branches: branches, the student among them.
        temperature: T.
        weight: multiplies w(t).
        rampup_epochs: R.
        soft_label: 'softmax', 'sigmoid' (one logit, multi-label), or 'auto' by the criterion, see `choose_soft_label`.

    Raises:
        TypeError: for arguments of the wrong type.
        ValueError: for arguments out of range, or a network whose last stage cannot be copied.
    """

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
        self._weight_now = scheduled_weight(0.0)
        self.set_progress(*self.progress)
        parameter = next(p for p in student.module.parameters() if p.is_floating_point())
        images = torch.randn(PROBE_BATCH, *student.input_size, generator=torch.Generator().manual_seed(0))
        stage = find_last_stage(student.module, images.to(parameter.device, parameter.dtype))
        self.last_stage = stage.name
        # The one module of the student that is kept, to read its input. A tuple hides it from nn.Module, and copies and
        # pickles of the whole model keep it the very module of their own student.
        self._stage = (student.module.get_submodule(stage.name),)
        self.branches = nn.ModuleList(draw_anew(copy.deepcopy(stage.branch)) for _ in range(num_branches - 1))
        self.gate = Gate(stage.channels, num_branches)

    def extra_repr(self) -> str:
        """What the branches are copies of."""
        return f"last_stage={self.last_stage!r}, num_branches={len(self.branches) + 1}"

    def set_progress(self, epoch: float, max_epochs: float) -> None:
        """See `Method.set_progress`."""
        super().set_progress(epoch, max_epochs)
        self._weight_now.fill_(self.weight * sigmoid_rampup(self.progress[0], self.rampup_epochs))

    def forward(
        self, student: StudentForward, images: Tensor, targets: Tensor, criterion: Criterion
    ) -> dict[str, Tensor]:
        """``loss_ce, loss_branch_ce, loss_ensemble_ce`` and the weighted ``loss_kd``; ``output``, ``teacher_output``.

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
            "loss_kd": weighted(soft, self._weight_now),
            "output": logits,
            "teacher_output": ensemble,
        }

    def evaluate(self, student: StudentForward, images: Tensor) -> tuple[Tensor, Tensor]:
        """See `Method.evaluate`; the teacher is the ensemble."""
        every, ensemble = self._run(student, images)
        return every[0], ensemble

    def _run(self, student: StudentForward, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Logits of each branch, the student's first, and of the ensemble."""
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
