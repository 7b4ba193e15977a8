"""The shared gate and its keeper, with a store of the test's own, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import Any, cast

import pytest

from aio_agentapi import Secret, SessionManager, Settings
from aio_agentapi._budget import Answer, Report, channel_of
from aio_agentapi.errors import UsageError
from aio_agentapi.redis import RedisGate, RedisGates, RedisGateStatistics
from tests.conftest import TOKEN
from tests.waiting import in_virtual_time

# The first step of the keeper is to gather what comes at once.
GATHER = 0.001
URL = "redis://127.0.0.1:9"


class Store:
    """A store that answers as a test wants, and keeps when it was told what."""

    def __init__(self, answer: Callable[[Report], Answer]) -> None:
        self.answer = answer
        self.told: list[tuple[float, Report]] = []

    async def enter(self, gate: RedisGate) -> None:
        """Have nothing to say by itself."""

    async def forget(self, gate: RedisGate) -> None:
        """Keep nothing."""

    async def carry(
        self, gate: RedisGate, report: Report, *, leaves: bool = False
    ) -> Answer:
        """Answer a report."""
        del gate
        now = asyncio.get_running_loop().time()
        self.told.append((round(now, 6), report))
        return (0, 0, 0, 0, 0) if leaves else self.answer(report)


def gate_of(store: Store, limit: int = 50) -> RedisGate:
    """Make a gate that tells a store what it holds; its clock is the loop's."""
    return RedisGate(
        limit=0,
        settings=Settings(limit=limit),
        store=cast("Any", store),
        clock=asyncio.get_running_loop().time,
    )


def test_a_gate_that_was_told_nothing_says_so() -> None:
    """Nobody shares it yet, nothing is kept for the dead, and nothing was asked."""
    gate = RedisGate.factory(URL)(Secret(TOKEN), Settings())
    assert gate.statistics() == RedisGateStatistics(
        limit=0,
        share=0,
        in_use=0,
        detached=0,
        withheld=0,
        waiting=0,
        waiting_by_lane={"interactive": 0, "batch": 0},
        admitted=0,
        busy_answers=0,
        late_answers=0,
        foreign_estimate=0,
        peak=0,
        budget=50,
        members=0,
        quarantined=0,
        overdrawn=0,
        connected=False,
        lost=False,
        store_calls=0,
    )


async def test_a_gate_that_was_never_used_is_closed() -> None:
    """Twice, and with its session: there is nothing to give back."""
    gate = RedisGate.factory(URL)(Secret(TOKEN), Settings())
    await gate.aclose()
    await gate.aclose()
    async with SessionManager(
        "http://127.0.0.1:9", gate=RedisGate.factory(URL)
    ) as manager:
        used = manager.session(TOKEN).gate
    assert isinstance(used, RedisGate)
    assert used.statistics().store_calls == 0


class Deaf(Store):
    """A store whose driver misses a cancellation, and has an answer instead."""

    async def carry(
        self, gate: RedisGate, report: Report, *, leaves: bool = False
    ) -> Answer:
        """Answer when the keeper is cancelled; it has a next report at once."""
        if not leaves:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.9)
            gate._asked.set()
        return await super().carry(gate, report, leaves=leaves)


@in_virtual_time
async def test_a_gate_is_closed_whose_driver_misses_each_cancellation() -> None:
    """They can come at the same moment as answers, again and again."""
    gate = gate_of(Deaf(lambda _: (1, 1, 0, 0, 0)))
    await gate.acquire("interactive")
    gate.release("interactive")
    # Into the next one, where each cancellation meets it.
    await asyncio.sleep(0.1)
    async with asyncio.timeout(5):
        await gate.aclose()


@in_virtual_time
async def test_who_waits_is_served_when_a_new_store_begins_to_give() -> None:
    """Not sooner, when it would be asked in vain, and not with the next heartbeat."""
    store = Store(
        lambda _: (0, 1, 0, 0, 300) if len(store.told) < 2 else (1, 1, 0, 0, 0)
    )
    gate = gate_of(store)
    await gate.acquire("interactive")
    assert [when for when, _ in store.told] == [0.0, pytest.approx(GATHER + 0.3)]
    await gate.aclose()


@in_virtual_time
async def test_who_does_not_wait_asks_with_the_heartbeat() -> None:
    """Also while a new store gives nothing."""
    store = Store(lambda _: (1, 1, 0, 0, 300))
    gate = gate_of(store)
    await gate.acquire("interactive")
    await asyncio.sleep(1.5)
    assert [when for when, _ in store.told] == [0.0, 1.0]
    await gate.aclose()


@in_virtual_time
async def test_who_waits_for_others_asks_with_the_heartbeat() -> None:
    """The store says when there is something to give."""
    store = Store(lambda _: (1, 2, 0, 0, 0))
    gate = gate_of(store)
    await gate.acquire("interactive")
    waiting = asyncio.ensure_future(gate.acquire("interactive"))
    await asyncio.sleep(2.5)
    # At once, since more is wanted now, and then with each heartbeat.
    assert [when for when, _ in store.told] == [0.0, GATHER, 1.0, 2.0]
    gate.release("interactive", 0.1)
    await waiting
    await gate.aclose()


@in_virtual_time
async def test_what_comes_back_one_after_the_other_goes_together() -> None:
    """Permits that others wait for are told in one report, a little later."""
    store = Store(lambda _: (3, 2, 0, 0, 0) if len(store.told) < 2 else (0, 2, 0, 0, 0))
    gate = gate_of(store)
    await asyncio.gather(*(gate.acquire("interactive") for _ in range(3)))
    await asyncio.sleep(0.5)
    before = len(store.told)
    gate.told(f"{gate.id}:0")
    for _ in range(3):
        # A few turns between them, in which the keeper may go on.
        for _ in range(10):
            await asyncio.sleep(0)
        gate.release("interactive", 0.1)
    await asyncio.sleep(0.01)
    reports = [report for _, report in store.told[before:]]
    # What it holds is told at once, and what comes back meanwhile together.
    assert [report.held for report in reports] == [3, 0]
    await gate.aclose()


class Ear:
    """A connection that hears what a test says."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self.messages = messages
        self.closed = 0
        self.said = asyncio.Event()

    async def subscribe(self, *_: str) -> None:
        """Listen to all there is."""

    async def listen(self) -> AsyncGenerator[dict[str, Any]]:
        """Give each message, and wait for more."""
        for message in self.messages:
            yield message
        self.said.set()
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        """Count how often it was closed."""
        self.closed += 1


async def test_messages_of_unknown_channels_do_no_harm() -> None:
    """Nor what is said of subscriptions; the connection stays, and news arrive."""
    gates = RedisGates(url=URL)
    gate = gates(Secret(TOKEN), Settings())
    channel = channel_of(gate.key)
    gates._gates[channel] = gate
    gates._ear = ear = Ear(
        {"type": "subscribe", "channel": channel, "data": 1},
        {"type": "subscribe", "channel": "another", "data": 2},
        {"type": "message", "channel": "another", "data": f"{gate.id}:0"},
        {"type": "message", "channel": channel, "data": f"{gate.id}:7"},
    )
    heard = asyncio.get_running_loop().create_future()
    listening = asyncio.ensure_future(gates._listen(heard))
    async with asyncio.timeout(20):
        await ear.said.wait()
    assert heard.done()
    assert gate._asked.is_set()
    assert ear.closed == 0
    listening.cancel()
    await asyncio.wait([listening])
    assert ear.closed == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"lease": 1.0, "heartbeat": 0.5},
        {"heartbeat": 0},
        {"quarantine": float("inf")},
        {"quarantine": "30"},
        {"static_share": -1},
        {"static_share": 1.5},
        {"url": "http://127.0.0.1"},
    ],
)
def test_terms_are_checked_at_once(wrong: dict[str, Any]) -> None:
    """By name, before anything is connected."""
    told: dict[str, Any] = {"url": "redis://127.0.0.1", **wrong}
    name = next(iter(wrong))
    with pytest.raises(UsageError, match="store" if name == "url" else name):
        RedisGate.factory(**told)
    assert Settings().limit == 50
