"""
The gate beside what people write instead, on the loads that it is made for.

``python -m benchmarks.gate`` prints the tables that benchmarks/README.md shows, in some
minutes; ``python -m benchmarks.gate abandoned`` and so on prints one of them.
"""

from __future__ import annotations

import asyncio
import gc
import random
import statistics
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import aiohttp
import anyio
import attrs
import msgspec

from aio_agentapi import LocalGate, Session, SessionManager, Settings
from aio_agentapi._types import Lane
from aio_agentapi.errors import OutcomeUnknownError
from aio_agentapi.sandbox import Fault, SandboxProcess, Switches
from benchmarks.server import TOKEN, serving

LIMIT = 50
NAME = "operator"
BUSY = 1018
SEEDS = (1, 2, 3, 4)

Call = Callable[[], Awaitable[object]]

# When the permit of this task's call was there.
permitted: ContextVar[float] = ContextVar("permitted")


class TimedGate(LocalGate):
    """A gate that tells each call when it had its permit."""

    async def acquire(
        self, lane: Lane, until: float | None = None, *, again: bool = False
    ) -> None:
        """Wait as the gate does."""
        await super().acquire(lane, until, again=again)
        permitted.set(asyncio.get_running_loop().time())


def timed(base_url: str, **settings: Any) -> SessionManager:
    """Make a manager whose gates are timed."""
    return SessionManager(
        base_url,
        settings=Settings(**settings),
        gate=lambda _, chosen: TimedGate.of(chosen),
    )


@asynccontextmanager
async def ours(box: SandboxProcess, **settings: Any) -> AsyncGenerator[Session]:
    """Open a session of this library."""
    async with timed(box.base_url, **settings) as manager:
        yield manager.session(box.tokens[NAME])


@asynccontextmanager
async def plain(box: SandboxProcess) -> AsyncGenerator[Callable[[], Awaitable[int]]]:
    """Give a call of aiohttp by hand, that returns the code in the answer."""
    headers = {
        "Authorization": f"Bearer {box.tokens[NAME]}",
        "Accept": "application/json",
        "Content-Type": "application/json",
    }
    url = f"{box.base_url}/v4/agent/info"
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as http:

        async def call() -> int:
            async with http.post(url, data=b"{}") as response:
                return int(msgspec.json.decode(await response.read())["code"])

        yield call


def table(*heads: str) -> None:
    """Begin a table."""
    print(f"\n| {' | '.join(heads)} |\n|{' --- |' * len(heads)}", flush=True)


def row(*cells: object) -> None:
    """Print a line of it."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def p(values: list[float], percent: int) -> str:
    """Return a percentile in milliseconds."""
    return f"{statistics.quantiles(values, n=100)[percent - 1] * 1000:.1f} ms"


# Callers that leave


@asynccontextmanager
async def slow_at_times() -> AsyncGenerator[SandboxProcess]:
    """Start a service of which every twentieth call takes thirty times as long."""
    async with SandboxProcess(Switches(latency=0.02)) as box:
        await box.fault(Fault("delay", share=0.05, seconds=0.58))
        yield box


async def abandoned() -> None:
    """Time out at five times the median, and see what the service counts."""
    calls, timeout = 4_000, 0.1
    table("4,000 calls", "1018", "timed out", "late answers read", "peak", "lateness")
    async with slow_at_times() as box, plain(box) as send:
        gate = asyncio.Semaphore(LIMIT)
        ends: Counter[str] = Counter()

        async def call_plain() -> None:
            async with gate:
                try:
                    async with asyncio.timeout(timeout):
                        ends["busy" if await send() == BUSY else "ok"] += 1
                except TimeoutError:
                    ends["late"] += 1

        await asyncio.gather(*(call_plain() for _ in range(calls)))
        peak = (await box.gauge(NAME)).peak
        row("asyncio.Semaphore", ends["busy"], ends["late"], 0, peak, "")
    async with (
        slow_at_times() as box,
        ours(box, timeout=timeout, attempts=1) as session,
    ):
        loop = asyncio.get_running_loop()
        late: list[float] = []

        async def call() -> None:
            try:
                await session.agents.info()
            except OutcomeUnknownError:
                late.append(loop.time() - permitted.get() - timeout)

        await asyncio.gather(*(call() for _ in range(calls)))
        await session.gate.idle(loop.time() + 60)
        state = session.gate.statistics()
        gauge = await box.gauge(NAME)
        read = f"{state.late_answers} ({state.late_answers / len(late):.1%})"
        lateness = f"median {p(late, 50)}, p99 {p(late, 99)}"
        row("this library", gauge.busy, len(late), read, gauge.peak, lateness)


# Others who use the token


@attrs.define
class Result:
    """What a load came to."""

    busy: int
    failed: int
    wall: float


async def load(
    box: SandboxProcess, call: Call, calls: int, held: tuple[int, ...]
) -> Result:
    """Call so often, while others hold one number of permits after the other."""
    done = failed = 0
    phase = 0

    async def one() -> None:
        nonlocal done, failed, phase
        try:
            await call()
        except Exception:  # noqa: BLE001 - counted
            failed += 1
        done += 1
        if done * len(held) > (phase + 1) * calls and phase + 1 < len(held):
            phase += 1
            await box.foreign(NAME, held[phase])

    await box.foreign(NAME, held[0])
    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(calls)))
    wall = time.perf_counter() - began
    return Result((await box.gauge(NAME)).busy, failed, wall)


async def three_ways(
    switches: Switches, seed: int, calls: int, held: tuple[int, ...]
) -> dict[str, Result]:
    """Put one load on three clients, one after the other."""
    found: dict[str, Result] = {}
    async with SandboxProcess(switches, seed=seed) as box, plain(box) as send:
        gate = asyncio.Semaphore(LIMIT)

        async def at_once() -> None:
            async with gate:
                while await send() == BUSY:
                    pass

        found["again at once"] = await load(box, at_once, calls, held)
    async with SandboxProcess(switches, seed=seed) as box, plain(box) as send:
        gate = asyncio.Semaphore(LIMIT)

        async def back_off() -> None:
            async with gate:
                for pause in (0.5, 1.0, None):
                    if await send() != BUSY:
                        return
                    if pause is None:
                        raise ConnectionError
                    await asyncio.sleep(pause)

        found["back-off of 0.5 s, doubled, given up after two"] = await load(
            box, back_off, calls, held
        )
    async with SandboxProcess(switches, seed=seed) as box, ours(box) as session:
        found["this library"] = await load(box, session.agents.info, calls, held)
    return found


async def foreign() -> None:
    """Let others use 5, then 20, then 30 of the 50."""
    calls = 2_000
    table("seed", "client", "failed", "1018", "1018 per call", "wall", "over at once")
    for seed in SEEDS:
        switches = Switches(latency=0.05, jitter=0.02)
        found = await three_ways(switches, seed, calls, (5, 20, 30))
        least = found["again at once"].wall
        for name, result in found.items():
            each = f"{result.busy / calls:.3f}"
            times = f"{result.wall / least:.2f}"
            wall = f"{result.wall:.2f} s"
            row(seed, name, result.failed, result.busy, each, wall, times)


async def lag() -> None:
    """Let the service free a permit some milliseconds after its answer."""
    calls = 2_000
    table("lag", "client", "failed", "1018", "1018 per call", "wall", "over at once")
    for milliseconds in (2, 5, 10):
        switches = Switches(latency=0.05, jitter=0.02, release_lag=milliseconds / 1000)
        found = await three_ways(switches, 1, calls, (0,))
        least = found["again at once"].wall
        for name, result in found.items():
            each = f"{result.busy / calls:.3f}"
            times = f"{result.wall / least:.2f}"
            wall = f"{result.wall:.2f} s"
            row(
                f"{milliseconds} ms",
                name,
                result.failed,
                result.busy,
                each,
                wall,
                times,
            )


async def recovery() -> None:
    """Tell how long the share takes to be whole again, and a refused quick call."""
    table("others had, for 3 s", "share then", "whole again after", "1018 meanwhile")
    for held in (30, 45):
        async with (
            SandboxProcess(Switches(latency=0.05, jitter=0.02)) as box,
            ours(box) as session,
        ):
            loop = asyncio.get_running_loop()

            end = asyncio.Event()

            async def work(session: Session, end: asyncio.Event) -> None:
                while not end.is_set():
                    await session.agents.info()

            tasks = [loop.create_task(work(session, end)) for _ in range(200)]
            await box.foreign(NAME, held)
            await asyncio.sleep(3)
            share = session.gate.statistics().share
            await box.foreign(NAME, 0)
            began = loop.time()
            before = session.gate.statistics().busy_answers
            while session.gate.statistics().share < LIMIT and loop.time() < began + 30:
                await asyncio.sleep(0.01)
            took = loop.time() - began
            busy = session.gate.statistics().busy_answers - before
            row(held, share, f"{took:.2f} s", busy)
            end.set()
            await asyncio.gather(*tasks)
    table("one slow call of ours runs, the others' use ends", "")
    async with SandboxProcess() as box, ours(box) as session:
        loop = asyncio.get_running_loop()
        await session.agents.info()
        await box.foreign(NAME, LIMIT - 1)
        await box.fault(Fault("delay", path="agent/info", times=1, seconds=5.0))
        slow = loop.create_task(session.agents.info())
        while (await box.gauge(NAME)).in_flight < 1:
            await asyncio.sleep(0.01)
        quick = loop.create_task(session.users.create("anna"))
        while session.gate.statistics().busy_answers < 1:
            await asyncio.sleep(0.001)
        await box.foreign(NAME, 0)
        began = loop.time()
        await quick
        row("a refused quick one has its answer after", f"{loop.time() - began:.2f} s")
        await slow


# Lanes


async def starvation() -> None:
    """Queue 10,000 batch calls, and see what an interactive one waits for."""
    heads = ("others", "a call takes", "waits for a permit, median", "p99")
    table("10,000 batch calls queued", *heads)
    for jitter in (0.0, 0.01):
        await beside_a_queue(jitter)
    table("500 interactive callers without a pause, 4,000 batch calls", "")
    async with SandboxProcess(Switches(latency=0.02)) as box, ours(box) as session:
        loop = asyncio.get_running_loop()
        batch = session.with_options(lane="batch")
        done: Counter[str] = Counter()

        async def call(view: Session, lane: str) -> None:
            await view.agents.info()
            done[lane] += 1

        async def busy() -> None:
            while done["batch"] < 3_000:
                await call(session, "interactive")

        others = [loop.create_task(busy()) for _ in range(500)]
        queued = [loop.create_task(call(batch, "batch")) for _ in range(4_000)]
        while done["batch"] < 500:
            await asyncio.sleep(0.01)
        # While both ask, and neither is about to end.
        before = done.copy()
        while done["batch"] < 2_500:
            await asyncio.sleep(0.01)
        between = done - before
        await asyncio.gather(*queued, *others)
        share = between["batch"] / between.total()
        row("batch's part of all calls while both ask", f"{share:.1%}")
        row("its floor", f"{Settings().batch_floor / LIMIT:.1%}")


async def beside_a_queue(jitter: float) -> None:
    """Call now and then while a batch is queued, and print what each waits for."""
    dice = random.Random(1)
    async with serving(0.02, jitter) as base_url, timed(base_url) as manager:
        session = manager.session(TOKEN)
        loop = asyncio.get_running_loop()
        batch = session.with_options(lane="batch")
        queued = [loop.create_task(batch.agents.info()) for _ in range(10_000)]
        waits: list[float] = []
        took: list[float] = []
        while not session.gate.statistics().waiting:
            await asyncio.sleep(0)

        async def visit() -> None:
            while session.gate.statistics().waiting_by_lane["batch"] > LIMIT:
                began = loop.time()
                await session.agents.info()
                waits.append(permitted.get() - began)
                took.append(loop.time() - permitted.get())
                await asyncio.sleep(dice.random() * 0.05)

        await asyncio.gather(*(visit() for _ in range(5)), *queued)
        service = f"20 ms ± {jitter * 1000:.0f}"
        row(service, len(waits), p(took, 50), p(waits, 50), p(waits, 99))


# Many who wait


@attrs.frozen
class Kind:
    """A way to wait for a permit."""

    name: str
    make: Callable[[], Any]
    acquire: Callable[[Any], Awaitable[object]]
    release: Callable[[Any], object]


KINDS = (
    Kind(
        "LocalGate",
        lambda: LocalGate(limit=LIMIT),
        lambda gate: gate.acquire("interactive"),
        lambda gate: gate.release("interactive", 0.02),
    ),
    Kind(
        "asyncio.Semaphore",
        lambda: asyncio.Semaphore(LIMIT),
        lambda gate: gate.acquire(),
        lambda gate: gate.release(),
    ),
    Kind(
        "anyio.CapacityLimiter",
        lambda: anyio.CapacityLimiter(LIMIT),
        lambda gate: gate.acquire(),
        lambda gate: gate.release(),
    ),
)


async def scale() -> None:
    """Let a hundred thousand wait; cancel them, in either order; or serve them."""
    count = 100_000
    table(
        "100,000 waiting", "bytes each", "cancel, oldest first", "newest first", "drain"
    )
    for kind in KINDS:
        await scale_of(kind, count)
    async with serving(1.0) as base_url, SessionManager(base_url) as manager:
        session = manager.session(TOKEN)
        loop = asyncio.get_running_loop()
        first = [loop.create_task(session.agents.info()) for _ in range(LIMIT)]
        await asyncio.sleep(0.5)
        size = await measured(
            [session.agents.info for _ in range(count)],
        )
        row("whole calls, agents.info()", f"{size:.0f}", "", "", "")
        await asyncio.gather(*first)


async def measured(calls: list[Callable[[], Coroutine[Any, Any, object]]]) -> float:
    """Start calls that wait, and cancel them; return the bytes of each."""
    loop = asyncio.get_running_loop()
    gc.collect()
    tracemalloc.start()
    tasks = [loop.create_task(call()) for call in calls]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    size = tracemalloc.get_traced_memory()[0] / len(tasks)
    tracemalloc.stop()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return size


async def scale_of(kind: Kind, count: int) -> None:
    """Measure one of them."""
    loop = asyncio.get_running_loop()
    cells: list[str] = []

    async def hold(gate: Any) -> None:
        await kind.acquire(gate)
        kind.release(gate)

    async def full() -> Any:
        gate = kind.make()

        async def take() -> None:
            await kind.acquire(gate)

        # Each permit by a task of its own, as the limiter of anyio wants it.
        holders = [loop.create_task(take()) for _ in range(LIMIT)]
        await asyncio.gather(*holders)
        return gate

    gate = await full()
    size = await measured([lambda: hold(gate) for _ in range(count)])
    cells.append(f"{size:.0f}")
    for newest in (False, True):
        gate = await full()
        tasks = [loop.create_task(hold(gate)) for _ in range(count)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        began = time.perf_counter()
        for task in reversed(tasks) if newest else tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        took = (time.perf_counter() - began) / count
        cells.append(f"{took * 1e6:.1f} us each")
    gate = kind.make()
    began = time.perf_counter()
    await asyncio.gather(*(hold(gate) for _ in range(count)))
    cells.append(f"{(time.perf_counter() - began) / count * 1e6:.1f} us each")
    row(kind.name, *cells)


async def parts() -> None:
    """Print what a permit costs: free, with others in line, and left by a cancel."""
    table("microseconds", "free", "10,000 waiting", "cancel, oldest first", "newest")
    for kind in KINDS:
        if kind.name in {"LocalGate", "asyncio.Semaphore"}:
            row(kind.name, *[f"{cost:.2f}" for cost in await costs(kind, 10_000)])


async def costs(kind: Kind, count: int) -> list[float]:
    """Return medians, each less what the same tasks take without a gate."""
    found: list[list[float]] = [[], [], [], []]
    # The collector's part depends on what else a program holds.
    gc.collect()
    gc.disable()
    for _ in range(9):
        gate = kind.make()
        began = time.process_time()
        for _ in range(100_000):
            await kind.acquire(gate)
            kind.release(gate)
        found[0].append((time.process_time() - began) / 100_000 * 1e6)
        began = time.process_time()
        await asyncio.gather(*(past() for _ in range(count)))
        between = time.process_time()
        await asyncio.gather(*(through(kind, gate) for _ in range(count)))
        took = time.process_time() - between - (between - began)
        found[1].append(took / count * 1e6)
        for place, newest in ((2, False), (3, True)):
            found[place].append(await left(kind, count, newest=newest))
    gc.enable()
    return [statistics.median(values) for values in found]


async def past() -> None:
    """Go where there is no gate."""


async def through(kind: Kind, gate: Any) -> None:
    """Go through a gate."""
    await kind.acquire(gate)
    kind.release(gate)


async def left(kind: Kind, count: int, *, newest: bool) -> float:
    """Return the microseconds of a cancel in a line, less those of a plain one."""
    loop = asyncio.get_running_loop()

    async def held(future: asyncio.Future[None]) -> None:
        await future

    async def cancel(calls: list[Coroutine[Any, Any, None]]) -> float:
        tasks = [loop.create_task(call) for call in calls]
        await asyncio.sleep(0)
        began = time.process_time()
        for task in reversed(tasks) if newest else tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return (time.process_time() - began) / count * 1e6

    gate = kind.make()
    for _ in range(LIMIT):
        await kind.acquire(gate)
    alone = await cancel([held(loop.create_future()) for _ in range(count)])
    return await cancel([through(kind, gate) for _ in range(count)]) - alone


ALL = (parts, abandoned, foreign, lag, recovery, starvation, scale)


async def main() -> None:
    """Print what is asked for, or all."""
    names = sys.argv[1:] or [part.__name__ for part in ALL]
    for part in ALL:
        if part.__name__ in names:
            await part()


if __name__ == "__main__":
    asyncio.run(main())
