"""Write the plain student of a training checkpoint: ``frskd export_student IN OUT``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import frskd_plugin  # noqa: F401
from frskd_plugin.mmengine.export import export_student
from frskd_plugin.mmengine.stored_config import add_allow_imports


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all options."""
    parser = argparse.ArgumentParser(
        prog="frskd export_student",
        description="Write the plain student of a checkpoint, without self-teacher and optimizer: of a classifier "
        "timm's own state_dict, of an FRSKD segmentor a checkpoint and the plain config",
    )
    parser.add_argument("source", metavar="IN", help="checkpoint of a classifier, or of an FRSKD segmentor (.pth)")
    parser.add_argument(
        "target", metavar="OUT", help="file to write (.pth); a segmentor's plain config goes to OUT with .py"
    )
    add_allow_imports(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Export, and say what was written."""
    args = build_parser().parse_args(argv)
    made = export_student(args.source, args.target, args.allow_imports)
    before, after = Path(args.source).stat().st_size, made.path.stat().st_size
    print(f"student: {made.path} ({after / 2**20:.1f} MiB; the training checkpoint has {before / 2**20:.1f} MiB)")
    print(f"weights: {made.entry}")
    print(f"python:  {made.create}" if made.config is None else f"config:  {made.config}")
