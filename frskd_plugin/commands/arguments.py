"""Arguments and checks that several command lines share."""

from __future__ import annotations

import argparse
import ast
import sys
from typing import Any

import torch

from frskd_plugin.core.atomic_write import atomic_write


def command_parser(name: str, description: str | None, epilog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of ``frskd NAME``, which shows both texts as they are written."""
    formatter = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(f"frskd {name}", description=description, epilog=epilog, formatter_class=formatter)


def add_settings(parser: argparse._ActionsContainer, option: str, text: str) -> None:
    """Add an option that takes settings of a config, ``a.b=value ...`` as in OpenMMLab's tools, into a dict."""
    parser.add_argument(option, nargs="+", action=_Settings, metavar="KEY=VALUE", help=text)


def add_keywords(parser: argparse._ActionsContainer, option: str, text: str) -> None:
    """Add an option that takes ``key=value ...``, the values as Python writes them, into a list of pairs."""
    parser.add_argument(option, nargs="+", type=key_and_value, default=[], metavar="KEY=VALUE", help=text)


def refuse_foreign(args: argparse.Namespace, is_config: bool, *of_models: str) -> None:
    """Refuse options ``of_models`` where ``args.model`` is a config, and ``--cfg-options`` where it is none."""
    for option in (*of_models, "cfg_options"):
        if getattr(args, option) and is_config != (option == "cfg_options"):
            owner = "a timm model; settings of a config are given with --cfg-options" if is_config else "a config"
            kind, name = "one" if is_config else "a timm model", option.replace("_", "-")
            raise ValueError(f"--{name} belongs to {owner}, and {args.model} is {kind}.")


def positive_int(text: str) -> int:
    """Read an argument that counts something."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def whole_number(text: str) -> int:
    """Read an argument that counts something and may be 0."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or above")
    return int(text)


def width(text: str) -> int | str:
    """Read a number of channels in units of the student's, or 'auto'."""
    if text == "auto":
        return text
    try:
        return positive_int(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor auto") from None


def key_and_value(text: str) -> tuple[str, Any]:
    """Read ``key=value``, the value as Python writes it, or as text.

    >>> key_and_value("out_indices=1,2"), key_and_value("width=auto"), key_and_value("alpha=0.5")
    (('out_indices', (1, 2)), ('width', 'auto'), ('alpha', 0.5))
    """
    key, equals, value = text.partition("=")
    if not (key.isidentifier() and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, such as alpha=2")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


class _Settings(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        from mmengine.config import DictAction

        settings = dict(getattr(namespace, self.dest) or {})
        for word in values:
            key, equals, value = word.partition("=")
            if not (equals and all(key.split("."))):
                raise argparse.ArgumentError(self, f"expected KEY=VALUE, such as train_cfg.max_epochs=60, got {word!r}")
            try:
                settings[key] = DictAction._parse_iterable(value)
            except Exception as error:  # an AssertionError for brackets that do not match, among others
                raise argparse.ArgumentError(self, f"{key}: cannot read the value {value!r} ({error})") from error
        setattr(namespace, self.dest, settings)


def check_device(device: str) -> None:
    """Refuse a device that does not exist here, by ValueError."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {device!r} cannot be used here: {reason}. `--device cpu` always works.") from error


def write_text(file: str, text: str) -> None:
    """Write to a file, whose folder is made, or to stdout for '-'."""
    if file == "-":
        sys.stdout.write(text)
    else:
        atomic_write(file, text.encode())
