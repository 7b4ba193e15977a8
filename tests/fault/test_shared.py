"""The shared gate under fire: real processes, a real store, a service that counts."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from redis.asyncio import Redis

from aio_agentapi import Secret, SessionManager, Settings
from aio_agentapi.errors import GateLostError, UsageError
from aio_agentapi.redis import RedisGate, RedisGateStatistics
from aio_agentapi.sandbox import Fault, SandboxProcess, Switches
from tests.conftest import TOKEN
from tests.redis_server import ROOT, RedisServer, Worker, redis_server

TERMS: dict[str, Any] = {"lease": 1.0, "heartbeat": 0.2, "quarantine": 2.0}


@pytest.fixture
async def store() -> AsyncGenerator[RedisServer]:
    """Start a store."""
    async with redis_server() as server:
        yield server


@pytest.fixture
async def box() -> AsyncGenerator[SandboxProcess]:
    """Start a service that takes its time."""
    async with SandboxProcess(Switches(latency=0.02, jitter=0.01)) as box:
        yield box


def shared(manager: SessionManager, token: str = TOKEN) -> RedisGateStatistics:
    """Return the statistics of a session's gate."""
    state = manager.session(token).gate.statistics()
    assert isinstance(state, RedisGateStatistics)
    return state


async def until(true: Callable[[], bool], seconds: float = 20.0) -> float:
    """Wait until something is true; return how long that took."""
    began = time.monotonic()
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.005)
    return time.monotonic() - began


def sharer(box: SandboxProcess, store: RedisServer, **more: Any) -> dict[str, Any]:
    """Return what a process that shares the operator's budget is told."""
    where = {"url": store.url, "base_url": box.base_url}
    return {**where, "token": box.tokens["operator"], "terms": TERMS, **more}


async def until_alone(client: Redis) -> None:
    """Wait until nobody else is connected to a store."""
    async with asyncio.timeout(20):
        while len(await client.client_list()) > 1:
            await asyncio.sleep(0.01)


async def fire(box: SandboxProcess, store: RedisServer, seconds: float) -> None:
    """Let four processes call while everything goes wrong; count at the service."""
    dice = random.Random(6)  # noqa: S311 - what goes wrong when
    told = sharer(box, store, workers=200, shift=3600)
    workers = [await Worker.start(**told) for _ in range(4)]
    end = time.monotonic() + seconds
    kinds = ["kill", "stop", "restart", "pause"]
    done = 0
    while time.monotonic() < end or done < len(kinds):
        kind = kinds[done % len(kinds)]
        done += 1
        number = dice.randrange(4)
        if kind == "kill":
            await workers[number].kill()
            workers[number] = await Worker.start(**told)
        elif kind == "stop":
            workers[number].send(signal.SIGSTOP)
            await asyncio.sleep(dice.uniform(0.1, 1.5))
            workers[number].send(signal.SIGCONT)
        elif kind == "restart":
            await store.kill()
            await asyncio.sleep(dice.uniform(0.1, 1.5))
            await store.start()
        else:
            async with store.paused():
                await asyncio.sleep(dice.uniform(0.1, 1.5))
        await asyncio.sleep(dice.uniform(0.5, 1.5))
    counted = [await worker.end() for worker in workers]
    gauge = await box.gauge("operator")
    assert [each["failed"] for each in counted] == [[]] * 4
    assert (gauge.busy, [each["busy_answers"] for each in counted]) == (0, [0] * 4)
    assert gauge.peak <= 50
    assert gauge.served > 400 * seconds


@pytest.mark.timeout(120)
async def test_never_over_under_fire(box: SandboxProcess, store: RedisServer) -> None:
    """Killed, stopped and restarted, the store too: never one call too many."""
    await fire(box, store, 8)


@pytest.mark.soak
@pytest.mark.timeout(300)
async def test_never_over_under_fire_for_a_minute(
    box: SandboxProcess, store: RedisServer
) -> None:
    """The same for a minute."""
    await fire(box, store, 60)


@pytest.mark.timeout(90)
async def test_a_process_that_was_stopped_for_too_long_is_counted(
    box: SandboxProcess, store: RedisServer
) -> None:
    """Longer than its quarantine: no call fails, and what was over is said."""
    terms = {"lease": 0.6, "heartbeat": 0.1, "quarantine": 0.2}
    told = sharer(box, store, terms=terms)
    first = await Worker.start(**told, workers=100)
    second = await Worker.start(**told)
    while (await first.ask("state"))["limit"] < 45:
        await asyncio.sleep(0.05)
    # Its calls are still running when it goes on.
    await box.fault(Fault("hold"))
    while (await box.gauge("operator")).in_flight < 45:
        await asyncio.sleep(0.05)
    first.send(signal.SIGSTOP)
    await second.ask("workers", count=100)
    while (await second.ask("state"))["limit"] < 45:
        await asyncio.sleep(0.05)
    first.send(signal.SIGCONT)
    while not (await second.ask("state"))["overdrawn"]:
        await asyncio.sleep(0.05)
    await box.clear_faults()
    counted = [await first.end(), await second.end()]
    assert [each["failed"] for each in counted] == [[], []]
    assert max(each["overdrawn"] for each in counted) > 0
    assert (await box.gauge("operator")).peak <= 50


@pytest.mark.timeout(60)
async def test_permits_of_a_killed_process_come_back_in_time(
    box: SandboxProcess, store: RedisServer
) -> None:
    """After lease and quarantine, and not before."""
    token, terms = box.tokens["operator"], TERMS.copy()
    terms["lease"] = 3.0
    gates = RedisGate.factory(store.url, **terms)
    worker = await Worker.start(**sharer(box, store, terms=terms, workers=100))
    while (await worker.ask("state"))["limit"] < 50:
        await asyncio.sleep(0.05)
    await worker.kill()
    killed = time.monotonic()
    async with SessionManager(box.base_url, gate=gates) as manager:
        loop = asyncio.get_running_loop()
        call = loop.create_task(manager.session(token).agents.info())
        await until(lambda: shared(manager, token).quarantined == 50)
        budget = await gates.look(Secret(token))
        assert (budget.held, budget.quarantined) == (0, 50)
        assert sorted(m.dead for m in budget.members) == [False, True]
        await call
    took = time.monotonic() - killed
    # The last word of the dead is up to a heartbeat older than its death.
    least = terms["lease"] + terms["quarantine"] - terms["heartbeat"]
    assert least <= took <= terms["lease"] + terms["quarantine"] + 2.0


@pytest.mark.timeout(60)
async def test_an_idle_process_leaves_the_budget_to_a_busy_one(
    box: SandboxProcess, store: RedisServer
) -> None:
    """45 of 50 soon, though three others have used theirs just now."""
    told = sharer(box, store)
    workers = [await Worker.start(**told) for _ in range(4)]
    for worker in workers[1:]:
        await worker.ask("lateness", count=2, pause=0.0)
    await workers[0].ask("workers", count=100)
    began, held = time.monotonic(), 0
    while held < 45:
        held = (await workers[0].ask("state"))["limit"]
    # Coarse: within half a second where the machine has time.
    assert time.monotonic() - began < 5
    counted = [await worker.end() for worker in workers]
    assert [each["busy_answers"] for each in counted] == [0] * 4


@pytest.mark.timeout(60)
async def test_small_ones_are_not_behind_the_queue_of_a_large_one(
    box: SandboxProcess, store: RedisServer
) -> None:
    """Max-min: ten callers each get ten permits, a thousand get what is left."""
    told = sharer(box, store)
    large = await Worker.start(**told, workers=1000)
    small = [await Worker.start(**told, workers=10) for _ in range(3)]
    everybody = (large, *small)

    async def states() -> list[dict[str, Any]]:
        """Return what each says, once all have what they are to have."""
        async with asyncio.timeout(20):
            while True:
                told = [await worker.ask("state") for worker in everybody]
                if [state["limit"] for state in told] == [20, 10, 10, 10]:
                    return told
                await asyncio.sleep(0.02)

    async def shares() -> list[float]:
        """Return what the small ones did in two seconds, in fifths of all of it."""
        before = await states()
        await asyncio.sleep(2)
        after = await states()
        pairs = zip(before, after, strict=True)
        done = [late["done"] - early["done"] for early, late in pairs]
        return [each / (sum(done) / 5) for each in done[1:]]

    # Once more where one of the processes stood still in between.
    found = [await shares()]
    while not all(0.8 <= share <= 1.2 for share in found[-1]):
        assert len(found) < 5, found
        found.append(await shares())
    for worker in (large, *small):
        assert (await worker.end())["failed"] == []


@pytest.mark.timeout(60)
async def test_cancellations_leave_the_capacity_as_it_was(
    box: SandboxProcess, store: RedisServer
) -> None:
    """10,000 calls in four processes, each cancelled at a moment of its own."""
    token, terms = box.tokens["operator"], TERMS.copy()
    # No lease ends before its time where a process stands still for a while.
    terms["lease"] = 10.0
    await store.age(token)
    told = sharer(box, store, terms=terms)
    workers = [await Worker.start(**told) for _ in range(4)]
    storms = await asyncio.gather(*(w.ask("storm", count=2_500) for w in workers))
    assert sum(each["cancelled"] for each in storms) > 5_000
    for worker in workers:
        assert (await worker.end())["failed"] == []
    gates = RedisGate.factory(store.url, **terms)
    async with SessionManager(box.base_url, gate=gates) as manager:
        session = manager.session(token)
        await asyncio.gather(*(session.agents.info() for _ in range(200)))
        state = shared(manager, token)
        assert (state.limit, state.quarantined, state.overdrawn) == (50, 0, 0)
    gauge = await box.gauge("operator")
    assert (gauge.busy, gauge.peak <= 50) == (0, True)


@pytest.mark.timeout(60)
async def test_the_store_is_asked_seldom(
    box: SandboxProcess, store: RedisServer
) -> None:
    """At most once for twenty permits under a steady load, heartbeats included."""
    gates = RedisGate.factory(store.url)
    async with SessionManager(box.base_url, gate=gates) as manager:
        token = box.tokens["operator"]
        session = manager.session(token)
        await asyncio.gather(*(session.agents.info() for _ in range(50)))
        # A store that is new gives nothing for the time of a lease.
        before = shared(manager, token)
        assert before.limit == 50
        await asyncio.gather(*(session.agents.info() for _ in range(2_000)))
        after = shared(manager, token)
        assert after.admitted - before.admitted == 2_000
        assert after.store_calls - before.store_calls <= 2_000 / 20


@pytest.mark.timeout(60)
async def test_a_permit_that_somebody_waits_for_is_given_back_at_once(
    store: RedisServer,
) -> None:
    """Not with the next heartbeat, which is far away."""
    gates = [RedisGate.factory(store.url, lease=60, heartbeat=20) for _ in range(2)]
    await store.age(TOKEN)
    async with AsyncExitStack() as stack:
        one, two = [
            (
                await stack.enter_async_context(
                    SessionManager("http://127.0.0.1:9", gate=made)
                )
            )
            .session(TOKEN)
            .gate
            for made in gates
        ]
        async with asyncio.timeout(10):
            await asyncio.gather(*(one.acquire("interactive") for _ in range(50)))
            waiting = asyncio.ensure_future(two.acquire("interactive"))
            await asyncio.sleep(0.1)
            assert not waiting.done()
            one.release("interactive", 0.02)
            await waiting
            two.release("interactive", 0.02)
        for _ in range(49):
            one.release("interactive", 0.02)


@pytest.mark.timeout(60)
async def test_closing_that_is_cancelled_leaves_no_connection(
    store: RedisServer,
) -> None:
    """Nor one that waits for a store that hangs."""
    gate = RedisGate.factory(store.url, **TERMS)(Secret(TOKEN), Settings())
    await store.age(TOKEN)
    await gate.acquire("interactive")
    gate.release("interactive", 0.02)
    async with store.paused():
        closing = asyncio.ensure_future(gate.aclose())
        await asyncio.sleep(0.05)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
    async with Redis(port=store.port) as client:
        await until_alone(client)
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize("share", [0, 3])
@pytest.mark.timeout(60)
async def test_a_store_that_is_gone(
    box: SandboxProcess, store: RedisServer, share: int
) -> None:
    """The lease is kept to its end; then the static share, or a clear refusal."""
    token, terms = box.tokens["operator"], TERMS.copy()
    terms["lease"] = 2.0
    gates = RedisGate.factory(store.url, **terms, static_share=share)
    await store.age(token)
    async with SessionManager(box.base_url, gate=gates) as manager:
        session = manager.session(token)
        await session.agents.info()
        await store.kill()
        assert (await session.agents.info()).name == "operator"
        await until(lambda: shared(manager, token).lost)
        if share:
            await asyncio.gather(*(session.agents.info() for _ in range(20)))
            assert shared(manager, token).limit == share
            assert shared(manager, token).peak == share
        else:
            with pytest.raises(GateLostError) as caught:
                await session.agents.info()
            assert (caught.value.happened, caught.value.attempts) == ("no", 0)
        assert "the store is gone" in repr(session.gate)
        await store.start()
        await until(lambda: not shared(manager, token).lost)
        # A new store gives nothing for the time of a lease.
        async with asyncio.timeout(20):
            while shared(manager, token).limit < 50:
                await asyncio.gather(*(session.agents.info() for _ in range(100)))
        state = shared(manager, token)
        assert (state.lost, state.connected, state.limit) == (False, True, 50)


@pytest.mark.timeout(60)
async def test_a_store_that_is_not_there_is_said_in_time(box: SandboxProcess) -> None:
    """Those in line are told too, and nothing was sent."""
    gates = RedisGate.factory("redis://127.0.0.1:9", lease=0.6, heartbeat=0.1)
    async with SessionManager(box.base_url, gate=gates) as manager:
        session = manager.session(box.tokens["operator"])
        errors = await asyncio.gather(
            *(session.agents.info() for _ in range(20)), return_exceptions=True
        )
        assert [GateLostError] * 20 == [type(error) for error in errors]
    with pytest.raises(GateLostError):
        await gates.look(Secret(TOKEN))
    assert (await box.gauge("operator")).served == 0


@pytest.mark.parametrize("count", [100, pytest.param(1_000, marks=pytest.mark.soak)])
@pytest.mark.timeout(300)
async def test_members_do_not_pile_up(store: RedisServer, count: int) -> None:
    """Processes that came, got a permit and were killed leave nothing behind."""
    terms: dict[str, Any] = {"lease": 0.3, "heartbeat": 0.1, "quarantine": 0.1}
    await store.age(TOKEN)
    told = json.dumps(
        {"url": store.url, "terms": terms, "token": TOKEN, "count": count}
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.mortals", told), cwd=ROOT
    )
    key, most = f"agentapi:{{{Secret(TOKEN).digest}}}:members", 0
    async with Redis(port=store.port) as client:
        while process.returncode is None:
            most = max(most, await client.hlen(key))
            await asyncio.sleep(0.02)
        assert process.returncode == 0
        # Each of fifty permits has one holder, alive or dead.
        assert 0 < most <= 60
        await asyncio.sleep(0.5)
        async with SessionManager(
            "http://127.0.0.1:9", gate=RedisGate.factory(store.url, **terms)
        ) as manager:
            await manager.session(TOKEN).gate.acquire("interactive")
            assert await client.hlen(key) == 1


async def test_nothing_of_the_token_is_in_the_store(
    box: SandboxProcess, store: RedisServer
) -> None:
    """Keys have a hash of it, one tag for all, and an end."""
    token = box.tokens["operator"]
    gates = RedisGate.factory(store.url, **TERMS)
    async with (
        SessionManager(box.base_url, gate=gates) as manager,
        Redis(port=store.port, decode_responses=True) as client,
    ):
        await manager.session(token).agents.info()
        keys = sorted(await client.keys("*"))
        tag = f"agentapi:{{{Secret(token).digest}}}"
        assert keys == [f"{tag}:members", f"{tag}:state"]
        for key in keys:
            assert 0 < await client.pttl(key) <= 64_000
            assert token not in str(await client.hgetall(key))
        assert token not in repr(gates)


async def test_several_accounts_share_a_connection(
    box: SandboxProcess, store: RedisServer
) -> None:
    """One for questions and one for messages, however many accounts."""
    gates = RedisGate.factory(store.url, **TERMS)
    async with Redis(port=store.port) as client:
        async with SessionManager(box.base_url, gate=gates) as manager:
            names = ("operator", "shop_1", "shop_2")
            await asyncio.gather(
                *(manager.session(box.tokens[n]).agents.info() for n in names)
            )
            # Ours, and the one that asks; one that is lost is made anew.
            async with asyncio.timeout(20):
                while (
                    len(await client.client_list()),
                    len(await client.pubsub_channels()),
                ) != (3, 3):
                    await asyncio.sleep(0.01)
        await until_alone(client)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lease": 1.0, "heartbeat": 0.5},
        {"heartbeat": 0},
        {"quarantine": float("inf")},
        {"quarantine": "30"},
        {"static_share": -1},
        {"static_share": 1.5},
        {"url": "http://127.0.0.1"},
    ],
)
def test_terms_are_checked_at_once(wrong: dict[str, Any]) -> None:
    """By name, before anything is connected."""
    told: dict[str, Any] = {"url": "redis://127.0.0.1", **wrong}
    name = next(iter(wrong))
    with pytest.raises(UsageError, match="store" if name == "url" else name):
        RedisGate.factory(**told)
    assert Settings().limit == 50
