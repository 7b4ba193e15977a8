"""The command line as its users run it."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import signal
import stat
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from decimal import Decimal
from pathlib import Path

import aiohttp
import pytest

from aio_agentapi import Secret, Session
from aio_agentapi.cli._agents import _Kept
from aio_agentapi.sandbox import Fault, Sandbox, SandboxProcess, Switches
from tests.cli import begin, run, run_process
from tests.conftest import TOKEN, connect
from tests.waiting import look_again


@pytest.fixture
async def service() -> AsyncGenerator[Sandbox]:
    """Start a stand-in, which serves while a command runs in another thread."""
    async with Sandbox() as box:
        yield box


async def shops(session: Session, count: int = 0) -> list[int]:
    """Create agents, and return the numbers of all."""
    for number in range(count):
        await session.agents.create(f"bulk_{number}")
    return [agent.agent_code async for agent in session.agents.list()]


async def test_info_and_points(service: Sandbox) -> None:
    """For people as columns, for programs as one document with exact numbers."""
    ran = await run(service, "info")
    assert (ran.code, ran.err) == (0, "")
    assert "operator" in ran.out
    assert "500,000.0000" in ran.out
    assert service.token("operator") not in ran.out
    ran = await run(service, "info", "--json")
    assert ran.json["balance"] == Decimal("500000.0000")
    assert (await run(service, "points", "balance")).out == "500,000.0000\n"
    ran = await run(service, "points", "balance", "--json")
    assert ran.json == {"balance": Decimal("500000.0000")}


async def test_agents(service: Sandbox, tmp_path: Path) -> None:
    """Create, list, draw, suspend and resume."""
    ran = await run(
        service, "agents", "create", "shop_7", "--allow", "127.0.0.1", "--json"
    )
    made = ran.json
    assert (
        made["agent"]["name"],
        made["agent"]["whitelist"],
    ) == ("shop_7", ["127.0.0.1"])
    code = str(made["agent"]["agent_code"])
    ran = await run(service, "info", "--json", env={"AGENTAPI_TOKEN": made["token"]})
    assert ran.json["name"] == "shop_7"

    kept = tmp_path / "token"
    ran = await run(service, "agents", "create", "shop_8", "--token-file", kept)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert kept.read_text().strip() not in ran.out
    ran = await run(service, "agents", "create", "shop_9", "--token-file", kept)
    assert (ran.code, "exists" in ran.err) == (2, True)
    other = tmp_path / "other"
    ran = await run(service, "agents", "create", "shop_8", "--token-file", other)
    assert (ran.code, other.exists()) == (2, False)
    assert "is taken" in ran.err

    ran = await run(service, "agents", "list", "--json")
    rows = [json.loads(line) for line in ran.out.splitlines()]
    assert [row["name"] for row in rows] == ["shop_1", "shop_2", "shop_7", "shop_8"]
    ran = await run(service, "agents", "list")
    assert ran.out.splitlines()[0].split() == [
        "agent_code",
        "name",
        "role",
        "parent_code",
        "balance",
        "state",
    ]
    ran = await run(service, "agents", "list", "--subtree", name="broker")
    assert "shop_8" in ran.out
    ran = await run(service, "agents", "tree", name="broker")
    assert "└── operator" in ran.out
    assert "    ├── shop_1" in ran.out
    ran = await run(service, "agents", "tree", "--json", name="broker")
    assert ran.json["children"][0]["agent"]["name"] == "operator"

    ran = await run(service, "agents", "suspend", code)
    assert "suspended" in ran.out
    ran = await run(service, "info", env={"AGENTAPI_TOKEN": made["token"]})
    assert (ran.code, "1010" in ran.err) == (3, True)
    ran = await run(service, "agents", "resume", code, "--json")
    assert ran.json["state"] == "active"


async def test_points_move(service: Sandbox) -> None:
    """Transfer, reclaim and history, and what goes wrong with its code."""
    async with connect(service) as session:
        shop, _ = await shops(session)
    ran = await run(service, "points", "transfer", str(shop), "2.5", "--reference", "a")
    assert (ran.code, "499,997.5000" in ran.out) == (0, True)
    ran = await run(service, "points", "reclaim", str(shop), "0.5", "--json")
    assert ran.json["amount"] == Decimal("0.5")
    ran = await run(service, "points", "history", "--json")
    assert "a" in {json.loads(line)["reference"] for line in ran.out.splitlines()}
    assert "2.5000" in (await run(service, "points", "history")).out
    for args, code, said in (
        (("transfer", str(shop), "1e3"), 2, "digits"),
        (("transfer", str(shop), "9000000"), 1, "2005"),
        (("transfer", "999", "1"), 1, "2001"),
        (("transfer", "1001", "1"), 3, "1010"),
        (("transfer", str(shop), "1", "--reference", "a"), 2, "1012"),
        (("transfer", "x", "1"), 2, "x"),
    ):
        ran = await run(service, "points", *args)
        assert (code, "") == (ran.code, ran.out), ran.err
        assert said in ran.err
        assert "Traceback" not in ran.err
    service.faults.add(Fault("drop_after", "points/transfer"))
    ran = await run(service, "points", "transfer", str(shop), "1")
    assert (ran.code, "may have happened" in ran.err) == (4, True)


async def test_where_the_account_comes_from(service: Sandbox, tmp_path: Path) -> None:
    """The environment, or a file that names where the token is."""
    config = tmp_path / "config.toml"
    token = tmp_path / "token"
    token.write_text(service.token("shop_1") + "\n")
    config.write_text(
        f'base_url = "{service.base_url}"\n'
        "[settings]\ntimeout = 20.0\n"
        '[accounts.one]\ntoken_env = "ONE"\n'
        f'[accounts.two]\ntoken_file = "{token}"\n'
        f'[accounts.bad]\ntoken = "{TOKEN}"\n'
        "[accounts.none]\n"
        '[accounts.lost]\ntoken_file = "/nonexistent/token"\n'
    )
    one = {"ONE": service.token("shop_2")}

    async def name_of(*args: str, env: Mapping[str, str] | None = None) -> str:
        ran = await run(None, "--config", config, *args, "info", "--json", env=env)
        return ran.json["name"] if ran.code == 0 else f"{ran.code} {ran.err}"

    assert await name_of("--account", "one", env=one) == "shop_2"
    assert await name_of("--account", "two") == "shop_1"
    assert await name_of(env={"AGENTAPI_ACCOUNT": "two"}) == "shop_1"
    assert await name_of(env={"AGENTAPI_TOKEN": service.token("broker")}) == "broker"
    for args, said in (
        (("--account", "one"), "ONE is not set"),
        (("--account", "bad"), "does not belong into this file"),
        (("--account", "none"), "token_env or token_file"),
        (("--account", "lost"), "No such file"),
        (("--account", TOKEN), "which has: bad, lost, none, one, two"),
        ((), "AGENTAPI_TOKEN is not set"),
    ):
        told = await name_of(*args)
        assert told.startswith("2 ")
        assert said in told
        assert TOKEN not in told
    for text, said in (
        ("[settings]\nlimit = 0\n", "limit"),
        ("[settings]\nspeed = 9\n", "batch_floor"),
        ("x = ", "config.toml"),
        ("[accounts.one]\n", "base_url"),
    ):
        config.write_text(text)
        told = await name_of("--account", "one")
        assert told.startswith("2 ")
        assert said in told
    ran = await run(None, "--config", tmp_path / "nothing.toml", "info")
    assert (ran.code, "no such file" in ran.err) == (2, True)


async def test_a_token_on_the_command_line_is_refused(service: Sandbox) -> None:
    """In every form, without repeating it."""
    for args in (("--token", TOKEN), (f"--token={TOKEN}",)):
        ran = await run(service, *args, "info")
        assert (ran.code, "AGENTAPI_TOKEN" in ran.err) == (2, True)
        assert TOKEN not in ran.err


async def test_a_service_that_is_not_there() -> None:
    """Code 3, and one clear line."""
    env = {"AGENTAPI_BASE_URL": "http://127.0.0.1:9", "AGENTAPI_TOKEN": TOKEN}
    ran = await run(None, "info", env=env)
    assert (ran.code, ran.out) == (3, "")
    assert "no connection" in ran.err
    assert len(ran.err.splitlines()) == 1


async def test_help_and_version() -> None:
    """Every command explains itself, and the exit codes are told."""
    ran = await run(None, "--help")
    assert "Exit codes: 0 done" in ran.out
    assert "token" not in {
        word.strip("-") for word in ran.out.split() if word[0] == "-"
    }
    ran = await run(None, "--version")
    assert ran.out.startswith("agentapi, version ")


HEAD = "agent_code,amount\n"


@pytest.mark.process
@pytest.mark.parametrize("count", [2_000, pytest.param(10_000, marks=pytest.mark.soak)])
async def test_the_main_job(tmp_path: Path, count: int) -> None:
    """Thousands of rows, some refused: the results are complete, the sums equal."""
    async with (
        SandboxProcess(Switches(latency=0.005)) as service,
        connect(service) as session,
        connect(service, "broker") as broker,
    ):
        codes = await shops(session, 98)
        foreign = await broker.agents.create("other", role="operator")
        before = await session.points.balance()
        # The first ones stay until all permits are in use, on any machine.
        await service.fault(Fault("delay", "points/transfer", times=50, seconds=1.0))
        rows: list[tuple[int, str]] = []
        for number in range(count):
            code = codes[number % len(codes)]
            amount = f"{number % 97}.{number % 9973:04}"
            if number % 100 == 7:
                code = 999_999
            elif number % 100 == 8:
                code = foreign.agent.agent_code
            elif number % 1000 == 9:
                amount = "999999999999999"
            elif number == 0:
                amount = "1"
            rows.append((code, amount))
        plan = tmp_path / "plan.csv"
        plan.write_text(HEAD + "".join(f"{code},{amount}\n" for code, amount in rows))
        ran = await run(service, "points", "distribute", plan, "--json")
        assert (ran.code, ran.err) == (1, "")
        gauge = await service.gauge("operator")
        after = await session.points.balance()
        balances = {a.agent_code: a.balance async for a in session.agents.list()}
    with (tmp_path / "plan.csv.results.csv").open() as file:
        results = list(csv.DictReader(file))
    assert list(range(2, count + 2)) == sorted(int(row["line"]) for row in results)
    expected: Counter[int] = Counter()
    for row in results:
        code, amount = rows[int(row["line"]) - 2]
        assert (str(code), Decimal(amount)) == (
            row["agent_code"],
            Decimal(row["amount"]),
        )
        if row["outcome"] == "moved":
            expected[code] += Decimal(amount)  # type: ignore[assignment]  # exact
            assert row["move_id"]
        else:
            assert row["outcome"] == "refused"
            wanted = {999_999: "2001", foreign.agent.agent_code: "1010"}
            assert wanted.get(code, "2005") == row["code"]
            assert row["reason"]
    moved = count - 2 * (count // 100) - count // 1000
    ends = Counter(row["outcome"] for row in results)
    codes_met = Counter(row["code"] for row in results)
    assert codes_met == {
        "2001": count // 100,
        "1010": count // 100,
        "2005": count // 1000,
        "": moved,
    }
    assert ends == {"moved": moved, "refused": count - moved}
    total = sum(Decimal(row["amount"]) for row in results if row["outcome"] == "moved")
    assert before - after == total == ran.json["total"]
    # The first two had 1,000 before.
    assert {c: (c in codes[:2]) * 1000 + expected[c] for c in codes} == {
        c: balances[c] for c in codes
    }
    assert (gauge.peak, gauge.busy) == (50, 0)
    assert (ends["moved"], ends["refused"], 0, 0) == (
        ran.json["moved"],
        ran.json["refused"],
        ran.json["not_sent"],
        ran.json["unknown"],
    )
    assert len({row["reference"] for row in results}) == count


async def test_the_same_plan_again_moves_nothing(
    service: Sandbox, tmp_path: Path
) -> None:
    """A run that is finished says so; results without a journal are in the way."""
    async with connect(service) as session:
        shop, other = await shops(session)
        plan = tmp_path / "plan.csv"
        plan.write_text(f"{HEAD}{shop},1\n{other},2\n")
        ran = await run(service, "points", "distribute", plan)
        assert (ran.code, "moved       2 rows, 3" in ran.out) == (0, True)
        served = service.gauge("operator").served
        again = tmp_path / "again.jsonl"
        ran = await run(service, "points", "distribute", plan, "--results", again)
        assert (ran.code, "This run is finished" in ran.out) == (0, True)
        assert service.gauge("operator").served == served + 1
        assert await session.points.balance() == 499_997
        assert len(again.read_text().splitlines()) == 2
        (tmp_path / "plan.csv.journal").unlink()
        ran = await run(service, "points", "distribute", plan)
        assert (ran.code, "Move it away" in ran.err) == (2, True)
        assert await session.points.balance() == 499_997


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            HEAD + "1,1\nx,1\n1,0\n1,1e3\n",
            [":3: agent_code", ":4: an amount", ":5: an"],
        ),
        (HEAD + "1,1,1\n1\n", [":2: 3 columns", ":3: 1 columns"]),
        (HEAD + '1,"1\n', ["no CSV"]),
        (HEAD + "1,\ud8001\n", [":2: an amount"]),
        ("agent_code,amount,reference\n1,1,a\n1,1,b\n2,2,a\n", [":4: ", "on line 2"]),
        ("agent_code,amount,reference\n1,1,a b\n", [":2: a reference"]),
        ("agent_code;amount\n1;1\n", ["separated by commas"]),
        ("agent_code,amount,refrence\n1,1,a\n", ["unknown columns", "refrence"]),
        ("", ["the first line names"]),
        ("1,1\n", ["the first line names"]),
        ('{"agent_code": 1, "amount": 1}\n', ["say --format jsonl"]),
        (HEAD + "9" * 70_000, ["longer than"]),
    ],
)
async def test_a_malformed_plan_moves_nothing(
    service: Sandbox, tmp_path: Path, text: str, said: list[str]
) -> None:
    """Every bad row is listed by its line, with the reason; code 2."""
    plan = tmp_path / "plan.csv"
    plan.write_bytes(text.encode("utf-8", "surrogatepass"))
    ran = await run(service, "points", "distribute", plan)
    assert (ran.code, ran.out) == (2, "")
    for words in said:
        assert words in ran.err
    assert "Traceback" not in ran.err
    assert service.gauge("operator").served == 0
    assert [plan] == list(tmp_path.iterdir())


@pytest.mark.process
async def test_json_lines(service: Sandbox, tmp_path: Path) -> None:
    """By the ending of the name or by --format, from a file or standard input."""
    async with connect(service) as session:
        shop, _ = await shops(session)
    rows = [
        {"agent_code": shop, "amount": "1.5"},
        {"agent_code": shop, "amount": 2, "reference": "mine"},
        {"agent_code": shop, "amount": 0.25, "reference": None},
    ]
    text = "\n\n".join(json.dumps(row) for row in rows) + "\n"
    plan = tmp_path / "plan.jsonl"
    plan.write_text(text)
    ran = await run(service, "points", "distribute", plan, "--json")
    assert (0, 3, Decimal("3.75")) == (ran.code, ran.json["moved"], ran.json["total"])
    results = [
        json.loads(line, parse_float=Decimal)
        for line in (tmp_path / "plan.jsonl.results.jsonl").read_text().splitlines()
    ]
    assert {"1.5", "2", "0.25"} == {str(row["amount"]) for row in results}
    bad = '{"agent_code": 1}\n[1]\n{"agent_code": 1, "amount": 1, "x": 1}\n{\n'
    for args, send in (
        (("-", "--format", "jsonl", "--results", tmp_path / "r.jsonl"), text),
        (("-", "--format", "jsonl", "--results", tmp_path / "bad.csv"), bad),
        (("-",), text),
    ):
        words = ("points", "distribute", *args)
        ran = await run_process(service, *words, send=send.encode())
        if send == bad:
            assert ran.code == 2
            assert all(f"standard input:{line}: " in ran.err for line in (1, 2, 3, 4))
        elif "--results" in args:
            assert ran.code == 0
        else:
            assert (ran.code, "needs --results" in ran.err) == (2, True)


@pytest.mark.process
async def test_what_stops_a_run(service: Sandbox, tmp_path: Path) -> None:
    """A wrong token before it, a token that is refused meanwhile, an interrupt."""
    async with connect(service) as session, connect(service, "broker") as broker:
        shop, _ = await shops(session)
        plan = tmp_path / "plan.csv"
        plan.write_text(HEAD + f"{shop},0.0001\n" * 20_000)
        ran = await run(
            service, "points", "distribute", plan, env={"AGENTAPI_TOKEN": TOKEN}
        )
        assert (3, [plan]) == (ran.code, list(tmp_path.iterdir()))

        process = await begin(service, "points", "distribute", plan)
        await until_served(service, 300)
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
        assert process.returncode == 130
        assert err == b""
        assert b"the rows behind were not sent" in out
        assert b"The same command goes on" in out
        results = tmp_path / "plan.csv.results.csv"
        moved = results.read_text().count(",moved,")
        assert 0 < moved < 20_000
        history = [m async for m in session.points.history() if m.amount < 1]
        assert moved == len(history)

        results.unlink()
        (tmp_path / "plan.csv.journal").unlink()
        served = service.gauge("operator").served
        process = await begin(service, "points", "distribute", plan)
        await until_served(service, served + 300)
        me = (await session.agents.info()).agent_code
        assert me is not None
        await broker.agents.reissue_token(me)
        out, err = await process.communicate()
        assert process.returncode == 3
        assert b"stopped     points.transfer: code 1007" in out


async def until_served(box: Sandbox, count: int) -> None:
    """Wait until the operator's calls are so many."""
    while box.gauge("operator").served < count:
        await look_again()


@pytest.mark.process
async def test_a_reader_that_goes_away(service: Sandbox) -> None:
    """As with ``| head -1``: no traceback."""
    process = await begin(service, "points", "history", "--json")
    assert process.stdout is not None
    process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]  # the other end of the pipe
    _, err = await process.communicate()
    assert b"Traceback" not in err


@pytest.mark.process
async def test_the_sandbox_in_the_foreground(tmp_path: Path) -> None:
    """It prints what a shell can read, serves, and ends when it is told to."""
    db = tmp_path / "box.db"
    process = await begin(None, "sandbox", "--limit", "3", "--db", db)
    assert process.stdout is not None
    told: dict[str, str] = {}
    while "AGENTAPI_TOKEN" not in told:
        line = (await process.stdout.readline()).decode()
        if line.startswith("export "):
            name, _, value = line.removeprefix("export ").partition("=")
            told[name] = value.split()[0]
    ran = await run(None, "info", "--json", env=told)
    assert ran.json["name"] == "operator"
    process.send_signal(signal.SIGTERM)
    await process.communicate()
    assert process.returncode == 0
    ran = await run(None, "sandbox", "--limit", "0")
    assert (ran.code, "--limit" in ran.err) == (2, True)
    ran = await run(None, "sandbox", "--db", tmp_path / "no" / "folder")
    assert (ran.code, "cannot start" in ran.err) == (2, True)


@pytest.mark.process
async def test_the_sandbox_tells_where_its_back_office_is() -> None:
    """Which asks who it is, if that is wanted."""
    for options, title in (
        ((), "<h1>Accounts</h1>"),
        (("--login",), "<h1>Log in</h1>"),
    ):
        process = await begin(None, "sandbox", *options)
        assert process.stdout is not None
        line = ""
        while not line.startswith("# The back office: "):
            line = (await process.stdout.readline()).decode()
            assert line
        url = line.removeprefix("# The back office: ").strip()
        async with aiohttp.ClientSession() as http, http.get(url) as page:
            assert title in await page.text()
        process.send_signal(signal.SIGTERM)
        await process.communicate()
        assert process.returncode == 0


@pytest.mark.process
@pytest.mark.timeout(60)
async def test_the_demo_shows_that_every_promise_holds() -> None:
    """Small, to the end."""
    ran = await run(None, "demo", "--agents", "20", "--rows", "300", "--latency", "0.2")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.endswith("Every promise held.\n")
    assert "the peak was 50" in ran.out
    assert "NO" not in ran.out
    assert (await run(None, "demo", "--rows", "0")).code == 2


async def test_the_service_is_slow_to_say_no(tmp_path: Path) -> None:
    """A plan goes on at full speed while others hold permits."""
    async with Sandbox(Switches(latency=0.005)) as box:
        async with connect(box) as session:
            shop, _ = await shops(session)
        box.foreign("operator", 40)
        plan = tmp_path / "plan.csv"
        plan.write_text(HEAD + f"{shop},0.0001\n" * 500)
        ran = await run(box, "points", "distribute", plan, "--json")
        assert (ran.code, ran.json["moved"]) == (0, 500)
        assert ran.json["busy_answers"] == box.gauge("operator").busy > 0


@pytest.mark.process
async def test_a_lost_answer_tells_how_to_repeat_it(service: Sandbox) -> None:
    """The reference that was made is shown, and moves once."""
    async with connect(service) as session:
        shop, _ = await shops(session)
        service.faults.add(Fault("drop_after", "points/transfer"))
        ran = await run(service, "points", "transfer", str(shop), "5")
        assert ran.code == 4
        reference = ran.err.split("--reference ")[1].split()[0]
        service.faults.clear()
        args = ("points", "transfer", str(shop), "5", "--reference", reference)
        assert (await run(service, *args)).code == 0
        assert await session.points.balance() == 499_995

        service.faults.add(Fault("hold", "points/transfer"))
        process = await begin(service, "points", "transfer", str(shop), "7", "--json")
        await until_served(service, service.gauge("operator").served + 1)
        process.send_signal(signal.SIGINT)
        service.faults.clear()
        out, err = await process.communicate()
        assert (process.returncode, out) == (130, b"")
        reference = err.decode().split("--reference ")[1].split()[0]
        args = ("points", "transfer", str(shop), "7", "--reference", reference)
        assert (await run(service, *args)).code == 0
        assert await session.points.balance() == 499_988


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_the_end_of_a_batch_job_loses_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Signals end a run in order, and the same command goes on with it."""
    async with (
        Sandbox(Switches(latency=0.02)) as service,
        connect(service) as session,
    ):
        shop, _ = await shops(session)
        plan = tmp_path / "plan.csv"
        plan.write_text(HEAD + f"{shop},1\n" * 3000)
        process = await begin(service, "points", "distribute", plan)
        await until_served(service, 200)
        process.send_signal(number)
        out, err = await process.communicate()
        assert process.returncode == 130
        moved = (tmp_path / "plan.csv.results.csv").read_text().count(",moved,")
        assert await session.points.balance() == 500_000 - moved
        assert (err, b"The same command goes on" in out) == (b"", True)
        ran = await run(service, "points", "distribute", plan)
        assert (ran.code, f"had moved   {moved:,} rows" in ran.out) == (0, True)
        assert await session.points.balance() == 500_000 - 3000


@pytest.mark.process
async def test_a_kill_loses_nothing_either(tmp_path: Path) -> None:
    """What the file does not tell, the references do."""
    async with (
        Sandbox(Switches(latency=0.02)) as service,
        connect(service) as session,
    ):
        shop, _ = await shops(session)
        plan = tmp_path / "plan.csv"
        plan.write_text(HEAD + f"{shop},1\n" * 1000)
        process = await begin(service, "points", "distribute", plan)
        await until_served(service, 150)
        process.kill()
        await process.communicate()
        assert (await run(service, "points", "distribute", plan)).code == 0
        assert await session.points.balance() == 500_000 - 1000


@pytest.mark.process
async def test_a_second_interrupt_gives_up(tmp_path: Path) -> None:
    """Also when others hold all permits and nothing would end."""
    async with Sandbox() as service:
        async with connect(service) as session:
            shop, _ = await shops(session)
        plan = tmp_path / "plan.csv"
        plan.write_text(HEAD + f"{shop},1\n" * 500)
        service.faults.add(Fault("busy", "points/transfer"))
        process = await begin(service, "points", "distribute", plan)
        while service.gauge("operator").busy < 5:
            await look_again()
        process.send_signal(signal.SIGINT)
        # It goes on asking for what it has begun.
        busy = service.gauge("operator").busy
        while service.gauge("operator").busy < busy + 5:
            await look_again()
        assert process.returncode is None
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(10):
            await process.communicate()
        assert process.returncode == 130


async def test_a_run_goes_on_with_its_own_plan_alone(
    service: Sandbox, tmp_path: Path
) -> None:
    """A plan that differs, is shorter or longer moves nothing, and is told where."""
    async with connect(service) as session:
        shop, other = await shops(session)
        plan = tmp_path / "plan.csv"
        plan.write_text(f"{HEAD}{shop},1\n{shop},2\n")
        assert (await run(service, "points", "distribute", plan)).code == 0
        for rows, said in (
            (f"{shop},1\n{shop},3\n", "line 3: "),
            (f"{other},1\n{shop},2\n", "line 2: "),
            (f"{shop},1\n", "ends before it"),
            (f"{shop},1\n{shop},2\n{shop},3\n", "line 4: "),
        ):
            plan.write_text(HEAD + rows)
            ran = await run(service, "points", "distribute", plan)
            assert (ran.code, said in ran.err) == (2, True), ran.err
            assert "Nothing was sent" in ran.err
        plan.write_text(f"{HEAD}\n{shop},1.0000\n{shop},2\n")
        assert (await run(service, "points", "distribute", plan)).code == 0
        assert await session.points.balance() == 499_997


@pytest.mark.process
async def test_a_plan_is_what_it_was_when_it_was_checked(tmp_path: Path) -> None:
    """Whatever happens to the file afterwards."""
    async with (
        Sandbox(Switches(latency=0.02)) as service,
        connect(service) as session,
    ):
        shop, other = await shops(session)
        plan = tmp_path / "plan.csv"
        plan.write_text(HEAD + f"{shop},1\n" * 2000)
        process = await begin(service, "points", "distribute", plan)
        await until_served(service, 100)
        plan.write_text(HEAD + f"{other},9\n" * 3000)
        await process.communicate()
        assert process.returncode == 0
        assert await session.points.balance() == 500_000 - 2000


@pytest.mark.process
async def test_a_plan_from_a_pipe_and_from_nowhere(
    service: Sandbox, tmp_path: Path
) -> None:
    """A named pipe is a file; a closed standard input is told."""
    async with connect(service) as session:
        shop, _ = await shops(session)
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    process = await begin(service, "points", "distribute", pipe)
    text = f"{HEAD}{shop},1\n"
    await asyncio.to_thread(pipe.write_text, text)
    await process.communicate()
    assert process.returncode == 0
    ran = await run(service, "points", "distribute", tmp_path / "none.csv")
    assert (ran.code, "No such file" in ran.err) == (2, True)
    ran = await run(service, "points", "distribute", tmp_path)
    assert (ran.code, "directory" in ran.err) == (2, True)


@pytest.mark.parametrize(
    "row",
    [
        '{"agent_code": 1, "amount": 1, "agent_code": 2}',
        '{"agent_code": 1, "amount": 1, "reference": 0}',
        '{"agent_code": 1, "amount": 1, "reference": false}',
        '{"agent_code": 1, "amount": NaN}',
        '{"agent_code": 1, "amount": 1, "\\u001b[31mX": 1}',
    ],
)
async def test_json_that_could_be_read_in_two_ways(
    service: Sandbox, tmp_path: Path, row: str
) -> None:
    """It is refused, and shown without its control characters."""
    plan = tmp_path / "plan.jsonl"
    plan.write_text(row + "\n")
    ran = await run(service, "points", "distribute", plan)
    assert (ran.code, ran.out) == (2, "")
    assert ":1: " in ran.err
    assert "\x1b" not in ran.err


@pytest.mark.process
async def test_the_exit_code_survives_a_broken_output(
    service: Sandbox, tmp_path: Path
) -> None:
    """What happened to the money does not depend on who reads the summary."""
    async with connect(service) as session:
        shop, _ = await shops(session)
    plan = tmp_path / "plan.csv"
    plan.write_text(f"{HEAD}{shop},1\n999,1\n")
    for number, end in enumerate((" | true", " > /dev/full")):
        results = tmp_path / f"{number}.csv"
        command = (
            f"{sys.executable} -m aio_agentapi.cli points distribute {plan}"
            f" --results {results}{end}; exit ${{PIPESTATUS[0]}}"
        )
        env = {
            "AGENTAPI_BASE_URL": service.base_url,
            "AGENTAPI_TOKEN": service.token("operator"),
        }
        process = await asyncio.create_subprocess_exec(
            "bash",
            "-c",
            command,
            env=dict(os.environ) | env,
            stderr=asyncio.subprocess.PIPE,
        )
        _, err = await process.communicate()
        assert process.returncode == 1, err
        assert b"Traceback" not in err
        assert "999" in results.read_text()


@pytest.mark.process
async def test_a_service_that_goes_away_stops_a_run(tmp_path: Path) -> None:
    """After a hundred rows that did not reach it."""
    async with SandboxProcess(Switches(latency=0.02)) as service:
        async with connect(service) as session:
            shop, _ = await shops(session)
        plan = tmp_path / "plan.csv"
        plan.write_text(HEAD + f"{shop},1\n" * 20_000)
        running = asyncio.create_task(run(service, "points", "distribute", plan))
        while (await service.gauge("operator")).served < 200:
            await look_again()
        service._process.kill()
        ran = await running
    # What was under way when it went may have happened.
    assert ran.code == (4 if "\nunknown " in ran.out else 3)
    assert "100 rows in a row did not get through" in ran.out
    text = (tmp_path / "plan.csv.results.csv").read_text()
    assert 100 <= text.count(",not_sent,") < 1000


async def test_wrong_settings_are_wrong_use(tmp_path: Path) -> None:
    """A slip in the configuration is no unknown outcome, and no traceback."""
    config = tmp_path / "config.toml"
    for text in (
        "proxy = 5",
        "local_address = 5",
        "allow_plain_http = 5",
        "paths = 5",
        'paths = {"points.transfer" = 5}',
    ):
        config.write_text(f"[settings]\n{text}\n")
        ran = await run(None, "--config", config, "info")
        assert (ran.code, len(ran.err.splitlines())) == (2, 1), ran.err
    config.write_bytes(b"\xff")
    assert (await run(None, "--config", config, "info")).code == 2
    config.write_text("# no database\n" * 1000)
    for args in (
        ("--port", "99999"),
        ("--db", str(tmp_path)),
        ("--db", str(config)),
        ("--latency", "nan"),
    ):
        ran = await run(None, "sandbox", *args)
        assert (ran.code, "Traceback" in ran.err) == (2, False), ran.err


async def test_a_token_file_that_exists_stops_the_creation(
    service: Sandbox,
) -> None:
    """Nothing is created whose token would have no place."""
    ran = await run(service, "agents", "create", "shop_7", "--token-file", "/dev/full")
    assert (ran.code, "exists" in ran.err) == (2, True)
    async with connect(service) as session:
        assert "shop_7" not in [a.name async for a in session.agents.list()]


def test_a_token_that_cannot_be_written_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The disk is full when the account exists already: the command shows it then."""
    full = Path("/dev/full")
    kept = _Kept(full, os.open(full, os.O_WRONLY))
    assert not kept.write(Secret(TOKEN))
    assert "No space left" in capsys.readouterr().err


def test_a_token_whose_file_is_gone_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody has removed it meanwhile: the command shows the token then."""
    kept = _Kept(tmp_path / "token")
    kept.open()
    (tmp_path / "token").unlink()
    assert not kept.write(Secret(TOKEN))
    assert "the file is gone" in capsys.readouterr().err
    kept = _Kept(tmp_path / "token")
    kept.open()
    (tmp_path / "token").unlink()
    kept.drop()
