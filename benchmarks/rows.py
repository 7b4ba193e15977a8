"""
What a plan costs in memory: of a thousand rows, and of a million.

``python -m benchmarks.rows`` runs each in a process of its own against a service that
answers at once, and prints the most memory that each has used. It takes some minutes.
"""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

from aio_agentapi import SessionManager
from benchmarks.server import AGENT, AMOUNT, TOKEN, serving

SIZES = (1_000, 1_000_000)


def plan(rows: int) -> Iterator[tuple[int, str]]:
    """Make a plan that is nowhere as a whole."""
    for _ in range(rows):
        yield AGENT, AMOUNT


async def distribute(base_url: str, rows: int) -> None:
    """Carry out a plan, and print what it took: rows, seconds, KiB."""
    began = time.perf_counter()
    moved = 0
    async with SessionManager(base_url) as manager:
        async for done in manager.session(TOKEN).points.distribute(plan(rows)):
            moved += done.error is None
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(moved, seconds, peak)


async def main() -> None:
    """Print the table."""
    print("| rows | moved | calls/s | peak memory | over the first |")
    print("| --- | --- | --- | --- | --- |")
    first = 0.0
    async with serving(0.0) as base_url:
        for rows in SIZES:
            command = [sys.executable, "-m", "benchmarks.rows", base_url, str(rows)]
            ran = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: ASYNC221, S603 - nothing else is to run
            moved, seconds, peak = map(float, ran.stdout.split())
            first = first or peak
            print(
                f"| {rows:,} | {moved:,.0f} | {rows / seconds:,.0f}"
                f" | {peak / 1024:.1f} MiB | {(peak - first) / 1024:+.1f} MiB |"
            )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(distribute(sys.argv[1], int(sys.argv[2])))
    else:
        asyncio.run(main())
