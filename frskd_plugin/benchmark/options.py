"""What the subcommands have in common: options, their checks, and the file of rows."""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from frskd_plugin.benchmark.training_step import AMP_DTYPES


def add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    """Where it runs, and where the rows go."""
    parser.add_argument("--threads", type=positive_int, help="CPU threads (PyTorch's choice)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="also write the rows as a JSON list; alone: to stdout"
    )


def add_network_arguments(parser: argparse.ArgumentParser, meaning: str) -> None:
    """How a network is run; ``meaning`` says what naming one of these options does."""
    parser.add_argument(
        "--amp",
        nargs="?",
        const="bf16",
        choices=sorted(AMP_DTYPES),
        help=f"{meaning} autocast to bf16, or to this type",
    )
    parser.add_argument("--compile", action="store_true", help=f"{meaning} torch.compile")
    parser.add_argument("--channels-last", action="store_true", help=f"{meaning} the channels_last layout")
    parser.add_argument(
        "--width", type=width, default=2, help="width of a classifier's self-teacher: a number or auto (2, the paper's)"
    )


def positive_int(text: str) -> int:
    """An argument that counts something."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def whole_number(text: str) -> int:
    """An argument that counts something and may be 0."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or above")
    return int(text)


def width(text: str) -> int | str:
    """An argument that is a number of channels in units of the student's, or 'auto'."""
    if text == "auto":
        return text
    try:
        return positive_int(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor auto") from None


def key_and_value(text: str) -> tuple[str, Any]:
    """An argument ``key=value``, the value as Python writes it, or as text.

    >>> key_and_value("out_indices=1,2"), key_and_value("width=auto"), key_and_value("alpha=0.5")
    (('out_indices', (1, 2)), ('width', 'auto'), ('alpha', 0.5))
    """
    key, equals, value = text.partition("=")
    if not (key.isidentifier() and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, such as alpha=2")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def set_machine(args: argparse.Namespace) -> None:
    """Set the threads, and look whether the device exists.

    Raises:
        ValueError: It does not.
    """
    check_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)


def check_device(device: str) -> None:
    """Raises: ValueError when the device does not exist here."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {device!r} cannot be used here: {reason}. `--device cpu` always works.") from error


def report(
    groups: Iterable[list[dict[str, Any]]], describe: Callable[[list[dict[str, Any]]], str], json_file: str | None
) -> None:
    """Print each group of rows as soon as it is there, and keep the file up to date.

    Args:
        groups: what is measured, lazily.
        describe: text of a group for a reader.
        json_file: None, a path, or '-' for stdout, which then holds nothing else.
    """
    rows: list[dict[str, Any]] = []
    to_stdout = json_file == "-"
    for group in groups:
        rows += group
        print(describe(group), flush=True, file=sys.stderr if to_stdout else sys.stdout)
        if json_file and not to_stdout:  # after each group: a long run that is stopped keeps what it has
            file = Path(json_file)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(rows, indent=2) + "\n")
    if to_stdout:
        print(json.dumps(rows, indent=2))


def machine_text(row: dict[str, Any]) -> str:
    """Batch and device of a row, for a headline."""
    return f"batch {row['batch']}, {row['device']}, {row['threads']} CPU thread(s)"


def option_names(row: dict[str, Any]) -> list[str]:
    """The options that are on."""
    return [key for key in ("compile", "channels_last") if row[key]] + ([row["amp"]] if row["amp"] else [])
