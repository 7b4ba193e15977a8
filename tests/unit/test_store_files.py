"""The journal's file: its names, its log, its age, its version, and its thread."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pytest

from aio_agentapi import Intent, MemoryStore, Phase, SqliteStore, _accounts, _store
from aio_agentapi._books import Books
from aio_agentapi._identity import Account, Claim
from aio_agentapi._journal import Store, Verdict
from aio_agentapi._types import Moved
from aio_agentapi.errors import JournalError
from tests.conftest import Ageing
from tests.unit.test_store import at, become, begun, intent
from tests.waiting import look_again

MOVED: Final = Moved(amount=Decimal(5), balance=Decimal(5))


# Its names.


async def test_a_link_leads_to_the_same_journal(tmp_path: Path) -> None:
    """By a link to the file, and to its folder: owners and keys are the same."""
    (tmp_path / "real").mkdir()
    real = tmp_path / "real" / "j.db"
    (tmp_path / "folder").symlink_to(tmp_path / "real")
    (tmp_path / "file.db").symlink_to(real)
    stores = [
        SqliteStore(path)
        for path in (real, tmp_path / "file.db", tmp_path / "folder" / "j.db")
    ]
    written = await begun(stores[0], intent(key="k"))
    for store in stores[1:]:
        assert await store.begin(intent(), at(1.0)) is None
        assert await store.adopt(at(1.0)) == 0
        assert await store.intents() == [written]
    for store in stores:
        await store.aclose()
    assert not [*tmp_path.glob("file.db-*")]


async def test_another_name_of_the_file_is_refused(tmp_path: Path) -> None:
    """A hard link: SQLite would keep another log beside it."""
    store = SqliteStore(tmp_path / "j.db")
    await begun(store, intent())
    os.link(tmp_path / "j.db", tmp_path / "other.db")
    other = SqliteStore(tmp_path / "other.db")
    with pytest.raises(JournalError, match=r"hard link.*Nothing was sent"):
        await other.begin(intent(2), at(1.0))
    assert not [*tmp_path.glob("other.db-*")]
    await store.aclose()
    await other.aclose()


@pytest.mark.process
async def test_a_mount_of_the_file_alone_is_refused(tmp_path: Path) -> None:
    """As a container has it: its log would not be seen by others."""
    store = SqliteStore(tmp_path / "j.db")
    await begun(store, intent())
    place = tmp_path / "in container" / "j.db"
    place.parent.mkdir()
    place.touch()
    mounted = subprocess.run(  # noqa: ASYNC221, S603 - at once
        ["mount", "--bind", tmp_path / "j.db", place],  # noqa: S607 - of the system
        check=False,
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.decode()}")
    try:
        other = SqliteStore(place)
        with pytest.raises(JournalError, match="mount the folder"):
            await other.begin(intent(2), at(1.0))
        await other.aclose()
    finally:
        subprocess.run(["umount", place], check=True)  # noqa: ASYNC221, S603, S607 - as above
    await store.aclose()


# Its log.


@pytest.mark.parametrize("end", ["-wal", "-shm"])
async def test_a_log_that_is_deleted_is_noticed(tmp_path: Path, end: str) -> None:
    """Before anything is sent; what it had is written into the file, and it goes on."""
    store = SqliteStore(tmp_path / "j.db")
    first = await become(store, await begun(store, intent(key="k")), Phase.DONE)
    (tmp_path / f"j.db{end}").unlink()
    with pytest.raises(JournalError, match=r"was deleted or moved.*Nothing was sent"):
        await store.begin(intent(2), at(1.0))
    assert await store.begin(intent(key="k"), at(1.0)) == first
    other = SqliteStore(tmp_path / "j.db")
    assert await other.intents() == [first]
    await store.aclose()
    await other.aclose()


async def test_nobody_begins_beside_a_deleted_log(tmp_path: Path) -> None:
    """Another program would not see what is in it, and pay a key again."""
    store = SqliteStore(tmp_path / "j.db")
    await begun(store, intent(key="k"))
    (tmp_path / "j.db-wal").unlink()
    (tmp_path / "j.db-shm").unlink()
    other = SqliteStore(tmp_path / "j.db")
    with pytest.raises(JournalError, match="end all of them first"):
        await other.begin(intent(key="k"), at(1.0))
    assert not (tmp_path / "j.db-wal").exists()
    await store.aclose()
    # What it had is in the file by now: nobody sends it any more.
    found = await other.begin(intent(key="k"), at(1.0))
    assert found is not None
    assert found.phase is Phase.UNKNOWN
    await other.aclose()


@pytest.mark.process
@pytest.mark.parametrize("ends", [("-wal", "-shm", "-owners"), ("-wal", "-shm")])
@pytest.mark.parametrize("looked", [False, True])
async def test_nobody_pays_beside_those_whose_log_is_gone(
    tmp_path: Path, ends: tuple[str, ...], *, looked: bool
) -> None:
    """Whatever else was deleted, and though somebody has made another log by a look."""
    if looked and "-owners" in ends:
        # Nothing is left that tells it from a sound one.
        return
    store, path = SqliteStore(tmp_path / "j.db"), tmp_path / "j.db"
    await become(store, await begun(store, intent(key="k")), Phase.DONE)
    for end in ends:
        Path(f"{path}{end}").unlink()
    shell: subprocess.Popen[bytes] | None = None
    if looked:
        look = ["import sqlite3, sys; sql = sqlite3.connect(sys.argv[1])"]
        look += ["print(sql.execute('SELECT count(*) FROM sqlite_master').fetchone())"]
        look += ["sys.stdout.flush(); sys.stdin.read()"]
        shell = subprocess.Popen(  # noqa: ASYNC220, S603 - our own interpreter
            [sys.executable, "-c", "; ".join(look), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert shell.stdout is not None
        assert await asyncio.to_thread(shell.stdout.readline)
    other = SqliteStore(path)
    with pytest.raises(JournalError, match="end all of them first"):
        await other.begin(intent(key="k"), at(1.0))
    if shell is not None:
        shell.communicate()
    await store.aclose()
    await other.aclose()


@pytest.mark.parametrize("how", ["moved, with a link", "linked, and the first gone"])
async def test_a_file_that_was_renamed_is_no_other_journal(
    tmp_path: Path, how: str
) -> None:
    """Whoever has it open is told, and whoever comes by its new name is refused."""
    store, path = SqliteStore(tmp_path / "j.db"), tmp_path / "j.db"
    await become(store, await begun(store, intent(key="k")), Phase.DONE)
    if how.startswith("moved"):
        path.rename(tmp_path / "k.db")
        path.symlink_to(tmp_path / "k.db")
    else:
        os.link(path, tmp_path / "k.db")
        path.unlink()
    other = SqliteStore(tmp_path / "k.db")
    with pytest.raises(JournalError, match="end all of them first"):
        await other.begin(intent(key="k"), at(1.0))
    with pytest.raises(JournalError, match=r"j\.db was"):
        await store.begin(intent(2), at(1.0))
    await store.aclose()
    # All have ended: what they had is in the file.
    found = await other.begin(intent(key="k"), at(1.0))
    assert found is not None
    assert found.phase is Phase.DONE
    await other.aclose()


async def test_what_is_under_way_stays_whose_it_is_when_the_log_is_gone(
    tmp_path: Path,
) -> None:
    """The file is opened anew, and nobody takes over what still runs."""
    store, path = SqliteStore(tmp_path / "j.db"), tmp_path / "j.db"
    sent = await begun(store, intent(1))
    verdict = Verdict(
        id=(await begun(store, intent(2))).id, phase=Phase.UNKNOWN, runs=True
    )
    await store.write([verdict], at(1.0))
    (tmp_path / "j.db-wal").unlink()
    with pytest.raises(JournalError, match="deleted"):
        await store.begin(intent(3), at(1.0))
    await begun(store, intent(3))
    other = SqliteStore(path)
    assert await other.adopt(at(2.0)) == 0
    first, second, _ = await other.intents()
    assert (first.id, first.phase) == (sent.id, Phase.SENT)
    assert (second.phase, second.quiet) == (Phase.UNKNOWN, None)
    await other.aclose()
    await store.aclose()


async def test_a_file_that_lacks_what_was_written_is_refused(tmp_path: Path) -> None:
    """An older copy in its place: the keys that it lacks would pay again."""
    path = tmp_path / "j.db"
    store = SqliteStore(path)
    await become(store, await begun(store, intent(key="a")), Phase.DONE)
    await store.aclose()
    shutil.copy(path, tmp_path / "copy")
    await become(store, await begun(store, intent(key="b")), Phase.DONE)
    await store.aclose()
    shutil.copy(tmp_path / "copy", path)
    with pytest.raises(JournalError, match="lacks payments that this program wrote"):
        await store.begin(intent(key="b"), at(1.0))
    await store.aclose()


# Its age.


async def test_no_clock_makes_it_forget(tmp_path: Path, ageing: Ageing) -> None:
    """Keys are kept by the machine's uptime: 400 days back or ahead change nothing."""
    store = SqliteStore(tmp_path / "j.db")
    day = 24 * 3600.0
    for number, now in enumerate((-400 * day, 0.0, 400 * day)):
        written = await begun(store, intent(number), 1e9 + now)
        await become(store, written, Phase.DONE)
        assert await store.prune(30 * day) == 0
    ageing.passed += 31 * day
    assert await store.prune(30 * day) == 3
    await store.aclose()


async def test_its_age_goes_on_after_a_restart(
    tmp_path: Path, ageing: Ageing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the machine's uptime; after another boot, from what is known."""
    store, other = SqliteStore(tmp_path / "j.db"), SqliteStore(tmp_path / "j.db")
    assert await store.age() < 100
    ageing.passed += 1000
    assert 1000 <= await other.age() < 1100
    assert 1000 <= await store.age() < 1100
    await store.aclose()
    ageing.passed += 1000
    assert 2000 <= await store.age() < 2100
    await become(store, await begun(store, intent()), Phase.DONE)
    await store.aclose()
    await other.aclose()
    monkeypatch.setattr(_store, "_boot", lambda: "another")
    ageing.passed = 50_000.0
    assert 2000 <= await store.age() < 2100
    ageing.passed = 50_100.0
    assert 2100 <= await store.age() < 2200
    # A clock that goes back does not make it younger than what it has.
    ageing.passed = 0.0
    assert await store.age() >= 2000
    await store.aclose()


# Its version.

# What the first version made.
FIRST: Final = """
CREATE TABLE intents (
    id INTEGER PRIMARY KEY AUTOINCREMENT, account TEXT NOT NULL,
    operation TEXT NOT NULL, user INTEGER NOT NULL, amount TEXT, key TEXT,
    follows INTEGER, phase TEXT NOT NULL, owner INTEGER NOT NULL, moved TEXT,
    balance TEXT, trans_id INTEGER, note TEXT, created REAL NOT NULL,
    changed REAL NOT NULL, lost REAL, cursor INTEGER NOT NULL, cursor_made REAL,
    cursor_seen REAL, longest REAL NOT NULL
);
CREATE INDEX users ON intents (account, user, id);
CREATE UNIQUE INDEX turns ON intents (account, user) WHERE phase = 'sent';
CREATE INDEX keys ON intents (account, key, id) WHERE key IS NOT NULL;
CREATE UNIQUE INDEX paid ON intents (account, key)
    WHERE key IS NOT NULL AND phase NOT IN ('absent', 'not_sent', 'refused');
CREATE UNIQUE INDEX resent ON intents (follows) WHERE follows IS NOT NULL;
CREATE INDEX open ON intents (account, user) WHERE phase IN ('unknown', 'needs_person');
CREATE UNIQUE INDEX proofs ON intents (account, trans_id) WHERE trans_id IS NOT NULL;
CREATE TABLE cursors (
    account TEXT PRIMARY KEY, trans_id INTEGER NOT NULL, made REAL, seen REAL
) WITHOUT ROWID;
INSERT INTO intents VALUES
    (1, 'eur', 'wallets.deposit', 1, '5', 'paid', NULL, 'done', 1, '5', '5', NULL, NULL,
     1e9, 1e9, NULL, 0, NULL, NULL, 91),
    (2, 'eur', 'wallets.deposit', 1, '5', 'again', NULL, 'absent', 1, NULL, NULL, NULL,
     'no row', 1e9, 1e9, 1e9, 0, NULL, NULL, 91),
    (3, 'eur', 'wallets.deposit', 1, '5', 'again', 2, 'done', 1, '5', '10', NULL, NULL,
     1e9, 1e9, NULL, 0, NULL, NULL, 91),
    (4, '0123456789abcdef', 'wallets.deposit', 2, '5', 'lost', NULL, 'unknown', 1, NULL,
     NULL, NULL, 'cut', 1e9, 1e9, 1e9, 7, 1e9, 1e9, 91),
    (5, 'eur', 'wallets.deposit', 3, '5', 'sent', NULL, 'sent', 1, NULL, NULL, NULL,
     NULL, 1e9, 1e9, NULL, 0, NULL, NULL, 91);
INSERT INTO cursors VALUES ('usd', 9, 1e9, 1e9);
PRAGMA user_version = 1;
PRAGMA application_id = 1634159153;
"""


async def test_a_journal_of_the_first_version_is_taken_over(
    tmp_path: Path, ageing: Ageing
) -> None:
    """No key is lost; what was under way is unknown; the accounts are those it had."""
    path = tmp_path / "j.db"
    sql = sqlite3.connect(path)
    sql.executescript(FIRST)
    sql.close()
    store = SqliteStore(path)
    accounts = {account.label: account for account in await store.accounts()}
    assert accounts.keys() == {"eur", "usd", "0123456789abcdef"}
    assert accounts["eur"].names == {"eur"}
    assert accounts["0123456789abcdef"].tokens == {"0123456789abcdef"}
    assert {account.agent for account in accounts.values()} == {None}
    assert await store.adopt(at(2e9)) == 1
    for key, number, phase in (
        ("paid", 1, Phase.DONE),
        ("again", 3, Phase.DONE),
        ("sent", 5, Phase.UNKNOWN),
    ):
        user = 3 if key == "sent" else 1
        found = await store.begin(intent(user, key=key), at(2e9))
        assert found is not None
        assert (found.id, found.phase) == (number, phase)
    (lost,) = await store.intents("0123456789abcdef")
    # From now on: what the clock says of then is not believed.
    assert (lost.quiet, lost.cursor.trans_id) == (0.0, 7)
    ageing.passed += 10.0
    assert await store.prune(11.0) == 0
    await store.aclose()
    again = SqliteStore(path)
    assert (await again.intents("0123456789abcdef")) == [lost]
    await again.aclose()


async def test_what_an_older_program_leaves_beside_it_comes_to_an_end(
    tmp_path: Path,
) -> None:
    """It does not say when an attempt ended: that counts from when it is seen."""
    store = SqliteStore(tmp_path / "j.db")
    await begun(store, intent())
    sql = sqlite3.connect(tmp_path / "j.db", isolation_level=None)
    sql.execute("UPDATE intents SET phase = 'unknown', lost = 5")
    sql.close()
    assert (await store.intents())[0].quiet is None
    await store.adopt(at(1.0))
    assert (await store.intents())[0].quiet is not None
    await store.aclose()


# Its thread.


@pytest.mark.parametrize(
    "error",
    [RuntimeError("of a bug"), MemoryError(), KeyboardInterrupt(), SystemExit(1)],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("where", ["_open", "_check_place", "_do"])
async def test_nothing_ends_its_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, where: str
) -> None:
    """Whatever is raised in it: whoever waits is told, and the next one is served."""
    store = SqliteStore(tmp_path / "j.db")
    if where != "_open":
        await begun(store, intent())
    real = getattr(SqliteStore, where)
    raised = [error]

    def broken(self: SqliteStore, *args: Any) -> Any:
        if raised:
            raise raised.pop()
        return real(self, *args)

    monkeypatch.setattr(SqliteStore, where, broken)
    async with asyncio.timeout(20):
        with pytest.raises(JournalError, match=r"Nothing was sent") as caught:
            await store.begin(intent(2), at(1.0))
        assert type(error).__name__ in str(caught.value)
        await begun(store, intent(3))
        await store.aclose()


async def test_locks_that_the_system_lacks_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at an import, and not by waiting for ever."""
    monkeypatch.delattr(fcntl, "F_OFD_SETLK")
    store = SqliteStore(tmp_path / "j.db")
    async with asyncio.timeout(20):
        with pytest.raises(JournalError, match="F_OFD_SETLK"):
            await store.begin(intent(), at(1.0))
    await store.aclose()


async def test_a_thread_that_cannot_be_started_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was to be begun never is; what must be written is kept for the next one."""
    store, reader = SqliteStore(tmp_path / "j.db"), SqliteStore(tmp_path / "j.db")
    written = await begun(store, intent())
    await store.aclose()

    def refuse(_: threading.Thread) -> None:
        msg = "can't start new thread"
        raise RuntimeError(msg)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(JournalError, match="can't start new thread"):
            await store.begin(intent(2), at(1.0))
        with pytest.raises(JournalError, match="can't start new thread"):
            await store.write([Verdict(id=written.id, phase=Phase.DONE)], at(1.0))
    await store.intents()
    assert [i.phase for i in await reader.intents()] == [Phase.DONE]
    await store.aclose()
    await reader.aclose()


async def test_a_loop_that_ends_takes_nothing_from_another(tmp_path: Path) -> None:
    """One store, two loops in two threads: each owns what it has under way."""
    store = SqliteStore(tmp_path / "j.db")
    written = await begun(store, intent(1))

    async def other() -> None:
        await begun(store, intent(2))

    await asyncio.to_thread(asyncio.run, other())
    assert await store.adopt(at(1.0)) == 1
    first, second = await store.intents()
    assert (first, second.phase) == (written, Phase.UNKNOWN)
    reader = SqliteStore(tmp_path / "j.db")
    assert await reader.adopt(at(1.0)) == 0
    await reader.aclose()
    await store.aclose()


async def test_a_loop_that_was_closed_reads_no_feed(store: Store) -> None:
    """Its turn goes to whoever asks next."""

    async def take() -> bool:
        return await store.take_feed("eur")

    assert await asyncio.to_thread(asyncio.run, take())
    async with asyncio.timeout(10):
        while not await store.take_feed("eur"):
            await look_again()
    assert not await store.take_feed("eur")
    store.leave_feed("eur")
    await store.aclose()


async def test_a_closed_loop_keeps_no_turn_in_memory() -> None:
    """The store goes on in another one; what was under way there is unknown."""
    store = MemoryStore()

    async def other() -> None:
        await begun(store, intent(1))

    await asyncio.to_thread(asyncio.run, other())
    await begun(store, intent(2))
    await begun(store, intent(1))
    assert [i.phase for i in await store.intents()] == [
        Phase.UNKNOWN,
        Phase.SENT,
        Phase.SENT,
    ]


async def test_what_is_kept_is_not_overtaken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an outcome that is written at once, while the thread tries it again."""
    monkeypatch.setattr(_store, "_AGAIN", 0.01)
    store = SqliteStore(tmp_path / "j.db")
    written = await begun(store, intent())
    do, trying, go_on = SqliteStore._do, threading.Event(), threading.Event()

    def slow(self: SqliteStore, works: list[Any]) -> None:
        if self._kept:
            trying.set()
            go_on.wait(20)
        do(self, works)

    perform, broken = _store._perform, [True]

    def failing(work: Any, books: Any) -> None:
        if broken:
            msg = "database is locked"
            raise sqlite3.OperationalError(msg)
        perform(work, books)

    monkeypatch.setattr(SqliteStore, "_do", slow)
    monkeypatch.setattr(_store, "_perform", failing)
    lock = sqlite3.connect(tmp_path / "j.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    left_ = Verdict(id=written.id, phase=Phase.UNKNOWN, runs=True)
    with pytest.raises(JournalError):
        # The thread waits for the lock no longer than that.
        assert store._books is not None
        store._books.sql.execute("PRAGMA busy_timeout = 1")
        await store.write([left_], at(1.0))
    await asyncio.to_thread(trying.wait, 20)
    lock.execute("ROLLBACK")
    lock.close()
    broken.clear()
    late = Verdict(id=written.id, phase=Phase.CONFIRMED, moved=MOVED, late=True)
    heard = store.write([late], at(2.0))
    go_on.set()
    ((found,),) = [await heard]
    assert (found.phase, found.moved) == (Phase.CONFIRMED, MOVED)
    assert found.quiet is not None
    await store.aclose()


async def test_an_interrupt_loses_no_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of writing it: it is written by the thread then."""
    store = SqliteStore(tmp_path / "j.db")
    written = await begun(store, intent())
    check, armed = SqliteStore._check_place, [True]

    def interrupted(self: SqliteStore) -> None:
        check(self)
        if armed and threading.current_thread() is threading.main_thread():
            armed.clear()
            raise KeyboardInterrupt

    monkeypatch.setattr(SqliteStore, "_check_place", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.write([Verdict(id=written.id, phase=Phase.DONE, moved=MOVED)], at(1.0))
    assert [i.phase for i in await store.intents()] == [Phase.DONE]
    await store.aclose()


async def test_an_interrupt_leaves_no_row_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All of a begin, or nothing of it."""
    store = MemoryStore()
    await begun(store, intent(1))
    insert = Books._insert

    def interrupted(self: Books, *args: Any) -> Intent:
        insert(self, *args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Books, "_insert", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.begin(intent(2), at(1.0))
    assert len(await store.intents()) == 1
    await begun(store, intent(2))


FORKING: Final = """
import asyncio, os, sys
from aio_agentapi import Intent, SqliteStore
from aio_agentapi.errors import JournalError

async def begin(store):
    try:
        await store.begin(Intent(account="eur", operation="wallets.deposit",
                                 user_code=1, amount=5), lambda: 1.0)
        return "begun"
    except JournalError as error:
        return str(error)

store = SqliteStore(sys.argv[1])
assert asyncio.run(begin(store)) == "begun"
child = os.fork()
if child == 0:
    print(asyncio.run(begin(SqliteStore(sys.argv[1]))), flush=True)
    print(asyncio.run(begin(store)), flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.process
async def test_a_forked_child_does_not_open_what_its_parent_has(tmp_path: Path) -> None:
    """SQLite keeps what a process has locked: a clear error, and no hang."""
    ran = subprocess.run(  # noqa: ASYNC221, S603 - our own interpreter
        # Newer Pythons warn of a fork beside a thread, which it is about.
        [sys.executable, "-W", "ignore", "-c", FORKING, str(tmp_path / "j.db")],
        capture_output=True,
        text=True,
        check=True,
        timeout=50,
    )
    lines = ran.stdout.splitlines()
    assert len(lines) == 2, ran
    assert all("was forked" in line and "Nothing was sent" in line for line in lines)


# What a late response says.


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Make a store of either kind."""
    return (
        MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "j.db")
    )


async def left(store: Store, **given: Any) -> Intent:
    """Write an intent down whose attempt goes on without its caller."""
    written = await begun(store, intent(**given))
    verdict = Verdict(id=written.id, phase=Phase.UNKNOWN, runs=True)
    (lost,) = await store.write([verdict], at(1.0))
    assert (lost.phase, lost.quiet) == (Phase.UNKNOWN, None)
    return lost


async def hear(store: Store, lost: Intent, phase: Phase) -> Intent:
    """Write down what the end of its attempt says."""
    moved = MOVED if phase is Phase.CONFIRMED else None
    verdict = Verdict(id=lost.id, phase=phase, moved=moved, note="late", late=True)
    (heard,) = await store.write([verdict], at(2.0))
    assert heard.quiet is not None
    return heard


@pytest.mark.parametrize("said", [Phase.CONFIRMED, Phase.ABSENT, Phase.UNKNOWN])
@pytest.mark.parametrize("known", [Phase.UNKNOWN, Phase.NEEDS_PERSON])
async def test_a_late_response_decides_what_is_open(
    store: Store, known: Phase, said: Phase
) -> None:
    """One that says nothing changes nothing, but that it has ended."""
    lost = await left(store)
    if known is not Phase.UNKNOWN:
        lost = await become(store, lost, known)
    heard = await hear(store, lost, said)
    assert heard.phase is (known if said is Phase.UNKNOWN else said)
    await store.aclose()


@pytest.mark.parametrize(
    ("known", "said"),
    [(Phase.ABSENT, Phase.CONFIRMED), (Phase.CONFIRMED, Phase.ABSENT)],
)
async def test_a_late_response_that_contradicts_is_for_a_person(
    store: Store, known: Phase, said: Phase, caplog: pytest.LogCaptureFixture
) -> None:
    """With both sides in its note and in the log; its key stays closed."""
    lost = await become(store, await left(store, key="k"), known)
    with caplog.at_level(logging.ERROR, "aio_agentapi.payments"):
        heard = await hear(store, lost, said)
    assert heard.phase is Phase.NEEDS_PERSON
    assert heard.note is not None
    assert str(known) in heard.note
    assert f"intent {lost.id} needs a person" in caplog.text
    again = await store.begin(intent(key="k"), at(3.0))
    assert again == heard
    # The other way it is what was said before.
    assert (await become(store, heard, said)).phase is said
    await store.aclose()


@pytest.mark.parametrize("said", [Phase.DONE, Phase.REFUSED, Phase.NOT_SENT])
@pytest.mark.parametrize(
    "known", [Phase.UNKNOWN, Phase.NEEDS_PERSON, Phase.ABSENT, Phase.CONFIRMED]
)
async def test_an_outcome_of_what_others_took_for_lost_is_late(
    tmp_path: Path, known: Phase, said: Phase
) -> None:
    """Kept while the disk was full, and its store closed: it is not dropped."""
    one, two = SqliteStore(tmp_path / "j.db"), SqliteStore(tmp_path / "j.db")
    written = await begun(one, intent(key="k"))
    await one.aclose()
    assert await two.adopt(at(1.0)) == 1
    if known is not Phase.UNKNOWN:
        await become(two, written, known)
    moved = MOVED if said is Phase.DONE else None
    verdict = Verdict(id=written.id, phase=said, moved=moved, note="so it was")
    (heard,) = await one.write([verdict], at(2.0))
    expected = Phase.CONFIRMED if said is Phase.DONE else Phase.ABSENT
    if known in {Phase.ABSENT, Phase.CONFIRMED} and known is not expected:
        expected = Phase.NEEDS_PERSON
    assert heard.phase is expected
    await one.aclose()
    await two.aclose()


async def test_a_transaction_that_was_undone_counts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be written is not missed when the file is opened again."""
    store = SqliteStore(tmp_path / "j.db")
    await become(store, await begun(store, intent(1)), Phase.DONE)
    perform = _store._perform

    def broken(work: Any, books: Any) -> None:
        perform(work, books)
        msg = "disk I/O error"
        raise sqlite3.OperationalError(msg)

    with monkeypatch.context() as patch:
        patch.setattr(_store, "_perform", broken)
        with pytest.raises(JournalError, match="disk I/O"):
            await store.begin(intent(2), at(1.0))
    assert len(await store.intents()) == 1
    await store.aclose()
    await begun(store, intent(3))
    await store.aclose()


async def test_a_contradiction_names_what_was_paid_anew(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """The money has moved twice: both rows are told, and both are kept."""
    lost = await become(store, await left(store, key="k"), Phase.ABSENT)
    anew = await become(store, await begun(store, intent(key="k")), Phase.DONE)
    with caplog.at_level(logging.ERROR, "aio_agentapi.payments"):
        heard = await hear(store, lost, Phase.CONFIRMED)
    assert heard.phase is Phase.NEEDS_PERSON
    assert f"paid anew by intent {anew.id}" in caplog.text
    assert await store.begin(intent(key="k"), at(3.0)) == anew
    await store.aclose()


@pytest.mark.parametrize("known", [Phase.CONFIRMED, Phase.ABSENT])
async def test_a_late_response_that_agrees_changes_nothing(
    store: Store, known: Phase
) -> None:
    """But that its attempt has ended."""
    lost = await become(store, await left(store), known)
    assert (await hear(store, lost, known)).phase is known
    await store.aclose()


async def test_an_attempt_of_the_dead_runs_no_more(tmp_path: Path) -> None:
    """From when that is seen, and as long as its machine may go on sending it."""
    path = tmp_path / "j.db"
    one, two = SqliteStore(path), SqliteStore(path)
    lost = await left(one, unacked=7.0)
    await two.adopt(at(1.0))
    assert (await two.intents())[0].quiet is None
    await one.aclose()
    before = await two.age()
    await two.adopt(at(1.0))
    (found,) = await two.intents()
    assert found.quiet is not None
    assert before + 7 <= found.quiet <= await two.age() + 7
    assert found.id == lost.id
    await two.aclose()


async def test_verdicts_are_not_written_beside_an_attempt_that_has_ended(
    store: Store,
) -> None:
    """What they were found out from is no longer so."""
    lost = await left(store)
    await hear(store, lost, Phase.UNKNOWN)
    verdict = Verdict(id=lost.id, phase=Phase.ABSENT)
    assert await store.write([verdict], at(3.0), given=[lost]) == []
    await store.aclose()


# Two accounts that are one.


async def test_accounts_that_are_one_keep_every_key(store: Store) -> None:
    """Whichever of them has paid it; what both have paid stands once."""
    for account, key, phase in (
        ("a", "x", Phase.DONE),
        ("b", "x", Phase.DONE),
        ("a", "y", Phase.DONE),
        ("b", "y", Phase.REFUSED),
        ("a", "z", Phase.REFUSED),
        ("b", "z", Phase.DONE),
        ("b", "w", Phase.DONE),
    ):
        await become(store, await begun(store, intent(account=account, key=key)), phase)
    assert isinstance(store, MemoryStore | SqliteStore)
    for label in "ab":
        claim = Claim(names=(label,), token=label * 16, url="https://x")
        await _linked(store, claim)
    await store.merge("b", "a")
    (known,) = await store.accounts()
    assert (known.label, {*known.names}) == ("a", {"a", "b"})
    assert known.tokens == {"a" * 16, "b" * 16}
    for key in "xyzw":
        found = await store.begin(intent(account="a", key=key), at(5.0))
        assert found is not None
        assert found.phase is Phase.DONE
    assert len(await store.intents("a")) == 7
    await store.aclose()


async def _linked(store: MemoryStore | SqliteStore, claim: Claim) -> None:
    account = Account(
        label=claim.label,
        urls=frozenset({claim.url}),
        names=frozenset(claim.names),
        tokens=frozenset({claim.token}),
    )
    await store._hand_over(lambda books: _accounts.keep(books.sql, account))
