"""Broken samples are named: missing and corrupt files, masks of another size, labels out of range."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, init_default_scope
from mmseg.datasets.transforms import LoadAnnotations
from PIL import Image

from frskd_plugin.commands.runner import check_classes
from frskd_plugin.mmseg.data import LoadCheckedAnnotations, LoadCheckedImage
from tests.helpers.tiny_mmseg import tiny_config

IMAGE, MASK = "JPEGImages/image_0.jpg", "SegmentationClass/image_0.png"


@pytest.fixture
def root(data_root: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(data_root, tmp_path / "voc"))


def first_sample(root: Path):
    init_default_scope("mmseg")
    return DATASETS.build(tiny_config(root).val_dataloader.dataset)[0]


def save_mask(root: Path, labels: np.ndarray) -> None:
    Image.fromarray(labels.astype(np.uint8)).save(root / MASK)


def test_whole_samples_and_ignored_labels_load(root: Path) -> None:
    labels = np.array(Image.open(root / MASK))
    assert np.array_equal(first_sample(root)["data_samples"].gt_sem_seg.data[0].numpy(), labels)
    save_mask(root, np.full((32, 32), 255))
    assert (first_sample(root)["data_samples"].gt_sem_seg.data == 255).all()


BROKEN = {
    "missing image": (IMAGE, None, r"image .*image_0.jpg is missing; check data_root \(--data-root sets it\)"),
    "corrupt image": (IMAGE, b"no jpeg", "image .*image_0.jpg cannot be decoded .*restore the file, or take it out"),
    "missing mask": (MASK, None, "mask .*image_0.png is missing"),
    "corrupt mask": (MASK, b"no png", "mask .*image_0.png cannot be decoded"),
    "another size": (MASK, np.zeros((16, 32)), r"mask .*image_0.png has size 32x16 .* image .*image_0.jpg has 32x32"),
    "colours": (MASK, np.zeros((32, 32, 3)), "must hold one label a pixel"),
    "no class": (MASK, np.full((32, 32), 9), r"holds label 9, but there are 4 classes \(0 to 3\) and 255 for ignored"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_samples_are_named(root: Path, name: str) -> None:
    file, content, message = BROKEN[name]
    if content is None:
        (root / file).unlink()
    elif isinstance(content, bytes):
        (root / file).write_bytes(content)
    else:
        save_mask(root, content)
    with pytest.raises(FileNotFoundError if content is None else ValueError, match=message):
        first_sample(root)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_deep_masks_keep_their_values_or_are_refused(tmp_path: Path, dtype: type) -> None:
    path = str(tmp_path / "mask.tif")
    results = {"seg_map_path": path, "reduce_zero_label": False, "seg_fields": []}
    for labels in ([[0, 3], [255, 1]], [[0, 259], [300, 1]]):
        Image.fromarray(np.array(labels, dtype)).save(path)
        loaded = LoadCheckedAnnotations(imdecode_backend="pillow")(dict(results, seg_fields=[]))["gt_seg_map"]
        assert loaded.tolist() == labels  # mmseg's own loading makes 3 of 259
    with pytest.raises(ValueError, match="holds label 259, 300, but there are 4 classes"):
        LoadCheckedAnnotations(num_classes=4, imdecode_backend="pillow")(dict(results, seg_fields=[]))
    if dtype is np.float32:
        Image.fromarray(np.full((2, 2), 0.5, dtype)).save(path)
        with pytest.raises(ValueError, match="must hold whole numbers from 0 to 65535, .* got float32 from 0.5 to 0.5"):
            LoadCheckedAnnotations(imdecode_backend="pillow")(results)


def test_class_maps_are_those_of_mmseg(tmp_path: Path) -> None:
    labels = np.array([[0, 1, 2], [3, 254, 255]], np.uint8)
    Image.fromarray(labels).save(tmp_path / "mask.png")
    for reduce_zero_label in (False, True):
        results = {"seg_map_path": str(tmp_path / "mask.png"), "reduce_zero_label": reduce_zero_label}
        results["label_map"] = {0: 1, 1: 0, 2: 255}
        loaded, expected = (
            load(imdecode_backend="pillow")(dict(results, seg_fields=[]))
            for load in (LoadCheckedAnnotations, LoadAnnotations)
        )
        assert np.array_equal(loaded["gt_seg_map"], expected["gt_seg_map"]) and loaded["seg_fields"] == ["gt_seg_map"]


@pytest.mark.parametrize("array", [np.full((4, 4), 700, np.uint16), np.full((4, 4, 3), 700, np.uint16)])
def test_deep_images_are_refused_or_kept(tmp_path: Path, array: np.ndarray) -> None:
    cv2.imwrite(str(tmp_path / "image.png"), array)
    results = {"img_path": str(tmp_path / "image.png")}
    with pytest.raises(
        ValueError, match="image.png has more than 8 bits a channel, of which color_type='color' cuts off"
    ):
        LoadCheckedImage()(dict(results))
    assert np.array_equal(LoadCheckedImage(color_type="unchanged")(results)["img"], array)


def test_more_classes_than_the_head_has_are_told_before_training(root: Path) -> None:
    init_default_scope("mmseg")
    dataset = DATASETS.build(tiny_config(root).val_dataloader.dataset)
    model = torch.nn.Module()
    model.decode_head = torch.nn.Module()
    model.decode_head.num_classes = 4
    check_classes("val_dataloader", dataset, model)
    model.decode_head.num_classes = 3
    with pytest.raises(ValueError, match=r"val_dataloader: .* labels 0..3, but model.decode_head.num_classes is 3"):
        check_classes("val_dataloader", dataset, model)
