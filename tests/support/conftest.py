"""The tables of the support matrix, as Markdown and JSON: what each test recorded of its model."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import shlex
import time
from collections.abc import Generator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from frskd_plugin.commands.support import OWN_NETWORKS
from tests.support.steps import describe

OK = "ok"
# Kind of test -> columns. The first names what is tried, the others are what the test recorded.
COLUMNS = {
    "classifier": ("module", "model", "image", "levels", "strides", "channels", "share", "width", "result"),
    "segmentor": ("module", "model", "image", "levels", "strides", "channels", "result"),
    "family": ("family", "config", "image", "channels", "teacher_head", "plain", "result"),
}
LIBRARIES = {"timm": ("classifier", "segmentor"), "mmseg": ("family",)}
TITLES = {"classifier": "## Classifiers\n\n", "segmentor": "## Backbones of a segmentor\n\n", "family": ""}
# OpenMMLab comes under two names.
PACKAGES = ("torch", "timm", "mmengine", "onedl-mmengine", "mmsegmentation", "onedl-mmsegmentation")
Row = dict[str, Any]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the files to write."""
    group = parser.getgroup("support matrix (pytest -m support tests/support)")
    group.addoption("--timm-table", metavar="FILE", help="such as docs/coverage_timm.md")
    group.addoption("--mmseg-table", metavar="FILE", help="such as docs/coverage_mmseg.md")
    group.addoption("--support-json", metavar="FILE", help="the rows as a list of objects")
    group.addoption("--support-command", metavar="TEXT", help="command that the tables name, if not pytest's own")


def pytest_configure(config: pytest.Config) -> None:
    """Collect the rows, in the process that the workers report to."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Tables(config))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Add the reason of a failure in one line."""
    report = yield
    if call.excinfo is not None:
        report.user_properties.append(("result", describe(call.excinfo.value)))
    return report


class Tables:
    """Rows of the tests that have run, and the files that they are written to."""

    def __init__(self, config: pytest.Config) -> None:
        self.rows: list[Row] = []
        self.config, self.began = config, time.monotonic()
        self.total = sum("::" in chosen for chosen in config.args)  # as `frskd support` names them
        own_command = shlex.join(["pytest", *config.invocation_params.args])
        self.command: str = config.getoption("support_command", None) or own_command
        self.files = {
            name: Path(file)
            for name in ("timm_table", "mmseg_table", "support_json")
            if (file := config.getoption(name, None))
        }

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep a row for each test, and write the JSON after each: all of them take half an hour."""
        function, _, name = report.nodeid.rpartition("::")[2].removesuffix("]").partition("[")
        kind = function.removeprefix("test_")
        if kind not in COLUMNS or (report.passed and report.when != "call"):
            return
        facts = dict(report.user_properties)
        reason = facts.get("result", "its process crashed")  # which xdist reports without properties
        row = {"kind": kind, COLUMNS[kind][0]: name, **facts, "plain": OK, "result": OK if report.passed else reason}
        if kind == "family" and report.skipped:
            row.update(plain=reason, result=f"the plain config does not run: {reason}")
        self.rows.append(row)
        if self.total:
            done, reporter = len(self.rows), self.config.pluginmanager.getplugin("terminalreporter")
            left = (time.monotonic() - self.began) / done * (self.total - done) / 60
            reporter.write_line(f" {name}: {row['result'][:60]} ({done} of {self.total}, {left:.0f} min left)")
        if "support_json" in self.files:
            objects = [{key: row.get(key) for key in ("kind", *COLUMNS[row["kind"]])} for row in self.rows]
            self.files["support_json"].write_text(json.dumps(objects, indent=1, allow_nan=False) + "\n", "utf-8")

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Show how many passed."""
        if self.rows:
            terminalreporter.write_line(summary(self.rows))

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Write the tables, unless the run was broken off."""
        if exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            return
        for library, kinds in LIBRARIES.items():
            rows = [row for row in self.rows if row["kind"] in kinds]
            if rows and f"{library}_table" in self.files:
                self.files[f"{library}_table"].write_text(page(library, rows, self.command), encoding="utf-8")


def summary(rows: Sequence[Row]) -> str:
    """Count what passed, and what could not be tried."""
    counts = []
    for kind in COLUMNS:
        of_kind = [row for row in rows if row["kind"] == kind]
        passed = sum(row["result"] == OK for row in of_kind)
        if of_kind and kind == "family":
            not_run = sum(row["plain"] != OK for row in of_kind)
            counts.append(
                f"{len(of_kind)} families: {passed} ok, {not_run} whose plain config does not run, "
                f"{len(of_kind) - passed - not_run} that remain"
            )
        elif of_kind:
            counts.append(f"{kind}: {passed} of {len(of_kind)} modules ok")
    return ", ".join(counts)


def page(library: str, rows: Sequence[Row], command: str) -> str:
    """Return the tables within the text of timm.md or mmseg.md beside this file."""
    bad = [
        f"- `{row['module']}` ({row.get('model')}) as a {row['kind']}: {row['result']}"
        for row in rows
        if "module" in row and row["result"] != OK
    ]
    not_run = [row for row in rows if row["plain"] != OK]
    trained = {kind: [row for row in rows if row["kind"] == kind and row["plain"] == OK] for kind in LIBRARIES[library]}
    text = (Path(__file__).parent / f"{library}.md").read_text("utf-8")
    return text.format(
        command=command,
        date=date.today().isoformat(),
        versions=versions(),
        machine=f"{platform.system()}, {platform.machine()}",
        summary=summary(rows),
        failures="\n".join(["Rows that are not ok:\n", *bad]) if bad else "Every row is ok.",
        tables="\n\n".join(
            TITLES[kind] + table(COLUMNS[kind], of_kind) for kind, of_kind in trained.items() if of_kind
        ),
        not_run=table(("family", "config", "plain"), not_run, ("family", "config", "error")),
    )


def table(columns: Sequence[str], rows: Sequence[Row], titles: Sequence[str] = ()) -> str:
    """Return a Markdown table."""

    def cell(value: object) -> str:
        text = " ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
        return text.replace("|", "\\|")

    ordered = sorted(rows, key=lambda row: (row.get("module") in OWN_NETWORKS, row.get(columns[0])))
    lines = [titles or columns, ["---"] * len(columns), *([cell(row.get(name)) for name in columns] for row in ordered)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def versions() -> str:
    """Return the versions of Python and of those `PACKAGES` that are installed."""
    found = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{package} {importlib.metadata.version(package)}")
    return ", ".join(found)
