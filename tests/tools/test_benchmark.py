"""`frskd benchmark`: its options, the data it draws, what it counts, mistakes."""

from __future__ import annotations

import json
import re
from argparse import ArgumentTypeError
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from frskd_plugin.commands import benchmark, run
from frskd_plugin.commands.arguments import key_and_value, positive_int, whole_number, width
from frskd_plugin.commands.benchmark import SampleImages, batches, main
from frskd_plugin.commands.training_step import (
    StepSettings,
    TrainingStep,
    forward_cost,
    launches_of_step,
    training_steps,
)
from frskd_plugin.core.dry_run import count_launches
from frskd_plugin.data.cifar100 import load_cifar100
from frskd_plugin.data.tensor_images import TensorImages
from tests.helpers.tiny_classification import write_cifar

needs_mmseg = pytest.mark.skipif(find_spec("mmseg") is None, reason="the segmentor needs mmsegmentation")
TINY = ["--threads", "1", "--repeat", "1", "--batch", "2"]


def test_cost_of_several_classifiers_in_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names, file = ["wrn_16_2", "wrn_16_2_published"], tmp_path / "a" / "b.json"
    assert main(["step", "--model", *names, *TINY, "--launches", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    assert [row["model"] for row in rows] == names
    # the self-teacher's projections stand before the up-sampling: 1.67 otherwise
    assert [row["mac_ratio"] for row in rows] == pytest.approx([1.55, 1.55], abs=0.03)
    assert rows[1]["plain_macs"] == 101_118_464
    for row in rows:
        assert row["ratio"] == pytest.approx(row["frskd_s"] / row["plain_s"])
        assert all(0 < row[f"plain_{key}"] < row[f"frskd_{key}"] for key in ("macs", "memory", "launches"))
    machine, repeat, _, header, _, *lines, _, memory, launches = capsys.readouterr().out.splitlines()
    assert (machine, repeat) == ("cpu, 1 CPU threads", "the median of 1 steps")
    assert [line.split(" | ")[:2] for line in lines] == [[f"| {name}", "2 of 32x32"] for name in names]
    assert all(line.count("|") == header.count("|") for line in lines) and "launches: plain" in header
    assert "keeps for the backward pass" in memory and "operators" in launches


def test_options_and_json_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--amp", "--channels-last", "--size", "32", "--width", "auto", "--json"]
    assert main(["step", "--model", "resnet10t", *TINY, *options]) == 0
    printed = capsys.readouterr()
    (row,) = json.loads(printed.out)
    assert row["channels_last"] and row["amp"] == "bf16" and "plain_launches" not in row
    assert "cpu, 1 CPU threads, channels_last, bf16" in printed.err and "| resnet10t | 2 of 32x32 |" in printed.err
    assert row["mac_ratio"] <= 1.75  # `wrap` allows the teacher a share of 0.75, and a width of 2 takes more


def test_launches_are_those_of_forward_and_backward() -> None:
    plain, _ = training_steps("wrn_16_2", StepSettings(batch=2, size=8), width=1)
    with torch.no_grad():
        forward = count_launches(plain.loss)
    assert 1.5 * forward < launches_of_step(plain)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["step", "--model", "wrn_16_3"], "Did you mean wrn_16_2.*Segmentors are: effdet_d0, effdet_d1"),
        (["step", "--model", "wrn_16_2", "--device", "nowhere"], "device 'nowhere' cannot be used here"),
        (["step", "--model", "vit_tiny_patch16_224", "--size", "32"], r"failed on images \[2, 3, 32, 32\]"),
        (["step", "--model", "wrn_16_2", "--self-teacher", "a=1"], "is for effdet_d0, effdet_d1, got wrn_16_2"),
        (["train", "--model", "wrn_16_3"], "has no model 'wrn_16_3'. Did you mean wrn_16_2"),
        (["train", "--model", "wrn_16_2", "--data-root", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_end_in_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("benchmark", arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(message, error)


@pytest.mark.parametrize(
    ("convert", "text", "message"),
    [
        (positive_int, "0", "'0' is not a whole number above 0"),
        (whole_number, "two", "'two' is not a whole number, 0 or above"),
        (width, "wide", "'wide' is not a whole number above 0, nor auto"),
        (key_and_value, "early", "'early' is not KEY=VALUE"),
    ],
)
def test_values_that_an_option_cannot_be(convert, text: str, message: str) -> None:
    with pytest.raises(ArgumentTypeError, match=message):
        convert(text)


def test_training_is_measured_by_each_way_to_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def tiny(name: str, method: str, settings: StepSettings, **_: object) -> TrainingStep:
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 100))
        inputs = torch.zeros(2, 3, 32, 32), torch.tensor([1, 2])
        return TrainingStep(network, inputs, settings, lambda net, x, y: F.cross_entropy(net(x), y))

    monkeypatch.setattr(benchmark, "classifier_step", tiny)
    file = tmp_path / "train.json"
    options = ["--images", "6", "--steps", "1", "--workers", "0", "1", "--amp", "--channels-last", "--json", str(file)]
    assert main(["train", "--model", "wrn_16_2", *TINY, *options]) == 0
    rows = json.loads(file.read_text())
    assert [(row["data"], row["workers"]) for row in rows] == [("none", 0), ("loader", 0), ("loader", 1), ("tensor", 0)]
    for row in rows:
        assert (row["model"], row["amp"], row["channels_last"], row["compile"]) == ("wrn_16_2", "bf16", True, False)
        alone, plain, frskd = (row[f"{key}_images_per_s"] for key in ("data", "plain", "frskd"))
        assert plain > 0 and frskd > 0 and (alone is None if row["data"] == "none" else alone > 0)
    printed = capsys.readouterr().out
    assert printed.startswith("cpu, 1 CPU threads, channels_last, bf16\nbatch 2, 6 drawn images\n\n| model | data |")
    assert re.search(r"\| wrn_16_2 \| DataLoader, 1 workers( \| [0-9.]+){3} \|", printed)


@pytest.mark.parametrize("kind", ["loader", "tensor"])
def test_both_data_sets_give_normalised_images_with_their_labels(kind: str) -> None:
    images = torch.arange(40, 50, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 3, 32, 32)  # image i is 40 + i
    labels = torch.arange(10)
    dataset = SampleImages(images, labels) if kind == "loader" else TensorImages(images, labels, augment=True)
    made = list(batches(dataset, StepSettings(batch=4, channels_last=True), workers=0, count=5))
    assert sorted(torch.cat([targets for _, targets in made]).tolist()) == sorted([*range(10)] * 2)  # two passes
    black_seen = False
    for inputs, targets in made:
        assert inputs.shape == (4, 3, 32, 32) and inputs.is_contiguous(memory_format=torch.channels_last)
        std, mean = (torch.tensor(values).view(3, 1, 1) for values in (benchmark.STD, benchmark.MEAN))
        pixels = (inputs * std + mean).round()
        assert torch.equal(pixels[:, :, 16, 16], (targets + 40.0).view(4, 1).expand(4, 3))
        black_seen |= bool((pixels == 0).any())  # the padding beside a crop
    assert black_seen


def test_training_images_are_those_of_cifar100_where_it_is_given(tmp_path: Path) -> None:
    root = write_cifar(tmp_path, train=7, test=1)
    images, _, text = benchmark.cifar100_or_drawn(str(root), count=3)
    assert text == "7 images of CIFAR-100" and np.array_equal(images, load_cifar100(root, "train").images)


@needs_mmseg
def test_settings_reach_a_segmentors_self_teacher() -> None:
    plain, early = training_steps("effdet_d0", StepSettings(batch=2, size=64), early_gradients=True)
    assert plain.inputs[0].shape == (2, 3, 64, 64) and early.network.self_teacher.early_gradients
    assert 1.0 < forward_cost(early).macs / forward_cost(plain).macs < 2.5
