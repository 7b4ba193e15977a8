"""The command line for payments: journals, settling, and following the feed."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import sqlite3
import sys
import termios
from collections.abc import AsyncGenerator
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import pytest

from aio_agentapi import SessionManager, SqliteStore
from aio_agentapi.sandbox import Fault, Sandbox, Switches
from tests.cli import Ran, begin, run
from tests.conftest import TOKEN, connect
from tests.waiting import look_again

# So that settling knows what is absent in less than a second.
_SETTINGS = {
    "feed_interval": 0.2,
    "feed_lag": 0.2,
    "longest_call": 0.5,
}


@attrs.frozen
class Desk:
    """A stand-in, an account "eur" in a configuration file, and a journal."""

    box: Sandbox
    folder: Path

    @property
    def journal(self) -> Path:
        """Where the tests keep it."""
        return self.folder / "payments.db"

    def config(self, top: str = "", account: str = "", **settings: object) -> Path:
        """Write the configuration file."""
        chosen = _SETTINGS | settings
        text = "".join(f"{k} = {json.dumps(v)}\n" for k, v in chosen.items())
        file = self.folder / "config.toml"
        file.write_text(
            f'base_url = "{self.box.base_url}"\n{top}\n[settings]\n{text}'
            f'[accounts.eur]\ntoken_env = "EUR"\n{account}\n'
        )
        return file

    def env(self, **more: str) -> dict[str, str]:
        """Return what every command needs."""
        config = self.folder / "config.toml"
        if not config.exists():
            self.config()
        return {
            "AGENTAPI_CONFIG": str(config),
            "AGENTAPI_ACCOUNT": "eur",
            "EUR": self.box.token("operator"),
            **more,
        }

    async def run(self, *args: str | Path, journal: bool = True) -> Ran:
        """Run a command, with the journal in its environment."""
        more = {"AGENTAPI_JOURNAL": str(self.journal)} if journal else {}
        return await run(None, *args, env=self.env(**more))

    async def begin(self, *args: str | Path) -> asyncio.subprocess.Process:
        """Start a command, with the journal in its environment."""
        more = {"AGENTAPI_JOURNAL": str(self.journal)}
        return await begin(None, *args, env=self.env(**more))

    async def rows(self, *args: str | Path, code: int = 0) -> list[dict[str, Any]]:
        """Run a command, and return its lines of JSON."""
        ran = await self.run(*args, "--json")
        assert (ran.code, ran.err) == (code, ""), ran
        return lines(ran.out)

    async def user(self) -> str:
        """Create a user with a balance of 10."""
        async with connect(self.box) as session:
            user = (await session.users.create("anna")).user_code
            await session.wallets.deposit(user, 10)
        return str(user)

    async def balance(self, user: str) -> Decimal:
        """Return a user's balance."""
        async with connect(self.box) as session:
            return (await session.users.info(int(user))).balance


def lines(text: str) -> list[dict[str, Any]]:
    """Read JSON Lines."""
    return [json.loads(line, parse_float=Decimal) for line in text.splitlines()]


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncGenerator[Desk]:
    """Start a stand-in whose feed may be read again soon."""
    async with Sandbox(Switches(feed_spacing=0.1)) as box:
        yield Desk(box, tmp_path)


# Payments


async def test_a_key_pays_once(desk: Desk) -> None:
    """Whichever command gives it, in all three; without a journal it is refused."""
    user = await desk.user()
    paid = ("wallets", "deposit", user, "5", "--key", "order-1")
    ran = await desk.run(*paid, journal=False)
    assert (ran.code, "--key needs a journal" in ran.err) == (2, True)
    first = (await desk.run(*paid, "--json")).json
    assert first == {"amount": 5, "balance": 15}
    assert first == (await desk.run(*paid, "--json")).json
    ran = await desk.run("wallets", "deposit", user, "6", "--key", "order-1")
    assert (ran.code, "another payment" in ran.err) == (2, True)
    for _ in range(2):
        ran = await desk.run("wallets", "withdraw", user, "3", "--key", "back-1")
        assert (ran.code, ran.err) == (0, "")
    assert await desk.balance(user) == 12
    for _ in range(2):
        ran = await desk.run("wallets", "withdraw-all", user, "--key", "all")
        assert ran.out.split() == ["amount", "12.0000", "balance", "0.0000"]
    assert len(await desk.rows("payments", "list", "--all")) == 3


async def test_where_the_journal_comes_from(desk: Desk) -> None:
    """The option, the environment, the account's table, the file; in this order."""
    user = await desk.user()
    home, others = desk.folder / "home", desk.folder / "others"
    home.mkdir()
    others.mkdir()
    places = {
        "option": desk.folder / "option.db",
        "environment": desk.folder / "environment.db",
        "account": home / "account.db",
        "file": desk.folder / "file.db",
    }
    desk.config('journal = "file.db"', 'journal = "~/account.db"')
    env = desk.env(HOME=str(home))
    named = {"AGENTAPI_JOURNAL": str(places["environment"])}
    pay = ("wallets", "deposit", user, "1", "--key", "a")
    for more, args in (
        (named, ("--journal", places["option"])),
        (named, ()),
        ({}, ()),
    ):
        ran = await run(None, *pay, *args, env=env | more)
        assert (ran.code, ran.err) == (0, "")
        ran = await run(None, "payments", "list", "--all", *args, env=env | more)
        assert (ran.code, "wallets.deposit" in ran.out) == (0, True)
    assert not places["file"].exists()
    # A name without a folder is the same file from everywhere.
    desk.config('journal = "file.db"')
    assert (await run(None, *pay, env=env)).code == 0
    assert [place.exists() for place in places.values()] == [True] * 4
    assert await desk.balance(user) == 14
    desk.config("journal = 5")
    ran = await run(None, *pay, env=env)
    assert (ran.code, "journal: the path" in ran.err) == (2, True)


async def test_a_journal_knows_an_account_by_its_name_and_by_its_token(
    desk: Desk,
) -> None:
    """Whichever an application gives: the keys are the same agent's."""
    user = await desk.user()
    await desk.run("wallets", "deposit", user, "1", "--key", "named")
    unnamed = {"AGENTAPI_JOURNAL": str(desk.journal)}
    pay = ("wallets", "deposit", user, "1", "--key", "unnamed")
    assert (await run(desk.box, *pay, env=unnamed)).code == 0
    token = desk.box.token("operator")
    for name in ("eur", "main", token):
        async with SessionManager(
            desk.box.base_url,
            accounts={"main": token} if name == "main" else {"eur": token},
            store=SqliteStore(desk.journal),
        ) as manager:
            payments = manager.session(name).payments
            found = [await payments.find(k) for k in ("named", "unnamed")]
            assert [i.key for i in found if i is not None] == ["named", "unnamed"]
    assert token.encode() not in desk.journal.read_bytes()


async def test_what_is_open_of_another_account_is_said(desk: Desk) -> None:
    """List, settle and the doctor: whose it is, and an exit code that is not 0."""
    user = await desk.user()
    desk.box.faults.add(Fault("drop_after", "wallet/deposit", times=1))
    assert (await desk.run("wallets", "deposit", user, "1", "--key", "k")).code == 4
    other = {"AGENTAPI_JOURNAL": str(desk.journal)}
    for command in (("payments", "list"), ("payments", "settle")):
        ran = await run(desk.box, *command, name="shop_1", env=other)
        assert (ran.code, ran.out) == (4, "")
        assert "1 open of account 'eur'" in ran.err
        assert "agent 'operator'" in ran.err
        assert desk.box.base_url in ran.err
    ran = await run(desk.box, "doctor", name="shop_1", env=other)
    assert ran.code == 5
    assert "nothing is open; 1 open of 'eur'" in ran.out
    (row,) = await desk.rows("payments", "settle")
    assert row["phase"] == "confirmed"
    ran = await run(desk.box, "payments", "list", name="shop_1", env=other)
    assert (ran.code, ran.out, ran.err) == (0, "", "")


async def test_a_person_says_that_an_account_is_the_same(desk: Desk) -> None:
    """At another address, under another name; what it has is shown."""
    user = await desk.user()
    pay = ("wallets", "deposit", user, "1", "--key", "k")
    assert (await desk.run(*pay)).code == 0
    sql = sqlite3.connect(desk.journal)
    with sql:
        sql.execute("UPDATE links SET value = 'https://old' WHERE kind = 'url'")
    sql.close()
    ran = await desk.run(*pay)
    assert (ran.code, ran.out) == (2, "")
    for said in ("another service", "https://old", desk.box.base_url, "--help"):
        assert said in ran.err
    allow = ("payments", "account", "allow")
    assert (await desk.run(*allow, "eur")).code == 2
    ran = await desk.run(*allow, "usd", "--url", desk.box.base_url)
    assert (ran.code, "has the accounts 'eur'" in ran.err) == (2, True)
    (row,) = await desk.rows(*allow, "eur", "--url", f"{desk.box.base_url}/")
    assert row["urls"].split() == sorted([desk.box.base_url, "https://old"])
    ran = await desk.run(*pay, "--json")
    assert (ran.code, ran.json["balance"]) == (0, 11)
    (row,) = await desk.rows(*allow, "eur", "--name", "main", "--agent", "shop")
    assert (row["names"], row["agent"]) == ("eur main", "shop")
    (row,) = await desk.rows(*allow, "eur", "--token")
    assert [row] == await desk.rows("payments", "account", "list")
    assert await desk.balance(user) == 11


async def test_a_person_says_that_two_accounts_are_one(desk: Desk) -> None:
    """The payments of one go over to the other, and so does what links it."""
    user = await desk.user()
    await desk.run("wallets", "deposit", user, "1", "--key", "a")
    sql = sqlite3.connect(desk.journal)
    with sql:
        sql.execute("INSERT INTO accounts (label) VALUES ('old')")
        sql.execute("INSERT INTO links VALUES ('name', 'old', 'old')")
        sql.execute("UPDATE intents SET account = 'old'")
    sql.close()
    merge = ("payments", "account", "merge")
    assert (await desk.run(*merge, "old", "none")).code == 2
    (row,) = await desk.rows(*merge, "old", "eur")
    assert (row["label"], row["names"]) == ("eur", "eur old")
    ran = await desk.run("wallets", "deposit", user, "1", "--key", "a", "--json")
    assert (ran.code, ran.json["balance"]) == (0, 11)
    assert await desk.balance(user) == 11


async def test_a_lost_payment_that_happened(desk: Desk) -> None:
    """Code 4 names the command that finds out, and that one says that it happened."""
    user = await desk.user()
    await desk.run("wallets", "deposit", user, "1")
    desk.box.faults.add(Fault("drop_after", "wallet/deposit", times=1))
    pay = ("wallets", "deposit", user, "2.5", "--key", "order-1")
    ran = await desk.run(*pay)
    assert (ran.code, ran.out) == (4, "")
    assert "agentapi payments settle 2" in ran.err
    assert len(ran.err.splitlines()) == 2
    (row,) = await desk.rows("payments", "list", code=4)
    assert (row["phase"], row["key"], row["moved"]) == ("unknown", "order-1", None)
    ran = await desk.run("payments", "list")
    assert (ran.code, "order-1" in ran.out) == (4, True)
    # Nobody pays it again meanwhile.
    ran = await desk.run(*pay)
    assert (ran.code, "agentapi payments settle 2" in ran.err) == (4, True)
    (row,) = await desk.rows("payments", "settle", "2")
    assert (row["id"], row["phase"]) == (2, "confirmed")
    assert (row["moved"], row["balance"]) == (Decimal("2.5"), Decimal("13.5"))
    assert row["trans_id"] is not None
    assert (await desk.run("payments", "list")).out == ""
    assert (await desk.run(*pay, "--json")).json["balance"] == Decimal("13.5")
    every = await desk.rows("payments", "list", "--all")
    assert [(r["id"], r["phase"]) for r in every] == [(1, "done"), (2, "confirmed")]
    assert await desk.balance(user) == Decimal("13.5")


async def test_a_lost_payment_that_did_not_happen(desk: Desk) -> None:
    """It is absent, and is paid anew once, however often that is said."""
    user = await desk.user()
    # Others pay this user too: the 10 are of no payment in this journal.
    desk.config(sole_writer=False)
    desk.box.faults.add(Fault("drop_before", "wallet/deposit", times=1))
    assert (await desk.run("wallets", "deposit", user, "2")).code == 4
    ran = await desk.run("payments", "resend", "1")
    assert (ran.code, "is unknown" in ran.err) == (2, True)
    ran = await desk.run("payments", "settle")
    assert (ran.code, " absent " in ran.out) == (0, True)
    for _ in range(2):
        ran = await desk.run("payments", "resend", "1", "--json")
        assert (ran.code, ran.json) == (0, {"amount": 2, "balance": 12})
    every = await desk.rows("payments", "list", "--all")
    phases = [(row["phase"], row["follows"]) for row in every]
    assert phases == [("absent", None), ("done", 1)]
    assert await desk.balance(user) == 12
    assert await desk.rows("payments", "settle") == []


async def test_what_no_payment_explains_is_for_a_person(desk: Desk) -> None:
    """Where the journal should have all: it may be this one, with another amount."""
    user = await desk.user()
    desk.box.faults.add(Fault("drop_before", "wallet/deposit", times=1))
    assert (await desk.run("wallets", "deposit", user, "2")).code == 4
    (row,) = await desk.rows("payments", "settle", "1", code=4)
    assert row["phase"] == "needs_person"
    assert "(10.0000, 0.0000 to 10.0000" in row["note"]


async def test_a_payment_that_is_lost_again(desk: Desk) -> None:
    """Resending ends like a payment: code 4, and the number of the new one."""
    user = await desk.user()
    desk.box.faults.add(Fault("drop_before", "wallet/withdraw", times=2))
    assert (await desk.run("wallets", "withdraw", user, "2")).code == 4
    assert (await desk.run("payments", "settle", "1")).code == 0
    ran = await desk.run("payments", "resend", "1")
    assert (ran.code, "agentapi payments settle 2" in ran.err) == (4, True)


async def test_a_payment_that_needs_a_person(desk: Desk) -> None:
    """Others may have made the row: a person decides, and says how that is known."""
    desk.config(sole_writer=False)
    user = await desk.user()
    desk.box.faults.add(Fault("drop_after", "wallet/deposit", times=2))
    for _ in range(2):
        assert (await desk.run("wallets", "deposit", user, "2")).code == 4
    known = ("--note", "asked the user")
    ran = await desk.run("payments", "decide", "1", "--happened", *known)
    assert (ran.code, "is unknown" in ran.err) == (2, True)
    ran = await desk.run("payments", "settle", "1", "2")
    assert (ran.code, ran.out.count("needs_person")) == (4, 2)
    # It stays so until somebody decides.
    assert (await desk.run("payments", "settle")).code == 4
    for wrong in (known, ("--happened", "--absent", *known), ("--happened",)):
        ran = await desk.run("payments", "decide", "1", *wrong)
        assert (ran.code, ran.out) == (2, "")
    (row,) = await desk.rows("payments", "decide", "1", "--happened", *known)
    assert row["phase"] == "confirmed"
    assert row["note"].endswith("; asked the user")
    ran = await desk.run("payments", "decide", "2", "--absent", *known)
    assert (ran.code, " absent " in ran.out) == (0, True)
    assert await desk.rows("payments", "list") == []


async def test_what_nobody_knows_is_no_number(desk: Desk) -> None:
    """What a person says happened has no balance: null, and not NaN."""
    desk.config(sole_writer=False)
    user = await desk.user()
    desk.box.faults.add(Fault("drop_after", "wallet/withdraw-all", times=1))
    pay = ("wallets", "withdraw-all", user, "--key", "all")
    assert (await desk.run(*pay)).code == 4
    assert (await desk.run("payments", "settle")).code == 4
    ran = await desk.run("payments", "decide", "1", "--happened", "--note", "seen")
    assert ran.code == 0
    ran = await desk.run(*pay, "--json")
    assert (ran.code, ran.json) == (0, {"amount": None, "balance": None})
    assert (await desk.run(*pay)).out.split() == ["amount", "-", "balance", "-"]


async def test_settling_has_a_deadline(desk: Desk) -> None:
    """What is not sure by then stays as it is, with code 4."""
    desk.config(longest_call=3600)
    user = await desk.user()
    desk.box.faults.add(Fault("drop_before", "wallet/deposit", times=1))
    assert (await desk.run("wallets", "deposit", user, "2")).code == 4
    for args in ((), ("1",)):
        (row,) = await desk.rows(
            "payments", "settle", *args, "--deadline", "0.5", code=4
        )
        assert row["phase"] == "unknown"


async def test_settling_tells_that_the_service_is_not_reached(desk: Desk) -> None:
    """In one line, however often it tries."""
    desk.config(timeout=3, attempts=1)
    user = await desk.user()
    desk.box.faults.add(Fault("drop_after", "wallet/deposit", times=1))
    assert (await desk.run("wallets", "deposit", user, "2")).code == 4
    desk.box.faults.add(Fault("html", "game/transaction-id", status=502))
    ran = await desk.run("payments", "settle", "--deadline", "3")
    assert (ran.code, len(ran.err.splitlines())) == (4, 1)
    assert "it is tried again" in ran.err
    desk.box.faults.clear()
    assert (await desk.run("payments", "settle")).code == 0


async def test_a_token_that_is_refused_ends_settling(desk: Desk) -> None:
    """Code 3, for all and for some."""
    user = await desk.user()
    desk.box.faults.add(Fault("drop_after", "wallet/deposit", times=1))
    assert (await desk.run("wallets", "deposit", user, "2")).code == 4
    env = desk.env(EUR=TOKEN, AGENTAPI_JOURNAL=str(desk.journal))
    for args in ((), ("1", "1")):
        ran = await run(None, "payments", "settle", *args, env=env)
        assert (ran.code, "1007" in ran.err) == (3, True)
        assert len(ran.err.splitlines()) == 1


async def test_a_journal_has_to_be_there(desk: Desk) -> None:
    """It is not made by looking into it, and nothing else is taken for one."""
    before = await desk.run("payments", "list", journal=False)
    assert (before.code, "--journal" in before.err) == (2, True)
    for command in (
        ("list",),
        ("list", "--all"),
        ("settle",),
        ("resend", "1"),
        ("decide", "1", "--happened", "--note", "x"),
    ):
        ran = await desk.run("payments", *command)
        assert (ran.code, "no such journal" in ran.err) == (2, True)
    assert [desk.folder / "config.toml"] == list(desk.folder.iterdir())
    desk.journal.write_text("no database\n" * 1000)
    for args in (("payments", "list"), ("wallets", "deposit", "1", "1")):
        ran = await desk.run(*args)
        assert (ran.code, len(ran.err.splitlines())) == (2, 1)
        assert "payments.db" in ran.err


async def test_numbers_that_are_not_in_the_journal(desk: Desk) -> None:
    """Nothing is settled, resent or decided; code 2."""
    user = await desk.user()
    desk.box.faults.add(Fault("drop_after", "wallet/deposit", times=1))
    assert (await desk.run("wallets", "deposit", user, "2")).code == 4
    for args in (
        ("settle", "1", "7"),
        ("resend", "7"),
        ("decide", "7", "--absent", "--note", "x"),
    ):
        ran = await desk.run("payments", *args)
        assert (ran.code, "no payment 7" in ran.err) == (2, True)
    assert (await desk.run("payments", "settle", str(2**64))).code == 2
    (row,) = await desk.rows("payments", "list", code=4)
    assert row["phase"] == "unknown"


async def test_the_log_of_the_library_is_not_shown(desk: Desk) -> None:
    """Without a journal a payment says nothing but what moved, or what to look at."""
    user = await desk.user()
    ran = await desk.run("wallets", "deposit", user, "1", journal=False)
    assert (ran.code, ran.err) == (0, "")
    desk.box.faults.add(Fault("drop_after", "wallet/deposit", times=1))
    ran = await desk.run("wallets", "deposit", user, "1", journal=False)
    assert (ran.code, len(ran.err.splitlines())) == (4, 2)
    assert "agentapi users info" in ran.err
    assert "payments settle" not in ran.err


@pytest.mark.process
async def test_an_interrupted_payment_is_in_the_journal(desk: Desk) -> None:
    """Code 130, and a line that says where to look; the journal knows its end."""
    user = await desk.user()
    # So that there is a journal to look into.
    await desk.run("wallets", "deposit", user, "1")
    desk.box.faults.add(Fault("hold", "wallet/deposit"))
    process = await desk.begin("wallets", "deposit", user, "1")
    store = SqliteStore(desk.journal)
    while len(await store.intents("eur")) < 2:
        await look_again()
    await store.aclose()
    process.send_signal(signal.SIGINT)
    desk.box.faults.clear()
    out, err = await process.communicate()
    assert (process.returncode, out) == (130, b"")
    assert b"agentapi payments list" in err
    _, row = await desk.rows("payments", "list", "--all")
    moved = {"confirmed": 12, "not_sent": 11}
    assert await desk.balance(user) == moved[row["phase"]]


APPLICATION = """
import asyncio, sys
from aio_agentapi import SessionManager, SqliteStore
from aio_agentapi.errors import OutcomeUnknownError

async def main():
    url, token, path, user = sys.argv[1:]
    accounts = {"eur": token}
    async with SessionManager(url, accounts=accounts, store=SqliteStore(path)) as m:
        session = m.session("eur")
        while await asyncio.to_thread(sys.stdin.readline):
            try:
                moved = await session.wallets.deposit(int(user), 1)
                print("paid", flush=True)
            except OutcomeUnknownError as error:
                print("lost", error.intent, flush=True)

asyncio.run(main())
"""


@pytest.mark.process
async def test_an_application_goes_on_meanwhile(desk: Desk) -> None:
    """It holds the journal open, and pays; commands look into it, and settle."""
    user = await desk.user()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", APPLICATION, desk.box.base_url),
        *(desk.box.token("operator"), desk.journal, user),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )

    async def pay() -> str:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"\n")
        return (await process.stdout.readline()).decode().strip()

    assert await pay() == "paid"
    # While it pays as fast as it can.
    enough = asyncio.Event()

    async def often() -> None:
        while not enough.is_set():
            assert await pay() == "paid"

    paying = asyncio.create_task(often())
    seen = 0
    for _ in range(3):
        before = seen
        while seen == before:
            seen = len(await desk.rows("payments", "list", "--all"))
        assert seen > before
    enough.set()
    await paying

    desk.box.faults.add(Fault("drop_after", "wallet/deposit", times=1))
    lost = (await pay()).removeprefix("lost ")
    (row,) = await desk.rows("payments", "list", code=4)
    assert (str(row["id"]), row["phase"]) == (lost, "unknown")
    assert await pay() == "paid"
    (row,) = await desk.rows("payments", "settle", lost)
    assert row["phase"] == "confirmed"
    assert await pay() == "paid"

    # What it leaves behind when it dies is unknown.
    desk.box.faults.add(Fault("hold", "wallet/deposit"))
    count = len(await desk.rows("payments", "list", "--all"))
    left = asyncio.create_task(pay())
    while len(every := await desk.rows("payments", "list", "--all")) == count:
        await look_again()
    assert every[-1]["phase"] == "sent"
    ran = await desk.run("payments", "settle", str(every[-1]["id"]))
    assert (ran.code, " sent " in ran.out) == (4, True)
    process.kill()
    assert await left == ""
    await process.wait()
    (row,) = await desk.rows("payments", "list", code=4)
    assert (row["id"], row["phase"]) == (every[-1]["id"], "unknown")


async def test_looking_into_a_journal_needs_no_service(desk: Desk) -> None:
    """Neither does a decision."""
    user = await desk.user()
    await desk.run("wallets", "deposit", user, "1")
    config = desk.config()
    text = config.read_text().replace(desk.box.base_url, "http://127.0.0.1:9")
    config.write_text(text)
    ran = await desk.run("payments", "list")
    assert (ran.code, "another service" in ran.err) == (2, True)
    more = ("--url", "http://127.0.0.1:9")
    await desk.rows("payments", "account", "allow", "eur", *more)
    (row,) = await desk.rows("payments", "list", "--all")
    assert row["phase"] == "done"
    assert await desk.rows("payments", "list") == []
    ran = await desk.run("payments", "decide", "1", "--absent", "--note", "x")
    assert (ran.code, "is done" in ran.err) == (2, True)


# Following the feed


@pytest.fixture
async def user(desk: Desk) -> str:
    """Create a user, whose first row of the feed is his deposit."""
    return await desk.user()


async def play(desk: Desk, user: str, rounds: int) -> None:
    """Play rounds, each of two rows, in which nothing is won or lost."""
    for _ in range(rounds):
        desk.box.play("operator", int(user), 1, 1)


async def read(process: asyncio.subprocess.Process, count: int) -> list[dict[str, Any]]:
    """Wait for so many rows."""
    assert process.stdout is not None
    return [
        json.loads(await process.stdout.readline(), parse_float=Decimal)
        for _ in range(count)
    ]


async def wait_for(file: Path, text: str) -> None:
    """Wait until a file says so."""
    while not (file.exists() and file.read_text() == text):
        await look_again()


@pytest.mark.process
@pytest.mark.parametrize(
    ("early", "number"),
    [("busy", signal.SIGINT), ("empty", signal.SIGTERM), ("empty", signal.SIGHUP)],
)
async def test_following_the_feed(
    desk: Desk, user: str, early: Any, number: signal.Signals
) -> None:
    """All rows, each once, as "since" gives them, until it is interrupted."""
    desk.box.switches = Switches(feed_spacing=0.1, early_feed=early)
    await play(desk, user, 2)
    process = await desk.begin("transactions", "follow")
    rows = await read(process, 5)
    for _ in range(2):
        await play(desk, user, 1)
        rows += await read(process, 2)
    process.send_signal(number)
    out, err = await process.communicate()
    assert (process.returncode, out) == (130, b"")
    assert err == b"agentapi: interrupted\n"
    desk.box.switches = Switches(feed_spacing=0)
    assert rows == await desk.rows("transactions", "since", "0")


@pytest.mark.process
async def test_a_kill_leaves_no_row_out(desk: Desk, user: str) -> None:
    """Whenever it falls: what the cursor has not is written again, line by line."""
    cursor = desk.folder / "cursor"
    playing = asyncio.create_task(play(desk, user, 600))
    runs: list[list[int]] = []
    for count in (1, 70, 300):
        process = await desk.begin("transactions", "follow", "--cursor", cursor)
        found = await read(process, count)
        process.kill()
        out, _ = await process.communicate()
        runs += [[row["trans_id"] for row in [*found, *lines(out.decode())]]]
    await playing
    async with connect(desk.box, feed_interval=0.1) as session:
        every = [row.trans_id async for row in session.transactions.since(0)]
    process = await desk.begin("transactions", "follow", "--cursor", cursor)
    last: list[int] = []
    while last[-1:] != every[-1:]:
        last += [row["trans_id"] for row in await read(process, 1)]
    process.send_signal(signal.SIGTERM)
    await process.communicate()
    runs += [last]
    assert every == sorted({number for run in runs for number in run})
    for ids in runs:
        # In one run each comes once, and none is left out.
        start = every.index(ids[0])
        assert every[start : start + len(ids)] == ids
    assert cursor.read_text() == f"{every[-1]}\n"


@pytest.mark.process
async def test_the_cursor_follows_soon(desk: Desk, user: str) -> None:
    """When no more rows come, and not only when it ends."""
    cursor = desk.folder / "cursor"
    process = await desk.begin("transactions", "follow", "--cursor", cursor)
    (row,) = await read(process, 1)
    await wait_for(cursor, f"{row['trans_id']}\n")
    await play(desk, user, 3)
    *_, row = await read(process, 6)
    await wait_for(cursor, f"{row['trans_id']}\n")
    process.send_signal(signal.SIGTERM)
    assert (await process.communicate())[0] == b""
    assert {"config.toml", "cursor"} == {f.name for f in desk.folder.iterdir()}


@pytest.mark.process
async def test_the_cursor_waits_for_the_rows(desk: Desk, user: str) -> None:
    """While nobody takes them it is not written; and an interrupt is heard."""
    cursor = desk.folder / "cursor"
    await play(desk, user, 300)
    there, here = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aio_agentapi.cli"),
        *("transactions", "follow", "--cursor", cursor),
        env=dict(os.environ) | desk.env(),
        stdout=here,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(here)
    full = fcntl.fcntl(there, fcntl.F_GETPIPE_SZ) - 2 * 4096
    while _waiting(there) < full:
        await look_again()
    assert not cursor.exists()
    process.send_signal(signal.SIGTERM)
    await process.communicate()
    assert (process.returncode, cursor.exists()) == (130, False)
    with os.fdopen(there) as file:
        rows = lines(file.read())
    assert 0 < len(rows) < 601


def _waiting(pipe: int) -> int:
    """Return how many bytes nobody has read yet."""
    count = fcntl.ioctl(pipe, termios.FIONREAD, bytes(4))
    return int.from_bytes(count, sys.byteorder)


@pytest.mark.process
async def test_following_into_a_file(desk: Desk, user: str) -> None:
    """Two runs make one file in which each row stands once."""
    cursor, file = desk.folder / "cursor", desk.folder / "rows.jsonl"
    for _ in range(2):
        await play(desk, user, 300)
        async with connect(desk.box, feed_interval=0.1) as session:
            every = [row.trans_id async for row in session.transactions.since(0)]
        with file.open("ab") as out:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "aio_agentapi.cli"),
                *("transactions", "follow", "--cursor", cursor),
                env=dict(os.environ) | desk.env(),
                stdout=out,
                stderr=asyncio.subprocess.PIPE,
            )
        await wait_for(cursor, f"{every[-1]}\n")
        process.send_signal(signal.SIGINT)
        await process.communicate()
        assert every == [row["trans_id"] for row in lines(file.read_text())]


@pytest.mark.process
async def test_where_following_begins(desk: Desk, user: str) -> None:
    """Behind AFTER, or the row in the file; not both, and no row that is none."""
    await play(desk, user, 2)
    cursor = desk.folder / "cursor"
    args = ("transactions", "follow", "3", "--cursor", cursor)
    process = await desk.begin(*args)
    assert [row["trans_id"] for row in await read(process, 2)] == [4, 5]
    await wait_for(cursor, "5\n")
    process.send_signal(signal.SIGTERM)
    await process.communicate()
    ran = await desk.run(*args)
    assert (ran.code, "says where to begin" in ran.err) == (2, True)
    for text in ("", "x\n", "-1\n", "1\n2\n", "9" * 30):
        cursor.write_text(text)
        ran = await desk.run("transactions", "follow", "--cursor", cursor)
        assert (ran.code, "no file that --cursor" in ran.err) == (2, True)
    nowhere = desk.folder / "none" / "cursor"
    ran = await desk.run("transactions", "follow", "--cursor", nowhere)
    assert (ran.code, "none/cursor" in ran.err) == (2, True)
    assert (await desk.run("transactions", "follow", "--", "-1")).code == 2


@pytest.mark.process
async def test_a_reader_that_has_had_enough(desk: Desk, user: str) -> None:
    """As with "| head -1": no error, and no cursor of what nobody read."""
    cursor = desk.folder / "cursor"
    process = await desk.begin("transactions", "follow", "--cursor", cursor)
    await read(process, 1)
    await wait_for(cursor, "1\n")
    process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]  # the other end of the pipe
    await play(desk, user, 1)
    _, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert cursor.read_text() == "1\n"


@pytest.mark.process
@pytest.mark.parametrize(
    ("end", "said"),
    [("> /dev/full", b"No space left"), (">&-", b"standard output is closed")],
)
@pytest.mark.usefixtures("user")
async def test_rows_that_have_nowhere_to_go(desk: Desk, end: str, said: bytes) -> None:
    """Code 2, and no cursor of what was not written."""
    cursor = desk.folder / "cursor"
    command = f"transactions follow --cursor {cursor} {end}"
    process = await asyncio.create_subprocess_shell(
        f"{sys.executable} -m aio_agentapi.cli {command}",
        env=dict(os.environ) | desk.env(),
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await process.communicate()
    assert (process.returncode, len(err.splitlines())) == (2, 1)
    assert said in err
    assert not cursor.exists()


@pytest.mark.process
async def test_rows_that_are_gone_end_it(desk: Desk) -> None:
    """Code 1, with what is missing and how to go on."""
    async with connect(desk.box, "shop_1") as shop:
        user = (await shop.users.create("berta")).user_code
        for _ in range(3):
            await shop.wallets.deposit(user, 1)
    await desk.user()
    cursor = desk.folder / "cursor"
    cursor.write_text("2\n")
    for args, way in (
        (("2",), "follow 0 goes on"),
        (("--cursor", cursor), f"follow, with {cursor} removed, goes on"),
    ):
        ran = await desk.run("transactions", "follow", *args)
        assert (ran.code, ran.out) == (1, "")
        assert "rows after 2 are gone" in ran.err
        assert "after 2: it is 4." in ran.err
        assert way in ran.err
    assert cursor.read_text() == "2\n"
    cursor.unlink()
    process = await desk.begin("transactions", "follow", "--cursor", cursor)
    assert (await read(process, 1))[0]["trans_id"] == 4
    process.send_signal(signal.SIGTERM)
    await process.communicate()


@pytest.mark.process
async def test_a_service_that_comes_back(tmp_path: Path) -> None:
    """It is said once that it is not reached, and the rows come when it is."""
    db = tmp_path / "box.db"
    switches = Switches(feed_spacing=0.1)
    async with Sandbox(switches, db=db) as box:
        port = int(box.base_url.rpartition(":")[2])
        async with connect(box) as session:
            user = (await session.users.create("anna")).user_code
            await session.wallets.deposit(user, 10)
        token = box.token("operator")
    config = tmp_path / "config.toml"
    config.write_text("[settings]\nfeed_interval = 0.2\nfeed_lag = 0.2\nattempts = 1\n")
    env = {"AGENTAPI_BASE_URL": f"http://127.0.0.1:{port}", "AGENTAPI_TOKEN": token}
    cursor = tmp_path / "cursor"
    args = ("--config", config, "transactions", "follow", "--cursor", cursor)
    process = await begin(None, *args, env=env)
    assert process.stderr is not None
    told = [await process.stderr.readline()]
    async with Sandbox(switches, db=db, port=port) as box:
        (row,) = await read(process, 1)
        await wait_for(cursor, f"{row['trans_id']}\n")
    told += [await process.stderr.readline()]
    async with Sandbox(switches, db=db, port=port) as box, connect(box) as session:
        await session.wallets.deposit(user, 1)
        (second,) = await read(process, 1)
    assert second["trans_id"] > row["trans_id"]
    process.send_signal(signal.SIGTERM)
    _, err = await process.communicate()
    assert all(b"it is tried again" in line for line in told)
    assert err in {b"agentapi: interrupted\n", told[1] + b"agentapi: interrupted\n"}


async def test_a_token_that_is_refused_ends_following(desk: Desk) -> None:
    """Code 3: trying again would not help."""
    ran = await run(None, "transactions", "follow", env=desk.env(EUR=TOKEN))
    assert (ran.code, "1007" in ran.err) == (3, True)
