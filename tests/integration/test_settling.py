"""What resolving payments reads: pages, gaps, several users, and ahead of them."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import pytest

from aio_agentapi import Phase, Session
from aio_agentapi._feed import PAGE
from aio_agentapi._journal import Cursor
from aio_agentapi._settle import Settler
from aio_agentapi.sandbox import ManualClock
from aio_agentapi.sandbox._ledger import Ledger
from tests.integration.test_payments import Scene, scene, tick
from tests.waiting import look_again

FEED: Final = "game/transaction-id"


def ledger(here: Scene) -> Ledger:
    """Return the books of the sandbox."""
    return here.box._service.deployment.ledger


def settler(session: Session) -> Settler:
    """Return what all views of a session resolve with."""
    return session.payments._settler


def fill(here: Scene, user: int, rows: int) -> None:
    """Let the feed have so many more rows of a user."""
    operator = here.box.account("operator")
    for _ in range(rows):
        ledger(here).deposit(operator, user, 1)


def create(here: Scene, user: int) -> None:
    """Let there be a user of that code."""
    ledger(here).sql.execute(
        "INSERT INTO users (code, agent, name, balance) VALUES (?, ?, ?, '0')",
        (user, here.box.account("operator").code, f"user_{user}"),
    )


# Pages.


async def test_a_reading_goes_from_page_to_page() -> None:
    """Each page is read once, and a row that stands on two pages counts once."""
    async with scene() as here:
        wallets = here.session.wallets
        eve = (await here.session.users.create("eve")).user_code
        fill(here, eve, PAGE - 1)
        # The last row of the first page, with which the second one begins.
        first = await here.lose(wallets.deposit(here.user, 5), "drop_after")
        fill(here, eve, PAGE)
        last = await here.lose(wallets.deposit(here.user, 6), "drop_after")
        # A reading that comes to no end would go on for ever.
        async with asyncio.timeout(30):
            settled = await here.session.payments.settle_all()
        expected = [(first.id, PAGE), (last.id, 2 * PAGE + 1)]
        assert [(i.id, i.trans_id) for i in settled] == expected
        assert {i.phase for i in settled} == {Phase.CONFIRMED}
        assert here.box.received[FEED] == 3
        assert (await here.store.cursor("eur")).trans_id == 2 * PAGE + 1


async def test_a_reading_ahead_goes_from_page_to_page() -> None:
    """Each page is read once, and the newest row of the last one is kept."""
    async with scene() as here:
        await here.session.wallets.deposit(here.user, 1)
        fill(here, here.user, 2 * PAGE)
        await settler(here.session)._read_ahead()
        assert (await here.store.cursor("eur")).trans_id == 2 * PAGE + 1
        assert here.box.received[FEED] == 3


# Ages.


@pytest.mark.parametrize("hours", [51.0, 24.0 * 365])
async def test_a_payment_that_was_lost_long_ago_is_for_a_person(hours: float) -> None:
    """However old it is, it is looked at, and what was paid since is left alone."""
    clock = ManualClock()
    async with scene(clock=clock, longest_call=1.0) as here:
        wallets = here.session.wallets
        lost = await here.lose(wallets.deposit(here.user, 5), "drop_before")
        clock.advance(hours * 3600)
        await wallets.deposit(here.user, 7)
        ticking = asyncio.create_task(tick(clock))
        (settled,) = await here.session.payments.settle_all()
        ticking.cancel()
        assert (settled.id, settled.phase) == (lost.id, Phase.NEEDS_PERSON)
        assert "does not reach back" in str(settled.note)
        assert [i.phase for i in await here.store.intents()] == [
            Phase.NEEDS_PERSON,
            Phase.DONE,
        ]


# Users.


# A set of such codes is not in their order.
@pytest.mark.parametrize(("gone", "here_still"), [(2**32 + 1, 7), (7, 2**32 + 1)])
async def test_a_gap_before_one_user_is_not_another_users(
    gone: int, here_still: int
) -> None:
    """The one whose row is gone is for a person; the other's payment is found."""
    clock = ManualClock()
    async with scene(clock=clock, longest_call=1.0) as here:
        wallets, payments = here.session.wallets, here.session.payments

        async def note(number: int) -> None:
            cursor = Cursor(
                trans_id=number, made_at=clock.now(), seen=await here.store.age()
            )
            await here.store.keep_cursor("eur", cursor)

        for user in (gone, here_still):
            create(here, user)
            await wallets.deposit(user, 5)
        # What was paid before does not belong to a cursor so much younger.
        clock.advance(120)
        await note(1)
        one = await here.lose(wallets.deposit(gone, 6), "drop_before")
        await note(2)
        other = await here.lose(wallets.deposit(here_still, 7), "drop_after")
        assert [i.cursor.trans_id for i in (one, other)] == [1, 2]
        ledger(here).sql.execute("DELETE FROM feed WHERE id = 1")
        ticking = asyncio.create_task(tick(clock))
        settled = {i.id: i for i in await payments.settle_all()}
        ticking.cancel()
        assert settled[one.id].phase is Phase.NEEDS_PERSON
        assert "rows of the feed are gone" in str(settled[one.id].note)
        assert settled[other.id].phase is Phase.CONFIRMED
        assert settled[other.id].trans_id == 3


async def test_each_user_has_a_reading_of_its_own_reach() -> None:
    """Of two cursors the older one counts: rows of both payments are found."""
    clock = ManualClock()
    async with scene(clock=clock, longest_call=1.0) as here:
        wallets = here.session.wallets
        lost = []
        for number, user in enumerate((2**32 + 1, 7), start=1):
            create(here, user)
            clock.advance(120)
            lost.append(await here.lose(wallets.deposit(user, number), "drop_after"))
            cursor = Cursor(
                trans_id=number, made_at=clock.now(), seen=await here.store.age()
            )
            await here.store.keep_cursor("eur", cursor)
        assert [i.cursor.trans_id for i in lost] == [0, 1]
        ticking = asyncio.create_task(tick(clock))
        settled = await here.session.payments.settle_all()
        ticking.cancel()
        assert [(i.phase, i.trans_id) for i in settled] == [
            (Phase.CONFIRMED, 1),
            (Phase.CONFIRMED, 2),
        ]


# Ahead.


@pytest.mark.parametrize("known", [0, 1])
async def test_reading_ahead_of_a_feed_whose_first_row_is_gone(known: int) -> None:
    """Without a cursor, or with one whose row is gone, the newest row is kept."""
    async with scene() as here:
        await here.session.wallets.deposit(here.user, 1)
        await here.session.wallets.deposit(here.user, 1)
        if known:
            await here.store.keep_cursor("eur", Cursor(trans_id=known))
        ledger(here).sql.execute("DELETE FROM feed WHERE id = 1")
        await settler(here.session)._read_ahead()
        assert (await here.store.cursor("eur")).trans_id == 2
        # What begins with a row that is gone is read once more, from the oldest.
        assert here.box.received[FEED] == 1 + known


async def test_one_reading_ahead_at_a_time() -> None:
    """A payment begins none while another one is under way, and the first none."""
    async with scene() as here:
        ahead, now = settler(here.session), 1_000_000.0
        here.session._channel.cashier.clock = lambda: now
        # The first payment only says when to look.
        for _ in range(2):
            await here.session.wallets.deposit(here.user, 1)
        assert ahead._warming is None
        here.box.faults.hold(FEED)
        for _ in range(3):
            now += 61.0
            ahead.keep_warm()
        assert len(here.session._channel._closing.background) == 1
        while not here.box.received.get(FEED):
            await look_again()
        here.box.faults.clear()
        while ahead._warming is not None:
            await look_again()
        assert not here.session._channel._closing.background
        assert here.box.received[FEED] == 1


async def test_a_reading_ahead_that_is_cut_raises_nowhere() -> None:
    """Closing the session cancels it, and nothing reaches the loop's handler."""
    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: unhandled.append(context)
    )
    async with scene() as here:
        ahead, now = settler(here.session), 1_000_000.0
        here.session._channel.cashier.clock = lambda: now
        await here.session.wallets.deposit(here.user, 1)
        here.box.faults.hold(FEED)
        now += 61.0
        ahead.keep_warm()
        warming = ahead._warming
        assert warming is not None
        while not here.box.received.get(FEED):
            await look_again()
        async with asyncio.timeout(20):
            await here.session.aclose()
        assert warming.cancelled()
        assert ahead._warming is None
        here.box.faults.clear()
    assert unhandled == []
