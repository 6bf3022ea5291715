"""Broken samples are named: missing and corrupt files, masks of another size, labels out of range."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

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


def test_whole_sample_loads(root: Path) -> None:
    sample = first_sample(root)
    labels = np.array(Image.open(root / MASK))
    assert np.array_equal(sample["data_samples"].gt_sem_seg.data[0].numpy(), labels)


def test_missing_image(root: Path) -> None:
    (root / IMAGE).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"image .*image_0.jpg is missing; check data_root \(--data-root sets it\)"
    ):
        first_sample(root)


def test_corrupt_image(root: Path) -> None:
    (root / IMAGE).write_bytes(b"no jpeg")
    with pytest.raises(ValueError, match="image .*image_0.jpg cannot be decoded .*restore the file, or take it out"):
        first_sample(root)


def test_missing_mask(root: Path) -> None:
    (root / MASK).unlink()
    with pytest.raises(FileNotFoundError, match="mask .*image_0.png is missing"):
        first_sample(root)


def test_corrupt_mask(root: Path) -> None:
    (root / MASK).write_bytes(b"no png")
    with pytest.raises(ValueError, match="mask .*image_0.png cannot be decoded"):
        first_sample(root)


def test_mask_of_another_size(root: Path) -> None:
    save_mask(root, np.zeros((16, 32)))
    with pytest.raises(ValueError, match=r"mask .*image_0.png has size 32x16 .* its image .*image_0.jpg has 32x32"):
        first_sample(root)


def test_mask_of_colours(root: Path) -> None:
    save_mask(root, np.zeros((32, 32, 3)))
    with pytest.raises(ValueError, match="must hold one label a pixel"):
        first_sample(root)


def test_label_out_of_range(root: Path) -> None:
    save_mask(root, np.full((32, 32), 9))
    with pytest.raises(
        ValueError, match=r"holds label 9, but there are 4 classes \(0 to 3\) and 255 for ignored pixels"
    ):
        first_sample(root)


def test_ignored_label_is_allowed(root: Path) -> None:
    save_mask(root, np.full((32, 32), 255))
    assert (first_sample(root)["data_samples"].gt_sem_seg.data == 255).all()
