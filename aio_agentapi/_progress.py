"""
What became of the rows of a plan, in a file beside it.

The name of the run is on disk before anything is sent: with it and the position of a
row, its reference is the same in every run, and the service moves it once. So what is
noted of a row need not be: a line that a crash loses costs a call that moves nothing.
Rows are written in groups, by a thread, and only the name waits for the disk.

A row is noted when it is taken from the plan, with what it says, so that another plan
under the same file is found before anything of it is sent.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sqlite3
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterator,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, Self, TypeAlias, TypeVar

import attrs
import msgspec

from aio_agentapi._types import AgentCode, Amount, exact
from aio_agentapi.errors import AmountError, JournalError, UsageError

T = TypeVar("T")

# What became of a row that was taken from its plan.
End: TypeAlias = Literal["moved", "refused", "not_sent", "unknown"]

_VERSION: Final = 1
_MARK: Final = 0x61675031

_SCHEMA: Final = f"""
CREATE TABLE run (name TEXT NOT NULL, rows INTEGER);
CREATE TABLE rows (
    position INTEGER PRIMARY KEY,
    line INTEGER NOT NULL,
    agent_code INTEGER NOT NULL,
    amount TEXT NOT NULL,
    reference TEXT NOT NULL,
    own INTEGER NOT NULL,
    phase TEXT NOT NULL,
    move_id INTEGER,
    code INTEGER,
    reason TEXT
);
PRAGMA user_version = {_VERSION};
PRAGMA application_id = {_MARK};
"""

_PUT: Final = (
    "INSERT OR REPLACE INTO rows SELECT"
    " json_extract(value, '$[0]'), json_extract(value, '$[1]'),"
    " json_extract(value, '$[2]'), json_extract(value, '$[3]'),"
    " json_extract(value, '$[4]'), json_extract(value, '$[5]'),"
    " json_extract(value, '$[6]'), json_extract(value, '$[7]'),"
    " json_extract(value, '$[8]'), json_extract(value, '$[9]')"
    " FROM json_each(?)"
)

_ENCODER: Final = msgspec.json.Encoder()

# Seconds between two groups, and rows of one: what a crash leaves out.
_PAUSE: Final = 0.2
_GROUP: Final = 500


@attrs.define
class Noted:
    """
    One row of a plan, as the file has it.

    Attributes:
        position: Where it stands in the plan, from 1.

        line: What it is called in messages.

        agent_code: Who gets the points.

        amount: How many, as text.

        reference: What it is moved by.

        own: Whether the plan gave it that reference.

        phase: What became of it.

        move_id: Of the move.

        code: Of a refusal.

        reason: Why it has not moved.

        row: What the plan has there, where it was read just now; not in the file.
    """

    position: int
    line: int
    agent_code: AgentCode
    amount: str
    reference: str
    own: bool
    phase: End | Literal["taken"] = "taken"
    move_id: int | None = None
    code: int | None = None
    reason: str | None = None
    row: object = attrs.field(default=None, eq=False)

    @property
    def values(self) -> tuple[object, ...]:
        """All of it, as the columns are."""
        # By hand: attrs.astuple looks into each value, and takes ten times as long.
        return (
            self.position,
            self.line,
            self.agent_code,
            self.amount,
            self.reference,
            int(self.own),
            self.phase,
            self.move_id,
            self.code,
            self.reason,
        )

    @property
    def said(self) -> tuple[AgentCode, str, str]:
        """What the plan says of it."""
        return self.agent_code, self.amount, self.reference


@attrs.define(eq=False)
class Progress:
    """
    The file of one run. Got from :meth:`open`, and to be closed.

    Attributes:
        run: The name of the run.

        finished: How many rows the plan has, where a run came to its end. None: no
            run did.
    """

    run: str
    finished: int | None
    _path: Path = attrs.field(alias="path")
    _sql: sqlite3.Connection = attrs.field(alias="sql")
    # One thread for all that touches the file: it may have to wait for the disk.
    _thread: ThreadPoolExecutor = attrs.field(alias="thread")
    _fresh: dict[int, Noted] = attrs.field(init=False, factory=dict)
    _written: float = attrs.field(init=False, factory=time.monotonic)

    @classmethod
    async def open(cls, path: Path, run: str | None) -> Self:
        """
        Open the file of a run, or make it.

        Args:
            path: The file.

            run: The name of a new run. None: one is made.

        Raises:
            UsageError: It is no such file, is of a run of another name, or another
                process has it open. Nothing was sent.

            JournalError: It cannot be made or read. Nothing was sent.
        """
        thread = ThreadPoolExecutor(1, "agentapi-progress")
        loop = asyncio.get_running_loop()
        try:
            sql, name, rows = await loop.run_in_executor(thread, _open, path, run)
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return cls(name, rows, path, sql, thread)

    async def through(self, plan: AsyncIterable[Noted]) -> AsyncGenerator[Noted]:
        """
        Yield what is still to be moved: first of what is noted, then of the plan.

        Args:
            plan: All of its rows, in their order.

        Raises:
            UsageError: The plan is another one. None of it has been yielded.
        """
        rows = aiter(plan)
        last = await self._compare(rows)
        await self.write()
        after = 0
        while left := await self._do(self._left, after):
            for row in left:
                yield row
            after = left[-1].position
        async for row in rows:
            last += 1
            if self.finished is not None:
                msg = (
                    f"line {row.line}: the plan that {self._path} tells of ended"
                    f" before it: {_words(row)}. Nothing was sent"
                )
                raise UsageError(msg)
            self._fresh[row.position] = row
            yield row
        await self.write()
        await self._do(self._finish, last)

    def note(self, row: Noted) -> None:
        """Keep what became of a row, until the next group is written."""
        self._fresh[row.position] = row

    @property
    def is_due(self) -> bool:
        """Whether it is time to write a group."""
        late = time.monotonic() - self._written > _PAUSE
        return bool(self._fresh) and (late or len(self._fresh) >= _GROUP)

    async def write(self) -> None:
        """
        Write what is not written yet.

        Raises:
            JournalError: It cannot be written. What has moved has moved.
        """
        fresh, self._fresh = self._fresh, {}
        try:
            await self._do(self._write, [row.values for row in fresh.values()])
        except BaseException:
            # In its place: what comes behind it is not written without it.
            self._fresh = {**fresh, **self._fresh}
            raise
        self._written = time.monotonic()

    def rows(self) -> Iterator[Noted]:
        """Return all rows that are noted, in the order of the plan."""
        for row in self._sql.execute("SELECT * FROM rows ORDER BY position"):
            yield _noted(row)

    async def aclose(self) -> None:
        """Write what is left, and close the file."""
        try:
            with suppress(JournalError):
                await self.write()
        finally:
            self._thread.submit(self._sql.close)
            self._thread.shutdown(wait=True)

    async def _compare(self, plan: AsyncIterator[Noted]) -> int:
        """Read as much of a plan as is noted; return how much that is."""
        position = 0
        while known := await self._do(self._known, position):
            for noted in known:
                row = await anext(plan, None)
                while row is not None and row.position < noted.position:
                    # A row that was taken, and not noted before the disk was full.
                    self._fresh[row.position] = row
                    row = await anext(plan, None)
                if row is None or row.said != noted.said:
                    now = "ends before it" if row is None else f"has {_words(row)}"
                    msg = (
                        f"line {noted.line}: {self._path} has {_words(noted)}, and the"
                        f" plan {now}: it is another plan. Nothing was sent"
                    )
                    raise UsageError(msg)
                position = noted.position
        return position

    def _known(self, after: int) -> list[Noted]:
        return self._select("position > ?", after)

    def _left(self, after: int) -> list[Noted]:
        return self._select("position > ? AND phase <> 'moved'", after)

    def _select(self, where: str, after: int) -> list[Noted]:
        found = self._sql.execute(
            f"SELECT * FROM rows WHERE {where} ORDER BY position LIMIT {_GROUP}",  # noqa: S608 - literals of our own
            (after,),
        )
        return [_noted(row) for row in found]

    def _write(self, rows: list[tuple[object, ...]]) -> None:
        # One statement for the whole group: with one for each row, the thread would
        # hand the interpreter over, and wait for it, as often.
        self._sql.execute(_PUT, (_ENCODER.encode(rows),))

    def _finish(self, rows: int) -> None:
        self._sql.execute("UPDATE run SET rows = ?", (rows,))

    async def _do(self, act: Callable[..., T], *args: object) -> T:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, act, *args)
        except sqlite3.Error as error:
            msg = f"{self._path}: {error}. What has moved is safe to send again"
            raise JournalError(msg) from None


def canonical(amount: Amount) -> str:
    """Write an amount so that equal ones read the same, also one that is none."""
    try:
        text = f"{exact(amount):f}"
    except AmountError:
        # No amount either when it is read again.
        return f"? {amount!r}"[:40]
    return text.rstrip("0").rstrip(".") if "." in text else text


def _words(row: Noted) -> str:
    own = f" as {row.reference}" if row.own else ""
    return f"{row.amount} for {row.agent_code}{own}"


def _noted(row: tuple[object, ...]) -> Noted:
    return Noted(*row)  # type: ignore[arg-type]  # the columns, in their order


def _open(path: Path, run: str | None) -> tuple[sqlite3.Connection, str, int | None]:
    try:
        if not path.exists():
            # The plan is the operator's business.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        sql = sqlite3.connect(
            path, isolation_level=None, timeout=1.0, check_same_thread=False
        )
    except (OSError, sqlite3.Error) as error:
        msg = f"{path}: {getattr(error, 'strerror', error)}. Nothing was sent"
        raise JournalError(msg) from None
    try:
        return sql, *_named(sql, path, run)
    except sqlite3.Error as error:
        sql.close()
        busy = "locked" in str(error)
        why = "another run of the plan has it open" if busy else str(error)
        msg = f"{path}: {why}. Nothing was sent"
        raise (UsageError(msg) if busy else JournalError(msg)) from None
    except BaseException:
        sql.close()
        raise


def _named(
    sql: sqlite3.Connection, path: Path, run: str | None
) -> tuple[str, int | None]:
    """Return the name of the run, made and on disk if there is none yet."""
    # Ours alone: two runs of a plan at once would do all of it twice.
    sql.execute("PRAGMA locking_mode = EXCLUSIVE")
    sql.execute("PRAGMA journal_mode = WAL")
    sql.execute("PRAGMA synchronous = FULL")
    sql.execute("BEGIN IMMEDIATE")
    (version,) = sql.execute("PRAGMA user_version").fetchone()
    (mark,) = sql.execute("PRAGMA application_id").fetchone()
    (tables,) = sql.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and (version, mark) != (_VERSION, _MARK):
        msg = f"{path}: no journal of a plan, or of another version. Nothing was sent"
        raise UsageError(msg)
    if not tables:
        for statement in _SCHEMA.split(";"):
            sql.execute(statement)
        name = secrets.token_hex(8) if run is None else run
        sql.execute("INSERT INTO run VALUES (?, NULL)", (name,))
    found = sql.execute("SELECT name, rows FROM run").fetchone()
    if run not in {None, found[0]}:
        msg = f"{path}: tells of the run {found[0]!r}, not {run!r}. Nothing was sent"
        raise UsageError(msg)
    sql.execute("COMMIT")
    # From here on a crash of the machine may cost the last groups, and not the file.
    sql.execute("PRAGMA synchronous = NORMAL")
    return found[0], found[1]
