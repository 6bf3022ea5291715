"""What the command lines do with a config before it becomes a Runner."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.logging import print_log

from frskd_plugin.mmengine.mmcv_operators import MISSING_OPERATORS, lacks_operators
from frskd_plugin.version import __version__

VERSION_KEY = "frskd_plugin_version"


def read_config(path: str | Path) -> Config:
    """Read a config file, and refuse one that was written for a later version of this package.

    ``_base_ = 'mmseg::...'`` finds the configs of the forks too, whose distributions have other names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: `frskd_plugin_version` in it is newer than the installed package, or it is of mmengine's new style,
            with imported classes in place of names.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"config {path} not found; expected a Python config file, such as configs/frskd_voc_effdet_d0.py"
        )
    with _forks_found():
        config = Config.fromfile(path)
    check_version(config, str(path))
    classes = [part["type"] for part, _ in _dicts(config) if isinstance(part.get("type"), type)]
    if classes:
        raise ValueError(
            f"config {path} is of mmengine's new style: its types are imported classes ({classes[0].__name__}, ...), "
            "and frskd_plugin reads and writes configs with names: give one with _base_ = [...] and type='...'."
        )
    return config


@contextmanager
def _forks_found() -> Iterator[None]:
    """Let mmengine find a package of OpenMMLab by its module where no distribution of its usual name is installed."""
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
    """Refuse a config that asks for a later version than this one.

    Raises:
        ValueError: see above.

    Example:
        >>> check_version(Config(dict(frskd_plugin_version="0.0.1")))
    """
    wanted = config.get(VERSION_KEY)
    if wanted is not None and _numbers(str(wanted)) > _numbers(__version__):
        raise ValueError(
            f"{name} is for frskd_plugin {wanted} or later, but {__version__} is installed; "
            f"update the package, or use a config of {__version__}"
        )


def _numbers(version: str) -> tuple[int, ...]:
    """Leading release numbers: '1.2.0rc1' -> (1, 2, 0)."""
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in release.group().split(".")) if release else ()


def set_data_root(config: Any, data_root: str | Path) -> int:
    """Set the `data_root` of a config's data sets; returns how many there were.

    Data sets of different roots, such as ``VOCdevkit/VOC2007`` and ``VOCdevkit/VOC2012``, keep their places below the
    folder that they share: that folder is what ``data_root`` replaces. Other parts of a config with a key of that name
    stay. A metric names its file as a whole: an `ann_file` in that folder moves with it.

    Raises:
        ValueError: the data sets' roots share no folder.

    >>> config = Config(dict(train_dataloader=dict(dataset=dict(data_root="data/voc"))))
    >>> set_data_root(config, "/mnt/voc"), config.train_dataloader.dataset.data_root
    (1, '/mnt/voc')
    """
    found = [part for part, in_data in _dicts(config) if "data_root" in part and in_data]
    roots = {Path(part["data_root"]) for part in found if part["data_root"]}
    shared = _shared_folder(roots)
    if "data_root" in config and (not roots or _inside(config["data_root"], shared)):
        found.append(config)  # the variable that the data sets of a config file are written with

    def moved(path: str | None) -> str:
        return str(Path(data_root) / Path(path).relative_to(shared)) if path and roots else str(data_root)

    for part, _ in _dicts(config):
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


def _dicts(value: Any, in_data: bool = False) -> Iterator[tuple[Any, bool]]:
    """The config and every dict in it, at any depth, and whether it belongs to a data set or its loader."""
    if isinstance(value, (dict, Config)):
        yield value, in_data
        for key, item in value.items():
            yield from _dicts(item, in_data or "dataset" in str(key) or "dataloader" in str(key))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _dicts(item, in_data)


def enable_amp(config: Config, dtype: str | None = None) -> None:
    """Turn on mixed precision.

    Args:
        config: is changed.
        dtype: 'fp16': mmengine's `AmpOptimWrapper`, which scales the loss; 'bf16': autocast alone; None: 'fp16' on CUDA
            and 'bf16' on the CPU.

    Raises:
        ValueError: the config has an optimizer wrapper of another kind, or 'fp16' is asked for without CUDA.
    """
    wrapper = config.optim_wrapper
    kind = wrapper.get("type", "OptimWrapper")
    cuda = torch.cuda.is_available()
    dtype = dtype or ("fp16" if cuda else "bf16")
    if kind in ("AmpOptimWrapper", "AutocastOptimWrapper"):
        print_log(f"--amp: the config already trains with {kind}.", logger="current", level=logging.WARNING)
        return
    if kind != "OptimWrapper":
        raise ValueError(f"--amp needs optim_wrapper.type='OptimWrapper' in the config, got {kind!r}")
    if dtype == "fp16" and not cuda:
        raise ValueError("--amp-dtype fp16 needs CUDA, which is not available here; use --amp-dtype bf16")
    if dtype == "fp16":
        wrapper.type, wrapper.loss_scale = "AmpOptimWrapper", "dynamic"
    else:
        wrapper.type, wrapper.dtype = "AutocastOptimWrapper", "bfloat16"


def speed_up(config: Config, channels_last: bool = False, compile: bool = False) -> None:
    """Train in the channels_last layout, or through ``torch.compile``: settings of a classifier, hooks of other models.

    Args:
        config: is changed.
        channels_last: as `ChannelsLastHook`.
        compile: as `CompileHook`; of a classifier all is compiled, its method too.
    """
    choices = ((channels_last, "channels_last", "ChannelsLastHook"), (compile, "compile", "CompileHook"))
    for wanted, setting, hook in choices:
        if wanted and is_classifier(config):
            config.model[setting] = True
        elif wanted:
            config.custom_hooks = [*(config.get("custom_hooks") or []), dict(type=hook)]


def is_classifier(config: Config) -> bool:
    """Whether a config trains a classifier of this package.

    >>> is_classifier(Config(dict(model=dict(type="TimmClassifier"))))
    True
    """
    return config.get("model", {}).get("type") == "TimmClassifier"


@contextmanager
def explained_build(name: str) -> Iterator[None]:
    """Say which config it was when a component does not know one of its keys, or is not known itself.

    Raises:
        ValueError: in place of the `TypeError` or `KeyError` of the registry.
        ImportError: with the cure, where the config needs operators of mmcv that are not there.
    """
    hint = (
        f"Check the spelling; a config of a later version needs that version (frskd_plugin {__version__} is installed)"
    )
    try:
        yield
    except TypeError as error:
        if not _refuses_key(error):
            raise
        raise ValueError(f"config {name}: {error}. {hint}") from error
    except KeyError as error:
        if "registry" not in str(error) or not _frames(error)[-1].f_code.co_filename.endswith(_BUILDERS):
            raise
        raise ValueError(f"config {name}: {error.args[0]} {hint}") from error
    except ImportError as error:
        if not lacks_operators(error) or MISSING_OPERATORS in str(error):
            raise
        raise ImportError(f"config {name}: {MISSING_OPERATORS} ({error}).") from error


# mmengine's modules that look components up and call them
_BUILDERS = (os.path.join("registry", "build_functions.py"), os.path.join("registry", "registry.py"))


def _frames(error: BaseException) -> list[FrameType]:
    return [frame for frame, _ in traceback.walk_tb(error.__traceback__)]


def _refuses_key(error: TypeError) -> bool:
    """Whether the argument that nobody knows stands in the config of a component that was being built."""
    name = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    building = (frame.f_locals.get("cfg") for frame in _frames(error) if frame.f_code.co_filename.endswith(_BUILDERS))
    return name is not None and any(isinstance(cfg, dict) and name[1] in cfg for cfg in building)
