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
from dataclasses import replace
from pathlib import Path
from typing import Any

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

Files = dict[str, Any]  # name -> bytes, or for an archive the files in it
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


def mat(**content: object) -> bytes:
    scipy_io = pytest.importorskip("scipy.io", reason="scipy reads and writes the MATLAB files of this set")
    buffer = io.BytesIO()
    scipy_io.savemat(buffer, content)
    return buffer.getvalue()


# Where the images lie in the archives, and what is there beside them: {c} is the class, {i} the number of the image.
TRAIN = {
    "tinyimagenet": "tiny-imagenet-200/train/{c}/images/{c}_{i}.JPEG",
    "cub200": "CUB_200_2011/images/{c}/{c}_{i}.jpg",
    "mit67": "Images/{c}/{c} {i}.jpg",
    "stanford40": "JPEGImages/{c}_{i}.jpg",
    "dogs": "Images/{c}/{c}_{i}.jpg",
    "imagenet": "{c}_{i}.JPEG",
}
VAL = {"tinyimagenet": "tiny-imagenet-200/val/images/val_{i}.JPEG", "imagenet": "ILSVRC2012_val_{i:08d}.JPEG"}
UNUSED = {
    "tinyimagenet": "tiny-imagenet-200/test/images/test_0.JPEG",
    "mit67": "Images/n00000001/unused.jpg",
    "stanford40": "__MACOSX/JPEGImages/._cook_3.jpg",
}
TRUTH = "ILSVRC2012_validation_ground_truth.txt"


def published(name: str, changes: dict[str, bytes] | None = None) -> tuple[Files, Placed]:
    """A set as published, with some of its lists changed, and where its images belong: one of each class and split."""
    first, second = classes = ("blow_up", "cook") if name == "stanford40" else ("n00000001", "n00000002")
    train, test = IMAGE_SETS[name].images
    rows = []  # number, split, class, path in the archive, name
    for i, (split, c) in enumerate(((test, second), (test, first), (train, first), (train, second)), start=1):
        path = ((VAL if split == test else {}).get(name) or TRAIN[name]).format(c=c, i=i)
        rows.append((i, split, c, path, Path(path).name))
    images = {path: png(i) for i, _, _, path, _ in rows} | ({UNUSED[name]: png(9)} if name in UNUSED else {})
    of_split = {kind: [f"{c}/{file}" for _, split, c, _, file in rows if split == kind] for kind in (train, test)}

    archives: dict[str, Files] = {}
    if name == "tinyimagenet":
        lines = "".join(f"{file}\t{c}\t0\t0\n" for _, split, c, _, file in rows if split == test)
        archives["tiny-imagenet-200.zip"] = {**images, "tiny-imagenet-200/val/val_annotations.txt": lines.encode()}
    elif name == "cub200":
        lists = {
            "images": "".join(f"{i} {c}/{file}\n" for i, _, c, _, file in rows),
            "image_class_labels": "".join(f"{i} {1 + classes.index(c)}\n" for i, _, c, _, _ in rows),
            "train_test_split": "".join(f"{i} {int(split == train)}\n" for i, split, *_ in rows),
            "classes": f"1 {first}\n2 {second}\n",
        }
        texts = {f"CUB_200_2011/{file}.txt": text.encode() for file, text in lists.items()}
        archives["CUB_200_2011.tgz"] = {"attributes.txt": b"1 has_bill_shape::curved\n", **images, **texts}
    elif name == "mit67":
        texts = {f"{split.title()}Images.txt": "\r\n".join(files).encode() for split, files in of_split.items()}
        archives = {"indoorCVPR_09.tar": images, **texts}
    elif name == "stanford40":
        texts = {f"ImageSplits/{c}_{split}.txt": f"{file}\n".encode() for _, split, c, _, file in rows}
        more = {"ImageSplits/actions.txt": b"action_name\tnumber\n", "ImageSplits/train.txt": b"cook_4.jpg\n"}
        archives = {"Stanford40_JPEGImages.zip": images, "Stanford40_ImageSplits.zip": {**more, **texts}}
    elif name == "dogs":
        cells = {split: np.array([[file] for file in files], dtype=object) for split, files in of_split.items()}
        lists = {f"{split}_list.mat": mat(file_list=files) for split, files in cells.items()}
        archives = {"images.tar": images, "lists.tar": lists}
    elif name == "imagenet":
        kinds = [("ILSVRC2012_ID", "i4"), ("WNID", "O"), ("num_children", "i4")]
        synsets = np.array([(2, first, 0), (1, second, 0), (3, "n00000003", 2)], dtype=kinds)
        meta = {"meta.mat": mat(synsets=synsets), TRUTH: b"1\n2\n"}
        archives = {  # those of images hold no folder of their own
            "ILSVRC2012_img_train.tar": {f"{c}.tar": tar({path: png(i)}) for i, _, c, path, _ in rows[2:]},
            "ILSVRC2012_img_val.tar": {path: png(i) for i, _, _, path, _ in rows[:2]},
            "ILSVRC2012_devkit_t12.tar.gz": {f"ILSVRC2012_devkit_t12/data/{n}": text for n, text in meta.items()},
        }
    for files in archives.values():
        for path in files if isinstance(files, dict) else ():
            files[path] = (changes or {}).get(Path(path).name, files[path])
    return archives, {f"{split}/{c}/{file}": i for i, split, c, _, file in rows}


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
    """Write files, an archive among them as one."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_archive(path, content) if isinstance(content, dict) else path.write_bytes(content)


def write_published(src: Path, name: str, changes: dict[str, bytes] | None = None) -> Placed:
    files, where = published(name, changes)
    write_files(src, files)
    return where


def write_birds(path: Path, **more: bytes) -> Placed:
    """Write CUB-200's archive under any name, with further files in it."""
    files, where = published("cub200")
    write_archive(path, {**files["CUB_200_2011.tgz"], **more})
    return where


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def placed(dst: Path) -> Placed:
    """The images of a prepared folder."""
    return {name: np.asarray(Image.open(io.BytesIO(file)))[0, 0, 0].item() for name, file in contents(dst).items()}


@pytest.mark.parametrize("name", TRAIN)
@pytest.mark.parametrize("form", ["archives", "unpacked", "links"])
def test_each_image_gets_into_its_split_and_class(tmp_path, name, form):
    src, dst = tmp_path / "src", tmp_path / "dst"
    files, where = published(name)
    for file, content in files.items() if form != "archives" else ():
        inner = {"ILSVRC2012_img_train.tar": "train", "ILSVRC2012_img_val.tar": "val"}.get(file, "")
        write_files(src / inner, content if isinstance(content, dict) else {file: content})
    if form == "archives":
        write_files(src, files)
    before = contents(src)
    parts = prepare_images(name, src, dst, link=form == "links")
    assert placed(dst) == where and contents(src) == before
    assert parts == [(dst / split, {split: 2}, True) for split in IMAGE_SETS[name].images]
    inodes = {path.stat().st_ino for path in src.rglob("*")}
    linked = sum(path.stat().st_ino in inodes for path in dst.rglob("*") if path.is_file())
    in_inner_archives = 2 if name == "imagenet" else 0
    assert linked == (len(where) - in_inner_archives if form == "links" else 0)


def test_archive_of_any_name_and_one_beside_what_it_unpacks_to(tmp_path):
    where = write_birds(tmp_path / "birds.tgz")
    prepare_images("cub200", tmp_path / "birds.tgz", tmp_path / "one")
    write_files(tmp_path / "src", published("cub200")[0]["CUB_200_2011.tgz"])
    (tmp_path / "src" / "CUB_200_2011.tgz").write_bytes(b"half of an archive")  # is left alone
    prepare_images("cub200", tmp_path / "src", tmp_path / "two")
    assert placed(tmp_path / "one") == placed(tmp_path / "two") == where


def test_cifar_archive_in_any_order(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, size=(2, 3072), dtype=np.uint8)
    files = {
        f"cifar-100-python/{name}": pickle.dumps(content, protocol=2)
        for name, content in (
            ("train", dict(data=images, fine_labels=[1, 0])),
            ("test", dict(data=images[::-1].copy(), fine_labels=[0, 1])),
            ("meta", dict(fine_label_names=["apple", "bear"])),
        )
    }
    archive = write_archive(tmp_path / "cifar-100-python.tar.gz", {**files, "cifar-100-python/file.txt~": b""})
    for source, dst in ((archive, tmp_path / "a"), (tmp_path / "a", tmp_path / "b")):
        (part,) = prepare_images("cifar100", source, dst)
        assert part.images == {"train": 2, "test": 2} and contents(dst) == files
    loaded = load_cifar100(dst, "train")
    assert loaded.targets.tolist() == [1, 0] and np.array_equal(loaded.images.flatten(1).numpy(), images)


def test_cifar_as_image_folders(tmp_path):
    names = ("test/apple/1.png", "test/bear/2.png", "train/apple/3.png", "train/bear/4.png")
    write_files(tmp_path / "src", {f"CIFAR100/{name}": png(int(name[-5])) for name in names})
    prepare_images("cifar100", tmp_path / "src", tmp_path / "dst")
    assert placed(tmp_path / "dst") == {name: int(name[-5]) for name in names}


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"images": 3}, "train is not the whole set: expected 3 images of 2 classes, found 2 of 2.*Get CUB_200_2011"),
        ({"classes": 3}, "expected 2 images of 3 classes, found 2 of 2"),
        ({"each": 2}, r"\(2 of each class expected; n.* 1, n.* 1\)"),
    ],
)
def test_wrong_counts_leave_nothing(tmp_path, monkeypatch, size, message):
    write_birds(tmp_path / "birds.tgz")
    set_size(monkeypatch, "cub200", **size)
    with pytest.raises(ValueError, match=message):
        prepare_images("cub200", tmp_path / "birds.tgz", tmp_path / "dst")
    assert list((tmp_path / "dst").iterdir()) == []


def test_a_run_is_interrupted_and_repeated(tmp_path, monkeypatch):
    src, dst, done = tmp_path / "birds.tgz", tmp_path / "dst", []
    where = write_birds(src)

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
    assert placed(dst) == where and sorted(path.name for path in dst.iterdir()) == ["test", "train"]

    kept = (dst / "train").stat().st_ino  # what is whole is kept, what is not is refused
    for path in (dst / "test").rglob("*.jpg"):
        path.unlink()
    with pytest.raises(ValueError, match="test exists already, but test is not the whole set: .*move that folder away"):
        prepare_images("cub200", src, dst)
    (dst / "test").rename(tmp_path / "away")
    assert [part.made for part in prepare_images("cub200", src, dst)] == [False, True]
    assert (dst / "train").stat().st_ino == kept and placed(dst) == where


@pytest.mark.parametrize(
    ("archive", "name"),
    [
        *(("birds.zip", name) for name in ("../evil.txt", "/tmp/evil.txt", "CUB/../../evil.txt", "C:evil")),
        *(("birds.tgz", name) for name in ("../evil.txt", "..\\evil.txt")),
    ],
)
def test_archives_that_point_outside_are_refused(tmp_path, archive, name):
    write_birds(tmp_path / archive, **{name: b"evil"})
    with pytest.raises(ValueError, match="holds .*evil.*, which points outside of it"):
        prepare_images("cub200", tmp_path / archive, tmp_path / "dst")
    assert not list(tmp_path.rglob("*evil*"))


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
    (tmp_path / "a.tar").write_bytes(tar({"file": b"x"}, links={"link": "/etc/passwd"}))
    assert [member.name for member in archive_members(tmp_path / "a.tar")] == ["file"]


def write_rooms(path: Path, *images: bytes) -> Path:
    """Write an archive of MIT67 with these contents for its images."""
    names = [f"a/{i}.jpg" for i in range(len(images))]
    lists = {"TrainImages.txt": "\n".join(names[:-1]).encode(), "TestImages.txt": names[-1].encode()}
    return write_archive(path, {**lists, **{f"Images/{n}": c for n, c in zip(names, images, strict=True)}})


@pytest.mark.parametrize("name", ["x.zip", "x.tgz"])
def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch, name):
    archive = write_rooms(tmp_path / name, b"x" * 900, b"x" * 1001)
    for module, limits, file in (
        (prepare, {"IMAGE_LIMIT": 1000}, "Images/a/1.jpg"),
        (prepare, {"MEAN_LIMIT": 0, "ARRAYS_LIMIT": 1900}, "Images/a/1.jpg"),
        (archives, {"LIST_LIMIT": 4}, "T.*Images.txt"),
    ):
        with monkeypatch.context() as patch:
            for limit, value in limits.items():
                patch.setattr(module, limit, value)
            with pytest.raises(ValueError, match=rf"x\.\w+: {file} unpacks to .* nothing was kept: get the archive"):
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
    ("name", "file", "content", "message"),
    [
        ("cub200", "classes.txt", b"1 n00000001\n", "the lists in .* do not fit together .*download them again"),
        ("cub200", "train_test_split.txt", b"1 0\n", "about the same images, got images.txt 4, .*_split.txt 1"),
        ("cub200", "images.txt", b"1\n", "images.txt must hold a key and a value in each line"),
        ("cub200", "classes.txt", b"1 n00000001\n2 ../..\n", "the lists of the set name .*, which is not split"),
        ("cub200", "classes.txt", b"1 n00000001\n2 .\n", "the lists of the set name .*, which is not split"),
        ("imagenet", TRUTH, b"7\n", "must hold a class number of meta.mat in each line, got 7"),
        ("dogs", "train_list.mat", b"no", "train_list.mat cannot be read as a MATLAB file with file_list"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, name, file, content, message):
    write_published(tmp_path / "src", name, {file: content})
    with pytest.raises(ValueError, match=message):
        prepare_images(name, tmp_path / "src", tmp_path / "dst")


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    for name, file, message in (
        ("mit67", "TestImages.txt", "TestImages.txt not found in .*indoorCVPR_09.tar, TrainImages.txt, TestImages.txt"),
        ("stanford40", "Stanford40_ImageSplits.zip", r"\*_train.txt, \*_test.txt not found in"),
    ):
        write_published(tmp_path / name, name)
        (tmp_path / name / file).unlink()
        with pytest.raises(FileNotFoundError, match=message):
            prepare_images(name, tmp_path / name, tmp_path / "dst")
    write_published(tmp_path / "dogs", "dogs")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ModuleNotFoundError, match="train_list.mat is a MATLAB file, which scipy reads: `pip"):
        prepare_images("dogs", tmp_path / "dogs", tmp_path / "dst")


def test_places_that_cannot_be_used(tmp_path, monkeypatch):
    src, dst = tmp_path / "src", tmp_path / "dst"
    write_files(src / "a", published("cub200")[0]["CUB_200_2011.tgz"])
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
    with pytest.raises(ValueError, match="more than one file for test/n0000000[12]/.*.jpg, b/.* is the second"):
        prepare_images("cub200", src, dst)


def test_command(tmp_path):
    (tmp_path / "notes.txt").write_text("no archive")
    done = command("prepare_data", "cub200", tmp_path / "notes.txt", tmp_path / "dst")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "notes.txt is damaged, not complete or no archive (ReadError: " in done.stderr
    write_birds(tmp_path / "birds.tgz")
    for state in ("", " (was there already)"):
        shown = command("prepare_data", "cub200", tmp_path / "birds.tgz", tmp_path / "dst").stdout
        assert f"{tmp_path}/dst/train: train 2 images, 2 classes{state}\n" in shown and "cub200 is complete" in shown
