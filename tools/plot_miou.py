"""Draw the mIoU curves of several runs into one picture, student and self-teacher.

python tools/plot_miou.py work_dirs/baseline_camvid_effdet_d0 work_dirs/frskd_camvid_effdet_d0 -o miou.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

KEYS = {"mIoU": "", "self_teacher.mIoU": ", self-teacher"}


def read_scores(work_dir: Path) -> dict[str, dict[int, float]]:
    """Key -> epoch -> mIoU in percent, from the JSON logs of a run and of its resumed parts.

    Raises:
        ValueError: if the folder holds no validation.
    """
    scores: dict[str, dict[int, float]] = {}
    for log in sorted(work_dir.glob("*/vis_data/scalars.json")):
        for line in map(json.loads, log.read_text().splitlines()):
            for key in KEYS:
                if key in line:
                    scores.setdefault(key, {})[line["step"]] = line[key]
    if not scores:
        raise ValueError(f"{work_dir} holds no log with a validation (*/vis_data/scalars.json); expected a run.")
    return scores


def main(argv: Sequence[str] | None = None) -> None:
    """Draw, and print the last scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work_dirs", nargs="+", type=Path, help="folders that tools/train.py wrote")
    parser.add_argument("-o", "--out", type=Path, default=Path("miou.png"), help="picture to write")
    args = parser.parse_args(argv)
    figure = Figure(figsize=(6, 3.6), layout="tight")
    axis = figure.add_subplot(xlabel="epoch", ylabel="mIoU (%)")
    for work_dir in args.work_dirs:
        try:
            scores = read_scores(work_dir)
        except ValueError as error:
            parser.error(str(error))
        for key, points in scores.items():
            epochs = sorted(points)
            label = f"{work_dir.name}{KEYS[key]}"
            axis.plot(epochs, [points[epoch] for epoch in epochs], "--" if KEYS[key] else "-", marker=".", label=label)
            print(f"{label}: {points[epochs[-1]]:.2f} at epoch {epochs[-1]}, best {max(points.values()):.2f}")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    FigureCanvasAgg(figure).print_png(str(args.out))


if __name__ == "__main__":
    main()
