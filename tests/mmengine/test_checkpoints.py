"""Checkpoints that a killed process, a full disk or a damaged file cannot take away."""

from __future__ import annotations

import builtins
import errno
import io
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.dist import get_rank
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from torch import nn

from frskd_plugin.core import atomic_write as atomic_write_module
from frskd_plugin.mmengine import resume
from frskd_plugin.mmengine.checkpoint_hook import AtomicCheckpointHook, _share_gradients
from frskd_plugin.mmengine.distributed import end_distributed, init_distributed
from frskd_plugin.mmengine.resume import (
    BrokenCheckpointError,
    find_resume_checkpoint,
    load_checkpoint,
    refuse_to_start_over,
    remove_run,
    resume_state,
    safe_loading,
)
from tests.helpers.processes import in_two_processes
from tests.helpers.real_runs import assert_equal, train
from tests.helpers.toy_run import toy_config


def snapshot(folder: Path) -> dict[str, bytes]:
    """Names and contents of all files in a folder, hidden ones too."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def checkpoints(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.pth")}


@pytest.fixture(scope="module")
def numbered() -> list[int]:
    """How many numbered checkpoints of `finished_run` there were before each file of it was put in its place."""
    return []


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory, numbered: list[int]) -> Path:
    """Work folder of a run of four epochs that keeps two checkpoints."""
    work_dir, replace = tmp_path_factory.mktemp("run"), os.replace

    def counting_replace(source: Any, target: Any) -> None:
        numbered.append(len(list(work_dir.glob("epoch_*.pth"))))
        replace(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic_write_module.os, "replace", counting_replace)
        train(toy_config(), work_dir)
    return work_dir


@pytest.fixture
def run_folder(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of it, as somebody who moves the folder would make: `last_checkpoint` names the old place."""
    for name, data in snapshot(finished_run).items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def test_what_a_run_leaves(finished_run: Path, numbered: list[int]) -> None:
    names = checkpoints(finished_run) | {path.name for path in finished_run.glob(".*")}
    assert {name for name in names if not name.startswith("best_")} == {"epoch_3.pth", "epoch_4.pth"}
    assert sum(name.startswith("best_top1") for name in names) == 1
    assert min(numbered[numbered.index(2) :]) == 2  # an old one goes only after the new one is whole
    assert (finished_run / "last_checkpoint").read_text() == str(finished_run / "epoch_4.pth")
    checkpoint = load_checkpoint(finished_run / "epoch_4.pth")
    assert checkpoint["meta"]["epoch"] == 4 and checkpoint["meta"]["seed"] == 3
    assert type(checkpoint["message_hub"]["runtime_info"]["best_score"]) is float
    assert isinstance(checkpoint["message_hub"]["log_scalars"]["train/loss"], HistoryBuffer)


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="at least 2.*or -1 to keep all; got 1. Set .*max_keep_ckpts=2"):
        AtomicCheckpointHook(interval=1, max_keep_ckpts=1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_keep'"):
        AtomicCheckpointHook(interval=1, max_keep=2)


class Evil:
    """Touches a file when it is unpickled without care."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_mmengines_loaders_run_no_code_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub, mark = tmp_path / "hub" / "checkpoints", tmp_path / "touched"
    hub.mkdir(parents=True)
    torch.save({"state_dict": {}, "x": Evil(mark)}, hub / "evil.pth")  # as if it had been downloaded
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    before = CheckpointLoader._schemes
    for file in (str(hub / "evil.pth"), "http://localhost/evil.pth"):
        with safe_loading(), pytest.raises(BrokenCheckpointError, match="evil.pth was not read"):
            CheckpointLoader.load_checkpoint(file, map_location="cpu")
    assert CheckpointLoader._schemes is before
    config = toy_config(epochs=1)  # whoever has built its runner
    config.load_from = str(hub / "evil.pth")
    with pytest.raises(BrokenCheckpointError, match="evil.pth was not read"):
        train(config, tmp_path / "run")
    assert not mark.exists()
    # text that mmengine's `resume` would execute
    torch.save({"state_dict": {}, "meta": {"config": "raise SystemExit", "cfg": "a = 1"}}, tmp_path / "a.pth")
    with safe_loading():
        assert CheckpointLoader.load_checkpoint(str(tmp_path / "a.pth"))["meta"] == {"cfg": "a = 1"}


LAST_CHECKPOINTS = {
    "empty": b"",
    "nul": b"\0" * 40,
    "binary": bytes(range(128, 256)),
    "long": b"x" * 5000,
    "gone": b"/nowhere/epoch_9.pth",
    "moved": b"/nowhere/epoch_4.pth",
    "relative": b"epoch_4.pth",
    "best": b"best_top1_epoch_3.pth",
    "other": b"/nowhere/iter_7.pth",
    "folder": Path.mkdir,
    "loop": lambda file: file.symlink_to(file),
    "pipe": os.mkfifo,
}


@pytest.mark.parametrize("kind", LAST_CHECKPOINTS)
def test_newest_whole_checkpoint_is_found_whatever_last_checkpoint_holds(run_folder: Path, kind: str) -> None:
    file, content = run_folder / "last_checkpoint", LAST_CHECKPOINTS[kind]
    file.unlink()
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        content(file)
    if kind not in ("moved", "relative"):  # times tell where the file does not
        os.utime(run_folder / "epoch_3.pth", ns=(0, 0))
    state = resume_state(run_folder)
    assert state is not None and state[0] == run_folder / "epoch_4.pth" and state[1]["seed"] == 3


def test_a_damaged_record_of_the_run_is_as_none(run_folder: Path) -> None:
    for text in ("[]", '{"run_id": [1]}', '{"validated": "two"}', "[" * 100_000):
        (run_folder / "run.json").write_text(text)
        assert find_resume_checkpoint(run_folder) == run_folder / "epoch_4.pth"


def rewrite(source: Path, target: Path, **meta: Any) -> None:
    """Copy a checkpoint with other entries in its `meta`."""
    checkpoint = load_checkpoint(source)
    checkpoint["meta"].update(meta)
    torch.save(checkpoint, target)


@pytest.mark.parametrize("damage", ["truncated", "middle", {"optimizer": [1]}, {"meta": {"epoch": "four"}}])
def test_damaged_newest_is_reported_and_the_one_before_used(
    run_folder: Path, damage: str | dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = run_folder / "epoch_4.pth"
    data, content = bytearray(newest.read_bytes()), load_checkpoint(newest)
    if damage == "truncated":
        newest.write_bytes(data[: len(data) // 2])
    elif damage == "middle":  # flip bytes of a stored tensor: its checksum disagrees then
        start = data.index(content["state_dict"]["stem.weight"].numpy().tobytes())
        data[start : start + 64] = bytes(byte ^ 255 for byte in data[start : start + 64])
        newest.write_bytes(data)
    else:
        torch.save({**content, **damage}, newest)
    logged: list[tuple[str, int]] = []
    monkeypatch.setattr(resume, "print_log", lambda text, logger, level: logged.append((text, level)))
    assert find_resume_checkpoint(run_folder) == run_folder / "epoch_3.pth"
    (reason, level), (instead, _) = logged
    assert reason.startswith("Not resuming from epoch_4.pth: ") and "damaged" in reason
    assert level == logging.WARNING and instead == "Resuming from epoch_3.pth instead."


def test_no_whole_checkpoint_is_an_error_and_an_empty_folder_starts_from_the_beginning(
    run_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (run_folder / "epoch_4.pth").write_bytes(b"no checkpoint")
    torch.save({"state_dict": {}, "meta": {}}, run_folder / "epoch_3.pth")
    with pytest.raises(BrokenCheckpointError, match="none of the 2 .* epoch_4.pth.*3.pth holds weights only"):
        find_resume_checkpoint(run_folder)
    for content, message in (
        ({"a": 1}, "it has no 'state_dict'"),
        ({"state_dict": {}, "meta": 1}, "'meta' is no dict"),
    ):
        torch.save(content, run_folder / "other.pth")
        with pytest.raises(BrokenCheckpointError, match=f"other.pth is not a checkpoint of mmengine: .*{message}"):
            load_checkpoint(run_folder / "other.pth")
    empty = tmp_path_factory.mktemp("empty")
    assert find_resume_checkpoint(empty) is None and find_resume_checkpoint(empty / "missing") is None


def test_which_of_several_whole_ones_is_taken(run_folder: Path, finished_run: Path) -> None:
    last, other = run_folder / "epoch_4.pth", run_folder / "epoch_9.pth"
    rewrite(last, other, run_id="another", epoch=9)
    assert find_resume_checkpoint(run_folder) == last
    # without ids, times tell: a higher number that is older is of an earlier run in the folder ...
    (run_folder / "run.json").unlink()
    (run_folder / "last_checkpoint").write_text(str(last))
    os.utime(other, ns=(0, 0))
    assert find_resume_checkpoint(run_folder) == last
    # ... and a newer one was written right before the process was killed
    os.utime(other, ns=(last.stat().st_mtime_ns + 10**9,) * 2)
    assert find_resume_checkpoint(run_folder) == other
    (run_folder / "run.json").write_bytes((finished_run / "run.json").read_bytes())
    for name in ("epoch_3.pth", "epoch_4.pth"):
        (run_folder / name).unlink()
    with pytest.raises(BrokenCheckpointError, match="epoch_9.pth: it is of another run.*--overwrite"):
        find_resume_checkpoint(run_folder)


def test_checkpoints_of_a_folder_go_before_a_path_elsewhere(run_folder: Path, finished_run: Path) -> None:
    (run_folder / "epoch_4.pth").unlink()  # the copy's; the original still has it, and that is another run
    (run_folder / "last_checkpoint").write_text(str(finished_run / "epoch_4.pth"))
    assert find_resume_checkpoint(run_folder) == run_folder / "epoch_3.pth"
    (run_folder / "epoch_3.pth").unlink()  # as with `out_dir`: the folder holds none at all
    assert find_resume_checkpoint(run_folder) == finished_run / "epoch_4.pth"


def test_what_a_killed_run_left_is_made_up_and_removed(run_folder: Path) -> None:
    last, epoch_3 = run_folder / "epoch_4.pth", load_checkpoint(run_folder / "epoch_3.pth")["meta"]
    rewrite(last, run_folder / "epoch_1.pth", epoch=1)
    rewrite(last, run_folder / "best_top1_epoch_3.pth", epoch=3)
    rewrite(last, run_folder / "best_top1_epoch_2.pth", epoch=2, run_id="another")
    best = {path.name for path in run_folder.glob("best_*")}
    (run_folder / ".epoch_4.pth.0123456789abcdef.tmp").touch()
    run = json.loads((run_folder / "run.json").read_text())
    assert run["validated"] == 4 and run["run_id"] == epoch_3["run_id"]
    (run_folder / "run.json").write_text(json.dumps({**run, "validated": 3}))
    runner = train(toy_config(), run_folder, resume=True)
    assert json.loads((run_folder / "run.json").read_text()) == run
    remembered = Path(runner.message_hub.get_info("best_ckpt"))
    assert remembered.parent == run_folder  # not the file of the folder that this one is a copy of
    assert checkpoints(run_folder) == {"epoch_3.pth", "epoch_4.pth", "best_top1_epoch_2.pth", remembered.name}
    assert remembered.name in best and not list(run_folder.glob(".*.tmp"))
    # a damaged newest one: the runner itself goes on from the one before
    whole = load_checkpoint(last)["state_dict"]
    last.write_bytes(last.read_bytes()[:1000])
    runner = train(toy_config(), run_folder, resume=True)
    assert_equal(whole, runner.model.state_dict())


@pytest.fixture
def improving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every score of a checkpoint hook with ``rule='less'`` is the best."""
    monkeypatch.setattr(AtomicCheckpointHook, "rule_map", {"less": lambda new, best: True})


@pytest.mark.usefixtures("improving")
def test_files_outside_of_the_folder_are_never_removed(run_folder: Path) -> None:
    """A checkpoint says what is to be removed when there is a better or a newer one, and may come from anyone."""
    own = run_folder / "inner" / "run"
    (own / "epoch_..").mkdir(parents=True)
    outside = run_folder / "inner" / "victim.pth"
    outside.touch()
    checkpoint = load_checkpoint(run_folder / "epoch_4.pth")
    info = checkpoint["message_hub"]["runtime_info"]
    info |= {"best_ckpt": "..", "keep_ckpt_ids": ["../../victim", 1, 2, 3, 4]}
    torch.save(checkpoint, own / "epoch_4.pth")
    for step in (1, 2, 3):
        (own / f"epoch_{step}.pth").touch()
    config = toy_config(epochs=5)
    config.default_hooks.checkpoint.rule = "less"
    train(config, own, resume=True)
    assert outside.is_file()
    assert checkpoints(own) == {"epoch_4.pth", "epoch_5.pth", "best_top1_epoch_5.pth"}


def test_gradients_accumulated_at_the_end_of_an_epoch_are_kept(tmp_path: Path) -> None:
    config = toy_config(epochs=2)  # 4 steps an epoch
    config.optim_wrapper.accumulative_counts = 3
    config.default_hooks.checkpoint.save_best = ["top1", "right"]
    expected = train(config, tmp_path).model.state_dict()
    best = {name.rsplit("_epoch", 1)[0] for name in checkpoints(tmp_path) if name.startswith("best_")}
    assert best == {"best_right", "best_top1"} and len(checkpoints(tmp_path)) == 4  # one of each score
    stored = load_checkpoint(tmp_path / "epoch_1.pth")["partial_gradients"]
    assert "stem.weight" in stored and "partial_gradients" not in load_checkpoint(tmp_path / "epoch_2.pth")
    (tmp_path / "epoch_2.pth").unlink()
    resumed = train(config, tmp_path, resume=True)
    assert_equal(expected, resumed.model.state_dict())
    log = next(Path(resumed.log_dir).glob("*.log")).read_text()
    assert "The gradients accumulated so far were in the checkpoint: none is lost." in log


def share_gradients() -> None:
    """One of two processes, of which the second has not used the weight, and none the bias."""
    init_distributed("pytorch")
    model = nn.Linear(1, 2)
    if get_rank() == 0:
        model.weight.grad = torch.tensor([[2.0], [4.0]])
    _share_gradients(model)
    assert model.weight.grad.tolist() == [[1.0], [2.0]] and model.bias.grad is None
    end_distributed()


def test_processes_go_on_with_the_mean_of_their_partial_gradients() -> None:
    in_two_processes(share_gradients)


def test_starting_over_on_top_of_whole_checkpoints_is_refused(run_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"newest is epoch_4.pth, epoch 4\): give --resume .* or --overwrite"):
        refuse_to_start_over(run_folder)
    (run_folder / "student_2.pth").write_bytes((run_folder / "epoch_4.pth").read_bytes())
    remove_run(run_folder)
    assert checkpoints(run_folder) == {"student_2.pth"} and not (run_folder / "last_checkpoint").exists()
    (run_folder / "epoch_1.pth").write_bytes(b"damaged")
    (run_folder / "student_2.pth").unlink()
    refuse_to_start_over(run_folder)
    torch.save({"state_dict": {}, "meta": {"epoch": 1}}, run_folder / "epoch_1.pth")  # `save_optimizer=False`
    with pytest.raises(ValueError, match=r"newest is epoch_1.pth, epoch 1\): give --resume .* or --overwrite"):
        refuse_to_start_over(run_folder)


class FullDisk(io.FileIO):
    """A file on a disk that fills up after the first bytes."""

    def write(self, data: Any) -> int:
        super().write(bytes(data)[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.usefixtures("improving")
@pytest.mark.parametrize("victim", ["epoch_5", "best_top1"])
def test_full_disk_leaves_earlier_checkpoints_and_says_what_to_do(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    def open_file(descriptor: int, mode: str = "r") -> Any:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        return FullDisk(descriptor, mode) if victim in Path(name).name else builtins.open(descriptor, mode)

    last = run_folder / "epoch_4.pth"
    (run_folder / "last_checkpoint").write_text(str(last))
    before = snapshot(run_folder)
    monkeypatch.setattr(atomic_write_module, "open", open_file, raising=False)
    config = toy_config(epochs=6)
    config.default_hooks.checkpoint.rule = "less"
    if victim == "best_top1":
        config.default_hooks.checkpoint.update(interval=10, save_last=False)
    with pytest.raises(OSError, match="cannot write .*No space left on device") as raised:
        train(config, run_folder, resume=True)
    assert raised.value.errno == errno.ENOSPC
    assert "Earlier checkpoints are untouched. Free space" in str(raised.value)
    assert f"--resume goes on from {last}" in str(raised.value)
    after = snapshot(run_folder)
    assert {name: after.get(name) for name in before} == before
    assert not [name for name in after if name.endswith(".tmp")]
    assert not [name for name in after if name.endswith(".pth") and name not in before]
