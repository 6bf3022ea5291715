"""Train a classifier or a segmentor: ``frskd train CONFIG [--resume] [--amp] ...``, as in OpenMMLab."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from contextlib import nullcontext

from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

import frskd_plugin  # noqa: F401  registers the components, also for configs without custom_imports
from frskd_plugin.commands import Terminated
from frskd_plugin.commands.run_guard import is_main, locked, what_is_lost
from frskd_plugin.methods import method_names
from frskd_plugin.mmengine.command_line import (
    add_common_options,
    check_common_options,
    config_of,
    default_work_dir,
    open_data,
)
from frskd_plugin.mmengine.config_tools import enable_amp, explained_build, is_classifier, speed_up
from frskd_plugin.mmengine.distributed import end_distributed, init_distributed, prepare_distributed
from frskd_plugin.mmengine.method_data import method_name, provide_method_data, set_method
from frskd_plugin.mmengine.resume import refuse_to_start_over, remove_run, resume_state
from frskd_plugin.mmengine.safe_loading import safe_loading
from frskd_plugin.mmengine.safety_hooks import guard_training
from frskd_plugin.mmengine.stack_check import versions_text
from frskd_plugin.mmengine.stored_config import parse_config


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all options."""
    parser = argparse.ArgumentParser(
        prog="frskd train",
        description="Train a classifier or a segmentor, plain or with feature-refinement distillation",
    )
    add_common_options(parser)
    parser.add_argument(
        "--method",
        metavar="NAME",
        help=f"train a classifier with this method in place of the config's: {', '.join(method_names())}",
    )
    parser.add_argument(
        "--method-options",
        nargs="+",
        action=DictAction,
        metavar="KEY=VALUE",
        help="settings of the method, such as temperature=3 or teacher.model_name=resnet34 teacher.checkpoint=FILE",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the newest whole checkpoint in the work folder, if any"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="start again in a work folder that holds a training, whose checkpoints are removed",
    )
    parser.add_argument(
        "--allow-nan", action="store_true", help="go on with a loss that is not finite, in place of stopping"
    )
    parser.add_argument(
        "--amp", action="store_true", help="mixed precision: float16 with loss scaling on CUDA, bfloat16 on the CPU"
    )
    parser.add_argument("--amp-dtype", choices=["bf16", "fp16"], help="mixed precision in this type; implies --amp")
    parser.add_argument("--channels-last", action="store_true", help="train in that memory format")
    parser.add_argument("--compile", action="store_true", help="train through torch.compile")
    parser.add_argument("--seed", type=int, help="random seed; the same seed gives the same run")
    parser.add_argument("--deterministic", action="store_true", help="deterministic algorithms only (slower on CUDA)")
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.seed is not None and args.seed < 0:
        parser.error(f"--seed must be 0 or more, got {args.seed}")
    if args.resume and args.overwrite:
        parser.error("--overwrite removes what --resume goes on from: give one of them")
    check_common_options(parser, args)
    return args


def build_config(args: argparse.Namespace) -> Config:
    """The config file with the command line's settings in it."""
    config = config_of(args)
    if args.method is not None or args.method_options is not None:
        replaced = set_method(config, args.method, args.method_options or {})
        if replaced and config.work_dir == default_work_dir(args.config):
            config.work_dir = default_work_dir(args.config, args.method)
    if is_classifier(config):
        provide_method_data(config)
    if args.amp or args.amp_dtype:
        enable_amp(config, args.amp_dtype)
    speed_up(config, args.channels_last, args.compile)
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
    """Choose the checkpoint to go on from; one of another method is refused.

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
    if is_classifier(config) and isinstance(meta.get("cfg"), str):
        trained, wanted = method_name(Config(parse_config(meta["cfg"], str(path)))), method_name(config)
        if trained != wanted:
            raise ValueError(
                f"--resume: {path} was trained with the method {trained!r}, and this run is to train with {wanted!r}: "
                f"give another --work-dir, or --overwrite in place of --resume to start again in this one"
            )
    config.load_from = str(path)
    # The data order is made before mmengine reads the seed from the checkpoint.
    if config.randomness["seed"] is None:
        config.randomness["seed"] = meta.get("seed")


@safe_loading()
def main(argv: Sequence[str] | None = None) -> None:
    """Train as the command line says."""
    args = parse_args(argv)
    config = build_config(args)
    init_distributed(args.launcher)
    with locked(config.work_dir) if is_main() else nullcontext():
        train(config, args)
    end_distributed()


def train(config: Config, args: argparse.Namespace) -> None:
    """Build the runner of a config and train it.

    Raises:
        ValueError: the work folder holds another training, and neither ``--resume`` nor ``--overwrite`` is given.
    """
    if not (config.get("resume") or args.overwrite):
        refuse_to_start_over(config.work_dir)
    runner = None
    try:
        with explained_build(args.config):
            runner = RUNNERS.build(config) if "runner_type" in config else Runner.from_cfg(config)
            open_data(runner, "train", "val")
            guard_training(runner, allow_nan=args.allow_nan)
            if args.overwrite and is_main():
                remove_run(config.work_dir)
            runner.logger.info(versions_text())
            runner.train()  # optimizer and schedules are built here
    except (KeyboardInterrupt, Terminated) as stop:
        stop.args = (what_is_lost(config.work_dir, runner),) if is_main() else ()
        raise
