"""Every method through tools/train.py, as a user calls it: a run of each, resumed ones, and in two processes."""

from __future__ import annotations

import json
import math
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest
import timm
import torch

import frskd_plugin.timm  # noqa: F401
from frskd_plugin.commands import test as test_tool
from frskd_plugin.commands import train as train_tool
from frskd_plugin.methods import method_names
from frskd_plugin.mmengine.distributed import end_distributed, init_distributed
from tests.helpers.processes import in_two_processes
from tests.helpers.real_runs import assert_equal, final_weights, scalars, write_config
from tests.helpers.tiny_classification import tiny_config, write_cifar

TEACHER = dict(model_name="wrn_16_2", num_classes=100, depth=10, k=2)
OPTIONS = {"frskd": ["width=1"], "frskd_sla": ["width=1", "single_pass=True"], "one": ["rampup_epochs=2"]}
# They keep something from one epoch to the next, follow a schedule, or need a sampler of their own.
WITH_STATE = ["cs_kd", "dlb", "one", "ps_kd"]
TOGETHER = ["cs_kd", "dlb", "ps_kd"]
IMAGES = 28  # of training, 8 of them a step


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cifar(tmp_path_factory.mktemp("cifar"), train=IMAGES, test=12)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    torch.save(timm.create_model(**TEACHER).state_dict(), file)
    return file


def write_tiny(cifar: Path, folder: Path, epochs: int = 1, batch_size: int = 8) -> Path:
    config = tiny_config(cifar, "baseline_cifar100_wrn_16_2", epochs=epochs, train_dataloader__batch_size=batch_size)
    # mmengine shares logger, message hub and visualizer between runs of one name
    config.experiment_name = config.visualizer.name = f"tiny_{uuid.uuid4().hex}"
    return write_config(folder / "tiny.py", config)


def run(cifar: Path, work_dir: Path, method: str, *options: object, epochs: int = 1) -> None:
    """tools/train.py in this process."""
    file = write_tiny(cifar, work_dir.parent, epochs)
    train_tool.main([str(file), "--work-dir", str(work_dir), "--method", method, *map(str, options)])


def options_of(method: str, teacher: Path) -> list[str]:
    settings = OPTIONS.get(method, [])
    if method == "kd":
        settings = [f"teacher.{key}={value}" for key, value in dict(TEACHER, checkpoint=teacher).items()]
    return ["--method-options", *settings] if settings else []


def history(work_dir: Path) -> list[dict]:
    return json.loads((work_dir / "result.json").read_text())["history"]


@pytest.mark.parametrize("method", sorted(set(method_names()) - set(WITH_STATE)))
def test_method_trains_and_validates(method: str, cifar: Path, teacher: Path, tmp_path: Path) -> None:
    run(cifar, tmp_path / "w", method, *options_of(method, teacher))
    (scores,) = history(tmp_path / "w")
    assert 0 <= scores["top1"] <= scores["top5"] <= 100
    steps = [line for line in scalars(tmp_path / "w") if "loss" in line]
    assert len(steps) == 4 and all(math.isfinite(step["loss"]) and "train_top1" in step for step in steps)


@pytest.mark.parametrize("method", WITH_STATE)
def test_resumed_method_equals_the_uninterrupted_one(method: str, cifar: Path, teacher: Path, tmp_path: Path) -> None:
    whole, resumed, options = tmp_path / "whole", tmp_path / "resumed", options_of(method, teacher)
    run(cifar, whole, method, *options, epochs=2)
    resumed.mkdir()
    shutil.copy(whole / "epoch_1.pth", resumed)  # all that counts of a run that was killed in its second epoch
    run(cifar, resumed, method, *options, "--resume", epochs=2)
    weights = final_weights(whole, 2)
    assert_equal(weights, final_weights(resumed, 2))
    assert history(whole) == history(resumed) and len(history(whole)) == 2
    if method == "ps_kd":  # a network for the images of its run, which the test tool builds from the run's config
        files = [str(whole / name) for name in ("tiny.py", "epoch_2.pth")]
        test_tool.main([*files, "--work-dir", str(tmp_path / "test")])
        (scores,) = (tmp_path / "test").glob("*/*.json")
        assert json.loads(scores.read_text())["top1"] == history(whole)[1]["top1"]
        table = weights["network.method.predictions.bits"].view(torch.float16)
        torch.testing.assert_close(table.float().sum(1), torch.ones(IMAGES), rtol=0, atol=0.01)


def train_each(file: Path, methods: Sequence[str]) -> None:
    """One process of two that train an epoch with each method."""
    init_distributed("pytorch")
    for method in methods:
        names = ["--cfg-options", f"experiment_name={method}", f"visualizer.name={method}"]
        options = ["--method", method, "--work-dir", str(file.parent / method), "--launcher", "pytorch", *names]
        train_tool.train(*train_tool.read_command([str(file), *options]))
    end_distributed()


@pytest.fixture(scope="module")
def two_processes(cifar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folders of these methods' runs, by name."""
    folder = tmp_path_factory.mktemp("two")
    in_two_processes(train_each, write_tiny(cifar, folder, batch_size=4), TOGETHER)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("method", TOGETHER)
def test_two_processes_train_one_model(method: str, two_processes: Path) -> None:
    first, second = (torch.load(two_processes / method / f"rank_{rank}.pth", weights_only=True) for rank in range(2))
    assert_equal(first, second)
    assert len(history(two_processes / method)) == 1
    if method == "ps_kd":  # each process has what both have seen
        table = first["network.method.predictions.bits"].view(torch.float16)
        torch.testing.assert_close(table.float().sum(1), torch.ones(IMAGES), rtol=0, atol=0.01)
