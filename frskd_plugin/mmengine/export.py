"""Take the plain student out of a checkpoint trained with FRSKD, with the config that loads it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from timm.models import is_model, model_entrypoint

from frskd_plugin.core.atomic_write import atomic_write
from frskd_plugin.core.checkpoint_file import read_checkpoint
from frskd_plugin.mmengine.config_tools import dicts
from frskd_plugin.mmengine.registration import COMPONENTS
from frskd_plugin.mmengine.stored_config import stored_config, stored_text
from frskd_plugin.timm.checkpoint import read_weights, weights_of

TEACHER_PREFIX = "self_teacher."
_SEGMENTOR = ("backbone.", "decode_head.", "bbox_head.", "neck.")  # or detector
# First line of a config that was written here, and so may be written again.
_MARK = "# Written by frskd_plugin beside the student's weights.\n"
# Our types and the stock ones that they extend; None for what exists for the method or for the training run.
_STOCK_TYPES: dict[str, str | None] = {
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
    **dict.fromkeys(("DistillWarmupHook", "SelfTeacherValidationHook", "AttentionPictureHook", "StepSeedHook")),
    **dict.fromkeys(("FiniteLossHook", "CompileHook", "ChannelsLastHook", "SyncStatisticsHook", "SyncBNDataParallel")),
}
# Settings that the stock type does not know.
_EXTRA_SETTINGS = {
    "LoadCheckedAnnotations": ("num_classes", "ignore_index"),
    "AutocastOptimWrapper": ("dtype", "device_type"),
    "TimmFeatureExtractor": ("checkpoint",),
}


class ExportedStudent(NamedTuple):
    """Files that `export_student` wrote."""

    path: Path  # with the weights
    config: Path | None  # the plain config of a segmentor
    entry: str  # where in the training checkpoint the weights were
    create: str | None = None  # the Python that builds a classifier with the weights


def export_student(source: str | Path, target: str | Path, allow_imports: bool = False) -> ExportedStudent:
    """Write the plain student of checkpoint `source` to `target`, without self-teacher, optimizer and logs.

    Of a segmentor it is a checkpoint that loads with `strict=True` into the plain config, which goes beside it
    (`target` with `.py`). Of a classifier it is timm's own state_dict.

    Args:
        source: any file that `read_weights` takes.
        target: the `.pth` file to write.
        allow_imports: trust the config in the checkpoint, see `stored_config`.

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
    is_pickle = source.suffix != ".safetensors"
    checkpoint = read_checkpoint(source) if is_pickle else {}
    weights, entry = weights_of(checkpoint, source) if is_pickle else read_weights(source)
    if not any(key.startswith(_SEGMENTOR) for key in weights):
        create = _create_call(checkpoint, str(source), target, allow_imports)
        _save(weights, target)
        return ExportedStudent(target, None, entry, create)
    student, config = student_checkpoint(checkpoint, str(source), allow_imports)
    config_path = target.with_suffix(".py")
    if config_path.exists() and not (config_path.is_file() and config_path.read_bytes().startswith(_MARK.encode())):
        raise ValueError(
            f"export writes the config of {target} to {config_path}, which exists and was not written by an export; "
            f"give another output file, or move that config"
        )
    atomic_write(config_path, (_MARK + config.pretty_text).encode())
    _save(student, target)
    return ExportedStudent(target, config_path, entry)


def _create_call(checkpoint: dict[str, Any], source: str, target: Path, allow_imports: bool) -> str:
    """Return the Python that builds the network of a classifier's checkpoint with the exported weights."""
    if stored_text(checkpoint, source) is None:  # timm's or Lightning's own checkpoint
        return f"import timm; timm.create_model(..., checkpoint_path={str(target)!r})"
    student = stored_config(checkpoint, source, allow_imports).model.get("student")
    student = student if isinstance(student, dict) else {}
    name = str(student.get("model_name"))
    if not all(str(key).isidentifier() for key in student) or not is_model(name.split(".")[0]):
        raise ValueError(
            f"{source}: the config in it (meta['cfg']) has no model.student.model_name that timm knows; expected a "
            f"checkpoint of a TimmClassifier, written by tools/train.py"
        )
    given = ("model_name", "pretrained", "checkpoint_path")
    settings = "".join(f", {key}={value!r}" for key, value in student.items() if key not in given)
    # a network of this package has to be registered first
    ours = model_entrypoint(name).__module__.startswith("frskd_plugin.")
    imports = "import timm, frskd_plugin.timm" if ours else "import timm"
    return f"{imports}; timm.create_model({name!r}{settings}, checkpoint_path={str(target)!r})"


def _save(content: dict[str, Any], target: Path) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    atomic_write(target, buffer.getvalue())


def student_checkpoint(
    checkpoint: dict[str, Any], name: str = "the checkpoint", allow_imports: bool = False
) -> tuple[dict[str, Any], Config]:
    """Return the student's checkpoint (`state_dict` and `meta`) and plain config from a loaded FRSKD checkpoint."""
    weights = checkpoint.get("state_dict", checkpoint)
    if not any(key.startswith(TEACHER_PREFIX) for key in weights):
        raise ValueError(
            f"{name} is not an FRSKD checkpoint: it has no weights under '{TEACHER_PREFIX}'. Expected an epoch_*.pth "
            f"or best_*.pth of a run with an FRSKD config; the checkpoint of a plain model needs no export"
        )
    config, meta = plain_config(stored_config(checkpoint, name, allow_imports)), checkpoint["meta"]
    student = {
        "meta": {**meta, "cfg": config.pretty_text},
        "state_dict": {key: value for key, value in weights.items() if not key.startswith(TEACHER_PREFIX)},
    }
    return student, config


def plain_config(config: Config) -> Config:
    """Return the config of the plain student: no method, no hooks of it, and stock components wherever there are such.

    What only this package has (a BiFPN, a timm backbone, a data set) stays, and then so does its `custom_imports`.
    """
    plain: dict[str, Any] = _stock(config.to_dict())
    plain["model"].pop("self_teacher", None)
    plain["load_from"], plain["resume"] = None, False
    # those of the run: another training must not go into its folder, nor ask for its launcher
    plain.pop("work_dir", None)
    plain["launcher"] = "none"
    for key, empty in (("custom_hooks", []), ("default_hooks", {})):
        plain[key] = plain.get(key) or empty
    # What only the self-teacher read gets no gradient in the plain model: DDP has to be told.
    plain["find_unused_parameters"] = True
    own = {name for components in COMPONENTS.values() for name in components}
    imports = plain.get("custom_imports")
    if imports and not own.intersection(str(part.get("type")) for part, _ in dicts(plain)):
        names = [imports["imports"]] if isinstance(imports["imports"], str) else imports["imports"]
        imports["imports"] = [name for name in names if name.split(".")[0] != "frskd_plugin"]
        if not imports["imports"]:
            del plain["custom_imports"]
    return Config(plain)


def _stock(value: Any) -> Any:
    """Return a copy of a config with stock types in the place of ours, and without what has none."""
    if isinstance(value, (list, tuple)):
        return type(value)(_stock(item) for item in value if not _is_dropped(item))
    if not isinstance(value, dict):
        return value
    kind = value.get("type")
    if kind == "SeededDataset":
        return _stock(value["dataset"])
    extra = _EXTRA_SETTINGS.get(str(kind), ())
    settings = {key: _stock(item) for key, item in value.items() if key not in extra and not _is_dropped(item)}
    if kind == "TimmFeatureExtractor":
        settings["pretrained"] = False  # the weights are in the exported file
    if kind in _STOCK_TYPES:
        settings["type"] = _STOCK_TYPES[kind]
    return settings


def _is_dropped(item: Any) -> bool:
    return isinstance(item, dict) and _STOCK_TYPES.get(str(item.get("type")), "") is None
