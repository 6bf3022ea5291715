"""The whole job on data it draws itself: prepare, train the baseline and FRSKD, export the student, compare.

Takes about five minutes on 2 CPU cores and downloads nothing. It runs the command lines that a user would run, with the
paper's configs at a reduced size; the numbers say that everything works, not how good the method is.

    frskd demo --work-dir work_dirs/demo
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import frskd_plugin
from frskd_plugin.commands.config import locate_config
from frskd_plugin.commands.json_log import LOGS, json_lines

SCENES, VAL_SCENES, SCENE_SIZE = 160, 24, "80x96"
CROP = "(80,96)"
BATCH, EPOCHS, WARMUP = 8, 9, 6  # warm-up: two thirds of the epochs, as on VOC
# What the demo writes into its folder, and clears away when it starts again; only a folder with the marker is its own.
FOLDERS = ("VOCdevkit", "baseline", "frskd", "student")
MARKER = ".frskd_demo"


def reduced_size() -> list[str]:
    """Return the --cfg-options that make the VOC configs small, for both runs."""
    options = [
        "model.backbone.pretrained=False",
        # timm's TensorFlow weights ask for 0.01; a few hundred steps from scratch are too few for that.
        "model.backbone.bn_momentum=0.1",
        f"model.data_preprocessor.size={CROP}",
        f"train_dataloader.batch_size={BATCH}",
        "train_dataloader.num_workers=1",
        "val_dataloader.num_workers=1",
        "val_dataloader.dataset.pipeline.1.scale=(2048,80)",
        f"train_cfg.max_epochs={EPOCHS}",
        "train_cfg.val_interval=3",
        f"param_scheduler.milestones=[{WARMUP}]",
        "optim_wrapper.accumulative_counts=1",
        "optim_wrapper.optimizer.lr=0.03",
    ]
    for year in (0, 1):
        pipeline = f"train_dataloader.dataset.dataset.datasets.{year}.pipeline"
        options += [
            f"{pipeline}.2.scale=(2048,80)",
            f"{pipeline}.2.ratio_range=(0.8,1.25)",
            f"{pipeline}.3.crop_size={CROP}",
        ]
    return options


def run(title: str, *command: str | Path) -> None:
    """Run one of the commands and show what it says.

    Raises:
        RuntimeError: If it fails.
    """
    print(f"\n=== {title}\n$ frskd {' '.join(map(str, command))}", flush=True)
    # This package first, and as many threads as there are cores for us: far slower with more on a busy machine.
    package = str(Path(frskd_plugin.__file__).resolve().parent.parent)
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    environment.setdefault("OMP_NUM_THREADS", str(cores))
    arguments = [sys.executable, "-m", "frskd_plugin", *map(str, command)]
    status = subprocess.run(arguments, env=environment, check=False).returncode
    if status != 0:
        raise RuntimeError(f"{title}: {command[0]} ended with status {status}; its messages are above")


def last_scores(work_dir: Path) -> dict[str, float]:
    """The newest validation in the JSON log of a run.

    Raises:
        RuntimeError: If there is none.
    """
    logs = sorted(work_dir.glob(LOGS))
    lines = [line for log in logs for line in json_lines(log)]
    scores = [line for line in lines if "mIoU" in line]
    if not scores:
        raise RuntimeError(f"{work_dir} holds no log with a validation")
    return scores[-1]


def train(work_dir: Path, kind: str, extra: list[str]) -> Path:
    """Train ``kind`` ('baseline' or 'frskd') and give the folder of the run."""
    run(
        f"train {kind}: {EPOCHS} epochs",
        "train",
        locate_config(f"{kind}_voc_effdet_d0")[0],
        "--work-dir",
        work_dir / kind,
        "--data-root",
        work_dir / "VOCdevkit",
        "--cfg-options",
        *reduced_size(),
        *extra,
    )
    return work_dir / kind


def report(work_dir: Path, checkpoint: Path, student: Path, seconds: float) -> None:
    """Print the scores, the cost of a step, and where things lie."""
    baseline, frskd = last_scores(work_dir / "baseline"), last_scores(work_dir / "frskd")
    step = json.loads((work_dir / "step.json").read_text())[0]
    pictures = sorted((work_dir / "frskd" / "attention").glob("*.png"))
    print(f"\n=== done in {seconds / 60:.1f} minutes")
    print(f"mIoU on {VAL_SCENES} drawn scenes after {EPOCHS} epochs from scratch (too few to compare methods by):")
    print(f"  baseline            {baseline['mIoU']:6.2f}")
    print(f"  FRSKD student       {frskd['mIoU']:6.2f}")
    print(f"  FRSKD self-teacher  {frskd['self_teacher.mIoU']:6.2f}")
    print(f"training step: {step['plain_s']:.3f} s plain, {step['frskd_s']:.3f} s with FRSKD: x {step['ratio']:.2f}")
    print(f"checkpoint:       {checkpoint}")
    print(f"exported student: {student}")
    print(f"picture:          {', '.join(map(str, pictures))}")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all options."""
    parser = argparse.ArgumentParser(
        prog="frskd demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/demo"), help="default: work_dirs/demo")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the steps one after the other; 1 when one fails."""
    work_dir = build_parser().parse_args(argv).work_dir.resolve()
    start = time.monotonic()
    taken = [folder for folder in FOLDERS if (work_dir / folder).exists()]
    if taken and not (work_dir / MARKER).exists():
        raise ValueError(
            f"--work-dir {work_dir} holds {', '.join(taken)}, which the demo did not write: give another folder"
        )
    for folder in taken:
        shutil.rmtree(work_dir / folder)
    work_dir.mkdir(parents=True, exist_ok=True)
    (work_dir / MARKER).touch()
    devkit, student = work_dir / "VOCdevkit", work_dir / "student" / "student.pth"
    student.parent.mkdir(parents=True)
    try:
        counts = ["--train", str(SCENES), "--val", str(VAL_SCENES), "--size", SCENE_SIZE]
        run("draw a VOC devkit", "make_drawn_voc", devkit, *counts)
        run("write its training lists", "prepare_voc", devkit)
        train(work_dir, "baseline", [])
        # custom_hooks.2 is DistillWarmupHook.
        frskd = train(work_dir, "frskd", [f"custom_hooks.2.begin={WARMUP}", f"custom_hooks.2.end={EPOCHS}"])
        checkpoint = Path((frskd / "last_checkpoint").read_text().strip())
        run("export the student", "export_student", checkpoint, student)
        benchmark = ["--batch", str(BATCH), "--size", "128", "--repeat", "5", "--json", work_dir / "step.json"]
        run("time a training step", "benchmark", "step", "--model", "effdet_d0", *benchmark)
        report(work_dir, checkpoint, student, time.monotonic() - start)
    except RuntimeError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    return 0
