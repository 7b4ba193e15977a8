"""A wait whose time is over: how long what had arrived may still come through."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import attrs
import pytest

from aio_agentapi._exchange import Exchange
from aio_agentapi._transport import Sending
from aio_agentapi._types import Operation


@attrs.define(eq=False)
class Trickle(Sending):
    """A response of which a byte comes in each of the first turns of the loop."""

    turns: int = 0
    read_so_far: int = 0

    def read(self) -> int:
        """Return how much has come."""
        self.read_so_far += self.read_so_far < self.turns
        return self.read_so_far


@pytest.mark.realtime
@pytest.mark.parametrize(
    ("trickles", "seconds", "expected"),
    [
        # Nothing comes: three turns, and the one that ends the wait.
        (0, 0, 4),
        # As many again after the last byte.
        (20, 0, 24),
        # Not for ever: as many turns as there are in the grace, and those three.
        (10**9, 0.01, 9),
        # What has arrived is read, however long a turn of the loop is.
        (10**9, 0.1, 4),
    ],
)
async def test_a_wait_that_is_over_lasts_so_many_turns(
    trickles: int, seconds: float, expected: int
) -> None:
    """As long as a response comes in pieces, and for 50 ms at most."""
    loop = asyncio.get_running_loop()
    exchange: Exchange[Any] = Exchange(
        Operation(name="agents.info", effect="read", returns=dict),
        "agent/info",
        {},
        b"{}",
        "interactive",
        cast("Any", None),
        None,
        Trickle(turns=trickles),
    )
    # Somebody else carries it out.
    exchange.task = asyncio.create_task(asyncio.sleep(0))
    waiting = asyncio.ensure_future(exchange.wait(loop.time() - 1))
    turns = 0
    # In the first two turns the wait begins, and its timer ends.
    while not waiting.done() and turns < 10_000:
        turns += 1
        # Somebody else keeps the loop busy.
        time.sleep(seconds)  # noqa: ASYNC251 - as said
        await asyncio.sleep(0)
    assert waiting.done()
    assert await waiting is False
    # On a busy machine the grace may have fewer of them.
    assert (4 if seconds else expected - 4) <= turns <= expected + 4
