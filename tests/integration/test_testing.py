"""
The fixtures of the plugin.

This file needs nothing but the library and pytest: it also runs outside of the
repository, under each plugin that runs async tests (see ``test_plugin.py``).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal, localcontext

import pytest

from aio_agentapi import SessionManager, Settings
from aio_agentapi.errors import (
    ClosedError,
    MaintenanceError,
    NotFoundError,
    OutcomeUnknownError,
)
from aio_agentapi.sandbox import (
    Faults,
    ManualClock,
    Sandbox,
    SandboxThread,
    Switches,
)
from aio_agentapi.testing import assert_balances, assert_points

USED: list[str] = []


@pytest.fixture
async def anna(agentapi: SessionManager) -> int:
    """Create a user before the test, in its loop, through its sessions."""
    return (await agentapi.session("shop_1").users.create("anna")).user_code


@pytest.fixture
def closed_behind(agentapi: SessionManager) -> Generator[None]:
    """Look at the sessions when the test is over."""
    yield
    with pytest.raises(ClosedError):
        agentapi.session("shop_1")


@pytest.mark.parametrize("turn", [1, 2])
async def test_each_test_has_a_stand_in_of_its_own(
    agentapi: SessionManager, agentapi_sandbox: Sandbox, turn: int
) -> None:
    """With its own address, and with all its points."""
    del turn
    assert agentapi_sandbox.base_url not in USED
    USED.append(agentapi_sandbox.base_url)
    operator = agentapi.session("operator")
    shop = agentapi_sandbox.account("shop_1")
    assert await operator.points.balance() == 500_000
    await operator.points.transfer(shop.code, 1)
    assert_points(agentapi_sandbox, {"operator": 499_999, "shop_1": 1001})


async def test_there_is_a_session_for_each_account(agentapi: SessionManager) -> None:
    """By the names of the hierarchy, from the top down."""
    names = ["broker", "operator", "shop_1", "shop_2"]
    assert [(await agentapi.session(n).agents.info()).name for n in names] == names


async def test_sessions_end_with_the_test(
    agentapi: SessionManager, closed_behind: None
) -> None:
    """They are closed when the fixtures below them are torn down."""
    del closed_behind
    await agentapi.session("shop_1").points.balance()


class TestInAClass:
    """A test may be a method as well."""

    async def test_sessions_are_there(self, agentapi: SessionManager) -> None:
        """As for a function."""
        assert await agentapi.session("shop_2").points.balance() == 1000


async def test_a_fixture_may_call_before_the_test(
    agentapi: SessionManager, agentapi_sandbox: Sandbox, anna: int
) -> None:
    """What it has created is there, and the same session goes on."""
    await agentapi.session("shop_1").wallets.deposit(anna, "25.5")
    assert_balances(agentapi_sandbox, "shop_1", {"anna": "25.5"})
    assert_balances(agentapi_sandbox, "shop_1", {anna: Decimal("25.50")})


async def test_a_lost_deposit_is_settled_at_once(
    agentapi: SessionManager,
    agentapi_sandbox: Sandbox,
    agentapi_faults: Faults,
    anna: int,
) -> None:
    """The fault is named after the call, and the settings wait for nothing."""
    shop = agentapi.session("shop_1")
    agentapi_faults.drop_after("wallets.deposit", times=1)
    with pytest.raises(OutcomeUnknownError) as lost:
        await shop.wallets.deposit(anna, "25")
    assert lost.value.intent is not None
    intent = await shop.payments.settle(lost.value.intent)
    assert intent.phase == "confirmed"
    assert_points(agentapi_sandbox, {"shop_1": "975"})


async def test_faults_take_paths_as_well_and_know_what_there_is(
    agentapi: SessionManager, agentapi_faults: Faults
) -> None:
    """A fault without a name is for all calls; a wrong one is refused."""
    shop = agentapi.session("shop_1")
    agentapi_faults.code(2002, "user/info", times=1)
    agentapi_faults.code(1, times=3)
    with pytest.raises(NotFoundError):
        await shop.users.info(1)
    with pytest.raises(MaintenanceError):
        await shop.points.balance()
    agentapi_faults.clear()
    assert await shop.points.balance() == 1000
    with pytest.raises(ValueError, match=r"no path 'wallets\.give'"):
        agentapi_faults.drop_after("wallets.give")


async def test_what_is_held_goes_on_when_the_faults_are_cleared(
    agentapi: SessionManager, agentapi_sandbox: Sandbox, agentapi_faults: Faults
) -> None:
    """From the thread of the test, with nothing else that wakes the stand-in."""
    agentapi_faults.hold("agents.info")
    asking = asyncio.ensure_future(agentapi.session("shop_1").agents.info())
    while not agentapi_sandbox.gauge("shop_1").in_flight:
        await asyncio.sleep(0)
    assert not asking.done()
    agentapi_faults.clear()
    async with asyncio.timeout(20):
        assert (await asking).name == "shop_1"


class TestFaultsEnd:
    """Also where all tests have the same stand-in."""

    @pytest.fixture
    def agentapi_sandbox(self, agentapi_run_sandbox: Sandbox) -> Sandbox:
        """Share the one of the run."""
        return agentapi_run_sandbox

    @pytest.mark.parametrize("turn", [1, 2])
    async def test_with_the_test(
        self, agentapi: SessionManager, agentapi_faults: Faults, turn: int
    ) -> None:
        """Whichever comes second, the fault of the first is gone."""
        del turn
        shop = agentapi.session("shop_2")
        assert await shop.points.balance() == 1000
        agentapi_faults.code(1010)


async def test_the_clock_stands_still_until_it_is_moved(
    agentapi: SessionManager,
    agentapi_faults: Faults,
    agentapi_clock: ManualClock,
    anna: int,
) -> None:
    """A row that is seen an hour late is seen an hour later."""
    shop = agentapi.session("shop_1")
    before = agentapi_clock.now()
    agentapi_faults.late_row(3600, "wallets.deposit", times=1)
    await shop.wallets.deposit(anna, "25")
    assert [row async for row in shop.transactions.since(0)] == []
    agentapi_clock.advance(3600)
    (row,) = [row async for row in shop.transactions.since(0)]
    assert abs((row.regdate - before).total_seconds()) < 1


def test_without_its_name_the_clock_goes(agentapi_sandbox: Sandbox) -> None:
    """A test that has no manual clock has the machine's."""
    assert not isinstance(agentapi_sandbox.clock, ManualClock)


def test_a_clock_that_would_move_nothing_is_refused(
    agentapi_sandbox: Sandbox, request: pytest.FixtureRequest
) -> None:
    """Asked for too late, for a stand-in that goes by the machine's."""
    del agentapi_sandbox
    with pytest.raises(pytest.fail.Exception, match="goes by the machine's clock"):
        request.getfixturevalue("agentapi_clock")


def test_sessions_in_a_test_without_a_loop_are_refused(
    request: pytest.FixtureRequest,
) -> None:
    """With what to do instead."""
    with pytest.raises(pytest.fail.Exception, match="Use agentapi_sandbox"):
        request.getfixturevalue("agentapi")


def test_the_stand_in_serves_a_test_without_a_loop(
    agentapi_sandbox: Sandbox, agentapi_settings: Settings
) -> None:
    """And whatever loop it brings."""

    async def work() -> Decimal:
        token = agentapi_sandbox.token("shop_1")
        async with SessionManager(
            agentapi_sandbox.base_url, settings=agentapi_settings
        ) as manager:
            return await manager.session(token).points.balance()

    assert asyncio.run(work()) == 1000
    assert asyncio.run(work()) == 1000


def test_one_stand_in_is_there_for_the_run(
    agentapi_run_sandbox: Sandbox,
    agentapi_sandbox: Sandbox,
    agentapi_switches: Switches,
    request: pytest.FixtureRequest,
) -> None:
    """Beside the test's own, which behaves as the switches say."""
    assert request.getfixturevalue("agentapi_run_sandbox") is agentapi_run_sandbox
    assert agentapi_run_sandbox.base_url != agentapi_sandbox.base_url
    assert agentapi_sandbox.switches == agentapi_switches


def test_who_has_other_points_is_told(agentapi_sandbox: Sandbox) -> None:
    """A line for each: who, expected, found, by how much; all digits, always."""
    agentapi_sandbox.mint(agentapi_sandbox.account("shop_2"), 10**15)
    expected: dict[str, str | int] = {
        "shop_1": "999.9999",
        "shop_2": 1,
        "operator": "500000.00001",
        "broker": 10**6,
    }
    with localcontext(prec=3), pytest.raises(AssertionError) as failure:
        assert_points(agentapi_sandbox, expected)
    assert str(failure.value) == (
        "points differ:\n"
        "  shop_1: expected 999.9999, found 1000.0000, 0.0001 too much\n"
        "  shop_2: expected 1.0000, found 1000000000001000.0000,"
        " 1000000000000999.0000 too much\n"
        "  operator: expected 500000.00001, found 500000.0000, 0.00001 too little"
    )


async def test_who_has_another_balance_is_told(
    agentapi_sandbox: Sandbox, anna: int
) -> None:
    """By the name, or by the number, that was asked for."""
    expected: dict[str | int, int] = {"anna": 25, anna: 26}
    with pytest.raises(AssertionError) as failure:
        assert_balances(agentapi_sandbox, "shop_1", expected)
    assert str(failure.value) == (
        "balances of the users of shop_1 differ:\n"
        "  anna: expected 25.0000, found 0.0000, 25.0000 too little\n"
        f"  {anna}: expected 26.0000, found 0.0000, 26.0000 too little"
    )


def test_what_cannot_be_compared_is_no_difference(agentapi_sandbox: Sandbox) -> None:
    """A float, and somebody who is not there."""
    wrong: dict[str, object] = {"shop_1": 1000.0}
    with pytest.raises(TypeError, match="shop_1: a float is not exact"):
        assert_points(agentapi_sandbox, wrong)  # type: ignore[arg-type]  # as callers without types do  # pyright: ignore[reportArgumentType]
    with pytest.raises(KeyError, match="shop_9"):
        assert_points(agentapi_sandbox, {"shop_9": 1})
    with pytest.raises(KeyError, match="anna"):
        assert_balances(agentapi_sandbox, "shop_1", {"anna": 1})


def test_a_stand_in_is_asked_from_any_thread() -> None:
    """Nobody sees half of a move, and the thread ends with the block."""
    threads = threading.active_count()
    with SandboxThread() as box, ThreadPoolExecutor(4) as pool:
        shop = box.account("shop_1")
        moves = [pool.submit(box.mint, shop, 1) for _ in range(50)]
        audits = [pool.submit(box.audit) for _ in range(50)]
        assert all(minted == held for minted, held in (a.result() for a in audits))
        assert max(move.result().target_after for move in moves) == 1050 * 10_000
        assert repr(box) == f"<Sandbox {box.base_url}>"
        with pytest.raises(KeyError, match="nobody"):
            box.token("nobody")
    assert threading.active_count() == threads


def test_a_stand_in_that_cannot_start_says_so(agentapi_sandbox: Sandbox) -> None:
    """Where it was to start; nothing of it is left."""
    threads = threading.active_count()
    port = int(agentapi_sandbox.base_url.rpartition(":")[2])
    with (
        pytest.raises(OSError, match=str(port)),
        SandboxThread(port=port),
    ):
        pass
    assert threading.active_count() == threads
