"""Move points, on a stand-in service that needs no account."""

import asyncio

from aio_agentapi import SessionManager
from aio_agentapi.sandbox import Sandbox


async def main() -> None:
    async with Sandbox() as box:
        accounts = {"eur": box.token("operator")}
        async with SessionManager(box.base_url, accounts=accounts) as manager:
            session = manager.session("eur")
            shop = await session.agents.create("shop_7")
            move = await session.points.transfer(shop.agent.agent_code, "250.00")
            print(f"moved {move.amount}, left {move.balance}")


asyncio.run(main())
