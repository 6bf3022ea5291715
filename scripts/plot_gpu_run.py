"""Draw docs/results/cifar100_gpu.svg from the curves in docs/results/runs/cifar100_wrn_16_2_h200.json.

python scripts/plot_gpu_run.py
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"


def main() -> None:
    """Draw plain network, FRSKD student and self-teacher over the 200 epochs."""
    record = json.loads((RESULTS / "runs" / "cifar100_wrn_16_2_h200.json").read_text())
    epoch, student, teacher = (record["columns"].index(name) for name in ("epoch", "student_top1", "self_teacher_top1"))
    plt.rcParams.update(
        {"svg.hashsalt": "frskd", "font.size": 11, "axes.spines.top": False, "axes.spines.right": False}
    )
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for run in record["runs"]:
        epochs = [point[epoch] for point in run["curve"]]
        color, width = ("#c44e00", 2.2) if run["method"] == "frskd" else ("#7a7a7a", 1.4)
        label = {"frskd": "FRSKD, student"}.get(run["method"], f"plain network, seed {run['seed']}")
        style = "--" if run["method"] == "baseline" and run["seed"] else "-"
        axes.plot(epochs, [point[student] for point in run["curve"]], style, color=color, linewidth=width, label=label)
        if run["method"] == "frskd":
            axes.plot(epochs, [p[teacher] for p in run["curve"]], color="#2b6cb0", label="FRSKD, self-teacher")
    for drop in (100, 150):
        axes.axvline(drop, color="#bbbbbb", linewidth=0.8, linestyle=":")
    axes.text(101, 31, "learning rate / 10", color="#666666", fontsize=9)
    axes.set(xlabel="epoch", ylabel="top-1 on the test set (%)", ylim=(30, 77), xlim=(0, 201))
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(RESULTS / "cifar100_gpu.svg", metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main()
