"""Connections that are not used again, and those that never were, on both roads."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

import aiohttp
import aiohttp.resolver
import attrs
import pytest
import trustme
from aiohttp.client_proto import ResponseHandler

from aio_agentapi import SessionManager, Settings
from aio_agentapi._connections import Connections
from aio_agentapi.errors import InvalidError, NotSentError, OutcomeUnknownError
from tests.conftest import OK_INFO, TOKEN, read_request
from tests.waiting import PATIENCE, look_again

HEAD: Final = "HTTP/1.1 {} X\r\nContent-Length: {}\r\n{}\r\n"

Reply: TypeAlias = Callable[
    ["Service", bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]
]


def response(body: bytes = OK_INFO, status: int = 200, extra: str = "") -> bytes:
    """Return a response."""
    return HEAD.format(status, len(body), extra).encode() + body


async def answers(
    service: Service, _: bytes, __: object, writer: asyncio.StreamWriter
) -> None:
    """Answer each request, with the headers that the service is told to have."""
    writer.write(response(extra=service.extra))


async def is_silent(
    _: Service, __: bytes, reader: asyncio.StreamReader, ___: object
) -> None:
    """Take a request, and say nothing until the peer goes."""
    await reader.read()


@attrs.define(eq=False)
class Service:
    """A service that does to each request what it is told, and counts."""

    reply: Reply = answers
    extra: str = ""
    port: int = 0
    requests: list[bytes] = attrs.field(factory=list)
    connections: int = 0
    now: int = 0

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Serve one connection."""
        self.connections += 1
        self.now += 1
        try:
            while True:
                request = await read_request(reader)
                self.requests.append(request)
                await self.reply(self, request, reader, writer)
                await writer.drain()
        finally:
            self.now -= 1


@asynccontextmanager
async def listening(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    tls: ssl.SSLContext | None = None,
) -> AsyncGenerator[int]:
    """Serve connections on a port; nothing is left of them at the end."""
    tasks = dict[asyncio.Task[Any] | None, asyncio.StreamWriter]()

    async def handle(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        tasks[asyncio.current_task()] = writer
        try:
            await serve(reader, writer)
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.transport.abort()
            tasks.pop(asyncio.current_task())

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        while tasks:
            for writer in tasks.values():
                writer.transport.abort()
            await look_again()


@asynccontextmanager
async def running(
    reply: Reply = answers, tls: ssl.SSLContext | None = None, **more: Any
) -> AsyncGenerator[Service]:
    """Run a service."""
    service = Service(reply, **more)
    async with listening(service.serve, tls) as service.port:
        yield service


@asynccontextmanager
async def managed(service: Service, **settings: Any) -> AsyncGenerator[SessionManager]:
    """Open a manager, for a service under TLS where it is given a context."""
    scheme = "https" if isinstance(settings.get("ssl"), ssl.SSLContext) else "http"
    base_url = f"{scheme}://localhost:{service.port}"
    async with SessionManager(base_url, settings=Settings(**settings)) as manager:
        yield manager


@pytest.fixture
def tls() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the contexts of a server and of its client."""
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


# Not sent.


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("can't start new thread"),
        RuntimeError("cannot schedule new futures after shutdown"),
        AttributeError("of another version"),
        TypeError("of another version"),
        IndexError("no address"),
        OSError(errno.EACCES, "forbidden"),
    ],
    ids=repr,
)
async def test_what_fails_before_there_is_a_connection_has_sent_nothing(
    road: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is; it is tried again as often as any."""

    async def broken(*_: object) -> object:
        raise error

    monkeypatch.setattr(aiohttp.TCPConnector, "_create_connection", broken)
    async with running() as service, managed(service, attempts=3) as manager:
        with pytest.raises(NotSentError) as caught:
            await manager.session(TOKEN).call("x/pay", {})
        assert (caught.value.happened, caught.value.attempts) == ("no", 3), road
        # aiohttp may have a name of its own for errors of the system.
        names = type(error).__name__, "ClientOSError"
        assert any(name in str(caught.value) for name in names)


async def test_a_name_without_addresses(
    road: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resolver may find nothing, and no error either."""

    async def nothing(*_: object, **__: object) -> list[Any]:
        return []

    monkeypatch.setattr(aiohttp.resolver.ThreadedResolver, "resolve", nothing)
    async with running() as service, managed(service, attempts=2) as manager:
        with pytest.raises(NotSentError):
            await manager.session(TOKEN).call("x/pay", {})
        assert (service.requests, road in {"short", "ordinary"}) == ([], True)


@pytest.mark.parametrize(
    "told",
    [
        b"",
        b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 503 Service Unavailable\r\n\r\n",
        b"HTTP/1.1 200 Connec",
        b"\x05\xff\x00\x00garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        # A tunnel that leads nowhere, and one to something else.
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 400 Bad\r\n\r\n",
    ],
)
@pytest.mark.parametrize("ends", ["close", "reset"])
async def test_a_proxy_that_makes_no_tunnel(told: bytes, ends: str) -> None:
    """No word of the request has left this machine."""

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(told)
            await writer.drain()
        if ends == "reset":
            writer.transport.abort()
        writer.close()

    server = await asyncio.start_server(proxy, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    settings = Settings(proxy=url, attempts=1)
    async with (
        server,
        SessionManager("https://localhost", settings=settings) as manager,
    ):
        with pytest.raises(NotSentError):
            await manager.session(TOKEN).call("x/pay", {})


async def test_a_proxy_for_plain_http_that_wants_a_password() -> None:
    """It answers in the service's place, and has passed nothing on."""

    async def refuse(
        _: Service, __: bytes, ___: object, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(response(b"login", status=407))

    async with running() as service, running(refuse) as proxy:
        settings = {"proxy": f"http://127.0.0.1:{proxy.port}", "attempts": 2}
        async with managed(service, **settings) as manager:
            with pytest.raises(NotSentError, match="user and a password"):
                await manager.session(TOKEN).call("x/pay", {})
        assert (len(proxy.requests), service.requests) == (2, [])
        # Of the service itself it is no more than any status without an envelope.
        async with managed(proxy) as manager:
            with pytest.raises(OutcomeUnknownError):
                await manager.session(TOKEN).call("x/pay", {})


@contextlib.contextmanager
def refusing(context: ssl.SSLContext) -> Generator[Service]:
    """Run a server whose handshakes fail; it tells why, as asyncio's does not."""

    def serve() -> None:
        # Ended by the closing of its socket.
        with contextlib.suppress(OSError):
            while True:
                accepted, _ = accepting.accept()
                peer = context.wrap_socket(
                    accepted, server_side=True, do_handshake_on_connect=False
                )
                with contextlib.suppress(OSError):
                    peer.do_handshake()
                plain = socket.socket(fileno=peer.detach())
                with plain, contextlib.suppress(OSError):
                    plain.shutdown(socket.SHUT_WR)
                    # Closed with something unread, it would reset the connection.
                    while plain.recv(65536):
                        pass

    with socket.create_server(("localhost", 0)) as accepting:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Service(port=accepting.getsockname()[1])
        finally:
            accepting.shutdown(socket.SHUT_RDWR)
            thread.join()


async def test_a_client_without_the_certificate_that_is_asked_for(
    road: str, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    """Under TLS 1.3 the refusal comes after the handshake; nothing has begun."""
    server, client = tls
    server.verify_mode = ssl.CERT_REQUIRED
    with refusing(server) as service:
        async with managed(service, ssl=client, attempts=2) as manager:
            with pytest.raises(NotSentError, match="certificate") as caught:
                await manager.session(TOKEN).call("x/pay", {})
            assert caught.value.attempts == 2, road


async def test_no_common_version_of_tls(
    tls: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    """The reason is told."""
    server, client = tls
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    client.minimum_version = ssl.TLSVersion.TLSv1_3
    with refusing(server) as service:
        async with managed(service, ssl=client, attempts=1) as manager:
            with pytest.raises(NotSentError, match=r"(?i)version"):
                await manager.session(TOKEN).agents.info()


async def test_a_peer_that_speaks_first_under_tls(
    road: str, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    """What it says may end the connection while it is taken; it is told as any end."""

    async def loud(_: object, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        writer.write(b"HTTP/1.1 junk\r\n\r\n")
        await writer.drain()

    connections: list[asyncio.StreamWriter] = []
    async with listening(loud, tls[0]) as port:
        async with managed(Service(port=port), ssl=tls[1], attempts=2) as manager:
            session = manager.session(TOKEN)
            calls = [session.agents.info() for _ in range(20)]
            ended = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(error) for error in ended} <= {
                NotSentError,
                OutcomeUnknownError,
            }, road
        assert len(connections) <= 40


# Not used again.


async def test_what_is_no_response_ends_its_connection(road: str) -> None:
    """What comes next on it may belong to something else."""

    async def odd(
        service: Service, _: bytes, __: object, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(response(b"[]" if len(service.requests) == 1 else OK_INFO))

    async with running(odd) as service, managed(service) as manager:
        session = manager.session(TOKEN)
        assert (await session.agents.info()).name == "x"
        assert (await session.agents.info()).name == "x"
        assert (service.connections, len(service.requests)) == (2, 3), road


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "tls"])
async def test_a_response_before_the_end_of_its_request(
    road: str, *, secured: bool, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    """What is left of the request is not put before the next one."""
    over = asyncio.Event()

    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        head = await reader.readuntil(b"\r\n\r\n")
        if b"/big " not in head:
            writer.write(response())
            await writer.drain()
        else:
            # It reads no more for now.
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(response(b'{"code":1002,"message":"no"}', 413))
        await over.wait()

    connections: list[asyncio.StreamWriter] = []
    settings = {"ssl": tls[1]} if secured else {}
    async with (
        listening(early, tls[0] if secured else None) as port,
        managed(Service(port=port), **settings) as manager,
    ):
        session = manager.session(TOKEN)
        with pytest.raises(InvalidError):
            await session.call("x/big", {"a": "x" * 40_000_000})
        assert (await session.agents.info()).name == "x", road
        assert len(connections) == 2
        over.set()


async def test_a_service_tells_how_long_it_keeps_a_connection(road: str) -> None:
    """Whether its headers are read before the end of the response or after it."""
    async with running(extra="Keep-Alive: timeout=3\r\n") as service:
        async with managed(service) as manager:
            await manager.session(TOKEN).agents.info()
            ((protocol, line),) = manager._connections.idle.items()
            assert (line.kept, road in {"short", "ordinary"}) == (2.0, True)
            line.until = 0.0
            await manager.session(TOKEN).agents.info()
            assert not protocol.is_connected()
        assert service.connections == 2


async def test_an_address_that_has_moved(
    road: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name is looked up again when its address does not answer any more."""
    asked: list[str] = []
    async with running() as service:
        with socket.create_server(("127.0.0.1", 0)) as gone:
            dead = gone.getsockname()[1]

        async def resolve(
            _: object, host: str, *__: object, **___: object
        ) -> list[Any]:
            asked.append(host)
            port = dead if len(asked) == 1 else service.port
            found = {"hostname": host, "host": "127.0.0.1", "port": port}
            return [{**found, "family": socket.AF_INET, "proto": 6, "flags": 0}]

        monkeypatch.setattr(aiohttp.resolver.ThreadedResolver, "resolve", resolve)
        async with managed(service, attempts=2) as manager:
            assert (await manager.session(TOKEN).agents.info()).name == "x"
        assert len(asked) == 2, road


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "tls"])
async def test_nothing_is_left_of_calls_that_were_given_up(
    road: str, *, secured: bool, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    """At most so many connections as permits, and none without waiting for a peer."""
    settings: dict[str, Any] = {"ssl": tls[1]} if secured else {}
    settings |= {"limit": 5, "timeout": 0.2 * PATIENCE, "linger": 0, "abandon_after": 0}
    async with running(is_silent, tls[0] if secured else None) as service:
        async with managed(service, **settings, attempts=1) as manager:
            session = manager.session(TOKEN)
            for size in (1, 1, 1_000_000):
                body = {"a": "x" * size}
                calls = [session.call("x/pay", body) for _ in range(10)]
                ended = await asyncio.gather(*calls, return_exceptions=True)
                assert {type(error).__name__ for error in ended} <= {
                    "OutcomeUnknownError",
                    "NotSentError",
                }
                assert len(manager._connections.lines) <= 5, road
            # Half a minute is what TLS would wait for a peer's goodbye.
            async with asyncio.timeout(10 * PATIENCE):
                while service.now:
                    await look_again()
        assert manager._connections.lines == {}


# Headers.


async def test_a_long_header_is_read(road: str) -> None:
    """Up to a bound that can be set; what is over it is an unknown outcome."""
    async with running(extra=f"X-Policy: {'a' * 20_000}\r\n") as service:
        async with managed(service) as manager:
            assert (await manager.session(TOKEN).agents.info()).name == "x", road
        async with managed(service, max_header_size=10_000) as manager:
            with pytest.raises(OutcomeUnknownError):
                await manager.session(TOKEN).call("x/pay", {})


# Other versions of aiohttp.


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (aiohttp.ClientSession, "_request"),
        (aiohttp.TCPConnector, "_create_connection"),
        (aiohttp.TCPConnector, "_release"),
        (ResponseHandler, "read"),
        (ResponseHandler, "set_response_params"),
        (ResponseHandler, "should_close"),
        (aiohttp.StreamReader, "total_bytes"),
        (aiohttp.StreamReader, "readany"),
    ],
)
async def test_a_version_without_what_the_short_road_needs(
    kind: type,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Calls take the ordinary one, and one line says so."""
    seen: list[object] = []

    def missing(checked: type, asked: str) -> bool:
        return (checked, asked) != (kind, name) and hasattr(checked, asked)

    before = aiohttp.ClientSession.post

    def post(self: aiohttp.ClientSession, *args: Any, **kwargs: Any) -> Any:
        seen.append(self)
        return before(self, *args, **kwargs)

    monkeypatch.setattr(aiohttp.ClientSession, "post", post)
    # aiohttp itself cannot do without them.
    monkeypatch.setattr("aio_agentapi._transport.hasattr", missing, raising=False)
    caplog.set_level(logging.WARNING)
    async with running() as service, managed(service) as manager:
        for _ in range(3):
            assert (await manager.session(TOKEN).agents.info()).name == "x"
    assert len(seen) == 3
    assert caplog.text.count(f"{kind.__name__}.{name}") == 1


# Descriptors.


async def test_connections_have_a_bound_over_all_sessions(
    road: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Idle ones of others are closed first, and who is over it waits."""
    at_once: list[int] = []
    opened = Connections.opened

    def counted(self: Connections, *args: Any) -> None:
        opened(self, *args)
        at_once.append(sum(p.is_connected() for p in self.lines))

    monkeypatch.setattr(Connections, "opened", counted)
    tokens = [f"{number:08}-2222-3333-4444-555555555555" for number in range(5)]
    async with running() as service, managed(service, max_connections=3) as manager:
        for _ in range(3):
            calls = [
                manager.session(token).agents.info()
                for token in tokens
                for _ in range(8)
            ]
            assert {agent.name for agent in await asyncio.gather(*calls)} == {"x"}
        assert max(at_once) == 3, road
        assert len(service.requests) == 120


async def test_a_descriptor_is_waited_for_and_not_asked_for_again_and_again(
    road: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call tries once; then one goes on with each connection that comes back."""
    over, tried = asyncio.Event(), list[object]()
    create = aiohttp.TCPConnector._create_connection

    async def scarce(self: aiohttp.TCPConnector, *args: Any) -> ResponseHandler:
        tried.append(self)
        if len(tried) > 1:
            # All try before the first one fails.
            await asyncio.sleep(0)
            raise OSError(errno.EMFILE, "too many open files")
        return await create(self, *args)

    async def held(
        _: Service, __: bytes, ___: object, writer: asyncio.StreamWriter
    ) -> None:
        await over.wait()
        writer.write(response())

    monkeypatch.setattr(aiohttp.TCPConnector, "_create_connection", scarce)
    async with running(held) as service, managed(service) as manager:
        session = manager.session(TOKEN)
        calls = [asyncio.create_task(session.agents.info()) for _ in range(6)]
        while len(tried) < 6 or not service.requests:
            await look_again()
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(tried) == 6, road
        over.set()
        assert {agent.name for agent in await asyncio.gather(*calls)} == {"x"}
        assert service.connections == 1


CROWD: Final = """
import asyncio, resource, sys
from aio_agentapi import SessionManager, Settings
# Far fewer than are thought to be there.
settings = Settings(max_connections=10_000)
async def main():
    async with SessionManager(sys.argv[1], settings=settings) as manager:
        await manager.session(f"{0:08}-2222-3333-4444-555555555555").agents.info()
        resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
        for _ in range(2):
            await asyncio.gather(*(
                manager.session(f"{number:08}-2222-3333-4444-555555555555").agents.info()
                for number in range(20) for _ in range(30)
            ))
asyncio.run(main())
"""


@pytest.mark.process
async def test_no_call_fails_for_want_of_a_descriptor() -> None:
    """Idle connections of others are given up, and the next one is waited for."""
    async with running() as service:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", CROWD, f"http://127.0.0.1:{service.port}"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=Path(__file__).parents[2],
        )
        out, _ = await process.communicate()
        assert out.decode()[-500:] == ""
        assert process.returncode == 0
        assert len(service.requests) == 1201
