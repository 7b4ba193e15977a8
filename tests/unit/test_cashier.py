"""Payments under way: what is left of one whose caller is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection
from decimal import Decimal
from typing import Any

import attrs
import pytest

from aio_agentapi import Intent, MemoryStore, Phase
from aio_agentapi._cashier import Cashier
from aio_agentapi._identity import Claim
from aio_agentapi._journal import Clock, Verdict
from aio_agentapi.errors import JournalError

CLAIM = Claim(names=("eur",), token="0" * 16, url="http://127.0.0.1")
DEPOSIT = Intent(
    account="eur", operation="wallets.deposit", user_code=1, amount=Decimal(5)
)
SENT = attrs.evolve(DEPOSIT, id=1, phase=Phase.SENT)


class Slow(MemoryStore):
    """A store that a test tells when, and how, an intent is written down."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: asyncio.Future[Intent | None] = asyncio.Future()
        self.written: list[Verdict] = []

    def begin(self, *_: Any, **__: Any) -> Awaitable[Intent | None]:
        """Begin to write, and come to no end by itself."""
        return self.begun

    def write(
        self,
        verdicts: Collection[Verdict],
        clock: Clock,
        *,
        given: Collection[Intent] = (),
    ) -> Awaitable[list[Intent]]:
        """Take note of what is written."""
        del clock, given
        self.written += verdicts
        done: asyncio.Future[list[Intent]] = asyncio.Future()
        done.set_result([])
        return done


def end(work: asyncio.Future[Intent | None], outcome: Any) -> None:
    """End the writing with a result, an error, or a cancellation."""
    if outcome == "cancelled":
        work.cancel()
    elif isinstance(outcome, Exception):
        work.set_exception(outcome)
    else:
        work.set_result(outcome)


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize(
    ("outcome", "written"),
    [
        # Another process has the turn.
        (None, []),
        (JournalError("full"), []),
        ("cancelled", []),
        # Its key stands for it.
        (attrs.evolve(SENT, phase=Phase.DONE), []),
        (SENT, [Verdict(id=1, phase=Phase.NOT_SENT)]),
    ],
    ids=["elsewhere", "failed", "cancelled", "done", "sent"],
)
async def test_a_caller_that_goes_while_it_is_written_down(
    outcome: Any, written: list[Verdict], *, early: bool
) -> None:
    """What was written to be sent is not sent; the rest is nobody's, and no error."""
    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: unhandled.append(context)
    )
    store = Slow()
    cashier = Cashier(store, CLAIM, keep=1e9)
    begin = cashier.begin(DEPOSIT, block_unknown=False, until=None)
    beginning = asyncio.ensure_future(begin)
    while not cashier._begun:
        await asyncio.sleep(0)
    if early:
        # In the turn in which it is written.
        end(store.begun, outcome)
    beginning.cancel()
    await asyncio.wait([beginning])
    if not early:
        end(store.begun, outcome)
    async with asyncio.timeout(20):
        await cashier.idle(20)
    assert not cashier._begun
    assert not cashier._lost
    assert store.written == written
    assert unhandled == []
