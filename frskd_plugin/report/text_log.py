"""What only mmengine's text log knows of a start: versions, the seed that was drawn, the steps of an epoch, times."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

_STEPS = re.compile(r"Epoch\(train\)\s*\[\s*\d+\]\[\s*\d+/(\d+)\]")
_NAMES = r"Python|PyTorch|TorchVision|OpenCV|MMEngine|GPU \d[\d,]*|seed|frskd_plugin|timm|(?:onedl-)?mm(?!engine)[\w-]+"
_FACT = re.compile(rf"^ {{4}}({_NAMES}): (\S.*)$", re.MULTILINE)
_TIME = re.compile(r"^(\d{4})/(\d\d)/(\d\d) (\d\d:\d\d:\d\d) - ", re.MULTILINE)


@dataclass(frozen=True)
class TextLog:
    """Of one start of a run.

    Attributes:
        facts: 'Python', 'PyTorch', 'seed', 'GPU 0', ... -> what stands behind it.
        steps_per_epoch: None where nothing was trained yet, or the loop counts iterations.
        begin: of the log, 'YYYY-MM-DD hh:mm:ss'; None where it is empty.
        end: of the last entry so far.
    """

    facts: dict[str, str] = field(default_factory=dict)
    steps_per_epoch: int | None = None
    begin: str | None = None
    end: str | None = None


def read_text_log(folder: Path) -> TextLog:
    """The log ``STAMP.log`` in the folder ``STAMP`` of a start; an empty one where there is no such file."""
    file = folder / f"{folder.name}.log"
    return parse_text_log(file.read_text(encoding="utf-8", errors="replace")) if file.is_file() else TextLog()


def parse_text_log(text: str) -> TextLog:
    r"""What a log says.

    >>> log = parse_text_log("2026/11/24 03:09:29 - mmengine - INFO - \n    seed: 2\n    timm: 1.0.31\n")
    >>> log.facts, log.begin
    ({'seed': '2', 'timm': '1.0.31'}, '2026-11-24 03:09:29')
    """
    times = ["{}-{}-{} {}".format(*found) for found in _TIME.findall(text)]
    steps = _STEPS.search(text)
    return TextLog(
        dict(_FACT.findall(text)),
        int(steps[1]) if steps else None,
        times[0] if times else None,
        times[-1] if times else None,
    )
