"""Processes that get a permit of a shared gate, one after the other, and are killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from typing import Any

from aio_agentapi import SessionManager
from aio_agentapi.errors import GateLostError
from aio_agentapi.redis import RedisGate


async def hold(told: dict[str, Any]) -> None:
    """Get a permit, and die with it."""
    gates = RedisGate.factory(told["url"], **told["terms"])
    async with SessionManager("http://127.0.0.1:9", gate=gates) as manager:
        gate = manager.session(told["token"]).gate
        for _ in range(200):
            # A store that hangs for as long as a lease is told as lost.
            with suppress(GateLostError):
                await gate.acquire("interactive")
                os.kill(os.getpid(), signal.SIGKILL)
            # Until the store is there again.
            await asyncio.sleep(0.1)


def main(told: dict[str, Any]) -> None:
    """Let so many come, as copies of this process: Python starts once."""
    for number in range(told["count"]):
        child = os.fork()
        if not child:
            asyncio.run(hold(told))
            os._exit(1)
        _, status = os.waitpid(child, 0)
        if status != signal.SIGKILL:
            sys.exit(f"number {number} had no permit: {status}")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
