"""A cancellation and a time-out at every await of a call."""

from __future__ import annotations

import asyncio
import contextvars
import time
import traceback
from typing import Any, cast

import pytest

from aio_agentapi import PlanRow, Session, SessionManager
from aio_agentapi.errors import AgentAPIError, GateTimeoutError, OutcomeUnknownError
from aio_agentapi.sandbox import Sandbox, Switches
from tests.conftest import TOKEN, connect, serving
from tests.leak import told
from tests.waiting import look_again

# More turns of the loop than a call on loopback takes.
TURNS = 120


async def whole(session: Session) -> None:
    """Wait for what was left; then check that no permit is held."""
    assert await session.gate.idle(asyncio.get_running_loop().time() + 20)
    state = session.gate.statistics()
    assert (state.in_use, state.waiting, state.detached) == (0, 0, 0)
    # Its permit is back before its task has ended.
    for _ in range(3):
        await asyncio.sleep(0)
    assert not session._channel._exchanges.running
    http = session._channel._transport._http
    # Every connection is back in the pool, or closed.
    assert http is None or not cast("Any", http.connector)._acquired


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("busy", [0, 2])
async def test_a_cancel_at_each_turn(box: Sandbox, busy: int, *, warm: bool) -> None:
    """The permit is back, the caller knows his cancellation, the next call works."""
    ended = 0
    for turns in range(TURNS):
        async with connect(box, limit=1) as session:
            if warm:
                await session.agents.info()
            box.faults.clear()
            if busy:
                box.faults.busy(busy)
            call = asyncio.get_running_loop().create_task(session.agents.info())
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel("mine")
            try:
                await call
                ended += 1
            except asyncio.CancelledError as error:
                assert error.args in {("mine",), ()}
            await whole(session)
            box.faults.clear()
            async with asyncio.timeout(20):
                assert (await session.agents.info()).name == "operator"
            await whole(session)
    if not busy:
        assert 0 < ended < TURNS, "both sides of the end were tried"


@pytest.mark.parametrize("milliseconds", [0.1, 0.5, 1, 2, 3, 5, 8, 12, 20])
async def test_a_callers_own_timeout(box: Sandbox, milliseconds: float) -> None:
    """asyncio.timeout works around any call, also one that waits in line."""
    box.switches = Switches(latency=0.005)
    async with connect(box, limit=1) as session:
        other = asyncio.get_running_loop().create_task(session.agents.info())
        try:
            async with asyncio.timeout(milliseconds / 1000):
                await session.agents.info()
        except TimeoutError:
            pass
        await other
        await whole(session)
        assert (await session.agents.info()).name == "operator"


async def test_our_timeout_at_each_moment(box: Sandbox) -> None:
    """It says no while nothing was sent, and maybe from then on."""
    box.switches = Switches(latency=0.05)
    kinds: set[str] = set()
    for step in range(30):
        async with connect(box, attempts=1, limit=1) as session:
            view = session.with_options(timeout=0.0001 + step * 0.002)
            before, happened = box.executed["agent/info"], "maybe"
            try:
                await view.agents.info()
            except AgentAPIError as error:
                kinds.add(type(error).__name__)
                happened = error.happened
            await whole(session)
            # What was sent has been executed by then.
            while box.gauge("operator").in_flight:
                await look_again()
            if happened == "no":
                assert before == box.executed["agent/info"]
    assert "OutcomeUnknownError" in kinds


async def test_a_cancelled_crowd_leaves_the_gate_whole(box: Sandbox) -> None:
    """A thousand calls, cancelled at random places, and the rest succeed."""
    box.switches = Switches(latency=0.002)
    async with connect(box, limit=5) as session:
        loop = asyncio.get_running_loop()
        calls = [loop.create_task(session.agents.info()) for _ in range(1000)]
        for number, call in enumerate(calls):
            if number % 3 == 0:
                call.cancel()
            if number % 50 == 0:
                await look_again()
        results = await asyncio.gather(*calls, return_exceptions=True)
        cancelled = sum(isinstance(r, asyncio.CancelledError) for r in results)
        assert 300 <= cancelled <= 334
        assert not [r for r in results if isinstance(r, AgentAPIError)]
        await whole(session)


async def test_waiting_out_of_time_in_a_crowd(box: Sandbox) -> None:
    """Each call either succeeds or was never sent."""
    box.switches = Switches(latency=0.005)
    async with connect(box, limit=2, max_wait=0.05) as session:
        results = await asyncio.gather(
            *(session.agents.info() for _ in range(200)), return_exceptions=True
        )
        late = [r for r in results if isinstance(r, GateTimeoutError)]
        assert late
        assert box.executed["agent/info"] == 200 - len(late)
        await whole(session)


async def test_a_lost_answer_of_a_payment_is_not_sent_again(box: Sandbox) -> None:
    """Dropped before or after, cut, a proxy's page: once, and said to be unknown."""
    async with connect(box, "shop_1") as shop:
        user = (await shop.users.create("anna")).user_code
        for number, kind in enumerate(
            ("drop_before", "drop_after", "cut_json", "html", "empty")
        ):
            getattr(box.faults, kind)("wallet/deposit", times=1)
            with pytest.raises(OutcomeUnknownError) as caught:
                await shop.wallets.deposit(user, 1)
            assert (
                caught.value.attempts,
                caught.value.operation,
            ) == (1, "wallets.deposit")
            assert number == box.executed["wallet/deposit"]
        assert (await shop.wallets.deposit(user, 1)).balance == 5


async def test_a_lost_answer_of_points_is_sent_again(box: Sandbox) -> None:
    """With its reference, so that it moves once."""
    async with connect(box) as session:
        code = box.account("shop_1").code
        for kind in ("drop_before", "drop_after", "cut_json", "html", "empty"):
            getattr(box.faults, kind)("points/transfer", times=2)
            await session.points.transfer(code, 1)
        assert await session.points.balance() == 500_000 - 5
        # After three lost answers it is not known, and the reference is at hand.
        box.faults.drop_after("points/transfer", times=3)
        with pytest.raises(OutcomeUnknownError) as caught:
            await session.points.transfer(code, 1)
        assert (caught.value.attempts, caught.value.happened) == (3, "maybe")
        reference = caught.value.reference
        await session.points.transfer(code, 1, reference=reference)
        assert await session.points.balance() == 500_000 - 6


async def test_a_later_no_does_not_undo_a_maybe(box: Sandbox) -> None:
    """Refused on the second sending: the first may have happened all the same."""
    async with connect(box) as session:
        box.faults.drop_after("points/transfer", times=1)
        # As suspended, say, in between.
        box.faults.code(1010)
        with pytest.raises(OutcomeUnknownError) as caught:
            await session.points.transfer(box.account("shop_1").code, 1)
        assert (caught.value.attempts, box.executed["points/transfer"]) == (2, 1)
        # For a call that changes nothing the refusal is the answer.
        with pytest.raises(AgentAPIError) as refused:
            await session.agents.info()
        assert refused.value.happened == "no"


async def test_a_create_is_not_sent_again(box: Sandbox) -> None:
    """A second one would be refused, or make another token."""
    async with connect(box) as session:
        box.faults.drop_after("agent/create", times=1)
        with pytest.raises(OutcomeUnknownError):
            await session.agents.create("shop_7")
        assert "shop_7" in {agent.name async for agent in session.agents.list()}
        assert box.executed["agent/create"] == 1


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say nothing until the other side goes."""
    await reader.read()
    writer.close()


async def test_tasks_that_share_a_context_do_not_share_their_fate(box: Sandbox) -> None:
    """One that connects while another's time ends does not make that one unsent."""
    box.faults.hold("wallet/deposit")
    async with connect(box, "shop_1", timeout=0.8) as shop:
        user = (await shop.users.create("anna")).user_code
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()
        pay = loop.create_task(shop.wallets.deposit(user, 1), context=context)
        while box.gauge("shop_1").served < 2:
            await asyncio.sleep(0)
        # A server that does not speak TLS: the connection is still to be made.
        async with (
            serving(silent) as base_url,
            SessionManager(base_url.replace("http:", "https:")) as other,
        ):
            info = other.session(TOKEN).agents.info()
            ask = loop.create_task(info, context=context)
            with pytest.raises(OutcomeUnknownError) as caught:
                await pay
            ask.cancel()
            await asyncio.wait([ask])
        assert caught.value.attempts == 1
        box.faults.clear()
        while box.gauge("shop_1").in_flight:
            await look_again()
        assert box.executed["wallet/deposit"] == 1


@pytest.mark.realtime
async def test_a_deadline_that_is_over_sends_nothing(box: Sandbox) -> None:
    """Also when the permit came in time, and the loop was busy since."""
    async with connect(box, "shop_1", limit=1) as shop:
        user = (await shop.users.create("anna")).user_code
        view = shop.with_options(deadline=0.1)
        await shop.gate.acquire("interactive")
        pay = asyncio.get_running_loop().create_task(view.wallets.deposit(user, 1))
        while not shop.gate.statistics().waiting:
            await asyncio.sleep(0)
        shop.gate.release("interactive")
        # Longer than the deadline, which no clock of ours counts.
        time.sleep(0.15)  # noqa: ASYNC251 - a callback that holds the loop
        with pytest.raises(GateTimeoutError):
            await pay
        assert box.gauge("shop_1").served == 1
        await whole(shop)


async def test_a_distribution_that_is_left_leaves_no_task(box: Sandbox) -> None:
    """Whoever closes it has nothing of it running afterwards."""
    box.switches = Switches(latency=0.05)
    async with connect(box) as session:
        shop = box.account("shop_1").code
        before = asyncio.all_tasks()
        rows = session.points.distribute([(shop, 1)] * 500)
        await anext(rows)
        await rows.aclose()
        # Those of the stand-in stay: it lives in this loop too.
        left = asyncio.all_tasks() - before
        assert not [task for task in left if "_Fan" in repr(task.get_coro())]
        await whole(session)


async def test_rows_never_share_a_reference(box: Sandbox) -> None:
    """However the caller numbers them."""
    async with connect(box) as session:
        shop = box.account("shop_1").code
        rows = [PlanRow(shop, 10, line=2), PlanRow(shop, 10), PlanRow(shop, 10, line=2)]
        done = [d async for d in session.points.distribute(rows)]
        assert len({d.reference for d in done}) == 3
        assert sorted(d.line for d in done) == [2, 2, 2]
        assert await session.points.balance() == 500_000 - 30


async def test_a_cancelled_call_shows_no_frame_of_aiohttp(box: Sandbox) -> None:
    """They hold the headers: the caller's own traceback is without them."""
    box.faults.hold()
    async with connect(box) as session:
        call = asyncio.get_running_loop().create_task(session.agents.info())
        while not box.gauge("operator").in_flight:
            await asyncio.sleep(0)
        call.cancel("mine")
        with pytest.raises(asyncio.CancelledError) as caught:
            await call
        assert caught.value.args == ("mine",)
        report = told(caught.value)
        assert "_exchange.py" in report
        assert "aiohttp/" not in report
        assert box.token("operator") not in report
        with pytest.raises(TimeoutError) as late:
            await in_time(session)
        frames = [
            frame.f_code.co_filename
            for link in (late.value, late.value.__cause__, late.value.__context__)
            if link is not None
            for frame, _ in traceback.walk_tb(link.__traceback__)
        ]
        assert any(name.endswith("_exchange.py") for name in frames)
        assert not [name for name in frames if "/aiohttp/" in name]
        box.faults.clear()
        await whole(session)


async def in_time(session: Session) -> None:
    """Ask with a time-out of the caller's own."""
    async with asyncio.timeout(0.05):
        await session.agents.info()
