"""Fine-tune a ResNet-18 plain and with FRSKD, and draw what docs/finetuning.md calls healthy logs.

    python scripts/finetune_cifar100.py --data data/cifar100 --pretrained old.pth -o docs/results/finetuning.svg

Images of CIFAR-100 at 64 pixels. The network is pretrained on 20 classes (400 steps of 64 images), then trained on 10
others (50 images of each, ``--steps`` of 32), plain and wrapped with the library's own settings, by the same seed. What
is done (the pretrained weights, either run in the .json beside the figure) is not done again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import frskd_plugin
from frskd_plugin.data.cifar100 import load_cifar100
from frskd_plugin.timm.cifar_networks import CIFAR_MEAN, CIFAR_STD

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

SIZE, OLD, NEW = 64, 20, 10
Split = tuple[Tensor, Tensor]


def take(data_root: Path, split: str, classes: list[int], per_class: int | None) -> Split:
    """Return uint8 images [N, 3, 32, 32] of some classes and their new labels [N]."""
    arrays = load_cifar100(data_root, split)
    index = torch.cat([(arrays.targets == c).nonzero().flatten()[:per_class] for c in classes])
    return arrays.images[index], torch.tensor([classes.index(int(c)) for c in arrays.targets[index]])


def prepare(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return normalised images [B, 3, 64, 64]; a generator draws a crop of the padded image and a flip for each."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (CIFAR_MEAN, CIFAR_STD))
    x = (images.float() / 255 - mean) / std
    if generator is not None:
        rows, columns, flips = (torch.randint(high, (len(x),), generator=generator).tolist() for high in (9, 9, 2))
        padded = F.pad(x, (4, 4, 4, 4))
        crops = [padded[i, :, r : r + 32, c : c + 32] for i, (r, c) in enumerate(zip(rows, columns, strict=True))]
        x = torch.stack([crop.flip(-1) if flip else crop for crop, flip in zip(crops, flips, strict=True)])
    return F.interpolate(x, size=SIZE, mode="bilinear").contiguous(memory_format=torch.channels_last)


def batches(data: Split, size: int, steps: int, seed: int) -> Iterator[Split]:
    """Yield so many batches, in passes of a new order each."""
    generator, done = torch.Generator().manual_seed(seed), 0
    while True:
        for index in torch.randperm(len(data[1]), generator=generator).split(size):
            if len(index) == size:
                yield prepare(data[0][index], generator), data[1][index]
                done += 1
            if done == steps:
                return


def pretrain(data: Split, seed: int, steps: int) -> nn.Module:
    """Train a ResNet-18 on the old classes."""
    torch.manual_seed(seed)
    model = timm.create_model("resnet18", num_classes=OLD).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps, pct_start=0.2)
    for images, targets in batches(data, 64, steps, seed):
        loss = F.cross_entropy(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model


@torch.no_grad()
def accuracies(model: nn.Module, data: Split) -> list[float]:
    """Return the top-1 of the student and, of a wrapped model with one, the self-teacher."""
    model.eval()
    right = torch.zeros(2)
    for images, targets in zip(data[0].split(250), data[1].split(250), strict=True):
        logits = model.method.evaluate(model.student_forward, prepare(images))
        right += torch.tensor([0 if each is None else (each.argmax(1) == targets).sum() for each in logits])
    model.train()
    return (100 * right / len(data[1])).tolist()


def finetune(state: dict[str, Tensor], method: str, train: Split, test: Split, seed: int, steps: int) -> dict:
    """Train on the new classes, and return the losses of each step and the accuracies of each 20."""
    torch.manual_seed(seed)
    student = timm.create_model("resnet18", num_classes=NEW)
    student.load_state_dict({name: value for name, value in state.items() if not name.startswith("fc.")}, strict=False)
    model = frskd_plugin.wrap(student, method, input_size=(3, SIZE, SIZE)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    log: dict[str, list] = {"top1": []}
    for step, (images, targets) in enumerate(batches(train, 32, steps, seed)):
        model.method.set_progress(step, steps)
        losses = model(images, targets)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        schedule.step()
        if method == "frskd":
            losses["gate"] = model.method.loss_distill.gate.mean.clamp(0, 1)
        for name, value in losses.items():
            if value.ndim == 0:
                log.setdefault(name, []).append(round(value.item(), 4))
        if (step + 1) % 20 == 0:
            log["top1"].append([step + 1, *accuracies(model, test)])
            print(method, *log["top1"][-1], flush=True)
    return log


def draw(logs: dict[str, dict], out: Path) -> None:
    """Draw losses (mean of five steps) on the left and accuracies on the right."""
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "frskd", "font.size": 10})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.6), layout="constrained")
    names = {"loss_ce": "C0-", "loss_teacher_ce": "C1-", "loss_kd": "C3--", "loss_feat": "C4--", "gate": "C2:"}
    curves = [(name, logs["frskd"][name], style) for name, style in names.items()]
    for name, values, style in [*curves, ("loss_ce, plain run", logs["baseline"]["loss_ce"], "0.5")]:
        means = torch.tensor(values).view(-1, 5).mean(dim=1)
        left.plot(range(5, len(values) + 1, 5), means, style, label=name)
    left.set(xlabel="step", ylabel="weighted loss, mean of 5 steps", ylim=(0, None))
    for name, method, column, style in (
        ("plain network", "baseline", 1, "0.5"),
        ("FRSKD, student", "frskd", 1, "C0"),
        ("FRSKD, self-teacher", "frskd", 2, "C1"),
    ):
        steps, *values = zip(*logs[method]["top1"], strict=True)
        right.plot(steps, values[column - 1], color=style, marker="o", markersize=3, label=name)
    right.set(xlabel="step", ylabel="top-1 (%) of 500 test images")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(out, metadata={"Date": None})


def main() -> None:
    """Pretrain, fine-tune twice, draw; the numbers go beside the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-100, see frskd prepare_data")
    parser.add_argument("-o", "--out", type=Path, required=True, help="figure (.svg); the numbers go to .json")
    parser.add_argument("--pretrained", type=Path, required=True, help="weights on the old classes, made if missing")
    parser.add_argument("--group", type=int, default=0, help="of classes, which are old and new")
    parser.add_argument("--seed", type=int, default=0, help="of the order and the new weights")
    parser.add_argument("--steps", type=int, default=80, help="of fine-tuning, a multiple of 20 (default: 80)")
    args = parser.parse_args()
    if args.steps < 20 or args.steps % 20:
        parser.error(f"--steps must be a multiple of 20, got {args.steps}")
    order = np.random.default_rng(100 + args.group).permutation(100).tolist()
    if not args.pretrained.exists():
        model = pretrain(take(args.data, "train", order[:OLD], None), args.group, steps=400)
        torch.save(model.state_dict(), args.pretrained)
    state = torch.load(args.pretrained, weights_only=True)
    new, record = order[OLD : OLD + NEW], args.out.with_suffix(".json")
    train, test = take(args.data, "train", new, 50), take(args.data, "test", new, 50)
    logs = json.loads(record.read_text()) if record.exists() else {}
    for method in ("baseline", "frskd"):
        if method not in logs:
            logs[method] = finetune(state, method, train, test, args.seed, args.steps)
            record.write_text(json.dumps(logs) + "\n")
    draw(logs, args.out)


if __name__ == "__main__":
    main()
