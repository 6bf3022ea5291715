"""The one build step that setup.cfg cannot express: configs/ and tools/ travel in the wheel as frskd_plugin/.mim/."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
TRAVELLING = ("configs", "tools")


class BuildWithRecipes(build_py):
    """`build_py` that starts from an empty folder and adds the recipes and command lines."""

    def run(self) -> None:
        if getattr(self, "editable_mode", False):  # an editable install reads the checkout itself
            super().run()
            return
        package = Path(self.build_lib).resolve() / "frskd_plugin"
        if package.parent != ROOT:  # a build/ left from before would put files into the wheel that no longer exist
            shutil.rmtree(package, ignore_errors=True)
        super().run()
        for folder in TRAVELLING:
            shutil.copytree(
                ROOT / folder,
                package / ".mim" / folder,
                ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*"),
                dirs_exist_ok=True,
            )


setup(cmdclass={"build_py": BuildWithRecipes})
