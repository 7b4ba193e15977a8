"""Give points to many agents, and tell what became of each row."""

import asyncio
import os

from aio_agentapi import SessionManager
from aio_agentapi.errors import AgentAPIError


async def main() -> None:
    accounts = {"eur": os.environ["AGENTAPI_TOKEN"]}
    base_url = os.environ["AGENTAPI_BASE_URL"]
    async with SessionManager(base_url, accounts=accounts) as manager:
        session = manager.session("eur").with_options(lane="batch")
        agents = [agent async for agent in session.agents.list()]
        plan = [(agent.agent_code, "1.2500") for agent in agents]
        async for done in session.points.distribute(plan, run="bonus-2024-05-31"):
            if done.error is None:
                print(done.line, done.row.agent_code, "has its points")
            elif done.error.happened == "no":
                print(done.line, "did not happen:", done.error)
            else:
                print(done.line, "is unknown, run the same plan again:", done.error)
        try:
            await session.points.transfer(agents[0].agent_code, "999999999")
        except AgentAPIError as error:
            print(type(error).__name__, error.happened)


asyncio.run(main())
