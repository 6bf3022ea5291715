"""Drawn scenes: labels, files as VOC writes them, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from frskd_plugin.commands.make_drawn_voc import CLASS_INDICES, draw_scene, make_devkit


def test_labels_are_classes_and_255_parts_them():
    scenes = [draw_scene(seed=1, index=i, size=(60, 80)) for i in range(12)]
    for image, labels in scenes:
        assert image.shape == (60, 80, 3) and (image.dtype, labels.dtype) == (np.uint8, np.uint8)
        for a, b in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
            changes = a != b
            assert np.all((a[changes] == 255) | (b[changes] == 255))
    assert set(np.unique([labels for _, labels in scenes])) == {0, 255, *CLASS_INDICES}


def test_devkit(tmp_path):
    counts = make_devkit(tmp_path / "a", train=6, val=5, size=(40, 48), seed=2)
    make_devkit(tmp_path / "b", train=6, val=5, size=(40, 48), seed=2)
    # 3 of its own and, of the 5 test images, every fourth.
    assert counts == {("VOC2007", "trainval"): 3, ("VOC2007", "test"): 5, ("VOC2012", "trainval"): 5}
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()

    image = Image.open(tmp_path / "a" / "VOC2007" / "JPEGImages" / "000001.jpg")
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (48, 40))
    mask = Image.open(tmp_path / "a" / "VOC2007" / "SegmentationClass" / "000001.png")
    assert (mask.format, mask.mode) == ("PNG", "P")
    colours = np.array(mask.getpalette()).reshape(256, 3)
    assert colours[[1, 15, 255]].tolist() == [[128, 0, 0], [192, 128, 128], [224, 224, 192]]
    assert not np.array_equal(draw_scene(2, 0, (40, 48))[0], draw_scene(3, 0, (40, 48))[0])
    assert np.array_equal(np.array(mask), draw_scene(2, 0, (40, 48))[1])


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="train >= 4, val >= 1 and size >= 32x32, got train=1"):
        make_devkit(tmp_path / "a", train=1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(FileExistsError, match="not empty"):
        make_devkit(tmp_path / "full")
