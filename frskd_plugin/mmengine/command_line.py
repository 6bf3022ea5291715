"""What tools/train.py and tools/test.py share of their command lines."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.runner import Runner
from torch import nn

from frskd_plugin.mmengine.config_tools import read_config, set_data_root


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """``config`` and the options that every command line of OpenMMLab has, with ``--data-root``."""
    parser.add_argument("config", help="config file, such as configs/frskd_voc_effdet_d0.py")
    parser.add_argument("--work-dir", help="folder of logs and checkpoints (default: ./work_dirs/<name of the config>)")
    parser.add_argument("--data-root", help="folder of the data set; sets every data_root in the config")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        help="settings that override the config: key=value, nested as a.b=value, lists as key='[a,b]' or key=a,b",
    )
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none", help="job launcher")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help="set by the launcher")


def check_common_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with a message when the config or the data folder is not there."""
    if args.data_root is not None and not Path(args.data_root).is_dir():
        parser.error(f"--data-root: {args.data_root} is not a folder; expected the data set's root folder")
    if not Path(args.config).is_file():
        parser.error(f"config {args.config} not found; expected a config file, such as configs/frskd_voc_effdet_d0.py")
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))


def config_of(args: argparse.Namespace) -> Config:
    """The config file with the shared options in it.

    Raises:
        ValueError: ``--data-root`` for a config without one, or a config of a later version.
    """
    config = read_config(args.config)
    config.launcher = args.launcher
    if args.data_root is not None and set_data_root(config, args.data_root) == 0:
        raise ValueError(f"--data-root: {args.config} has no data_root to set; set the paths with --cfg-options")
    if args.cfg_options is not None:
        config.merge_from_dict(args.cfg_options)
    # Command line, then config, then the name of the config: the order that mmseg's users know.
    if args.work_dir is not None:
        config.work_dir = args.work_dir
    elif config.get("work_dir") is None:
        config.work_dir = default_work_dir(args.config)
    return config


def default_work_dir(config_file: str | Path, *parts: str) -> str:
    """Where a run goes whose config and command line name no folder; ``parts`` tell it from others of that config.

    >>> default_work_dir("configs/fcn_r18.py"), default_work_dir("configs/fcn_r18.py", "one")
    ('work_dirs/fcn_r18', 'work_dirs/fcn_r18_one')
    """
    return str(Path("work_dirs") / "_".join([Path(config_file).stem, *parts]))


def open_data(runner: Runner, *loops: str) -> None:
    """Open the data sets of a runner's loops ('train', 'val', 'test'), so that what is wrong with them shows at once.

    Raises:
        FileNotFoundError: a data set is missing.
        ValueError: it has labels that the model has no class for.
    """
    for loop in loops:
        built = getattr(runner, f"{loop}_loop")  # the property builds it
        dataset = getattr(getattr(built, "dataloader", None), "dataset", None)
        if dataset is not None:
            check_classes(f"{loop}_dataloader", dataset, getattr(runner.model, "module", runner.model))


def check_classes(name: str, dataset: Any, model: nn.Module) -> None:
    """Compare the labels of a data set, or the number of its classes, with those that a model predicts.

    Args:
        name: of the data set in the config, for messages.
        dataset: with ``targets`` (of our classification data sets) or ``metainfo['classes']``, also inside of others.
        model: a classifier, segmentor or detector; what says nothing of its classes is not checked.

    Raises:
        ValueError: the data set has labels that the model has no class for.
    """
    setting, num_classes = _classes_of(model)
    if num_classes is None:
        return
    found = len((getattr(dataset, "metainfo", None) or {}).get("classes") or ())
    while not hasattr(dataset, "targets") and hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    if len(getattr(dataset, "targets", ())):
        found = int(torch.as_tensor(dataset.targets).max()) + 1
    if found > num_classes:
        raise ValueError(
            f"{name}: the data set has labels 0..{found - 1}, but {setting} is {num_classes}: set it to the number of "
            "the data set's classes, or give the data that the model is for"
        )


def _classes_of(model: nn.Module) -> tuple[str, int | None]:
    """Setting of the number of classes, as a config names it, and its value; None where the model does not say."""
    network = getattr(model, "network", None)
    if network is not None:
        return "model.student.num_classes", getattr(network.student, "num_classes", None)
    for part in ("decode_head", "bbox_head"):
        head = getattr(model, part, None)
        if head is not None:
            head = head[-1] if isinstance(head, nn.ModuleList) else head
            return f"model.{part}.num_classes", getattr(head, "num_classes", None)
    return "", None
