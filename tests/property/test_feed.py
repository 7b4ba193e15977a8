"""
The feed through days of simulated time: each row once, in order, and never too early.

Everything is real but time and the network: a loop whose clock jumps to the next timer,
and a transport that asks the stand-in's own books.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import attrs
import pytest
from aiohttp import web

from aio_agentapi import LocalGate, MemoryStore, Settings
from aio_agentapi._cashier import Cashier
from aio_agentapi._channel import Channel, Home
from aio_agentapi._exchange import Exchanges
from aio_agentapi._identity import Claim
from aio_agentapi._pace import Pace
from aio_agentapi._transport import Answer, Sending
from aio_agentapi._wire import wire
from aio_agentapi.errors import FeedGapError
from aio_agentapi.resources.transactions import Transactions
from aio_agentapi.sandbox import Sandbox, Switches
from aio_agentapi.sandbox._endpoints import Asked
from aio_agentapi.sandbox._members import parse
from aio_agentapi.sandbox._records import RefusedCall
from aio_agentapi.sandbox._routes import ROUTES
from tests.waiting import in_virtual_time

T = TypeVar("T")

CLAIM: Final = Claim(names=("eur",), token="0" * 16, url="http://127.0.0.1")
HOUR: Final = 3600.0
LAG: Final = 5.0
BEGIN: Final = datetime(2026, 3, 1, tzinfo=UTC)


class Clock:
    """The stand-in's clock goes with the loop."""

    def now(self) -> datetime:
        """Return the time."""
        return BEGIN + timedelta(seconds=asyncio.get_running_loop().time())


@attrs.define(eq=False)
class Service:
    """The stand-in's books without its HTTP, and who read what when."""

    box: Sandbox
    dice: random.Random
    twice: float = 0.0
    readings: list[tuple[int, float, int]] = attrs.field(factory=list)
    process: int = 0

    def sending(self, *, guarded: bool = False) -> Sending:
        """Begin a call, which cannot be gone on with."""
        return Sending(guarded=guarded)

    async def send(self, path: str, text: bytes, sending: Sending) -> Answer:
        """Answer a call, after a while."""
        sending.connected = True
        await asyncio.sleep(self.dice.uniform(0.01, 0.3))
        service = self.box._service
        body = parse(text, ROUTES[path].members)
        loop = asyncio.get_running_loop()
        self.readings.append((body["last_id"], loop.time(), self.process))
        asked = Asked(self.box.account("operator"), body, "127.0.0.1")
        try:
            rows = ROUTES[path].run(service.deployment, asked)
            assert isinstance(rows, list)
            if rows and self.dice.random() < self.twice:
                place = self.dice.randrange(len(rows))
                rows = [*rows[: place + 1], *rows[place:]]
            response: web.Response = service._reply(rows)
        except RefusedCall as refusal:
            response = service._refuse(refusal)
        await asyncio.sleep(self.dice.uniform(0.01, 0.3))
        assert isinstance(response.body, bytes)
        return Answer(response.status, response.body)

    def scrub(self, text: str) -> str:
        """Return what cannot have a token in it."""
        return text

    async def aclose(self) -> None:
        """Do nothing."""


@contextlib.asynccontextmanager
async def reader(
    service: Service, interval: float = 30.0
) -> AsyncGenerator[Transactions]:
    """Start a process that reads the feed, every so many seconds."""
    settings = Settings(feed_lag=LAG, feed_interval=interval)
    service.process += 1
    gate = LocalGate.of(settings)
    reading = wire("UTC")
    transport: Any = service
    began = BEGIN.timestamp()
    loop = asyncio.get_running_loop()
    channel = Channel(
        settings,
        gate,
        Home(),
        transport,
        reading,
        Exchanges(settings, gate, transport, reading),
        Pace(settings.feed_interval),
        Cashier(MemoryStore(), CLAIM, 1.0, lambda: began + loop.time()),
    )
    try:
        yield Transactions(channel)
    finally:
        await channel.aclose()


async def book(box: Sandbox, user: int, late: float) -> None:
    """Let a row come into being, which is seen so much later."""
    ledger = box._service.deployment.ledger
    ledger.late = late
    ledger.deposit(box.account("operator"), user, 10_000)
    ledger.late = 0.0


def made(box: Sandbox) -> list[int]:
    """Return the numbers of all rows there ever were."""
    sql = box._service.deployment.ledger.sql
    return [number for (number,) in sql.execute("SELECT id FROM feed ORDER BY id")]


@contextlib.asynccontextmanager
async def scene(dice: random.Random, early: Any) -> AsyncGenerator[tuple[Service, int]]:
    """Set up the books, with a user and points enough."""
    box = Sandbox(Switches(early_feed=early), clock=Clock())
    service = Service(box, dice)
    account = box.account("operator")
    user, _ = box._service.deployment.ledger.create_user(account, "bob")
    yield service, user.code
    box._service.deployment.ledger.close()


async def two_days(seed: int, early: str, hours: float) -> None:
    """Rows in bursts and pauses, late ones, restarts at any moment."""
    dice = random.Random(seed)  # noqa: S311 - the same days each time
    loop = asyncio.get_running_loop()
    got: list[int] = []
    ages: list[float] = []
    born: dict[int, float] = {}
    async with scene(dice, early) as (service, user):
        service.twice = 0.1

        async def produce() -> None:
            while loop.time() < hours * HOUR:
                for _ in range(dice.choice((1, 1, 3, 40))):
                    late = dice.choice((0.0, 0.0, dice.uniform(0, LAG)))
                    await book(service.box, user, late)
                    born[len(born) + 1] = loop.time()
                    # Several in a second, and some at the same moment.
                    await asyncio.sleep(dice.choice((0.0, 0.1, 0.5)))
                await asyncio.sleep(dice.choice((1, 5, 20, 60, 900)))

        producing = asyncio.create_task(produce())
        cursor = 0
        while not producing.done() or len(got) < len(born):
            async with reader(service) as transactions:
                rows = transactions.follow(cursor)
                with contextlib.suppress(TimeoutError):
                    async with (
                        asyncio.timeout(dice.choice((10, 100, 3000, 20_000))),
                        contextlib.aclosing(rows),
                    ):
                        async for row in rows:
                            got.append(row.trans_id)
                            ages.append(loop.time() - born[row.trans_id])
                            cursor = row.trans_id
            await asyncio.sleep(dice.choice((0.1, 40, 400)))
        assert loop.time() < (hours + 12) * HOUR
        assert got == made(service.box) == [*range(1, len(born) + 1)]
        # Nobody read a place twice within thirty seconds, but a new process may.
        last: dict[tuple[int, int], float] = {}
        for last_id, at, process in service.readings:
            assert at - last.get((last_id, process), -30.0) >= 30.0
            last[last_id, process] = at
    # A row waits for those before it, and no longer than for a few readings.
    assert sorted(ages)[len(ages) // 2] < 45


@pytest.mark.parametrize(("seed", "early"), [(1, "busy"), (2, "empty")])
def test_each_row_comes_once_and_in_order(seed: int, early: str) -> None:
    """For a day, whatever happens to the reader."""
    in_virtual_time(two_days)(seed, early, 24.0)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("early", ["busy", "empty"])
@pytest.mark.parametrize("seed", range(1, 21))
def test_each_row_comes_once_and_in_order_for_long(seed: int, early: str) -> None:
    """For 48 hours, and many of them."""
    in_virtual_time(two_days)(seed, early, 48.0)


@pytest.mark.parametrize("early", ["busy", "empty"])
def test_more_rows_than_a_page_at_once(early: str) -> None:
    """A backlog is read page by page, and what comes meanwhile behind it."""

    async def main() -> None:
        async with scene(random.Random(5), early) as (service, user):  # noqa: S311
            for _ in range(9000):
                await book(service.box, user, 0.0)
            async with reader(service) as transactions:
                rows = transactions.follow(0)
                async with contextlib.aclosing(rows):
                    got = [(await anext(rows)).trans_id for _ in range(9000)]
                    await book(service.box, user, 0.0)
                    got.append((await anext(rows)).trans_id)
            assert got == [*range(1, 9002)]
            # Some minutes, and not one for each page.
            assert asyncio.get_running_loop().time() < 200

    in_virtual_time(main)()


@pytest.mark.parametrize("early", ["busy", "empty"])
def test_who_stays_away_too_long_is_told(early: str) -> None:
    """With the bounds of what is missing; from 0 it goes on."""

    async def main() -> None:
        async with scene(random.Random(6), early) as (service, user):  # noqa: S311
            for _ in range(5):
                await book(service.box, user, 0.0)
            await asyncio.sleep(49 * HOUR)
            async with reader(service) as transactions:
                # All of it is gone: nothing says whether there was more.
                rows = transactions.follow(3)
                with pytest.raises(FeedGapError) as caught:
                    await anext(rows)
                assert (caught.value.after, caught.value.before) == (3, None)
                await book(service.box, user, 0.0)
                rows = transactions.follow(3)
                with pytest.raises(FeedGapError) as caught:
                    await anext(rows)
                assert (caught.value.after, caught.value.before) == (3, 6)
                assert caught.value.happened == "no"
                rows = transactions.follow(0)
                async with contextlib.aclosing(rows):
                    assert (await anext(rows)).trans_id == 6

    in_virtual_time(main)()


@pytest.mark.parametrize("early", ["busy", "empty"])
def test_a_quiet_account_has_no_gap(early: str) -> None:
    """A follower that was there all the time knows that nothing was deleted unread."""

    async def main() -> None:
        async with scene(random.Random(7), early) as (service, user):  # noqa: S311
            await book(service.box, user, 0.0)
            # Often enough for rows that stay for days.
            async with reader(service, 600.0) as transactions:
                rows = transactions.follow(0)
                async with contextlib.aclosing(rows):
                    assert (await anext(rows)).trans_id == 1
                    waiting = asyncio.ensure_future(anext(rows))
                    await asyncio.sleep(75 * HOUR)
                    await book(service.box, user, 3.0)
                    await book(service.box, user, 0.0)
                    assert (await waiting).trans_id == 2
                    assert (await anext(rows)).trans_id == 3

    in_virtual_time(main)()
