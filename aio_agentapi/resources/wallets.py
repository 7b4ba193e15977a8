"""Money between the agent's points and the balances of its users."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

import attrs

from aio_agentapi._channel import Channel
from aio_agentapi._types import Amount, Operation, Payment, UserCode, exact

__all__ = [
    "Moved",
    "Wallets",
]


@attrs.frozen(kw_only=True)
class Moved:
    """
    What a payment moved.

    Attributes:
        amount: How much, in major units.

        balance: The user's balance after it.
    """

    amount: Decimal
    balance: Decimal


_DEPOSIT: Final = Operation(name="wallets.deposit", effect="money", returns=Moved)
_WITHDRAW: Final = Operation(name="wallets.withdraw", effect="money", returns=Moved)
_WITHDRAW_ALL: Final = Operation(
    name="wallets.withdraw_all", effect="money", returns=Moved
)


@attrs.frozen(eq=False)
class Wallets:
    """
    Deposits to users and withdrawals from them.

    The service takes no reference here: sent twice, a payment moves money twice.
    So it is sent again only when it surely did not happen.
    """

    _channel: Channel = attrs.field(alias="channel", repr=False)

    async def deposit(self, user_code: UserCode, amount: Amount) -> Moved:
        """
        Move *amount* from the agent's points to the balance of a user.

        Args:
            user_code: Whose balance grows.

            amount: Major units, more than zero, at most four decimals.

        Returns:
            What moved, and the user's balance after it.

        Raises:
            AmountError: The amount is not one. Nothing was sent.

            FundsError: The agent's points are too low. Nothing moved.

            NotFoundError: There is no such user. Nothing moved.

            ForbiddenError: It is another agent's user. Nothing moved.

            GateTimeoutError: No permit came free in time. Nothing was sent.

            OutcomeUnknownError: The answer was lost. It may have happened: read
                the user's balance and transactions before you pay again.

        Source:
            Contract 5, users and wallets: ``wallet/deposit``.
        """
        body = {"user_code": user_code, "amount": exact(amount)}
        return await self._channel.pay(Payment(_DEPOSIT, body))

    async def withdraw(self, user_code: UserCode, amount: Amount) -> Moved:
        """
        Move *amount* from the balance of a user to the agent's points.

        Args:
            user_code: Whose balance shrinks.

            amount: Major units, more than zero, at most four decimals.

        Returns:
            What moved, and the user's balance after it.

        Raises:
            AmountError: The amount is not one. Nothing was sent.

            FundsError: The user's balance is too low. Nothing moved.

            NotFoundError: There is no such user. Nothing moved.

            ForbiddenError: It is another agent's user. Nothing moved.

            GateTimeoutError: No permit came free in time. Nothing was sent.

            OutcomeUnknownError: The answer was lost. It may have happened: read
                the user's balance and transactions before you pay again.

        Source:
            Contract 5, users and wallets: ``wallet/withdraw``.
        """
        body = {"user_code": user_code, "amount": exact(amount)}
        return await self._channel.pay(Payment(_WITHDRAW, body))

    async def withdraw_all(self, user_code: UserCode) -> Moved:
        """
        Move the whole balance of a user to the agent's points.

        Args:
            user_code: Whose balance is emptied.

        Returns:
            What was taken, and the balance after it, zero. An empty wallet gives
            an amount of zero, or FundsError: deployments differ.

        Raises:
            FundsError: The balance is empty. Nothing moved.

            NotFoundError: There is no such user. Nothing moved.

            ForbiddenError: It is another agent's user. Nothing moved.

            GateTimeoutError: No permit came free in time. Nothing was sent.

            OutcomeUnknownError: The answer was lost. It may have happened: read
                the user's balance and transactions before you pay again.

        Source:
            Contract 5, users and wallets: ``wallet/withdraw-all``.
        """
        return await self._channel.pay(Payment(_WITHDRAW_ALL, {"user_code": user_code}))
