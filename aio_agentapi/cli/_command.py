"""What every command does the same way: find the account, run, end with a code."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, ParamSpec

import attrs
import click

from aio_agentapi import MemoryStore, Session, SessionManager, SqliteStore
from aio_agentapi.cli import _account
from aio_agentapi.cli._show import printable
from aio_agentapi.errors import (
    AgentAPIError,
    BusyError,
    CredentialError,
    ForbiddenError,
    GateError,
    InvalidError,
    JournalError,
    NotSentError,
    UnsupportedError,
    UsageError,
)

if TYPE_CHECKING:
    from aio_agentapi.redis import RedisGates

P = ParamSpec("P")

DONE: Final = 0
REFUSED: Final = 1
WRONG: Final = 2
NOT_REACHED: Final = 3
UNKNOWN: Final = 4
UNWELL: Final = 5
INTERRUPTED: Final = 130

EXIT_CODES: Final = (
    "Exit codes: 0 done; 1 refused, or some rows of a plan were; 2 wrong use or"
    " input, nothing was done; 3 not reached, not allowed, or a plan was stopped;"
    " 4 the outcome of something is unknown; 5 the doctor found something wrong;"
    " 130 interrupted."
)

# The first that fits; what is left is a plain refusal.
_EXITS: Final[tuple[tuple[type[AgentAPIError], int], ...]] = (
    (UsageError, WRONG),
    (InvalidError, WRONG),
    (JournalError, WRONG),
    (CredentialError, NOT_REACHED),
    (ForbiddenError, NOT_REACHED),
    (BusyError, NOT_REACHED),
    (NotSentError, NOT_REACHED),
    (UnsupportedError, NOT_REACHED),
    (GateError, NOT_REACHED),
)


def exit_code(error: AgentAPIError) -> int:
    """Return what a command ends with after *error*."""
    if error.happened == "maybe":
        return UNKNOWN
    return next((code for kind, code in _EXITS if isinstance(error, kind)), REFUSED)


def keep_account(
    context: click.Context, account: str | None, config: Path | None, token: str | None
) -> None:
    """Note whose account it is; refuse a token that stands on the command line."""
    if token is not None:
        msg = (
            "a token is not taken from the command line, where others can read it:"
            " set AGENTAPI_TOKEN, or use --account. Have this one reissued"
        )
        raise click.UsageError(msg)
    context.obj = (account, config)


def draft_of(context: click.Context, journal: Path | None = None) -> _account.Draft:
    """Return what is said of the account that the options name, and its journal."""
    account, config = context.find_root().obj
    draft = _account.find(account, config, os.environ)
    return draft if journal is None else attrs.evolve(draft, journal=journal)


def place_of(context: click.Context, journal: Path | None = None) -> _account.Place:
    """Return the account that the options name, with the journal that they name."""
    return draft_of(context, journal).place()


@asynccontextmanager
async def open_session(context: click.Context) -> AsyncGenerator[Session]:
    """Open the session of the account that the options name."""
    async with open_place(place_of(context)) as session:
        yield session


@asynccontextmanager
async def open_place(
    place: _account.Place, store: SqliteStore | None = None
) -> AsyncGenerator[Session]:
    """Open the session of an account; its journal calls it by its name."""
    accounts = {} if place.name is None else {place.name: place.token}
    async with SessionManager(
        place.base_url,
        accounts=accounts,
        settings=place.settings,
        gate=None if place.gate is None else shared(place),
        store=MemoryStore() if store is None else store,
    ) as manager:
        yield manager.session(place.token)


def shared(place: _account.Place) -> RedisGates:
    """
    Return the store of the budget that an account shares with other programs.

    Raises:
        UsageError: None is named, or redis-py is missing. Nothing was sent.
    """
    if place.gate is None:
        msg = (
            "no shared gate: set AGENTAPI_REDIS_URL, or url in the [gate] table of the"
            " configuration file"
        )
        raise UsageError(msg)
    try:
        # Only here: who shares no gate needs no redis-py.
        from aio_agentapi.redis import RedisGate  # noqa: PLC0415 - as above
    except ModuleNotFoundError:
        msg = "the shared gate needs redis-py: pip install 'aio-agentapi[redis]'"
        raise UsageError(msg) from None
    return RedisGate.factory(**place.gate)


def guarded(command: Callable[P, int | None]) -> Callable[P, None]:
    """
    Run a function as a command: errors in a line, and its exit code at the end.

    What there is to do about an error stands in its notes, a line for each.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = command(*args, **kwargs) or DONE
        except AgentAPIError as error:
            for told in (error, *getattr(error, "__notes__", ())):
                click.echo(f"agentapi: {printable(str(told))}", err=True)
            if error.reference is not None and error.happened == "maybe":
                tell_reference(error.reference)
            code = exit_code(error)
        except BrokenPipeError:
            # Whoever read our output has had enough.
            _mute()
            code = DONE
        except OSError as error:
            _mute()
            click.echo(f"agentapi: {error.strerror or error}", err=True)
            code = WRONG
        except (KeyboardInterrupt, asyncio.CancelledError):
            click.echo("agentapi: interrupted", err=True)
            code = INTERRUPTED
        sys.exit(code)

    return wrapped


def runs(
    command: Callable[P, Coroutine[Any, Any, int | None]],
) -> Callable[P, None]:
    """Run a coroutine function as a command; see :func:`guarded`."""

    @guarded
    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> int | None:
        return asyncio.run(command(*args, **kwargs))

    return wrapped


def tell_reference(reference: str) -> None:
    """Say how a move whose outcome is unknown is safe to repeat."""
    click.echo(
        f"agentapi: the same command with --reference {reference} moves it once,"
        " whether it has happened or not",
        err=True,
    )


@contextmanager
def alone() -> Generator[None]:
    """Raise the first error of a group of tasks by itself."""
    try:
        yield
    except BaseExceptionGroup as group:
        first = group.exceptions[0]
    else:
        return
    raise first


@contextmanager
def last_words() -> Generator[None]:
    """Write what is left to say: what was done is done, whether that works or not."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        _mute()
        if not isinstance(error, BrokenPipeError):
            reason = f"agentapi: the output cannot be written: {error.strerror}"
            click.echo(reason, err=True)


def _mute() -> None:
    # Python flushes standard output once more when it ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


class _Teller(logging.Handler):
    """Says that the service is not reached, where it is tried again."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.WARNING:
            click.echo(f"agentapi: {printable(record.getMessage())}", err=True)


@contextmanager
def telling(name: str) -> Generator[None]:
    """Say the warnings of a log on standard error."""
    log, teller = logging.getLogger(name), _Teller()
    log.addHandler(teller)
    try:
        yield
    finally:
        log.removeHandler(teller)
