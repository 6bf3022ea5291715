"""``benchmark step``: the training step of the plain network beside that with FRSKD."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from frskd_plugin.benchmark.classification import classification_steps
from frskd_plugin.benchmark.cost import MEMORY_MEANING, forward_macs, step_memory
from frskd_plugin.benchmark.options import (
    add_machine_arguments,
    add_network_arguments,
    key_and_value,
    machine_text,
    option_names,
    positive_int,
    report,
    set_machine,
)
from frskd_plugin.benchmark.peak_memory import PEAK_MEANING, peak_memory
from frskd_plugin.benchmark.segmentation import SEGMENTORS, segmentation_steps, steps_with_data
from frskd_plugin.benchmark.timing import interleaved_medians
from frskd_plugin.benchmark.training_step import StepSettings
from frskd_plugin.timm.create import check_model_name

MIB = 1024.0**2


def measure_step(
    name: str, settings: StepSettings, repeat: int, with_data: bool = False, peak: bool = False
) -> dict[str, object]:
    """One row of the report: seconds of both steps and their ratio, multiply-accumulates per image, bytes.

    Args:
        name: timm model or segmentor.
        settings: how the steps are run.
        repeat: steps of each kind that are timed.
        with_data: measure a segmentor's steps also with the making of their batches.
        peak: measure also the peak memory, in processes of their own.

    Raises:
        ValueError: The model cannot be trained with FRSKD, or not on images of this size, or not with this option.
        OSError: A process that measured the peak memory was killed.
    """
    steps = segmentation_steps if name in SEGMENTORS else classification_steps
    more: dict[str, Any] = {}
    if peak:
        more["plain_peak"], more["frskd_peak"] = peak_memory(steps, name, settings)
    plain, frskd, batch = steps(name, settings)
    plain_macs, frskd_macs = forward_macs(plain, batch), forward_macs(frskd, batch)
    plain_memory, frskd_memory = step_memory(plain), step_memory(frskd)
    with TemporaryDirectory() as folder:
        timed: list[Callable[[], object]] = [plain, frskd]
        if with_data:
            timed += steps_with_data(name, settings, [plain, frskd], batch, Path(folder))
        plain_s, frskd_s, *data_s = interleaved_medians(timed, repeat)
    if with_data:
        more |= {"plain_data_s": data_s[0], "frskd_data_s": data_s[1], "data_ratio": data_s[1] / data_s[0]}
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
        **more,
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument("--model", nargs="+", required=True, metavar="NAME", help="timm model, effdet_d0 or effdet_d1")
    parser.add_argument("--batch", type=positive_int, help="images in a step (32; resnet18_cifar 16; segmentors 2)")
    parser.add_argument("--size", type=positive_int, help="image height and width (the model's own; segmentors 512)")
    parser.add_argument("--repeat", type=positive_int, default=10, help="steps of each kind that are timed (10)")
    parser.add_argument(
        "--with-data", action="store_true", help="time a segmentor's steps also with the making of their batches"
    )
    parser.add_argument(
        "--peak", action="store_true", help="also the peak memory of each step, in a process of its own (CPU)"
    )
    parser.add_argument(
        "--self-teacher",
        nargs="+",
        type=key_and_value,
        default=[],
        metavar="NAME=VALUE",
        help="settings of a segmentor's FRSKDHead: early_gradients=True, kd_resolution=head, ...",
    )
    add_network_arguments(parser, meaning="run both networks with")
    add_machine_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measure every model that was named, print a table and write the file.

    Raises:
        ValueError: An unknown model or device, or an option that is for segmentors.
    """
    set_machine(args)
    check_names(args.model)
    classifiers = [name for name in args.model if name not in SEGMENTORS]
    if classifiers and (args.with_data or args.self_teacher):
        raise ValueError(
            f"--with-data and --self-teacher are for {', '.join(SEGMENTORS)}, got {', '.join(classifiers)}; "
            "`benchmark.py train` measures classifiers with their data."
        )
    settings = StepSettings(
        args.batch,
        args.size,
        args.device,
        args.amp,
        args.compile,
        args.channels_last,
        args.width,
        tuple(args.self_teacher),
    )
    rows = ([measure_step(name, settings, args.repeat, args.with_data, args.peak)] for name in args.model)
    report(rows, describe, args.json)


def check_names(names: list[str]) -> None:
    """Raises: ValueError when a name is neither a segmentor nor a model of timm."""
    for name in names:
        if name not in SEGMENTORS:
            try:
                check_model_name(name)
            except ValueError as error:
                raise ValueError(f"{error} Segmentors are: {', '.join(SEGMENTORS)}.") from error


def describe(rows: list[dict[str, Any]]) -> str:
    """A few lines for a reader."""
    (row,) = rows
    lines = [f"{row['model']}: {', '.join([machine_text(row), *option_names(row)])}"]
    for name, key, unit, scale, remark in (
        ("step", "s", "ms", 1e3, "median"),
        ("+ data", "data_s", "ms", 1e3, "median, files read and augmented in the same process"),
        ("MACs", "macs", "M", 1e-6, "forward, per image"),
        ("memory", "memory", "MiB", 1 / MIB, row["memory_is"]),
        ("peak", "peak", "MiB", 1 / MIB, PEAK_MEANING),
    ):
        if f"plain_{key}" not in row:
            continue
        plain, frskd = row[f"plain_{key}"] * scale, row[f"frskd_{key}"] * scale
        ratio = f"x {frskd / plain:.2f}"
        lines.append(f"  {name:7}{plain:9.1f} {unit:3} plain {frskd:9.1f} {unit:3} FRSKD  {ratio:7} ({remark})")
    return "\n".join(lines)
