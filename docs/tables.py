"""
Write the tables of the docs that are drawn from the code.

``python docs/tables.py`` puts each between its marks in its page, where a test compares
them. They are kept in the pages, so that a code host shows them too.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import attrs

from aio_agentapi import Settings
from aio_agentapi._session import (
    _OPTIONS,  # pyright: ignore[reportPrivateUsage] - nothing else tells them
)

ROOT: Final = Path(__file__).parents[1]
DOCS: Final = ROOT / "docs"


def settings() -> str:
    """Return the fields of Settings: default, and the comment that stands above it."""
    told = _comments(inspect.getsource(Settings))
    rows: list[tuple[str, str, str]] = []
    for field in attrs.fields(Settings):
        name = f"`{field.name}`" + (" ●" if field.name in _OPTIONS else "")
        default = "the contract's" if field.name == "paths" else f"`{field.default!r}`"
        if told[field.name]:
            rows.append((name, default, told[field.name]))
        else:
            # One comment for several that stand together.
            names, defaults, what = rows.pop()
            same = defaults == default
            defaults = defaults if same else f"{defaults}, {default}"
            rows.append((f"{names}, {name}", defaults, what))
    return _table(("setting", "default", ""), rows)


def examples() -> str:
    """Return the files of the examples, each with the first line of its docstring."""
    rows: list[tuple[str, str]] = []
    for path in sorted((ROOT / "examples").glob("*.py")):
        told = ast.get_docstring(ast.parse(path.read_text())) or ""
        rows.append((f"[{path.name}](../examples/{path.name})", told.splitlines()[0]))
    return _table(("file", ""), rows)


# The page that each table stands in.
TABLES: Final = {
    ("tuning.md", "settings"): settings,
    ("examples.md", "examples"): examples,
}


def pages() -> dict[Path, str]:
    """Return the text of each page with its tables as they are now."""
    drawn: dict[Path, str] = {}
    for (page, name), table in TABLES.items():
        path = DOCS / page
        text = drawn.get(path) or path.read_text()
        marks = rf"(<!-- drawn: {name} -->\n).*?(\n<!-- end -->)"
        new, count = re.subn(
            marks,
            lambda mark, table=table: f"{mark[1]}\n{table()}{mark[2]}",
            text,
            flags=re.DOTALL,
        )
        if count != 1:
            msg = f"{page} has no place for the table of {name}"
            raise LookupError(msg)
        drawn[path] = new
    return drawn


def _comments(source: str) -> dict[str, str]:
    """Return the comment above each field of a class."""
    found: dict[str, str] = {}
    above: list[str] = []
    for line in source.splitlines():
        if comment := re.fullmatch(r"    # (.*)", line):
            above.append(comment[1])
        elif field := re.match(r"    (\w+): ", line):
            found[field[1]] = " ".join(above)
            above = []
        elif not line.startswith("     "):
            above = []
    return found


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return (
        "\n".join(f"| {' | '.join(line)} |".replace("  ", " ") for line in lines) + "\n"
    )


if __name__ == "__main__":
    for file, text in pages().items():
        file.write_text(text)
        print(file)
