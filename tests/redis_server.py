"""A real store of a test's own, and processes that share its budget."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
from redis.asyncio import Redis

from aio_agentapi import Secret
from tests.waiting import look_again

ROOT = Path(__file__).parents[1]


@attrs.define(eq=False)
class RedisServer:
    """A server on a port of its own, which can be stopped, killed and started."""

    port: int
    process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"redis://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it, empty."""
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        assert program, "redis-server is missing: apt-get install redis-server"
        self.process = await asyncio.create_subprocess_exec(
            program,
            *("--port", str(self.port), "--bind", "127.0.0.1", "--save", ""),
            stdout=asyncio.subprocess.DEVNULL,
        )
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    writer.close()
                    await writer.wait_closed()
                    return
                await look_again()

    async def kill(self) -> None:
        """Kill it; nothing of what it knew is left."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()
            self.process = None

    async def age(self, token: str) -> None:
        """Let a new one say that it has been up for long; it gives at once then."""
        async with Redis(port=self.port) as client:
            run = (await client.info("server"))["run_id"]
            state = f"agentapi:{{{Secret(token).digest}}}:state"
            await client.hset(state, mapping={"run": run, "grace": 0})

    @asynccontextmanager
    async def paused(self) -> AsyncGenerator[None]:
        """Let it hang, with its connections open."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


@asynccontextmanager
async def redis_server() -> AsyncGenerator[RedisServer]:
    """Run a server while a test runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    server = RedisServer(port)
    await server.start()
    try:
        yield server
    finally:
        await server.kill()


@attrs.define(eq=False)
class Worker:
    """A process that calls, and says how it goes when it is asked."""

    process: asyncio.subprocess.Process

    @classmethod
    async def start(cls, **told: Any) -> Worker:
        """Start ``tests/sharer.py``; it is ready when it has its first answer."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.sharer",
            json.dumps(told),
            cwd=ROOT,
            env=dict(os.environ),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        worker = cls(process)
        await worker.ask("ready")
        return worker

    async def ask(self, word: str, **more: Any) -> Any:
        """Say a word to it, and return what it answers."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"word": word, **more}).encode() + b"\n")
        async with asyncio.timeout(40):
            return json.loads(await self.process.stdout.readline())

    async def end(self) -> Any:
        """Let it come to its end, and return what it counted."""
        counted = await self.ask("end")
        async with asyncio.timeout(20):
            assert await self.process.wait() == 0
        return counted

    async def kill(self) -> None:
        """Kill it."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)
