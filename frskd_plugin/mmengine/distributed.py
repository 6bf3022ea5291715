"""Distributed training on GPUs (NCCL) and on CPUs (gloo), with synchronised BN that keeps timm's activations."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.registry import MODEL_WRAPPERS
from torch import distributed, nn


# Registered here and not in registration.py: mmengine asks this registry for classes, not for something that builds.
@MODEL_WRAPPERS.register_module(force=True)
class SyncBNDataParallel(MMDistributedDataParallel):
    """mmengine's DDP wrapper, which with ``sync_bn`` first makes every BN a synchronised one.

    `timm.layers.convert_sync_batchnorm` does it: mmengine's `sync_bn='torch'` would replace timm's BatchNormAct2d by a
    BN without the activation. Synchronised BN needs a GPU: on a CPU ``sync_bn`` is a ValueError, and SyncBN layers
    become plain ones, with a warning.
    """

    def __init__(self, module: nn.Module, sync_bn: bool = False, **kwargs: Any) -> None:
        on_cpu = next(module.parameters()).device.type == "cpu"
        if sync_bn:
            from timm.layers import convert_sync_batchnorm

            if on_cpu:
                raise ValueError(
                    "sync_bn needs CUDA, but the model is on the CPU; remove sync_bn from the config or give "
                    "--cfg-options sync_bn=None"
                )
            module = convert_sync_batchnorm(module)
        elif on_cpu and any(isinstance(layer, nn.SyncBatchNorm) for layer in module.modules()):
            text = "SyncBN layers work on GPUs only: on the CPU each process normalises with its own batch."
            print_log(text, logger="current", level=logging.WARNING)
            module = revert_sync_batchnorm(module)
        super().__init__(module=module, **kwargs)


def init_distributed(launcher: str) -> None:
    """Join the process group on CPUs (gloo); on CUDA mmengine does it itself when the Runner is built (NCCL).

    Raises:
        ValueError: variables of the launcher are missing, or this process has no GPU where others have.
    """
    if launcher == "none" or distributed.is_initialized():
        return
    _complete_environment(launcher)
    if torch.cuda.is_available():
        local_rank, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local_rank >= gpus:
            raise ValueError(
                f"process {local_rank + 1} on this machine has no GPU: {gpus} visible. Start at most {gpus} processes "
                f"a machine, or hide the GPUs (CUDA_VISIBLE_DEVICES=-1) to train on the CPU"
            )
        return
    distributed.init_process_group("gloo")


def end_distributed() -> None:
    """Leave the process group after the work is done, all ranks together; else gloo's threads may abort a process.

    Do not call it after an error: it waits for the other ranks, which may never come.
    """
    if distributed.is_initialized():
        gc.collect()  # models that are gone but for their cycles hold the group, and its threads with it
        distributed.barrier()
        distributed.destroy_process_group()


# launcher -> torch.distributed's variables, and its own that hold them
_VARIABLES = {
    "slurm": {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"},
    "mpi": {name: f"OMPI_COMM_WORLD_{name.removeprefix('WORLD_')}" for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")},
}


def _complete_environment(launcher: str) -> None:
    environ, own = os.environ, _VARIABLES.get(launcher, {})
    if own and own["RANK"] in environ:
        environ.setdefault("RANK", environ[own["RANK"]])
        environ.setdefault("WORLD_SIZE", environ[own["WORLD_SIZE"]])
        environ["LOCAL_RANK"] = environ.get(own["LOCAL_RANK"], "0")  # `--local-rank` has set one
        environ.setdefault("MASTER_PORT", "29500")
        if launcher == "slurm" and "MASTER_ADDR" not in environ:
            hosts = subprocess.run(
                ["scontrol", "show", "hostname", environ["SLURM_NODELIST"]], capture_output=True, text=True, check=True
            )
            environ["MASTER_ADDR"] = hosts.stdout.split()[0]
    expected = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in expected if name not in environ]
    if missing:
        raise ValueError(
            f"--launcher {launcher} expects the environment variables of its launcher, but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set; start with tools/dist_train.sh CONFIG N or "
            f"tools/slurm_train.sh"
        )


def prepare_distributed(config: Config) -> None:
    """Make a config fit for several processes: its model wrapper, and BN statistics that all ranks share.

    `sync_bn='torch'` and `sync_bn='timm'` both mean timm's conversion, which does the same for torch's own BN; without
    CUDA it is refused (ValueError), as with a wrapper of the config's own. A wrapper or a hook that the config chooses
    stays.
    """
    hooks = list(config.get("custom_hooks") or [])
    if all(hook.get("type") not in ("SyncBuffersHook", "SyncStatisticsHook") for hook in hooks):
        config.custom_hooks = [*hooks, dict(type="SyncStatisticsHook")]
    sync_bn, chosen, cuda = config.get("sync_bn"), config.get("model_wrapper_cfg"), torch.cuda.is_available()
    if sync_bn in ("timm", "torch") and chosen is not None:
        raise ValueError(
            f"sync_bn={sync_bn!r} sets model_wrapper_cfg itself; remove one of the two from the config (a wrapper of "
            f"type SyncBNDataParallel takes sync_bn=True)"
        )
    if chosen is not None or sync_bn == "mmcv":
        return
    if sync_bn is not None and not cuda:
        raise ValueError(
            f"sync_bn={sync_bn!r} needs CUDA, which is not available here; remove it from the config or give "
            f"--cfg-options sync_bn=None"
        )
    config.model_wrapper_cfg = dict(
        type="SyncBNDataParallel",
        sync_bn=sync_bn is not None,
        broadcast_buffers=False,
        find_unused_parameters=config.get("find_unused_parameters", False),
        **({} if cuda else {"device_ids": None}),
    )
    config.sync_bn = None
