"""What OpenTelemetry is told, by its own SDK, and what it is not told."""

from __future__ import annotations

import ast
import asyncio
import gc
import os
import re
import signal
import subprocess
import sys
import weakref
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import attrs
import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import (
    ReadableSpan,
    Span,
    SpanProcessor,
    TracerProvider,
)
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from aio_agentapi import (
    LocalGate,
    Session,
    SessionManager,
    Settings,
    SqliteStore,
    Transaction,
    TransType,
)
from aio_agentapi._channel import Channel
from aio_agentapi._feed import PAGE, Ripe
from aio_agentapi._journal import PAYMENTS
from aio_agentapi._telemetry import _COUNTS, _GAUGES, Watched
from aio_agentapi.errors import (
    FundsError,
    GateTimeoutError,
    NotSentError,
    OutcomeUnknownError,
    UnsupportedError,
)
from aio_agentapi.sandbox import Sandbox, Switches
from tests.fault.test_late import idle, sent, start
from tests.waiting import look_again

ROOT = Path(__file__).parents[2]
PAGE_TEXT = ROOT / "docs" / "telemetry.md"

# In no other number of the tests.
AMOUNT = "77.7531"
# The tokens of the stand-ins.
SECRETS: set[str] = set()


@attrs.define
class Told:
    """What was told, as the SDK has it."""

    spans_of: InMemorySpanExporter
    reader: InMemoryMetricReader

    def spans(self, name: str) -> list[ReadableSpan]:
        """Return the spans of an operation, in the order of their ends."""
        return [s for s in self.spans_of.get_finished_spans() if s.name == name]

    def span(self, name: str) -> ReadableSpan:
        """Return the one span of an operation."""
        (span,) = self.spans(name)
        return span

    def points(self, name: str) -> dict[frozenset[tuple[str, Any]], Any]:
        """Return what a metric tells now, by its attributes."""
        return {
            frozenset(dict(point.attributes or {}).items()): point
            for metric in self.metrics()
            if metric.name == name
            for point in metric.data.data_points
        }

    def number(self, name: str, **attributes: str) -> Any:
        """Return the sum of what a metric tells now where its attributes are these."""
        wanted = {
            (f"agentapi.{key}" if key in OWN else key.replace("_", "."), value)
            for key, value in attributes.items()
        }
        found = [p for have, p in self.points(name).items() if wanted <= have]
        return sum(p.count if hasattr(p, "count") else p.value for p in found)

    def metrics(self) -> Iterator[Any]:
        """Read, and return every metric."""
        read = self.reader.get_metrics_data()
        for resource in read.resource_metrics if read else ():
            for scope in resource.scope_metrics:
                yield from scope.metrics

    def text(self) -> str:
        """Return all that was told."""
        read = self.reader.get_metrics_data()
        told = [span.to_json() for span in self.spans_of.get_finished_spans()]
        return "\n".join([*told, read.to_json() if read else ""])


OWN = {"account", "happened", "outcome", "lane", "phase"}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Generator[Told]:
    """
    Set providers for the sessions of a test; the SDK's own way is once for all.

    Whatever the test does: no token, no amount and no user is in what was told.
    """
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers, meters = TracerProvider(), MeterProvider([reader])
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: tracers)
    monkeypatch.setattr(metrics, "get_meter_provider", lambda: meters)
    told = Told(spans, reader)
    yield told
    text = told.text().lower()
    assert text
    for secret in (*SECRETS, AMOUNT, "anna", "user_code"):
        assert secret not in text


@asynccontextmanager
async def managing(box: Sandbox, **settings: Any) -> AsyncGenerator[SessionManager]:
    """Open a manager with two named accounts."""
    accounts = {"op": box.token("operator"), "shop": box.token("shop_1")}
    SECRETS.update(token.lower() for token in accounts.values())
    async with SessionManager(
        box.base_url, accounts=accounts, settings=Settings(**settings)
    ) as manager:
        yield manager


def events(span: ReadableSpan) -> list[str]:
    """Return the names of a span's events."""
    return [event.name.removeprefix("agentapi.") for event in span.events]


def has(span: ReadableSpan) -> dict[str, Any]:
    """Return the attributes of a span."""
    return dict(span.attributes or {})


async def test_a_call(box: Sandbox, told: Told) -> None:
    """It is one span of a client, with the service and the account, and counted."""
    async with managing(box) as manager:
        await manager.session("op").agents.info()
        span = told.span("agents.info")
        assert span.kind is trace.SpanKind.CLIENT
        assert span.status.status_code is trace.StatusCode.UNSET
        assert events(span) == ["sending"]
        waited = has(span).pop("agentapi.waited")
        assert 0 <= waited < 1
        service = {
            "rpc.system.name": "agentapi",
            "server.address": "127.0.0.1",
            "server.port": int(box.base_url.rpartition(":")[2]),
            "agentapi.account": "op",
        }
        result = {
            "rpc.method": "agents.info",
            "agentapi.outcome": "ok",
            "agentapi.happened": "yes",
            "rpc.response.status_code": "0",
        }
        assert has(span) == service | result | {
            "agentapi.lane": "interactive",
            "agentapi.sendings": 1,
            "agentapi.waited": waited,
        }
        durations = told.points("rpc.client.call.duration")
        assert {*durations} == {frozenset((service | result).items())}
        (point,) = durations.values()
        assert point.count == 1
        assert 0 < point.sum < 10
        assert 0.005 in point.explicit_bounds
        assert told.number("agentapi.gate.wait_time", lane="interactive") == 1


async def test_the_span_is_the_parent_of_what_happens_in_it(
    box: Sandbox, told: Told
) -> None:
    """And its caller's span is above it."""
    tracer = trace.get_tracer_provider().get_tracer("test")
    inside: list[trace.SpanContext] = []

    class Gate(LocalGate):
        async def acquire(self, *args: Any, **more: Any) -> None:
            inside.append(trace.get_current_span().get_span_context())
            await super().acquire(*args, **more)

    async with SessionManager(
        box.base_url, gate=lambda _, settings: Gate(limit=settings.limit)
    ) as manager:
        with tracer.start_as_current_span("mine"):
            await manager.session(box.token("operator")).agents.info()
        assert not trace.get_current_span().is_recording()
    span = told.span("agents.info")
    assert span.parent == told.span("mine").context
    assert inside == [span.context]


async def test_a_lost_answer_of_a_read(box: Sandbox, told: Told) -> None:
    """It is an event, and so is the second sending."""
    box.faults.drop_after("agent/info", times=1)
    async with managing(box) as manager:
        await manager.session("op").agents.info()
    span = told.span("agents.info")
    assert events(span) == ["sending", "answer_lost", "sending"]
    lost = span.events[1].attributes or {}
    assert dict(lost) == {"error.type": "OutcomeUnknownError"}
    assert [(e.attributes or {}).get("agentapi.attempt") for e in span.events] == [
        1,
        None,
        2,
    ]
    assert has(span)["agentapi.sendings"] == 2
    assert has(span)["agentapi.happened"] == "yes"


async def test_a_service_that_is_busy(box: Sandbox, told: Told) -> None:
    """1018 is an event and counted, and no attempt."""
    box.faults.busy(1, "agent/info")
    async with managing(box) as manager:
        await manager.session("op").agents.info()
        assert told.number("agentapi.gate.busy_answers", account="op") == 1
    span = told.span("agents.info")
    assert events(span) == ["sending", "busy", "sending"]
    assert [(e.attributes or {}).get("agentapi.attempt") for e in span.events] == [
        1,
        None,
        1,
    ]
    assert has(span)["agentapi.sendings"] == 1
    assert has(span)["agentapi.outcome"] == "ok"


async def test_a_refusal(box: Sandbox, told: Told) -> None:
    """It has the service's code, and not what the service wrote."""
    async with managing(box) as manager:
        shop = manager.session("shop")
        user = (await shop.users.create("anna")).user_code
        with pytest.raises(FundsError):
            await shop.wallets.withdraw(user, AMOUNT)
        assert told.number("agentapi.payments.lost") == 0
    span = told.span("wallets.withdraw")
    assert has(span)["error.type"] == "FundsError"
    assert has(span)["rpc.response.status_code"] == "2006"
    assert has(span)["agentapi.happened"] == "no"
    assert has(span)["agentapi.intent"] == 1
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.status.description is None


async def test_a_call_out_of_time_with_a_late_answer(box: Sandbox, told: Told) -> None:
    """Its span ends for its caller, and has the answer that came later."""
    box.faults.hold("agent/info")
    async with managing(box, timeout=0.1, attempts=1) as manager:
        session = manager.session("op")
        with pytest.raises(OutcomeUnknownError):
            await session.agents.info()
        # Not handed over yet.
        assert told.spans("agents.info") == []
        assert told.number("agentapi.gate.detached", account="op") == 1
        assert told.number("rpc.client.call.duration", happened="maybe") == 1
        box.faults.clear()
        await idle(session)
        assert told.number("agentapi.gate.late_answers", account="op") == 1
    span = told.span("agents.info")
    assert events(span) == ["sending", "left_running", "late_answer"]
    assert dict(span.events[2].attributes or {}) == {
        "rpc.response.status_code": "0",
        "agentapi.happened": "yes",
    }
    assert span.end_time is not None
    assert span.events[1].timestamp <= span.end_time < span.events[2].timestamp
    assert has(span)["error.type"] == "OutcomeUnknownError"


async def test_a_payment_that_becomes_unknown(box: Sandbox, told: Told) -> None:
    """It is counted as it happens, and as long as nobody knows."""
    box.faults.drop_after("wallet/deposit", times=1)
    async with managing(box, feed_lag=0.0, longest_call=0.1) as manager:
        shop = manager.session("shop")
        user = (await shop.users.create("anna")).user_code
        with pytest.raises(OutcomeUnknownError):
            await shop.wallets.deposit(user, AMOUNT)
        assert told.number("agentapi.payments.lost", account="shop") == 1
        assert await unknown(told, shop) == 1
        await shop.payments.settle_all()
        assert await unknown(told, shop) == 0
        assert told.number("agentapi.payments.lost", account="shop") == 1
    span = told.span("wallets.deposit")
    assert events(span) == ["sending", "answer_lost"]
    assert has(span)["agentapi.happened"] == "maybe"


async def unknown(told: Told, session: Session) -> Any:
    """Return how many payments are unknown; the journal is asked for the next time."""
    name = "agentapi.payments.unknown"
    told.number(name)
    channel = session._channel
    assert isinstance(channel, Watched)
    await asyncio.sleep(0)
    assert channel._seen.looking
    while channel._seen.looking:
        await look_again()
    return told.number(name, phase="unknown")


async def test_a_journal_that_cannot_be_read(
    box: Sandbox, told: Told, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It tells no number, and says so in the log."""
    caplog.set_level("INFO", "aio_agentapi.telemetry")
    # A folder is no journal.
    store = SqliteStore(tmp_path)
    async with SessionManager(box.base_url, store=store) as manager:
        session = manager.session(box.token("shop_1"))
        await session.agents.info()
        assert await unknown(told, session) == 0
        assert told.points("agentapi.payments.unknown") == {}
    assert "could not be counted" in caplog.text


async def test_a_payment_that_is_left_is_unknown_until_its_late_answer(
    box: Sandbox, told: Told
) -> None:
    """Which says what became of it."""
    box.faults.hold("wallet/deposit")
    async with managing(box) as manager:
        shop = manager.session("shop")
        user = (await shop.users.create("anna")).user_code
        call = start(shop.wallets.deposit(user, AMOUNT))
        while not box.received.get("wallet/deposit"):
            await look_again()
        call.cancel()
        with suppress(asyncio.CancelledError):
            await call
        assert told.number("agentapi.payments.lost", account="shop") == 1
        box.faults.clear()
        await idle(shop)
        assert (await shop.users.info(user)).balance == Decimal(AMOUNT)
    span = told.span("wallets.deposit")
    assert events(span) == ["sending", "left_running", "late_answer"]
    assert has(span)["agentapi.outcome"] == "cancelled"
    assert has(span)["agentapi.happened"] == "maybe"


async def test_a_cancelled_call(box: Sandbox, told: Told) -> None:
    """In line nothing has happened; in flight it may have."""
    box.faults.hold()
    async with managing(box, limit=1) as manager:
        session = manager.session("op")
        flying = start(session.agents.info())
        await sent(box, 1)
        standing = start(session.points.balance())
        await asyncio.sleep(0)
        for lane, count in (("interactive", 1), ("batch", 0)):
            assert told.number("agentapi.gate.waiting", lane=lane) == count
        for call in (standing, flying):
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        box.faults.clear()
        await idle(session)
    for name, happened, seen in (
        ("agents.info", "maybe", ["sending", "left_running", "late_answer"]),
        ("points.balance", "no", []),
    ):
        span = told.span(name)
        assert has(span)["agentapi.outcome"] == "cancelled"
        assert has(span)["error.type"] == "CancelledError"
        assert has(span)["agentapi.happened"] == happened
        assert events(span) == seen


async def test_who_waits_in_vain(box: Sandbox, told: Told) -> None:
    """The time is told, also of a call that was not sent."""
    box.faults.hold()
    async with managing(box, limit=1) as manager:
        session = manager.session("op")
        first = start(session.agents.info())
        await sent(box, 1)
        with pytest.raises(GateTimeoutError):
            await session.with_options(max_wait=0.1).points.balance()
        box.faults.clear()
        await first
    span = told.span("points.balance")
    assert has(span)["agentapi.waited"] >= 0.1
    assert has(span)["agentapi.sendings"] == 0
    assert "rpc.response.status_code" not in has(span)


async def test_a_service_that_is_not_there(told: Told) -> None:
    """Each sending in vain is an event."""
    async with SessionManager(
        "http://127.0.0.1:1", accounts={"op": "t"}, settings=Settings(attempts=1)
    ) as manager:
        with pytest.raises(NotSentError):
            await manager.session("op").agents.info()
    span = told.span("agents.info")
    assert events(span) == ["sending", "not_sent"]
    assert has(span)["agentapi.happened"] == "no"


async def test_the_numbers_of_the_gate_are_those_of_its_statistics(
    box: Sandbox, told: Told
) -> None:
    """By account, from the first moment until the session is closed."""
    box.faults.hold()
    async with managing(box, limit=7) as manager:
        manager.session("shop")
        session = manager.session("op")
        calls = [start(session.agents.info()) for _ in range(3)]
        await sent(box, 3)
        state = session.gate.statistics()
        fields = ("limit", "share", "in_use", "detached", "withheld")
        for name in (*fields, "foreign_estimate", "busy_answers", "late_answers"):
            metric = f"agentapi.gate.{name}"
            assert told.number(metric, account="op") == getattr(state, name)
            assert len(told.points(metric)) == 2
        assert told.number("agentapi.gate.in_use", account="op") == 3
        assert told.number("agentapi.gate.in_use", account="shop") == 0
        box.faults.clear()
        await asyncio.gather(*calls)
        await session.aclose()
        (have,) = told.points("agentapi.gate.limit")
        assert ("agentapi.account", "shop") in have
    assert told.points("agentapi.gate.limit") == {}


async def test_nobody_is_kept_alive_by_being_watched(box: Sandbox, told: Told) -> None:
    """A session that its owner has dropped is not told of any more."""
    async with managing(box) as manager:
        await manager.session("op").agents.info()
        gone = weakref.ref(manager.session("op")._channel)
        assert len(told.points("agentapi.gate.limit")) == 1
    del manager
    gc.collect()
    assert gone() is None
    assert told.points("agentapi.gate.limit") == {}


async def test_views_are_watched_too(box: Sandbox, told: Told) -> None:
    """Under their own lane; the gate they share is told of once."""
    async with managing(box) as manager:
        batch = manager.session("op").with_options(lane="batch")
        await batch.agents.info()
        assert has(told.span("agents.info"))["agentapi.lane"] == "batch"
        assert len(told.points("agentapi.gate.limit")) == 1


async def test_two_managers_are_told_of(box: Sandbox, told: Told) -> None:
    """A second one does not silence the first; without a name a hash is told."""
    async with managing(box) as manager, SessionManager(box.base_url) as other:
        manager.session("op")
        await other.session(box.token("shop_1")).agents.info()
        told_of = {
            dict(have)["agentapi.account"]
            for have in told.points("agentapi.gate.limit")
        }
    assert "op" in told_of
    assert any(re.fullmatch("[0-9a-f]{16}", name) for name in told_of)


async def test_a_feed_that_is_followed(told: Told) -> None:
    """How far it is behind is told while it is followed, and grows meanwhile."""
    switches = Switches(feed_spacing=0.0, row_delay=0.0)
    async with (
        Sandbox(switches) as box,
        managing(box, feed_interval=0.02, feed_lag=0.0) as manager,
    ):
        shop = manager.session("shop")
        user = (await shop.users.create("anna")).user_code
        await shop.wallets.deposit(user, AMOUNT)
        assert told.points("agentapi.feed.lag") == {}
        rows = shop.transactions.follow(0)
        async with aclosing(rows):
            assert (await anext(rows)).trans_amount == Decimal(AMOUNT)
            waiting = asyncio.ensure_future(anext(rows))
            while not told.points("agentapi.feed.lag"):
                await look_again()
            assert 0 <= told.number("agentapi.feed.lag", account="shop") < 60
            clock = shop._channel.cashier.clock
            shop._channel.cashier.clock = lambda: clock() + 1000
            assert told.number("agentapi.feed.lag", account="shop") > 900
            shop._channel.cashier.clock = clock
            waiting.cancel()
            with suppress(asyncio.CancelledError):
                await waiting
        assert told.points("agentapi.feed.lag") == {}


async def test_how_far_a_feed_was_given() -> None:
    """To the first row that is too young; else to the reading, less the lag."""

    def row(number: int, second: int) -> Transaction:
        made = datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC)
        zero = Decimal(0)
        return Transaction(
            trans_id=number,
            user_code=1,
            round_id="",
            trans_type=TransType.DEPOSIT,
            provider_id=0,
            provider_name="",
            game_code="",
            game_name="",
            category="",
            prebalance=zero,
            trans_amount=zero,
            balance=zero,
            regdate=made,
        )

    ripe, now = Ripe(5.0), asyncio.get_running_loop().time()
    assert ripe.given is None
    rows = [row(1, 0), row(2, 20), row(3, 21)]
    assert ripe.bound(rows, now) == 1
    ripe.gave(rows, 1000.0)
    assert ripe.given == rows[1].regdate.timestamp()
    assert ripe.bound(rows, now + 60) == 3
    ripe.gave(rows, 1000.0)
    assert ripe.given == 995.0
    many = [row(number, 0) for number in range(4, 4 + PAGE)]
    assert ripe.bound([*many, row(9999, 59)], now) == many[-1].trans_id
    ripe.gave(many, 1000.0)
    assert ripe.given == many[-1].regdate.timestamp()


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize("where", ["on_start", "on_end", "add_event", "record"])
async def test_whoever_is_told_harms_no_payment(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A processor or an instrument that raises: it is paid, and no permit is lost."""

    def broken(*_: Any, **__: Any) -> None:
        msg = "broken"
        raise RuntimeError(msg)

    async with managing(box) as manager:
        shop = manager.session("shop")
        user = (await shop.users.create("anna")).user_code
        channel, provider = shop._channel, trace.get_tracer_provider()
        assert isinstance(channel, Watched)
        assert isinstance(provider, TracerProvider)
        if where == "add_event":
            monkeypatch.setattr(Span, where, broken)
        elif where == "record":
            monkeypatch.setattr(type(channel._instruments.duration), where, broken)
        else:
            processor = SpanProcessor()
            monkeypatch.setattr(processor, where, broken)
            provider.add_span_processor(processor)
        box.faults.busy(1, "wallet/deposit")
        assert (await shop.wallets.deposit(user, AMOUNT)).amount == Decimal(AMOUNT)
        box.faults.drop_after("wallet/deposit", times=1)
        with pytest.raises(OutcomeUnknownError) as caught:
            await shop.wallets.deposit(user, AMOUNT)
        assert caught.value.intent == 2
        await idle(shop)


async def test_what_goes_on_in_the_background_is_in_no_trace(
    box: Sandbox, told: Told
) -> None:
    """It is not the call's that began it, and outlives that."""
    tracer = trace.get_tracer_provider().get_tracer("test")
    seen: list[trace.Span] = []

    async def work() -> None:
        seen.append(trace.get_current_span())

    async with managing(box) as manager:
        channel = manager.session("op")._channel
        with tracer.start_as_current_span("mine"):
            await channel.spawn(work())
        await manager.session("op").agents.info()
    assert seen == [trace.INVALID_SPAN]
    assert told.spans("mine")


async def test_a_journal_is_not_made_by_a_look(
    box: Sandbox, told: Told, tmp_path: Path
) -> None:
    """Where nothing was paid yet there is none, and after the first payment one is."""
    path = tmp_path / "journal.db"
    accounts = {"shop": box.token("shop_1")}
    async with SessionManager(
        box.base_url, accounts=accounts, store=SqliteStore(path)
    ) as manager:
        shop = manager.session("shop")
        user = (await shop.users.create("anna")).user_code
        assert await unknown(told, shop) == 0
        assert [*tmp_path.iterdir()] == []
        assert told.points("agentapi.payments.unknown") == {}
        await shop.wallets.deposit(user, AMOUNT)
        await unknown(told, shop)
        assert told.points("agentapi.payments.unknown") != {}


@pytest.mark.process
async def test_a_fork_tells_nothing_of_its_parents_sessions(
    box: Sandbox, told: Told
) -> None:
    """They are not its own; it would tell their numbers a second time."""
    async with managing(box) as manager:
        await manager.session("op").agents.info()
        assert told.points("agentapi.gate.limit") != {}
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(write, str(len(told.points("agentapi.gate.limit"))).encode())
            os._exit(0)
        await asyncio.to_thread(os.waitpid, child, 0)
        assert os.read(read, 10) == b"0"
        for end in (read, write):
            os.close(end)


async def test_a_growth_of_lost_payments_begins_at_zero(
    box: Sandbox, told: Told
) -> None:
    """For each method: an alert on it would not see the first one otherwise."""
    async with managing(box) as manager:
        manager.session("op")
        counts = told.points("agentapi.payments.lost")
        assert {dict(have)["rpc.method"] for have in counts} == {*PAYMENTS}
        assert {point.value for point in counts.values()} == {0}


async def test_a_path_of_the_callers_own(box: Sandbox, told: Told) -> None:
    """It is told on the span alone, and a token that got into it is not."""
    token = box.token("operator")
    async with managing(box) as manager:
        with pytest.raises(UnsupportedError):
            await manager.session("op").call(f"game/{token}", {}, effect="read")
        (have,) = told.points("rpc.client.call.duration")
        assert dict(have)["rpc.method"] == "_OTHER"
        assert "rpc.method_original" not in dict(have)
    span = told.span("agentapi")
    assert has(span)["rpc.method"] == "_OTHER"
    assert has(span)["rpc.method_original"] == "game/***"


async def test_nobodys_token_and_no_user_is_told_with_a_path(
    box: Sandbox, told: Told
) -> None:
    """Neither another account's, nor a number that may be somebody's."""
    async with managing(box) as manager:
        path = f"game/{box.token('shop_1')}/v4/user7/1234567"
        with pytest.raises(UnsupportedError):
            await manager.session("op").call(path, {}, effect="read")
    original = has(told.span("agentapi"))["rpc.method_original"]
    assert original == "game/*/v4/user7/*"


async def test_who_sets_no_provider_is_not_watched(box: Sandbox) -> None:
    """Also where the API has been imported: the channel is the plain one."""
    async with managing(box) as manager:
        assert type(manager.session("op")._channel) is Channel


async def test_a_provider_that_cannot_be_used(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One of another version, say: sessions go on without, and the log says so."""

    class Old(MeterProvider):
        def get_meter(self, *_: Any, **__: Any) -> Any:
            msg = "unexpected keyword"
            raise TypeError(msg)

    old = Old()
    monkeypatch.setattr(metrics, "get_meter_provider", lambda: old)
    async with managing(box) as manager:
        session = manager.session("op")
        assert (await session.agents.info()).name == "operator"
        assert type(session._channel) is Channel
    assert "OpenTelemetry is not told of this session: TypeError" in caplog.text


@pytest.mark.parametrize("which", ["tracer", "meter"])
async def test_one_provider_is_enough(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """Spans without metrics, and metrics without spans."""
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers, meters = TracerProvider(), MeterProvider([reader])
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    if which == "tracer":
        monkeypatch.setattr(trace, "get_tracer_provider", lambda: tracers)
    else:
        monkeypatch.setattr(metrics, "get_meter_provider", lambda: meters)
    async with managing(box) as manager:
        await manager.session("op").agents.info()
        told = Told(spans, reader)
        counted = told.number("rpc.client.call.duration")
        assert (len(told.spans("agents.info")), counted) == (
            (1, 0) if which == "tracer" else (0, 1)
        )


@pytest.mark.process
def test_nothing_is_imported_that_is_not_used() -> None:
    """A program that does not use OpenTelemetry makes its calls without it."""
    code = (
        "import asyncio, sys\n"
        "from aio_agentapi import SessionManager\n"
        "from aio_agentapi.sandbox import Sandbox\n"
        "async def main():\n"
        "    async with Sandbox() as box, SessionManager(box.base_url) as manager:\n"
        "        await manager.session(box.token('operator')).agents.info()\n"
        "asyncio.run(main())\n"
        "print([name for name in sys.modules"
        " if name.startswith(('opentelemetry', 'aio_agentapi._telemetry'))])\n"
    )
    ran = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert (ran.stdout, ran.stderr) == ("[]\n", "")


@pytest.mark.process
async def test_prometheus_reads_what_the_page_shows() -> None:
    """The example serves every metric that the page has queries for."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        ROOT / "examples" / "prometheus.py",
        "0",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    text = ""
    try:
        assert process.stdout is not None
        url = (await process.stdout.readline()).decode().strip()
        async with aiohttp.ClientSession() as http:
            # The journal is asked for the next time.
            while "agentapi_payments_unknown{" not in text:
                await look_again()
                async with http.get(url) as response:
                    text = await response.text()
    finally:
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    served = {*re.findall(r"^(\w+)\{", text, re.MULTILINE)}
    (shown,) = re.findall(r"```promql\n(.*?)```", PAGE_TEXT.read_text(), re.DOTALL)
    wanted = {*re.findall(r"\b(?:agentapi|rpc)_\w+(?=[{\[ \n])", shown)}
    # What has not happened is not there yet.
    assert wanted - served == {"agentapi_feed_lag_seconds"}
    assert wanted & served
    assert 'agentapi_account="eur"' in text


def test_the_page_has_every_name() -> None:
    """Of spans, events, metrics and attributes, and no other."""
    source = ROOT / "aio_agentapi" / "_telemetry.py"
    form = r"(?:agentapi|rpc|server|error)\.[a-z_.]+"
    names = {
        node.value
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    used = {name for name in names if re.fullmatch(form, name)} - {"agentapi.gate."}
    used |= {f"agentapi.gate.{name}" for name in (*_GAUGES, *_COUNTS)}
    rows = re.findall(r"^\| `(.*?)` \|", PAGE_TEXT.read_text(), re.MULTILINE)
    assert used == {row for row in rows if re.fullmatch(form, row)}


def test_the_page_has_every_logger() -> None:
    """With the levels that it speaks at."""
    used: dict[str, set[str]] = {}
    for path in (ROOT / "aio_agentapi").rglob("*.py"):
        text = path.read_text()
        if found := re.search(
            r'^_LOG: Final = logging.getLogger\("(.*)"\)', text, re.MULTILINE
        ):
            levels = re.findall(r"_LOG\.(\w+)\(", text)
            used.setdefault(found[1], set()).update(levels)
            assert levels, path
        elif "cli" not in path.parts:
            assert "getLogger" not in text, path
    rows = re.findall(
        r"^\| `(aio_agentapi\.\w+)` \| (\w+) \|", PAGE_TEXT.read_text(), re.MULTILINE
    )
    told: dict[str, set[str]] = {}
    for name, level in rows:
        told.setdefault(name, set()).add(level.lower())
    assert told == used
