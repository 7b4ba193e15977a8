"""
A job that pays a list of keys, in a process of its own: for tests that kill it.

It runs its list again and again, and settles what is unknown in between, until every
key has happened or was refused; then it ends.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sys
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import attrs

from aio_agentapi import Phase, Session, SessionManager, Settings, SqliteStore, run_many
from aio_agentapi.errors import AgentAPIError, OutcomeUnknownError, RefusedError


@attrs.frozen
class Duty:
    """One payment of the list."""

    key: str
    kind: str
    user_code: int
    amount: Decimal


def duties(seed: int, count: int, users: int) -> Iterator[Duty]:
    """
    Make the list: the same for a seed; equal amounts are frequent.

    Each fifth user withdraws all or nothing, and the others amounts. A withdrawal that
    leaves nothing looks as one of everything, so that both lost are for a person.
    """
    dice = random.Random(seed)  # noqa: S311 - the same list each time
    for number in range(count):
        user = dice.randint(1, users)
        kind = dice.choices(("deposit", "withdraw"), (70, 30))[0]
        if kind == "withdraw" and not user % 5:
            kind = "all"
        amount = Decimal(dice.choice((5, 5, 10, 25))) + Decimal(
            dice.choice(("0", "0", "0.0001"))
        )
        yield Duty(f"duty-{number}", kind, user, amount)


async def pay(session: Session, duty: Duty) -> str:
    """Pay one; tell how that ended."""
    wallets = session.wallets
    try:
        if duty.kind == "deposit":
            await wallets.deposit(duty.user_code, duty.amount, key=duty.key)
        elif duty.kind == "withdraw":
            await wallets.withdraw(duty.user_code, duty.amount, key=duty.key)
        else:
            await wallets.withdraw_all(duty.user_code, key=duty.key)
    except RefusedError:
        return "refused"
    except AgentAPIError as error:
        assert isinstance(error, OutcomeUnknownError) or error.happened == "no", error
        return "open"
    return "paid"


async def main(told: dict[str, Any]) -> None:
    """Pay all of it."""
    rows = [*duties(told["seed"], told["count"], told["users"])]
    if told.get("shuffle") is not None:
        random.Random(told["shuffle"]).shuffle(rows)  # noqa: S311 - an order
    store = SqliteStore(told["journal"])
    async with SessionManager(
        told["base_url"],
        accounts={"eur": told["token"]},
        settings=Settings(**told["settings"]),
        store=store,
    ) as manager:
        session = manager.session("eur")
        for _ in range(told.get("passes", 40)):
            await session.payments.settle_all()
            left: list[Duty] = []
            async for outcome in run_many(
                lambda duty: pay(session, duty), rows, window=told.get("window", 100)
            ):
                if outcome.error is not None:
                    raise outcome.error
                if outcome.value == "open":
                    left.append(outcome.item)
            # What was refused is refused: else it would be tried for ever.
            rows = left
            unknown = await session.payments.unknown()
            if not (rows or unknown):
                return
            needs = [i for i in unknown if i.phase is Phase.NEEDS_PERSON]
            assert not needs, needs
    raise SystemExit(3)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    asyncio.run(main(json.loads(sys.argv[1])))
