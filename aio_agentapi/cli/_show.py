"""Answers as tables and trees for people, as JSON for programs."""

from __future__ import annotations

from collections.abc import AsyncIterable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Final, cast

import click
import msgspec
from rich.console import Console
from rich.table import Table
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


def words(value: object) -> str:
    """Write a value as people read it."""
    if value is None or value == ():
        return "-"
    if isinstance(value, Decimal):
        return money(value)
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="seconds")
    if isinstance(value, tuple):
        return " ".join(words(part) for part in cast("tuple[object, ...]", value))
    if isinstance(value, Secret):
        return value.reveal()
    return str(value)


def money(amount: Decimal) -> str:
    """Write an amount with thousands apart and all its digits."""
    return f"{amount:,f}"


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
        async for record in records:
            line(record)
        return
    # A table for each so many rows: a long list is shown while it is read.
    held: list[object] = []
    async for record in records:
        held += [record]
        if len(held) == _PAGE:
            _table(held, columns)
            held.clear()
    _table(held, columns)


def _table(held: Sequence[object], columns: Sequence[str]) -> None:
    if not held:
        return
    table = Table(box=None, pad_edge=False)
    for column in columns:
        number = isinstance(getattr(held[0], column), int | Decimal)
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for record in held:
        table.add_row(*(words(getattr(record, column)) for column in columns))
    console().print(table)


def tree(node: AgentNode) -> None:
    """Draw an account and those below it."""
    root = Tree(_label(node), guide_style="dim")
    heads = [(root, node)]
    while heads:
        branch, above = heads.pop()
        heads += [(branch.add(_label(child)), child) for child in above.children]
    console().print(root)


def _label(node: AgentNode) -> str:
    agent = node.agent
    state = "" if agent.state in {None, "active"} else f" {agent.state}"
    code = "" if agent.agent_code is None else f" {agent.agent_code}"
    return f"{agent.name}{code} {agent.role or ''} {money(agent.balance)}{state}"


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # rich would end the program with a code of its own.
        raise BrokenPipeError


def console() -> Console:
    """Return a console on standard output that cuts nothing when it is piped."""
    plain = _Console()
    return plain if plain.is_terminal else _Console(width=500)
