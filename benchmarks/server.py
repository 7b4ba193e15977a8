"""
A service that costs as little as Python allows: one fixed answer, after a while.

It reads no header but the length, so that what is measured is the client.
"""

from __future__ import annotations

import asyncio
import os
import random
import ssl
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import cast

TOKEN = "11111111-2222-3333-4444-555555555555"  # noqa: S105 - nobody's

BODY = (
    b'{"code":0,"message":null,"data":{"name":"operator","currency":978,'
    b'"balance":500000.0000,"rtp":95,"whitelist":[],"client_ip":"127.0.0.1",'
    b'"agent_code":1002,"role":"operator","parent_code":1001,"state":"active"}}'
)
# What the fixed answers repeat: a call of anything else would be told that it is not
# its own.
AGENT, AMOUNT = 1003, "1.2500"

MOVE = (
    b'{"code":0,"message":null,"data":{"move_id":7,"from_code":1002,"to_code":1003,'
    b'"amount":1.2500,"balance":500000.0000,"reference":null,'
    b'"created_at":"2024-05-31T12:00:00.000Z"}}'
)

PAID = b'{"code":0,"message":null,"data":{"balance":250.0000,"amount":1.2500}}'


def answer(body: bytes) -> bytes:
    """Write a whole answer."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d"
    return head % len(body) + b"\r\n\r\n" + body


INFO_ANSWER = answer(BODY)
MOVE_ANSWER = answer(MOVE)
PAID_ANSWER = answer(PAID)


class Service(asyncio.Protocol):
    """One connection."""

    def __init__(self, latency: float, jitter: float) -> None:
        self._latency = latency
        self._jitter = jitter
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.WriteTransport | None = None
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        """Answer every request that is complete."""
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            start = head.find(b"content-length:") + 15
            stop = head.find(b"\r\n", start)
            length = int(head[start : stop if stop > 0 else len(head)])
            if len(self._buffer) < end + 4 + length:
                return
            self._buffer = self._buffer[end + 4 + length :]
            is_move = head.startswith(b"post /v4/points/")
            found = MOVE_ANSWER if is_move else INFO_ANSWER
            if head.startswith(b"post /v4/wallet/"):
                found = PAID_ANSWER
            if self._latency:
                spread = self._jitter * random.uniform(-1, 1) if self._jitter else 0.0
                self._loop.call_later(self._latency + spread, self._answer, found)
            else:
                self._answer(found)

    def _answer(self, found: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(found)


@asynccontextmanager
async def serving(
    latency: float, jitter: float = 0.0, pem: str = ""
) -> AsyncGenerator[str]:
    """Start the load server in a process of its own; with a certificate, over TLS."""
    process = subprocess.Popen(  # noqa: ASYNC220, S603 - before anything is timed
        [sys.executable, "-m", "benchmarks.server", str(latency), str(jitter), pem],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None  # noqa: S101 - a pipe, as asked for
    assert process.stdin is not None  # noqa: S101 - as above
    try:
        scheme = "https" if pem else "http"
        yield f"{scheme}://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.stdin.close()
        process.wait()


async def main(latency: float, jitter: float, pem: str) -> None:
    """Serve until standard input ends."""
    loop = asyncio.get_running_loop()
    context = None
    if pem:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(pem)
    server = await loop.create_server(
        lambda: Service(latency, jitter), "127.0.0.1", 0, ssl=context
    )
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.buffer.read)


if __name__ == "__main__":
    # The last processor for the service, so that the client has the first.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    import uvloop

    uvloop.run(main(float(sys.argv[1]), float(sys.argv[2]), sys.argv[3]))
