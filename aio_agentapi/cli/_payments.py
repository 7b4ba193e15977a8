"""``agentapi wallets``, and ``agentapi payments``: the journal of what they do."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Final

import attrs
import click

from aio_agentapi import Intent, Moved, Phase, Session, SqliteStore
from aio_agentapi._journal import FINAL
from aio_agentapi.cli import _show
from aio_agentapi.cli._account import Place
from aio_agentapi.cli._agents import as_json_option
from aio_agentapi.cli._command import (
    DONE,
    UNKNOWN,
    alone,
    last_words,
    open_place,
    place_of,
    runs,
    telling,
)
from aio_agentapi.errors import AgentAPIError, UsageError

_COLUMNS = (
    "id",
    "created_at",
    "operation",
    "user_code",
    "amount",
    "key",
    "phase",
    "note",
)

_JOURNAL: Final = (
    "--journal FILE, AGENTAPI_JOURNAL, or journal in the configuration file"
)

_journal_option = functools.partial(
    click.option,
    "--journal",
    envvar="AGENTAPI_JOURNAL",
    metavar="FILE",
    help="Where payments are written down before they are sent.",
)
journal_option = _journal_option(type=click.Path(dir_okay=False, path_type=Path))
# For the doctor, which says itself what is wrong with it.
any_journal_option = _journal_option(type=click.Path(path_type=Path))

_key_option = click.option(
    "--key",
    metavar="TEXT",
    help="Your own name for the payment: with a journal, it pays once.",
)

_ID = click.IntRange(1, 2**63 - 1)

_number = click.argument("number", metavar="ID", type=_ID)


@attrs.frozen(kw_only=True)
class _Row:
    """A payment, as it is shown."""

    id: int
    created_at: datetime | None
    operation: str
    user_code: int
    amount: Decimal | None
    key: str | None
    phase: Phase
    note: str | None
    moved: Decimal | None
    balance: Decimal | None
    trans_id: int | None
    follows: int | None

    @classmethod
    def of(cls, intent: Intent) -> _Row:
        """Return what is shown of an intent."""
        moved = intent.moved
        return cls(
            id=intent.id,
            created_at=intent.created_at,
            operation=intent.operation,
            user_code=intent.user_code,
            amount=intent.amount,
            key=intent.key,
            phase=intent.phase,
            note=intent.note,
            moved=None if moved is None else moved.amount,
            balance=None if moved is None else moved.balance,
            trans_id=intent.trans_id,
            follows=intent.follows,
        )


@attrs.frozen
class _Books:
    """A session, and the journal of its account."""

    session: Session
    store: SqliteStore
    account: str

    async def all(self, numbers: Sequence[int] = ()) -> list[Intent]:
        """
        Return payments of the account, the oldest first; all, where none is named.

        Raises:
            UsageError: There is no such one.
        """
        found = await self.store.intents(self.account, ids=numbers or None)
        missing = sorted(set(numbers) - {intent.id for intent in found})
        if missing:
            told = ", ".join(map(str, missing))
            msg = f"the journal has no payment {told} of this account"
            raise UsageError(msg)
        return found


@asynccontextmanager
async def _paying(
    context: click.Context, journal: Path | None, key: str | None = None
) -> AsyncGenerator[Session]:
    """
    Open a session for a payment; where its outcome is unknown, say what to do.

    Raises:
        UsageError: A key, and no journal that remembers it. Nothing was sent.
    """
    place = place_of(context, journal)
    if key is not None and place.journal is None:
        msg = (
            f"--key needs a journal, which outlives the command: {_JOURNAL}."
            " Nothing was sent"
        )
        raise UsageError(msg)
    store = None if place.journal is None else SqliteStore(place.journal)
    try:
        async with open_place(place, store) as session:
            yield session
    except AgentAPIError as error:
        if error.happened == "maybe":
            error.add_note(_advice(place, error.intent))
        raise
    except asyncio.CancelledError:
        click.echo(f"agentapi: {_advice(place, None)}", err=True)
        raise


def _advice(place: Place, intent: int | None) -> str:
    """Say what to do about a payment of which nobody knows whether it happened."""
    if place.journal is None:
        return (
            "before you pay again look at the user's balance (agentapi users info),"
            " and half a minute from now at the feed (agentapi transactions since)"
        )
    if intent is None:
        return "with the same journal, agentapi payments list shows what is unknown"
    return f"agentapi payments settle {intent} finds out, with the same journal"


@asynccontextmanager
async def _open(context: click.Context, journal: Path | None) -> AsyncGenerator[_Books]:
    place = place_of(context, journal)
    store = SqliteStore(_existing(place.journal))
    async with open_place(place, store) as session:
        yield _Books(session, store, place.label)


def _existing(journal: Path | None) -> Path:
    if journal is None:
        msg = f"payments are looked up in a journal: {_JOURNAL}"
        raise UsageError(msg)
    # An empty one would say that nothing is open.
    if not journal.exists():
        msg = f"{journal}: there is no such journal"
        raise UsageError(msg)
    return journal


@click.group()
def wallets() -> None:
    """
    Move money between your points and your users.

    The service has nothing that makes these calls safe to repeat. With a journal
    (--journal) each is written down before it is sent: a --key pays once, and when
    an answer is lost (exit code 4) "payments settle" finds out what became of it.
    Without one, look at the user's balance and transactions before you pay again.
    """


@wallets.command()
@click.argument("user_code", type=int)
@click.argument("amount")
@_key_option
@journal_option
@as_json_option
@click.pass_context
@runs
async def deposit(
    context: click.Context,
    user_code: int,
    amount: str,
    key: str | None,
    journal: Path | None,
    as_json: bool,
) -> None:
    """Move AMOUNT from your points to a user's balance."""
    async with _paying(context, journal, key) as session:
        moved = await session.wallets.deposit(user_code, amount, key=key)
        _show_moved(moved, as_json=as_json)


@wallets.command()
@click.argument("user_code", type=int)
@click.argument("amount")
@_key_option
@journal_option
@as_json_option
@click.pass_context
@runs
async def withdraw(
    context: click.Context,
    user_code: int,
    amount: str,
    key: str | None,
    journal: Path | None,
    as_json: bool,
) -> None:
    """Move AMOUNT from a user's balance to your points."""
    async with _paying(context, journal, key) as session:
        moved = await session.wallets.withdraw(user_code, amount, key=key)
        _show_moved(moved, as_json=as_json)


@wallets.command("withdraw-all")
@click.argument("user_code", type=int)
@_key_option
@journal_option
@as_json_option
@click.pass_context
@runs
async def withdraw_all(
    context: click.Context,
    user_code: int,
    key: str | None,
    journal: Path | None,
    as_json: bool,
) -> None:
    """Move all of a user's balance to your points."""
    async with _paying(context, journal, key) as session:
        moved = await session.wallets.withdraw_all(user_code, key=key)
        _show_moved(moved, as_json=as_json)


@click.group()
def payments() -> None:
    """
    Look into the journal of payments, and find out what is unknown.

    The journal is that of an application, or of the wallets commands: whoever pays
    writes there what he pays before he sends it. Several programs of one machine may
    use it at once. It calls an account by its name, so take the name that the
    application gives it (--account).
    """


@payments.command("list")
@click.option("--all", "is_all", is_flag=True, help="Those, too, whose end is known.")
@journal_option
@as_json_option
@click.pass_context
@runs
async def list_(
    context: click.Context, is_all: bool, journal: Path | None, as_json: bool
) -> None:
    """List the payments of which nobody knows whether they happened."""
    async with _open(context, journal) as books:
        found = await books.session.payments.unknown()
        if is_all:
            found = await books.all()
    _show.table([_Row.of(i) for i in found], _COLUMNS, as_json=as_json)


@payments.command()
@click.argument("numbers", metavar="[ID]...", type=_ID, nargs=-1)
@click.option(
    "--deadline",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="When to leave it at that.",
)
@journal_option
@as_json_option
@click.pass_context
@runs
async def settle(
    context: click.Context,
    numbers: tuple[int, ...],
    deadline: float | None,
    journal: Path | None,
    as_json: bool,
) -> int:
    """
    Find out whether payments happened; all that are open, if none is named.

    What happened is mostly found at once. That something did not happen is sure only
    some time after it was lost (longest_call and feed_lag in the settings).

    The exit code is 4 as long as one of them is open.
    """
    async with _open(context, journal) as books:
        session = books.session
        if deadline is not None:
            session = session.with_options(deadline=deadline)
        with telling("aio_agentapi.payments"):
            if numbers:
                ended = await _settle(session, await books.all(numbers))
            else:
                ended = await session.payments.settle_all()
    _tell(ended, as_json=as_json)
    return DONE if all(intent.phase in FINAL for intent in ended) else UNKNOWN


@payments.command()
@_number
@journal_option
@as_json_option
@click.pass_context
@runs
async def resend(
    context: click.Context, number: int, journal: Path | None, as_json: bool
) -> None:
    """
    Pay anew what certainly did not happen.

    Only what is refused, not_sent or absent. Given twice, it pays once.
    """
    place = place_of(context, journal)
    async with _paying(context, _existing(place.journal)) as session:
        _show_moved(await session.payments.resend(number), as_json=as_json)


@payments.command()
@_number
@click.option("--happened", is_flag=True, help="The money has moved.")
@click.option("--absent", is_flag=True, help="It has not, and will not.")
@click.option("--note", required=True, metavar="TEXT", help="How that is known.")
@journal_option
@as_json_option
@click.pass_context
@runs
async def decide(
    context: click.Context,
    number: int,
    happened: bool,
    absent: bool,
    note: str,
    journal: Path | None,
    as_json: bool,
) -> None:
    """Say what became of a payment that needs a person."""
    if happened == absent:
        msg = "say either --happened or --absent. Nothing was changed"
        raise UsageError(msg)
    async with _open(context, journal) as books:
        decided = await books.session.payments.decide(number, happened, note)
    _tell([decided], as_json=as_json)


def _show_moved(moved: Moved, *, as_json: bool) -> None:
    """Show what a payment moved; NaN is what nobody knows."""
    pairs = [
        (name, None if amount.is_nan() else amount)
        for name, amount in (("amount", moved.amount), ("balance", moved.balance))
    ]
    with last_words():
        if as_json:
            _show.line(dict(pairs))
        else:
            _show.facts(pairs)


def _tell(intents: Sequence[Intent], *, as_json: bool) -> None:
    with last_words():
        _show.table([_Row.of(i) for i in intents], _COLUMNS, as_json=as_json)


async def _settle(session: Session, wanted: Sequence[Intent]) -> list[Intent]:
    """Settle payments side by side: they share the readings of the feed."""
    with alone():
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(session.payments.settle(i)) for i in wanted]
    return [task.result() for task in tasks]
