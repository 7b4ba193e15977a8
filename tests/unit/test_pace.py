"""When a feed may be read again."""

from __future__ import annotations

import asyncio

import pytest

from aio_agentapi._pace import Pace
from tests.waiting import in_virtual_time, look_again


async def read(
    pace: Pace, place: object, log: list[str], name: str, seconds: float = 0.0
) -> None:
    """Read a place, and note when that begins and ends."""
    async with pace.turn(place, asyncio.sleep, None):
        log.append(f"{name} begins")
        await asyncio.sleep(seconds)
        log.append(f"{name} ends")


@in_virtual_time
async def test_one_place_is_read_by_one_at_a_time() -> None:
    """In the order in which they came, each so long after the end of the last."""
    loop, log = asyncio.get_running_loop(), list[str]()
    pace = Pace(0.05)
    began = loop.time()
    await asyncio.gather(*(read(pace, "x", log, name, 0.01) for name in "abc"))
    assert log == [f"{name} {what}" for name in "abc" for what in ("begins", "ends")]
    assert loop.time() - began == pytest.approx(0.01 + 2 * (0.05 + 0.01))


@in_virtual_time
async def test_places_do_not_wait_for_each_other() -> None:
    """And one that ends does not forget another that is still read."""
    log, pace, end = list[str](), Pace(0.01), asyncio.Event()

    async def read_slowly() -> None:
        async with pace.turn("x", asyncio.sleep, None):
            log.append("slow begins")
            await end.wait()
            log.append("slow ends")

    slow = asyncio.create_task(read_slowly())
    await asyncio.sleep(0)
    await read(pace, "y", log, "other")
    await asyncio.sleep(0.02)
    await read(pace, "z", log, "third")
    end.set()
    await read(pace, "x", log, "next")
    await slow
    assert log == [
        "slow begins",
        "other begins",
        "other ends",
        "third begins",
        "third ends",
        "slow ends",
        "next begins",
        "next ends",
    ]


@in_virtual_time
async def test_who_is_cancelled_leaves_the_turn_to_the_next() -> None:
    """While he waits for another, for the time, or while he reads."""
    log, pace = list[str](), Pace(0.03)
    await read(pace, "x", log, "first")
    pausing = asyncio.create_task(read(pace, "x", log, "pausing"))
    waiting = asyncio.create_task(read(pace, "x", log, "waiting"))
    last = asyncio.create_task(read(pace, "x", log, "last"))
    for _ in range(3):
        await asyncio.sleep(0)
    waiting.cancel()
    pausing.cancel()
    await last
    assert log[2:] == ["last begins", "last ends"]
    reading = asyncio.create_task(read(pace, "x", log, "reading", 1.0))
    while "reading begins" not in log:
        await look_again()
    reading.cancel()
    await read(pace, "x", log, "after")
    assert log[-2:] == ["after begins", "after ends"]


@in_virtual_time
async def test_who_would_be_too_late_does_not_wait() -> None:
    """And whoever waits for another's reading gives up in time."""
    loop, log = asyncio.get_running_loop(), list[str]()
    pace = Pace(100)
    await read(pace, "x", log, "first")

    async def pause(seconds: float) -> None:
        log.append(f"never {seconds}")

    with pytest.raises(TimeoutError):
        async with pace.turn("x", pause, loop.time() + 50):
            log.append("never")
    slow = asyncio.create_task(read(pace, "y", log, "slow", 100))
    await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        async with pace.turn("y", asyncio.sleep, loop.time() + 0.02):
            log.append("never")
    slow.cancel()
    await asyncio.gather(slow, return_exceptions=True)
    assert log == ["first begins", "first ends", "slow begins"]


@in_virtual_time
async def test_places_are_forgotten() -> None:
    """A reader of a long feed leaves a place for each page."""
    log, pace = list[str](), Pace(0.01)
    for number in range(100):
        await read(pace, number, log, "x")
    await asyncio.sleep(0.02)
    await read(pace, "last", log, "x")
    assert len(pace._places) == 1


@in_virtual_time
async def test_many_feeds_cost_little_each() -> None:
    """What is kept of a place is dropped without looking at the others."""
    pace = Pace(0.001)

    async def pause(seconds: float) -> None:
        await asyncio.sleep(seconds)

    for number in range(3_000):
        async with pace.turn(number, pause, None):
            pass
    await asyncio.sleep(0.002)
    async with pace.turn(0, pause, None):
        pass
    assert len(pace._places) == 1
