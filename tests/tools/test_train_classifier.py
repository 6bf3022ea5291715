"""tools/train.py, test.py and export.py with classifiers, as a user calls them; mmcv and mmseg are kept out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import timm
import torch
from mmengine.config import Config

import frskd_plugin.timm  # noqa: F401
from frskd_plugin import commands
from frskd_plugin.commands.report_logs import read_text_log
from frskd_plugin.mmengine.export import export_student
from tests.helpers.real_runs import final_weights, load_tool, run_tool, train, write_config
from tests.helpers.tiny_classification import tiny_config, write_cifar
from tests.tools.test_distributed import free_port

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
    """The work folder of an FRSKD run of three epochs."""
    work_dir = tmp_path_factory.mktemp("run")
    train(tiny_config(cifar), work_dir)
    return work_dir


@pytest.fixture
def config_file(cifar: Path, tmp_path: Path) -> Path:
    return write_config(tmp_path / "tiny.py", tiny_config(cifar))


def built(config_file: Path, *options: object) -> Config:
    """The config that tools/train.py makes of a file and its options."""
    tool = load_tool("train")
    return tool.build_config(tool.parse_args([str(config_file), *map(str, options)]))


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


@pytest.mark.slow
def test_killed_and_resumed_run_equals_the_uninterrupted_one(run: Path, config_file: Path, tmp_path: Path) -> None:
    work_dir = tmp_path / "killed"
    command = [sys.executable, "-c", WITHOUT_MMSEG, "tools/train.py", config_file, "--work-dir", work_dir, "--seed", 3]
    killed = run_tool(*command, check=False, TINY_KILL_AT_ITER="6")  # in the second of three epochs of 4 iterations
    assert killed.returncode == -9, killed.stdout[-3000:]
    assert (work_dir / "last_checkpoint").read_text().endswith("epoch_1.pth")
    resumed = run_tool(*command, "--resume")
    assert "resumed epoch: 1, iter: 4" in resumed.stdout
    assert_equal(final_weights(run, 3), final_weights(work_dir, 3))
    expected, found = (json.loads((folder / "result.json").read_text()) for folder in (run, work_dir))
    assert found == {**expected, "config": "tiny"}
    assert f"last epoch (3): top1 {found['last']['top1']:.2f}" in resumed.stdout
    versions = read_text_log(max(work_dir.glob("20*"))).facts
    assert versions["frskd_plugin"] == frskd_plugin.__version__ and versions["timm"] == timm.__version__


@pytest.mark.slow
def test_two_processes_train_one_model_and_count_each_image_once(
    config_file: Path, cifar: Path, tmp_path: Path
) -> None:
    work_dir = tmp_path / "two"
    # 43 images: the sampler repeats one, so that both processes have 22
    changes = ("val_dataloader.dataset.type=OddCifar100", "train_cfg.max_epochs=1")
    options = ("--work-dir", work_dir, "--cfg-options", *changes)
    run_tool("tools/dist_train.sh", config_file, 2, *options, PORT=str(free_port()))
    first, second = (torch.load(work_dir / f"rank_{rank}.pth", weights_only=True) for rank in range(2))
    assert_equal(first, second)

    (found,) = json.loads((work_dir / "result.json").read_text())["history"]
    config = tiny_config(cifar, val_dataloader__dataset__type="OddCifar100")
    config.load_from = str(work_dir / "epoch_1.pth")
    alone = score(config, tmp_path / "alone")
    assert found["top1"] == pytest.approx(alone["top1"]) and found["top5"] == pytest.approx(alone["top5"])
    assert (found["top5"] * 43 / 100) == pytest.approx(round(found["top5"] * 43 / 100))


def score(config: Config, work_dir: Path) -> dict[str, float]:
    """The scores of `config.load_from`, in one process."""
    from mmengine.runner import Runner

    config.work_dir, config.experiment_name = str(work_dir), f"score_{work_dir.name}"
    config.test_dataloader = config.val_dataloader
    return Runner.from_cfg(config).test()


def test_options_reach_the_model(config_file: Path) -> None:
    plain, config = built(config_file), built(config_file, "--channels-last", "--compile")
    assert not plain.model.get("channels_last") and not plain.model.get("compile")
    assert config.model.channels_last is True and config.model.compile is True


def test_type_of_mixed_precision(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert built(config_file, "--amp").optim_wrapper.type == "AmpOptimWrapper"
    assert built(config_file, "--amp", "--amp-dtype", "fp16").optim_wrapper.type == "AmpOptimWrapper"
    assert built(config_file, "--amp-dtype", "bf16").optim_wrapper.type == "AutocastOptimWrapper"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert built(config_file, "--amp").optim_wrapper.type == "AutocastOptimWrapper"
    with pytest.raises(ValueError, match="--amp-dtype fp16 needs CUDA.*use --amp-dtype bf16"):
        built(config_file, "--amp-dtype", "fp16")


@pytest.mark.parametrize("kind", ["baseline", "frskd"])
def test_options_of_speed_are_hooks_of_segmentors(kind: str) -> None:
    file = Path(f"configs/{kind}_camvid_fcn_r18.py")
    hooks = built(file).custom_hooks
    assert built(file, "--channels-last").custom_hooks == [*hooks, dict(type="ChannelsLastHook")]
    assert built(file, "--compile").custom_hooks == [*hooks, dict(type="CompileHook")]


@pytest.mark.parametrize("name", ["baseline_cifar100_wrn_16_2", "baseline_cub200_resnet18"])
def test_missing_data_ends_in_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data-root", str(tmp_path), "--work-dir", str(tmp_path / "w")]
    assert commands.run("train", [f"configs/{name}.py", *options]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert str(tmp_path) in line and "expected" in line and "tools/prepare_data.py" in line and "--data-root" in line


def test_test_tool_reports_the_score_of_the_last_validation(run: Path, config_file: Path, tmp_path: Path) -> None:
    tool, validated = load_tool("test"), json.loads((run / "result.json").read_text())["last"]
    plain, *_ = export_student(run / "epoch_3.pth", tmp_path / "plain.pth")
    for checkpoint in (run / "epoch_3.pth", plain):
        work_dir = tmp_path / checkpoint.stem
        tool.main([str(config_file), str(checkpoint), "--work-dir", str(work_dir)])
        (scores,) = work_dir.glob("*/*.json")
        assert json.loads(scores.read_text())["top1"] == pytest.approx(validated["top1"])
    with pytest.raises(ValueError, match="--out writes the label maps of a segmentor; leave it out for a classifier"):
        tool.build_config(tool.parse_args([str(config_file), str(plain), "--out", str(tmp_path / "maps")]))


def test_exported_file_is_timms_own(run: Path, tmp_path: Path, capsys) -> None:
    source, target = run / "epoch_3.pth", tmp_path / "student.pth"
    load_tool("export").main([str(source), str(target)])
    assert target.stat().st_size < source.stat().st_size
    weights = torch.load(target, weights_only=True)
    model = timm.create_model("wrn_16_2", num_classes=100, depth=10, k=1, checkpoint_path=str(target)).eval()
    assert_equal(model.state_dict(), weights)

    # the line that the tool prints does the same
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("python:")]
    imports, call = line.removeprefix("python:").strip().split("; ")
    scope: dict = {}
    exec(imports, scope)
    assert_equal(eval(call, scope).state_dict(), weights)

    trained = final_weights(run, 3)
    images = torch.rand(2, 3, 32, 32)
    reference = timm.create_model("wrn_16_2", num_classes=100, depth=10, k=1).eval()
    prefix = "network.student."
    reference.load_state_dict({k.removeprefix(prefix): v for k, v in trained.items() if k.startswith(prefix)})
    with torch.no_grad():
        assert torch.equal(model(images), reference(images))


def test_a_method_of_the_command_line_has_a_folder_of_its_own(config_file: Path, tmp_path: Path) -> None:
    file = Path("configs/baseline_cifar100_wrn_16_2.py")
    assert built(file).work_dir == "work_dirs/baseline_cifar100_wrn_16_2"
    assert built(file, "--method", "one").work_dir == "work_dirs/baseline_cifar100_wrn_16_2_one"
    assert built(file, "--method", "baseline").work_dir == "work_dirs/baseline_cifar100_wrn_16_2"
    assert built(file, "--method", "one", "--work-dir", "mine").work_dir == "mine"
    assert built(file, "--method", "one", "--cfg-options", "work_dir=mine").work_dir == "mine"


def test_a_run_of_another_method_is_not_resumed(
    run: Path, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands.run("train", [str(config_file), "--work-dir", str(run), "--method", "sad", "--resume"]) == 2
    assert (
        "epoch_3.pth was trained with the method 'frskd', and this run is to train with 'sad'"
        in capsys.readouterr().err
    )
    assert built(config_file, "--work-dir", run, "--resume").load_from == str(run / "epoch_3.pth")
