"""Runs the tests with the interpreter of a row, and reads what came of it."""

from __future__ import annotations

import os
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from scripts.matrix.environment import NOT_PASSED_ON, ROOT
from scripts.matrix.rows import Row

# run by the row's interpreter: what is really installed there
VERSIONS = """\
import importlib.metadata, importlib.util, json, platform
names = {"torch": ["torch"], "torchvision": ["torchvision"], "timm": ["timm"], "numpy": ["numpy"],
         "opencv": ["opencv-python", "opencv-python-headless"], "mmengine": ["onedl-mmengine", "mmengine"],
         "mmcv": ["onedl-mmcv", "mmcv", "mmcv-lite"], "mmseg": ["onedl-mmsegmentation", "mmsegmentation"]}
installed = {item.metadata["Name"]: item.version for item in importlib.metadata.distributions()}
found = {"python": platform.python_version()}
for candidates in names.values():
    found |= {name: installed[name] for name in candidates if name in installed}
for name in ("onedl-mmcv", "mmcv"):
    if name in found and importlib.util.find_spec("mmcv._ext"):
        found[name] += " (operators)"
print(json.dumps(found))
"""


@dataclass
class Counts:
    """What pytest reports: numbers of tests, the ids of those that failed, and why others were skipped."""

    passed: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def suite_command(row: Row, python: Path, junit: Path, tests: list[str]) -> list[str]:
    """The command that runs the tests of a row.

    Example:
        >>> from scripts.matrix.rows import LeftOut
        >>> row = Row("old", "an old one", left_out=(LeftOut("a/test_b.py", "needs c"), LeftOut("a/test_d.py::e", "f")))
        >>> suite_command(row, Path("python"), Path("old.xml"), ["a"])[3:]
        ['-p', 'no:cacheprovider', '--junitxml=old.xml', '--ignore=a/test_b.py', '--deselect=a/test_d.py::e', 'a']
    """
    command = ["bash", str(ROOT / "scripts" / "run_tests.sh"), str(python), "-p", "no:cacheprovider"]
    command.append(f"--junitxml={junit}")
    for left_out in row.left_out:
        option = "--deselect" if "::" in left_out.tests else "--ignore"
        command.append(f"{option}={left_out.tests}")
    return command + tests


def run_suite(row: Row, python: Path, folder: Path, jobs: int, tests: list[str]) -> tuple[Counts, float, int]:
    """Run the tests of a row; its output goes to ``ROW.log`` in a folder.

    Returns:
        What pytest counted, seconds, and pytest's exit status.
    """
    junit = folder / f"{row.name}.xml"
    junit.unlink(missing_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON}
    environment |= {"PYTHONPATH": str(ROOT), "JOBS": str(jobs)}
    environment.pop("STATUS_FILE", None)  # .ci/run's
    begin = time.monotonic()
    with (folder / f"{row.name}.log").open("a", encoding="utf-8") as log:
        command = suite_command(row, python, junit, tests)
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=ROOT, check=False)
    counts = read_junit(junit) if junit.is_file() else Counts()
    return counts, time.monotonic() - begin, done.returncode


def read_junit(path: Path) -> Counts:
    """Count the test cases of pytest's XML file; an error in set-up or collection is a failure."""
    counts = Counts()
    for case in ElementTree.parse(path).iter("testcase"):
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            counts.failed.append("::".join(filter(None, (case.get("classname"), case.get("name")))))
        elif skipped is not None:
            counts.skipped[skipped.get("message") or "no reason"] += 1
        else:
            counts.passed += 1
    return counts
