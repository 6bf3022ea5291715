"""Console output of a command: progress of long work, and OpenMMLab's noise, which ``--verbose`` alone shows."""

from __future__ import annotations

import io
import logging
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TypeVar

T = TypeVar("T")
verbose = True  # as long as no command runs
_LIBRARIES = r"(mmcv|mmdet|mmengine|mmseg)(\.|$)"
_NOISE = re.compile(
    r"\s*-+\s+System environment:|Config:\n|Held back:\n|Hooks will be executed|The prefix is not set in metric class|"
    r'"(FileClient|HardDiskBackend)" '
)
_held: list[str] = []  # what libraries printed, until a log file has it


def progress(items: Iterable[T], name: str, unit: str, total: int | None = None) -> Iterable[T]:
    """Yield the items; after three seconds show on stderr how many are done and the time left."""
    from tqdm import tqdm  # comes with timm

    interval = 0.5 if sys.stderr.isatty() else 60.0
    return tqdm(items, name, total, delay=3, mininterval=interval, maxinterval=interval, unit=f" {unit}", leave=False)


@contextmanager
def noise(shown: bool) -> Iterator[None]:
    """Show OpenMMLab's noise in this block or not; without it the warnings of its modules are ignored."""
    global verbose
    before, verbose = verbose, shown
    try:
        with warnings.catch_warnings():
            if not shown:
                warnings.filterwarnings("ignore", module=_LIBRARIES)
            yield
    finally:
        verbose = before


@contextmanager
def output_held() -> Iterator[None]:
    """Hold back what libraries print and warn about, until `write_held` gives it to a log file."""
    if verbose:
        yield
        return
    with warnings.catch_warnings(record=True) as caught, redirect_stdout(io.StringIO()) as printed:
        warnings.simplefilter("default")
        try:
            yield
        finally:
            _held.extend(str(warning.message) for warning in caught)
            _held.append(printed.getvalue())


def quiet(logger: logging.Logger) -> None:
    """Keep environment, config, hooks and what was held back out of a logger's console; its log file has them all."""
    if verbose:
        return
    for handler in logger.handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.addFilter(lambda record: not _NOISE.match(record.getMessage()))
    write_held(logger)


def write_held(logger: logging.Logger) -> None:
    """Log what was held back, once."""
    if text := "\n".join(filter(None, (line.strip() for line in _held))):
        logger.info(f"Held back:\n{text}")
    _held.clear()
