"""What a transport sends and reads, on its short road and on aiohttp's own."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import ssl
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import attrs
import pytest
import trustme
import uvloop

from aio_agentapi import Secret, SessionManager, Settings, _connections
from aio_agentapi._transport import Answer, Sending, Transport
from aio_agentapi.errors import (
    AgentAPIError,
    DecodeError,
    NotSentError,
    OutcomeUnknownError,
)
from tests.conftest import TOKEN
from tests.leak import is_in, told
from tests.waiting import look_again

NEW = "99999999-8888-7777-6666-abcdefabcdef"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@attrs.define
class Server:
    """A server that answers with given bytes, and keeps what it was sent."""

    base_url: str = ""
    pieces: list[bytes] = attrs.field(factory=list)
    requests: list[bytes] = attrs.field(factory=list)
    connections: int = 0
    # Between two pieces of an answer, and after all of them.
    pause: float = 0.0
    hang_up: bool = False

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Answer one request after the other."""
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split()[0])
                self.requests.append(head + await reader.readexactly(length))
                for piece in self.pieces:
                    writer.write(piece)
                    # What comes in pieces, for whoever reads it.
                    await asyncio.sleep(self.pause)
                if self.hang_up:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def served(*pieces: bytes, **more: Any) -> AsyncGenerator[Server]:
    """Run a server."""
    server = Server(pieces=[*pieces], **more)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    server.base_url = f"http://127.0.0.1:{port}/api"
    async with listening:
        yield server


@asynccontextmanager
async def sender(server: Server, **settings: Any) -> AsyncGenerator[Transport]:
    """Open a transport."""
    transport = Transport(server.base_url, Secret(TOKEN), Settings(**settings))
    try:
        yield transport
    finally:
        await transport.aclose()


async def send(transport: Transport, text: bytes = b"{}") -> Answer:
    """Send a request."""
    return await transport.send("agent/info", text, transport.sending())


async def test_both_roads_send_the_same() -> None:
    """One request to the byte, but for the order of the lines."""
    sent: list[tuple[bytes, set[bytes], bytes]] = []
    async with served(OK) as server, sender(server) as transport:
        assert transport.sending().resumable
        for resumable in (True, False):
            text = '{"name":"ä"}'.encode()
            await transport.send("agent/info", text, Sending(resumable))
            head, _, body = server.requests[-1].partition(b"\r\n\r\n")
            first, *lines = head.split(b"\r\n")
            sent.append((first, set(lines), body))
        assert server.connections == 1
    assert sent[0] == sent[1]
    assert sent[0][0] == b"POST /api/v4/agent/info HTTP/1.1"
    assert f"Authorization: Bearer {TOKEN}".encode() in sent[0][1]


async def test_a_tracer_has_the_ordinary_road(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever watches aiohttp sees the calls of this library as well."""
    seen: list[str] = []
    trace = aiohttp.TraceConfig()

    async def begun(
        _: aiohttp.ClientSession, __: object, told: aiohttp.TraceRequestStartParams
    ) -> None:
        seen.append(told.method)

    trace.on_request_start.append(begun)
    made = aiohttp.ClientSession.__init__

    def instrumented(self: aiohttp.ClientSession, *args: Any, **kwargs: Any) -> None:
        made(self, *args, trace_configs=[trace], **kwargs)

    monkeypatch.setattr(aiohttp.ClientSession, "__init__", instrumented)
    async with served(OK) as server, sender(server) as transport:
        assert await send(transport) == (200, b"{}")
    assert seen == ["POST"]


FORMS = {
    "in one piece": (OK,),
    "byte by byte": tuple(bytes([byte]) for byte in OK),
    "told to go on": (b"HTTP/1.1 100 Continue\r\n\r\n", OK),
    "all of it interim": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
        b"HTTP/1.1 199 X\r\n\r\n" + OK,
    ),
    "hints first": (b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", OK),
    "chunked": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
        b"1\r\n}\r\n0\r\n\r\n",
    ),
    "compressed": (
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: "
        + str(len(gzip.compress(b"{}"))).encode()
        + b"\r\n\r\n"
        + gzip.compress(b"{}"),
    ),
}


@pytest.mark.parametrize("pieces", FORMS.values(), ids=FORMS)
async def test_an_answer_of_any_form(road: str, pieces: tuple[bytes, ...]) -> None:
    """Its whole body, and the connection serves the next request."""
    async with served(*pieces, pause=0.001) as server, sender(server) as transport:
        for _ in range(3):
            assert await send(transport) == (200, b"{}")
        assert transport.sending().resumable == (road == "short")
        assert server.connections == 1


async def test_an_answer_that_ends_with_its_connection(road: str) -> None:
    """Without a length: to the end, and the next one has a new connection."""
    text = b"HTTP/1.0 200 OK\r\n\r\n{}"
    async with served(text, hang_up=True) as server, sender(server) as transport:
        for _ in range(2):
            assert await send(transport) == (200, b"{}")
        assert server.connections == 2, road


@pytest.mark.parametrize("text", [b"HTTP/1.1 204 No Content\r\n\r\n"])
async def test_an_answer_without_a_body(road: str, text: bytes) -> None:
    """It has an end."""
    async with served(text) as server, sender(server) as transport:
        assert await send(transport) == (204, b"")
        assert await send(transport) == (204, b""), road


@pytest.mark.parametrize(
    "text",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n" + b"x" * 11,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n%b\r\n0\r\n\r\n"
        % (b"x" * 11),
    ],
    ids=["announced", "chunked"],
)
async def test_an_answer_that_is_too_large(road: str, text: bytes) -> None:
    """It is not read to its end; the connection serves the next one or is closed."""
    async with served(text) as server, sender(server, max_answer=10) as transport:
        for count in (1, 2):
            with pytest.raises(DecodeError, match="max_answer"):
                await send(transport)
            assert server.connections <= count, road


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
        b"no HTTP at all\r\n\r\n",
    ],
    ids=["nothing", "half a head", "half a body", "no HTTP"],
)
async def test_an_answer_that_is_cut(road: str, text: bytes) -> None:
    """It may have happened, and the connection is gone."""
    async with served(text, hang_up=True) as server, sender(server) as transport:
        for count in (1, 2):
            with pytest.raises(OutcomeUnknownError):
                await send(transport)
            assert server.connections == count, road


async def test_a_sending_goes_on_where_it_was() -> None:
    """Cancelled at any byte of its answer, it is not sent again and loses none."""
    pieces = [bytes([byte]) for byte in OK]
    async with served(*pieces, pause=0.0005) as server, sender(server) as transport:
        # A cancelled attempt to connect would be a connection for the server.
        assert await send(transport) == (200, b"{}")
        server.requests.clear()
        for patience in range(1, 30, 3):
            sending, cancelled = transport.sending(), 0
            while True:
                task = asyncio.ensure_future(
                    transport.send("agent/info", b"{}", sending)
                )
                done, _ = await asyncio.wait([task], timeout=patience / 1000)
                if done:
                    break
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                cancelled += sending.connected
            assert await task == (200, b"{}")
            assert len(server.requests) == 1
            server.requests.clear()
        assert server.connections == 1


async def test_what_is_dropped_ends_its_connection() -> None:
    """The next sending has another one."""
    async with served(OK, pause=0.01) as server, sender(server) as transport:
        sending = transport.sending()
        server.pieces = []
        task = asyncio.ensure_future(transport.send("agent/info", b"{}", sending))
        while not server.requests:
            await look_again()
        task.cancel()
        await asyncio.wait([task])
        sending.drop()
        sending.drop()
        server.pieces = [OK]
        assert await send(transport) == (200, b"{}")
        assert server.connections == 2


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("guarded", [False, True])
def test_what_broke_is_dropped(factory: Any, road: str, *, guarded: bool) -> None:
    """A connection that is closed already is no other error, whatever the loop."""

    async def main() -> None:
        async with served(b"", hang_up=True) as server, sender(server) as transport:
            for _ in range(3):
                sending = transport.sending(guarded=guarded)
                with pytest.raises(OutcomeUnknownError, match="Disconnected"):
                    await transport.send("agent/info", b"{}", sending)
                sending.drop()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    assert road


@pytest.mark.realtime
async def test_what_nobody_asked_for_is_no_answer(road: str) -> None:
    """A second answer on an idle connection: the next request has another one."""
    late = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong"
    async with served(OK, late, pause=0.02) as server, sender(server) as transport:
        assert await send(transport) == (200, b"{}")
        # Long after the pause it is there, though nobody can see it from here.
        await asyncio.sleep(0.1)
        server.pieces = [OK]
        for _ in range(2):
            assert await send(transport) == (200, b"{}"), road
        assert server.connections == 2


async def test_an_answer_before_its_request_is_sent() -> None:
    """What is left of the request would go before the next one: not on that way."""

    async def hasty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(OK)
            if b"Content-Length: 2\r\n" not in head:
                # It reads no more of this one.
                await done.wait()
        writer.close()

    done = asyncio.Event()
    listening = await asyncio.start_server(hasty, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    server = Server(base_url=f"http://127.0.0.1:{port}")
    async with listening, sender(server) as transport:
        try:
            assert await send(transport, b"x" * 30_000_000) == (200, b"{}")
            async with asyncio.timeout(20):
                assert await send(transport) == (200, b"{}")
        finally:
            done.set()


@pytest.mark.realtime
@pytest.mark.parametrize("leaves", [False, True])
async def test_half_an_answer_is_in_no_frame(*, leaves: bool) -> None:
    """The token of a new account may be in it."""
    half = b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n" + NEW.encode()
    async with (
        served(half, pause=0.1, hang_up=True) as server,
        SessionManager(server.base_url, settings=Settings(drain=0)) as manager,
    ):
        call = asyncio.ensure_future(manager.session(TOKEN).agents.create("shop_7"))
        while not server.requests:
            await look_again()
        # The half is there, and the other does not come.
        await asyncio.sleep(0.03)
        if leaves:
            call.cancel()
        with pytest.raises((OutcomeUnknownError, asyncio.CancelledError)) as caught:
            await call
        assert not is_in(told(caught.value), NEW)


class Alarm(BaseException):
    """What the handler of a signal raises."""

    def __init__(self, *, seconds: int) -> None:
        super().__init__("alarm", seconds)


async def test_an_interrupt_of_any_class_reaches_the_caller() -> None:
    """Also one that is not made of its ``args``."""
    async with (
        served() as server,
        SessionManager(server.base_url, settings=Settings(drain=0)) as manager,
    ):
        task = asyncio.ensure_future(manager.session(TOKEN).agents.info())
        while not server.requests:
            await look_again()
        coroutine: Any = task.get_coro()
        with pytest.raises(Alarm):
            coroutine.throw(Alarm(seconds=1))
        task.cancel()
        await asyncio.wait([task])
        # Its coroutine was ended by hand.
        assert isinstance(task.exception(), RuntimeError)


async def test_a_transport_that_cannot_be_opened_loses_no_permit() -> None:
    """What aiohttp says of a setting is told, and the gate is whole."""
    wrong: Any = "no context"
    async with SessionManager(
        "http://127.0.0.1:9", settings=Settings(ssl=wrong, attempts=1)
    ) as manager:
        session = manager.session(TOKEN)
        for _ in range(2):
            with pytest.raises(AgentAPIError, match="TypeError"):
                await session.agents.info()
        assert session.gate.statistics().in_use == 0


async def test_a_connection_that_is_not_had_in_time_is_told_as_that() -> None:
    """The caller's own time was over; nobody has cut anything."""
    with contextlib.ExitStack() as stack:
        deaf = stack.enter_context(socket.socket())
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(deaf.getsockname())
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        settings = Settings(timeout=0.2, attempts=1)
        async with SessionManager(url, settings=settings) as manager:
            with pytest.raises(NotSentError, match="no connection in time"):
                await manager.session(TOKEN).agents.info()


# What is on a connection before its request.


@attrs.define(eq=False)
class Peer:
    """A server in a thread, which says one thing more when a test wants it."""

    base_url: str
    # Said behind each answer, once that is wanted; empty: it says no more at all.
    more: bytes
    connections: int = 0
    wanted: threading.Event = attrs.field(factory=threading.Event)
    said: threading.Event = attrs.field(factory=threading.Event)

    def serve(self, side: socket.socket, context: ssl.SSLContext | None) -> None:
        """Answer a request with the body that it had, and say more."""
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            if context is not None:
                side = context.wrap_socket(side, server_side=True)
            stack.enter_context(side)
            self.connections += 1
            with side.makefile("rb") as file:
                while True:
                    length = 0
                    while (line := file.readline()) != b"\r\n":
                        if not line:
                            return
                        if line.lower().startswith(b"content-length:"):
                            length = int(line.split(b":")[1])
                    side.sendall(answer(file.read(length)))
                    self.wanted.wait()
                    self.wanted.clear()
                    if self.more:
                        side.sendall(self.more)
                    else:
                        side.shutdown(socket.SHUT_WR)
                    self.said.set()

    def say(self) -> None:
        """Let it say so, and wait until it has: the loop does nothing meanwhile."""
        self.wanted.set()
        assert self.said.wait(20)
        self.said.clear()


def answer(body: bytes) -> bytes:
    """Write an answer."""
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


@contextlib.contextmanager
def peer(context: ssl.SSLContext | None, more: bytes) -> Generator[Peer]:
    """Run such a server."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        scheme = "http" if context is None else "https"
        port = listening.getsockname()[1]
        found = Peer(f"{scheme}://127.0.0.1:{port}", more)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    side, _ = listening.accept()
                    side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    args = (side, context)
                    threading.Thread(target=found.serve, args=args, daemon=True).start()

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield found
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            accepting.join()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("what", ["answer", "half", "junk", "end"])
def test_what_came_while_the_loop_was_busy_is_no_answer(
    road: str, what: str, factory: Any, *, tls: bool
) -> None:
    """It is in the kernel, and the request goes on another connection."""
    authority = trustme.CA()
    server, trust = (
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
        ssl.create_default_context(),
    )
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(trust)
    pieces = {"answer": answer(b"wrong"), "half": b"HTTP/1.1 2", "junk": b"\0\r\n"}

    async def main() -> None:
        with peer(server if tls else None, pieces.get(what, b"")) as there:
            settings = Settings(ssl=trust if tls else None)
            transport = Transport(there.base_url, Secret(TOKEN), settings)
            for number in range(20):
                own = b'"%d"' % number
                assert (await send(transport, own)).body == own
                there.say()
            assert there.connections == 20
            await transport.aclose()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    assert road


async def test_a_peer_that_speaks_first_is_not_asked(
    road: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was sent, and it is not connected to again and again."""

    def holds(_: object) -> bool:
        return True

    monkeypatch.setattr(_connections.Line, "holds_something", holds)
    async with (
        served(OK) as server,
        SessionManager(server.base_url, settings=Settings(attempts=3)) as manager,
    ):
        with pytest.raises(NotSentError) as caught:
            await manager.session(TOKEN).agents.info()
        assert (caught.value.happened, caught.value.attempts) == ("no", 3), road
        assert server.connections == 3
        assert server.requests == []
