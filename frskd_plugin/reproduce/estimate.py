"""How long runs will take, from a few measured steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from frskd_plugin.data.catalog import IMAGE_SETS
from frskd_plugin.reproduce.cost import StepCost
from frskd_plugin.reproduce.plan import IMAGES_PER_CLASS, Run
from frskd_plugin.reproduce.tables import BASELINE, TEACHER_OF

# images of VOC 2007 and 2012 trainval with a segmentation, and of VOC 2007 test
VOC_IMAGES = (3335, 210)
# ResNet34's multiply-accumulates over ResNet18's, with maps of any size
TEACHER_FACTOR = 2.0


def images_of(run: Run) -> tuple[int, int]:
    """Images of an epoch: those it trains on, and those it is scored on.

    >>> images_of(Run("baseline_cifar100_wrn_16_2", "cifar100", "wrn_16_2", "baseline"))
    (50000, 10000)
    """
    if run.data not in IMAGE_SETS:
        return VOC_IMAGES
    images = IMAGE_SETS[run.data]
    limits = [option.partition("=")[2] for option in run.options if f".{IMAGES_PER_CLASS}=" in option]
    train = int(limits[0]) * images.num_classes if limits else images.images["train"]
    return train, next(count for split, count in images.images.items() if split != "train")


def estimate_seconds(run: Run, key: str, costs: Mapping[str, StepCost]) -> float | None:
    """Seconds of a run; None where its network was not measured.

    Args:
        run: the run.
        key: of its row; a pretrained teacher's is that of the plain network.
        costs: network -> steps.
    """
    student = next((small for small, large in TEACHER_OF.items() if large == run.model), None)
    if student is not None and run.model not in costs and student in costs:
        return TEACHER_FACTOR * _seconds(run, BASELINE.key, costs[student])
    return _seconds(run, key, costs[run.model]) if run.model in costs else None


def _seconds(run: Run, key: str, cost: StepCost) -> float:
    return run.epochs * cost.seconds(key, *images_of(run))


def total_text(seconds: Sequence[float], jobs: int) -> str:
    """The time of all together, for a reader.

    >>> total_text([1800.0, 5400.0], jobs=2)
    '2.0 h of training, 1.5 h with 2 at a time (from a few steps on random images; data loading is not in it)'
    """
    hours = sum(seconds) / 3600
    wall = max([hours / jobs, *(s / 3600 for s in seconds)])
    together = f", {wall:.1f} h with {jobs} at a time" if jobs > 1 else ""
    return f"{hours:.1f} h of training{together} (from a few steps on random images; data loading is not in it)"
