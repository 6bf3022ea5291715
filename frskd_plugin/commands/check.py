"""``frskd check MODEL|CONFIG``: dry run of a timm model or a config before it trains (`frskd_plugin.check`)."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence

from frskd_plugin.check import is_config, prepare
from frskd_plugin.check_step import AMP_DTYPES, dry_run
from frskd_plugin.commands import text_of
from frskd_plugin.commands.arguments import (
    add_keywords,
    add_settings,
    check_device,
    command_parser,
    positive_int,
    refuse_foreign,
    write_text,
)

EPILOG = """\
exit status: 0 no problem (there may be warnings), 1 at least one problem, 2 the model cannot be built
examples:
  frskd check wrn_16_2 --num-classes 100 --set alpha=2 beta=100 width=2
  frskd check resnet50 --input-size 3 128 128 --set width=auto out_indices=1,2,3,4
  frskd check configs/frskd_voc_effdet_d0.py --input-size 3 128 128
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all options."""
    description = "One dry training step on random data: what is matched, what it costs, what is wrong."
    parser = command_parser("check", description, EPILOG)
    parser.add_argument("model", metavar="MODEL|CONFIG", help="name of a timm model, or a config file (.py)")
    parser.add_argument("--input-size", nargs=3, type=positive_int, metavar=("C", "H", "W"), help="size of the images")
    parser.add_argument("--batch", type=positive_int, help="images that are new in a step (4; segmentors 2)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument(
        "--amp", nargs="?", const="bf16", choices=sorted(AMP_DTYPES), help="autocast to bf16, or to this type"
    )
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="also write the report as JSON; alone: to stdout"
    )
    model = parser.add_argument_group("of a timm MODEL")
    model.add_argument("--method", default="frskd", help="method that trains it (frskd)")
    model.add_argument("--num-classes", type=positive_int, help="number of classes (the model's own)")
    add_keywords(model, "--set", "settings of the method, and out_indices: alpha=2 width=auto out_indices=1,2,3,4")
    add_keywords(model, "--model-kwargs", "arguments of timm.create_model: drop_path_rate=0.1")
    config = parser.add_argument_group("of a CONFIG")
    add_settings(config, "--cfg-options", "settings that override the config")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Check what the arguments name and print the report; see `EPILOG` for the exit status."""
    args = build_parser().parse_args(argv)
    check_device(args.device)
    refuse_foreign(args, is_config(args.model), "set", "model_kwargs", "num_classes")
    model_kwargs = dict(args.model_kwargs)
    if args.num_classes is not None:
        model_kwargs["num_classes"] = args.num_classes
    try:
        subject = prepare(
            args.model,
            input_size=args.input_size,
            batch=args.batch,
            device=args.device,
            method=args.method,
            settings=dict(args.set),
            model_kwargs=model_kwargs,
            cfg_options=args.cfg_options,
        )
    except RuntimeError as error:
        raise ValueError(f"{args.model} cannot be built: {error}") from error
    try:
        report = dry_run(subject, args.amp)
    except Exception as error:  # whatever a model raises: that its step fails is what there is to tell
        failure = f"the training step fails with {type(error).__name__}: {text_of(error)}"
        text, content = f"1 PROBLEM\n  1. {args.model}: {failure}", {"healthy": False, "problems": [failure]}
    else:
        report = dataclasses.replace(report, model=f"{args.model} ({report.model})")
        text, content = str(report), report.to_dict()
    print(text, file=sys.stderr if args.json == "-" else sys.stdout)
    if args.json is not None:
        write_text(args.json, json.dumps(content, indent=2, allow_nan=False) + "\n")
    return 1 if content["problems"] else 0
