"""What every command does the same way: find the account, run, end with a code."""

from __future__ import annotations

import asyncio
import functools
import os
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, ParamSpec

import click

from aio_agentapi import Session, SessionManager
from aio_agentapi.cli import _account
from aio_agentapi.errors import (
    AgentAPIError,
    BusyError,
    CredentialError,
    ForbiddenError,
    GateError,
    InvalidError,
    NotSentError,
    UnsupportedError,
    UsageError,
)

P = ParamSpec("P")

DONE: Final = 0
REFUSED: Final = 1
WRONG: Final = 2
NOT_REACHED: Final = 3
UNKNOWN: Final = 4
INTERRUPTED: Final = 130

EXIT_CODES: Final = (
    "Exit codes: 0 done; 1 refused, or some rows of a plan were; 2 wrong use or"
    " input, nothing was sent; 3 not reached or not allowed; 4 the outcome of"
    " something is unknown; 130 interrupted."
)

# The first that fits; what is left is a plain refusal.
_EXITS: Final[tuple[tuple[type[AgentAPIError], int], ...]] = (
    (UsageError, WRONG),
    (InvalidError, WRONG),
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


@asynccontextmanager
async def open_session(context: click.Context) -> AsyncGenerator[Session]:
    """Open the session of the account that the options name."""
    account, config = context.find_root().obj
    place = _account.find(account, config, os.environ)
    async with SessionManager(place.base_url, settings=place.settings) as manager:
        yield manager.session(place.token)


def runs(
    command: Callable[P, Coroutine[Any, Any, int | None]],
) -> Callable[P, None]:
    """Run a coroutine function as a command, and end with its exit code."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = asyncio.run(command(*args, **kwargs))
        except AgentAPIError as error:
            click.echo(f"agentapi: {error}", err=True)
            sys.exit(exit_code(error))
        except BrokenPipeError:
            # Whoever read our output has had enough; say nothing more there.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(DONE)
        except KeyboardInterrupt:
            click.echo("agentapi: interrupted", err=True)
            sys.exit(INTERRUPTED)
        sys.exit(code or DONE)

    return wrapped
