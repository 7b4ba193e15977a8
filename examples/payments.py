"""Pay a list that may be run again, and find out about what was lost."""

import asyncio
import sys

from aio_agentapi import Session, SessionManager, Settings, SqliteStore
from aio_agentapi.errors import AgentAPIError
from aio_agentapi.sandbox import Sandbox, Switches


async def pay(session: Session, orders: dict[str, tuple[int, str]]) -> None:
    for key, (user_code, amount) in orders.items():
        try:
            moved = await session.wallets.deposit(user_code, amount, key=key)
        except AgentAPIError as error:
            print(key, "did not happen" if error.happened == "no" else "is unknown")
        else:
            print(key, "has moved", moved.amount)


async def main(journal: str) -> None:
    settings = Settings(feed_interval=0.2, feed_lag=0.2, longest_call=0.5)
    async with (
        Sandbox(Switches(feed_spacing=0.1)) as box,
        SessionManager(
            box.base_url,
            accounts={"eur": box.token("shop_1")},
            settings=settings,
            store=SqliteStore(journal),
        ) as manager,
    ):
        session = manager.session("eur")
        user = (await session.users.create("anna")).user_code
        orders = {"order-1": (user, "20"), "order-2": (user, "20")}
        box.faults.drop_after("wallet/deposit", times=1)
        await pay(session, orders)
        for intent in await session.payments.settle_all():
            print(intent.key, "is", intent.phase)
        # The same list again: what has happened is not paid a second time.
        await pay(session, orders)
        print("balance", (await session.users.info(user)).balance)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
