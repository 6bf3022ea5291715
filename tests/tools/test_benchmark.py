"""`frskd benchmark`: its options, the data it draws, peak memory, mistakes."""

from __future__ import annotations

import json
import os
import re
import signal
from argparse import ArgumentTypeError
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from frskd_plugin.check import classification_batch
from frskd_plugin.commands import benchmark, run
from frskd_plugin.commands.arguments import key_and_value, positive_int, whole_number, width
from frskd_plugin.commands.benchmark import DataPath, DrawnBatches, SampleImages, Source, StepWithData, main
from frskd_plugin.commands.training_step import (
    StepSettings,
    build_segmentor,
    peak_memory,
    read_segmentor,
    segmentation_steps,
)
from frskd_plugin.data.tensor_images import TensorImages
from frskd_plugin.methods import DataNeeds

needs_mmseg = pytest.mark.skipif(find_spec("mmseg") is None, reason="the segmentor needs mmsegmentation")
TINY = ["--threads", "1", "--repeat", "1", "--batch", "2"]
KEYS = {"model", "plain_s", "frskd_s", "ratio", "plain_macs", "frskd_macs", "mac_ratio", "plain_memory", "frskd_memory"}


def rows_of(file: Path) -> list[dict]:
    rows = json.loads(file.read_text())
    for row in rows:
        assert row.keys() >= KEYS
        assert row["ratio"] == pytest.approx(row["frskd_s"] / row["plain_s"])
        assert 0 < row["plain_memory"] < row["frskd_memory"]
    return rows


def test_classifiers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names, file = ["wrn_16_2", "wrn_16_2_published", "resnet18_cifar"], tmp_path / "a" / "b.json"
    assert main(["step", "--model", *names, *TINY, "--json", str(file)]) == 0
    rows = rows_of(file)
    assert [row["model"] for row in rows] == names
    # the self-teacher's projections stand before the up-sampling: 1.67 and 1.71 otherwise
    assert [row["mac_ratio"] for row in rows] == pytest.approx([1.55, 1.55, 1.57], abs=0.03)
    assert [row["plain_macs"] for row in rows[1:]] == [101_118_464, 555_468_800]
    printed = capsys.readouterr().out
    assert "MACs" in printed and "keeps for the backward pass" in printed


def test_options_and_json_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--amp", "--channels-last", "--peak"]
    assert main(["step", "--model", "wrn_16_2", *TINY, "--size", "16", *options, "--json"]) == 0
    printed = capsys.readouterr()
    (row,) = json.loads(printed.out)
    assert row.keys() >= KEYS and row["channels_last"] and row["amp"] == "bf16"
    assert 2**27 < row["plain_peak"] < 2**33 and 2**27 < row["frskd_peak"] < 2**33  # PyTorch alone is 128 MiB and more
    assert "wrn_16_2: batch" in printed.err and "channels_last, bf16" in printed.err
    assert "Python and PyTorch included" in printed.err


def test_width_auto_keeps_the_teacher_below_its_share(tmp_path: Path) -> None:
    file = tmp_path / "cost.json"
    options = ["--size", "32", "--width", "auto", "--json", str(file)]
    assert main(["step", "--model", "resnet26t", *TINY, *options]) == 0
    (row,) = rows_of(file)
    assert 1.5 < row["mac_ratio"] <= 1.75  # 0.75 is what `wrap` allows the teacher; width 2 would take 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["step", "--model", "wrn_16_3"], "Did you mean wrn_16_2.*Segmentors are: effdet_d0, effdet_d1"),
        (["step", "--model", "wrn_16_2", "--device", "nowhere"], "device 'nowhere' cannot be used here"),
        (["step", "--model", "vit_tiny_patch16_224", "--size", "32"], r"failed on images \[2, 3, 32, 32\]"),
        (["step", "--model", "wrn_16_2", "--with-data"], "are for effdet_d0, effdet_d1, got wrn_16_2"),
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


def test_training_is_measured_with_and_without_each_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "train.json"
    options = ["--images", "6", "--steps", "1", "--workers", "0", "1", "--amp", "--channels-last", "--json", str(file)]
    assert main(["train", "--model", "wrn_16_2", *TINY, *options]) == 0
    rows = json.loads(file.read_text())
    kinds = [("loader", 0), ("loader", 1), ("tensor", 0)]
    assert [(row["data"], row["workers"]) for row in rows[:3]] == kinds
    assert all(row["model"] is row["method"] is None for row in rows[:3])
    plain = [(*kind, None, False) for kind in [("none", None), *kinds]]
    optional = [
        (*kind, amp, channels_last)
        for amp, channels_last in (("bf16", False), (None, True), ("bf16", True))
        for kind in (("none", None), ("tensor", 0))
    ]
    for method, part in (("baseline", rows[3:13]), ("frskd", rows[13:])):
        assert {(row["model"], row["method"]) for row in part} == {("wrn_16_2", method)}
        got = [(row["data"], row["workers"], row["amp"], row["channels_last"]) for row in part]
        assert got == plain + optional
        for row in part:
            assert row["ratio"] == pytest.approx(row["images_per_s"] / part[1]["images_per_s"])
        for alone, trained in ((part[0], part[2]), (part[4], part[5]), (part[8], part[9])):
            assert alone["data_share"] is None
            assert trained["data_share"] == pytest.approx(1 - trained["images_per_s"] / alone["images_per_s"])
    printed = capsys.readouterr().out
    assert "data alone: batch 2, cpu, 1 CPU thread(s), 6 drawn images" in printed
    assert re.search(r"frskd +TensorImages +channels_last, bf16 +[0-9.]+ +x [0-9.]+", printed)


@pytest.mark.parametrize("kind", ["loader", "tensor"])
def test_both_benchmark_give_normalised_images_with_their_labels(kind: str) -> None:
    images = torch.arange(40, 50, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 3, 32, 32)  # image i is 40 + i
    source = Source(images, torch.arange(10), "")
    dataset = SampleImages(source) if kind == "loader" else TensorImages(images, source.targets, augment=True)
    path = DataPath(dataset, StepSettings(batch=4, channels_last=True))
    made = list(path.batches(5))
    assert sorted(torch.cat([targets for _, targets in made]).tolist()) == sorted([*range(10)] * 2)  # two passes
    black_seen = False
    for inputs, targets in made:
        assert inputs.shape == (4, 3, 32, 32) and inputs.is_contiguous(memory_format=torch.channels_last)
        pixels = (inputs * path.std + path.mean).round()
        assert torch.equal(pixels[:, :, 16, 16], (targets + 40.0).view(4, 1).expand(4, 3))
        black_seen |= bool((pixels == 0).any())  # the padding beside a crop
    assert black_seen


def test_training_images_are_those_of_cifar100_where_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = Source(torch.zeros(7, 3, 32, 32, dtype=torch.uint8), torch.arange(7), "")
    asked = []
    monkeypatch.setattr(benchmark, "load_cifar100", lambda *args: asked.append(args) or loaded)
    source = benchmark.cifar100_or_drawn("somewhere", count=3)
    assert asked == [("somewhere", "train")] and source.text == "7 images of CIFAR-100"
    assert torch.equal(source.images, loaded.images)
    drawn = benchmark.cifar100_or_drawn(None, count=3)
    assert drawn.images.shape == (3, 3, 32, 32) and drawn.text == "3 drawn images"


def test_batches_are_what_a_method_asks_for() -> None:
    images, targets, extra = classification_batch(DataNeeds(views=2), 4, (3, 8, 8), 5, "cpu")
    assert (tuple(images.shape), len(targets), extra) == ((4, 2, 3, 8, 8), 4, {})
    for order in ("class_pairs", "overlap"):
        images, targets, _ = classification_batch(DataNeeds(order=order), 3, (3, 8, 8), 5, "cpu")
        assert len(images) == 6 and targets[:3].equal(targets[3:]) and 0 <= targets.min() <= targets.max() < 5
    *_, extra = classification_batch(DataNeeds(index=True), 2, (3, 8, 8), 5, "cpu")
    assert extra["index"].tolist() == [0, 1]


# The paper's segmentors


@needs_mmseg
def test_segmentor_with_its_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cost.json"
    options = ["--with-data", "--self-teacher", "early_gradients=True", "kd_resolution=head"]
    assert main(["step", "--model", "effdet_d0", "--size", "64", *TINY, *options, "--json", str(file)]) == 0
    (row,) = rows_of(file)
    assert row["model"] == "effdet_d0" and 1.0 < row["mac_ratio"] < 2.5
    assert row["data_ratio"] == pytest.approx(row["frskd_data_s"] / row["plain_data_s"])
    assert "step with data" in capsys.readouterr().out


@needs_mmseg
def test_settings_reach_the_self_teacher() -> None:
    settings = StepSettings(batch=2, size=64, self_teacher=(("early_gradients", True),))
    _, step, _ = segmentation_steps("effdet_d0", settings)
    assert step.network.self_teacher.early_gradients
    _, default, _ = segmentation_steps("effdet_d0", StepSettings(batch=2, size=64))
    assert not default.network.self_teacher.early_gradients
    torch.manual_seed(1)  # of the backbone's stochastic depth
    loss = step.loss()
    torch.manual_seed(1)
    torch.testing.assert_close(loss, default.loss(), rtol=1e-5, atol=0)


@needs_mmseg
def test_batches_come_out_of_files_through_the_configs_pipeline(tmp_path: Path) -> None:
    config = read_segmentor("frskd_voc_effdet_d0.py")
    before = config.pretty_text
    batches = DrawnBatches(config, tmp_path / "VOCdevkit", 48, StepSettings(channels_last=True))
    assert config.pretty_text == before
    images, samples = batches(3)
    assert images.shape == (3, 3, 48, 48) and images.is_contiguous(memory_format=torch.channels_last)
    assert 0.2 < images.std() < 3  # normalised
    classes = torch.stack([sample.gt_sem_seg.data for sample in samples]).unique().tolist()
    assert len(classes) > 1 and set(classes) <= {0, 4, 5, 6, 15, 18, 255}
    assert Path(samples[0].img_path).is_file()


@needs_mmseg
def test_two_steps_with_data_see_the_same_batches(tmp_path: Path) -> None:
    class Step:
        def __init__(self) -> None:
            self.seen: list = []

        def __call__(self) -> None:
            self.seen.append(self.inputs)

    config = read_segmentor("frskd_voc_effdet_d0.py")
    plain, frskd = Step(), Step()
    turns = [StepWithData(s, DrawnBatches(config, tmp_path / "VOC", 32, StepSettings()), 2) for s in (plain, frskd)]
    for _ in range(2):
        for turn in turns:
            turn()
            np.random.random(3)  # others draw in between
    assert [images.shape for images, _ in plain.seen] == [(2, 3, 32, 32)] * 2
    for (images, samples), (others, other_samples) in zip(plain.seen, frskd.seen, strict=True):
        assert torch.equal(images, others)
        assert [s.img_path for s in samples] == [s.img_path for s in other_samples]
    assert not torch.equal(plain.seen[0][0], plain.seen[1][0])


@needs_mmseg
def test_read_configs_have_random_weights() -> None:
    config = read_segmentor("baseline_voc_effdet_d0.py")
    assert config.model.backbone.pretrained is False
    assert build_segmentor(config).decode_head.num_classes == 21
    with pytest.raises(FileNotFoundError, match="missing.py was not found in"):
        read_segmentor("missing.py")


def test_peak_of_a_process_that_is_killed_and_of_a_gpu() -> None:
    with pytest.raises(OSError, match="killed; give it a smaller --batch or --size"):
        peak_memory("effdet_d0", StepSettings(), killed)
    with pytest.raises(ValueError, match="says nothing about cuda: leave it out"):
        peak_memory("effdet_d0", StepSettings(device="cuda"), killed)


def killed(*_: object) -> None:
    """End as a process that asks for too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)
