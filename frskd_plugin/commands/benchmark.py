"""``frskd benchmark step | train``: what FRSKD costs.

`train` measures three things: the data alone (no network), the network alone (one batch that stays on the device), and
both together. How much longer a step takes than that of the network alone is the share of the data.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.transforms import v2

from frskd_plugin.check import AMP_DTYPES
from frskd_plugin.check_report import table
from frskd_plugin.commands.arguments import (
    check_device,
    key_and_value,
    positive_int,
    whole_number,
    width,
    write_text,
)
from frskd_plugin.commands.make_drawn_voc import make_devkit
from frskd_plugin.commands.training_step import (
    MEMORY_MEANING,
    METHODS,
    PEAK_MEANING,
    SEGMENTOR_SIZE,
    SEGMENTORS,
    StepSettings,
    TrainingStep,
    classifier,
    forward_macs,
    interleaved_medians,
    medians_of_turns,
    peak_memory,
    read_segmentor,
    seconds_of,
    step_memory,
    training_steps,
)
from frskd_plugin.data.cifar100 import load_cifar100
from frskd_plugin.data.tensor_images import TensorImages, take_batch
from frskd_plugin.timm.feature_extractor import check_model_name

Rows = list[dict[str, Any]]
DATA_BATCH, PADDING, IMAGE_SIZE, NUM_CLASSES = 128, 4, 32, 100
MEAN, STD = (129.3, 124.1, 112.4), (68.2, 65.4, 70.4)  # of CIFAR-100's training images, in 0..255
DATA_NAMES = {"loader": "DataLoader", "tensor": "TensorImages", "none": "one batch that stays"}
SCENES, SCENE_SIZE = 4, (375, 500)  # most of VOC's photographs


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of both subcommands."""
    parser = argparse.ArgumentParser(prog="frskd benchmark", description="What FRSKD costs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    text = "time of a training step, plain and with FRSKD, in one process"
    step = commands.add_parser("step", help=text, description=text)
    add = step.add_argument
    add("--model", nargs="+", required=True, metavar="NAME", help="timm model, effdet_d0 or effdet_d1")
    add("--batch", type=positive_int, help="images in a step (32; resnet18_cifar 16; segmentors 2)")
    add("--size", type=positive_int, help="image height and width (the model's own; segmentors 512)")
    add("--repeat", type=positive_int, default=10, help="steps of each kind that are timed (10)")
    add("--with-data", action="store_true", help="time a segmentor's steps also with the making of their batches")
    add("--peak", action="store_true", help="also the peak memory of each step, in a process of its own (CPU)")
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
    add("--model", nargs="+", required=True, metavar="NAME", help="timm model for images of 32x32")
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
    """Run a subcommand."""
    args = build_parser().parse_args(argv)
    check_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    args.run(args)
    return 0


def report(groups: Iterable[Rows], describe: Callable[[Rows], str], json_file: str | None) -> None:
    """Print each group of rows as soon as it is there, and keep the file up to date.

    Args:
        groups: what is measured, lazily.
        describe: text of a group for a reader.
        json_file: None, a path, or '-' for stdout, which then holds nothing else.
    """
    rows: Rows = []
    to_stdout = json_file == "-"
    for group in groups:
        rows += group
        print(describe(group), flush=True, file=sys.stderr if to_stdout else sys.stdout)
        if json_file and not to_stdout:  # after each group: a long run that is stopped keeps what it has
            write_text(json_file, json.dumps(rows, indent=2) + "\n")
    if to_stdout:
        write_text("-", json.dumps(rows, indent=2) + "\n")


def _settings_of_row(settings: StepSettings, batch: int) -> dict[str, Any]:
    return {
        "batch": batch,
        "device": settings.device,
        "threads": torch.get_num_threads(),
        "amp": settings.amp,
        "compile": settings.compile,
        "channels_last": settings.channels_last,
    }


def _machine_text(row: dict[str, Any]) -> str:
    return f"batch {row['batch']}, {row['device']}, {row['threads']} CPU thread(s)"


def _option_names(row: dict[str, Any]) -> list[str]:
    return [key for key in ("compile", "channels_last") if row[key]] + ([row["amp"]] if row["amp"] else [])


# `step`: the training step of the plain network beside that with FRSKD


def run_step(args: argparse.Namespace) -> None:
    """Measure every model that was named, print a table and write the file.

    Raises:
        ValueError: an unknown model, or an option that is for segmentors.
    """
    classifiers = [name for name in args.model if name not in SEGMENTORS]
    for name in classifiers:
        try:
            check_model_name(name)
        except ValueError as error:
            raise ValueError(f"{error} Segmentors are: {', '.join(SEGMENTORS)}.") from error
    if classifiers and (args.with_data or args.self_teacher):
        raise ValueError(
            f"--with-data and --self-teacher are for {', '.join(SEGMENTORS)}, got {', '.join(classifiers)}; "
            "`frskd benchmark train` measures classifiers with their data."
        )
    options = {
        key: getattr(args, key) for key in ("batch", "size", "device", "amp", "compile", "channels_last", "width")
    }
    settings = StepSettings(**options, self_teacher=tuple(args.self_teacher))
    rows = ([measure_step(name, settings, args.repeat, args.with_data, args.peak)] for name in args.model)
    report(rows, describe_step, args.json)


def measure_step(
    name: str, settings: StepSettings, repeat: int, with_data: bool = False, peak: bool = False
) -> dict[str, Any]:
    """Return one row: seconds of both steps and their ratio, multiply-accumulates per image, bytes.

    Args:
        name: timm model or segmentor.
        settings: how the steps are run.
        repeat: steps of each kind that are timed.
        with_data: measure a segmentor's steps also with the making of their batches.
        peak: measure also the peak memory, in processes of their own.

    Raises:
        ValueError: the model cannot be trained with FRSKD, or not on images of this size, or not with this option.
        OSError: a process that measured the peak memory was killed.
    """
    more: dict[str, Any] = {}
    if peak:
        more["plain_peak"], more["frskd_peak"] = peak_memory(name, settings)
    plain, frskd, batch = training_steps(name, settings)
    plain_macs, frskd_macs = forward_macs(plain, batch), forward_macs(frskd, batch)
    plain_memory, frskd_memory = step_memory(plain), step_memory(frskd)
    with TemporaryDirectory() as folder:
        timed: list[Callable[[], object]] = [plain, frskd]
        if with_data:
            config, root = read_segmentor(f"frskd_voc_{name}.py"), Path(folder) / "VOCdevkit"
            size = settings.size or SEGMENTOR_SIZE
            timed += [StepWithData(step, DrawnBatches(config, root, size, settings), batch) for step in (plain, frskd)]
        plain_s, frskd_s, *data_s = interleaved_medians(timed, repeat)
    if with_data:
        more |= {"plain_data_s": data_s[0], "frskd_data_s": data_s[1], "data_ratio": data_s[1] / data_s[0]}
    return {
        "model": name,
        **_settings_of_row(settings, batch),
        "plain_s": plain_s,
        "frskd_s": frskd_s,
        "ratio": frskd_s / plain_s,
        "plain_macs": plain_macs,
        "frskd_macs": frskd_macs,
        "mac_ratio": frskd_macs / plain_macs,
        "plain_memory": plain_memory,
        "frskd_memory": frskd_memory,
        "memory_is": MEMORY_MEANING[plain.device_type],
        **more,
    }


def describe_step(rows: Rows) -> str:
    """Return the table, with a note on the meaning of its memory."""
    (row,) = rows
    lines: list[list[object]] = [["", "plain", "FRSKD", "ratio"]]
    for name, key, scale in (
        ("step (ms, median)", "s", 1e3),
        ("step with data (ms, median)", "data_s", 1e3),
        ("MACs of an image (M, forward)", "macs", 1e-6),
        ("memory (MiB)", "memory", 2**-20),
        ("peak (MiB)", "peak", 2**-20),
    ):
        if f"plain_{key}" in row:
            plain, frskd = row[f"plain_{key}"] * scale, row[f"frskd_{key}"] * scale
            lines.append([name, f"{plain:.1f}", f"{frskd:.1f}", f"x {frskd / plain:.2f}"])
    notes = [f"  memory: {row['memory_is']}"] + ([f"  peak: {PEAK_MEANING}"] if "plain_peak" in row else [])
    return "\n".join([table(f"{row['model']}: {', '.join([_machine_text(row), *_option_names(row)])}", lines), *notes])


class DrawnBatches:
    """Drawn VOC scenes, read, decoded, augmented, collated and normalised a batch at a time, in this process.

    Args:
        config: a training config on VOC; its pipeline and preprocessor are used, at ``size``.
        root: new folder for the drawn scenes, or one that has them.
        size: height and width of the crops.
        settings: batch size, device and layout.
    """

    def __init__(self, config: Any, root: Path, size: int, settings: StepSettings) -> None:
        from mmengine.registry import init_default_scope
        from mmseg.registry import DATASETS, MODELS

        if not root.exists():
            make_devkit(root, train=SCENES, val=1, size=SCENE_SIZE)
        dataset = copy.deepcopy(config.train_dataloader.dataset)
        while "datasets" in dataset or "dataset" in dataset:
            dataset = dataset["dataset"] if "dataset" in dataset else dataset["datasets"][0]
        dataset["data_root"] = str(root)
        dataset["ann_file"] = "VOC2007/ImageSets/Segmentation/trainval.txt"
        for transform in dataset["pipeline"]:
            if transform["type"] == "RandomCrop":
                transform["crop_size"] = (size, size)
            elif transform["type"] == "RandomResize":
                transform["scale"] = (4 * size, size)
        init_default_scope("mmseg")
        self.dataset = DATASETS.build(dataset)
        self.preprocessor = MODELS.build({**config.model.data_preprocessor, "size": (size, size)}).to(settings.device)
        self.settings = settings
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, batch: int) -> tuple[Tensor, list[Any]]:
        """Return normalised images [B, 3, size, size] and their samples."""
        from mmengine.dataset import pseudo_collate

        indices = torch.randint(len(self.dataset), (batch,), generator=self.generator).tolist()
        data = self.preprocessor(pseudo_collate([self.dataset[index] for index in indices]), training=True)
        return data["inputs"].contiguous(memory_format=self.settings.memory_format), data["data_samples"]


class StepWithData:
    """Training step that makes its batch first; two of one seed see the same batches."""

    def __init__(self, step: TrainingStep, batches: DrawnBatches, batch: int) -> None:
        self.step, self.batches, self.batch = step, batches, batch
        self.count = 0

    def __call__(self) -> None:
        """Take one step."""
        # mmseg's augmentations draw from the global generators
        random.seed(self.count)
        np.random.seed(self.count)
        self.count += 1
        self.step.inputs = self.batches(self.batch)
        self.step()


# `train`: images per second


def run_train(args: argparse.Namespace) -> None:
    """Measure the data paths, then every model that was named; print tables and write the file.

    Raises:
        ValueError: an unknown model, or one that does not take these images.
        FileNotFoundError: there is no CIFAR-100 at ``--data-root``.
    """
    for name in args.model:
        check_model_name(name)
    source = cifar100_or_drawn(args.data_root, args.images)
    report(_train_groups(args, source), describe_train, args.json)


def _train_groups(args: argparse.Namespace, source: Source) -> Iterator[Rows]:
    options = option_sets(args)
    datasets = Datasets(source, options[0])
    data_alone = [
        Variant({"model": None, "method": None, **what}, options[0], partial(data_turn, path, None))
        for what, path in datasets.paths(options[0], args.workers)
    ]
    yield measure_train(data_alone, source, args.steps, args.repeat)
    for name in args.model:
        torch.manual_seed(0)
        variants = training_variants(name, datasets, options, args.workers)
        yield measure_train(variants, source, args.steps, args.repeat)


def option_sets(args: argparse.Namespace) -> list[StepSettings]:
    """Return the settings without options, with each option alone, and with all of them together."""
    none = StepSettings(batch=args.batch, device=args.device, width=args.width)
    named = {key: getattr(args, key) for key in ("amp", "channels_last", "compile") if getattr(args, key)}
    sets = [none, *(replace(none, **{key: value}) for key, value in named.items())]
    return [*sets, replace(none, **named)] if len(named) > 1 else sets


@dataclass(frozen=True)
class Source:
    """Images uint8 [N, 3, H, W], labels int64 [N], and a text about them."""

    images: Tensor
    targets: Tensor
    text: str


def cifar100_or_drawn(data_root: str | None, count: int) -> Source:
    """Return CIFAR-100's training images, or random ones of their size.

    Args:
        data_root: where CIFAR-100 lies; None draws ``count`` images.
        count: how many are drawn.

    Raises:
        FileNotFoundError: there is no CIFAR-100.
    """
    if data_root is not None:
        loaded = load_cifar100(data_root, "train")
        images, targets = torch.as_tensor(loaded.images), torch.as_tensor(loaded.targets)
        return Source(images, targets, f"{len(images)} images of CIFAR-100")
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8, generator=generator)
    return Source(images, torch.arange(count) % NUM_CLASSES, f"{count} drawn images")


class SampleImages(Dataset):
    """Data set of single samples, made as torchvision's CIFAR100: a PIL image, a random crop and flip, a tensor."""

    def __init__(self, source: Source) -> None:
        self.images = source.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.targets = source.targets.tolist()
        self.transforms = v2.Compose(
            [v2.RandomCrop(self.images.shape[1:3], padding=PADDING), v2.RandomHorizontalFlip(), v2.PILToTensor()]
        )

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        return {"inputs": self.transforms(Image.fromarray(self.images[index])), "targets": self.targets[index]}


class DataPath:
    """Source of batches, for networks of one layout.

    Args:
        dataset: `SampleImages` or `TensorImages`.
        settings: batch size, device and layout.
        workers: processes of the loader.
    """

    def __init__(self, dataset: SampleImages | TensorImages, settings: StepSettings, workers: int = 0) -> None:
        self.dataset = dataset
        self.workers = workers
        self.batch = settings.batch or DATA_BATCH
        self.device = torch.device(settings.device)
        self.memory_format = settings.memory_format
        # kept there: to make them for each batch would have the host wait for the GPU
        self.mean, self.std = (torch.tensor(values, device=self.device).view(3, 1, 1) for values in (MEAN, STD))

    def batches(self, count: int) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Yield ``count`` batches on the device: images [B, 3, H, W], shuffled and normalised, and labels [B]."""
        is_tensor = isinstance(self.dataset, TensorImages)
        loader = DataLoader(
            self.dataset,
            self.batch,
            sampler=RandomSampler(range(len(self.dataset)), num_samples=count * self.batch),
            num_workers=self.workers,
            collate_fn=take_batch if is_tensor else None,
            pin_memory=not is_tensor and self.device.type == "cuda",
        )
        for batch in loader:
            images = (batch["inputs"].to(self.device, non_blocking=True).float() - self.mean) / self.std
            targets = batch["targets"].to(self.device, non_blocking=True)
            yield images.contiguous(memory_format=self.memory_format), targets


class Datasets:
    """CIFAR-100 in both forms, made once."""

    def __init__(self, source: Source, settings: StepSettings) -> None:
        self.samples = SampleImages(source)
        self.tensor = TensorImages(source.images, source.targets, augment=True, device=settings.device)

    def paths(self, settings: StepSettings, workers: Sequence[int]) -> Iterator[tuple[dict[str, Any], DataPath]]:
        """Yield the ordinary loader for each number of workers, then the tensor; each with its part of a row."""
        for number in workers:
            yield {"data": "loader", "workers": number}, DataPath(self.samples, settings, number)
        yield {"data": "tensor", "workers": 0}, DataPath(self.tensor, settings)


@dataclass(frozen=True)
class Variant:
    """Row to measure: its description, its settings, and a function that returns the seconds of a batch."""

    what: dict[str, Any]
    settings: StepSettings
    turn: Callable[[int], float]


def training_variants(
    name: str, datasets: Datasets, options: Sequence[StepSettings], workers: Sequence[int]
) -> list[Variant]:
    """List both methods: network alone and with `TensorImages` for each set of options, with loaders for the first.

    Raises:
        ValueError: the model cannot be trained with FRSKD on images of this size.
    """
    variants = []
    for method in METHODS:
        for number, settings in enumerate(options):
            network, loss, _ = classifier(name, method, datasets.tensor.size[0], settings.width)
            inputs = next(DataPath(datasets.tensor, settings).batches(1))
            step = TrainingStep(network, inputs, settings, loss=loss)
            row = {"model": name, "method": method}
            variants.append(Variant({**row, "data": "none", "workers": None}, settings, partial(network_turn, step)))
            for what, path in datasets.paths(settings, workers if number == 0 else ()):
                variants.append(Variant({**row, **what}, settings, partial(data_turn, path, step)))
    return variants


def network_turn(step: TrainingStep, count: int) -> float:
    """Return the seconds a batch of the network alone, on the batch it saw last."""
    return seconds_of(lambda: _consume(repeat(step.inputs, count), step)) / count


def data_turn(path: DataPath, step: TrainingStep | None, count: int) -> float:
    """Return the seconds a batch of a data path, with or without a network, once the workers' queues are full."""
    lead = 2 * path.workers + 1
    with closing(path.batches(lead + 1 + count)) as batches:
        for _ in islice(batches, lead):
            pass
        _consume(islice(batches, 1), step)
        return seconds_of(lambda: _consume(islice(batches, count), step)) / count


def _consume(batches: Iterable[tuple[object, ...]], step: TrainingStep | None) -> None:
    for inputs in batches:
        if step is not None:
            step.inputs = inputs
            step()


def measure_train(variants: Sequence[Variant], source: Source, steps: int, turns: int) -> Rows:
    """Return a row for each variant: the median of its turns of ``steps`` batches."""
    seconds = medians_of_turns([partial(variant.turn, steps) for variant in variants], turns, warmup=1)
    rows = []
    for variant, per_batch in zip(variants, seconds, strict=True):
        batch = variant.settings.batch or DATA_BATCH
        row = {**variant.what, "images": source.text, **_settings_of_row(variant.settings, batch)}
        rows.append({**row, "images_per_s": batch / per_batch})
    for row in rows:
        row["ratio"] = row["images_per_s"] / _rate(rows, method=row["method"], data="loader")
        alone = {key: row[key] for key in ("method", "amp", "compile", "channels_last")}
        is_training = row["model"] is not None and row["data"] != "none"
        row["data_share"] = 1 - row["images_per_s"] / _rate(rows, data="none", **alone) if is_training else None
    return rows


def _rate(rows: Rows, **what: Any) -> float:
    """Return the images per second of the first row with these values."""
    return next(row["images_per_s"] for row in rows if all(row[key] == value for key, value in what.items()))


def describe_train(rows: Rows) -> str:
    """Return the table."""
    first = rows[0]
    lines: list[list[object]] = [["", "data", "options", "images/s", "ratio", "share of the data"]]
    for row in rows:
        data = DATA_NAMES[row["data"]] + (f", {row['workers']} workers" if row["data"] == "loader" else "")
        share = "" if row["data_share"] is None else f"{row['data_share']:.0%}"
        rates = [f"{row['images_per_s']:.1f}", f"x {row['ratio']:.2f}", share]
        lines.append([row["method"] or "", data, ", ".join(_option_names(row)), *rates])
    return table(f"{first['model'] or 'data alone'}: {_machine_text(first)}, {first['images']}", lines)
