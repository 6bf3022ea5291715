"""tools/prepare_data.py on small sets drawn in each published format: which image goes where, and what is refused."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import stat
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from frskd_plugin.commands import prepare_data as prepare
from frskd_plugin.commands import published_archives as archives
from frskd_plugin.commands.prepare_data import prepare_images
from frskd_plugin.commands.published_archives import Member, Source, archive_members
from frskd_plugin.data.cifar100 import load_cifar100
from frskd_plugin.data.image_folder import IMAGE_SETS, ImageSet
from tests.helpers.real_runs import command

Files = dict[str, bytes]  # name in the archive -> content
Placed = dict[str, int]  # split/class/image -> the grey value by which the image is known


def png(grey: int) -> bytes:
    """An image that is known by its grey value (the formats do not look at the suffix)."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (grey, grey, grey)).save(buffer, "PNG")
    return buffer.getvalue()


def mat(**content: object) -> bytes:
    scipy_io = pytest.importorskip("scipy.io", reason="scipy reads and writes the MATLAB files of this set")
    buffer = io.BytesIO()
    scipy_io.savemat(buffer, content)
    return buffer.getvalue()


def add_to_tar(archive: tarfile.TarFile, files: Files) -> None:
    for name, content in files.items():
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))


def tar(files: Files) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        add_to_tar(archive, files)
    return buffer.getvalue()


def write_archive(path: Path, files: Files) -> None:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as archive:
            add_to_tar(archive, files)


def write_files(folder: Path, files: Files) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def placed(dst: Path) -> Placed:
    """What a prepared folder holds."""
    files = sorted(path for path in dst.rglob("*") if path.is_file())
    return {path.relative_to(dst).as_posix(): np.asarray(Image.open(path))[0, 0, 0].item() for path in files}


# Each returns the published archives (a plain file has bytes) and where the images belong.


def tinyimagenet() -> tuple[dict[str, Files | bytes], Placed]:
    top = "tiny-imagenet-200"
    files = {
        f"{top}/train/n00000001/images/n00000001_0.JPEG": png(1),
        f"{top}/train/n00000002/images/n00000002_7.JPEG": png(2),
        f"{top}/train/n00000001/n00000001_boxes.txt": b"n00000001_0.JPEG\t0\t0\t3\t3\n",
        f"{top}/val/images/val_0.JPEG": png(3),
        f"{top}/val/images/val_1.JPEG": png(4),
        f"{top}/val/val_annotations.txt": b"val_0.JPEG\tn00000002\t0\t0\t3\t3\nval_1.JPEG\tn00000001\t0\t0\t3\t3\n",
        f"{top}/test/images/test_0.JPEG": png(5),
    }
    where = {"train/n00000001/n00000001_0.JPEG": 1, "train/n00000002/n00000002_7.JPEG": 2}
    where |= {"val/n00000001/val_1.JPEG": 4, "val/n00000002/val_0.JPEG": 3}
    return {"tiny-imagenet-200.zip": files}, where


def cub200() -> tuple[dict[str, Files | bytes], Placed]:
    top = "CUB_200_2011"
    names = ["001.Auk/Auk_1.jpg", "001.Auk/Auk_2.jpg", "002.Jay/Jay_1.jpg", "002.Jay/Jay_2.jpg"]
    files = {f"{top}/images/{name}": png(number) for number, name in enumerate(names, start=1)}
    files |= {
        "attributes.txt": b"1 has_bill_shape::curved\n",
        f"{top}/images.txt": "".join(f"{i} {name}\n" for i, name in enumerate(names, start=1)).encode(),
        f"{top}/image_class_labels.txt": b"1 1\n2 1\n3 2\n4 2\n",
        f"{top}/train_test_split.txt": b"1 0\n2 1\n3 1\n4 0\n",
        f"{top}/classes.txt": b"1 001.Auk\n2 002.Jay\n",
    }
    where = {"test/001.Auk/Auk_1.jpg": 1, "test/002.Jay/Jay_2.jpg": 4}
    where |= {"train/001.Auk/Auk_2.jpg": 2, "train/002.Jay/Jay_1.jpg": 3}
    return {"CUB_200_2011.tgz": files}, where


def mit67() -> tuple[dict[str, Files | bytes], Placed]:
    names = ["bar/b 1.jpg", "bar/b2.jpg", "bar/unused.jpg", "pub/p1.jpg", "pub/p2.jpg"]
    files = {f"Images/{name}": png(number) for number, name in enumerate(names, start=1)}
    lists = {"TrainImages.txt": b"bar/b 1.jpg\r\npub/p2.jpg\r\n", "TestImages.txt": b"bar/b2.jpg\npub/p1.jpg"}
    where = {"test/bar/b2.jpg": 2, "test/pub/p1.jpg": 4, "train/bar/b 1.jpg": 1, "train/pub/p2.jpg": 5}
    return {"indoorCVPR_09.tar": files, **lists}, where


def stanford40() -> tuple[dict[str, Files | bytes], Placed]:
    names = ["blowing_bubbles_001.jpg", "blowing_bubbles_002.jpg", "cooking_001.jpg", "cooking_002.jpg"]
    files = {f"JPEGImages/{name}": png(number) for number, name in enumerate(names, start=1)}
    files["__MACOSX/JPEGImages/._cooking_001.jpg"] = b"not an image"
    lists = {
        "ImageSplits/actions.txt": b"action_name\tnumber\n",
        "ImageSplits/train.txt": b"blowing_bubbles_001.jpg\ncooking_002.jpg\n",
        "ImageSplits/blowing_bubbles_train.txt": b"blowing_bubbles_001.jpg\n",
        "ImageSplits/blowing_bubbles_test.txt": b"blowing_bubbles_002.jpg\n",
        "ImageSplits/cooking_train.txt": b"cooking_002.jpg\n",
        "ImageSplits/cooking_test.txt": b"cooking_001.jpg\n",
    }
    where = {
        "test/blowing_bubbles/blowing_bubbles_002.jpg": 2,
        "test/cooking/cooking_001.jpg": 3,
        "train/blowing_bubbles/blowing_bubbles_001.jpg": 1,
        "train/cooking/cooking_002.jpg": 4,
    }
    return {"Stanford40_JPEGImages.zip": files, "Stanford40_ImageSplits.zip": lists}, where


def dogs() -> tuple[dict[str, Files | bytes], Placed]:
    names = ["n01-Pug/n01_1.jpg", "n01-Pug/n01_2.jpg", "n02-Corgi/n02_1.jpg", "n02-Corgi/n02_2.jpg"]
    files = {f"Images/{name}": png(number) for number, name in enumerate(names, start=1)}

    def cells(*values: str) -> np.ndarray:
        return np.array([[value] for value in values], dtype=object)

    lists = {
        "train_list.mat": mat(file_list=cells(names[0], names[3])),
        "test_list.mat": mat(file_list=cells(names[1], names[2])),
    }
    where = {"test/n01-Pug/n01_2.jpg": 2, "test/n02-Corgi/n02_1.jpg": 3}
    where |= {"train/n01-Pug/n01_1.jpg": 1, "train/n02-Corgi/n02_2.jpg": 4}
    return {"images.tar": files, "lists.tar": lists}, where


def imagenet() -> tuple[dict[str, Files | bytes], Placed]:
    kinds = [("ILSVRC2012_ID", "i4"), ("WNID", "O"), ("num_children", "i4")]
    synsets = np.array([(2, "n00000001", 0), (1, "n00000002", 0), (3, "n00000003", 2)], dtype=kinds)
    top = "ILSVRC2012_devkit_t12/data"
    devkit = {f"{top}/meta.mat": mat(synsets=synsets), f"{top}/ILSVRC2012_validation_ground_truth.txt": b"2\n1\n"}
    train = {
        "n00000001.tar": tar({"n00000001_5.JPEG": png(1)}),
        "n00000002.tar": tar({"n00000002_9.JPEG": png(2)}),
    }
    val = {"ILSVRC2012_val_00000002.JPEG": png(4), "ILSVRC2012_val_00000001.JPEG": png(3)}
    where = {
        "train/n00000001/n00000001_5.JPEG": 1,
        "train/n00000002/n00000002_9.JPEG": 2,
        "val/n00000001/ILSVRC2012_val_00000001.JPEG": 3,
        "val/n00000002/ILSVRC2012_val_00000002.JPEG": 4,
    }
    archives = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz")
    return dict(zip(archives, (train, val, devkit), strict=True)), where


FORMATS: dict[str, Callable] = {f.__name__: f for f in (tinyimagenet, cub200, mit67, stanford40, dogs, imagenet)}


def small(name: str, images: int = 2, classes: int = 2) -> ImageSet:
    """The set with as many images in each split, one of each class."""
    splits = IMAGE_SETS[name].images
    return replace(
        IMAGE_SETS[name], num_classes=classes, images=dict.fromkeys(splits, images), per_class=dict.fromkeys(splits, 1)
    )


def write_published(src: Path, name: str) -> Placed:
    published, where = FORMATS[name]()
    src.mkdir()
    for file, content in published.items():
        if isinstance(content, bytes):
            (src / file).write_bytes(content)
        else:
            write_archive(src / file, content)
    return where


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("form", ["archives", "unpacked", "links"])
def test_each_image_gets_into_its_split_and_class(tmp_path, name, form):
    published, where = FORMATS[name]()
    if form == "archives":
        write_published(tmp_path / "src", name)
    else:
        for file, content in published.items():  # ImageNet's archives hold no folder of their own
            inner = {"ILSVRC2012_img_train.tar": "train", "ILSVRC2012_img_val.tar": "val"}.get(file, "")
            write_files(tmp_path / "src" / inner, {file: content} if isinstance(content, bytes) else content)
    before = contents(tmp_path / "src")
    parts = prepare_images(name, tmp_path / "src", tmp_path / "dst", link=form == "links", image_set=small(name))
    assert placed(tmp_path / "dst") == where
    assert [(part.path.name, part.images, part.made) for part in parts] == [
        (split, {split: 2}, True) for split in IMAGE_SETS[name].images
    ]
    assert contents(tmp_path / "src") == before
    inodes = {path.stat().st_ino for path in before}
    linked = [path.stat().st_ino in inodes for path in (tmp_path / "dst").rglob("*") if path.is_file()]
    in_inner_archives = 2 if name == "imagenet" else 0
    assert linked.count(True) == (len(where) - in_inner_archives if form == "links" else 0)


def test_archive_of_any_name_and_one_beside_what_it_unpacks_to(tmp_path):
    where = write_published(tmp_path / "src", "cub200")
    archive = tmp_path / "src" / "CUB_200_2011.tgz"
    shutil.copyfile(archive, tmp_path / "birds.tgz")
    prepare_images("cub200", tmp_path / "birds.tgz", tmp_path / "one", image_set=small("cub200"))
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path / "src", filter="data")
    archive.write_bytes(b"half of an archive")  # is left alone
    prepare_images("cub200", tmp_path / "src", tmp_path / "two", image_set=small("cub200"))
    assert placed(tmp_path / "one") == placed(tmp_path / "two") == where


@pytest.mark.parametrize("keys", [str, bytes])
def test_cifar_archive_in_any_order(tmp_path, keys):
    images = np.random.default_rng(0).integers(0, 256, size=(2, 3072), dtype=np.uint8)

    def dump(**content: object) -> bytes:
        return pickle.dumps({keys(k) if keys is str else k.encode(): v for k, v in content.items()}, protocol=2)

    files = {
        "cifar-100-python/train": dump(data=images, fine_labels=[1, 0]),
        "cifar-100-python/test": dump(data=images[::-1].copy(), fine_labels=[0, 1]),
        "cifar-100-python/meta": dump(fine_label_names=["apple", "bear"]),
        "cifar-100-python/file.txt~": b"",
    }
    write_archive(tmp_path / "cifar-100-python.tar.gz", files)
    for source, dst in ((tmp_path / "cifar-100-python.tar.gz", "a"), (tmp_path / "a", "b")):
        (part,) = prepare_images("cifar100", source, tmp_path / dst, image_set=small("cifar100"))
        assert part.images == {"train": 2, "test": 2}
        assert contents(tmp_path / dst) == {tmp_path / dst / n: c for n, c in files.items() if "~" not in n}
        loaded = load_cifar100(tmp_path / dst, "train")
        assert loaded.targets.tolist() == [1, 0]
        assert np.array_equal(loaded.images.flatten(1).numpy(), images)


def test_cifar_as_image_folders(tmp_path):
    images = [("test", "apple"), ("test", "bear"), ("train", "apple"), ("train", "bear")]
    where = {f"{split}/{name}/{grey}.png": grey for grey, (split, name) in enumerate(images)}
    write_files(tmp_path / "src", {f"CIFAR100/{path}": png(grey) for path, grey in where.items()})
    prepare_images("cifar100", tmp_path / "src", tmp_path / "dst", image_set=small("cifar100"))
    assert placed(tmp_path / "dst") == where


def test_wrong_counts_leave_nothing(tmp_path):
    write_published(tmp_path / "src", "cub200")
    expected = "train is not the whole set: expected 3 images of 2 classes, found 2 of 2.*Get CUB_200_2011.tgz again"
    with pytest.raises(ValueError, match=expected):
        prepare_images("cub200", tmp_path / "src", tmp_path / "dst", image_set=small("cub200", images=3))
    assert list((tmp_path / "dst").iterdir()) == []
    with pytest.raises(ValueError, match="expected 2 images of 3 classes, found 2 of 2"):
        prepare_images("cub200", tmp_path / "src", tmp_path / "dst", image_set=small("cub200", classes=3))
    uneven = replace(small("cub200"), per_class={"train": 2})
    with pytest.raises(ValueError, match=r"\(2 of each class expected; 001.Auk 1, 002.Jay 1\)"):
        prepare_images("cub200", tmp_path / "src", tmp_path / "dst", image_set=uneven)


def test_rerun_keeps_what_is_whole_and_refuses_what_is_not(tmp_path):
    where = write_published(tmp_path / "src", "cub200")
    settings = dict(src=tmp_path / "src", dst=tmp_path / "dst", image_set=small("cub200"))
    prepare_images("cub200", **settings)
    kept = (tmp_path / "dst" / "train").stat().st_ino
    for path in (tmp_path / "dst" / "test").rglob("*.jpg"):
        path.unlink()
    with pytest.raises(ValueError, match="test exists already, but test is not the whole set: .*move that folder away"):
        prepare_images("cub200", **settings)
    (tmp_path / "dst" / "test").rename(tmp_path / "away")
    parts = prepare_images("cub200", **settings)
    assert [part.made for part in parts] == [False, True]
    assert (tmp_path / "dst" / "train").stat().st_ino == kept
    assert placed(tmp_path / "dst") == where


def test_interruption_leaves_nothing_half_made(tmp_path, monkeypatch):
    where = write_published(tmp_path / "src", "cub200")
    settings = dict(src=tmp_path / "src", dst=tmp_path / "dst", image_set=small("cub200"))
    copy_to, done = Member.copy_to, []

    def interrupt(member: Member, *args: object) -> int:
        done.append(member.name)
        if len(done) == 3:
            raise KeyboardInterrupt
        return copy_to(member, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Member, "copy_to", interrupt)
        prepare_images("cub200", **settings)
    assert list((tmp_path / "dst").iterdir()) == []
    (tmp_path / "dst" / ".train.partial" / "009.Emu").mkdir(parents=True)  # what a killed run leaves
    prepare_images("cub200", **settings)
    assert placed(tmp_path / "dst") == where
    assert sorted(path.name for path in (tmp_path / "dst").iterdir()) == ["test", "train"]


@pytest.mark.parametrize("archive", ["CUB_200_2011.tgz", "birds.zip"])
@pytest.mark.parametrize(
    "name", ["../evil.txt", "/tmp/evil.txt", "CUB_200_2011/../../evil.txt", "..\\evil.txt", "C:evil"]
)
def test_archives_that_point_outside_are_refused(tmp_path, archive, name):
    files = cub200()[0]["CUB_200_2011.tgz"]
    write_archive(tmp_path / archive, {**files, name: b"evil"})
    with pytest.raises(ValueError, match="holds .*evil.*, which points outside of it"):
        prepare_images("cub200", tmp_path / archive, tmp_path / "dst", image_set=small("cub200"))
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("class_name", ["..", "../..", "a/b", "."])
def test_lists_that_point_outside_are_refused(tmp_path, class_name):
    files = dict(cub200()[0]["CUB_200_2011.tgz"])
    files["CUB_200_2011/classes.txt"] = f"1 001.Auk\n2 {class_name}\n".encode()
    write_archive(tmp_path / "CUB_200_2011.tgz", files)
    with pytest.raises(ValueError, match="the lists of the set name .*, which is not split/class/image"):
        prepare_images("cub200", tmp_path / "CUB_200_2011.tgz", tmp_path / "dst", image_set=small("cub200"))


def test_links_in_an_archive_are_not_followed(tmp_path):
    """A link in place of an image is as good as no image."""
    (tmp_path / "secret.jpg").write_bytes(png(9))
    files = dict(cub200()[0]["CUB_200_2011.tgz"])
    del files["CUB_200_2011/images/001.Auk/Auk_2.jpg"]
    with tarfile.open(tmp_path / "CUB_200_2011.tar", "w") as archive:
        add_to_tar(archive, files)
        link = tarfile.TarInfo("CUB_200_2011/images/001.Auk/Auk_2.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.jpg")
        archive.addfile(link)
    with pytest.raises(ValueError, match="expected 2 images of 2 classes, found 1 of 1"):
        prepare_images("cub200", tmp_path / "CUB_200_2011.tar", tmp_path / "dst", image_set=small("cub200"))


def mit67_with(folder: Path, name: str, *contents: bytes) -> Path:
    """An archive of MIT67 with these contents for its images."""
    names = [f"a/{i}.jpg" for i in range(len(contents))]
    lists = {"TrainImages.txt": "\n".join(names[:-1]).encode(), "TestImages.txt": names[-1].encode()}
    write_archive(folder / name, {**lists, **{f"Images/{n}": c for n, c in zip(names, contents, strict=True)}})
    return folder / name


@pytest.mark.parametrize("name", ["x.zip", "x.tgz"])
@pytest.mark.parametrize("limits", [{"IMAGE_LIMIT": 1000}, {"MEAN_LIMIT": 0, "ARRAYS_LIMIT": 1900}], ids=str)
def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch, name, limits):
    for limit, value in limits.items():
        monkeypatch.setattr(prepare, limit, value)
    archive = mit67_with(tmp_path, name, b"x" * 900, b"x" * 1001)
    with pytest.raises(ValueError, match=r"x\.\w+: Images/a/1.jpg unpacks to .* nothing was kept: get the archive"):
        prepare_images("mit67", archive, tmp_path / "dst", image_set=small("mit67"))
    assert not [path for path in (tmp_path / "dst").rglob("*") if path.is_file()]


def test_a_size_that_an_archive_only_claims_does_not_count(tmp_path):
    for stated, limit in ((10, 100), (200, 100)):
        opened = []
        member = Member("a", tmp_path, lambda: opened.append(1) or io.BytesIO(b"x" * 5_000_000), stated)  # noqa: B023
        with pytest.raises(ValueError, match="a unpacks to .* MiB or more"):
            member.copy_to(tmp_path / f"{stated}", limit)
        assert bool(opened) is (stated < limit) and (tmp_path / f"{stated}").stat().st_size == 0


def test_a_list_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "LIST_LIMIT", 10)
    with pytest.raises(ValueError, match="(Test|Train)Images.txt unpacks to"):
        prepare_images("mit67", mit67_with(tmp_path, "x.zip", *[b"x"] * 5), tmp_path / "dst", image_set=small("mit67"))


def test_pipes_devices_and_links_are_passed_over(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to("pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "real.jpg").write_bytes(b"x")
    assert [member.name for member in Source(tmp_path, {}).members()] == ["real.jpg"]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, kind in (("link", stat.S_IFLNK), ("pipe", stat.S_IFIFO), ("file", stat.S_IFREG), ("plain", 0)):
            info = zipfile.ZipInfo(name)
            info.external_attr = (kind | 0o644) << 16 if kind else 0
            archive.writestr(info, "/etc/passwd")
    assert [member.name for member in archive_members(tmp_path / "a.zip")] == ["file", "plain"]


@pytest.mark.parametrize("name", ["tinyimagenet", "cub200", "mit67"])  # zip, gzip, tar
def test_damaged_archives_are_named(tmp_path, name):
    """Cut within the first file; a plain tar that ends between two files looks whole, and its counts are wrong."""
    write_published(tmp_path / "src", name)
    archive = next(file for file in IMAGE_SETS[name].sources if file.endswith((".tgz", ".tar", ".zip")))
    path = tmp_path / "src" / archive
    path.write_bytes(path.read_bytes()[: min(550, path.stat().st_size // 3)])
    with pytest.raises(ValueError, match=f"{archive} is damaged, not complete or no archive .*download it again"):
        prepare_images(name, tmp_path / "src", tmp_path / "dst", image_set=small(name))
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("mit67", "TestImages.txt", "TestImages.txt not found in .*indoorCVPR_09.tar, TrainImages.txt, TestImages.txt"),
        ("stanford40", "Stanford40_ImageSplits.zip", r"\*_train.txt, \*_test.txt not found in"),
        ("imagenet", "ILSVRC2012_devkit_t12.tar.gz", "meta.mat, ILSVRC2012_validation_ground_truth.txt not found in"),
    ],
)
def test_missing_lists_are_named(tmp_path, name, file, message):
    write_published(tmp_path / "src", name)
    (tmp_path / "src" / file).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        prepare_images(name, tmp_path / "src", tmp_path / "dst", image_set=small(name))


@pytest.mark.parametrize(
    ("list_name", "content", "message"),
    [
        ("classes.txt", b"1 001.Auk\n", "the lists in .* do not fit together .*download them again"),
        ("train_test_split.txt", b"1 0\n2 1\n", "must be about the same images, got images.txt 4, .*_split.txt 2"),
        ("images.txt", b"1\n", "images.txt must hold a key and a value in each line"),
    ],
)
def test_lists_that_do_not_fit_together(tmp_path, list_name, content, message):
    files = {**cub200()[0]["CUB_200_2011.tgz"], f"CUB_200_2011/{list_name}": content}
    write_archive(tmp_path / "CUB_200_2011.tgz", files)
    with pytest.raises(ValueError, match=message):
        prepare_images("cub200", tmp_path / "CUB_200_2011.tgz", tmp_path / "dst")


def test_matlab_lists(tmp_path, monkeypatch):
    write_published(tmp_path / "src", "dogs")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ModuleNotFoundError, match="train_list.mat is a MATLAB file, which scipy reads: `pip install"):
        prepare_images("dogs", tmp_path / "src", tmp_path / "dst")
    monkeypatch.undo()
    write_archive(tmp_path / "src" / "lists.tar", {"train_list.mat": b"no", "test_list.mat": b"no"})
    with pytest.raises(ValueError, match="train_list.mat cannot be read as a MATLAB file with file_list"):
        prepare_images("dogs", tmp_path / "src", tmp_path / "dst")


def test_ground_truth_that_is_none(tmp_path):
    write_published(tmp_path / "src", "imagenet")
    top = "ILSVRC2012_devkit_t12/data"
    truth = f"{top}/ILSVRC2012_validation_ground_truth.txt"
    devkit = imagenet()[0]["ILSVRC2012_devkit_t12.tar.gz"]
    write_archive(tmp_path / "src" / "ILSVRC2012_devkit_t12.tar.gz", {**devkit, truth: b"7\n"})
    with pytest.raises(ValueError, match="ground_truth.txt must hold a class number of meta.mat in each line, got 7"):
        prepare_images("imagenet", tmp_path / "src", tmp_path / "dst")


def test_places_that_cannot_be_used(tmp_path, monkeypatch):
    write_published(tmp_path / "src", "cub200")
    with pytest.raises(ValueError, match="DST .* lies in SRC .*name a folder outside of it"):
        prepare_images("cub200", tmp_path / "src", tmp_path / "src" / "out")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file; name a folder"):
        prepare_images("cub200", tmp_path / "src", tmp_path / "file")
    with pytest.raises(FileNotFoundError, match="SRC: .*none is missing; expected CUB_200_2011.tgz"):
        prepare_images("cub200", tmp_path / "none", tmp_path / "dst")
    with pytest.raises(ValueError, match="expected a data set out of cifar100, .*, got 'svhn'"):
        prepare_images("svhn", tmp_path / "src", tmp_path / "dst")

    def no_link(*paths: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    write_files(tmp_path / "unpacked", cub200()[0]["CUB_200_2011.tgz"])
    monkeypatch.setattr(os, "link", no_link)
    with pytest.raises(ValueError, match=r"--link: .* \(Invalid cross-device link\); SRC and DST must lie on one"):
        prepare_images("cub200", tmp_path / "unpacked", tmp_path / "dst", link=True, image_set=small("cub200"))


def test_second_file_for_one_place_is_refused(tmp_path):
    files = cub200()[0]["CUB_200_2011.tgz"]
    write_files(tmp_path / "src" / "a", files)
    write_files(tmp_path / "src" / "b", files)
    with pytest.raises(ValueError, match="more than one file for test/001.Auk/Auk_1.jpg, b/.* is the second"):
        prepare_images("cub200", tmp_path / "src", tmp_path / "dst", image_set=small("cub200"))


def test_tool_ends_with_one_line_and_status_2(tmp_path):
    (tmp_path / "notes.txt").write_text("no archive")
    done = command("prepare_data", "cub200", tmp_path / "notes.txt", tmp_path / "dst")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "notes.txt is damaged, not complete or no archive (ReadError: " in done.stderr


def test_tool_prints_a_summary(tmp_path, monkeypatch):
    monkeypatch.setitem(prepare.IMAGE_SETS, "cub200", small("cub200"))
    write_published(tmp_path / "src", "cub200")
    for state in ("", " (was there already)"):
        assert command("prepare_data", "cub200", tmp_path / "src", tmp_path / "dst").stdout == (
            f"{tmp_path}/dst/train: train 2 images, 2 classes{state}\n"
            f"{tmp_path}/dst/test: test 2 images, 2 classes{state}\n"
            f"cub200 is complete: data_root is {tmp_path}/dst (tools/train.py --data-root {tmp_path}/dst)\n"
        )
