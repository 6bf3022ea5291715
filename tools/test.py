"""Evaluate a checkpoint: ``python tools/test.py CONFIG CHECKPOINT``, with the options of mmsegmentation."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.runner import Runner

import frskd_plugin  # noqa: F401  registers the components, also for configs without custom_imports
from frskd_plugin.mmengine.config_tools import explained_build, read_config, set_data_root
from frskd_plugin.mmengine.distributed import end_distributed, init_distributed, prepare_distributed
from frskd_plugin.mmengine.resume import allow_checkpoint_globals


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Evaluate a checkpoint on the test set of a config")
    parser.add_argument("config", help="config file the checkpoint was trained with, or the one export_student wrote")
    parser.add_argument("checkpoint", help="checkpoint file (.pth)")
    parser.add_argument("--work-dir", help="folder of logs and results (default: ./work_dirs/<name of the config>)")
    parser.add_argument("--data-root", help="folder of the data set; sets every data_root in the config")
    parser.add_argument("--out", help="folder for the predicted label maps")
    parser.add_argument("--show", action="store_true", help="show each prediction in a window")
    parser.add_argument("--show-dir", help="folder for the painted predictions")
    parser.add_argument("--wait-time", type=float, default=2, help="seconds between two windows of --show")
    parser.add_argument("--tta", action="store_true", help="test-time augmentation")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        help="settings that override the config: key=value, nested as a.b=value, lists as key='[a,b]' or key=a,b",
    )
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none", help="job launcher")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help="set by the launcher")
    args = parser.parse_args(argv)
    for name, path in (("config", args.config), ("checkpoint", args.checkpoint)):
        if not Path(path).is_file() and "://" not in path:
            parser.error(f"{name} {path} not found; expected {name} to be a file")
    if args.data_root is not None and not Path(args.data_root).is_dir():
        parser.error(f"--data-root: {args.data_root} is not a folder; expected the data set's root folder")
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    return args


def build_config(args: argparse.Namespace) -> Config:
    """The config file with the command line's settings in it."""
    config = read_config(args.config)
    config.launcher = args.launcher
    if args.data_root is not None and set_data_root(config, args.data_root) == 0:
        raise ValueError(f"--data-root: {args.config} has no data_root to set; set the paths with --cfg-options")
    if args.cfg_options is not None:
        config.merge_from_dict(args.cfg_options)
    if args.work_dir is not None:
        config.work_dir = args.work_dir
    elif config.get("work_dir") is None:
        config.work_dir = str(Path("work_dirs") / Path(args.config).stem)
    config.load_from, config.resume = args.checkpoint, False
    if args.show or args.show_dir:
        _enable_painting(config, args)
    if args.tta:
        if "tta_model" not in config or "tta_pipeline" not in config:
            raise ValueError(f"--tta needs tta_model and tta_pipeline in {args.config}; add them or leave --tta out")
        config.test_dataloader.dataset.pipeline = config.tta_pipeline
        config.tta_model.module = config.model
        config.model = config.tta_model
    if args.out is not None:
        config.test_evaluator.output_dir = args.out
        config.test_evaluator.keep_results = True
    if args.launcher != "none":
        prepare_distributed(config)
    return config


def _enable_painting(config: Config, args: argparse.Namespace) -> None:
    hooks = config.get("default_hooks") or {}
    if "visualization" not in hooks:
        raise ValueError(
            "--show and --show-dir need default_hooks.visualization=dict(type='SegVisualizationHook') in the config"
        )
    hooks["visualization"].draw = True
    if args.show:
        hooks["visualization"].show = True
        hooks["visualization"].wait_time = args.wait_time
    if args.show_dir:
        config.visualizer.save_dir = args.show_dir


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate as the command line says."""
    args = parse_args(argv)
    config = build_config(args)
    init_distributed(args.launcher)
    allow_checkpoint_globals()
    with explained_build(args.config):
        Runner.from_cfg(config).test()
    end_distributed()


if __name__ == "__main__":
    main()
