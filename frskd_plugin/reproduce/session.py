"""One call of the tool: its table, what is run for it, and the files that it writes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from frskd_plugin.core.atomic_write import atomic_write
from frskd_plugin.reproduce.cost import StepCost, measure
from frskd_plugin.reproduce.estimate import estimate_seconds, total_text
from frskd_plugin.reproduce.figure import draw
from frskd_plugin.reproduce.plan import Run, Scale, plan_cell, plan_table
from frskd_plugin.reproduce.records import Store, read_json
from frskd_plugin.reproduce.report import markdown, scores_of
from frskd_plugin.reproduce.sizes import table6_ratios
from frskd_plugin.reproduce.tables import BASELINE, TABLES, Column, Table

COSTS_NAME = "costs.json"
# settings that do not change what a step computes, unless they are 0
WEIGHTS = ("alpha", "beta")


@dataclass(frozen=True)
class Session:
    """What was asked for.

    Attributes:
        table: the part of a table that is run; the file shows its columns and all rows.
        scale: of the runs.
        seeds: of the runs.
        store: folders.
    """

    table: Table
    scale: Scale
    seeds: tuple[int, ...]
    store: Store

    @property
    def shown(self) -> Table:
        """The table of the file: all rows, and beside the chosen columns those in which another call has run some."""
        whole = TABLES[self.table.name]
        columns = [c for c in whole.columns if c in self.table.columns or self._has_records(whole, c)]
        return dataclasses.replace(whole, columns=columns)

    @property
    def file_stem(self) -> str:
        """Each scale has a file of its own, 'table1_8_epochs_100_images'; other settings show as a checksum."""
        parts = [self.table.name]
        parts += [f"{self.scale.epochs}_epochs"] if self.scale.epochs is not None else []
        parts += [f"{self.scale.images_per_class}_images"] if self.scale.images_per_class is not None else []
        if self.scale.options or self.scale.arguments:
            others = json.dumps([self.scale.options, self.scale.arguments])
            parts.append(f"changed_{hashlib.sha256(others.encode()).hexdigest()[:6]}")
        return "_".join(parts)

    def runs(self) -> list[Run]:
        """Every run, teachers before their students."""
        return plan_table(self.table, self.scale, self.seeds)

    def write(self, costs: Mapping[str, StepCost]) -> str:
        """Write the Markdown file, and Figure 4's picture; returns the text."""
        table = self.shown
        extra = []
        if table.name == "fig4":
            picture = self.store.out / f"{self.file_stem}.png"
            title = f"{len(self.seeds)} seeds" + ("" if self.scale.is_paper else f", reduced: {self.file_stem}")
            draw(table, scores_of(table, self.scale, self.store), title, picture)
            extra.append(f"![{table.title}]({picture.name})")
        ratios = table6_ratios() if table.name == "table6" else None
        text = markdown(table, self.scale, self.store, {} if table.name == "fig4" else costs, ratios, extra)
        atomic_write(self.store.out / f"{self.file_stem}.md", text.encode())
        return text

    def costs(self, repeat: int, device: str) -> dict[str, StepCost]:
        """The steps of each network of the table under each of its methods; what was measured before is read.

        Args:
            repeat: steps that are timed; 0 measures nothing.
            device: where.
        """
        file = self.store.out / COSTS_NAME
        known, costs = read_json(file), {}
        for model, runs in self._networks():
            key = f"{self.table.name}, {model}, {device}"
            if key not in known and repeat:
                known[key] = dataclasses.asdict(self._measure(runs, repeat, device))
                atomic_write(file, json.dumps(known, indent=1).encode())
            if key in known:
                costs[model] = StepCost(**known[key])
        return costs

    def estimates(self, costs: Mapping[str, StepCost]) -> dict[str, float]:
        """Name of a run -> its seconds, where its network was measured."""
        rows = {
            plan_cell(self.table, row, column, self.scale, seed).name: row.key
            for row in self.table.rows
            for column in self.table.columns
            for seed in self.seeds
        }
        found = {run.name: estimate_seconds(run, rows.get(run.name, BASELINE.key), costs) for run in self.runs()}
        return {name: seconds for name, seconds in found.items() if seconds is not None}

    def describe(self, costs: Mapping[str, StepCost], jobs: int) -> list[str]:
        """Lines about what would be run, and how long it would take."""
        seconds = self.estimates(costs)
        lines, missing = [], []
        for run in self.runs():
            done = self.store.read(run) is not None
            if not done and run.name in seconds:
                missing.append(seconds[run.name])
            time = f"  about {seconds[run.name] / 3600:.2f} h" if run.name in seconds else ""
            lines.append(f"{'done' if done else 'to do'}  {run.name}{time}")
        count = sum(line.startswith("to do") for line in lines)
        lines.append(f"{len(lines) - count} of {len(lines)} runs are done, {count} to go")
        return lines + ([total_text(missing, jobs)] if missing else [])

    def _networks(self) -> Iterator[tuple[str, dict[str, Run]]]:
        """Each network with a run of every row on it."""
        rows = TABLES[self.table.name].rows
        for column in {column.model: column for column in reversed(self.table.columns)}.values():
            yield column.model, {row.key: plan_cell(self.table, row, column, self.scale, 0) for row in rows}

    def _has_records(self, table: Table, column: Column) -> bool:
        try:
            runs = [plan_cell(table, row, column, self.scale, 0) for row in table.rows]
        except ValueError:  # the scale does not fit this data set
            return False
        return any(map(self.store.records_of, runs))

    @staticmethod
    def _measure(runs: Mapping[str, Run], repeat: int, device: str) -> StepCost:
        """Rows whose steps are the same are measured once."""
        signatures = {key: _signature(run) for key, run in runs.items()}
        first = {signature: key for key, signature in reversed(signatures.items())}
        measured = {key: run for key, run in runs.items() if first[signatures[key]] == key}
        cost = measure(measured, repeat, device)
        ratios = {key: cost.ratios[first[signature]] for key, signature in signatures.items()}
        return dataclasses.replace(cost, ratios=ratios)


def _signature(run: Run) -> str:
    """What a step computes, as text."""
    settings: dict[str, Any] = {k: bool(v) if k in WEIGHTS else v for k, v in run.settings.items()}
    return json.dumps([run.method or run.config, settings], sort_keys=True)
