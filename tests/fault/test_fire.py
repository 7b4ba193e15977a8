"""
Payments and points while everything goes wrong, and the client is killed.

The job is a process of its own, which is killed with SIGKILL at random moments and
started again. In the end each payment of the journal is compared with the service's
books, row by row.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import json
import random
import sqlite3
import sys
from collections import Counter
from collections.abc import AsyncGenerator
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import attrs
import pytest

from aio_agentapi.sandbox import Fault, SandboxProcess, Switches
from tests.cli import begin, run
from tests.conftest import connect
from tests.payer import Duty, duties
from tests.waiting import look_again

pytestmark = pytest.mark.process


ROOT: Final = Path(__file__).parents[2]

# A thousandth of the real times, and more of it goes wrong.
SETTINGS: Final = {
    "timeout": 0.6,
    "abandon_after": 1.2,
    "linger": 0.1,
    "longest_call": 1.4,
    "feed_interval": 0.15,
    "feed_lag": 0.4,
    # Amounts that differ in the last digit are not rounded ones.
    "amount_decimals": 4,
}
WALLETS: Final = ("wallet/deposit", "wallet/withdraw", "wallet/withdraw-all")


def evils(path: str) -> list[Fault]:
    """Return what goes wrong with calls of a path."""
    return [
        Fault("drop_before", path, share=0.03),
        Fault("drop_after", path, share=0.03),
        Fault("cut_json", path, share=0.01),
        Fault("html", path, share=0.01, status=502),
        Fault("html", path, share=0.005, status=502, executed=False),
        Fault("delay", path, share=0.01, seconds=1.0),
        Fault("late_row", path, share=0.05, seconds=0.25),
    ]


@attrs.frozen
class Scale:
    """How long a run is."""

    payments: int
    users: int
    kills: int
    seed: int


@contextlib.asynccontextmanager
async def job(told: dict[str, Any]) -> AsyncGenerator[asyncio.subprocess.Process]:
    """Run the payer."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.payer", json.dumps(told)),
        cwd=ROOT,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def paid(box: SandboxProcess) -> int:
    """Return how many wallet calls the service has let in."""
    received = await box.received()
    return sum(received.get(path, 0) for path in WALLETS)


async def users(box: SandboxProcess, count: int) -> None:
    """Create the users 1 to *count*."""
    async with connect(box) as session:
        codes = [
            (await session.users.create(f"user_{i}")).user_code for i in range(count)
        ]
    assert codes == [*range(1, count + 1)]


def books(db: Path) -> dict[int, list[tuple[int, int, int]]]:
    """Return each user's payments as the service has them: kind, amount, balance."""
    found: dict[int, list[tuple[int, int, int]]] = {}
    with contextlib.closing(sqlite3.connect(db)) as sql:
        for user, kind, amount, after in sql.execute(
            "SELECT user, kind, amount, after FROM feed ORDER BY id"
        ):
            found.setdefault(user, []).append((kind, int(amount), int(after)))
    return found


def journal(path: Path) -> list[dict[str, Any]]:
    """Return all rows of a journal."""
    with contextlib.closing(sqlite3.connect(path)) as sql:
        sql.row_factory = sqlite3.Row
        return [dict(row) for row in sql.execute("SELECT * FROM intents ORDER BY id")]


def compare(path: Path, db: Path, wanted: list[Duty], received: int) -> None:
    """Show that the journal and the books say the same, and each key was paid once."""
    intents = journal(path)
    phases = Counter(intent["phase"] for intent in intents)
    assert phases.keys() <= {"done", "confirmed", "absent", "refused", "not_sent"}
    happened: dict[int, list[tuple[int, int, int]]] = {}
    keys: Counter[str] = Counter()
    for intent in intents:
        if intent["phase"] in {"done", "confirmed"}:
            keys[intent["key"]] += 1
            kind = 4 if intent["operation"] == "wallets.deposit" else 8
            amount = int(Decimal(intent["moved"]) * 10_000)
            # An empty wallet has no row.
            if amount:
                balance = int(Decimal(intent["balance"]) * 10_000)
                happened.setdefault(intent["user"], []).append((kind, amount, balance))
    told = books(db)
    assert {u: sorted(rows) for u, rows in happened.items()} == {
        u: sorted(rows) for u, rows in told.items()
    }
    assert max(keys.values()) == 1
    newest = {intent["key"]: intent["phase"] for intent in intents}
    assert newest.keys() == {duty.key for duty in wanted}
    assert set(newest.values()) <= {"done", "confirmed", "refused"}
    # Each is sent once: what the service refused as busy was not let in.
    assert received <= len(intents) - phases["not_sent"]


async def payments_under_fire(scale: Scale, tmp_path: Path) -> None:
    """Pay, and be killed, until all is paid; then compare."""
    dice = random.Random(scale.seed)  # noqa: S311 - moments of kills
    path, db = tmp_path / "journal.db", tmp_path / "box.db"
    switches = Switches(
        latency=0.01, jitter=0.01, feed_spacing=0.1, row_delay=0.1, early_feed="empty"
    )
    async with SandboxProcess(switches, db=db, seed=scale.seed) as box:
        await users(box, scale.users)
        for wallet in WALLETS:
            for fault in evils(wallet):
                await box.fault(fault)
        told: dict[str, Any] = {
            "base_url": box.base_url,
            "token": box.tokens["operator"],
            "journal": str(path),
            "settings": SETTINGS,
            "seed": scale.seed,
            "count": scale.payments,
            "users": scale.users,
        }
        for kill in range(scale.kills):
            if kill == scale.kills // 2:
                await box.switch(attrs.evolve(switches, early_feed="busy"))
            until = await paid(box) + dice.randint(1, scale.payments // scale.kills)
            async with job(told) as process:
                while await paid(box) < until and process.returncode is None:
                    # The kill falls at any moment.
                    await asyncio.sleep(dice.uniform(0.001, 0.02))
        async with job(told) as process:
            _, err = await process.communicate()
            assert process.returncode == 0, err.decode()
        received = await paid(box)
        minted, held = await box.audit()
        assert minted == held
    wanted = [*duties(scale.seed, scale.payments, scale.users)]
    compare(path, db, wanted, received)


async def test_payments_under_fire(tmp_path: Path) -> None:
    """No payment is lost or doubled, whatever is lost, and whoever is killed."""
    await payments_under_fire(Scale(150, 15, 3, 1), tmp_path)


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_many_payments_under_fire(tmp_path: Path) -> None:
    """The same for ten thousand payments of 500 users, and twenty kills."""
    await payments_under_fire(Scale(10_000, 500, 20, 2), tmp_path)


async def test_several_processes_pay_a_list_once(tmp_path: Path) -> None:
    """Four of them at once on one journal, one killed and started again."""
    path, db = tmp_path / "journal.db", tmp_path / "box.db"
    scale = Scale(120, 12, 0, 3)
    switches = Switches(latency=0.01, jitter=0.01, feed_spacing=0.1)
    async with SandboxProcess(switches, db=db) as box:
        await users(box, scale.users)
        for wallet in WALLETS:
            await box.fault(Fault("drop_after", wallet, share=0.03))
            await box.fault(Fault("drop_before", wallet, share=0.03))
        told: dict[str, Any] = {
            "base_url": box.base_url,
            "token": box.tokens["operator"],
            "journal": str(path),
            # Four of them share the 50.
            "settings": {**SETTINGS, "limit": 12},
            "seed": scale.seed,
            "count": scale.payments,
            "users": scale.users,
        }
        async with contextlib.AsyncExitStack() as stack:
            jobs = [
                await stack.enter_async_context(job({**told, "shuffle": number}))
                for number in range(4)
            ]
            while await paid(box) < scale.payments // 4:
                await look_again()
            jobs[0].kill()
            await jobs[0].communicate()
            jobs[0] = await stack.enter_async_context(job({**told, "shuffle": 4}))
            for process in jobs:
                _, err = await process.communicate()
                assert process.returncode == 0, err.decode()
        received = await paid(box)
    wanted = [*duties(scale.seed, scale.payments, scale.users)]
    compare(path, db, wanted, received)


async def points_under_fire(rows: int, kills: int, tmp_path: Path) -> None:
    """Carry out a plan by the same command again and again, until it is finished."""
    dice = random.Random(rows)  # noqa: S311 - moments of kills
    plan, db = tmp_path / "plan.csv", tmp_path / "box.db"
    async with SandboxProcess(
        Switches(latency=0.005, jitter=0.005), db=db, seed=1
    ) as box:
        async with connect(box) as session:
            made = [await session.agents.create(f"bulk_{i}") for i in range(20)]
            codes = [agent.agent.agent_code for agent in made]
            before = await session.points.balance()
        for fault in evils("points/transfer"):
            if fault.kind != "late_row":
                await box.fault(fault)
        wanted: Counter[int] = Counter()
        lines = ["agent_code,amount"]
        for _ in range(rows):
            code, units = dice.choice(codes), dice.randint(1, 100_000)
            wanted[code] += units
            lines.append(f"{code},{Decimal(units).scaleb(-4)}")
        plan.write_text("\n".join(lines) + "\n")
        config = tmp_path / "config.toml"
        config.write_text("[settings]\ntimeout = 0.6\nattempts = 2\n")
        args = ("--config", config, "points", "distribute", plan)
        for _ in range(kills):
            until = (await box.gauge("operator")).served
            until += dice.randint(1, max(2, rows // kills))
            process = await begin(box, *args)
            while (await box.gauge("operator")).served < until:
                if process.returncode is not None:
                    break
                # As above.
                await asyncio.sleep(dice.uniform(0.001, 0.01))
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()
        codes_met = {4}
        while codes_met == {4} and kills < 100:
            # Rows whose answer was lost as often as they may be sent.
            kills += 1
            codes_met = {(await run(box, *args)).code}
        assert codes_met == {0}
        assert "is finished" in (await run(box, *args)).out
        async with connect(box) as session:
            found = {a.agent_code: a.balance async for a in session.agents.list()}
            after = await session.points.balance()
            moves = [m async for m in session.points.history() if m.to_code in wanted]
    assert {c: found[c] * 10_000 for c in codes} == {c: wanted[c] for c in codes}
    assert before - after == Decimal(sum(wanted.values())).scaleb(-4)
    assert len(moves) == rows == len({move.reference for move in moves})
    with (tmp_path / "plan.csv.results.csv").open() as file:
        results = [*csv.DictReader(file)]
    assert [int(row["line"]) for row in results] == [*range(2, rows + 2)]
    assert {row["move_id"] for row in results} == {str(m.move_id) for m in moves}


async def test_points_under_fire(tmp_path: Path) -> None:
    """Whatever is lost and whoever is killed: the plan, to the last digit, once."""
    await points_under_fire(500, 3, tmp_path)


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_many_points_under_fire(tmp_path: Path) -> None:
    """The same for ten thousand rows and twenty kills."""
    await points_under_fire(10_000, 20, tmp_path)
