"""The data sets as the configs build them: labels are indices, missing files are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image

from frskd_plugin.commands.make_drawn_voc import make_devkit, voc_palette
from frskd_plugin.commands.prepare_voc import main as prepare_voc
from frskd_plugin.mmengine.config_tools import set_data_root

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def build(config: Config, split: str):
    from mmseg.registry import DATASETS

    init_default_scope("mmseg")
    return DATASETS.build(config[f"{split}_dataloader"].dataset)


@pytest.fixture
def camvid(tmp_path):
    """Three images whose labels are all eleven classes and void, as a palette PNG in colours that mean nothing."""
    root = tmp_path / "CamVid"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    labels = np.arange(12, dtype=np.uint8).repeat(10).reshape(12, 10)
    labels[labels == 11] = 255
    for name in ("train", "val", "test"):
        Image.new("RGB", (10, 12), (10, 20, 30)).save(root / "JPEGImages" / f"{name}1.jpg")
        mask = Image.fromarray(labels)
        mask.putpalette(voc_palette())
        mask.save(root / "SegmentationClass" / f"{name}1.png")
        (root / "ImageSets" / "Segmentation" / f"{name}.txt").write_text(f"{name}1\n")
    return root


@pytest.mark.parametrize("inner", [True, False])
def test_camvid_reads_indices(camvid, inner):
    config = Config.fromfile(CONFIGS / "baseline_camvid_effdet_d0.py")
    set_data_root(config, camvid if inner else camvid.parent)
    dataset = build(config, "val")
    sample = dataset[0]
    labels = sample["data_samples"].gt_sem_seg.data[0].numpy()
    assert labels[:, 0].tolist() == [*range(11), 255]
    assert np.all(labels == labels[:, :1])
    assert sample["inputs"].shape == (3, 12, 10)
    assert dataset.metainfo["classes"][0] == "sky"
    assert dataset.metainfo["classes"][10] == "bicyclist"
    assert len(dataset.metainfo["classes"]) == len(dataset.metainfo["palette"]) == 11
    assert dataset.metainfo["reduce_zero_label"] is False


def test_camvid_names_what_is_missing(camvid):
    config = Config.fromfile(CONFIGS / "baseline_camvid_effdet_d0.py")
    set_data_root(config, camvid)
    (camvid / "ImageSets" / "Segmentation" / "val.txt").unlink()
    with pytest.raises(FileNotFoundError, match="CamVid: .*val.txt is missing .*--data-root DIR sets it"):
        build(config, "val")


def test_voc_reads_both_years(tmp_path):
    make_devkit(tmp_path / "VOCdevkit", train=4, val=1, size=(40, 48))
    config = Config.fromfile(CONFIGS / "frskd_voc_effdet_d0.py")
    set_data_root(config, tmp_path / "VOCdevkit")
    with pytest.raises(FileNotFoundError, match="frskd_train.txt is missing .*prepare_voc.py"):
        build(config, "train")

    prepare_voc([str(tmp_path / "VOCdevkit"), "--out", "frskd_train"])
    dataset = build(config, "train")
    paths = [Path(dataset.get_data_info(i)["img_path"]).stem for i in range(len(dataset))]
    assert paths == ["000001", "000002", "2008_000003", "2008_000004"]
    sample = dataset[3]
    # Rounding makes the side a little shorter than 512 at times; the model pads it.
    assert max(sample["inputs"].shape) <= 512
    assert set(np.unique(sample["data_samples"].gt_sem_seg.data)) <= {*range(21), 255}
    assert len(build(config, "val")) == 1
