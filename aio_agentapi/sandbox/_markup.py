"""Markup of the back office's pages: what is not markup already is escaped."""

from __future__ import annotations

from html import escape
from typing import Final, TypeAlias

# Elements that have no content, and so no end.
_VOID: Final = frozenset({"input", "link", "meta"})


class Html(str):
    """Text that is markup; any other text is only shown."""

    __slots__ = ()


# None is left out: what a page shows only at times.
Part: TypeAlias = str | int | None


def join(*parts: Part) -> Html:
    """Put parts after each other."""
    return Html("".join(_written(part) for part in parts if part is not None))


def tag(kind: str, /, *parts: Part, **attributes: Part) -> Html:
    """
    Write an element.

    Args:
        kind: Its name.

        parts: Its content.

        attributes: ``class_`` stands for class, ``data_x`` for data-x. True: the name
            alone. False and None: left out.

    Returns:
        The markup.
    """
    told = "".join(
        f" {name.rstrip('_').replace('_', '-')}"
        + ("" if value is True else f'="{escape(str(value))}"')
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    if kind in _VOID:
        return Html(f"<{kind}{told}>")
    return Html(f"<{kind}{told}>{join(*parts)}</{kind}>")


def _written(part: str | int) -> str:
    return part if isinstance(part, Html) else escape(str(part))
