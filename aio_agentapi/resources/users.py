"""The players of one agent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from decimal import Decimal
from typing import Final

import attrs

from aio_agentapi._channel import Channel
from aio_agentapi._types import Operation, Query, UserCode, span

__all__ = [
    "NewUser",
    "User",
    "UserStatistics",
    "Users",
]

# The service's own bound on the rows of a page.
_PAGE: Final = 2000


@attrs.frozen(kw_only=True)
class NewUser:
    """
    A user that was asked for by name.

    Attributes:
        user_code: Its number.

        is_new_user: Whether it was created just now. None where not told.
    """

    user_code: UserCode
    is_new_user: bool | None = None


@attrs.frozen(kw_only=True)
class User:
    """
    A user as it is now.

    Attributes:
        name: As it was created.

        balance: Its money in transfer mode, in major units.
    """

    name: str
    balance: Decimal


@attrs.frozen(kw_only=True)
class UserStatistics:
    """
    What a user bet and won in a while, in major units.

    Attributes:
        user_code: Which user.

        user_name: Its name, None where not told.

        slot_bet: Bets on slots.

        slot_win: Wins on slots.

        live_bet: Bets on live games.

        live_win: Wins on live games.

        mini_bet: Bets on mini games.

        mini_win: Wins on mini games.
    """

    user_code: UserCode
    user_name: str | None = None
    slot_bet: Decimal
    slot_win: Decimal
    live_bet: Decimal
    live_win: Decimal
    mini_bet: Decimal
    mini_win: Decimal


@attrs.frozen(kw_only=True)
class _Page:
    total: int
    list: tuple[UserStatistics, ...]


_CREATE: Final = Operation(name="users.create", effect="idempotent", returns=NewUser)
_INFO: Final = Operation(name="users.info", effect="read", returns=User)
_STATISTICS: Final = Operation(name="users.statistics", effect="read", returns=_Page)


@attrs.frozen(eq=False)
class Users:
    """The users of the caller."""

    _channel: Channel = attrs.field(alias="channel", repr=False)

    async def create(self, name: str) -> NewUser:
        """
        Create a user, or find the one of that name.

        The same name again gives the same user, so this is safe to send again, and
        is sent again when an answer was lost.

        Args:
            name: 2 to 50 letters, digits and underscores.

        Returns:
            Its number, and whether it is new.

        Raises:
            InvalidError: The name is not allowed. Nothing was created.

            OutcomeUnknownError: Every answer was lost. It may have happened: call
                again with the same name.

        Source:
            Contract 5, users and wallets: ``user/create``.
        """
        return await self._channel.call(Query(_CREATE, {"name": name}))

    async def info(self, user_code: UserCode) -> User:
        """
        Return a user's name and balance.

        Args:
            user_code: Which user.

        Returns:
            The user as it is now.

        Raises:
            NotFoundError: There is no such user.

            ForbiddenError: It is another agent's.

        Source:
            Contract 5, users and wallets: ``user/info``.
        """
        return await self._channel.call(Query(_INFO, {"user_code": user_code}))

    async def statistics(
        self, start: datetime, end: datetime
    ) -> AsyncIterator[UserStatistics]:
        """
        Iterate over what each user bet and won in a while.

        A user whose row moves to another page meanwhile may be left out; none comes
        twice in a row of pages.

        Args:
            start: From when, with its zone; to the millisecond.

            end: Until when, with its zone.

        Yields:
            One for each user that the service tells of, in its order.

        Raises:
            UsageError: A time without a zone, or an end before the start. Nothing
                was sent.

            InvalidError: The service does not take these times.

        Source:
            Contract 5, transactions and statistics: ``statistics/user``.
        """
        first, last = span(start, end)
        body = {"start_time": _iso(first), "end_time": _iso(last)}
        before: frozenset[UserCode] = frozenset()
        async for page in self._channel.pages(Query(_STATISTICS, body), _PAGE):
            for row in page.list:
                if row.user_code not in before:
                    yield row
            before = frozenset(row.user_code for row in page.list)


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
