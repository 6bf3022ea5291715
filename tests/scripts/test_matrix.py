"""The matrix of stacks: its table of rows, the commands it builds, what it reads back, and its exit status."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from scripts.matrix import __main__ as command
from scripts.matrix import environment
from scripts.matrix.environment import BuildError, environment_key, link_packages, prepare
from scripts.matrix.report import Outcome, details, exit_status, table
from scripts.matrix.rows import ROWS, LeftOut, Row, choose
from scripts.matrix.suite import Counts, read_junit, suite_command

ROOT = Path(__file__).resolve().parents[2]
MAIN, LAYER = Row("main", "as pinned"), Row("layer", "over it", layered=True, hides=("old_one",))
JUNIT = """<?xml version="1.0" encoding="utf-8"?>
<testsuites><testsuite name="pytest">
  <testcase classname="tests.a" name="test_passes"/>
  <testcase classname="tests.a" name="test_fails"><failure message="assert 1 == 2">text</failure></testcase>
  <testcase classname="" name="tests.b"><error message="collection failure">text</error></testcase>
  <testcase classname="tests.c" name="test_1"><skipped type="pytest.skip" message="needs a GPU"/></testcase>
  <testcase classname="tests.c" name="test_2"><skipped type="pytest.skip" message="needs a GPU"/></testcase>
  <testcase classname="tests.a" name="test_passes_too"/>
</testsuite></testsuites>
"""


class TestRows:
    def test_each_has_exact_pins_and_its_main_environment_has_none(self):
        for row in ROWS:
            if row.name == "main":
                assert row.pins is None
                continue
            lines = [line for line in row.pins.read_text().splitlines() if not line.startswith(("#", "--no-binary "))]
            assert lines
            assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in lines), lines
            assert row.compiles is None or re.fullmatch(r"[\w-]+==[\w.]+", row.compiles)

    def test_what_is_left_out_exists_and_has_a_reason(self):
        for left_out in (item for row in ROWS for item in row.left_out):
            path, *names = left_out.tests.split("::")
            text = (ROOT / path).read_text()
            assert all(re.search(rf"(def|class) {re.escape(name.split('[')[0])}\b", text) for name in names)
            assert left_out.reason

    def test_the_oldest_timm_is_the_bound_of_setup_cfg(self):
        (oldest,) = choose(["oldest_timm"])
        bound = re.search(r"timm>=([\d.]+)\n", (ROOT / "setup.cfg").read_text())
        assert f"timm=={bound[1]}\n" in oldest.pins.read_text()

    def test_names_choose_in_the_order_of_the_table(self):
        assert choose([]) == list(ROWS)
        assert [row.name for row in choose(["originals", "main"])] == ["main", "originals"]

    def test_unknown_names_are_refused(self):
        with pytest.raises(ValueError, match="no row is named newst: expected some of main, newest, oldest_timm"):
            choose(["main", "newst"])


def install(folder: Path, name: str, version: str = "1.0") -> None:
    """A distribution of one module, as pip would leave it."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text(f"{name}/__init__.py,,\n{info.name}/METADATA,,\n{info.name}/RECORD,,\n")
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(f"version = {version!r}\n")


class TestLayer:
    @pytest.fixture
    def source(self, tmp_path) -> Path:
        for name in ("old_one", "other"):
            install(tmp_path / "source", name)
        return tmp_path / "source"

    def test_shows_all_but_what_it_hides(self, source, tmp_path):
        target = tmp_path / "target"
        target.mkdir()
        link_packages(source, target, ["Old-One"])
        assert sorted(path.name for path in target.iterdir()) == ["other", "other-1.0.dist-info"]
        assert (target / "other").resolve() == source / "other"
        found = importlib.metadata.distributions(path=[str(target)])
        assert [item.metadata["Name"] for item in found] == ["other"]

    def test_what_it_hides_must_be_there(self, source, tmp_path):
        with pytest.raises(BuildError, match=r"absent is not installed in .*source: run `make env`"):
            link_packages(source, tmp_path, ["absent"])

    def test_its_key_follows_pins_and_main_environment(self, source, tmp_path, monkeypatch):
        monkeypatch.setattr(Row, "pins", tmp_path / "pins.txt")
        monkeypatch.setattr(environment, "main_packages", lambda: source)
        (tmp_path / "pins.txt").write_text("new==1\n")
        first = environment_key(LAYER)
        assert environment_key(LAYER) == first
        (tmp_path / "pins.txt").write_text("new==2\n")
        second = environment_key(LAYER)
        install(source, "another")
        assert len({first, second, environment_key(LAYER)}) == 3


class TestPrepare:
    @pytest.fixture
    def built(self, tmp_path, monkeypatch) -> list[Path]:
        """The folders that were built, in order; nothing is installed."""
        folders = []

        def build(row, folder, log):
            folder.mkdir()
            folders.append(folder)
            if log.name == "fails.log":
                raise BuildError("no network")

        monkeypatch.setattr(Row, "pins", ROWS[1].pins)
        monkeypatch.setattr(environment, "build", build)
        return folders

    def test_builds_once(self, built, tmp_path):
        row = Row("new", "a new one")
        python = prepare(row, tmp_path / "cache", tmp_path / "new.log")
        assert prepare(row, tmp_path / "cache", tmp_path / "new.log") == python == built[0] / "bin" / "python"
        assert len(built) == 1

    def test_builds_again_what_was_not_finished(self, built, tmp_path):
        row = Row("new", "a new one")
        with pytest.raises(BuildError, match="no network"):
            prepare(row, tmp_path, tmp_path / "fails.log")
        (built[0] / "torn").touch()
        prepare(row, tmp_path, tmp_path / "new.log")
        assert built[0] == built[1]
        assert not (built[0] / "torn").exists()

    def test_the_main_environment_is_the_running_one(self, tmp_path):
        assert prepare(MAIN, tmp_path / "cache", tmp_path / "main.log") == Path(sys.executable)
        assert not (tmp_path / "cache").exists()

    def test_a_command_that_fails_is_named_with_its_log(self, tmp_path):
        log = tmp_path / "row.log"
        with pytest.raises(BuildError, match=r"`.*` ended with status 3, see .*row\.log"):
            environment.run_logged(
                [sys.executable, "-c", "import sys; print('why', file=sys.stderr); sys.exit(3)"], log
            )
        assert "why" in log.read_text()

    def test_too_little_disk(self, tmp_path, monkeypatch):
        monkeypatch.setattr(environment, "NEEDED_GB", 10**9)
        with pytest.raises(BuildError, match=r"GB free, newest needs 1000000000: set XDG_CACHE_HOME"):
            environment.build(ROWS[1], tmp_path / "new", tmp_path / "new.log")
        assert not (tmp_path / "new").exists()


class TestSuite:
    def test_the_command_names_what_is_left_out(self):
        row = Row("old", "an old one", left_out=(LeftOut("tests/a.py", "b"), LeftOut("tests/c.py::TestD::test_e", "f")))
        arguments = suite_command(row, Path("/env/bin/python"), Path("/out/old.xml"), [])
        assert arguments[:3] == ["bash", str(ROOT / "scripts" / "run_tests.sh"), "/env/bin/python"]
        assert arguments[-3:] == [
            "--junitxml=/out/old.xml",
            "--ignore=tests/a.py",
            "--deselect=tests/c.py::TestD::test_e",
        ]

    def test_counts(self, tmp_path):
        (tmp_path / "row.xml").write_text(JUNIT)
        counts = read_junit(tmp_path / "row.xml")
        assert counts.passed == 2
        assert counts.failed == ["tests.a::test_fails", "tests.b"]
        assert counts.skipped == {"needs a GPU": 2}


class TestReport:
    def test_table_and_details(self):
        left_out = LeftOut("tests/a.py", "no such API")
        fine = Outcome(
            Row("fine", "", left_out=(left_out,)), {"torch": "2.11.0"}, Counts(12, [], Counter({"no GPU": 3})), 61.4
        )
        broken = Outcome(Row("broken", ""), {"torch": "2.15.0", "timm": "1.0.31"}, Counts(11, ["tests.b::c"]), 7.0)
        assert table([fine, broken]).splitlines() == [
            "row     passed  failed  skipped  seconds  result  versions",
            "fine    12      0       3        61       ok      torch 2.11.0",
            "broken  11      1       0        7        FAILED  torch 2.15.0, timm 1.0.31",
        ]
        assert details(fine) == ["fine: skipped 3: no GPU", "fine: left out tests/a.py: no such API"]
        assert details(broken) == ["broken: failed: tests.b::c"]

    def test_many_failures_are_cut_short(self):
        lines = details(Outcome(MAIN, {}, Counts(0, [f"test_{i}" for i in range(23)])))
        assert (len(lines), lines[-1]) == (21, "main: failed: and 3 more")

    @pytest.mark.parametrize(
        ("outcomes", "status"),
        [
            ([Outcome(MAIN, counts=Counts(1))], 0),
            ([Outcome(MAIN, counts=Counts(1)), Outcome(LAYER, counts=Counts(1, ["tests.a"]))], 1),
            ([Outcome(MAIN, counts=Counts(1)), Outcome(LAYER, problem="no network")], 1),
            ([Outcome(MAIN, counts=Counts(0))], 1),  # nothing ran: nothing is shown
            ([], 1),
        ],
    )
    def test_exit_status(self, outcomes, status):
        assert exit_status(outcomes) == status


class TestCommand:
    def test_runs_the_chosen_rows_and_says_what_came_of_them(self, monkeypatch, capsys, tmp_path):
        ran = []

        def run_row(row, cache, folder, jobs, tests):
            ran.append((row.name, jobs, tests))
            return Outcome(row, {"torch": "2"}, Counts(5, ["tests.a::b"] if row.name == "newest" else []), 1.0)

        monkeypatch.setattr(command, "run_row", run_row)
        out = ["--out", str(tmp_path / "logs")]
        assert command.main(["main", *out, "--jobs", "3"]) == 0
        assert command.main(["newest", "main", *out, "--tests", "tests/core"]) == 1
        assert ran == [("main", 3, []), ("main", 2, ["tests/core"]), ("newest", 2, ["tests/core"])]
        lines = capsys.readouterr().out.splitlines()
        assert lines[-4] == "" and "newest: failed: tests.a::b" in lines
        assert [line.split()[0] for line in lines[-3:]] == ["row", "main", "newest"]

    def test_an_unknown_row_is_a_wrong_command_line(self, capsys):
        with pytest.raises(SystemExit) as error:
            command.main(["newst"])
        assert error.value.code == 2
        assert "no row is named newst" in capsys.readouterr().err

    def test_a_row_that_cannot_be_made_fails_alone(self, monkeypatch, tmp_path):
        def prepare(row, cache, log):
            raise BuildError("no network")

        monkeypatch.setattr(command, "prepare", prepare)
        outcome = command.run_row(LAYER, tmp_path, tmp_path, jobs=1, tests=[])
        assert outcome.problem == "no network"
        assert not outcome.is_ok

    def test_the_main_row_runs_pytest_for_real(self, tmp_path):
        test = tmp_path / "test_two.py"
        test.write_text("def test_a():\n    assert True\n\n\ndef test_b():\n    assert False\n")
        arguments = ["main", "--out", str(tmp_path / "logs"), "--jobs", "1", "--tests", str(test)]
        done = subprocess.run(
            [sys.executable, "-m", "scripts.matrix", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1, done.stdout + done.stderr
        assert re.search(r"^main +1 +1 +0 +\d+ +FAILED +python 3.*torch \d", done.stdout, re.MULTILINE)
        assert "assert False" in (tmp_path / "logs" / "main.log").read_text()
