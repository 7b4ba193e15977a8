"""
One budget of 50 over 1, 2 and 4 processes, beside one process with a gate of its own.

``python -m benchmarks.shared`` starts a Redis server and the load server, lets clients
call for a few seconds in alternating blocks, and prints the table that
benchmarks/README.md shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import statistics
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from aio_agentapi import LocalGate, SessionManager, Settings
from aio_agentapi.redis import RedisGate
from benchmarks.server import TOKEN, serving

LATENCY = 0.02
SECONDS = 3.0
BLOCKS = 3
STARTS = 20
WORKERS = 200


async def client(base_url: str, url: str, workers: int) -> None:
    """Call when told so on standard input, until the time is over; print a count."""
    gate = RedisGate.factory(url) if url else None
    loop = asyncio.get_running_loop()
    async with SessionManager(base_url, gate=gate) as manager:
        session = manager.session(TOKEN)
        await session.agents.info()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            end = loop.time() + float(line)
            took: list[float] = []

            async def work(end: float, took: list[float]) -> None:
                while loop.time() < end:
                    began = loop.time()
                    await session.agents.info()
                    took.append(loop.time() - began)

            cpu = time.process_time()
            await asyncio.gather(*(work(end, took) for _ in range(workers)))
            state = session.gate.statistics()
            told = {
                "calls": len(took),
                "cpu": time.process_time() - cpu,
                "busy": state.busy_answers,
                "asked": getattr(state, "store_calls", 0),
                "limit": state.limit,
                "first": took[0],
            }
            print(json.dumps(told), flush=True)


class Clients:
    """Processes that call together."""

    def __init__(self, base_url: str, url: str, count: int) -> None:
        self.args = (base_url, url, str(WORKERS))
        self.count = count
        self.processes: list[asyncio.subprocess.Process] = []

    async def run(self) -> list[dict[str, Any]]:
        """Let all of them call at once, and return what each has counted."""
        self.processes = [
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "benchmarks.shared", "client", *self.args),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            for _ in range(self.count)
        ]
        # Their first call is over, and their permits are given back.
        await asyncio.sleep(3.5)
        told: list[dict[str, Any]] = []
        for process in self.processes:
            assert process.stdin is not None  # noqa: S101 - a pipe, as asked for
            process.stdin.write(f"{SECONDS}\n".encode())
        for process in self.processes:
            assert process.stdout is not None  # noqa: S101 - as above
            told.append(json.loads(await process.stdout.readline()))
            await process.communicate()
        return told


@asynccontextmanager
async def store() -> AsyncGenerator[str]:
    """Run a store of our own."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        sys.exit("redis-server is missing: apt-get install redis-server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    process = await asyncio.create_subprocess_exec(
        *(program, "--port", port, "--bind", "127.0.0.1", "--save", ""),
        stdout=asyncio.subprocess.DEVNULL,
    )
    # A store gives nothing before it has been up for a lease.
    await asyncio.sleep(6)
    try:
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


def middle(values: list[float]) -> str:
    """Return a median as text."""
    return f"{statistics.median(values):.1f}"


def permit() -> tuple[float, float]:
    """Return what a permit that is free takes, leased and local, in microseconds."""
    count = 100_000

    async def spend(gate: LocalGate) -> float:
        began = time.perf_counter()
        for _ in range(count):
            await gate.acquire("interactive")
            gate.release("interactive", 0.02)
        return (time.perf_counter() - began) / count * 1e6

    async def both() -> tuple[float, float]:
        leased = RedisGate(limit=0, settings=Settings())
        leased.answered(leased.report(wanted=50), (50, 1, 0, 0, 0))
        leased._ends = float("inf")  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - no store here
        return await spend(leased), await spend(LocalGate(limit=50))

    return asyncio.run(both())


async def late(base_url: str, url: str) -> list[float]:
    """Return what an idle process waits for a permit beside one that is always busy."""
    busy = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.shared", "client", base_url, url, "200"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert busy.stdin is not None  # noqa: S101 - a pipe, as asked for
    waits: list[float] = []
    async with SessionManager(base_url, gate=RedisGate.factory(url)) as manager:
        gate = manager.session(TOKEN).gate
        await gate.acquire("interactive")
        gate.release("interactive")
        busy.stdin.write(f"{2.6 * (STARTS + 1)}\n".encode())
        for _ in range(STARTS):
            # Long enough to have given back what it had.
            await asyncio.sleep(2.5)
            began = time.perf_counter()
            await gate.acquire("interactive")
            waits.append((time.perf_counter() - began) * 1e3)
            gate.release("interactive")
    await busy.communicate()
    return waits


async def takes(base_url: str, url: str) -> list[float]:
    """Return how long a busy process takes to 45, beside three that were busy."""
    took: list[float] = []
    for _ in range(BLOCKS):
        async with contextlib.AsyncExitStack() as stack:
            sessions = [
                (
                    await stack.enter_async_context(
                        SessionManager(base_url, gate=RedisGate.factory(url))
                    )
                ).session(TOKEN)
                for _ in range(4)
            ]
            for session in sessions[1:]:
                await session.agents.info()
            began = time.perf_counter()
            calls = [
                asyncio.ensure_future(sessions[0].agents.info()) for _ in range(2000)
            ]
            while sessions[0].gate.statistics().limit < 45:
                await asyncio.sleep(0.001)
            took.append((time.perf_counter() - began) * 1e3)
            await asyncio.gather(*calls)
    return took


async def main() -> None:
    """Print the table."""
    async with serving(LATENCY, 0.01) as base_url, store() as url:
        rates: dict[int, list[float]] = {}
        alone: list[float] = []
        asked: list[float] = []
        busy = 0
        for _ in range(BLOCKS):
            told = await Clients(base_url, "", 1).run()
            alone.append(told[0]["calls"] / SECONDS)
            for count in (1, 2, 4):
                told = await Clients(base_url, url, count).run()
                calls = sum(each["calls"] for each in told)
                rates.setdefault(count, []).append(calls / SECONDS / alone[-1])
                asked.append(sum(each["asked"] for each in told) / calls)
                busy += sum(each["busy"] for each in told)
        waits = await late(base_url, url)
        took = await takes(base_url, url)
    print(f"one process, its own gate: {statistics.median(alone):,.0f} calls/s\n")
    print("| processes | calls/s, shared / one process with its own gate |")
    print("| --- | --- |")
    for count, ratios in rates.items():
        low, high = min(ratios), max(ratios)
        print(
            f"| {count} | {statistics.median(ratios):.2f} ({low:.2f} to {high:.2f}) |"
        )
    print(f"\nan idle process waits, beside a busy one: {middle(waits)} ms,", end=" ")
    print(f"the longest of {STARTS} {max(waits):.1f} ms")
    print(f"to 45 permits, beside three that were busy: {middle(took)} ms")
    print(f"1018: {busy}; calls for one question to the store: {1 / max(asked):.0f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["client"]:
        asyncio.run(client(sys.argv[2], sys.argv[3], int(sys.argv[4])))
    else:
        asyncio.run(main())
        pairs = [permit() for _ in range(BLOCKS)]
        more = [shared - local for shared, local in pairs]
        print(f"a permit, leased over local: {statistics.median(more):+.2f} us")
