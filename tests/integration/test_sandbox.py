"""The stand-in itself: what the contract says of headers, limits, time and files."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import sqlite3
import stat
import time
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from aio_agentapi.sandbox import (
    Fault,
    Faults,
    ManualClock,
    Sandbox,
    SandboxProcess,
    Switches,
)
from tests.conftest import connect
from tests.waiting import look_again


async def post(
    box: Sandbox,
    path: str,
    body: Any = None,
    *,
    text: bytes | None = None,
    token: str | None = None,
    headers: Mapping[str, str | None] | None = None,
) -> tuple[int, dict[str, Any]]:
    """Post by hand; a header that is None is left out."""
    wanted: dict[str, str | None] = {
        "Authorization": f"Bearer {token or box.token('operator')}",
        "Accept": "application/json",
        "Content-Type": "application/json",
        **(headers or {}),
    }
    sent = {name: value for name, value in wanted.items() if value is not None}
    skipped = [name for name, value in wanted.items() if value is None]
    data = json.dumps({} if body is None else body).encode() if text is None else text
    async with (
        aiohttp.ClientSession(skip_auto_headers=skipped) as http,
        http.post(f"{box.base_url}/v4/{path}", data=data, headers=sent) as response,
    ):
        return response.status, json.loads(await response.read())


async def test_an_answer_is_an_envelope(box: Sandbox) -> None:
    """Money has four decimals, and a success has no name."""
    status, answer = await post(box, "agent/info")
    assert (status, answer["code"], answer["message"]) == (200, 0, None)
    box.switches = Switches(generation="older")
    _, answer = await post(box, "agent/info")
    assert answer["message"] == "OK"
    assert "win_ratio" in answer["data"]


async def test_money_is_written_with_four_decimals(box: Sandbox) -> None:
    """As a number, or quoted."""
    async with aiohttp.ClientSession() as http:
        for quoted, written in ((False, b":500000.0000,"), (True, b':"500000.0000",')):
            box.switches = Switches(quoted_money=quoted)
            headers = {
                "Authorization": f"Bearer {box.token('operator')}",
                "Accept": "application/json",
                "Content-Type": "application/json",
            }
            url = f"{box.base_url}/v4/agent/info"
            async with http.post(url, data=b"{}", headers=headers) as response:
                assert written in await response.read()


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Authorization": None}, 1009),
        ({"Authorization": "Bearer"}, 1009),
        ({"Authorization": "Bearer x"}, 1009),
        ({"Authorization": "Basic 11111111-1111-1111-1111-111111111111"}, 1009),
        ({"Authorization": "Bearer 11111111-1111-1111-1111-111111111111"}, 1007),
        ({"Accept": "text/html"}, 1002),
        ({"Content-Type": "text/plain"}, 1002),
    ],
)
async def test_all_three_headers_are_required(
    box: Sandbox, headers: dict[str, str | None], code: int
) -> None:
    """Each missing or wrong one is refused."""
    _, answer = await post(box, "agent/info", headers=headers)
    assert code == answer["code"]


async def test_statuses_can_be_switched(box: Sandbox) -> None:
    """200 for every code, or 401, 403 and 429 for those that have one."""
    wrong: dict[str, str | None] = {"Authorization": "Bearer x"}
    assert (await post(box, "agent/info", headers=wrong))[0] == 200
    box.switches = Switches(statuses="http")
    assert (await post(box, "agent/info", headers=wrong))[0] == 401
    box.foreign("operator", 50)
    assert (await post(box, "agent/info"))[0] == 429
    box.allow("operator", "1.1.1.1")
    assert (await post(box, "agent/info"))[0] == 403


@pytest.mark.parametrize(
    ("path", "body", "fields"),
    [
        ("points/transfer", {}, {"agent_code", "amount"}),
        ("points/transfer", {"agent_code": "1", "amount": 1}, {"agent_code"}),
        ("points/transfer", {"agent_code": True, "amount": 1}, {"agent_code"}),
        ("points/transfer", {"agent_code": 2**70, "amount": 1}, {"agent_code"}),
        ("points/transfer", {"agent_code": 1, "amount": 0}, {"amount"}),
        ("points/transfer", {"agent_code": 1, "amount": -1}, {"amount"}),
        ("points/transfer", {"agent_code": 1, "amount": "1"}, {"amount"}),
        ("points/transfer", {"agent_code": 1, "amount": 0.00001}, {"amount"}),
        ("points/transfer", {"agent_code": 1, "amount": 10**15 + 1}, {"amount"}),
        (
            "points/transfer",
            {"agent_code": 1, "amount": 1, "reference": "x" * 65},
            {"reference"},
        ),
        (
            "points/transfer",
            {"agent_code": 1, "amount": 1, "reference": "a b"},
            {"reference"},
        ),
        ("points/history", {"last_id": -1, "limit": 0}, {"last_id", "limit"}),
        ("agent/list", {"offset": 0, "limit": 2001}, {"limit"}),
        ("agent/list", {"offset": 0, "limit": 1, "subtree": "x"}, {"subtree"}),
        ("agent/create", {"name": 5, "role": "agent"}, {"name"}),
        (
            "agent/create",
            {"name": "ab", "role": "agent", "whitelist": "1.1.1.1"},
            {"whitelist"},
        ),
        ("game/transaction-id", {"last_id": 0, "limit": 9}, {"limit"}),
    ],
)
async def test_every_wrong_member_is_named(
    box: Sandbox, path: str, body: dict[str, Any], fields: set[str]
) -> None:
    """1002, with a row for each."""
    _, answer = await post(box, path, body)
    assert answer["code"] == 1002
    assert fields == {row["field"] for row in answer["data"]}


@pytest.mark.parametrize(
    "amount",
    ["0.99999999999999999999999999999999999999", "1." + "0" * 40 + "1", "1e-9"],
)
async def test_an_amount_is_never_rounded(box: Sandbox, amount: str) -> None:
    """More than four decimals are refused, however many there are."""
    code = box.account("shop_1").code
    text = f'{{"agent_code": {code}, "amount": {amount}}}'.encode()
    _, answer = await post(box, "points/transfer", text=text)
    assert answer["code"] == 1002
    text = f'{{"agent_code": {code}, "amount": 1.5{"0" * 40}}}'.encode()
    _, answer = await post(box, "points/transfer", text=text)
    assert (answer["code"], answer["data"]["amount"]) == (0, 1.5)


async def test_nobody_is_not_the_caller(box: Sandbox) -> None:
    """A parent_code of 0 is an unknown account."""
    body = {"name": "x1", "role": "agent", "parent_code": 0}
    _, answer = await post(box, "agent/create", body)
    assert answer["code"] == 2001


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b'"x"', b'{"a": ' + b"[" * 50_000, b"\xff"]
)
async def test_a_body_that_is_no_object(box: Sandbox, text: bytes) -> None:
    """1002, and not a broken connection."""
    _, answer = await post(box, "points/history", text=text)
    assert answer["code"] == 1002


async def test_an_amount_that_is_long_to_work_out(box: Sandbox) -> None:
    """A short text of a huge number does not stop the service."""
    text = b'{"agent_code": 1, "amount": 1e999999}'
    _, answer = await post(box, "points/transfer", text=text)
    assert answer["code"] == 1002


async def test_a_call_counts_also_when_its_client_has_hung_up(box: Sandbox) -> None:
    """Until it has been executed, and it is executed."""
    box.switches = Switches(limit=2)
    box.faults.hold("points/transfer")
    move = {"agent_code": box.account("shop_1").code, "amount": 1}
    loop = asyncio.get_running_loop()
    calls = [loop.create_task(post(box, "points/transfer", move)) for _ in range(2)]
    while box.gauge("operator").in_flight < 2:
        await asyncio.sleep(0)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert box.gauge("operator").in_flight == 2
    _, answer = await post(box, "agent/info")
    assert (answer["code"], box.executed["points/transfer"]) == (1018, 0)
    box.faults.clear()
    while box.gauge("operator").in_flight:
        await look_again()
    assert box.executed["points/transfer"] == 2
    _, answer = await post(box, "agent/info")
    assert answer["code"] == 0


async def test_a_call_can_count_for_a_while_after_its_answer(box: Sandbox) -> None:
    """As a service may that counts behind its answers."""
    box.switches = Switches(release_lag=0.2, limit=1)
    _, answer = await post(box, "agent/info")
    assert (answer["code"], box.gauge("operator").in_flight) == (0, 1)
    _, answer = await post(box, "agent/info")
    assert answer["code"] == 1018
    while box.gauge("operator").in_flight:
        await look_again()
    _, answer = await post(box, "agent/info")
    assert answer["code"] == 0


async def test_the_limit_can_count_by_address(box: Sandbox) -> None:
    """As some deployments do: two tokens share it then."""
    box.switches = Switches(limit=3, scope="ip")
    box.faults.hold()
    loop = asyncio.get_running_loop()
    tokens = [box.token(name) for name in ("shop_1", "operator")] * 3
    calls = [loop.create_task(post(box, "agent/info", token=t)) for t in tokens]
    refused, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    while len(refused) < 3:
        await look_again()
        refused = {call for call in calls if call.done()}
    box.faults.clear()
    results = await asyncio.gather(*calls)
    assert sorted(a["code"] for _, a in results) == [0, 0, 0, 1018, 1018, 1018]
    assert {call.result()[1]["code"] for call in refused} == {1018}


async def test_the_feed_keeps_its_thirty_seconds() -> None:
    """Too early is answered as it is switched, and rows go after two days."""
    clock = ManualClock()
    async with Sandbox(clock=clock) as box, connect(box, "shop_1") as shop:
        token = box.token("shop_1")
        user = (await shop.users.create("anna")).user_code
        await shop.wallets.deposit(user, 5)
        body = {"last_id": 0, "limit": 10}

        async def read() -> tuple[int, int | None]:
            _, answer = await post(box, "game/transaction-id", body, token=token)
            rows = answer.get("data")
            return answer["code"], None if rows is None else len(rows)

        assert await read() == (0, 1)
        clock.advance(29.9)
        assert await read() == (1018, None)
        box.switches = Switches(early_feed="empty")
        assert await read() == (0, 0)
        clock.advance(0.2)
        assert await read() == (0, 1)
        box.switches = Switches(row_delay=5)
        await shop.wallets.deposit(user, 5)
        clock.advance(30)
        assert await read() == (0, 2)
        await shop.wallets.deposit(user, 5)
        clock.advance(2 * 86400 - 29)
        assert await read() == (0, 1)
        clock.advance(60)
        assert await read() == (0, 0)


async def test_a_late_row_is_seen_later() -> None:
    """As long as it is switched to."""
    clock = ManualClock()
    switches = Switches(row_delay=5, feed_spacing=0)
    async with (
        Sandbox(switches, clock=clock) as box,
        connect(box, "shop_1", feed_interval=0.01) as shop,
    ):
        user = (await shop.users.create("anna")).user_code
        await shop.wallets.deposit(user, 5)
        assert [row async for row in shop.transactions.since(0)] == []
        clock.advance(5)
        assert len([row async for row in shop.transactions.since(0)]) == 1


async def test_a_restart_with_a_file_loses_nothing(tmp_path: Path) -> None:
    """Accounts, tokens, points, users, moves and references are all there."""
    db = tmp_path / "box.db"
    db.touch(mode=0o644)
    async with Sandbox(db=db) as box, connect(box, "shop_1") as shop:
        async with connect(box) as session:
            code = box.account("shop_1").code
            move = await session.points.transfer(code, "0.0001", reference="once")
        user = (await shop.users.create("anna")).user_code
        await shop.wallets.deposit(user, "7.5")
        before = box.accounts(), box.audit()
    assert stat.S_IMODE(db.stat().st_mode) == 0o600
    async with Sandbox(db=db) as box, connect(box, "shop_1") as shop:
        assert before == (box.accounts(), box.audit())
        async with connect(box) as session:
            again = await session.points.transfer(code, "0.0001", reference="once")
        assert move == again
        assert (await shop.users.info(user)).balance == Decimal("7.5")
        assert len([row async for row in shop.transactions.since(0)]) == 1


@pytest.mark.process
async def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    """What was answered is in the file."""
    db = tmp_path / "box.db"
    async with SandboxProcess(db=db) as box, connect(box) as session:
        shop = (await anext(session.agents.list())).agent_code
        moves = [await session.points.transfer(shop, 1) for _ in range(20)]
        box._process.kill()
        await box._process.wait()
    async with SandboxProcess(db=db) as box, connect(box) as session:
        found = [move async for move in session.points.history()]
        assert moves == found[-20:]
        minted, held = await box.audit()
        assert minted == held


@pytest.mark.process
async def test_a_process_ends_with_its_block() -> None:
    """By itself, since the other end of its standard input is gone."""
    async with SandboxProcess() as box:
        assert Path(f"/proc/{box.pid}").exists()
    assert box._process.returncode == 0


@pytest.mark.process
async def test_a_process_is_told_what_to_do() -> None:
    """The gauge, the books, others' permits, points and faults, over HTTP."""
    async with SandboxProcess() as box, connect(box) as session:
        await box.mint("operator", 5)
        assert (Decimal(1_502_005), Decimal(1_502_005)) == await box.audit()
        assert await session.points.balance() == 500_005
        await box.fault(Fault("busy", times=1))
        await session.agents.info()
        assert (await box.gauge("operator")).busy == 1
        await box.fault(Fault("html"))
        await box.clear_faults()
        await session.agents.info()
        async with aiohttp.ClientSession() as http:
            url = f"{box.base_url}/sandbox/mint"
            async with http.post(url, data=b"{}") as response:
                assert response.status == 415
            for address in ("nothing", "mint"):
                url = f"{box.base_url}/sandbox/{address}"
                async with http.get(url) as response:
                    assert response.status == 404
            async with http.post(f"{box.base_url}/sandbox/x", json={}) as response:
                assert response.status == 404


@pytest.mark.process
async def test_what_is_held_stays_in_flight_until_it_is_let_go() -> None:
    """In another process too; more calls than it is for go on at once."""
    async with SandboxProcess() as box, connect(box) as session:
        await box.fault(Fault("hold", "agent/info", times=2))
        loop = asyncio.get_running_loop()
        calls = [loop.create_task(session.agents.info()) for _ in range(2)]
        while (await box.gauge("operator")).in_flight < 2:
            await look_again()
        assert (await session.agents.info()).name == "operator"
        assert not any(call.done() for call in calls)
        await box.clear_faults()
        assert [info.name for info in await asyncio.gather(*calls)] == ["operator"] * 2


def test_who_comes_to_be_held_too_late_is_not() -> None:
    """Another thread has cleared the faults since; or the loop is over."""
    faults = Faults()

    async def scene() -> asyncio.Task[None]:
        before = faults.clearings
        held = asyncio.get_running_loop().create_task(faults.held(before))
        await asyncio.sleep(0)
        assert not held.done()
        faults.clear()
        await held
        async with asyncio.timeout(20):
            await faults.held(before)
        return asyncio.get_running_loop().create_task(faults.held(faults.clearings))

    left = asyncio.run(scene())
    faults.clear()
    assert left.cancelled()


@pytest.mark.process
async def test_a_process_that_cannot_start_says_so(tmp_path: Path) -> None:
    """Instead of waiting for an answer that does not come."""
    with pytest.raises(RuntimeError, match="did not start"):
        await SandboxProcess(db=tmp_path / "no" / "such" / "folder").__aenter__()


@pytest.mark.filterwarnings("error::ResourceWarning")
def test_one_that_was_never_started_leaves_nothing_open(tmp_path: Path) -> None:
    """Nor does one whose file is none of its own: newer Pythons would warn."""
    file = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(file)) as sql:
        sql.execute("CREATE TABLE others (name TEXT)")
    Sandbox()
    with pytest.raises(sqlite3.DatabaseError, match="another version"):
        Sandbox(db=file)
    gc.collect()
    # The listing is one of them, and gone.
    assert file not in {path.resolve() for path in Path("/proc/self/fd").iterdir()}


async def test_an_unknown_fault_or_account_is_a_mistake(box: Sandbox) -> None:
    """It is told at once, with the names that there are."""
    with pytest.raises(ValueError, match="drop_before"):
        box.faults.add(Fault("flood"))  # type: ignore[arg-type]  # that is the point
    with pytest.raises(KeyError, match="nobody"):
        box.token("nobody")


@pytest.mark.realtime
async def test_delays_and_shares_of_calls(box: Sandbox) -> None:
    """A delayed call is late, and a fault with a share hits about that many."""
    async with connect(box) as session:
        box.faults.delay(0.2, "agent/info", times=1)
        began = time.monotonic()
        await session.agents.info()
        assert time.monotonic() - began >= 0.19
    box.faults.html("agent/list", share=0.3)
    hits = 0
    for _ in range(50):
        try:
            await post(box, "agent/list", {"offset": 0, "limit": 1})
        except ValueError:
            hits += 1
    # The dice are seeded: the same number in every run.
    assert 5 <= hits <= 25


async def test_what_nothing_can_hold_is_refused(box: Sandbox) -> None:
    """Half a character, an interface's address, a time at the end of all times."""
    for path, text in (
        ("agent/create", b'{"name":"ab","role":"agent","whitelist":["fe80::1%eth0"]}'),
        ("agent/create", rb'{"name":"ab","role":"agent","whitelist":["::1%\ud800"]}'),
        ("game/round-details", rb'{"user_code":1,"round_id":"\ud800"}'),
    ):
        _, answer = await post(box, path, text=text)
        assert answer["code"] == 1002
    for zone in ("UTC", "Asia/Seoul"):
        box.switches = Switches(zone=zone, feed_spacing=0)
        for year in ("0001", "9999"):
            times = {"start_time": f"{year}-12-31 23:30:00"}
            times["end_time"] = f"{year}-12-31 23:40:00"
            body = {**times, "offset": 0, "limit": 10}
            _, answer = await post(box, "game/transaction", body)
            assert (answer["code"], answer["data"]["total"]) == (0, 0)
    assert (await post(box, "agent/list", {"offset": 0, "limit": 9}))[1]["code"] == 0


@pytest.mark.parametrize(
    ("path", "times", "limit", "field"),
    [
        ("game/transaction", ("12:00:00", "13:00:01"), 10, "end_time"),
        ("game/transaction", ("12:00:01", "12:00:00"), 10, "end_time"),
        ("game/transaction", ("12:00:00", "13:00:00"), 2001, "limit"),
        ("game/transaction", ("12:00:00", "13:00:00"), 9, "limit"),
        ("game/transaction", ("12:00", "13:00:00"), 10, "start_time"),
        ("statistics/user", ("12:00:00", "13:00:00"), 10, "start_time"),
    ],
)
async def test_a_window_has_its_bounds(
    box: Sandbox, path: str, times: tuple[str, str], limit: int, field: str
) -> None:
    """At most an hour, and ten to two thousand rows."""
    start, end = (f"2024-05-31 {time}" for time in times)
    body = {"start_time": start, "end_time": end, "offset": 0, "limit": limit}
    _, answer = await post(box, path, body)
    assert (answer["code"], answer["data"][0]["field"]) == (1002, field)


async def test_each_account_has_its_own_spacing_of_the_feeds() -> None:
    """At least 30 s from one cursor; more than 30 s between any two windows."""
    clock = ManualClock()
    window = {"start_time": "2024-01-01 00:00:00", "end_time": "2024-01-01 01:00:00"}
    async with Sandbox(clock=clock) as box:

        async def codes(name: str) -> tuple[int, int]:
            token = box.token(name)
            feed = {"last_id": 0, "limit": 10}
            page = {**window, "offset": 0, "limit": 10}
            _, one = await post(box, "game/transaction-id", feed, token=token)
            _, two = await post(box, "game/transaction", page, token=token)
            return one["code"], two["code"]

        assert await codes("shop_1") == (0, 0)
        assert await codes("shop_1") == (1018, 1018)
        assert await codes("shop_2") == (0, 0)
        clock.advance(30)
        assert await codes("shop_1") == (0, 1018)
        clock.advance(0.001)
        assert await codes("shop_1") == (1018, 0)


async def test_a_late_row_is_seen_behind_higher_ids() -> None:
    """As the contract says that it can happen."""
    clock = ManualClock()
    async with (
        Sandbox(Switches(feed_spacing=0), clock=clock) as box,
        connect(box, "shop_1", feed_interval=0.001) as shop,
    ):
        user = (await shop.users.create("anna")).user_code
        box.faults.late_row(5, "wallet/deposit", times=1)
        await shop.wallets.deposit(user, 1)
        # Of that call alone, and not of what comes from the inside.
        box.play("shop_1", user, 1)
        assert [row.trans_id async for row in shop.transactions.since(0)] == [2, 3]
        clock.advance(5)
        assert [row.trans_id async for row in shop.transactions.since(0)] == [1, 2, 3]


async def test_a_fault_tells_no_lie(box: Sandbox) -> None:
    """A code that says no is not executed, and a refusal stays one."""
    async with connect(box, "shop_1") as shop:
        user = (await shop.users.create("anna")).user_code
        for code in (1018, 2005):
            box.faults.code(code, "wallet/deposit", times=1)
            body = {"user_code": user, "amount": 1}
            token = box.token("shop_1")
            _, answer = await post(box, "wallet/deposit", body, token=token)
            assert answer["code"] == code
        box.faults.wrong_shape("wallet/withdraw", times=2)
        _, answer = await post(box, "wallet/withdraw", body, token=token)
        assert answer["code"] == 2006
        await shop.wallets.deposit(user, 1)
        box.switches = Switches(generation="older")
        _, answer = await post(box, "wallet/withdraw", body, token=token)
        assert answer == {"code": 0, "message": "OK", "data": "unexpected"}
    assert box.executed["wallet/deposit"] == 1
    for wrong in (
        Fault("drop_after", executed=False),
        Fault("delay", seconds=1, executed=False),
        Fault("busy", times=0),
        Fault("empty", "wallets/deposit"),
    ):
        with pytest.raises(ValueError, match=r"executed|times|path"):
            box.faults.add(wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"limit": 0},
        {"scope": "x"},
        {"generation": "old"},
        {"latency": -1},
        {"release_lag": -1},
        {"zone": "Mars/Olympus"},
        {"dates": "x"},
    ],
)
def test_a_switch_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    """And not taken for another position."""
    with pytest.raises((ValueError, LookupError)):
        Switches(**wrong)


@pytest.mark.process
async def test_control_is_checked(box: Sandbox) -> None:
    """From inside and from outside: nothing comes into being by a slip."""
    for points in (Decimal(-5), Decimal("0.00001"), 0, Decimal("NaN")):
        with pytest.raises((ValueError, ArithmeticError)):
            box.mint(box.account("shop_1"), points)
    for name, role in (("shop_1", "agent"), ("x", "agent"), ("ab", "boss")):
        with pytest.raises(ValueError, match=r"shop_1|letters|role"):
            box.add(name, role, parent="operator")
    with pytest.raises(ValueError, match="held"):
        box.foreign("operator", -1)
    async with connect(box, "shop_1") as shop:
        user = (await shop.users.create("anna")).user_code
        for bet, win in ((Decimal("-0.5"), 0), (0, -5), (1, 0)):
            with pytest.raises(ValueError, match=r"amount|2006"):
                box.play("shop_1", user, bet, win)
    async with SandboxProcess() as other:
        before = await other.audit()
        for call in (
            other.gauge("nobody"),
            other.mint("operator", -1),
            other.foreign("operator", -1),
            other.play("operator", 1, 1),
            other.fault(Fault("flood")),  # type: ignore[arg-type]  # that is the point
            other._ask("POST", "switches", json={"limit": 0}),
        ):
            with pytest.raises(ValueError, match="Error: "):
                await call
        assert before == await other.audit()


async def test_a_look_at_a_link_does_not_use_it_up(box: Sandbox) -> None:
    """Browsers look ahead."""
    async with connect(box, "shop_1") as shop, aiohttp.ClientSession() as http:
        user = (await shop.users.create("anna")).user_code
        link = await shop.games.launch_url(user, 1, "aurora_1")
        async with http.head(link) as response:
            assert response.status == 405
        async with http.get(link) as response:
            assert response.status == 200


@pytest.mark.parametrize("content", [b"not a database, and long enough", None])
def test_a_file_of_others_is_left_alone(tmp_path: Path, content: bytes | None) -> None:
    """It is refused before anything of it is changed."""
    db = tmp_path / "theirs.db"
    if content is None:
        with sqlite3.connect(db) as sql:
            sql.execute("CREATE TABLE things (x)")
            sql.execute("PRAGMA user_version = 2")
        sql.close()
    else:
        db.write_bytes(content)
    db.chmod(0o644)
    before = db.read_bytes()
    with pytest.raises(sqlite3.DatabaseError):
        Sandbox(db=db)
    assert db.read_bytes() == before
    assert stat.S_IMODE(db.stat().st_mode) == 0o644
