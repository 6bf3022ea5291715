"""``benchmark step``: the training step of the plain network beside that with FRSKD."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from frskd_plugin.benchmark.classification import classification_steps
from frskd_plugin.benchmark.cost import MEMORY_MEANING, forward_macs, step_memory
from frskd_plugin.benchmark.segmentation import SEGMENTORS, segmentation_steps
from frskd_plugin.benchmark.timing import interleaved_medians
from frskd_plugin.benchmark.training_step import AMP_DTYPES, StepSettings

MIB = 1024.0**2


def measure_step(name: str, settings: StepSettings, repeat: int) -> dict[str, object]:
    """One row of the report: seconds of both steps and their ratio, multiply-accumulates per image, bytes.

    Raises:
        ValueError: The model is unknown.
    """
    make_steps = segmentation_steps if name in SEGMENTORS else classification_steps
    try:
        plain, frskd, batch = make_steps(name, settings)
    except ValueError as error:
        raise ValueError(f"{error} Segmentors are: {', '.join(SEGMENTORS)}.") from error
    plain_macs, frskd_macs = forward_macs(plain, batch), forward_macs(frskd, batch)
    plain_memory, frskd_memory = step_memory(plain), step_memory(frskd)
    plain_s, frskd_s = interleaved_medians([plain, frskd], repeat)
    return {
        "model": name,
        "batch": batch,
        "device": settings.device,
        "threads": torch.get_num_threads(),
        "amp": settings.amp,
        "compile": settings.compile,
        "channels_last": settings.channels_last,
        "plain_s": plain_s,
        "frskd_s": frskd_s,
        "ratio": frskd_s / plain_s,
        "plain_macs": plain_macs,
        "frskd_macs": frskd_macs,
        "mac_ratio": frskd_macs / plain_macs,
        "plain_memory": plain_memory,
        "frskd_memory": frskd_memory,
        "memory_is": MEMORY_MEANING[plain.device_type],
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument("--model", nargs="+", required=True, metavar="NAME", help="timm model, effdet_d0 or effdet_d1")
    parser.add_argument("--batch", type=positive_int, help="images in a step (32; resnet18_cifar 16; segmentors 2)")
    parser.add_argument("--size", type=positive_int, help="image height and width (the model's own; segmentors 512)")
    parser.add_argument("--threads", type=positive_int, help="CPU threads (PyTorch's choice)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument(
        "--amp", nargs="?", const="bf16", choices=sorted(AMP_DTYPES), help="autocast to bf16, or to this type"
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile both networks")
    parser.add_argument("--channels-last", action="store_true", help="channels_last layout for both networks")
    parser.add_argument("--repeat", type=positive_int, default=10, help="steps of each kind that are timed (10)")
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="also write the rows as a JSON list; alone: to stdout"
    )
    parser.set_defaults(run=run)


def positive_int(text: str) -> int:
    """An argument that counts something."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def run(args: argparse.Namespace) -> None:
    """Measure every model that was named, print a table and write the file.

    Raises:
        ValueError: An unknown model or device.
    """
    check_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    settings = StepSettings(args.batch, args.size, args.device, args.amp, args.compile, args.channels_last)
    rows: list[dict[str, object]] = []
    to_stdout = args.json == "-"
    for name in args.model:
        rows.append(measure_step(name, settings, args.repeat))
        print(describe(rows[-1]), flush=True, file=sys.stderr if to_stdout else sys.stdout)
        if args.json and not to_stdout:  # after each model: a long run that is stopped keeps what it has
            file = Path(args.json)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(rows, indent=2) + "\n")
    if to_stdout:
        print(json.dumps(rows, indent=2))


def check_device(device: str) -> None:
    """Raises: ValueError when the device does not exist here."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {device!r} cannot be used here: {reason}. `--device cpu` always works.") from error


def describe(row: dict[str, Any]) -> str:
    """A few lines for a reader."""
    settings = [f"batch {row['batch']}", row["device"], f"{row['threads']} CPU thread(s)"]
    settings += [key for key in ("compile", "channels_last") if row[key]] + ([row["amp"]] if row["amp"] else [])
    lines = [f"{row['model']}: {', '.join(settings)}"]
    for name, key, unit, scale, remark in (
        ("step", "s", "ms", 1e3, "median"),
        ("MACs", "macs", "M", 1e-6, "forward, per image"),
        ("memory", "memory", "MiB", 1 / MIB, row["memory_is"]),
    ):
        plain, frskd = row[f"plain_{key}"] * scale, row[f"frskd_{key}"] * scale
        ratio = f"x {frskd / plain:.2f}"
        lines.append(f"  {name:7}{plain:9.1f} {unit:3} plain {frskd:9.1f} {unit:3} FRSKD  {ratio:7} ({remark})")
    return "\n".join(lines)
