"""
One sending and its answer, which outlive whoever asked.

The service counts a call until it has answered, also when the client hangs up. A
caller who is cancelled, or out of time, leaves at once; the exchange goes on, its
answer is read, and only then its permit is free.

As long as nobody leaves, the caller's own task sends and reads, since a task for each
call is a sixth of what it costs. Where it leaves, a task of the session goes on from
that point; the connection holds what has come meanwhile. A transport that cannot be
gone on with (a proxy, a tracer, a mock) sends in such a task from the beginning.

    the caller leaves while ...   the exchange ...        the permit ...
    it has no connection yet      is dropped: not sent    is free
    it has one                    goes on, detached       stays in use to the answer
    abandon_after later           is given up, and its    lingers, and is free
                                  connection closed

Whatever ends the task, a cancellation before its first step included, ends in
:meth:`Exchange._gone`, and so does a caller's without a connection: no permit is
lost, and no caller waits for nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, TypeVar

import attrs

from aio_agentapi._gate import Gate
from aio_agentapi._settings import Settings
from aio_agentapi._transport import Sending, Transport
from aio_agentapi._types import REPEATABLE, Json, Lane, Operation
from aio_agentapi._wire import Wire
from aio_agentapi.errors import (
    AgentAPIError,
    BusyError,
    NotSentError,
    OutcomeUnknownError,
)

T = TypeVar("T")

# Turns of the loop after the time is over in which an answer that had arrived
# before may come through: one that reads it, one that wakes the task, and one more
# where the loop reads after its timers. A long one comes in pieces, each of which
# gives as many again, within so many seconds.
_TURNS: Final = 3
_GRACE: Final = 0.05


@attrs.define(eq=False, repr=False)
class Exchange(Generic[T]):
    """
    One sending and its answer.

    Attributes:
        sending: How far it has come.

        ended: Whether there is an outcome.

        outcome: The record, or what is to be raised.

        task: What carries it out, where its caller does not.

        told: Called with the outcome the moment there is one, whoever waits for it
            or not.
    """

    _operation: Operation[T] = attrs.field(alias="operation")
    _path: str = attrs.field(alias="path")
    _body: Mapping[str, Json] = attrs.field(alias="body")
    _text: bytes = attrs.field(alias="text")
    _lane: Lane = attrs.field(alias="lane")
    _desk: Exchanges = attrs.field(alias="desk")
    told: Callable[[object], None] | None
    sending: Sending
    ended: bool = attrs.field(init=False, default=False)
    outcome: T | BaseException | None = attrs.field(init=False, default=None)
    task: asyncio.Task[None] | None = attrs.field(init=False, default=None)
    # The caller's, while it sends and reads by itself, and whether that was ended
    # by us: its time is over, or the session.
    _driver: asyncio.Task[Any] | None = attrs.field(init=False, default=None)
    _interrupted: bool = attrs.field(init=False, default=False)
    _loop: asyncio.AbstractEventLoop = attrs.field(
        init=False, factory=asyncio.get_running_loop
    )
    _began: float = attrs.field(init=False)
    _waiter: asyncio.Future[None] | None = attrs.field(init=False, default=None)
    # Gives up a detached one; there is none while its caller waits.
    _timer: asyncio.TimerHandle | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self._began = self._loop.time()

    async def wait(self, until: float) -> bool:
        """
        Wait until it has ended; the first time, carry it out.

        Args:
            until: The loop's time at which to give up; an answer that is there by
                then counts, and is read for 50 ms at most, or three turns of the loop.

        Returns:
            Whether it has ended.
        """
        if self.task is None and not self.ended:
            if self.sending.resumable:
                await self._drive(until)
            else:
                self._go_on()
        if not self.ended:
            waiter = self._waiter = self._loop.create_future()
            timer = self._loop.call_at(until, self._expire, waiter, None, 0, 0)
            try:
                await waiter
            finally:
                timer.cancel()
        return self.ended

    def leave(self) -> None:
        """Let it end without its caller, who does not come back."""
        if self.ended or self.task is None:
            return
        if self.sending.connected:
            after = self._desk.settings.abandon_after
            # Not the running loop: a coroutine may be closed when it has stopped.
            self._timer = self._loop.call_later(after, self.task.cancel)
            self._desk.gate.detach()
        else:
            self.task.cancel()

    def cut(self) -> None:
        """End it, answered or not."""
        if self.task is not None:
            self.task.cancel()
            return
        self._abandon(None)
        self._interrupt()

    async def _drive(self, until: float) -> None:
        """Carry it out in the caller's task, until its time is over."""
        driver = self._driver = asyncio.current_task(self._loop)
        assert driver is not None  # noqa: S101 - somebody awaits this
        cancelling = driver.cancelling()
        timer = self._loop.call_at(until, self._interrupt)
        try:
            await self._carry_out()
        except BaseException as error:
            if not self.ended:
                if not self.sending.connected:
                    late = NotSentError("no connection in time. Nothing was sent")
                    self._abandon(late if self._interrupted else None)
                elif isinstance(error, Exception):
                    self._abandon(None)
                else:
                    self._go_on()
            # As asyncio.timeout() does it: there may be a cancellation beside ours.
            if not (
                self._interrupted
                and driver.uncancel() <= cancelling
                and isinstance(error, asyncio.CancelledError)
            ):
                raise
        finally:
            timer.cancel()
            self._driver = None

    def _interrupt(self) -> None:
        """End the drive of the caller's task."""
        if self._driver is not None and not self._interrupted:
            self._interrupted = True
            self._driver.cancel()

    def _go_on(self) -> None:
        """Let a task of the session carry it out, or what is left of that."""
        self.task = self._loop.create_task(self._carry_out())
        self.task.add_done_callback(self._gone)

    async def _carry_out(self) -> None:
        """Send, read, and put the permit where it belongs."""
        desk = self._desk
        try:
            answer = await desk.transport.send(self._path, self._text, self.sending)
        except AgentAPIError as error:
            self._land(answered=False)
            desk.gate.release(self._lane)
            self._end(error)
            return
        took = self._loop.time() - self._began
        outcome = desk.wire.decode(self._operation, *answer, desk.transport.scrub)
        if self._operation.echoes and not isinstance(outcome, AgentAPIError):
            outcome = self._echoed(outcome)
        if isinstance(outcome, AgentAPIError) and outcome.happened == "maybe":
            # It may be the answer of something else: what is left of this one is not
            # to be sent, and what comes yet not to be read.
            self.sending.drop()
        self._land(answered=True)
        if not isinstance(outcome, BusyError):
            desk.gate.release(self._lane, took)
        elif self._operation.paced is None:
            desk.gate.refused(self._lane)
        else:
            # The feed was read too early, which says nothing of the room.
            desk.gate.release(self._lane)
        self._end(outcome)

    def _echoed(self, record: T) -> T | OutcomeUnknownError:
        """Return a record that repeats what was asked for; of another's, a doubt."""
        for member, name in self._operation.echoes.items():
            # Where a deployment leaves it out, there is nothing to compare.
            if getattr(record, name) not in (None, self._body[member]):
                told = f"the answer has another {name} than was asked for"
                return OutcomeUnknownError(f"{told}. It may have happened")
        return record

    def _gone(self, task: asyncio.Task[None]) -> None:
        """Leave nothing undone when the task has ended, however it did."""
        error = None if task.cancelled() else task.exception()
        if self.ended:
            return
        # Where somebody interrupts the program the loop tells whoever runs it.
        self._abandon(error if isinstance(error, Exception) else None)

    def _abandon(self, error: Exception | None) -> None:
        """End it without an answer."""
        self._land(answered=False)
        if self.sending.connected:
            self.sending.drop()
            self._desk.gate.give_up(self._lane, self._desk.settings.linger)
            told = "it was cut before its answer came. It may have happened"
            self._end(error or OutcomeUnknownError(told))
        else:
            self._desk.gate.release(self._lane)
            told = "it was cut before it was sent. Nothing was sent"
            self._end(error or NotSentError(told))

    def _land(self, *, answered: bool) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._desk.gate.land(answered=answered)

    def _end(self, outcome: T | BaseException) -> None:
        self.outcome = outcome
        self.ended = True
        self._desk.running.discard(self)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self.told is not None:
            self.told(outcome)

    def _expire(
        self, waiter: asyncio.Future[None], over: float | None, turn: int, read: int
    ) -> None:
        """End a wait whose time is over, when nothing more comes through."""
        if waiter.done():
            return
        now, before, read = self._loop.time(), read, self.sending.read()
        over = now + _GRACE if over is None else over
        if read > before and now < over:
            turn = 0
        if turn < _TURNS:
            self._loop.call_soon(self._expire, waiter, over, turn + 1, read)
        else:
            waiter.set_result(None)


@attrs.define(eq=False, repr=False)
class Exchanges:
    """
    The exchanges of one session.

    Args:
        settings: ``abandon_after`` and ``linger``.

        gate: Where the permits go.

        transport: What sends.

        wire: What reads the answers.
    """

    settings: Settings
    gate: Gate
    transport: Transport
    wire: Wire
    running: set[Exchange[Any]] = attrs.field(init=False, factory=set)

    def start(
        self,
        operation: Operation[T],
        path: str,
        body: Mapping[str, Json],
        text: bytes,
        lane: Lane,
        told: Callable[[object], None] | None = None,
    ) -> Exchange[T]:
        """
        Begin an exchange, whose own the caller's permit is from now on.

        Args:
            operation: What its answer is read as.

            path: Relative to ``/v4/``.

            body: What is asked for.

            text: The same as JSON.

            lane: The lane that the permit was acquired in.

            told: Called with the outcome, in the turn of the loop that brings it.

        Returns:
            The exchange; its caller waits for it, or leaves it.
        """
        # What may move money once more, whenever it arrives.
        guarded = operation.effect not in REPEATABLE
        sending = self.transport.sending(guarded=guarded)
        exchange = Exchange(operation, path, body, text, lane, self, told, sending)
        self.running.add(exchange)
        return exchange

    def cut(self) -> list[asyncio.Task[None]]:
        """
        End them all; what is not answered by now ends without an answer.

        Returns:
            The tasks that are about to end.
        """
        exchanges = [*self.running]
        for exchange in exchanges:
            exchange.cut()
        return [each.task for each in exchanges if each.task is not None]
