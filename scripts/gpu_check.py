"""Times steps of `frskd train` with and without a CUDA graph, in one process; see gpu_check.sh."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from frskd_plugin.commands.train import main as train
from tests.helpers.tiny_classification import write_cifar

BATCH, STEPS = 128, 100
# (network, method, further options): by priority, for the time may end before all are done
CASES: list[tuple[str, str, tuple[str, ...]]] = [
    ("wrn_16_2", "frskd", ("--cuda-graph", "on")),
    ("wrn_16_2", "frskd", ("--cuda-graph", "off")),
    ("wrn_16_2", "baseline", ("--cuda-graph", "on")),
    ("resnet18_cifar", "frskd", ("--cuda-graph", "on")),
    ("resnet18_cifar", "baseline", ("--cuda-graph", "on")),
    ("wrn_16_2", "frskd", ("--cuda-graph", "on", "--compile")),
    ("resnet18_cifar", "frskd", ("--cuda-graph", "off")),
    ("wrn_16_2", "baseline", ("--cuda-graph", "off")),
    ("wrn_16_2", "baseline", ("--cuda-graph", "on", "--compile")),
]


def run(work_dir: Path, network: str, method: str, options: tuple[str, ...], data: Path, **settings: Any) -> list[dict]:
    """Train, and return the lines of the log."""
    arguments = [f"configs/{method}_cifar100_{network}.py", "--work-dir", work_dir, "--data-root", data, "--seed", 0]
    precision = ["--amp-dtype", "bf16", "--channels-last"]
    settings["visualizer.name"] = f"run_{work_dir.name}"  # mmengine keeps one of each name
    changes = [f"{name}={value}" for name, value in settings.items()]
    train([str(word) for word in (*arguments, *precision, *options, "--cfg-options", *changes)])
    (log,) = work_dir.glob("*/vis_data/scalars.json")
    return [json.loads(line) for line in log.read_text().splitlines()]


def main() -> int:
    """Return 1 where a run failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--begin", type=float, default=time.time(), help="when the time limit began to run")
    parser.add_argument("--minutes", type=float, default=3.8)
    parser.add_argument("--data-root", type=Path, help="CIFAR-100 for the run of three epochs")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--steps", type=int, default=STEPS, help="steps that are timed")
    parser.add_argument("--cases", type=int, default=len(CASES), help="the first N")
    parser.add_argument("--graph", choices=["on", "auto"], default="on", help="auto tries this script on a CPU")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    found: dict[str, Any] = {"device": device, "torch": torch.__version__, "batch": args.batch, "runs": []}
    folder = Path(tempfile.mkdtemp())
    noise = write_cifar(folder / "noise", args.batch * args.steps, 500)
    small = {
        "train_cfg.max_epochs": 2,
        "train_cfg.val_interval": 10,
        "param_scheduler.milestones": "[10]",
        "train_dataloader.batch_size": args.batch,
        "train_dataloader.dataset.expected_images": "None",
        "val_dataloader.dataset.expected_images": "None",
        "default_hooks.logger.interval": args.steps,
    }
    three = {"train_cfg.max_epochs": 3} if args.data_root else {**small, "train_cfg.max_epochs": 3}
    three |= {"train_cfg.val_interval": 1, "train_dataloader.batch_size": args.batch}
    jobs = [(case, small, noise) for case in CASES[: args.cases]]
    jobs.insert(1, (("wrn_16_2", "frskd", ("--cuda-graph", "on")), three, args.data_root or noise))
    for number, ((network, method, options), settings, data) in enumerate(jobs):
        options = tuple(args.graph if word == "on" else word for word in options)
        entry: dict[str, Any] = {"network": network, "method": method, "options": list(options)}
        entry["epochs"] = settings["train_cfg.max_epochs"]
        found["runs"].append(entry)
        begin = time.time()
        if begin - args.begin > 60 * args.minutes - 15:
            entry["left_out"] = "no time was left"
            continue
        try:
            lines = run(folder / str(number), network, method, options, data, **settings)
            steps = [line for line in lines if "loss" in line]
            entry["ms_a_step"] = round(1000 * steps[-1]["time"], 3)
            entry["first_and_last_loss"] = [steps[0]["loss"], steps[-1]["loss"]]
            entry["scores"] = [line for line in lines if "top1" in line]
        except Exception as error:  # the others are still worth their time
            traceback.print_exc()
            entry["error"] = f"{type(error).__name__}: {error}"
        entry["seconds"] = round(time.time() - begin, 1)
        if torch.cuda.is_available():
            entry["peak_mib"] = torch.cuda.max_memory_allocated() // 2**20
            torch.cuda.reset_peak_memory_stats()
        (args.out / "gpu_check.json").write_text(json.dumps(found, indent=1))
        print(f"gpu_check: {json.dumps(entry)}", flush=True)
    (args.out / "gpu_check.json").write_text(json.dumps(found, indent=1))
    return int(any("error" in entry for entry in found["runs"]))


if __name__ == "__main__":
    raise SystemExit(main())
