"""`frskd convert`: the file that it writes loads, is the config of `frskd_config`, and trains."""

from __future__ import annotations

import re

import mmseg
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from frskd_plugin import commands
from frskd_plugin.mmengine.export import export_student
from frskd_plugin.mmseg.convert import frskd_config
from frskd_plugin.mmseg.written_config import base_expression, find_config
from tests.helpers.real_runs import train
from tests.helpers.tiny_mmseg import tiny_config

# A stock config of mmsegmentation, made small; what stands there is mmengine's own inheritance.
OCRNET = """\
_base_ = [{base}]
crop_size = (64, 96)
model = dict(
    data_preprocessor=dict(size=crop_size),
    pretrained=None,
    backbone=dict(depth=18, base_channels=8, stem_channels=8),
    decode_head=[
        dict(type="FCNHead", in_channels=32, in_index=2, channels=8, num_convs=1, concat_input=False, num_classes=19,
             loss_decode=dict(type="CrossEntropyLoss", loss_weight=0.4)),
        dict(type="OCRHead", in_channels=64, in_index=3, channels=16, ocr_channels=8, num_classes=19,
             loss_decode=dict(type="CrossEntropyLoss")),
    ],
)
"""


def test_written_file_is_the_config_of_frskd_config(tmp_path, capsys):
    plain, out = tmp_path / "ocrnet.py", tmp_path / "my frskd" / "ocrnet.py"
    base = find_config("ocrnet/ocrnet_r101-d8_4xb2-40k_cityscapes-512x1024.py")
    plain.write_text(OCRNET.format(base=base_expression(base, plain)))
    options = ["--alpha", "2", "--beta", "10", "--temperature", "3", "--width", "1"]
    assert commands.run("convert", [str(plain), "-o", str(out), *options]) == 0
    written = Config.fromfile(out)
    assert written.to_dict() == frskd_config(plain, alpha=2, beta=10, temperature=3, width=1).to_dict()
    assert written.model.self_teacher.neck.in_channels == [8, 16, 32, 64]
    printed = capsys.readouterr().out
    assert "8 channels at stride" in printed and f"frskd check '{out}'; frskd train '{out}'" in printed

    init_default_scope("mmseg")
    model = MODELS.build(written.model)
    student = {key: value for key, value in model.state_dict().items() if not key.startswith("self_teacher.")}
    MODELS.build(Config.fromfile(plain).model).load_state_dict(student, strict=True)


def test_written_file_trains(data_root, tmp_path):
    plain, out = tmp_path / "plain.py", tmp_path / "frskd.py"
    tiny_config(data_root, epochs=1, workers=0).dump(plain)
    out.write_text("written over by --force")
    assert commands.run("convert", [str(plain), "-o", str(out), "--force"]) == 0
    text = out.read_text()
    assert "_base_ = ['plain.py']" in text
    # the hooks stand there as comments: take these away, as a user does
    hooked = tmp_path / "hooked.py"
    start = text.index("# custom_hooks")
    hooked.write_text(text[:start] + text[start:].replace("# ", "", 1).replace("\n# ", "\n"))
    config = Config.fromfile(hooked)
    kinds = [hook["type"] for hook in config.custom_hooks]
    assert kinds[-2:] == ["DistillWarmupHook", "SelfTeacherValidationHook"] and "StepSeedHook" in kinds
    assert (config.custom_hooks[-2].begin, config.custom_hooks[-2].by_epoch) == (1, True)  # two thirds of one epoch

    runner = train(config, tmp_path / "run", custom_hooks=[])
    scalars = runner.message_hub.log_scalars
    for term in ("loss_ce", "loss_kd", "loss_feat"):
        assert scalars[f"train/self_teacher.{term}"].current() > 0
    export_student(tmp_path / "run" / "epoch_1.pth", tmp_path / "student.pth")
    weights = torch.load(tmp_path / "student.pth", weights_only=True)["state_dict"]
    MODELS.build(Config.fromfile(plain).model).load_state_dict(weights, strict=True)


def test_shipped_configs_are_found_wherever_mmseg_lies(tmp_path):
    out, name = tmp_path / "frskd_fcn.py", "fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py"
    assert commands.run("convert", [f"mmseg::{name}", "-o", str(out)]) == 0
    text = out.read_text()
    assert mmseg.__path__[0] not in text
    assert f"__import__('mmseg').__path__[0] + '/.mim/configs/{name}'" in text
    assert Config.fromfile(out).model == frskd_config(find_config(name)).model
    assert max(len(line) for line in text.splitlines()) <= 120
    # one comment for each thing to tune, and the warm-up of this training's length
    for word in ("alpha", "beta", "temperature", "width", "max_channels", "feature_reduction", "begin=53333"):
        assert re.search(rf"#.*{word}", text), word
    assert re.search(r"costs \d\.\d\d of the segmentor's multiply-accumulates.*about \d\.\d\d more", text, re.DOTALL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{t}/missing.py", "-o", "{t}/a.py"], "missing.py not found, neither as a file nor in .*mmseg::fcn/"),
        (["{t}/frskd.py", "-o", "{t}/a.py"], "is of FRSKD already"),
        (["{t}/plain.py", "-o", "{t}/there.py"], "there.py exists; give another output file, or --force"),
        (["{t}/plain.py", "-o", "{t}/plain.py", "--force"], "is the plain config itself"),
        (["{t}/plain.py", "-o", "{t}/a.txt"], "must be written to a .py file, got .*a.txt"),
        (["{t}/plain.py", "-o", "{t}/a.py", "--beta", "-1"], "`beta` weighs a loss and must be >= 0, got -1"),
    ],
)
def test_refuses(data_root, tmp_path, capsys, arguments, message):
    tiny_config(data_root).dump(tmp_path / "plain.py")
    tiny_config(data_root, frskd=True).dump(tmp_path / "frskd.py")
    (tmp_path / "there.py").write_text("kept = True\n")
    assert commands.run("convert", [argument.format(t=tmp_path) for argument in arguments]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "a.py").exists() and (tmp_path / "there.py").read_text() == "kept = True\n"
