"""The command line of `tools/reproduce.py`."""

from __future__ import annotations

import argparse
import functools
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from frskd_plugin.benchmark.options import check_device, positive_int, whole_number
from frskd_plugin.reproduce.plan import Scale, paper_epochs
from frskd_plugin.reproduce.records import Store
from frskd_plugin.reproduce.session import Session
from frskd_plugin.reproduce.tables import TABLES
from frskd_plugin.reproduce.trainer import Machine, Trainer, training_command

EPILOG = """\
DATA holds a folder for each data set: cifar100, tinyimagenet, cub200, mit67, dogs, stanford40, imagenet, VOCdevkit
(tools/prepare_data.py and tools/prepare_voc.py make them).
It may be killed and started again: what is done is skipped, what was begun goes on.
exit status: 0 all runs are done, 1 some failed, 2 the command line is wrong
examples:
  reproduce.py table1 --data data --datasets cifar100 --models wrn_16_2 --dry-run
  reproduce.py table1 --data data --datasets cifar100 --models wrn_16_2 --epochs 8 --images-per-class 100 --seeds 0 1
  reproduce.py table6          # counts parameters and FLOPs; with --data it trains as well
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing of a table and write it; see `EPILOG` for the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        return reproduce(args)
    except (ValueError, ImportError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: stopped; the same command goes on from here\n")


def reproduce(args: argparse.Namespace) -> int:
    """What `main` does, with its errors as exceptions.

    Raises:
        ValueError: a name that the table does not have, a device that is not there, or no ``--data``.
    """
    session = make_session(args)
    for device in args.device:
        check_device(device)
    costs = session.costs(args.cost_steps if args.cost else 0, args.device[0])
    if args.dry_run:
        print("\n".join(session.describe(costs, args.jobs)))
        return 0
    failures: dict[str, str] = {}
    if args.data is not None:
        trainer = Trainer(
            session.store,
            Machine(args.device, args.jobs, args.threads or threads_for(args.jobs)),
            functools.partial(training_command, store=session.store, data=args.data.resolve()),
            on_done=lambda run: session.write(costs),
            say=functools.partial(print, flush=True),
        )
        with ends_like_ctrl_c():
            failures = trainer.train(session.runs())
    print(session.write(costs))
    print(f"written: {session.store.out / session.file_stem}.md")
    if failures:
        print(f"{len(failures)} runs failed: {', '.join(failures)}")
    return 1 if failures else 0


@contextmanager
def ends_like_ctrl_c() -> Iterator[None]:
    """A polite kill of this process ends its trainings too."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def threads_for(jobs: int) -> int | None:
    """CPU threads of each of several runs, unless the environment says it; None leaves it to PyTorch.

    Left alone, each would take all cores, and all together be many times slower.
    """
    if jobs == 1 or "OMP_NUM_THREADS" in os.environ:
        return None
    return max(1, (os.cpu_count() or 1) // jobs)


def make_session(args: argparse.Namespace) -> Session:
    """The table, its scale and its folders.

    Raises:
        ValueError: see `reproduce`.
    """
    table = TABLES[args.table].chosen(args.datasets, args.models, args.methods)
    if args.data is None and not args.dry_run and args.table != "table6":
        raise ValueError("--data is missing: the folder that holds a folder for each data set (--dry-run needs none).")
    if args.data is not None and not args.data.is_dir():
        raise ValueError(f"--data: {args.data} is not a folder; expected one that holds a folder for each data set.")
    arguments = [*(["--amp-dtype", args.amp_dtype] if args.amp_dtype else [])]
    arguments += [f"--{name}" for name in ("channels-last", "compile") if getattr(args, name.replace("-", "_"))]
    epochs = None if args.epochs == paper_epochs(table) else args.epochs
    scale = Scale(epochs, args.images_per_class, tuple(args.cfg_options), tuple(arguments))
    seeds = tuple(dict.fromkeys(table.seeds if args.seeds is None else args.seeds))
    return Session(table, scale, seeds, Store(args.work_dir, args.out))


def make_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(
        prog="reproduce.py",
        description="Runs what is missing of a table of the paper, and writes it beside the paper's numbers.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", choices=list(TABLES), metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("--data", type=Path, metavar="DATA", help="folder of the data sets")
    parser.add_argument("--dry-run", action="store_true", help="list what would be run, and how long it would take")
    part = parser.add_argument_group("the part of the table that is run")
    part.add_argument("--datasets", nargs="+", metavar="NAME", help="of its data sets (all)")
    part.add_argument("--models", nargs="+", metavar="NAME", help="of its networks (all)")
    part.add_argument("--methods", nargs="+", metavar="NAME", help="of its rows (all)")
    part.add_argument("--seeds", nargs="+", type=whole_number, metavar="N", help="(0 1 2; Tables 3 and 4: 0)")
    scale = parser.add_argument_group("other than the paper's conditions")
    scale.add_argument("--epochs", type=positive_int, help="in all; the schedule shrinks with them")
    scale.add_argument("--images-per-class", type=positive_int, metavar="N", help="train on the first N of each class")
    scale.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="settings of every config")
    scale.add_argument("--amp-dtype", choices=["bf16", "fp16"], help="mixed precision")
    scale.add_argument("--channels-last", action="store_true", help="that memory format")
    scale.add_argument("--compile", action="store_true", help="torch.compile")
    machine = parser.add_argument_group("machine and folders")
    machine.add_argument("--jobs", type=positive_int, default=1, help="runs at a time (1)")
    machine.add_argument("--threads", type=positive_int, help="CPU threads of each run (the cores, shared)")
    machine.add_argument(
        "--device",
        nargs="+",
        default=["cuda" if torch.cuda.is_available() else "cpu"],
        help="cpu, cuda, or several: cuda:0 cuda:1, which the runs share",
    )
    machine.add_argument("--work-dir", type=Path, default=Path("work_dirs/reproduce"), help="(work_dirs/reproduce)")
    machine.add_argument("--out", type=Path, default=Path("docs/results"), help="tables and records (docs/results)")
    machine.add_argument(
        "--no-cost", dest="cost", action="store_false", help="measure no steps; those measured before are shown"
    )
    machine.add_argument("--cost-steps", type=positive_int, default=5, help="steps of each method that are timed (5)")
    return parser
