"""The student of the published step (reference sections 5 and 6) with the stored weights."""

from __future__ import annotations

import numpy as np
import torch

from frskd_plugin.timm.cifar_networks import WideResNetPublished


def published_state(step: dict[str, np.ndarray], prefix: str) -> dict[str, torch.Tensor]:
    """Arrays of the file under our names: only the running statistics are called differently."""
    state = {}
    for key, value in step.items():
        if key.startswith(prefix):
            name = key.removeprefix(prefix)
            for theirs, ours in ((".mean", ".running_mean"), (".var", ".running_var")):
                name = name.removesuffix(theirs) + ours if name.endswith(theirs) else name
            state[name] = torch.from_numpy(np.asarray(value)).double()
    return state


def published_student(step: dict[str, np.ndarray], dtype: torch.dtype) -> WideResNetPublished:
    """WRN-10-1 with the weights and statistics of ``frskd_step.npz``; every array and every tensor is used."""
    student = WideResNetPublished(depth=10, k=1, num_classes=10)
    state = published_state(step, "student.")
    expected = {key for key in student.state_dict() if not key.endswith("num_batches_tracked")}
    assert set(state) == expected
    student.load_state_dict(state, strict=False)
    return student.to(dtype)
