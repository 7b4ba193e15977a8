"""``agentapi users``, ``agentapi wallets`` and ``agentapi transactions``."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import click

from aio_agentapi import Moved, Session
from aio_agentapi.cli import _show
from aio_agentapi.cli._agents import as_json_option
from aio_agentapi.cli._command import last_words, open_session, runs

_SUMS = (
    "user_code",
    "user_name",
    "slot_bet",
    "slot_win",
    "live_bet",
    "live_win",
    "mini_bet",
    "mini_win",
)
_TRANSACTION = (
    "trans_id",
    "regdate",
    "user_code",
    "trans_type",
    "prebalance",
    "trans_amount",
    "balance",
    "game_code",
    "round_id",
)


class _Moment(click.ParamType[datetime]):
    """A time of ISO 8601; without a zone it is in that of the service."""

    name = "time"

    def convert(
        self,
        value: object,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> datetime:
        try:
            return datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is no time: 2024-05-31T12:00:00Z", param, ctx)


_START = click.argument("start", type=_Moment())
_END = click.argument("end", type=_Moment())


def _placed(moment: datetime, session: Session) -> datetime:
    if moment.tzinfo is not None:
        return moment
    return moment.replace(tzinfo=ZoneInfo(session.settings.zone))


@click.group()
def users() -> None:
    """Create and show the users of your account."""


@users.command()
@click.argument("name")
@as_json_option
@click.pass_context
@runs
async def create(context: click.Context, name: str, as_json: bool) -> None:
    """Create a user, or find the one of that name."""
    async with open_session(context) as session:
        new = await session.users.create(name)
    with last_words():
        _show.record(new, as_json=as_json)


@users.command()
@click.argument("user_code", type=int)
@as_json_option
@click.pass_context
@runs
async def info(context: click.Context, user_code: int, as_json: bool) -> None:
    """Show a user's name and balance."""
    async with open_session(context) as session:
        _show.record(await session.users.info(user_code), as_json=as_json)


@users.command()
@_START
@_END
@as_json_option
@click.pass_context
@runs
async def statistics(
    context: click.Context, start: datetime, end: datetime, as_json: bool
) -> None:
    """
    Show what each user bet and won in a while.

    START and END are times of ISO 8601, such as 2024-05-31T12:00:00Z; without a zone
    they are in that of the service.
    """
    async with open_session(context) as session:
        found = session.users.statistics(_placed(start, session), _placed(end, session))
        await _show.rows(found, _SUMS, as_json=as_json)


@click.group()
def wallets() -> None:
    """
    Move money between your points and your users.

    Nothing makes these calls safe to repeat: when an answer is lost (exit code 4),
    look at the user's balance and transactions before you pay again.
    """


@wallets.command()
@click.argument("user_code", type=int)
@click.argument("amount")
@as_json_option
@click.pass_context
@runs
async def deposit(
    context: click.Context, user_code: int, amount: str, as_json: bool
) -> None:
    """Move AMOUNT from your points to a user's balance."""
    async with open_session(context) as session:
        _tell(await session.wallets.deposit(user_code, amount), as_json=as_json)


@wallets.command()
@click.argument("user_code", type=int)
@click.argument("amount")
@as_json_option
@click.pass_context
@runs
async def withdraw(
    context: click.Context, user_code: int, amount: str, as_json: bool
) -> None:
    """Move AMOUNT from a user's balance to your points."""
    async with open_session(context) as session:
        _tell(await session.wallets.withdraw(user_code, amount), as_json=as_json)


@wallets.command("withdraw-all")
@click.argument("user_code", type=int)
@as_json_option
@click.pass_context
@runs
async def withdraw_all(context: click.Context, user_code: int, as_json: bool) -> None:
    """Move all of a user's balance to your points."""
    async with open_session(context) as session:
        _tell(await session.wallets.withdraw_all(user_code), as_json=as_json)


def _tell(moved: Moved, *, as_json: bool) -> None:
    with last_words():
        _show.record(moved, as_json=as_json)


@click.group()
def transactions() -> None:
    """Show what moved the balances of your users, for two days."""


@transactions.command()
@click.argument("last_id", type=int)
@as_json_option
@click.pass_context
@runs
async def since(context: click.Context, last_id: int, as_json: bool) -> None:
    """
    Show the transactions after LAST_ID, oldest first; 0: all that are still there.

    The service wants 30 seconds between two readings from the same row. Some refuse
    an earlier one, and the command waits; others answer as if there were nothing new.
    """
    async with open_session(context) as session:
        found = session.transactions.since(last_id)
        await _show.rows(found, _TRANSACTION, as_json=as_json)


@transactions.command()
@_START
@_END
@as_json_option
@click.pass_context
@runs
async def between(
    context: click.Context, start: datetime, end: datetime, as_json: bool
) -> None:
    """
    Show the transactions from START to END, hour by hour.

    START and END are times of ISO 8601, such as 2024-05-31T12:00:00Z; without a zone
    they are in that of the service. It tells an hour at a time, twice in a minute: a
    day takes twelve minutes and more.
    """
    async with open_session(context) as session:
        found = session.transactions.between(
            _placed(start, session), _placed(end, session)
        )
        await _show.rows(found, _TRANSACTION, as_json=as_json)
