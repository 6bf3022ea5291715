"""Takes the plain student out of a checkpoint trained with FRSKD, with the config that loads it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from frskd_plugin.core.atomic_write import atomic_write
from frskd_plugin.mmengine.export_classifier import classifier_weights
from frskd_plugin.mmengine.registration import COMPONENTS
from frskd_plugin.mmengine.resume import load_checkpoint

TEACHER_PREFIX = "self_teacher."
# Hooks that exist for the method or for the training run, and mean nothing to the plain student.
_METHOD_HOOKS = {
    "DistillWarmupHook",
    "SelfTeacherValidationHook",
    "AttentionPictureHook",
    "StepSeedHook",
    "CompileHook",
    "ChannelsLastHook",
    "SyncStatisticsHook",
}
# First line of a config that was written here, and so may be written again.
_MARK = "# Written by frskd_plugin beside the student's weights.\n"
_STOCK_TYPES = {
    "FRSKDEncoderDecoder": "EncoderDecoder",
    "FRSKDSingleStage": "SingleStageDetector",
    "FRSKDCascadeEncoderDecoder": "CascadeEncoderDecoder",
    "SelfTeacherIoUMetric": "IoUMetric",
    "AtomicCheckpointHook": "CheckpointHook",
    "SeededSampler": "DefaultSampler",
    "SeededInfiniteSampler": "InfiniteSampler",
    "LoadCheckedImage": "LoadImageFromFile",
    "LoadCheckedAnnotations": "LoadAnnotations",
    "AutocastOptimWrapper": "OptimWrapper",
}
# Settings that the stock type does not know.
_EXTRA_SETTINGS = {
    "LoadCheckedAnnotations": ("num_classes", "ignore_index"),
    "AutocastOptimWrapper": ("dtype", "device_type"),
}


def export_student(source: str | Path, target: str | Path) -> tuple[Path, Path | None]:
    """Write the plain student of checkpoint `source` to `target`, without self-teacher, optimizer and logs.

    Of a segmentor it is a checkpoint that loads with `strict=True` into the plain config, which goes beside it
    (`target` with `.py`). Of a classifier it is timm's own state_dict. Nothing of `source` changes.

    Returns:
        The paths of the written file and of the config; None in its place for a classifier.

    Raises:
        FileNotFoundError: `source` is missing.
        ValueError: `source` is neither of a classifier nor of FRSKD, or `target` is the same file or has another suffix
            than `.pth`, or a config of the user's stands beside it, which would be lost.
    """
    source, target = Path(source), Path(target)
    if target.suffix != ".pth":
        raise ValueError(f"the exported checkpoint must be a .pth file, got {target}")
    if target.resolve() == source.resolve():
        raise ValueError(f"export would overwrite its own input {source}; give another output file")
    checkpoint = load_checkpoint(source)
    weights = classifier_weights(checkpoint)
    if weights:
        _save(weights, target)
        return target, None
    student, config = student_checkpoint(checkpoint, str(source))
    config_path = target.with_suffix(".py")
    if config_path.exists() and not config_path.read_text().startswith(_MARK):
        raise ValueError(
            f"export writes the config of {target} to {config_path}, which exists and was not written by an export; "
            f"give another output file, or move that config"
        )
    atomic_write(config_path, (_MARK + config.pretty_text).encode())
    _save(student, target)
    return target, config_path


def _save(content: dict[str, Any], target: Path) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    atomic_write(target, buffer.getvalue())


def student_checkpoint(checkpoint: dict[str, Any], name: str = "the checkpoint") -> tuple[dict[str, Any], Config]:
    """The student's checkpoint (`state_dict` and `meta`) and plain config from a loaded FRSKD checkpoint.

    Raises:
        ValueError: it has no weights of a self-teacher, or does not hold its config.
    """
    weights, meta = checkpoint["state_dict"], checkpoint.get("meta") or {}
    if not any(key.startswith(TEACHER_PREFIX) for key in weights):
        raise ValueError(
            f"{name} is not an FRSKD checkpoint: it has no weights under '{TEACHER_PREFIX}'. Expected an epoch_*.pth "
            f"or best_*.pth of a run with an FRSKD config; the checkpoint of a plain model needs no export"
        )
    if not isinstance(meta.get("cfg"), str):
        raise ValueError(
            f"{name} does not hold the config it was trained with (meta['cfg']); expected a checkpoint written by "
            f"tools/train.py"
        )
    config = plain_config(Config.fromstring(meta["cfg"], file_format=".py"))
    student_meta = {key: value for key, value in meta.items() if key != "cfg"}
    student = {
        "meta": {**student_meta, "cfg": config.pretty_text},
        "state_dict": {key: value for key, value in weights.items() if not key.startswith(TEACHER_PREFIX)},
    }
    return student, config


def plain_config(config: Config) -> Config:
    """The config of the plain student: no method, no hooks of it, and stock components wherever there are such.

    What only this package has (a BiFPN, a timm backbone, a data set) stays, and then so does its `custom_imports`.
    """
    plain: dict[str, Any] = _stock(config.to_dict())
    plain["model"].pop("self_teacher", None)
    plain["load_from"], plain["resume"] = None, False
    # those of the run: another training must not go into its folder, nor ask for its launcher
    plain.pop("work_dir", None)
    plain["launcher"] = "none"
    if (plain.get("model_wrapper_cfg") or {}).get("type") == "SyncBNDataParallel":
        del plain["model_wrapper_cfg"]
    plain["custom_hooks"] = [hook for hook in plain.get("custom_hooks") or [] if hook.get("type") not in _METHOD_HOOKS]
    # What only the self-teacher read gets no gradient in the plain model: DDP has to be told.
    plain["find_unused_parameters"] = True
    if not _any_dict(plain, lambda item: item.get("type") in _own_types()):
        _drop_custom_import(plain)
    return Config(plain)


def _stock(value: Any) -> Any:
    """A copy of a config in which our types are replaced by the stock ones that they extend."""
    if isinstance(value, (list, tuple)):
        return type(value)(_stock(item) for item in value)
    if not isinstance(value, dict):
        return value
    kind = value.get("type")
    if kind == "SeededDataset":
        return _stock(value["dataset"])
    settings = {key: _stock(item) for key, item in value.items() if key not in _EXTRA_SETTINGS.get(str(kind), ())}
    if kind == "TimmFeatureExtractor":
        settings.update(pretrained=False)  # the weights are in the exported file
        settings.pop("checkpoint", None)
    if kind in _STOCK_TYPES:
        settings["type"] = _STOCK_TYPES[kind]
    return settings


def _own_types() -> set[str]:
    return {name for components in COMPONENTS.values() for name in components}


def _any_dict(value: Any, test: Callable[[dict[str, Any]], bool]) -> bool:
    """Whether `test` holds for a dict at any depth."""
    if isinstance(value, dict):
        return test(value) or any(_any_dict(item, test) for item in value.values())
    return isinstance(value, (list, tuple)) and any(_any_dict(item, test) for item in value)


def _drop_custom_import(config: dict[str, Any]) -> None:
    imports = config.get("custom_imports")
    if not imports:
        return
    names = imports["imports"]
    names = [name for name in ([names] if isinstance(names, str) else names) if name.split(".")[0] != "frskd_plugin"]
    if names:
        imports["imports"] = names
    else:
        del config["custom_imports"]
