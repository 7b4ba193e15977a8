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
now. An owner whose event loop was closed with payments in its hands is given up, and
the store goes on as another.

A file has one name: SQLite keeps a log beside each name that it is opened by, and two
logs are two journals. Links are followed, and other names are refused. So is a file
whose log was deleted while somebody uses it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import queue
import secrets
import sqlite3
import stat
import struct
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypeVar

import attrs

from aio_agentapi import _accounts
from aio_agentapi._books import MARK, SCHEMA, UPGRADE, VERSION, Books
from aio_agentapi._identity import Account, Ask, Claim, Evidence
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

# Of the file with the locks: what one of them holds, the other can see.
_VIEWS: Final = 2

# Seconds for which others may be about to open the file, or to close it.
_PASSING: Final = 2.0

# Works of one transaction.
_BATCH: Final = 500


@attrs.define(eq=False)
class _SqlStore:
    """What both homes do the same way; where they do it is their own."""

    _loop: asyncio.AbstractEventLoop | None = attrs.field(init=False, default=None)
    # The accounts whose feed is read with this store, and by which loop.
    _readers: dict[str, asyncio.AbstractEventLoop] = attrs.field(
        init=False, factory=dict[str, asyncio.AbstractEventLoop]
    )

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

    def prune(self, keep: float) -> Awaitable[int]:
        """Forget what has been final for longer than *keep*; return how many."""
        return self._hand_over(lambda b: b.prune(keep))

    def recognise(self, claim: Claim, seen: Evidence) -> Awaitable[Account | Ask]:
        """Find the account that a session is, and write down its links."""
        return self._hand_over(
            lambda b: _whole(b, lambda: _accounts.recognise(b.sql, claim, seen))
        )

    def linked(self, claim: Claim) -> Awaitable[Account | None]:
        """Return the account that a session is linked to, or None."""
        return self._hand_over(lambda b: _accounts.linked(b.sql, claim), "read")

    def accounts(self) -> Awaitable[list[Account]]:
        """Return all accounts, by their labels."""
        return self._hand_over(lambda b: _accounts.accounts(b.sql), "read")

    def allow(self, label: str, **more: str) -> Awaitable[Account]:
        """
        Say that an account is also known otherwise.

        Args:
            label: Which account.

            more: ``url``, ``name`` or ``token`` that it has as well, and ``agent``:
                what the service calls it now.
        """
        return self._hand_over(
            lambda b: _whole(b, lambda: _accounts.allow(b.sql, label, more))
        )

    def merge(self, source: str, into: str) -> Awaitable[None]:
        """Say that two accounts are one agent's; the payments go over to one."""
        return self._hand_over(
            lambda b: _whole(b, lambda: _accounts.merge(b.sql, source, into))
        )

    def age(self) -> Awaitable[float]:
        """Return the journal's age, in seconds."""
        return self._hand_over(lambda b: b.age(), "read")


def _whole(books: Books, act: Callable[[], T]) -> T:
    """Do all of something, or nothing of it, beside what shares its transaction."""
    books.sql.execute("SAVEPOINT whole")
    try:
        result = act()
    except BaseException:
        books.sql.execute("ROLLBACK TO whole")
        raise
    finally:
        books.sql.execute("RELEASE whole")
    return result


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
    _loops: list[asyncio.AbstractEventLoop] = attrs.field(init=False, factory=list)
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

    async def take_feed(self, account: str) -> bool:
        """Become the one who reads the feed of an account, if nobody is."""
        reader = self._readers.get(account)
        if reader is not None and not reader.is_closed():
            return False
        self._readers[account] = asyncio.get_running_loop()
        return True

    def leave_feed(self, account: str) -> None:
        """Let others read it."""
        self._readers.pop(account, None)

    async def aclose(self) -> None:
        """Do nothing: another manager may go on with it."""

    def _hand_over(
        self, act: Callable[[Books], T], kind: _Kind = "write"
    ) -> Awaitable[T]:
        if self._books is None:
            sql = _connect(None)
            # Nobody closes it: another manager may go on with it.
            weakref.finalize(self, sql.close)
            sql.executescript(SCHEMA)
            # It lives as long as the process, and so does its time.
            self._books = Books(sql, 0, self._is_alive, lambda: _uptime())  # noqa: PLW0108 - as it is then
        books, loop = self._books, self._home()
        work = _Work(act, loop, loop.create_future(), kind)
        if loop not in self._loops:
            self._loops += [loop]
        # Each loop is an owner: one that is closed carries nothing out any more.
        books.owner = self._loops.index(loop) + 1
        books.sql.execute("BEGIN")
        try:
            _perform(work, books)
            books.sql.execute("COMMIT")
        except sqlite3.Error as error:
            books.sql.execute("ROLLBACK")
            work.error = JournalError(f"the journal: {error}. Nothing was sent")
        except BaseException:
            books.sql.execute("ROLLBACK")
            raise
        _deliver([work])
        return work.ended

    def _is_alive(self, owner: int) -> bool:
        return not self._loops[owner - 1].is_closed()

    def __repr__(self) -> str:
        return "<MemoryStore>"


# Those of this process: a child has nothing of them open.
_STORES: Final[weakref.WeakSet[SqliteStore]] = weakref.WeakSet()


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
    # The same without links: where SQLite keeps its log, too.
    _file: Path = attrs.field(init=False)
    # Verdicts that could not be written: they come first.
    _kept: list[_Work] = attrs.field(init=False, factory=list)
    _books: Books | None = attrs.field(init=False, default=None)
    _locks: list[int] = attrs.field(init=False, factory=list)
    # The files that are open, by device and number: others may take their place.
    _places: dict[Path, tuple[int, int]] = attrs.field(init=False, factory=dict)
    # The highest number of an intent that it knows: fewer later is another file.
    _highest: int = attrs.field(init=False, default=0)
    # Each loop is an owner, as long as it is not closed.
    _owner_of: dict[asyncio.AbstractEventLoop, int] = attrs.field(
        init=False, factory=dict[asyncio.AbstractEventLoop, int]
    )
    # Works that were handed over and are not done; and a connection of the loop's, for
    # an outcome that need not wait for them. Both under the guard.
    _pending: int = attrs.field(init=False, default=0)
    _near: Books | None = attrs.field(init=False, default=None)
    _guard: threading.Lock = attrs.field(init=False, factory=threading.Lock)
    # One thread after the other, where it is opened again at once.
    _running: threading.Lock = attrs.field(init=False, factory=threading.Lock)

    def __attrs_post_init__(self) -> None:
        self._file = self._path
        _STORES.add(self)

    @property
    def durable(self) -> bool:
        """Whether it outlives the process; it does."""
        return True

    @property
    def is_there(self) -> bool:
        """Whether the file has been made."""
        return self._path.exists()

    async def take_feed(self, account: str) -> bool:
        """Become the one who reads the feed of an account, over all processes."""
        loop = asyncio.get_running_loop()
        return await self._hand_over(lambda _: self._take_feed(account, loop), "read")

    def leave_feed(self, account: str) -> None:
        """Let others read it."""
        self._readers.pop(account, None)
        # At once: whoever is cancelled does not wait for the disk. It may be closed.
        with contextlib.suppress(OSError, IndexError):
            _lock(self._locks[0], _feed_byte(account, fcntl.F_UNLCK))

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
            try:
                if kind == "keep" and not self._pending and self._is_done_at_once(work):
                    return work.ended
            except BaseException:
                # Somebody interrupts the program: what is known is not lost by that.
                self._pending += 1
                self._works.put(work)
                raise
            try:
                self._start()
            except RuntimeError as error:
                # No thread: too many of them, or the program is about to end.
                if kind == "keep":
                    self._kept.append(work)
                _fail(work.ended, JournalError(f"the journal {self._path}: {error}"))
                return work.ended
            self._pending += 1
        self._works.put(work)
        return work.ended

    def _start(self) -> None:
        if self._thread is None:
            # A program that ends without closing does not wait for it.
            thread = threading.Thread(
                target=self._run, name="agentapi-journal", daemon=True
            )
            thread.start()
            self._thread = thread

    def _is_done_at_once(self, work: _Work) -> bool:
        """Write an outcome here and now, if nobody else is writing."""
        books = self._near
        owner = self._owner_of.get(work.loop)
        if books is None or owner is None or self._kept:
            return False
        try:
            self._check_place()
            books.owner = owner
            books.sql.execute("BEGIN IMMEDIATE")
            try:
                work.ended.set_result(work.act(books))
                books.sql.execute("COMMIT")
            except BaseException:
                books.sql.execute("ROLLBACK")
                raise
        except Exception:  # noqa: BLE001 - of the file, of the disk, of Python
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
                try:
                    self._do(works)
                except BaseException as error:  # noqa: BLE001 - whoever waits is told, whatever it is
                    self._fail(works, error)
                with self._guard:
                    self._pending -= len(works)
                if not _tell(works):
                    self._let_go()
            self._close()

    def _fail(self, works: list[_Work], error: BaseException) -> None:
        """Let each of the works end with an error; what must be written is kept."""
        self._kept += [work for work in works if work.kind == "keep"]
        reason = getattr(error, "strerror", None) or error
        if not isinstance(error, sqlite3.Error | OSError):
            reason = f"{type(error).__name__}: {reason}"
        for work in works:
            told = "It is written as soon as that can be done"
            told = told if work.kind == "keep" else "Nothing was sent"
            work.error = JournalError(f"the journal {self._path}: {reason}. {told}")

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
        # They are seen to be there until they are written.
        kept = [*self._kept]
        try:
            books = self._books or self._open()
            self._check_place()
            self._let_go()
            # Of this transaction, if it is kept.
            books.last = 0
            reads = all(work.kind == "read" for work in [*kept, *works])
            books.sql.execute("BEGIN" if reads else "BEGIN IMMEDIATE")
            try:
                for work in [*kept, *works]:
                    books.owner = self._claim(work.loop)
                    _perform(work, books)
                books.sql.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    books.sql.execute("ROLLBACK")
                raise
        except _GoneError:
            # Closed, the log that nobody finds any more is written into the file, if
            # nobody else has begun another one. What is under way stays ours.
            self._close_files()
            raise
        del self._kept[: len(kept)]
        self._highest = max(self._highest, books.last)

    def _open(self) -> Books:
        self._file = self._path.resolve()
        if not self._file.exists():
            os.close(os.open(self._file, os.O_CREAT | os.O_RDWR, 0o600))
        _check_name(self._file)
        self._check_log()
        sql = _connect(self._file)
        near = _connect(self._file, patience=0.0)
        try:
            age = self._prepare(sql)
            near.execute("PRAGMA synchronous = NORMAL")
            # It would copy the log into the file, and wait for the disk twice.
            near.execute("PRAGMA wal_autocheckpoint = 0")
            near.execute("SELECT count(*) FROM cursors").fetchone()
            books = Books(sql, 0, self._is_alive, age)
            self._check_end(books.highest)
            self._near = Books(near, 0, self._is_alive, age)
            while len(self._locks) < _VIEWS:
                self._locks.append(os.open(self._owners, os.O_CREAT | os.O_RDWR, 0o600))
            self._note_places()
        except BaseException:
            self._near = None
            sql.close()
            near.close()
            raise
        self._books = books
        return books

    def _check_end(self, highest: int) -> None:
        """Refuse a file that lacks what was written: an older copy of it."""
        if highest < self._highest:
            msg = (
                f"it lacks payments that this program wrote down: number"
                f" {self._highest}, and it ends with {highest}"
            )
            raise OSError(msg)

    def _check_log(self) -> None:
        """
        Refuse a file that others use with another log, or by another name.

        Its log was deleted, or the file renamed, while they have it open: what they
        have is in a log that nobody finds.
        """
        found = self._file.stat()
        if (found.st_dev, found.st_ino) in _INHERITED_FILES:
            msg = (
                "this process was forked from one that has it open, which SQLite cannot"
                " bear: start it anew, or open the journal after the fork"
            )
            raise OSError(msg)
        until = time.monotonic() + _PASSING
        while found.st_size and not self._is_sound(found):
            if time.monotonic() > until:
                msg = (
                    f"{self._beside('-wal')} was deleted, or the file renamed, while"
                    " other programs use the journal: end all of them first, so that"
                    " what they have is not lost"
                )
                raise OSError(msg)
            # Others may be about to open it, or to close it.
            time.sleep(_SOON)

    def _is_sound(self, found: os.stat_result) -> bool:
        """Tell whether nobody uses it, or all with the log that is there."""
        is_owned, noted = self._others()
        try:
            log = self._beside("-wal").stat()
        except FileNotFoundError:
            return not is_owned and not _is_open(found.st_dev, found.st_ino)
        return not is_owned or noted in {b"", _LOG_PLACE.pack(log.st_dev, log.st_ino)}

    def _others(self) -> tuple[bool, bytes]:
        """Tell whether others own something, and which log they have."""
        if self._locks:
            # What this store holds itself is none of others'.
            views = self._locks[0]
            noted = os.pread(views, _LOG_PLACE.size, 0)
            return _is_locked(views, _byte(1, length=_READERS)), noted
        if not self._owners.exists():
            return False, b""
        views = os.open(self._owners, os.O_RDWR)
        try:
            noted = os.pread(views, _LOG_PLACE.size, 0)
            return _is_locked(views, _byte(1, length=_READERS)), noted
        finally:
            os.close(views)

    def _check_place(self) -> None:
        """Tell that the files are still those that were opened."""
        for path, known in self._places.items():
            try:
                # A link in its place leads to a file of another name.
                found = path.lstat()
            except FileNotFoundError:
                msg = f"{path} was deleted or moved"
            else:
                if (found.st_dev, found.st_ino) == known:
                    continue
                msg = f"{path} was put in the place of the one in use"
            if path.name.endswith(("-wal", "-shm")):
                raise _GoneError(msg)
            raise OSError(msg)

    def _note_places(self) -> None:
        for path in (
            self._file,
            self._owners,
            self._beside("-wal"),
            self._beside("-shm"),
        ):
            found = path.lstat()
            self._places[path] = found.st_dev, found.st_ino
        log = self._places[self._beside("-wal")]
        # For whoever opens it: all have this one.
        os.pwrite(self._locks[0], _LOG_PLACE.pack(*log), 0)

    @property
    def _owners(self) -> Path:
        return self._beside("-owners")

    def _beside(self, end: str) -> Path:
        return self._file.with_name(self._file.name + end)

    def _prepare(self, sql: sqlite3.Connection) -> Callable[[], float]:
        """Make the file a journal of this version; return what tells its age."""
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                (mode,) = sql.execute("PRAGMA journal_mode = WAL").fetchone()
                break
            except sqlite3.OperationalError as error:
                # Who opens it at the same moment does the same, and this does not
                # wait as other statements do.
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(_SOON)
        if mode != "wal":
            msg = "its disk has no shared memory, as a network's has none"
            raise OSError(msg)
        # A commit has reached the disk, not only the system.
        sql.execute("PRAGMA synchronous = FULL")
        sql.execute("BEGIN IMMEDIATE")
        with sql:
            (version,) = sql.execute("PRAGMA user_version").fetchone()
            (mark,) = sql.execute("PRAGMA application_id").fetchone()
            (tables,) = sql.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if tables and (mark != MARK or version not in {1, VERSION}):
                msg = "it is of another version of this library, or no journal"
                raise sqlite3.DatabaseError(msg)
            if not tables or version != VERSION:
                for statement in (UPGRADE if tables else SCHEMA).split(";"):
                    sql.execute(statement)
                sql.execute(f"PRAGMA user_version = {VERSION}")
                sql.execute(f"PRAGMA application_id = {MARK}")
            return _ageing(sql)

    def _claim(self, loop: asyncio.AbstractEventLoop) -> int:
        """Return who a loop is as an owner: it holds a lock that nobody else has."""
        owner = self._owner_of.get(loop)
        if owner is None:
            owner = secrets.randbits(60) or 1
            _lock(self._locks[0], _byte(owner))
            self._owner_of[loop] = owner
        return owner

    def _let_go(self) -> None:
        """Give up what loops had that are closed: nobody carries it out any more."""
        for loop in [loop for loop in self._owner_of if loop.is_closed()]:
            _lock(self._locks[0], _byte(self._owner_of.pop(loop), fcntl.F_UNLCK))
        for account, loop in [*self._readers.items()]:
            if loop.is_closed():
                self.leave_feed(account)

    def _is_alive(self, owner: int) -> bool:
        return _is_locked(self._locks[1], _byte(owner))

    def _take_feed(self, account: str, loop: asyncio.AbstractEventLoop) -> bool:
        # A lock is held by a file, which this store has once.
        if account in self._readers:
            return False
        try:
            _lock(self._locks[0], _feed_byte(account))
        except BlockingIOError:
            return False
        self._readers[account] = loop
        return True

    def _unlock(self) -> None:
        self._owner_of.clear()
        self._readers.clear()
        while self._locks:
            os.close(self._locks.pop())

    def _close(self) -> None:
        if self._kept:
            try:
                self._do([])
            except BaseException as error:  # noqa: BLE001 - as while it runs
                number = len(self._kept)
                _LOG.error("%d outcomes are not written down yet: %s", number, error)
        # Before the files: whoever opens it without its log looks whether it is alone.
        self._unlock()
        self._close_files()

    def _close_files(self) -> None:
        with self._guard:
            near, self._near = self._near, None
        books, self._books = self._books, None
        if books is not None and self._file in self._places:
            self._save(books)
        self._places.clear()
        for each in (near, books):
            if each is not None:
                each.sql.close()

    def _save(self, books: Books) -> None:
        """Write the log into a file that was renamed, where SQLite leaves it alone."""
        try:
            self._check_place()
        except _GoneError:
            return
        except OSError:
            device, number = self._places[self._file]
            if not _is_open(device, number, but=os.getpid()):
                with contextlib.suppress(sqlite3.Error):
                    books.sql.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def forget(self) -> None:
        """Have nothing open, in a child that was forked; the parent has it."""
        _INHERITED.extend(books for books in (self._books, self._near) if books)
        if self._books is not None:
            _INHERITED_FILES.add(self._places[self._file])
        self._places.clear()
        self._books = self._near = self._thread = None
        self._works, self._kept, self._pending = queue.SimpleQueue(), [], 0
        self._guard, self._running = threading.Lock(), threading.Lock()
        self._unlock()


class _GoneError(OSError):
    """A file that SQLite keeps beside the journal was deleted, or replaced."""


# What a child has got of its parent: closed there, it would take locks away.
_INHERITED: Final[list[Books]] = []
_INHERITED_FILES: Final[set[tuple[int, int]]] = set()


def _forget_all() -> None:
    for store in [*_STORES]:
        store.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


# In the file with the locks: the log that its owners have.
_LOG_PLACE: Final = struct.Struct("QQ")


def _is_open(device: int, number: int, but: int | None = None) -> bool:
    """Tell whether a process has a file open as SQLite does: it holds a lock."""
    place = f"{os.major(device):02x}:{os.minor(device):02x}:{number}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text("ascii").splitlines():
            words = line.split()
            if place in words and str(but) not in words:
                return True
    return False


def _check_name(path: Path) -> None:
    """Refuse a file that has, or may have, other names: each would have its own log."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        msg = "it is no file"
        raise OSError(msg)
    if found.st_nlink > 1:
        msg = "it has another name, by a hard link: two names are two journals"
        raise OSError(msg)
    with contextlib.suppress(FileNotFoundError):
        for line in Path("/proc/self/mountinfo").read_text("utf-8").splitlines():
            place = line.split(" ")[4].encode().decode("unicode_escape")
            if place.encode("latin-1") == os.fsencode(path):
                msg = (
                    "it is a mount of a single file, beside which its log is not seen"
                    " by others: mount the folder that it is in"
                )
                raise OSError(msg)


def _ageing(sql: sqlite3.Connection) -> Callable[[], float]:
    """
    Return what tells the journal's age.

    A line through the machine's uptime, the same for all processes since a boot; after
    another boot it goes on from the last age that is known.
    """
    boot, now = _boot(), _uptime()
    row = sql.execute("SELECT boot, uptime, age FROM ages").fetchone()
    if row is None or row[0] != boot:
        (age,) = sql.execute(
            "SELECT max(ifnull((SELECT max(age) FROM ages), 0),"
            " ifnull((SELECT max(aged) FROM intents), 0),"
            " ifnull((SELECT max(seen) FROM cursors), 0))"
        ).fetchone()
        sql.execute("DELETE FROM ages")
        sql.execute("INSERT INTO ages VALUES (?, ?, ?)", (boot, now, age))
        row = boot, now, age
    _, since, begun = row
    return lambda: begun + max(0.0, _uptime() - since)


def _uptime() -> float:
    """Return the seconds since the machine was started, those asleep included."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def _boot() -> str:
    """Return a name for what :func:`_uptime` counts from."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/time')}"  # noqa: PTH115 - no path
    except OSError:
        # Unknown: only what this process sees of it counts.
        return secrets.token_hex(16)


# struct flock: its numbers are of the machine's own size and place.
_FLOCK: Final = struct.Struct("hhqqi4x")


# Owners have a byte below this, and who reads a feed one above.
_READERS: Final = 2**61


def _byte(number: int, kind: int = fcntl.F_WRLCK, length: int = 1) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, number, length, 0)


def _feed_byte(account: str, kind: int = fcntl.F_WRLCK) -> bytes:
    digest = hashlib.sha256(account.encode()).digest()
    return _byte(_READERS + int.from_bytes(digest[:7], "big"), kind)


def _lock(file: int, what: bytes) -> None:
    fcntl.fcntl(file, fcntl.F_OFD_SETLK, what)


def _is_locked(file: int, what: bytes) -> bool:
    found = fcntl.fcntl(file, fcntl.F_OFD_GETLK, what)
    return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)


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


def _tell(works: list[_Work]) -> bool:
    """Let each loop know what has ended; tell whether all of them are there."""
    loops: dict[asyncio.AbstractEventLoop, list[_Work]] = {}
    for work in works:
        loops.setdefault(work.loop, []).append(work)
    there = True
    for loop, ended in loops.items():
        try:
            # One wake-up for all of it.
            loop.call_soon_threadsafe(_deliver, ended)
        except RuntimeError:
            # A loop that is closed waits for nothing.
            there = False
    return there


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
