"""The feed of what moved the balances of an agent's users."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from decimal import Decimal
from typing import Final

import attrs

from aio_agentapi._channel import Channel
from aio_agentapi._types import OpenInt, Operation, Query, UserCode

# The service's own bound on the rows of a page.
_PAGE: Final = 2000


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


_SINCE: Final = Operation(
    name="transactions.since", effect="read", returns=list[Transaction], paced=True
)


@attrs.frozen(eq=False)
class Transactions:
    """The transactions of the caller's users, kept by the service for two days."""

    _channel: Channel = attrs.field(alias="channel", repr=False)

    async def since(self, last_id: int) -> AsyncIterator[Transaction]:
        """
        Iterate over the transactions after one, up to the newest.

        The service wants 30 s between two readings from the same *last_id*. What
        comes too early it answers with 1018, which is repeated here after
        ``feed_interval``, or with nothing at all: an empty reading does not prove
        that there is nothing new.

        Args:
            last_id: A trans_id; it and those before it are left out. 0: the
                oldest that the service still has.

        Yields:
            The oldest first.

        Raises:
            BusyError: Read too early, and the caller's time is over.

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
