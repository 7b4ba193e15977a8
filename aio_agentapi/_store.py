"""
The two homes of the journal: memory, and a file that survives.

Both are SQLite, so that the rules of :mod:`aio_agentapi._journal` are written once,
as statements: what must be so for all processes is an index of the file.

A file has one writer thread in each process. It does what was handed over meanwhile
in one transaction: payments that run side by side share a sync of the disk.

Whether another owner is alive is asked of the kernel: each holds a lock on a byte of
its own, in a file beside the journal, which is gone with the process however that
ends. No table of owners, no heartbeat, no number of a process that is another's by
now.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import queue
import secrets
import sqlite3
import struct
import threading
from collections.abc import Awaitable, Callable, Collection
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs

from aio_agentapi._journal import (
    FINAL,
    FREE,
    MOVES,
    Cursor,
    Intent,
    Phase,
    Verdict,
    moment,
)
from aio_agentapi._types import Moved, UserCode
from aio_agentapi.errors import AgentAPIError, JournalError, UsageError

T = TypeVar("T")

_LOG: Final = logging.getLogger("aio_agentapi.payments")

_VERSION: Final = 1
_MARK: Final = 0x61674A31


def _words(phases: Collection[Phase]) -> str:
    return ", ".join(f"'{phase}'" for phase in sorted(phases))


# One turn of a user, one payment of a key and one intent of a row of the feed, for
# all processes: the unique ones refuse a second.
_SCHEMA: Final = f"""
CREATE TABLE intents (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    account TEXT NOT NULL,
    operation TEXT NOT NULL,
    user INTEGER NOT NULL,
    amount TEXT,
    key TEXT,
    follows INTEGER,
    phase TEXT NOT NULL,
    owner INTEGER NOT NULL,
    moved TEXT,
    balance TEXT,
    trans_id INTEGER,
    note TEXT,
    created REAL NOT NULL,
    changed REAL NOT NULL,
    lost REAL,
    cursor INTEGER NOT NULL,
    cursor_made REAL,
    cursor_seen REAL,
    longest REAL NOT NULL
);
CREATE INDEX users ON intents (account, user, id);
CREATE UNIQUE INDEX turns ON intents (account, user) WHERE phase = 'sent';
CREATE INDEX keys ON intents (account, key, id) WHERE key IS NOT NULL;
CREATE UNIQUE INDEX paid ON intents (account, key)
    WHERE key IS NOT NULL AND phase NOT IN ({_words(FREE)});
CREATE INDEX followers ON intents (follows, id) WHERE follows IS NOT NULL;
CREATE UNIQUE INDEX resent ON intents (follows)
    WHERE follows IS NOT NULL AND phase NOT IN ({_words(FREE)});
CREATE INDEX open ON intents (phase) WHERE phase NOT IN ({_words(FINAL)});
CREATE UNIQUE INDEX proofs ON intents (account, trans_id) WHERE trans_id IS NOT NULL;
CREATE TABLE cursors (
    account TEXT PRIMARY KEY, trans_id INTEGER NOT NULL, made REAL, seen REAL
) WITHOUT ROWID;
"""

_INTENTS: Final = (
    "SELECT id, account, operation, user, amount, key, follows, phase, moved, balance,"
    " trans_id, note, created, changed, lost, longest, cursor, cursor_made, cursor_seen"
    " FROM intents "
)

_UNKNOWN: Final = (
    "SELECT 1 FROM intents WHERE account = ? AND user = ?"
    " AND phase IN ('unknown', 'needs_person') LIMIT 1"
)

# Seconds after which the row of a cursor may soon be gone: the feed is then read
# from its oldest row.
_STALE: Final = 24 * 3600.0

# Seconds for which another process may keep the file.
_PATIENCE: Final = 30.0

# Works of one transaction, and rows that one look for old ones goes through.
_BATCH: Final = 500
_PRUNED: Final = 10_000


@attrs.define(eq=False)
class _Books:
    """The journal as statements on one connection; what each does is atomic."""

    sql: sqlite3.Connection
    owner: int
    # Whether another owner may still be at work.
    alive: Callable[[int], bool]

    def begin(self, intent: Intent, now: float, *, block: bool) -> Intent | None:
        first = self._first(intent)
        if first is not None:
            if not first.same(intent):
                msg = (
                    f"key: {intent.key!r} stands for another payment: intent"
                    f" {first.id}. Nothing was sent"
                )
                raise UsageError(msg, intent=first.id)
            if first.phase is Phase.SENT and not self._orphaned(first.id, now):
                return None
            if first.phase not in FREE:
                return self.one(first.id)
        # What its owner has left behind is nobody's turn.
        user = (intent.account, intent.user_code)
        turn = self.sql.execute(
            "SELECT id FROM intents WHERE account = ? AND user = ? AND phase = 'sent'",
            user,
        ).fetchone()
        if turn is not None and not self._orphaned(turn[0], now):
            return None
        if block and self._is_unknown(user):
            return None
        return self._insert(intent, first, now)

    def _first(self, intent: Intent) -> Intent | None:
        """Return the newest intent that stands for the same as this."""
        if intent.key is not None:
            return self.find(intent.account, intent.key)
        if intent.follows is None:
            return None
        row = self.sql.execute(
            f"{_INTENTS}WHERE follows = ? ORDER BY id DESC LIMIT 1", (intent.follows,)
        ).fetchone()
        return None if row is None else _intent(row)

    def _is_unknown(self, user: tuple[str, UserCode]) -> bool:
        return self.sql.execute(_UNKNOWN, user).fetchone() is not None

    def _orphaned(self, number: int, now: float) -> bool:
        """Take over what a dead owner has left in ``sent``; tell whether it was so."""
        row = self.sql.execute(
            "SELECT owner FROM intents WHERE id = ?", (number,)
        ).fetchone()
        if row[0] == self.owner or self.alive(row[0]):
            return False
        verdict = Verdict(
            id=number,
            phase=Phase.UNKNOWN,
            note="whoever sent it has died before its answer was written down",
        )
        self.write([verdict], now)
        return True

    def _insert(self, intent: Intent, first: Intent | None, now: float) -> Intent:
        cursor = self.cursor(intent.account)
        if cursor.made_at is None or now - cursor.made_at.timestamp() > _STALE:
            cursor = Cursor()
        follows = intent.follows if intent.key is None or first is None else first.id
        added = self.sql.execute(
            "INSERT INTO intents (account, operation, user, amount, key, follows,"
            " phase, owner, created, changed, longest, cursor, cursor_made,"
            " cursor_seen) VALUES (?,?,?,?,?,?,'sent',?,?,?,?,?,?,?)",
            (
                intent.account,
                intent.operation,
                intent.user_code,
                None if intent.amount is None else f"{intent.amount:f}",
                intent.key,
                follows,
                self.owner,
                now,
                now,
                intent.longest,
                *_numbers(cursor),
            ),
        )
        return attrs.evolve(
            intent,
            id=added.lastrowid or 0,
            follows=follows,
            phase=Phase.SENT,
            created_at=moment(now),
            changed_at=moment(now),
            cursor=cursor,
        )

    def write(self, verdicts: Collection[Verdict], now: float) -> list[Intent]:
        for verdict in verdicts:
            intent = self.one(verdict.id)
            if verdict.phase not in MOVES[intent.phase]:
                continue
            moved = verdict.moved
            # A row of the feed proves one payment.
            self.sql.execute(
                "UPDATE OR IGNORE intents SET phase = ?, changed = ?, moved = ?,"
                " balance = ?, trans_id = ?, note = ifnull(?, note),"
                " lost = CASE WHEN ? THEN ? ELSE lost END WHERE id = ?",
                (
                    verdict.phase,
                    now,
                    None if moved is None else f"{moved.amount:f}",
                    None if moved is None else f"{moved.balance:f}",
                    verdict.trans_id,
                    verdict.note,
                    verdict.phase is Phase.UNKNOWN,
                    now,
                    verdict.id,
                ),
            )
        return [self.one(verdict.id) for verdict in verdicts]

    def one(self, number: int) -> Intent:
        row = self.sql.execute(f"{_INTENTS}WHERE id = ?", (number,)).fetchone()
        if row is None:
            msg = f"the journal has no intent {number}"
            raise UsageError(msg, intent=number)
        return _intent(row)

    def intents(
        self,
        account: str | None,
        phases: Collection[Phase],
        user_code: UserCode | None,
        ids: Collection[int],
    ) -> list[Intent]:
        terms, values = ["1"], list[object]()
        if account is not None:
            terms += ["account = ?"]
            values += [account]
        if user_code is not None:
            terms += ["user = ?"]
            values += [user_code]
        if phases:
            # As literals: what is not final has an index.
            terms += [f"phase IN ({_words(phases)})"]
            if not FINAL.intersection(phases):
                terms += [f"phase NOT IN ({_words(FINAL)})"]
        if ids:
            terms += [f"id IN ({', '.join('?' * len(ids))})"]
            values += ids
        where = " AND ".join(terms)
        rows = self.sql.execute(f"{_INTENTS}WHERE {where} ORDER BY id", values)
        return [_intent(row) for row in rows]

    def find(self, account: str, key: str) -> Intent | None:
        row = self.sql.execute(
            f"{_INTENTS}WHERE account = ? AND key = ? ORDER BY id DESC LIMIT 1",
            (account, key),
        ).fetchone()
        return None if row is None else _intent(row)

    def adopt(self, now: float) -> int:
        rows = self.sql.execute("SELECT id FROM intents WHERE phase = 'sent'")
        return sum(self._orphaned(number, now) for (number,) in rows.fetchall())

    def cursor(self, account: str) -> Cursor:
        row = self.sql.execute(
            "SELECT trans_id, made, seen FROM cursors WHERE account = ?", (account,)
        ).fetchone()
        return Cursor() if row is None else _cursor(*row)

    def keep_cursor(self, account: str, cursor: Cursor) -> None:
        self.sql.execute(
            "INSERT INTO cursors VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " trans_id = excluded.trans_id, made = excluded.made, seen = excluded.seen"
            " WHERE excluded.trans_id >= trans_id",
            (account, *_numbers(cursor)),
        )

    def prune(self, before: float) -> int:
        rows = self.sql.execute(
            "SELECT id, account, user, phase, changed, created FROM intents"
            " ORDER BY id LIMIT ?",
            (_PRUNED,),
        ).fetchall()
        gone = 0
        for number, account, user, phase, changed, created in rows:
            if created >= before:
                break
            final = Phase(phase) in FINAL and changed < before
            if final and not self._is_unknown((account, user)):
                self.sql.execute("DELETE FROM intents WHERE id = ?", (number,))
                gone += 1
        return gone


def _intent(row: tuple[Any, ...]) -> Intent:
    amount, moved = row[4], None
    if row[8] is not None:
        moved = Moved(amount=Decimal(row[8]), balance=Decimal(row[9]))
    return Intent(
        id=row[0],
        account=row[1],
        operation=row[2],
        user_code=row[3],
        amount=None if amount is None else Decimal(amount),
        key=row[5],
        follows=row[6],
        phase=Phase(row[7]),
        moved=moved,
        trans_id=row[10],
        note=row[11],
        created_at=moment(row[12]),
        changed_at=moment(row[13]),
        lost_at=_moment(row[14]),
        longest=row[15],
        cursor=_cursor(*row[16:]),
    )


def _cursor(trans_id: int, made: float | None, seen: float | None) -> Cursor:
    return Cursor(trans_id=trans_id, made_at=_moment(made), seen_at=_moment(seen))


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else moment(seconds)


def _numbers(cursor: Cursor) -> tuple[int, float | None, float | None]:
    made, seen = cursor.made_at, cursor.seen_at
    return (
        cursor.trans_id,
        None if made is None else made.timestamp(),
        None if seen is None else seen.timestamp(),
    )


@attrs.define(eq=False)
class _SqlStore:
    """What both homes do the same way; where they do it is their own."""

    def _hand_over(
        self, act: Callable[[_Books], T], *, keep: bool = False
    ) -> Awaitable[T]:
        """Do *act* after all that was handed over before; *keep* it if it fails."""
        raise NotImplementedError

    def begin(
        self, intent: Intent, now: float, *, block_unknown: bool = False
    ) -> Awaitable[Intent | None]:
        """Write an intent down; see :class:`~aio_agentapi._journal.Store`."""
        return self._hand_over(lambda b: b.begin(intent, now, block=block_unknown))

    def write(
        self, verdicts: Collection[Verdict], now: float
    ) -> Awaitable[list[Intent]]:
        """Give intents their next phase; see the protocol."""
        return self._hand_over(lambda b: b.write(verdicts, now), keep=True)

    def intents(
        self,
        account: str | None = None,
        *,
        phases: Collection[Phase] = (),
        user_code: UserCode | None = None,
        ids: Collection[int] = (),
    ) -> Awaitable[list[Intent]]:
        """Return the intents that fit all that is given, in their order."""
        return self._hand_over(lambda b: b.intents(account, phases, user_code, ids))

    def find(self, account: str, key: str) -> Awaitable[Intent | None]:
        """Return the newest intent of a key, None if there is none."""
        return self._hand_over(lambda b: b.find(account, key))

    def adopt(self, now: float) -> Awaitable[int]:
        """Make what dead owners have left in ``sent`` unknown; return how many."""
        return self._hand_over(lambda b: b.adopt(now))

    def cursor(self, account: str) -> Awaitable[Cursor]:
        """Return the newest row of an account's feed that is known."""
        return self._hand_over(lambda b: b.cursor(account))

    def keep_cursor(self, account: str, cursor: Cursor) -> Awaitable[None]:
        """Remember a row of an account's feed, if it is newer than the known one."""
        return self._hand_over(lambda b: b.keep_cursor(account, cursor))

    def prune(self, before: float) -> Awaitable[int]:
        """Forget what has been final since before a time; return how many."""
        return self._hand_over(lambda b: b.prune(before))


def _connect(place: Path | None) -> sqlite3.Connection:
    # Transactions are ours; a connection goes to the thread that uses it.
    return sqlite3.connect(
        place or ":memory:",
        isolation_level=None,
        timeout=_PATIENCE,
        check_same_thread=False,
    )


@attrs.define(eq=False, repr=False)
class MemoryStore(_SqlStore):
    """
    A journal that lives as long as the process.

    It keeps every promise but the one for which the journal is written: a crash
    loses what it knows of payments whose outcome is open.
    """

    _books: _Books | None = attrs.field(init=False, default=None)
    _warned: bool = attrs.field(init=False, default=False)

    @property
    def durable(self) -> bool:
        """Whether it outlives the process: no."""
        return False

    def begin(
        self, intent: Intent, now: float, *, block_unknown: bool = False
    ) -> Awaitable[Intent | None]:
        """Write an intent down, and the first time a warning into the log."""
        if not self._warned:
            self._warned = True
            _LOG.warning(
                "payments are noted in memory: a crash loses what is known of those"
                " whose outcome is open. Give SessionManager a store=SqliteStore(path)"
            )
        return super().begin(intent, now, block_unknown=block_unknown)

    async def aclose(self) -> None:
        """Do nothing: another manager may go on with it."""

    def _hand_over(
        self, act: Callable[[_Books], T], *, keep: bool = False
    ) -> Awaitable[T]:
        del keep
        if self._books is None:
            sql = _connect(None)
            sql.executescript(_SCHEMA)
            self._books = _Books(sql, 1, lambda _: True)
        ended: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        try:
            ended.set_result(act(self._books))
        except AgentAPIError as error:
            _fail(ended, error)
        return ended

    def __repr__(self) -> str:
        return "<MemoryStore>"


@attrs.define(eq=False)
class _Work:
    """Something handed over to the writer."""

    act: Callable[[_Books], Any]
    loop: asyncio.AbstractEventLoop
    ended: asyncio.Future[Any]
    keep: bool = False
    result: Any = None
    error: AgentAPIError | None = None


@attrs.define(eq=False, repr=False)
class SqliteStore(_SqlStore):
    """
    A journal in a file, for any number of processes of one machine.

    The file is made at its first use, readable by its owner alone, on a disk of this
    machine: locks and memory are shared through it, which a network's file system
    does not do. A store belongs to one manager, which opens and closes it.

    Args:
        path: The file. Two more stand beside it, and one with locks of the owners.
    """

    _path: Path = attrs.field(alias="path", converter=Path)
    _works: queue.SimpleQueue[_Work | None] = attrs.field(
        init=False, factory=queue.SimpleQueue
    )
    _thread: threading.Thread | None = attrs.field(init=False, default=None)
    # Verdicts that could not be written: they come first.
    _kept: list[_Work] = attrs.field(init=False, factory=list)
    _books: _Books | None = attrs.field(init=False, default=None)
    _locks: list[int] = attrs.field(init=False, factory=list)
    # One thread after the other, where it is opened again at once.
    _running: threading.Lock = attrs.field(init=False, factory=threading.Lock)

    @property
    def durable(self) -> bool:
        """Whether it outlives the process: yes."""
        return True

    async def aclose(self) -> None:
        """Write what was handed over, and close the file; a later use opens it."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._works.put(None)
            # Not in the loop: the last works may wait for the disk.
            await asyncio.get_running_loop().run_in_executor(None, thread.join)

    def _hand_over(
        self, act: Callable[[_Books], T], *, keep: bool = False
    ) -> Awaitable[T]:
        loop = asyncio.get_running_loop()
        work = _Work(act, loop, loop.create_future(), keep)
        self._works.put(work)
        if self._thread is None:
            # A program that ends without closing does not wait for it.
            self._thread = threading.Thread(
                target=self._run, name="agentapi-journal", daemon=True
            )
            self._thread.start()
        return work.ended

    def __repr__(self) -> str:
        return f"<SqliteStore {self._path}>"

    # In the thread.

    def _run(self) -> None:
        with self._running:
            while works := self._take():
                self._do(works)
                _tell(works)
            self._close()

    def _take(self) -> list[_Work]:
        """Return what was handed over meanwhile; nothing when it is to be closed."""
        works: list[_Work] = []
        work = self._works.get()
        with contextlib.suppress(queue.Empty):
            while work is not None:
                works.append(work)
                if len(works) == _BATCH:
                    break
                work = self._works.get_nowait()
        if work is None and works:
            self._works.put(None)
        return works

    def _do(self, works: list[_Work]) -> None:
        """Do works in one transaction, behind those that an earlier one left."""
        kept, self._kept = self._kept, []
        try:
            books = self._books or self._open()
            books.sql.execute("BEGIN IMMEDIATE")
            try:
                for work in [*kept, *works]:
                    _perform(work, books)
                books.sql.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    books.sql.execute("ROLLBACK")
                raise
        except (sqlite3.Error, OSError) as error:
            self._kept = [*kept, *(work for work in works if work.keep)]
            reason = getattr(error, "strerror", None) or error
            for work in works:
                told = f"the journal {self._path}: {reason}. Nothing was sent"
                work.error = JournalError(told)

    def _open(self) -> _Books:
        if not self._path.exists():
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
        sql = _connect(self._path)
        try:
            self._prepare(sql)
            books = _Books(sql, self._claim(), self._is_alive)
        except BaseException:
            sql.close()
            self._unlock()
            raise
        self._books = books
        return books

    def _prepare(self, sql: sqlite3.Connection) -> None:
        sql.execute("PRAGMA journal_mode = WAL")
        # A commit has reached the disk, not only the system.
        sql.execute("PRAGMA synchronous = FULL")
        sql.execute("BEGIN IMMEDIATE")
        with sql:
            (version,) = sql.execute("PRAGMA user_version").fetchone()
            (mark,) = sql.execute("PRAGMA application_id").fetchone()
            (tables,) = sql.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if tables and (version, mark) != (_VERSION, _MARK):
                msg = "it is of another version of this library, or no journal"
                raise sqlite3.DatabaseError(msg)
            if not tables:
                for statement in _SCHEMA.split(";"):
                    sql.execute(statement)
                sql.execute(f"PRAGMA user_version = {_VERSION}")
                sql.execute(f"PRAGMA application_id = {_MARK}")

    def _claim(self) -> int:
        """Become an owner: hold a lock that nobody else has."""
        name = self._path.with_name(self._path.name + "-owners")
        for _ in range(2):
            # Two views of the file: what one of them holds, the other can see.
            self._locks.append(os.open(name, os.O_CREAT | os.O_RDWR, 0o600))
        owner = secrets.randbits(60)
        fcntl.fcntl(self._locks[0], fcntl.F_OFD_SETLK, _byte(owner))
        return owner

    def _is_alive(self, owner: int) -> bool:
        found = fcntl.fcntl(self._locks[1], fcntl.F_OFD_GETLK, _byte(owner))
        return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)

    def _unlock(self) -> None:
        while self._locks:
            os.close(self._locks.pop())

    def _close(self) -> None:
        if self._kept:
            self._do([])
        if self._books is not None:
            self._books.sql.close()
            self._books = None
        self._unlock()


# struct flock: its numbers are of the machine's own size and place.
_FLOCK: Final = struct.Struct("hhqqi4x")


def _byte(number: int) -> bytes:
    return _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, number, 1, 0)


def _perform(work: _Work, books: _Books) -> None:
    work.error = None
    try:
        work.result = work.act(books)
    except AgentAPIError as error:
        # Raised before anything was written.
        work.error = error


def _tell(works: list[_Work]) -> None:
    """Let each loop know what has ended: one wake-up for all of it."""
    loops: dict[asyncio.AbstractEventLoop, list[_Work]] = {}
    for work in works:
        loops.setdefault(work.loop, []).append(work)
    for loop, ended in loops.items():
        with contextlib.suppress(RuntimeError):
            # A loop that is closed waits for nothing.
            loop.call_soon_threadsafe(_deliver, ended)


def _deliver(works: list[_Work]) -> None:
    for work in works:
        if work.ended.done():
            continue
        if work.error is not None:
            _fail(work.ended, work.error)
        else:
            work.ended.set_result(work.result)


def _fail(ended: asyncio.Future[Any], error: AgentAPIError) -> None:
    ended.set_exception(error)
    # Who does not wait for it is not to be told at the end of the program.
    ended.exception()
