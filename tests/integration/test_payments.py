"""What becomes of payments: written down, kept apart, found out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
from yarl import URL

from aio_agentapi import (
    Intent,
    MemoryStore,
    Moved,
    Phase,
    Session,
    SessionManager,
    Settings,
    SqliteStore,
    _store,
)
from aio_agentapi._journal import Cursor, Store
from aio_agentapi._settle import Settler
from aio_agentapi._transport import Answer, Sending, Transport
from aio_agentapi.errors import (
    AgentAPIError,
    BusyError,
    ClosedError,
    DecodeError,
    FundsError,
    GateTimeoutError,
    JournalError,
    NotFoundError,
    NotSentError,
    OutcomeUnknownError,
    UsageError,
)
from aio_agentapi.sandbox import Fault, ManualClock, Sandbox, Switches
from tests.waiting import look_again

# Real times scaled down; a row is seen a twentieth of a second late at most.
QUICK: Final[dict[str, Any]] = {
    "timeout": 10.0,
    "abandon_after": 0.6,
    "linger": 0.05,
    "longest_call": 0.6,
    "feed_interval": 0.06,
    "feed_lag": 0.1,
}
SWITCHES: Final = Switches(feed_spacing=0.05)


@attrs.frozen
class Scene:
    """A stand-in with a user, and sessions on one journal."""

    box: Sandbox
    session: Session
    store: Store
    user: int

    @property
    def balance(self) -> Decimal:
        """What the user has, by the service's books."""
        ledger = self.box._service.deployment.ledger
        found = ledger.user(self.box.account("operator"), self.user)
        return Decimal(found.balance) / 10_000

    async def lose(
        self, call: Awaitable[Moved], fault: str, path: str = "wallet/deposit"
    ) -> Intent:
        """Make a payment whose answer is lost; return its intent."""
        getattr(self.box.faults, fault)(path, times=1)
        with pytest.raises(OutcomeUnknownError) as caught:
            await call
        return await self.intent(caught.value.intent)

    async def intent(self, number: int | None) -> Intent:
        """Return what the journal has."""
        assert number is not None
        (found,) = await self.store.intents(ids=[number])
        return found


@asynccontextmanager
async def scene(
    switches: Switches = SWITCHES,
    store: Store | None = None,
    clock: ManualClock | None = None,
    **settings: Any,
) -> AsyncGenerator[Scene]:
    """Set up a stand-in, a user, and a session."""
    chosen = Settings(**{**QUICK, **settings})
    store = store or MemoryStore()
    with contextlib.ExitStack() as patches:
        if clock is not None:
            began, uptime = clock.now(), _store._uptime
            patch = patches.enter_context(pytest.MonkeyPatch.context())
            patch.setattr(
                _store,
                "_uptime",
                lambda: uptime() + (clock.now() - began).total_seconds(),
            )
        async with _scene(switches, store, clock, chosen) as here:
            yield here


@asynccontextmanager
async def _scene(
    switches: Switches, store: Store, clock: ManualClock | None, chosen: Settings
) -> AsyncGenerator[Scene]:
    async with (
        Sandbox(switches, clock=clock) as box,
        SessionManager(
            box.base_url,
            accounts={"eur": box.token("operator")},
            settings=chosen,
            store=store,
        ) as manager,
    ):
        session = manager.session("eur")
        if clock is not None:
            session._channel.cashier.clock = lambda: clock.now().timestamp()
        user = (await session.users.create("bob")).user_code
        yield Scene(box, session, store, user)


async def until(true: Callable[[], object]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(20):
        while not true():
            await look_again()


@pytest.fixture(params=["busy", "empty"])
def early(request: pytest.FixtureRequest) -> Switches:
    """Both forms of a feed that was read too early."""
    return attrs.evolve(SWITCHES, early_feed=request.param)


# Written down.


async def test_a_payment_is_on_disk_before_it_is_sent(tmp_path: Path) -> None:
    """As sent, when its first byte arrives; as done, when its caller has it."""
    seen: list[list[Phase]] = []
    store = SqliteStore(tmp_path / "j.db")
    reader = SqliteStore(tmp_path / "j.db")
    async with scene(store=store) as here:
        here.box.faults.hold("wallet/deposit")
        paying = asyncio.create_task(here.session.wallets.deposit(here.user, 5))
        await until(lambda: here.box.received.get("wallet/deposit"))
        seen.append([i.phase for i in await reader.intents()])
        here.box.faults.clear()
        await paying
        seen.append([i.phase for i in await reader.intents()])
    await reader.aclose()
    assert seen == [[Phase.SENT], [Phase.DONE]]


async def test_what_cannot_be_written_down_is_not_sent(tmp_path: Path) -> None:
    """No folder for the journal: a clear error, and nothing moves."""
    path = tmp_path / "none" / "j.db"
    async with scene(store=SqliteStore(path)) as here:
        with pytest.raises(JournalError, match="Nothing was sent") as caught:
            await here.session.wallets.deposit(here.user, 5)
        assert (caught.value.operation, caught.value.happened) == (
            "wallets.deposit",
            "no",
        )
        assert "wallet/deposit" not in here.box.received
        path.parent.mkdir()
        await here.session.wallets.deposit(here.user, 5)


PAY: Final = "wallet/deposit"


@pytest.mark.parametrize(
    ("fault", "phase", "kind"),
    [
        (Fault("code", PAY, code=2005), Phase.REFUSED, FundsError),
        (Fault("code", PAY, code=1001), Phase.UNKNOWN, OutcomeUnknownError),
        (Fault("html", PAY, status=502), Phase.UNKNOWN, OutcomeUnknownError),
        (Fault("html", PAY, status=303), Phase.UNKNOWN, OutcomeUnknownError),
        (Fault("html", PAY, status=404), Phase.UNKNOWN, OutcomeUnknownError),
        (Fault("wrong_shape", PAY), Phase.UNKNOWN, DecodeError),
        (Fault("hold", PAY), Phase.UNKNOWN, OutcomeUnknownError),
        (Fault("drop_after", PAY), Phase.UNKNOWN, OutcomeUnknownError),
    ],
)
async def test_each_outcome_has_its_phase(
    fault: Fault, phase: Phase, kind: type[AgentAPIError]
) -> None:
    """The error names the intent, which is sent once."""
    async with scene() as here:
        here.box.faults.add(attrs.evolve(fault))
        hurried = fault.kind == "hold"
        session = here.session.with_options(timeout=0.3 if hurried else 10)
        with pytest.raises(kind) as caught:
            await session.wallets.deposit(here.user, 5)
        written = await here.intent(caught.value.intent)
        assert written.phase is phase
        assert written.note
        assert (here.box.received["wallet/deposit"], caught.value.attempts) == (1, 1)


async def test_a_busy_service_is_no_outcome() -> None:
    """1018 leaves the intent open; when the caller's time is over, it was not sent."""
    async with scene() as here:
        here.box.faults.busy(3, "wallet/deposit")
        moved = await here.session.wallets.deposit(here.user, 5, key="k")
        assert moved.balance == 5
        here.box.foreign("operator", 50)
        view = here.session.with_options(max_wait=0.2)
        with pytest.raises(BusyError) as caught:
            await view.wallets.deposit(here.user, 5)
        assert caught.value.happened == "no"
        assert (await here.intent(caught.value.intent)).phase is Phase.NOT_SENT
        (first, _) = await here.store.intents()
        assert (first.phase, first.key) == (Phase.DONE, "k")


async def test_no_connection_is_not_sent() -> None:
    """As often as it is tried."""
    async with scene(attempts=2) as here:
        # Whose payments they are is known by then.
        await here.session.wallets.deposit(here.user, 5)
        transport = here.session._channel._transport
        assert transport._template is not None
        transport._template.url = URL("http://127.0.0.1:9")
        with pytest.raises(NotSentError) as caught:
            await here.session.wallets.deposit(here.user, 5)
        assert (await here.intent(caught.value.intent)).phase is Phase.NOT_SENT


async def test_a_caller_who_is_cancelled_leaves_the_answer_to_the_journal() -> None:
    """Unknown at once; when the answer comes after all, it says what happened."""
    async with scene(abandon_after=20) as here:
        for phase, user in ((Phase.CONFIRMED, here.user), (Phase.ABSENT, 999)):
            before = here.box.received.get("wallet/deposit", 0)
            here.box.faults.hold("wallet/deposit")
            paying = asyncio.create_task(here.session.wallets.deposit(user, 5))
            await until(lambda: here.box.received.get("wallet/deposit", 0) > before)  # noqa: B023 - called at once
            paying.cancel()
            with pytest.raises(asyncio.CancelledError):
                await paying
            (lost,) = await here.session.payments.unknown()
            assert lost.phase is Phase.UNKNOWN
            here.box.faults.clear()
            while (await here.intent(lost.id)).phase is Phase.UNKNOWN:
                await look_again()
            now = await here.intent(lost.id)
            assert now.phase is phase
        assert here.balance == 5


async def test_a_late_answer_comes_after_the_time_out() -> None:
    """The caller has his error, and the journal has what moved."""
    async with scene(abandon_after=20) as here:
        here.box.faults.hold("wallet/deposit")
        hurried = here.session.with_options(timeout=0.3)
        with pytest.raises(OutcomeUnknownError) as caught:
            await hurried.wallets.deposit(here.user, 5, key="k")
        here.box.faults.clear()
        number = caught.value.intent
        while (await here.intent(number)).phase is not Phase.CONFIRMED:
            await look_again()
        moved = (await here.intent(number)).moved
        assert moved == Moved(amount=Decimal(5), balance=Decimal(5))
        assert moved == await here.session.wallets.deposit(here.user, 5, key="k")
        assert here.balance == 5


async def test_closing_leaves_nothing_unsaid(tmp_path: Path) -> None:
    """What runs is cut and unknown, what waits was not sent; all of it is on disk."""
    path = tmp_path / "j.db"
    ends: list[str] = []

    async def pay(session: Session, user: int) -> None:
        try:
            await session.wallets.deposit(user, 5)
        except AgentAPIError as error:
            ends.append(type(error).__name__)

    async with scene(store=SqliteStore(path), drain=0.05, limit=2) as here:
        users = [(await here.session.users.create(f"u{i}")).user_code for i in range(6)]
        here.box.faults.hold("wallet/deposit")
        tasks = [
            asyncio.create_task(pay(here.session, user)) for user in [*users, users[0]]
        ]
        await until(lambda: here.box.received.get("wallet/deposit", 0) == 2)
        await here.session.aclose()
        await asyncio.gather(*tasks)
        with pytest.raises(ClosedError):
            await here.session.wallets.deposit(here.user, 5)
    store = SqliteStore(path)
    phases = sorted(i.phase for i in await store.intents())
    await store.aclose()
    assert sorted(ends) == ["ClosedError"] * 5 + ["OutcomeUnknownError"] * 2
    assert phases == ["not_sent"] * 4 + ["unknown"] * 2


async def test_the_answer_of_another_payment_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another amount than was asked for: the feed says what became of it."""
    send = Transport.send

    async def mixed_up(
        self: Transport, path: str, text: bytes, sending: Sending
    ) -> Answer:
        status, answer = await send(self, path, text, sending)
        if path.startswith("wallet"):
            answer = answer.replace(b'"amount":5', b'"amount":7')
        return Answer(status, answer)

    async with scene() as here:
        monkeypatch.setattr(Transport, "send", mixed_up)
        for pay in (here.session.wallets.deposit, here.session.wallets.withdraw):
            with pytest.raises(OutcomeUnknownError, match="another amount") as caught:
                await pay(here.user, 5)
            intent = await here.intent(caught.value.intent)
            assert intent.phase is Phase.UNKNOWN
            settled = await here.session.payments.settle(intent.id)
            assert settled.phase is Phase.CONFIRMED
        assert here.balance == 0


async def test_memory_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    """A crash loses what it knows: that is said at the first payment."""
    async with scene() as here:
        with caplog.at_level(logging.WARNING, "aio_agentapi.payments"):
            for _ in range(3):
                await here.session.wallets.deposit(here.user, 5)
    assert len(caplog.records) == 1
    assert "SqliteStore" in caplog.text


# One at a time, and keys.


async def test_payments_of_a_user_take_turns() -> None:
    """In order, one at a time; those of others run beside them."""
    async with scene(Switches(latency=0.02, feed_spacing=0.05)) as here:
        other = (await here.session.users.create("eve")).user_code
        order: list[int] = []

        async def pay(number: int) -> None:
            await here.session.wallets.deposit(here.user, number)
            order.append(number)

        async with asyncio.TaskGroup() as group:
            for number in range(1, 9):
                group.create_task(pay(number))
            group.create_task(here.session.wallets.deposit(other, 1))
            await until(lambda: here.box.gauge("operator").in_flight)
            assert here.box.gauge("operator").peak <= 2
        assert order == [*range(1, 9)]
        assert here.box.gauge("operator").peak == 2
        assert not here.session._channel.cashier._lines


async def test_waiting_for_a_turn_counts_as_waiting() -> None:
    """Against max_wait and deadline; and nothing of it is sent or kept."""
    async with scene() as here:
        here.box.faults.hold("wallet/deposit")
        async with asyncio.TaskGroup() as group:
            group.create_task(here.session.wallets.deposit(here.user, 5))
            await until(lambda: here.box.received.get("wallet/deposit"))
            for view in (
                here.session.with_options(max_wait=0.05),
                here.session.with_options(deadline=0.05),
            ):
                with pytest.raises(GateTimeoutError, match="payment before") as caught:
                    await view.wallets.deposit(here.user, 5)
                # A deadline began before that.
                assert caught.value.waited > 0
            here.box.faults.clear()
        assert len(await here.store.intents()) == 1


async def test_another_process_has_the_turn(tmp_path: Path) -> None:
    """Two managers on one file: the second waits, and then pays."""
    path = tmp_path / "j.db"
    async with scene(store=SqliteStore(path)) as here:
        other = SessionManager(
            here.box.base_url,
            accounts={"eur": here.box.token("operator")},
            settings=Settings(**QUICK),
            store=SqliteStore(path),
        )
        async with other:
            session = other.session("eur")
            here.box.faults.hold("wallet/deposit", times=1)
            first = asyncio.create_task(
                here.session.wallets.deposit(here.user, 5, key="k")
            )
            await until(lambda: here.box.received.get("wallet/deposit"))
            with pytest.raises(GateTimeoutError):
                await session.with_options(max_wait=0.05).wallets.deposit(here.user, 7)
            same = asyncio.create_task(session.wallets.deposit(here.user, 5, key="k"))
            # It is in line for a turn that another has.
            for _ in range(100):
                await asyncio.sleep(0)
            assert not same.done()
            here.box.faults.clear()
            assert await first == await same
            assert (await session.wallets.deposit(here.user, 7)).balance == 12
        assert here.box.received["wallet/deposit"] == 2


async def test_a_key_pays_once() -> None:
    """The recorded result again, however often; doubt where there is doubt."""
    async with scene() as here:
        wallets = here.session.wallets
        first = await wallets.deposit(here.user, 5, key="k")
        assert first == await wallets.deposit(here.user, "5.00", key="k")
        with pytest.raises(UsageError, match="another payment"):
            await wallets.withdraw(here.user, 5, key="k")
        lost = await here.lose(
            wallets.withdraw(here.user, 1, key="w"), "drop_after", "wallet/withdraw"
        )
        for _ in range(2):
            with pytest.raises(OutcomeUnknownError, match="settle it") as caught:
                await wallets.withdraw(here.user, 1, key="w")
            assert caught.value.intent == lost.id
        assert (await here.session.payments.settle(lost)).phase is Phase.CONFIRMED
        assert (await wallets.withdraw(here.user, 1, key="w")).balance == 4
        assert here.box.received["wallet/withdraw"] == 1
        found = await here.session.payments.find("w")
        assert found is not None
        assert (found.id, await here.session.payments.find("x")) == (lost.id, None)


async def test_calls_at_once_with_a_key_pay_once() -> None:
    """The others get what the first one got."""
    async with scene(Switches(latency=0.02)) as here:
        results = await asyncio.gather(
            *(here.session.wallets.deposit(here.user, 5, key="k") for _ in range(20))
        )
        assert len(set(results)) == 1
        assert here.balance == 5
        assert here.box.received["wallet/deposit"] == 1


async def test_an_unknown_payment_can_block_its_user() -> None:
    """With block_unknown: until it is settled, others of the user wait."""
    async with scene(block_unknown=True) as here:
        lost = await here.lose(here.session.wallets.deposit(here.user, 5), "drop_after")
        with pytest.raises(GateTimeoutError):
            await here.session.with_options(max_wait=0.05).wallets.deposit(here.user, 7)
        paying = asyncio.create_task(here.session.wallets.deposit(here.user, 7))
        assert (await here.session.payments.settle(lost)).phase is Phase.CONFIRMED
        assert (await paying).balance == 12


# Settling.


async def test_what_happened_is_confirmed_at_the_first_reading(early: Switches) -> None:
    """With the balance that the feed tells; what did not, when none can come."""
    async with scene(early, longest_call=0.5) as here:
        wallets = here.session.wallets
        await wallets.deposit(here.user, "20.0001")
        made = await here.lose(wallets.deposit(here.user, "5.5"), "drop_after")
        lost = await here.lose(wallets.deposit(here.user, "6.5"), "drop_before")
        began = asyncio.get_running_loop().time()
        settled, other = await here.session.payments.settle_all()
        took = asyncio.get_running_loop().time() - began
        assert (settled.id, settled.phase) == (made.id, Phase.CONFIRMED)
        assert settled.moved == Moved(amount=Decimal("5.5"), balance=Decimal("25.5001"))
        assert (other.id, other.phase, other.moved) == (lost.id, Phase.ABSENT, None)
        # Not before everything that could still come had its time.
        assert took > 0.5
        assert await here.session.payments.unknown() == []
        assert await here.session.payments.settle_all() == []
        assert await here.session.payments.settle(lost) == other


async def test_equal_payments_are_counted(early: Switches) -> None:
    """Some lost and some not: as many are confirmed as there are rows left."""
    async with scene(early) as here:
        wallets = here.session.wallets
        for fault in (None, "drop_after", "drop_before", None, "drop_after", None):
            if fault is None:
                await wallets.deposit(here.user, 5)
            else:
                await here.lose(wallets.deposit(here.user, 5), fault)
        settled = await here.session.payments.settle_all()
        assert [i.phase for i in settled] == ["confirmed", "confirmed", "absent"]
        balances = [i.moved.balance for i in settled if i.moved is not None]
        assert balances == [10, 20]
        assert here.balance == 25


async def test_a_row_that_appears_late_is_waited_for(early: Switches) -> None:
    """Within feed_lag after longest_call nothing is called absent."""
    async with scene(early, longest_call=1.0, feed_lag=0.5) as here:
        here.box.faults.late_row(0.5, "wallet/deposit", times=1)
        await here.session.wallets.withdraw_all(here.user)
        # The first fault of a call wins: leave it while it is executed.
        here.box.switches = attrs.evolve(early, latency=0.5)
        leaving = asyncio.create_task(here.session.wallets.deposit(here.user, 5))
        await until(lambda: here.box.received.get("wallet/deposit"))
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        # No late answer tells it either.
        for exchange in here.session._channel._exchanges.running:
            told, lost = exchange.told, OutcomeUnknownError("lost")
            assert told is not None
            exchange.told = lambda _, told=told, lost=lost: told(lost)
        number = (await here.store.intents())[-1].id
        settled = await here.session.payments.settle(number)
        assert settled.phase is Phase.CONFIRMED
        assert settled.trans_id


async def test_an_equal_payment_that_runs_is_not_taken_for_the_lost_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its row is there before its answer: nothing is said until it is known."""
    async with scene(longest_call=0.05, feed_lag=0.05) as here:
        wallets = here.session.wallets
        lost = await here.lose(wallets.deposit(here.user, 5), "drop_before")
        release = asyncio.Event()
        # Executed, and its answer held back.
        send = Transport.send

        async def held(self: Transport, path: str, *args: Any) -> Any:
            answer = await send(self, path, *args)
            if path == "wallet/deposit":
                await release.wait()
            return answer

        monkeypatch.setattr(Transport, "send", held)
        running = asyncio.create_task(wallets.deposit(here.user, 5))
        await until(lambda: here.balance == 5)
        settling = asyncio.create_task(here.session.payments.settle(lost))
        await until(lambda: here.box.received.get("game/transaction-id", 0) >= 3)
        assert (await here.intent(lost.id)).phase is Phase.UNKNOWN
        release.set()
        assert (await running).balance == 5
        assert (await settling).phase is Phase.ABSENT


async def test_a_late_answer_while_settling() -> None:
    """Whoever knows first writes it; the other finds it written."""
    async with scene(longest_call=20, abandon_after=20) as here:
        here.box.faults.hold("wallet/deposit", times=1)
        hurried = here.session.with_options(timeout=0.3)
        with pytest.raises(OutcomeUnknownError) as caught:
            await hurried.wallets.deposit(here.user, 5)
        number = caught.value.intent
        assert number is not None
        settling = asyncio.create_task(here.session.payments.settle(number))
        await until(lambda: here.box.received.get("game/transaction-id", 0) >= 2)
        assert here.balance == 0
        assert not settling.done()
        here.box.faults.clear()
        assert (await settling).phase is Phase.CONFIRMED
        assert here.balance == 5
        statistics = here.session.gate.statistics
        await until(lambda: statistics().late_answers == 1)
        assert (await here.intent(number)).phase is Phase.CONFIRMED


@pytest.mark.parametrize("sole", [True, False])
async def test_others_that_pay_the_same(sole: bool) -> None:
    """Where others write, a row proves nothing; where not, a row too many does."""
    async with scene(sole_writer=sole) as here:
        lost = await here.lose(
            here.session.wallets.deposit(here.user, 5), "drop_before"
        )
        ledger = here.box._service.deployment.ledger
        for _ in range(2 if sole else 1):
            ledger.deposit(here.box.account("operator"), here.user, 50_000)
        settled = await here.session.payments.settle(lost)
        assert settled.phase is Phase.NEEDS_PERSON
        assert settled.note is not None
        assert "rows 1 (5.0000, 0.0000 to 5.0000" in settled.note
        assert [settled] == await here.session.payments.unknown()


async def test_no_row_is_proof_also_beside_others() -> None:
    """With sole_writer False, what left no row did not happen."""
    async with scene(sole_writer=False) as here:
        lost = await here.lose(
            here.session.wallets.deposit(here.user, 5), "drop_before"
        )
        await here.session.wallets.deposit(here.user, 5)
        assert (await here.session.payments.settle(lost)).phase is Phase.ABSENT


@pytest.mark.parametrize("fault", ["drop_after", "drop_before"])
async def test_a_lost_withdrawal_of_everything(fault: str) -> None:
    """Its amount is what its row says."""
    async with scene() as here:
        wallets = here.session.wallets
        await wallets.deposit(here.user, "7.25")
        call = wallets.withdraw_all(here.user)
        lost = await here.lose(call, fault, "wallet/withdraw-all")
        settled = await here.session.payments.settle(lost)
        if fault == "drop_after":
            assert settled.moved == Moved(amount=Decimal("7.25"), balance=Decimal(0))
        assert settled.phase is (
            Phase.CONFIRMED if fault == "drop_after" else Phase.ABSENT
        )


async def test_a_row_that_fits_two_kinds_is_for_a_person() -> None:
    """A withdrawal of all there is, and one of just that amount."""
    async with scene() as here:
        wallets = here.session.wallets
        await wallets.deposit(here.user, 5)
        await here.lose(wallets.withdraw(here.user, 5), "drop_after", "wallet/withdraw")
        await here.lose(
            wallets.withdraw_all(here.user), "drop_before", "wallet/withdraw-all"
        )
        settled = await here.session.payments.settle_all()
        assert {i.phase for i in settled} == {Phase.NEEDS_PERSON}


async def test_a_user_that_is_not_there_was_not_paid() -> None:
    """That is sure at once, without the feed."""
    async with scene(longest_call=600.0) as here:
        lost = await here.lose(here.session.wallets.deposit(999, 5), "drop_after")
        settled = await here.session.payments.settle(lost)
        assert (settled.phase, settled.note) == (Phase.ABSENT, "there is no such user")


async def test_settling_ends_with_the_deadline() -> None:
    """What is not known by then is still unknown, and nothing goes on behind it."""
    async with scene(longest_call=600.0) as here:
        lost = await here.lose(
            here.session.wallets.deposit(here.user, 5), "drop_before"
        )
        view = here.session.with_options(deadline=0.3)
        assert (await view.payments.settle(lost)).phase is Phase.UNKNOWN
        (same,) = await view.payments.settle_all()
        assert same.phase is Phase.UNKNOWN


async def test_settling_after_a_restart(tmp_path: Path) -> None:
    """From the journal alone, by a manager that has never paid."""
    path = tmp_path / "j.db"
    async with scene(store=SqliteStore(path)) as here:
        lost = await here.lose(here.session.wallets.deposit(here.user, 5), "drop_after")
        async with SessionManager(
            here.box.base_url,
            accounts={"eur": here.box.token("operator")},
            settings=Settings(**QUICK),
            store=SqliteStore(path),
        ) as other:
            payments = other.session("eur").payments
            assert [lost] == await payments.unknown()
            assert (await payments.settle(lost.id)).phase is Phase.CONFIRMED
            with pytest.raises(UsageError, match="no payment 99"):
                await payments.settle(99)


async def test_readings_are_shared() -> None:
    """Fifty that settle at once read the feed as often as one."""
    async with scene() as here:
        wallets = here.session.wallets
        lost = [
            await here.lose(wallets.deposit(here.user, n), "drop_before")
            for n in range(1, 21)
        ]
        before = here.box.received.get("game/transaction-id", 0)
        payments = here.session.payments
        settled = await asyncio.gather(*(payments.settle(i) for i in lost))
        assert {i.phase for i in settled} == {Phase.ABSENT}
        readings = here.box.received["game/transaction-id"] - before
        # By the interval, as long as it takes; not for each of them.
        assert readings < 2 * (1.5 / QUICK["feed_interval"])


async def test_resending_pays_what_did_not_happen() -> None:
    """Once, as an intent of its own; never what may have happened."""
    async with scene() as here:
        wallets, payments = here.session.wallets, here.session.payments
        lost = await here.lose(wallets.deposit(here.user, 5), "drop_before")
        with pytest.raises(UsageError, match="is unknown"):
            await payments.resend(lost)
        await payments.settle(lost)
        first, second = await asyncio.gather(
            payments.resend(lost), payments.resend(lost.id)
        )
        assert first == second
        assert here.balance == 5
        (_, anew) = await here.store.intents()
        assert (anew.follows, anew.phase) == (lost.id, Phase.DONE)
        with pytest.raises(UsageError, match="is done"):
            await payments.resend(anew)


@pytest.mark.parametrize("happened", [True, False])
async def test_a_person_decides(happened: bool) -> None:
    """What needs one, with how it is known; a key is worth what was decided."""
    async with scene(sole_writer=False) as here:
        wallets, payments = here.session.wallets, here.session.payments
        lost = await here.lose(wallets.deposit(here.user, 5, key="k"), "drop_after")
        with pytest.raises(UsageError, match="needs no person"):
            await payments.decide(lost, happened, "asked them")
        assert (await payments.settle(lost)).phase is Phase.NEEDS_PERSON
        with pytest.raises(UsageError, match="note"):
            await payments.decide(lost, happened, "")
        decided = await payments.decide(lost.id, happened, "asked them")
        assert decided.phase is (Phase.CONFIRMED if happened else Phase.ABSENT)
        assert decided.note is not None
        assert decided.note.endswith("; asked them")
        moved = await wallets.deposit(here.user, 5, key="k")
        if happened:
            assert moved.amount == 5
            assert moved.balance.is_nan()
        assert here.box.received["wallet/deposit"] == (1 if happened else 2)


# The end of what the feed keeps.


async def test_a_payment_of_two_days_ago_needs_a_person(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its row may be deleted by now: that is said loudly."""
    clock = ManualClock()
    async with scene(clock=clock) as here:
        lost = await here.lose(
            here.session.wallets.deposit(here.user, 5), "drop_before"
        )
        clock.advance(47.5 * 3600)
        ticking = asyncio.create_task(tick(clock))
        settled = await here.session.payments.settle(lost)
        ticking.cancel()
        assert settled.phase is Phase.NEEDS_PERSON
        assert settled.note is not None
        assert "does not reach back" in settled.note
        assert f"intent {lost.id} needs a person" in caplog.text


async def test_a_cursor_that_has_grown_old_is_left_for_the_oldest_row() -> None:
    """A quiet account: the row of the cursor is deleted, the payment's is not."""
    clock = ManualClock()
    async with scene(clock=clock, longest_call=1.0, feed_interval=0.06) as here:
        wallets = here.session.wallets
        await wallets.deposit(here.user, 5)
        at = clock.now()
        cursor = Cursor(trans_id=1, made_at=at, seen=await here.store.age())
        await here.store.keep_cursor("eur", cursor)
        clock.advance(20 * 3600)
        lost = await here.lose(wallets.deposit(here.user, 5), "drop_after")
        assert lost.cursor == cursor
        clock.advance(30 * 3600)
        ticking = asyncio.create_task(tick(clock))
        settled = await here.session.payments.settle(lost)
        ticking.cancel()
        assert (settled.phase, settled.trans_id) == (Phase.CONFIRMED, 2)


async def test_rows_that_are_gone_too_early_need_a_person() -> None:
    """The service has deleted what it should still have: nothing is concluded."""
    clock = ManualClock()
    async with scene(clock=clock, longest_call=1.0) as here:
        wallets = here.session.wallets
        await wallets.deposit(here.user, 5)
        clock.advance(120)
        at = clock.now()
        seen = await here.store.age()
        await here.store.keep_cursor("eur", Cursor(trans_id=1, made_at=at, seen=seen))
        lost = await here.lose(wallets.deposit(here.user, 5), "drop_before")
        await wallets.deposit(here.user, 6)
        here.box._service.deployment.ledger.sql.execute("DELETE FROM feed WHERE id = 1")
        ticking = asyncio.create_task(tick(clock))
        settled = await here.session.payments.settle(lost)
        ticking.cancel()
        assert settled.phase is Phase.NEEDS_PERSON
        assert settled.note is not None
        assert "gone" in settled.note


async def test_a_deployment_without_a_feed_needs_a_person() -> None:
    """What cannot be read cannot be settled."""
    async with scene(paths={"transactions.since": "game/none"}) as here:
        lost = await here.lose(
            here.session.wallets.deposit(here.user, 5), "drop_before"
        )
        settled = await here.session.payments.settle(lost)
        assert settled.phase is Phase.NEEDS_PERSON


@pytest.mark.parametrize("read_before", [True, False])
async def test_a_front_in_the_place_of_the_feed_is_passing(
    read_before: bool,
) -> None:
    """However often it says that there is none: what happened is found afterwards."""
    async with scene() as here:
        wallets, payments = here.session.wallets, here.session.payments
        if read_before:
            first = await here.lose(wallets.deposit(here.user, 1), "drop_after")
            assert (await payments.settle(first)).phase is Phase.CONFIRMED
        lost = await here.lose(wallets.deposit(here.user, 5), "drop_after")
        before = here.box.received.get("game/transaction-id", 0)
        here.box.faults.html(
            None if not read_before else "game/transaction-id", status=404
        )
        settling = asyncio.create_task(payments.settle(lost))
        await until(
            lambda: here.box.received.get("game/transaction-id", 0) >= before + 6
        )
        assert not settling.done()
        here.box.faults.clear()
        here.box.faults.code(404, "game/transaction-id", times=2)
        assert (await settling).phase is Phase.CONFIRMED


async def test_the_cursor_is_kept_warm() -> None:
    """In the background, once in a while, and where nobody else reads."""
    clock = ManualClock()
    async with scene(clock=clock) as here:
        wallets = here.session.wallets
        for _ in range(3):
            await wallets.deposit(here.user, 5)
        assert "game/transaction-id" not in here.box.received
        clock.advance(61)
        ticking = asyncio.create_task(tick(clock))
        await wallets.deposit(here.user, 5)
        while (await here.store.cursor("eur")).trans_id < 3:
            await look_again()
        ticking.cancel()
        await wallets.deposit(here.user, 5)
        last = (await here.store.intents())[-1]
        assert last.cursor.trans_id >= 3


async def tick(clock: ManualClock) -> None:
    """Let the stand-in's time go on."""
    for _ in range(20_000):
        clock.advance(0.01)
        await look_again()


async def test_a_user_that_is_not_there_is_refused() -> None:
    """A plain refusal needs no settling."""
    async with scene() as here:
        with pytest.raises(NotFoundError) as caught:
            await here.session.wallets.deposit(999, 5)
        assert (await here.intent(caught.value.intent)).phase is Phase.REFUSED


# What is not taken for proof.


@pytest.mark.parametrize("code", [1005, 2001, 1010])
async def test_only_no_such_user_says_that_nothing_was_paid(code: int) -> None:
    """Other refusals of user/info teach nothing; the feed does."""
    async with scene() as here:
        lost = await here.lose(here.session.wallets.deposit(here.user, 5), "drop_after")
        here.box.faults.code(code, "user/info")
        # The first reading has nothing yet.
        here.box.switches = attrs.evolve(SWITCHES, row_delay=0.08)
        await here.session.wallets.deposit(here.user, 6)
        here.box._service.deployment.ledger.sql.execute(
            "UPDATE feed SET visible = (SELECT max(visible) FROM feed)"
        )
        assert (await here.session.payments.settle(lost)).phase is Phase.CONFIRMED


async def test_no_path_for_users_is_not_no_feed() -> None:
    """Settling goes on without the quick look."""
    async with scene(paths={"users.info": "user/none"}) as here:
        lost = await here.lose(
            here.session.wallets.deposit(here.user, 5), "drop_before"
        )
        assert (await here.session.payments.settle(lost)).phase is Phase.ABSENT


async def test_a_gap_before_a_payment_that_is_known_ends_with_a_person() -> None:
    """The reading begins with its row, which is gone: settling does not go on."""
    clock = ManualClock()
    async with scene(clock=clock, longest_call=1.0) as here:
        wallets = here.session.wallets

        async def note() -> None:
            sql = here.box._service.deployment.ledger.sql
            (newest,) = sql.execute("SELECT max(id) FROM feed").fetchone()
            seen = await here.store.age()
            cursor = Cursor(trans_id=newest, made_at=clock.now(), seen=seen)
            await here.store.keep_cursor("eur", cursor)

        await wallets.deposit(here.user, 1)
        await wallets.deposit(here.user, 1)
        clock.advance(300)
        await note()
        await wallets.deposit(here.user, 5)
        await note()
        lost = await here.lose(wallets.deposit(here.user, 7), "drop_before")
        ledger = here.box._service.deployment.ledger
        ledger.sql.execute("DELETE FROM feed WHERE id <= 2")
        ticking = asyncio.create_task(tick(clock))
        settled = await here.session.payments.settle(lost)
        ticking.cancel()
        assert settled.phase is Phase.NEEDS_PERSON


async def test_what_a_person_decided_long_ago_counts_no_more() -> None:
    """Its row is deleted, so it explains none."""
    clock = ManualClock()
    async with scene(clock=clock, longest_call=1.0, sole_writer=True) as here:
        wallets, payments = here.session.wallets, here.session.payments
        old = await here.lose(wallets.deposit(here.user, 5), "drop_before")
        clock.advance(47.5 * 3600)
        ticking = asyncio.create_task(tick(clock))
        assert (await payments.settle(old)).phase is Phase.NEEDS_PERSON
        await payments.decide(old, True, "asked them")
        clock.advance(72 * 3600)
        new = await here.lose(wallets.deposit(here.user, 5), "drop_after")
        assert (await payments.settle(new)).phase is Phase.CONFIRMED
        ticking.cancel()


@pytest.mark.realtime
async def test_an_answer_in_between_is_not_overwritten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between a look at the journal and its verdict: all of it is judged again."""
    async with scene(longest_call=0.1, timeout=0.1, abandon_after=30.0) as here:
        wallets = here.session.wallets
        await here.lose(wallets.deposit(here.user, 5), "drop_before")
        # Of this one a verdict can be had while the other still runs.
        await here.lose(wallets.deposit(here.user, 6), "drop_before")
        release = asyncio.Event()
        receive, write = Transport._receive, Settler._write
        first: list[Sending] = []

        async def held(self: Transport, sending: Sending) -> Answer:
            if sending in (first or [sending]):
                first[:] = [sending]
                await release.wait()
            return await receive(self, sending)

        async def slow(self: Settler, *args: Any) -> bool:
            # The late answer comes just now.
            release.set()
            await until(lambda: here.session.gate.statistics().late_answers)
            await asyncio.sleep(0)
            return await write(self, *args)

        monkeypatch.setattr(Transport, "_receive", held)
        with pytest.raises(OutcomeUnknownError):
            await wallets.deposit(here.user, 5)
        monkeypatch.setattr(Settler, "_write", slow)
        # As long as a call may take there, so that settling need not wait for it.
        await asyncio.sleep(0.3)
        settled = await here.session.payments.settle_all()
        assert here.balance == 5
        phases = [i.phase for i in settled]
        assert phases == [Phase.ABSENT, Phase.ABSENT, Phase.CONFIRMED]


# Cut off anywhere.


@pytest.mark.realtime
async def test_a_payment_that_is_cancelled_anywhere_leaves_nothing_open(
    tmp_path: Path,
) -> None:
    """After any number of turns of the loop; what was begun comes to its end."""
    path = tmp_path / "j.db"
    before = {thread.name for thread in threading.enumerate()}
    async with scene(Switches(latency=0.01), SqliteStore(path)) as here:
        wallets = here.session.wallets
        for turns in range(60):
            paying = asyncio.create_task(wallets.deposit(here.user, 5))
            for _ in range(turns):
                # A turn of the loop, or one that a thread has to end.
                await asyncio.sleep(0.0003 if turns > 30 else 0)
            paying.cancel()
            await asyncio.gather(paying, return_exceptions=True)
        moved = await wallets.deposit(here.user, 5)
        assert moved.balance == here.balance
        paying = asyncio.create_task(wallets.deposit(here.user, 5))
        await asyncio.sleep(0)
        paying.cancel()
    again = SqliteStore(path)
    intents = await again.intents()
    await again.aclose()
    assert Phase.SENT not in {i.phase for i in intents}
    happened = [i for i in intents if i.phase in {Phase.DONE, Phase.CONFIRMED}]
    assert len(happened) * 5 == moved.balance
    assert {thread.name for thread in threading.enumerate()} <= before | {
        t.name for t in threading.enumerate() if t.name.startswith("asyncio")
    }


def test_a_coroutine_that_is_closed_outside_of_its_loop_is_unknown(
    tmp_path: Path,
) -> None:
    """The loop has stopped, its owner lives: the journal says what is known."""
    store = SqliteStore(tmp_path / "j.db")

    async def begin() -> Any:
        stack = AsyncExitStack()
        here = await stack.enter_async_context(scene(store=store))
        await here.session.agents.info()
        await here.session.wallets.withdraw_all(here.user)
        here.box.faults.hold("wallet/deposit")
        paying = here.session.wallets.deposit(here.user, 5)
        paying.send(None)
        return stack, paying

    async def end(stack: AsyncExitStack) -> list[Intent]:
        async with asyncio.timeout(20):
            # The disk may still be busy with its beginning.
            while (intents := (await store.intents())[1:]) and (
                intents[0].phase is Phase.SENT
            ):
                await look_again()
        await stack.aclose()
        return intents

    with asyncio.Runner() as runner:
        stack, paying = runner.run(begin())
        paying.close()
        (intent,) = runner.run(end(stack))
    assert intent.phase is Phase.NOT_SENT
