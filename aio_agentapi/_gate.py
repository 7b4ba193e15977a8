"""
At most so many calls of one token at once, and a fair line for the others.

Theory of operation
-------------------

Every permit is in exactly one place, and each place is counted:

    in use    a call is in flight, or about to be, whoever still waits for it
    free      in the semaphore, there for the taking
    withheld  nobody gets it at present: the service would refuse it, since others
              use the token too ("kept back"), or may still be busy with a call
              that was given up ("lingering")

    in use + free + withheld == limit, whatever is cancelled, late or refused

The semaphore is the account of the free permits and nothing else. Nobody waits in
it: it has one line for everybody, and searches it when a waiter is cancelled. The
lines here are ordered dictionaries of futures, two for each lane: calls that the
service refused stand before those that were never sent. A permit that is released
while somebody waits goes straight to him, so a newcomer cannot take it first.
While anybody waits, no permit is free: it is in use, or withheld.

``share`` is how many permits the service admits at present: those not kept back. A
refusal keeps back all that are not in flight; nobody is woken then, since what was
refused once would be refused again until one of ours completes. It grows after
``share`` good answers, by one, and by twice as many for each step in a row that
holds; a step that is refused makes the next one small again, and later. When nothing
of ours completes, there is nothing to wait for, and one call in line is sent as a
probe; where nobody is in line either, the next one that comes is it.

A limit that shrinks takes the permits that nobody has at once, and those in use as
they come back; until then they count, in the limit too.

Nothing here awaits between taking note of a change and carrying it out. A caller
suspends in his own future alone, and there one of these is true: he goes, and is
still counted in line; the future is done and the permit already his, to be passed on
if he goes meanwhile; or it has expired, or the gate was closed, and he has left the
line.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, Protocol, TypeAlias

import attrs

from aio_agentapi._settings import Settings
from aio_agentapi._types import Lane
from aio_agentapi.errors import ClosedError, GateFullError, GateTimeoutError

# Seconds; below, a probe would come before a loaded service could complete a call.
_PROBE_AFTER: Final = 0.1
# Service times without a completion before the line is taken for stuck.
_PROBE_TIMES: Final = 4
# Seconds; above, a service that came free would stand idle for too long.
_PROBE_AT_MOST: Final = 1.0
# A refused step up makes the next wait so many times longer, to at most so many
# rounds of `share` good answers: steps are cheap, refusals cost a round trip.
# More rounds than these leave room unused where others come and go.
_LONGER: Final = 4
_ROUNDS_AT_MOST: Final = 4
# With a single permit no share of it can be kept: the batch lane gets every fifth.
_BATCH_TURN: Final = 5
# How fast the estimate of the usual service time follows, per answer. It steps by
# a ratio towards each answer, so that it settles at the median: a mean would be
# carried away by one slow call.
_FOLLOW: Final = 1.05


@attrs.frozen(kw_only=True)
class GateStatistics:
    """
    What a gate is doing, at one moment.

    Attributes:
        limit: Permits in all.

        share: How many of them the service admits at present; one at least, if there
            are any.

        in_use: Calls that hold a permit.

        detached: Those of them whose caller has left; they end all the same.

        withheld: Permits that nobody gets at present.

        waiting: Calls in line, all lanes.

        waiting_by_lane: The same, by lane.

        admitted: Permits given out so far.

        busy_answers: 1018 met so far.

        late_answers: Answers read after their caller had left, so far.

        foreign_estimate: About how many permits others seem to hold: those that
            the service did not admit when it last refused, less what it has
            admitted since.

        peak: The most permits that were in use at once.
    """

    limit: int
    share: int
    in_use: int
    detached: int
    withheld: int
    waiting: int
    waiting_by_lane: Mapping[Lane, int]
    admitted: int
    busy_answers: int
    late_answers: int
    foreign_estimate: int
    peak: int


class Gate(Protocol):
    """
    At most ``limit`` calls of one token at once.

    A permit that :meth:`acquire` returned with is given back by exactly one call of
    :meth:`release`, :meth:`refused` or :meth:`give_up`. All but waiting is done in
    the call itself, without a turn of the loop.
    """

    async def acquire(
        self, lane: Lane, until: float | None = None, *, again: bool = False
    ) -> None:
        """
        Wait for a permit.

        First come, first served within a lane. After any error the gate is as if
        the call had never come.

        Args:
            lane: Which line to stand in.

            until: The loop's time at which to give up. None: never.

            again: Whether the service has just refused the call. It stands at the
                head of its lane then, also where too many wait, and goes on when
                one of ours completes, or as a probe.

        Raises:
            GateTimeoutError: No permit came free in time. Nothing was sent.

            GateFullError: Too many wait already. Nothing was sent.

            GateLostError: The gate is shared, and its store is gone. Nothing was
                sent.

            ClosedError: The gate is closed. Nothing was sent.
        """

    def release(self, lane: Lane, took: float | None = None) -> None:
        """
        Give a permit back; the next in line has it at once.

        Args:
            lane: The lane it was acquired in.

            took: Seconds to the service's answer. None: there was none, or it
                does not tell whether the service had room.
        """

    def refused(self, lane: Lane) -> None:
        """
        Give back a permit that the service answered with 1018.

        Args:
            lane: The lane it was acquired in.
        """

    def give_up(self, lane: Lane, linger: float) -> None:
        """
        Give back the permit of a call that the service may still be busy with.

        Args:
            lane: The lane it was acquired in.

            linger: Seconds for which nobody gets it.
        """

    def detach(self) -> None:
        """Take note that the caller of a call in flight has left; its permit stays."""

    def land(self, *, answered: bool) -> None:
        """
        Take note that a detached call has ended; its permit is given back as usual.

        Args:
            answered: Whether its answer was read.
        """

    def statistics(self) -> GateStatistics:
        """Tell what the gate is doing."""
        ...

    def close(self) -> None:
        """Let nobody in any more; those in line get ``ClosedError``."""

    async def idle(self, until: float) -> bool:
        """
        Wait until no permit is in use.

        Args:
            until: The loop's time at which to give up.

        Returns:
            Whether it came to that.
        """
        ...


_Line: TypeAlias = "OrderedDict[asyncio.Future[bool], None]"


@attrs.define
class _Queue:
    """One lane: who stands in it, and how many permits it has."""

    refused: _Line = attrs.field(factory=OrderedDict)
    fresh: _Line = attrs.field(factory=OrderedDict)
    in_use: int = 0

    def __len__(self) -> int:
        return len(self.refused) + len(self.fresh)


@attrs.define(eq=False, repr=False)
class LocalGate:
    """
    The gate of one process.

    Args:
        limit: Permits in all.

        batch_floor: Permits that the batch lane keeps while it has work, of so
            many as *limit*; with a smaller share it keeps as much less.

        max_waiting: Calls that may wait. None: any number.
    """

    _limit: int = attrs.field(alias="limit")
    _batch_floor: int = attrs.field(alias="batch_floor", default=0)
    _max_waiting: int | None = attrs.field(alias="max_waiting", default=None)
    # What the limit is to be, and what it was at first.
    _target: int = attrs.field(init=False)
    _whole: int = attrs.field(init=False)
    _free: asyncio.Semaphore = attrs.field(init=False)
    _interactive: _Queue = attrs.field(init=False, factory=_Queue)
    _batch: _Queue = attrs.field(init=False, factory=_Queue)
    _in_use: int = attrs.field(init=False, default=0)
    # The two kinds of withheld permits.
    _kept_back: int = attrs.field(init=False, default=0)
    _lingering: int = attrs.field(init=False, default=0)
    _waiting: int = attrs.field(init=False, default=0)
    _detached: int = attrs.field(init=False, default=0)
    _admitted: int = attrs.field(init=False, default=0)
    _busy: int = attrs.field(init=False, default=0)
    _late_answers: int = attrs.field(init=False, default=0)
    _peak: int = attrs.field(init=False, default=0)
    _closed: bool = attrs.field(init=False, default=False)
    _drained: asyncio.Future[bool] | None = attrs.field(init=False, default=None)
    # Growth: good answers since the last step, rounds to the next, by how many it
    # goes up, and whether the last one has neither held nor been refused yet.
    _good: int = attrs.field(init=False, default=0)
    _rounds: float = attrs.field(init=False, default=1.0)
    _step: int = attrs.field(init=False, default=1)
    _stepped: bool = attrs.field(init=False, default=False)
    # Turns of the interactive lane since the last of the batch lane.
    _turns: int = attrs.field(init=False, default=0)
    # Probing: the usual service time, when something was last known of the
    # service's room, how often the pause was doubled, and the timer.
    _usual: float = attrs.field(init=False, default=0.0)
    _told: float = attrs.field(init=False, default=0.0)
    _doublings: int = attrs.field(init=False, default=0)
    _timer: asyncio.TimerHandle | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self._target = self._whole = self._limit
        self._free = asyncio.Semaphore(self._limit)

    @classmethod
    def of(cls, settings: Settings) -> LocalGate:
        """Make the gate that *settings* describe."""
        return cls(
            limit=settings.limit,
            batch_floor=settings.batch_floor,
            max_waiting=settings.max_waiting,
        )

    async def acquire(
        self, lane: Lane, until: float | None = None, *, again: bool = False
    ) -> None:
        """Wait for a permit; see :meth:`Gate.acquire`."""
        if self._closed:
            raise _closed()
        queue = self._interactive if lane == "interactive" else self._batch
        # What free.locked() says, for a third of its price.
        if self._in_use + self._kept_back + self._lingering < self._limit:
            # Nobody waits beside a free permit, so nobody is overtaken. Does not
            # suspend: it is not locked.
            await self._free.acquire()
            # As _admit() does: a frame less for most calls.
            queue.in_use += 1
            self._in_use += 1
            self._admitted += 1
            if self._in_use > self._peak:  # noqa: PLR1730 - half the cost of max()
                self._peak = self._in_use
            return
        if self._kept_back and not (self._in_use or self._waiting or again):
            # Nothing of ours will complete, so there is nothing to wait for.
            self._kept_back -= 1
            self._admit(queue)
            return
        # In this coroutine and not in one of its own: a hundred thousand may wait.
        loop = asyncio.get_running_loop()
        began = loop.time()
        line = queue.refused if again else self._with_room(queue)
        waiter: asyncio.Future[bool] = loop.create_future()
        line[waiter] = None
        self._waiting += 1
        self._watch()
        timer = None
        if until is not None:
            timer = loop.call_at(until, self._expire, line, waiter)
        try:
            granted = await waiter
        except BaseException:
            # A cancellation, or a coroutine that is closed.
            self._withdraw(queue, line, waiter)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if not granted:
            waited = loop.time() - began
            msg = f"no permit came free within {waited:.3f} s. Nothing was sent"
            raise GateTimeoutError(msg, waited=waited)

    def release(self, lane: Lane, took: float | None = None) -> None:
        """Give a permit back; see :meth:`Gate.release`."""
        queue = self._interactive if lane == "interactive" else self._batch
        self._leave(queue)
        if took is not None:
            self._learn(took)
        self._put()

    def refused(self, lane: Lane) -> None:
        """Give a refused permit back; see :meth:`Gate.refused`."""
        self._leave(self._queue(lane))
        self._busy += 1
        self._told = asyncio.get_running_loop().time()
        if self._limit > self._target:
            self._shrink()
        else:
            self._kept_back += 1
        while not self._free.locked():
            self._take()
            self._kept_back += 1
        self._good = 0
        self._step = 1
        if self._stepped:
            self._rounds = min(_ROUNDS_AT_MOST, self._rounds * _LONGER)
            self._stepped = False
        self._check_drained()
        self._watch()

    def give_up(self, lane: Lane, linger: float) -> None:
        """Give back the permit of an unfinished call; see :meth:`Gate.give_up`."""
        self._leave(self._queue(lane))
        if self._closed:
            self._put()
            return
        self._lingering += 1
        asyncio.get_running_loop().call_later(linger, self._return)
        self._check_drained()

    def detach(self) -> None:
        """Take note of a caller who left; see :meth:`Gate.detach`."""
        self._detached += 1

    def land(self, *, answered: bool) -> None:
        """Take note that a detached call has ended; see :meth:`Gate.land`."""
        self._detached -= 1
        self._late_answers += answered

    def resize(self, limit: int) -> None:
        """
        Change the number of permits.

        Fewer: those that nobody has are gone at once, those in use when they come
        back. More: they are there at once.

        Args:
            limit: Permits in all; none is possible.
        """
        self._target = limit
        while self._limit > limit and self._kept_back:
            self._kept_back -= 1
            self._limit -= 1
        while self._limit > limit and not self._free.locked():
            self._take()
            self._limit -= 1
        while self._limit < limit:
            self._limit += 1
            self._put()

    def statistics(self) -> GateStatistics:
        """Tell what the gate is doing."""
        return GateStatistics(
            limit=self._limit,
            share=self._share(),
            in_use=self._in_use,
            detached=self._detached,
            withheld=self._kept_back + self._lingering,
            waiting=self._waiting,
            waiting_by_lane=MappingProxyType(
                {
                    "interactive": len(self._interactive),
                    "batch": len(self._batch),
                }
            ),
            admitted=self._admitted,
            busy_answers=self._busy,
            late_answers=self._late_answers,
            foreign_estimate=self._kept_back,
            peak=self._peak,
        )

    def close(self) -> None:
        """Let nobody in any more; see :meth:`Gate.close`."""
        self._closed = True
        self._dismiss(_closed)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def idle(self, until: float) -> bool:
        """Wait until no permit is in use; see :meth:`Gate.idle`."""
        if self._in_use == 0:
            return True
        loop = asyncio.get_running_loop()
        if self._drained is None:
            self._drained = loop.create_future()
        done, _ = await asyncio.wait(
            [self._drained], timeout=max(0.0, until - loop.time())
        )
        return bool(done)

    def __repr__(self) -> str:
        told = [f"{self._limit} permits"]
        if self._kept_back:
            told.append(f"share {self._share()}")
        detached = f" ({self._detached} detached)" if self._detached else ""
        told.append(f"{self._in_use} in use{detached}")
        if withheld := self._kept_back + self._lingering:
            told.append(f"{withheld} withheld")
        batch = f" ({len(self._batch)} batch)" if self._batch else ""
        told.append(f"{self._waiting} waiting{batch}")
        if self._busy or self._late_answers:
            told.append(f"{self._busy} busy answers")
            told.append(f"{self._late_answers} late answers")
        if self._closed:
            told.append("closed")
        return f"<LocalGate {', '.join(told)}>"

    def _queue(self, lane: Lane) -> _Queue:
        return self._interactive if lane == "interactive" else self._batch

    def _share(self) -> int:
        # One at least: with all kept back, the next call is sent as a probe.
        return max(min(1, self._limit), self._limit - self._kept_back)

    def _with_room(self, queue: _Queue) -> _Line:
        """Return the line for a newcomer, unless too many wait already."""
        if self._max_waiting is not None and self._waiting >= self._max_waiting:
            msg = f"{self._waiting} calls wait already. Nothing was sent"
            raise GateFullError(msg)
        return queue.fresh

    def _withdraw(
        self, queue: _Queue, line: _Line, waiter: asyncio.Future[bool]
    ) -> None:
        """Leave nothing of a caller who goes in line."""
        if waiter.cancelled() or not waiter.done():
            self._strike(line, waiter)
        elif waiter.exception() is None and waiter.result():
            # Handed over in the very turn in which he goes.
            self._leave(queue)
            self._put()

    def _dismiss(self, error: Callable[[], Exception]) -> None:
        """Send everybody in line away, each with an error of his own."""
        for queue in (self._interactive, self._batch):
            for line in (queue.refused, queue.fresh):
                while line:
                    waiter, _ = line.popitem(last=False)
                    self._waiting -= 1
                    if not waiter.done():
                        waiter.set_exception(error())

    def _expire(self, line: _Line, waiter: asyncio.Future[bool]) -> None:
        # A flag and not a cancellation: that could meet one of the caller's own.
        if not waiter.done():
            self._strike(line, waiter)
            waiter.set_result(False)

    def _strike(self, line: _Line, waiter: asyncio.Future[bool]) -> None:
        """Take a waiter who gave up out of its line, unless that has been done."""
        if waiter in line:
            del line[waiter]
            self._waiting -= 1

    def _admit(self, queue: _Queue) -> None:
        queue.in_use += 1
        self._in_use += 1
        self._admitted += 1
        if self._in_use > self._peak:  # noqa: PLR1730 - half the cost of max()
            self._peak = self._in_use

    def _leave(self, queue: _Queue) -> None:
        """Take a permit from a call; the caller of this puts it somewhere."""
        if queue.in_use < 1:
            msg = "a permit was given back twice"
            raise RuntimeError(msg)
        queue.in_use -= 1
        self._in_use -= 1

    def _put(self) -> None:
        """Put a permit that is in nobody's hands where it belongs."""
        if self._limit > self._target:
            self._shrink()
        elif not (self._waiting and self._hand_over()):
            self._free.release()
        if self._drained is not None:
            self._check_drained()

    def _shrink(self) -> None:
        """Let go of a permit that has come back above a limit that became less."""
        self._limit -= 1

    def _take(self) -> None:
        """Take a free permit; there is one, so acquire() ends at its first step."""
        with contextlib.suppress(StopIteration):
            self._free.acquire().send(None)

    def _return(self) -> None:
        """Take back a permit that has lingered long enough."""
        self._lingering -= 1
        self._put()

    def _check_drained(self) -> None:
        if self._drained is not None and self._in_use == 0:
            if not self._drained.done():
                self._drained.set_result(True)
            self._drained = None

    def _hand_over(self) -> bool:
        """Give one permit to the next in line; tell whether there was one."""
        while self._waiting:
            queue = self._next()
            line = queue.refused or queue.fresh
            waiter, _ = line.popitem(last=False)
            self._waiting -= 1
            # One that was cancelled in this turn has not left the line yet.
            if not waiter.done():
                self._admit(queue)
                waiter.set_result(True)
                return True
        return False

    def _next(self) -> _Queue:
        """Choose the lane that is served next; one of them has somebody in it."""
        if not self._batch:
            return self._interactive
        if not self._interactive or self._batch_is_due():
            self._turns = 0
            return self._batch
        self._turns += 1
        return self._interactive

    def _batch_is_due(self) -> bool:
        if not self._batch_floor:
            return False
        share = self._share()
        if share == 1:
            return self._turns >= _BATCH_TURN - 1
        floor = max(1, self._batch_floor * min(share, self._whole) // self._whole)
        # One permit at least is left to the other lane.
        return self._batch.in_use < min(floor, share - 1)

    def _learn(self, took: float) -> None:
        """Take note of a good answer: the share may grow, a probe has an end."""
        if not self._usual:
            self._usual = took
        elif took > self._usual:
            self._usual *= _FOLLOW
        else:
            self._usual /= _FOLLOW
        if not self._kept_back:
            return
        self._told = asyncio.get_running_loop().time()
        self._doublings = 0
        self._good += 1
        if self._good < self._share() * self._rounds:
            return
        self._good = 0
        if self._stepped:
            self._rounds = max(1.0, self._rounds / 2)
            self._step *= 2
        self._stepped = True
        for _ in range(min(self._step, self._kept_back)):
            self._kept_back -= 1
            self._put()

    def _watch(self) -> None:
        """See to it that a line which nothing moves is probed."""
        if self._timer is None and self._kept_back and self._waiting:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(self._told + self._pause(), self._probe)

    def _pause(self) -> float:
        pause = max(_PROBE_AFTER, _PROBE_TIMES * self._usual)
        return min(_PROBE_AT_MOST, pause * float(2**self._doublings))

    def _probe(self) -> None:
        """Send one of those in line beyond the share, if none of ours completes."""
        self._timer = None
        now = asyncio.get_running_loop().time()
        if self._kept_back and now >= self._told + self._pause() and self._hand_over():
            self._kept_back -= 1
            self._told = now
            self._doublings = min(self._doublings + 1, 8)
        self._watch()


def _closed() -> ClosedError:
    return ClosedError("the session is closed. Nothing was sent")
