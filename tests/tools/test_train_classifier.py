"""tools/train.py, test.py and export.py with classifiers, as a user calls them; mmcv and mmseg are kept out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import timm
import torch
from mmengine.runner import Runner

import frskd_plugin.timm  # noqa: F401
from frskd_plugin.commands import export as export_tool
from frskd_plugin.commands import test as test_tool
from frskd_plugin.commands import train as train_tool
from frskd_plugin.commands.report_logs import read_text_log
from frskd_plugin.mmengine.export import export_student
from tests.helpers.processes import in_two_processes
from tests.helpers.real_runs import (
    assert_equal,
    command,
    final_weights,
    run_tool,
    train,
    training_config,
    write_config,
)
from tests.helpers.tiny_classification import tiny_config, write_cifar

# A command line in a process where these packages cannot be imported, as where they are not installed.
WITHOUT_MMSEG = """
import runpy, sys
sys.modules.update(dict.fromkeys(("mmcv", "mmseg", "mmdet", "mmpretrain")))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cifar(tmp_path_factory.mktemp("cifar"))


@pytest.fixture(scope="module")
def run(cifar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of an FRSKD run of two epochs."""
    work_dir = tmp_path_factory.mktemp("run")
    train(tiny_config(cifar, epochs=2), work_dir)
    return work_dir


@pytest.fixture
def config_file(cifar: Path, tmp_path: Path) -> Path:
    return write_config(tmp_path / "tiny.py", tiny_config(cifar, epochs=2))


@pytest.mark.slow
def test_killed_and_resumed_run_equals_the_uninterrupted_one(run: Path, config_file: Path, tmp_path: Path) -> None:
    options = (config_file, "--work-dir", tmp_path / "killed", "--seed", 3)
    tool = (sys.executable, "-c", WITHOUT_MMSEG, "tools/train.py")
    killed = run_tool(*tool, *options, TINY_KILL_AT_ITER="6")  # in the second of two epochs of 4 iterations
    assert killed.returncode == -9, killed.stderr[-3000:]
    assert (tmp_path / "killed" / "last_checkpoint").read_text().endswith("epoch_1.pth")
    assert command("train", *options, "--resume").returncode == 0
    assert_equal(final_weights(run, 2), final_weights(tmp_path / "killed", 2))
    expected, found = (json.loads((folder / "result.json").read_text()) for folder in (run, tmp_path / "killed"))
    assert found == {**expected, "config": "tiny"}
    first, last = sorted((tmp_path / "killed").glob("20*"))
    log = next(last.glob("*.log")).read_text()
    assert "resumed epoch: 1, iter: 4" in log and f"last epoch (2): top1 {found['last']['top1']:.2f}" in log
    versions = read_text_log(first).facts
    assert versions["frskd_plugin"] == frskd_plugin.__version__ and versions["timm"] == timm.__version__


@pytest.mark.slow
def test_two_processes_train_one_model_and_count_each_image_once(
    config_file: Path, cifar: Path, tmp_path: Path
) -> None:
    # 43 images: the sampler repeats one, so that both processes have 22
    changes = ("val_dataloader.dataset.type=OddCifar100", "train_cfg.max_epochs=1")
    options = ["--launcher", "pytorch", "--work-dir", str(tmp_path / "two"), "--cfg-options", *changes]
    in_two_processes(train_tool.main, [str(config_file), *options])
    assert_equal(*(torch.load(tmp_path / f"two/rank_{rank}.pth", weights_only=True) for rank in range(2)))

    (found,) = json.loads((tmp_path / "two" / "result.json").read_text())["history"]
    config = tiny_config(cifar, val_dataloader__dataset__type="OddCifar100")
    config.load_from, config.work_dir = str(tmp_path / "two" / "epoch_1.pth"), str(tmp_path / "alone")
    config.experiment_name, config.test_dataloader = "alone", config.val_dataloader
    alone = Runner.from_cfg(config).test()
    assert found["top1"] == pytest.approx(alone["top1"]) and found["top5"] == pytest.approx(alone["top5"])
    assert (found["top5"] * 43 / 100) == pytest.approx(round(found["top5"] * 43 / 100))


def test_options_of_speed(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, config = training_config(config_file), training_config(config_file, "--channels-last", "--compile")
    assert not plain.model.get("channels_last") and not plain.model.get("compile")
    assert config.model.channels_last is True and config.model.compile is True
    segmentor = "configs/frskd_camvid_fcn_r18.py"  # has hooks for it
    hooks, more = (training_config(segmentor, *o).custom_hooks for o in ((), ("--channels-last", "--compile")))
    assert more == [*hooks, dict(type="ChannelsLastHook"), dict(type="CompileHook")]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for options, wrapper in (
        (["--amp"], "AmpOptimWrapper"),
        (["--amp", "--amp-dtype", "fp16"], "AmpOptimWrapper"),
        (["--amp-dtype", "bf16"], "AutocastOptimWrapper"),
    ):
        assert training_config(config_file, *options).optim_wrapper.type == wrapper
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert training_config(config_file, "--amp").optim_wrapper.type == "AutocastOptimWrapper"
    with pytest.raises(ValueError, match="--amp-dtype fp16 needs CUDA.*use --amp-dtype bf16"):
        training_config(config_file, "--amp-dtype", "fp16")


def test_test_tool_reports_the_score_of_the_last_validation(run: Path, config_file: Path, tmp_path: Path) -> None:
    validated = json.loads((run / "result.json").read_text())["last"]
    plain, *_ = export_student(run / "epoch_2.pth", tmp_path / "plain.pth")
    for checkpoint in (run / "epoch_2.pth", plain):
        work_dir = tmp_path / checkpoint.stem
        test_tool.main([str(config_file), str(checkpoint), "--work-dir", str(work_dir)])
        (scores,) = work_dir.glob("*/*.json")
        assert json.loads(scores.read_text())["top1"] == pytest.approx(validated["top1"])
    with pytest.raises(ValueError, match="--out writes the label maps of a segmentor; leave it out for a classifier"):
        test_tool.read_command([str(config_file), str(plain), "--out", str(tmp_path / "maps")])


def test_exported_file_is_timms_own(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = run / "epoch_2.pth", tmp_path / "student.pth"
    export_tool.main([str(source), str(target)])
    assert target.stat().st_size < source.stat().st_size
    weights = torch.load(target, weights_only=True)
    prefix = "network.student."
    trained = {k.removeprefix(prefix): v for k, v in final_weights(run, 2).items() if k.startswith(prefix)}
    assert_equal(weights, trained)
    model = timm.create_model("wrn_16_2", num_classes=100, depth=10, k=1, checkpoint_path=str(target))
    assert_equal(model.state_dict(), weights)

    # the line that the tool prints does the same
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("python:")]
    imports, call = line.removeprefix("python:").strip().split("; ")
    scope: dict = {}
    exec(imports, scope)
    assert_equal(eval(call, scope).state_dict(), weights)


def test_a_method_of_the_command_line_has_a_folder_of_its_own(run: Path, config_file: Path) -> None:
    file = "configs/baseline_cifar100_wrn_16_2.py"
    for options, work_dir in (
        ([], "work_dirs/baseline_cifar100_wrn_16_2"),
        (["--method", "one"], "work_dirs/baseline_cifar100_wrn_16_2_one"),
        (["--method", "baseline"], "work_dirs/baseline_cifar100_wrn_16_2"),
        (["--method", "one", "--work-dir", "mine"], "mine"),
        (["--method", "one", "--cfg-options", "work_dir=mine"], "mine"),
    ):
        assert training_config(file, *options).work_dir == work_dir
    other = "epoch_2.pth was trained with the method 'frskd', and this run is to train with 'sad'"
    with pytest.raises(ValueError, match=other):  # is not resumed
        training_config(config_file, "--work-dir", run, "--method", "sad", "--resume")
    assert training_config(config_file, "--work-dir", run, "--resume").load_from == str(run / "epoch_2.pth")
