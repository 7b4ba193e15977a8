"""The clients that are compared: each is opened, and gives a call."""

from __future__ import annotations

import asyncio
import importlib
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, TypeAlias, cast

import aiohttp
import attrs
import httpx
import msgspec

from aio_agentapi import SessionManager, Settings
from benchmarks.server import TOKEN

LIMIT: Final = 50
HEADERS: Final = {
    "Authorization": f"Bearer {TOKEN}",
    "Accept": "application/json",
    "Content-Type": "application/json",
}

Call: TypeAlias = Callable[[], Awaitable[object]]


# For an address, and the certificates to trust.
Open: TypeAlias = Callable[[str, str | None], AbstractAsyncContextManager[Call]]


@attrs.frozen
class Client:
    """A client: what it is, and how many calls of it are worth waiting for."""

    name: str
    open: Open
    calls: int


def context(trust: str | None) -> ssl.SSLContext | None:
    """Return what trusts the load server's certificate."""
    return None if trust is None else ssl.create_default_context(cafile=trust)


@asynccontextmanager
async def typed(base_url: str, trust: str | None) -> AsyncGenerator[Call]:
    """Use this library: gate, exact decimals, records, errors that say enough."""
    settings = Settings(ssl=context(trust))
    async with SessionManager(base_url, settings=settings) as manager:
        yield manager.session(TOKEN).agents.info


@asynccontextmanager
async def bare(base_url: str, trust: str | None) -> AsyncGenerator[Call]:
    """Aiohttp by hand: a pool of 50, a semaphore, the body decoded by msgspec."""
    gate = asyncio.Semaphore(LIMIT)
    url = f"{base_url}/v4/agent/info"
    connector = aiohttp.TCPConnector(limit=LIMIT, ssl=context(trust) or True)
    async with aiohttp.ClientSession(connector=connector, headers=HEADERS) as http:

        async def call() -> object:
            async with gate, http.post(url, data=b"{}") as response:
                return msgspec.json.decode(await response.read())

        yield call


@asynccontextmanager
async def usual(base_url: str, trust: str | None) -> AsyncGenerator[Call]:
    """Aiohttp as people write it, with a semaphore."""
    gate = asyncio.Semaphore(LIMIT)
    url = f"{base_url}/v4/agent/info"
    connector = aiohttp.TCPConnector(ssl=context(trust) or True)
    async with aiohttp.ClientSession(connector=connector, headers=HEADERS) as http:

        async def call() -> object:
            async with gate, http.post(url, json={}) as response:
                return await response.json()

        yield call


@asynccontextmanager
async def with_httpx(base_url: str, trust: str | None) -> AsyncGenerator[Call]:
    """Httpx, with a semaphore."""
    gate = asyncio.Semaphore(LIMIT)
    url = f"{base_url}/v4/agent/info"
    async with httpx.AsyncClient(
        headers=HEADERS, verify=context(trust) or False, trust_env=False, timeout=30
    ) as http:

        async def call() -> object:
            async with gate:
                return (await http.post(url, json={})).json()

        yield call


@asynccontextmanager
async def with_niquests(base_url: str, trust: str | None) -> AsyncGenerator[Call]:
    """Niquests, with a semaphore."""
    # It puts another urllib3 in place of that of requests, which tests use: it is
    # installed for benchmarks alone.
    niquests: Any = importlib.import_module("niquests")

    gate = asyncio.Semaphore(LIMIT)
    url = f"{base_url}/v4/agent/info"
    async with niquests.AsyncSession(pool_connections=1, pool_maxsize=LIMIT) as http:
        http.headers.update(dict(HEADERS))
        http.trust_env = False
        if trust is not None:
            http.verify = trust

        async def call() -> object:
            async with gate:
                return (await http.post(url, json={})).json()

        yield call


class _Wire(asyncio.Protocol):
    """One connection that takes answers of one form, and sees no error."""

    transport: asyncio.Transport
    waiter: asyncio.Future[bytes]
    buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, end, body = self.buffer.partition(b"\r\n\r\n")
        if end and len(body) >= int(head.partition(b"Content-Length: ")[2].split()[0]):
            self.buffer = b""
            self.waiter.set_result(body)


@asynccontextmanager
async def floor(base_url: str, trust: str | None) -> AsyncGenerator[Call]:
    """Write a protocol by hand, for these answers only: what Python can do at best."""
    gate = asyncio.Semaphore(LIMIT)
    loop = asyncio.get_running_loop()
    host, port = base_url.partition("//")[2].split(":")
    lines = [f"Host: {host}:{port}", *(f"{k}: {v}" for k, v in HEADERS.items())]
    head = "\r\n".join(["POST /v4/agent/info HTTP/1.1", *lines, "Content-Length: "])
    request = head.encode() + b"2\r\n\r\n{}"
    idle: list[_Wire] = []

    async def call() -> object:
        async with gate:
            if idle:
                wire = idle.pop()
            else:
                _, wire = await loop.create_connection(
                    _Wire, host, int(port), ssl=context(trust)
                )
            wire.waiter = loop.create_future()
            wire.transport.write(request)
            body = await wire.waiter
            idle.append(wire)
            return msgspec.json.decode(body)

    try:
        yield call
    finally:
        for wire in idle:
            wire.transport.close()


CLIENTS: Final = {
    client.name: client
    for client in (
        Client("bare", bare, 4_000),
        Client("this library", typed, 4_000),
        Client("aiohttp, json=", usual, 4_000),
        Client("niquests", with_niquests, 600),
        Client("httpx", with_httpx, 150),
        Client("by hand", floor, 4_000),
    )
}
