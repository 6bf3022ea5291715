"""The command line of the doctor."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from frskd_plugin.benchmark.options import check_device, key_and_value, positive_int
from frskd_plugin.benchmark.training_step import AMP_DTYPES
from frskd_plugin.doctor.build import Admission, admit_config, admit_model, is_config
from frskd_plugin.doctor.describe import describe
from frskd_plugin.doctor.examination import examine_patient

EPILOG = """\
exit status: 0 healthy, 1 at least one fault, 2 the model cannot be built
examples:
  doctor.py wrn_16_2 --num-classes 100 --set alpha=2 beta=100 width=2
  doctor.py resnet50 --input-size 3 128 128 --set width=auto out_indices=1,2,3,4
  doctor.py configs/frskd_voc_effdet_d0.py --input-size 3 128 128
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Examine what the arguments name and print the report; see `EPILOG` for the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        check_device(args.device)
        torch.manual_seed(0)
        admission = admit(args)
    except (ValueError, TypeError, ImportError, OSError, RuntimeError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    try:
        report = examine_patient(admission.patient, args.amp, admission.unused_allowed)
    except Exception as error:  # whatever a model raises: that its step fails is what there is to tell
        failure = f"the training step fails with {type(error).__name__}: {error}"
        print(f"Verdict: 1 FAULT\n  1. {args.model}: {failure}")
        if args.json:
            write_json(args.json, {"healthy": False, "faults": [failure]})
        return 1
    report = dataclasses.replace(
        report, model=f"{args.model} ({report.model})", remarks=(*admission.remarks, *report.remarks)
    )
    print(describe(report), file=sys.stderr if args.json == "-" else sys.stdout)
    if args.json:
        write_json(args.json, report.to_dict())
    return 0 if report.healthy else 1


def make_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(
        prog="doctor.py",
        description="One dry training step on random data: what is matched, what it costs, which term trains what, and "
        "what is wrong.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    for option, text in (
        ("--set", "settings of the method, and out_indices: alpha=2 width=auto out_indices=1,2,3,4"),
        ("--model-kwargs", "arguments of timm.create_model: drop_path_rate=0.1"),
    ):
        model.add_argument(option, nargs="+", type=key_and_value, default=[], metavar="KEY=VALUE", help=text)
    config = parser.add_argument_group("of a CONFIG")
    config.add_argument("--cfg-options", nargs="+", metavar="KEY=VALUE", help="settings that override the config")
    return parser


def admit(args: argparse.Namespace) -> Admission:
    """The patient that the arguments name.

    Raises:
        ValueError: an option that does not belong to it; and see `admit_model`, `admit_config`.
    """
    common = {"input_size": args.input_size, "batch": args.batch, "device": args.device}
    if is_config(args.model):
        foreign = {"--set": args.set, "--model-kwargs": args.model_kwargs, "--num-classes": args.num_classes}
        _refuse(foreign, f"belongs to a timm model; settings of the config {args.model} are given with --cfg-options")
        return admit_config(args.model, _config_settings(args.cfg_options), **common)
    _refuse({"--cfg-options": args.cfg_options}, f"belongs to a config; settings for {args.model} are given with --set")
    model_kwargs = dict(args.model_kwargs)
    if args.num_classes is not None:
        model_kwargs["num_classes"] = args.num_classes
    return admit_model(args.model, args.method, dict(args.set), model_kwargs, **common)


def _refuse(options: dict[str, Any], reason: str) -> None:
    for option, value in options.items():
        if value:
            raise ValueError(f"{option} {reason}.")


def _config_settings(options: list[str] | None) -> dict[str, Any]:
    """``a.b=value`` as mmengine reads it."""
    if not options:
        return {}
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(prog="--cfg-options")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction)
    return parser.parse_args(["--cfg-options", *options]).cfg_options


def write_json(file: str, report: dict[str, Any]) -> None:
    """To a file, whose folder is made, or to stdout for '-'."""
    text = json.dumps(report, indent=2, allow_nan=False)
    if file == "-":
        print(text)
        return
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(text + "\n")
