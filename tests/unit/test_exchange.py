"""A wait whose time is over: how long what had arrived may still come through."""

from __future__ import annotations

import asyncio
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
    ("trickles", "expected"),
    [
        # Nothing comes: three turns, and the one that ends the wait.
        (0, 4),
        # As many again after the last byte.
        (20, 24),
        # Not for ever.
        (10**9, 501),
    ],
)
async def test_a_wait_that_is_over_lasts_so_many_turns(
    trickles: int, expected: int
) -> None:
    """As long as a response comes in pieces, and five hundred turns at most."""
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
        await asyncio.sleep(0)
    assert waiting.done()
    assert await waiting is False
    assert abs(turns - expected) <= 4
