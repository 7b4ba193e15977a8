"""
A typed call beside what people would use instead, in one run.

``python -m benchmarks`` prints the tables that benchmarks/README.md shows and draws its
picture, in some minutes; ``python -m benchmarks quick`` prints the first in one.

Single runs differ by some per cent, so the clients run in alternating blocks of one
process, ratios are taken block by block, and what is printed is their median, with the
range in brackets. The load server is a process of its own, on the last processor.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from asyncio import selector_events
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import attrs
import trustme
import uvloop

from aio_agentapi.sandbox import SandboxProcess
from benchmarks.clients import CLIENTS, LIMIT, Call
from benchmarks.picture import draw
from benchmarks.server import serving

PICTURE = Path(__file__).with_name("speed.svg")
BLOCKS, QUICK = 5, 3
# Seconds that a block takes at most, by Little's law, where the service takes time.
SECONDS = 2.0
MEMORY_CALLS = 20_000
# Bytes that asyncio reads at once, where it shall not cost a mapping of memory.
SMALL_READ = 122_880
OURS, BARE = "this library", "bare"

Rows: TypeAlias = dict[str, list["Block"]]


@attrs.frozen
class Setting:
    """Under what the clients are compared."""

    loop: str
    tls: bool
    latency: float
    names: tuple[str, ...]
    # Whether asyncio's large receive buffer, which costs both the same, is made small.
    small_read: bool = False

    def __str__(self) -> str:
        where = "TLS" if self.tls else "plain HTTP"
        small = ", small receive buffer" if self.small_read else ""
        return f"{self.latency * 1e3:.0f} ms, {where}, {self.loop}{small}"


FEW = (BARE, OURS, "by hand")
ALL = tuple(CLIENTS)
SETTINGS = (
    Setting("asyncio", tls=False, latency=0.0, names=ALL),
    Setting("asyncio", tls=False, latency=0.02, names=ALL),
    Setting("asyncio", tls=False, latency=0.1, names=ALL),
    Setting("uvloop", tls=False, latency=0.0, names=FEW),
    Setting("uvloop", tls=False, latency=0.02, names=FEW),
    Setting("uvloop", tls=False, latency=0.1, names=FEW),
    Setting("asyncio", tls=True, latency=0.0, names=FEW),
    Setting("uvloop", tls=True, latency=0.0, names=FEW),
    Setting("asyncio", tls=False, latency=0.0, names=FEW, small_read=True),
)


@attrs.frozen
class Block:
    """What one block of calls took: seconds, and seconds of the processor."""

    calls: int
    wall: float
    cpu: float
    p50: float
    p99: float

    @property
    def rate(self) -> float:
        """Calls a second."""
        return self.calls / self.wall

    @property
    def each(self) -> float:
        """Microseconds of the processor for a call."""
        return self.cpu / self.calls * 1e6


async def run(call: Call, calls: int) -> Block:
    """Call so many times, as many at once as there are permits."""
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
    cuts = statistics.quantiles(times, n=100)
    return Block(calls, wall, cpu, cuts[49], cuts[98])


@contextmanager
def certificate() -> Generator[tuple[str, str]]:
    """Give the load server's certificate, and what trusts it."""
    authority = trustme.CA()
    with tempfile.TemporaryDirectory() as folder:
        pem, trust = f"{folder}/server.pem", f"{folder}/trust.pem"
        cert = authority.issue_cert("127.0.0.1")
        cert.private_key_and_cert_chain_pem.write_to_path(pem)
        authority.cert_pem.write_to_path(trust)
        yield pem, trust


@asynccontextmanager
async def opened(setting: Setting) -> AsyncGenerator[dict[str, Call]]:
    """Start the load server, and open the clients."""
    async with AsyncExitStack() as stack:
        pem, trust = stack.enter_context(certificate())
        server = serving(setting.latency, 0.0, pem if setting.tls else "")
        base_url = await stack.enter_async_context(server)
        calls: dict[str, Call] = {}
        for name in setting.names:
            client = CLIENTS[name].open(base_url, trust if setting.tls else None)
            calls[name] = await stack.enter_async_context(client)
        yield calls


async def compare(setting: Setting, blocks: int) -> Rows:
    """Let the clients call in alternating blocks."""
    if setting.small_read:
        transport: Any = selector_events._SelectorTransport  # type: ignore[attr-defined]  # noqa: SLF001 - the point of it
        transport.max_size = SMALL_READ
    rows: Rows = {name: [] for name in setting.names}
    async with opened(setting) as calls:
        for name, call in calls.items():
            await run(call, min(500, CLIENTS[name].calls))
        for number in range(blocks):
            # Each goes first as often as the others.
            shift = number % len(setting.names)
            for name in (*setting.names[shift:], *setting.names[:shift]):
                count = CLIENTS[name].calls
                if setting.latency:
                    count = min(count, int(SECONDS * LIMIT / setting.latency))
                rows[name].append(await run(calls[name], count))
    return rows


async def memory(name: str) -> None:
    """Call twenty thousand times, and print the most memory that took, in KiB."""
    setting = Setting("asyncio", tls=False, latency=0.0, names=(name,))
    async with opened(setting) as calls:
        await run(calls[name], MEMORY_CALLS)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def child(*words: str) -> str:
    """Run a part of this in a process of its own."""
    done = subprocess.run(  # noqa: S603 - ourselves
        [sys.executable, "-m", "benchmarks", *words],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.stdout


def middle(values: list[float], digits: int = 2) -> str:
    """Return a median and its range as text."""
    told = (statistics.median(values), min(values), max(values))
    median, low, high = (f"{value:,.{digits}f}" for value in told)
    return f"{median} ({low} to {high})"


def ratio(rows: Rows, name: str, of: str) -> list[float]:
    """Return a figure of a client over bare's, block by block."""
    pairs = zip(rows[name], rows[BARE], strict=True)
    return [getattr(ours, of) / getattr(bare, of) for ours, bare in pairs]


def table(setting: Setting, rows: Rows) -> None:
    """Print what one setting has shown."""
    bound = LIMIT / setting.latency if setting.latency else 0.0
    little = f"of the bound of {bound:,.0f}/s | " if bound else ""
    print(f"\n**{setting}**\n")
    print(
        f"| client | us of a call | over bare | calls/s | over bare | {little}"
        "p50, ms | p99, ms | p99 over bare |"
    )
    print("| --- " * (9 if bound else 8) + "|")
    for name, blocks in rows.items():
        cells = [
            name,
            f"{statistics.median(b.each for b in blocks):,.0f}",
            middle(ratio(rows, name, "each")),
            f"{statistics.median(b.rate for b in blocks):,.0f}",
            middle(ratio(rows, name, "rate")),
        ]
        if bound:
            cells.append(middle([b.rate / bound for b in blocks], 3))
        cells += [
            f"{statistics.median(b.p50 for b in blocks) * 1e3:.1f}",
            f"{statistics.median(b.p99 for b in blocks) * 1e3:.1f}",
            middle(ratio(rows, name, "p99")),
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


async def start() -> list[tuple[float, float]]:
    """Return the seconds of the stand-in's start, and of Python's with aiohttp."""
    pairs: list[tuple[float, float]] = []
    for _ in range(5):
        began = time.perf_counter()
        async with SandboxProcess():
            between = time.perf_counter()
        again = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import aiohttp.web"], check=True)  # noqa: ASYNC221 - timed alone
        pairs.append((between - began, time.perf_counter() - again))
    return pairs


def processor() -> str:
    """Return the processor's name."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def main(*, quick: bool) -> None:
    """Print the tables, and draw the picture."""
    names = ("aiohttp", "attrs", "cattrs", "msgspec", "uvloop", "httpx", "niquests")
    print(f"Python {platform.python_version()}, {os.cpu_count()} x {processor()};")
    print(", ".join(f"{name} {version(name)}" for name in names) + ".")
    shown: list[tuple[str, Rows]] = []
    for number, setting in enumerate(SETTINGS[:2] if quick else SETTINGS):
        told = child("compare", str(number), str(QUICK if quick else BLOCKS))
        rows: Rows = {
            name: [Block(**block) for block in blocks]
            for name, blocks in json.loads(told).items()
        }
        table(setting, rows)
        shown.append((str(setting), rows))
    if quick:
        return
    peaks = [(int(child("memory", OURS)), int(child("memory", BARE))) for _ in range(3)]
    over = middle([ours / bare for ours, bare in peaks])
    print(f"\nPeak memory of {MEMORY_CALLS:,} calls over bare: {over}; ", end="")
    print(f"{statistics.median(ours for ours, _ in peaks) / 1024:.1f} MiB.")
    starts = asyncio.run(start())
    over = middle([ours / bare for ours, bare in starts])
    print(f"Start of the stand-in over `import aiohttp.web`: {over}.")
    picture(*shown[0])


def picture(label: str, rows: Rows) -> None:
    """Draw what a call costs; who takes many times as much is told in words."""
    costs = {name: [b.each for b in blocks] for name, blocks in rows.items()}
    medians = {name: statistics.median(values) for name, values in costs.items()}
    near = {n: costs[n] for n, cost in medians.items() if cost < 5 * medians[BARE]}
    beyond = [f"{n} {medians[n]:,.0f} us" for n in costs if n not in near]
    subtitle = ". Beyond this: ".join([label, ", ".join(beyond)]) if beyond else label
    PICTURE.write_text(draw("Processor time of a call", "us", subtitle, near))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["compare", number, blocks]:
            chosen = SETTINGS[int(number)]
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            runner = uvloop.run if chosen.loop == "uvloop" else asyncio.run
            found = runner(compare(chosen, int(blocks)))
            print(
                json.dumps(
                    {n: [attrs.asdict(b) for b in bs] for n, bs in found.items()}
                )
            )
        case ["memory", which]:
            asyncio.run(memory(which))
        case words:
            main(quick="quick" in words)
