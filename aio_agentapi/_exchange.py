"""
One sending and its answer, which outlive whoever asked.

The service counts a call until it has answered, also when the client hangs up. So
the caller's task does not send: a task of the session does, and the caller waits
for what becomes of it. A caller who is cancelled, or out of time, leaves at once;
the exchange goes on, its answer is read, and only then its permit is free.

    the caller leaves while ...   the exchange ...        the permit ...
    it has no connection yet      is dropped: not sent    is free
    it has one                    goes on, detached       stays in use to the answer
    abandon_after later           is given up, and its    lingers, and is free
                                  connection closed

Whatever ends the task, a cancellation before its first step included, ends in
:meth:`Exchange._gone`: no permit is lost, and no caller waits for nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

import attrs

from aio_agentapi._gate import Gate
from aio_agentapi._settings import Settings
from aio_agentapi._transport import Sending, Transport
from aio_agentapi._types import Lane, Operation
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
# gives as many again, but not for ever.
_TURNS: Final = 3
_TURNS_IN_ALL: Final = 500


@attrs.define(eq=False, repr=False)
class Exchange(Generic[T]):
    """
    One sending and its answer.

    Attributes:
        sending: How far it has come.

        ended: Whether there is an outcome.

        outcome: The record, or what is to be raised.

        task: What carries it out.
    """

    _operation: Operation[T] = attrs.field(alias="operation")
    _path: str = attrs.field(alias="path")
    _text: bytes = attrs.field(alias="text")
    _lane: Lane = attrs.field(alias="lane")
    _desk: Exchanges = attrs.field(alias="desk")
    # Told the outcome the moment there is one, whoever waits for it or not.
    _told: Callable[[object], None] | None = attrs.field(alias="told")
    sending: Sending = attrs.field(init=False, factory=Sending)
    ended: bool = attrs.field(init=False, default=False)
    outcome: T | BaseException | None = attrs.field(init=False, default=None)
    task: asyncio.Task[None] = attrs.field(init=False)
    _waiter: asyncio.Future[None] | None = attrs.field(init=False, default=None)
    # Gives up a detached one; there is none while its caller waits.
    _timer: asyncio.TimerHandle | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self.task = asyncio.get_running_loop().create_task(self._carry_out())
        self.task.add_done_callback(self._gone)

    async def wait(self, until: float) -> bool:
        """
        Wait until it has ended.

        Args:
            until: The loop's time at which to give up; an answer that is there by
                then counts.

        Returns:
            Whether it has ended.
        """
        if not self.ended:
            loop = asyncio.get_running_loop()
            waiter = self._waiter = loop.create_future()
            timer = loop.call_at(until, self._expire, waiter, _TURNS_IN_ALL, 0, 0)
            try:
                await waiter
            finally:
                timer.cancel()
        return self.ended

    def leave(self) -> None:
        """Let it end without its caller, who does not come back."""
        if self.ended:
            return
        if self.sending.connected:
            after = self._desk.settings.abandon_after
            # Not the running loop: a coroutine may be closed when it has stopped.
            self._timer = self.task.get_loop().call_later(after, self.task.cancel)
            self._desk.gate.detach()
        else:
            self.task.cancel()

    async def _carry_out(self) -> None:
        """Send, read, and put the permit where it belongs."""
        desk, loop = self._desk, asyncio.get_running_loop()
        began = loop.time()
        try:
            answer = await desk.transport.send(self._path, self._text, self.sending)
        except AgentAPIError as error:
            self._land(answered=False)
            desk.gate.release(self._lane)
            self._end(error)
            return
        took = loop.time() - began
        outcome = desk.wire.decode(self._operation, *answer, desk.transport.scrub)
        self._land(answered=True)
        if not isinstance(outcome, BusyError):
            desk.gate.release(self._lane, took)
        elif self._operation.paced is None:
            desk.gate.refused(self._lane)
        else:
            # The feed was read too early, which says nothing of the room.
            desk.gate.release(self._lane)
        self._end(outcome)

    def _gone(self, task: asyncio.Task[None]) -> None:
        """Leave nothing undone when the task has ended, however it did."""
        self._desk.running.discard(self)
        error = None if task.cancelled() else task.exception()
        if self.ended:
            return
        if not isinstance(error, Exception):
            # Somebody interrupts the program: the loop tells whoever runs it.
            error = None
        self._land(answered=False)
        if self.sending.connected:
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
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self._told is not None:
            self._told(outcome)

    def _expire(
        self, waiter: asyncio.Future[None], left: int, read: int, idle: int
    ) -> None:
        """End a wait whose time is over, when nothing more comes through."""
        if waiter.done():
            return
        before, read = read, self.sending.read()
        idle = 0 if read > before else idle + 1
        if left and idle <= _TURNS:
            loop = asyncio.get_running_loop()
            loop.call_soon(self._expire, waiter, left - 1, read, idle)
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
        text: bytes,
        lane: Lane,
        told: Callable[[object], None] | None = None,
    ) -> Exchange[T]:
        """
        Begin an exchange, whose own the caller's permit is from now on.

        Args:
            operation: What its answer is read as.

            path: Relative to ``/v4/``.

            text: The JSON body.

            lane: The lane that the permit was acquired in.

            told: Called with the outcome, in the turn of the loop that brings it.

        Returns:
            The exchange; its caller waits for it, or leaves it.
        """
        exchange = Exchange(operation, path, text, lane, self, told)
        self.running.add(exchange)
        return exchange

    def cut(self) -> list[asyncio.Task[None]]:
        """
        End them all; what is not answered by now ends without an answer.

        Returns:
            The tasks that are about to end.
        """
        tasks = [exchange.task for exchange in self.running]
        for task in tasks:
            task.cancel()
        return tasks
