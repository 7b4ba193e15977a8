"""
The connections of a manager's sessions: which are used again, and how many there are.

A connection is fit for a request when nothing of another one is on it: unread, unsent
or unexpected. aiohttp looks when a connection is given back; here it is looked at once
more when it is taken, in the kernel too, where the loop may not have read yet. It is
kept for as long as the settings say and the service has said. What is closed here is
aborted: under TLS it would otherwise wait half a minute for its peer's goodbye.

Descriptors are of the whole process. Where there are none for a new connection, an idle
one of any session is closed first; where none is idle, whoever wants one waits for the
next that is given back.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import re
import select
import sys
import time
from collections import deque
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import attrs

from aio_agentapi._settings import Settings

if TYPE_CHECKING:
    from aiohttp.client_proto import ResponseHandler
    from aiohttp.client_reqrep import ConnectionKey
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

# Of the descriptors of a process, what is for connections where nothing is set: the
# program has files of its own.
_SHARE: Final = 0.75

# Seconds by which a service may be ahead of what it has said of an idle connection.
_MARGIN: Final = 1.0

# How long a service keeps an idle connection: "timeout=5, max=100".
_HINT: Final = re.compile(r"\btimeout\s*=\s*\"?(\d{1,9})", re.IGNORECASE)

# Bytes of a request that go into the kernel at once, whatever is on its way already.
AT_ONCE: Final = 4096


class NoConnectionError(Exception):
    """A connection was lost, or unfit, before anything was written to it."""


@attrs.define(eq=False)
class Line:
    """
    What is known of a connection that is open.

    Attributes:
        owner: Whose it is.

        ends: The loop's time from which it is too old.

        kept: Seconds that it may be idle.

        until: The loop's time until which it may be used again, once it is idle.

        spoilt: Whether it is not to be used again, as its last user has found.

        poll: What looks at its socket in the kernel; None where there is none.
    """

    owner: Connector
    ends: float
    kept: float
    until: float = 0.0
    spoilt: bool = False
    poll: select.poll | None = None

    def holds_something(self) -> bool:
        """Tell whether the kernel has something that nobody has read."""
        return self.poll is not None and bool(self.poll.poll(0))


@attrs.define(eq=False)
class Connections:
    """
    What the connections of all sessions of a manager have in common.

    Args:
        settings: ``keepalive``, ``max_connections`` and ``max_connection_age``.
    """

    settings: Settings
    lines: dict[ResponseHandler, Line] = attrs.field(init=False, factory=dict)
    # In the order in which they were given back.
    idle: dict[ResponseHandler, Line] = attrs.field(init=False, factory=dict)
    _opening: int = attrs.field(init=False, default=0)
    waiting: deque[asyncio.Future[None]] = attrs.field(init=False, factory=deque)
    _timer: asyncio.TimerHandle | None = attrs.field(init=False, default=None)
    _most: int = attrs.field(init=False)
    # The loop's, from the first connection on.
    clock: Callable[[], float] = attrs.field(init=False, default=time.monotonic)

    def __attrs_post_init__(self) -> None:
        self._most = self.settings.max_connections or _most_of_this_process()

    def returned(self, protocol: ResponseHandler, line: Line | None) -> None:
        """Keep a connection that is idle from now on."""
        if line is not None:
            until = self.clock() + line.kept
            line.until = min(line.ends, until)
            self.idle[protocol] = line
            line.owner.resting += 1
            if self._timer is None:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_at(line.until, self._sweep)
        if self.waiting:
            self.wake()

    def wake(self) -> None:
        """Let the next one that waits look whether there is room now."""
        while self.waiting:
            waiter = self.waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def hint(self, protocol: ResponseHandler | None, header: str) -> None:
        """Take note of a response's ``Keep-Alive``, of a connection in use or idle."""
        line = None if protocol is None else self.lines.get(protocol)
        found = _HINT.search(header)
        if line is None or found is None:
            return
        told = float(found[1])
        kept = min(self.settings.keepalive, max(told / 2, told - _MARGIN))
        line.until += min(0.0, kept - line.kept)
        line.kept = kept

    async def room(self, owner: Connector) -> None:
        """
        Wait until a session may open one more connection, or has an idle one.

        Whoever comes later waits behind, also with an idle one of its own: a session
        that calls without end would keep its connections from all others.
        """
        if not self.waiting and self._is_free(owner):
            return
        while True:
            await self.change()
            if self._is_free(owner):
                return

    async def change(self) -> None:
        """Wait until a connection is given back, or closed; each wakes one."""
        waiter = asyncio.get_running_loop().create_future()
        self.waiting.append(waiter)
        try:
            await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled():
                # It was this one's turn, and is another's now.
                self.wake()
            raise

    @contextlib.contextmanager
    def opening(self) -> Generator[None]:
        """Count a connection while it is opened."""
        self._opening += 1
        try:
            yield
        finally:
            self._opening -= 1

    def opened(self, owner: Connector, protocol: ResponseHandler) -> None:
        """Take note of a new connection."""
        self.clock = asyncio.get_running_loop().time
        age = self.settings.max_connection_age
        ends = math.inf if age is None else self.clock() + age
        line = self.lines[protocol] = Line(owner, ends, self.settings.keepalive)
        found = extra(protocol.transport, "socket")
        # Windows has no poll().
        if found is not None and found.fileno() >= 0 and hasattr(select, "poll"):
            line.poll = select.poll()
            line.poll.register(found.fileno(), select.POLLIN)

    def closed(self, protocol: ResponseHandler) -> None:
        """Forget a connection, and let somebody else have its descriptor."""
        self._busy(protocol)
        self.lines.pop(protocol, None)
        self.wake()

    def has_any(self) -> bool:
        """Tell whether there is a connection, or may be one soon."""
        return bool(self.lines or self._opening)

    def give_up(self) -> bool:
        """Close what has been idle longest; tell whether there was such a one."""
        while self.idle:
            protocol = next(iter(self.idle))
            was_there = protocol.is_connected()
            _abort(protocol)
            self.closed(protocol)
            if was_there:
                return True
        return False

    def prune(self) -> None:
        """Forget those that have ended: peers close idle ones without a word."""
        for protocol in [p for p in self.lines if not p.is_connected()]:
            self._busy(protocol)
            self.lines.pop(protocol)

    def _busy(self, protocol: ResponseHandler) -> Line | None:
        """Take a connection from the idle ones."""
        line = self.idle.pop(protocol, None)
        if line is not None:
            line.owner.resting -= 1
        return line

    def _is_free(self, owner: Connector) -> bool:
        if owner.resting or len(self.lines) + self._opening < self._most:
            return True
        self.prune()
        return len(self.lines) + self._opening < self._most or self.give_up()

    def _sweep(self) -> None:
        """Close what has been idle for long enough."""
        self._timer = None
        loop = asyncio.get_running_loop()
        now, first = loop.time(), None
        for protocol, line in [*self.idle.items()]:
            if line.until <= now or not protocol.is_connected():
                _abort(protocol)
                self.closed(protocol)
            elif first is None or line.until < first:
                first = line.until
        if first is not None:
            self._timer = loop.call_at(first, self._sweep)


class Connector(aiohttp.TCPConnector):
    """
    The connections of one session, which are fit for a request.

    Args:
        connections: What it shares with others.

        options: Those of aiohttp's.
    """

    def __init__(self, connections: Connections, **options: Any) -> None:  # noqa: ANN401 - as said
        self.shared = connections
        # How many of its connections are idle.
        self.resting = 0
        # Ours closes them sooner.
        longest = connections.settings.keepalive * 2
        super().__init__(keepalive_timeout=longest, **options)  # pyright: ignore[reportUnknownMemberType] - aiohttp's

    async def fit(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's signature
    ) -> Connection:
        """
        Connect, and close what has something on it that nobody had asked for.

        It may be in the kernel still, where the loop was busy.

        Raises:
            NoConnectionError: A new one has something on it already, or its end.
        """
        shared = self.shared
        is_next = False
        while True:
            if not is_next and (shared.waiting or not self.resting):
                await shared.room(self)
            try:
                connection = await super().connect(req, traces, timeout)
            except (OSError, aiohttp.ClientConnectionError) as error:
                # What comes free is this one's: it does not stand in line anew.
                is_next = await self._recovered(error)
                if not is_next:
                    shared.wake()
                    raise
                continue
            except BaseException:
                # What this one has not taken is another's.
                shared.wake()
                raise
            protocol, transport = connection.protocol, connection.transport
            if protocol is None or transport is None:
                return connection
            line = shared.idle.pop(protocol, None)
            if line is not None:
                self.resting -= 1
                is_new = False
                is_fit = shared.clock() < line.until and not line.holds_something()
            else:
                is_new = True
                line = shared.lines.get(protocol)
                # What TLS sends by itself on a new one is no response.
                is_fit = line is None or req.is_ssl() or not line.holds_something()
            if is_fit and not protocol.should_close:
                return connection
            connection.close()
            if is_new:
                # Another one would be no better: whoever calls waits before it tries.
                raise NoConnectionError

    async def _recovered(self, error: Exception) -> bool:
        """Wait for a descriptor, if that was what was missing; tell whether it was."""
        # It may have moved.
        self.clear_dns_cache()
        if _has_descriptors() and not _is_for_want_of_one(error):
            return False
        if not self.shared.give_up():
            if not self.shared.has_any():
                return False
            await self.shared.change()
        return True

    def fill(self, connection: Connection) -> None:
        """
        Take note that a request of more than ``AT_ONCE`` bytes is written.

        Under TLS nobody can tell how much of it the kernel has taken: the connection is
        not used again.
        """
        protocol, transport = connection.protocol, connection.transport
        line = None if protocol is None else self.shared.lines.get(protocol)
        if line is not None and transport is not None:
            line.spoilt = extra(transport, "ssl_object") is not None

    async def _create_connection(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - as above
    ) -> ResponseHandler:
        if self.resting:
            # There was an idle one when this began, and aiohttp has found it closed.
            self.shared.prune()
            await self.shared.room(self)
        with self.shared.opening():
            protocol = await super()._create_connection(req, traces, timeout)
        self.shared.opened(self, protocol)
        return protocol

    def _release(
        self,
        key: ConnectionKey,
        protocol: ResponseHandler,
        *,
        should_close: bool = False,
    ) -> None:
        shared, transport = self.shared, protocol.transport
        line = shared.lines.get(protocol)
        # A response before all of its request was sent: the rest would be next.
        is_full = transport is not None and transport.get_write_buffer_size()
        spoilt = should_close or is_full or (line is not None and line.spoilt)
        super()._release(key, protocol, should_close=bool(spoilt))
        if protocol.transport is not None:
            shared.returned(protocol, line)
        else:
            if transport is not None:
                transport.abort()
            shared.closed(protocol)


def _abort(protocol: ResponseHandler) -> None:
    """Close a connection at once, whatever is on it."""
    if protocol.transport is not None:
        protocol.transport.abort()


def extra(transport: asyncio.BaseTransport | None, name: str) -> Any:  # noqa: ANN401 - as asyncio gives it
    """Return what asyncio tells of a connection; None where it has ended."""
    try:
        return None if transport is None else transport.get_extra_info(name)
    except AttributeError:
        # Under TLS it has parted from what would know.
        return None


def _most_of_this_process() -> int:
    """Return how many connections this process may have, where nothing is set."""
    try:
        import resource  # noqa: PLC0415 - not on every system
    except ImportError:
        return sys.maxsize
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(1, int(soft * _SHARE))


def _is_for_want_of_one(error: Exception) -> bool:
    """Tell whether there was no descriptor; there may be one by now."""
    cause = getattr(error, "os_error", None) or error
    return getattr(cause, "errno", None) in {errno.EMFILE, errno.ENFILE}


def _has_descriptors() -> bool:
    """Tell whether this process can open one file more."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        return False
    return True
