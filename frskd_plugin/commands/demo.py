"""Train a plain network and FRSKD by the same budget on images drawn here, and compare, report and export them.

frskd demo --work-dir work_dirs/demo

It downloads nothing and runs the command lines that a user would run. Network, images and schedule were chosen on the
plain network alone, so that it converges; FRSKD has the library's settings. Whatever comes is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

import frskd_plugin
from frskd_plugin.commands.arguments import command_parser, positive_int
from frskd_plugin.commands.config import find_file
from frskd_plugin.commands.json_log import LOGS, json_lines
from frskd_plugin.commands.make_drawn_voc import CLASS_INDICES, SHAPES, clutter, shape_mask, texture

SIDE, TRAIN_PER_CLASS, TEST_PER_CLASS = 16, 100, 200
CLASSES = dict(zip(("boat", "bottle", "bus", "person", "sofa"), CLASS_INDICES, strict=True))
CONFIG = "configs/_base_/demo.py"  # of both methods
METHODS = ("baseline", "frskd")
SECONDS = 80  # after so many, no pair of another seed is begun: it would not fit into six minutes
# It writes these into its folder, and clears them away when it starts again: only in a folder with the marker.
FOLDERS = ("images", "runs", "student")
MARKER = ".frskd_demo"


def draw_object(rng: np.random.Generator, name: str) -> np.ndarray:
    """Draw an object of any colour before a textured background with clutter, uint8 [16, 16, 3]."""
    size = (2 * SIDE, 2 * SIDE)
    image = texture(rng, size)
    for _ in range(rng.integers(0, 4)):
        mask = clutter(rng, size)
        image[mask] = texture(rng, size)[mask]
    height = rng.uniform(0.55, 0.95) * size[0]
    width = height * rng.uniform(0.8, 1.2)
    left, top = rng.uniform(-0.1, 1.1, size=2) * (size[1] - width, size[0] - height)
    mask = shape_mask(SHAPES[CLASSES[name]], (left, top, width, height), size, flip=bool(rng.random() < 0.5))
    image[mask] = texture(rng, size)[mask]
    small = (image * rng.uniform(0.7, 1.2)).reshape(SIDE, 2, SIDE, 2, 3).mean(axis=(1, 3))
    return np.clip(small + rng.normal(0, 10, size=small.shape), 0, 255).astype(np.uint8)


def draw_images(folder: Path, train_per_class: int = TRAIN_PER_CLASS, test_per_class: int = TEST_PER_CLASS) -> None:
    """Write ``folder/{train,test}/<class>/<number>.png``, the same images each time."""
    for seed, (split, count) in enumerate((("train", train_per_class), ("test", test_per_class))):
        for label, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                rng = np.random.default_rng([seed, label, number])
                Image.fromarray(draw_object(rng, name)).save(folder / split / name / f"{number:03d}.png")


def run(log: Path, threads: int, *command: str | Path, started: list[subprocess.Popen[bytes]] | None = None) -> None:
    """Run one of the commands; what it says goes to a file, whose end a RuntimeError shows where it fails.

    The process is added to ``started``, by which a caller in another thread can end it.
    """
    package = str(Path(frskd_plugin.__file__).resolve().parent.parent)  # this package first
    paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    environment = dict(os.environ, PYTHONPATH=paths, OMP_NUM_THREADS=str(threads))
    print(f"$ frskd {' '.join(map(str, command))}", flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        arguments = [sys.executable, "-m", "frskd_plugin", *map(str, command)]
        process = subprocess.Popen(arguments, env=environment, stdout=output, stderr=subprocess.STDOUT)
    if started is not None:
        started.append(process)
    try:
        status = process.wait()
    except BaseException:
        process.terminate()
        raise
    if status != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise RuntimeError(f"{command[0]} ended with status {status}; the end of {log}:\n{tail}")


def train_all(work_dir: Path, seeds: int, cores: int) -> dict[str, list[dict[str, float]]]:
    """Train both methods with each seed, as many at a time as there are cores, and return the results by method."""
    begin, config = time.monotonic(), str(find_file(CONFIG))
    fits: dict[int, bool] = {0: True}
    started: list[subprocess.Popen[bytes]] = []

    def train(job: tuple[int, str]) -> dict[str, float]:
        seed, name = job
        if not fits.setdefault(seed, time.monotonic() - begin < SECONDS):
            return {}
        folder = work_dir / "runs" / f"{name}_seed{seed}"
        places = ("--data-root", work_dir / "images", "--work-dir", folder)
        command = ("train", config, *places, "--method", name, "--seed", str(seed))
        run(folder.with_suffix(".txt"), 1, *command, started=started)
        scores = result(folder)
        print(f"{folder.name}: top-1 {scores['top1']:.1f}, after {time.monotonic() - begin:.0f} s", flush=True)
        return scores

    jobs = [(seed, name) for seed in range(seeds) for name in METHODS]
    with ThreadPoolExecutor(max_workers=cores) as pool:
        try:
            found = dict(zip(jobs, pool.map(train, jobs), strict=True))
        except BaseException:  # a signal or a failure: the pool would wait for the others to end
            for process in started:
                process.terminate()
            raise
    whole = [seed for seed in range(seeds) if all(found[seed, name] for name in METHODS)]
    return {name: [found[seed, name] for seed in whole] for name in METHODS}


def result(folder: Path) -> dict[str, float]:
    """Return the last scores of a run, the mean loss of its last two quarters and the seconds of a step, data apart."""
    scores = json.loads((folder / "result.json").read_text())["last"]
    lines = [line for log in sorted(folder.glob(LOGS)) for line in json_lines(log) if "loss_ce" in line]
    losses = [line["loss_ce"] for line in lines]
    quarter = len(losses) // 4
    return {
        **scores,
        "loss_before": statistics.fmean(losses[-2 * quarter : -quarter]),
        "loss_last": statistics.fmean(losses[-quarter:]),
        "step": statistics.median(line["time"] - line["data_time"] for line in lines),
    }


def spread(values: Sequence[float]) -> str:
    """Return values with their mean and standard deviation, in text.

    >>> spread([70.0, 72.0])
    ' 70.0  72.0   mean  71.0 ± 1.4'
    """
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return "  ".join(f"{value:5.1f}" for value in values) + f"   mean {statistics.fmean(values):5.1f}{deviation}"


def summary(baseline: Sequence[dict[str, float]], frskd: Sequence[dict[str, float]]) -> str:
    """Return the comparison of the runs, one of each method for each seed, and how to read it."""
    plain, student = [run["top1"] for run in baseline], [run["top1"] for run in frskd]
    teacher = [run["teacher_top1"] for run in frskd]
    gains = [after - before for before, after in zip(plain, student, strict=True)]
    gain, error = statistics.fmean(gains), statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else None
    steps = [statistics.fmean(run["step"] for run in runs) for runs in (baseline, frskd)]
    losses = [statistics.fmean(run[key] for run in baseline) for key in ("loss_before", "loss_last")]
    certainty = "one seed, so no spread is known" if error is None else f"standard error over the seeds {error:.1f}"
    lines = [
        f"top-1 (%) on {len(CLASSES) * TEST_PER_CLASS} drawn test images after {baseline[0]['epoch']} epochs, "
        f"seeds {', '.join(map(str, range(len(plain))))}:",
        f"  plain network        {spread(plain)}",
        f"  FRSKD, student       {spread(student)}",
        f"  FRSKD, self-teacher  {spread(teacher)}",
        f"difference of the students {gain:+.1f} points ({certainty})",
        f"plain network's training loss in the last two quarters: {losses[0]:.2f}, {losses[1]:.2f}",
        f"training step: {steps[0]:.3f} s plain, {steps[1]:.3f} s with FRSKD: x {steps[1] / steps[0]:.2f}",
        "",
    ]
    if gain <= 0:
        lines += [
            "FRSKD is not ahead here. Do not conclude from that: on the full recipe, too, the student is behind until",
            "the learning rate falls after 39,000 steps. These are a few hundred steps on five drawn shapes.",
        ]
    else:
        lines += ["A few hundred steps on five drawn shapes say that everything works, not how much a method gains."]
    lines += [
        "The full recipe, measured (CIFAR-100, WRN-16-2, 200 epochs, one H200): plain 70.9, FRSKD 73.0, its",
        "self-teacher 74.1; docs/results/cifar100_gpu.md. The paper: 70.4 and 73.3 (its Table 1).",
    ]
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all options."""
    parser = command_parser("demo", __doc__)
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/demo"), help="default: work_dirs/demo")
    parser.add_argument("--seeds", type=positive_int, default=3, help="at most so many (3), as many as fit the time")
    return parser


def prepare_folder(work_dir: Path) -> None:
    """Clear away what an earlier demo wrote; a ValueError where the folder holds something else."""
    taken = [folder for folder in FOLDERS if (work_dir / folder).exists()]
    if taken and not (work_dir / MARKER).exists():
        raise ValueError(
            f"--work-dir {work_dir} holds {', '.join(taken)}, which the demo did not write: give another folder"
        )
    for folder in taken:
        shutil.rmtree(work_dir / folder)
    work_dir.mkdir(parents=True, exist_ok=True)
    (work_dir / MARKER).touch()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the steps one after the other; 1 when one fails."""
    args = build_parser().parse_args(argv)
    work_dir, begin = args.work_dir.resolve(), time.monotonic()
    prepare_folder(work_dir)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    print(f"draws {len(CLASSES) * (TRAIN_PER_CLASS + TEST_PER_CLASS)} images into {work_dir / 'images'}", flush=True)
    draw_images(work_dir / "images")
    try:
        results = train_all(work_dir, args.seeds, cores)
        first = [work_dir / "runs" / f"{name}_seed0" for name in ("frskd", "baseline")]
        page, student = work_dir / "runs" / "report.html", work_dir / "student" / "student.pth"
        student.parent.mkdir()
        for command in (
            ("report", first[0], "--compare", first[1], "-o", page),
            ("export", Path((first[0] / "last_checkpoint").read_text().strip()), student),
        ):
            run(work_dir / "runs" / f"{command[0]}.txt", cores, *command)
    except RuntimeError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    print(f"\n=== done in {(time.monotonic() - begin) / 60:.1f} minutes")
    print(summary(results["baseline"], results["frskd"]))
    print(f"\nreport:           {page}\nexported student: {student}\nruns:             {work_dir / 'runs'}")
    return 0
