"""What the back office's pages are made of: forms, fields and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal

import attrs

from aio_agentapi.sandbox._forms import digits, iso
from aio_agentapi.sandbox._markup import Html, Part, tag


@attrs.frozen
class Typed:
    """
    A form that was sent and cannot be accepted.

    Attributes:
        form: Its name.

        values: What was typed.

        wrong: What is wrong, by field; under an empty name, with all of it.
    """

    form: str
    values: Mapping[str, str]
    wrong: Mapping[str, str]


@attrs.frozen
class Form:
    """
    Writes a form and its fields, filled as they were sent if it was refused.

    Args:
        name: What tells it apart on its page.

        typed: The form that was refused, this one or another. None: none was.
    """

    _name: str = attrs.field(alias="name")
    _typed: Typed | None = attrs.field(alias="typed")

    def write(self, action: str, *fields: Part, button: str) -> Html:
        """Put fields into a form that is sent to *action*."""
        return tag(
            "form",
            self.wrong(""),
            *fields,
            tag("button", button, type="submit"),
            method="post",
            action=action,
            id=self._name,
        )

    def field(
        self,
        name: str,
        label: str,
        *,
        value: str = "",
        hint: str = "",
        kind: Literal["input", "textarea"] = "input",
        **attributes: Part,
    ) -> Html:
        """Write a field, and what is wrong with what was typed there."""
        value = "" if attributes.get("type") == "password" else self._value(name, value)
        wrong = self.wrong(name)
        attributes |= self._ids(name, hint, wrong) | {
            "aria_invalid": "true" if wrong else None,
            "autofocus": wrong is not None,
        }
        if kind == "textarea":
            # The first new line is not content.
            control = tag("textarea", f"\n{value}", **attributes)
        else:
            control = tag("input", value=value, **attributes)
        return self._labelled(name, label, control, hint, wrong)

    def choice(
        self,
        name: str,
        label: str,
        options: Mapping[str, str],
        *,
        value: str = "",
        hint: str = "",
    ) -> Html:
        """Write a field for one of several values, each with its text."""
        chosen = self._value(name, value)
        listed = [
            tag("option", text, value=key, selected=key == chosen)
            for key, text in options.items()
        ]
        wrong = self.wrong(name)
        control = tag("select", *listed, **self._ids(name, hint, wrong))
        return self._labelled(name, label, control, hint, wrong)

    def wrong(self, name: str) -> Html | None:
        """Say what is wrong with a field; without a name, with all of it."""
        typed = self._typed
        if typed is None or typed.form != self._name or name not in typed.wrong:
            return None
        place = f"{self._name}-{name}-wrong"
        text = typed.wrong[name]
        # What is wrong with all of it has no field to take the focus there.
        whole: dict[str, Part] = {} if name else {"tabindex": "-1", "autofocus": True}
        return tag("p", text, class_="wrong", role="alert", id=place, **whole)

    def _value(self, name: str, usual: str) -> str:
        typed = self._typed
        if typed is None or typed.form != self._name:
            return usual
        return typed.values.get(name, usual)

    def _ids(self, name: str, hint: str, wrong: Html | None) -> dict[str, Part]:
        place = f"{self._name}-{name}"
        told = [f"{place}-hint"] * bool(hint) + [f"{place}-wrong"] * bool(wrong)
        described = " ".join(told) or None
        return {"id": place, "name": name, "aria_describedby": described}

    def _labelled(
        self, name: str, label: str, control: Html, hint: str, wrong: Html | None
    ) -> Html:
        place = f"{self._name}-{name}"
        return tag(
            "div",
            tag("label", label, for_=place),
            control,
            tag("small", hint, id=f"{place}-hint") if hint else None,
            wrong,
            class_="field",
        )


def table(name: str, head: Sequence[Html], rows: Sequence[Html]) -> Html:
    """Write a table that is scrolled where it is too wide."""
    table = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *rows))
    # Wide ones are scrolled, by keyboard too.
    return tag(
        "div", table, class_="scroll", tabindex=0, role="region", aria_label=name
    )


def head(*names: str) -> list[Html]:
    """Write the heads of columns; '#' marks one of numbers."""
    return [
        tag(
            "th",
            name.lstrip("#"),
            scope="col",
            class_="number" if name.startswith("#") else None,
        )
        for name in names
    ]


def row(*cells: Part) -> Html:
    """Write a row; a cell may be written already."""
    written = [
        cell if isinstance(cell, Html) and cell.startswith("<td") else tag("td", cell)
        for cell in cells
    ]
    return tag("tr", *written)


def number(units: int) -> Html:
    """Write a cell with an amount of ten-thousandths."""
    return tag("td", digits(units), class_="number")


def when(moment: datetime) -> Html:
    """Write a time."""
    text = moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
    return tag("time", text, datetime=iso(moment))


def more(path: str, onward: str | None) -> Html | None:
    """Write a link to the next page, if there is one."""
    if onward is None:
        return None
    return tag("p", tag("a", "More", href=f"{path}?{onward}", rel="next"))
