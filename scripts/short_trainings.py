"""Train plain and with FRSKD by short schedules of five kinds, the experiment behind the defaults of `wrap`.

    python scripts/short_trainings.py --data data/cifar100 -o runs.jsonl --processes 12
    python scripts/short_trainings.py -o docs/results/short_trainings.jsonl --table

Each run is a line of the file, and is not done again. The protocols:

demo       WRN-16-2, the images and the schedule of `frskd demo`, from random weights
subset8    WRN-16-2, the first 100 images of each class of CIFAR-100, 8 epochs, SGD 0.1, /10 after 4 and 6
subset30   the same in 30 epochs, /10 after 15 and 22.5
ft40 ...   ResNet-18 at 64 pixels, pretrained on 20 classes (250 images of each, 400 steps of 64), then 40, 150 or 600
           steps of 32 on 10 others (50 images of each), SGD 0.01 with a cosine; three groups of classes
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from finetune_cifar100 import NEW, OLD, take
from torch import Tensor, nn

import frskd_plugin
from frskd_plugin.commands import demo
from frskd_plugin.timm.cifar_networks import CIFAR_MEAN, CIFAR_STD

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SETTINGS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "default": {},
    "trunk 1": dict(alpha=1, beta="auto", schedule="gate", trunk_gradient=1),
    "trunk 0.3": dict(alpha=1, beta="auto", schedule="gate", trunk_gradient=0.3),
    "paper": dict(alpha=2, beta=100, width=2),
    "no distillation": dict(alpha=0, beta=0),
}
GROUPS, SEEDS = range(3), (1, 2, 3, 4, 5)
Job = tuple[str, str, int, int]  # protocol, setting, seed, group of classes
Split = tuple[Tensor, Tensor]


def jobs(settings: list[str]) -> Iterator[Job]:
    """Yield all runs; those that others wait for come first."""
    for setting in settings:
        yield from (("subset30", setting, seed, 0) for seed in (0, 1))
        yield from (("subset8", setting, seed, 0) for seed in (0, 1, 2))
        yield from (("demo", setting, seed, 0) for seed in range(6))
        for steps, seeds in ((40, SEEDS), (150, SEEDS), (600, SEEDS[:3])):
            yield from ((f"ft{steps}", setting, seed, group) for seed in seeds for group in GROUPS)


@functools.lru_cache
def cifar(root: Path, split: str, classes: tuple[int, ...], per_class: int | None) -> Split:
    """Return normalised images [N, 3, 32, 32] and labels [N] on the device."""
    images, labels = take(root, split, list(classes), per_class)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (CIFAR_MEAN, CIFAR_STD))
    return ((images.float() / 255 - mean) / std).to(DEVICE), labels.to(DEVICE)


@functools.lru_cache
def drawn(split: str) -> Split:
    """Return the normalised images [N, 3, 16, 16] of `frskd demo` and their labels."""
    number, count = {"train": (0, demo.TRAIN_PER_CLASS), "test": (1, demo.TEST_PER_CLASS)}[split]
    images, labels = [], []
    for label, name in enumerate(demo.CLASSES):
        for i in range(count):
            images.append(demo.draw_object(np.random.default_rng([number, label, i]), name))
            labels.append(label)
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
    return ((x - 120) / 60).to(DEVICE), torch.tensor(labels, device=DEVICE)


def resize(images: Tensor, size: int | None) -> Tensor:
    """Return images of the network's size in channels_last."""
    if size is not None:
        images = F.interpolate(images, size=size, mode="bilinear")
    return images.contiguous(memory_format=torch.channels_last)


def augment(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Return a random crop of each padded image [B, C, H, W], half of them flipped."""
    count, _, height, width = images.shape
    begins = torch.randint(0, 2 * padding + 1, (count, 2), generator=generator).to(DEVICE)
    flips = (torch.rand(count, generator=generator) < 0.5).to(DEVICE)
    rows = begins[:, :1] + torch.arange(height, device=DEVICE)
    columns = begins[:, 1:] + torch.arange(width, device=DEVICE)
    columns = torch.where(flips[:, None], columns.flip(1), columns)
    padded, places = F.pad(images, (padding,) * 4), torch.arange(count, device=DEVICE)[:, None, None]
    return padded[places, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@torch.no_grad()
def accuracies(model: nn.Module, data: Split, size: int | None, bf16: bool) -> list[float | None]:
    """Return the top-1 of student and self-teacher, None where there is none."""
    model.eval()
    right: list[int | None] = [0, 0]
    with torch.autocast(DEVICE, torch.bfloat16, enabled=bf16):
        for images, labels in zip(data[0].split(500), data[1].split(500), strict=True):
            for k, logits in enumerate(model.method.evaluate(model.student_forward, resize(images, size))):
                right[k] = None if logits is None else right[k] + (logits.argmax(1) == labels).sum().item()
    return [None if hits is None else round(100 * hits / len(data[1]), 2) for hits in right]


def train(
    student: nn.Module,
    setting: str,
    data: tuple[Split, Split],
    factor: Callable[[int], float],
    *,
    seed: int,
    batch: int,
    steps: int,
    lr: float,
    weight_decay: float,
    padding: int,
    size: int | None = None,
    nesterov: bool = False,
    drop_last: bool = False,
    bf16: bool = False,
) -> list[float | None]:
    """Train the student in place and return its accuracy and the self-teacher's; the rate is ``lr * factor(step)``."""
    (images, labels), test = data
    side = images.shape[-1] if size is None else size
    settings = SETTINGS[setting]
    method, settings = ("baseline", {}) if settings is None else ("frskd", settings)
    model = frskd_plugin.wrap(student, method, input_size=(3, side, side), **settings)
    model = model.to(DEVICE, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=weight_decay, nesterov=nesterov)
    generator, done = torch.Generator().manual_seed(seed), 0
    while done < steps:
        for index in torch.randperm(len(labels), generator=generator).split(batch):
            if done == steps or (drop_last and len(index) < batch):
                break
            optimizer.param_groups[0]["lr"] = lr * factor(done)
            model.method.set_progress(done, steps)
            index = index.to(DEVICE)
            with torch.autocast(DEVICE, torch.bfloat16, enabled=bf16):
                loss = model(resize(augment(images[index], padding, generator), size), labels[index])["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
    return accuracies(model, test, size, bf16)


def milestones(*steps: int) -> Callable[[int], float]:
    """Return the factor of a learning rate that falls to a tenth at each of the steps."""
    return lambda step: 0.1 ** sum(step >= milestone for milestone in steps)


def cosine(steps: int) -> Callable[[int], float]:
    """Return the factor of a learning rate that falls as a cosine."""
    return lambda step: 0.5 * (1 + math.cos(math.pi * step / steps))


def classes(group: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the old and the new classes of a group."""
    order = np.random.default_rng(100 + group).permutation(100).tolist()
    return tuple(order[:OLD]), tuple(order[OLD : OLD + NEW])


def pretrained(root: Path, folder: Path, group: int) -> dict[str, Tensor]:
    """Return the weights on the old classes without the classifier; made if missing."""
    file = folder / f"pretrained_{group}.pth"
    if not file.exists():
        torch.manual_seed(group)
        student, old = timm.create_model("resnet18", num_classes=OLD), classes(group)[0]
        data = (cifar(root, "train", old, 250), cifar(root, "test", old, None))
        rest = dict(lr=0.05, weight_decay=5e-4, padding=4, size=64, drop_last=True)
        train(student, "plain", data, cosine(400), seed=group, batch=64, steps=400, **rest)
        torch.save({name: value.cpu() for name, value in student.state_dict().items()}, file)
    state = torch.load(file, weights_only=True)
    return {name: value for name, value in state.items() if not name.startswith("fc.")}


def run(root: Path, folder: Path, job: Job) -> dict[str, Any]:
    """Do one of the runs."""
    protocol, setting, seed, group = job
    torch.set_num_threads(1)
    state = pretrained(root, folder, group) if protocol.startswith("ft") else {}
    torch.manual_seed(seed)
    begin = time.monotonic()
    if protocol == "demo":
        student = timm.create_model("wrn_16_2", num_classes=len(demo.CLASSES))
        epoch = math.ceil(len(demo.CLASSES) * demo.TRAIN_PER_CLASS / 32)
        # the schedule of configs/_base_/demo.py
        rest = dict(batch=32, steps=epoch * 26, lr=0.05, weight_decay=5e-4, padding=2, nesterov=True)
        factor = milestones(epoch * 16, epoch * 22)
        scores = train(student, setting, (drawn("train"), drawn("test")), factor, seed=seed, **rest)
    elif protocol.startswith("subset"):
        steps, every = 79 * int(protocol.removeprefix("subset")), tuple(range(100))
        student = timm.create_model("wrn_16_2", num_classes=100)
        data = (cifar(root, "train", every, 100), cifar(root, "test", every, None))
        rest = dict(batch=128, steps=steps, lr=0.1, weight_decay=1e-4, padding=4, bf16=DEVICE == "cuda")
        scores = train(student, setting, data, milestones(steps // 2, steps * 3 // 4), seed=seed, **rest)
    else:
        steps, new = int(protocol.removeprefix("ft")), classes(group)[1]
        student = timm.create_model("resnet18", num_classes=NEW)
        student.load_state_dict(state, strict=False)
        data = (cifar(root, "train", new, 50), cifar(root, "test", new, None))
        rest = dict(batch=32, steps=steps, lr=0.01, weight_decay=1e-4, padding=4, size=64, drop_last=True)
        scores = train(student, setting, data, cosine(steps), seed=seed, **rest)
    found = dict(zip(("protocol", "setting", "seed", "group"), job, strict=True))
    return {**found, "student": scores[0], "self_teacher": scores[1], "seconds": round(time.monotonic() - begin, 1)}


def table(records: list[dict[str, Any]]) -> str:
    """Return the table of docs/results/short_trainings.md: differences to the plain network, pair by pair."""
    found: dict[tuple[str, str], dict[tuple[int, int], dict[str, Any]]] = {}
    for record in records:
        place = found.setdefault((record["protocol"], record["setting"]), {})
        place[record["group"], record["seed"]] = record
    lines = [
        "| protocol | setting | pairs | student - plain | self-teacher - plain | each pair |",
        "|---|---|---|---|---|---|",
    ]
    for protocol, setting in sorted(found, key=lambda key: (key[0], list(SETTINGS).index(key[1]))):
        plain, own = found.get((protocol, "plain"), {}), found[protocol, setting]
        if setting == "plain":
            scores = [run["student"] for _, run in sorted(own.items())]
            each = " ".join(f"{score:.1f}" for score in scores)
            lines.append(f"| {protocol} | plain | {len(scores)} | {statistics.fmean(scores):.2f} % | | {each} |")
            continue
        pairs = [(own[key], plain[key]["student"]) for key in sorted(own) if key in plain]
        if not pairs:
            continue
        gains, leads = ([one[name] - other for one, other in pairs] for name in ("student", "self_teacher"))
        error = f" ± {statistics.stdev(gains) / len(gains) ** 0.5:.2f}" if len(gains) > 1 else ""
        row = [
            protocol,
            setting,
            len(gains),
            f"{statistics.fmean(gains):+.2f}{error}",
            f"{statistics.fmean(leads):+.1f}",
        ]
        lines.append("| " + " | ".join(map(str, [*row, " ".join(f"{gain:+.1f}" for gain in gains)])) + " |")
    return "\n".join(lines)


def main() -> None:
    """Do what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of CIFAR-100, see frskd prepare_data")
    parser.add_argument("-o", "--out", type=Path, required=True, help="a JSON line for each run")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=["plain", "default"], help="default: two")
    parser.add_argument("--protocols", nargs="+", default=["demo", "subset8", "subset30", "ft40", "ft150", "ft600"])
    parser.add_argument("--processes", type=int, default=1, help="runs at a time (1)")
    parser.add_argument("--table", action="store_true", help="print the table of what is done, and train nothing")
    args = parser.parse_args()
    records = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    if args.table:
        print(table(records))
        return
    if args.data is None:
        parser.error("--data is missing: the folder of CIFAR-100")
    done = {(r["protocol"], r["setting"], r["seed"], r["group"]) for r in records}
    todo = [job for job in jobs(args.settings) if job[0] in args.protocols and job not in done]
    if any(job[0].startswith("ft") for job in todo):
        for group in GROUPS:  # before several runs want them
            pretrained(args.data, args.out.parent, group)
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool, args.out.open("a") as file:
        for record in pool.imap_unordered(functools.partial(run, args.data, args.out.parent), todo):
            print(json.dumps(record), file=file, flush=True)
            print(record, flush=True)


if __name__ == "__main__":
    main()
