"""``frskd benchmark step | train``: what FRSKD costs.

`train` measures three things: the data alone (no network), the network alone (one batch that stays on the device), and
both together.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.transforms import v2

from frskd_plugin.check_step import AMP_DTYPES
from frskd_plugin.commands.arguments import check_device, key_and_value, positive_int, whole_number, width, write_text
from frskd_plugin.commands.training_step import (
    METHODS,
    NUM_CLASSES,
    SEGMENTORS,
    StepSettings,
    TrainingStep,
    classifier_step,
    forward_cost,
    interleaved_medians,
    launches_of_step,
    peak_of_step,
    seconds_of,
    training_steps,
)
from frskd_plugin.data.cifar100 import load_cifar100
from frskd_plugin.data.tensor_images import TensorImages, take_batch
from frskd_plugin.timm.checkpoint import check_model_name

Row = dict[str, Any]
OPTIONS = ("compile", "channels_last", "amp")
DATA_BATCH, PADDING, IMAGE_SIZE = 128, 4, 32
MEAN, STD = (129.3, 124.1, 112.4), (68.2, 65.4, 70.4)  # of CIFAR-100's training images, in 0..255
DATA_NAMES = {"loader": "DataLoader, {} workers", "tensor": "TensorImages", "none": "one batch that stays"}
# networks of this package whose maps leave a ReLU, so that the self-teacher need not rectify them again
RECTIFIED = ("resnet18_cifar", "resnet34_cifar", "wrn_16_2", "wrn_16_2_published")
# What is measured by `step` -> its title and its unit, which it is divided by to be shown
MEASURES = {
    "s": ("step, ms", 1e-3),
    "macs": ("MACs of an image, M", 1e6),
    "memory": ("memory, MiB", 2**20),
    "launches": ("launches", 1),
}
NOTES = {
    "cpu": "memory: of the tensors that the forward pass keeps for the backward pass, weights not counted\n"
    "launches: operators of the forward and the backward pass, views left out",
    "cuda": "memory: peak of a step above what lay on the GPU before it\n"
    "launches: kernels of the forward and the backward pass",
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of both subcommands."""
    parser = argparse.ArgumentParser(prog="frskd benchmark", description="What FRSKD costs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    text = "time, MACs and memory of a training step, plain and with FRSKD, in one process"
    step = commands.add_parser("step", help=text, description=text)
    add = step.add_argument
    add("--model", nargs="+", required=True, metavar="NAME", help="timm models, effdet_d0 or effdet_d1")
    add("--batch", type=positive_int, help="images in a step (32; resnet18_cifar 16; segmentors 2)")
    add("--size", type=positive_int, help="image height and width (the model's own; segmentors 512)")
    add("--repeat", type=positive_int, default=10, help="steps of each kind that are timed (10)")
    add("--launches", action="store_true", help="count also the operators (CPU) or kernels (CUDA) of a step")
    text = "settings of a segmentor's FRSKDHead: early_gradients=True, kd_resolution=head, ..."
    add("--self-teacher", nargs="+", type=key_and_value, default=[], metavar="NAME=VALUE", help=text)
    step.set_defaults(run=run_step)
    text = "images per second of training on CIFAR-100, plain and with FRSKD, by each way to load the data"
    train = commands.add_parser("train", help=text, description=text)
    add = train.add_argument
    add("--model", nargs="+", required=True, metavar="NAME", help="timm models for images of 32x32")
    add("--data-root", metavar="DIR", help="where CIFAR-100 lies; drawn images of its size without it")
    add("--images", type=positive_int, default=50_000, help="how many are drawn (50000)")
    add("--batch", type=positive_int, default=DATA_BATCH, help=f"images in a step ({DATA_BATCH})")
    add("--workers", type=whole_number, nargs="+", default=[0, 2], help="worker processes of the DataLoader (0 2)")
    add("--steps", type=positive_int, default=5, help="steps in a turn (5; a GPU needs 50 and more)")
    add("--repeat", type=positive_int, default=3, help="turns of each kind that are timed (3)")
    train.set_defaults(run=run_train)
    for add in (step.add_argument, train.add_argument):
        text = "run both networks with autocast to bf16, or to this type"
        add("--amp", nargs="?", const="bf16", choices=sorted(AMP_DTYPES), help=text)
        add("--compile", action="store_true", help="run both networks with torch.compile")
        add("--channels-last", action="store_true", help="run both networks in the channels_last layout")
        text = "width of a classifier's self-teacher: a number or auto (2, the paper's)"
        add("--width", type=width, default=2, help=text)
        add("--threads", type=positive_int, help="CPU threads (PyTorch's choice)")
        add("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
        text = "also write the rows as a JSON list; alone: to stdout"
        add("--json", nargs="?", const="-", metavar="FILE", help=text)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print each row of the table as soon as it is there.

    Raises:
        ValueError: an unknown model, one that does not take these images, or an option that is for segmentors.
        FileNotFoundError: there is no CIFAR-100 at ``--data-root``.
    """
    args = build_parser().parse_args(argv)
    check_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    rows: list[Row] = []
    out = sys.stderr if args.json == "-" else sys.stdout  # stdout then holds nothing else
    of_all = {"threads": torch.get_num_threads(), **{key: getattr(args, key) for key in ("device", *OPTIONS)}}
    options = filter(None, [args.compile and "compile", args.channels_last and "channels_last", args.amp])
    print(", ".join([args.device, f"{torch.get_num_threads()} CPU threads", *options]), file=out)
    for new, lines in args.run(args):
        rows += [row | of_all for row in new]
        print("\n".join(lines), flush=True, file=out)
        if args.json not in (None, "-"):  # each time: a long run that is stopped keeps what it has
            write_text(args.json, json.dumps(rows, indent=2) + "\n")
    if args.json == "-":
        write_text("-", json.dumps(rows, indent=2) + "\n")
    return 0


def table_lines(header: Sequence[object], body: Iterable[Iterable[object]]) -> list[str]:
    """Write a Markdown table.

    >>> table_lines(["method", "top-1"], [["FRSKD", 73.27]])
    ['| method | top-1 |', '|---|---|', '| FRSKD | 73.27 |']
    """
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (header, *body)]
    return [lines[0], "|---" * len(header) + "|", *lines[1:]]


def teacher_settings(name: str, width: int | str) -> dict[str, Any]:
    """Return the settings of FRSKD for a classifier."""
    return {"width": width, "rectify_input": name not in RECTIFIED}


def run_step(args: argparse.Namespace) -> Iterator[tuple[list[Row], list[str]]]:
    """Yield rows and lines: the head of a table first, then for each model the plain network's step beside FRSKD's."""
    classifiers = [name for name in args.model if name not in SEGMENTORS]
    for name in classifiers:
        try:
            check_model_name(name)
        except ValueError as error:
            raise ValueError(f"{error} Segmentors are: {', '.join(SEGMENTORS)}.") from error
    if classifiers and args.self_teacher:
        raise ValueError(f"--self-teacher is for {', '.join(SEGMENTORS)}, got {', '.join(classifiers)}")
    settings = StepSettings(args.batch, args.size, args.device, args.amp, args.compile, args.channels_last)
    measures = {key: measure for key, measure in MEASURES.items() if key != "launches" or args.launches}
    titles = (part for title, _ in measures.values() for part in (f"{title}: plain", "FRSKD", "ratio"))
    header = ["model", "images", *titles]
    yield [], [f"the median of {args.repeat} steps", "", *table_lines(header, [])]
    for number, name in enumerate(args.model, start=1):
        options = dict(args.self_teacher) if name in SEGMENTORS else teacher_settings(name, args.width)
        steps = training_steps(name, settings, **options)
        row = {"model": name, **measure_steps(steps, args.repeat, args.launches, f"{number} of {len(args.model)}")}
        cells = [name, f"{row['batch']} of {row['image']}"]
        for key, (_, unit) in measures.items():
            plain, frskd = row[f"plain_{key}"] / unit, row[f"frskd_{key}"] / unit
            cells += [*(f"{value:.{0 if unit == 1 else 1}f}" for value in (plain, frskd)), f"{frskd / plain:.2f}"]
        yield [row], table_lines(header, [cells])[2:]
    notes = NOTES.get(torch.device(args.device).type, "").splitlines()
    yield [], ["", *(note for note in notes if note.partition(":")[0] in measures)]


def measure_steps(steps: Sequence[TrainingStep], repeat: int, launches: bool, what: str) -> Row:
    """Return a row of the plain step and FRSKD's: seconds, multiply-accumulates per image, bytes, launches."""
    batch, _, height, across = steps[0].inputs[0].shape
    costs = [forward_cost(step) for step in steps]
    is_cuda = steps[0].device_type == "cuda"
    found: dict[str, list[Any]] = {
        "s": interleaved_medians([partial(seconds_of, step) for step in steps], repeat, 2, what),
        "macs": [cost.macs // batch for cost in costs],
        "memory": [peak_of_step(step) for step in steps] if is_cuda else [cost.kept for cost in costs],
        **({"launches": [launches_of_step(step) for step in steps]} if launches else {}),
    }
    row: Row = {"image": f"{height}x{across}", "batch": batch}
    for key, (plain, frskd) in found.items():
        row |= {f"plain_{key}": plain, f"frskd_{key}": frskd}
    return row | {"ratio": row["frskd_s"] / row["plain_s"], "mac_ratio": row["frskd_macs"] / row["plain_macs"]}


def run_train(args: argparse.Namespace) -> Iterator[tuple[list[Row], list[str]]]:
    """Yield rows and lines: the head of a table first, then each model's images per second, by the way to load them."""
    for name in args.model:
        check_model_name(name)
    images, targets, text = cifar100_or_drawn(args.data_root, args.images)
    sources: dict[str, SampleImages | TensorImages] = {
        "loader": SampleImages(images, targets),
        "tensor": TensorImages(images, targets, augment=True, device=args.device),
    }
    size = images.shape[-1]
    settings = StepSettings(args.batch, size, args.device, args.amp, args.compile, args.channels_last)
    header = ["model", "data", "data alone, images/s", "plain", "FRSKD"]
    yield [], [f"batch {args.batch}, {text}", "", *table_lines(header, [])]
    for name in args.model:
        torch.manual_seed(0)
        steps = [classifier_step(name, method, settings, **teacher_settings(name, args.width)) for method in METHODS]
        paths = [*(("loader", workers) for workers in args.workers), ("tensor", 0)]
        turns = [[partial(network_turn, step, args.steps) for step in steps]]
        turns += [
            [partial(turn, step, sources[data], settings, workers, args.steps) for step in (None, *steps)]
            for data, workers in paths
        ]
        seconds = iter(interleaved_medians(list(chain(*turns)), args.repeat, 1, name))
        rows, body = [], []
        for (data, workers), group in zip([("none", 0), *paths], turns, strict=True):
            *alone, plain, frskd = (args.batch / next(seconds) for _ in group)
            row = {"model": name, "data": data, "workers": workers, "images": text, "batch": args.batch}
            rates = {"data": alone[0] if alone else None, "plain": plain, "frskd": frskd}
            rows.append(row | {f"{key}_images_per_s": rate for key, rate in rates.items()})
            shown = ("" if rate is None else f"{rate:.1f}" for rate in rates.values())
            body.append([name, DATA_NAMES[data].format(workers), *shown])
        yield rows, table_lines(header, body)[2:]


def cifar100_or_drawn(data_root: str | None, count: int) -> tuple[Tensor, Tensor, str]:
    """Return CIFAR-100's training images uint8 [N, 3, H, W], labels [N] and a text; or ``count`` drawn ones.

    Raises:
        FileNotFoundError: there is no CIFAR-100.
    """
    if data_root is not None:
        loaded = load_cifar100(data_root, "train")
        images, targets = torch.as_tensor(loaded.images), torch.as_tensor(loaded.targets)
        return images, targets, f"{len(images)} images of CIFAR-100"
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8, generator=generator)
    return images, torch.arange(count) % NUM_CLASSES, f"{count} drawn images"


class SampleImages(Dataset):
    """Data set of single samples, made as torchvision's CIFAR100: a PIL image, a random crop and flip, a tensor."""

    def __init__(self, images: Tensor, targets: Tensor) -> None:
        self.images = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.targets = targets.tolist()
        self.transforms = v2.Compose(
            [v2.RandomCrop(self.images.shape[1:3], padding=PADDING), v2.RandomHorizontalFlip(), v2.PILToTensor()]
        )

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        return {"inputs": self.transforms(Image.fromarray(self.images[index])), "targets": self.targets[index]}


def batches(
    dataset: SampleImages | TensorImages, settings: StepSettings, workers: int, count: int
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Yield ``count`` batches on the device: images [B, 3, H, W], shuffled and normalised, and labels [B]."""
    device, is_tensor = torch.device(settings.device), isinstance(dataset, TensorImages)
    # made once: to make them for each batch would have the host wait for the GPU
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD))
    loader = DataLoader(
        dataset,
        settings.batch,
        sampler=RandomSampler(range(len(dataset)), num_samples=count * (settings.batch or 1)),
        num_workers=workers,
        collate_fn=take_batch if is_tensor else None,
        pin_memory=not is_tensor and device.type == "cuda",
    )
    for data in loader:
        images = (data["inputs"].to(device, non_blocking=True).float() - mean) / std
        targets = data["targets"].to(device, non_blocking=True)
        yield images.contiguous(memory_format=settings.memory_format), targets


def network_turn(step: TrainingStep, count: int) -> float:
    """Measure the seconds of a step on a batch that stays on the device."""

    def steps() -> None:
        for _ in range(count):
            step()

    return seconds_of(steps) / count


def turn(
    step: TrainingStep | None, source: SampleImages | TensorImages, settings: StepSettings, workers: int, count: int
) -> float:
    """Measure the seconds for a batch of a data path, alone or with a network, once the workers' queues are full."""

    def consume(number: int) -> None:
        for inputs in islice(made, number):
            if step is not None:
                step.inputs = (*inputs, *step.inputs[2:])
                step()

    lead = 2 * workers + 1
    with closing(batches(source, settings, workers, lead + 1 + count)) as made:
        for _ in islice(made, lead):
            pass
        consume(1)
        return seconds_of(lambda: consume(count)) / count
