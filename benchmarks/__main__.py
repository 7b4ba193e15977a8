"""
A typed call beside bare aiohttp, and the calls/s that 50 permits give.

``python -m benchmarks`` prints the table that benchmarks/README.md shows. Single runs
differ by some per cent, so the clients run in alternating blocks and ratios are taken
block by block; what is printed is their median, with the range in brackets.
"""

from __future__ import annotations

import asyncio
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version

import aiohttp
import attrs
import msgspec

from aio_agentapi import LocalGate, SessionManager
from aio_agentapi.sandbox import SandboxProcess
from benchmarks.server import TOKEN, serving

LIMIT = 50

BLOCKS = 9
CALLS = 6_000

Call = Callable[[], Awaitable[object]]


@attrs.frozen
class Block:
    """What one block of calls took."""

    wall: float
    cpu: float
    calls: int
    p99: float


async def run(call: Call, calls: int) -> Block:
    """Call so many times, in as many tasks as there are permits and some more."""
    left = iter(range(calls))
    times: list[float] = []

    async def work() -> None:
        for _ in left:
            began = time.perf_counter()
            await call()
            times.append(time.perf_counter() - began)

    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(work() for _ in range(LIMIT)))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Block(wall, cpu, calls, statistics.quantiles(times, n=100)[-1])


@asynccontextmanager
async def bare(base_url: str) -> AsyncGenerator[Call]:
    """Aiohttp by hand: a pool of 50, a semaphore, the body decoded by msgspec."""
    gate = asyncio.Semaphore(LIMIT)
    headers = {
        "Authorization": f"Bearer {TOKEN}",
        "Accept": "application/json",
        "Content-Type": "application/json",
    }
    url = f"{base_url}/v4/agent/info"
    connector = aiohttp.TCPConnector(limit=LIMIT)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as http:

        async def call() -> object:
            async with gate, http.post(url, data=b"{}") as response:
                return msgspec.json.decode(await response.read())

        yield call


@asynccontextmanager
async def typed(base_url: str) -> AsyncGenerator[Call]:
    """Use this library: gate, exact decimals, records, errors that say enough."""
    async with SessionManager(base_url) as manager:
        yield manager.session(TOKEN).agents.info


async def compare(latency: float, calls: int) -> None:
    """Print what a typed call costs beside a bare one, block by block."""
    async with (
        serving(latency) as base_url,
        bare(base_url) as ours_not,
        typed(base_url) as ours,
    ):
        for call in (ours_not, ours):
            await run(call, 500)
        pairs: list[tuple[Block, Block]] = []
        for number in range(BLOCKS):
            # Each goes first as often as the other.
            if number % 2:
                first = await run(ours, calls)
                pairs.append((await run(ours_not, calls), first))
            else:
                first = await run(ours_not, calls)
                pairs.append((first, await run(ours, calls)))
    label = f"{latency * 1000:.0f} ms service time"
    row(
        f"CPU of a call, typed / bare, {label}",
        [b.cpu / a.cpu for a, b in pairs],
        f"{us(pairs, 1)} and {us(pairs, 0)} us",
    )
    row(f"calls/s, typed / bare, {label}", [a.wall / b.wall for a, b in pairs])
    row(f"p99 of a call, typed / bare, {label}", [b.p99 / a.p99 for a, b in pairs])
    if latency:
        bound = LIMIT / latency
        for name, side in (("typed", 1), ("bare", 0)):
            shares = [pair[side].calls / pair[side].wall / bound for pair in pairs]
            row(f"calls/s, {name} / Little's bound of {bound:,.0f}, {label}", shares)


def us(pairs: list[tuple[Block, Block]], side: int) -> str:
    """Return the median CPU microseconds of a call."""
    each = [pair[side].cpu / pair[side].calls * 1e6 for pair in pairs]
    return f"{statistics.median(each):.0f}"


def row(name: str, values: list[float], note: str = "") -> None:
    """Print a median and its range."""
    middle, low, high = statistics.median(values), min(values), max(values)
    print(f"| {name} | {middle:.2f} ({low:.2f} to {high:.2f}) | {note} |")


async def gate() -> None:
    """Print what a permit costs when nobody else wants one."""
    count = 100_000
    ours, plain = LocalGate(limit=LIMIT), asyncio.Semaphore(LIMIT)
    ratios: list[float] = []
    took: list[float] = []
    for _ in range(BLOCKS):
        began = time.perf_counter()
        for _ in range(count):
            await ours.acquire("interactive")
            ours.release("interactive", 0.02)
        middle = time.perf_counter()
        for _ in range(count):
            await plain.acquire()
            plain.release()
        end = time.perf_counter()
        ratios.append((middle - began) / (end - middle))
        took.append((middle - began) / count * 1e6)
    note = f"{statistics.median(took):.2f} us"
    row("a permit that is free, gate / asyncio.Semaphore", ratios, note)


async def start() -> None:
    """Print how long the stand-in takes to start, beside Python itself."""
    ratios: list[float] = []
    took: list[float] = []
    for _ in range(5):
        began = time.perf_counter()
        async with SandboxProcess():
            middle = time.perf_counter()
        bare_start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import aiohttp.web"], check=True)  # noqa: ASYNC221 - timed alone
        ratios.append((middle - began) / (time.perf_counter() - bare_start))
        took.append(middle - began)
    note = f"{statistics.median(took):.2f} s"
    row("start of the stand-in / start of Python with aiohttp", ratios, note)


async def main() -> None:
    """Print the whole table."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    names = ("aiohttp", "attrs", "cattrs", "msgspec")
    print(f"Python {platform.python_version()}, {os.cpu_count()} processors, asyncio;")
    print(", ".join(f"{name} {version(name)}" for name in names))
    print("\n| what | median (range) | |\n| --- | --- | --- |")
    await compare(0.0, CALLS)
    await compare(0.02, CALLS)
    await gate()
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    await start()


if __name__ == "__main__":
    asyncio.run(main())
