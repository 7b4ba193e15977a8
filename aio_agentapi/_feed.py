"""
The feed of what moved the balances of users, as far as its answers can be trusted.

An answer to a reading that came too early may look like an empty feed, rows are deleted
after two days, and a row may be seen later than rows of higher numbers. So a reading
begins with a row that was there before, and what a reader may rely on is told apart
from what he has merely not seen: see :class:`Feed` and :class:`Ripe`.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

import attrs

from aio_agentapi._channel import Channel
from aio_agentapi._types import OpenInt, Operation, Query, UserCode
from aio_agentapi.errors import (
    FeedGapError,
    GateTimeoutError,
    NotSentError,
    OutcomeUnknownError,
)

# The service's own bounds on the rows of a page.
PAGE: Final = 2000
_FEW: Final = 10

# Below the numbers of any feed but a very young one.
_SMALL: Final = 1000

# Seconds for which the service keeps a row.
KEPT: Final = 2 * 24 * 3600.0

# After these it is read again: the service, or the way to it, may be back soon.
PASSING: Final = (NotSentError, OutcomeUnknownError, GateTimeoutError)


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


SINCE: Final = Operation(
    name="transactions.since",
    effect="read",
    returns=list[Transaction],
    paced="last_id",
)


def _patient(channel: Channel) -> Channel:
    """Return a view of a channel for work that nobody waits for."""
    settings = attrs.evolve(
        channel.settings, lane="batch", deadline=None, max_wait=None
    )
    return attrs.evolve(channel, settings=settings)


@attrs.frozen(eq=False)
class Feed:
    """
    The feed by pages, each a true answer.

    Args:
        channel: Whose feed. Its calls are made in the batch lane.
    """

    _channel: Channel = attrs.field(alias="channel", converter=_patient)
    _dice: random.Random = attrs.field(init=False, factory=random.SystemRandom)

    async def page(self, cursor: int, *, anchored: bool = True) -> list[Transaction]:
        """
        Return up to a page of rows, from a row on.

        An early reading may be answered as if there were nothing. So it begins with
        the row itself, and an answer without it is asked for again, until it is
        known whether the row is gone.

        Args:
            cursor: The trans_id of a row, which the answer begins with. 0: the
                oldest there is.

            anchored: False: the row is known to be gone; the answer is what comes
                behind it.

        Returns:
            The oldest first. Empty only where nothing comes behind *cursor*, which
            is 0 or gone: twice, as long apart as the service wants, and where nobody
            else reads.

        Raises:
            FeedGapError: The row is gone.
        """
        anchored = anchored and cursor > 0
        known_empty = False
        while True:
            rows = await self._read(cursor - 1 if anchored else cursor, PAGE)
            if rows and not (anchored and rows[0].trans_id != cursor):
                return rows
            if not rows:
                if known_empty:
                    return rows
                oldest = await self._oldest(cursor)
                if not anchored:
                    # Once more: a feed of few rows may have all of them below.
                    known_empty = oldest is None or cursor > 0
                    continue
                if oldest is not None and oldest <= cursor:
                    continue
            first = rows[0].trans_id if rows else None
            msg = f"rows after {cursor} are gone, or may be. Nothing happened"
            raise FeedGapError(msg, after=cursor, before=first)

    async def _oldest(self, cursor: int) -> int | None:
        """
        Return the number of a row that is not behind others; None where there is none.

        Others may read from where we do, and make of our reading an early one. So it
        is asked for from two numbers, smaller than those of any real feed, that
        nobody else will have come upon.
        """
        for _ in range(2):
            number = self._dice.randrange(min(_SMALL, cursor) or _SMALL)
            rows = await self._read(number, _FEW)
            if rows:
                return rows[0].trans_id
        return None

    async def _read(self, last_id: int, limit: int) -> list[Transaction]:
        body = {"last_id": last_id, "limit": limit}
        return await self._channel.call(Query(SINCE, body))


@attrs.define(eq=False)
class Ripe:
    """
    Up to which row all rows can be seen.

    Numbers grow as rows are made, and each can be seen ``lag`` later at most. So a
    reading has all rows below those that are so much older than itself: by the
    service's own clock, as the newest row tells it, or by ours, since we saw them.
    """

    lag: float
    # Up to when all rows were given, in seconds since 1970; None: nobody follows.
    given: float | None = attrs.field(init=False, default=None)
    # The latest time of a row; and rows that were the newest, with when we saw them.
    _latest: datetime | None = attrs.field(init=False, default=None)
    _seen: deque[tuple[int, float]] = attrs.field(init=False, factory=deque)
    # Up to which row all were old enough for the last reading, and so for the next.
    _known: int = attrs.field(init=False, default=0)

    def look(self, rows: list[Transaction]) -> None:
        """Learn from rows what time it is at the service, and what is there."""
        if not rows:
            return
        now = asyncio.get_running_loop().time()
        times = [row.regdate for row in rows if not _is_twofold(row.regdate)]
        if times:
            latest = max(times)
            self._latest = max(latest, self._latest or latest)
        if not self._seen or self._seen[-1][0] < rows[-1].trans_id:
            self._seen.append((rows[-1].trans_id, now))

    def bound(self, rows: list[Transaction], begun: float) -> int:
        """
        Return the number up to which a reading has all rows.

        Args:
            rows: What it gave.

            begun: The loop's time when it began.
        """
        while self._seen and begun - self._seen[0][1] >= self.lag:
            self._known, _ = self._seen.popleft()
        self.look(rows)
        if self._latest is not None:
            # Its times are whole seconds.
            old = self._latest - timedelta(seconds=self.lag + 1)
            for row in rows:
                if row.regdate > old or _is_twofold(row.regdate):
                    break
                self._known = max(self._known, row.trans_id)
        return self._known

    def gave(self, rows: list[Transaction], begun: float) -> None:
        """
        Take note that a reading's rows were given, as far as they are old enough.

        Args:
            rows: What it gave.

            begun: When it began, in seconds since 1970.
        """
        left = next((row for row in rows if row.trans_id > self._known), None)
        if left is not None:
            self.given = left.regdate.timestamp()
        elif len(rows) == PAGE:
            self.given = rows[-1].regdate.timestamp()
        else:
            self.given = begun - self.lag


def _is_twofold(moment: datetime) -> bool:
    """Tell whether a clock shows the time twice, in autumn."""
    return moment.utcoffset() != moment.replace(fold=1 - moment.fold).utcoffset()
