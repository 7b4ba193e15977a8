"""``agentapi wallets``, and ``agentapi payments``: the journal of what they do."""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Final

import attrs
import click

from aio_agentapi import Intent, Moved, Phase, Session, SqliteStore
from aio_agentapi._identity import Account, Claim, spelled
from aio_agentapi._journal import FINAL, OPEN
from aio_agentapi._settings import check_base_url
from aio_agentapi.cli import _show
from aio_agentapi.cli._account import Place
from aio_agentapi.cli._agents import as_json_option
from aio_agentapi.cli._command import (
    DONE,
    UNKNOWN,
    alone,
    draft_of,
    last_words,
    open_place,
    place_of,
    runs,
    telling,
)
from aio_agentapi.cli._show import printable
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
    claim: Claim

    async def elsewhere(self) -> list[Intent]:
        """Return what is open of other accounts, and say of which."""
        account = await self.store.linked(self.claim)
        opened = await self.store.intents(phases=OPEN)
        others = [i for i in opened if account is None or i.account != account.label]
        known = {a.label: a for a in await self.store.accounts()}
        for label, number in Counter(i.account for i in others).items():
            told = f"agentapi: {number} open of {known.get(label, label)}"
            click.echo(printable(told), err=True)
        return others

    async def all(self, numbers: Sequence[int] = ()) -> list[Intent]:
        """
        Return payments of the account, the oldest first; all, where none is named.

        Raises:
            UsageError: There is no such one.
        """
        account = await self.store.linked(self.claim)
        found: list[Intent] = []
        if account is not None:
            found = await self.store.intents(account.label, ids=numbers or None)
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
        yield _Books(session, store, place.claim)


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
    use it at once. It knows an account by its name (--account) or its token; what is
    open of others is said, with the exit code 4.
    """


@payments.command("list")
@click.option("--all", "is_all", is_flag=True, help="Those, too, whose end is known.")
@journal_option
@as_json_option
@click.pass_context
@runs
async def list_(
    context: click.Context, is_all: bool, journal: Path | None, as_json: bool
) -> int:
    """
    List the payments of which nobody knows whether they happened.

    The exit code is 4 as long as one is open, of this account or of another.
    """
    async with _open(context, journal) as books:
        found = opened = await books.session.payments.unknown()
        if is_all:
            found = await books.all()
        others = await books.elsewhere()
    _show.table([_Row.of(i) for i in found], _COLUMNS, as_json=as_json)
    return UNKNOWN if opened or others else DONE


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

    The exit code is 4 as long as one of them is open; where none is named, also while
    one of another account is.
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
        others = [] if numbers else await books.elsewhere()
    _tell(ended, as_json=as_json)
    is_done = all(intent.phase in FINAL for intent in [*ended, *others])
    return DONE if is_done else UNKNOWN


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


@payments.group()
def account() -> None:
    """
    Say whose payments a journal has.

    It links an account by its name and by the hash of its token, to an agent at a
    service, and refuses what does not agree: a name with another agent's token, an
    agent at another address. What a person knows is said here.
    """


@attrs.frozen(kw_only=True)
class _AccountRow:
    """An account of a journal, as it is shown."""

    label: str
    agent: str | None
    currency: int | None
    agent_code: int | None
    urls: str
    names: str
    tokens: str

    @classmethod
    def of(cls, known: Account) -> _AccountRow:
        """Return what is shown of an account."""
        agent = known.agent
        return cls(
            label=known.label,
            agent=None if agent is None else agent.name,
            currency=None if agent is None else agent.currency,
            agent_code=None if agent is None else agent.agent_code,
            urls=" ".join(sorted(known.urls)),
            names=" ".join(sorted(known.names)),
            tokens=" ".join(sorted(known.tokens)),
        )


_ACCOUNT_COLUMNS = (
    "label",
    "agent",
    "currency",
    "agent_code",
    "urls",
    "names",
    "tokens",
)


@asynccontextmanager
async def _store(
    context: click.Context, journal: Path | None
) -> AsyncGenerator[SqliteStore]:
    """Open a journal whose accounts are looked at; no service is needed."""
    store = SqliteStore(_existing(journal or draft_of(context).journal))
    try:
        yield store
    finally:
        await store.aclose()


def _show_accounts(accounts: Sequence[Account], *, as_json: bool) -> None:
    rows = [_AccountRow.of(known) for known in accounts]
    _show.table(rows, _ACCOUNT_COLUMNS, as_json=as_json)


@account.command("list")
@journal_option
@as_json_option
@click.pass_context
@runs
async def list_accounts(
    context: click.Context, journal: Path | None, as_json: bool
) -> None:
    """List the accounts of a journal, and what each is linked to."""
    async with _store(context, journal) as store:
        found = await store.accounts()
    _show_accounts(found, as_json=as_json)


@account.command()
@click.argument("label")
@click.option("--url", metavar="URL", help="It is at this address, too.")
@click.option("--name", metavar="NAME", help="Configurations call it so, too.")
@click.option("--agent", metavar="NAME", help="The service calls it so now.")
@click.option("--token", "is_token", is_flag=True, help="The account in use is it.")
@journal_option
@as_json_option
@click.pass_context
@runs
async def allow(
    context: click.Context,
    label: str,
    url: str | None,
    name: str | None,
    agent: str | None,
    is_token: bool,
    journal: Path | None,
    as_json: bool,
) -> None:
    """
    Say that the account LABEL has another address, name or token, and is the same.

    Its keys then stand for the same payments there. Nothing is asked: if it is not the
    same agent, a key pays nothing where it should, or twice.
    """
    more = {"url": url and _spelled(url), "name": name, "agent": agent}
    if is_token:
        more["token"] = place_of(context, journal).token.digest
    said = {kind: value for kind, value in more.items() if value}
    if not said:
        msg = "say what is the same: --url, --name, --agent or --token"
        raise UsageError(msg)
    async with _store(context, journal) as store:
        changed = await store.allow(label, **said)
    _show_accounts([changed], as_json=as_json)


def _spelled(url: str) -> str:
    return spelled(check_base_url(url, allow_plain_http=True))


@account.command()
@click.argument("source", metavar="FROM")
@click.argument("into", metavar="INTO")
@journal_option
@as_json_option
@click.pass_context
@runs
async def merge(
    context: click.Context,
    source: str,
    into: str,
    journal: Path | None,
    as_json: bool,
) -> None:
    """
    Say that two accounts of a journal are one agent: FROM goes over to INTO.

    Its payments, their keys, and what it is linked to. It cannot be undone.
    """
    async with _store(context, journal) as store:
        await store.merge(source, into)
        found = [each for each in await store.accounts() if each.label == into]
    _show_accounts(found, as_json=as_json)


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
