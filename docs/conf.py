"""How Sphinx makes the site of the docs; ``make docs`` runs it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import aio_agentapi

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

project = "aio_agentapi"
author = "the aio_agentapi maintainers"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
]
html_theme = "furo"
html_title = project
html_show_copyright = False
html_show_sphinx = False

# Blocks without a language are commands, paths and what programs print.
highlight_language = "text"
myst_heading_anchors = 3

add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
# Otherwise each Attributes section would describe its fields a second time.
napoleon_use_ivar = True
napoleon_custom_sections = ["Source"]

# What others document, since nothing is looked up in the network, and what is
# shown by its name alone: type variables, and what only we make.
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(asyncio|collections|datetime|decimal|os|pathlib|pytest|redis|ssl)\..*",
    ),
    (r"py:.*", r"(ellipsis|Decimal|RedisError|CoroutineType|UserCode|Callable\[\[\])"),
    (r"py:.*", r"aio_agentapi\._batch\.[AT]"),
    (r"py:.*", r"aio_agentapi\._journal\.(Cursor|Store)"),
    (r"py:.*", r"aio_agentapi\.sandbox\._(faults\.Which|records\.(Move|User))"),
]

# Classes that nobody makes himself take these.
_OURS = ("._channel.", "._budget.", "Terms", "Cursor", "*args")


def shorten(
    _: Sphinx, what: str, __: str, ___: object, ____: object, told: str | None, end: str
) -> tuple[str, str] | None:
    """Leave out the arguments of a class that nobody makes himself, and long ones."""
    if what != "class" or not told:
        return None
    if any(name in told for name in _OURS):
        return "", end
    return re.sub(r"mappingproxy\(.*?\)|NOTHING", "...", told), end


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, shown: nodes.TextElement
) -> Any:  # noqa: ANN401 - a node, or None
    """Find what a docstring calls by its short name, as its reader imports it."""
    target = str(node.get("reftarget", ""))
    if target.partition(".")[0] not in aio_agentapi.__all__:
        return None
    return env.domains.python_domain.resolve_xref(
        env,
        node["refdoc"],
        app.builder,
        node["reftype"],
        f"aio_agentapi.{target}",
        node,
        shown,
    )


def link_benchmarks(_: Sphinx, name: str, source: list[str]) -> None:
    """Lead to the page that includes a file, which stands beside the benchmarks."""
    if name != "speed":
        source[0] = source[0].replace("../benchmarks/README.md", "speed.md")


def setup(app: Sphinx) -> None:
    """Give Sphinx what is above."""
    app.connect("autodoc-process-signature", shorten)
    app.connect("missing-reference", resolve)
    app.connect("source-read", link_benchmarks)
