"""Looks whether a folder holds an mmcv whose compiled operators load and compute, and mmdetection.

    python -I scripts/check_mmdet.py FOLDER [--mmdet]

FOLDER is searched before the environment of the interpreter, as with PYTHONPATH=FOLDER. Exit status 0: it works; 1: it
does not, and the reason is printed.
"""

from __future__ import annotations

import sys
from pathlib import Path


def check_operators(folder: Path) -> None:
    """Run one compiled operator of the mmcv in ``folder``.

    Raises:
        ImportError: the operators cannot be loaded, or mmcv comes from elsewhere.
        RuntimeError: the operator gives a wrong result.
    """
    import mmcv
    import torch
    from mmcv.ops import nms

    if folder not in Path(mmcv.__file__).resolve().parents:
        raise ImportError(f"mmcv comes from {mmcv.__file__}")
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
    _, kept = nms(boxes, torch.tensor([0.8, 0.9, 0.7]), 0.5)
    if kept.tolist() != [1, 2]:
        raise RuntimeError(f"nms kept the boxes {kept.tolist()}, expected [1, 2]")


def main(arguments: list[str]) -> int:
    """Check the folder named on the command line."""
    folder = Path(arguments[0]).resolve()
    sys.path.insert(0, str(folder))
    try:
        check_operators(folder)
        if "--mmdet" in arguments:
            import mmdet.datasets
            import mmdet.evaluation
            import mmdet.models  # noqa: F401
    except Exception as error:  # an undefined symbol, a missing file, a wrong result: all mean "make it again"
        print(f"{folder} does not work: {type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
