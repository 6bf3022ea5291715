"""Makes mmengine read checkpoints as this package does; by itself it runs what a file says where nothing else helps."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.runner.checkpoint import CheckpointLoader

from frskd_plugin.core.checkpoint_file import read_checkpoint


@contextmanager
def safe_loading() -> Iterator[None]:
    """Let every loader of mmengine (files, URLs, model zoos) go through `read_checkpoint`, for a block.

    mmengine's loaders try ``weights_only=True`` first, and then, or at once, without.
    """
    safe = OrderedDict((prefix, _safe(loader)) for prefix, loader in CheckpointLoader._schemes.items())
    with _replaced(CheckpointLoader, "_schemes", safe):
        yield


def safe_runner(runner: Any) -> None:
    """Make a runner read its checkpoints with `safe_loading`, whoever has built it."""
    load = runner.load_checkpoint

    @functools.wraps(load)
    def load_checkpoint(*args: Any, **kwargs: Any) -> Any:
        with safe_loading():
            return load(*args, **kwargs)

    runner.load_checkpoint = load_checkpoint


def _safe(loader: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(loader)
    def load(*args: Any, **kwargs: Any) -> Any:
        with _replaced(torch, "load", _torch_load):
            return loader(*args, **kwargs)

    return load


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _torch_load(file: Any, map_location: Any = None, **unused: Any) -> Any:
    content = read_checkpoint(file, map_location)
    if isinstance(content, dict) and isinstance(content.get("meta"), dict):
        content["meta"].pop("config", None)  # text of old mmcv, which `Runner.resume` would execute
    return content
