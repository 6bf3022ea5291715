"""tools/prepare_voc.py on a drawn devkit: what is left out, what stays, and what it says when files are missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from frskd_plugin.commands.make_drawn_voc import make_devkit
from frskd_plugin.commands.prepare_voc import Copy, find_copies, fingerprint, list_path, make_training_lists, read_ids
from tests.helpers.real_runs import command


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "VOCdevkit"
    make_devkit(folder, train=8, val=9, size=(48, 64), seed=0)
    return folder


@pytest.fixture
def devkit(drawn, tmp_path):
    return Path(shutil.copytree(drawn, tmp_path / "VOCdevkit"))


def written(devkit: Path, name: str = "frskd_train") -> dict[str, list[str]]:
    return {year: read_ids(list_path(devkit, year, name)) for year in ("VOC2007", "VOC2012")}


def test_leaves_out_test_images_by_id_file_and_look(devkit):
    own = {"VOC2007": [f"{i:06d}" for i in range(1, 5)], "VOC2012": [f"2008_{i:06d}" for i in range(5, 9)]}
    lists = make_training_lists(devkit)
    assert sorted(lists.removed, key=lambda copy: copy.reference_id) == [
        Copy("2007_000009", "000009", "same id"),
        Copy("2009_000013", "000013", "same pixels"),
        Copy("2009_000017", "000017", "same picture, encoded anew"),
    ]
    assert lists.ids == own and lists.twice == []
    files = {path: path.read_bytes() for path in devkit.rglob("*") if path.is_file()}
    for _ in range(2):  # may be run again, and writes nothing but the lists
        done = command("prepare_voc", devkit)
        assert done.returncode == 0, done.stderr
        assert "VOC2012 trainval holds 3 images of VOC2007 test: left out" in done.stdout
        assert "2009_000013 is VOC2007 test 000013: same pixels" in done.stdout
        assert written(devkit) == own
    new = {path for path in devkit.rglob("*") if path.is_file()} - files.keys()
    assert new == {list_path(devkit, year, "frskd_train") for year in own}
    assert all(path.read_bytes() == content for path, content in files.items())


def test_pixels_or_id_are_enough_and_images_of_2007_trainval_stay(devkit):
    """A comment in the file changes its bytes, not its picture; an id of VOC2007 counts whatever the picture."""
    folder = devkit / "VOC2012" / "JPEGImages"
    data = (folder / "2009_000013.jpg").read_bytes()
    (folder / "2009_000013.jpg").write_bytes(data[:2] + b"\xff\xfe\x00\x07hello" + data[2:])
    shutil.copyfile(folder / "2008_000005.jpg", folder / "2007_000009.jpg")
    for image, name in (("JPEGImages", "000001.jpg"), ("SegmentationClass", "000001.png")):
        shutil.copyfile(devkit / "VOC2007" / image / name, devkit / "VOC2012" / image / f"2007_{name}")
    with list_path(devkit, "VOC2012", "trainval").open("a") as file:
        file.write("2007_000001\n")
    lists = make_training_lists(devkit)
    assert {Copy("2007_000009", "000009", "same id"), Copy("2009_000013", "000013", "same pixels")} < set(lists.removed)
    assert lists.ids["VOC2012"][0] == "2008_000005" and lists.ids["VOC2012"][-1] == "2007_000001"
    assert lists.twice == [Copy("2007_000001", "000001", "same id")]


def test_plain_pictures_are_not_taken_for_copies(tmp_path):
    """Two almost black pictures look alike as thumbnails; that says nothing."""
    for name, grey in (("a", 0), ("b", 1)):
        Image.new("RGB", (40, 30), (grey, grey, grey)).save(tmp_path / f"{name}.png")
    assert find_copies({"2008_b": fingerprint(tmp_path / "b.png")}, {"a": fingerprint(tmp_path / "a.png")}) == []


def test_paper_protocol_keeps_them_in_order_under_another_name(devkit):
    done = command("prepare_voc", devkit, "--paper-protocol")
    assert done.returncode == 0, done.stderr
    assert "3 images of VOC2007 test: kept, --paper-protocol" in done.stdout
    for year, ids in written(devkit, "frskd_train_paper_protocol").items():
        assert ids == read_ids(list_path(devkit, year, "trainval"))
    assert not list_path(devkit, "VOC2012", "frskd_train").exists()
    assert command("prepare_voc", devkit, "--out", "mine").returncode == 0
    assert len(written(devkit, "mine")["VOC2012"]) == 4
    refused = command("prepare_voc", devkit, "--out", "trainval")
    assert refused.returncode == 2
    assert "other than those of the published lists, got 'trainval'" in refused.stderr


def test_missing_and_corrupt_files_and_empty_lists(devkit):
    missing = devkit / "VOC2012" / "SegmentationClass" / "2008_000005.png"
    content = missing.read_bytes()
    missing.unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 14 files of VOC2012 trainval are missing .*\n.*2008_000005.png"):
        make_training_lists(devkit)
    missing.write_bytes(content)
    path = devkit / "VOC2012" / "JPEGImages" / "2008_000006.jpg"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="2008_000006.jpg cannot be decoded"):
        make_training_lists(devkit)
    list_path(devkit, "VOC2007", "test").write_bytes(b"no\xebl\n")
    with pytest.raises(FileNotFoundError, match="2 of 2 files of VOC2007 test are missing"):
        make_training_lists(devkit)
    list_path(devkit, "VOC2007", "test").write_text("\n")
    with pytest.raises(ValueError, match="holds no id"):
        make_training_lists(devkit)
    list_path(devkit, "VOC2007", "test").unlink()
    shutil.rmtree(devkit / "VOC2012")
    done = command("prepare_voc", devkit)
    assert done.returncode == 2
    assert f"{list_path(devkit, 'VOC2007', 'test')} (from VOCtest_06-Nov-2007.tar)" in done.stderr
    assert "VOCtrainval_11-May-2012.tar" in done.stderr
    assert not list_path(devkit, "VOC2007", "frskd_train").exists()
