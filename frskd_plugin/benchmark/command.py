"""The command line of the benchmark; each subcommand has a file of its own that adds its options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from frskd_plugin.benchmark import step, train

# name -> (module with add_arguments, which sets `run`; what it measures)
COMMANDS = {
    "step": (step, "time of a training step, plain and with FRSKD, in one process"),
    "train": (train, "images per second of training on CIFAR-100, with and without each way to make it faster"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; a mistake of the user ends in one line and exit status 2."""
    parser = argparse.ArgumentParser(prog="benchmark.py", description="What FRSKD costs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (module, text) in COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=text, description=text))
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except (ValueError, ImportError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    return 0
