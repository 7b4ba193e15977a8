"""
When a feed may be read again.

The service wants a while between two readings from one place, and what it answers to
an early one may look like an empty feed. So the readings of one place are made one
after the other, each so long after the end of the one before.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager

import attrs


@attrs.define(eq=False)
class _Place:
    """Where a feed is read: who reads it, and when it may be read again."""

    turn: asyncio.Lock = attrs.field(factory=asyncio.Lock)
    ready: float = 0.0
    users: int = 0
    # A reading that goes on behind whoever made it.
    running: asyncio.Task[None] | None = None

    def let_run(self, task: asyncio.Task[None], interval: float) -> None:
        """Let nobody read until *task* has ended, and so long after it."""

        def end(_: object) -> None:
            self.ready = task.get_loop().time() + interval
            self.running = None

        self.running = task
        task.add_done_callback(end)


@attrs.define(eq=False)
class Reading:
    """
    One turn at a place.

    Attributes:
        made: Whether the service may have counted it.

        late: Seconds after its end in which the service may still do so.

        running: What goes on with it behind whoever made it, if anything does.
    """

    made: bool = True
    late: float = 0.0
    running: asyncio.Task[None] | None = None


@attrs.define(eq=False)
class Pace:
    """
    The places that one token reads its feeds from.

    Args:
        interval: Seconds between the end of a reading and the next.
    """

    _interval: float = attrs.field(alias="interval")
    # Whoever was read last stands last.
    _places: OrderedDict[Hashable, _Place] = attrs.field(
        init=False, factory=OrderedDict
    )

    @asynccontextmanager
    async def turn(
        self,
        place: Hashable,
        pause: Callable[[float], Awaitable[object]],
        until: float | None,
    ) -> AsyncGenerator[Reading]:
        """
        Wait until a place may be read, and keep it while it is.

        Args:
            place: Two readings of equal places are kept apart.

            pause: Sleeps for so many seconds.

            until: The loop's time at which to give up. None: never.

        Yields:
            The reading, which whoever makes it may say more of.

        Raises:
            TimeoutError: The turn did not come in time, or will not.
        """
        loop = asyncio.get_running_loop()
        spot = self._places.setdefault(place, _Place())
        spot.users += 1
        try:
            async with asyncio.timeout_at(until):
                await spot.turn.acquire()
            try:
                if (running := spot.running) is not None:
                    patience = None if until is None else until - loop.time()
                    await asyncio.wait([running], timeout=patience)
                    if not running.done():
                        raise TimeoutError
                left = spot.ready - loop.time()
                if until is not None and spot.ready > until:
                    raise TimeoutError
                if left > 0:
                    await pause(left)
                reading = Reading()
                try:
                    yield reading
                finally:
                    if reading.made:
                        # From its end: the service may have counted it until then.
                        spot.ready = loop.time() + reading.late + self._interval
                        self._places.move_to_end(place)
                        if reading.running is not None:
                            spot.let_run(reading.running, self._interval)
            finally:
                spot.turn.release()
        finally:
            spot.users -= 1
            self._forget(loop.time())

    def _forget(self, now: float) -> None:
        """Drop what may be read by now: a reader leaves a place for each page."""
        while self._places:
            place, spot = next(iter(self._places.items()))
            if spot.users or spot.running or spot.ready > now:
                return
            del self._places[place]
