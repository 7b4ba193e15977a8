"""``agentapi info`` and ``agentapi agents``."""

from __future__ import annotations

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import attrs
import click

from aio_agentapi import Secret
from aio_agentapi.cli import _show
from aio_agentapi.cli._command import last_words, open_session, runs

_COLUMNS = ("agent_code", "name", "role", "parent_code", "balance", "state")

as_json_option = click.option(
    "--json", "as_json", is_flag=True, help="JSON instead of a table."
)

_token_file_option = click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="Write the token there, readable by you alone, instead of showing it.",
)


@click.command()
@as_json_option
@click.pass_context
@runs
async def info(context: click.Context, as_json: bool) -> None:
    """Show the account that the token stands for."""
    async with open_session(context) as session:
        me = await session.agents.info()
    _show.record(me, as_json=as_json)


@click.group()
def agents() -> None:
    """Show and manage the accounts below yours."""


@agents.command("list")
@click.option("--parent", type=int, metavar="CODE", help="Whose children; yours.")
@click.option("--subtree", is_flag=True, help="Those further below too.")
@as_json_option
@click.pass_context
@runs
async def list_(
    context: click.Context, parent: int | None, subtree: bool, as_json: bool
) -> None:
    """List accounts below yours."""
    async with open_session(context) as session:
        found = session.agents.list(parent_code=parent, subtree=subtree)
        await _show.rows(found, _COLUMNS, as_json=as_json)


@agents.command()
@as_json_option
@click.pass_context
@runs
async def tree(context: click.Context, as_json: bool) -> None:
    """Draw your account and all below it."""
    async with open_session(context) as session:
        top = await session.agents.tree()
    if as_json:
        _show.line(top)
    else:
        _show.tree(top)


@agents.command()
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(["agent", "operator"]),
    default="agent",
    show_default=True,
)
@click.option("--parent", type=int, metavar="CODE", help="The account above; yours.")
@click.option("--allow", multiple=True, metavar="IP", help="An allowed address.")
@_token_file_option
@as_json_option
@click.pass_context
@runs
async def create(
    context: click.Context,
    name: str,
    role: str,
    parent: int | None,
    allow: tuple[str, ...],
    token_file: Path | None,
    as_json: bool,
) -> None:
    """
    Create an account below yours.

    Its token is shown this once: the service does not tell it again.
    """
    with _kept_in(token_file) as kept:
        async with open_session(context) as session:
            new = await session.agents.create(
                name, role=role, parent_code=parent, whitelist=allow
            )
            # Before the session is closed, which can be interrupted.
            written = kept.write(new.token)
    with last_words():
        if as_json:
            shown = None if written else new.token
            _show.line({"agent": new.agent, "token": shown})
        else:
            pairs = [(column, getattr(new.agent, column)) for column in _COLUMNS]
            place = f"in {token_file}" if written else new.token
            _show.facts([*pairs, ("token", place)])


@agents.command("reissue-token")
@click.argument("agent_code", type=int)
@_token_file_option
@as_json_option
@click.pass_context
@runs
async def reissue_token(
    context: click.Context, agent_code: int, token_file: Path | None, as_json: bool
) -> None:
    """
    Give an account a new token; the old one stops working at once.

    It is shown this once: the service does not tell it again.
    """
    with _kept_in(token_file) as kept:
        async with open_session(context) as session:
            token = await session.agents.reissue_token(agent_code)
            written = kept.write(token)
    with last_words():
        if as_json:
            _show.line({"token": None if written else token})
        else:
            _show.facts([("token", f"in {token_file}" if written else token)])


@agents.command()
@click.argument("agent_code", type=int)
@as_json_option
@click.pass_context
@runs
async def suspend(context: click.Context, agent_code: int, as_json: bool) -> None:
    """Have the calls of an account, and of all below it, refused."""
    async with open_session(context) as session:
        agent = await session.agents.suspend(agent_code)
    _tell(agent, as_json=as_json)


@agents.command()
@click.argument("agent_code", type=int)
@as_json_option
@click.pass_context
@runs
async def resume(context: click.Context, agent_code: int, as_json: bool) -> None:
    """Have the calls of a suspended account accepted again."""
    async with open_session(context) as session:
        agent = await session.agents.resume(agent_code)
    _tell(agent, as_json=as_json)


def _tell(agent: object, *, as_json: bool) -> None:
    with last_words():
        if as_json:
            _show.line(agent)
        else:
            _show.facts([(column, getattr(agent, column)) for column in _COLUMNS])


@attrs.define
class _Kept:
    """The file that a token is kept in, if it is."""

    path: Path | None
    file: int | None = None

    def open(self) -> None:
        """Make the file before the token exists, which must not be lost to a slip."""
        if self.path is None:
            return
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            self.file = os.open(self.path, flags, 0o600)
        except OSError as error:
            msg = f"--token-file: {error}"
            raise click.UsageError(msg) from None

    def write(self, token: Secret) -> bool:
        """Write the token; where that fails it is shown: it is told only once."""
        if self.file is None:
            return False
        kept, self.file = self.file, None
        try:
            with os.fdopen(kept, "w") as file:
                file.write(token.reveal() + "\n")
                file.flush()
                if not os.fstat(kept).st_nlink:
                    raise FileNotFoundError(errno.ENOENT, "the file is gone")
        except OSError as error:
            click.echo(f"agentapi: --token-file: {error.strerror}", err=True)
            return False
        return True

    def drop(self) -> None:
        """Remove a file that no token came into."""
        if self.file is not None and self.path is not None:
            os.close(self.file)
            self.path.unlink(missing_ok=True)


@contextmanager
def _kept_in(path: Path | None) -> Generator[_Kept]:
    kept = _Kept(path)
    kept.open()
    try:
        yield kept
    finally:
        kept.drop()
