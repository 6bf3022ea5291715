"""Train a segmentor: ``python tools/train.py CONFIG [--resume] [--amp] ...``, with the options of mmsegmentation."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

import frskd_plugin  # noqa: F401  registers the components, also for configs without custom_imports
from frskd_plugin.mmengine.config_tools import enable_amp, explained_build, read_config, set_data_root
from frskd_plugin.mmengine.distributed import end_distributed, init_distributed, prepare_distributed
from frskd_plugin.mmengine.resume import allow_checkpoint_globals, resume_state


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Train a segmentor, plain or with feature-refinement self-distillation"
    )
    parser.add_argument("config", help="config file, such as configs/frskd_voc_effdet_d0.py")
    parser.add_argument("--work-dir", help="folder of logs and checkpoints (default: ./work_dirs/<name of the config>)")
    parser.add_argument("--data-root", help="folder of the data set; sets every data_root in the config")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest whole checkpoint in the work folder, if there is one",
    )
    parser.add_argument(
        "--amp", action="store_true", help="mixed precision: float16 with loss scaling on CUDA, bfloat16 on the CPU"
    )
    parser.add_argument("--seed", type=int, help="random seed; the same seed gives the same run")
    parser.add_argument("--deterministic", action="store_true", help="deterministic algorithms only (slower on CUDA)")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        help="settings that override the config: key=value, nested as a.b=value, lists as key='[a,b]' or key=a,b",
    )
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none", help="job launcher")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help="set by the launcher")
    args = parser.parse_args(argv)
    if args.seed is not None and args.seed < 0:
        parser.error(f"--seed must be 0 or more, got {args.seed}")
    if args.data_root is not None and not Path(args.data_root).is_dir():
        parser.error(f"--data-root: {args.data_root} is not a folder; expected the data set's root folder")
    if not Path(args.config).is_file():
        parser.error(f"config {args.config} not found; expected a config file, such as configs/frskd_voc_effdet_d0.py")
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
    # Command line, then config, then the name of the config: the order that mmseg's users know.
    if args.work_dir is not None:
        config.work_dir = args.work_dir
    elif config.get("work_dir") is None:
        config.work_dir = str(Path("work_dirs") / Path(args.config).stem)
    if args.amp:
        enable_amp(config)
    randomness = dict(config.get("randomness") or {})
    if args.seed is not None:
        randomness["seed"] = args.seed
    if args.deterministic:
        randomness["deterministic"] = True
        # Read by cuBLAS when it is first used; without it torch refuses deterministic matrix products on CUDA.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    config.randomness = {"seed": None, **randomness}
    if args.resume:
        set_resume(config, explicit="load_from" in (args.cfg_options or {}))
    if args.launcher != "none":
        prepare_distributed(config)
    return config


def set_resume(config: Config, explicit: bool) -> None:
    """Choose the checkpoint to go on from.

    `explicit`: `--cfg-options load_from=FILE` beside `--resume` names it, as in mmseg. A `load_from` of the config
    itself is what the run started from, and is used where there is no checkpoint yet.
    """
    config.resume = True
    if explicit:
        return
    state = resume_state(config.work_dir)
    if state is None:
        config.resume = False
        return
    path, meta = state
    config.load_from = str(path)
    # The data order is made before mmengine reads the seed from the checkpoint.
    if config.randomness["seed"] is None:
        config.randomness["seed"] = meta.get("seed")


def main(argv: Sequence[str] | None = None) -> None:
    """Train as the command line says."""
    args = parse_args(argv)
    config = build_config(args)
    init_distributed(args.launcher)
    allow_checkpoint_globals()
    with explained_build(args.config):
        runner = RUNNERS.build(config) if "runner_type" in config else Runner.from_cfg(config)
        runner.train()
    end_distributed()


if __name__ == "__main__":
    main()
