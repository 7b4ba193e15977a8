"""How long calls have waited, and what is left of the time in which they may."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest

from aio_agentapi import Session, SessionManager, SqliteStore
from aio_agentapi.errors import GateTimeoutError
from tests.conftest import trusted
from tests.integration.test_payments import scene
from tests.waiting import look_again

PAY: Final = "wallet/deposit"

Make: TypeAlias = Callable[[Session, int], Awaitable[Any]]


async def info(session: Session, _: int) -> Any:
    """Ask who the session is."""
    return await session.agents.info()


async def pay(session: Session, user: int) -> Any:
    """Pay a user."""
    return await session.wallets.deposit(user, 5)


async def read(session: Session, _: int) -> Any:
    """Read the feed."""
    return [row async for row in session.transactions.since(0)]


@pytest.mark.parametrize("call", [info, pay, read])
async def test_what_was_waited_for_takes_nothing_from_the_rest(call: Make) -> None:
    """Having its turn, written down, or about to read: it may wait for a permit."""
    async with scene(limit=1, max_wait=30.0) as here:
        gate = here.session.gate
        # What waits is the call, and no question whose it is.
        trusted(here.session)
        await gate.acquire("interactive")
        calling = asyncio.ensure_future(call(here.session, here.user))
        while not (gate.statistics().waiting or calling.done()):
            await look_again()
        # One whose time is over would be told in a turn.
        await look_again()
        assert not calling.done()
        gate.release("interactive")
        await calling


async def test_a_busy_service_takes_only_the_time_that_it_took() -> None:
    """A refusal that came at once leaves nearly all of max_wait."""
    async with scene(max_wait=30.0) as here:
        here.box.foreign("operator", 50)
        calling = asyncio.ensure_future(info(here.session, here.user))
        while here.box.gauge("operator").busy < 2:
            await look_again()
            assert not calling.done()
        here.box.foreign("operator", 0)
        assert (await calling).name == "operator"


# What waits for a permit, for the user's turn here or in another process, and for the
# time at which the feed may be read again.
CALLS: Final[dict[str, Make]] = {
    "permit": info,
    "turn": pay,
    "elsewhere": pay,
    "feed": read,
}


@pytest.mark.realtime
@pytest.mark.parametrize("place", CALLS)
async def test_an_error_says_how_long_the_call_has_waited(
    place: str, tmp_path: Path
) -> None:
    """Never more than has passed, wherever the call waited."""
    loop, path = asyncio.get_running_loop(), tmp_path / "j.db"
    # The feed is not read again in the time of a test.
    async with scene(store=SqliteStore(path), feed_interval=600.0) as here:
        other = SessionManager(
            here.box.base_url,
            accounts={"eur": here.box.token("operator")},
            settings=here.session.settings,
            store=SqliteStore(path),
        )
        async with other, asyncio.TaskGroup() as group:
            session, call = here.session, CALLS[place]
            if place == "permit":
                for _ in range(session.settings.limit):
                    await session.gate.acquire("interactive")
            elif place == "feed":
                await read(session, here.user)
            else:
                here.box.faults.hold(PAY)
                group.create_task(pay(session, here.user))
                while not here.box.received.get(PAY):
                    await look_again()
            if place == "elsewhere":
                session = other.session("eur")
                # Whose payments it makes is known before the time begins.
                await session._channel.cashier.account(session._channel.call)
            began = loop.time()
            with pytest.raises(GateTimeoutError) as caught:
                await call(session.with_options(max_wait=0.05), here.user)
            assert 0 <= caught.value.waited <= loop.time() - began
            here.box.faults.clear()
            if place == "permit":
                for _ in range(session.settings.limit):
                    session.gate.release("interactive")
