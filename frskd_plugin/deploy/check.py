"""What a written file must fulfil: it computes what torch computes, and holds nothing of the self-teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from frskd_plugin.deploy.formats import Runner

# Modules that exist for training alone: of a segmentor, of what `frskd_plugin.wrap` returns, of mmseg.
TRAINING_PARTS = ("self_teacher", "method", "auxiliary_head")
# A graph may hold constants of its own (a new shape, an index); a network's layers are larger.
SMALL_CONSTANT = 64


class CheckError(Exception):
    """A file that must not be used."""


def largest_difference(run: Runner, network: nn.Module, images: Tensor) -> float:
    """Largest absolute difference of the file's logits from torch's, as a share of torch's largest logit.

    Args:
        run: the file.
        network: it was made of.
        images: [B, C, H, W].

    Raises:
        CheckError: the file or the network does not run, or they give other shapes.
    """
    expected = _run(network, images, "the network itself")
    logits = _run(run, images, "the file")
    if logits.shape != expected.shape:
        raise CheckError(
            f"on images {list(images.shape)} the file gives {list(logits.shape)}, torch {list(expected.shape)}"
        )
    return ((logits - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()


def _run(run: Runner, images: Tensor, name: str) -> Tensor:
    try:
        with torch.no_grad():
            return run(images)
    except Exception as error:  # whatever a runtime or a network raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no text"
        raise CheckError(
            f"{name} does not run on images {list(images.shape)} ({type(error).__name__}: {reason}). If not every size "
            "is allowed: --dynamic N takes multiples of N, --dynamic batch a single size."
        ) from error


def check_difference(run: Runner, network: nn.Module, sizes: Sequence[Sequence[int]], tolerance: float) -> list[float]:
    """The largest difference on random images of each size [B, C, H, W].

    Raises:
        CheckError: one is above ``tolerance``, or not a number; and see `largest_difference`.
    """
    generator = torch.Generator().manual_seed(0)
    differences = []
    for size in sizes:
        difference = largest_difference(run, network, torch.rand(*size, generator=generator))
        if not difference <= tolerance:
            raise CheckError(
                f"on images {list(size)} the file's logits differ from torch's by {difference:.2e} of the largest "
                f"logit, more than the tolerance {tolerance:.0e}"
            )
        differences.append(difference)
    return differences


def check_only_student(tensors: Mapping[str, int], network: nn.Module) -> int:
    """Check that a file holds the student's tensors and no others; returns how many parameters it has.

    Args:
        tensors: name -> number of elements, of all tensors in the file.
        network: the plain student.

    Raises:
        CheckError: a tensor belongs to the training alone, is not the student's, or is of another size.

    >>> check_only_student({"weight": 6, "bias": 2}, nn.Linear(3, 2))
    8
    >>> check_only_student({"weight": 6, "bias": 2, "self_teacher.bias": 2}, nn.Linear(3, 2))
    Traceback (most recent call last):
    frskd_plugin.deploy.check.CheckError: the file holds 1 tensors of the training alone (self_teacher.bias)
    """
    foreign = [name for name in tensors if set(name.split(".")) & set(TRAINING_PARTS)]
    if foreign:
        raise CheckError(f"the file holds {len(foreign)} tensors of the training alone ({', '.join(foreign[:3])})")
    own = {name: tensor.numel() for name, tensor in [*network.named_parameters(), *network.named_buffers()]}
    unknown = [name for name, count in tensors.items() if name not in own and count > SMALL_CONSTANT]
    resized = [name for name, count in tensors.items() if own.get(name, count) != count]
    if unknown or resized:
        raise CheckError(
            f"the file holds {len(unknown)} tensors that the student does not have and {len(resized)} of another size "
            f"({', '.join([*unknown, *resized][:3])})"
        )
    parameters = {name for name, _ in network.named_parameters()}
    written = sum(count for name, count in tensors.items() if name in parameters)
    expected = sum(parameter.numel() for parameter in network.parameters())
    if written > expected:
        raise CheckError(f"the file holds {written} parameters, the student has {expected}")
    return written
