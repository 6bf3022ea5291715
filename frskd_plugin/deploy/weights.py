"""Loads the student's weights, and says what does not fit."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from frskd_plugin.timm.checkpoint import read_weights


def student_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the plain network's weights, under its own names, see `read_weights`."""
    return read_weights(path)[0]


def load_strictly(network: nn.Module, weights: dict[str, Tensor], name: str | Path) -> None:
    """Load, and say in one line what does not fit.

    Raises:
        ValueError: a weight is missing, unknown or of another shape.
    """
    try:
        missing, unknown = network.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # of shapes; its first line names the class alone
        raise ValueError(f"{name} does not fit the network: {str(error).splitlines()[-1].strip()}") from error
    if missing or unknown:
        examples = [*missing, *unknown]
        raise ValueError(
            f"{name} does not fit the network: {len(missing)} weights are missing and {len(unknown)} are unknown "
            f"({', '.join(examples[:3])}{', ...' if len(examples) > 3 else ''}). Give the config or model that the "
            "file was trained with."
        )
