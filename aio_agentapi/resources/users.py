"""The players of one agent."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

import attrs

from aio_agentapi._channel import Channel
from aio_agentapi._types import Operation, Query, UserCode


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


_CREATE: Final = Operation(name="users.create", effect="idempotent", returns=NewUser)
_INFO: Final = Operation(name="users.info", effect="read", returns=User)


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
