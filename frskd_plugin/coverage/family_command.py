"""The command line of tools/coverage_mmseg.py: which families, and where the table goes."""

from __future__ import annotations

import argparse
import importlib
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from frskd_plugin.coverage.command import add_common_options, prepare_files
from frskd_plugin.coverage.family_report import NOT_RUN, FamilyRow, line, summary, write_json, write_markdown
from frskd_plugin.coverage.fault import Fault
from frskd_plugin.coverage.isolated import attempt, in_process, isolated

EPILOG = """\
exit status: 0 every family passes whose plain config runs, 1 at least one of them does not, 2 nothing can be tried
examples:
  coverage_mmseg.py --json families.json --markdown docs/coverage_mmseg.md
  coverage_mmseg.py --families fcn ocrnet pidnet
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Try the families, one line each, and write the table; see `EPILOG` for the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        families = _families().families_to_try(args.families)
        prepare_files(args)
    except (ValueError, ImportError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    rows = []
    for row in try_families(families, in_process if args.in_process else isolated, args.timeout):
        rows.append(row)
        if args.json:  # after each row: all of them take a quarter of an hour
            write_json(args.json, rows)
    if args.markdown:
        command = f"python tools/{parser.prog} {shlex.join(argv)}".rstrip()
        write_markdown(args.markdown, rows, command, f"{platform.system()}, {platform.machine()}")
    print(summary(rows))
    return 0 if all(row.ok for row in rows) else 1


def make_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(
        prog="coverage_mmseg.py",
        description="Trains one config of each family of mmsegmentation by one step, plain and with FRSKD: random "
        "weights, tiny images, on a CPU; then exports the student and loads it into the plain config.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--families", nargs="+", default=[], metavar="NAME", help="folders of mmseg's configs (all)")
    add_common_options(parser, "step")
    return parser


def try_families(families: Sequence[str], call: Callable[..., Any], timeout: float) -> Iterator[FamilyRow]:
    """Examine a config of each family; each row is told as soon as it is there."""
    for family in families:
        start = time.perf_counter()
        row = _row(family, str(_families().smallest_config(family)), call, timeout)
        print(line(row, time.perf_counter() - start), flush=True)
        yield row


def _row(family: str, file: str, call: Callable[..., Any], timeout: float) -> FamilyRow:
    config = Path(file).name
    plain = attempt(call, examine, "examine_plain", file, timeout=timeout)
    if isinstance(plain, Fault):
        return FamilyRow(family, config, plain=str(plain), result=f"{NOT_RUN}: {plain}")
    facts = attempt(call, examine, "examine_frskd", file, *plain.values(), timeout=timeout)
    if isinstance(facts, Fault):
        return FamilyRow(family, config, result=str(facts), image=plain["image"])
    return FamilyRow(family, config, image=plain["image"], **facts)


def examine(name: str, *args: Any) -> dict[str, Any]:
    """A function of `frskd_plugin.coverage.family`, which is imported when it is called: it needs mmseg."""
    return getattr(importlib.import_module("frskd_plugin.coverage.family"), name)(*args)


def _families() -> Any:
    """`frskd_plugin.coverage.families`, which needs mmseg."""
    try:
        return importlib.import_module("frskd_plugin.coverage.families")
    except ImportError as error:
        raise ImportError(f"A segmentor needs a package that cannot be imported: {error}") from error
