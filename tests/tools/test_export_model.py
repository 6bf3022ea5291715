"""tools/export_model.py: files that other runtimes run, with the student's logits and nothing of the self-teacher."""

from __future__ import annotations

import copy
import re
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

import frskd_plugin
from frskd_plugin import commands
from frskd_plugin.export import (
    FORMATS,
    CheckError,
    NormalizedNetwork,
    SegmentationNetwork,
    Student,
    check_difference,
    check_only_student,
    export_student_file,
    open_student,
    trace,
)
from frskd_plugin.mmengine.export import export_student
from tests.helpers.real_runs import REPOSITORY
from tests.helpers.segmentors import build, effdet, with_frskd
from tests.helpers.tiny_mmseg import tiny_config

onnx = pytest.importorskip("onnx", reason="frskd_plugin[export] is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="frskd_plugin[export] is not installed")
pytest.importorskip("onnxscript", reason="frskd_plugin[export] is not installed")


@pytest.fixture(scope="module")
def classifier():
    """A wrapped classifier whose batch statistics are not those of its initialisation."""
    torch.manual_seed(0)
    model = frskd_plugin.wrap(timm.create_model("wrn_16_2", num_classes=7), width=1)
    model(torch.randn(4, 3, 32, 32), torch.arange(4))
    return model


@pytest.fixture(scope="module")
def wrapped(classifier, tmp_path_factory):
    path = tmp_path_factory.mktemp("classifier") / "wrapped.pth"
    torch.save(classifier.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def segmentor(data_root, tmp_path_factory):
    """A folder with an FRSKD config, `frskd.py`, and a checkpoint of it, `epoch_1.pth`; and the model."""
    folder = tmp_path_factory.mktemp("segmentor")
    config = tiny_config(data_root, frskd=True)
    config.dump(folder / "frskd.py")
    init_default_scope("mmseg")
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    model.train().extract_feat(torch.randn(4, 3, 24, 24))  # batch statistics
    torch.save({"state_dict": model.state_dict(), "meta": {"cfg": config.pretty_text}}, folder / "epoch_1.pth")
    return folder, model.eval()


def run_onnx(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_classifier_from_a_wrapped_checkpoint(classifier, wrapped, tmp_path, capsys):
    out = tmp_path / "deep" / "wrn.onnx"
    assert commands.run("export_model", ["wrn_16_2", str(wrapped), str(out), "--dynamic"]) == 0
    student = frskd_plugin.unwrap(classifier).eval()
    printed = capsys.readouterr().out
    assert f"holds:   {parameters(student)} parameters, all of them the student's" in printed
    assert printed.count("checked: on") == 3  # the size of the trace, a larger one, a batch of one

    images = torch.randn(3, 3, 48, 40)
    with torch.no_grad():
        torch.testing.assert_close(run_onnx(out, images), student(images), rtol=1e-4, atol=1e-5)
    names = {tensor.name for tensor in onnx.load(str(out)).graph.initializer}
    assert {name for name, _ in student.named_parameters()} <= names
    assert not any("self_teacher" in name or name.startswith("method") for name in names)
    assert str(REPOSITORY).encode() not in out.read_bytes()  # nor the paths of the machine that wrote it


def test_torch_export_of_a_config_and_its_training_checkpoint(tmp_path):
    config = Config.fromfile(REPOSITORY / "configs" / "frskd_cifar100_wrn_16_2.py")
    model = MODELS.build(config.model).eval()
    checkpoint, out = tmp_path / "epoch_1.pth", tmp_path / "wrn.pt2"
    torch.save({"state_dict": model.state_dict(), "meta": {"cfg": config.pretty_text}}, checkpoint)
    arguments = [str(REPOSITORY / "configs" / "frskd_cifar100_wrn_16_2.py"), str(checkpoint), str(out)]
    options = ["--format", "torch_export", "--dynamic", "batch", "--with-normalization"]
    assert commands.run("export", [*arguments, *options]) == 0

    program = torch.export.load(out)
    images = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        expected = model(**model.data_preprocessor(dict(inputs=images)))
        actual = program.module()(images.float())
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for _, p in program.named_parameters()) == parameters(model.network.student)
    # the exported weights, a plain timm file, give the same network
    export_student(checkpoint, tmp_path / "student.pth")
    student = open_student("wrn_16_2", str(tmp_path / "student.pth"))
    with torch.no_grad():
        assert torch.equal(student.network(images.float()), model.network.student(images.float()))


def test_segmentor_from_a_training_checkpoint(segmentor, tmp_path, capsys):
    folder, model = segmentor
    out = tmp_path / "fcn.onnx"
    assert (
        commands.run("export_model", [str(folder / "frskd.py"), str(folder / "epoch_1.pth"), str(out), "--dynamic"])
        == 0
    )
    assert "RGB, float32, (image in 0..255 - [120, 120, 120]) / [60, 60, 60]" in capsys.readouterr().out
    for size in ((2, 3, 24, 24), (1, 3, 40, 56)):
        images = torch.randn(size)
        with torch.no_grad():
            expected = model.encode_decode(images, [dict(img_shape=size[2:])])
        assert expected.shape[2:] == size[2:]
        torch.testing.assert_close(run_onnx(out, images), expected, rtol=1e-4, atol=1e-5)
    count = sum(torch.Size(tensor.dims).numel() for tensor in onnx.load(str(out)).graph.initializer)
    student = parameters(model.backbone) + parameters(model.decode_head)
    buffers = sum(buffer.numel() for part in (model.backbone, model.decode_head) for buffer in part.buffers())
    assert student <= count <= student + buffers + 64


def test_exported_student_gives_the_same_file(segmentor, tmp_path):
    folder, model = segmentor
    export_student(folder / "epoch_1.pth", tmp_path / "student.pth")
    out = tmp_path / "fcn.pt2"
    arguments = [str(tmp_path / "student.py"), str(tmp_path / "student.pth"), str(out), "--format", "torch_export"]
    assert commands.run("export_model", [*arguments, "--size", "32", "48", "--batch", "2"]) == 0
    images = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        expected = model.encode_decode(images, [dict(img_shape=(32, 48))])
        torch.testing.assert_close(torch.export.load(out).module()(images), expected, rtol=1e-5, atol=1e-6)


def test_the_papers_segmentor(tmp_path):
    model = build(with_frskd(effdet())).eval()
    plain = build(effdet()).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("self_teacher.")})
    student = Student(SegmentationNetwork(plain), (3, 128, 128), dense=True)
    made = export_student_file(student, tmp_path / "effdet.onnx", "onnx")
    assert made.sizes == ((1, 3, 128, 128),) and made.differences[0] < 1e-4
    # the head reads level 0, so the last layer's bottom-up path is not even in the file
    unread = sum(p.numel() for name, p in plain.neck.named_parameters() if name.startswith("layers.1.bu"))
    assert parameters(plain) - unread <= made.parameters <= parameters(plain)
    images = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        expected = model.encode_decode(images, [dict(img_shape=(128, 128))])
    torch.testing.assert_close(run_onnx(made.path, images), expected, rtol=1e-4, atol=1e-5)


def test_sizes_in_multiples(segmentor, tmp_path):
    _, model = segmentor
    student = Student(SegmentationNetwork(model), (3, 24, 24), dense=True)
    made = export_student_file(student, tmp_path / "fcn.pt2", "torch_export", dynamic=8)
    assert made.sizes == ((2, 3, 24, 24), (3, 3, 32, 40), (1, 3, 24, 24))
    assert max(made.differences) < 1e-5
    with zipfile.ZipFile(made.path) as archive:
        assert not any(str(REPOSITORY).encode() in archive.read(name) for name in archive.namelist())


def test_the_check_sees_a_self_teacher(segmentor, tmp_path, monkeypatch):
    """A program that runs the self-teacher must not pass, by name or, where names are lost, by count."""
    _, model = segmentor
    program = trace(Student(SegmentationNetwork(model.as_self_teacher()), (3, 24, 24), True), (1, 3, 24, 24))
    plain = SegmentationNetwork(model)
    for name, suffix in (("onnx", ".onnx"), ("torch_export", ".pt2")):
        path = tmp_path / f"teacher{suffix}"
        FORMATS[name].write(program, path)
        tensors = FORMATS[name].tensors(path)
        with pytest.raises(CheckError, match="tensors of the training alone|tensors that the student does not have"):
            check_only_student(tensors, plain)
        nameless = {f"constant_{index}": count for index, count in enumerate(tensors.values())}
        with pytest.raises(CheckError, match="tensors that the student does not have"):
            check_only_student(nameless, plain)
        with pytest.raises(CheckError, match="the file's logits differ from torch's by"):
            check_difference(FORMATS[name].read(path), plain, [(1, 3, 24, 24)], 1e-4)


def test_a_file_that_fails_is_not_kept(classifier, wrapped, tmp_path, monkeypatch, capsys):
    other = copy.deepcopy(frskd_plugin.unwrap(classifier))
    nn.init.ones_(other.fc.bias)
    made = FORMATS["torch_export"]
    off = replace(made, read=lambda path: lambda x: made.read(path)(x) + 1)
    monkeypatch.setitem(FORMATS, "torch_export", off)
    out = tmp_path / "wrn.pt2"
    command = ["wrn_16_2", str(wrapped), str(out), "--format", "torch_export"]
    assert commands.run("export_model", command) == 1
    assert "FAILED its check and was not kept: on images [1, 3, 32, 32]" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    out.write_text("an earlier one")
    assert commands.run("export_model", command) == 1
    assert out.read_text() == "an earlier one" and list(tmp_path.iterdir()) == [out]


def test_normalization_flips_for_networks_that_take_bgr():
    images = torch.rand(2, 3, 4, 4) * 255
    network = NormalizedNetwork(nn.Identity(), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), flip_channels=True)
    expected = torch.stack([(images[:, 2 - c] - (1 + c)) / (4 + c) for c in range(3)], dim=1)
    torch.testing.assert_close(network(images), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet19", "{w}", "{t}/a.onnx"], "timm .* has no model 'resnet19'. Did you mean"),
        (["resnet18", "{w}", "{t}/a.onnx"], "does not fit the network: size mismatch for fc.weight"),
        (["wrn_16_2", "{t}/missing.pth", "{t}/a.onnx"], "missing.pth not found; expected a .pth or .safetensors file"),
        (["wrn_16_2", "{t}/text.pth", "{t}/a.onnx"], "text.pth cannot be read: it is truncated"),
        (["wrn_16_2", "{w}", "{t}/a.pt2"], r"a file of --format onnx ends in .onnx, got .*a.pt2"),
        (["wrn_16_2", "{w}", "{t}/a.onnx", "--tolerance", "0"], "--tolerance must be > 0"),
        (
            ["wrn_16_2", "{w}", "{t}/a.onnx", "--dynamic", "24"],
            "--size 32 32 must be multiples of 24, as --dynamic 24 says",
        ),
        (["wrn_16_2", "{w}", "{t}/a.onnx", "--cfg-options", "a=1"], "--cfg-options does not belong to wrn_16_2"),
        (["{s}", "{c}", "{t}/a.onnx", "--model-kwargs", "a=1"], "--model-kwargs does not belong to .*frskd.py"),
        (
            ["{s}", "{c}", "{t}/a.onnx", "--cfg-options", "model.test_cfg.mode=slide"],
            "test_cfg.mode='slide' cannot be exported: the windows are laid by Python",
        ),
        (["{s}", "{w}", "{t}/a.onnx"], "wrapped.pth does not fit the network"),
        (["{t}/empty.py", "{w}", "{t}/a.onnx"], "model.type=None cannot be exported: expected a TimmClassifier"),
    ],
)
def test_refuses(segmentor, wrapped, tmp_path, capsys, arguments, message):
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "empty.py").write_text("optimizer = dict()\n")
    places = dict(w=wrapped, t=tmp_path, s=segmentor[0] / "frskd.py", c=segmentor[0] / "epoch_1.pth")
    assert commands.run("export_model", [argument.format(**places) for argument in arguments]) == 2
    captured = capsys.readouterr().err
    assert re.search(message, captured), captured
    assert not (tmp_path / "a.onnx").exists()


def test_missing_packages_are_named(wrapped, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert commands.run("export_model", ["wrn_16_2", str(wrapped), str(tmp_path / "a.onnx")]) == 2
    message = "--format onnx needs onnx, onnxscript, onnxruntime, and importing onnxruntime failed"
    error = capsys.readouterr().err
    assert message in error and "pip install 'frskd_plugin[export]'" in error


def test_networks_of_one_size_say_so(tmp_path):
    class OneSize(nn.Module):
        def forward(self, images):
            return images.reshape(images.shape[0], 3 * 8 * 8)

    student = Student(OneSize(), (3, 8, 8), dense=False)
    with pytest.raises(CheckError, match=r"does not run on images \[3, 3, 40, 72\] .*--dynamic batch a single size"):
        export_student_file(student, tmp_path / "a.pt2", "torch_export", dynamic=1)
    made = export_student_file(student, tmp_path / "a.pt2", "torch_export", dynamic="batch")
    assert made.differences == (0.0, 0.0) and Path(tmp_path / "a.pt2").is_file()
