"""One HTML page about a run: ``report WORK_DIR [-o report.html] [--compare WORK_DIR2 ...]``."""

from __future__ import annotations

import argparse
import base64
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from frskd_plugin.commands.arguments import command_parser
from frskd_plugin.commands.report_charts import COLOURS, MARKERS, charts_of, draw
from frskd_plugin.commands.report_facts import drawn_pictures, facts_of, found_pictures
from frskd_plugin.commands.report_logs import (
    NOT_SCORES,
    TEACHER_PREFIXES,
    is_teacher,
    names_of,
    position_text,
    read_run,
    scores_of,
)
from frskd_plugin.core.atomic_write import atomic_write
from frskd_plugin.mmengine.stored_config import add_allow_imports, parse_config

PAGE_NAME = "report.html"
MAX_RUNS = len(COLOURS)  # as many as can be told apart
EPILOG = """\
It reads what a run has logged so far; a run under way is served too, and nothing of it is executed or changed.
exit status: 0 the page is written, 2 a folder is no run, or a file is damaged
examples:
  frskd report work_dirs/frskd_cifar100_wrn_16_2
  frskd report work_dirs/frskd_cifar100_wrn_16_2 --compare work_dirs/baseline_cifar100_wrn_16_2 -o pair.html
  frskd report work_dirs/frskd_cub200_resnet18 --images bird.jpg dog.jpg
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    description = (
        "One self-contained HTML page about a training: scores of student and self-teacher, every loss, learning rate, "
        "IoU of each class, attention maps, settings."
    )
    parser = command_parser("report", description, EPILOG)
    add = parser.add_argument
    add("work_dir", type=Path, metavar="WORK_DIR", help="folder of a run that tools/train.py wrote")
    add("-o", "--out", type=Path, help=f"page to write (WORK_DIR/{PAGE_NAME})")
    add("--compare", nargs="+", type=Path, default=[], metavar="WORK_DIR", help="more runs, in the same charts")
    text = (
        "draw the attention maps of these images with the checkpoints that are still in the folders; without it the "
        "page shows the pictures in WORK_DIR/attention and WORK_DIR/attention_maps"
    )
    add("--images", nargs="+", type=Path, default=[], metavar="FILE", help=text)
    add_allow_imports(parser)
    add("--title", help="of the page (the names of the runs)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page."""
    args = build_parser().parse_args(argv)
    out = args.out or args.work_dir / PAGE_NAME
    write_report([args.work_dir, *args.compare], out, args.images, args.title, args.allow_imports)
    print(f"report: {out}")


def write_report(
    work_dirs: Sequence[Path],
    out: Path,
    images: Sequence[Path] = (),
    title: str | None = None,
    allow_imports: bool = False,
) -> None:
    """Read the runs and write the page.

    Args:
        work_dirs: of the runs.
        out: file to write.
        images: files whose attention maps are drawn; none shows the pictures that are there.
        title: of the page; None takes the names of the runs.
        allow_imports: trust the configs in the checkpoints, see `stored_config`.

    Raises:
        FileNotFoundError: an image is missing.
        ImportError: matplotlib or jinja2 is not installed.
        ValueError: no folder or too many, one comes twice or is no run, a log is damaged, or ``out`` is no HTML file.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"the page must be an .html file, got {out}; give another name with -o")
    if not 1 <= len(work_dirs) <= MAX_RUNS:
        raise ValueError(f"expected 1 to {MAX_RUNS} runs, got {len(work_dirs)}; give fewer folders to --compare")
    try:
        import jinja2
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"a report needs matplotlib and jinja2 ({error}): pip install 'frskd_plugin[report]'"
        ) from error
    names = names_of(work_dirs)
    runs = [
        {"number": i, **read_page(d, name, images, allow_imports)}
        for i, (d, name) in enumerate(zip(work_dirs, names, strict=True))
    ]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("frskd_plugin", "commands"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        "position": position_text,
        "exact": lambda value: repr(float(value)),
        "base64": lambda data: base64.b64encode(data).decode(),
    }
    page = environment.get_template("report.html").render(
        title=title or " and ".join(names),
        written=f"{datetime.now():%Y-%m-%d %H:%M:%S}",
        runs=runs,
        facts=list(dict.fromkeys(fact for run in runs for fact in run["facts"])),
        sections=charts_of([run["logs"] for run in runs], names),
        draw=draw,
        teacher_of=teacher_of,
        colours=COLOURS,
        markers=MARKERS,
    )
    atomic_write(out, page.encode(errors="replace"))


def read_page(work_dir: Path, name: str, images: Sequence[Path] = (), allow_imports: bool = False) -> dict[str, Any]:
    """Collect what the template shows of a run."""
    logs = read_run(work_dir)
    pictures, remarks = (drawn_pictures(work_dir, images, allow_imports), []) if images else found_pictures(work_dir)
    text, config, file = None, {}, logs.folders[-1] / "vis_data" / "config.py"  # mmengine's; nothing in it is run
    if file.is_file():
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
            config = parse_config(text, str(file))
        except ValueError as error:
            text = None
            remarks.append(f"{error}; its facts are left out.")
    scores = scores_of(logs)
    keys = [key for key in {**scores.last, **scores.best} if not is_teacher(key)] if scores else []
    keys = [key for key in keys if key not in ("epoch", *NOT_SCORES)]
    return {
        "name": name,
        "logs": logs,
        "scores": scores,
        # the metric that decides comes first
        "score_keys": sorted(keys, key=lambda key: key != (scores and scores.metric)),
        "facts": facts_of(logs, config),
        "config": text,
        "classes": logs.text_logs[-1].class_iou,
        "class_epoch": logs.text_logs[-1].class_epoch,
        "pictures": pictures,
        "remarks": remarks,
    }


def teacher_of(entry: dict[str, float], key: str) -> float | None:
    """Return the self-teacher's score that belongs to a student's; None where there is none."""
    return next((entry[prefix + key] for prefix in TEACHER_PREFIXES if prefix + key in entry), None)
