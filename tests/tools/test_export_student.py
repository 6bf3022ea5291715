"""tools/export_student.py: the plain student of a real run, its config, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from timm.utils import CheckpointSaver

import frskd_plugin
from frskd_plugin import commands
from frskd_plugin.mmengine.export import export_student
from tests.helpers.real_runs import load_tool, train
from tests.helpers.tiny_mmseg import tiny_config


@pytest.fixture(scope="module")
def run(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of an FRSKD run of one epoch."""
    work_dir = tmp_path_factory.mktemp("frskd")
    train(tiny_config(data_root, epochs=1, workers=0, frskd=True), work_dir)
    return work_dir


def build(config: Config) -> torch.nn.Module:
    init_default_scope("mmseg")
    return MODELS.build(config.model).eval()


def test_student_loads_strictly_into_the_plain_config(run: Path, data_root: Path, tmp_path: Path, capsys) -> None:
    source, target = run / "epoch_1.pth", tmp_path / "student.pth"
    load_tool("export_student").main([str(source), str(target)])
    assert "student:" in capsys.readouterr().out
    assert target.stat().st_size < source.stat().st_size

    weights = torch.load(target, weights_only=True)["state_dict"]
    assert not any(key.startswith("self_teacher.") for key in weights)
    build(tiny_config(data_root)).load_state_dict(weights, strict=True)

    config = Config.fromfile(target.with_suffix(".py"))
    assert config.model.type == "EncoderDecoder" and "self_teacher" not in config.model
    assert config.default_hooks.checkpoint.type == "CheckpointHook"
    assert config.train_dataloader.dataset.type == "BaseSegDataset"
    student = build(config)
    student.load_state_dict(weights, strict=True)

    teacher_trained = build(tiny_config(data_root, frskd=True))
    teacher_trained.load_state_dict(torch.load(source, weights_only=False)["state_dict"], strict=True)
    images = torch.rand(1, 3, 24, 24)
    with torch.no_grad():
        assert torch.equal(student(images), teacher_trained(images))


def test_own_input_is_not_overwritten(run: Path) -> None:
    source = run / "epoch_1.pth"
    before = source.read_bytes()
    with pytest.raises(ValueError, match="would overwrite its own input"):
        export_student(source, source)
    assert source.read_bytes() == before


def test_plain_checkpoint_is_refused(data_root: Path, tmp_path: Path, capsys) -> None:
    train(tiny_config(data_root, epochs=1, workers=0), tmp_path / "plain")
    assert commands.run("export_student", [str(tmp_path / "plain" / "epoch_1.pth"), str(tmp_path / "out.pth")]) == 2
    assert "is not an FRSKD checkpoint: it has no weights under 'self_teacher.'" in capsys.readouterr().err
    assert not (tmp_path / "out.pth").exists()


def test_foreign_files_are_refused(run: Path, tmp_path: Path) -> None:
    torch.save({"lr": 0.1}, tmp_path / "foreign.pth")
    with pytest.raises(ValueError, match="foreign.pth holds no weights: expected a state_dict of tensors"):
        export_student(tmp_path / "foreign.pth", tmp_path / "out.pth")
    (tmp_path / "text.pth").write_text("no checkpoint")
    with pytest.raises(ValueError, match="cannot be read: it is truncated, damaged or not a checkpoint"):
        export_student(tmp_path / "text.pth", tmp_path / "out.pth")
    torch.save(
        {"state_dict": {"backbone.x": torch.zeros(1), "self_teacher.x": torch.zeros(1)}, "meta": {}},
        tmp_path / "no_config.pth",
    )
    with pytest.raises(ValueError, match="does not hold the config it was trained with"):
        export_student(tmp_path / "no_config.pth", tmp_path / "out.pth")
    with pytest.raises(ValueError, match="must be a .pth file"):
        export_student(run / "epoch_1.pth", tmp_path / "out.onnx")
    with pytest.raises(FileNotFoundError, match="not found; expected a .pth file"):
        export_student(tmp_path / "missing.pth", tmp_path / "out.pth")


def test_a_config_of_the_users_is_not_overwritten(run: Path, tmp_path: Path) -> None:
    target, config = tmp_path / "my_fcn.pth", tmp_path / "my_fcn.py"
    config.write_text("# mine\n")
    with pytest.raises(ValueError, match="my_fcn.py, which exists and was not written by an export; give another"):
        export_student(run / "epoch_1.pth", target)
    assert config.read_text() == "# mine\n" and not target.exists()
    config.unlink()
    for _ in range(2):  # its own may be written again
        export_student(run / "epoch_1.pth", target)
    assert Config.fromfile(config).model.type == "EncoderDecoder"


def test_checkpoint_of_a_wrapped_model_in_timms_own_loop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = timm.create_model("test_resnet", num_classes=4)
    model = frskd_plugin.wrap(plain, width=1, input_size=(3, 64, 64))
    saver = CheckpointSaver(model, torch.optim.SGD(model.parameters(), lr=0.1), checkpoint_dir=str(tmp_path))
    saver.save_checkpoint(0)
    (source,) = tmp_path.glob("checkpoint-0*")
    assert commands.run("export", [str(source), str(tmp_path / "student.pth")]) == 0
    assert "timm.create_model(..., checkpoint_path=" in capsys.readouterr().out
    other = timm.create_model("test_resnet", num_classes=4, checkpoint_path=str(tmp_path / "student.pth"))
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in other.state_dict().items())
