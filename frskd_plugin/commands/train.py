"""Train a classifier or a segmentor: ``frskd train CONFIG [--resume] [--amp] ...``, as in OpenMMLab."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

from mmengine.config import Config
from mmengine.hooks import Hook

import frskd_plugin  # noqa: F401  registers the components, also for configs without custom_imports
from frskd_plugin.commands import asked_to_stop
from frskd_plugin.commands.arguments import add_settings, command_parser, whole_number
from frskd_plugin.commands.config import RECIPES, add_common_options, prepare_config
from frskd_plugin.commands.runner import build_runner, is_main, locked, open_data, what_is_lost
from frskd_plugin.methods import method_names
from frskd_plugin.mmengine.config_tools import explained_build
from frskd_plugin.mmengine.distributed import end_distributed, init_distributed
from frskd_plugin.mmengine.registration import versions_text
from frskd_plugin.mmengine.resume import refuse_to_start_over, remove_run, safe_loading
from frskd_plugin.mmengine.safety_hooks import guard_training


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all options."""
    parser = command_parser("train", "Train a classifier or a segmentor, plain or with feature-refinement distillation")
    add_common_options(parser)
    add, flag = parser.add_argument, partial(parser.add_argument, action="store_true")
    add("--recipe", choices=RECIPES, help="of a classifier: weight decay 5e-4, Nesterov, cosine (strong), or a mixture")
    add("--method", metavar="NAME", help=f"of a classifier, in place of the config's: {', '.join(method_names())}")
    text = "settings of the method, such as temperature=3 or teacher.model_name=resnet34 teacher.checkpoint=FILE"
    add_settings(parser, "--method-options", text)
    flag("--resume", help="go on from the newest whole checkpoint in the work folder, if any")
    flag("--overwrite", help="start again in a work folder that holds a training, whose checkpoints are removed")
    flag("--allow-nan", help="go on with a loss that is not finite, in place of stopping")
    flag("--amp", help="mixed precision: float16 with loss scaling on CUDA, bfloat16 on the CPU")
    add("--amp-dtype", choices=["bf16", "fp16"], help="mixed precision in this type; implies --amp")
    flag("--channels-last", help="train in that memory format")
    flag("--compile", help="train through torch.compile")
    text = "run each step of a classifier as one CUDA graph; auto (default): where device, data and config allow it"
    add("--cuda-graph", choices=["auto", "on", "off"], default="auto", help=text)
    add("--seed", type=whole_number, help="random seed; the same seed gives the same run")
    flag("--deterministic", help="deterministic algorithms only (slower on CUDA)")
    return parser


def read_command(argv: Sequence[str] | None = None) -> tuple[Config, argparse.Namespace]:
    """Read the command line, and make the config of the training that it asks for."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.resume and args.overwrite:
        parser.error("--overwrite removes what --resume goes on from: give one of them")
    return prepare_config(args, training=True), args


@safe_loading()
def main(argv: Sequence[str] | None = None) -> None:
    """Train as the command line says."""
    config, args = read_command(argv)
    init_distributed(args.launcher)
    with locked(config.work_dir) if is_main() else nullcontext():
        train(config, args)
    end_distributed()


def train(config: Config, args: argparse.Namespace, hooks: Sequence[Hook] = ()) -> None:
    """Build the runner of a config and train it, with further ``hooks`` that the config does not know of.

    Raises:
        ValueError: the work folder holds another training, and neither ``--resume`` nor ``--overwrite`` is given.
    """
    if not (config.get("resume") or args.overwrite):
        refuse_to_start_over(config.work_dir)
    runner = None
    try:
        with explained_build(args.config):
            runner = build_runner(config)
            open_data(runner, "train", "val")
            guard_training(runner, allow_nan=args.allow_nan)
            for hook in hooks:
                runner.register_hook(hook)
            if args.overwrite and is_main():
                remove_run(config.work_dir)
            runner.logger.info(versions_text())
            runner.train()  # optimizer and schedules are built here
    except BaseException as error:
        stop = asked_to_stop(error)
        if stop is None:
            raise
        raise stop(*([what_is_lost(config.work_dir, runner)] if is_main() else [])) from error
