"""Runs a function in a process of its own, so that a crash, or the system's want of memory, ends only that process."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from frskd_plugin.coverage.fault import Fault

# imported once by the server that the processes are forked from; what is not installed is left out
PRELOAD = ["frskd_plugin.coverage.classifier", "frskd_plugin.coverage.segmentor", "frskd_plugin.coverage.family"]


def in_process(function: Callable[..., Any], *args: Any, timeout: float) -> Any:
    """The function's result, in this process and without a limit; see `isolated` for what it raises.

    Args:
        function: what is called.
        args: its arguments.
        timeout: not used.
    """
    try:
        return function(*args)
    except Fault:
        raise
    except Exception as error:  # whatever the model raises
        raise Fault(describe(error)) from error


def isolated(function: Callable[..., Any], *args: Any, timeout: float) -> Any:
    """The function's result, from a process of its own.

    Args:
        function: found by its name in its module.
        args: can be pickled.
        timeout: seconds after which the process is ended.

    Raises:
        Fault: the function raised, its process ended without a result, or it took too long.
    """
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    context.set_forkserver_preload(PRELOAD)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, args), daemon=True)
    process.start()
    sender.close()  # the child holds the only one left: its end is seen here as the end of the pipe
    try:
        if not receiver.poll(timeout):
            raise Fault(f"no result after {timeout:g} s")
        returned, value = receiver.recv()
    except EOFError:
        process.join()
        raise Fault(_how_it_ended(process.exitcode)) from None
    finally:
        process.kill()
        process.join()
        receiver.close()
    if not returned:
        raise Fault(value)
    return value


def attempt(call: Callable[..., Any], *args: Any, timeout: float) -> Any:
    """What `isolated` or `in_process` gives, or the `Fault` that it raises."""
    try:
        return call(*args, timeout=timeout)
    except Fault as fault:
        return fault


def describe(error: BaseException) -> str:
    """One line: the text of a `Fault`, class and text of any other error.

    >>> describe(KeyError("a")), describe(Fault("no gradient"))
    ("KeyError: 'a'", 'no gradient')
    """
    text = " ".join(str(error).split())
    return text if isinstance(error, Fault) else f"{type(error).__name__}: {text}"


def _answer(sender: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    warnings.simplefilter("ignore")  # a hundred models bring theirs, and one line a model is what is printed
    logging.disable(logging.WARNING)
    try:
        answer = True, function(*args)
    except Exception as error:  # whatever the model raises
        answer = False, describe(error)
    sender.send(answer)


def _how_it_ended(exitcode: int | None) -> str:
    if exitcode is None or exitcode >= 0:
        return f"its process ended with status {exitcode}"
    name = signal.Signals(-exitcode).name
    reason = " (the system may have run out of memory)" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{reason}"
