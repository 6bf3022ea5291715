"""The command line of the report."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from frskd_plugin.core.atomic_write import atomic_write
from frskd_plugin.report.facts import facts_of, length_of, reached, read_config_of
from frskd_plugin.report.page import RunPage, make_page
from frskd_plugin.report.pictures import drawn_pictures, found_pictures
from frskd_plugin.report.run_logs import RunLogs, position_text, read_run
from frskd_plugin.report.scores import read_result, scores_of
from frskd_plugin.report.svg import MARKERS

MAX_RUNS = len(MARKERS)  # as many as can be told apart
EPILOG = """\
It reads what a run has logged so far; a run under way is served too, and nothing in its folder changes.
exit status: 0 the page is written, 2 a folder is no run, or a file is damaged
examples:
  report.py work_dirs/frskd_cifar100_wrn_16_2
  report.py work_dirs/frskd_cifar100_wrn_16_2 --compare work_dirs/baseline_cifar100_wrn_16_2 -o pair.html
  report.py work_dirs/frskd_cub200_resnet18 --images bird.jpg dog.jpg
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page; see `EPILOG` for the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        write_report([args.work_dir, *args.compare], args.out, args.images, args.title)
    except (ValueError, ImportError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(f"report: {args.out}")
    return 0


def make_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(
        prog="report.py",
        description="One self-contained HTML page about a training: scores of student and self-teacher, every loss, "
        "learning rate, attention maps, settings.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("work_dir", type=Path, metavar="WORK_DIR", help="folder of a run that tools/train.py wrote")
    parser.add_argument("-o", "--out", type=Path, default=Path("report.html"), help="page to write (%(default)s)")
    parser.add_argument(
        "--compare", nargs="+", type=Path, default=[], metavar="WORK_DIR", help="more runs, in the same charts"
    )
    parser.add_argument(
        "--images",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="draw the attention maps of these images with the checkpoints that are still in the folders; without it "
        "the page shows the pictures in WORK_DIR/attention and WORK_DIR/attention_maps",
    )
    parser.add_argument("--title", help="of the page (the names of the runs)")
    return parser


def write_report(work_dirs: Sequence[Path], out: Path, images: Sequence[Path] = (), title: str | None = None) -> None:
    """Read the runs and write the page.

    Args:
        work_dirs: of the runs.
        out: file to write; its folder is made.
        images: files whose attention maps are drawn; none shows the pictures that are there.
        title: of the page; None takes the names of the runs.

    Raises:
        FileNotFoundError: an image is missing.
        ValueError: no folder or too many, one comes twice or is no run, a log is damaged, or ``out`` is no HTML file.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"the page must be an .html file, got {out}; give another name with -o")
    if not 1 <= len(work_dirs) <= MAX_RUNS:
        raise ValueError(f"expected 1 to {MAX_RUNS} runs, got {len(work_dirs)}; give fewer folders to --compare")
    names = names_of(work_dirs)
    runs = [read_page(work_dir, name, images) for work_dir, name in zip(work_dirs, names, strict=True)]
    now = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    states = "; ".join(f"{run.name}: {run.facts['state']}" if len(runs) > 1 else run.facts["state"] for run in runs)
    page = make_page(runs, title or " and ".join(names), f"{states}. Written {now}.")
    atomic_write(out, page.encode())


def names_of(work_dirs: Sequence[Path]) -> list[str]:
    """Names of the runs: of their folders, or of the whole paths where folders share a name.

    Raises:
        ValueError: a folder comes twice.

    >>> names_of([Path("a/frskd"), Path("b/frskd"), Path("b/baseline")])
    ['a/frskd', 'b/frskd', 'baseline']
    """
    paths = [work_dir.resolve() for work_dir in work_dirs]
    for path, count in Counter(paths).items():
        if count > 1:
            raise ValueError(f"{path} was given {count} times; give each run once")
    names = Counter(path.name for path in paths)
    return [
        path.name if names[path.name] == 1 else str(work_dir) for path, work_dir in zip(paths, work_dirs, strict=True)
    ]


def read_page(work_dir: Path, name: str, images: Sequence[Path] = ()) -> RunPage:
    """What the page shows of a run.

    Raises:
        FileNotFoundError, ValueError: see `write_report`.
    """
    logs, result = read_run(work_dir), read_result(work_dir)
    config = read_config_of(logs)
    pictures, remarks = (drawn_pictures(work_dir, images), []) if images else found_pictures(work_dir)
    facts = {"state": state_of(logs, length_of(config)), **facts_of(logs, config, result)}
    text = None if config is None else config.pretty_text
    return RunPage(name, logs, scores_of(logs, result), facts, text, pictures, remarks)


def state_of(run: RunLogs, length: tuple[float, str] | None) -> str:
    """How far the run is.

    Args:
        run: its logs.
        length: of the whole training, with its unit; None where it is not known.
    """
    unit = run.training_unit if run.training else run.validation_unit
    position = reached(run)
    if length is None or length[1] != unit:
        return f"{unit} {position_text(position)} is logged"
    if position < length[0]:
        return f"under way or stopped, at {unit} {position_text(position)} of {length[0]}"
    if run.validation and run.validation_unit == unit and run.validation[-1].position < length[0]:
        return f"all {length[0]} {unit}s are trained, the last validation is missing"  # mmengine ends with one
    return f"done, {length[0]} {unit}s"
