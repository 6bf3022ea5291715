"""The families of models inside mmsegmentation, a config of each, and that config for tiny images on a CPU."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmseg
from mmengine.config import Config

from frskd_plugin.coverage.fault import Fault
from frskd_plugin.coverage.isolated import describe
from frskd_plugin.mmengine.without_pretrained import without_pretrained

# Marks of small models in the names of configs, smallest first; names without any come last.
_SMALL_MODELS = ("r18", "b0", "tiny", "t", "s", "s12", "s16", "hr18s", "hr18", "base", "b16", "b", "r50", "s101")
_COMMON_DATA = ("ade20k", "cityscapes")  # some other data sets want another kind of preprocessor


def config_folder() -> Path:
    """Where the installed mmsegmentation keeps its configs.

    Raises:
        FileNotFoundError: this installation has none.
    """
    folder = Path(mmseg.__path__[0]) / ".mim" / "configs"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is missing: mmsegmentation was installed without its configs. Install its wheel (not a link to "
            "its sources)."
        )
    return folder


def families_to_try(names: Sequence[str] = ()) -> list[str]:
    """The families (folders of configs) of these names, or all of them.

    Raises:
        ValueError: there is no such family.
    """
    known = sorted(path.name for path in config_folder().iterdir() if any(path.glob("*.py")) and path.name[0] != "_")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"mmsegmentation {mmseg.__version__} has no configs in a folder {', '.join(unknown)}: expected names out "
            f"of {', '.join(known)}."
        )
    return list(names) or known


def smallest_config(family: str) -> Path:
    """The config of a family that names the smallest model, on a common data set where there is one."""
    return min((config_folder() / family).glob("*.py"), key=_size_by_name)


def _size_by_name(file: Path) -> tuple[int, bool, int, str]:
    marks = re.split("[-_]", file.stem)
    size = min((_SMALL_MODELS.index(mark) for mark in marks if mark in _SMALL_MODELS), default=len(_SMALL_MODELS))
    return size, not any(data in file.stem for data in _COMMON_DATA), len(file.stem), file.stem


def shrunk_config(file: Path, image_size: int, fix_image_size: bool = False) -> Config:
    """A config for small images on a CPU, without pretrained weights; all else is the original's.

    Args:
        file: of the original.
        image_size: height and width of the images.
        fix_image_size: whether a backbone that is made for one image size is made for this one.

    Raises:
        Fault: a package that the config imports is not installed.
    """
    try:
        config = Config.fromfile(file)
    except ImportError as error:  # mmengine's text is about the path of modules; the first cause names the package
        cause: BaseException = error
        while cause.__cause__ or cause.__context__:
            cause = cause.__cause__ or cause.__context__ or cause
        raise Fault(f"custom_imports: {describe(cause)}") from error
    model = _on_cpu(without_pretrained(config.model.to_dict())[0])
    size = (image_size, image_size)
    if (model.get("data_preprocessor") or {}).get("size"):
        model["data_preprocessor"]["size"] = size
    if fix_image_size and "img_size" in (model.get("backbone") or {}):
        model["backbone"]["img_size"] = size
    return Config(dict(default_scope="mmseg", crop_size=size, model=model))


def _on_cpu(value: Any) -> Any:
    """With batch normalisation in place of the synchronised one, which CPUs do not have."""
    if isinstance(value, dict):
        kinds = {"SyncBN": "BN", "MMSyncBN": "BN"}
        return {key: kinds.get(item, item) if key == "type" else _on_cpu(item) for key, item in value.items()}
    return type(value)(_on_cpu(item) for item in value) if isinstance(value, (list, tuple)) else value
