"""Evaluate a checkpoint: ``frskd test CONFIG CHECKPOINT``, with the options of OpenMMLab."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mmengine.config import Config

import frskd_plugin  # noqa: F401  registers the components, also for configs without custom_imports
from frskd_plugin.commands.arguments import command_parser
from frskd_plugin.commands.config import add_common_options, prepare_config
from frskd_plugin.commands.runner import build_runner, open_data
from frskd_plugin.mmengine.config_tools import explained_build, is_classifier, without_pretrained
from frskd_plugin.mmengine.distributed import end_distributed, init_distributed
from frskd_plugin.mmengine.resume import safe_loading
from frskd_plugin.mmengine.safety_hooks import WeightsFitHook


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all options."""
    parser = command_parser("test", "Evaluate a checkpoint on the test set of a config")
    add_common_options(parser)
    add, flag = parser.add_argument, partial(parser.add_argument, action="store_true")
    add("checkpoint", help="checkpoint file (.pth), of training or of tools/export.py")
    add("--out", help="folder for the predicted label maps")
    flag("--show", help="show each prediction in a window")
    add("--show-dir", help="folder for the painted predictions")
    add("--wait-time", type=float, default=2, help="seconds between two windows of --show")
    flag("--tta", help="test-time augmentation")
    flag("--partial-load", help="test a checkpoint that fits the model in part; the rest has random values")
    return parser


def read_command(argv: Sequence[str] | None = None) -> tuple[Config, argparse.Namespace]:
    """Read the command line, and make the config of the test that it asks for."""
    args = build_parser().parse_args(argv)
    if not Path(args.checkpoint).is_file() and "://" not in args.checkpoint:
        raise FileNotFoundError(f"checkpoint {args.checkpoint} not found; expected checkpoint to be a file")
    config = prepare_config(args)
    config.load_from, config.resume = args.checkpoint, False
    config.model = without_pretrained(config.model)[0]  # the checkpoint has the weights
    if args.show or args.show_dir:
        _enable_painting(config, args)
    if args.tta:
        if "tta_model" not in config or "tta_pipeline" not in config:
            raise ValueError(f"--tta needs tta_model and tta_pipeline in {args.config}; add them or leave --tta out")
        config.test_dataloader.dataset.pipeline = config.tta_pipeline
        config.tta_model.module = config.model
        config.model = config.tta_model
    if args.out is not None:
        if is_classifier(config):
            raise ValueError("--out writes the label maps of a segmentor; leave it out for a classifier")
        evaluators = config.get("test_evaluator") or []
        evaluators = evaluators if isinstance(evaluators, list) else [evaluators]
        for evaluator in evaluators:
            if len(evaluators) == 1 or str(evaluator.get("type")).endswith("IoUMetric"):  # another may not write maps
                evaluator.update(output_dir=args.out, keep_results=True)
    return config, args


def _enable_painting(config: Config, args: argparse.Namespace) -> None:
    hooks = config.get("default_hooks") or {}
    if not (hooks.get("visualization") and config.get("visualizer")):
        raise ValueError(
            "--show and --show-dir need default_hooks.visualization=dict(type='SegVisualizationHook') and a visualizer "
            "in the config"
        )
    hooks["visualization"].draw = True
    if args.show:
        hooks["visualization"].show = True
        hooks["visualization"].wait_time = args.wait_time
    if args.show_dir:
        config.visualizer.save_dir = args.show_dir


@safe_loading()
def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate as the command line says."""
    config, args = read_command(argv)
    init_distributed(args.launcher)
    with explained_build(args.config):
        runner = build_runner(config)
        open_data(runner, "test")
    runner.register_hook(WeightsFitHook(test=True, partial=args.partial_load))
    runner.test()
    end_distributed()
