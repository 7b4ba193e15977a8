"""Create many users at once, on a stand-in."""

import asyncio
import contextlib

from aio_agentapi import Session, SessionManager, run_many
from aio_agentapi.sandbox import Sandbox


async def main() -> None:
    async with Sandbox() as box, SessionManager(box.base_url) as manager:
        session = manager.session(box.token("shop_1"))
        batch = session.with_options(lane="batch")
        await create_all(batch, ["anna", "bert", "no name"])


async def create_all(session: Session, names: list[str]) -> None:
    async with contextlib.aclosing(run_many(session.users.create, names)) as outcomes:
        async for outcome in outcomes:
            if outcome.error is not None:
                print(outcome.item, "failed:", outcome.error)
            elif outcome.value is not None:
                print(outcome.item, outcome.value.user_code)


asyncio.run(main())
