"""The shared gate under fire: real processes, a real store, a service that counts."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import attrs
import pytest
from redis.asyncio import Redis

from aio_agentapi import Secret, SessionManager, Settings
from aio_agentapi.errors import GateLostError
from aio_agentapi.redis import RedisGate, RedisGateStatistics
from aio_agentapi.sandbox import Sandbox, Switches
from tests.conftest import TOKEN
from tests.redis_server import ROOT, RedisServer, Worker, redis_server
from tests.waiting import look_again

pytestmark = pytest.mark.process

TERMS: Final[dict[str, Any]] = {"lease": 1.0, "heartbeat": 0.2, "quarantine": 2.0}

# A service that takes its time, and has room for all that anybody sends: what bounds
# the calls in flight is the gate alone.
ROOMY: Final = Switches(limit=1_000, latency=0.02, jitter=0.01)


@pytest.fixture
async def store() -> AsyncGenerator[RedisServer]:
    """Start a store."""
    async with redis_server() as server:
        yield server


@pytest.fixture
async def box() -> AsyncGenerator[Sandbox]:
    """Start a service that has room for more than the gates let through."""
    async with Sandbox(ROOMY) as box:
        yield box


def shared(manager: SessionManager, token: str = TOKEN) -> RedisGateStatistics:
    """Return the statistics of a session's gate."""
    state = manager.session(token).gate.statistics()
    assert isinstance(state, RedisGateStatistics)
    return state


async def until(true: Callable[[], object]) -> None:
    """Wait until something is true."""
    while not true():
        await look_again()


def sharer(box: Sandbox, store: RedisServer, **more: Any) -> dict[str, Any]:
    """Return what a process that shares the operator's budget is told."""
    where = {"url": store.url, "base_url": box.base_url}
    return {**where, "token": box.token("operator"), "terms": TERMS, **more}


async def start(count: int, **told: Any) -> list[Worker]:
    """Start so many processes side by side."""
    return await asyncio.gather(*(Worker.start(**told) for _ in range(count)))


async def until_alone(client: Redis) -> None:
    """Wait until nobody else is connected to a store."""
    while len(await client.client_list()) > 1:
        await look_again()


@attrs.frozen
class Row:
    """What the store wrote down of a member, at a report of it; times are its own."""

    id: str
    held: int
    wanted: int
    seen: int
    ends: int
    kept: int
    number: int


@asynccontextmanager
async def watched(store: RedisServer) -> AsyncGenerator[list[Row]]:
    """Give all rows that the store writes from now on, in their order."""
    rows: list[Row] = []
    async with Redis(port=store.port) as client, client.monitor() as monitor:

        async def watch() -> None:
            while True:
                told = (await monitor.next_command())["command"].split(" ")
                if told[0] == "HSET" and told[1].endswith(":members"):
                    rows.append(Row(told[2], *map(int, told[3:9])))

        # When it fails, so does the test, which would wait for rows in vain.
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(watch())
            yield rows
            watching.cancel()
        assert watching.cancelled()


async def progress(workers: list[Worker]) -> None:
    """Wait until each of them has had another call answered."""

    async def done() -> list[int]:
        states = await asyncio.gather(*(worker.ask("state") for worker in workers))
        return [state["done"] for state in states]

    before = await done()
    while not all(map(int.__lt__, before, await done())):
        await look_again()


async def fire(box: Sandbox, store: RedisServer, faults: int) -> None:
    """Let four processes call while everything goes wrong; count at the service."""
    dice = random.Random(6)  # noqa: S311 - what goes wrong when
    told = sharer(box, store, workers=200, shift=3600)
    workers = await start(4, **told)
    for number in range(faults):
        kind = ("kill", "stop", "restart", "pause")[number % 4]
        victim = dice.randrange(4)
        # Longer than a lease at times, and shorter than its quarantine.
        seconds = dice.uniform(0.1, 1.5)
        if kind == "kill":
            await workers[victim].kill()
            workers[victim] = await Worker.start(**told)
        elif kind == "stop":
            workers[victim].send(signal.SIGSTOP)
            # How long it stands still is what is tried.
            await asyncio.sleep(seconds)
            workers[victim].send(signal.SIGCONT)
        elif kind == "restart":
            await store.kill()
            # As above, of the store.
            await asyncio.sleep(seconds)
            await store.start()
        else:
            async with store.paused():
                # As above.
                await asyncio.sleep(seconds)
        # Whatever it was, all are served again.
        await progress(workers)
    counted = [await worker.end() for worker in workers]
    gauge = box.gauge("operator")
    assert [each["failed"] for each in counted] == [[]] * 4
    assert [each["busy_answers"] for each in counted] == [0] * 4
    assert [each["overdrawn"] for each in counted] == [0] * 4
    assert 40 < gauge.peak <= 50
    assert gauge.served >= sum(each["done"] for each in counted)


@pytest.mark.timeout(120)
async def test_never_over_under_fire(box: Sandbox, store: RedisServer) -> None:
    """Killed, stopped and restarted, the store too: never one call too many."""
    await fire(box, store, 4)


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_never_over_under_fire_for_a_minute(
    box: Sandbox, store: RedisServer
) -> None:
    """The same for a minute."""
    await fire(box, store, 40)


@pytest.mark.timeout(90)
async def test_a_process_that_was_stopped_for_too_long_is_counted(
    store: RedisServer,
) -> None:
    """Longer than its quarantine: no call fails, and what was over is said."""
    terms = {"lease": 0.6, "heartbeat": 0.1, "quarantine": 0.2}
    # This one has no room for what is over.
    async with Sandbox(attrs.evolve(ROOMY, limit=50)) as box:
        await store.age(box.token("operator"))
        first, second = await start(2, **sharer(box, store, terms=terms))
        await first.ask("workers", count=100)
        while (await first.ask("state"))["limit"] < 45:
            await look_again()
        # Its calls are still running when it goes on.
        box.faults.hold()
        await until(lambda: box.gauge("operator").in_flight >= 45)
        first.send(signal.SIGSTOP)
        await second.ask("workers", count=100)
        while (await second.ask("state"))["limit"] < 45:
            await look_again()
        first.send(signal.SIGCONT)
        while not (await second.ask("state"))["overdrawn"]:
            await look_again()
        box.faults.clear()
        counted = [await first.end(), await second.end()]
        assert [each["failed"] for each in counted] == [[], []]
        assert max(each["overdrawn"] for each in counted) > 0
        # They met, and waited for room.
        busy = sum(each["busy_answers"] for each in counted)
        assert 0 < busy == box.gauge("operator").busy


@pytest.mark.timeout(60)
async def test_permits_of_a_killed_process_come_back_in_time(
    box: Sandbox, store: RedisServer
) -> None:
    """At the first report after lease and quarantine, and at none before."""
    token = box.token("operator")
    terms: dict[str, Any] = {**TERMS, "lease": 0.6}
    gates = RedisGate.factory(store.url, **terms)
    await store.age(token)
    async with watched(store) as rows:
        (worker,) = await start(1, **sharer(box, store, terms=terms, workers=100))
        held = 0
        while held < 50:
            # On a machine that has no time for it, its lease may end in between.
            worker.send(signal.SIGCONT)
            await worker.ask("state")
            worker.send(signal.SIGSTOP)
            held = (await gates.look(Secret(token))).held
        await worker.kill()
        dead = rows[-1].id
        async with SessionManager(box.base_url, gate=gates) as manager:
            call = asyncio.ensure_future(manager.session(token).agents.info())
            await until(lambda: shared(manager, token).quarantined == 50)
            budget = await gates.look(Secret(token))
            assert (budget.held, budget.quarantined) == (0, 50)
            assert sorted(m.dead for m in budget.members) == [False, True]
            await call
            await until(lambda: any(r.id != dead and r.held for r in rows))
    last = [row for row in rows if row.id == dead][-1]
    lasts = 1000 * (terms["lease"] + terms["quarantine"])
    assert (last.held, last.kept - last.seen) == (50, lasts)
    # The store's clock is read by the report itself: no process is late for it.
    others = [row for row in rows if row.id != dead]
    assert [row.held > 0 for row in others] == [row.seen >= last.kept for row in others]
    assert others[0].seen < last.kept


@pytest.mark.timeout(60)
async def test_an_idle_process_leaves_the_budget_to_a_busy_one(
    box: Sandbox, store: RedisServer
) -> None:
    """45 of 50 as soon as it wants them, though others have used theirs just now."""
    await store.age(box.token("operator"))
    async with watched(store) as rows:
        workers = await start(4, **sharer(box, store))
        for worker in workers[1:]:
            await worker.ask("lateness", count=2, pause=0.0)
        idle = {row.id for row in rows}
        await workers[0].ask("workers", count=100)
        while (await workers[0].ask("state"))["limit"] < 45:
            await look_again()
        await until(lambda: any(r.held >= 45 and r.id not in idle for r in rows))
        busy = [row for row in rows if row.id not in idle]
    wants = next(row for row in busy if row.wanted >= 45)
    has = next(row for row in busy if row.held >= 45)
    # Two heartbeats until what they used does not count any more, and what it asks for
    # between them.
    assert has.number - wants.number <= 4
    counted = [await worker.end() for worker in workers]
    assert [each["busy_answers"] for each in counted] == [0] * 4


@pytest.mark.timeout(60)
async def test_small_ones_are_not_behind_the_queue_of_a_large_one(
    box: Sandbox, store: RedisServer
) -> None:
    """Max-min: ten callers each get ten permits, a thousand get what is left."""
    await store.age(box.token("operator"))
    everybody = await start(4, **sharer(box, store))
    for worker, count in zip(everybody, (1000, 10, 10, 10), strict=True):
        await worker.ask("workers", count=count)

    async def states() -> list[dict[str, Any]]:
        return [*await asyncio.gather(*(w.ask("state") for w in everybody))]

    async def settled() -> list[dict[str, Any]]:
        """Return what each says, once all have what they are to have."""
        while True:
            told = await states()
            if [state["limit"] for state in told] == [20, 10, 10, 10]:
                return told
            await look_again()

    async def shares() -> list[float]:
        """Return what the small ones did of a thousand calls, in fifths of it."""
        before, done = await settled(), [0]
        while sum(done) < 1_000:
            after = await states()
            pairs = zip(before, after, strict=True)
            done = [late["done"] - early["done"] for early, late in pairs]
        return [each / (sum(done) / 5) for each in done[1:]]

    # Once more where one of the processes stood still in between.
    found = [await shares()]
    while not all(0.8 <= share <= 1.2 for share in found[-1]):
        assert len(found) < 10, found
        found.append(await shares())
    for worker in everybody:
        assert (await worker.end())["failed"] == []


@pytest.mark.timeout(60)
async def test_cancellations_leave_the_capacity_as_it_was(
    box: Sandbox, store: RedisServer
) -> None:
    """10,000 calls in four processes, each cancelled at a moment of its own."""
    # No lease ends before its time where a process stands still for a while.
    token = box.token("operator")
    terms: dict[str, Any] = {**TERMS, "lease": 10.0}
    await store.age(token)
    workers = await start(4, **sharer(box, store, terms=terms))
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
    assert 40 < box.gauge("operator").peak <= 50


@pytest.mark.timeout(60)
async def test_the_store_is_asked_seldom(box: Sandbox, store: RedisServer) -> None:
    """At most once for twenty permits under a steady load, heartbeats included."""
    gates, token = RedisGate.factory(store.url), box.token("operator")
    await store.age(token)
    async with SessionManager(box.base_url, gate=gates) as manager:
        session = manager.session(token)
        await asyncio.gather(*(session.agents.info() for _ in range(200)))
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
    gates = [RedisGate.factory(store.url, lease=600, heartbeat=200) for _ in range(2)]
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
        rows = await stack.enter_async_context(watched(store))
        await asyncio.gather(*(one.acquire("interactive") for _ in range(50)))
        waiting = asyncio.ensure_future(two.acquire("interactive"))
        # It has asked, and was given nothing.
        await until(lambda: len({row.id for row in rows}) == 2)
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
    # It waits for an answer as long as a heartbeat.
    gates = RedisGate.factory(store.url, lease=600, heartbeat=200)
    gate = gates(Secret(TOKEN), Settings())
    await store.age(TOKEN)
    await gate.acquire("interactive")
    gate.release("interactive", 0.02)
    told = gate.statistics().store_calls
    async with store.paused():
        closing = asyncio.ensure_future(gate.aclose())
        # The last report is under way.
        await until(lambda: gate.statistics().store_calls > told)
        await asyncio.sleep(0)
        assert not closing.done()
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
    async with Redis(port=store.port) as client:
        await until_alone(client)
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize("share", [0, 3])
@pytest.mark.timeout(60)
async def test_a_store_that_is_gone(
    box: Sandbox, store: RedisServer, share: int
) -> None:
    """The lease is kept to its end; then the static share, or a clear refusal."""
    token, terms = box.token("operator"), {**TERMS, "lease": 1.5}
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
        while shared(manager, token).limit < 50:
            await asyncio.gather(*(session.agents.info() for _ in range(100)))
        # One heartbeat may be late: the machine has other work.
        await until(lambda: shared(manager, token).connected)
        state = shared(manager, token)
        assert (state.lost, state.limit) == (False, 50)


@pytest.mark.timeout(60)
async def test_a_store_that_is_not_there_is_said_in_time(box: Sandbox) -> None:
    """Those in line are told too, and nothing was sent."""
    gates = RedisGate.factory("redis://127.0.0.1:9", lease=0.6, heartbeat=0.1)
    async with SessionManager(box.base_url, gate=gates) as manager:
        session = manager.session(box.token("operator"))
        errors = await asyncio.gather(
            *(session.agents.info() for _ in range(20)), return_exceptions=True
        )
        assert [GateLostError] * 20 == [type(error) for error in errors]
    with pytest.raises(GateLostError):
        await gates.look(Secret(TOKEN))
    assert box.gauge("operator").served == 0


@pytest.mark.parametrize("count", [60, pytest.param(1_000, marks=pytest.mark.soak)])
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
            await look_again()
        assert process.returncode == 0
        # Each of fifty permits has one holder, alive or dead, and one may ask.
        assert 0 < most <= 51 < count
        async with SessionManager(
            "http://127.0.0.1:9", gate=RedisGate.factory(store.url, **terms)
        ) as manager:
            await manager.session(TOKEN).gate.acquire("interactive")
            # With one of its heartbeats the last of the dead is gone.
            while await client.hlen(key) > 1:
                await look_again()


async def test_nothing_of_the_token_is_in_the_store(
    box: Sandbox, store: RedisServer
) -> None:
    """Keys have a hash of it, one tag for all, and an end."""
    token = box.token("operator")
    gates = RedisGate.factory(store.url, **TERMS)
    await store.age(token)
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


@pytest.mark.parametrize("together", [True, False])
async def test_several_accounts_share_a_connection(
    box: Sandbox, store: RedisServer, *, together: bool
) -> None:
    """One for questions and one for messages, however many accounts, and when."""
    gates = RedisGate.factory(store.url, **TERMS)
    names = ("operator", "shop_1", "shop_2")
    for name in names:
        await store.age(box.token(name))
    async with Redis(port=store.port) as client:
        async with SessionManager(box.base_url, gate=gates) as manager:
            calls: list[Callable[[], Awaitable[object]]] = [
                manager.session(box.token(name)).agents.info for name in names
            ]
            if together:
                await asyncio.gather(*(call() for call in calls))
            else:
                for call in calls:
                    await call()
            # Ours, and the one that asks; one that is lost is made anew.
            while (
                len(await client.client_list()),
                len(await client.pubsub_channels()),
            ) != (3, 3):
                await look_again()
        await until_alone(client)
