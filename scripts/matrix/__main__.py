"""``python -m scripts.matrix [ROW ...]``: run the tests on each stack and print a table of what came of it."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from scripts.matrix.environment import BuildError, cache_folder, prepare
from scripts.matrix.report import Outcome, details, exit_status, table
from scripts.matrix.rows import ROWS, Row, choose
from scripts.matrix.suite import VERSIONS, run_suite

EPILOG = """\
The environments lie in ~/.cache/frskd_plugin/matrix-* (XDG_CACHE_HOME moves them) and are kept; remove them to free the
disk. "newest" takes about 6 GB, the layers next to nothing. They are laid over the environment of the running
interpreter, which is the row "main" and is never written to.
exit status: 0 all rows passed, 1 one failed or its environment could not be made, 2 the command line is wrong
examples:
  python -m scripts.matrix                        # all rows
  python -m scripts.matrix newest originals
  python -m scripts.matrix oldest_timm --tests tests/timm tests/mmseg
"""


def run_row(row: Row, cache: Path, folder: Path, jobs: int, tests: list[str]) -> Outcome:
    """Make the environment of a row and run the tests in it; a failure of either is in the outcome."""
    log = folder / f"{row.name}.log"
    log.unlink(missing_ok=True)
    outcome = Outcome(row)
    try:
        python = prepare(row, cache, log)
        found = subprocess.run([python, "-I", "-c", VERSIONS], capture_output=True, text=True, check=False)
        if found.returncode:
            raise BuildError(f"{python} does not run: {found.stderr.strip()}")
    except BuildError as error:
        outcome.problem = str(error)
        return outcome
    outcome.versions = json.loads(found.stdout)
    outcome.counts, outcome.seconds, status = run_suite(row, python, folder, jobs, tests)
    if status not in (0, 1) or (status == 1) != bool(outcome.counts.failed):
        outcome.problem = f"pytest ended with status {status}, see {log}"
    return outcome


def say(text: str) -> None:
    """Print at once, also into a file or a pipe."""
    print(text, flush=True)


def run_matrix(rows: Sequence[Row], run: Callable[[Row], Outcome]) -> int:
    """Run each row, print what came of them, and give the exit status."""
    outcomes = []
    for row in rows:
        say(f"[matrix] {row.name}: {row.meaning}")
        outcomes.append(run(row))
        say(table(outcomes[-1:]))
    say("")
    for outcome in outcomes:
        for line in details(outcome):
            say(line)
    say("\n" + table(outcomes))
    return exit_status(outcomes)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    names = "\n".join(f"  {row.name:<12} {row.meaning}" for row in ROWS)
    parser = argparse.ArgumentParser(
        prog="python -m scripts.matrix",
        description=f"Run the tests on several stacks. The rows:\n{names}",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows to run (default: all)")
    parser.add_argument("--jobs", type=int, default=2, help="processes for the tests (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("work_dirs/matrix"), help="folder for logs (default: %(default)s)"
    )
    parser.add_argument("--tests", nargs="+", default=[], metavar="TEST", help="run these tests only")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the rows named on the command line; see `EPILOG` for the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        rows = choose(args.rows)
    except ValueError as error:
        parser.error(str(error))
    folder = args.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return run_matrix(rows, lambda row: run_row(row, cache_folder(), folder, args.jobs, args.tests))


if __name__ == "__main__":
    sys.exit(main())
