"""frskd export: the student's weights and config, and files for other runtimes with the logits of what they hold."""

from __future__ import annotations

import re
import sys
import zipfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from timm.utils import CheckpointSaver
from torch import nn

import frskd_plugin
from frskd_plugin import commands
from frskd_plugin.export import (
    FORMATS,
    CheckError,
    NormalizedNetwork,
    Student,
    check_difference,
    check_tensors,
    export_student_file,
    open_student,
)
from frskd_plugin.mmengine.export import export_student, plain_config
from frskd_plugin.mmengine.stored_config import stored_config
from frskd_plugin.mmseg.segmentor import SegmentationNetwork
from tests.helpers.real_runs import REPOSITORY, train
from tests.helpers.segmentors import build, effdet
from tests.helpers.tiny_mmseg import tiny_config

needs_onnx = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("onnx", "onnxruntime", "onnxscript")),
    reason="frskd_plugin[export] is not installed",
)


TINY = {"depth": 10, "k": 1}  # of the network "wrn_16_2"
SETTINGS = ("width=1", "out_indices=1,2")  # of its self-teacher


def run(*arguments) -> int:
    settings = ["--model-kwargs", "depth=10", "k=1"] if arguments[0] == "wrn_16_2" else []
    return commands.run("export", [str(argument) for argument in (*arguments, *settings)])


@pytest.fixture(scope="module")
def classifier():
    """A wrapped classifier whose batch statistics are not those of its initialisation."""
    torch.manual_seed(0)
    model = frskd_plugin.wrap(timm.create_model("wrn_16_2", num_classes=7, **TINY), width=1, out_indices=(1, 2))
    model(torch.randn(4, 3, 32, 32), torch.arange(4))
    return model.eval()


@pytest.fixture(scope="module")
def wrapped(classifier, tmp_path_factory):
    path = tmp_path_factory.mktemp("classifier") / "wrapped.pth"
    torch.save(classifier.state_dict(), path)
    torch.save(classifier.student.state_dict(), path.parent / "student.pth")
    return path


@pytest.fixture(scope="module")
def segmentor(data_root, tmp_path_factory):
    """A folder with an FRSKD config, `frskd.py`, and a checkpoint of it, `epoch_1.pth`; and the model."""
    folder = tmp_path_factory.mktemp("segmentor")
    config = tiny_config(data_root, epochs=1, workers=0, frskd=True)
    config.custom_hooks += [dict(type="DistillWarmupHook", begin=0, end=1, by_epoch=True)]
    config.dump(folder / "frskd.py")
    init_default_scope("mmseg")
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    model.train().extract_feat(torch.randn(4, 3, 24, 24))  # batch statistics
    checkpoint = {"state_dict": model.state_dict(), "meta": {"cfg": config.pretty_text}, "optimizer": {"a": [0] * 99}}
    torch.save(checkpoint, folder / "epoch_1.pth")
    torch.save({**checkpoint, "meta": {}}, folder / "no_config.pth")
    plain = {key: value for key, value in model.state_dict().items() if not key.startswith("self_teacher.")}
    torch.save({**checkpoint, "state_dict": plain}, folder / "plain.pth")
    torch.save({"lr": 0.1}, folder / "foreign.pth")
    (folder / "empty.py").write_text("optimizer = dict()\n")
    return folder, model.eval()


def run_onnx(path, images):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


# Weights


def test_a_segmentors_student_trains_on_without_this_package(segmentor, data_root, tmp_path, monkeypatch, capsys):
    (folder, model), target = segmentor, tmp_path / "student.pth"
    noisy = "frskd_plugin.mmengine.export.stored_config"  # as mmseg's modules are when they are first imported
    monkeypatch.setattr(noisy, lambda *args: print("Could not import") or stored_config(*args))
    before = (folder / "epoch_1.pth").read_bytes()
    for _ in range(2):  # what it has written itself may be written again
        assert commands.run("export_student", [str(folder / "epoch_1.pth"), str(target)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("student: ") and f"config:  {target.with_suffix('.py')}" in printed
    assert (folder / "epoch_1.pth").read_bytes() == before and target.stat().st_size < len(before)

    weights = torch.load(target, weights_only=True)["state_dict"]
    init_default_scope("mmseg")
    MODELS.build(tiny_config(data_root).model).load_state_dict(weights, strict=True)
    config = Config.fromfile(target.with_suffix(".py"))
    assert config.model.type == "EncoderDecoder"
    for ours in ("FRSKD", "self_teacher", "SeededDataset", "Atomic", "StepSeedHook", "LoadChecked", "DistillWarmup"):
        assert ours not in config.pretty_text
    # Nothing but stock components and the test's own backbone is left, so frskd_plugin is not imported.
    assert config.custom_imports.imports == ["tests.helpers.tiny_mmseg"]
    student = MODELS.build(config.model).eval()
    student.load_state_dict(weights, strict=True)
    images = torch.rand(1, 3, 24, 24)
    with torch.no_grad():
        assert torch.equal(student(images), model(images))
    assert train(config, tmp_path / "plain", load_from=str(target)).epoch == 1


def test_a_config_of_the_users_is_not_overwritten(segmentor, tmp_path):
    target, config = tmp_path / "my_fcn.pth", tmp_path / "my_fcn.py"
    config.write_text("# mine\n")
    with pytest.raises(ValueError, match="my_fcn.py, which exists and was not written by an export; give another"):
        export_student(segmentor[0] / "epoch_1.pth", target)
    assert config.read_text() == "# mine\n" and not target.exists()


def test_what_only_this_package_has_keeps_its_import_and_nothing_of_the_run_stays():
    dropped = ("CompileHook", "ChannelsLastHook", "SyncStatisticsHook", "StepSeedHook", "AttentionPictureHook")
    config = Config(
        dict(
            custom_imports=dict(imports=["frskd_plugin"], allow_failed_imports=False),
            model=dict(
                type="FRSKDEncoderDecoder",
                backbone=dict(type="TimmFeatureExtractor", model_name="resnet18", pretrained=True, checkpoint="a.pth"),
                neck=dict(type="BiFPN", in_channels=[8, 16]),
                self_teacher=dict(type="FRSKDHead"),
            ),
            val_evaluator=dict(type="SelfTeacherIoUMetric", iou_metrics=["mIoU"]),
            custom_hooks=[dict(type="EMAHook"), *(dict(type=name) for name in dropped)],
            model_wrapper_cfg=dict(type="SyncBNDataParallel", sync_bn=True),
            load_from="pretrained.pth",
            work_dir="work_dirs/frskd_fcn",
            launcher="pytorch",
        )
    )
    before = config.pretty_text
    plain = plain_config(config)
    assert config.pretty_text == before
    assert plain.custom_imports.imports == ["frskd_plugin"]
    assert plain.model == dict(
        type="EncoderDecoder",
        backbone=dict(type="TimmFeatureExtractor", model_name="resnet18", pretrained=False),
        neck=dict(type="BiFPN", in_channels=[8, 16]),
    )
    assert plain.val_evaluator.type == "IoUMetric"
    assert plain.custom_hooks == [dict(type="EMAHook")] and plain.load_from is None and plain.launcher == "none"
    assert "work_dir" not in plain and "model_wrapper_cfg" not in plain
    config.model_wrapper_cfg = dict(type="MMFullyShardedDataParallel")  # the user's choice
    assert plain_config(config).model_wrapper_cfg.type == "MMFullyShardedDataParallel"


def test_checkpoint_of_a_wrapped_model_in_timms_own_loop(tmp_path, capsys):
    plain = timm.create_model("test_resnet", num_classes=4)
    model = frskd_plugin.wrap(plain, width=1, input_size=(3, 64, 64))
    saver = CheckpointSaver(model, torch.optim.SGD(model.parameters(), lr=0.1), checkpoint_dir=str(tmp_path))
    saver.save_checkpoint(0)
    (source,) = tmp_path.glob("checkpoint-0*")
    assert run(source, tmp_path / "student.pth") == 0
    assert "timm.create_model(..., checkpoint_path=" in capsys.readouterr().out
    other = timm.create_model("test_resnet", num_classes=4, checkpoint_path=str(tmp_path / "student.pth"))
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in other.state_dict().items())


# Files for other runtimes


@needs_onnx
def test_onnx_of_a_wrapped_checkpoint_takes_any_size(classifier, wrapped, tmp_path, capsys):
    import onnx

    out = tmp_path / "deep" / "wrn.onnx"
    assert run("wrn_16_2", wrapped, out, "--dynamic") == 0
    network, printed = classifier.student, capsys.readouterr().out
    assert f"holds:   {parameters(network)} parameters, " in printed
    assert printed.count("checked: on") == 3  # the size of the trace, a larger one, a batch of one
    images = torch.randn(3, 3, 48, 40)
    with torch.no_grad():
        torch.testing.assert_close(run_onnx(out, images), network(images), rtol=1e-4, atol=1e-5)
    names = {tensor.name for tensor in onnx.load(str(out)).graph.initializer}
    assert {name for name, _ in network.named_parameters()} <= names
    assert not any("self_teacher" in name or name.startswith("method") for name in names)
    assert str(REPOSITORY).encode() not in out.read_bytes()  # nor the paths of the machine that wrote it


def test_the_ensemble_of_a_wrapped_checkpoint(classifier, wrapped, tmp_path, capsys):
    out = tmp_path / "wrn.pt2"
    assert run("wrn_16_2", wrapped, out, "--batch", 3, "--part", "ensemble", "--set", *SETTINGS) == 0
    network, images = frskd_plugin.unwrap(classifier, "ensemble"), torch.randn(3, 3, 32, 32)
    printed = capsys.readouterr().out
    assert f"holds:   {parameters(network)} parameters, of the ensemble; the student has " in printed
    assert re.search(r"\d\.\d\d times the student's \d+\.\d M", printed)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.load(out).module()(images), network(images), rtol=1e-4, atol=1e-5)


def test_images_of_other_bands_have_no_known_normalisation(tmp_path, capsys):
    gray = tmp_path / "gray.pth"
    torch.save(timm.create_model("test_resnet", num_classes=4, in_chans=1).state_dict(), gray)
    arguments = ("test_resnet", gray, tmp_path / "gray.pt2", "--size", 64, 64, "--model-kwargs", "in_chans=1")
    assert run(*arguments) == 0
    assert "images:  [B, 1, H, W], float32, as the network was trained with" in capsys.readouterr().out
    assert run(*arguments, "--with-normalization") == 2
    assert "neither the config nor timm says what the images were normalised with" in capsys.readouterr().err


def test_a_config_and_its_training_checkpoint(tmp_path):
    path, checkpoint, out = tmp_path / "config.py", tmp_path / "epoch_1.pth", tmp_path / "wrn.pt2"
    config = Config.fromfile(REPOSITORY / "configs" / "frskd_cifar100_wrn_16_2.py")
    config.model.student.update(TINY)
    config.dump(path)
    model = MODELS.build(config.model).eval()
    torch.save({"state_dict": model.state_dict(), "meta": {"cfg": config.pretty_text}}, checkpoint)
    assert run(path, checkpoint, out, "--dynamic", "batch", "--with-normalization") == 0
    program = torch.export.load(out)
    raw = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
    images = model.data_preprocessor(dict(inputs=raw))["inputs"]
    # the exported weights, a plain timm file, give the same network
    export_student(checkpoint, tmp_path / "student.pth")
    student = open_student("wrn_16_2", str(tmp_path / "student.pth"), TINY)
    teacher = open_student(str(path), str(checkpoint), part="self_teacher")
    with torch.no_grad():
        torch.testing.assert_close(program.module()(raw.float()), model(images), rtol=1e-4, atol=1e-5)
        assert torch.equal(student.network(images), model.network.student(images))
        assert torch.equal(teacher.network(images), model.network.teacher_logits(images))
    assert sum(p.numel() for _, p in program.named_parameters()) == parameters(model.network.student)


def test_a_segmentor_in_multiples_by_the_old_command(segmentor, tmp_path, capsys):
    folder, model = segmentor
    out = tmp_path / "fcn.pt2"
    arguments = [folder / "frskd.py", folder / "epoch_1.pth", out, "--dynamic", 8]
    assert commands.run("export_model", [str(argument) for argument in arguments]) == 0
    printed = capsys.readouterr().out
    assert "RGB, float32, (image in 0..255 - [120, 120, 120]) / [60, 60, 60]" in printed
    assert re.findall(r"checked: on \[(.*?)\]", printed) == ["2, 3, 24, 24", "3, 3, 32, 40", "1, 3, 24, 24"]
    assert f"holds:   {parameters(model.backbone) + parameters(model.decode_head)} parameters" in printed
    # what was exported as weights gives the same network
    export_student(folder / "epoch_1.pth", tmp_path / "student.pth")
    student = open_student(str(tmp_path / "student.py"), str(tmp_path / "student.pth"))
    program = torch.export.load(out).module()
    for size in ((2, 3, 24, 24), (1, 3, 40, 56)):
        images = torch.randn(size)
        with torch.no_grad():
            expected = model.encode_decode(images, [dict(img_shape=size[2:])])
            torch.testing.assert_close(program(images), expected, rtol=1e-4, atol=1e-5)
            assert torch.equal(student.network(images), expected)
    with zipfile.ZipFile(out) as archive:
        assert not any(str(REPOSITORY).encode() in archive.read(name) for name in archive.namelist())


@pytest.mark.parametrize("part", ["self_teacher", "ensemble"])
def test_parts_of_a_segmentor(segmentor, part):
    folder, model = segmentor
    student = open_student(str(folder / "frskd.py"), str(folder / "epoch_1.pth"), part=part)
    images, meta = torch.randn(2, 3, 32, 48), [dict(img_shape=(32, 48))]
    with torch.no_grad():
        plain, teacher = (network.encode_decode(images, meta) for network in (model, model.as_self_teacher()))
        mean = (plain.softmax(1) + teacher.softmax(1)) / 2
        expected = teacher.softmax(1) if part == "self_teacher" else mean
        torch.testing.assert_close(student.network(images).softmax(1), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(student.plain(images), plain)


@needs_onnx
def test_onnx_of_the_papers_segmentor(tmp_path):
    config = effdet()
    config["backbone"].update(model_name="test_resnet")
    config["neck"].update(in_channels=[32, 48, 192, 96], repeat=1)
    plain = build(config).eval()
    student = Student(SegmentationNetwork(plain), (3, 128, 128), dense=True)
    made = export_student_file(student, tmp_path / "effdet.onnx", "onnx")
    assert made.sizes == ((1, 3, 128, 128),) and made.differences[0] < 1e-4
    # the head reads level 0, so the last layer's bottom-up path is not even in the file
    unread = sum(p.numel() for name, p in plain.neck.named_parameters() if name.startswith("layers.0.bu"))
    assert parameters(plain) - unread <= made.parameters <= parameters(plain)
    images = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        expected = plain.encode_decode(images, [dict(img_shape=(128, 128))])
    torch.testing.assert_close(run_onnx(made.path, images), expected, rtol=1e-4, atol=1e-5)


def test_the_check_sees_a_self_teacher():
    """A program that runs the self-teacher must not pass, by name or, where names are lost, by count."""
    plain, other = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
    with pytest.raises(CheckError, match="tensors of the training alone .model.self_teacher.weight"):
        check_tensors({"model.self_teacher.weight": 4}, plain)
    with pytest.raises(CheckError, match="1 tensors that the network does not have and 0"):
        check_tensors({"bias": 8, "constant_0": 216}, plain)
    with pytest.raises(CheckError, match="0 tensors that the network does not have and 1 of another size .weight"):
        check_tensors({"bias": 8, "weight": 217}, plain)
    with pytest.raises(CheckError, match="the file's logits differ from torch's by"):
        check_difference(other, plain, [(1, 3, 8, 8)], 1e-4)


def test_a_file_that_fails_is_not_kept(wrapped, tmp_path, monkeypatch, capsys):
    made = FORMATS["torch_export"]

    def off(path):
        program, tensors = made.read(path)
        return lambda images: program(images) + 1, tensors

    monkeypatch.setitem(FORMATS, "torch_export", replace(made, read=off))
    out = tmp_path / "wrn.pt2"
    out.write_text("an earlier one")
    assert run("wrn_16_2", wrapped, out) == 1
    assert "FAILED its check and was not kept: on images [1, 3, 32, 32]" in capsys.readouterr().err
    assert out.read_text() == "an earlier one" and list(tmp_path.iterdir()) == [out]


def test_normalization_flips_for_networks_that_take_bgr():
    images = torch.rand(2, 3, 4, 4) * 255
    network = NormalizedNetwork(nn.Identity(), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), flip_channels=True)
    expected = torch.stack([(images[:, 2 - c] - (1 + c)) / (4 + c) for c in range(3)], dim=1)
    torch.testing.assert_close(network(images), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{c}", "{c}"], "would overwrite its own input"),
        (["{c}", "{t}/a.txt"], "the exported checkpoint must be a .pth file, got .*a.txt"),
        (["{d}/plain.pth", "{t}/a.pth"], "is not an FRSKD checkpoint: it has no weights under 'self_teacher.'"),
        (["{d}/foreign.pth", "{t}/a.pth"], "foreign.pth holds no weights: expected a state_dict of tensors"),
        (["{d}/no_config.pth", "{t}/a.pth"], "does not hold the config it was trained with"),
        (["{t}/missing.pth", "{t}/a.pth"], "not found; expected a .pth"),
        (["{c}", "{t}/a.pth", "--part", "ensemble", "--batch", "2"], "--part, --batch needs the config or model that"),
        (["{c}", "{t}/a.pt2"], r"\.pt2 needs the config or model that .*frskd export CONFIG.MODEL CHECKPOINT OUT"),
        (["resnet19", "{w}", "{t}/a.pt2"], "timm .* has no model 'resnet19'. Did you mean"),
        (["resnet18", "{w}", "{t}/a.pt2"], "does not fit the network: size mismatch for fc.weight"),
        (["wrn_16_2", "{w}", "{t}/a.pt2", "--format", "onnx"], "a file of --format onnx ends in .onnx, got .*a.pt2"),
        (["wrn_16_2", "{w}", "{t}/a.pt2", "--tolerance", "0"], "--tolerance must be > 0"),
        (["wrn_16_2", "{w}", "{t}/a.pt2", "--dynamic", "24"], "--size 32 32 must be multiples of 24, as --dynamic 24"),
        (["wrn_16_2", "{w}", "{t}/a.pt2", "--cfg-options", "a=1"], "--cfg-options belongs to a config, and wrn_16_2"),
        (["{d}/frskd.py", "{c}", "{t}/a.pt2", "--set", "a=1"], "--set belongs to a timm model"),
        (
            ["wrn_16_2", "{w}", "{t}/a.pt2", "--part", "ensemble", "--set", "width=2", "out_indices=1,2"],
            "wrapped.pth does not fit the network: size mismatch .*",
        ),
        (
            ["wrn_16_2", "{w}", "{t}/a.pt2", "--part", "self_teacher", "--set", "method=baseline"],
            "wrapped.pth does not fit the network: 0 weights are missing and .* the model and its settings",
        ),
        (
            ["wrn_16_2", "{s}/student.pth", "{t}/a.pt2", "--part", "ensemble", "--set", "width=1"],
            "student.pth holds no weights of a training method .*give a checkpoint of",
        ),
        (["{d}/frskd.py", "{d}/plain.pth", "{t}/a.pt2", "--part", "ensemble"], "weights are missing .*self_teacher."),
        (
            ["{d}/frskd.py", "{c}", "{t}/a.pt2", "--cfg-options", "model.test_cfg.mode=slide"],
            "test_cfg.mode='slide' cannot be exported: .*test_cfg.mode=whole",
        ),
        (["{d}/empty.py", "{w}", "{t}/a.pt2"], "model.type=None cannot be exported: expected a TimmClassifier"),
    ],
)
def test_refuses(segmentor, wrapped, tmp_path, capsys, arguments, message):
    places = dict(w=wrapped, s=wrapped.parent, t=tmp_path, d=segmentor[0], c=segmentor[0] / "epoch_1.pth")
    assert run(*(argument.format(**places) for argument in arguments)) == 2
    captured = capsys.readouterr().err
    assert re.search(message, captured), captured
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named(wrapped, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert run("wrn_16_2", wrapped, tmp_path / "a.onnx") == 2
    error = capsys.readouterr().err
    assert "--format onnx needs onnx, onnxscript, onnxruntime, and importing onnx failed" in error
    assert "pip install 'frskd_plugin[export]'" in error


def test_networks_of_one_size_say_so(tmp_path):
    class OneSize(nn.Module):
        def forward(self, images):
            return images.reshape(images.shape[0], 3 * 8 * 8)

    student = Student(OneSize(), (3, 8, 8), dense=False)
    with pytest.raises(CheckError, match=r"does not run on images \[3, 3, 40, 72\] .*--dynamic batch a single size"):
        export_student_file(student, tmp_path / "a.pt2", "torch_export", dynamic=1)
    made = export_student_file(student, tmp_path / "a.pt2", "torch_export", dynamic="batch")
    assert made.differences == (0.0, 0.0) and Path(tmp_path / "a.pt2").is_file()
