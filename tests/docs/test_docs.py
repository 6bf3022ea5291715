"""The pages of docs/ work: code runs, commands and links exist, messages are the library's, Sphinx has no warning."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import inspect
import io
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from frskd_plugin.commands import run
from frskd_plugin.methods import method_class, method_names, method_settings, registry
from frskd_plugin.mmengine.registration import COMPONENTS
from tests.helpers.doc_pages import DOCS, ROOT, anchors, blocks, is_run, links, pages, run_page

PAGES = {page.relative_to(DOCS).as_posix(): page for page in pages()}
RUN = [name for name, page in PAGES.items() if any(is_run(block) for block in blocks(page))]
SLOW = {name for name in RUN if any(block.note == "run" for block in blocks(PAGES[name]))}
COMMAND = re.compile(r"(?:python tools/(\w+)\.py|(?<![\w.])frskd ([a-z_]+)\b)((?:[^\n|;#`\\]|\\\n)*)")
TEXTS = {"README.md": ROOT / "README.md", **PAGES}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in RUN])
def test_code_of_the_page_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))  # a page may register a method
    run_page(PAGES[name], tmp_path)


def test_the_conventions_are_kept() -> None:
    """A comment before a block says one of what is known, and an output follows some code."""
    for page in PAGES.values():
        before = None
        for block in blocks(page):
            where = f"{page.name}:{block.line}"
            known = block.note in ("", "run", "output", "message")
            assert known or block.note.startswith(("file: ", "not run: ")), f"{where}: {block.note}"
            assert block.note != "output" or before == "python", f"{where} is the output of no Python block"
            before = block.kind


def commands() -> Iterator[tuple[str, str, list[str]]]:
    """Page, name and words of each command line in the pages."""
    for page, path in TEXTS.items():
        for tool, name, rest in COMMAND.findall(path.read_text()):
            yield page, tool or name, rest.replace("\\\n", " ").split()


@functools.cache
def options_of(*command: str) -> set[str]:
    """The options that ``frskd NAME [SUBCOMMAND] --help`` tells of."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert run(command[0], [*command[1:], "--help"]) == 0
    return set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", out.getvalue()))


@pytest.mark.parametrize("name", sorted({name for _, name, _ in commands()}))
def test_commands_have_the_options_that_are_shown(name: str) -> None:
    assert (ROOT / "tools" / f"{name}.py").is_file()
    for page, _, words in (found for found in commands() if found[1] == name):
        subcommand = words[:1] if name == "benchmark" and words[:1] in (["step"], ["train"]) else []
        for word in words:
            option = re.match(r"--?[a-zA-Z][\w-]*$", word)
            known = option is None or word in options_of(name, *subcommand)
            assert known, f"{page}: frskd {name} {' '.join(subcommand)} has no option {word}"


@pytest.mark.parametrize("name", TEXTS)
def test_named_files_exist(name: str) -> None:
    found = set(re.findall(r"(?<![\w/.])(?:tools|configs|scripts)/[\w./]+\.(?:py|sh)\b", TEXTS[name].read_text()))
    missing = sorted(path for path in found if not (ROOT / path).is_file())
    assert not missing


@pytest.mark.parametrize("name", TEXTS)
def test_links_and_anchors_resolve(name: str) -> None:
    page = TEXTS[name]
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name}: {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{name}: {target}; {file.name} has {sorted(anchors(file))}"


def spoken_texts() -> list[re.Pattern[str]]:
    """A pattern for each text in the sources of the package and the tools; what a text fills in may be anything."""
    patterns = set()
    for path in [*(ROOT / "frskd_plugin").rglob("*.py"), *(ROOT / "tools").glob("*.py")]:
        tree = ast.parse(path.read_text())
        inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = [re.escape(p.value) if isinstance(p, ast.Constant) else ".*" for p in node.values]
                literal = sum(len(p.value) for p in node.values if isinstance(p, ast.Constant))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
                parts, literal = [re.escape(node.value)], len(node.value)
            else:
                continue
            if literal > 20:  # shorter ones are no messages
                patterns.add("".join(parts))
    return [re.compile(pattern, re.S) for pattern in sorted(patterns)]


def test_messages_of_the_faq_are_those_of_the_library() -> None:
    messages = [block for block in blocks(DOCS / "faq.md") if block.note == "message"]
    assert len(messages) > 30
    patterns = spoken_texts()
    unknown = [m.text for m in messages if not any(p.fullmatch(m.text.strip()) for p in patterns)]
    assert not unknown, "\n".join(unknown)


@pytest.mark.parametrize(
    "name", [name for name in method_names() if method_class(name).__module__.startswith("frskd_")]
)
def test_settings_of_the_methods_are_those_of_the_code(name: str) -> None:
    section = (DOCS / "methods.md").read_text().split(f"\n## {name}\n", 1)[1].split("\n## ", 1)[0]
    text = re.search(r"^Settings: (.*?)\.$", section, re.M | re.S).group(1)
    own = inspect.signature(method_class(name).__init__).parameters
    for setting, needed in method_settings(name).items():
        if setting not in own:  # of the class that it builds on
            assert "those of `frskd`" in text
        elif needed:
            assert f"`{setting}` (must be given)" in text
        else:
            assert re.search(rf"[`\s]{setting}={re.escape(repr(own[setting].default))}[,`]", text), setting
    named = re.findall(r"(\w+)=", text)
    assert set(named) <= set(method_settings(name))


def test_every_component_of_a_config_is_in_the_api_reference() -> None:
    entries = "".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    entries += "".join((ROOT / "frskd_plugin" / part / "__init__.py").read_text() for part in ("core", "mmseg"))
    names = [name for components in COMPONENTS.values() for name in components]
    assert [name for name in names if not re.search(rf"\b{name}\b", entries)] == []


@pytest.mark.parametrize("script", sorted((DOCS / "gallery_source").glob("*.py")), ids=lambda path: path.stem)
def test_notebook_runs(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = script.read_text()
    small = text.replace("EPOCHS, PER_CLASS = 25, 60", "EPOCHS, PER_CLASS = 1, 12")
    assert small != text
    exec(compile(small, str(script), "exec"), {"__name__": "notebook"})
    assert "WideResNet" in capsys.readouterr().out
    plt.close("all")


@pytest.mark.slow
def test_sphinx_builds_the_pages_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("sphinx", "myst_parser", "furo", "latex2mathml", "sphinx_gallery"):
        pytest.importorskip(name, reason="it comes with the extra `docs`")
    for entry in ROOT.iterdir():  # the gallery writes beside its sources
        if entry.name == "docs":
            shutil.copytree(entry, tmp_path / "docs", ignore=shutil.ignore_patterns("_build", "gallery"))
        else:
            (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the pages' settings put themselves in front of it
    options = ["-W", "--keep-going", "-q", "-D", "plot_gallery=0", "-b", "html", "-d", str(tmp_path / "doctrees")]
    build = importlib.import_module("sphinx.cmd.build").main
    assert build([*options, str(tmp_path / "docs"), str(tmp_path / "html")]) == 0, capsys.readouterr().err[-4000:]
    html = (tmp_path / "html" / "method.html").read_text()
    formulas = re.findall(r"<math.*?</math>", html, re.S)
    assert formulas and not [formula for formula in formulas if "\\" in formula]  # no command of LaTeX is left over
    for page in (tmp_path / "html").rglob("*.html"):
        assert not re.search(r"""<(?:script|link|img)[^>]+(?:src|href)=["']https?:""", page.read_text()), page
    methods = (tmp_path / "html" / "api" / "methods.html").read_text()
    assert 'id="frskd_plugin.wrap"' in (tmp_path / "html" / "api" / "timm.html").read_text()
    assert 'href="core.html#frskd_plugin.core.SelfTeacherNeck"' in methods
