"""``agentapi gate``: who holds what of a shared budget."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from aio_agentapi.cli import _show
from aio_agentapi.cli._agents import as_json_option
from aio_agentapi.cli._command import place_of, runs, shared

if TYPE_CHECKING:
    from aio_agentapi.redis import SharedBudget

# Seconds between two looks: as often as members are heard, with the usual terms.
_PAUSE = 1.0


@click.command()
@click.option("--watch", is_flag=True, help="Look again each second, until Ctrl-C.")
@as_json_option
@click.pass_context
@runs
async def gate(context: click.Context, watch: bool, as_json: bool) -> None:
    """
    Show who holds the permits of the account, of those who share a gate.

    It asks the store named by AGENTAPI_REDIS_URL, or in the [gate] table of the
    configuration file; the service is not asked.
    """
    place = place_of(context)
    store = shared(place)
    limit = place.settings.limit
    budget = await store.look(place.token, limit)
    if not watch:
        if as_json:
            _show.line(budget)
        else:
            _show.console().print(_picture(budget))
        return
    if as_json:
        while True:
            _show.line(budget)
            await asyncio.sleep(_PAUSE)
            budget = await store.look(place.token, limit)
    with Live(_picture(budget), console=_show.console(), auto_refresh=False) as live:
        while True:
            await asyncio.sleep(_PAUSE)
            live.update(_picture(await store.look(place.token, limit)), refresh=True)


def _picture(budget: SharedBudget) -> Group:
    table = Table("member", "process", "held", "wanted", "heard", "state")
    for member in budget.members:
        state = "lives"
        if member.frees is not None:
            state = f"quarantine, {member.frees:.0f} s left"
        table.add_row(
            member.id,
            Text(_show.printable(member.label)),
            str(member.held),
            str(member.wanted),
            f"{member.age:.1f} s ago",
            state,
        )
    free = budget.limit - budget.held - budget.quarantined
    told = (
        f"{budget.limit} permits: {budget.held} held, {budget.quarantined} in"
        f" quarantine, {free} free; overdrawn by {budget.overdrawn} so far"
    )
    return Group(table, Text(told))
