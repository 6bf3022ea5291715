"""Several processes: a run of two, what tools/dist_train.sh starts, and the step against the joined batch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from mmengine.registry import init_default_scope
from torch import distributed, nn
from torch.distributed.run import get_args_parser

from frskd_plugin.commands import train as train_tool
from frskd_plugin.mmengine.distributed import (
    SyncBNDataParallel,
    end_distributed,
    init_distributed,
    prepare_distributed,
)
from tests.helpers.processes import in_two_processes
from tests.helpers.real_runs import REPOSITORY, assert_equal, run_tool, write_config
from tests.helpers.segmentors import make_batch
from tests.helpers.tiny_mmseg import MODELS, tiny_config

DIST_TRAIN = "tools/dist_train.sh"
BATCH = 4


@pytest.fixture
def config_file(data_root: Path, tmp_path: Path) -> Path:
    """FRSKD, with DDP's check that every parameter gets a gradient (`find_unused_parameters` is off)."""
    return write_config(tmp_path / "tiny.py", tiny_config(data_root, epochs=1, workers=0, frskd=True))


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights(config_file: Path, tmp_path: Path) -> None:
    arguments = [str(config_file), "--launcher", "pytorch", "--work-dir", str(tmp_path / "run")]
    in_two_processes(train_tool.main, arguments)
    first, second = (torch.load(tmp_path / f"run/rank_{rank}.pth", weights_only=True) for rank in range(2))
    assert any(key.startswith("self_teacher.") for key in first)
    assert_equal(first, second)


def test_a_node_of_several_is_launched(config_file: Path) -> None:
    settings = dict(NNODES="2", NODE_RANK="1", MASTER_ADDR="10.0.0.1", PORT="29511", PYTHON="echo")
    words = run_tool(DIST_TRAIN, config_file, 4, "--seed", 3, **settings).stdout.split()
    assert words[:2] == ["-m", "torch.distributed.run"]
    started = get_args_parser().parse_args(words[2:])  # torch's own: an option that it does not know ends the test
    assert (started.nnodes, started.node_rank, started.nproc_per_node) == ("2", 1, "4")
    assert (started.master_addr, started.master_port) == ("10.0.0.1", 29511)
    assert Path(started.training_script).samefile(REPOSITORY / "tools" / "train.py")
    assert started.training_script_args == [str(config_file), "--launcher", "pytorch", "--seed", "3"]


def joined_step(out: Path) -> None:
    """Take a step on this rank's part of a batch, or on all of it outside of a group; rank 0 writes the gradients."""
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    init_distributed("pytorch" if ranks > 1 else "none")
    init_default_scope("mmseg")
    torch.manual_seed(0)
    config = tiny_config(Path("unused"), frskd=True)
    config.model.backbone.dropout = config.model.decode_head.dropout_ratio = 0.0
    model = MODELS.build(config.model).double().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # frozen: batch statistics would differ from those of the joined batch
    images, samples = make_batch(BATCH, size=(24, 24))
    for sample in samples:
        sample.gt_sem_seg.data %= 4
    part = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)
    wrapped = SyncBNDataParallel(model, device_ids=None, broadcast_buffers=False) if ranks > 1 else model
    losses = wrapped(images[part].double(), samples[part], mode="loss")
    loss = sum(value for name, value in losses.items() if "loss" in name)
    loss.backward()
    loss = loss.detach() / ranks
    if ranks > 1:
        distributed.all_reduce(loss)
    if rank == 0:
        torch.save({"loss": loss, "grads": {name: p.grad for name, p in model.named_parameters()}}, out)
    end_distributed()


def test_step_equals_the_joined_batch(tmp_path: Path) -> None:
    in_two_processes(joined_step, tmp_path / "two.pth")
    joined_step(tmp_path / "one.pth")
    two, one = (torch.load(tmp_path / f"{name}.pth", weights_only=True) for name in ("two", "one"))
    # not closer: mmseg adds an epsilon to the number of valid pixels, on each rank
    torch.testing.assert_close(two["loss"], one["loss"], rtol=1e-9, atol=0)
    assert all(grad is not None for grad in two["grads"].values())
    for name, grad in one["grads"].items():
        torch.testing.assert_close(two["grads"][name], grad, rtol=1e-8, atol=1e-10)


def test_missing_launcher_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="RANK, WORLD_SIZE, .* are not set; start with tools/dist_train.sh"):
        init_distributed("pytorch")


def test_wrong_number_of_processes_is_refused(config_file: Path) -> None:
    done = run_tool(DIST_TRAIN, config_file, "many")
    assert done.returncode == 2 and "N must be a number of processes, 1 or more; got 'many'" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")
def test_sync_bn_without_cuda_is_refused(data_root: Path) -> None:
    config = tiny_config(data_root)
    config.sync_bn = "torch"
    with pytest.raises(ValueError, match="sync_bn='torch' needs CUDA.*remove it from the config"):
        prepare_distributed(config)
    with pytest.raises(ValueError, match="sync_bn needs CUDA, but the model is on the CPU"):
        SyncBNDataParallel(nn.Linear(1, 1), sync_bn=True)


def test_wrapper_follows_the_config(data_root: Path) -> None:
    config = tiny_config(data_root)
    config.find_unused_parameters = True
    prepare_distributed(config)
    assert config.model_wrapper_cfg.type == "SyncBNDataParallel"
    assert config.model_wrapper_cfg.find_unused_parameters
    config.model_wrapper_cfg = dict(type="Mine")
    prepare_distributed(config)
    assert config.model_wrapper_cfg == dict(type="Mine")
    for sync_bn in ("torch", "timm"):  # mmengine's own conversion of torch's would drop timm's activations
        config.sync_bn = sync_bn
        with pytest.raises(ValueError, match=f"sync_bn='{sync_bn}' sets model_wrapper_cfg itself; remove one"):
            prepare_distributed(config)
