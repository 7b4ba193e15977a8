"""How code of yours is tested against a payment whose answer gets lost."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from aio_agentapi import Phase, Session, SessionManager, Settings, SqliteStore
from aio_agentapi.errors import AgentAPIError
from aio_agentapi.sandbox import Faults, ManualClock, Sandbox
from aio_agentapi.testing import assert_balances, assert_points


# The code that is tested: an order is paid once, whatever happens to the answer.
async def pay_order(session: Session, number: str, user_code: int, amount: str) -> str:
    try:
        await session.wallets.deposit(user_code, amount, key=number)
    except AgentAPIError as error:
        if error.happened == "no" or error.intent is None:
            return "not paid"
        intent = await session.payments.settle(error.intent)
        if intent.phase is Phase.CONFIRMED:
            return "paid"
        return "not paid" if intent.phase is Phase.ABSENT else "ask somebody"
    return "paid"


async def test_an_order_whose_answer_is_lost_is_paid_once(
    agentapi: SessionManager, agentapi_sandbox: Sandbox, agentapi_faults: Faults
) -> None:
    shop = agentapi.session("shop_1")
    anna = (await shop.users.create("anna")).user_code
    agentapi_faults.drop_after("wallets.deposit", times=1)
    assert await pay_order(shop, "order-1", anna, "25") == "paid"
    assert await pay_order(shop, "order-1", anna, "25") == "paid"
    assert_balances(agentapi_sandbox, "shop_1", {"anna": "25"})
    assert_points(agentapi_sandbox, {"shop_1": "975"})


async def test_an_order_that_was_not_executed_can_be_paid_again(
    agentapi: SessionManager, agentapi_sandbox: Sandbox, agentapi_faults: Faults
) -> None:
    shop = agentapi.session("shop_1")
    anna = (await shop.users.create("anna")).user_code
    agentapi_faults.drop_before("wallets.deposit", times=1)
    assert await pay_order(shop, "order-1", anna, "25") == "not paid"
    assert_balances(agentapi_sandbox, "shop_1", {"anna": 0})
    assert await pay_order(shop, "order-1", anna, "25") == "paid"
    assert_balances(agentapi_sandbox, "shop_1", {"anna": "25"})


@pytest.mark.parametrize("fault", ["html", "empty", "cut_json", "wrong_shape"])
async def test_an_answer_that_nobody_understands_is_as_good_as_lost(
    agentapi: SessionManager,
    agentapi_sandbox: Sandbox,
    agentapi_faults: Faults,
    fault: str,
) -> None:
    shop = agentapi.session("shop_1")
    anna = (await shop.users.create("anna")).user_code
    getattr(agentapi_faults, fault)("wallets.deposit", times=1)
    assert await pay_order(shop, "order-1", anna, "25") == "paid"
    assert_balances(agentapi_sandbox, "shop_1", {"anna": "25"})


async def test_an_order_whose_customer_has_left_is_paid_once(
    agentapi: SessionManager, agentapi_sandbox: Sandbox, agentapi_faults: Faults
) -> None:
    shop = agentapi.session("shop_1")
    anna = (await shop.users.create("anna")).user_code
    agentapi_faults.hold("wallets.deposit")
    paying = asyncio.create_task(pay_order(shop, "order-1", anna, "25"))
    while not agentapi_sandbox.gauge("shop_1").in_flight:
        await asyncio.sleep(0.01)
    paying.cancel()
    agentapi_faults.clear()
    assert await pay_order(shop, "order-1", anna, "25") == "paid"
    assert_balances(agentapi_sandbox, "shop_1", {"anna": "25"})


async def test_a_row_that_comes_late_is_waited_for(
    agentapi: SessionManager, agentapi_faults: Faults, agentapi_clock: ManualClock
) -> None:
    shop = agentapi.session("shop_1")
    anna = (await shop.users.create("anna")).user_code
    agentapi_faults.late_row(60, "wallets.deposit", times=1)
    await shop.wallets.deposit(anna, "25")
    assert [row async for row in shop.transactions.since(0)] == []
    agentapi_clock.advance(60)
    assert [row.user_code async for row in shop.transactions.since(0)] == [anna]


@pytest.fixture
async def eur(
    agentapi_sandbox: Sandbox, agentapi_settings: Settings, tmp_path: Path
) -> AsyncGenerator[Session]:
    async with SessionManager(
        agentapi_sandbox.base_url,
        accounts={"eur": agentapi_sandbox.token("shop_1")},
        settings=agentapi_settings,
        store=SqliteStore(tmp_path / "journal.db"),
    ) as manager:
        yield manager.session("eur")


async def test_an_order_of_the_whole_program_is_paid_once(
    eur: Session, agentapi_sandbox: Sandbox, agentapi_faults: Faults
) -> None:
    anna = (await eur.users.create("anna")).user_code
    agentapi_faults.drop_after("wallets.deposit", times=1)
    assert await pay_order(eur, "order-1", anna, "25") == "paid"
    assert_balances(agentapi_sandbox, "shop_1", {anna: "25"})
