"""Whatever form a deployment gives its answers, the records are equal."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest

from aio_agentapi.sandbox import ManualClock, Sandbox, Switches
from tests.conftest import connect

NOW = datetime(2024, 5, 31, 23, 30, tzinfo=UTC)

# Members that may lack are null or missing in all of these: with their value, there
# would be more to tell.
FORMS: dict[str, Switches] = {
    "null": Switches(optional="null"),
    "missing": Switches(optional="missing"),
    "older": Switches(generation="older", optional="missing"),
    "older, by status": Switches(
        generation="older", optional="null", statuses="http", busy_status=503
    ),
    "quoted": Switches(optional="null", quoted_money=True, quoted_currency=True),
    "short": Switches(optional="null", short_money=True),
    "short and quoted": Switches(optional="null", short_money=True, quoted_money=True),
    "extra": Switches(optional="null", extra=True),
    "dotted": Switches(optional="null", dates="dotted"),
    "iso": Switches(optional="null", dates="iso"),
    "dotted online": Switches(optional="null", online_dates="dotted"),
    "iso online": Switches(optional="null", online_dates="iso"),
    "Seoul": Switches(optional="missing", zone="Asia/Seoul"),
    "all at once": Switches(
        generation="older",
        optional="missing",
        statuses="http",
        quoted_money=True,
        short_money=True,
        quoted_currency=True,
        extra=True,
        dates="dotted",
        zone="Asia/Seoul",
    ),
}


async def tell(switches: Switches) -> list[Any]:
    """Call everything that can be called, and return all that was answered."""
    switches = attrs.evolve(switches, feed_spacing=0)
    clock = ManualClock(NOW)
    told: list[Any] = []
    async with (
        Sandbox(switches, clock=clock) as box,
        connect(box, feed_interval=0.001, zone=switches.zone) as session,
    ):
        told.append(await session.agents.info())
        new = await session.agents.create("shop_7", whitelist=["127.0.0.1"])
        code = new.agent.agent_code
        told.append(new.agent)
        told.append(await session.agents.update(code, state="suspended"))
        told += [agent async for agent in session.agents.list(subtree=True)]
        told.append(await session.agents.tree())
        told.append(await session.points.transfer(code, "55.93", reference="a"))
        told.append(await session.points.transfer(code, 7, reference="b"))
        told.append(await session.points.reclaim(code, "0.0001", reference="c"))
        told += [move async for move in session.points.history()]
        told.append(await session.points.balance())
        user = await session.users.create("anna")
        told += [user, await session.users.create("anna")]
        number = user.user_code
        told.append(await session.wallets.deposit(number, "100.5"))
        told.append(await session.wallets.withdraw(number, "0.25"))
        link = await session.games.launch_url(number, 1, "aurora_1")
        assert box._service.deployment.arcade.enter(link.rsplit("/", 1)[1])
        box.play("operator", number, 10, 5)
        told.append(await session.users.info(number))
        told.append(await session.wallets.withdraw_all(number))
        hour = timedelta(hours=1)
        rows = [row async for row in session.transactions.since(0)]
        window = session.transactions.between(NOW - hour / 2, NOW + hour / 2)
        assert rows == [row async for row in window]
        # The number of a round is another one each time.
        told += [attrs.evolve(row, round_id="") for row in rows]
        stats = session.users.statistics(NOW - hour, NOW + hour)
        told += [row async for row in stats]
        told.append(await session.games.providers())
        told.append(await session.games.list(2))
        told.append(await session.games.online())
    return told


@pytest.mark.parametrize("form", [form for form in FORMS if form != "null"])
async def test_every_form_gives_equal_records(form: str) -> None:
    """Over every endpoint, from the same things done."""
    expected = await tell(FORMS["null"])
    assert len(expected) > 30
    assert await tell(FORMS[form]) == expected


async def test_what_may_lack_is_told_where_it_is_there() -> None:
    """Only these members differ from the record without them."""
    full, bare = await tell(Switches()), await tell(FORMS["missing"])
    (me, nobody) = full[0], bare[0]
    assert (me.whitelist, me.client_ip) == ((), "127.0.0.1")
    assert (nobody.whitelist, nobody.client_ip) == (None, None)
    assert [one for one in full if type(one).__name__ == "PointMove"] == [
        one for one in bare if type(one).__name__ == "PointMove"
    ]
    stamps = {one.time_stamp for one in full if type(one).__name__ == "Transaction"}
    assert stamps == {int(NOW.timestamp())}
