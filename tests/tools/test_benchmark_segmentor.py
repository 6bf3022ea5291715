"""`benchmark.py step` of a segmentor: its options, the data it draws, peak memory, mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mmseg", reason="the segmentor needs mmsegmentation")

from frskd_plugin.commands.arguments import key_and_value
from frskd_plugin.commands.benchmark import DrawnBatches, StepWithData, main
from frskd_plugin.commands.training_step import (
    StepSettings,
    build_segmentor,
    peak_memory,
    read_segmentor,
    segmentation_steps,
)

TINY = ["--model", "effdet_d0", "--threads", "1", "--repeat", "1", "--batch", "2", "--size", "64"]


def test_all_options_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cost.json"
    options = ["--with-data", "--peak", "--self-teacher", "early_gradients=True", "kd_resolution=head"]
    assert main(["step", *TINY, *options, "--json", str(file)]) == 0
    (row,) = json.loads(file.read_text())
    assert row["data_ratio"] == pytest.approx(row["frskd_data_s"] / row["plain_data_s"])
    assert 2**27 < row["plain_peak"] < 2**33 and 2**27 < row["frskd_peak"] < 2**33  # PyTorch alone is 128 MiB and more
    printed = capsys.readouterr().out
    assert "step with data" in printed and "Python and PyTorch included" in printed


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
    """What the kernel does to a process that asks for too much memory."""
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def test_names_and_values() -> None:
    assert key_and_value("a=1.5") == ("a", 1.5) and key_and_value("b=c=d") == ("b", "c=d")
