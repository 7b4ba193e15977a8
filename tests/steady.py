"""
The whole suite on a machine that has no time for it: ``make steady``.

Busy loops take most of the processor, and what the tests run in and start is stopped
now and then, for long enough that every clock of theirs is behind. Nothing may fail:
first all tests twice, and then those that have processes or clocks ten times.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

# Seconds between two stops, and how long one lasts.
_BETWEEN: Final = (0.5, 3.0)
_STOPPED: Final = (0.2, 1.0)

# How much longer a test may take before it is said to hang.
_PATIENCE: Final = 5

# Minutes for a run of all tests.
_BOUND: Final = 60


@contextmanager
def busy(count: int) -> Generator[None]:
    """Let so many processes do nothing as fast as they can."""
    code = "while True: pass"
    loops = [
        subprocess.Popen([sys.executable, "-c", code])  # noqa: S603 - our own
        for _ in range(count)
    ]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@contextmanager
def stopping(process: int, seed: int) -> Generator[Counter[str]]:
    """Stop what descends from a process, one at a time, and count by programs."""
    dice, over = random.Random(seed), threading.Event()  # noqa: S311 - a schedule
    stopped: Counter[str] = Counter()

    def stop() -> None:
        while not over.wait(dice.uniform(*_BETWEEN)):
            running = [p for p in descendants(process) if _state(p) not in "TZ"]
            if not running:
                continue
            victim = dice.choice(running)
            stopped[_program(victim)] += 1
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGSTOP)
                over.wait(dice.uniform(*_STOPPED))
                os.kill(victim, signal.SIGCONT)

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        yield stopped
    finally:
        over.set()
        thread.join()


def descendants(process: int) -> list[int]:
    """Return the children of a process, their children, and so on."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found, left = list[int](), [process]
    while left:
        below = children.get(left.pop(), [])
        found += below
        left += below
    return found


def _state(process: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    return "Z"


def _program(process: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{process}/comm").read_text().strip()
    return "?"


def run(name: str, seed: int, args: list[str]) -> list[str]:
    """Run tests once; return which failed."""
    began = time.monotonic()
    log = Path("build") / "steady" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-n", "2"),
        *("-p", "no:cacheprovider", *args),
    ]
    env = os.environ | {"AGENTAPI_TEST_PATIENCE": str(_PATIENCE)}
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=env)  # noqa: S603
        with stopping(process.pid, seed) as stopped:
            try:
                code = process.wait(_BOUND * 60)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
    text = log.read_text(errors="replace")
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", text, re.MULTILINE)
    took = (time.monotonic() - began) / 60
    last = text.rstrip().rpartition("\n")[2]
    print(f"{name}: code {code}, {took:.1f} min, {sum(stopped.values())} stops; {last}")
    for test in failed:
        print(f"  {test}")
    sys.stdout.flush()
    return failed or [f"{name} ended with {code}: {log}"] * (code != 0)


def main() -> int:
    """Run all of it; return how many tests failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loads", type=int, default=8, help="busy loops beside it")
    parser.add_argument("--all", type=int, default=2, help="runs of all tests")
    parser.add_argument("--some", type=int, default=10, help="runs of the marked ones")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("tests", nargs="*", help="files, instead of all")
    told = parser.parse_args()
    failed: Counter[str] = Counter()
    marked = ["-m", "(process or realtime) and not soak"]
    with busy(told.loads):
        for number in range(told.all):
            failed.update(run(f"all-{number}", told.seed + number, told.tests))
        for number in range(told.some):
            args = [*marked, *told.tests]
            failed.update(run(f"some-{number}", told.seed + 100 + number, args))
    for test, count in failed.most_common():
        print(f"{count} x {test}")
    print("Nothing failed." if not failed else f"{len(failed)} failed.")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
