"""Verdicts that may be said, and who says them: rounding, attempts that run, clocks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Collection
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import attrs
import pytest

from aio_agentapi import (
    Intent,
    MemoryStore,
    Phase,
    SessionManager,
    Settings,
    SqliteStore,
)
from aio_agentapi._journal import Clock, Verdict
from aio_agentapi._settle import Settler
from aio_agentapi.errors import AgentAPIError, AmountError, OutcomeUnknownError
from aio_agentapi.sandbox import Sandbox
from tests.integration.test_payments import QUICK, SWITCHES, Scene, scene, until
from tests.waiting import look_again

PAY: Final = "wallet/deposit"


# Rounding.


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("decimals", [2, 0])
async def test_a_rounded_amount_is_never_absent(decimals: Any, *, lost: bool) -> None:
    """The response or the row tells another one: the key stays closed, for a person."""
    switches = attrs.evolve(SWITCHES, decimals=decimals)
    async with scene(switches) as here:
        wallets, payments = here.session.wallets, here.session.payments
        if lost:
            here.box.faults.html(PAY, times=1)
        with pytest.raises(OutcomeUnknownError):
            await wallets.deposit(here.user, "10.0055", key="k")
        moved = Decimal("10.01") if decimals == 2 else Decimal(10)
        assert here.balance == moved
        (settled,) = await payments.settle_all()
        assert settled.phase is Phase.NEEDS_PERSON
        assert settled.note is not None
        assert f"({moved:.4f}, 0.0000 to {moved:.4f}" in settled.note
        with pytest.raises(OutcomeUnknownError):
            await wallets.deposit(here.user, "10.0055", key="k")
        assert here.balance == moved


async def test_amounts_that_would_be_rounded_are_refused() -> None:
    """Before anything is written or sent, by deposits, withdrawals and points."""
    switches = attrs.evolve(SWITCHES, decimals=2)
    async with scene(switches, amount_decimals=2) as here:
        shop = here.box.account("shop_1").code
        for call in (
            here.session.wallets.deposit(here.user, "10.0055"),
            here.session.wallets.withdraw(here.user, Decimal("0.001")),
            here.session.points.transfer(shop, "5.125"),
            here.session.points.reclaim(shop, "5.125"),
        ):
            with pytest.raises(AmountError, match="amount_decimals") as caught:
                await call
            assert caught.value.happened == "no"
        assert not await here.store.intents()
        # Zeros at the end do not count.
        moved = await here.session.wallets.deposit(here.user, "10.1000")
        assert moved.amount == Decimal("10.1")


@pytest.mark.parametrize("amount", ["10.0055", "10.0045", "0.999"])
async def test_a_row_that_was_rounded_is_recognised(amount: str) -> None:
    """With the setting, also for a payment that was sent before it was set."""
    switches = attrs.evolve(SWITCHES, decimals=2)
    async with scene(switches) as here:
        await here.lose(here.session.wallets.deposit(here.user, amount), "html")
        async with SessionManager(
            here.box.base_url,
            accounts={"eur": here.box.token("operator")},
            settings=Settings(**QUICK, amount_decimals=2),
            store=here.store,
        ) as other:
            (settled,) = await other.session("eur").payments.settle_all()
        assert settled.phase is Phase.CONFIRMED
        assert settled.moved is not None
        assert settled.moved.amount == here.balance


async def test_what_nobody_explains_keeps_others_from_being_absent() -> None:
    """Of that user and direction, behind the payment; not what was long before it."""
    async with scene() as here:
        ledger, operator = (
            here.box._service.deployment.ledger,
            here.box.account("operator"),
        )
        other = (await here.session.users.create("eve")).user_code
        wallets = here.session.wallets
        await wallets.deposit(here.user, 100)
        lost = await here.lose(wallets.deposit(here.user, 5), "drop_before")
        fine = await here.lose(wallets.deposit(other, 5), "drop_before")
        back = await here.lose(
            wallets.withdraw(here.user, 5), "drop_before", "wallet/withdraw"
        )
        # Somebody in the back office, whom no journal knows.
        ledger.deposit(operator, here.user, 70_000)
        settled = {i.id: i for i in await here.session.payments.settle_all()}
        assert settled[lost.id].phase is Phase.NEEDS_PERSON
        assert "(7.0000, 100.0000 to 107.0000" in str(settled[lost.id].note)
        assert settled[fine.id].phase is Phase.ABSENT
        assert settled[back.id].phase is Phase.ABSENT


# Attempts that run.


async def running(here: Scene, **options: Any) -> Intent:
    """Make a payment whose caller has left, and whose attempt goes on."""
    here.box.faults.hold(PAY, times=1)
    before = here.box.received.get(PAY, 0)
    paying = asyncio.create_task(
        here.session.with_options(**options).wallets.deposit(here.user, 10, key="k")
    )
    await until(lambda: here.box.received.get(PAY, 0) > before)
    paying.cancel()
    await asyncio.gather(paying, return_exceptions=True)
    (lost,) = await here.session.payments.unknown()
    return lost


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_nothing_is_absent_while_it_runs(tmp_path: Path, elsewhere: bool) -> None:
    """Longer than longest_call, and whoever settles: its late response decides."""
    path = tmp_path / "j.db"
    async with scene(
        store=SqliteStore(path), longest_call=0.05, feed_lag=0.05, abandon_after=60.0
    ) as here:
        lost = await running(here)
        other = SessionManager(
            here.box.base_url,
            accounts={"eur": here.box.token("operator")},
            settings=here.session.settings,
            store=SqliteStore(path),
        )
        async with other:
            session = other.session("eur") if elsewhere else here.session
            eve = (await session.users.create("eve")).user_code
            ended = await here.lose(session.wallets.deposit(eve, 10), "drop_before")
            settling = asyncio.create_task(session.payments.settle(lost))
            # What was lost later, and has ended, is known by then.
            while (await here.intent(ended.id)).phase is Phase.UNKNOWN:
                await look_again()
            assert (await here.intent(ended.id)).phase is Phase.ABSENT
            assert (await here.intent(lost.id)).phase is Phase.UNKNOWN
            assert not settling.done()
            with pytest.raises(OutcomeUnknownError):
                await session.wallets.deposit(here.user, 10, key="k")
            here.box.faults.clear()
            assert (await settling).phase is Phase.CONFIRMED
        assert here.balance == 10


async def test_what_is_over_counts_from_when_its_attempt_has_ended() -> None:
    """And not from when its caller left."""
    async with scene(longest_call=1.0, feed_lag=0.05, abandon_after=1.0) as here:
        lost = await running(here)
        await until(lambda: here.session.gate.statistics().detached == 0)
        (ended,) = await here.store.intents()
        assert ended.quiet is not None
        assert ended.quiet - lost.aged >= 1.0
        assert (await here.session.payments.settle(lost)).phase is Phase.ABSENT
        assert await here.store.age() >= ended.quiet + 1.0


async def test_a_view_that_waits_for_less_is_over_no_sooner() -> None:
    """The service, and the connection that it shares, are those of its session."""
    async with scene(timeout=20.0, longest_call=None) as here:
        view = here.session.with_options(timeout=0.5)
        await here.session.wallets.deposit(here.user, 1)
        await view.wallets.deposit(here.user, 1)
        one, two = await here.store.intents()
        assert (one.longest, one.unacked) == (two.longest, two.unacked)
        assert two.longest == here.session.settings.longest
        assert two.unacked > 10.0


async def test_a_late_response_against_a_verdict_is_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A person was wrong, and it was paid anew: both are named, and for a person."""
    async with scene(
        abandon_after=60.0, paths={"transactions.since": "game/x"}
    ) as here:
        lost = await running(here)
        settled = await here.session.payments.settle(lost)
        assert settled.phase is Phase.NEEDS_PERSON
        await here.session.payments.decide(lost, False, "so it seemed")
        anew = await here.session.wallets.deposit(here.user, 10, key="k")
        assert anew.balance == 10
        with caplog.at_level(logging.ERROR, "aio_agentapi.payments"):
            here.box.faults.clear()
            while (found := await here.intent(lost.id)).phase is Phase.ABSENT:
                await look_again()
        assert found.phase is Phase.NEEDS_PERSON
        assert "paid anew by intent 2" in caplog.text
        assert here.balance == 20
        assert [found] == await here.session.payments.unknown()


# A store that fails when the money has moved.


class Failing(MemoryStore):
    """A store that raises what nobody expects when an outcome is written."""

    error: BaseException | None = None
    at_once: bool = False

    def write(
        self,
        verdicts: Collection[Verdict],
        clock: Clock,
        *,
        given: Collection[Intent] = (),
    ) -> Awaitable[list[Intent]]:
        """Fail, where that is wanted."""
        if (error := self.error) is None:
            return super().write(verdicts, clock, given=given)
        if self.at_once:
            raise error

        async def fail() -> list[Intent]:
            raise error

        return fail()


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize(
    "error",
    [DeprecationWarning("?1"), ValueError("of a driver"), MemoryError()],
    ids=lambda error: type(error).__name__,
)
async def test_what_was_paid_is_told_whatever_the_journal_raises(
    error: BaseException, caplog: pytest.LogCaptureFixture, *, at_once: bool
) -> None:
    """The caller gets what moved, or our error; the log has what is wrong."""
    store = Failing()
    async with scene(store=store) as here:
        await here.session.wallets.deposit(here.user, 1)
        store.error, store.at_once = error, at_once
        assert (await here.session.wallets.deposit(here.user, 5)).balance == 6
        here.box.faults.code(2005, PAY, times=1)
        other = (await here.session.users.create("eve")).user_code
        with pytest.raises(AgentAPIError, match="2005"):
            await here.session.wallets.deposit(other, 5)
        store.error = None
    assert "not written down" in caplog.text


# In the background.


async def test_open_payments_are_resolved_in_the_background(tmp_path: Path) -> None:
    """Those of a process that died too, from the start and until it is closed."""
    path = tmp_path / "j.db"
    async with scene(store=SqliteStore(path)) as here:
        lost = [
            await here.lose(here.session.wallets.deposit(here.user, n), fault)
            for n, fault in ((5, "drop_after"), (6, "drop_before"))
        ]
        manager = SessionManager(
            here.box.base_url,
            accounts={"eur": here.box.token("operator")},
            settings=Settings(**QUICK, resolve_every=0.05),
            store=SqliteStore(path),
        )
        async with manager:
            expected = [Phase.CONFIRMED, Phase.ABSENT]
            while [i.phase for i in await here.store.intents()] != expected:
                await look_again()
            # And what is lost later.
            await here.lose(here.session.wallets.deposit(here.user, 7), "drop_after")
            while [*await here.store.intents()][-1].phase is not Phase.CONFIRMED:
                await look_again()
            resolving = manager._resolving
            assert resolving is not None
            assert not resolving.done()
        assert resolving.done()
        assert len(lost) == 2


async def test_the_background_survives_what_goes_wrong(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told in the log, and tried again."""
    raised = [RuntimeError("of a bug")]
    settle = Settler.settle

    async def broken(self: Settler, ids: Collection[int]) -> None:
        if raised:
            raise raised.pop()
        await settle(self, ids)

    monkeypatch.setattr(Settler, "settle", broken)
    async with scene(resolve_every=0.02) as here:
        lost = await here.lose(here.session.wallets.deposit(here.user, 5), "drop_after")
        while (await here.intent(lost.id)).phase is Phase.UNKNOWN:
            await look_again()
        assert (await here.intent(lost.id)).phase is Phase.CONFIRMED
    assert "could not be settled: RuntimeError: of a bug" in caplog.text


async def test_the_background_ends_with_a_store_that_misses_it(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver may return instead: the next turn is not waited for."""
    asked = asyncio.Event()

    async def deaf(_: MemoryStore, **__: object) -> list[Intent]:
        asked.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return []

    monkeypatch.setattr(MemoryStore, "intents", deaf)
    async with SessionManager(
        box.base_url, settings=Settings(resolve_every=1e6)
    ) as manager:
        await asked.wait()
        resolving = manager._resolving
    assert resolving is not None
    assert resolving.done()


async def test_one_of_all_processes_reads_the_feed(tmp_path: Path) -> None:
    """Others wait for what it finds; when it is gone, another one takes over."""
    path = tmp_path / "j.db"
    async with Sandbox(SWITCHES) as box:
        accounts = {"eur": box.token("operator")}
        managers = [
            SessionManager(
                box.base_url,
                accounts=accounts,
                settings=attrs.evolve(Settings(**QUICK), longest_call=600.0),
                store=SqliteStore(path),
            )
            for _ in range(3)
        ]
        one, two, three = (m.session("eur") for m in managers)
        user = (await one.users.create("bob")).user_code
        box.faults.drop_before(PAY, times=1)
        with pytest.raises(OutcomeUnknownError) as caught:
            await one.wallets.deposit(user, 5)
        number = caught.value.intent
        assert number is not None
        first = asyncio.create_task(one.payments.settle(number))
        await until(lambda: box.received.get("game/transaction-id", 0) >= 2)
        others = [asyncio.create_task(s.payments.settle(number)) for s in (two, three)]
        store = managers[1]._store
        assert isinstance(store, SqliteStore)
        assert not await store.take_feed("eur")
        assert await store.take_feed("usd")
        store.leave_feed("usd")
        # What others pay, and lose, meanwhile is settled by the same one.
        box.faults.drop_after(PAY, times=1)
        with pytest.raises(OutcomeUnknownError) as caught:
            await two.wallets.deposit(user, 6)
        while (
            await two.payments._known(caught.value.intent or 0)
        ).phase is Phase.UNKNOWN:
            await look_again()
        assert not any(task.done() for task in (first, *others))
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        before = box.received["game/transaction-id"]
        await until(lambda: box.received["game/transaction-id"] > before)
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        assert await store.take_feed("eur")
        store.leave_feed("eur")
        for manager in managers:
            await manager.aclose()
