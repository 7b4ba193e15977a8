"""``agentapi users`` and ``agentapi transactions``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import select
import signal
import stat
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo

import attrs
import click
import msgspec

from aio_agentapi import Session, Transaction
from aio_agentapi.cli import _show
from aio_agentapi.cli._agents import as_json_option
from aio_agentapi.cli._command import alone, last_words, open_session, runs, telling
from aio_agentapi.errors import (
    FeedGapError,
    UsageError,
)

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


def _moment(text: str) -> datetime:
    """Read a time of ISO 8601; without a zone it is in that of the service."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        msg = f"{text!r} is no time: 2024-05-31T12:00:00Z"
        raise click.BadParameter(msg) from None


_START = click.argument("start", type=_moment)
_END = click.argument("end", type=_moment)


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


@transactions.command()
@click.argument("after", type=click.IntRange(0, 2**63 - 1), required=False)
@click.option(
    "--cursor",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Keeps the trans_id of the last row that was written, and begins behind it.",
)
@click.pass_context
@runs
async def follow(
    context: click.Context, after: int | None, cursor: Path | None
) -> None:
    """
    Write the transactions after AFTER as JSON Lines, and wait for new ones.

    It ends when it is interrupted. 0, and no AFTER: from the oldest row that is still
    there. Each row comes once, in order, some seconds after it was made.

    With --cursor it goes on where it was, however it ended: after a kill the last
    rows may come twice, but none is left out.
    """
    task = asyncio.current_task()
    for number in (signal.SIGTERM, signal.SIGHUP):
        # As Ctrl-C does.
        asyncio.get_running_loop().add_signal_handler(number, _cancel, task)
    spool = _Spool(cursor)
    begin = spool.begin(after)
    async with open_session(context) as session:
        found = session.transactions.follow(begin)
        try:
            with telling("aio_agentapi.transactions"):
                async with contextlib.aclosing(found) as rows, spool.writing():
                    async for row in rows:
                        await spool.add(row)
        except FeedGapError as error:
            error.add_note(_after_gap(error, cursor))
            raise


def _after_gap(error: FeedGapError, cursor: Path | None) -> str:
    """Say what is missing, and how to go on."""
    oldest = "there is none now" if error.before is None else f"it is {error.before}"
    way = "follow 0" if cursor is None else f"follow, with {cursor} removed,"
    return (
        f"the next row that is still there after {error.after}: {oldest}."
        f" agentapi transactions {way} goes on from the oldest"
    )


def _cancel(task: asyncio.Task[object] | None) -> None:
    if task is not None:
        task.cancel()


# Rows, and seconds, after which they are written; and seconds for the last ones,
# where nobody may read them any more.
_ROWS: Final = 500
_SECONDS: Final = 0.5
_LAST: Final = 1.0

_ENCODER: Final = msgspec.json.Encoder(decimal_format="number")


@attrs.define(eq=False)
class _Spool:
    """
    Rows on their way to standard output, and the cursor that follows them.

    The cursor is that of the last row of which all is out. So a row may come twice,
    after a kill between both, but is never left out.
    """

    cursor: Path | None
    _lines: bytearray = attrs.field(init=False, factory=bytearray)
    _held: int = attrs.field(init=False, default=0)
    _last: int = attrs.field(init=False, default=0)
    _kept: int = attrs.field(init=False, default=0)
    _turn: asyncio.Lock = attrs.field(init=False, factory=asyncio.Lock)
    _more: asyncio.Event = attrs.field(init=False, factory=asyncio.Event)

    def begin(self, after: int | None) -> int:
        """
        Return the row to begin behind.

        Raises:
            UsageError: It is said twice, or the file has none or cannot be written;
                or rows have nowhere to go.
        """
        if sys.__stdout__ is None:
            # Its number would be that of a file, or of a connection.
            msg = "standard output is closed: there is nowhere to write rows to"
            raise UsageError(msg)
        try:
            known = None if self.cursor is None else self._read(self.cursor)
        except (OSError, UnicodeDecodeError) as error:
            msg = f"--cursor: {error}"
            raise UsageError(msg) from None
        if known is not None and after is not None:
            msg = f"{self.cursor} says where to begin: leave AFTER out, or remove it"
            raise UsageError(msg)
        self._last = self._kept = known or after or 0
        return self._last

    @asynccontextmanager
    async def writing(self) -> AsyncGenerator[None]:
        """Write what is added, until the end."""
        try:
            with alone():
                async with asyncio.TaskGroup() as group:
                    writer = group.create_task(self._write())
                    yield
                    writer.cancel()
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST):
                    await self._flush()

    async def add(self, row: Transaction) -> None:
        """Take a row; wait where many are there that nobody reads."""
        self._lines += _ENCODER.encode(row) + b"\n"
        self._last = row.trans_id
        self._held += 1
        self._more.set()
        if self._held >= _ROWS:
            await self._flush()

    def _read(self, cursor: Path) -> int | None:
        # Told now, and not when rows are out.
        self._partial(cursor).touch()
        self._partial(cursor).unlink()
        try:
            text = cursor.read_text("utf-8")
        except FileNotFoundError:
            return None
        if not re.fullmatch(r"[0-9]{1,19}\n?", text):
            msg = f"{cursor}: no file that --cursor has written"
            raise UsageError(msg)
        return int(text)

    def _partial(self, cursor: Path) -> Path:
        return cursor.with_name(cursor.name + ".partial")

    async def _write(self) -> None:
        while True:
            await self._more.wait()
            await self._flush()
            await asyncio.sleep(_SECONDS)

    async def _flush(self) -> None:
        """Write all there is, and then the cursor."""
        async with self._turn:
            while self._lines:
                await _writable()
                # Whole lines, so that a kill leaves no half of one.
                end = self._lines.rfind(b"\n", 0, select.PIPE_BUF) + 1
                written = os.write(1, self._lines[: end or select.PIPE_BUF])
                del self._lines[:written]
            self._held = 0
            self._more.clear()
            if self.cursor is not None and self._last != self._kept:
                self._keep(self.cursor)

    def _keep(self, cursor: Path) -> None:
        if stat.S_ISREG(os.fstat(1).st_mode):
            # A loss of power must not leave the cursor, and take the rows.
            os.fsync(1)
        with self._partial(cursor).open("w", encoding="utf-8") as file:
            file.write(f"{self._last}\n")
            file.flush()
            os.fsync(file.fileno())
        self._partial(cursor).replace(cursor)
        self._kept = self._last


async def _writable() -> None:
    """
    Wait until standard output takes PIPE_BUF bytes.

    A write that waits by itself cannot be interrupted.
    """
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    try:
        loop.add_writer(1, ready.set)
    except PermissionError:
        # A file: it always does.
        return
    try:
        await ready.wait()
    finally:
        loop.remove_writer(1)
