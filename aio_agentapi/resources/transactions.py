"""The feed of what moved the balances of an agent's users."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

import attrs

from aio_agentapi._channel import Channel
from aio_agentapi._feed import (
    KEPT,
    PAGE,
    PASSING,
    SINCE,
    Feed,
    Ripe,
    Transaction,
    TransType,
)
from aio_agentapi._types import Operation, Query, span
from aio_agentapi.errors import FeedGapError, OutcomeUnknownError

__all__ = [
    "TransType",
    "Transaction",
    "Transactions",
]

_LOG: Final = logging.getLogger("aio_agentapi.transactions")

# The service's own bound on the length of a window.
_WINDOW: Final = timedelta(hours=1)

# What is left of the time that the service keeps a row, for safety.
_MARGIN: Final = 3600.0

# Seconds before a service that is not reached is tried again.
_PAUSE: Final = 1.0
_PAUSE_AT_MOST: Final = 60.0

# Readings of a window whose rows move while it is read.
_TRIES: Final = 5


@attrs.frozen(kw_only=True)
class _Page:
    total: int
    list: tuple[Transaction, ...]


_BETWEEN: Final = Operation(
    name="transactions.between", effect="read", returns=_Page, paced=""
)


@attrs.frozen(eq=False)
class Transactions:
    """The transactions of the caller's users, kept by the service for two days."""

    _channel: Channel = attrs.field(alias="channel", repr=False)

    async def since(self, last_id: int) -> AsyncIterator[Transaction]:
        """
        Iterate over the transactions after one, up to the newest.

        A row may become visible some seconds late, behind higher ids: go on from a
        row that is older than that. Rows of more than two days ago are gone, without
        a sign here.

        The service wants 30 s between two readings from the same *last_id*, so the
        second of them waits here for ``feed_interval``. To other readers of the
        same token an early reading may look empty: an empty one does not prove
        that there is nothing new.

        Args:
            last_id: A trans_id; it and those before it are left out. 0: the
                oldest that the service still has.

        Yields:
            The oldest first.

        Raises:
            GateTimeoutError: It may not be read again in the caller's time. Nothing
                was sent.

            BusyError: Others have read it, and it may not be read again in the
                caller's time.

        Source:
            Contract 5, transactions: ``game/transaction-id``.
        """
        while True:
            body = {"last_id": last_id, "limit": PAGE}
            page = await self._channel.call(Query(SINCE, body))
            for row in page:
                yield row
            if len(page) < PAGE:
                return
            last_id = page[-1].trans_id

    async def follow(self, after: int) -> AsyncGenerator[Transaction]:
        """
        Iterate over the transactions after one, each once, and wait for new ones.

        It does not end by itself. A row is given only when all rows before it can be
        seen: some seconds after it was made, since a row may become visible
        ``feed_lag`` late, behind higher ids. The caller keeps the cursor: the
        trans_id of the last row that he is done with. With that, a new iterator goes
        on behind it, and leaves none out.

        A row of its own is read again with each reading, so that an empty answer,
        which proves nothing, is told from a true one. Between two readings from one
        row it waits for ``feed_interval``. Its calls are in the batch lane, and have
        no deadline but ``timeout``.

        Args:
            after: A trans_id; it and those before it are left out. 0: from the
                oldest that the service still has.

        Yields:
            The oldest first, in the order of their numbers.

        Where the service is not reached it tries again, at most a minute later, and
        says so once in the log ``aio_agentapi.transactions``.

        Raises:
            FeedGapError: Rows behind *after* may be gone: the service deletes them
                after two days. It has the bounds; ``follow(0)`` goes on with the
                oldest row there is.

            CredentialError: The service does not accept the token.

        Source:
            Contract 5, transactions: ``game/transaction-id``.
        """
        settings = self._channel.settings
        feed, ripe = Feed(self._channel), Ripe(settings.feed_lag)
        self._channel.watch_feed(ripe)
        loop = asyncio.get_running_loop()
        cursor, proved, anchored, pause = after, None, after > 0, _PAUSE
        try:
            while True:
                begun, wall = loop.time(), self._channel.cashier.clock()
                try:
                    rows = await feed.page(cursor, anchored=anchored)
                except FeedGapError:
                    # Its row was the newest, and grew old: what came after it is
                    # younger than the last true reading.
                    if proved is None or not 0 <= wall - proved < KEPT - _MARGIN:
                        raise
                    anchored = False
                    continue
                except PASSING as error:
                    if pause == _PAUSE:
                        _LOG.warning("%s; it is tried again until it works", error)
                    await asyncio.sleep(pause)
                    pause = min(_PAUSE_AT_MOST, 2 * pause)
                    continue
                proved, pause = wall, _PAUSE
                bound = ripe.bound(rows, begun)
                before = cursor
                for row in rows:
                    if cursor < row.trans_id <= bound:
                        cursor, anchored = row.trans_id, True
                        yield row
                ripe.gave(rows, wall)
                if cursor == before:
                    await _look_ahead(feed, ripe, rows)
                    # Here, so that it is known when the next reading begins.
                    await asyncio.sleep(settings.feed_interval)
                elif len(rows) < PAGE:
                    await asyncio.sleep(settings.feed_lag)
        finally:
            # Whatever keeps this frame: nobody follows it any more.
            ripe.given = None

    async def between(
        self, start: datetime, end: datetime
    ) -> AsyncIterator[Transaction]:
        """
        Iterate over the transactions of a while.

        The service tells at most an hour at a time, and wants more than 30 s between
        two calls: a whole day takes at least twelve minutes. To keep up with what
        happens, :meth:`since` is the faster way.

        An early call may be answered with an empty list, so an hour without rows is
        asked for twice. That is proof only while nobody else reads hours with the
        same token: let one process do it.

        Args:
            start: From when, with its zone; what is older than two days is gone. The
                service's times are whole seconds: the one in which this lies is
                included.

            end: Until when, with its zone: the second in which it lies is not
                included, so that the next reading can start there. A row may
                become visible some seconds late: leave so much to the next one.

        Yields:
            Each transaction once, hour by hour, within an hour in the service's
            order, those that became visible meanwhile behind the others. In the
            hour that the service's zone has twice in autumn, rows of both may
            come where their times do not tell which it was.

        Raises:
            UsageError: A time without a zone, or an end before the start. Nothing
                was sent.

            GateTimeoutError: It may not be read again in the caller's time. Nothing
                was sent.

            BusyError: Others have read it, and it may not be read again in the
                caller's time.

            OutcomeUnknownError: The rows of an hour kept moving while they were
                read, so that some may be missing.

        Source:
            Contract 5, transactions and statistics: ``game/transaction``.
        """
        first, last = (moment.replace(microsecond=0) for moment in span(start, end))
        zone = ZoneInfo(self._channel.settings.zone)
        # What lies on the border of two windows is told in both.
        before: frozenset[int] = frozenset()
        while first < last:
            until = _cut(first, min(first + _WINDOW, last), zone)
            window = _Window(first, until, zone)
            seen: set[int] = set()
            async with contextlib.aclosing(self._window(window)) as rows:
                async for row in rows:
                    if row.trans_id in seen or not window.has(row.regdate):
                        continue
                    seen.add(row.trans_id)
                    if row.trans_id not in before:
                        yield row
            before = frozenset(seen)
            first = until

    async def _window(self, window: _Window) -> AsyncGenerator[Transaction]:
        """Read one window, some rows more than once if they moved meanwhile."""
        start, end = window.walls
        body = {"start_time": f"{start}", "end_time": f"{end}"}
        query = Query(_BETWEEN, body)
        empty = False
        for _ in range(_TRIES):
            total, count = None, 0
            async with contextlib.aclosing(self._channel.pages(query, PAGE)) as pages:
                async for page in pages:
                    for row in page.list:
                        yield row
                    count += len(page.list)
                    if total not in {None, page.total}:
                        # Rows came or went, so the offsets mean others now.
                        break
                    total = page.total
                else:
                    if count >= (total or 0) and (count or empty):
                        return
                    # An early reading may look like this.
                    empty = True
        msg = (
            f"the transactions from {start} to {end} kept moving while they were"
            " read: some may be missing"
        )
        raise OutcomeUnknownError(msg, operation=_BETWEEN.name)


async def _look_ahead(feed: Feed, ripe: Ripe, rows: list[Transaction]) -> None:
    """Where there is more than a page, let what is behind it tell its age."""
    with contextlib.suppress(*PASSING):
        while len(rows) == PAGE:
            rows = await feed.page(rows[-1].trans_id)
            ripe.look(rows)


@attrs.frozen
class _Window:
    """A while in which the clocks of a zone are not changed, in whole seconds."""

    start: datetime
    end: datetime
    zone: ZoneInfo

    @property
    def walls(self) -> tuple[datetime, datetime]:
        """What a clock of the zone shows from its start to its end."""
        wall = self.start.astimezone(self.zone).replace(tzinfo=None)
        return wall, wall + (self.end - self.start)

    def has(self, moment: datetime) -> bool:
        """Tell whether a time lies in it, by the clock where it was told by that."""
        if moment.tzinfo != self.zone:
            return self.start <= moment < self.end
        start, end = self.walls
        return start <= moment.replace(tzinfo=None) < end


def _cut(start: datetime, end: datetime, zone: ZoneInfo) -> datetime:
    """Return the end of a while, or when the clocks are changed in the middle of it."""

    def ahead(moment: datetime) -> timedelta | None:
        return moment.astimezone(zone).utcoffset()

    if ahead(start) == ahead(end):
        return end
    first, last = 0, int((end - start).total_seconds())
    while last - first > 1:
        middle = (first + last) // 2
        if ahead(start + timedelta(seconds=middle)) == ahead(start):
            first = middle
        else:
            last = middle
    return start + timedelta(seconds=last)
