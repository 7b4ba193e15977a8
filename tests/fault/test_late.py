"""Callers who leave: their exchange goes on, and its permit stays with it."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import httpx
import pytest
import uvloop

from aio_agentapi import Session, SessionManager, Settings
from aio_agentapi.errors import (
    AgentAPIError,
    ClosedError,
    NotSentError,
    OutcomeUnknownError,
)
from aio_agentapi.sandbox import Fault, Sandbox, SandboxProcess, Switches
from tests.conftest import OK_INFO, TOKEN, connect, read_request, serving, trusted
from tests.waiting import look_again


def start(call: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Run a call beside the test."""
    return asyncio.get_running_loop().create_task(call)


async def sent(box: Sandbox, count: int, name: str = "operator") -> None:
    """Wait until the service has so many calls of an account in flight."""
    while box.gauge(name).in_flight < count:
        await asyncio.sleep(0)


async def idle(session: Session) -> None:
    """Wait until no permit is in use."""
    assert await session.gate.idle(asyncio.get_running_loop().time() + 10)


async def test_a_cancelled_caller_leaves_at_once_and_the_permit_stays(
    box: Sandbox,
) -> None:
    """It is free when the service has answered, and the answer is counted."""
    box.faults.hold(times=1)
    async with connect(box, limit=1) as session:
        call = start(session.agents.info())
        await sent(box, 1)
        call.cancel()
        # The turn in which it is told.
        await asyncio.sleep(0)
        assert call.cancelled()
        state = session.gate.statistics()
        assert (state.in_use, state.detached, state.late_answers) == (1, 1, 0)
        assert repr(session.gate) == (
            "<LocalGate 1 permits, 1 in use (1 detached), 0 waiting>"
        )
        # The next one waits for it, and meets no 1018.
        after = start(session.agents.info())
        while not session.gate.statistics().waiting:
            await asyncio.sleep(0)
        assert box.gauge("operator").served == 1
        box.faults.clear()
        assert (await after).name == "operator"
        state = session.gate.statistics()
        assert (state.in_use, state.detached, state.late_answers) == (0, 0, 1)
        assert (state.busy_answers, box.gauge("operator").peak) == (0, 1)


async def test_a_caller_out_of_time_leaves_the_permit_too(box: Sandbox) -> None:
    """A payment is not sent again, and its answer is read."""
    box.faults.hold("wallet/deposit")
    async with connect(box, "shop_1", limit=1) as shop:
        user = (await shop.users.create("anna")).user_code
        hurried = shop.with_options(timeout=0.1)
        with pytest.raises(OutcomeUnknownError, match="no answer in time"):
            await hurried.wallets.deposit(user, 5)
        assert shop.gate.statistics().detached == 1
        box.faults.clear()
        assert (await shop.users.info(user)).balance == 5
        assert shop.gate.statistics().late_answers == 1
        assert box.executed["wallet/deposit"] == 1


@pytest.mark.process
@pytest.mark.timeout(60)
@pytest.mark.parametrize("own", [False, True])
async def test_abandoned_calls_never_meet_a_full_service(*, own: bool) -> None:
    """Every twentieth takes thirty times as long, and is left at five times."""
    loop = asyncio.get_running_loop()
    dice = random.Random(3)  # noqa: S311 - repeatable
    async with (
        # With room for more than the client may send: its own bound is what is seen.
        SandboxProcess(Switches(limit=1_000, latency=0.02)) as box,
        connect(box, timeout=30 if own else 0.1, attempts=1, limit=50) as session,
    ):
        await box.fault(Fault("delay", share=0.05, seconds=0.58))
        ends: Counter[str] = Counter()

        async def call() -> None:
            try:
                # A caller's own time-out counts his waiting too.
                async with asyncio.timeout(dice.uniform(0.02, 1.0) if own else None):
                    await session.agents.info()
                ends["answered"] += 1
            except (TimeoutError, OutcomeUnknownError):
                ends["left"] += 1
            except NotSentError:
                # No connection within its time, on a busy machine.
                ends["unsent"] += 1

        await asyncio.gather(*(call() for _ in range(1_000)))
        assert await session.gate.idle(loop.time() + 20)
        state, gauge = session.gate.statistics(), await box.gauge("operator")
        assert ends["left"]
        assert ends.total() == 1_000
        assert (gauge.busy, state.busy_answers) == (0, 0)
        # How many of them reach the service at once is the machine's business.
        assert state.peak == 50
        assert gauge.peak <= 50
        if own:
            # Some left before theirs was sent, and some in the line.
            assert ends["answered"] + state.late_answers <= gauge.served
            assert 0 < state.late_answers <= ends["left"]
        else:
            assert state.late_answers == ends["left"]
            assert gauge.served == 1_000 - ends["unsent"]


async def test_who_leaves_before_there_is_a_connection_sends_nothing() -> None:
    """The attempt to connect ends with him, and the permit is free."""
    # A listener whose queue is full: no connection to it comes about.
    with socket.socket() as deaf, socket.socket() as first:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        first.connect(deaf.getsockname())
        with socket.socket() as second:
            second.setblocking(False)
            with suppress(BlockingIOError):
                second.connect(deaf.getsockname())
            url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
            async with SessionManager(url) as manager:
                session = manager.session(TOKEN)
                call = start(session.agents.info())
                while not session._channel._transport._http:
                    await asyncio.sleep(0)
                # It has begun to connect.
                await look_again()
                assert session.gate.statistics().in_use == 1
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)
                await idle(session)
                state = session.gate.statistics()
                assert (state.withheld, state.detached) == (0, 0)
                hurried = session.with_options(timeout=0.1, attempts=1)
                with pytest.raises(NotSentError):
                    await hurried.agents.info()
                await idle(session)


async def test_who_leaves_in_the_turn_of_the_permit_sends_nothing(
    box: Sandbox,
) -> None:
    """Before the exchange has had its first turn."""
    async with connect(box, limit=1) as session:
        call = start(session.agents.info())
        # It has its permit after one turn, and its exchange has not begun.
        await asyncio.sleep(0)
        assert session.gate.statistics().in_use == 1
        call.cancel()
        await idle(session)
        assert call.cancelled()
        assert box.gauge("operator").served == 0
        assert (await session.agents.info()).name == "operator"


async def test_an_exchange_is_given_up_in_the_end(box: Sandbox) -> None:
    """So long after its caller has left; the permit lingers, and comes back."""
    box.faults.hold(times=1)
    async with connect(box, limit=1, abandon_after=0.3, linger=0.2) as session:
        call = start(session.agents.info())
        await sent(box, 1)
        # The caller's own time does not count: longer than abandon_after.
        await asyncio.sleep(0.4)
        assert not call.done()
        call.cancel()
        loop = asyncio.get_running_loop()
        left = loop.time()
        await asyncio.sleep(0)
        assert session.gate.statistics().detached == 1
        await idle(session)
        assert loop.time() - left >= 0.29
        state = session.gate.statistics()
        assert (state.detached, state.withheld, state.late_answers) == (0, 1, 0)
        assert (await session.agents.info()).name == "operator"
        assert loop.time() - left >= 0.49
        assert session.gate.statistics().withheld == 0
        assert session.gate.statistics().busy_answers == 0


async def test_a_query_waits_for_its_own_exchange_again(box: Sandbox) -> None:
    """It is not sent a second time while the first one runs."""
    code, loop = box.account("shop_1").code, asyncio.get_running_loop()
    async with connect(box, timeout=0.1, attempts=100) as session:
        box.faults.hold()
        for call in (session.agents.info(), session.points.transfer(code, 1)):
            asking = start(call)
            await sent(box, 1)
            # Time for some of its tries, which nothing but the time begins.
            await asyncio.sleep(0.4)
            assert not asking.done()
            box.faults.clear()
            await asking
            box.faults.hold()
        assert box.executed == {"agent/info": 1, "points/transfer": 1}
        # No longer than its tries last, and no longer than its deadline does.
        for view, least in (({"attempts": 2}, 0.19), ({"deadline": 0.3}, 0.29)):
            began = loop.time()
            with pytest.raises(OutcomeUnknownError) as caught:
                await session.with_options(**view).agents.info()
            assert caught.value.attempts == 1
            # All of the tries would take ten seconds.
            assert least <= loop.time() - began < 10
        assert box.gauge("operator").served == 4
        box.faults.clear()
        await idle(session)
        assert session.gate.statistics().late_answers == 2


@pytest.mark.parametrize("attempts", [1, 4])
async def test_all_attempts_of_a_query_are_waited_for(
    box: Sandbox, attempts: int
) -> None:
    """As often as there are attempts, each for the whole timeout, and no longer."""
    loop = asyncio.get_running_loop()
    box.faults.hold()
    async with connect(box, timeout=0.1, attempts=attempts) as session:
        began = loop.time()
        async with asyncio.timeout(20):
            with pytest.raises(OutcomeUnknownError):
                await session.agents.info()
        assert loop.time() - began >= 0.1 * attempts - 0.01
        box.faults.clear()
        await idle(session)
    assert box.gauge("operator").served == 1


async def test_a_payment_waits_once_whatever_its_attempts(box: Sandbox) -> None:
    """It is not sent again, so no other attempt has time to wait for the response."""
    box.faults.hold("wallet/deposit")
    async with connect(box, "shop_1") as shop:
        user = (await shop.users.create("anna")).user_code
        # All of them would be waited for longer than any test lasts.
        view = trusted(shop).with_options(timeout=0.05, attempts=100_000)
        async with asyncio.timeout(20):
            with pytest.raises(
                OutcomeUnknownError, match="no answer in time"
            ) as caught:
                await view.wallets.deposit(user, 5)
        assert caught.value.attempts == 1
        assert shop.gate.statistics().detached == 1
        box.faults.clear()
        await idle(shop)
    assert box.executed["wallet/deposit"] == 1


async def test_a_connection_that_breaks_is_no_late_answer() -> None:
    """Its caller is gone, its permit comes back, and no response is counted."""
    asked, left = asyncio.Event(), asyncio.Event()

    async def breaks(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await read_request(reader)
        asked.set()
        await left.wait()
        writer.close()

    async with serving(breaks) as url, SessionManager(url) as manager:
        session = manager.session(TOKEN)
        call = start(session.agents.info())
        await asked.wait()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert session.gate.statistics().detached == 1
        left.set()
        await idle(session)
        state = session.gate.statistics()
        assert (state.in_use, state.detached, state.late_answers) == (0, 0, 0)


async def test_what_breaks_after_a_wait_is_sent_again() -> None:
    """The exchange that it waited for once more has ended, in a doubt."""
    asked = 0

    async def breaks(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        nonlocal asked
        asked += 1
        await read_request(reader)
        if asked == 1:
            # Longer than one timeout, and shorter than all of them.
            await asyncio.sleep(0.3)
        else:
            head = f"HTTP/1.1 200 X\r\nContent-Length: {len(OK_INFO)}\r\n\r\n"
            writer.write(head.encode() + OK_INFO)
            await writer.drain()
        writer.close()

    settings = Settings(timeout=0.2, attempts=10)
    async with (
        serving(breaks) as url,
        SessionManager(url, settings=settings) as manager,
    ):
        assert (await manager.session(TOKEN).agents.info()).name == "x"
    assert asked == 2


def answer_held(box: SandboxProcess, name: str) -> None:
    """Let an account's calls be answered, while the loop stands still."""
    httpx.post(f"{box.base_url}/sandbox/clear", json={}).raise_for_status()
    gauge = f"{box.base_url}/sandbox/gauge"
    while httpx.get(gauge, params={"name": name}).json()["in_flight"]:
        pass


@pytest.mark.process
@pytest.mark.parametrize("clock", ["deadline", "timeout"])
@pytest.mark.parametrize("factory", [asyncio.SelectorEventLoop, uvloop.new_event_loop])
def test_an_answer_that_is_there_in_time_is_returned(factory: Any, clock: str) -> None:
    """Though the loop was too busy to see it before the time was over."""

    async def scene() -> None:
        async with SandboxProcess() as box, connect(box, "shop_1") as shop:
            user = (await shop.users.create("anna")).user_code
            await box.fault(Fault("hold", "wallet/deposit"))
            # What is in flight is the payment, and no question whose it is.
            trusted(shop)
            began = time.monotonic()
            options = {clock: 1.0, "attempts": 1}
            pay = start(shop.with_options(**options).wallets.deposit(user, 5))
            while not (await box.gauge("shop_1")).in_flight:
                await asyncio.sleep(0)
            # From here on a callback holds the loop.
            answer_held(box, "shop_1")
            # Until the time is over.
            time.sleep(max(0, began + 1.1 - time.monotonic()))  # noqa: ASYNC251 - so
            assert (await pay).balance == 5
            assert shop.gate.statistics().detached == 0

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(scene())


async def test_a_refusal_that_comes_too_late_is_counted(box: Sandbox) -> None:
    """The share follows it though nobody waits for it, and the permits are whole."""
    left = asyncio.Event()

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for body in (b'{"code": 1018}', OK_INFO):
            await read_request(reader)
            await left.wait()
            head = f"HTTP/1.1 200 X\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
        await reader.read()
        writer.close()

    async with serving(late) as url, SessionManager(url) as manager:
        session = manager.session(box.token("operator"))
        hurried = session.with_options(timeout=0.1, attempts=1)
        with pytest.raises(OutcomeUnknownError):
            await hurried.agents.info()
        left.set()
        await idle(session)
        state = session.gate.statistics()
        assert (state.busy_answers, state.late_answers, state.share) == (1, 1, 1)
        # Nobody is in line: the next one is the probe.
        assert (await session.agents.info()).name == "x"


async def test_a_late_refusal_uses_up_no_attempt() -> None:
    """It was waited for twice, and so may the next sending be."""

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for body in (b'{"code": 1018}', OK_INFO):
            await read_request(reader)
            # Longer than one timeout, and shorter than two.
            await asyncio.sleep(0.9)
            head = f"HTTP/1.1 200 X\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
        await reader.read()
        writer.close()

    settings = Settings(timeout=0.6, attempts=2)
    async with serving(slow) as url, SessionManager(url, settings=settings) as manager:
        session = manager.session(TOKEN)
        assert (await session.agents.info()).name == "x"
        assert session.gate.statistics().busy_answers == 1


async def test_closing_waits_for_what_was_left(box: Sandbox) -> None:
    """As long as it waits for what runs; then it is cut."""
    loop = asyncio.get_running_loop()
    for drain, late in ((30.0, 1), (0.05, 0)):
        box.faults.hold()
        async with connect(box, drain=drain) as session:
            call = start(session.agents.info())
            await sent(box, 1)
            call.cancel()
            if late:
                # When the session is being closed.
                loop.call_later(0.05, box.faults.clear)
        state = session.gate.statistics()
        assert (state.in_use, state.detached, state.late_answers) == (0, 0, late)
        box.faults.clear()
        while box.gauge("operator").in_flight:
            await look_again()
    loose = [t for t in asyncio.all_tasks() if "_carry_out" in repr(t.get_coro())]
    assert not loose


async def test_closing_in_the_turn_of_the_permit(box: Sandbox) -> None:
    """What had no time to begin was not sent, and its caller is told."""
    async with connect(box, drain=0) as session:
        call = start(session.agents.info())
        await asyncio.sleep(0)
        await session.aclose()
        with pytest.raises(AgentAPIError) as caught:
            await call
        assert isinstance(caught.value, ClosedError | OutcomeUnknownError)
        if caught.value.happened == "no":
            assert box.gauge("operator").served == 0
        assert session.gate.statistics().in_use == 0


async def test_what_is_left_belongs_to_nobody(box: Sandbox) -> None:
    """A task group that is cancelled does not wait for it, nor take it along."""
    box.faults.hold()
    async with connect(box) as session:
        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(session.agents.info())
                await sent(box, 1)
                raise KeyError
        assert session.gate.statistics().detached == 1
        box.faults.clear()
        await idle(session)
        assert session.gate.statistics().late_answers == 1


@pytest.mark.timeout(60)
async def test_a_crowd_that_comes_and_goes(box: Sandbox) -> None:
    """Both lanes, others who use the token, cancels and time-outs at random."""
    dice = random.Random(7)  # noqa: S311 - repeatable
    box.switches = Switches(latency=0.01, jitter=0.01, release_lag=0.001)
    box.faults.delay(0.2, share=0.05)
    async with connect(box, abandon_after=0.05, linger=0.02, limit=20) as session:
        views = [
            session.with_options(lane=lane, timeout=timeout, attempts=attempts)
            for lane in ("interactive", "batch")
            for timeout in (0.01, 0.03, 5.0)
            for attempts in (1, 3)
        ]
        calls = [start(dice.choice(views).agents.info()) for _ in range(1_500)]
        for number in range(60):
            box.foreign("operator", dice.choice([0, 20, 35, 45]))
            for call in dice.sample(calls, 15):
                call.cancel()
            await look_again()
            if number % 10 == 0:
                time.sleep(0.02)  # noqa: ASYNC251 - the loop is held at times
        box.foreign("operator", 0)
        results = await asyncio.gather(*calls, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                assert isinstance(
                    result,
                    asyncio.CancelledError | OutcomeUnknownError | NotSentError,
                ), result
        await idle(session)
        box.faults.clear()
        box.switches = Switches()
        assert (await session.agents.info()).name == "operator"
        state = session.gate.statistics()
        assert (state.in_use, state.waiting, state.detached) == (0, 0, 0)
        # The service counts those that were given up as well, up to its own limit.
        assert state.peak == 20


@pytest.mark.parametrize("size", [1_000, 300_000, 3_000_000])
async def test_a_long_answer_that_is_there_is_returned(size: int) -> None:
    """It comes in many pieces, all of which had arrived in time."""
    told = asyncio.Event()

    async def long(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        body = b'{"code": 0, "data": {"name": "%b"}}' % (b"x" * size)
        writer.write(f"HTTP/1.1 200 X\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        writer.write(body)
        told.set()
        await writer.drain()
        await reader.read()
        writer.close()

    settings = Settings(timeout=1.0, attempts=1)
    async with serving(long) as url, SessionManager(url, settings=settings) as manager:
        session = manager.session(TOKEN)
        call = start(session.call("a/b", {}, effect="read"))
        await told.wait()
        time.sleep(1.1)  # noqa: ASYNC251 - a callback that holds the loop
        answer = await call
    assert isinstance(answer, dict)
    assert answer["name"] == "x" * size


@pytest.mark.parametrize("own", [False, True])
async def test_a_feed_is_not_read_while_a_left_reading_runs(
    box: Sandbox, *, own: bool
) -> None:
    """Where an early reading is answered with an empty list, rows would be missed."""
    box.switches = Switches(feed_spacing=0.3, early_feed="empty")
    async with connect(
        box, "shop_1", feed_interval=0.4, timeout=5 if own else 0.05, attempts=1
    ) as shop:
        user = (await shop.with_options(timeout=5).users.create("anna")).user_code
        await shop.with_options(timeout=5).wallets.deposit(user, 5)
        box.faults.hold("game/transaction-id", times=1)
        with pytest.raises((TimeoutError, OutcomeUnknownError)):
            async with asyncio.timeout(0.1 if own else None):
                await anext(shop.transactions.since(0))
        patient = shop.with_options(timeout=5)
        with pytest.raises(AgentAPIError, match="may not be read again in time"):
            await anext(shop.with_options(max_wait=0.05).transactions.since(0))
        box.faults.clear()
        rows = [row async for row in patient.transactions.since(0)]
        assert [row.trans_amount for row in rows] == [5]
        assert shop.gate.statistics().late_answers == 1


@pytest.mark.process
@pytest.mark.parametrize("late", [False, True])
def test_a_call_that_is_closed_after_its_loop(*, late: bool) -> None:
    """It leaves its exchange, which is read or cut, and the account is whole."""
    with asyncio.Runner() as runner:

        async def begin() -> tuple[SandboxProcess, SessionManager, Any]:
            box = await SandboxProcess().__aenter__()
            await box.fault(Fault("hold"))
            manager = SessionManager(box.base_url, settings=Settings(drain=0.0))
            asking = manager.session(box.tokens["operator"]).agents.info()
            task = asyncio.get_running_loop().create_task(asking)
            while not (await box.gauge("operator")).in_flight:
                await look_again()
            return box, manager, task

        async def end() -> None:
            if late:
                await box.clear_faults()
                while not gate.statistics().late_answers:
                    await look_again()
            await manager.aclose()
            task.cancel()
            # Its coroutine is over.
            with pytest.raises((RuntimeError, asyncio.CancelledError)):
                await task

        box, manager, task = runner.run(begin())
        gate = manager.session(box.tokens["operator"]).gate
        task.get_coro().close()
        assert gate.statistics().detached == 1
        runner.run(end())
        assert gate.statistics().late_answers == late
        assert (gate.statistics().in_use, gate.statistics().detached) == (0, 0)
        runner.run(box.__aexit__())
