"""Write the plain student of an FRSKD checkpoint: ``python tools/export_student.py IN OUT``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import frskd_plugin  # noqa: F401
from frskd_plugin.mmengine.export import export_student


def main(argv: Sequence[str] | None = None) -> None:
    """Export, and say what was written."""
    parser = argparse.ArgumentParser(
        description="Write the plain student of an FRSKD checkpoint (no self-teacher, no optimizer) and its config"
    )
    parser.add_argument("source", metavar="IN", help="checkpoint of a run with an FRSKD config (.pth)")
    parser.add_argument("target", metavar="OUT", help="file to write (.pth); the plain config goes to OUT with .py")
    args = parser.parse_args(argv)
    try:
        target, config = export_student(args.source, args.target)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    before, after = Path(args.source).stat().st_size, target.stat().st_size
    print(f"student: {target} ({after / 2**20:.1f} MiB; the training checkpoint has {before / 2**20:.1f} MiB)")
    print(f"config:  {config}")


if __name__ == "__main__":
    main()
