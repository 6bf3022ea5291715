"""``frskd benchmark step | train``: what FRSKD costs.

`train` measures three things: the data alone (no network), the network alone (one batch that stays on the device), and
both together. How much longer a step takes than that of the network alone is the share of the data.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import islice, product, repeat
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.transforms import v2

from frskd_plugin.check import AMP_DTYPES
from frskd_plugin.commands.arguments import check_device, key_and_value, positive_int, whole_number, width, write_text
from frskd_plugin.commands.training_step import (
    METHODS,
    NUM_CLASSES,
    SEGMENTORS,
    StepSettings,
    TrainingStep,
    classifier,
    forward_cost,
    interleaved_medians,
    launches_of_step,
    peak_of_step,
    seconds_of,
    training_steps,
)
from frskd_plugin.data.cifar100 import load_cifar100
from frskd_plugin.data.tensor_images import TensorImages, take_batch
from frskd_plugin.timm.feature_extractor import check_model_name

Row = dict[str, Any]
DATA_BATCH, PADDING, IMAGE_SIZE = 128, 4, 32
MEAN, STD = (129.3, 124.1, 112.4), (68.2, 65.4, 70.4)  # of CIFAR-100's training images, in 0..255
DATA_NAMES = {"loader": "DataLoader", "tensor": "TensorImages", "none": "one batch that stays"}
# What is measured by `step` -> its unit, which it is divided by to be shown
MEASURES = {"s": ("step, ms", 1e-3), "macs": ("MACs of an image, M", 1e6), "memory": ("memory, MiB", 2**20)}
LAUNCHES = {"launches": ("launches", 1)}
MEANING = {
    "cpu": "memory: of the tensors that the forward pass keeps for the backward pass, weights not counted",
    "cuda": "memory: peak of a step above what lay on the GPU before it",
}
LAUNCHES_MEANING = {
    "cpu": "launches: operators of the forward and the backward pass, views left out",
    "cuda": "launches: kernels of the forward and the backward pass",
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
    add(
        "--self-teacher",
        nargs="+",
        type=key_and_value,
        default=[],
        metavar="NAME=VALUE",
        help="settings of a segmentor's FRSKDHead: early_gradients=True, kd_resolution=head, ...",
    )
    step.set_defaults(run=run_step)
    text = "images per second of training on CIFAR-100, with and without each way to make it faster"
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
    for sub, meaning in ((step, "run both networks with"), (train, "measure also with")):
        amp = f"{meaning} autocast to bf16, or to this type"
        sub.add_argument("--amp", nargs="?", const="bf16", choices=sorted(AMP_DTYPES), help=amp)
        sub.add_argument("--compile", action="store_true", help=f"{meaning} torch.compile")
        sub.add_argument("--channels-last", action="store_true", help=f"{meaning} the channels_last layout")
        text = "width of a classifier's self-teacher: a number or auto (2, the paper's)"
        sub.add_argument("--width", type=width, default=2, help=text)
        sub.add_argument("--threads", type=positive_int, help="CPU threads (PyTorch's choice)")
        sub.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
        text = "also write the rows as a JSON list; alone: to stdout"
        sub.add_argument("--json", nargs="?", const="-", metavar="FILE", help=text)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print each part of the table as soon as it is there.

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
    for new, lines in args.run(args):
        rows += new
        print("\n".join(lines), flush=True, file=out)
        if args.json not in (None, "-"):  # each time: a long run that is stopped keeps what it has
            write_text(args.json, json.dumps(rows, indent=2) + "\n")
    if args.json == "-":
        write_text("-", json.dumps(rows, indent=2) + "\n")
    return 0


def settings_of_row(settings: StepSettings, batch: int) -> Row:
    """Return what a row says of its settings."""
    names = ("device", "amp", "compile", "channels_last")
    return {"batch": batch, "threads": torch.get_num_threads(), **{name: getattr(settings, name) for name in names}}


def option_names(row: Row) -> str:
    """Name the options of a row that are on."""
    return ", ".join([key for key in ("compile", "channels_last") if row[key]] + ([row["amp"]] if row["amp"] else []))


def grid_line(cells: Iterable[object]) -> str:
    """Write a row of a Markdown table.

    >>> grid_line(["FRSKD", 73.27])
    '| FRSKD | 73.27 |'
    """
    return f"| {' | '.join(map(str, cells))} |"


def grid_head(header: Sequence[str]) -> list[str]:
    """Write the first two rows of a Markdown table."""
    return [grid_line(header), "|---" * len(header) + "|"]


# `step`: the training step of the plain network beside that with FRSKD


def run_step(args: argparse.Namespace) -> Iterator[tuple[list[Row], list[str]]]:
    """Yield a row for each model that was named, and the lines of a table."""
    classifiers = [name for name in args.model if name not in SEGMENTORS]
    for name in classifiers:
        try:
            check_model_name(name)
        except ValueError as error:
            raise ValueError(f"{error} Segmentors are: {', '.join(SEGMENTORS)}.") from error
    if classifiers and args.self_teacher:
        raise ValueError(f"--self-teacher is for {', '.join(SEGMENTORS)}, got {', '.join(classifiers)}")
    options = ("batch", "size", "device", "amp", "compile", "channels_last", "width")
    settings = StepSettings(**{key: getattr(args, key) for key in options}, self_teacher=tuple(args.self_teacher))
    measures = MEASURES | (LAUNCHES if args.launches else {})
    head = [part for unit, _ in measures.values() for part in (f"{unit}: plain", "FRSKD", "ratio")]
    machine = ", ".join(filter(None, [args.device, f"{torch.get_num_threads()} CPU threads", option_names(vars(args))]))
    yield [], [f"{machine}; the median of {args.repeat} steps", "", *grid_head(["model", "images", *head])]
    for number, name in enumerate(args.model, start=1):
        row = measure_step(name, settings, args.repeat, args.launches, f"{name} ({number} of {len(args.model)})")
        cells = []
        for key, (_, unit) in measures.items():
            plain, frskd = row[f"plain_{key}"] / unit, row[f"frskd_{key}"] / unit
            cells += [*(f"{value:.{0 if unit == 1 else 1}f}" for value in (plain, frskd)), f"{frskd / plain:.2f}"]
        yield [row], [grid_line([name, f"{row['batch']} of {row['image']}", *cells])]
    kind = torch.device(args.device).type
    yield [], ["", *filter(None, [MEANING.get(kind), LAUNCHES_MEANING.get(kind) if args.launches else None])]


def measure_step(name: str, settings: StepSettings, repeat: int, launches: bool = False, what: str = "") -> Row:
    """Return a row: seconds of both steps, multiply-accumulates per image, bytes, launches.

    Args:
        name: timm model or segmentor.
        settings: how the steps are run.
        repeat: steps of each kind that are timed.
        launches: count them too.
        what: text for a progress bar.

    Raises:
        ValueError: the model cannot be trained with FRSKD, or not on images of this size.
    """
    steps, (batch, _, height, across) = training_steps(name, settings)
    costs = [forward_cost(step) for step in steps]
    seconds = interleaved_medians([partial(seconds_of, step) for step in steps], repeat, 2, what)
    is_cuda = steps[0].device_type == "cuda"
    found: dict[str, list[Any]] = {
        "s": seconds,
        "macs": [cost.macs // batch for cost in costs],
        "memory": [peak_of_step(step) for step in steps] if is_cuda else [cost.kept for cost in costs],
        **({"launches": [launches_of_step(step) for step in steps]} if launches else {}),
    }
    row = {"model": name, "image": f"{height}x{across}", **settings_of_row(settings, batch)}
    for key, (plain, frskd) in found.items():
        row |= {f"plain_{key}": plain, f"frskd_{key}": frskd}
    return row | {"ratio": seconds[1] / seconds[0], "mac_ratio": row["frskd_macs"] / row["plain_macs"]}


# `train`: images per second


def run_train(args: argparse.Namespace) -> Iterator[tuple[list[Row], list[str]]]:
    """Yield the rows of the data alone, then those of every model that was named, with their tables.

    Network alone and with `TensorImages` are measured for each method and set of options, loaders without options.
    """
    for name in args.model:
        check_model_name(name)
    images, targets, text = cifar100_or_drawn(args.data_root, args.images)
    sources: dict[str, SampleImages | TensorImages] = {
        "loader": SampleImages(images, targets),
        "tensor": TensorImages(images, targets, augment=True, device=args.device),
    }
    plain = StepSettings(batch=args.batch, device=args.device, width=args.width)
    named = {key: getattr(args, key) for key in ("amp", "channels_last", "compile") if getattr(args, key)}
    options = [plain, *(replace(plain, **{key: value}) for key, value in named.items())]
    options += [replace(plain, **named)] if len(named) > 1 else []
    for name in (None, *args.model):
        torch.manual_seed(0)
        rows: list[Row] = []
        turns = []
        pairs: list[tuple[str, StepSettings]] = list(product(METHODS, options)) if name else [("", plain)]
        for method, settings in pairs:
            paths: list[tuple[str, Any]] = [("loader", n) for n in args.workers if settings is plain] + [("tensor", 0)]
            step = None
            if name:
                network, loss, _ = classifier(name, method, images.shape[-1], args.width)
                step = TrainingStep(network, next(batches(sources["tensor"], settings, 0, 1)), settings, loss)
                paths.insert(0, ("none", None))
            for data, workers in paths:
                row = {"model": name, "method": method or None, "data": data, "workers": workers, "images": text}
                rows.append(row | settings_of_row(settings, args.batch))
                turns.append(partial(turn, step, sources.get(data), settings, workers, args.steps))
        seconds = interleaved_medians(turns, args.repeat, 1, name or "data alone")
        add_rates(rows, seconds)
        machine = f"batch {args.batch}, {args.device}, {torch.get_num_threads()} CPU threads, {text}"
        yield rows, [f"{name or 'data alone'}: {machine}", "", *train_table(rows), ""]


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
    batch = settings.batch or DATA_BATCH
    loader = DataLoader(
        dataset,
        batch,
        sampler=RandomSampler(range(len(dataset)), num_samples=count * batch),
        num_workers=workers,
        collate_fn=take_batch if is_tensor else None,
        pin_memory=not is_tensor and device.type == "cuda",
    )
    for data in loader:
        images = (data["inputs"].to(device, non_blocking=True).float() - mean) / std
        targets = data["targets"].to(device, non_blocking=True)
        yield images.contiguous(memory_format=settings.memory_format), targets


def turn(
    step: TrainingStep | None,
    source: SampleImages | TensorImages | None,
    settings: StepSettings,
    workers: int,
    count: int,
) -> float:
    """Return the seconds a batch of a data path, once the workers' queues are full, of a network, or of both."""
    if source is None:  # the batch that it saw last
        return seconds_of(lambda: _consume(repeat(step.inputs, count) if step else (), step)) / count
    lead = 2 * workers + 1
    with closing(batches(source, settings, workers, lead + 1 + count)) as made:
        for _ in islice(made, lead):
            pass
        _consume(islice(made, 1), step)
        return seconds_of(lambda: _consume(islice(made, count), step)) / count


def _consume(made: Iterable[tuple[object, ...]], step: TrainingStep | None) -> None:
    for inputs in made:
        if step is not None:
            step.inputs = inputs
            step()


def add_rates(rows: Sequence[Row], seconds: Sequence[float]) -> None:
    """Add images per second, their ratio to those of the first loader, and the share of the data."""
    for row, per_batch in zip(rows, seconds, strict=True):
        row["images_per_s"] = row["batch"] / per_batch
    for row in rows:
        row["ratio"] = row["images_per_s"] / _rate(rows, method=row["method"], data="loader")
        alone = {key: row[key] for key in ("method", "amp", "compile", "channels_last")}
        is_training = row["model"] is not None and row["data"] != "none"
        row["data_share"] = 1 - row["images_per_s"] / _rate(rows, data="none", **alone) if is_training else None


def _rate(rows: Sequence[Row], **what: Any) -> float:
    """Return the images per second of the first row with these values."""
    return next(row["images_per_s"] for row in rows if all(row[key] == value for key, value in what.items()))


def train_table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = grid_head(["method", "data", "options", "images/s", "ratio", "share of the data"])
    for row in rows:
        data = DATA_NAMES[row["data"]] + (f", {row['workers']} workers" if row["data"] == "loader" else "")
        share = "" if row["data_share"] is None else f"{row['data_share']:.0%}"
        rate = (f"{row['images_per_s']:.1f}", f"{row['ratio']:.2f}", share)
        lines.append(grid_line([row["method"] or "", data, option_names(row), *rate]))
    return lines
