"""
What it costs to write payments down, and to keep the progress of a plan.

``python -m benchmarks.journal`` pays with no journal, with one in memory and with one
in a file, in alternating blocks of one run, alone and with 50 in flight, and times
fdatasync of the same disk in between, at the same pace. It takes some minutes.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs

from aio_agentapi import (
    Intent,
    MemoryStore,
    Phase,
    Session,
    SessionManager,
    SqliteStore,
    run_many,
)
from aio_agentapi._identity import Account, Ask, Claim, Evidence
from aio_agentapi._journal import Clock, Cursor, Store, Verdict
from benchmarks.server import AGENT, AMOUNT, TOKEN, serving

ROUNDS = 7
ALONE = 150
MANY = 3000


class NoStore:
    """A journal that keeps nothing: what a payment costs without."""

    durable = True
    _numbers = itertools.count(1)

    def begin(
        self, intent: Intent, clock: Clock, *, block_unknown: bool = False
    ) -> Awaitable[Intent | None]:
        """Say that it is written."""
        del clock, block_unknown
        return _ready(attrs.evolve(intent, id=next(self._numbers), phase=Phase.SENT))

    def write(
        self,
        verdicts: Collection[Verdict],
        clock: Clock,
        *,
        given: Collection[Intent] = (),
    ) -> Awaitable[list[Intent]]:
        """Say that it is written."""
        del verdicts, clock, given
        return _ready(list[Intent]())

    def intents(self, *_: object, **__: object) -> Awaitable[list[Intent]]:
        """Know of none."""
        return _ready(list[Intent]())

    def find(self, account: str, key: str) -> Awaitable[Intent | None]:
        """Know of none."""
        del account, key
        return _ready(None)

    def adopt(self, clock: Clock) -> Awaitable[int]:
        """Do nothing."""
        del clock
        return _ready(0)

    def cursor(self, account: str) -> Awaitable[Cursor]:
        """Know of none."""
        del account
        return _ready(Cursor())

    def keep_cursor(self, account: str, cursor: Cursor) -> Awaitable[None]:
        """Do nothing."""
        del account, cursor
        return _ready(None)

    def prune(self, keep: float) -> Awaitable[int]:
        """Do nothing."""
        del keep
        return _ready(0)

    def age(self) -> Awaitable[float]:
        """Have none."""
        return _ready(0.0)

    def recognise(self, claim: Claim, seen: Evidence) -> Awaitable[Account | Ask]:
        """Believe it."""
        del seen
        return _ready(Account(label=claim.label))

    def linked(self, claim: Claim) -> Awaitable[Account | None]:
        """Know of none."""
        del claim
        return _ready(None)

    def accounts(self) -> Awaitable[list[Account]]:
        """Know of none."""
        return _ready(list[Account]())

    def take_feed(self, account: str) -> Awaitable[bool]:
        """Let nobody read."""
        del account
        return _ready(False)

    def leave_feed(self, account: str) -> None:
        """Do nothing."""

    async def aclose(self) -> None:
        """Do nothing."""


def _ready(value: Any) -> asyncio.Future[Any]:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.set_result(value)
    return future


def fdatasync(folder: Path, pause: float) -> float:
    """Return the median seconds of writing 4 KiB and waiting for the disk."""
    path = folder / "sync"
    times: list[float] = []
    file = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        for _ in range(ALONE):
            # As long as a payment waits for its answer: what rests is slower to act.
            time.sleep(pause)
            began = time.perf_counter()
            os.write(file, b"x" * 4096)
            os.fdatasync(file)
            times.append(time.perf_counter() - began)
    finally:
        os.close(file)
        path.unlink()
    return statistics.median(times)


@asynccontextmanager
async def paying(base_url: str, store: Store) -> AsyncGenerator[Session]:
    """Open a session whose connections are made."""
    async with SessionManager(base_url, store=store) as manager:
        session = manager.session(TOKEN)
        await asyncio.gather(*(session.wallets.deposit(i, AMOUNT) for i in range(50)))
        yield session


async def alone(session: Session) -> float:
    """Return the median seconds of a payment that nobody else is beside."""
    times: list[float] = []
    for number in range(ALONE):
        began = time.perf_counter()
        await session.wallets.deposit(number, AMOUNT)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


async def many(session: Session) -> float:
    """Return the payments in a second with 50 in flight."""
    began = time.perf_counter()
    async for outcome in run_many(
        lambda u: session.wallets.deposit(u, AMOUNT), range(MANY)
    ):
        if outcome.error is not None:
            raise outcome.error
    return MANY / (time.perf_counter() - began)


async def plan(session: Session, journal: Path | None) -> float:
    """Return the rows in a second of a plan."""
    began = time.perf_counter()
    rows = ((AGENT, AMOUNT) for _ in range(2 * MANY))
    async for done in session.points.distribute(rows, journal=journal):
        if done.error is not None:
            raise done.error
    return 2 * MANY / (time.perf_counter() - began)


def told(values: list[float], form: str = ".2f") -> str:
    """Write a median with its range."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


async def payments(folder: Path, latency: float) -> None:
    """Print what payments cost at a service time."""
    stores: dict[str, Callable[[], Store]] = {
        "none": NoStore,
        "memory": MemoryStore,
        "file": lambda: SqliteStore(folder / f"{next(names)}.db"),
    }
    names = itertools.count()
    single: dict[str, list[float]] = {name: [] for name in stores}
    rates: dict[str, list[float]] = {name: [] for name in stores}
    syncs: list[float] = []
    async with serving(latency) as base_url:
        for _ in range(ROUNDS):
            syncs.append(fdatasync(folder, latency))
            for name, make in stores.items():
                async with paying(base_url, make()) as session:
                    single[name].append(await alone(session))
                    rates[name].append(await many(session))
    ms = f"{1000 * latency:.0f} ms"
    micros = told([1e6 * seconds for seconds in syncs], ".0f")
    plain = f"{statistics.median(rates['none']):,.0f}/s"
    print(f"| {ms} | none | (fdatasync {micros}) | | {plain} |")
    for name in ("memory", "file"):
        more = [a - b for a, b in zip(single[name], single["none"], strict=True)]
        in_syncs = [a / b for a, b in zip(more, syncs, strict=True)]
        share = [a / b for a, b in zip(rates[name], rates["none"], strict=True)]
        micros = told([1e6 * seconds for seconds in more], ".0f")
        print(f"| {ms} | {name} | {micros} | {told(in_syncs)} | {told(share)} |")


async def plans(folder: Path) -> None:
    """Print what a plan costs with its journal."""
    for latency in (0.0, 0.02):
        found: list[float] = []
        async with serving(latency) as base_url, paying(base_url, NoStore()) as session:
            for number in range(ROUNDS):
                without = await plan(session, None)
                kept = await plan(session, folder / f"{latency}-{number}.journal")
                found.append(kept / without)
        print(f"| {1000 * latency:.0f} ms | {told(found)} |")


async def main() -> None:
    """Print both tables."""
    logging.disable(logging.WARNING)
    # On the disk: a temporary folder may be memory.
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        columns = ("service time", "journal", "us more, alone", "in syncs", "calls/s")
        print(f"| {' | '.join(columns)} |")
        print("| --- " * len(columns) + "|")
        for latency in (0.0, 0.02):
            await payments(folder, latency)
        print("\n| service time | rows/s of a plan, with a journal / without |")
        print("| --- | --- |")
        await plans(folder)


if __name__ == "__main__":
    asyncio.run(main())
