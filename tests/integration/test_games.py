"""Games, rounds, statistics, and any other path, against the stand-in."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import aiohttp
import pytest

from aio_agentapi import (
    Category,
    Language,
    OnlineGame,
    ProviderStatus,
    Session,
    TransType,
)
from aio_agentapi.errors import (
    ForbiddenError,
    GateTimeoutError,
    InvalidError,
    MaintenanceError,
    NotFoundError,
    OutcomeUnknownError,
    UnsupportedError,
    UsageError,
)
from aio_agentapi.sandbox import ManualClock, Sandbox, Switches
from tests.conftest import connect

START = datetime(2024, 1, 1, tzinfo=UTC)


async def player(shop: Session, balance: int = 100) -> int:
    """Create a user with money, and return its number."""
    user = await shop.users.create("anna")
    await shop.wallets.deposit(user.user_code, balance)
    return user.user_code


async def test_providers_and_games_are_told_in_a_language(session: Session) -> None:
    """Those under maintenance too; a code can stand there twice."""
    aurora, _, cirrus, _ = await session.games.providers()
    assert (aurora.provider_name, aurora.locale_name) == ("Aurora", "Aurora")
    assert (aurora.status, cirrus.status) == (
        ProviderStatus.NORMAL,
        ProviderStatus.MAINTENANCE,
    )
    (localised, *_) = await session.games.providers(lang=Language.DE)
    assert localised.locale_name == "Aurora (8)"
    games = await session.games.list(2, lang=12)
    assert (len(games), len({game.game_code for game in games})) == (13, 12)
    assert (games[0].category, games[0].launch_enable) == (Category.LIVE, True)
    assert games[0].reg_date == datetime(2024, 1, 15, 9, 30, tzinfo=UTC)
    everything = await session.games.all()
    assert len(everything) > 2500
    assert games[0].game_code in {game.game_code for game in everything}
    with pytest.raises(NotFoundError) as caught:
        await session.games.list(99)
    assert caught.value.name == "PROVIDER_NOT_FOUND"
    with pytest.raises(InvalidError, match="lang"):
        await session.games.providers(lang=14)


async def test_an_older_deployment_lacks_the_list_of_all(box: Sandbox) -> None:
    """Which is said, and not taken for an answer that was lost."""
    box.switches = Switches(generation="older")
    async with connect(box) as session:
        with pytest.raises(UnsupportedError) as caught:
            await session.games.all()
    assert (caught.value.happened, caught.value.attempts) == ("no", 1)


async def test_a_link_lets_one_user_in_once() -> None:
    """For ten minutes; who came in is online for thirty."""
    clock = ManualClock()
    async with Sandbox(clock=clock) as box, connect(box, "shop_1") as shop:
        user = await player(shop)
        links = [await shop.games.launch_url(user, 1, "aurora_2") for _ in range(3)]
        assert len(set(links)) == 3
        clock.advance(599)
        assert [await visit(links[0]), await visit(links[0])] == [200, 410]
        clock.advance(2)
        assert await visit(links[1]) == 410
        box.play("shop_1", user, 10, Decimal("2.5"), game_code="aurora_2")
        box.play("shop_1", user, 4, game_code="aurora_2")
        (online,) = await shop.games.online()
        assert online == OnlineGame(
            gplay_id=1,
            user_code=user,
            user_name="anna",
            provider_id=1,
            provider_name="Aurora",
            game_code="aurora_2",
            game_name="Aurora 2",
            category=1,
            last_round_bet=Decimal(4),
            spend=Decimal(14),
            win=Decimal("2.5"),
            start_time=START + timedelta(seconds=599),
            last_update=START + timedelta(seconds=601),
        )
        clock.advance(1801)
        assert await shop.games.online() == []


async def visit(link: str) -> int:
    """Open a link as a browser does."""
    async with aiohttp.ClientSession() as http, http.get(link) as response:
        return response.status


async def test_who_cannot_play_is_told_why(box: Sandbox) -> None:
    """User, owner, provider, game, maintenance: each has its error."""
    async with connect(box, "shop_1") as shop, connect(box, "shop_2") as other:
        user = await player(shop)
        for number, provider, game, name in (
            (99, 1, "aurora_1", "USER_NOT_FOUND"),
            (user, 99, "aurora_1", "PROVIDER_NOT_FOUND"),
            (user, 1, "nothing", "GAME_NOT_FOUND"),
        ):
            with pytest.raises(NotFoundError) as caught:
                await shop.games.launch_url(number, provider, game)
            assert caught.value.name == name
        with pytest.raises(ForbiddenError):
            await other.games.launch_url(user, 1, "aurora_1")
        with pytest.raises(MaintenanceError):
            await shop.with_options(attempts=1).games.launch_url(user, 3, "cirrus_1")


async def test_a_round_can_be_looked_at() -> None:
    """Both rows of the feed name it; after thirty days nobody knows it."""
    clock = ManualClock()
    async with Sandbox(clock=clock) as box, connect(box, "shop_1") as shop:
        user = await player(shop)
        number = box.play("shop_1", user, 10, 25, provider_id=2, game_code="borealis_1")
        _, bet, win = [row async for row in shop.transactions.since(0)]
        assert (bet.trans_type, win.trans_type) == (TransType.BET, TransType.WIN)
        assert bet.round_id == win.round_id == number
        assert [bet.prebalance, bet.balance, win.balance] == [100, 90, 115]
        assert (bet.provider_name, bet.game_name) == ("Borealis", "Borealis 1")
        url = await shop.games.round_details_url(
            user, number, provider_id=2, game_code="borealis_1"
        )
        assert url is not None
        assert await visit(url) == 200
        for code, name in ((user, "0"), (user, ""), (99, number)):
            with pytest.raises(NotFoundError):
                await shop.games.round_details_url(code, name)
        clock.advance(30 * 24 * 3600)
        assert await shop.games.round_details_url(user, number) == url
        clock.advance(1)
        with pytest.raises(NotFoundError):
            await shop.games.round_details_url(user, number)


async def test_a_round_makes_no_money(box: Sandbox) -> None:
    """What is lost the agent has, and what is won he pays, if he can."""
    async with connect(box, "shop_1") as shop:
        user = await player(shop)
        box.play("shop_1", user, 30, 50)
        assert (await shop.users.info(user)).balance == 120
        assert await shop.points.balance() == 880
        with pytest.raises(KeyError):
            box.play("shop_1", user, 1, game_code="nothing")
        for code, bet, win in ((user, 121, 0), (user, 1, 10_000), (99, 1, 0)):
            with pytest.raises(ValueError, match=r"200[256]"):
                box.play("shop_1", code, bet, win)
        assert (await shop.users.info(user)).balance == 120
    minted, held = box.audit()
    assert minted == held


async def test_statistics_are_summed_for_each_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Slots and live apart, from start to end, page by page."""
    monkeypatch.setattr("aio_agentapi.resources.users._PAGE", 10)
    clock = ManualClock()
    async with Sandbox(clock=clock) as box, connect(box, "shop_1") as shop:
        users = [(await shop.users.create(f"u{n:02}")).user_code for n in range(15)]
        for user in users:
            await shop.wallets.deposit(user, 10)
            box.play("shop_1", user, 2, 1)
            box.play("shop_1", user, 3, 0, provider_id=2, game_code="borealis_1")
        clock.advance(60)
        box.play("shop_1", users[0], 1)
        rows = [
            row
            async for row in shop.users.statistics(START, START + timedelta(minutes=1))
        ]
        assert [row.user_code for row in rows] == users
        assert {row.user_name for row in rows} == {f"u{n:02}" for n in range(15)}
        assert {(r.slot_bet, r.slot_win, r.live_bet, r.live_win) for r in rows} == {
            (Decimal(2), Decimal(1), Decimal(3), Decimal(0))
        }
        end = START + timedelta(minutes=1, milliseconds=1)
        (first, *_) = [row async for row in shop.users.statistics(START, end)]
        assert (first.slot_bet, first.mini_bet) == (Decimal(3), Decimal(0))
        for start, wrong in (
            (START, START.replace(tzinfo=None)),
            (START, START - timedelta(seconds=1)),
        ):
            with pytest.raises(UsageError, match="zone"):
                await anext(shop.users.statistics(start, wrong))


async def test_a_user_who_comes_meanwhile_moves_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody is told twice for it."""
    monkeypatch.setattr("aio_agentapi.resources.users._PAGE", 10)
    async with Sandbox(clock=ManualClock()) as box, connect(box, "shop_1") as shop:
        users = [(await shop.users.create(f"u{n:02}")).user_code for n in range(15)]
        for user in users:
            await shop.wallets.deposit(user, 10)
        for user in users[1:]:
            box.play("shop_1", user, 2)
        found: list[int] = []
        end = START + timedelta(minutes=1)
        async for row in shop.users.statistics(START, end):
            found.append(row.user_code)
            if len(found) == 10:
                # He stands before all others.
                box.play("shop_1", users[0], 2)
        assert found == users[1:]


# Any path


async def test_any_path_can_be_called(session: Session) -> None:
    """The data come as JSON has them, with exact numbers; members that are None not."""
    me = await session.call("agent/info", {}, effect="read")
    assert isinstance(me, dict)
    assert me["balance"] == Decimal("500000.0000")
    assert isinstance(me["balance"], Decimal)
    body = {"offset": 0, "limit": 1, "parent_code": None}
    page = await session.call("agent/list", body, effect="read")
    assert isinstance(page, dict)
    assert page["total"] == 2
    with pytest.raises(UnsupportedError):
        await session.call("game/rtp", {}, effect="read")
    with pytest.raises(OutcomeUnknownError, match="may lack the path"):
        await session.call("game/rtp", {})
    with pytest.raises(InvalidError):
        await session.call("agent/list", {})


async def test_any_path_is_sent_once_unless_it_is_a_read(box: Sandbox) -> None:
    """After a lost answer; before it, and after 1018, any may go again."""
    async with connect(box) as session:
        box.faults.drop_after("agent/token", times=1)
        code = box.account("shop_1").code
        with pytest.raises(OutcomeUnknownError) as caught:
            await session.call("agent/token", {"agent_code": code})
        assert (caught.value.attempts, caught.value.operation) == (1, "agent/token")
        assert box.executed["agent/token"] == 1
        box.faults.busy(3, "agent/token")
        await session.call("agent/token", {"agent_code": code})
        box.faults.drop_after("agent/info", times=2)
        await session.call("agent/info", {}, effect="read")
        assert box.executed["agent/info"] == 3
        # A code that nobody knows is a refusal only of what changes nothing.
        box.faults.code(4711, "agent/token")
        with pytest.raises(OutcomeUnknownError):
            await session.call("agent/token", {"agent_code": code})


@pytest.mark.parametrize(
    "path",
    [
        "/agent/info",
        "v4//agent/info",
        "https://example.com/agent/info",
        "agent/../wallet/deposit",
        "agent/info?x=1",
        "wallet%2Fdeposit",
        "wallet/deposit/",
        "",
        " wallet/deposit",
        "wallet/deposit\n",
        "11111111-2222-3333-4444-555555555555",
        7,
    ],
)
async def test_a_path_has_one_form(box: Sandbox, session: Session, path: str) -> None:
    """Nothing that a service could take for another path."""
    with pytest.raises(UsageError, match="relative to /v4/") as caught:
        await session.call(path, {})
    assert "1111" not in str(caught.value)
    assert box.gauge("operator").served == 0


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("wallet/deposit", "wallets.deposit"),
        ("Wallet/Deposit", "wallets.deposit"),
        ("wallet/withdraw-all", "wallets.withdraw_all"),
        ("points/transfer", "points.transfer"),
        ("points/history", "points.history"),
        ("credits/give", "points.transfer"),
        # Which would not be kept apart, and its 1018 taken for a full service.
        ("game/transaction-id", "transactions.since"),
        ("game/transaction", "transactions.between"),
    ],
)
async def test_money_and_feeds_go_through_their_methods(
    box: Sandbox, path: str, method: str
) -> None:
    """Also where the deployment names its path differently."""
    async with connect(box, paths={"points.transfer": "credits/give/"}) as session:
        with pytest.raises(UsageError, match=f"session.{method}"):
            await session.call(path, {}, effect="read")
        with pytest.raises(UsageError, match="effect"):
            await session.call("x", {}, effect="idempotent")  # type: ignore[arg-type]  # that is the point
    assert box.gauge("operator").served == 0


async def test_a_body_without_a_json_form_is_not_sent(
    box: Sandbox, session: Session
) -> None:
    """The same as everywhere; and no number that JSON has not, however deep."""
    wrong: list[Any] = [
        None,
        [],
        {"x": object()},
        {"x": float("nan")},
        {"x": [{"y": Decimal("Infinity")}]},
        {"x": (1, Decimal("NaN"))},
    ]
    for body in wrong:
        with pytest.raises(UsageError, match="JSON"):
            await session.call("agent/info", body)
    assert box.gauge("operator").served == 0


# Windows of the feed


async def between(
    shop: Session, start: timedelta, end: timedelta
) -> list[tuple[int, Decimal]]:
    """Read a while, counted from the start."""
    rows = shop.transactions.between(START + start, START + end)
    return [(row.trans_id, row.trans_amount) async for row in rows]


@pytest.mark.parametrize("end_included", [False, True])
@pytest.mark.parametrize("zone", ["UTC", "Asia/Seoul", "Europe/Berlin"])
async def test_a_while_is_read_hour_by_hour(zone: str, *, end_included: bool) -> None:
    """Each row once, those on the border of two hours too, and none from outside."""
    clock = ManualClock()
    switches = Switches(feed_spacing=0, zone=zone, end_included=end_included)
    async with (
        Sandbox(switches, clock=clock) as box,
        connect(box, "shop_1", feed_interval=0.001, zone=zone) as shop,
    ):
        user = (await shop.users.create("anna")).user_code
        # Every twenty minutes, so that every third lies on the border.
        for number in range(1, 14):
            await shop.wallets.deposit(user, number)
            clock.advance(1200)
        minutes = timedelta(minutes=1)
        rows = await between(shop, 20 * minutes, 200 * minutes)
        assert [amount for _, amount in rows] == [*range(2, 11)]
        rows = await between(shop, 0 * minutes, 240 * minutes)
        later = await between(shop, 240 * minutes, 500 * minutes)
        assert [amount for _, amount in rows + later] == [*range(1, 14)]
        assert await between(shop, 20 * minutes, 20 * minutes) == []
        half = timedelta(milliseconds=500)
        rows = await between(shop, 20 * minutes + half, 40 * minutes + half)
        assert [amount for _, amount in rows] == [2]
        for start, end in ((START, START.replace(tzinfo=None)), (START + half, START)):
            with pytest.raises(UsageError, match="zone"):
                await anext(shop.transactions.between(start, end))


@pytest.mark.parametrize("early", ["busy", "empty"])
async def test_readings_of_a_while_are_kept_apart(early: str) -> None:
    """No call comes too early, so that none is answered with a false nothing."""
    switches = Switches(feed_spacing=0.1, early_feed=early)  # type: ignore[arg-type]  # one of two
    async with (
        Sandbox(switches) as box,
        connect(box, "shop_1", feed_interval=0.1) as shop,
    ):
        user = await player(shop)
        end = datetime.now(UTC) + timedelta(minutes=1)
        served = box.gauge("shop_1").served
        readings = shop.transactions.between(end - timedelta(hours=3), end)
        (row,) = [row async for row in readings]
        assert row.user_code == user
        # Two hours without rows, each asked for twice, and the one with the row.
        assert box.gauge("shop_1").served - served == 5


@pytest.mark.parametrize("early", ["busy", "empty"])
async def test_two_readers_of_a_while_both_see_all(early: str) -> None:
    """In one session they take turns; of another's reading nobody knows."""
    switches = Switches(feed_spacing=0.1, early_feed=early)  # type: ignore[arg-type]  # one of two
    async with (
        Sandbox(switches) as box,
        connect(box, "shop_1", feed_interval=0.1) as shop,
        connect(box, "shop_1", feed_interval=0.1) as other,
    ):
        await player(shop)
        now = datetime.now(UTC)

        async def read(session: Session) -> int:
            end = now + timedelta(seconds=5)
            start = end - timedelta(minutes=50)
            return len([1 async for _ in session.transactions.between(start, end)])

        assert await read(other) == 1
        assert await read(shop) == 1
        assert [*await asyncio.gather(read(shop), read(shop))] == [1, 1]


async def test_rows_that_move_meanwhile_are_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """New ones in the middle of a reading, and old ones that are deleted."""
    monkeypatch.setattr("aio_agentapi.resources.transactions.PAGE", 10)
    clock = ManualClock()
    async with (
        Sandbox(Switches(feed_spacing=0), clock=clock) as box,
        connect(box, "shop_1", feed_interval=0.001) as shop,
    ):
        user = (await shop.users.create("anna")).user_code
        for number in range(1, 26):
            await shop.wallets.deposit(user, number)
            clock.advance(1)
        found: list[int] = []
        end = START + timedelta(minutes=59)
        async for row in shop.transactions.between(START, end):
            found.append(int(row.trans_amount))
            if len(found) == 10:
                await shop.wallets.deposit(user, 26)
            if len(found) == 15:
                # The first ten are deleted after two days, and the rest moves up.
                clock.advance(2 * 24 * 3600 - 25 + 9.5)
        assert sorted(found) == [*range(1, 27)]
        assert len(set(found)) == len(found)


async def test_rows_that_never_rest_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What may be missing is not kept silent, and the reading is bounded."""
    monkeypatch.setattr("aio_agentapi.resources.transactions.PAGE", 10)
    async with (
        Sandbox(Switches(feed_spacing=0), clock=ManualClock()) as box,
        connect(box, "shop_1", feed_interval=0.001) as shop,
    ):
        user = (await shop.users.create("anna")).user_code
        for _ in range(15):
            await shop.wallets.deposit(user, 1)
        end = START + timedelta(minutes=59)
        with pytest.raises(OutcomeUnknownError, match="kept moving") as caught:
            async for _ in shop.transactions.between(START, end):
                await shop.wallets.deposit(user, 1)
        assert caught.value.operation == "transactions.between"
        # Five passes over what is there by then.
        assert box.executed["game/transaction"] < 50


async def test_a_reading_that_cannot_be_in_time_is_not_sent(box: Sandbox) -> None:
    """The caller's own limits hold for feeds as well."""
    async with connect(box, "shop_1", feed_interval=30) as shop:
        assert [row async for row in shop.transactions.since(0)] == []
        impatient = shop.with_options(max_wait=0.1)
        served = box.gauge("shop_1").served
        with pytest.raises(GateTimeoutError, match="may not be read again in time"):
            await anext(impatient.transactions.since(0))
        assert box.gauge("shop_1").served == served
        # Another place may be read at once.
        assert [row async for row in impatient.transactions.since(1)] == []


async def test_a_clock_that_is_changed_loses_no_row() -> None:
    """In autumn an hour comes twice, in spring one is missing."""
    berlin = "Europe/Berlin"
    for year, month, day in ((2024, 10, 27), (2024, 3, 31)):
        start = datetime(year, month, day, tzinfo=UTC)
        for dates in ("dashed", "iso"):
            clock = ManualClock(start)
            switches = Switches(feed_spacing=0, zone=berlin, dates=dates)
            async with (
                Sandbox(switches, clock=clock) as box,
                connect(box, "shop_1", feed_interval=0.001, zone=berlin) as shop,
            ):
                user = (await shop.users.create("anna")).user_code
                for number in range(1, 19):
                    await shop.wallets.deposit(user, number)
                    clock.advance(600)
                for first in range(0, 180, 30):
                    for last in range(first + 30, 181, 30):
                        ends = [start + timedelta(minutes=m) for m in (first, last)]
                        rows = [
                            int(row.trans_amount)
                            async for row in shop.transactions.between(*ends)
                        ]
                        wanted = {*range(first // 10 + 1, last // 10 + 1)}
                        assert len(set(rows)) == len(rows)
                        assert wanted <= set(rows)
                        if dates == "iso" or month == 3:
                            assert wanted == set(rows)


async def test_a_later_end_is_later_by_the_sun(session: Session) -> None:
    """Not by a clock that was turned back in between; and there is an end of time."""
    berlin = ZoneInfo("Europe/Berlin")
    start = datetime(2024, 10, 27, 2, 45, tzinfo=berlin)
    end = datetime(2024, 10, 27, 2, 15, fold=1, tzinfo=berlin)
    assert [row async for row in session.users.statistics(start, end)] == []
    with pytest.raises(UsageError):
        await anext(session.users.statistics(end, start))
    with pytest.raises(UsageError):
        ahead = timezone(timedelta(hours=5))
        await anext(session.users.statistics(datetime(1, 1, 1, tzinfo=ahead), end))


async def test_what_was_not_sent_is_no_reading(box: Sandbox) -> None:
    """The next one need not wait; after a doubt it waits for longer."""
    async with connect(box, "shop_1", feed_interval=60, attempts=1) as shop:
        for _ in range(50):
            await shop.gate.acquire("interactive")
        with pytest.raises(GateTimeoutError):
            await anext(shop.with_options(max_wait=0.01).transactions.since(0))
        for _ in range(50):
            shop.gate.release("interactive")
        async with asyncio.timeout(20):
            assert [row async for row in shop.transactions.since(0)] == []
    box.switches = Switches(feed_spacing=0.1)
    async with connect(box, "shop_2", feed_interval=0.1, timeout=1.0) as shop:
        box.faults.drop_after("game/transaction-id", times=1)
        began = asyncio.get_running_loop().time()
        assert [row async for row in shop.transactions.since(0)] == []
        # As long as the service may take to get to it, and the interval.
        assert asyncio.get_running_loop().time() - began >= 1.0 + 0.1


async def test_a_reference_of_any_path_promises_nothing(box: Sandbox) -> None:
    """Only points are moved once by it."""
    async with connect(box) as session:
        box.faults.drop_after("agent/token", times=1)
        body = {"agent_code": box.account("shop_1").code, "reference": "x"}
        with pytest.raises(OutcomeUnknownError) as caught:
            await session.call("agent/token", body)
        assert caught.value.reference is None
