"""
A job that pays many users and cuts its payments off, in a process of its own.

Some are cancelled, some are out of their own time or of somebody else's, at random
moments; whoever started it may kill it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sys
from collections.abc import Sequence
from typing import Any

from aio_agentapi import Session, SessionManager, Settings, SqliteStore
from aio_agentapi.errors import AgentAPIError


async def storm(
    session: Session, users: Sequence[int], payments: int, seed: int
) -> None:
    """Pay 0.01 to users at random, a hundred at once, and cut payments off."""
    dice = random.Random(seed)  # noqa: S311 - the same for a seed

    async def pay(number: int) -> None:
        view = session
        if dice.random() < 0.3:
            view = session.with_options(deadline=dice.uniform(0.001, 0.05))
        key = f"{seed}-{number}"
        try:
            async with asyncio.timeout(dice.choice((None, dice.uniform(0, 0.03)))):
                await view.wallets.deposit(dice.choice(users), "0.01", key=key)
        except (TimeoutError, AgentAPIError):
            pass

    for first in range(0, payments, 100):
        paying = [asyncio.ensure_future(pay(first + n)) for n in range(100)]
        for each in dice.sample(paying, 20):
            await asyncio.sleep(0)
            each.cancel()
        await asyncio.gather(*paying, return_exceptions=True)


async def main(told: dict[str, Any]) -> None:
    """Pay all of it, then settle what is open."""
    async with SessionManager(
        told["base_url"],
        accounts={"eur": told["token"]},
        settings=Settings(**told["settings"]),
        store=SqliteStore(told["journal"]),
    ) as manager:
        session = manager.session("eur")
        sys.stdout.write("begun\n")
        sys.stdout.flush()
        await storm(session, told["users"], told["payments"], told["seed"])
        await session.payments.settle_all()


if __name__ == "__main__":
    logging.disable(logging.ERROR)
    asyncio.run(main(json.loads(sys.argv[1])))
