"""Support matrix: which models of timm and which families of mmsegmentation train with FRSKD.

The matrix is made of tests, tests/support of the sources; this command chooses some of them and runs pytest.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[2]
# This package's own, of one module, each with code of its own.
OWN_NETWORKS = ("resnet18_cifar", "wrn_16_2", "wrn_16_2_published")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of our options; pytest takes the others."""
    parser = argparse.ArgumentParser(
        prog="frskd support",
        description="Tries the smallest model of each module of timm, or a config of each family of mmsegmentation: "
        "random weights, the smallest images that it takes, one training step and one evaluation.",
        epilog="Further options are pytest's, such as -n 2 for two processes. Exit status: 0 all pass that can be "
        "tried, 1 at least one does not, 2 nothing can be tried.",
    )
    add = parser.add_argument
    add("library", choices=["timm", "mmseg"])
    add("--only", "--modules", "--families", nargs="+", default=[], metavar="NAME", help="default: all")
    add("--classifier", action="store_true", help="timm: as classifiers (default)")
    add("--segmentor", action="store_true", help="timm: as backbones of a segmentor; needs mmseg")
    add("--write", "--markdown", metavar="FILE", help="write the tables and what they mean")
    add("--json", metavar="FILE", help="write the rows as a list of objects")
    add("--timeout", default="600", metavar="S", help="limit for each model (600 s)")
    add("--in-process", action="store_true", help="no worker process: a crash ends the run")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the chosen tests in a worker process, which is replaced when a model crashes it."""
    argv = sys.argv[1:] if argv is None else argv
    args, of_pytest = build_parser().parse_known_args(argv)
    if of_pytest and not of_pytest[0].startswith("-"):  # pytest would look for a file, and run nothing
        raise ValueError(f"expected options behind the library, got {of_pytest[0]!r}: names follow --only NAME ...")
    if not (SOURCES / "tests" / "support").is_dir():
        raise FileNotFoundError(f"{SOURCES} has no tests/support: run this command in a checkout of the sources.")
    kinds = [kind for kind in ("classifier", "segmentor") if getattr(args, kind)] or ["classifier"]
    if args.library == "mmseg":
        if args.classifier or args.segmentor:
            raise ValueError("--classifier and --segmentor are for timm: leave them out with mmseg")
        kinds = ["family"]
    if kinds != ["classifier"]:
        importlib.import_module("mmseg")
    known = names(args.library)
    if unknown := sorted({*args.only} - {*known}):
        raise ValueError(f"{args.library} has no {', '.join(unknown)}: expected names out of {', '.join(known)}.")
    chosen = [
        f"tests/support/test_{args.library}.py::test_{kind}[{name}]" for kind in kinds for name in args.only or known
    ]
    files = {f"--{args.library}-table": args.write, "--support-json": args.json}
    options = [f"{option}={Path(file).absolute()}" for option, file in files.items() if file]
    for file in filter(None, files.values()):  # one that cannot be written is an error before the work, not after it
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).open("a").close()
    options += ["-n0"] if args.in_process else ["-n1", "--max-worker-restart=1000"]
    options += ["--timeout", args.timeout, f"--support-command=frskd support {shlex.join(argv)}"]
    pytest = [sys.executable, "-m", "pytest", "-m", "support", "-p", "no:cacheprovider"]
    return subprocess.call([*pytest, *options, *of_pytest, *chosen], cwd=SOURCES)


def names(library: str) -> list[str]:
    """Return timm's modules and then this package's own networks, or the folders of mmsegmentation's configs."""
    if library == "timm":
        importlib.import_module("frskd_plugin.timm")  # registers this package's own models
        modules = importlib.import_module("timm").list_modules()
        return [*(module for module in modules if module != "cifar_networks"), *OWN_NETWORKS]
    return sorted(path.name for path in mmseg_configs().iterdir() if any(path.glob("*.py")) and path.name[0] != "_")


def mmseg_configs() -> Path:
    """Return the folder in which the installed mmsegmentation keeps its configs."""
    folder = Path(importlib.import_module("mmseg").__path__[0]) / ".mim" / "configs"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing; install mmsegmentation's wheel, not a link to its sources.")
    return folder
