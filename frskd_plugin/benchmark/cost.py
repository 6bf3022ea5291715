"""What a training step costs apart from time: multiply-accumulates and memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from frskd_plugin.benchmark.training_step import TrainingStep

MEMORY_MEANING = {
    "cuda": "peak of torch.cuda.max_memory_allocated during a step, above what lay on the GPU before it",
    "cpu": "bytes of the tensors that the forward pass keeps for the backward pass, weights not counted",
}


def forward_macs(step: TrainingStep, batch: int) -> int:
    """Multiply-accumulates of convolutions and matrix products of one forward pass, per image."""
    with FlopCounterMode(display=False) as counter:
        step.loss(compiled=False)
    return counter.get_total_flops() // 2 // batch


def step_memory(step: TrainingStep) -> int:
    """Bytes that a step needs beyond weights and optimizer; `MEMORY_MEANING` says what is counted on which device."""
    if step.device_type == "cuda":
        return _cuda_peak(step)
    return _kept_for_backward(step)


def _cuda_peak(step: TrainingStep) -> int:
    step()  # momentum buffers exist now
    step.optimizer.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _kept_for_backward(step: TrainingStep) -> int:
    own = {p.untyped_storage().data_ptr() for p in step.network.parameters()}
    own |= {b.untyped_storage().data_ptr() for b in step.network.buffers()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = step.loss(compiled=False)  # the graph must live until everything is counted
    total = sum(kept.values())
    del loss
    return total
