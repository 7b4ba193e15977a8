"""A process with a shared gate: for tests that stop it, kill it, or count with it."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sys
import time
from typing import Any

from aio_agentapi import Session, SessionManager, Settings
from aio_agentapi.errors import GateLostError
from aio_agentapi.redis import RedisGate


class Sharer:
    """So many tasks that call without end, and what became of it."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.tasks: list[asyncio.Task[None]] = []
        self.ended = False
        self.counted = {"done": 0, "lost": 0, "cancelled": 0}
        self.failed: list[str] = []

    async def work(self) -> None:
        """Call until the end; a store that is gone is waited for."""
        while not self.ended:
            try:
                await self.session.agents.info()
                self.counted["done"] += 1
            except GateLostError:
                self.counted["lost"] += 1
                # It is of use again after some heartbeats.
                await asyncio.sleep(0.05)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is told
                self.failed.append(repr(error))
                return

    def workers(self, count: int) -> None:
        """Let so many tasks call."""
        loop = asyncio.get_running_loop()
        self.tasks += [loop.create_task(self.work()) for _ in range(count)]

    async def storm(self, count: int) -> None:
        """Cancel so many calls, each at a moment of its own."""
        loop, dice = asyncio.get_running_loop(), random.Random(count)  # noqa: S311 - moments

        async def call() -> None:
            await self.session.agents.info()

        for _ in range(count // 100):
            calls = [loop.create_task(call()) for _ in range(100)]
            for task in calls:
                loop.call_later(dice.uniform(0, 0.03), task.cancel)
            await asyncio.gather(*calls, return_exceptions=True)
            self.counted["cancelled"] += sum(task.cancelled() for task in calls)

    async def lateness(self, count: int, pause: float) -> list[float]:
        """Call now and then, and tell how long each call took."""
        took: list[float] = []
        for _ in range(count):
            began = time.perf_counter()
            await self.session.agents.info()
            took.append(time.perf_counter() - began)
            # So often calls this one.
            await asyncio.sleep(pause)
        return took

    def state(self) -> dict[str, Any]:
        """Tell how it goes."""
        gate = self.session.gate.statistics()
        names = ("limit", "in_use", "waiting", "busy_answers", "overdrawn", "members")
        told = {name: getattr(gate, name) for name in (*names, "lost", "store_calls")}
        return {
            **told,
            **self.counted,
            "failed": self.failed,
            "cpu": time.process_time(),
        }

    async def answer(self, asked: dict[str, Any]) -> Any:
        """Do what is asked for."""
        if asked["word"] == "storm":
            await self.storm(asked["count"])
        elif asked["word"] == "workers":
            self.workers(asked["count"])
        elif asked["word"] == "lateness":
            return await self.lateness(asked["count"], asked["pause"])
        elif asked["word"] == "end":
            self.ended = True
            await asyncio.gather(*self.tasks)
        return self.state()


async def main(told: dict[str, Any]) -> None:
    """Serve what is asked for, a line each, until the end."""
    if shift := told.get("shift"):
        # Somebody sets this machine's clock: nothing here may be told by it.
        wall = time.time
        time.time = lambda: wall() + (shift if time.monotonic() % 2 > 1 else -shift)
    gate = RedisGate.factory(told["url"], **told.get("terms", {}))
    settings = Settings(**told.get("settings", {}))
    manager = SessionManager(told["base_url"], settings=settings, gate=gate)
    async with manager:
        sharer = Sharer(manager.session(told["token"]))
        sharer.workers(told.get("workers", 0))
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            asked = json.loads(line)
            answer = await sharer.answer(asked)
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
            if asked["word"] == "end":
                return


if __name__ == "__main__":
    logging.disable(logging.ERROR)
    asyncio.run(main(json.loads(sys.argv[1])))
