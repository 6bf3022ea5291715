"""Takes the plain timm network out of a classifier's checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.config import Config
from timm.models import model_entrypoint
from torch import Tensor

from frskd_plugin.mmengine.classifier import STUDENT_PREFIX
from frskd_plugin.mmengine.resume import load_checkpoint

# What `wrap` returns calls its parts so, in a checkpoint that timm's CheckpointSaver wrote of it.
_WRAPPED = ("student.", "method.", "criterion.")


def classifier_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The plain network's weights under timm's names; empty where the checkpoint is not of a classifier's training."""
    weights = checkpoint["state_dict"]
    prefix = _WRAPPED[0] if all(key.startswith(_WRAPPED) for key in weights) else STUDENT_PREFIX
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def create_call(source: str | Path, target: str | Path) -> str:
    """The Python that builds the network of checkpoint `source` with the weights that were exported to `target`."""
    meta = load_checkpoint(source).get("meta") or {}
    if not isinstance(meta.get("cfg"), str):  # timm's own checkpoint
        return f"import timm; timm.create_model(..., checkpoint_path={str(target)!r})"
    config = Config.fromstring(meta["cfg"], file_format=".py")
    kwargs = {key: value for key, value in config.model.student.items() if key not in ("pretrained", "checkpoint_path")}
    name = kwargs.pop("model_name")
    settings = "".join(f", {key}={value!r}" for key, value in kwargs.items())
    # a network of this package has to be registered first
    ours = model_entrypoint(name).__module__.startswith("frskd_plugin.")
    imports = "import timm, frskd_plugin.timm" if ours else "import timm"
    return f"{imports}; timm.create_model({name!r}{settings}, checkpoint_path={str(target)!r})"
