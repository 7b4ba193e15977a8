"""Two currencies: one account, so one token, for each; on a stand-in."""

import asyncio

from aio_agentapi import SessionManager
from aio_agentapi.sandbox import Sandbox

EUR, USD = 978, 840


async def main() -> None:
    async with Sandbox() as box:
        for name, currency in (("eur", EUR), ("usd", USD)):
            box.add(f"{name}_root", "broker", currency=currency, points=100_000)
            box.add(name, "operator", parent=f"{name}_root", points=50_000)
        # From the environment, or from wherever you keep secrets.
        accounts = {name: box.token(name) for name in ("eur", "usd")}
        async with SessionManager(box.base_url, accounts=accounts) as manager:
            # Each has 50 calls at a time of its own; neither waits for the other.
            await asyncio.gather(*(open_shop(manager, name) for name in accounts))


async def open_shop(manager: SessionManager, name: str) -> None:
    session = manager.session(name)
    shop = await session.agents.create(f"shop_{name}")
    move = await session.points.transfer(shop.agent.agent_code, "250.00")
    print(f"{name}: currency {shop.agent.currency}, left {move.balance}")


asyncio.run(main())
