"""The rest of the command line: users, wallets, transactions, games, any path."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from aio_agentapi import AgentInfo, AgentNode, PlanRow, State
from aio_agentapi.cli import _show
from aio_agentapi.cli._command import guarded
from aio_agentapi.errors import NotSentError
from aio_agentapi.sandbox import Fault, Sandbox, Switches, document
from tests.cli import Ran, run
from tests.conftest import OK_INFO, TOKEN, answering, connect, serving
from tests.integration.test_cli import service

__all__ = ["service"]


def rows(ran: Ran) -> list[dict[str, object]]:
    """Return the lines of JSON that a command has written."""
    assert (ran.code, ran.err) == (0, "")
    return [json.loads(line, parse_float=Decimal) for line in ran.out.splitlines()]


async def test_a_token_is_reissued(service: Sandbox, tmp_path: Path) -> None:
    """Shown this once, or in a file of its own; the old one stops working."""
    async with connect(service) as session:
        codes = [str(agent.agent_code) async for agent in session.agents.list()]
    old = {"AGENTAPI_TOKEN": service.token("shop_1")}
    ran = await run(service, "agents", "reissue-token", codes[0], "--json")
    token = ran.json["token"]
    ran = await run(service, "info", env={"AGENTAPI_TOKEN": token})
    assert "shop_1" in ran.out
    ran = await run(service, "info", env=old)
    assert ran.code == 3
    kept = tmp_path / "token"
    ran = await run(service, "agents", "reissue-token", codes[1], "--token-file", kept)
    assert (ran.code, ran.out) == (0, f"token  in {kept}\n")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    ran = await run(service, "info", env={"AGENTAPI_TOKEN": kept.read_text().strip()})
    assert "shop_2" in ran.out
    # A file that is there already is left alone, and nothing is asked.
    ran = await run(service, "agents", "reissue-token", codes[1], "--token-file", kept)
    assert ran.code == 2
    gone = tmp_path / "none"
    ran = await run(service, "agents", "reissue-token", "99", "--token-file", gone)
    assert (ran.code, gone.exists()) == (1, False)
    assert (
        "shop_2"
        in (
            await run(service, "info", env={"AGENTAPI_TOKEN": kept.read_text().strip()})
        ).out
    )


async def test_users_and_their_money(service: Sandbox) -> None:
    """Created, paid, shown; exact in JSON, and grouped for people."""
    ran = await run(service, "users", "create", "anna", "--json")
    user = str(ran.json["user_code"])
    assert ran.json["is_new_user"] is True
    ran = await run(service, "wallets", "deposit", user, "1234.5678", "--json")
    assert ran.json == {"amount": Decimal("1234.5678"), "balance": Decimal("1234.5678")}
    ran = await run(service, "wallets", "withdraw", user, "0.0001")
    assert "balance  1,234.5677" in ran.out
    ran = await run(service, "users", "info", user)
    assert ran.out.split() == ["name", "anna", "balance", "1,234.5677"]
    ran = await run(service, "wallets", "withdraw-all", user, "--json")
    assert ran.json["amount"] == Decimal("1234.5677")
    for words, code in (
        (("wallets", "withdraw", user, "1"), 1),
        (("wallets", "deposit", user, "0.00001"), 2),
        (("wallets", "deposit", user, "1e3"), 2),
        (("wallets", "deposit", "999", "1"), 1),
        (("users", "info", "999"), 1),
        (("users", "create", "no name"), 2),
    ):
        ran = await run(service, *words)
        assert (ran.code, ran.out) == (code, "")
        assert ran.err.startswith("agentapi: ")
    minted, held = service.audit()
    assert minted == held


@pytest.mark.parametrize(
    "words", [("deposit", "1"), ("withdraw", "1"), ("withdraw-all",)]
)
async def test_a_lost_answer_of_a_wallet_is_told(
    service: Sandbox, words: tuple[str, ...]
) -> None:
    """Code 4: it may have happened; and it was sent once."""
    async with connect(service) as session:
        user = (await session.users.create("anna")).user_code
        await session.wallets.deposit(user, 10)
    before = service.gauge("operator").served
    command, *rest = words
    service.faults.add(Fault("drop_after", f"wallet/{command}"))
    ran = await run(service, "wallets", command, str(user), *rest)
    assert (ran.code, ran.out) == (4, "")
    assert "It may have happened" in ran.err
    # It asks first whose token it is.
    assert service.gauge("operator").served == before + 2


async def test_transactions_and_statistics() -> None:
    """From a row on, and over a while; times without a zone are the service's."""
    async with Sandbox(Switches(feed_spacing=0)) as service:
        async with connect(service) as session:
            user = (await session.users.create("anna")).user_code
            await session.wallets.deposit(user, 10)
        number = service.play("operator", user, 4, 1)
        since = rows(await run(service, "transactions", "since", "0", "--json"))
        assert [row["trans_type"] for row in since] == [4, 1, 2]
        assert since[1]["round_id"] == number
        now = datetime.now(UTC)
        start, end = now - timedelta(minutes=20), now + timedelta(minutes=20)
        for form in ("%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S"):
            times = (start.strftime(form), end.strftime(form))
            ran = await run(service, "transactions", "between", *times, "--json")
            assert rows(ran) == since
            ran = await run(service, "users", "statistics", *times, "--json")
            (sums,) = rows(ran)
            assert (sums["user_name"], sums["slot_bet"]) == ("anna", Decimal(4))
        ran = await run(service, "transactions", "since", "1")
        assert ran.out.splitlines()[0].split()[:3] == [
            "trans_id",
            "regdate",
            "user_code",
        ]
        assert " bet " in ran.out
        assert " deposit " not in ran.out
        ran = await run(service, "transactions", "between", "yesterday", "today")
        assert (ran.code, "is no time" in ran.err) == (2, True)
        ran = await run(service, "transactions", "between", *reversed(times))
        assert ran.code == 2


async def test_games(service: Sandbox) -> None:
    """Whose there are, which, a link into one, and who is in."""
    async with connect(service) as session:
        user = str((await session.users.create("anna")).user_code)
    ran = await run(service, "games", "providers")
    assert [line.split()[-1] for line in ran.out.splitlines()[1:]] == [
        "normal",
        "normal",
        "maintenance",
        "normal",
    ]
    found = rows(await run(service, "games", "list", "2", "--lang", "8", "--json"))
    assert found[0]["locale_name"] == "Borealis 1 (8)"
    ran = await run(service, "games", "list", "2")
    assert len(ran.out.splitlines()) == len(found) + 1
    ran = await run(service, "games", "launch-url", user, "1", "aurora_1")
    assert ran.out.startswith(f"{service.base_url}/play/")
    ran = await run(
        service,
        *("games", "launch-url", user, "1", "aurora_1"),
        *("--return-url", "https://example.com", "--json"),
    )
    assert ran.json["game_url"].startswith(f"{service.base_url}/play/")
    ran = await run(service, "games", "online")
    assert (ran.code, ran.out) == (0, "")
    ran = await run(service, "games", "launch-url", user, "3", "cirrus_1")
    assert (ran.code, "UNDER_MAINTENANCE" in ran.err) == (4, True)


async def test_any_path(service: Sandbox) -> None:
    """With exact numbers both ways; what moves money has its own command."""
    ran = await run(service, "call", "agent/info", "--read")
    assert ran.json["balance"] == Decimal("500000.0000")
    body = '{"offset": 0, "limit": 1, "parent_code": null}'
    ran = await run(service, "call", "agent/list", body)
    assert ran.json["total"] == 2
    for words, code, said in (
        (("call", "wallet/deposit"), 2, "wallets.deposit"),
        (("call", "agent/info", "[1]"), 2, "JSON"),
        (("call", "agent/info", "{"), 2, "JSON"),
        (("call", "agent/info", '{"x": 1e99999999999999999999}'), 2, "JSON"),
        (("call", "/v4/agent/info"), 2, "relative to /v4/"),
        (("call", "no/such", "--read"), 3, "HTTP 404"),
        (("call", "no/such"), 4, "HTTP 404"),
        (("call", "agent/list"), 2, "offset: is missing"),
    ):
        ran = await run(service, *words)
        assert (ran.code, ran.out) == (code, "")
        assert said in ran.err


async def test_the_document_is_written() -> None:
    """Without starting anything: the same that the stand-in serves."""
    ran = await run(None, "sandbox", "--openapi")
    assert (ran.code, ran.json) == (0, json.loads(json.dumps(document())))


@pytest.mark.process
async def test_what_was_done_is_done(service: Sandbox) -> None:
    """A suspension that cannot be shown is no wrong use: it has happened."""
    async with connect(service) as session:
        (code, *_) = [agent.agent_code async for agent in session.agents.list()]
        disk = os.open("/dev/full", os.O_WRONLY)
        full = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "aio_agentapi.cli", "agents", "suspend", str(code)),
            env=dict(os.environ)
            | {"AGENTAPI_BASE_URL": service.base_url}
            | {"AGENTAPI_TOKEN": service.token("operator")},
            stdout=disk,
            stderr=asyncio.subprocess.PIPE,
        )
        os.close(disk)
        _, err = await full.communicate()
        assert (full.returncode, b"cannot be written" in err) == (0, True)
        states = [agent.state async for agent in session.agents.list()]
        assert states.count(State.SUSPENDED) == 1


async def test_nothing_steers_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Of what the service says, in records, tables, trees and errors."""
    odd, plain = "x\x1b]0;y\x07\nz", "x?]0;y? z"
    info = OK_INFO.replace(b'"x"', json.dumps(odd).encode())
    async with serving(answering(info)) as url:
        env = {"AGENTAPI_BASE_URL": url, "AGENTAPI_TOKEN": TOKEN}
        ran = await run(None, "info", env=env)
    assert plain in ran.out
    agent = AgentInfo(name=odd, currency=978, balance=Decimal(1))
    _show.table([agent], ["name"], as_json=False)
    _show.tree(AgentNode(agent=agent, children=()))

    @guarded
    def fail() -> None:
        raise NotSentError(odd)

    with pytest.raises(SystemExit):
        fail()
    shown = capsys.readouterr()
    assert (shown.out.count(plain), shown.err) == (2, f"agentapi: {plain}\n")


async def test_a_table_shows_what_was_read_before_an_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And texts as they are: what the service says is no markup."""

    async def found() -> AsyncIterator[object]:
        yield PlanRow(1, Decimal("1234567890.1234"), "[bold]x [/i]")
        msg = "gone"
        raise NotSentError(msg)

    with pytest.raises(NotSentError):
        await _show.rows(found(), ("agent_code", "amount", "reference"), as_json=False)
    shown = capsys.readouterr().out
    assert "[bold]x [/i]" in shown
    assert "1,234,567,890.1234" in shown
