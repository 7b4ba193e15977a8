"""The journal's rules, in both of its homes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import pytest

from aio_agentapi import Intent, MemoryStore, Phase, SqliteStore
from aio_agentapi._journal import (
    FINAL,
    FREE,
    HAPPENED,
    MOVES,
    OPEN,
    Clock,
    Cursor,
    Store,
    Verdict,
)
from aio_agentapi._types import Moved
from aio_agentapi.errors import JournalError, UsageError
from tests.conftest import Ageing
from tests.waiting import look_again

MOVED = Moved(amount=Decimal(5), balance=Decimal("7.1234"))


@pytest.fixture(params=["memory", "file"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncGenerator[Store]:
    """Open a store of either kind."""
    made: Store = (
        MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "j.db")
    )
    yield made
    await made.aclose()


def intent(user: int = 1, **given: Any) -> Intent:
    """Make a deposit of 5 that is not written down."""
    fields: dict[str, Any] = {
        "account": "eur",
        "operation": "wallets.deposit",
        "user_code": user,
        "amount": Decimal(5),
        **given,
    }
    return Intent(**fields)


def at(now: float) -> Clock:
    """Make a clock that stands still."""
    return lambda: now


async def begun(store: Store, wanted: Intent, now: float = 100.0) -> Intent:
    """Write one down that must be sent."""
    written = await store.begin(wanted, at(now))
    assert written is not None
    assert written.phase is Phase.SENT
    return written


async def become(store: Store, written: Intent, *phases: Phase) -> Intent:
    """Give an intent one phase after the other."""
    for phase in phases:
        moved = MOVED if phase in HAPPENED else None
        verdict = Verdict(id=written.id, phase=phase, moved=moved)
        (written,) = await store.write([verdict], at(200.0))
        assert written.phase is phase
    return written


def test_the_table_of_phases_is_whole() -> None:
    """Every phase has its line; each is final, open, or on its way."""
    assert MOVES.keys() == set(Phase)
    assert {p for p in Phase if not MOVES[p]} == FINAL == HAPPENED | FREE
    assert not OPEN & FINAL
    # Nothing leads back, and never from a doubt to another sending.
    order = [*Phase]
    for phase, following in MOVES.items():
        assert all(order.index(later) > order.index(phase) for later in following)


@pytest.mark.parametrize("path", sorted(FINAL | OPEN), ids=str)
async def test_no_phase_goes_backwards(store: Store, path: Phase) -> None:
    """What the table does not have changes nothing."""
    ways = {
        Phase.UNKNOWN: (),
        Phase.NEEDS_PERSON: (Phase.UNKNOWN,),
        Phase.CONFIRMED: (Phase.UNKNOWN,),
        Phase.ABSENT: (Phase.UNKNOWN,),
    }
    written = await begun(store, intent())
    written = await become(store, written, *ways.get(path, ()), path)
    outcomes = {Phase.DONE, Phase.REFUSED, Phase.NOT_SENT}
    # Of what was found out otherwise, the outcome of an attempt is news.
    late = outcomes if path in {*ways} else set[Phase]()
    for phase in {*Phase} - {*MOVES[path]} - late:
        verdict = Verdict(id=written.id, phase=phase, note="no")
        assert [written] == await store.write([verdict], at(300.0))


async def test_an_intent_keeps_all_that_it_says(store: Store) -> None:
    """Amounts to the last digit, texts, and times; read again as they were."""
    wanted = intent(
        user=2**63 - 1,
        amount=Decimal("1000000000000000.0000"),
        key="häuslich 🏠",
        longest=7.5,
    )
    now = datetime(2026, 1, 2, 3, 4, 5, 600000, tzinfo=UTC)
    moment = now.timestamp()
    cursor = Cursor(trans_id=9, made_at=now, seen=3.5)
    await store.keep_cursor("eur", cursor)
    written = await begun(store, wanted, moment + 1)
    assert [written] == await store.intents("eur")
    assert written == attrs.evolve(
        wanted,
        id=1,
        phase=Phase.SENT,
        cursor=cursor,
        created_at=datetime(2026, 1, 2, 3, 4, 6, 600000, tzinfo=UTC),
        changed_at=datetime(2026, 1, 2, 3, 4, 6, 600000, tzinfo=UTC),
        born=written.born,
        aged=written.born,
    )
    verdict = Verdict(id=1, phase=Phase.UNKNOWN, note="lost")
    (lost,) = await store.write([verdict], lambda: moment + 2)
    assert (lost.lost_at, lost.note) == (lost.changed_at, "lost")
    verdict = Verdict(id=1, phase=Phase.CONFIRMED, moved=MOVED, trans_id=10)
    (known,) = await store.write([verdict], lambda: moment + 3)
    assert (known.moved, known.trans_id, known.note) == (MOVED, 10, "lost")
    assert known == await store.find("eur", "häuslich 🏠")


async def test_a_user_has_one_turn(store: Store) -> None:
    """Until the outcome is written; other users and accounts have their own."""
    first = await begun(store, intent())
    assert await store.begin(intent(), at(100.0)) is None
    await begun(store, intent(user=2))
    await begun(store, intent(account="usd"))
    await become(store, first, Phase.UNKNOWN)
    await begun(store, intent())


async def test_an_unknown_payment_can_keep_the_turn(store: Store) -> None:
    """With block_unknown, until it is settled, a person's word included."""
    first = await become(store, await begun(store, intent()), Phase.UNKNOWN)
    assert await store.begin(intent(), at(100.0), block_unknown=True) is None
    await become(store, first, Phase.NEEDS_PERSON)
    assert await store.begin(intent(), at(100.0), block_unknown=True) is None
    await become(store, first, Phase.ABSENT)
    assert await store.begin(intent(), at(100.0), block_unknown=True) is not None


@pytest.mark.parametrize("end", sorted(HAPPENED | OPEN), ids=str)
async def test_a_key_that_may_have_happened_is_not_paid_again(
    store: Store, end: Phase
) -> None:
    """What it stands for is given instead."""
    first = await begun(store, intent(key="k"))
    if end is not Phase.DONE:
        first = await become(store, first, Phase.UNKNOWN)
    if end is not Phase.UNKNOWN:
        first = await become(store, first, end)
    assert first == await store.begin(intent(key="k"), at(100.0))
    assert (
        await store.begin(intent(key="k", amount=Decimal("5.0000")), at(1.0)) == first
    )
    for other in (
        intent(key="k", amount=Decimal(6)),
        intent(key="k", user=2),
        intent(key="k", operation="wallets.withdraw"),
        intent(key="k", operation="wallets.withdraw_all", amount=None),
    ):
        with pytest.raises(UsageError, match="another payment") as caught:
            await store.begin(other, at(100.0))
        assert caught.value.intent == first.id
    assert len(await store.intents()) == 1


@pytest.mark.parametrize("end", sorted(FREE), ids=str)
async def test_a_key_that_did_not_happen_is_paid_anew(store: Store, end: Phase) -> None:
    """As an intent of its own, which names the one it follows."""
    first = await begun(store, intent(key="k"))
    if end is Phase.ABSENT:
        await become(store, first, Phase.UNKNOWN)
    await become(store, first, end)
    second = await begun(store, intent(key="k"))
    assert (second.follows, second.id) == (first.id, 2)
    found = await store.find("eur", "k")
    assert found is not None
    assert found.id == second.id
    # While it is under way nobody else pays it.
    assert await store.begin(intent(key="k"), at(100.0)) is None


async def test_what_follows_an_intent_is_paid_once(store: Store) -> None:
    """Without a key, the number of the first stands for it."""
    first = await become(store, await begun(store, intent()), Phase.REFUSED)
    anew = intent(follows=first.id)
    second = await begun(store, anew)
    assert await store.begin(anew, at(100.0)) is None
    second = await become(store, second, Phase.UNKNOWN)
    assert second == await store.begin(anew, at(100.0))
    await become(store, second, Phase.ABSENT)
    third = await begun(store, anew)
    assert third.follows == second.id
    third = await become(store, third, Phase.DONE)
    assert third == await store.begin(anew, at(100.0))


async def test_a_row_of_the_feed_proves_one_payment(store: Store) -> None:
    """Whoever comes second with it says nothing."""
    one = await become(store, await begun(store, intent()), Phase.UNKNOWN)
    two = await become(store, await begun(store, intent()), Phase.UNKNOWN)
    proof = {"phase": Phase.CONFIRMED, "moved": MOVED, "trans_id": 7}
    first, second = await store.write(
        [Verdict(id=one.id, **proof), Verdict(id=two.id, **proof)],  # type: ignore[arg-type]  # as they are
        at(300.0),
    )
    assert (first.phase, second.phase) == (Phase.CONFIRMED, Phase.UNKNOWN)


async def test_a_cursor_only_grows(store: Store) -> None:
    """An older row, read by another process, does not take its place."""
    assert await store.cursor("eur") == Cursor()
    at = datetime(2026, 1, 1, tzinfo=UTC)
    new = Cursor(trans_id=9, made_at=at, seen=1.0)
    await store.keep_cursor("eur", new)
    await store.keep_cursor("eur", attrs.evolve(new, trans_id=8))
    assert (await store.cursor("eur"), await store.cursor("usd")) == (new, Cursor())


async def test_a_cursor_that_may_be_gone_is_not_noted(store: Store) -> None:
    """A row of more than a day ago may be deleted before it is needed."""
    at = datetime(2026, 1, 1, tzinfo=UTC)
    await store.keep_cursor("eur", Cursor(trans_id=9, made_at=at))
    day = 24 * 3600.0
    assert (await begun(store, intent(1), at.timestamp() + day)).cursor.trans_id == 9
    late = await begun(store, intent(2), at.timestamp() + day + 1)
    assert late.cursor == Cursor()


async def test_old_intents_are_forgotten(store: Store, ageing: Ageing) -> None:
    """Final ones, but none of a user who has an open one: settling counts them."""
    done = await become(store, await begun(store, intent(1)), Phase.DONE)
    kept = await become(store, await begun(store, intent(2)), Phase.DONE)
    lost = await become(store, await begun(store, intent(2)), Phase.UNKNOWN)
    ageing.passed += 1000.0
    new = await begun(store, intent(3))
    assert await store.prune(1001.0) == 0
    assert await store.prune(999.0) == 1
    assert await store.intents() == [kept, lost, new]
    await become(store, lost, Phase.ABSENT)
    # The one that it became just now is kept as long as any other.
    assert await store.prune(999.0) == 1
    ageing.passed += 1000.0
    assert await store.prune(999.0) == 1
    assert [new] == await store.intents()
    assert await store.intents(ids=[done.id]) == []


async def test_intents_are_found_by_all_that_is_given(store: Store) -> None:
    """Account, phases, user and numbers."""
    one = await begun(store, intent(1))
    two = await become(store, await begun(store, intent(2)), Phase.UNKNOWN)
    other = await become(store, await begun(store, intent(2, account="x")), Phase.DONE)
    assert await store.intents("eur", phases=OPEN) == [two]
    assert await store.intents(user_code=2) == [two, other]
    assert await store.intents("eur", ids=[one.id, other.id]) == [one]
    assert await store.intents(phases=[Phase.DONE, Phase.SENT]) == [one, other]
    with pytest.raises(UsageError, match="no intent 99"):
        await store.write([Verdict(id=99, phase=Phase.ABSENT)], at(1.0))


@pytest.mark.parametrize("wrong", ["1", True, 2**63, -(2**63) - 1, None, 1.0])
def test_a_user_code_that_cannot_be_is_refused(wrong: Any) -> None:
    """Before anything is written or sent."""
    with pytest.raises(UsageError, match=r"^user_code: "):
        intent(wrong)


@pytest.mark.parametrize("wrong", ["", "x" * 256, "a\nb", 5, "\ud800"])
def test_a_key_that_cannot_be_is_refused(wrong: Any) -> None:
    """Before anything is written or sent."""
    with pytest.raises(UsageError, match=r"^key: "):
        intent(key=wrong)


# The file.


async def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    """And so are those beside it."""
    store = SqliteStore(tmp_path / "j.db")
    await begun(store, intent())
    modes = {f.name: stat.S_IMODE(f.stat().st_mode) for f in tmp_path.iterdir()}
    await store.aclose()
    assert set(modes.values()) == {0o600}
    assert modes.keys() == {"j.db", "j.db-wal", "j.db-shm", "j.db-owners"}


async def test_a_file_is_opened_again(tmp_path: Path) -> None:
    """By another store, or by the same after it was closed: all is there."""
    path = tmp_path / "j.db"
    first = SqliteStore(path)
    written = await begun(first, intent())
    await first.aclose()
    await first.aclose()
    again = await become(first, written, Phase.DONE)
    second = SqliteStore(path)
    assert [again] == await second.intents()
    await second.aclose()
    await first.aclose()
    assert (repr(first), first.durable) == (f"<SqliteStore {path}>", True)


async def test_what_was_handed_over_is_written_when_it_is_closed(
    tmp_path: Path,
) -> None:
    """Also what nobody waits for, and in its order."""
    store = SqliteStore(tmp_path / "j.db")
    for number in range(1200):
        store.begin(intent(number), at(100.0))
    await store.aclose()
    again = SqliteStore(tmp_path / "j.db")
    assert [i.user_code for i in await again.intents()] == [*range(1200)]
    await again.aclose()


async def test_another_file_is_not_taken_for_a_journal(tmp_path: Path) -> None:
    """A foreign database, one of another version, no database, a folder."""
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as sql:
        sql.execute("CREATE TABLE x (y)")
    sql.close()
    newer = tmp_path / "newer.db"
    store = SqliteStore(newer)
    await store.intents()
    await store.aclose()
    with sqlite3.connect(newer) as sql:
        sql.execute("PRAGMA user_version = 3")
    sql.close()
    text = tmp_path / "text.db"
    text.write_text("not a database, " * 100)
    for path in (foreign, newer, text, tmp_path, tmp_path / "no" / "j.db"):
        store = SqliteStore(path)
        with pytest.raises(JournalError, match="Nothing was sent"):
            await store.begin(intent(), at(1.0))
        await store.aclose()
    assert text.read_text().startswith("not a database")


async def test_a_living_owner_keeps_his_turns(tmp_path: Path) -> None:
    """Two stores on one file are two owners; only what is left behind is taken."""
    path = tmp_path / "j.db"
    first, second = SqliteStore(path), SqliteStore(path)
    written = await begun(first, intent(key="k"))
    assert await second.begin(intent(), at(100.0)) is None
    assert await second.begin(intent(key="k"), at(100.0)) is None
    assert await second.adopt(at(100.0)) == 0
    await first.aclose()
    assert await second.adopt(at(150.0)) == 1
    (left,) = await second.intents()
    assert (left.id, left.phase) == (written.id, Phase.UNKNOWN)
    assert left.lost_at == datetime.fromtimestamp(150.0, UTC)
    assert await second.begin(intent(key="k"), at(160.0)) == left
    await begun(second, intent())
    await second.aclose()


OWNER = """
import asyncio, sys
from decimal import Decimal
from aio_agentapi import Intent, SqliteStore

async def main():
    store = SqliteStore(sys.argv[1])
    for user in (1, 2):
        await store.begin(Intent(account="eur", operation="wallets.deposit",
                                 user_code=user, amount=Decimal(5),
                                 key=f"k{user}"), lambda: 100.0)
    print("written", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.process
async def test_a_killed_owner_is_dead(tmp_path: Path) -> None:
    """While he is stopped he lives; killed, what he sent is unknown, not free."""
    path = tmp_path / "j.db"
    process = subprocess.Popen(  # noqa: ASYNC220, S603 - our own interpreter
        [sys.executable, "-c", OWNER, str(path)], stdout=subprocess.PIPE
    )
    store = SqliteStore(path)
    try:
        assert process.stdout is not None
        line = await asyncio.to_thread(process.stdout.readline)
        assert line == b"written\n"
        os.kill(process.pid, signal.SIGSTOP)
        assert await store.begin(intent(1), at(100.0)) is None
        assert await store.adopt(at(100.0)) == 0
    finally:
        process.kill()
        process.communicate()
    # By whoever needs the turn, by whoever asks for the key, or all at once.
    await begun(store, intent(1), 150.0)
    lost = await store.begin(intent(2, key="k2"), at(150.0))
    assert lost is not None
    assert (lost.phase, lost.user_code) == (Phase.UNKNOWN, 2)
    assert await store.adopt(at(150.0)) == 0
    assert len(await store.intents(phases=[Phase.UNKNOWN])) == 2
    await store.aclose()


@contextlib.contextmanager
def no_room(path: Path) -> Generator[None]:
    """Let no file of this process grow beyond the size of one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk_refuses_and_forgets_nothing(tmp_path: Path) -> None:
    """What cannot be written is not sent; a verdict is written when there is room."""
    store = SqliteStore(tmp_path / "j.db")
    one = await begun(store, intent(1))
    two = await begun(store, intent(2))
    with no_room(tmp_path / "j.db-wal"):
        with pytest.raises(JournalError, match=r"j\.db: .*Nothing was sent"):
            await store.begin(intent(3), at(100.0))
        for written, phase in ((one, Phase.UNKNOWN), (two, Phase.DONE)):
            with pytest.raises(JournalError):
                await store.write([Verdict(id=written.id, phase=phase)], at(150.0))
        # As long as that is not on disk, nothing else is done.
        with pytest.raises(JournalError):
            await store.intents()
    first, second = await store.intents()
    assert (first.phase, second.phase) == (Phase.UNKNOWN, Phase.DONE)
    await begun(store, intent(1))
    await store.aclose()


async def test_what_is_kept_is_written_at_the_end(tmp_path: Path) -> None:
    """When there is room again, closing is the last chance."""
    store = SqliteStore(tmp_path / "j.db")
    one = await begun(store, intent(1))
    with no_room(tmp_path / "j.db-wal"), pytest.raises(JournalError):
        await store.write([Verdict(id=one.id, phase=Phase.REFUSED)], at(150.0))
    await store.aclose()
    again = SqliteStore(tmp_path / "j.db")
    assert [i.phase for i in await again.intents()] == [Phase.REFUSED]
    await again.aclose()


@pytest.mark.process
def test_a_file_that_may_not_be_written_refuses(tmp_path: Path) -> None:
    """Read-only, seen by a user who is not root."""
    code = """
import asyncio, os, sys
from decimal import Decimal
from aio_agentapi import Intent, SqliteStore
from aio_agentapi.errors import JournalError

async def main():
    store = SqliteStore(sys.argv[1])
    try:
        await store.begin(Intent(account="eur", operation="wallets.deposit",
                                 user_code=1, amount=Decimal(5)), lambda: 100.0)
    except JournalError as error:
        print(error)
    await store.aclose()

os.setuid(65534) if os.getuid() == 0 else None
asyncio.run(main())
"""
    path = tmp_path / "j.db"
    with sqlite3.connect(path) as sql:
        sql.execute("PRAGMA application_id = 5")
    sql.close()
    folder = tmp_path
    # The way there is open to whoever it is.
    while folder != folder.parent and folder.owner() == tmp_path.owner():
        folder.chmod(0o755)
        folder = folder.parent
    path.chmod(0o444)
    ran = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    assert "Nothing was sent" in ran.stdout, ran.stderr


async def test_a_store_wakes_each_loop_that_waits(tmp_path: Path) -> None:
    """Two loops in two threads share one; a loop that has ended hurts nobody."""
    store = SqliteStore(tmp_path / "j.db")

    def other() -> int:
        return len(asyncio.run(_intents(store)))

    store.begin(intent(), at(1.0))
    assert await asyncio.to_thread(other) == 1
    await asyncio.to_thread(asyncio.run, _hand_over(store))
    assert len(await store.intents()) == 2
    await store.aclose()


async def _intents(store: Store) -> list[Intent]:
    return await store.intents()


async def _hand_over(store: Store) -> None:
    store.begin(intent(2), at(1.0))


async def test_a_chain_of_resent_payments_is_one(store: Store) -> None:
    """Whichever of them is paid anew, it is the last one that counts."""
    first = await become(store, await begun(store, intent()), Phase.REFUSED)
    second = await begun(store, intent(follows=first.id))
    second = await become(store, second, Phase.REFUSED)
    third = await begun(store, intent(follows=second.id))
    third = await become(store, third, Phase.DONE)
    for number in (first.id, second.id, third.id):
        again = intent(follows=number)
        assert await store.begin(again, at(1.0)) == third


async def test_verdicts_that_are_overtaken_are_not_written(store: Store) -> None:
    """What they were found out from has changed meanwhile."""
    one = await become(store, await begun(store, intent()), Phase.UNKNOWN)
    two = await become(store, await begun(store, intent()), Phase.UNKNOWN)
    await become(store, two, Phase.CONFIRMED)
    verdict = Verdict(id=one.id, phase=Phase.CONFIRMED, moved=MOVED, trans_id=7)
    assert await store.write([verdict], at(1.0), given=[one, two]) == []
    assert (await store.intents(ids=[one.id]))[0].phase is Phase.UNKNOWN
    assert await store.write([verdict], at(1.0), given=[one]) != []


async def test_old_intents_are_looked_for_behind_those_that_stay(
    store: Store, monkeypatch: pytest.MonkeyPatch, ageing: Ageing
) -> None:
    """A user with an open payment, and many before it, hides no others."""
    monkeypatch.setattr("aio_agentapi._books._PRUNED", 3)
    for _ in range(4):
        await become(store, await begun(store, intent(1)), Phase.DONE)
    await become(store, await begun(store, intent(1)), Phase.UNKNOWN)
    await become(store, await begun(store, intent(2)), Phase.DONE)
    ageing.passed += 1000.0
    assert [await store.prune(1.0) for _ in range(4)] == [0, 1, 0, 0]


async def test_many_numbers_can_be_asked_for(store: Store) -> None:
    """More than a statement may have values."""
    written = await begun(store, intent())
    assert [written] == await store.intents(ids=range(300_000))


async def test_a_bad_value_stops_nobody_else(tmp_path: Path) -> None:
    """Who asks with it is told, and the journal goes on."""
    store = SqliteStore(tmp_path / "j.db")
    for wrong in (store.find("eur", "\ud800"), store.intents(user_code=2**70)):
        with pytest.raises(JournalError, match="Error"):
            await wrong
    await begun(store, intent())
    await store.aclose()


@pytest.mark.parametrize("name", ["j.db", "j.db-owners"])
async def test_files_that_are_replaced_are_noticed(tmp_path: Path, name: str) -> None:
    """Another journal, or other locks, in their place: nothing is sent."""
    store = SqliteStore(tmp_path / "j.db")
    written = await begun(store, intent())
    (tmp_path / name).rename(tmp_path / "moved")
    for replaced in (False, True):
        if replaced:
            (tmp_path / name).write_bytes((tmp_path / "moved").read_bytes())
        with pytest.raises(JournalError, match="Nothing was sent"):
            await store.begin(intent(2), at(1.0))
        with pytest.raises(JournalError):
            await store.write([Verdict(id=written.id, phase=Phase.DONE)], at(1.0))
    (tmp_path / "moved").rename(tmp_path / name)
    assert [i.phase for i in await store.intents()] == [Phase.DONE]
    await store.aclose()


async def test_what_is_kept_is_tried_again_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn does not stay taken until somebody happens to come by."""
    monkeypatch.setattr("aio_agentapi._store._AGAIN", 0.02)
    store, reader = SqliteStore(tmp_path / "j.db"), SqliteStore(tmp_path / "j.db")
    written = await begun(store, intent())
    with no_room(tmp_path / "j.db-wal"), pytest.raises(JournalError) as caught:
        await store.write([Verdict(id=written.id, phase=Phase.DONE)], at(1.0))
    assert "as soon as" in str(caught.value)
    while (await reader.intents())[0].phase is Phase.SENT:
        await look_again()
    await store.aclose()
    await reader.aclose()


async def test_a_dead_owner_is_dead_from_when_it_is_seen(tmp_path: Path) -> None:
    """The time is taken when it is found: until then it may have sent."""
    first, second = SqliteStore(tmp_path / "j.db"), SqliteStore(tmp_path / "j.db")
    await begun(first, intent(), 100.0)
    times = iter([50.0, 150.0])
    held = sqlite3.connect(tmp_path / "j.db", isolation_level=None)
    held.execute("BEGIN IMMEDIATE")
    adopting = second.adopt(lambda: next(times))
    next(times)
    # It dies while the other waits for the file.
    await first.aclose()
    held.execute("ROLLBACK")
    held.close()
    assert await adopting == 1
    (lost,) = await second.intents()
    assert lost.lost_at == datetime.fromtimestamp(150.0, UTC)
    await second.aclose()


@pytest.mark.process
async def test_a_child_does_not_keep_its_parents_lock(tmp_path: Path) -> None:
    """Forked while a payment is under way, it outlives the parent."""
    code = OWNER.replace(
        'print("written", flush=True)',
        "import os, time\n    if os.fork() == 0:\n"
        # The child: it has done by now what it does after a fork.
        '        print("written", flush=True)\n        time.sleep(30)\n'
        "        os._exit(0)",
    )
    process = subprocess.Popen(  # noqa: ASYNC220, S603 - our own interpreter
        [sys.executable, "-c", code, str(tmp_path / "j.db")],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    store = SqliteStore(tmp_path / "j.db")
    try:
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == b"written\n"
        process.kill()
        process.wait()
        assert await store.adopt(at(150.0)) == 2
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        await store.aclose()


async def test_a_commit_waits_for_the_disk(tmp_path: Path) -> None:
    """Of an intent, before it is sent; an outcome alone is in the file without."""
    store = SqliteStore(tmp_path / "j.db")
    await begun(store, intent())
    books, near = store._books, store._near
    assert books is not None
    assert near is not None
    for known, expected in ((books, 2), (near, 1)):
        assert known.sql.execute("PRAGMA synchronous").fetchone() == (expected,)
        assert known.sql.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    await store.aclose()


async def test_many_may_open_a_new_file_at_once(tmp_path: Path) -> None:
    """Whoever comes second waits for the first."""
    stores = [SqliteStore(tmp_path / "j.db") for _ in range(12)]
    found = await asyncio.gather(*(store.intents() for store in stores))
    assert found == [[]] * 12
    for store in stores:
        await store.aclose()
