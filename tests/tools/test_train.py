"""tools/train.py and tools/test.py as a user calls them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from frskd_plugin.commands import test as test_tool
from frskd_plugin.mmengine.resume import load_checkpoint
from tests.helpers.real_runs import (
    assert_equal,
    command,
    final_weights,
    train,
    training_config,
    write_config,
)
from tests.helpers.tiny_mmseg import tiny_config

# of a segmentor's training, as far as the command line looks at it
SETTINGS = """
model = dict(type="FRSKDEncoderDecoder", backbone=dict(type="X"))
train_cfg = dict(by_epoch=True, max_epochs=3, val_interval=1)
train_dataloader = dict(batch_size=2, num_workers=0)
val_dataloader = dict(batch_size=2, num_workers=0)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.1, weight_decay=1e-4))
param_scheduler = dict(type="MultiStepLR", milestones=[1, 2])
custom_hooks = [dict(type="StepSeedHook")]
randomness = dict(seed=1)
"""


@pytest.fixture
def config_file(data_root: Path, tmp_path: Path) -> Path:
    return write_config(tmp_path / "tiny.py", tiny_config(data_root, epochs=2, frskd=True))


@pytest.fixture(scope="module")
def whole(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """An FRSKD run of two epochs of 4 iterations."""
    return train(tiny_config(data_root, epochs=2, frskd=True), tmp_path_factory.mktemp("whole"))


@pytest.mark.slow
def test_a_run_is_stopped_refused_resumed_and_overwritten(
    whole: Runner, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (config_file, "--work-dir", tmp_path / "w")
    first = tmp_path / "w" / "epoch_1.pth"
    monkeypatch.setenv("TINY_STOP_AT_ITER", "6")  # in the second epoch
    stopped = command("train", *options)
    line = f"frskd train: stopped by Ctrl-C: --resume goes on from {first} (epoch 1, iteration 4); 1 "
    assert stopped.returncode == 130 and stopped.stderr.splitlines()[-1].startswith(line)
    monkeypatch.delenv("TINY_STOP_AT_ITER")

    before = first.read_bytes()
    other = ("--cfg-options", "model.decode_head.channels=4")
    for refused, message in (
        (command("train", *options), r"newest is epoch_1.pth, epoch 1\): give --resume to go on"),
        (
            command("train", *options, "--resume", *other),
            "epoch_1.pth does not fit the model of this config: shape decode_head.conv_seg.weight",
        ),
        (command("test", config_file, first, "--work-dir", tmp_path / "t", *other), "or --partial-load to test"),
        (command("train", *options, "--overwrite", "--resume"), "give one of them"),
    ):
        assert refused.returncode == 2 and re.search(message, refused.stderr), refused.stderr
    assert first.read_bytes() == before

    assert command("train", *options, "--resume").returncode == 0
    assert_equal(final_weights(Path(whole.work_dir), 2), final_weights(tmp_path / "w", 2))

    assert command("train", *options, "--overwrite", "--cfg-options", "train_cfg.max_epochs=1").returncode == 0
    run_ids = {load_checkpoint(path)["meta"]["run_id"] for path in (tmp_path / "w").glob("*epoch_1.pth")}
    assert len(run_ids) == 1 and first.read_bytes() != before


def test_options_reach_the_config(config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    config = training_config(
        config_file, "--seed", 11, "--deterministic", "--data-root", tmp_path, "--cfg-options", "train_cfg.max_epochs=7"
    )
    assert config.randomness == dict(seed=11, deterministic=True)
    assert config.train_cfg.max_epochs == 7
    assert config.train_dataloader.dataset.dataset.data_root == str(tmp_path)
    assert config.val_dataloader.dataset.data_root == str(tmp_path)
    assert config.work_dir == str(Path("work_dirs") / "tiny")
    assert training_config(config_file, "--work-dir", tmp_path / "w").work_dir == str(tmp_path / "w")
    assert training_config(config_file, "--cfg-options", "work_dir=elsewhere").work_dir == "elsewhere"


def test_resume_takes_the_seed_of_the_checkpoint(config_file: Path, tmp_path: Path) -> None:
    work_dir = tmp_path / "run"
    assert training_config(config_file, "--resume", "--work-dir", work_dir).resume is False
    checkpoint = {"state_dict": {}, "optimizer": {}, "message_hub": {}, "meta": {"seed": 77}}
    work_dir.mkdir()
    torch.save(checkpoint, work_dir / "epoch_1.pth")
    options = ("--resume", "--work-dir", work_dir)
    config = training_config(config_file, *options, "--cfg-options", "randomness.seed=None")
    assert config.resume is True and config.load_from == str(work_dir / "epoch_1.pth")
    assert config.randomness["seed"] == 77
    assert training_config(config_file, *options).randomness["seed"] == 3
    named = training_config(config_file, *options, "--cfg-options", f"load_from={work_dir}/epoch_1.pth")
    assert named.resume is True and named.load_from == f"{work_dir}/epoch_1.pth"


# --cfg-options -> the error
WRONG_SETTINGS = {
    "modell.backbone.type=X": "there is no setting 'modell'; did you mean 'model'",
    "custom_imports.imports=x": "too late to import anything; give --import MODULE",
    "train_cfg.max_epoch=3": "train_cfg has no setting 'max_epoch'; did you mean 'max_epochs'",
    "optim_wrapper.optimiser.lr=3": "optim_wrapper has no setting 'optimiser'; did you mean 'optimizer'",
    "custom_hooks.99.interval=3": "custom_hooks has the entries 0 to [0-9], got '99'",
    "custom_hooks.first.interval=3": "custom_hooks has the entries 0 to [0-9], got 'first'",
    "model.type.x=3": "model.type is 'FRSKDEncoderDecoder', which has no settings",
    "model=3": "model has the settings type, backbone; give one of them, not 3",
    "train_cfg.max_epochs=0": "train_cfg.max_epochs must be an int >= 1, got 0",
    "train_dataloader.batch_size=2.5": "train_dataloader.batch_size must be an int >= 1, got 2.5",
    "optim_wrapper.optimizer.lr=abc": "optim_wrapper.optimizer.lr must be a number >= 0, got 'abc'",
    "optim_wrapper.optimizer.type=SDG": "there is no optimizer 'SDG'; did you mean 'SGD'",
    "param_scheduler.milestones=abc": r"param_scheduler.milestones must be a list of ints, such as \[100,150\]",
    "param_scheduler.gamma=abc": "param_scheduler.gamma must be a number, got 'abc'",
    "log_level=LOUD": "log_level must be one of DEBUG, INFO, WARNING, ERROR, got 'LOUD'",
    "resume=abc": "resume must be True or False, got 'abc'",
    "randomness.seed=-3": "randomness.seed must be an int >= 0, got -3",
    "load_from=/nowhere.pth": "load_from: /nowhere.pth not found; expected a checkpoint file",
    "max_epochs": "argument --cfg-options: expected KEY=VALUE, such as train_cfg.max_epochs=60, got 'max_epochs'",
    "a..b=3": "expected KEY=VALUE",
    "model.type=[1,(2]": "model.type: cannot read the value",
}
CIFAR = "configs/baseline_cifar100_wrn_16_2.py"
WRONG_METHODS = {
    ("--method", "dgsd"): "`method` must be one of .*'ddgsd'.*, got 'dgsd'",
    ("--method-options", "mu=1"): "The method 'baseline' has no setting 'mu'",
    ("--method", "kd"): "The method 'kd' needs the setting 'teacher'",
    ("--method", "ddgsd", "--method-options", "temperature=0"): "`temperature` divides the logits and must be > 0",
}
FILES = {
    "tiny": SETTINGS,
    "later": SETTINGS + "frskd_plugin_version = '99.1'\n",
    "syntax": "a = 1\nmodel = dict(\n",
    "raises": "a = 1 / 0\n",
    "base": "_base_ = './nowhere.py'\n",
    "broken": "x\n",
    "needy": "import not_there\n",
    "empty": "a = 1\n",
}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["missing.py"], "config missing.py not found; expected a Python config file"),
        (["{tmp}"], "config .* is a folder; expected a Python config file"),
        ([""], "config is empty; expected a path"),
        (["{tmp}/syntax.py"], r"syntax.py is no valid Python: '\(' was never closed \(syntax.py, line 2\)"),
        (["{tmp}/raises.py"], "raises.py cannot be read: ZeroDivisionError: division by zero"),
        (["{tmp}/base.py"], "base.py cannot be read: .*nowhere.py"),
        (["{config}", "--data-root", "nowhere"], "--data-root: nowhere is not a folder"),
        (["{config}", "--data-root", ""], "data-root is empty"),
        (["{config}", "--work-dir", ""], "work-dir is empty"),
        (["{config}", "--work-dir", "{config}"], "--work-dir: .*tiny.py is a file; expected a folder"),
        (["{config}", "--seed", "-1"], "argument --seed: '-1' is not a whole number, 0 or above"),
        (["{config}", "--launcher", "pytorch"], "RANK, WORLD_SIZE, .* are not set; start with tools/dist_train.sh"),
        (["{config}", "--recipe", "strong"], "--recipe strong is for classifiers"),
        (["{config}", "--import", "no_such_module"], "there is no such module in .* or on PYTHONPATH"),
        (["{config}", "--import", "broken"], "--import broken: importing it fails with NameError: name 'x'"),
        (["{config}", "--import", "needy"], "--import needy: it needs a module that is missing: .*not_there"),
        (["{tmp}/later.py"], r"later.py is for frskd_plugin 99.1 or later, but .* is installed; update"),
        (["{tmp}/empty.py"], "empty.py has no model and no train_dataloader: give the config of a training"),
        (["{tmp}/empty.py", "--method", "one"], "--method and --method-options are for classifiers"),
        (["{tmp}/empty.py", "--data-root", "{tmp}"], "empty.py has no data_root to set"),
        (
            ["{config}", "--amp", "--cfg-options", "optim_wrapper.type=ApexOptimWrapper"],
            "--amp needs optim_wrapper.type='OptimWrapper' .* got 'ApexOptimWrapper'",
        ),
        *((["{config}", "--cfg-options", option], message) for option, message in WRONG_SETTINGS.items()),
        *(([CIFAR, "--work-dir", "{tmp}/w", *options], message) for options, message in WRONG_METHODS.items()),
        *(
            (
                [f"baseline_{name}", "--data-root", "{tmp}", "--work-dir", "{tmp}/w"],
                "expected .*prepare_data.py.*--data-root",
            )
            for name in ("cifar100_wrn_16_2", "cub200_resnet18")
        ),
    ],
)
def test_mistakes_end_in_one_line(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, text in FILES.items():
        (tmp_path / f"{name}.py").write_text(text)
    done = command("train", *(option.format(config=tmp_path / "tiny.py", tmp=tmp_path) for option in options))
    assert done.returncode == 2 and re.search(message, done.stderr.splitlines()[-1]), done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "work_dirs").exists()


def test_settings_that_are_new_and_right_and_a_module_beside_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "right.py").write_text(SETTINGS)
    (tmp_path / "my_frskd_parts.py").write_text("LOADED = True\n")
    options = ("sync_bn=torch", "experiment_name=x", "optim_wrapper.clip_grad.max_norm=3", "train_cfg.max_epochs=4")
    more = ("custom_hooks.0.interval=5", "train_dataloader.drop_last=True")
    config = training_config(tmp_path / "right.py", "--import", "my_frskd_parts", "--cfg-options", *options, *more)
    assert config.optim_wrapper.clip_grad.max_norm == 3 and config.custom_hooks[0].interval == 5
    assert config.sync_bn == "torch" and config.train_cfg.max_epochs == 4
    assert sys.modules.pop("my_frskd_parts").LOADED


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("default_hooks.checkpoint.new_key=1", "unexpected keyword argument 'new_key'. Check the spelling"),
        ("optim_wrapper.optimizer.nesterow=1", "unexpected keyword argument 'nesterow'.*spelling"),  # built last
        ("model.backbone.type=BackboneOfTomorrow", "BackboneOfTomorrow is not in the .* registry.*Check the spelling"),
    ],
)
def test_misspelled_keys_and_types(config_file: Path, tmp_path: Path, option: str, message: str) -> None:
    done = command("train", config_file, "--work-dir", tmp_path / "w", "--cfg-options", option)
    assert done.returncode == 2
    assert re.search(f"error: config .*tiny.py: .*{message}", done.stderr.splitlines()[-1])


def test_test_tool_reports_the_score_of_the_last_validation(whole: Runner, config_file: Path, tmp_path: Path) -> None:
    options = ["--work-dir", str(tmp_path / "test"), "--out", str(tmp_path / "maps")]
    test_tool.main([str(config_file), str(Path(whole.work_dir) / "epoch_2.pth"), *options])
    (scores,) = (tmp_path / "test").glob("*/*.json")
    assert Config.fromfile(scores).mIoU == pytest.approx(whole.message_hub.get_scalar("val/mIoU").current())
    assert len(list((tmp_path / "maps").glob("*.png"))) == 8


def test_a_test_looks_for_no_pretrained_weights(config_file: Path) -> None:
    options = ("--cfg-options", "model.backbone.pretrained=True", "model.backbone.checkpoint=gone.pth")
    config, _ = test_tool.read_command([str(config_file), str(config_file), *options])
    assert config.model.backbone.pretrained is False and config.model.backbone.checkpoint is None
    assert config.load_from == str(config_file)


def test_label_maps_are_written_by_the_iou_of_several_metrics(data_root: Path, tmp_path: Path) -> None:
    config = tiny_config(data_root, frskd=True)
    config.test_evaluator = [dict(type="SelfTeacherIoUMetric"), dict(type="DumpResults", out_file_path="a.pkl")]
    file = str(write_config(tmp_path / "tiny.py", config))
    evaluators = test_tool.read_command([file, file, "--out", "maps"])[0].test_evaluator
    assert evaluators[0].output_dir == "maps" and evaluators[0].keep_results and "output_dir" not in evaluators[1]
    with pytest.raises(ValueError, match="and a visualizer in the config"):
        test_tool.read_command([file, file, "--show-dir", "painted", "--cfg-options", "visualizer=None"])


def test_bad_options_of_the_test_tool(config_file: Path, tmp_path: Path) -> None:
    for checkpoint in ("missing.pth", "", tmp_path):
        done = command("test", config_file, checkpoint)
        assert done.returncode == 2 and "not found; expected checkpoint to be a file" in done.stderr
    with pytest.raises(ValueError, match="--tta needs tta_model and tta_pipeline"):
        test_tool.read_command([str(config_file), str(config_file), "--tta"])
    with pytest.raises(ValueError, match="need default_hooks.visualization"):
        test_tool.read_command([str(config_file), str(config_file), "--show"])
