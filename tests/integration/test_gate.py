"""The gate against a service that counts."""

from __future__ import annotations

import asyncio
import gc
import sys
import tracemalloc

import pytest

from aio_agentapi import LocalGate, SessionManager
from aio_agentapi.errors import (
    BusyError,
    GateFullError,
    GateTimeoutError,
    OutcomeUnknownError,
)
from aio_agentapi.sandbox import Fault, Sandbox, SandboxProcess, Switches
from tests.conftest import connect
from tests.fault.test_late import start
from tests.waiting import look_again


async def full(box: SandboxProcess, *names: str, permits: int = 50) -> None:
    """Wait until the service has so many held calls of each; then let them go on."""
    for name in names or ("operator",):
        while (await box.gauge(name)).in_flight < permits:
            await look_again()
    await box.clear_faults()


@pytest.mark.process
@pytest.mark.timeout(60)
async def test_ten_thousand_at_once() -> None:
    """All succeed, exactly 50 in flight, no 1018, at most 50 connections."""
    async with (
        SandboxProcess(Switches(latency=0.02)) as box,
        connect(box) as session,
    ):
        await box.fault(Fault("hold"))
        calls = [start(session.agents.info()) for _ in range(10_000)]
        await full(box)
        answers = await asyncio.gather(*calls)
        gauge = await box.gauge("operator")
        state = session.gate.statistics()
    assert {"operator"} == {answer.name for answer in answers}
    assert (gauge.served, gauge.peak, gauge.busy) == (10_000, 50, 0)
    assert gauge.connections <= 50
    assert (
        state.in_use,
        state.waiting,
        state.share,
        state.peak,
        state.busy_answers,
    ) == (0, 0, 50, 50, 0)


@pytest.mark.process
async def test_four_tokens_have_fifty_each() -> None:
    """A gate and a pool for each token, side by side."""
    names = ["broker", "operator", "shop_1", "shop_2"]
    async with SandboxProcess() as box:
        async with SessionManager(box.base_url, accounts=box.tokens) as manager:
            await box.fault(Fault("hold"))
            calls = [
                start(manager.session(name).agents.info())
                for _ in range(200)
                for name in names
            ]
            await full(box, *names)
            await asyncio.gather(*calls)
        gauges = [await box.gauge(name) for name in names]
    assert [(g.served, g.peak, g.busy) for g in gauges] == [(200, 50, 0)] * 4


@pytest.mark.process
@pytest.mark.timeout(60)
@pytest.mark.parametrize(("held", "calls"), [(20, 2000), (40, 2000), (49, 300)])
async def test_no_call_fails_when_others_hold_permits(held: int, calls: int) -> None:
    """1018 is met and never surfaces; at the service never more than 50 run."""
    async with (
        SandboxProcess(Switches(latency=0.01)) as box,
        connect(box) as session,
    ):
        await box.foreign("operator", held)
        await box.fault(Fault("hold"))
        running = [start(session.agents.info()) for _ in range(calls)]
        await full(box, permits=50 - held)
        await asyncio.gather(*running)
        gauge = await box.gauge("operator")
        state = session.gate.statistics()
    assert (calls, 50) == (gauge.served, gauge.foreign_peak)
    assert 0 < gauge.busy == state.busy_answers
    assert (state.in_use, state.waiting) == (0, 0)


async def test_a_service_that_is_full_is_waited_for(box: Sandbox) -> None:
    """With all permits in other hands a call waits for as long as it takes."""
    async with connect(box) as session:
        box.foreign("operator", 50)
        call = asyncio.get_running_loop().create_task(session.agents.info())
        while box.gauge("operator").busy < 2:
            await look_again()
        box.foreign("operator", 0)
        assert (await call).name == "operator"


async def test_busy_surfaces_only_when_the_time_is_over(box: Sandbox) -> None:
    """As BusyError with its code; nothing happened, and the permits are whole."""
    async with connect(box, max_wait=0.15) as session:
        box.foreign("operator", 50)
        with pytest.raises(BusyError) as caught:
            await session.points.transfer(box.account("shop_1").code, 1)
        assert (caught.value.code, caught.value.happened) == (1018, "no")
        assert caught.value.reference
        state = session.gate.statistics()
        assert (state.in_use, state.waiting) == (0, 0)
        box.foreign("operator", 0)
        assert (await session.agents.info()).name == "operator"
    assert box.executed["points/transfer"] == 0


async def test_too_many_waiting_are_refused_at_once(box: Sandbox) -> None:
    """Beyond max_waiting nothing is sent, and those in line are served."""
    box.switches = Switches(latency=0.05)
    async with connect(box, limit=5, max_waiting=10) as session:
        results = await asyncio.gather(
            *(session.agents.info() for _ in range(40)), return_exceptions=True
        )
        refused = [r for r in results if isinstance(r, GateFullError)]
        assert (len(refused), box.executed["agent/info"]) == (25, 15)
        assert {("no", 0)} == {(error.happened, error.attempts) for error in refused}
        assert session.gate.statistics().in_use == 0


@pytest.mark.parametrize("clock", ["max_wait", "deadline"])
async def test_who_waits_too_long_has_sent_nothing(box: Sandbox, clock: str) -> None:
    """Both clocks end the waiting, the permits are whole, the next call works."""
    box.faults.hold()
    async with connect(box, limit=1) as session:
        running = start(session.agents.info())
        await asyncio.sleep(0)
        view = session.with_options(**{clock: 0.02})
        with pytest.raises(GateTimeoutError) as caught:
            await view.agents.info()
        assert (caught.value.attempts, caught.value.happened) == (0, "no")
        assert caught.value.waited >= 0.01
        box.faults.clear()
        await running
        assert box.executed["agent/info"] == 1
        assert (await session.agents.info()).name == "operator"
        assert session.gate.statistics().in_use == 0


async def test_a_deadline_ends_a_call_that_is_under_way(box: Sandbox) -> None:
    """What was sent may have happened, and is not sent again."""
    async with connect(box) as session:
        await session.agents.info()
        box.faults.hold()
        with pytest.raises(OutcomeUnknownError) as caught:
            await session.with_options(deadline=0.3).agents.info()
        assert caught.value.attempts == 1
        state = session.gate.statistics()
        assert (state.in_use, state.detached) == (1, 1)
        box.faults.clear()


async def test_interactive_calls_pass_a_batch(box: Sandbox) -> None:
    """A view of the same session has its own lane; the batch keeps its floor."""
    box.switches = Switches(latency=0.01)
    async with connect(box, limit=10, batch_floor=2) as session:
        batch = session.with_options(lane="batch")
        order: list[str] = []

        async def call(name: str) -> None:
            view = batch if name == "batch" else session
            await view.agents.info()
            order.append(name)

        names = ["batch"] * 200 + ["interactive"] * 50
        await asyncio.gather(*(call(name) for name in names))
    last = max(i for i, name in enumerate(order) if name == "interactive")
    # Of the permits while both asked, two of ten were the batch's, after the
    # first ten, which it took before anybody else was there.
    between = order[: last + 1].count("batch")
    assert 10 + 8 <= between <= 10 + 25


@pytest.mark.process
@pytest.mark.timeout(60)
async def test_the_share_comes_back_when_others_go() -> None:
    """It follows what they leave, and is whole soon after they have gone."""
    async with (
        SandboxProcess(Switches(latency=0.02, jitter=0.01)) as box,
        connect(box) as session,
    ):
        loop, end = asyncio.get_running_loop(), asyncio.Event()

        async def work() -> None:
            while not end.is_set():
                await session.agents.info()

        workers = [loop.create_task(work()) for _ in range(80)]
        await box.foreign("operator", 30)
        async with asyncio.timeout(20):
            while not 15 <= session.gate.statistics().share <= 21:
                await look_again()
            assert 29 <= session.gate.statistics().foreign_estimate <= 35
            await box.foreign("operator", 0)
            while session.gate.statistics().share < 50:
                await look_again()
        end.set()
        await asyncio.gather(*workers)
        state = session.gate.statistics()
        assert (state.foreign_estimate, state.withheld, state.in_use) == (0, 0, 0)


async def test_a_slow_call_does_not_hold_up_a_refused_quick_one(box: Sandbox) -> None:
    """Nothing of ours completes, and a probe finds that the others have gone."""
    async with connect(box) as session:
        box.foreign("operator", 49)
        box.faults.hold("agent/info")
        slow = start(session.agents.info())
        while not box.gauge("operator").in_flight:
            await asyncio.sleep(0)
        quick = start(session.users.create("anna"))
        while not session.gate.statistics().busy_answers:
            await asyncio.sleep(0)
        box.foreign("operator", 0)
        await quick
        assert not slow.done()
        box.faults.clear()
        await slow


@pytest.mark.process
@pytest.mark.timeout(60)
async def test_a_service_that_counts_behind_its_answers() -> None:
    """A permit that is free a few milliseconds late fails no call."""
    switches = Switches(latency=0.05, jitter=0.02, release_lag=0.003)
    async with SandboxProcess(switches) as box, connect(box) as session:
        await asyncio.gather(*(session.agents.info() for _ in range(1_000)))
        gauge = await box.gauge("operator")
        assert (gauge.served, gauge.peak) == (1_000, 50)
        # Coarse: the benchmark tells how few.
        assert 0 < gauge.busy < 100


@pytest.mark.process
@pytest.mark.timeout(60)
async def test_a_long_queue_holds_nobody_up() -> None:
    """An interactive call waits for one permit, not for a thousand batch calls."""
    async with (
        SandboxProcess(Switches(latency=0.02)) as box,
        connect(box) as session,
    ):
        batch, loop = session.with_options(lane="batch"), asyncio.get_running_loop()
        done = 0

        async def call() -> None:
            nonlocal done
            await batch.agents.info()
            done += 1

        queued = [loop.create_task(call()) for _ in range(1_500)]
        while not done:
            await look_again()
        overtaken: list[int] = []
        for _ in range(5):
            before = done
            await session.agents.info()
            overtaken.append(done - before)
        waiting = session.gate.statistics().waiting_by_lane
        assert waiting["batch"] > 500
        assert waiting["interactive"] == 0
        # Those in flight before it, and those beside it.
        assert max(overtaken) <= 3 * 50
        await asyncio.gather(*queued)


async def test_a_waiting_call_costs_little(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """About two KiB, so that a hundred thousand can wait."""
    count = 2_000
    # Without the coroutine by which tests watch the gate.
    plain = LocalGate.acquire.__wrapped__  # type: ignore[attr-defined]
    monkeypatch.setattr(LocalGate, "acquire", plain)
    async with connect(box, limit=1) as session:
        await session.agents.info()
        await session.gate.acquire("interactive")
        loop = asyncio.get_running_loop()
        # Nor that by which they are measured: each frame would carry something.
        tracer = sys.gettrace()
        sys.settrace(None)
        gc.collect()
        tracemalloc.start()
        calls = [loop.create_task(session.agents.info()) for _ in range(count)]
        while session.gate.statistics().waiting < count:
            await asyncio.sleep(0)
        size = tracemalloc.get_traced_memory()[0] / count
        tracemalloc.stop()
        sys.settrace(tracer)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        session.gate.release("interactive")
    assert size < 2_400
