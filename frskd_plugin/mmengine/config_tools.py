"""Read configs, refuse those of a later version, and move their data."""

from __future__ import annotations

import copy
import difflib
import importlib.metadata
import importlib.util
import inspect
import os
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.runner import Runner
from packaging.version import InvalidVersion, Version

from frskd_plugin.mmengine.registration import MISSING_OPERATORS, LazyComponent, lacks_operators
from frskd_plugin.version import __version__

# Settings that a config may leave out: those of `Runner`, then those that OpenMMLab's tools and this package read.
KNOWN_SETTINGS = {*inspect.signature(Runner.__init__).parameters} - {"self"} | {
    *("runner_type", "sync_bn", "find_unused_parameters", "model_wrapper_cfg", "tta_model", "tta_pipeline"),
    *("auto_scale_lr", "frskd_plugin_version"),
}


def read_config(path: str | Path) -> Config:
    """Read a config file; ``_base_ = 'mmseg::...'`` finds the configs of the forks too.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, `frskd_plugin_version` in it is newer than the installed package, or it is of
            mmengine's new style, with imported classes in place of names.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"config {path} is a folder; expected a Python config file in it")
    if not path.is_file():
        raise FileNotFoundError(
            f"config {path} not found; expected a Python config file, such as configs/frskd_voc_effdet_d0.py"
        )
    try:
        with _forks_found():
            config = Config.fromfile(path)
    except SyntaxError as error:
        file = path if (error.filename or "<").startswith("<") else Path(str(error.filename))
        raise ValueError(f"config {path} is no valid Python: {error.msg} ({file.name}, line {error.lineno})") from error
    except ImportError as error:
        raise _import_error(error, path) from error
    except Exception as error:  # whatever a config raises
        raise ValueError(f"config {path} cannot be read: {type(error).__name__}: {error}") from error
    check_version(config, str(path))
    classes = [part["type"] for part, _ in dicts(config) if isinstance(part.get("type"), type)]
    if classes:
        raise ValueError(
            f"config {path} is of mmengine's new style: its types are imported classes ({classes[0].__name__}, ...), "
            "and frskd_plugin reads and writes configs with names: give one with _base_ = [...] and type='...'."
        )
    return config


def _import_error(error: ImportError, path: Path) -> ImportError:
    """Return the reason why a module could not be imported, which mmengine hides behind advice about PYTHONPATH."""
    reason: BaseException = error
    while str(reason).startswith("Failed to import ") and (inner := reason.__cause__ or reason.__context__):
        reason = inner
    if lacks_operators(reason):
        return ImportError(f"config {path}: {MISSING_OPERATORS} ({reason}).")
    kind = type(reason) if isinstance(reason, ImportError) else ImportError
    text = f"config {path} needs a module that cannot be imported: {reason} (one of yours must be on PYTHONPATH)"
    return kind(text, name=getattr(reason, "name", None))


@contextmanager
def _forks_found() -> Iterator[None]:
    """Let mmengine find a package by its module where no distribution of its usual name is installed, as with forks."""
    usual = dict(MODULE2PACKAGE)
    for module, package in usual.items():
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            if importlib.util.find_spec(module) is not None:
                MODULE2PACKAGE[module] = module
    try:
        yield
    finally:
        MODULE2PACKAGE.update(usual)


def check_version(config: Config, name: str = "the config") -> None:
    """Refuse a config that asks for a later version than this one (ValueError)."""
    wanted = config.get("frskd_plugin_version")
    try:
        later = wanted is not None and Version(str(wanted)).release > Version(__version__).release
    except InvalidVersion:
        raise ValueError(f"{name}: frskd_plugin_version must be a version, such as '0.2.0', got {wanted!r}") from None
    if later:
        raise ValueError(
            f"{name} is for frskd_plugin {wanted} or later, but {__version__} is installed; "
            f"update the package, or use a config of {__version__}"
        )


def override(config: Config, options: Mapping[str, Any]) -> None:
    """Set ``--cfg-options``, ``a.b.0`` -> value, in a config; misspelled ones raise a ValueError."""
    for key, value in options.items():
        try:
            _check_setting(config, key, value)
            config.merge_from_dict({key: value})
        except Exception as error:
            raise ValueError(f"--cfg-options {key}: {error.args[0] if error.args else error}") from error


def _check_setting(config: Config, key: str, value: Any) -> None:
    first, *parts = key.split(".")
    if first == "custom_imports":
        raise ValueError("it comes too late to import anything; give --import MODULE")
    if first not in config and first not in KNOWN_SETTINGS:
        near = difflib.get_close_matches(first, [*config, *sorted(KNOWN_SETTINGS)], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the config has {', '.join(sorted(config))}"
        raise ValueError(f"there is no setting {first!r}; {hint}")
    place, node = first, config.get(first)
    for part in parts:
        if node is None:
            return
        if isinstance(node, Mapping):
            near = difflib.get_close_matches(part, node, n=1, cutoff=0.85) if part not in node else []
            if near:
                hint = f"did you mean {near[0]!r}? (If not, write it into the config file.)"
                raise ValueError(f"{place} has no setting {part!r}; {hint}")
            node = node.get(part)
        elif isinstance(node, (list, tuple)):
            if not part.isdigit() or int(part) >= len(node):
                raise ValueError(f"{place} has the entries 0 to {len(node) - 1}, got {part!r}")
            node = node[int(part)]
        else:
            raise ValueError(f"{place} is {node!r}, which has no settings")
        place = f"{place}.{part}"
    if isinstance(node, Mapping) and isinstance(value, (str, int, float)):
        raise ValueError(f"{key} has the settings {', '.join(node)}; give one of them, not {value!r}")


def set_data_root(config: Any, data_root: str | Path) -> int:
    """Set the `data_root` of a config's data sets, and return how many there were.

    Data sets of different roots, such as ``VOCdevkit/VOC2007`` and ``VOCdevkit/VOC2012``, keep their places below the
    folder that they share (a ValueError without one), which is replaced. A metric's `ann_file` in it moves too.
    """
    found = [part for part, in_data in dicts(config) if "data_root" in part and in_data]
    roots = {Path(part["data_root"]) for part in found if part["data_root"]}
    shared = _shared_folder(roots)
    if "data_root" in config and (not roots or _inside(config["data_root"], shared)):
        found.append(config)  # the variable that the data sets of a config file are written with

    def moved(path: str | None) -> str:
        return str(Path(data_root) / Path(path).relative_to(shared)) if path and roots else str(data_root)

    for part, _ in dicts(config):
        if "data_root" not in part and _inside(part.get("ann_file"), shared):
            part["ann_file"] = moved(part["ann_file"])
    for part in found:
        part["data_root"] = moved(part["data_root"])
    return len(found)


def _shared_folder(roots: set[Path]) -> Path:
    if len(roots) < 2:
        return next(iter(roots), Path())
    try:
        shared = Path(os.path.commonpath(roots))
    except ValueError:  # relative and absolute ones
        shared = Path()
    if shared in (Path(), Path(shared.anchor)):
        raise ValueError(
            f"the data sets lie in different folders ({', '.join(sorted(map(str, roots)))}), which one data root "
            "cannot replace: set each by --cfg-options, such as train_dataloader.dataset.data_root=FOLDER."
        )
    return shared


def _inside(path: Any, folder: Path) -> bool:
    return isinstance(path, str) and folder != Path() and Path(path).is_relative_to(folder)


def dicts(value: Any, in_data: bool = False) -> Iterator[tuple[Any, bool]]:
    """Yield the config and every dict in it, at any depth, with True for those of a data set or its loader."""
    if isinstance(value, (dict, Config)):
        yield value, in_data
        for key, item in value.items():
            yield from dicts(item, in_data or "dataset" in str(key) or "dataloader" in str(key))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from dicts(item, in_data)


def is_classifier(config: Config) -> bool:
    """Tell if a config trains a classifier of this package."""
    return config.get("model", {}).get("type") == "TimmClassifier"


@contextmanager
def explained_build(name: str) -> Iterator[None]:
    """Say which config it was when a component does not know one of its keys, or is not known itself.

    Raises:
        ValueError: in place of the `TypeError` or `KeyError` of the registry.
        ImportError: with the cure, where the config needs operators of mmcv that are not there.
    """
    hint = f"Check the spelling; a later version's config needs that version (frskd_plugin {__version__} is installed)"
    try:
        yield
    except (TypeError, KeyError) as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        builders = [frame for frame in frames if frame.f_code.co_filename.endswith(_BUILDERS)]
        if isinstance(error, TypeError):
            text, to_blame = f"{error}.", _refuses_key(error, builders)
        else:
            text, to_blame = error.args[0], "registry" in str(error) and frames[-1] in builders
        if not to_blame:
            raise
        raise ValueError(f"config {name}: {text} {hint}") from error
    except ImportError as error:
        if not lacks_operators(error) or MISSING_OPERATORS in str(error):
            raise
        raise ImportError(f"config {name}: {MISSING_OPERATORS} ({error}).") from error


# mmengine's modules that look components up and call them
_BUILDERS = (os.path.join("registry", "build_functions.py"), os.path.join("registry", "registry.py"))


def _refuses_key(error: TypeError, builders: list[FrameType]) -> bool:
    """Tell if the unknown argument stands in the config of a component being built that does not have it."""
    found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    for parts in (frame.f_locals for frame in builders):
        component = parts.get("obj_cls")
        component = component.load() if isinstance(component, LazyComponent) else component
        if found and component and found[1] in parts["cfg"]:
            if found[1] not in inspect.signature(component).parameters:
                return True
    return False


# settings that name weights: of timm and mmseg, of `TimmFeatureExtractor`, of ``timm.create_model``
_WEIGHTS = ("pretrained", "checkpoint", "checkpoint_path")


def without_pretrained(config: Any) -> tuple[Any, bool]:
    """Return a copy of a model's config that loads nothing but a method's teacher, and True if that made a difference.

    >>> without_pretrained(dict(backbone=dict(pretrained=True)))
    ({'backbone': {'pretrained': False}}, True)
    """
    config, changed = copy.deepcopy(config), False
    method = config.get("method")
    teacher = method.get("teacher") if isinstance(method, Mapping) else None  # is refused without its weights
    for part in (part for part, _ in dicts(config) if part is not teacher):
        for key, value in part.items():
            pretrained_init = key == "init_cfg" and isinstance(value, dict) and value.get("type") == "Pretrained"
            if value and (key in _WEIGHTS or pretrained_init):
                part[key], changed = (False if value is True else None), True
    return config, changed
