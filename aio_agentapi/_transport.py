"""
One token's connections; the only module of the client that knows aiohttp.

Foreign errors keep the request's headers, and so the token, in their fields and in
the locals of their frames. Each is translated by one table, and ours is raised
after the ``except`` block has ended: neither its cause, its context nor its
traceback leads to a frame of aiohttp. The same is done for a cancellation.
"""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

import aiohttp
import attrs
from aiohttp.tracing import Trace

from aio_agentapi._settings import Settings
from aio_agentapi._types import Secret
from aio_agentapi.errors import (
    AgentAPIError,
    ClosedError,
    DecodeError,
    NotSentError,
    OutcomeUnknownError,
)

# Raised only before the first byte of a request is written. Whatever is not in
# this table may have been executed.
_NOT_SENT: Final = (
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.ClientHttpProxyError,
    aiohttp.ServerFingerprintMismatch,
    aiohttp.InvalidURL,
    # A host name that cannot be looked up.
    UnicodeError,
)


class Answer(NamedTuple):
    """What came back: any HTTP status, the whole body."""

    status: int
    body: bytes


@attrs.define(eq=False)
class Sending:
    """
    How far one request has come, for whoever wants to leave it.

    Attributes:
        connected: Whether it has a connection, so that it may have been sent.

        body: What its answer is read from, once that has begun.
    """

    connected: bool = False
    body: aiohttp.StreamReader | None = None

    def read(self) -> int:
        """Return how much of its answer has come, in bytes."""
        return 0 if self.body is None else self.body.total_bytes


class _TooLargeError(Exception):
    """The answer is larger than ``max_answer``."""


class _Connector(aiohttp.TCPConnector):
    """
    Connections that tell who got one.

    Only who got one can have sent anything. It is noted by the task, which aiohttp
    connects in: a context may be shared by several.
    """

    without: dict[asyncio.Task[object] | None, Sending]

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's signature
    ) -> aiohttp.connector.Connection:
        connection = await super().connect(req, traces, timeout)
        sending = self.without.pop(asyncio.current_task(), None)
        if sending is not None:
            sending.connected = True
        return connection


@attrs.define(eq=False, repr=False)
class Transport:
    """
    One pooled set of connections, opened at first use.

    Args:
        base_url: Checked, without a slash at its end.

        secret: The token that goes with every request.

        settings: Proxy, TLS and the time to connect.
    """

    _base_url: str = attrs.field(alias="base_url")
    _secret: Secret = attrs.field(alias="secret")
    _settings: Settings = attrs.field(alias="settings")
    _http: aiohttp.ClientSession | None = attrs.field(init=False, default=None)
    # The tasks whose request has no connection yet.
    _without: dict[asyncio.Task[object] | None, Sending] = attrs.field(
        init=False, factory=dict
    )
    _closed: bool = attrs.field(init=False, default=False)

    async def send(self, path: str, text: bytes, sending: Sending) -> Answer:
        """
        Send one request and read its whole answer, however long that takes.

        Whoever cancels it looks at *sending* first: with a connection it may have
        been executed.

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
        task = asyncio.current_task()
        self._without[task] = sending
        try:
            return await self._post(path, text, sending)
        except Exception as error:  # noqa: BLE001 - the token is in its frames, whatever it is
            end: BaseException = self._translate(error, sending)
        except BaseException as error:  # noqa: BLE001 - a cancellation, or an interrupt
            end = type(error)(*error.args)
        finally:
            self._without.pop(task, None)
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

    async def _post(self, path: str, text: bytes, sending: Sending) -> Answer:
        http = self._http or self._open()
        response = await http.post(
            f"{self._base_url}/v4/{path}",
            data=text,
            # At the last moment, and in no variable of ours.
            headers={"Authorization": f"Bearer {self._secret.reveal()}"},
            allow_redirects=False,
            proxy=self._settings.proxy,
        )
        sending.body = response.content
        try:
            body = await self._read(response)
        except BaseException:
            response.close()
            raise
        response.release()
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
        connector = _Connector(
            # The gate's business: a number here would be a second, hidden queue.
            limit=0,
            keepalive_timeout=settings.keepalive,
            ssl=True if settings.ssl is None else settings.ssl,
            local_addr=(local, 0) if local else None,
        )
        connector.without = self._without
        self._http = aiohttp.ClientSession(
            connector=connector,
            headers={"Accept": "application/json", "Content-Type": "application/json"},
            cookie_jar=aiohttp.DummyCookieJar(),
            # `connect` costs nothing where a pooled connection is at hand.
            timeout=aiohttp.ClientTimeout(total=None, connect=settings.connect_timeout),
        )
        return self._http

    def _translate(self, error: Exception, sending: Sending) -> AgentAPIError:
        # Its class and not its text, which may quote headers.
        what = type(error).__name__
        if isinstance(error, _NOT_SENT) and not sending.connected:
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

    def _reason(self, error: BaseException) -> str:
        cause = getattr(error, "os_error", None) or getattr(
            error, "certificate_error", None
        )
        return f": {self.scrub(str(cause))}" if cause else ""
