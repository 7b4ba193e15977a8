"""How a program of yours is tested against an answer that gets lost."""

from aio_agentapi import SessionManager
from aio_agentapi.sandbox import Sandbox


async def test_a_gift_whose_answer_is_lost_is_given_once() -> None:
    async with (
        Sandbox() as box,
        SessionManager(box.base_url) as manager,
    ):
        session = manager.session(box.token("operator"))
        shop = box.account("shop_1")
        box.faults.drop_after("points/transfer", times=1)
        await session.points.transfer(shop.code, "5")
        assert await session.points.balance() == 500_000 - 5
        assert box.executed["points/transfer"] == 2
