"""What faults showed that no other test looked at: see ``tests/mutants.py``."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import sqlite3
import time
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from redis.exceptions import RedisError

from aio_agentapi import (
    Intent,
    LocalGate,
    MemoryStore,
    Phase,
    Secret,
    SessionManager,
    Settings,
)
from aio_agentapi._budget import Member, Report, SharedBudget, budget_of
from aio_agentapi._cashier import Cashier, Entry, _look
from aio_agentapi._channel import Channel
from aio_agentapi._exchange import Exchange, Exchanges
from aio_agentapi._feed import Transaction, TransType
from aio_agentapi._identity import (
    INFO,
    USER,
    Account,
    Agent,
    Ask,
    Claim,
    Evidence,
    check_service,
    spelled,
)
from aio_agentapi._journal import DEPOSIT, Cursor, Verdict
from aio_agentapi._progress import Noted, Progress
from aio_agentapi._reconcile import Case, Look
from aio_agentapi._settle import Settler
from aio_agentapi._transport import Answer, Sending, Transport
from aio_agentapi._types import REPEATABLE, Moved, Operation
from aio_agentapi._wire import Wire, _int, wire
from aio_agentapi.errors import (
    AgentAPIError,
    DecodeError,
    GateTimeoutError,
    JournalError,
    NotSentError,
    OutcomeUnknownError,
    RefusedError,
    UsageError,
)
from aio_agentapi.redis import RedisGate, RedisGates
from aio_agentapi.sandbox import Sandbox
from tests.conftest import TOKEN, connect, trusted
from tests.property.test_shared import Store
from tests.unit.test_gate import leased

AGENT = {"name": "x", "currency": 978, "balance": 1}


@pytest.mark.realtime
async def test_a_call_that_got_its_permit_leaves_no_timer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The time at which it would have given up may be far away."""
    loop, made = asyncio.get_running_loop(), list[asyncio.TimerHandle]()
    call_at = loop.call_at

    def noted(*args: Any, **options: Any) -> asyncio.TimerHandle:
        made.append(call_at(*args, **options))
        return made[-1]

    monkeypatch.setattr(loop, "call_at", noted)
    gate = LocalGate(limit=1)
    await gate.acquire("interactive")
    waiting = asyncio.ensure_future(gate.acquire("batch", loop.time() + 1000.0))
    await asyncio.sleep(0)
    gate.release("interactive")
    await waiting
    (timer,) = made
    assert timer.cancelled()


class Silent(Transport):
    """A transport whose answers do not come."""

    def sending(self, *, guarded: bool = False) -> Sending:
        """Return what does not go on without its task."""
        return Sending(guarded=guarded)

    async def send(self, path: str, text: bytes, sending: Sending) -> Answer:
        """Wait for ever."""
        await asyncio.Event().wait()
        raise AssertionError(path, text, sending)


def exchanges() -> Exchanges:
    """Make those of a session that nothing answers."""
    settings = Settings()
    silent = Silent("http://127.0.0.1:9", Secret(TOKEN), settings)
    return Exchanges(settings, LocalGate(1), silent, wire("UTC"))


def start(made: Exchanges, operation: Operation[Any] = INFO) -> Exchange[Any]:
    """Start one."""
    return made.start(operation, operation.name, {}, b"{}", "interactive")


async def test_only_what_may_move_money_twice_is_guarded() -> None:
    """Its connection is reset when it is given up; a read may arrive late."""
    made = exchanges()
    assert start(made, DEPOSIT).sending.guarded
    assert not start(made, INFO).sending.guarded


async def test_cutting_ends_every_exchange_that_runs() -> None:
    """It returns the tasks that are about to end; those that ended are not kept."""
    made = exchanges()
    await made.gate.acquire("interactive")
    exchange = start(made)
    waiting = asyncio.ensure_future(
        exchange.wait(asyncio.get_running_loop().time() + 9)
    )
    await asyncio.sleep(0)
    assert made.running == {exchange}
    (task,) = made.cut()
    await asyncio.wait([task])
    assert await waiting
    assert isinstance(exchange.outcome, NotSentError)
    assert not made.running


async def test_a_call_that_ends_before_its_deadline_is_answered(box: Sandbox) -> None:
    """The time of the whole call is not over when its permit comes."""
    async with connect(box, deadline=20) as session:
        assert (await session.agents.info()).name == "operator"


async def test_a_feed_is_not_read_until_a_left_reading_has_ended(box: Sandbox) -> None:
    """However long that takes: its interval is over before."""
    async with connect(
        box, "shop_1", feed_interval=0.01, timeout=0.02, attempts=1
    ) as shop:
        box.faults.hold("game/transaction-id", times=1)
        with pytest.raises(OutcomeUnknownError):
            await anext(shop.transactions.since(0))
        with pytest.raises(GateTimeoutError, match="may not be read again in time"):
            await anext(shop.with_options(max_wait=0.2).transactions.since(0))
        box.faults.clear()


async def test_another_process_is_asked_for_less_and_less(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn that does not end soon costs a few looks in a second."""
    pauses: list[float] = []

    async def pause(_: Channel, seconds: float) -> None:
        pauses.append(seconds)

    async def begin(*_: object, **__: object) -> None:
        if len(pauses) == 10:
            raise JournalError("enough")

    monkeypatch.setattr(Channel, "_pause", pause)
    monkeypatch.setattr(Cashier, "begin", begin)
    monkeypatch.setattr("random.uniform", max)
    async with connect(box) as session:
        with pytest.raises(JournalError, match="enough"):
            await trusted(session).wallets.deposit(1, 5)
    assert pauses == [0.01, 0.02, 0.04, 0.08, 0.16, *[0.25] * 5]


def test_a_refusal_is_one_whatever_its_data() -> None:
    """Also where they have the shape of the record."""
    text = json.dumps({"code": 2002, "message": None, "data": AGENT}).encode()
    found = wire("UTC").decode(INFO, 200, text, str)
    assert isinstance(found, RefusedError)


def test_a_usual_answer_is_read_in_one_pass() -> None:
    """What reads the unusual ones is not asked."""
    nothing: Any = None
    text = json.dumps({"code": 0, "message": None, "data": AGENT}).encode()
    found = Wire(nothing, nothing).decode(INFO, 200, text, str)
    assert isinstance(found, Agent)
    assert found.name == "x"


@attrs.frozen
class Moment:
    """What may be left out, of kinds that are looked at again."""

    amount: Decimal | None
    at: datetime | None


def test_what_may_be_null_is_looked_at_where_it_is_not() -> None:
    """A time without a zone gets one, and no number is no amount."""
    operation = Operation(name="x", effect="read", returns=Moment)

    def read(amount: object, at: object) -> Moment | AgentAPIError:
        data = {"amount": amount, "at": at}
        text = json.dumps({"code": 0, "message": None, "data": data}).encode()
        return wire("Asia/Tokyo").decode(operation, 200, text, str)

    assert read(None, None) == Moment(None, None)
    assert read(1.5, "2026-01-01T00:00:00Z") == Moment(
        Decimal("1.5"), datetime(2026, 1, 1, tzinfo=UTC)
    )
    assert isinstance(read("NaN", None), DecodeError)
    assert read(1, "2026-01-01T09:00:00") == Moment(
        Decimal(1), datetime(2026, 1, 1, tzinfo=UTC)
    )


def test_a_number_with_a_point_is_whole_up_to_64_bits() -> None:
    """A short one may be longer than all memory: it is not even looked at."""
    assert _int(Decimal(2**63 - 1), int) == 2**63 - 1
    for wrong in (Decimal(2**63), Decimal("1e999999")):
        with pytest.raises(ValueError, match="not a whole number"):
            _int(wrong, int)


def test_the_window_of_a_payment_ends_when_it_is_over() -> None:
    """By the age of the journal: whatever age it had when the payment began."""
    made = datetime(2026, 1, 1, tzinfo=UTC)
    intent = Intent(
        id=1,
        operation="wallets.deposit",
        user_code=1,
        amount=Decimal(5),
        created_at=made,
        born=5000.0,
        quiet=5010.0,
        longest=20.0,
    )
    look = Look(start=0, at=made, begun=0, ended=0, users=frozenset(), rows={})
    window = Case([intent], look, None, Settings())._window(intent)
    assert window.last is not None
    assert (window.last - made) - (made - window.first) == timedelta(seconds=30)


async def test_connections_come_from_the_local_address(box: Sandbox) -> None:
    """As many as are needed: each has a port of its own."""
    async with connect(box, local_address="127.0.0.2", attempts=1) as session:
        found = await asyncio.gather(*(session.agents.info() for _ in range(3)))
    assert [each.client_ip for each in found] == ["127.0.0.2"] * 3


class Gone:
    """A connection that has gone in the turn in which it was there."""

    protocol = None
    closed = False

    def close(self) -> None:
        """Note that it is given back."""
        self.closed = True


async def test_a_connection_that_has_gone_at_once_is_given_back() -> None:
    """And nothing was sent."""
    transport = Transport("http://127.0.0.1:9", Secret(TOKEN), Settings())
    sending, gone = transport.sending(), Gone()

    async def connected(_: object) -> Any:
        return gone

    transport._connect = connected
    with pytest.raises(NotSentError):
        await transport.send("agent/info", b"{}", sending)
    assert gone.closed
    await transport.aclose()


def test_an_intent_that_is_not_written_down_says_nothing_more() -> None:
    """What only the journal knows is not there before."""
    fields = attrs.asdict(Intent(operation="x", user_code=1, amount=None))
    numbers = {"longest", "unacked", "born", "aged"}
    assert {name: fields[name] for name in numbers} == dict.fromkeys(numbers, 0.0)
    times = {"created_at", "changed_at", "lost_at", "quiet"}
    others = {"key", "follows", "successor", "moved", "trans_id", "note"}
    nothing = times | others
    assert {name: fields[name] for name in nothing} == dict.fromkeys(nothing)
    assert {name: fields[name] for name in ("id", "account", "phase")} == {
        "id": 0,
        "account": "",
        "phase": "intent",
    }
    assert fields["cursor"] == {"trans_id": 0, "made_at": None, "seen": 0.0}


async def test_a_contradicted_verdict_leaves_no_row_of_the_feed() -> None:
    """What moved, and what proves it, is for a person to say."""
    store = MemoryStore()
    intent = await store.begin(
        Intent(operation=DEPOSIT.name, user_code=1, amount=Decimal(5)), lambda: 1.0
    )
    assert intent is not None
    for phase, late in [
        (Phase.UNKNOWN, False),
        (Phase.ABSENT, False),
        (Phase.CONFIRMED, True),
    ]:
        moved = Moved(amount=Decimal(5), balance=Decimal(7)) if late else None
        number = 9 if late else None
        verdict = Verdict(
            id=intent.id, phase=phase, moved=moved, trans_id=number, late=late
        )
        (intent,) = await store.write([verdict], lambda: 1.0)
    assert intent.phase is Phase.NEEDS_PERSON
    assert (intent.moved, intent.trans_id) == (None, None)


async def test_a_late_response_decides_what_was_never_written_as_unknown() -> None:
    """The disk was full when its caller left: it ends all the same."""
    store = MemoryStore()
    intent = await store.begin(
        Intent(operation=DEPOSIT.name, user_code=1, amount=Decimal(5)), lambda: 1.0
    )
    assert intent is not None
    moved = Moved(amount=Decimal(5), balance=Decimal(7))
    verdict = Verdict(id=intent.id, phase=Phase.CONFIRMED, moved=moved, late=True)
    (intent,) = await store.write([verdict], lambda: 2.0)
    assert (intent.phase, intent.moved) == (Phase.CONFIRMED, moved)


CLAIM = Claim(names=("eur",), token="t1", url="https://play.example")
OTHER = attrs.evolve(CLAIM, names=("main",), token="t2")


@pytest.mark.parametrize(
    ("known", "told"),
    [
        # Renamed; and told before by a deployment that has no numbers.
        (Agent(name="shop", currency=978, agent_code=7), {"name": "new"}),
        (Agent(name="shop", currency=978), {"agent_code": 7}),
    ],
    ids=["number", "name"],
)
async def test_an_account_is_found_by_what_its_agent_is_called(
    known: Agent, told: dict[str, Any]
) -> None:
    """By its number, or by its name and its currency; a user it has paid tells."""
    store = MemoryStore()
    account = await store.recognise(CLAIM, Evidence(agent=known))
    assert isinstance(account, Account)
    assert await store.accounts() == [account]
    assert account.agent == known
    intent = await store.begin(
        Intent(account="eur", operation=DEPOSIT.name, user_code=5, amount=Decimal(5)),
        lambda: 1.0,
    )
    assert intent is not None
    moved = Moved(amount=Decimal(5), balance=Decimal(7))
    await store.write(
        [Verdict(id=intent.id, phase=Phase.DONE, moved=moved)], lambda: 1.0
    )
    seen = Evidence(agent=attrs.evolve(known, **told))
    assert await store.recognise(OTHER, seen) == Ask("eur", 5)


def test_the_port_of_the_scheme_goes_without_saying() -> None:
    """Of both schemes."""
    assert spelled("http://play.example:80") == "http://play.example"
    assert spelled("http://play.example:443") == "http://play.example:443"


def test_a_refusal_names_an_agent_only_where_there_is_one() -> None:
    """Nothing is said of what was not asked."""
    elsewhere = Account(label="eur", urls=frozenset({"https://other.example"}))
    with pytest.raises(UsageError) as caught:
        check_service(CLAIM, elsewhere)
    assert f"The session is {CLAIM}; {elsewhere}. Nothing was sent" in str(caught.value)


def test_what_is_asked_before_a_payment_may_be_asked_again() -> None:
    """Whose token it is changes nothing."""
    assert {INFO.effect, USER.effect} <= REPEATABLE


async def test_waiting_for_quiet_ends_with_the_last_payment() -> None:
    """Not when its time is over, and not while another one is under way."""
    cashier = Cashier(MemoryStore(), CLAIM, keep=1.0)
    async with cashier.turn(1, None):
        async with cashier.turn(2, None):
            waiting = asyncio.ensure_future(cashier.idle(60.0))
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
    async with asyncio.timeout(10):
        await waiting


async def test_what_nobody_waits_for_is_not_told_at_the_end() -> None:
    """An error of the journal is in the log, and not on the screen as well."""
    loop, told = asyncio.get_running_loop(), list[object]()
    loop.set_exception_handler(lambda _, context: told.append(context))
    failed = loop.create_future()
    failed.add_done_callback(_look)
    failed.set_exception(OSError("no room"))
    await asyncio.sleep(0)
    del failed
    gc.collect()
    assert not told


async def test_an_entry_of_which_nothing_was_said_has_nothing_to_wait_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No error is made of that."""
    intent = Intent(operation=DEPOSIT.name, user_code=1, amount=Decimal(5))
    cashier = Cashier(MemoryStore(), CLAIM, keep=1.0)
    await Entry(intent, cashier).written(None)
    assert not caplog.records


def unknown(number: int, user: int, quiet: float | None = 0.0) -> Intent:
    """Make a payment whose outcome nobody knows."""
    return Intent(
        id=number,
        operation=DEPOSIT.name,
        user_code=user,
        amount=Decimal(5),
        phase=Phase.UNKNOWN,
        created_at=datetime.now(UTC),
        quiet=quiet,
    )


def look(begun: float = 0.0) -> Look:
    """Make a reading that found nothing."""
    now = datetime.now(UTC)
    return Look(start=0, at=now, begun=begun, ended=begun, users=frozenset(), rows={})


async def test_only_who_is_not_there_was_not_paid(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not another user, and not where an attempt still runs."""
    async with connect(box, "shop_1") as shop:
        settler, user = (
            shop.payments._settler,
            (await shop.users.create("anna")).user_code,
        )
        written: list[Verdict] = []

        async def write(_: Settler, verdicts: list[Verdict]) -> None:
            written.extend(verdicts)

        monkeypatch.setattr(Settler, "_write", write)
        left = [unknown(1, user), unknown(2, 999), unknown(3, 999, None)]
        await settler._ask(left, look())
    assert [(each.id, each.phase) for each in written] == [(2, Phase.ABSENT)]


async def test_the_feed_is_read_again_when_it_may_tell_more(box: Sandbox) -> None:
    """An interval after the last reading began, by the age of the journal."""
    async with connect(box, feed_interval=0.05) as session:
        settler = session.payments._settler
        before = look(await settler._age())
        since = await settler._wait([], before)
        assert since == before.begun + 0.05
        assert await settler._age() >= since


async def test_settling_elsewhere_is_told_of(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, when it has taken a while."""
    monkeypatch.setattr("aio_agentapi._settle._ELSEWHERE", 0.0)
    store = MemoryStore()
    async with SessionManager(box.base_url, store=store) as manager:
        session = manager.session(box.token("operator"))
        settler, lost = trusted(session).payments._settler, unknown(1, 1)
        assert await store.take_feed("eur")
        looks: list[object] = []

        async def left(*_: object) -> list[Intent]:
            looks.append(None)
            return [lost] if len(looks) < 100 else []

        monkeypatch.setattr(Settler, "_left", left)
        await settler._settle(frozenset({1}), [lost])
    assert [each.getMessage() for each in caplog.records] == [
        "another program settles payments of 'eur': waiting"
    ]


async def test_only_a_failed_reading_ahead_is_told_of(
    box: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """With what it failed of."""
    caplog.set_level("INFO", "aio_agentapi")

    async def work(error: Exception | None = None) -> None:
        if error is not None:
            raise error

    async with connect(box) as session:
        for error in (None, ValueError("x")):
            task = asyncio.ensure_future(work(error))
            await asyncio.wait([task])
            session.payments._settler._cooled(task)
    assert [each.getMessage() for each in caplog.records] == [
        "the feed could not be read ahead: x"
    ]


@pytest.mark.parametrize(("hours", "agrees"), [(3.5, True), (4.5, False)])
def test_a_payment_may_have_its_row_as_late_as_it_took(
    hours: float, *, agrees: bool
) -> None:
    """By the clock and the age together, and an hour more."""
    made = datetime(2026, 1, 1, tzinfo=UTC)
    lost = attrs.evolve(unknown(2, 1), created_at=made)
    moved = Moved(amount=Decimal(5), balance=Decimal(5))
    paid = attrs.evolve(
        lost, id=1, phase=Phase.DONE, moved=moved, born=0.0, aged=3 * 3600.0
    )
    row = Transaction(
        trans_id=5000,
        user_code=1,
        round_id="",
        trans_type=TransType.DEPOSIT,
        provider_id=0,
        provider_name="",
        game_code="",
        game_name="",
        category="",
        prebalance=Decimal(0),
        trans_amount=Decimal(5),
        balance=Decimal(5),
        regdate=made + timedelta(hours=hours),
    )
    case = Case([paid, lost], look(), None, Settings())
    assert case._timed([paid], [lost], {1: [row]}) == ({2} if agrees else set())


@pytest.mark.parametrize(("aged", "found"), [(10.0, True), (99.0, False)])
def test_what_has_happened_and_has_no_row_is_missed(
    aged: float, *, found: bool
) -> None:
    """Where it is behind the row that the reading began with, and old enough."""
    anchor = attrs.evolve(unknown(1, 1), cursor=Cursor(trans_id=5000))
    moved = Moved(amount=Decimal(5), balance=Decimal(5))
    paid = attrs.evolve(anchor, id=2, phase=Phase.DONE, moved=moved, aged=aged)
    case = Case([anchor, paid], look(100.0), anchor, Settings(feed_lag=5.0))
    missing = {(TransType.DEPOSIT, Decimal(5))} if found else set()
    assert case._missing([paid], {}) == missing
    assert not case._missing([paid], {5001: paid})


def noted(position: int) -> Noted:
    """Make a row of a plan."""
    return Noted(position, position, 7, "1", f"r-{position}", own=False)


async def test_a_progress_file_says_how_far_it_came(tmp_path: Path) -> None:
    """How many rows its plan has, and what kind of file it is."""
    path = tmp_path / "p"
    progress = await Progress.open(path, None)

    async def plan() -> AsyncGenerator[Noted]:
        for position in range(1, 4):
            yield noted(position)

    assert [row.position async for row in progress.through(plan())] == [1, 2, 3]
    await progress.aclose()
    again = await Progress.open(path, None)
    assert (again.run, again.finished) == (progress.run, 3)
    await again.aclose()
    with contextlib.closing(sqlite3.connect(path)) as sql:
        assert sql.execute("PRAGMA user_version").fetchone() == (1,)
        assert sql.execute("PRAGMA application_id").fetchone() == (0x61675031,)


@pytest.mark.realtime
async def test_a_group_is_due_by_its_age_or_its_size(tmp_path: Path) -> None:
    """With at least one row in it."""
    progress = await Progress.open(tmp_path / "p", None)
    now, old = time.monotonic() + 1000.0, time.monotonic() - 1.0
    for rows, written, due in [
        (0, old, False),
        (1, old, True),
        (1, now, False),
        (499, now, False),
        (500, now, True),
    ]:
        progress._fresh = {n: noted(n) for n in range(rows)}
        progress._written = written
        assert progress.is_due is due, (rows, due)
    progress._fresh = {}
    await progress.aclose()


def test_a_budget_is_told_to_be_overdrawn_when_that_grows(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each time, and not with every answer."""
    gate = leased(4)
    for overdrawn in (0, 3, 3, 5, 5):
        gate.answered(gate.report(), (4, 1, 0, overdrawn, 0))
    assert [each.getMessage() for each in caplog.records] == [
        f"the shared budget was overdrawn by {n} so far" for n in (3, 5)
    ]


@pytest.mark.parametrize("answered", [False, True])
def test_a_lease_that_is_over_starts_no_call(*, answered: bool) -> None:
    """Whether the store does not answer, or its answer came too late."""
    now = [0.0]
    gate = leased(4)
    gate._clock = lambda: now[0]
    report = gate.report()
    assert gate.statistics().limit == 4
    now[0] = 4.5
    if answered:
        gate.answered(report, (4, 1, 0, 0, 0))
    else:
        gate.failed()
    assert (gate._limit, gate._lost) == (0, False)


def test_what_is_reported_after_the_lease_is_what_is_in_flight() -> None:
    """The rest is given back before that is said."""
    now = [0.0]
    gate = leased(4)
    gate._clock = lambda: now[0]
    assert gate.report().held == 4
    now[0] = 4.5
    assert gate.report().held == 0


@pytest.mark.parametrize("change", ["acquire", "release", "refused"])
async def test_no_call_starts_when_the_lease_is_over(change: str) -> None:
    """Not one that comes, and none with what a call gives back."""
    now = [0.0]
    gate = leased(2)
    gate._clock = lambda: now[0]
    gate.answered(gate.report(), (2, 1, 0, 0, 0))
    await gate.acquire("interactive")
    await gate.acquire("interactive")
    now[0] = 4.5
    if change == "acquire":
        gate.acquire("interactive").close()
        assert gate._target == 0
    else:
        waiting = asyncio.ensure_future(LocalGate.acquire(gate, "interactive"))
        await asyncio.sleep(0)
        getattr(gate, change)("interactive")
        state = gate.statistics()
        assert (state.limit, state.in_use, state.withheld) == (1, 1, 0)
        waiting.cancel()


@pytest.mark.parametrize("change", ["_return", "_probe"])
async def test_no_timer_starts_a_call_when_the_lease_is_over(change: str) -> None:
    """Neither with a permit that has lingered, nor as a probe."""
    now = [0.0]
    gate = leased(1)
    gate._clock = lambda: now[0]
    gate.answered(gate.report(), (1, 1, 0, 0, 0))
    await gate.acquire("interactive")
    if change == "_return":
        gate.give_up("interactive", 1000.0)
    else:
        gate.refused("interactive")
    waiting = asyncio.ensure_future(gate.acquire("interactive", again=True))
    await asyncio.sleep(0)
    now[0], gate._told = 4.5, -1000.0
    getattr(gate, change)()
    state = gate.statistics()
    assert (state.limit, state.in_use, state.waiting) == (0, 0, 1)
    waiting.cancel()


def test_one_failure_does_not_say_that_the_store_is_gone() -> None:
    """It may be this process that was stopped; the second one says so."""
    now = [0.0]
    gate = leased(4)
    gate._clock = lambda: now[0]
    gate.report()
    now[0] = 4.5
    gate.failed()
    assert not gate.statistics().lost
    gate.failed()
    assert gate.statistics().lost


class Kept(RedisGates):
    """A store that gives what is asked for, and keeps what it was told."""

    reports: list[tuple[int, bool]]

    async def carry(
        self, gate: RedisGate, report: Report, *, leaves: bool = False
    ) -> tuple[int, int, int, int, int]:
        """Keep a report."""
        self.reports.append((report.held, leaves))
        return gate.budget, 1, 0, 0, 0

    async def enter(self, gate: RedisGate) -> None:
        """Have no news."""

    async def forget(self, gate: RedisGate) -> None:
        """Have nothing to forget."""


async def test_what_nobody_uses_is_given_back_at_the_end() -> None:
    """What is in flight is kept for the quarantine, and nothing else."""
    store = Kept(url="redis://127.0.0.1:9")
    store.reports = []
    gate = store(Secret(TOKEN), Settings(limit=4))
    await gate.acquire("interactive")
    assert gate.statistics().limit == 4
    await gate.aclose()
    assert store.reports[-1] == (1, True)


async def test_a_report_that_was_overtaken_is_no_answer() -> None:
    """The store did not carry it out."""
    gates = RedisGates(url="redis://127.0.0.1:9")
    gate = gates(Secret(TOKEN), Settings())

    async def script(**_: object) -> list[int]:
        return [-1]

    gates._script = script
    with pytest.raises(RedisError, match="overtaken"):
        await gates.carry(gate, gate.report())


def test_a_budget_is_who_holds_what_at_a_moment() -> None:
    """Times are the store's, in milliseconds; who is gone for good is left out."""
    rows = {
        "a": "2 3 4000 9000 39000 7 two:1",
        "b": "1 0 4500 9500 39500 3 one:1",
        # Both are dead; the quarantine of the second is over.
        "d": "4 4 1000 5000 6500 9 one:1",
        "c": "8 8 1000 2000 6000 9 one:1",
    }
    budget = budget_of(rows, 5, 6.0, 50)
    alive: Any = {"dead": False, "frees": None}
    assert budget == SharedBudget(
        limit=50,
        held=3,
        quarantined=4,
        overdrawn=5,
        members=(
            Member(id="b", label="one:1", held=1, wanted=0, age=1.5, **alive),
            Member(
                id="d",
                label="one:1",
                held=4,
                wanted=4,
                age=5.0,
                dead=True,
                frees=0.5,
            ),
            Member(id="a", label="two:1", held=2, wanted=3, age=2.0, **alive),
        ),
    )
    # At its end a lease is over; and no time is before the last word.
    (at_its_end,) = budget_of({"a": rows["a"]}, 0, 9.0, 50).members
    assert (at_its_end.dead, at_its_end.frees) == (True, 30.0)
    (before,) = budget_of({"a": rows["a"]}, 0, 3.0, 50).members
    assert (before.dead, before.age) == (False, 0.0)


def tell(
    store: Store, member: str, number: int, held: int, wanted: int, limit: int = 10
) -> tuple[int, ...]:
    """Report to a simulated store, which runs SCRIPT; return its answer."""
    report = Report(number=number, held=held, wanted=wanted, sent=0.0)
    answer: tuple[int, ...] = store.carry(member, report, limit)[0]
    return answer


def test_after_another_server_what_is_claimed_goes_round() -> None:
    """What is given back meanwhile, and no more than that."""
    store = Store(lambda: 100.0)
    assert tell(store, "a", 1, 0, 3)[0] == 3
    assert tell(store, "b", 1, 0, 2)[0] == 2
    # The rows of the old one are there.
    store.run, store.began = "b", 100.0
    assert tell(store, "b", 2, 2, 9)[0] == 2
    tell(store, "a", 2, 1, 1)
    assert tell(store, "b", 3, 2, 9)[0] == 4


@pytest.mark.parametrize(("limit", "overdrawn"), [(10, 1), (3, 4)])
def test_a_budget_is_overdrawn_by_what_does_not_fit(limit: int, overdrawn: int) -> None:
    """By no more than somebody came back with."""
    store = Store(lambda: 100.0)
    tell(store, "a", 1, 0, 2)
    tell(store, "b", 1, 0, 5)
    # It holds two as the store has it.
    assert tell(store, "a", 2, 6, 6, limit)[3] == overdrawn


def test_a_row_of_the_store_has_its_times_in_milliseconds() -> None:
    """When it was heard, when its lease ends, and until when its permits are kept."""
    store = Store(lambda: 100.25)
    tell(store, "a", 7, 0, 3)
    words = store.hashes["members"]["a"].split()
    heard = 1_000_100_250
    times = [heard, heard + 1000, heard + 3000]
    assert words[:6] == [*"33", *map(str, times), "7"]


def test_the_row_of_a_dead_member_stays_as_long_as_it_holds_something() -> None:
    """Until the end of the quarantine; one that holds nothing is struck at once."""
    now = [100.0]
    store = Store(lambda: now[0])
    tell(store, "a", 1, 0, 1)
    tell(store, "b", 1, 0, 0)
    now[0] += 1.0
    assert tell(store, "c", 1, 0, 0)[1:3] == (1, 1)
    assert store.hashes["members"].keys() == {"a", "c"}
    now[0] += 2.0
    assert tell(store, "c", 2, 0, 0)[1:3] == (1, 0)
    assert store.hashes["members"].keys() == {"c"}


async def test_settling_looks_again_soon_while_an_equal_payment_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a pause each time: the feed is not asked for that."""
    channel: Any = SimpleNamespace(
        settings=Settings(), cashier=Cashier(MemoryStore(), CLAIM, keep=1.0)
    )
    settler, lost = Settler(channel), unknown(1, 1)
    looks: list[float] = []

    async def reading(*_: object) -> Look:
        return look(await settler._age())

    async def judge(*_: object) -> bool:
        return True

    async def left(*_: object) -> list[Intent]:
        return [lost] if len(looks) < 3 else []

    async def nothing(*_: object) -> None:
        pass

    async def sleep(seconds: float) -> None:
        looks.append(seconds)

    monkeypatch.setattr(Settler, "_reading", reading)
    monkeypatch.setattr(Settler, "_judge", judge)
    monkeypatch.setattr(Settler, "_left", left)
    monkeypatch.setattr(Settler, "_ask", nothing)
    monkeypatch.setattr("aio_agentapi._settle.asyncio.sleep", sleep)
    async with asyncio.timeout(5):
        await settler._read_and_judge(frozenset({1}), [lost])
    assert looks == [0.05] * 3
