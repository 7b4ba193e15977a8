"""
One token's requests and their responses, on aiohttp's connections.

Foreign errors keep the request's headers, and so the token, in their fields and in
the locals of their frames. Each is translated by one table, and ours is raised
after the ``except`` block has ended: neither its cause, its context nor its
traceback leads to a frame of aiohttp. The same is done for a cancellation.

What is given up does not arrive later. A connection that is dropped is disconnected,
whoever else has it (a fork), so that the kernel forgets what it has not sent yet; a
request that must not arrive late has its connection reset whoever closes it, the kernel
of a killed process included. What a peer does not take within ``unacked`` seconds ends
its connection. What is left is what has been handed to the network: a packet may wait
there for the address of its next hop, for some three seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import io
import logging
import os
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

import aiohttp
import attrs
from aiohttp.client_proto import ResponseHandler
from aiohttp.tracing import Trace
from yarl import URL

from aio_agentapi._connections import (
    AT_ONCE,
    Connections,
    Connector,
    NoConnectionError,
    extra,
)
from aio_agentapi._settings import Settings
from aio_agentapi._types import Secret
from aio_agentapi.errors import (
    AgentAPIError,
    ClosedError,
    DecodeError,
    NotSentError,
    OutcomeUnknownError,
)


class _ProxyRefusedError(Exception):
    """A proxy for plain HTTP wants to know who asks: it has passed nothing on."""


# Raised only before the first byte of a request is written: for mocks, which never ask
# for a connection. What raises these or others while one is got has sent nothing.
_NOT_SENT: Final = (
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.ClientHttpProxyError,
    aiohttp.ServerFingerprintMismatch,
    aiohttp.InvalidURL,
    # A host name that cannot be looked up.
    UnicodeError,
    NoConnectionError,
)

_MANY: Final = 2**20

# Under TLS 1.3 this ends the handshake when the client takes it for done already: the
# service has read nothing.
_UNCERTIFIED: Final = "ALERT_CERTIFICATE_REQUIRED"

# Only a proxy answers so.
_PROXY_WANTS_NAME: Final = 407

# 1xx: the answer is still to come. 101 would be one.
_INTERIM: Final = frozenset(range(100, 200)) - {101}


class Answer(NamedTuple):
    """What came back: any HTTP status, the whole body."""

    status: int
    body: bytes


@attrs.define(eq=False)
class Sending:
    """
    How far one request has come, for whoever wants to leave it.

    Attributes:
        resumable: Whether :meth:`Transport.send` may be cancelled and called again:
            it goes on where it was. Otherwise its connection ends with it.

        guarded: Whether its connection is reset if it ends before the answer is read.

        connected: Whether it has a connection, so that it may have been sent.

        body: What its answer is read from, once that has begun.

        asked: Whether a connection was asked for: without one nothing was sent.

        size: Bytes of its body.
    """

    resumable: bool = False
    guarded: bool = False
    connected: bool = False
    body: aiohttp.StreamReader | None = None
    asked: bool = False
    size: int = 0
    # Whose connection it is, or was.
    protocol: ResponseHandler | None = attrs.field(default=None, repr=False)
    # What it is sent on.
    transport: asyncio.Transport | None = attrs.field(default=None, repr=False)
    # What the short road keeps between two calls.
    connection: aiohttp.connector.Connection | None = None
    status: int = 0
    # Not shown: it may be the token of a new account.
    pieces: list[bytes] = attrs.field(factory=list, repr=False)
    length: int = 0

    def read(self) -> int:
        """Return how much of its answer has come, in bytes."""
        return getattr(self.body, "total_bytes", 0)

    def pause(self) -> None:
        """Let somebody else read on; nobody waits for the answer at present."""
        protocol = None if self.connection is None else self.connection.protocol
        if protocol is not None:
            # aiohttp does so for whoever is cancelled, not where he is closed.
            protocol._waiter = None  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - as said

    def take(self, connection: aiohttp.connector.Connection) -> None:
        """Go on a connection, before anything is written to it."""
        self.connected, self.transport = True, connection.transport
        self.protocol = connection.protocol
        if self.guarded and self.transport is not None:
            _set_reset(self.transport, on=True)

    def drop(self) -> None:
        """Reset its connection, if it still has one: nothing of it is sent any more."""
        transport, self.transport = self.transport, None
        if transport is not None:
            _set_reset(transport, on=True)
            _disconnect(transport)
            transport.abort()
        elif self.protocol is not None:
            # It was given back, and others may have it: it is closed after them.
            self.protocol.force_close()
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()


class _TooLargeError(Exception):
    """The answer is larger than ``max_answer``."""


_LOG: Final = logging.getLogger("aio_agentapi.connections")

_Connect: TypeAlias = Callable[
    [aiohttp.ClientRequest], Awaitable[aiohttp.connector.Connection]
]


def _socket(info: tuple[Any, ...], *, unacked: float) -> socket.socket:
    """Make a socket that ends when its peer takes nothing for so many seconds."""
    family, kind, protocol, *_ = info
    made = socket.socket(family, kind, protocol)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        milliseconds = max(1, round(unacked * 1000))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    return made


# struct linger: whether it is on, and for how many seconds.
_LINGER: Final = struct.Struct("ii" if os.name != "nt" else "hh")


def _set_reset(transport: asyncio.BaseTransport, *, on: bool) -> None:
    """Say whether closing a connection resets it and forgets what is not sent yet."""
    found = extra(transport, "socket")
    # None where a mock is in its place; without a number where it is closed already.
    if found is None or found.fileno() < 0:
        return
    with contextlib.suppress(OSError):
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER.pack(on, 0))


def _disconnect(transport: asyncio.BaseTransport) -> None:
    """Take a connection back from the kernel, also where a forked process has it."""
    found = extra(transport, "socket")
    if found is None or found.fileno() < 0 or not sys.platform.startswith("linux"):
        return
    # Nobody closes it where somebody else has it, and no method of Python's sockets
    # does this: connect() with an address of no family.
    ctypes.CDLL(None).connect(found.fileno(), _NOWHERE, len(_NOWHERE))


# struct sockaddr of AF_UNSPEC.
_NOWHERE: Final = struct.pack("H14x", socket.AF_UNSPEC)


# As aiohttp brings it: mocks and tracers put their own in its place.
_REQUEST: Final = getattr(aiohttp.ClientSession, "_request", None)


class _Noting(Connector):
    """
    Tells who got a connection, where aiohttp asks for one.

    Only who got one can have sent anything. It is noted by the task, which aiohttp
    connects in: a context may be shared by several.
    """

    def __init__(
        self,
        without: dict[asyncio.Task[object] | None, Sending],
        connections: Connections,
        **options: Any,  # noqa: ANN401 - aiohttp's
    ) -> None:
        self.without = without
        super().__init__(connections, **options)

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's signature
    ) -> aiohttp.connector.Connection:
        task = asyncio.current_task()
        if task in self.without:
            self.without[task].asked = True
        connection = await self.fit(req, traces, timeout)
        sending = self.without.pop(task, None)
        if sending is not None:
            sending.take(connection)
            if sending.size > AT_ONCE:
                self.fill(connection)
        return connection


# What the short road needs that aiohttp does not document.
_NEEDED: Final[Mapping[type, tuple[str, ...]]] = {
    aiohttp.ClientSession: ("_request",),
    aiohttp.TCPConnector: ("connect", "_create_connection", "_release"),
    ResponseHandler: ("read", "set_response_params", "should_close"),
    aiohttp.StreamReader: ("at_eof", "readany", "total_bytes"),
}


def _missing(loop: asyncio.AbstractEventLoop) -> list[str]:
    """Return what the short road needs and this version of aiohttp does not have."""
    found = [
        f"{kind.__name__}.{name}"
        for kind, names in _NEEDED.items()
        for name in names
        if not hasattr(kind, name)
    ]
    with contextlib.suppress(Exception):
        if hasattr(ResponseHandler(loop), "_waiter"):
            return found
    return [*found, "ResponseHandler._waiter"]


@attrs.define(eq=False, repr=False)
class Transport:
    """
    One pooled set of connections, opened at first use.

    Args:
        base_url: Checked, without a slash at its end.

        secret: The token that goes with every request.

        settings: Proxy, TLS and the time to connect.

        connections: What is shared with the other sessions of a manager.
    """

    _base_url: str = attrs.field(alias="base_url")
    _secret: Secret = attrs.field(alias="secret")
    _settings: Settings = attrs.field(alias="settings")
    _connections: Connections = attrs.field(
        alias="connections",
        default=attrs.Factory(
            lambda self: Connections(self._settings), takes_self=True
        ),
    )
    _http: aiohttp.ClientSession | None = attrs.field(init=False, default=None)
    # The tasks whose request has no connection yet.
    _without: dict[asyncio.Task[object] | None, Sending] = attrs.field(
        init=False, factory=dict
    )
    _closed: bool = attrs.field(init=False, default=False)
    # The short road: what a connection is asked for with, and the heads of requests
    # but for the token, by path. None: the ordinary one.
    _template: aiohttp.ClientRequest | None = attrs.field(init=False, default=None)
    _heads: dict[str, bytes] = attrs.field(init=False, factory=dict)
    _connect: _Connect = attrs.field(init=False)
    _connector: Connector = attrs.field(init=False)

    def sending(self, *, guarded: bool = False) -> Sending:
        """
        Return the beginning of a request.

        Args:
            guarded: Whether it may do harm when it arrives after it was given up.
        """
        if self._http is None and not self._closed:
            # What is wrong here is told by send(), where the permit has an owner.
            with contextlib.suppress(Exception):
                self._open()
        short = self._template is not None
        request = getattr(aiohttp.ClientSession, "_request", None)
        resumable = short and request is _REQUEST
        return Sending(resumable, guarded)

    async def send(self, path: str, text: bytes, sending: Sending) -> Answer:
        """
        Send one request and read its whole answer, however long that takes.

        Whoever cancels it looks at *sending* then: with a connection it may have
        been executed. One that is resumable goes on when it is called again, with
        the same arguments; or it is dropped.

        Args:
            path: Relative to ``/v4/``.

            text: The JSON body.

            sending: Is told when there is a connection.

        Returns:
            The answer, whatever its status; redirects are not followed.

        Raises:
            NotSentError: No connection, so nothing was sent.

            OutcomeUnknownError: The answer was lost.

            DecodeError: The answer is larger than ``max_answer``.

            ClosedError: The transport is closed. Nothing was sent.
        """
        if self._closed:
            msg = "the session is closed. Nothing was sent"
            raise ClosedError(msg)
        sending.size = len(text)
        try:
            if not sending.resumable:
                return await self._post(path, text, sending)
            if not sending.connected:
                await self._write(path, text, sending)
            return await self._receive(sending)
        except Exception as error:  # noqa: BLE001 - the token is in its frames, whatever it is
            sending.drop()
            end: BaseException = self._translate(error, sending)
        except BaseException as error:  # noqa: BLE001 - a cancellation, or an interrupt
            if sending.resumable:
                sending.pause()
            else:
                sending.drop()
            try:
                end = type(error)(*error.args)
            except Exception:  # noqa: BLE001 - a class that is not made of its args
                end = error.with_traceback(None)
                end.__cause__ = end.__context__ = None
        # Without the frames of the old.
        raise end

    async def aclose(self) -> None:
        """Close every connection; exchanges that still run lose their answer."""
        self._closed = True
        if self._http is not None:
            await self._http.close()

    def scrub(self, text: str) -> str:
        """Blot the token out of *text*, which a service may have echoed."""
        return self._secret.scrub(text)

    async def _write(self, path: str, text: bytes, sending: Sending) -> None:
        """Get a connection and write the request, in one piece; it is buffered."""
        template = self._template
        assert template is not None  # noqa: S101 - else no sending is resumable
        sending.asked = True
        try:
            connection = await self._connect(template)
        except TimeoutError:
            # As aiohttp's session names it.
            raise aiohttp.ConnectionTimeoutError from None
        protocol = connection.protocol
        if protocol is None or protocol.transport is None:
            # It was there, and has gone in the same turn.
            connection.close()
            raise NoConnectionError
        size = self._settings.max_header_size
        protocol.set_response_params(
            read_until_eof=True, max_line_size=size, max_field_size=size
        )
        if sending.size > AT_ONCE:
            self._connector.fill(connection)
        sending.connection = connection
        sending.take(connection)
        head = self._heads.get(path) or self._head(path, template)
        protocol.transport.write(
            b"%bAuthorization: Bearer %b\r\nContent-Length: %d\r\n\r\n%b"
            # At the last moment, and in no variable of ours.
            % (head, self._secret.reveal().encode(), len(text), text)
        )

    async def _receive(self, sending: Sending) -> Answer:
        """Read the answer from where it was left; nothing is lost between."""
        connection, limit = sending.connection, self._settings.max_answer
        assert connection is not None  # noqa: S101 - as in the step before
        body = sending.body
        if body is None:
            protocol = connection.protocol
            assert protocol is not None  # noqa: S101 - it is released below
            message, body = await protocol.read()
            while message.code in _INTERIM:
                message, body = await protocol.read()
            if (kept := message.headers.get("Keep-Alive")) is not None:
                self._connections.hint(protocol, kept)
            announced = message.headers.get("Content-Length")
            if announced is not None and int(announced) > limit:
                raise _TooLargeError
            sending.status, sending.body = message.code, body
        while not body.at_eof():
            piece = await body.readany()
            sending.pieces.append(piece)
            sending.length += len(piece)
            # It is known only at its end where it is chunked, or compressed.
            if sending.length > limit:
                raise _TooLargeError
        sending.connection = None
        transport = connection.transport
        if sending.guarded and transport is not None:
            _set_reset(transport, on=False)
        connection.release()
        return Answer(sending.status, b"".join(sending.pieces))

    async def _post(self, path: str, text: bytes, sending: Sending) -> Answer:
        http = self._http or self._open()
        task = asyncio.current_task()
        self._without[task] = sending
        try:
            response = await http.post(
                f"{self._base_url}/v4/{path}",
                # aiohttp warns of bytes that are many, and warnings may be errors.
                data=text if len(text) < _MANY else io.BytesIO(text),
                # At the last moment, and in no variable of ours.
                headers={"Authorization": f"Bearer {self._secret.reveal()}"},
                allow_redirects=False,
                proxy=self._settings.proxy,
            )
        finally:
            self._without.pop(task, None)
        sending.body = response.content
        if (kept := response.headers.get("Keep-Alive")) is not None:
            self._connections.hint(sending.protocol, kept)
        try:
            if response.status == _PROXY_WANTS_NAME and self._has_plain_proxy():
                raise _ProxyRefusedError  # noqa: TRY301 - ends its connection as others do
            body = await self._read(response)
        except BaseException:
            response.close()
            raise
        response.release()
        # Others may have its connection by now.
        sending.transport = None
        return Answer(response.status, body)

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        limit = self._settings.max_answer
        announced = response.content_length
        if announced is not None and announced <= limit:
            if "Content-Encoding" not in response.headers:
                return await response.read()
        elif announced is not None:
            raise _TooLargeError
        # Its length is known only at its end: chunked, or compressed.
        body = bytearray()
        async for piece in response.content.iter_any():
            body += piece
            if len(body) > limit:
                raise _TooLargeError
        return bytes(body)

    def _open(self) -> aiohttp.ClientSession:
        settings = self._settings
        local = settings.local_address
        self._connector = connector = _Noting(
            self._without,
            self._connections,
            # The gate's business: a number here would be a second, hidden queue.
            limit=0,
            ssl=True if settings.ssl is None else settings.ssl,
            local_addr=(local, 0) if local else None,
            socket_factory=partial(_socket, unacked=settings.unacked),
        )
        # `connect` costs nothing where a pooled connection is at hand.
        timeout = aiohttp.ClientTimeout(total=None, connect=settings.connect_timeout)
        self._http = http = aiohttp.ClientSession(
            connector=connector,
            headers={"Accept": "application/json", "Content-Type": "application/json"},
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=timeout,
            max_line_size=settings.max_header_size,
            max_field_size=settings.max_header_size,
        )
        # The short road knows what it gets, and needs no note of it.
        self._connect = partial(connector.fit, traces=[], timeout=timeout)
        if missing := _missing(asyncio.get_running_loop()):
            told = "this version of aiohttp has no %s: calls cost more of the processor"
            _LOG.warning(told, ", ".join(missing))
        elif settings.proxy is None and not http.trace_configs:
            self._template = aiohttp.ClientRequest(
                "POST",
                URL(self._base_url),
                headers=http.headers,
                loop=asyncio.get_running_loop(),
                session=http,
            )
        return http

    def _head(self, path: str, template: aiohttp.ClientRequest) -> bytes:
        """Return the head of a request as aiohttp would write it, without its end."""
        target = URL(f"{self._base_url}/v4/{path}").raw_path_qs
        lines = [f"POST {target} HTTP/1.1"]
        for name, value in template.headers.items():
            if name != aiohttp.hdrs.CONTENT_LENGTH:
                lines.append(f"{name}: {value}")
        head = self._heads[path] = "\r\n".join([*lines, ""]).encode()
        return head

    def _translate(self, error: Exception, sending: Sending) -> AgentAPIError:
        # Its class and not its text, which may quote headers.
        what = type(error).__name__
        if isinstance(error, _ProxyRefusedError):
            told = "the proxy wants a user and a password (407)"
            return NotSentError(f"no connection ({told}). Nothing was sent")
        if isinstance(error, OSError) and _UNCERTIFIED in str(error):
            told = "the service wants a certificate of the client"
            return NotSentError(f"no connection ({told}). Nothing was sent")
        if not sending.connected and (sending.asked or isinstance(error, _NOT_SENT)):
            why = self._reason(error)
            return NotSentError(f"no connection ({what}{why}). Nothing was sent")
        if isinstance(error, _TooLargeError):
            limit = self._settings.max_answer
            return DecodeError(
                f"the answer is larger than max_answer ({limit} bytes)."
                " It may have happened"
            )
        return OutcomeUnknownError(
            f"the connection broke ({what}) before the answer was read."
            " It may have happened"
        )

    def _has_plain_proxy(self) -> bool:
        """Tell whether it is a proxy, and not the service, that responds first."""
        return self._settings.proxy is not None and self._base_url.startswith("http:")

    def _reason(self, error: BaseException) -> str:
        cause = getattr(error, "os_error", None) or getattr(
            error, "certificate_error", None
        )
        return f": {self.scrub(str(cause))}" if cause else ""
