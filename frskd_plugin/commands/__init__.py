"""Command lines: ``frskd NAME ...``, ``python -m frskd_plugin NAME ...`` and ``python tools/NAME.py ...`` are the same.

Each module has ``build_parser()`` and ``main(argv)``, which raises what goes wrong. `run` alone turns an error into one
line on stderr. Its exit status is what ``main`` returns (None counts as 0), 2 for a wrong value, a file that cannot be
used or a package that is missing, 3 for an error that nobody foresaw, 130 after Ctrl-C and 143 after SIGTERM.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from frskd_plugin.commands import console
from frskd_plugin.version import __version__

# Name of a command, which is its module's in this package -> a line about it.
COMMANDS = {
    "train": "train a classifier or a segmentor",
    "test": "evaluate a checkpoint",
    "convert": "write the FRSKD config for a plain config of mmsegmentation",
    "check": "try a model or a config on random data before it trains",
    "export": "write the student of a checkpoint: its weights, ONNX or torch.export",
    "report": "write one HTML page about a run, or about several",
    "attention_maps": "draw what student and self-teacher look at",
    "plot_scores": "draw the validation curves of several runs",
    "benchmark": "measure what FRSKD costs",
    "reproduce": "make a table of the paper",
    "prepare_data": "put a published set of images into our layout",
    "prepare_voc": "write the training lists of VOC2007 + VOC2012",
    "make_drawn_voc": "draw a small VOC devkit",
    "demo": "compare a plain network and FRSKD on drawn images, in minutes",
    "support": "try a model of every module of timm, or family of mmseg",
}
# Old name -> new name and first arguments.
OLD_NAMES = {
    "coverage_mmseg": "support mmseg",
    "coverage_timm": "support timm",
    "doctor": "check",
    "export_model": "export",
    "export_student": "export",
    "frskdify": "convert",
}

# Errors that a user can mend: their text says how. Any other is shown with its type.
USER_ERRORS = (ValueError, TypeError, OSError, ImportError, FloatingPointError)
# Package -> extra of setup.cfg that brings it.
EXTRAS = {"mmengine": "onedl", "mmcv": "onedl", "mmseg": "onedl", "onnx": "export", "onnxscript": "export"}


class Terminated(BaseException):
    """SIGTERM, as KeyboardInterrupt is Ctrl-C. The text of either, where it has one, is shown to the user."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``frskd NAME ...``; the result is the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"frskd_plugin {__version__}")
        return 0
    return run(arguments[0], arguments[1:])


def usage() -> str:
    """Return the text of ``frskd --help``."""
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {about}" for name, about in COMMANDS.items())
    return (
        f"usage: frskd NAME [options]     frskd NAME --help shows the options of a command\n\n{lines}\n\n"
        "--debug, with any command, shows the whole traceback of an error, and --verbose all that libraries print."
    )


def run(name: str, argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; an error becomes one line on stderr.

    Args:
        name: key of `COMMANDS`, with hyphens or underscores, or an old name.
        argv: its arguments, with ``--debug`` and ``--verbose`` or not; None takes those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug, verbose = "--debug" in arguments, "--verbose" in arguments
    arguments = [argument for argument in arguments if argument not in ("--debug", "--verbose")]
    name = name.replace("-", "_")
    if name in OLD_NAMES:
        print(f"{name} is now called {OLD_NAMES[name]}: frskd {OLD_NAMES[name]}", file=sys.stderr)
        name, *first = OLD_NAMES[name].split()
        arguments = [*first, *arguments]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, [*COMMANDS, *OLD_NAMES], n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(COMMANDS)}"
        print(f"frskd: error: no command {name!r}; {hint}", file=sys.stderr)
        return 2
    try:
        _signals.clear()
        with _signals_raised(), console.noise(shown=verbose):
            return importlib.import_module(f"{__name__}.{name}").main(arguments) or 0
    except SystemExit as ended:  # argparse's, after its own message
        if debug and ended.__context__ is not None:
            traceback.print_exception(ended.__context__)
        return ended.code if isinstance(ended.code, int) else 0
    except (KeyboardInterrupt, Terminated) as stop:
        return _stopped(name, stop)
    except Exception as error:
        asked = asked_to_stop(error)
        if asked is not None:
            return _stopped(name, asked())
        if debug:
            traceback.print_exc()
        else:
            print(f"frskd {name}: error: {describe(error)}{_process()}", file=sys.stderr)
        return 2 if isinstance(error, USER_ERRORS) else 3


def asked_to_stop(error: BaseException) -> type[KeyboardInterrupt] | type[Terminated] | None:
    """Return the signal behind an error, as an exception; None where there is none."""
    # A library with a bare `except` turns a signal's exception into an error of its own. Where all processes of a job
    # get the signal, the end of a data-loading worker may be what this one hears of first.
    if isinstance(error, KeyboardInterrupt) or signal.SIGINT in _signals:
        return KeyboardInterrupt
    if isinstance(error, Terminated) or signal.SIGTERM in _signals or "killed by signal: Terminated" in str(error):
        return Terminated
    return None


def _stopped(name: str, stop: BaseException) -> int:
    signal_name, status = ("Ctrl-C", 130) if isinstance(stop, KeyboardInterrupt) else ("SIGTERM", 143)
    if os.environ.get("RANK", "0") == "0":
        print(f"frskd {name}: stopped by {signal_name}{f': {stop}' if stop.args else ''}", file=sys.stderr)
    if os.environ.get("RANK"):  # threads of a process group may abort a process that ends without the others
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


_signals: set[int] = set()  # that this process got while a command ran


@contextmanager
def _signals_raised() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM as Python raises KeyboardInterrupt, so that files are closed and children ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:
            _signals.add(number)
            if hasattr(signal, "SIGCHLD"):  # torch's handler raises an error for each worker that ends with us
                signal.signal(signal.SIGCHLD, lambda *ignored: None)
        elif number == signal.SIGTERM:  # a data-loading worker that was forked from this process
            os._exit(128 + number)
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, stop)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored, as under nohup
        before[signal.SIGINT] = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def describe(error: Exception) -> str:
    """Return an error in one line.

    >>> describe(ValueError("alpha must not be negative,\\n got -1"))
    'alpha must not be negative, got -1'
    >>> describe(KeyError("loss"))
    'KeyError: loss; run again with --debug for the traceback'
    """
    text = text_of(error)
    worker = re.findall(r"^[\w.]+: .*", text, re.MULTILINE) if "Original Traceback" in text else []
    if worker:  # torch puts the traceback of a data-loading worker into the text
        text = text[text.rindex(worker[-1]) :].partition(": ")[2]
    text = " ".join(text.split())
    package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if package in EXTRAS:
        return f"{text}; pip install 'frskd_plugin[{EXTRAS[package]}]' brings it"
    if package == "mmdet":  # no extra: it needs an mmcv with compiled operators, which no requirement can ask for
        return f"{text}; docs/detection.md says how to install mmdetection and the operators that it needs"
    if isinstance(error, USER_ERRORS) and str(error):
        return text
    return f"{type(error).__name__}: {text}; run again with --debug for the traceback"


def text_of(error: Exception) -> str:
    """Return an error's text or, where it has none (a bare ``assert``), the line that raised it."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if text or error.__traceback__ is None:
        return text
    raised = traceback.extract_tb(error.__traceback__)[-1]
    return f"{raised.line} ({os.path.basename(raised.filename)}, line {raised.lineno})"


def _process() -> str:
    """Return the rank in a job of several processes, each of which writes its own line."""
    return f" (process {os.environ['RANK']})" if int(os.environ.get("WORLD_SIZE") or 1) > 1 else ""
