"""What the command lines do with a config before it becomes a Runner."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log

from frskd_plugin.mmengine.mmcv_operators import MISSING_OPERATORS, lacks_operators
from frskd_plugin.version import __version__

VERSION_KEY = "frskd_plugin_version"


def read_config(path: str | Path) -> Config:
    """Read a config file, and refuse one that was written for a later version of this package.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: `frskd_plugin_version` in it is newer than the installed package.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"config {path} not found; expected a Python config file, such as configs/frskd_voc_effdet_d0.py"
        )
    config = Config.fromfile(path)
    check_version(config, str(path))
    return config


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
    """Set every `data_root` in a config, at any depth; returns how many there were.

    A metric has no `data_root` and names its file as a whole: an `ann_file` that lies in one of the old roots moves
    with it.
    """
    found = [settings for settings in _dicts(config) if "data_root" in settings]
    old_roots = {Path(settings["data_root"]) for settings in found if settings["data_root"]} - {Path()}
    for settings in _dicts(config):
        file = settings.get("ann_file")
        if isinstance(file, str) and "data_root" not in settings:
            for root in old_roots.intersection(Path(file).parents):
                settings["ann_file"] = str(Path(data_root) / Path(file).relative_to(root))
    for settings in found:
        settings["data_root"] = str(data_root)
    return len(found)


def _dicts(value: Any) -> Iterator[Any]:
    """The config and every dict in it, at any depth."""
    if isinstance(value, (dict, Config)):
        yield value
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _dicts(item)


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
        if "unexpected keyword argument" not in str(error):
            raise
        raise ValueError(f"config {name}: {error}. {hint}") from error
    except KeyError as error:
        if "registry" not in str(error):
            raise
        raise ValueError(f"config {name}: {error.args[0]} {hint}") from error
    except ImportError as error:
        if not lacks_operators(error) or MISSING_OPERATORS in str(error):
            raise
        raise ImportError(f"config {name}: {MISSING_OPERATORS} ({error}).") from error
