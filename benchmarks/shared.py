"""
One budget of 50 over 1, 2 and 4 processes, beside one process with a gate of its own.

``python -m benchmarks.shared`` starts a Redis server, the load server and five clients,
lets them call in alternating blocks, and prints the tables that benchmarks/README.md
shows, in some minutes.
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
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import attrs

from aio_agentapi import LocalGate, SessionManager, Settings
from aio_agentapi.redis import RedisGate, RedisGates
from benchmarks.server import TOKEN, serving

LATENCY, JITTER = 0.02, 0.01
BLOCKS = 5
SECONDS = 4.0
WORKERS = 200
# Long enough to have given back what was held: two heartbeats and some.
REST = 2.5
# Gates that start beside a busy one, and how often each.
IDLE, STARTS = 8, 15
MINUTES = 10


async def client(base_url: str, url: str) -> None:
    """Call for as long as each line of standard input says; print what was counted."""
    loop = asyncio.get_running_loop()
    gate = RedisGate.factory(url) if url else None
    async with SessionManager(base_url, gate=gate) as manager:
        session = manager.session(TOKEN)
        await session.agents.info()
        print("ready", flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            before: Any = session.gate.statistics()
            began, end = loop.time(), loop.time() + float(line)
            reached: list[float] = []

            async def work(end: float) -> int:
                calls = 0
                while loop.time() < end:
                    await session.agents.info()
                    calls += 1
                return calls

            async def watch(began: float, end: float, reached: list[float]) -> None:
                while loop.time() < end and not reached:
                    if session.gate.statistics().limit >= 45:
                        reached.append(loop.time() - began)
                    await asyncio.sleep(0.005)

            counts, _ = await asyncio.gather(
                asyncio.gather(*(work(end) for _ in range(WORKERS))),
                watch(began, end, reached),
            )
            after: Any = session.gate.statistics()
            told = {
                "calls": sum(counts),
                "busy": after.busy_answers - before.busy_answers,
                "asked": after.store_calls - before.store_calls if url else 0,
                "reached": reached,
            }
            print(json.dumps(told), flush=True)


@attrs.define
class Client:
    """A process that calls when it is told to."""

    process: asyncio.subprocess.Process

    @classmethod
    async def start(cls, base_url: str, url: str) -> Client:
        """Start it; it has had one answer."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.shared", "client", base_url, url),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        started = cls(process)
        if await started._read() != b"ready\n":
            sys.exit("a client did not start")
        return started

    def go(self, seconds: float) -> None:
        """Let it call."""
        assert self.process.stdin is not None  # noqa: S101 - a pipe, as asked for
        self.process.stdin.write(f"{seconds}\n".encode())

    async def told(self) -> dict[str, Any]:
        """Return what it has counted."""
        counted: dict[str, Any] = json.loads(await self._read())
        return counted

    async def end(self) -> None:
        """Let it come to its end."""
        assert self.process.stdin is not None  # noqa: S101 - as above
        # What communicate() leaves open in Python 3.11.
        self.process.stdin.close()
        await self.process.wait()

    async def _read(self) -> bytes:
        assert self.process.stdout is not None  # noqa: S101 - as above
        return await self.process.stdout.readline()


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
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        # A store gives nothing before it has been up for a lease.
        await asyncio.sleep(6)
        yield f"redis://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def together(clients: list[Client]) -> list[dict[str, Any]]:
    """Let clients call at once, and return what each has counted."""
    await asyncio.sleep(REST)
    for each in clients:
        each.go(SECONDS)
    return [await each.told() for each in clients]


async def rates(base_url: str, url: str) -> None:
    """Print calls/s of 1, 2 and 4 processes beside one with a gate of its own."""
    own = await Client.start(base_url, "")
    sharers = [await Client.start(base_url, url) for _ in range(4)]
    alone: list[float] = []
    ratios: dict[int, list[float]] = {1: [], 2: [], 4: []}
    asked: dict[int, list[float]] = {1: [], 2: [], 4: []}
    reached: list[float] = []
    busy = 0
    for _ in range(BLOCKS):
        (told,) = await together([own])
        alone.append(told["calls"] / SECONDS)
        for count, values in ratios.items():
            counted = await together(sharers[:count])
            calls = sum(each["calls"] for each in counted)
            values.append(calls / SECONDS / alone[-1])
            asked[count].append(calls / sum(each["asked"] for each in counted))
            busy += sum(each["busy"] for each in counted)
            if count == 1:
                reached += counted[0]["reached"] or [float("inf")]
    for each in (own, *sharers):
        await each.end()
    print(f"One process with its own gate: {statistics.median(alone):,.0f} calls/s.\n")
    print("| processes | calls/s over that | calls for a question to the store |")
    print("| --- | --- | --- |")
    for count, values in ratios.items():
        print(f"| {count} | {middle(values, 2)} | {middle(asked[count], 0)} |")
    times = [value * 1e3 for value in reached]
    print(f"\n1018: {busy}. To 45 permits beside three idle ones: {middle(times)} ms.")


async def starts(base_url: str, url: str) -> None:
    """Print what an idle gate waits for its first permit beside a busy process."""
    busy = await Client.start(base_url, url)
    waits: list[float] = []

    async def begin(number: int, gate: Any) -> None:
        await asyncio.sleep(REST * number / IDLE)
        for _ in range(STARTS):
            await asyncio.sleep(REST)
            began = time.perf_counter()
            await gate.acquire("interactive")
            waits.append((time.perf_counter() - began) * 1e3)
            gate.release("interactive", LATENCY)

    async with AsyncExitStack() as stack:
        gates: list[Any] = []
        for _ in range(IDLE):
            manager = SessionManager(base_url, gate=RedisGate.factory(url))
            await stack.enter_async_context(manager)
            gates.append(manager.session(TOKEN).gate)
        for gate in gates:
            await gate.acquire("interactive")
            gate.release("interactive", LATENCY)
        busy.go(REST * (STARTS + 2))
        await asyncio.gather(
            *(begin(number, gate) for number, gate in enumerate(gates))
        )
        await busy.told()
    await busy.end()
    high = statistics.quantiles(waits, n=100)[-1]
    print(
        f"First permit of an idle one beside a busy one, {len(waits)} times:"
        f" {statistics.median(waits):.1f} ms, p99 {high:.1f} ms."
    )


async def permits(url: str) -> None:
    """Print what leasing adds to a permit: each time, and by the questions asked."""
    count = 100_000

    async def spend(gate: LocalGate) -> float:
        began = time.process_time()
        for _ in range(count):
            await gate.acquire("interactive")
            gate.release("interactive", 0.02)
        return (time.process_time() - began) / count * 1e6

    more: list[float] = []
    for _ in range(BLOCKS):
        leased = RedisGate(limit=0, settings=Settings())
        leased.answered(leased.report(wanted=50), (50, 1, 0, 0, 0))
        leased._ends = float("inf")  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - no store here
        more.append(await spend(leased) - await spend(LocalGate(limit=50)))

    gates: RedisGates = RedisGate.factory(url)
    async with SessionManager("http://127.0.0.1:9", gate=gates) as manager:
        gate: Any = manager.session(TOKEN).gate
        await gate.acquire("interactive")
        gate.release("interactive")
        began = time.process_time()
        for _ in range(2_000):
            report = gate.report()
            gate.answered(report, await gates.carry(gate, report))
        question = (time.process_time() - began) / 2_000 * 1e6
    print(
        f"CPU that leasing adds to a permit: {middle(more)} us;"
        f" a question to the store: {question:.0f} us."
    )


def middle(values: list[float], digits: int = 1) -> str:
    """Return a median and its range as text."""
    median, low, high = (
        f"{value:.{digits}f}"
        for value in (statistics.median(values), min(values), max(values))
    )
    return f"{median} ({low} to {high})"


async def main() -> None:
    """Print all of it."""
    async with (
        asyncio.timeout(MINUTES * 60),
        serving(LATENCY, JITTER) as base_url,
        store() as url,
    ):
        await rates(base_url, url)
        await starts(base_url, url)
        await permits(url)


if __name__ == "__main__":
    if sys.argv[1:2] == ["client"]:
        asyncio.run(client(sys.argv[2], sys.argv[3]))
    else:
        asyncio.run(main())
