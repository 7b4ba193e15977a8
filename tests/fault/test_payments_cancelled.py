"""
Payments that are cancelled, or out of time, at every turn of the loop.

Whatever is cut off, and where: the row of a payment ends as not_sent, or in the hands
of its attempt, and its user can pay again at once.
"""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import attrs
import pytest

from aio_agentapi import (
    Intent,
    MemoryStore,
    Phase,
    Session,
    SessionManager,
    Settings,
    SqliteStore,
)
from aio_agentapi._journal import Clock, Store
from aio_agentapi.errors import GateTimeoutError, JournalError
from aio_agentapi.sandbox import Sandbox, SandboxProcess, Switches
from tests.waiting import look_again

# More turns of the loop than a payment on loopback takes.
TURNS: Final = 70

SETTINGS: Final = Settings(
    timeout=10.0, longest_call=0.3, feed_interval=0.05, feed_lag=0.05, drain=1.0
)


@pytest.fixture(params=["memory", "file"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    """Make a store of either kind; those in files share one."""
    if request.param == "memory":
        return MemoryStore
    return lambda: SqliteStore(tmp_path / "j.db")


@pytest.fixture(params=["lazy", "eager"])
async def tasks(request: pytest.FixtureRequest) -> AsyncGenerator[None]:
    """Begin tasks in their first turn, or at once."""
    loop = asyncio.get_running_loop()
    if request.param == "eager":
        if sys.version_info < (3, 12):
            pytest.skip("eager tasks are new in Python 3.12")
        loop.set_task_factory(asyncio.eager_task_factory)
    yield
    loop.set_task_factory(None)


@asynccontextmanager
async def shop(
    box: Sandbox, store: Store, **settings: Any
) -> AsyncGenerator[tuple[Session, int]]:
    """Open a session, and make sure whose payments they are."""
    async with SessionManager(
        box.base_url,
        accounts={"eur": box.token("shop_1")},
        settings=SETTINGS if not settings else Settings(**settings),
        store=store,
    ) as manager:
        session = manager.session("eur")
        user = (await session.users.create("anna")).user_code
        await session.wallets.deposit(user, 1)
        yield session, user


async def no_row_is_left(session: Session, intents: list[Intent]) -> None:
    """No row is sent with nobody at work on it, and nothing of it is kept."""
    assert not [i for i in intents if i.phase is Phase.SENT]
    cashier = session._channel.cashier
    assert not cashier._lost
    assert not cashier._begun
    assert not cashier._lines


@pytest.mark.usefixtures("tasks")
@pytest.mark.parametrize("again", [False, True], ids=["once", "thrice"])
async def test_a_payment_cancelled_at_each_turn(
    make: Callable[[], Store], *, again: bool
) -> None:
    """Once, or in three turns that follow: its user pays at once, and all is known."""
    async with Sandbox() as box:
        store = make()
        async with shop(box, store) as (session, user):
            ended = 0
            for turns in range(TURNS):
                paying = asyncio.ensure_future(
                    session.wallets.deposit(user, 2, key=f"k{turns}")
                )
                for _ in range(turns):
                    await asyncio.sleep(0)
                for _ in range(3 if again else 1):
                    paying.cancel()
                    await asyncio.sleep(0)
                (end,) = await asyncio.gather(paying, return_exceptions=True)
                ended += not isinstance(end, BaseException)
                async with asyncio.timeout(10):
                    await session.wallets.deposit(user, 1)
                await no_row_is_left(session, await store.intents())
            assert ended < TURNS
            await session.payments.settle_all()
            intents = await store.intents()
            happened = {Phase.DONE, Phase.CONFIRMED}
            paid = sum(i.amount or 0 for i in intents if i.phase in happened)
            assert box.users("shop_1")[0].balance == paid * 10_000
            assert {i.phase for i in intents} <= {
                *happened,
                Phase.NOT_SENT,
                Phase.ABSENT,
            }


class Cutting(SqliteStore):
    """A store that lets a task be cancelled just when its answer is there."""

    victim: Callable[[], object] | None = None

    def begin(
        self, intent: Intent, clock: Clock, *, block_unknown: bool = False
    ) -> Awaitable[Intent | None]:
        """Write it down, and cut off whoever waits, between the disk and its turn."""
        work = super().begin(intent, clock, block_unknown=block_unknown)
        if (victim := self.victim) is not None:
            asyncio.ensure_future(work).add_done_callback(lambda _: victim())
        return work


@pytest.mark.usefixtures("tasks")
async def test_a_cancel_between_the_disk_and_the_task(tmp_path: Path) -> None:
    """In the turn that brings the journal's answer: not_sent at once, and no leak."""
    store = Cutting(tmp_path / "j.db")
    async with Sandbox() as box, shop(box, store) as (session, user):
        for number in range(5):
            call = session.wallets.deposit(user, 2, key=f"k{number}")
            # Known by then, also where a task begins at once.
            tasks = list[asyncio.Future[Any]]()
            store.victim = lambda tasks=tasks: tasks[0].cancel()
            paying = asyncio.ensure_future(call)
            tasks.append(paying)
            with pytest.raises(asyncio.CancelledError):
                await paying
            store.victim = None
            found = await session.payments.find(f"k{number}")
            assert found is not None
            assert found.phase is Phase.NOT_SENT
            await no_row_is_left(session, await store.intents())
            moved = await session.wallets.deposit(user, 2, key=f"k{number}")
            assert moved.amount == 2
        assert box.executed["wallet/deposit"] == 6


async def test_a_payment_out_of_time_at_each_moment(make: Callable[[], Store]) -> None:
    """By its own deadline, or by asyncio.timeout: the same holds."""
    async with Sandbox(Switches(latency=0.002)) as box:
        store = make()
        async with shop(box, store) as (session, user):
            for step in range(60):
                seconds = 0.0001 + step * 0.0003
                hurried = session.with_options(deadline=seconds)
                ours = hurried.wallets.deposit(user, 2)
                await asyncio.gather(ours, return_exceptions=True)
                try:
                    async with asyncio.timeout(seconds):
                        await session.wallets.deposit(user, 2)
                except TimeoutError:
                    pass
                async with asyncio.timeout(10):
                    await session.wallets.deposit(user, 1)
                await no_row_is_left(session, await store.intents())


async def test_several_managers_on_one_file(tmp_path: Path) -> None:
    """Users of one are never blocked by what was cut off in another."""
    dice = random.Random(5)  # noqa: S311 - the same for each run
    path = tmp_path / "j.db"
    async with (
        Sandbox(Switches(latency=0.001)) as box,
        shop(box, SqliteStore(path)) as (one, user),
        shop(box, SqliteStore(path)) as (two, _),
        shop(box, SqliteStore(path)) as (three, _),
    ):
        for _ in range(60):
            paying = [
                asyncio.ensure_future(each.wallets.deposit(user, 2))
                for each in (one, two, three)
            ]
            for _ in range(dice.randrange(80)):
                await asyncio.sleep(0)
            for each in paying:
                each.cancel()
            await asyncio.gather(*paying, return_exceptions=True)
            async with asyncio.timeout(10):
                await dice.choice((one, two, three)).wallets.deposit(user, 1)
        async with opened(path) as store:
            assert not await store.intents(phases=[Phase.SENT])


@asynccontextmanager
async def opened(path: Path) -> AsyncGenerator[SqliteStore]:
    """Open a journal, to look into it."""
    store = SqliteStore(path)
    try:
        yield store
    finally:
        await store.aclose()


async def test_closing_while_the_journal_is_locked(tmp_path: Path) -> None:
    """Closing does not hang, and what was never written down is not sent."""
    path = tmp_path / "j.db"
    other = sqlite3.connect(path, isolation_level=None)
    async with Sandbox() as box, shop(box, SqliteStore(path)) as (session, user):
        other.execute("BEGIN IMMEDIATE")
        paying = asyncio.ensure_future(session.wallets.deposit(user, 2))
        cashier = session._channel.cashier
        while not cashier._begun:
            await asyncio.sleep(0)
        paying.cancel()
        await asyncio.gather(paying, return_exceptions=True)
        closing = asyncio.ensure_future(session.aclose())
        await asyncio.wait([closing], timeout=5)
        assert closing.done()
        other.execute("ROLLBACK")
    other.close()
    async with opened(path) as store:
        assert [i.phase for i in await store.intents()] == [
            Phase.DONE,
            Phase.NOT_SENT,
        ]


@pytest.mark.realtime
async def test_a_locked_journal_takes_no_longer_than_the_call_has(
    tmp_path: Path,
) -> None:
    """Nothing is sent, and the user pays when it is free again."""
    path = tmp_path / "j.db"
    other = sqlite3.connect(path, isolation_level=None)
    async with Sandbox() as box, shop(box, SqliteStore(path)) as (session, user):
        loop = asyncio.get_running_loop()
        other.execute("BEGIN IMMEDIATE")
        began = loop.time()
        hurried = session.with_options(deadline=0.2)
        with pytest.raises((JournalError, GateTimeoutError), match="Nothing was sent"):
            await hurried.wallets.deposit(user, 2)
        # The file is waited for as long as half a minute.
        assert loop.time() - began < 5
        other.execute("ROLLBACK")
        await session.wallets.deposit(user, 2)
        # The outcome is told in time as well, and written when that can be done.
        box.faults.hold("wallet/deposit")
        paying = asyncio.ensure_future(
            session.with_options(deadline=0.5).wallets.deposit(user, 3, key="k")
        )
        while box.received.get("wallet/deposit", 0) < 3:
            await look_again()
        other.execute("BEGIN IMMEDIATE")
        box.faults.clear()
        began = loop.time()
        assert (await paying).amount == 3
        assert loop.time() - began < 5
        other.execute("ROLLBACK")
        while (found := await session.payments.find("k")) is None or (
            found.phase is not Phase.DONE
        ):
            await look_again()
        assert box.executed["wallet/deposit"] == 3
    other.close()


async def test_a_loop_that_was_closed_keeps_no_turn(tmp_path: Path) -> None:
    """Its store goes on in another loop, which takes over what was left."""
    store = SqliteStore(tmp_path / "j.db")

    def left() -> None:
        loop = asyncio.new_event_loop()
        wanted = Intent(
            account="eur", operation="wallets.deposit", user_code=1, amount=None
        )

        async def begin() -> None:
            store.begin(wanted, lambda: 100.0)

        loop.run_until_complete(begin())
        loop.close()

    await asyncio.to_thread(left)
    other = SqliteStore(tmp_path / "j.db")
    async with asyncio.timeout(20):
        while [i.phase for i in await store.intents()] != [Phase.UNKNOWN]:
            await store.adopt(lambda: 150.0)
            await look_again()
    assert [i.phase for i in await other.intents()] == [Phase.UNKNOWN]
    await store.aclose()
    await other.aclose()


QUICK: Final[dict[str, Any]] = {
    "timeout": 2.0,
    "longest_call": 0.5,
    "feed_interval": 0.05,
    "feed_lag": 0.05,
    "drain": 0.5,
    "amount_decimals": 4,
}


@attrs.frozen
class Storm:
    """Two programs on one journal, and how hard it is."""

    box: SandboxProcess
    journal: Path
    users: int
    payments: int
    kills: int
    seed: int = 1

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[Session]:
        """Open a session with the journal."""
        async with SessionManager(
            self.box.base_url,
            accounts={"eur": self.box.tokens["shop_1"]},
            settings=Settings(**QUICK),
            store=SqliteStore(self.journal),
        ) as manager:
            yield manager.session("eur")

    async def start(self, users: list[int], seed: int) -> asyncio.subprocess.Process:
        """Start a program that pays, and cuts its payments off."""
        told = {
            "base_url": self.box.base_url,
            "token": self.box.tokens["shop_1"],
            "journal": str(self.journal),
            "settings": QUICK,
            "users": users,
            "payments": self.payments,
            "seed": seed,
        }
        command = (sys.executable, "-m", "tests.stormer", json.dumps(told))
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *command, stdout=pipe, stderr=pipe
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"begun\n"
        return process

    async def rage(self) -> None:
        """Let it rage; then each user can be paid, and the books agree."""
        dice = random.Random(self.seed)  # noqa: S311 - moments of kills
        async with self.session() as session:
            names = [f"user_{number}" for number in range(self.users)]
            users = [(await session.users.create(name)).user_code for name in names]
            await session.wallets.deposit(users[0], 1)
        seeds = iter(range(1000))
        processes = [await self.start(users, next(seeds)) for _ in range(2)]
        for _ in range(self.kills):
            which = dice.randrange(2)
            before = (await self.box.gauge("shop_1")).served
            until = before + dice.randrange(1, self.payments // 4)
            while processes[which].returncode is None:
                if (await self.box.gauge("shop_1")).served >= until:
                    processes[which].kill()
                    break
                await look_again()
            await processes[which].communicate()
            processes[which] = await self.start(users, next(seeds))
        for process in processes:
            _, told = await process.communicate()
            assert not process.returncode, told.decode()
        async with self.session() as session, asyncio.timeout(60):
            await asyncio.gather(*(session.wallets.deposit(user, 1) for user in users))
            await session.payments.settle_all()
            found = [(await session.users.info(user)).balance for user in users]
        await self.books_agree(sum(found))

    async def books_agree(self, balances: Decimal | int) -> None:
        """What the journal says has happened is what the service has."""
        async with opened(self.journal) as store:
            intents = await store.intents()
        open_ = {Phase.SENT, Phase.UNKNOWN, Phase.NEEDS_PERSON}
        assert not [i for i in intents if i.phase in open_]
        happened = [i for i in intents if i.phase in {Phase.DONE, Phase.CONFIRMED}]
        assert balances == sum(i.amount or 0 for i in happened)
        keys = [i.key for i in happened if i.key]
        assert len(keys) == len(set(keys))
        assert {i.phase for i in intents} & {Phase.NOT_SENT, Phase.CONFIRMED}


STORMY: Final = Switches(latency=0.003, jitter=0.003, feed_spacing=0.0)


@pytest.mark.process
async def test_a_storm_of_cancels_time_outs_and_kills(tmp_path: Path) -> None:
    """Two programs, either of them killed: each user pays afterwards."""
    async with SandboxProcess(STORMY) as box:
        await Storm(box, tmp_path / "j.db", 40, 400, 3).rage()


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_a_long_storm_of_cancels_time_outs_and_kills(tmp_path: Path) -> None:
    """The same for 200 users, tens of thousands of payments, and twenty kills."""
    async with SandboxProcess(STORMY) as box:
        await Storm(box, tmp_path / "j.db", 200, 10_000, 20).rage()
