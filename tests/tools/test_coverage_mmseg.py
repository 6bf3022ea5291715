"""tools/coverage_mmseg.py: a handful of families in this process, and what it says where something goes wrong."""

from __future__ import annotations

import json
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from frskd_plugin.coverage import families, family
from frskd_plugin.coverage.families import families_to_try, shrunk_config, smallest_config
from frskd_plugin.coverage.family_command import main
from frskd_plugin.coverage.family_report import FamilyRow, summary
from frskd_plugin.coverage.fault import Fault, check_gradients
from frskd_plugin.mmseg.self_taught import SelfTaughtSegmentor

ROOT = Path(__file__).resolve().parents[2]
HANDFUL = {
    "fcn": ("FCNHead", [8, 16, 32, 64]),
    "fastscnn": ("DepthwiseSeparableFCNHead", [64, 128, 128]),  # maps of 8, 2 and 8 pixels, in that order
    "erfnet": ("FCNHead", [16, 16]),  # a single map
    "ddrnet": ("FCNHead", [16, 32]),
    "ocrnet": ("FCNHead", [18, 36, 72, 144]),
    "segformer": ("SegformerHead", [32, 64, 160, 256]),
    "knet": ("IterativeDecodeHead", [8, 16, 32, 64]),
}


@pytest.fixture
def smaller(monkeypatch):
    """Narrower than the configs say, where they say it: a test has less time than the tool."""

    def shrink(file: Path, image_size: int, fix_image_size: bool = False) -> Config:
        config = shrunk_config(file, image_size, fix_image_size)
        model = config.model
        if model.backbone.type == "DDRNet":
            model.backbone.channels, model.decode_head.in_channels = 8, 32
        if model.backbone.type == "ResNetV1c":
            model.backbone.update(depth=18, base_channels=8, stem_channels=8)
            head = model.decode_head.get("kernel_generate_head", model.decode_head)
            head.in_channels, head.channels = 64, 16
            model.auxiliary_head.in_channels = 32
            for update in model.decode_head.get("kernel_update_head", []):
                update.update(in_channels=16, out_channels=16, feedforward_channels=16)
                update.kernel_updator_cfg.update(in_channels=16, feat_channels=16, out_channels=16)
        return config

    monkeypatch.setattr(family, "shrunk_config", shrink)
    monkeypatch.setattr(
        families, "smallest_config", lambda name: smallest_knet() if name == "knet" else smallest_config(name)
    )


def smallest_knet() -> Path:
    """The one on a ResNet; the smallest by name has a Swin transformer."""
    return next((families.config_folder() / "knet").glob("*r50-d8_fcn*.py"))


def test_a_handful_of_families(tmp_path, capsys, smaller) -> None:
    files = [tmp_path / "made" / "rows.json", tmp_path / "table.md"]
    options = ["--in-process", "--families", *HANDFUL, "ccnet", "--json", str(files[0]), "--markdown", str(files[1])]
    assert main(options) == 0
    rows = {row["family"]: row for row in json.loads(files[0].read_text())}
    assert list(rows) == [*HANDFUL, "ccnet"]
    for name, (head, channels) in HANDFUL.items():
        row = rows[name]
        assert (row["plain"], row["result"], row["image"]) == ("ok", "ok", 64), row
        assert (row["teacher_head"], row["channels"]) == (head, channels)
    assert rows["ddrnet"]["config"].startswith("ddrnet_23")
    text = files[1].read_text()
    operators = find_spec("mmcv._ext") is not None
    if operators:
        assert (rows["ccnet"]["plain"], rows["ccnet"]["result"]) == ("ok", "ok")
        assert "8 families: 8 ok, 0 whose plain config does not run, 0 that remain" in text
    else:  # criss-cross attention is an operator
        assert rows["ccnet"]["plain"].startswith("RuntimeError: Please install")
        assert rows["ccnet"]["result"] == f"the plain config does not run: {rows['ccnet']['plain']}"
        assert "8 families: 7 ok, 1 whose plain config does not run, 0 that remain" in text
        assert f"| ccnet | {rows['ccnet']['config']} | RuntimeError: Please install" in text
    assert "python tools/coverage_mmseg.py --in-process --families fcn fastscnn" in text
    assert f"| erfnet | {rows['erfnet']['config']} | 64 | 16 16 | FCNHead | ok | ok |" in text
    assert capsys.readouterr().out.count("| ok  (") == 7 + operators


def test_a_family_that_fails_is_told_and_the_rest_goes_on(tmp_path, monkeypatch, capsys) -> None:
    def fail(file: str, *facts: object) -> dict:
        if "/fcn/" in file:
            raise Fault("decode.loss_ce is not finite: nan")
        return {"channels": [1], "teacher_head": "FCNHead"}

    monkeypatch.setattr(family, "examine_plain", lambda file: {"image": 64, "fixed": False, "idle": []})
    monkeypatch.setattr(family, "examine_frskd", fail)
    file = tmp_path / "rows.json"
    assert main(["--in-process", "--families", "fcn", "ann", "--json", str(file)]) == 1
    results = {row["family"]: row["result"] for row in json.loads(file.read_text())}
    assert results == {"fcn": "decode.loss_ce is not finite: nan", "ann": "ok"}
    assert "2 families: 1 ok, 0 whose plain config does not run, 1 that remain" in capsys.readouterr().out


def test_unknown_families_end_in_one_line(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["coverage_mmseg.py", "--families", "fcn", "fnc"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ROOT / "tools" / "coverage_mmseg.py"), run_name="__main__")
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "has no configs in a folder fnc: expected names out of ann, apcnet" in error
    assert error.count("\n") == 1


def test_without_mmseg_it_ends_in_one_line(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "frskd_plugin.coverage.families", None)
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert "A segmentor needs a package that cannot be imported" in capsys.readouterr().err


def test_configs_that_are_not_installed_are_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(families.mmseg, "__path__", [str(tmp_path)])
    with pytest.raises(FileNotFoundError, match="configs is missing: mmsegmentation was installed without"):
        families_to_try()


def test_every_family_is_listed_and_the_smallest_model_taken() -> None:
    names = families_to_try()
    assert len(names) > 45
    assert "_base_" not in names
    assert {"fcn", "ocrnet", "pidnet", "mask2former"} <= set(names)
    assert smallest_config("segformer").name.startswith("segformer_mit-b0_")
    assert smallest_config("pspnet").name.startswith("pspnet_r18-d8_")


def test_the_shrunk_config_is_the_original_but_for_sizes_and_weights() -> None:
    file = smallest_config("setr")
    original, small = Config.fromfile(file), shrunk_config(file, 64, fix_image_size=True)
    assert (small.model.backbone.img_size, small.model.data_preprocessor.size) == ((64, 64), (64, 64))
    assert small.model.backbone.init_cfg is None
    assert small.model.decode_head.norm_cfg.type == "BN"
    assert original.model.decode_head.norm_cfg.type == "SyncBN"
    assert small.model.decode_head.num_classes == original.model.decode_head.num_classes
    assert shrunk_config(file, 64).model.backbone.img_size == original.model.backbone.img_size


def test_a_package_that_a_config_imports_is_named() -> None:
    with pytest.raises(Fault, match="^custom_imports: ModuleNotFoundError: No module named 'mmpretrain'$"):
        shrunk_config(smallest_config("poolformer"), 64)


def examined(monkeypatch, **changes) -> None:
    """Examine the FCN with a method of the segmentor exchanged."""
    for name, change in changes.items():
        original = getattr(SelfTaughtSegmentor, name)
        monkeypatch.setattr(SelfTaughtSegmentor, name, change(original))
    family.examine_frskd(str(smallest_config("fcn")), 64, False, [])


def test_broken_promises_are_faults(monkeypatch, smaller) -> None:
    def disturbed(predict):
        def call(self, *args):
            results = predict(self, *args)
            for result in results:
                result.seg_logits.data = result.seg_logits.data + 1e-6
            return results

        return call

    with monkeypatch.context() as patch, pytest.raises(Fault, match="does not give the plain model's logits"):
        examined(patch, predict=disturbed)

    def reseeded(add):
        def call(self, *args):
            add(self, *args)
            self.decode_head.init_cfg = dict(type="Normal", std=0.5, override=dict(name="conv_seg"))

        return call

    with monkeypatch.context() as patch, pytest.raises(Fault, match="before training the student has other weights"):
        examined(patch, _add_self_teacher=reseeded)

    def without_distillation(add):
        def call(self, *args):
            add(self, *args)
            self.self_teacher.loss = lambda *_: {}

        return call

    with monkeypatch.context() as patch, pytest.raises(Fault, match="no loss self_teacher.loss_kd, self_teacher"):
        examined(patch, _add_self_teacher=without_distillation)


def test_parameters_that_the_plain_config_leaves_idle_are_no_fault() -> None:
    layer = torch.nn.Linear(2, 2)
    layer.bias.grad = torch.zeros(2)
    check_gradients(layer, idle=["weight"])
    with pytest.raises(Fault, match="1 parameters get no gradient: weight"):
        check_gradients(layer, idle=["bias"])


def test_the_summary_counts_what_remains() -> None:
    rows = [FamilyRow("a", "a.py"), FamilyRow("b", "b.py", result="no"), FamilyRow("c", "c.py", plain="E", result="E")]
    assert summary(rows) == "3 families: 1 ok, 1 whose plain config does not run, 1 that remain"
    assert [row.ok for row in rows] == [True, False, True]
