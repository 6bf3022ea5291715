"""Settings of Sphinx: ``python -m sphinx -W --keep-going -b html docs docs/_build/html`` (``make docs``)."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_extensions")]  # this checkout, and what lies beside this file

from frskd_plugin.version import __version__  # noqa: E402


def _can_be_imported(name: str) -> bool:
    try:
        return importlib.import_module(name) is not None
    except ImportError:
        return False


project = "frskd_plugin"
copyright = "the authors of frskd_plugin"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "mathml",
    "short_names",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "gallery_source"]

# A page and a notebook of each script, whose output and pictures come from running it (`-D plot_gallery=0` runs none).
sphinx_gallery_conf = {
    "examples_dirs": "gallery_source",
    "gallery_dirs": "gallery",
    "download_all_examples": False,
    "show_signature": False,
    "show_memory": False,
    "capture_repr": (),
    "plot_gallery": "True",
    "write_computation_times": False,  # its page loads scripts of other hosts
    "abort_on_example_error": True,
}

# Pages are Markdown. `$...$` and `$$...$$` are mathematics, headings have anchors as on GitHub.
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# The API comes from docstrings, the types of parameters from signatures.
default_role = "py:obj"  # docstrings write names in single backticks
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # else every module lists those of torch.nn.Module
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
# mmdet needs compiled operators of mmcv, which few machines that build these pages have.
_needs_operators = ("mmdet", "mmcv._ext")
autodoc_mock_imports = [name for name in _needs_operators if not _can_be_imported(name)]
python_maximum_signature_line_length = 100

html_math_renderer = "mathml"  # no scripts of other servers: the pages work without a network
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_title = f"frskd_plugin {release}"
html_copy_source = False
html_show_sphinx = False
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True
