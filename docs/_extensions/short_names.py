"""Links `SelfTeacher` in a docstring to its entry, wherever in the package that is."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.util.nodes import make_refnode


def link_by_last_part(app: Sphinx, env: Any, node: pending_xref, contents: nodes.Element) -> nodes.Element | None:
    """A link to the only documented object whose full name ends with the one in the text; None where there is none."""
    if node.get("refdomain") != "py":
        return None
    name = node["reftarget"]
    entries = env.domains.python_domain.objects.items()
    found = [(full, entry) for full, entry in entries if f".{full}".endswith(f".{name}") and not entry.aliased]
    if len(found) != 1:
        return None
    full, entry = found[0]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contents, full)


def setup(app: Sphinx) -> dict[str, bool]:
    """Ask before a reference is given up."""
    app.connect("missing-reference", link_by_last_part)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
