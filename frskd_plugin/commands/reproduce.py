"""The paper's tables: ``reproduce table1 --data data`` runs what is missing and writes the table."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from frskd_plugin.commands.arguments import check_device, command_parser, positive_int, whole_number
from frskd_plugin.commands.config import add_import_option, import_modules
from frskd_plugin.commands.reproduce_cost import StepCost, estimate_seconds, measure, table6_ratios
from frskd_plugin.commands.reproduce_plan import (
    FIRST,
    TABLES,
    Column,
    Row,
    Scale,
    Table,
    checksum,
    plan_cell,
    plan_table,
)
from frskd_plugin.commands.reproduce_runs import TRAIN_RUNS, Store, Trainer, read_or_name, write_json
from frskd_plugin.commands.reproduce_text import draw, markdown
from frskd_plugin.commands.side_by_side import train_side_by_side
from frskd_plugin.core.atomic_write import atomic_write
from frskd_plugin.methods import method_class, method_names

PUBLISHED = Path("docs/results")
COSTS_NAME = "costs.json"
EPILOG = f"""\
DATA holds a folder for each data set: cifar100, tinyimagenet, cub200, mit67, dogs, stanford40, imagenet, VOCdevkit
(frskd prepare_data and frskd prepare_voc make them).
It may be killed and started again: what is done is skipped, what was begun goes on. Seed by seed, rows are run in the
order of --methods; without it {", ".join(FIRST)} come first.
exit status: 0 all runs are done or the time is up, 1 some failed, 2 the command line is wrong
examples:
  frskd reproduce table1 --data data --datasets cifar100 --models wrn_16_2 --dry-run
  frskd reproduce table1 --data data --datasets cifar100 --models wrn_16_2 --side-by-side 3 --minutes 60
  frskd reproduce table1 --data data --datasets cifar100 --models wrn_16_2 --epochs 8 --images-per-class 100 --seeds 0 1
  frskd reproduce table1 --data data --import my_methods --methods baseline my_method
  frskd reproduce table6          # counts parameters and FLOPs; with --data it trains as well
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    text = "Runs what is missing of a table of the paper, and writes it beside the paper's numbers."
    parser = command_parser("reproduce", text, EPILOG)
    add = parser.add_argument
    add("table", choices=list(TABLES), metavar="TABLE", help=", ".join(TABLES))
    add("--data", type=Path, metavar="DATA", help="folder of the data sets")
    add("--dry-run", action="store_true", help="list what would be run, and how long it would take")
    part = parser.add_argument_group("the part of the table that is run")
    part.add_argument("--datasets", nargs="+", metavar="NAME", help="of its data sets (all)")
    part.add_argument("--models", nargs="+", metavar="NAME", help="of its networks (all)")
    part.add_argument("--methods", nargs="+", metavar="NAME", help="of its rows (all)")
    part.add_argument("--seeds", nargs="+", type=whole_number, metavar="N", help="(0 1 2; Tables 3 and 4: 0)")
    add_import_option(part)  # each method that they register becomes a row
    add = parser.add_argument_group("other than the paper's conditions").add_argument
    add("--epochs", type=positive_int, help="in all; the schedule shrinks with them")
    add("--images-per-class", type=positive_int, metavar="N", help="train on the first N of each class")
    add("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="settings of every config")
    add("--amp-dtype", choices=["bf16", "fp16"], help="mixed precision")
    add("--channels-last", action="store_true", help="that memory format")
    add("--compile", action="store_true", help="torch.compile")
    add("--cuda-graph", choices=["on", "off"], help="a step as one CUDA graph (what frskd train chooses)")
    add = parser.add_argument_group("machine and folders").add_argument
    add("--jobs", type=positive_int, default=1, help="processes at a time (1)")
    add("--side-by-side", type=positive_int, default=1, metavar="N", help="runs in each process, to fill a GPU (1)")
    add("--minutes", type=positive_int, metavar="M", help="stop then, at the end of an epoch; the same call goes on")
    add("--threads", type=positive_int, help="CPU threads of each process (the cores, shared)")
    device = ["cuda" if torch.cuda.is_available() else "cpu"]
    text = "cpu, cuda, or several: cuda:0 cuda:1, which the processes share"
    add("--device", nargs="+", default=device, help=text)
    add("--work-dir", type=Path, default=Path("work_dirs/reproduce"), help="(work_dirs/reproduce)")
    text = f"tables and records (WORK_DIR/results; the records in {PUBLISHED} count too, unless this is given)"
    add("--out", type=Path, help=text)
    add("--publish", action="store_true", help=f"also put the table and its records into {PUBLISHED}")
    add("--no-cost", dest="cost", action="store_false", help="measure no steps; those measured before are shown")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing of a table and write it; see `EPILOG` for the exit status.

    Raises:
        ValueError: a name that the table does not have, a device that is not there, or no ``--data``.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == [TRAIN_RUNS]:  # a process of `Trainer`
        return min(1, train_side_by_side(**json.loads(argv[1])))
    args = build_parser().parse_args(argv)
    started = time.time()
    session = make_session(args)
    costs = session.costs(args.cost)
    if args.dry_run or args.data is not None:
        print("\n".join(session.describe(costs, args.jobs * args.side_by_side)), flush=True)
    if args.dry_run:
        return 0
    failures: dict[str, str] = {}
    if args.data is not None:
        trainer = Trainer(
            session.store,
            args.data.resolve(),
            devices=args.device,
            jobs=args.jobs,
            side_by_side=args.side_by_side,
            threads=args.threads or threads_for(args.jobs),
            deadline=started + 60 * args.minutes if args.minutes else None,
            on_done=lambda: session.write(costs),
        )
        failures = trainer.train(plan_table(session.table, session.scale, session.seeds))
    print(session.write(costs))
    print(f"written: {session.store.out / session.file_stem}.md")
    if args.publish:
        print(f"published: {session.publish(costs, PUBLISHED)}")
    if failures:
        print(f"{len(failures)} runs failed: {'; '.join(failures)}")
    return 1 if failures else 0


def make_session(args: argparse.Namespace) -> Session:
    """Take the table, its scale and its folders from the command line.

    Raises:
        ValueError: see `main`.
    """
    whole = TABLES[args.table]
    import_modules(args.imports)
    if args.imports and not whole.is_segmentation:
        names = [name for name in method_names() if not method_class(name).__module__.startswith("frskd_plugin.")]
        whole = replace(whole, rows=[*whole.rows, *(Row(n, n, n, imports=tuple(args.imports)) for n in names)])
    table = whole.chosen(args.datasets, args.models, args.methods)
    if args.data is None and not args.dry_run and args.table != "table6":
        raise ValueError("--data is missing: the folder that holds a folder for each data set (--dry-run needs none).")
    if args.data is not None and not args.data.is_dir():
        raise ValueError(f"--data: {args.data} is not a folder; expected one that holds a folder for each data set.")
    for device in args.device:
        check_device(device)
    kind, *others = {torch.device(device).type for device in args.device}
    if others:
        raise ValueError(
            f"--device: expected devices of one kind, got {' '.join(args.device)}; a table has runs of one."
        )
    arguments = ["--amp-dtype", args.amp_dtype] if args.amp_dtype else []
    arguments += ["--channels-last"] * args.channels_last + ["--compile"] * args.compile
    arguments += ["--cuda-graph", args.cuda_graph] if args.cuda_graph else []
    paper_epochs = plan_cell(table, table.rows[0], table.columns[0], Scale()).epochs
    epochs = None if args.epochs == paper_epochs else args.epochs
    scale = Scale(epochs, args.images_per_class, tuple(args.cfg_options), tuple(arguments), kind)
    seeds = tuple(dict.fromkeys(table.seeds if args.seeds is None else args.seeds))
    store = Store(args.work_dir, args.out or args.work_dir / "results", None if args.out else PUBLISHED)
    return Session(table, whole, scale, seeds, store, args.device[0])


def threads_for(jobs: int) -> int | None:
    """Return the CPU threads of each of several runs, unless the environment says it; None leaves it to PyTorch.

    Left alone, each would take all cores, and all together be many times slower.
    """
    if jobs == 1 or "OMP_NUM_THREADS" in os.environ:
        return None
    return max(1, (os.cpu_count() or 1) // jobs)


@dataclass(frozen=True)
class Session:
    """One call of the tool."""

    table: Table  # the part that is run
    whole: Table  # the whole table, of which the file shows all rows
    scale: Scale  # of the runs
    seeds: tuple[int, ...]
    store: Store
    device: str  # where steps are timed

    @property
    def file_stem(self) -> str:
        """Name of the file of this table and scale, 'table1_8_epochs_100_images'; other settings are a checksum."""
        parts = [self.table.name]
        parts += [f"{self.scale.epochs}_epochs"] if self.scale.epochs is not None else []
        parts += [f"{self.scale.images_per_class}_images"] if self.scale.images_per_class is not None else []
        if self.scale.options or self.scale.arguments:
            parts.append(f"changed_{checksum([self.scale.options, self.scale.arguments], 6)}")
        return "_".join(parts)

    def records(self) -> dict[tuple[str, Column], dict[Path, dict[str, Any]]]:
        """Read the records of all rows, in the chosen columns and in those of which another call has run some."""
        found: dict[tuple[str, Column], dict[Path, dict[str, Any]]] = {}
        for column in self.whole.columns:
            try:
                runs = {row.key: plan_cell(self.whole, row, column, self.scale) for row in self.whole.rows}
            except ValueError:  # the scale does not fit this data set
                continue
            cells = {(key, column): self.store.records_of(run) for key, run in runs.items()}
            found |= cells if column in self.table.columns or any(cells.values()) else {}
        return found

    def write(self, costs: Mapping[str, StepCost], out: Path | None = None) -> str:
        """Write the Markdown file, and Figure 4's picture; returns the text."""
        out, cells = out or self.store.out, self.records()
        columns = list(dict.fromkeys(column for _, column in cells))
        table = replace(self.whole, columns=columns)
        scores = {cell: [r["last"][cell[1].score] for r in records.values()] for cell, records in cells.items()}
        if table.name == "fig4":
            title = f"{len(self.seeds)} seeds" + ("" if self.scale.is_paper else f", reduced: {self.file_stem}")
            draw(table, scores, title, out / f"{self.file_stem}.png")
            table = replace(table, notes=[*table.notes, f"![{table.title}]({self.file_stem}.png)"])
            costs = {}
        ratios = table6_ratios() if table.name == "table6" else None
        text = markdown(table, self.scale, scores, costs, ratios)
        atomic_write(out / f"{self.file_stem}.md", text.encode())
        return text

    def publish(self, costs: Mapping[str, StepCost], folder: Path) -> Path:
        """Write the table into another folder too, with the records and the costs that it shows; returns its file."""
        self.write(costs, folder)
        for file in itertools.chain.from_iterable(self.records().values()):
            if file.parent.parent != folder:
                atomic_write(folder / "runs" / file.name, file.read_bytes())
        if costs:
            known = {self._cost_key(model): cost for model, cost in costs.items()}
            write_json(folder / COSTS_NAME, read_or_name(folder / COSTS_NAME) | known)
        return folder / f"{self.file_stem}.md"

    def costs(self, can_measure: bool) -> dict[str, StepCost]:
        """Time the steps of each network of the table under each of its methods; what was measured before is read."""
        file = self.store.out / COSTS_NAME
        own = read_or_name(file)
        known = (read_or_name(self.store.published / COSTS_NAME) if self.store.published else {}) | own
        known = {key: c for key, c in known.items() if isinstance(c, dict) and {"batch", "plain", "ratios"} <= c.keys()}
        costs = {}
        firsts = {column.model: column for column in reversed(self.table.columns)}  # the first column of each network
        for column in firsts.values():
            key, rows = self._cost_key(column.model), self.whole.rows
            if can_measure and not {row.key for row in rows} <= set(known.get(key, {}).get("ratios", {})):
                runs = {row.key: plan_cell(self.whole, row, column, self.scale) for row in rows}
                known[key] = own[key] = measure(runs, self.device)
                write_json(file, own)
            if key in known:
                costs[column.model] = known[key]
        return costs

    def describe(self, costs: Mapping[str, StepCost], at_once: int) -> list[str]:
        """Write lines about what would be run, and how long it would take."""
        lines, hours = [], []
        for run in plan_table(self.table, self.scale, self.seeds):
            try:
                state = "to do" if self.store.read(run) is None else "done"
            except ValueError as error:
                lines.append(f"damaged  {run.label}  {error}")
                continue
            seconds = estimate_seconds(run, self.scale, costs)
            hours += [seconds / 3600] if seconds is not None and state == "to do" else []
            about = "" if seconds is None else f"  about {seconds / 3600:.2f} h"
            lines.append(f"{state}  {run.label}{about}  {self.store.log(run)}")
        done, left = (sum(line.startswith(state) for line in lines) for state in ("done", "to do"))
        lines.append(f"{done} of {len(lines)} runs are done, {left} to go")
        if hours:
            together = f", {max(sum(hours) / at_once, *hours):.1f} h with {at_once} at a time" if at_once > 1 else ""
            lines.append(
                f"{sum(hours):.1f} h of training{together} (from a few steps on random images; data loading, "
                "validation and pretrained teachers are not in it)"
            )
        return lines

    def _cost_key(self, model: str) -> str:
        return f"{self.table.name}, {model}, {self.device}"
