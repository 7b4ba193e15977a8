"""How long a connection is kept, and who may open one: in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import attrs
import pytest

from aio_agentapi import Settings
from aio_agentapi._connections import Connections, Connector
from tests.waiting import in_virtual_time


@attrs.define(eq=False)
class Protocol:
    """A connection that is open until it is aborted."""

    is_open: bool = True

    @property
    def transport(self) -> Protocol:
        """Return what is aborted."""
        return self

    def is_connected(self) -> bool:
        """Tell whether it is open."""
        return self.is_open

    def get_extra_info(self, _: str) -> None:
        """Have no socket."""

    def abort(self) -> None:
        """Close it."""
        self.is_open = False


@attrs.define(eq=False)
class Owner:
    """A session's connector."""

    resting: int = 0


def opened(shared: Connections, owner: Owner, *, idle: bool = True) -> Any:
    """Open a connection, and give it back."""
    protocol = cast("Any", Protocol())
    shared.opened(cast("Connector", owner), protocol)
    if idle:
        back(shared, protocol)
    return protocol


def back(shared: Connections, protocol: Any) -> None:
    """Give a connection back."""
    shared.returned(protocol, shared.lines.get(protocol))


def reused(shared: Connections, protocol: Any) -> bool:
    """Take one, as a connector does; tell whether it may be used."""
    line = shared.idle.pop(protocol, None)
    if line is None:
        return False
    line.owner.resting -= 1
    return shared.clock() < line.until


@in_virtual_time
async def test_an_idle_connection_is_closed_when_its_time_is_over() -> None:
    """Not twice as late, and each at its own time; then nothing is left to do."""
    shared, owner = Connections(Settings(keepalive=10)), Owner()
    first = opened(shared, owner)
    await asyncio.sleep(6)
    second = opened(shared, owner)
    await asyncio.sleep(3.9)
    assert first.is_open
    await asyncio.sleep(0.2)
    assert (first.is_open, second.is_open, owner.resting) == (False, True, 1)
    await asyncio.sleep(6)
    assert (second.is_open, owner.resting, shared.lines) == (False, 0, {})
    assert shared._timer is None


@in_virtual_time
async def test_a_connection_is_not_used_for_ever() -> None:
    """Its address may have moved."""
    shared, owner = Connections(Settings(keepalive=10, max_connection_age=25)), Owner()
    protocol = opened(shared, owner)
    for _ in range(3):
        await asyncio.sleep(8)
        assert reused(shared, protocol)
        back(shared, protocol)
    await asyncio.sleep(2)
    assert not reused(shared, protocol)


@in_virtual_time
@pytest.mark.parametrize(
    ("header", "kept"),
    [
        ("timeout=5, max=100", 4.0),
        ("max=100,timeout = 5", 4.0),
        ('Timeout="5"', 4.0),
        # Less than the margin is left of it.
        ("timeout=1", 0.5),
        ("timeout=0", 0.0),
        # Longer than is wanted here.
        ("timeout=60", 10.0),
        # Nothing that is known.
        ("max=100", 10.0),
        ("timeout=soon", 10.0),
        ("xtimeout=1", 10.0),
        ("", 10.0),
    ],
)
async def test_a_service_says_how_long_it_keeps_one(header: str, kept: float) -> None:
    """Less a margin, and in whatever order it and the response's end come."""
    shared, owner = Connections(Settings(keepalive=10)), Owner()
    before, after = (opened(shared, owner, idle=early) for early in (False, True))
    shared.hint(before, header)
    back(shared, before)
    shared.hint(after, header)
    await asyncio.sleep(max(0.0, kept - 0.01))
    assert reused(shared, before) is reused(shared, after) is (kept > 0)
    back(shared, before)
    back(shared, after)
    await asyncio.sleep(kept + 0.01)
    # It is closed by then, or refused.
    assert not reused(shared, before)
    assert not reused(shared, after)


@in_virtual_time
async def test_who_opens_one_too_many_waits_in_order() -> None:
    """One that comes later is not served before, and one that leaves is no loss."""
    shared, owner = Connections(Settings(max_connections=1)), Owner()
    busy, served = opened(shared, owner, idle=False), list[int]()

    async def enter(number: int) -> None:
        await shared.room(cast("Connector", Owner()))
        served.append(number)
        shared.closed(opened(shared, Owner(), idle=False))

    waiting = [asyncio.create_task(enter(number)) for number in range(4)]
    await asyncio.sleep(1)
    waiting[0].cancel()
    await asyncio.sleep(1)
    assert served == []
    shared.closed(busy)
    # It is this one's turn, and it has left.
    waiting[1].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert served == [2, 3]


@in_virtual_time
async def test_an_idle_one_of_another_session_is_given_up() -> None:
    """The one that has been idle longest; a session's own is used again instead."""
    shared, one, other = Connections(Settings(max_connections=2)), Owner(), Owner()
    first, second = opened(shared, one), opened(shared, one)
    await shared.room(cast("Connector", one))
    assert (first.is_open, second.is_open) == (True, True)
    await shared.room(cast("Connector", other))
    assert (first.is_open, second.is_open) == (False, True)
    assert one.resting == 1


@in_virtual_time
async def test_one_that_its_peer_has_closed_is_not_counted() -> None:
    """Nobody is told of it."""
    shared, owner = Connections(Settings(max_connections=1)), Owner()
    opened(shared, owner, idle=False).is_open = False
    await shared.room(cast("Connector", owner))
    assert shared.lines == {}


@in_virtual_time
async def test_a_busy_session_does_not_keep_its_connection_from_others() -> None:
    """What it gives back is for whoever has waited, not for its own next call."""
    shared, busy, other = Connections(Settings(max_connections=1)), Owner(), Owner()
    connection, served = opened(shared, busy, idle=False), list[str]()

    async def enter(owner: Owner, name: str) -> None:
        await shared.room(cast("Connector", owner))
        served.append(name)

    waiting = asyncio.create_task(enter(other, "other"))
    await asyncio.sleep(1)
    back(shared, connection)
    # In the same turn of the loop, and in the next: before and after the other's.
    await asyncio.wait([waiting, asyncio.create_task(enter(busy, "busy"))], timeout=1)
    assert served == ["other", "busy"]
    assert not connection.is_open


@in_virtual_time
async def test_idle_connections_that_have_ended_are_forgotten() -> None:
    """They count for nobody."""
    shared, owner = Connections(Settings(max_connections=1)), Owner()
    opened(shared, owner).is_open = False
    assert owner.resting == 1
    shared.prune()
    assert (owner.resting, shared.lines, shared.idle) == (0, {}, {})
