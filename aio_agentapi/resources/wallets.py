"""Money between the agent's points and the balances of its users."""

from __future__ import annotations

from decimal import Decimal

import attrs

from aio_agentapi._channel import Channel
from aio_agentapi._journal import DEPOSIT, WITHDRAW, WITHDRAW_ALL, Intent
from aio_agentapi._types import Amount, Moved, Operation, UserCode, exact

__all__ = [
    "Moved",
    "Wallets",
]


@attrs.frozen(eq=False)
class Wallets:
    """
    Deposits to users and withdrawals from them.

    The service takes no reference here: sent twice, a payment moves money twice. So
    each is written down before it is sent, one of a user at a time, and is sent again
    only when it surely did not happen. After an OutcomeUnknownError,
    ``session.payments.settle(error.intent)`` finds out.
    """

    _channel: Channel = attrs.field(alias="channel", repr=False)

    async def deposit(
        self, user_code: UserCode, amount: Amount, *, key: str | None = None
    ) -> Moved:
        """
        Move *amount* from the agent's points to the balance of a user.

        Args:
            user_code: Whose balance grows.

            amount: Major units, more than zero, at most four decimals, or as many as
                ``amount_decimals`` in the settings.

            key: The caller's own name for this payment, up to 255 characters, never
                sent: the same key pays at most once, and gives what moved when it
                did. None: no such memory.

        Returns:
            What moved, and the user's balance after it.

        Raises:
            AmountError: The amount is not one. Nothing was sent.

            FundsError: The agent's points are too low. Nothing moved.

            NotFoundError: There is no such user. Nothing moved.

            ForbiddenError: It is another agent's user. Nothing moved.

            UsageError: The key stands for another payment, or it is not sure whose
                payments these are. Nothing was sent.

            JournalError: It could not be written down. Nothing was sent.

            GateTimeoutError: No permit came free in time, or the user's payment
                before this one did not end. Nothing was sent.

            OutcomeUnknownError: The answer was lost. It may have happened: settle
                the intent that the error names before you pay again.

            DecodeError: The answer has another shape. It may have happened: the
                same.

        Source:
            Contract 5, users and wallets: ``wallet/deposit``.
        """
        return await self._pay(DEPOSIT, user_code, self._exact(amount), key)

    async def withdraw(
        self, user_code: UserCode, amount: Amount, *, key: str | None = None
    ) -> Moved:
        """
        Move *amount* from the balance of a user to the agent's points.

        Args:
            user_code: Whose balance shrinks.

            amount: Major units, more than zero, at most four decimals, or as many as
                ``amount_decimals`` in the settings.

            key: The caller's own name for this payment, up to 255 characters, never
                sent: the same key pays at most once, and gives what moved when it
                did. None: no such memory.

        Returns:
            What moved, and the user's balance after it.

        Raises:
            AmountError: The amount is not one. Nothing was sent.

            FundsError: The user's balance is too low. Nothing moved.

            NotFoundError: There is no such user. Nothing moved.

            ForbiddenError: It is another agent's user. Nothing moved.

            UsageError: The key stands for another payment, or it is not sure whose
                payments these are. Nothing was sent.

            JournalError: It could not be written down. Nothing was sent.

            GateTimeoutError: No permit came free in time, or the user's payment
                before this one did not end. Nothing was sent.

            OutcomeUnknownError: The answer was lost. It may have happened: settle
                the intent that the error names before you pay again.

            DecodeError: The answer has another shape. It may have happened: the
                same.

        Source:
            Contract 5, users and wallets: ``wallet/withdraw``.
        """
        return await self._pay(WITHDRAW, user_code, self._exact(amount), key)

    async def withdraw_all(
        self, user_code: UserCode, *, key: str | None = None
    ) -> Moved:
        """
        Move the whole balance of a user to the agent's points.

        Args:
            user_code: Whose balance is emptied.

            key: The caller's own name for this payment, up to 255 characters, never
                sent: the same key pays at most once, and gives what moved when it
                did. None: no such memory.

        Returns:
            What was taken, and the balance after it, zero. An empty wallet gives
            an amount of zero, or FundsError: deployments differ.

        Raises:
            FundsError: The balance is empty. Nothing moved.

            NotFoundError: There is no such user. Nothing moved.

            ForbiddenError: It is another agent's user. Nothing moved.

            UsageError: The key stands for another payment, or it is not sure whose
                payments these are. Nothing was sent.

            JournalError: It could not be written down. Nothing was sent.

            GateTimeoutError: No permit came free in time, or the user's payment
                before this one did not end. Nothing was sent.

            OutcomeUnknownError: The answer was lost. It may have happened: settle
                the intent that the error names before you pay again.

            DecodeError: The answer has another shape. It may have happened: the
                same.

        Source:
            Contract 5, users and wallets: ``wallet/withdraw-all``.
        """
        return await self._pay(WITHDRAW_ALL, user_code, None, key)

    def _exact(self, amount: Amount) -> Decimal:
        return exact(amount, self._channel.settings.amount_decimals)

    async def _pay(
        self,
        operation: Operation[Moved],
        user_code: UserCode,
        amount: Decimal | None,
        key: str | None,
    ) -> Moved:
        # Whose it is, the channel finds out.
        intent = Intent(
            operation=operation.name,
            user_code=user_code,
            amount=amount,
            key=key,
        )
        return await self._channel.pay(intent)
