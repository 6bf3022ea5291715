"""``benchmark train``: images per second of training on CIFAR-100, with and without each way to make it faster.

Three things are measured: the data alone (no network), the network alone (one batch that stays on the device), and both
together. How much longer a step takes than that of the network alone is the share of the data.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, repeat
from typing import Any

import torch

from frskd_plugin.benchmark.classification import METHODS, classifier_loss
from frskd_plugin.benchmark.data_paths import DEFAULT_BATCH, DataPath, SampleImages, Source, cifar100_or_drawn
from frskd_plugin.benchmark.options import (
    add_machine_arguments,
    add_network_arguments,
    machine_text,
    option_names,
    positive_int,
    report,
    set_machine,
    whole_number,
)
from frskd_plugin.benchmark.timing import medians_of_turns, seconds_of
from frskd_plugin.benchmark.training_step import StepSettings, TrainingStep
from frskd_plugin.data.tensor_images import TensorImages
from frskd_plugin.timm.create import check_model_name

Rows = list[dict[str, Any]]
DATA_NAMES = {"loader": "DataLoader", "tensor": "TensorImages", "none": "one batch that stays"}


@dataclass(frozen=True)
class Variant:
    """One row: what is run, and how many seconds a batch it takes when it is its turn."""

    what: dict[str, Any]
    settings: StepSettings
    turn: Callable[[int], float]


def network_turn(step: TrainingStep, count: int) -> float:
    """Seconds a batch of the network alone, on the batch it saw last."""
    return seconds_of(lambda: consume(repeat(step.inputs, count), step)) / count


def data_turn(path: DataPath, step: TrainingStep | None, count: int) -> float:
    """Seconds a batch of a data path with or without a network; workers start and fill their queues before that."""
    lead = 2 * path.workers + 1
    with closing(path.batches(lead + 1 + count)) as batches:
        for _ in islice(batches, lead):
            pass
        consume(islice(batches, 1), step)
        return seconds_of(lambda: consume(islice(batches, count), step)) / count


def consume(batches: Iterable[tuple[object, ...]], step: TrainingStep | None) -> None:
    """Train on the batches, or only make them."""
    for inputs in batches:
        if step is not None:
            step.inputs = inputs
            step()


class Datasets:
    """CIFAR-100 in both forms, made once."""

    def __init__(self, source: Source, settings: StepSettings) -> None:
        self.samples = SampleImages(source)
        self.tensor = TensorImages(source.images, source.targets, augment=True, device=settings.device)

    def paths(self, settings: StepSettings, workers: Sequence[int]) -> Iterator[tuple[dict[str, Any], DataPath]]:
        """The ordinary loader with each number of workers, and the tensor; each with its part of a row."""
        for number in workers:
            yield {"data": "loader", "workers": number}, DataPath(self.samples, settings, number)
        yield {"data": "tensor", "workers": 0}, DataPath(self.tensor, settings)


def data_variants(datasets: Datasets, settings: StepSettings, workers: Sequence[int]) -> list[Variant]:
    """The data paths without a network."""
    return [
        Variant({"model": None, "method": None, **what}, settings, partial(data_turn, path, None))
        for what, path in datasets.paths(settings, workers)
    ]


def training_variants(
    name: str, datasets: Datasets, option_sets: Sequence[StepSettings], workers: Sequence[int]
) -> list[Variant]:
    """Both methods: the network alone and with `TensorImages` for each set of options, and with loaders for the first.

    Raises:
        ValueError: The model cannot be trained with FRSKD on images of this size.
    """
    variants = []
    for method in METHODS:
        for number, settings in enumerate(option_sets):
            loss, _ = classifier_loss(name, method, datasets.tensor.size[0], settings.width)
            step = TrainingStep(loss, next(DataPath(datasets.tensor, settings).batches(1)), settings)
            row = {"model": name, "method": method}
            variants.append(Variant({**row, "data": "none", "workers": None}, settings, partial(network_turn, step)))
            for what, path in datasets.paths(settings, workers if number == 0 else ()):
                variants.append(Variant({**row, **what}, settings, partial(data_turn, path, step)))
    return variants


def measure(variants: Sequence[Variant], source: Source, steps: int, turns: int) -> Rows:
    """A row a variant. They take turns of ``steps`` batches; a row holds the median of its turns."""
    seconds = medians_of_turns([partial(variant.turn, steps) for variant in variants], turns, warmup=1)
    rows = []
    for variant, per_batch in zip(variants, seconds, strict=True):
        settings = variant.settings
        batch = settings.batch or DEFAULT_BATCH
        rows.append(
            {
                **variant.what,
                "images": source.text,
                "batch": batch,
                "device": settings.device,
                "threads": torch.get_num_threads(),
                "amp": settings.amp,
                "compile": settings.compile,
                "channels_last": settings.channels_last,
                "images_per_s": batch / per_batch,
            }
        )
    for row in rows:
        row["ratio"] = row["images_per_s"] / _rate(rows, method=row["method"], data="loader")
        alone = {key: row[key] for key in ("method", "amp", "compile", "channels_last")}
        is_training = row["model"] is not None and row["data"] != "none"
        row["data_share"] = 1 - row["images_per_s"] / _rate(rows, data="none", **alone) if is_training else None
    return rows


def _rate(rows: Rows, **what: Any) -> float:
    """Images per second of the first row that is this."""
    return next(row["images_per_s"] for row in rows if all(row[key] == value for key, value in what.items()))


def option_sets(args: argparse.Namespace) -> list[StepSettings]:
    """No option, each option that was named alone, and all of them together."""
    none = StepSettings(batch=args.batch, device=args.device, width=args.width)
    named = {key: getattr(args, key) for key in ("amp", "channels_last", "compile") if getattr(args, key)}
    sets = [none, *(replace(none, **{key: value}) for key, value in named.items())]
    return [*sets, replace(none, **named)] if len(named) > 1 else sets


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument("--model", nargs="+", required=True, metavar="NAME", help="timm model for images of 32x32")
    parser.add_argument("--data-root", metavar="DIR", help="where CIFAR-100 lies; drawn images of its size without it")
    parser.add_argument("--images", type=positive_int, default=50_000, help="how many are drawn (50000)")
    parser.add_argument("--batch", type=positive_int, default=DEFAULT_BATCH, help=f"images in a step ({DEFAULT_BATCH})")
    parser.add_argument(
        "--workers", type=whole_number, nargs="+", default=[0, 2], help="worker processes of the DataLoader (0 2)"
    )
    parser.add_argument("--steps", type=positive_int, default=5, help="steps in a turn (5; a GPU needs 50 and more)")
    parser.add_argument("--repeat", type=positive_int, default=3, help="turns of each kind that are timed (3)")
    add_network_arguments(parser, meaning="measure also with")
    add_machine_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measure the data paths, then every model that was named; print tables and write the file.

    Raises:
        ValueError: An unknown model or device, or a model that does not take these images.
        FileNotFoundError: There is no CIFAR-100 at ``--data-root``.
    """
    set_machine(args)
    for name in args.model:
        check_model_name(name)
    source = cifar100_or_drawn(args.data_root, args.images)
    report(_groups(args, source), describe, args.json)


def _groups(args: argparse.Namespace, source: Source) -> Iterator[Rows]:
    options = option_sets(args)
    datasets = Datasets(source, options[0])
    yield measure(data_variants(datasets, options[0], args.workers), source, args.steps, args.repeat)
    for name in args.model:
        torch.manual_seed(0)
        yield measure(training_variants(name, datasets, options, args.workers), source, args.steps, args.repeat)


def describe(rows: Rows) -> str:
    """A table for a reader."""
    first = rows[0]
    lines = [f"{first['model'] or 'data alone'}: {machine_text(first)}, {first['images']}"]
    lines.append(f"  {'':9}{'data':24}{'options':30}{'images/s':>9}   ratio  share of the data")
    for row in rows:
        data = DATA_NAMES[row["data"]] + (f", {row['workers']} workers" if row["data"] == "loader" else "")
        share = "" if row["data_share"] is None else f"{row['data_share']:10.0%}"
        options = ", ".join(option_names(row))
        line = f"  {row['method'] or '':9}{data:24}{options:30}{row['images_per_s']:9.1f}  x {row['ratio']:.2f}{share}"
        lines.append(line.rstrip())
    return "\n".join(lines)
