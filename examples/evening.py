"""An operator's evening: agents, points, users, deposits, the feed; on a stand-in."""

import asyncio
import sys

from aio_agentapi import NewAgent, Session, SessionManager, Settings, SqliteStore
from aio_agentapi.errors import FundsError, OutcomeUnknownError
from aio_agentapi.sandbox import Sandbox, Switches


async def open_shops(operator: Session, names: list[str]) -> list[NewAgent]:
    shops = [await operator.agents.create(name) for name in names]
    tree = await operator.agents.tree()
    print("below us:", ", ".join(node.agent.name for node in tree.children))
    return shops


async def give_points(operator: Session, shops: list[NewAgent]) -> None:
    plan = [(shop.agent.agent_code, "500.00") for shop in shops]
    # The name of the run makes it harmless to run again: each row moves once.
    async for done in operator.points.distribute(plan, run="evening-1"):
        print(done.row.agent_code, done.end)
    print("left:", await operator.points.balance())


async def open_till(shop: Session, names: list[str]) -> dict[str, int]:
    users = {name: (await shop.users.create(name)).user_code for name in names}
    try:
        await shop.wallets.deposit(users["anna"], "9000", key="slip-1")
    except FundsError as error:
        print("slip-1 did not happen:", error.name)
    moved = await shop.wallets.deposit(users["anna"], "20", key="slip-2")
    print("anna has", moved.balance)
    return users


async def lose_an_answer(box: Sandbox, shop: Session, bert: int) -> None:
    box.faults.drop_after("wallet/deposit", times=1)
    try:
        await shop.wallets.deposit(bert, "35.50", key="slip-3")
    except OutcomeUnknownError as error:
        print("slip-3 may have happened: payment", error.intent)
    for intent in await shop.payments.settle_all():
        print(intent.key, "is", intent.phase)
    # The same slip once more moves nothing: the key pays once.
    moved = await shop.wallets.deposit(bert, "35.50", key="slip-3")
    print("bert has", moved.balance)


async def close_the_day(shop: Session, users: dict[str, int]) -> None:
    moved = await shop.wallets.withdraw_all(users["anna"], key="slip-4")
    print("anna takes", moved.amount)
    names = {code: name for name, code in users.items()}
    async for row in shop.transactions.since(0):
        print(names[row.user_code], row.trans_type.name, row.trans_amount, row.balance)
    print("the shop has", await shop.points.balance())


# Shorter than the service's own, so that the evening ends soon.
SETTINGS = Settings(feed_interval=0.2, feed_lag=0.2, longest_call=0.5)


async def main(journal: str) -> None:
    async with Sandbox(Switches(feed_spacing=0.1)) as box:
        accounts = {"eur": box.token("operator")}
        async with SessionManager(
            box.base_url,
            accounts=accounts,
            settings=SETTINGS,
            store=SqliteStore(journal),
        ) as manager:
            operator = manager.session("eur")
            shops = await open_shops(operator, ["bar_1", "bar_2"])
            await give_points(operator, shops)
            shop = manager.session(shops[0].token)
            users = await open_till(shop, ["anna", "bert"])
            box.play("bar_1", users["anna"], bet=5, win=12)
            await lose_an_answer(box, shop, users["bert"])
            await close_the_day(shop, users)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
