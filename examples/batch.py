"""Give points to many agents, and tell what became of each row."""

import asyncio
import os
import sys

from aio_agentapi import Session, SessionManager


async def main() -> None:
    accounts = {"eur": os.environ["AGENTAPI_TOKEN"]}
    base_url = os.environ["AGENTAPI_BASE_URL"]
    async with SessionManager(base_url, accounts=accounts) as manager:
        await give(manager.session("eur"), "1.2500", sys.argv[1])


async def give(session: Session, amount: str, journal: str) -> None:
    plan = [(agent.agent_code, amount) async for agent in session.agents.list()]
    async for done in session.points.distribute(plan, journal=journal):
        if done.error is None:
            print(done.line, done.row.agent_code, "has its points")
        elif done.error.happened == "no":
            print(done.line, "did not happen:", done.error)
        else:
            print(done.line, "is unknown, run the same again:", done.error)


asyncio.run(main())
