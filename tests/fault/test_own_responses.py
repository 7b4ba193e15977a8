"""
Responses that nobody asked for, on connections that are idle: no request gets them.

A server in threads says more, or ends, on any connection that it has answered on, while
the loop is blocked or runs for some turns. It does so only while no request is under
way: what comes beside one could not be told from its response.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import random
import socket
import ssl
import threading
from collections.abc import Generator
from typing import Any, Final

import attrs
import pytest
import trustme
import uvloop

from aio_agentapi import Secret, Settings
from aio_agentapi._transport import Transport
from tests.conftest import TOKEN
from tests.waiting import PATIENCE

SAYS: Final = {
    "nothing": b"",
    "response": b'HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n"wrong"',
    "two": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1" * 2,
    "refusal": b"HTTP/1.1 400 Bad\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
    "half": b"HTTP/1.1 200 OK\r\nContent-Le",
    "junk": b"\0\r\n\r\n",
    "interim": b"HTTP/1.1 100 Continue\r\n\r\n",
    "end": b"",
}


@attrs.define(eq=False)
class Side:
    """One connection, as the server has it."""

    connection: socket.socket
    told: queue.SimpleQueue[str] = attrs.field(factory=queue.SimpleQueue)
    done: threading.Event = attrs.field(factory=threading.Event)

    def say(self, what: str) -> None:
        """Let it say so, and wait until the client's kernel has it."""
        self.done.clear()
        self.told.put(what)
        assert self.done.wait(20)


@attrs.define(eq=False)
class Server:
    """A server whose responses have the body of their request."""

    context: ssl.SSLContext | None
    port: int = 0
    connections: int = 0
    executed: list[bytes] = attrs.field(factory=list)
    # What has answered, and waits to be told what to say.
    answered: queue.SimpleQueue[Side] = attrs.field(factory=queue.SimpleQueue)

    def serve(self, connection: socket.socket) -> None:
        """Serve one connection."""
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            if self.context is not None:
                connection = self.context.wrap_socket(connection, server_side=True)
            side = Side(stack.enter_context(connection))
            self.connections += 1
            with connection.makefile("rb") as file:
                while True:
                    length = 0
                    while (line := file.readline()) != b"\r\n":
                        if not line:
                            return
                        if line.lower().startswith(b"content-length:"):
                            length = int(line.split(b":")[1])
                    body = file.read(length)
                    self.executed.append(body)
                    self.answered.put(side)
                    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
                    connection.sendall(head % length + body)
                    self.speak(side)

    def speak(self, side: Side) -> None:
        """Say what it is told to."""
        what = side.told.get()
        try:
            side.connection.sendall(SAYS[what])
            if what == "end":
                side.connection.shutdown(socket.SHUT_WR)
        finally:
            side.done.set()


@contextlib.contextmanager
def serving(context: ssl.SSLContext | None) -> Generator[Server]:
    """Run such a server."""
    server = Server(context)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = accepting.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(
                    target=server.serve, args=(connection,), daemon=True
                ).start()

    with socket.create_server(("127.0.0.1", 0)) as accepting:
        server.port = accepting.getsockname()[1]
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield server
        finally:
            accepting.shutdown(socket.SHUT_RDWR)
            thread.join()


async def rounds(transport: Transport, server: Server, count: int) -> int:
    """Call so often at least, some at once, and let the server say more in between."""
    dice, number = random.Random(count), 0  # noqa: S311 - a schedule
    while number < count:
        bodies = [b'"%d"' % (number + more) for more in range(dice.randint(1, 8))]
        number += len(bodies)
        # Where one was taken for another, the last one waits for ever.
        async with asyncio.timeout(20 * PATIENCE):
            answers = await asyncio.gather(
                *(transport.send("agent/info", b, transport.sending()) for b in bodies)
            )
        assert [answer.body for answer in answers] == bodies
        # The loop is blocked meanwhile.
        sides = [server.answered.get(timeout=20) for _ in bodies]
        for side in dice.sample(sides, len(sides)):
            side.say(dice.choice([*SAYS]) if dice.random() < 0.3 else "nothing")
        # It may get to read some of it, or none.
        for _ in range(dice.choice([0, 0, 0, 1, 2, 5])):
            await asyncio.sleep(0)
    return number


def play(*, tls: bool, factory: Any, count: int) -> None:
    """Play it in a loop."""
    authority = trustme.CA()
    secured, trust = (
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
        ssl.create_default_context(),
    )
    authority.issue_cert("127.0.0.1").configure_cert(secured)
    authority.configure_trust(trust)

    async def main() -> None:
        with serving(secured if tls else None) as server:
            url = f"{'https' if tls else 'http'}://127.0.0.1:{server.port}"
            settings = Settings(ssl=trust if tls else None)
            transport = Transport(url, Secret(TOKEN), settings)
            sent = await rounds(transport, server, count)
            # Each was executed once, and many connections were given up.
            assert len(server.executed) == len({*server.executed}) == sent
            assert server.connections > sent / 50
            await transport.aclose()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_no_request_gets_what_is_not_its_own(
    road: str, factory: Any, *, tls: bool
) -> None:
    """On either road, in either loop, with TLS and without."""
    play(tls=tls, factory=factory, count=300)
    assert road


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_no_request_of_a_hundred_thousand_gets_what_is_not_its_own(
    road: str, factory: Any, *, tls: bool
) -> None:
    """The same, for as many calls over all eight."""
    play(tls=tls, factory=factory, count=12_500)
    assert road
