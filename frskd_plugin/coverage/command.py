"""The command line: which modules, as what, and where the table goes."""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from frskd_plugin.coverage.choice import modules_to_try, smallest_model
from frskd_plugin.coverage.fault import Fault
from frskd_plugin.coverage.isolated import attempt, in_process, isolated
from frskd_plugin.coverage.report import Row, line, summary, write_json, write_markdown

# kind -> (module, function); imported when asked for: a segmentor needs mmseg
EXAMINERS = {
    "classifier": ("frskd_plugin.coverage.classifier", "examine_classifier"),
    "segmentor": ("frskd_plugin.coverage.segmentor", "examine_segmentor"),
}
EPILOG = """\
exit status: 0 every module passes, 1 at least one does not, 2 nothing can be tried
examples:
  coverage_timm.py
  coverage_timm.py --classifier --segmentor --markdown docs/coverage_timm.md
  coverage_timm.py --segmentor --modules resnet swin_transformer --json rows.json
"""
# a function and its arguments -> its result; or Fault
Call = Callable[..., Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Try the modules, one line each, and write the table; see `EPILOG` for the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser()
    args = parser.parse_args(argv)
    kinds = [kind for kind in EXAMINERS if getattr(args, kind)] or ["classifier"]
    try:
        modules = modules_to_try(args.modules)
        for kind in kinds:
            _examiner(kind)
        prepare_files(args)
    except (ValueError, ImportError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    rows = []
    for row in try_modules(modules, kinds, in_process if args.in_process else isolated, args.timeout):
        rows.append(row)
        if args.json:  # after each row: all of them take half an hour
            write_json(args.json, rows)
    if args.markdown:
        write_markdown(args.markdown, rows, f"python tools/{parser.prog} {shlex.join(argv)}")
    print(summary(rows))
    return 0 if all(row.ok for row in rows) else 1


def make_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(
        prog="coverage_timm.py",
        description="Tries the smallest model of each module of timm with FRSKD: random weights, the smallest images "
        "that it takes, one training step and one evaluation.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--classifier", action="store_true", help="as classifiers (default)")
    parser.add_argument("--segmentor", action="store_true", help="as backbones of an FRSKDEncoderDecoder; needs mmseg")
    parser.add_argument("--modules", nargs="+", default=[], metavar="NAME", help="names of timm.list_modules() (all)")
    add_common_options(parser, "model")
    return parser


def add_common_options(parser: argparse.ArgumentParser, tried: str) -> None:
    """Where the rows go, and how each of what is ``tried`` is run."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as a list of objects")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables with their explanation")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="S", help=f"limit for each {tried} (600 s)")
    parser.add_argument("--in-process", action="store_true", help=f"no process of its own for each {tried}, no limit")


def prepare_files(args: argparse.Namespace) -> None:
    """Raises: OSError, where a file cannot be written, before the work and not after it."""
    for file in filter(None, (args.json, args.markdown)):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def try_modules(modules: Sequence[str], kinds: Sequence[str], call: Call, timeout: float) -> Iterator[Row]:
    """Choose a model of each module and examine it; each row is told as soon as it is there."""
    models: dict[str, str | Fault] = {}
    for kind in kinds:
        for module in modules:
            start = time.perf_counter()
            if module not in models:
                models[module] = attempt(call, smallest_model, module, timeout=timeout)
            row = _row(kind, module, models[module], call, timeout)
            print(line(row, time.perf_counter() - start), flush=True)
            yield row


def _row(kind: str, module: str, model: str | Fault, call: Call, timeout: float) -> Row:
    if isinstance(model, Fault):
        return Row(kind, module, result=f"no model could be chosen: {model}")
    facts = attempt(call, examine, kind, model, timeout=timeout)
    if isinstance(facts, Fault):
        return Row(kind, module, model, result=str(facts))
    return Row(kind, module, model, **facts)


def examine(kind: str, model: str) -> dict[str, Any]:
    """See `examine_classifier` and `examine_segmentor`."""
    return _examiner(kind)(model)


def _examiner(kind: str) -> Callable[[str], dict[str, Any]]:
    module, function = EXAMINERS[kind]
    try:
        return getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise ImportError(f"A {kind} needs a package that cannot be imported: {error}") from error
