"""Whose payments they are: tokens, names, paths and services change."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import pytest

from aio_agentapi import (
    Phase,
    Role,
    Secret,
    Session,
    SessionManager,
    Settings,
    SqliteStore,
    _accounts,
)
from aio_agentapi._identity import Account
from aio_agentapi._journal import Verdict
from aio_agentapi.errors import (
    AgentAPIError,
    NotSentError,
    OutcomeUnknownError,
    UsageError,
)
from aio_agentapi.sandbox import Sandbox, SandboxProcess, Switches
from tests.waiting import look_again

SETTINGS: Final = Settings(
    timeout=10.0, longest_call=0.3, feed_interval=0.05, feed_lag=0.05
)
SWITCHES: Final = Switches(feed_spacing=0.0)


@attrs.define
class World:
    """A service, and a journal that is reached by several paths."""

    box: Sandbox
    folder: Path

    @property
    def path(self) -> Path:
        """Where the journal is."""
        return self.folder / "real" / "j.db"

    def token(self) -> str:
        """Return the shop's token, as it is now."""
        return self.box.token("shop_1")

    async def reissue(self) -> str:
        """Give the shop another token; return it."""
        async with SessionManager(self.box.base_url) as manager:
            session = manager.session(self.box.token("operator"))
            await session.agents.reissue_token(self.box.account("shop_1").code)
        return self.token()

    @asynccontextmanager
    async def session(
        self,
        token: str,
        *,
        name: str | None = "eur",
        url: str | None = None,
        path: Path | None = None,
    ) -> AsyncGenerator[Session]:
        """Open a session of a token, with the journal."""
        async with SessionManager(
            url or self.box.base_url,
            accounts={} if name is None else {name: token},
            settings=SETTINGS,
            store=SqliteStore(path or self.path),
        ) as manager:
            yield manager.session(token if name is None else name)

    async def pay(self, token: str, key: str, amount: int = 10, **how: Any) -> str:
        """Pay by a key; return how that ended, and how often it was executed."""
        before = self.box.executed["wallet/deposit"]
        async with self.session(token, **how) as session:
            try:
                await session.wallets.deposit(1, amount, key=key)
                end = "paid"
            except AgentAPIError as error:
                assert error.happened == "no" or isinstance(error, OutcomeUnknownError)
                end = type(error).__name__
        return f"{end} {self.box.executed['wallet/deposit'] - before}"


@asynccontextmanager
async def world(folder: Path, **switches: Any) -> AsyncGenerator[World]:
    """Start a service with a user, and make the folder of its journal."""
    async with Sandbox(attrs.evolve(SWITCHES, **switches)) as box:
        async with SessionManager(box.base_url) as manager:
            user = await manager.session(box.token("shop_1")).users.create("anna")
            assert user.user_code == 1
        (folder / "real").mkdir()
        (folder / "file.db").symlink_to(folder / "real" / "j.db")
        (folder / "linked").symlink_to(folder / "real")
        yield World(box, folder)


TOKENS: Final = ("same", "upper", "reissued")
NAMES: Final = ("eur", "main", None)
PATHS: Final = ("real/j.db", "file.db", "linked/j.db")


@pytest.mark.parametrize("told_codes", [True, False])
@pytest.mark.parametrize("begun_as", ["eur", None])
async def test_a_key_pays_once_whatever_changes(
    tmp_path: Path, begun_as: str | None, *, told_codes: bool
) -> None:
    """Each combination of token, name, spelling, path to the file and base URL."""
    async with world(tmp_path, told_codes=told_codes) as here:
        url = here.box.base_url
        spellings: list[Callable[[str], str]] = [
            lambda url: url,
            lambda url: url.replace("http:", "HTTP:") + "/",
        ]
        assert await here.pay(here.token(), "k", name=begun_as) == "paid 1"
        first = here.token()
        for which in TOKENS:
            token = first if which == "same" else first.upper()
            if which == "reissued":
                token = await here.reissue()
            for name, path, spell in itertools.product(NAMES, PATHS, spellings):
                how: dict[str, Any] = {
                    "name": name,
                    "path": tmp_path / path,
                    "url": spell(url),
                }
                assert await here.pay(token, "k", **how) == "paid 0", (which, how)
        store = SqliteStore(here.path)
        (account,) = await store.accounts()
        await store.aclose()
        assert account.names == {"eur", "main"}
        assert len(account.tokens) == 2
        assert account.urls == {url}


async def test_a_key_is_not_answered_from_another_service(tmp_path: Path) -> None:
    """Staging and production under one name: refused, with both sides named."""
    async with world(tmp_path) as here, Sandbox(SWITCHES) as production:
        async with SessionManager(production.base_url) as manager:
            await manager.session(production.token("shop_1")).users.create("anna")
        assert await here.pay(here.token(), "k") == "paid 1"
        there: dict[str, Any] = {"url": production.base_url}
        for token in (production.token("shop_1"), here.token()):
            async with here.session(token, **there) as session:
                with pytest.raises(UsageError, match="another service") as caught:
                    await session.wallets.deposit(1, 10, key="k")
                assert caught.value.happened == "no"
                for side in (here.box.base_url, production.base_url):
                    assert side in str(caught.value)
        assert "wallet/deposit" not in production.received
        # With a name and a token of its own it is an account of its own.
        async with here.session(
            production.token("shop_1"), name="production", **there
        ) as session:
            await session.wallets.deposit(1, 10, key="k")
        assert production.executed["wallet/deposit"] == 1


async def test_a_name_with_another_agents_token_is_refused(tmp_path: Path) -> None:
    """A slip in a configuration: nothing is sent, and nothing is answered."""
    async with world(tmp_path) as here:
        assert await here.pay(here.token(), "k") == "paid 1"
        other = here.box.token("shop_2")
        async with here.session(other) as session:
            for key in ("k", "new"):
                with pytest.raises(UsageError, match="another agent") as caught:
                    await session.wallets.deposit(1, 10, key=key)
                assert "'shop_1'" in str(caught.value)
                assert "'shop_2'" in str(caught.value)
        # And a name of one account with the token of another.
        async with here.session(other, name="two") as session:
            await session.users.create("bob")
            with pytest.raises(AgentAPIError):
                await session.wallets.deposit(1, 10, key="k")
        async with here.session(here.token(), name="two") as session:
            with pytest.raises(UsageError, match="two accounts"):
                await session.wallets.deposit(1, 10, key="k")
        assert here.box.executed["wallet/deposit"] == 1


async def test_no_verdict_comes_from_another_feed(tmp_path: Path) -> None:
    """A session that only settles, at another service or agent, says nothing."""
    async with world(tmp_path) as here, Sandbox(SWITCHES) as production:
        here.box.faults.drop_after("wallet/deposit", times=1)
        assert await here.pay(here.token(), "k") == "OutcomeUnknownError 1"
        there: dict[str, Any] = {"url": production.base_url}
        for token, how in (
            (production.token("shop_1"), there),
            (here.token(), there),
            (here.box.token("shop_2"), {}),
        ):
            async with here.session(token, **how) as session:
                with pytest.raises(UsageError, match="whose payments these are"):
                    await session.payments.settle_all()
        async with here.session(here.token()) as session:
            (settled,) = await session.payments.settle_all()
            assert settled.phase is Phase.CONFIRMED
        assert not production.received.get("game/transaction-id")


async def test_without_a_number_a_user_tells_another_agent(tmp_path: Path) -> None:
    """Two shops of one name, under two operators of an older deployment."""
    async with world(tmp_path, told_codes=False) as here:
        assert await here.pay(here.token(), "k") == "paid 1"
        async with SessionManager(here.box.base_url) as manager:
            broker = manager.session(here.box.token("broker"))
            operator = await broker.agents.create("operator_2", role=Role.OPERATOR)
            shop = await manager.session(operator.token).agents.create("shop_1")
            await broker.points.transfer(operator.agent.agent_code, 100)
            await manager.session(operator.token).points.transfer(
                shop.agent.agent_code, 100
            )
            other = shop.token.reveal()
        async with here.session(other) as session:
            with pytest.raises(UsageError, match="another agent"):
                await session.wallets.deposit(1, 10, key="k")
        async with here.session(other, name="two") as session:
            user = (await session.users.create("bob")).user_code
            await session.wallets.deposit(user, 10, key="k")
        assert here.box.executed["wallet/deposit"] == 2


async def test_a_service_that_cannot_be_asked_is_paid_nothing(tmp_path: Path) -> None:
    """The first payment of a token waits for it; a known one asks nothing."""
    async with world(tmp_path) as here:
        async with here.session(here.token()) as session:
            here.box.faults.drop_before("agent/info")
            with pytest.raises(NotSentError, match="did not say whose") as caught:
                await session.wallets.deposit(1, 10, key="k")
            assert (caught.value.happened, caught.value.attempts) == ("no", 0)
            assert caught.value.operation == "wallets.deposit"
            here.box.faults.clear()
            here.box.faults.code(1007, "agent/info", times=1)
            with pytest.raises(AgentAPIError, match="1007"):
                await session.wallets.deposit(1, 10, key="k")
            assert "wallet/deposit" not in here.box.received
            await session.wallets.deposit(1, 10, key="k")
        asked = here.box.received["agent/info"]
        here.box.faults.drop_before("agent/info")
        assert await here.pay(here.token(), "k") == "paid 0"
        assert await here.pay(here.token(), "k2") == "paid 1"
        assert here.box.received["agent/info"] == asked


async def test_calls_at_once_ask_once(tmp_path: Path) -> None:
    """And each session but the first of a token asks nothing."""
    async with world(tmp_path) as here, AsyncExitStack() as stack:
        session = await stack.enter_async_context(here.session(here.token()))
        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(session.wallets.deposit(1, 1, key=f"k{number}"))
        assert here.box.received["agent/info"] == 1


async def test_what_is_open_of_others_is_said_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Settling passes nothing over in silence that no account of the manager is."""
    async with world(tmp_path) as here:
        here.box.faults.drop_after("wallet/deposit", times=1)
        assert await here.pay(here.token(), "k") == "OutcomeUnknownError 1"
        other = here.box.token("shop_2")
        async with here.session(other, name="two") as session:
            with caplog.at_level(logging.WARNING, "aio_agentapi.payments"):
                for _ in range(2):
                    assert await session.payments.settle_all() == []
        told = [r.message for r in caplog.records if "'eur'" in r.message]
        assert len(told) == 1
        assert "1 payment" in told[0]


# Two paths, two programs.


PROGRAM: Final = """
import asyncio, json, sys
from aio_agentapi import SessionManager, Settings, SqliteStore
from aio_agentapi.errors import AgentAPIError

async def main(url, token, path, *keys):
    settings = Settings(longest_call=0.3, feed_interval=0.05, deadline=20)
    async with SessionManager(url, accounts={"eur": token}, settings=settings,
                              store=SqliteStore(path)) as manager:
        for key in keys:
            try:
                moved = await manager.session("eur").wallets.deposit(1, 10, key=key)
                print("paid", moved.amount)
            except AgentAPIError as error:
                print(type(error).__name__, error)

asyncio.run(main(*sys.argv[1:]))
"""


def run(*args: object, env: Mapping[str, str] | None = None) -> str:
    """Run the program; return what it says."""
    ran = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", PROGRAM, *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **(env or {})},
    )
    assert not ran.returncode, ran.stderr
    return ran.stdout


@pytest.mark.process
@pytest.mark.parametrize("wrong", ["-400d", "+40d", "+4000d"])
async def test_a_wrong_clock_pays_no_key_again(tmp_path: Path, wrong: str) -> None:
    """A machine that boots in the past, or a clock that once was far ahead."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    assert library is not None, "faketime is missing: install it as root"
    fake = {
        "LD_PRELOAD": str(library),
        "FAKETIME": wrong,
        "DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    async with SandboxProcess(SWITCHES) as box:
        token = box.tokens["shop_1"]
        async with SessionManager(box.base_url) as manager:
            await manager.session(token).users.create("anna")
        place = (box.base_url, token, tmp_path / "j.db")
        assert "paid 10" in run(*place, "k1", env=fake)
        assert "paid 10" in run(*place, "k2")
        assert "paid 10" in run(*place, "k3", env=fake)
        keys = ("k1", "k2", "k3")
        for env in ({}, fake):
            assert run(*place, *keys, env=env) == "paid 10.0000\n" * 3
        async with SessionManager(box.base_url) as manager:
            user = await manager.session(token).users.info(1)
        assert user.balance == 30


async def test_two_programs_by_two_paths(tmp_path: Path) -> None:
    """One of them waits for its permit: the other neither settles nor pays it."""
    async with world(tmp_path) as here:
        here.box.faults.hold("wallet/deposit")
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            one = await stack.enter_async_context(here.session(here.token()))
            paying = group.create_task(one.wallets.deposit(1, 10, key="k"))
            while not here.box.received.get("wallet/deposit"):
                await look_again()
            two = await stack.enter_async_context(
                here.session(here.token(), path=tmp_path / "file.db")
            )
            assert await two.payments.unknown() == []
            assert await two.payments.settle_all() == []
            with pytest.raises(AgentAPIError, match="Nothing was sent"):
                await two.with_options(deadline=0.2).wallets.deposit(1, 10, key="k")
            here.box.faults.clear()
            assert (await paying).amount == 10
            assert (await two.wallets.deposit(1, 10, key="k")).amount == 10
        assert here.box.executed["wallet/deposit"] == 1


async def test_a_name_is_never_another_accounts_label(tmp_path: Path) -> None:
    """Sixteen digits that are another token's hash: it is an account of its own."""
    async with world(tmp_path) as here:
        digest = Secret(here.token()).digest
        assert await here.pay(here.token(), "k", name=None) == "paid 1"
        async with here.session(here.box.token("shop_2"), name=digest) as other:
            user = (await other.users.create("bob")).user_code
            await other.wallets.deposit(user, 10, key="own")
            assert await other.payments.find("k") is None
        assert await here.pay(here.token(), "k", name=None) == "paid 0"
        store = SqliteStore(here.path)
        labels = [account.label for account in await store.accounts()]
        await store.aclose()
        assert labels == [digest, f"{digest} (2)"]


async def test_a_program_that_runs_goes_on_after_a_merge(tmp_path: Path) -> None:
    """Its account is called otherwise by now: keys and open payments are there."""
    async with world(tmp_path) as here:
        async with here.session(here.token(), name=None) as session:
            await session.wallets.deposit(1, 10, key="k")
            store = SqliteStore(here.path)
            account = attrs.evolve((await store.accounts())[0], label="eur")
            empty = attrs.evolve(account, tokens=frozenset(), names=frozenset({"eur"}))
            await store._hand_over(lambda books: _accounts.keep(books.sql, empty))
            await store.merge(Secret(here.token()).digest, "eur")
            assert (await session.wallets.deposit(1, 10, key="k")).amount == 10
            here.box.faults.drop_after("wallet/deposit", times=1)
            with pytest.raises(OutcomeUnknownError):
                await session.wallets.deposit(1, 7, key="lost")
            (lost,) = await session.payments.unknown()
            assert lost.account == "eur"
            assert (await session.payments.settle(lost)).phase is Phase.CONFIRMED
            await store.aclose()
        assert await here.pay(here.token(), "k") == "paid 0"
        assert await here.pay(here.token(), "lost", amount=7) == "paid 0"


async def test_nothing_is_looked_up_or_decided_by_a_name_alone(tmp_path: Path) -> None:
    """Staging under production's name gets none of its payments, and decides none."""
    async with world(tmp_path) as here, Sandbox(SWITCHES) as staging:
        here.box.faults.drop_after("wallet/deposit", times=1)
        assert await here.pay(here.token(), "k") == "OutcomeUnknownError 1"
        store = SqliteStore(here.path)
        verdict = Verdict(id=1, phase=Phase.NEEDS_PERSON, note="asked")
        await store.write([verdict], lambda: 0.0)
        token = staging.token("shop_1")
        async with here.session(token, url=staging.base_url) as session:
            payments = session.payments
            for call in (
                payments.find("k"),
                payments.unknown(),
                payments.settle(1),
                payments.decide(1, False, "not here"),
            ):
                with pytest.raises(UsageError, match="another service"):
                    await call
        # Another agent of the same service, under its name.
        async with here.session(here.box.token("shop_2")) as session:
            with pytest.raises(UsageError, match="another agent"):
                await session.payments.decide(1, False, "not here")
        (kept,) = await store.intents()
        await store.aclose()
        assert kept.phase is Phase.NEEDS_PERSON


@pytest.mark.parametrize("name", ["", "a\0b", "a\nb", "\ud800"])
def test_a_name_that_cannot_be_is_refused(name: str) -> None:
    """Before anything is written."""
    with pytest.raises(UsageError, match="printable"):
        SessionManager("https://x.example", accounts={name: "t" * 36})


async def test_an_account_that_is_refused_keeps_no_other_from_being_settled(
    tmp_path: Path,
) -> None:
    """By hand and in the background, beside a name that is at another service."""
    async with world(tmp_path) as here:
        here.box.faults.drop_after("wallet/deposit", times=2)
        assert await here.pay(here.token(), "a") == "OutcomeUnknownError 1"
        assert await here.pay(here.token(), "b") == "OutcomeUnknownError 1"
        store = SqliteStore(here.path)
        elsewhere = Account(
            label="old", urls=frozenset({"https://x"}), names=frozenset({"old"})
        )
        await store._hand_over(lambda books: _accounts.keep(books.sql, elsewhere))
        accounts = {"eur": here.token(), "old": here.box.token("shop_2")}
        manager = SessionManager(
            here.box.base_url,
            accounts=accounts,
            settings=SETTINGS,
            store=SqliteStore(here.path),
        )
        async with manager:
            settled = await manager.session("eur").payments.settle_all()
            assert {i.phase for i in settled} == {Phase.CONFIRMED}
        here.box.faults.drop_after("wallet/deposit", times=1)
        assert await here.pay(here.token(), "c") == "OutcomeUnknownError 1"
        manager = SessionManager(
            here.box.base_url,
            accounts=accounts,
            settings=attrs.evolve(SETTINGS, resolve_every=0.05),
            store=SqliteStore(here.path),
        )
        async with manager, asyncio.timeout(30):
            while (await store.intents())[-1].phase is not Phase.CONFIRMED:
                await look_again()
        await store.aclose()
