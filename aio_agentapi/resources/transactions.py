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
from aio_agentapi._types import OpenInt, Operation, Query, UserCode
from aio_agentapi.errors import OutcomeUnknownError, UsageError

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

            BusyError: Others have read it, and the caller's time is over.

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
        two calls: a whole day takes at least twelve minutes. An hour without rows is
        asked for twice, since an early call may be answered with an empty list. To
        keep up with what happens, :meth:`since` is the faster way.

        Args:
            start: From when, with its zone; the service keeps two days. Its times
                are whole seconds: the one in which this lies is included.

            end: Until when, with its zone: the second in which it lies is not
                included, so that the next reading can start there.

        Yields:
            Each transaction once, hour by hour, within an hour in the service's
            order.

        Raises:
            UsageError: A time without a zone, or an end before the start. Nothing
                was sent.

            GateTimeoutError: It may not be read again in the caller's time. Nothing
                was sent.

            BusyError: Others have read it, and the caller's time is over.

            OutcomeUnknownError: The rows of an hour kept moving while they were
                read, so that some may be missing.

        Source:
            Contract 5, transactions and statistics: ``game/transaction``.
        """
        if start.tzinfo is None or end.tzinfo is None or end < start:
            msg = "between: a start and a later end, each with its zone (tzinfo)"
            raise UsageError(msg)
        zone = ZoneInfo(self._channel.settings.zone)
        first, last = _wall(start, zone), _wall(end, zone)
        lower, upper = first, last
        # What lies on the border of two windows is told in both.
        before: frozenset[int] = frozenset()
        while first < last:
            until = min(first + _WINDOW, last)
            seen: set[int] = set()
            async with contextlib.aclosing(self._window(first, until)) as rows:
                async for row in rows:
                    if row.trans_id in seen or row.trans_id in before:
                        continue
                    seen.add(row.trans_id)
                    if lower <= _wall(row.regdate, zone) < upper:
                        yield row
            before = frozenset(seen)
            first = until

    async def _window(
        self, start: datetime, end: datetime
    ) -> AsyncGenerator[Transaction]:
        """Read one window, some rows more than once if they moved meanwhile."""
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


def _wall(moment: datetime, zone: ZoneInfo) -> datetime:
    """Return what a clock in a zone shows, in whole seconds."""
    return moment.astimezone(zone).replace(tzinfo=None, microsecond=0)
