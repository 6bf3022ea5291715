"""What a training step costs apart from time: multiply-accumulates and memory."""

from __future__ import annotations

import torch

from frskd_plugin.benchmark.training_step import TrainingStep
from frskd_plugin.core.forward_cost import ForwardCost, count_forward

MEMORY_MEANING = {
    "cuda": "peak of torch.cuda.max_memory_allocated during a step, above what lay on the GPU before it",
    "cpu": "bytes of the tensors that the forward pass keeps for the backward pass, weights not counted",
}


def forward_macs(step: TrainingStep, batch: int) -> int:
    """Multiply-accumulates of convolutions and matrix products of one forward pass, per image."""
    return _forward_cost(step).macs // batch


def step_memory(step: TrainingStep) -> int:
    """Bytes that a step needs beyond weights and optimizer; `MEMORY_MEANING` says what is counted on which device."""
    if step.device_type == "cuda":
        return _cuda_peak(step)
    return _forward_cost(step).kept


def _cuda_peak(step: TrainingStep) -> int:
    step()  # momentum buffers exist now
    step.optimizer.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _forward_cost(step: TrainingStep) -> ForwardCost:
    with count_forward(step.network) as cost:
        loss = step.loss(compiled=False)  # the graph must live until everything is counted
    del loss
    return cost
