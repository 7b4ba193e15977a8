"""The feed of what moved the balances of an agent's users."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final
from zoneinfo import ZoneInfo

import attrs

from aio_agentapi._channel import Channel
from aio_agentapi._types import OpenInt, Operation, Query, UserCode, span
from aio_agentapi.errors import OutcomeUnknownError

__all__ = [
    "TransType",
    "Transaction",
    "Transactions",
]

# The service's own bounds: the rows of a page, and the length of a window.
_PAGE: Final = 2000
_WINDOW: Final = timedelta(hours=1)

# Readings of a window whose rows move while it is read.
_TRIES: Final = 5


class TransType(OpenInt):
    """What a transaction was; a number we do not know is kept."""

    BET = 1
    WIN = 2
    DEPOSIT = 4
    WITHDRAW = 8
    BET_CANCEL = 16
    BONUS_CALL = 32


@attrs.frozen(kw_only=True)
class Transaction:
    """
    One change of a user's balance.

    Attributes:
        trans_id: The service's number of it, growing.

        user_code: Whose balance.

        round_id: The game's round; a text that need not be a number.

        trans_type: Bet, win, deposit and so on; a win is sent even when it is 0.

        provider_id: The game's provider.

        provider_name: Its name.

        game_code: The game.

        game_name: Its name.

        category: What kind of game.

        prebalance: The balance before it, in major units.

        trans_amount: What was moved.

        balance: The balance after it.

        regdate: When, with its zone.

        time_stamp: The same as a number. None where not told.
    """

    trans_id: int
    user_code: UserCode
    round_id: str
    trans_type: TransType
    provider_id: int
    provider_name: str
    game_code: str
    game_name: str
    category: str
    prebalance: Decimal
    trans_amount: Decimal
    balance: Decimal
    regdate: datetime
    time_stamp: int | None = None


@attrs.frozen(kw_only=True)
class _Page:
    total: int
    list: tuple[Transaction, ...]


_SINCE: Final = Operation(
    name="transactions.since",
    effect="read",
    returns=list[Transaction],
    paced="last_id",
)
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
            body = {"last_id": last_id, "limit": _PAGE}
            page = await self._channel.call(Query(_SINCE, body))
            for row in page:
                yield row
            if len(page) < _PAGE:
                return
            last_id = page[-1].trans_id

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
            async with contextlib.aclosing(self._channel.pages(query, _PAGE)) as pages:
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
