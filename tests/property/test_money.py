"""Every amount from the caller to the books and back, over real HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from decimal import Decimal

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aio_agentapi import Session
from aio_agentapi.sandbox import Sandbox
from tests.conftest import connect

UNITS = st.one_of(
    st.integers(1, 10**19),
    st.integers(1, 10**15).map(lambda whole: whole * 10_000),
    st.sampled_from([1, 10, 9999, 10_000, 10**19, 10**19 - 1]),
)


@attrs.define
class Home:
    """A loop with a stand-in and a session in it."""

    runner: asyncio.Runner
    box: Sandbox
    session: Session


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    """Keep one stand-in for all examples: starting one takes longer than a call."""
    with asyncio.Runner() as runner:
        box = Sandbox()
        runner.run(box.__aenter__())
        opened = connect(box)
        session = runner.run(opened.__aenter__())
        for _ in range(2):
            box.mint(box.account("operator"), 10**15)
        yield Home(runner, box, session)
        runner.run(opened.__aexit__(None, None, None))
        runner.run(box.__aexit__())


@given(units=UNITS, quoted=st.booleans(), as_text=st.booleans())
@settings(max_examples=300)
def test_an_amount_comes_back_as_it_went(
    home: Home, units: int, *, quoted: bool, as_text: bool
) -> None:
    """Up to 10^15 with four decimals: as a Decimal or a text, quoted or not."""
    amount = Decimal(units).scaleb(-4)
    home.box.switches = attrs.evolve(home.box.switches, quoted_money=quoted)
    shop = home.box.account("shop_1").code

    async def there_and_back() -> None:
        points = home.session.points
        before = await points.balance()
        move = await points.transfer(shop, f"{amount:f}" if as_text else amount)
        assert (amount, before - amount) == (move.amount, move.balance)
        (found,) = [
            agent
            async for agent in home.session.agents.list()
            if agent.name == "shop_1"
        ]
        assert 1000 + amount == found.balance
        back = await points.reclaim(shop, move.amount)
        assert (amount, before) == (back.amount, back.balance)

    home.runner.run(there_and_back())
    minted, held = home.box.audit()
    assert minted == held


@given(whole=st.integers(1, 10**15))
@settings(max_examples=50)
def test_an_int_is_an_amount_too(home: Home, whole: int) -> None:
    """Whole major units."""
    shop = home.box.account("shop_2").code

    async def there_and_back() -> None:
        move = await home.session.points.transfer(shop, whole)
        assert whole == move.amount
        await home.session.points.reclaim(shop, whole)

    home.runner.run(there_and_back())
