"""CIFAR-100 and image folders as training reads them: pixels, labels, reduced sets, and what is said of bad ones."""

from __future__ import annotations

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from frskd_plugin.data.cifar100 import Cifar100Dataset, load_cifar100, read_plain_pickle
from frskd_plugin.data.image_folder import ImageFolderDataset, build_transforms, read_rgb

CLASSES = ["apple", "bear", "clock"]
IMAGES = np.random.default_rng(0).integers(0, 256, size=(8, 3, 32, 32), dtype=np.uint8)
LABELS = [2, 0, 1, 0, 2, 1, 0, 2]


def write_archive(root: Path, count: int = 8, keys: type = str, protocol: int = 2) -> Path:
    """The files of the python archive; ``keys=bytes`` is what Python 2 wrote."""

    def text(value: str) -> str | bytes:
        return value.encode() if keys is bytes else value

    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    content = {text("data"): IMAGES[:count].reshape(count, -1), text("fine_labels"): LABELS[:count]}
    for split in ("train", "test"):
        (folder / split).write_bytes(pickle.dumps(content, protocol))
    (folder / "meta").write_bytes(pickle.dumps({text("fine_label_names"): [text(c) for c in CLASSES]}, protocol))
    return root


def write_folders(root: Path, count: int, splits: tuple[str, ...] = ("train", "test")) -> Path:
    for split in splits:
        for number, (image, label) in enumerate(zip(IMAGES[:count], LABELS, strict=False)):
            path = root / split / CLASSES[label] / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(path)
    return root


class Harmful:
    def __reduce__(self):
        return print, ("this ran",)


@pytest.mark.parametrize(("keys", "protocol"), [(str, 2), (bytes, 2), (str, 5)])
def test_archive_is_read_in_its_own_order(tmp_path, keys, protocol):
    write_archive(tmp_path, keys=keys, protocol=protocol)
    for root in (tmp_path, tmp_path / "cifar-100-python"):
        loaded = load_cifar100(root, "test")
        assert torch.equal(loaded.images, torch.from_numpy(IMAGES))
        assert loaded.targets.tolist() == LABELS and loaded.targets.dtype == torch.int64
        assert loaded.classes == CLASSES


def test_folders_give_the_archive_images_sorted_by_class(tmp_path):
    loaded = load_cifar100(write_folders(tmp_path, 5), "train")
    assert loaded.targets.tolist() == [0, 0, 1, 2, 2] and loaded.classes == CLASSES
    assert torch.equal(loaded.images, torch.from_numpy(IMAGES[[1, 3, 2, 0, 4]]))


def test_images_per_class_takes_the_first_of_each(tmp_path):
    loaded = load_cifar100(write_archive(tmp_path), "train", images_per_class=2)
    assert loaded.targets.tolist() == [2, 0, 1, 0, 2, 1]
    assert torch.equal(loaded.images, torch.from_numpy(IMAGES[:6]))
    for count, message in ((3, "=3, but class 'bear' has 2 images"), (0, "must be at least 1 or None for all, got 0")):
        with pytest.raises(ValueError, match=message):
            load_cifar100(tmp_path, "train", images_per_class=count)


def test_missing_or_incomplete_cifar_says_what_is_expected_where(tmp_path):
    expected = rf"expected the files {tmp_path}/cifar-100-python/.*train,test,meta.*prepare_data.py cifar100 SRC"
    with pytest.raises(FileNotFoundError, match=expected):
        load_cifar100(tmp_path)
    write_archive(tmp_path)
    assert len(Cifar100Dataset(tmp_path, expected_images=8)) == 8
    with pytest.raises(ValueError, match="is not the whole set: expected 50000 images, found 8; .*prepare_data.py"):
        Cifar100Dataset(tmp_path, expected_images=50000)
    (tmp_path / "cifar-100-python" / "meta").unlink()
    with pytest.raises(FileNotFoundError, match=expected):
        load_cifar100(tmp_path)
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'val'"):
        load_cifar100(tmp_path, "val")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": np.zeros((2, 3072), np.uint8)}, "'fine_labels' is missing"),
        ({"data": np.zeros((2, 3072)), "fine_labels": [0, 1]}, r"must hold data uint8 \[N, 3072\].*got float64"),
        ({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0]}, r"got uint8 \[2, 3072\] and \[1\]"),
        ({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0, 3]}, "fine_labels from 0 to 2, got others"),
        ([1, 2], "must hold a dict, got list"),
    ],
)
def test_archive_that_holds_something_else(tmp_path, content, message):
    write_archive(tmp_path)
    (tmp_path / "cifar-100-python" / "train").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_cifar100(tmp_path)


def test_a_pickle_runs_no_code_and_gives_python_2_text_as_bytes(tmp_path, capsys):
    path = tmp_path / "train"
    path.write_bytes(pickle.dumps({"data": Harmful()}))
    with pytest.raises(ValueError, match="train cannot be read .*builtins.print, which is not data"):
        read_plain_pickle(path)
    assert capsys.readouterr().out == ""
    for name in (b"numpy.core.multiarray\nscalar", b"argparse\nNamespace"):  # what later reads would use too
        path.write_bytes(b"\x80\x02c" + name + b"\nN}\x8c\x08__init__Ns\x86b.")
        with pytest.raises(ValueError, match="it changes what a name stands for"):
            read_plain_pickle(path)
    path.write_bytes(pickle.dumps({"data": IMAGES})[:-100])
    with pytest.raises(ValueError, match="cannot be read as a pickle .*unpack the published archive again"):
        read_plain_pickle(path)
    path.write_bytes(b"(dp0\nS'labels'\np1\n(lp2\nI7\nas.")  # as Python 2 writes it
    assert read_plain_pickle(path) == {b"labels": [7]}
    path.write_bytes(pickle.dumps({"raw": b"\xff\x00"}, protocol=2))  # bytes through _codecs.encode
    assert read_plain_pickle(path) == {"raw": b"\xff\x00"}


def test_cifar_items_pass_through_the_transforms(tmp_path):
    write_archive(tmp_path)
    plain, image = Cifar100Dataset(tmp_path), torch.from_numpy(IMAGES[1])
    assert torch.equal(plain[1]["inputs"], image) and plain[1]["targets"] == LABELS[1]
    assert plain.targets == LABELS and plain.metainfo == {"classes": tuple(CLASSES)}
    flipped = Cifar100Dataset(tmp_path, transforms=[dict(type="RandomHorizontalFlip", p=1.0)])
    spawned = pickle.loads(pickle.dumps(flipped))  # as a worker process that is no fork gets it
    assert torch.equal(flipped[1]["inputs"], image.flip(-1)) and torch.equal(spawned[1]["inputs"], image.flip(-1))
    zeroed = Cifar100Dataset(tmp_path, transforms=lambda image: image.zero_())
    assert not zeroed[1]["inputs"].any() and torch.equal(zeroed._pairs[1][0], image)


def test_image_folder_items(tmp_path):
    write_folders(tmp_path, 3, splits=("train", "val"))
    Image.fromarray(IMAGES[0, 0]).save(tmp_path / "val" / "apple" / "zero.png")
    dataset = ImageFolderDataset(tmp_path, "val", expected_classes=3, expected_images=4)
    assert dataset.classes == CLASSES and dataset.metainfo == {"classes": tuple(CLASSES)}
    assert dataset.targets == [0, 0, 1, 2] and dataset[3]["targets"] == 2
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[0]["inputs"], torch.from_numpy(IMAGES[1]))
    assert torch.equal(dataset[1]["inputs"], torch.from_numpy(IMAGES[0, :1]).expand(3, -1, -1))  # grey becomes RGB


def test_missing_or_incomplete_folders_say_what_is_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}/train/<class>/<image>; `python tools/prepare_data.py"):
        ImageFolderDataset(tmp_path)
    write_folders(tmp_path, 3)
    with pytest.raises(ValueError, match="expected 200 classes, found 3; .*prepare_data.py"):
        ImageFolderDataset(tmp_path, expected_classes=200)
    with pytest.raises(ValueError, match="expected 5994 images, found 3; .*set expected_images=None"):
        ImageFolderDataset(tmp_path, expected_classes=3, expected_images=5994)
    (tmp_path / "test" / "bear" / "002.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"test is not complete \(Found no valid file for the classes bear"):
        ImageFolderDataset(tmp_path, "test")
    (tmp_path / "test" / "bear").rmdir()
    with pytest.raises(ValueError, match=r"do not have the same class folders \(bear\), so their labels would differ"):
        ImageFolderDataset(tmp_path, "test")
    with pytest.raises(ValueError, match="split must be one of train, val, test, got 'dev'"):
        ImageFolderDataset(tmp_path, "dev")


def test_broken_image_is_named(tmp_path):
    path = write_folders(tmp_path, 3) / "train" / "bear" / "002.png"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=f"image {path} cannot be decoded .*restore the file or remove it"):
        ImageFolderDataset(tmp_path)[1]
    Image.new("RGB", (30, 32)).save(path)
    with pytest.raises(ValueError, match=f"image {path} has 30x32 pixels, but those of CIFAR-100 have 32x32"):
        load_cifar100(tmp_path)


@pytest.mark.parametrize("array", [np.full((4, 4), 0.5, np.float32), np.full((4, 4, 3), 700, np.uint16)])
def test_images_of_more_than_8_bits_are_refused(tmp_path, array):
    cv2.imwrite(str(tmp_path / "image.tif"), array)
    with pytest.raises(ValueError, match="image.tif has more than 8 bits a channel, which reading it as RGB would cut"):
        read_rgb(tmp_path / "image.tif")


def test_transforms_equal_those_of_torchvision():
    image = torch.from_numpy(IMAGES[0])
    config = [
        dict(type="RandomApply", transforms=[dict(type="RandomVerticalFlip", p=1.0)], p=1.0),
        dict(type="Resize", size=12, interpolation="nearest"),
    ]
    before = repr(config)
    nearest = v2.Resize(12, interpolation=v2.InterpolationMode.NEAREST)
    assert torch.equal(build_transforms(config)(image), nearest(image.flip(-2)))
    assert repr(config) == before
    assert all(torch.equal(build_transforms(nothing)(image), image) for nothing in (None, []))
    assert torch.equal(build_transforms(dict(type="RandomHorizontalFlip", p=1.0))(image), image.flip(-1))


@pytest.mark.parametrize(
    ("transform", "error", "message"),
    [
        (dict(type="RandomCorp", size=32), ValueError, "got 'RandomCorp'; did you mean RandomCrop"),
        (dict(size=32), ValueError, "got None; such as RandomCrop"),
        (dict(type="RandomCrop", size=32, padd=4), ValueError, "transform RandomCrop: .*padd.*see torchvision"),
        ("Resize", TypeError, r"must be a dict .* or a callable, got 'Resize' \(str\)"),
        (lambda image: image.float(), TypeError, r"must end with a uint8 image .*got torch.float32 \[3, 32, 32\]"),
    ],
)
def test_wrong_transforms_say_why(tmp_path, transform, error, message):
    write_archive(tmp_path)
    with pytest.raises(error, match=message):
        Cifar100Dataset(tmp_path, transforms=[transform])[0]
