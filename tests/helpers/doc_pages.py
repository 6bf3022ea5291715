"""Reads the pages of docs/, and runs their code blocks; docs/about.md says what a page may say before a block."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest

from frskd_plugin import commands

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FENCE = re.compile(r"(?:^<!-- (?P<note>[^\n]*?) -->\n)?^```(?P<kind>[\w{}-]*)\n(?P<text>.*?)^```$", re.M | re.S)
NUMBER = re.compile(r"[-+]?\d+\.?\d*(?:e[-+]?\d+)?")
TOOL = re.compile(r"tools/(\w+)\.py")
TOLERANCE = 0.02


class Block(NamedTuple):
    """A fenced block of a page: the word behind the fence, its text, the comment before it, the number of its line."""

    kind: str
    text: str
    note: str
    line: int


def pages() -> list[Path]:
    """The Markdown files of docs/, what a build wrote left aside."""
    return sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    text = page.read_text()
    return [
        Block(m["kind"], m["text"], m["note"] or "", text.count("\n", 0, m.start("kind")) + 1)
        for m in FENCE.finditer(text)
    ]


def is_run(block: Block) -> bool:
    """Tell if a test runs, writes or compares the block."""
    return block.note in ("run", "output") or block.note.startswith("file: ") or _is_code(block)


def run_page(page: Path, folder: Path) -> None:
    """Run the blocks of a page in their order, in ``folder``, where tools/ and configs/ are at hand."""
    for name in ("tools", "configs"):
        (folder / name).symlink_to(ROOT / name)
    names: dict = {"__name__": page.stem}
    printed = ""
    for block in blocks(page):
        where = f"{page.relative_to(ROOT)}:{block.line}"
        if block.note.startswith("file: "):
            (folder / block.note.removeprefix("file: ")).write_text(block.text)
        elif block.note == "run":
            run_shell(block.text, folder, where)
        elif block.note == "output":
            assert similar(printed, block.text), f"{where} prints\n{printed}"
        elif _is_code(block):
            printed = run_python(block, page, folder, names)


def run_python(block: Block, page: Path, folder: Path, names: dict) -> str:
    """Run a block in ``folder`` and in the namespace ``names``; gives back what it prints."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        exec(compile("\n" * block.line + block.text, str(page), "exec"), names)
    return out.getvalue()


def run_shell(text: str, folder: Path, where: str) -> None:
    """Run the lines of a block in ``folder``: those of our tools in this process, which has imported everything."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            while words and (setting := re.fullmatch(r"PYTHONPATH=(.+)", words[0])):
                patch.syspath_prepend(str(folder / setting[1]))
                words = words[1:]
            if not words:
                continue
            assert words[0] == "python" and (tool := TOOL.fullmatch(words[1])), f"{where}: {line} is no tool of ours"
            assert commands.run(tool[1], words[2:]) == 0, f"{where}: {line}"


def similar(one: str, other: str) -> bool:
    """Tell if two texts agree in all but spaces, and in their numbers but for ``TOLERANCE``."""
    words = [NUMBER.sub("#", text).split() for text in (one, other)]
    numbers = [[float(found) for found in NUMBER.findall(text)] for text in (one, other)]
    if words[0] != words[1]:
        return False
    return all(abs(a - b) <= TOLERANCE * max(abs(a), abs(b)) for a, b in zip(*numbers, strict=True))


def links(page: Path) -> list[str]:
    """The targets of a page's links and pictures, those of other servers left aside."""
    text = re.sub(r"`[^`\n]+`", "`code`", FENCE.sub("", page.read_text()))
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target for target in found if not re.match(r"\w+://|mailto:|\.\./\.\./actions/", target)]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub and Sphinx give to a page's headings."""
    headings = re.findall(r"^#{1,6} (.+)$", FENCE.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def _is_code(block: Block) -> bool:
    return block.kind == "python" and not block.note.startswith(("file: ", "not run"))
