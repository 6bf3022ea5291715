"""Every method through tools/train.py, as a user calls it: a run of each, resumed ones, and in two processes."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import timm
import torch

import frskd_plugin.timm  # noqa: F401
from frskd_plugin import commands
from frskd_plugin.methods import method_names
from tests.helpers.real_runs import REPOSITORY, environment, final_weights, load_tool, write_config
from tests.helpers.tiny_classification import tiny_config, write_cifar
from tests.tools.test_distributed import free_port

TEACHER = dict(model_name="wrn_16_2", num_classes=100, depth=10, k=2)
OPTIONS = {"frskd": ["width=1"], "frskd_sla": ["width=1", "single_pass=True"], "one": ["rampup_epochs=2"]}
# They keep something from one epoch to the next, follow a schedule, or need a sampler of their own.
WITH_STATE = ["cs_kd", "dlb", "one", "ps_kd"]
IMAGES = 28  # of training, 8 of them a step


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cifar(tmp_path_factory.mktemp("cifar"), train=IMAGES, test=12)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    torch.save(timm.create_model(**TEACHER).state_dict(), file)
    return file


def run(cifar: Path, work_dir: Path, method: str, *options: object, epochs: int = 1) -> None:
    """tools/train.py in this process."""
    config = tiny_config(cifar, "baseline_cifar100_wrn_16_2", epochs=epochs, train_dataloader__batch_size=8)
    # drawing takes longer than such a training
    config.custom_hooks = [hook for hook in config.custom_hooks if hook.type != "ClassifierAttentionPictureHook"]
    config.visualizer.vis_backends = [dict(type="LocalVisBackend")]
    # mmengine shares logger, message hub and visualizer between runs of one name
    config.experiment_name = config.visualizer.name = f"tiny_{uuid.uuid4().hex}"
    work_dir.mkdir(exist_ok=True)
    file = write_config(work_dir.parent / "tiny.py", config)
    arguments = [file, "--work-dir", work_dir, "--method", method, *options]
    load_tool("train").main(list(map(str, arguments)))


def options_of(method: str, teacher: Path) -> list[str]:
    settings = OPTIONS.get(method, [])
    if method == "kd":
        settings = [f"teacher.{key}={value}" for key, value in dict(TEACHER, checkpoint=teacher).items()]
    return ["--method-options", *settings] if settings else []


def history(work_dir: Path) -> list[dict]:
    return json.loads((work_dir / "result.json").read_text())["history"]


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


@pytest.mark.parametrize("method", sorted(set(method_names()) - set(WITH_STATE)))
def test_method_trains_and_validates(method: str, cifar: Path, teacher: Path, tmp_path: Path) -> None:
    run(cifar, tmp_path / "w", method, *options_of(method, teacher))
    (scores,) = history(tmp_path / "w")
    assert 0 <= scores["top1"] <= scores["top5"] <= 100
    (log,) = (tmp_path / "w").glob("*/vis_data/scalars.json")
    steps = [json.loads(line) for line in log.read_text().splitlines() if '"loss"' in line]
    assert len(steps) == 4 and all(math.isfinite(step["loss"]) and "train_top1" in step for step in steps)


@pytest.mark.parametrize("method", WITH_STATE)
def test_resumed_method_equals_the_uninterrupted_one(
    method: str, cifar: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_of(method, teacher)
    run(cifar, tmp_path / "whole", method, *options, epochs=2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setenv("TINY_STOP_AT_ITER", "5")  # in the second epoch
        run(cifar, tmp_path / "resumed", method, *options, epochs=2)
    run(cifar, tmp_path / "resumed", method, *options, "--resume", epochs=2)
    weights = final_weights(tmp_path / "whole", 2)
    assert_equal(weights, final_weights(tmp_path / "resumed", 2))
    assert history(tmp_path / "whole") == history(tmp_path / "resumed")
    assert len(history(tmp_path / "whole")) == 2
    if method == "ps_kd":
        table = weights["network.method.predictions.bits"].view(torch.float16)
        torch.testing.assert_close(table.float().sum(1), torch.ones(IMAGES), rtol=0, atol=0.01)


def test_checkpoint_of_a_method_is_tested_with_the_config_of_its_run(cifar: Path, tmp_path: Path) -> None:
    work_dir = tmp_path / "w"
    run(cifar, work_dir, "ps_kd")
    load_tool("test").main(
        [str(work_dir / "tiny.py"), str(work_dir / "epoch_1.pth"), "--work-dir", str(tmp_path / "t")]
    )
    (scores,) = (tmp_path / "t").glob("*/*.json")
    assert json.loads(scores.read_text())["top1"] == history(work_dir)[0]["top1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "dgsd"], "`method` must be one of .*'ddgsd'.*, got 'dgsd'"),
        (["--method-options", "mu=1"], "The method 'baseline' has no setting 'mu'"),
        (["--method", "kd"], "The method 'kd' needs the setting 'teacher'"),
        (
            ["--method", "ddgsd", "--method-options", "temperature=0"],
            "`temperature` divides the logits and must be > 0",
        ),
    ],
)
def test_mistakes_end_in_one_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = "configs/baseline_cifar100_wrn_16_2.py"
    assert commands.run("train", [config, "--work-dir", str(tmp_path), *options]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert re.search(message, line)


@pytest.fixture(scope="module")
def two_processes(cifar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work folders of methods, each trained for an epoch by two processes: one launch for all of them."""
    folder, port = tmp_path_factory.mktemp("two"), str(free_port())
    command = [sys.executable, "tests/helpers/train_methods.py", folder, cifar, *TOGETHER]
    settings = dict(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port, CUDA_VISIBLE_DEVICES="-1")
    ranks = [
        subprocess.Popen(
            list(map(str, command)),
            cwd=REPOSITORY,
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **settings),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for rank in ranks:
            _, errors = rank.communicate(timeout=240)
            assert rank.returncode == 0, errors[-3000:]
    finally:
        for rank in ranks:
            rank.kill()
    return folder


TOGETHER = ["cs_kd", "dlb", "ps_kd"]


@pytest.mark.slow
@pytest.mark.parametrize("method", TOGETHER)
def test_two_processes_train_one_model(method: str, two_processes: Path) -> None:
    first, second = (torch.load(two_processes / method / f"rank_{rank}.pth", weights_only=True) for rank in range(2))
    assert_equal(first, second)
    assert len(history(two_processes / method)) == 1
    if method == "ps_kd":  # each process has what both have seen
        table = first["network.method.predictions.bits"].view(torch.float16)
        torch.testing.assert_close(table.float().sum(1), torch.ones(IMAGES), rtol=0, atol=0.01)
