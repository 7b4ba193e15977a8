"""
The one road that every call takes.

Theory of operation
-------------------

A call is encoded first, so that bad input costs no permit. Then, as often as it
may: wait for a permit, send, read. Three things can be said of a sending.

    it did not happen   a refusal, or no connection; the answer 1018 gives the
                        permit back and stands in line again, as often as needed,
                        and a lost connection attempt is repeated a few times
    it may have         the answer was lost: a query whose repetition does no harm
                        is sent again, anything else never
    it happened         the record

Once a sending may have happened, no later refusal proves the contrary: what a
later sending is told says nothing about the first. Such a call ends with the
record, or with the first doubt. Only a query that changes nothing may end with a
refusal of a later sending: that is its answer.

A feed is read only as often as the service wants: see :mod:`aio_agentapi._pace`.

A permit is the caller's from :meth:`Gate.acquire` until his exchange is started, and
the exchange's from there on: see :mod:`aio_agentapi._exchange`. Whoever is cancelled,
or out of time, leaves his exchange, which goes on. What may be sent again is not,
while its exchange still runs: it waits for that one once more.

A payment takes the turn of its user before it takes a permit, and is on disk before
it waits for one: the permit is not kept for the disk, and a payment that is not sent
in the end is one more line there. What becomes of it is written down by its exchange:
see :mod:`aio_agentapi._cashier`.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import random
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol, TypeVar, cast

import anyio
import attrs

from aio_agentapi._cashier import Cashier, Entry, recall
from aio_agentapi._exchange import Exchange, Exchanges
from aio_agentapi._gate import Gate
from aio_agentapi._journal import PAYMENTS, Intent, Phase
from aio_agentapi._pace import Pace
from aio_agentapi._settings import Settings
from aio_agentapi._transport import Transport
from aio_agentapi._types import REPEATABLE, Json, Moved, Operation, Query
from aio_agentapi._wire import Wire
from aio_agentapi.errors import (
    AgentAPIError,
    BusyError,
    ClosedError,
    GateError,
    GateTimeoutError,
    NotSentError,
    OutcomeUnknownError,
    RefusedError,
    UnsupportedError,
    UsageError,
)

T = TypeVar("T")


class Page(Protocol):
    """One page of a list: how long the whole is, and some rows of it."""

    @property
    def total(self) -> int: ...

    @property
    def list(self) -> Sequence[object]: ...


P = TypeVar("P", bound=Page)

# Seconds before the second sending, doubled for each further one. Jittered, so
# that calls which failed together do not come back together.
_BACKOFF: Final = 0.2
_BACKOFF_AT_MOST: Final = 5.0

# Seconds between two looks whether another process has ended a user's turn.
_POLL: Final = 0.01
_POLL_AT_MOST: Final = 0.25


@attrs.define(eq=False)
class Home:
    """The event loop and the process that a manager lives in."""

    loop: asyncio.AbstractEventLoop | None = attrs.field(init=False, default=None)
    _process: int = attrs.field(init=False, default=0)

    @property
    def is_here(self) -> bool:
        """Whether this is its process, and not a fork of that."""
        return self.loop is None or self._process == os.getpid()

    def check(self) -> asyncio.AbstractEventLoop:
        """
        Return the running loop; the first one that asks becomes the home.

        Raises:
            UsageError: Another loop, or a forked process. Nothing was sent.
        """
        loop = asyncio.get_running_loop()
        if self.loop is None:
            self.loop, self._process = loop, os.getpid()
        # The process first: a fork's loop is another one as well.
        if not self.is_here:
            msg = "the manager was made before a fork: make one in each process"
            raise UsageError(msg)
        if self.loop is not loop:
            msg = "the manager belongs to another event loop: make one in each loop"
            raise UsageError(msg)
        return loop


@attrs.define(eq=False)
class _Closing:
    """The one end of a session, whoever asks for it."""

    # For the calls that pause meanwhile.
    begun: asyncio.Event = attrs.field(factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    closers: int = 0
    # What goes on in the background until then.
    background: set[asyncio.Task[None]] = attrs.field(factory=set)


class Call:
    """How far one call has come: its clocks, its sendings, its doubt."""

    __slots__ = (
        "busy",
        "deadline",
        "doubt",
        "entry",
        "left",
        "sendings",
        "tries",
        "waited",
    )

    def __init__(self, deadline: float | None) -> None:
        self.deadline = deadline
        self.waited = 0.0
        # A try is a sending, or another wait for the answer of one.
        self.tries = 0
        self.sendings = 0
        self.busy: BusyError | None = None
        self.doubt: OutcomeUnknownError | None = None
        # The exchange that was left and goes on.
        self.left: Exchange[Any] | None = None
        # Of a payment that was written down.
        self.entry: Entry | None = None


@attrs.frozen(eq=False)
class Channel:
    """What all resources of a session share: one gate, one pool, one wire."""

    settings: Settings
    gate: Gate
    _home: Home = attrs.field(alias="home")
    _transport: Transport = attrs.field(alias="transport")
    _wire: Wire = attrs.field(alias="wire")
    _exchanges: Exchanges = attrs.field(alias="exchanges")
    _pace: Pace = attrs.field(alias="pace")
    cashier: Cashier
    _closing: _Closing = attrs.field(alias="closing", factory=_Closing)

    def call(self, query: Query[T]) -> Coroutine[Any, Any, T]:
        """
        Ask, and ask again after an unknown outcome where that does no harm.

        No coroutine of its own: each would be kept by every call that waits.

        Args:
            query: What to ask.

        Returns:
            The record in the answer.

        Raises:
            AgentAPIError: Any of the tree in :mod:`aio_agentapi.errors`.
        """
        return self._run(query.operation, query.body)

    async def pages(self, query: Query[P], limit: int) -> AsyncGenerator[P]:
        """
        Ask for a list page by page, until there is no more of it.

        Args:
            query: What to ask, without ``offset`` and ``limit``.

            limit: The rows of a page.

        Yields:
            Each page; rows that move meanwhile may stand on two or on none.

        Raises:
            AgentAPIError: As :meth:`call`.
        """
        offset = 0
        while True:
            body = {**query.body, "offset": offset, "limit": limit}
            page = await self.call(Query(query.operation, body))
            yield page
            offset += len(page.list)
            if not page.list or offset >= page.total:
                return

    def pay(self, intent: Intent) -> Coroutine[Any, Any, Moved]:
        """
        Move money once: in the user's turn, written down before it is sent.

        Never sent again once it may have happened. What its intent stands for
        already, by its key or by the one that it follows, is not paid again.

        Args:
            intent: What to move, not written down yet.

        Returns:
            What moved, now or when it was paid.

        Raises:
            AgentAPIError: Any of the tree in :mod:`aio_agentapi.errors`.
        """
        return self._pay(intent)

    def watch_feed(self, feed: Any) -> None:  # noqa: ANN401 - of a floor above
        """Take note that a feed is followed; nobody wants to know here."""

    def close(self) -> asyncio.Task[None]:
        """
        Begin to end every call: those in line at once.

        Returns:
            What ends the others, within ``drain`` seconds, and the connections.

        Raises:
            UsageError: Another loop, or a forked process. Nothing is closed.
        """
        loop = self._home.check()
        self._closing.begun.set()
        self.gate.close()
        if self._closing.task is None:
            end = self._end(loop.time() + self.settings.drain)
            self._closing.task = loop.create_task(end)
        return self._closing.task

    async def aclose(self) -> None:
        """
        End every call: those in line at once, those in flight within ``drain``.

        Whoever waits for another to read a feed is told when that one has ended.
        What is still in flight then is cut, and raises OutcomeUnknownError. When
        all who close are cancelled, there is nobody to wait for: it is cut at once.

        Raises:
            UsageError: Another loop, or a forked process. Nothing is closed.
        """
        task = self.close()
        self._closing.closers += 1
        try:
            await asyncio.shield(task)
        finally:
            self._closing.closers -= 1
            if not (task.done() or self._closing.closers):
                self._exchanges.cut()
                with anyio.CancelScope(shield=True):
                    await asyncio.wait([task])

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Let something go on in the background, until the session is closed."""
        # Not in the context of a call, whose trace it would go on with.
        task = self._home.check().create_task(work, context=contextvars.Context())
        self._closing.background.add(task)
        task.add_done_callback(self._closing.background.discard)
        return task

    async def _end(self, until: float) -> None:
        for task in self._closing.background:
            task.cancel()
        try:
            await self.gate.idle(until)
        finally:
            # Also when the program ends meanwhile.
            if tasks := [*self._exchanges.cut(), *self._closing.background]:
                await asyncio.wait(tasks)
            await self._transport.aclose()
            if (aclose := getattr(self.gate, "aclose", None)) is not None:
                await aclose()

    async def _pay(self, intent: Intent, call: Call | None = None) -> Moved:
        call = call or Call(self._deadline())
        operation, body = PAYMENTS[intent.operation], intent.body
        try:
            account = await self._account(call)
            intent = attrs.evolve(intent, account=account)
            until = self._patience(call, asyncio.get_running_loop().time())
            async with self._turn(call, intent, until):
                entry = await self._begin(call, intent, until)
                if entry.intent.phase is not Phase.SENT:
                    return recall(entry.intent)
                call.entry = entry
                try:
                    moved = await self._run(operation, body, call)
                finally:
                    entry.leave(running=call.left is not None)
                await entry.written(call.deadline)
                return moved
        except AgentAPIError as error:
            verdict = _verdict(call, operation, error)
            _sign(verdict, call, operation, body)
        if call.entry is not None:
            await call.entry.written(call.deadline)
        # After the block: its context would lead into the frames of a sending.
        raise verdict

    async def _run(
        self,
        operation: Operation[T],
        body: Mapping[str, Json],
        call: Call | None = None,
    ) -> T:
        call = call or Call(self._deadline())
        try:
            text = self._wire.encode(body)
            while True:
                try:
                    if operation.paced is None:
                        return await self._sent(call, operation, body, text)
                    return await self._read(call, operation, body, text)
                except NotSentError as error:
                    await self._rest(call, error)
                except BusyError:
                    # Only of a feed, which was read too early: in its next turn.
                    pass
                except OutcomeUnknownError as error:
                    call.doubt = call.doubt or error
                    if operation.effect not in REPEATABLE:
                        raise
                    await self._rest(call, error)
        except AgentAPIError as error:
            verdict = _verdict(call, operation, error)
            _sign(verdict, call, operation, body)
        # After the block: its context would lead into the frames of a sending.
        raise verdict

    def _deadline(self) -> float | None:
        """Return the loop's time until which a call that begins now may take."""
        loop = self._home.check()
        total = self.settings.deadline
        return None if total is None else loop.time() + total

    async def _account(self, call: Call) -> str:
        """Return what the journal calls the agent, verified in the call's time."""
        msg = "whose token it is was not known in time. Nothing was sent"
        try:
            async with asyncio.timeout_at(call.deadline):
                return await self.cashier.account(self.call)
        except TimeoutError:
            raise GateTimeoutError(msg, waited=call.waited) from None

    @asynccontextmanager
    async def _turn(
        self, call: Call, intent: Intent, until: float | None
    ) -> AsyncGenerator[None]:
        """Keep the user's turn among the tasks of this process."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        turn = self.cashier.turn(intent.user_code, until)
        try:
            await turn.__aenter__()
        except TimeoutError:
            call.waited += loop.time() - began
            raise _no_turn(call) from None
        call.waited += loop.time() - began
        try:
            yield
        finally:
            await turn.__aexit__(None, None, None)

    async def _begin(self, call: Call, intent: Intent, until: float | None) -> Entry:
        """Write an intent down, as soon as no other process has the user's turn."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        block = self.settings.block_unknown
        # A view that waits for less makes nobody else faster.
        longest = max(self.settings.longest, self.cashier.longest)
        unacked = self.cashier.unacked
        intent = attrs.evolve(intent, longest=longest, unacked=unacked)
        pause = _POLL
        while not self._closing.begun.is_set():
            entry = await self.cashier.begin(
                intent, block_unknown=block, until=call.deadline
            )
            if entry is not None:
                call.waited += loop.time() - began
                return entry
            if until is not None and loop.time() + pause >= until:
                call.waited += loop.time() - began
                raise _no_turn(call)
            await self._pause(pause * random.uniform(0.5, 1.0))  # noqa: S311 - as below
            pause = min(_POLL_AT_MOST, pause * 2)
        msg = "the session is closed. Nothing was sent"
        raise ClosedError(msg)

    async def _read(
        self,
        call: Call,
        operation: Operation[T],
        body: Mapping[str, Json],
        text: bytes,
    ) -> T:
        """Send once, as soon as the feed may be read again from that place."""
        loop = asyncio.get_running_loop()
        place = (operation.name, body.get(operation.paced or ""))
        began = loop.time()
        until = self._patience(call, began)
        try:
            async with self._pace.turn(place, self._pause, until) as reading:
                call.waited += loop.time() - began
                try:
                    return await self._sent(call, operation, body, text)
                except (NotSentError, GateError, UsageError):
                    reading.made = False
                    raise
                except OutcomeUnknownError:
                    # The service may get to it as late as that.
                    reading.late = self.settings.timeout
                    raise
                finally:
                    if call.left is not None:
                        reading.running = call.left.task
        except TimeoutError:
            pass
        msg = "the feed may not be read again in time. Nothing was sent"
        raise GateTimeoutError(msg, waited=call.waited + loop.time() - began)

    async def _sent(
        self,
        call: Call,
        operation: Operation[T],
        body: Mapping[str, Json],
        text: bytes,
    ) -> T:
        """Send once, as soon as the service has room for it."""
        loop = asyncio.get_running_loop()
        lane = self.settings.lane
        # No more names than needed: each is kept by every call that waits.
        while True:
            began = loop.time()
            until = self._patience(call, began)
            try:
                await self.gate.acquire(lane, until, again=call.busy is not None)
            finally:
                now = loop.time()
                call.waited += now - began
            if call.deadline is not None and now >= call.deadline:
                # The permit came in time, and this task too late to use it.
                self.gate.release(lane)
                msg = "the deadline was over before it was sent. Nothing was sent"
                raise GateTimeoutError(msg, waited=call.waited)
            told = None if call.entry is None else call.entry.landed
            path = self.settings.paths.get(operation.name, operation.name)
            exchange = self._exchanges.start(operation, path, body, text, lane, told)
            again = operation.effect in REPEATABLE
            outcome = await self._outcome(call, exchange, again=again)
            if not isinstance(outcome, BaseException):
                return outcome
            if not isinstance(outcome, BusyError):
                raise outcome
            call.busy = outcome
            if operation.paced is not None:
                raise outcome

    async def _outcome(
        self, call: Call, exchange: Exchange[T], *, again: bool
    ) -> T | BaseException:
        """Wait for what becomes of a sending, as long as the call's clocks say."""
        loop = asyncio.get_running_loop()
        tries = call.tries
        call.tries += 1
        call.sendings += 1
        call.busy = None
        try:
            while not await exchange.wait(self._until(call, loop.time())):
                connected = exchange.sending.connected
                over = call.deadline is not None and loop.time() >= call.deadline
                last = over or call.tries >= self.settings.attempts
                if last or not (again and connected):
                    return _out_of_time(connected=connected)
                call.tries += 1
        finally:
            exchange.leave()
            call.left = None if exchange.ended else exchange
        outcome = exchange.outcome
        if isinstance(outcome, BusyError):
            # It counts as none, however long its answer was waited for.
            call.tries = tries
            call.sendings -= 1
        return cast("T | BaseException", outcome)

    def _until(self, call: Call, now: float) -> float:
        """Return the loop's time until which an answer is waited for."""
        until = now + self.settings.timeout
        return until if call.deadline is None else min(until, call.deadline)

    def _patience(self, call: Call, now: float) -> float | None:
        """Return the loop's time until which the call may stand in line."""
        patience = self.settings.max_wait
        if patience is None:
            return call.deadline
        until = now + max(0.0, patience - call.waited)
        return until if call.deadline is None else min(until, call.deadline)

    async def _rest(self, call: Call, error: AgentAPIError) -> None:
        """Pause before the next sending; raise *error* where there is none."""
        if call.tries >= self.settings.attempts:
            raise error
        pause = min(_BACKOFF_AT_MOST, _BACKOFF * 2 ** (call.tries - 1))
        pause *= random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, hides nothing
        now = asyncio.get_running_loop().time()
        if call.deadline is not None and now + pause >= call.deadline:
            raise error
        await self._pause(pause)

    async def _pause(self, seconds: float) -> None:
        """Sleep, unless the session is closed meanwhile."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.begun.wait()


def _no_turn(call: Call) -> GateTimeoutError:
    msg = "the user's payment before it has not ended in time. Nothing was sent"
    return GateTimeoutError(msg, waited=call.waited)


def _out_of_time(*, connected: bool) -> AgentAPIError:
    if connected:
        return OutcomeUnknownError("no answer in time. It may have happened")
    return NotSentError("no connection in time. Nothing was sent")


def _sign(
    error: AgentAPIError,
    call: Call,
    operation: Operation[T],
    body: Mapping[str, Json],
) -> None:
    """Say in *error* which call it was."""
    error.operation = operation.name
    error.attempts = call.sendings
    # Only where the service takes one is it safe to send it again.
    reference = body.get("reference") if operation.effect == "idempotent" else None
    error.reference = reference if isinstance(reference, str) else None
    if call.entry is not None:
        error.intent = call.entry.intent.id


def _verdict(
    call: Call, operation: Operation[T], error: AgentAPIError
) -> AgentAPIError:
    """Say of a whole call what the end of its last sending does not prove."""
    if isinstance(error, GateTimeoutError) and call.busy is not None:
        error = call.busy
    if call.doubt is None or error.happened == "maybe":
        return error
    # What changes nothing has its answer, where this is one.
    answered = isinstance(error, RefusedError | UnsupportedError)
    return error if answered and operation.effect == "read" else call.doubt
