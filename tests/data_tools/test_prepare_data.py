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
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from frskd_plugin.commands import prepare_data as prepare
from frskd_plugin.commands import published_archives as archives
from frskd_plugin.commands.prepare_data import prepare_images
from frskd_plugin.commands.published_archives import Source, archive_members
from frskd_plugin.data.cifar100 import load_cifar100
from frskd_plugin.data.image_folder import IMAGE_SETS
from tests.helpers.real_runs import command

Files = dict[str, bytes]  # name in the archive -> content
Placed = dict[str, int]  # split/class/image -> the grey value by which the image is known


def set_size(monkeypatch: pytest.MonkeyPatch, name: str, images: int = 2, classes: int = 2, each: int = 1) -> None:
    """Let a set have as many images in each split."""
    splits = IMAGE_SETS[name].images
    sizes = dict(images=dict.fromkeys(splits, images), per_class=dict.fromkeys(splits, each))
    monkeypatch.setitem(IMAGE_SETS, name, replace(IMAGE_SETS[name], num_classes=classes, **sizes))


@pytest.fixture(autouse=True)
def small_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets of one image of two classes in each split."""
    for name in list(IMAGE_SETS):
        set_size(monkeypatch, name)


def png(grey: int) -> bytes:
    """An image that is known by its grey value (the formats do not look at the suffix)."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (grey, grey, grey)).save(buffer, "PNG")
    return buffer.getvalue()


def pngs(folder: str, names: Sequence[str]) -> Files:
    return {f"{folder}/{name}": png(number) for number, name in enumerate(names, start=1)}


def mat(**content: object) -> bytes:
    scipy_io = pytest.importorskip("scipy.io", reason="scipy reads and writes the MATLAB files of this set")
    buffer = io.BytesIO()
    scipy_io.savemat(buffer, content)
    return buffer.getvalue()


def tar(files: Files, mode: str = "w", links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return buffer.getvalue()


def write_archive(path: Path, files: Files) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        path.write_bytes(tar(files, "w:gz" if path.suffix in (".gz", ".tgz") else "w"))
    return path


def write_files(folder: Path, files: Files) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def placed(dst: Path) -> Placed:
    """What a prepared folder holds."""
    return {name: np.asarray(Image.open(io.BytesIO(file)))[0, 0, 0].item() for name, file in contents(dst).items()}


# Each returns the published archives (a plain file has bytes) and where the images belong.


def tinyimagenet() -> tuple[dict[str, Files | bytes], Placed]:
    top, train = "tiny-imagenet-200", "tiny-imagenet-200/train/n00000001"
    files = {f"{train}/images/n00000001_0.JPEG": png(1), f"{train}/n00000001_boxes.txt": b"n00000001_0.JPEG\t0\t0\n"}
    files |= {f"{top}/train/n00000002/images/n00000002_7.JPEG": png(2), f"{top}/test/images/test_0.JPEG": png(5)}
    files |= {f"{top}/val/images/val_0.JPEG": png(3), f"{top}/val/images/val_1.JPEG": png(4)}
    files[f"{top}/val/val_annotations.txt"] = b"val_0.JPEG\tn00000002\t0\t0\nval_1.JPEG\tn00000001\t0\t0\n"
    where = {"train/n00000001/n00000001_0.JPEG": 1, "train/n00000002/n00000002_7.JPEG": 2}
    where |= {"val/n00000001/val_1.JPEG": 4, "val/n00000002/val_0.JPEG": 3}
    return {"tiny-imagenet-200.zip": files}, where


def cub200(**lists: bytes) -> tuple[dict[str, Files | bytes], Placed]:
    names = ["001.Auk/Auk_1.jpg", "001.Auk/Auk_2.jpg", "002.Jay/Jay_1.jpg", "002.Jay/Jay_2.jpg"]
    lists = {
        "images": "".join(f"{i} {name}\n" for i, name in enumerate(names, start=1)).encode(),
        "image_class_labels": b"1 1\n2 1\n3 2\n4 2\n",
        "train_test_split": b"1 0\n2 1\n3 1\n4 0\n",
        "classes": b"1 001.Auk\n2 002.Jay\n",
        **lists,
    }
    files = {"attributes.txt": b"1 has_bill_shape::curved\n", **pngs("CUB_200_2011/images", names)}
    files |= {f"CUB_200_2011/{name}.txt": content for name, content in lists.items()}
    where = {"test/001.Auk/Auk_1.jpg": 1, "test/002.Jay/Jay_2.jpg": 4}
    where |= {"train/001.Auk/Auk_2.jpg": 2, "train/002.Jay/Jay_1.jpg": 3}
    return {"CUB_200_2011.tgz": files}, where


def mit67() -> tuple[dict[str, Files | bytes], Placed]:
    files = pngs("Images", ["bar/b 1.jpg", "bar/b2.jpg", "bar/unused.jpg", "pub/p1.jpg", "pub/p2.jpg"])
    lists = {"TrainImages.txt": b"bar/b 1.jpg\r\npub/p2.jpg\r\n", "TestImages.txt": b"bar/b2.jpg\npub/p1.jpg"}
    where = {"test/bar/b2.jpg": 2, "test/pub/p1.jpg": 4, "train/bar/b 1.jpg": 1, "train/pub/p2.jpg": 5}
    return {"indoorCVPR_09.tar": files, **lists}, where


def stanford40() -> tuple[dict[str, Files | bytes], Placed]:
    files = pngs("JPEGImages", ["blow_up_001.jpg", "blow_up_002.jpg", "cook_001.jpg", "cook_002.jpg"])
    files["__MACOSX/JPEGImages/._cook_001.jpg"] = b"not an image"
    lists = {
        "actions.txt": b"action_name\tnumber\n",
        "train.txt": b"blow_up_001.jpg\ncook_002.jpg\n",
        "blow_up_train.txt": b"blow_up_001.jpg\n",
        "blow_up_test.txt": b"blow_up_002.jpg\n",
        "cook_train.txt": b"cook_002.jpg\n",
        "cook_test.txt": b"cook_001.jpg\n",
    }
    where = {"test/blow_up/blow_up_002.jpg": 2, "test/cook/cook_001.jpg": 3}
    where |= {"train/blow_up/blow_up_001.jpg": 1, "train/cook/cook_002.jpg": 4}
    splits = {f"ImageSplits/{name}": content for name, content in lists.items()}
    return {"Stanford40_JPEGImages.zip": files, "Stanford40_ImageSplits.zip": splits}, where


def dogs() -> tuple[dict[str, Files | bytes], Placed]:
    names = ["n01-Pug/n01_1.jpg", "n01-Pug/n01_2.jpg", "n02-Corgi/n02_1.jpg", "n02-Corgi/n02_2.jpg"]

    def cells(*numbers: int) -> np.ndarray:
        return np.array([[names[number]] for number in numbers], dtype=object)

    lists = {"train_list.mat": mat(file_list=cells(0, 3)), "test_list.mat": mat(file_list=cells(1, 2))}
    where = {"test/n01-Pug/n01_2.jpg": 2, "test/n02-Corgi/n02_1.jpg": 3}
    where |= {"train/n01-Pug/n01_1.jpg": 1, "train/n02-Corgi/n02_2.jpg": 4}
    return {"images.tar": pngs("Images", names), "lists.tar": lists}, where


def imagenet(truth: bytes = b"2\n1\n") -> tuple[dict[str, Files | bytes], Placed]:
    kinds = [("ILSVRC2012_ID", "i4"), ("WNID", "O"), ("num_children", "i4")]
    synsets = np.array([(2, "n00000001", 0), (1, "n00000002", 0), (3, "n00000003", 2)], dtype=kinds)
    top = "ILSVRC2012_devkit_t12/data"
    devkit = {f"{top}/meta.mat": mat(synsets=synsets), f"{top}/ILSVRC2012_validation_ground_truth.txt": truth}
    train = {"n00000001.tar": tar({"n00000001_5.JPEG": png(1)}), "n00000002.tar": tar({"n00000002_9.JPEG": png(2)})}
    val = {"ILSVRC2012_val_00000002.JPEG": png(4), "ILSVRC2012_val_00000001.JPEG": png(3)}
    where = {"train/n00000001/n00000001_5.JPEG": 1, "train/n00000002/n00000002_9.JPEG": 2}
    where |= {"val/n00000001/ILSVRC2012_val_00000001.JPEG": 3, "val/n00000002/ILSVRC2012_val_00000002.JPEG": 4}
    names = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz")
    return dict(zip(names, (train, val, devkit), strict=True)), where


FORMATS: dict[str, Callable] = {f.__name__: f for f in (tinyimagenet, cub200, mit67, stanford40, dogs, imagenet)}


def write_published(src: Path, name: str, **changes: bytes) -> Placed:
    published, where = FORMATS[name](**changes)
    src.mkdir()
    for file, content in published.items():
        if isinstance(content, bytes):
            (src / file).write_bytes(content)
        else:
            write_archive(src / file, content)
    return where


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("form", ["archives", "unpacked", "links"])
def test_each_image_gets_into_its_split_and_class(tmp_path, name, form):
    src, dst = tmp_path / "src", tmp_path / "dst"
    published, where = FORMATS[name]()
    if form == "archives":
        write_published(src, name)
    else:
        for file, content in published.items():  # ImageNet's archives hold no folder of their own
            inner = {"ILSVRC2012_img_train.tar": "train", "ILSVRC2012_img_val.tar": "val"}.get(file, "")
            write_files(src / inner, {file: content} if isinstance(content, bytes) else content)
    before = contents(src)
    parts = prepare_images(name, src, dst, link=form == "links")
    assert placed(dst) == where and contents(src) == before
    assert parts == [(dst / split, {split: 2}, True) for split in IMAGE_SETS[name].images]
    inodes = {path.stat().st_ino for path in src.rglob("*")}
    linked = sum(path.stat().st_ino in inodes for path in dst.rglob("*") if path.is_file())
    in_inner_archives = 2 if name == "imagenet" else 0
    assert linked == (len(where) - in_inner_archives if form == "links" else 0)


def test_archive_of_any_name_and_one_beside_what_it_unpacks_to(tmp_path):
    where = write_published(tmp_path / "src", "cub200")
    archive = tmp_path / "src" / "CUB_200_2011.tgz"
    shutil.copyfile(archive, tmp_path / "birds.tgz")
    prepare_images("cub200", tmp_path / "birds.tgz", tmp_path / "one")
    write_files(tmp_path / "src", cub200()[0]["CUB_200_2011.tgz"])
    archive.write_bytes(b"half of an archive")  # is left alone
    prepare_images("cub200", tmp_path / "src", tmp_path / "two")
    assert placed(tmp_path / "one") == placed(tmp_path / "two") == where


@pytest.mark.parametrize("keys", [str, str.encode])
def test_cifar_archive_in_any_order(tmp_path, keys):
    images = np.random.default_rng(0).integers(0, 256, size=(2, 3072), dtype=np.uint8)

    def dump(**content: object) -> bytes:
        return pickle.dumps({keys(key): value for key, value in content.items()}, protocol=2)

    files = {
        "cifar-100-python/train": dump(data=images, fine_labels=[1, 0]),
        "cifar-100-python/test": dump(data=images[::-1].copy(), fine_labels=[0, 1]),
        "cifar-100-python/meta": dump(fine_label_names=["apple", "bear"]),
    }
    archive = write_archive(tmp_path / "cifar-100-python.tar.gz", {**files, "cifar-100-python/file.txt~": b""})
    for source, dst in ((archive, tmp_path / "a"), (tmp_path / "a", tmp_path / "b")):
        (part,) = prepare_images("cifar100", source, dst)
        assert part.images == {"train": 2, "test": 2} and contents(dst) == files
        loaded = load_cifar100(dst, "train")
        assert loaded.targets.tolist() == [1, 0]
        assert np.array_equal(loaded.images.flatten(1).numpy(), images)


def test_cifar_as_image_folders(tmp_path):
    images = [("test", "apple"), ("test", "bear"), ("train", "apple"), ("train", "bear")]
    where = {f"{split}/{name}/{grey}.png": grey for grey, (split, name) in enumerate(images)}
    write_files(tmp_path / "src", {f"CIFAR100/{path}": png(grey) for path, grey in where.items()})
    prepare_images("cifar100", tmp_path / "src", tmp_path / "dst")
    assert placed(tmp_path / "dst") == where


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"images": 3}, "train is not the whole set: expected 3 images of 2 classes, found 2 of 2.*Get CUB_200_2011"),
        ({"classes": 3}, "expected 2 images of 3 classes, found 2 of 2"),
        ({"each": 2}, r"\(2 of each class expected; 001.Auk 1, 002.Jay 1\)"),
    ],
)
def test_wrong_counts_leave_nothing(tmp_path, monkeypatch, size, message):
    write_published(tmp_path / "src", "cub200")
    set_size(monkeypatch, "cub200", **size)
    with pytest.raises(ValueError, match=message):
        prepare_images("cub200", tmp_path / "src", tmp_path / "dst")
    assert list((tmp_path / "dst").iterdir()) == []


def test_rerun_keeps_what_is_whole_and_refuses_what_is_not(tmp_path):
    src, dst = tmp_path / "src", tmp_path / "dst"
    where = write_published(src, "cub200")
    prepare_images("cub200", src, dst)
    kept = (dst / "train").stat().st_ino
    for path in (dst / "test").rglob("*.jpg"):
        path.unlink()
    with pytest.raises(ValueError, match="test exists already, but test is not the whole set: .*move that folder away"):
        prepare_images("cub200", src, dst)
    (dst / "test").rename(tmp_path / "away")
    assert [part.made for part in prepare_images("cub200", src, dst)] == [False, True]
    assert (dst / "train").stat().st_ino == kept and placed(dst) == where


def test_interruption_leaves_nothing_half_made(tmp_path, monkeypatch):
    src, dst, done = tmp_path / "src", tmp_path / "dst", []
    where = write_published(src, "cub200")

    def interrupt(*files: object) -> None:
        done.append(files)
        if len(done) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "copyfileobj", interrupt)
        prepare_images("cub200", src, dst)
    assert list(dst.iterdir()) == []
    (dst / ".train.partial" / "009.Emu").mkdir(parents=True)  # what a killed run leaves
    prepare_images("cub200", src, dst)
    assert placed(dst) == where
    assert sorted(path.name for path in dst.iterdir()) == ["test", "train"]


@pytest.mark.parametrize("archive", ["CUB_200_2011.tgz", "birds.zip"])
@pytest.mark.parametrize("name", ["../evil.txt", "/tmp/evil.txt", "CUB/../../evil.txt", "..\\evil.txt", "C:evil"])
def test_archives_that_point_outside_are_refused(tmp_path, archive, name):
    write_archive(tmp_path / archive, {**cub200()[0]["CUB_200_2011.tgz"], name: b"evil"})
    with pytest.raises(ValueError, match="holds .*evil.*, which points outside of it"):
        prepare_images("cub200", tmp_path / archive, tmp_path / "dst")
    assert not list(tmp_path.rglob("*evil*"))


def test_links_in_an_archive_are_not_followed(tmp_path):
    """A link in place of an image is as good as no image."""
    (tmp_path / "secret.jpg").write_bytes(png(9))
    files = dict(cub200()[0]["CUB_200_2011.tgz"])
    del files["CUB_200_2011/images/001.Auk/Auk_2.jpg"]
    links = {"CUB_200_2011/images/001.Auk/Auk_2.jpg": str(tmp_path / "secret.jpg")}
    (tmp_path / "CUB_200_2011.tar").write_bytes(tar(files, links=links))
    with pytest.raises(ValueError, match="expected 2 images of 2 classes, found 1 of 1"):
        prepare_images("cub200", tmp_path / "CUB_200_2011.tar", tmp_path / "dst")


def mit67_with(path: Path, *images: bytes) -> Path:
    """An archive of MIT67 with these contents for its images."""
    names = [f"a/{i}.jpg" for i in range(len(images))]
    lists = {"TrainImages.txt": "\n".join(names[:-1]).encode(), "TestImages.txt": names[-1].encode()}
    return write_archive(path, {**lists, **{f"Images/{n}": c for n, c in zip(names, images, strict=True)}})


@pytest.mark.parametrize("name", ["x.zip", "x.tgz"])
@pytest.mark.parametrize("limits", [{"IMAGE_LIMIT": 1000}, {"MEAN_LIMIT": 0, "ARRAYS_LIMIT": 1900}], ids=str)
def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch, name, limits):
    for limit, value in limits.items():
        monkeypatch.setattr(prepare, limit, value)
    archive = mit67_with(tmp_path / name, b"x" * 900, b"x" * 1001)
    with pytest.raises(ValueError, match=r"x\.\w+: Images/a/1.jpg unpacks to .* nothing was kept: get the archive"):
        prepare_images("mit67", archive, tmp_path / "dst")
    assert not contents(tmp_path / "dst")


def test_no_more_is_read_than_an_archive_states(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(5_000_000))
        archive.getinfo("a").file_size = 10  # is written to the directory, which stands at the end
    copy = io.BytesIO()
    for member in archive_members(tmp_path / "x.zip"):
        with pytest.raises(ValueError, match="x.zip is damaged"), member.opened() as file:
            shutil.copyfileobj(file, copy)
    assert len(copy.getvalue()) <= 10


def test_a_list_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "LIST_LIMIT", 10)
    with pytest.raises(ValueError, match="(Test|Train)Images.txt unpacks to"):
        prepare_images("mit67", mit67_with(tmp_path / "x.zip", *[b"x"] * 5), tmp_path / "dst")


def test_pipes_devices_and_links_are_passed_over(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to("pipe.jpg")
    (tmp_path / "zero.tgz").symlink_to("/dev/zero")
    (tmp_path / "real.jpg").write_bytes(b"x")
    assert [member.name for member in Source(tmp_path, {"zero.tgz": "zero"}).members()] == ["real.jpg"]
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
        prepare_images(name, tmp_path / "src", tmp_path / "dst")
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("mit67", "TestImages.txt", "TestImages.txt not found in .*indoorCVPR_09.tar, TrainImages.txt, TestImages.txt"),
        ("stanford40", "Stanford40_ImageSplits.zip", r"\*_train.txt, \*_test.txt not found in"),
    ],
)
def test_missing_lists_are_named(tmp_path, name, file, message):
    write_published(tmp_path / "src", name)
    (tmp_path / "src" / file).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        prepare_images(name, tmp_path / "src", tmp_path / "dst")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("cub200", {"classes": b"1 001.Auk\n"}, "the lists in .* do not fit together .*download them again"),
        ("cub200", {"train_test_split": b"1 0\n2 1\n"}, "about the same images, got images.txt 4, .*_split.txt 2"),
        ("cub200", {"images": b"1\n"}, "images.txt must hold a key and a value in each line"),
        *(
            (
                "cub200",
                {"classes": f"1 001.Auk\n2 {name}\n".encode()},
                "the lists of the set name .*, which is not split",
            )
            for name in ("..", "../..", "a/b", ".")
        ),
        ("imagenet", {"truth": b"7\n"}, "ground_truth.txt must hold a class number of meta.mat in each line, got 7"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, name, changes, message):
    write_published(tmp_path / "src", name, **changes)
    with pytest.raises(ValueError, match=message):
        prepare_images(name, tmp_path / "src", tmp_path / "dst")


def test_matlab_lists(tmp_path, monkeypatch):
    write_published(tmp_path / "src", "dogs")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "scipy.io", None)
        with pytest.raises(ModuleNotFoundError, match="train_list.mat is a MATLAB file, which scipy reads: `pip"):
            prepare_images("dogs", tmp_path / "src", tmp_path / "dst")
    write_archive(tmp_path / "src" / "lists.tar", {"train_list.mat": b"no", "test_list.mat": b"no"})
    with pytest.raises(ValueError, match="train_list.mat cannot be read as a MATLAB file with file_list"):
        prepare_images("dogs", tmp_path / "src", tmp_path / "dst")


def test_places_that_cannot_be_used(tmp_path, monkeypatch):
    src, dst = tmp_path / "src", tmp_path / "dst"
    write_files(src / "a", cub200()[0]["CUB_200_2011.tgz"])
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="DST .* lies in SRC .*name a folder outside of it"):
        prepare_images("cub200", src, src / "out")
    with pytest.raises(ValueError, match="file is a file; name a folder"):
        prepare_images("cub200", src, tmp_path / "file")
    with pytest.raises(FileNotFoundError, match="SRC: .*none is missing; expected CUB_200_2011.tgz"):
        prepare_images("cub200", tmp_path / "none", dst)
    with pytest.raises(ValueError, match="expected a data set out of cifar100, .*, got 'svhn'"):
        prepare_images("svhn", src, dst)

    def no_link(*paths: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_link)
    with pytest.raises(ValueError, match=r"--link: .* \(Invalid cross-device link\); SRC and DST must lie on one"):
        prepare_images("cub200", src, dst, link=True)
    shutil.copytree(src / "a", src / "b")
    with pytest.raises(ValueError, match="more than one file for test/001.Auk/Auk_1.jpg, b/.* is the second"):
        prepare_images("cub200", src, dst)


def test_command(tmp_path):
    (tmp_path / "notes.txt").write_text("no archive")
    done = command("prepare_data", "cub200", tmp_path / "notes.txt", tmp_path / "dst")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "notes.txt is damaged, not complete or no archive (ReadError: " in done.stderr

    write_published(tmp_path / "src", "cub200")
    for state in ("", " (was there already)"):
        shown = command("prepare_data", "cub200", tmp_path / "src", tmp_path / "dst").stdout
        assert f"{tmp_path}/dst/train: train 2 images, 2 classes{state}\n" in shown and "cub200 is complete" in shown
