"""Files that are whole or not there, whoever else may write to the folder."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from frskd_plugin.core.atomic_write import atomic_write, save_figure, temporary_files


def test_the_mode_is_that_of_the_replaced_file_and_else_the_users(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    atomic_write(tmp_path / "new", b"1")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "new").chmod(0o640)
    atomic_write(tmp_path / "new", b"2")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    assert (tmp_path / "new").read_bytes() == b"2"


def test_nothing_is_written_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    (tmp_path / "out").symlink_to(secret)
    atomic_write(tmp_path / "out", b"new")
    assert secret.read_bytes() == b"secret"
    assert not (tmp_path / "out").is_symlink() and (tmp_path / "out").read_bytes() == b"new"
    # even somebody who knew the name of the temporary file could not have it written through
    monkeypatch.setattr("frskd_plugin.core.atomic_write.secrets.token_hex", lambda size: "0" * 2 * size)
    (tmp_path / f".out.{'0' * 16}.tmp").symlink_to(secret)
    with pytest.raises(FileExistsError):
        atomic_write(tmp_path / "out", b"newer")
    assert secret.read_bytes() == b"secret" and (tmp_path / "out").read_bytes() == b"new"


def test_a_folder_and_a_pipe_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in (".", "pipe", "link"):
        with pytest.raises(OSError, match="a folder, a device or a pipe; expected the path of a file"):
            atomic_write(tmp_path / name, b"data")
    assert not temporary_files(tmp_path)


def test_two_writers_leave_a_whole_file_and_nothing_else(tmp_path: Path) -> None:
    path, contents = tmp_path / "a.pth", [bytes([65 + i]) * 100_000 for i in range(2)]
    errors: list[Exception] = []

    def write(data: bytes) -> None:
        try:
            for _ in range(20):
                atomic_write(path, data)
        except OSError as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(data,)) for data in contents]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert not path.exists() or path.read_bytes() in contents
    assert not errors and os.listdir(tmp_path) == ["a.pth"]


def test_temporary_files_are_told_from_the_users(tmp_path: Path) -> None:
    left = tmp_path / ".epoch_1.pth.0123456789abcdef.tmp"
    for path in (left, tmp_path / ".mine.tmp", tmp_path / "a.0123456789abcdef.tmp"):
        path.touch()
    assert temporary_files(tmp_path) == [left]


def test_a_figure_in_the_format_of_its_suffix(tmp_path: Path) -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure(figsize=(1, 1))
    for name, start in (("a.png", b"\x89PNG"), ("a", b"\x89PNG"), ("a.PDF", b"%PDF")):
        save_figure(figure, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)
    with pytest.raises(ValueError, match="odd"):
        save_figure(figure, tmp_path / "a.odd")
    assert sorted(os.listdir(tmp_path)) == ["a", "a.PDF", "a.png"]
