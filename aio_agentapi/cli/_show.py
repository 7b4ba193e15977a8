"""Answers as tables and trees for people, as JSON for programs."""

from __future__ import annotations

from collections.abc import AsyncIterable, Sequence
from datetime import datetime
from decimal import Decimal
from enum import IntEnum
from typing import Final, cast

import attrs
import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from aio_agentapi import AgentNode, Secret

_PAGE: Final = 200


def _plain(value: object) -> object:
    if isinstance(value, Secret):
        # Shown this once: where it is asked for, it is the answer.
        return value.reveal()
    msg = f"{type(value).__name__} has no JSON form"
    raise NotImplementedError(msg)


_ENCODER: Final = msgspec.json.Encoder(decimal_format="number", enc_hook=_plain)


def line(record: object) -> None:
    """Write one record as a line of JSON."""
    click.echo(_ENCODER.encode(record))


def printable(text: str) -> str:
    """Write a text in one line, without what would steer the terminal."""
    return "".join(
        each if each.isprintable() else " " if each.isspace() else "?" for each in text
    )


def words(value: object) -> str:  # noqa: PLR0911 - one for each kind of value
    """Write a value as people read it."""
    if value is None or value == ():
        return "-"
    if isinstance(value, Decimal):
        return money(value)
    if isinstance(value, IntEnum) and value.name != "UNKNOWN":
        return value.name.lower()
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="seconds")
    if isinstance(value, tuple):
        return " ".join(words(part) for part in cast("tuple[object, ...]", value))
    if isinstance(value, Secret):
        return value.reveal()
    return printable(str(value))


def money(amount: Decimal) -> str:
    """Write an amount with thousands apart and all its digits."""
    return f"{amount:,f}"


def record(answer: attrs.AttrsInstance, *, as_json: bool) -> None:
    """Write one record as a line of JSON, or a member on each line."""
    if as_json:
        line(answer)
    else:
        names = [field.name for field in attrs.fields(type(answer))]
        facts([(name, getattr(answer, name)) for name in names])


def facts(pairs: Sequence[tuple[str, object]]) -> None:
    """Write a record as two columns."""
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        click.echo(f"{name:<{width}}  {words(value)}")


async def rows(
    records: AsyncIterable[object], columns: Sequence[str], *, as_json: bool
) -> None:
    """Write records as lines of JSON or a table, as they come."""
    if as_json:
        async for row in records:
            line(row)
        return
    # A table for each so many rows: a long list is shown while it is read.
    held: list[object] = []
    try:
        async for row in records:
            held += [row]
            if len(held) == _PAGE:
                _table(held, columns)
                held.clear()
    finally:
        # Also what was read before something went wrong.
        _table(held, columns)


def table(held: Sequence[object], columns: Sequence[str], *, as_json: bool) -> None:
    """Write all of some records as lines of JSON or a table."""
    if as_json:
        for row in held:
            line(row)
    else:
        _table(held, columns)


def _table(held: Sequence[object], columns: Sequence[str]) -> None:
    if not held:
        return
    drawn = Table(box=None, pad_edge=False)
    for column in columns:
        value = getattr(held[0], column)
        number = isinstance(value, int | Decimal) and not isinstance(value, IntEnum)
        # Where there is no room, texts are folded: a number is never cut.
        drawn.add_column(
            column,
            justify="right" if number else "left",
            no_wrap=number,
            overflow="fold",
        )
    for row in held:
        # As texts: what the service says is no markup.
        drawn.add_row(*(Text(words(getattr(row, column))) for column in columns))
    console().print(drawn)


def tree(node: AgentNode) -> None:
    """Draw an account and those below it."""
    root = Tree(_label(node), guide_style="dim")
    heads = [(root, node)]
    while heads:
        branch, above = heads.pop()
        heads += [(branch.add(_label(child)), child) for child in above.children]
    console().print(root)


def _label(node: AgentNode) -> Text:
    agent = node.agent
    state = "" if agent.state in {None, "active"} else f" {agent.state}"
    code = "" if agent.agent_code is None else f" {agent.agent_code}"
    role = agent.role or ""
    told = f"{agent.name}{code} {role} {money(agent.balance)}{state}"
    return Text(printable(told))


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # rich would end the program with a code of its own.
        raise BrokenPipeError


def console() -> Console:
    """Return a console on standard output that cuts nothing when it is piped."""
    plain = _Console()
    return plain if plain.is_terminal else _Console(width=500)
