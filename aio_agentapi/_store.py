"""
The two homes of the journal: memory, and a file that survives.

Both are SQLite, so that the rules are written once: :mod:`aio_agentapi._books`.

A file has one writer thread in each process. It does what was handed over meanwhile
in one transaction: payments that run side by side share a sync of the disk. An outcome
that finds nothing under way is written at once, without that thread and without a sync
of its own: it is in the file, where no kill of the process takes it away. Only a
machine that loses its power before the next sync may find the intent as it was when it
was sent, and that is settled.

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
import time
import weakref
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypeVar

import attrs

from aio_agentapi._books import MARK, SCHEMA, VERSION, Books
from aio_agentapi._journal import Clock, Cursor, Intent, Phase, Verdict
from aio_agentapi._types import UserCode
from aio_agentapi.errors import AgentAPIError, JournalError

T = TypeVar("T")

_LOG: Final = logging.getLogger("aio_agentapi.payments")

# Seconds for which another process may keep the file.
_PATIENCE: Final = 30.0

# A look, which keeps nobody from writing; a write; a write that is done later if it
# cannot be done now.
_Kind: TypeAlias = Literal["read", "write", "keep"]

# Seconds before a file that another process opens is tried again.
_SOON: Final = 0.01

# Seconds before a verdict that could not be written is tried again.
_AGAIN: Final = 1.0

# Works of one transaction.
_BATCH: Final = 500


@attrs.define(eq=False)
class _SqlStore:
    """What both homes do the same way; where they do it is their own."""

    _loop: asyncio.AbstractEventLoop | None = attrs.field(init=False, default=None)

    def _home(self) -> asyncio.AbstractEventLoop:
        """Return the loop that runs, or the last that did: one may have stopped."""
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            if self._loop is None:
                raise
        return self._loop

    def _hand_over(
        self, act: Callable[[Books], T], kind: _Kind = "write"
    ) -> Awaitable[T]:
        """Do *act* after all that was handed over before."""
        raise NotImplementedError

    def begin(
        self, intent: Intent, clock: Clock, *, block_unknown: bool = False
    ) -> Awaitable[Intent | None]:
        """Write an intent down; see :class:`~aio_agentapi._journal.Store`."""
        return self._hand_over(lambda b: b.begin(intent, clock, block=block_unknown))

    def write(
        self,
        verdicts: Collection[Verdict],
        clock: Clock,
        *,
        given: Collection[Intent] = (),
    ) -> Awaitable[list[Intent]]:
        """Give intents their next phase; see the protocol."""
        # What was found out from others is found out again, where it is not written.
        kind: _Kind = "write" if given else "keep"
        return self._hand_over(lambda b: b.write(verdicts, clock, given), kind)

    def intents(
        self,
        account: str | None = None,
        *,
        phases: Collection[Phase] = (),
        user_code: UserCode | None = None,
        ids: Collection[int] | None = None,
        since: float | None = None,
    ) -> Awaitable[list[Intent]]:
        """Return the intents that fit all that is given, in their order."""
        return self._hand_over(
            lambda b: b.intents(account, phases, user_code, ids, since), "read"
        )

    def find(self, account: str, key: str) -> Awaitable[Intent | None]:
        """Return the newest intent of a key, None if there is none."""
        return self._hand_over(lambda b: b.find(account, key), "read")

    def adopt(self, clock: Clock) -> Awaitable[int]:
        """Make what dead owners have left in ``sent`` unknown; return how many."""
        return self._hand_over(lambda b: b.adopt(clock))

    def cursor(self, account: str) -> Awaitable[Cursor]:
        """Return the newest row of an account's feed that is known."""
        return self._hand_over(lambda b: b.cursor(account), "read")

    def keep_cursor(self, account: str, cursor: Cursor) -> Awaitable[None]:
        """Remember a row of an account's feed, if it is newer than the known one."""
        return self._hand_over(lambda b: b.keep_cursor(account, cursor))

    def prune(self, before: float) -> Awaitable[int]:
        """Forget what has been final since before a time; return how many."""
        return self._hand_over(lambda b: b.prune(before))


def _connect(place: Path | None, patience: float = _PATIENCE) -> sqlite3.Connection:
    # Transactions are ours; a connection goes to the thread that uses it.
    return sqlite3.connect(
        place or ":memory:",
        isolation_level=None,
        timeout=patience,
        check_same_thread=False,
    )


@attrs.define(eq=False, repr=False)
class MemoryStore(_SqlStore):
    """
    A journal that lives as long as the process.

    It keeps every promise but the one for which the journal is written: a crash
    loses what it knows of payments whose outcome is open.
    """

    _books: Books | None = attrs.field(init=False, default=None)
    _warned: bool = attrs.field(init=False, default=False)

    @property
    def durable(self) -> bool:
        """Whether it outlives the process; it does not."""
        return False

    def begin(
        self, intent: Intent, clock: Clock, *, block_unknown: bool = False
    ) -> Awaitable[Intent | None]:
        """Write an intent down, and the first time a warning into the log."""
        if not self._warned:
            self._warned = True
            _LOG.warning(
                "payments are noted in memory: a crash loses what is known of those"
                " whose outcome is open. Give SessionManager a store=SqliteStore(path)"
            )
        return super().begin(intent, clock, block_unknown=block_unknown)

    async def aclose(self) -> None:
        """Do nothing: another manager may go on with it."""

    def _hand_over(
        self, act: Callable[[Books], T], kind: _Kind = "write"
    ) -> Awaitable[T]:
        del kind
        if self._books is None:
            sql = _connect(None)
            sql.executescript(SCHEMA)
            self._books = Books(sql, 1, lambda _: True)
        ended: asyncio.Future[T] = self._home().create_future()
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

    act: Callable[[Books], Any]
    loop: asyncio.AbstractEventLoop
    ended: asyncio.Future[Any]
    kind: _Kind
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
    _books: Books | None = attrs.field(init=False, default=None)
    _locks: list[int] = attrs.field(init=False, factory=list)
    # The files that are open, by device and number: others may take their place.
    _places: dict[Path, tuple[int, int]] = attrs.field(init=False, factory=dict)
    # Works that were handed over and are not done; and a connection of the loop's, for
    # an outcome that need not wait for them. Both under the guard.
    _pending: int = attrs.field(init=False, default=0)
    _near: Books | None = attrs.field(init=False, default=None)
    _guard: threading.Lock = attrs.field(init=False, factory=threading.Lock)
    # One thread after the other, where it is opened again at once.
    _running: threading.Lock = attrs.field(init=False, factory=threading.Lock)

    @property
    def durable(self) -> bool:
        """Whether it outlives the process; it does."""
        return True

    @property
    def is_there(self) -> bool:
        """Whether the file has been made."""
        return self._path.exists()

    async def aclose(self) -> None:
        """Write what was handed over, and close the file; a later use opens it."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._works.put(None)
            # Not in the loop: the last works may wait for the disk.
            await asyncio.get_running_loop().run_in_executor(None, thread.join)

    def _hand_over(
        self, act: Callable[[Books], T], kind: _Kind = "write"
    ) -> Awaitable[T]:
        loop = self._home()
        work = _Work(act, loop, loop.create_future(), kind)
        with self._guard:
            if kind == "keep" and not self._pending and self._is_done_at_once(work):
                return work.ended
            self._pending += 1
        self._works.put(work)
        if self._thread is None:
            # A program that ends without closing does not wait for it.
            self._thread = threading.Thread(
                target=self._run, name="agentapi-journal", daemon=True
            )
            self._thread.start()
        return work.ended

    def _is_done_at_once(self, work: _Work) -> bool:
        """Write an outcome here and now, if nobody else is writing."""
        books = self._near
        if books is None or self._kept:
            return False
        try:
            self._check_place()
            books.sql.execute("BEGIN IMMEDIATE")
            try:
                work.ended.set_result(work.act(books))
                books.sql.execute("COMMIT")
            except BaseException:
                books.sql.execute("ROLLBACK")
                raise
        except (sqlite3.Error, OSError, AgentAPIError):
            # The thread waits for whoever it is, and tells what is wrong.
            if work.ended.done():
                work.ended = work.loop.create_future()
            return False
        return True

    def __repr__(self) -> str:
        return f"<SqliteStore {self._path}>"

    # In the thread.

    def _run(self) -> None:
        with self._running:
            while (works := self._take()) is not None:
                self._do(works)
                with self._guard:
                    self._pending -= len(works)
                _tell(works)
            self._close()

    def _take(self) -> list[_Work] | None:
        """Return what was handed over meanwhile; None when it is to be closed."""
        works: list[_Work] = []
        with contextlib.suppress(queue.Empty):
            # What could not be written is tried again, also if nobody comes.
            work = self._works.get(timeout=_AGAIN if self._kept else None)
            while work is not None:
                works.append(work)
                if len(works) == _BATCH:
                    return works
                work = self._works.get_nowait()
            if not works:
                return None
            self._works.put(None)
        return works

    def _do(self, works: list[_Work]) -> None:
        """Do works in one transaction, behind those that an earlier one left."""
        kept, self._kept = self._kept, []
        try:
            books = self._books or self._open()
            self._check_place()
            reads = all(work.kind == "read" for work in [*kept, *works])
            books.sql.execute("BEGIN" if reads else "BEGIN IMMEDIATE")
            try:
                for work in [*kept, *works]:
                    _perform(work, books)
                books.sql.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    books.sql.execute("ROLLBACK")
                raise
        except (sqlite3.Error, OSError) as error:
            self._kept = [*kept, *(work for work in works if work.kind == "keep")]
            reason = getattr(error, "strerror", None) or error
            for work in works:
                told = "It is written as soon as that can be done"
                told = told if work.kind == "keep" else "Nothing was sent"
                work.error = JournalError(f"the journal {self._path}: {reason}. {told}")

    def _open(self) -> Books:
        if not self._path.exists():
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
        sql = _connect(self._path)
        near = _connect(self._path, patience=0.0)
        try:
            self._prepare(sql)
            near.execute("PRAGMA synchronous = NORMAL")
            # It would copy the log into the file, and wait for the disk twice.
            near.execute("PRAGMA wal_autocheckpoint = 0")
            books = Books(sql, self._claim(), self._is_alive)
            self._note_places()
        except BaseException:
            sql.close()
            near.close()
            self._unlock()
            raise
        self._books = books
        self._near = Books(near, books.owner, books.alive)
        return books

    def _check_place(self) -> None:
        """Tell that the files are still those that were opened."""
        for path, known in self._places.items():
            found = path.stat()
            if (found.st_dev, found.st_ino) != known:
                msg = f"{path} was put in the place of the one in use"
                raise OSError(msg)

    def _note_places(self) -> None:
        for path in (self._path, self._owners):
            found = path.stat()
            self._places[path] = found.st_dev, found.st_ino

    @property
    def _owners(self) -> Path:
        return self._path.with_name(self._path.name + "-owners")

    def _prepare(self, sql: sqlite3.Connection) -> None:
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                sql.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:
                # Who opens it at the same moment does the same, and this does not
                # wait as other statements do.
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(_SOON)
        # A commit has reached the disk, not only the system.
        sql.execute("PRAGMA synchronous = FULL")
        sql.execute("BEGIN IMMEDIATE")
        with sql:
            (version,) = sql.execute("PRAGMA user_version").fetchone()
            (mark,) = sql.execute("PRAGMA application_id").fetchone()
            (tables,) = sql.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if tables and (version, mark) != (VERSION, MARK):
                msg = "it is of another version of this library, or no journal"
                raise sqlite3.DatabaseError(msg)
            if not tables:
                for statement in SCHEMA.split(";"):
                    sql.execute(statement)
                sql.execute(f"PRAGMA user_version = {VERSION}")
                sql.execute(f"PRAGMA application_id = {MARK}")

    def _claim(self) -> int:
        """Become an owner: hold a lock that nobody else has."""
        for _ in range(2):
            # Two views of the file: what one of them holds, the other can see.
            self._locks.append(os.open(self._owners, os.O_CREAT | os.O_RDWR, 0o600))
        # A child would hold the lock when this process is gone.
        known = weakref.ref(self)
        os.register_at_fork(
            after_in_child=lambda: None if (me := known()) is None else me._unlock()  # noqa: SLF001 - its own
        )
        owner = secrets.randbits(60)
        fcntl.fcntl(self._locks[0], fcntl.F_OFD_SETLK, _byte(owner))
        return owner

    def _is_alive(self, owner: int) -> bool:
        found = fcntl.fcntl(self._locks[1], fcntl.F_OFD_GETLK, _byte(owner))
        return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)

    def _unlock(self) -> None:
        self._places.clear()
        while self._locks:
            os.close(self._locks.pop())

    def _close(self) -> None:
        if self._kept:
            self._do([])
        with self._guard:
            near, self._near = self._near, None
        for books in (near, self._books):
            if books is not None:
                books.sql.close()
        self._books = None
        self._unlock()


# struct flock: its numbers are of the machine's own size and place.
_FLOCK: Final = struct.Struct("hhqqi4x")


def _byte(number: int) -> bytes:
    return _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, number, 1, 0)


def _perform(work: _Work, books: Books) -> None:
    work.error = None
    try:
        work.result = work.act(books)
    except AgentAPIError as error:
        # Raised before anything was written.
        work.error = error
    except sqlite3.Error:
        raise
    except Exception as error:  # noqa: BLE001 - whoever waits is told, whatever it is
        # A value that has no place in a row, say: the others go on.
        reason = f"{type(error).__name__}: {error}"
        work.error = JournalError(f"the journal: {reason}. Nothing was sent")


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
