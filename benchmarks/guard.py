"""
Instructions of a call, ours over bare aiohttp: a figure that a busy machine repeats.

``python -m benchmarks.guard`` counts them with valgrind and compares their ratio with
the one in ``benchmarks/guard.json``; more than two per cent above it is a failure.
``python -m benchmarks.guard record`` writes a new one down.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from benchmarks.clients import CLIENTS
from benchmarks.server import serving

RECORD = Path(__file__).with_name("guard.json")
OURS, BARE = "this library", "bare"
FEW, MANY = 200, 1_200
IN_FLIGHT = 50
ABOVE = 0.02


async def load(name: str, base_url: str, calls: int) -> None:
    """Call so many times, always as many at once."""
    async with CLIENTS[name].open(base_url, None) as call:
        left = iter(range(calls))

        async def work() -> None:
            for _ in left:
                await call()

        await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))


def count(name: str, base_url: str, calls: int) -> int:
    """Return the instructions of a process that calls so many times."""
    program = shutil.which("valgrind")
    if program is None:
        sys.exit("valgrind is missing: apt-get install valgrind")
    done = subprocess.run(  # noqa: S603 - ourselves
        [
            *(program, "--tool=cachegrind", "--cache-sim=no"),
            *("--cachegrind-out-file=/dev/null", sys.executable),
            *("-m", "benchmarks.guard", "load", name, base_url, str(calls)),
        ],
        env={**os.environ, "PYTHONHASHSEED": "0"},
        check=True,
        capture_output=True,
        text=True,
    )
    found = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
    if found is None:
        sys.exit(f"no count in what valgrind said: {done.stderr[-500:]}")
    return int(found[1].replace(",", ""))


async def measure() -> dict[str, float]:
    """Return thousands of instructions of a call, of each client."""
    counted: dict[str, float] = {}
    async with serving(0.0) as base_url:
        for name in (OURS, BARE):
            few, many = (count(name, base_url, calls) for calls in (FEW, MANY))
            counted[name] = (many - few) / (MANY - FEW) / 1000
    return counted


def main(word: str) -> None:
    """Measure, and compare or write down."""
    counted = asyncio.run(measure())
    ratio = counted[OURS] / counted[BARE]
    for name, thousands in counted.items():
        print(f"{name}: {thousands:.1f} thousand instructions of a call")
    if word == "record":
        told = {
            "ratio": round(ratio, 4),
            "python": platform.python_version(),
            "aiohttp": version("aiohttp"),
        }
        RECORD.write_text(json.dumps(told, indent=2) + "\n")
        print(f"this library / bare: {ratio:.4f}, written down")
        return
    known = json.loads(RECORD.read_text())
    print(f"this library / bare: {ratio:.4f}; recorded: {known['ratio']:.4f}")
    if ratio > known["ratio"] * (1 + ABOVE):
        sys.exit(f"a call costs more than {ABOVE:.0%} above what was recorded")


if __name__ == "__main__":
    if sys.argv[1:2] == ["load"]:
        asyncio.run(load(sys.argv[2], sys.argv[3], int(sys.argv[4])))
    else:
        main("".join(sys.argv[1:2]))
