"""Other processes that call a function of a test's module.

Each is a fork of a server that has imported the libraries and run nothing. A fork of the test's own process would be
without its threads, and once autograd has some there, the first backward pass of the fork waits for them for ever.
"""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Callable
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext
from unittest import mock

import torch
from torch.multiprocessing import start_processes

SLOW_TO_IMPORT = ["torch", "timm", "mmseg", "frskd_plugin.mmseg", "frskd_plugin.commands.train"]


@functools.cache
def fork_server() -> ForkServerContext:
    """Start the server, which ends with this process. Nothing that comes of it sees a GPU."""
    context = get_context("forkserver")
    context.set_forkserver_preload(SLOW_TO_IMPORT)  # without those that are not installed
    with mock.patch.dict(os.environ, CUDA_VISIBLE_DEVICES="-1"):
        forkserver.ensure_running()
    return context


def in_two_processes(function: Callable[..., object], *arguments: object) -> None:
    """Call a function of a module in two processes with the environment that a launcher sets."""
    fork_server()
    start_processes(_as_rank, (free_port(), function, arguments), nprocs=2, start_method="forkserver")


def _as_rank(rank: int, port: int, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    group = dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(group)
    function(*arguments)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
