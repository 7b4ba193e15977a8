"""
What OpenTelemetry is told of calls, gates, payments and feeds.

Theory of operation
-------------------

Whether a session is watched is decided once, when it is opened: see :func:`watched`.
One that is not has a plain channel, which asks nobody and pays nothing; one that is
has a :class:`Watched` channel, which does the same and tells of it.

A watched call has one span. It begins when the call does, and ends when its caller
has what he waits for, or leaves. Where an exchange goes on without him, the span is
kept for what becomes of that, and handed over with the end that it had for him.

    the call          sending ... busy ... sending ... left_running
    its exchange                                          ... late_answer

What is counted as it happens (durations, waits, payments that become unknown) is
recorded in the turn of the loop that brings it. Everything else is looked at when a
reader asks, in whatever thread it has: so the answers come from numbers that are
there, and the one that the journal has to be asked for is that of the last time.

Nothing here keeps a session, a feed or a manager alive, and a closed session is not
told of. What is told has no token, no amount, no user, and no message of an error,
since the service writes into those what it likes.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
import weakref
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial, wraps
from types import MappingProxyType
from typing import Any, Final, Generic, Literal, ParamSpec, TypeAlias, TypeVar, cast
from urllib.parse import urlsplit

import attrs
from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Observation

from aio_agentapi._channel import Call, Channel
from aio_agentapi._exchange import Exchange
from aio_agentapi._feed import Ripe
from aio_agentapi._journal import OPEN, PAYMENTS, Intent, Phase
from aio_agentapi._settings import PATHS, UUID
from aio_agentapi._types import Moved, Query
from aio_agentapi.errors import (
    AgentAPIError,
    BusyError,
    JournalError,
    NotSentError,
    UsageError,
)

T = TypeVar("T")

Attributes: TypeAlias = Mapping[str, str | int | float]

_LOG: Final = logging.getLogger("aio_agentapi.telemetry")

_NAME: Final = "aio_agentapi"
_SYSTEM: Final = "agentapi"

# The convention's name of a method that is not on the list.
_OTHER: Final = "_OTHER"

# What in a path may be a token or a user: a UUID, and a number.
_NAMES: Final = re.compile(rf"{UUID.pattern}|\b\d+\b", UUID.flags)

# Where the API has its own providers, which record nothing.
_PLACEHOLDERS: Final = ("opentelemetry.trace", "opentelemetry.metrics")

# Seconds, as the conventions have them, and more above: a call may wait for long.
_BUCKETS: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0, 120.0),
)

# What is seen of a gate, by its field: permits now, and answers so far.
_GAUGES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "limit": "Calls that may be in flight at once",
        "share": "How many of them the service admits at present",
        "in_use": "Calls in flight",
        "detached": "Those of them whose caller has left",
        "withheld": "Permits that nobody gets at present",
        "foreign_estimate": "About how many calls others have in flight",
    }
)
_COUNTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "busy_answers": "Calls that the service had no room for (1018)",
        "late_answers": "Answers read after their caller had left",
    }
)


P = ParamSpec("P")


def _harmless(tell: Callable[P, None]) -> Callable[P, None]:
    """Let nothing that is wrong with whoever is told reach a call or a permit."""

    @wraps(tell)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            tell(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - processors and samplers are others'
            _LOG.info("OpenTelemetry was not told: %s", type(error).__name__)

    return wrapped


class _Weakly(Generic[T]):
    """What is looked at while somebody else keeps it, from any thread."""

    def __init__(self) -> None:
        # One step each, as any thread sees it; a WeakSet is not.
        self._kept: dict[int, weakref.ref[T]] = {}

    def add(self, one: T) -> None:
        """Look at it from now on, as long as it lives."""
        kept, key = self._kept, id(one)
        kept[key] = weakref.ref(one, lambda _: kept.pop(key, None))

    def __iter__(self) -> Iterator[T]:
        for kept in [*self._kept.values()]:
            if (one := kept()) is not None:
                yield one


class _Instruments:
    """All that is measured for one provider of meters, whatever sessions there are."""

    def __init__(self, provider: metrics.MeterProvider) -> None:
        meter = provider.get_meter(_NAME)
        self.sessions: _Weakly[Watched] = _Weakly()
        self.duration = meter.create_histogram(
            "rpc.client.call.duration",
            "s",
            "From a call to its outcome, waiting and all sendings included",
            explicit_bucket_boundaries_advisory=_BUCKETS,
        )
        self.wait_time = meter.create_histogram(
            "agentapi.gate.wait_time",
            "s",
            "What of it was waiting for a permit, or for the user's turn",
            explicit_bucket_boundaries_advisory=_BUCKETS,
        )
        self.lost = meter.create_counter(
            "agentapi.payments.lost",
            "{payment}",
            "Payments that became unknown",
        )
        for name, told in _GAUGES.items():
            meter.create_observable_gauge(
                f"agentapi.gate.{name}", [self._look(_of(name))], "{permit}", told
            )
        meter.create_observable_gauge(
            "agentapi.gate.waiting",
            [self._look(_waiting)],
            "{call}",
            "Calls in line for a permit",
        )
        for name, told in _COUNTS.items():
            meter.create_observable_counter(
                f"agentapi.gate.{name}", [self._look(_of(name))], "{answer}", told
            )
        meter.create_observable_gauge(
            "agentapi.payments.unknown",
            [self._look(Watched.unknown_payments)],
            "{payment}",
            "Payments of which nobody knows whether they happened",
        )
        meter.create_observable_gauge(
            "agentapi.feed.lag",
            [self._look(Watched.feed_lag)],
            "s",
            "How old the oldest transaction may be that was not given yet",
        )

    def _look(
        self, at: Callable[[Watched], Iterable[tuple[float, Attributes]]]
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        """Return what tells a reader of one number of every session."""

        def observations(_: CallbackOptions) -> Iterable[Observation]:
            for session in self.sessions:
                if session.is_open:
                    for number, more in at(session):
                        yield Observation(number, {**session.attributes, **more})

        return observations


def _of(name: str) -> Callable[[Watched], Iterable[tuple[float, Attributes]]]:
    """Return what tells one number of a session's gate."""

    def look(session: Watched) -> Iterable[tuple[float, Attributes]]:
        yield getattr(session.gate.statistics(), name), {}

    return look


def _waiting(session: Watched) -> Iterable[tuple[float, Attributes]]:
    for lane, waiting in session.gate.statistics().waiting_by_lane.items():
        yield waiting, {"agentapi.lane": lane}


# A provider takes each instrument once, however many managers there are.
_KNOWN: Final[weakref.WeakKeyDictionary[metrics.MeterProvider, _Instruments]] = (
    weakref.WeakKeyDictionary()
)


class _Told(Call):
    """A call with its span."""

    __slots__ = ("ended", "happened", "late", "running", "span")

    def __init__(self, deadline: float | None, span: trace.Span) -> None:
        super().__init__(deadline)
        self.span = span
        # What its sendings have come to, how many of them run, whether the caller has
        # left one, and when he had what he waited for, in nanoseconds since 1970.
        self.happened: Literal["yes", "no", "maybe"] = "no"
        self.running = 0
        self.late = False
        self.ended: int | None = None

    def send(self, exchange: Exchange[Any]) -> None:
        """Take note of a sending, and of its end when it comes."""
        self.running += 1
        exchange.told = partial(self._land, exchange.told)
        self._event(
            "agentapi.sending",
            {"agentapi.attempt": self.sendings + 1, "agentapi.waited": self.waited},
        )

    def leave(self) -> None:
        """Take note that the caller has gone, and that what he sent goes on."""
        self.happened, self.late = "maybe", True
        self._event("agentapi.left_running")

    def end(self, outcome: str, error: BaseException | None) -> Attributes:
        """
        Take note of the end that the call has for its caller.

        Returns:
            What it came to.
        """
        if error is None or isinstance(error, AgentAPIError):
            self.happened = _happened(error)
        told = {
            "agentapi.outcome": outcome,
            "agentapi.happened": self.happened,
            **(_answer(error) if self.sendings or error else {}),
        }
        self._describe(told, failed=error is not None)
        self.ended = time.time_ns()
        self._hand_over()
        return told

    @_harmless
    def _event(self, name: str, told: Attributes | None = None) -> None:
        self.span.add_event(name, told)

    @_harmless
    def _describe(self, told: Attributes, *, failed: bool) -> None:
        self.span.set_attributes(told)
        self.span.set_attribute("agentapi.sendings", self.sendings)
        self.span.set_attribute("agentapi.waited", self.waited)
        if self.entry is not None:
            self.span.set_attribute("agentapi.intent", self.entry.intent.id)
        if failed:
            # Without its message: that may tell what a service wrote into it.
            self.span.set_status(trace.StatusCode.ERROR)

    def _land(self, first: Callable[[object], None] | None, outcome: object) -> None:
        """Take note of what a sending came to, after whoever has to know it *first*."""
        if first is not None:
            first(outcome)
        error = outcome if isinstance(outcome, BaseException) else None
        happened = _happened(error)
        if self.ended is None and happened != "no":
            self.happened = happened
        told = _answer(error)
        if isinstance(error, NotSentError):
            self._event("agentapi.not_sent", told)
        elif happened == "maybe":
            self._event("agentapi.answer_lost", told)
        elif self.late:
            told["agentapi.happened"] = happened
            self._event("agentapi.late_answer", told)
        elif isinstance(error, BusyError):
            self._event("agentapi.busy", told)
        self.running -= 1
        self._hand_over()

    @_harmless
    def _hand_over(self) -> None:
        """End the span, when nothing more comes."""
        if self.ended is not None and not self.running:
            self.span.end(self.ended)


def _happened(error: BaseException | None) -> Literal["yes", "no", "maybe"]:
    if error is None:
        return "yes"
    return error.happened if isinstance(error, AgentAPIError) else "maybe"


def _answer(error: BaseException | None) -> dict[str, str]:
    """Return what the conventions want to be told of an outcome."""
    if error is None:
        return {"rpc.response.status_code": "0"}
    told = {"error.type": type(error).__name__}
    if (code := getattr(error, "code", None)) is not None:
        told["rpc.response.status_code"] = str(code)
    return told


@attrs.define(eq=False)
class _Seen:
    """What the views of a session have in common, for whoever reads the numbers."""

    # Feeds that are followed.
    feeds: _Weakly[Ripe] = attrs.field(factory=_Weakly)
    # Unknown payments by phase, at the last look; whether somebody looks now.
    unknown: Mapping[Phase, int] = attrs.field(factory=dict[Phase, int])
    looking: bool = False


@attrs.frozen(eq=False, kw_only=True)
class Watched(Channel):
    """
    A channel that does the same as another, and tells of it.

    Attributes:
        attributes: What is told with everything: which service, which account.
    """

    attributes: Attributes
    _instruments: _Instruments = attrs.field(alias="instruments")
    _tracer: trace.Tracer = attrs.field(alias="tracer")
    _seen: _Seen = attrs.field(alias="seen", factory=_Seen)

    async def call(self, query: Query[T]) -> T:
        """Ask as :meth:`Channel.call` does, and tell of it."""
        with self._telling(query.operation.name) as call:
            return await self._run(query.operation, query.body, call)

    async def pay(self, intent: Intent) -> Moved:
        """Move money as :meth:`Channel.pay` does, and tell of it."""
        with self._telling(intent.operation) as call:
            return await self._pay(intent, call)

    def watch_feed(self, feed: Ripe) -> None:
        """Tell how far a feed is behind, as long as it is followed."""
        self._seen.feeds.add(feed)

    @property
    def is_open(self) -> bool:
        """Whether there is still something to tell."""
        return self._home.is_here and not self._closing.begun.is_set()

    def unknown_payments(self) -> Iterable[tuple[float, Attributes]]:
        """Tell how many payments were unknown at the last look, and look again."""
        if (loop := self._home.loop) is not None:
            # Not when the loop has been closed.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._look)
        for phase, count in self._seen.unknown.items():
            yield count, {"agentapi.phase": phase.value}

    def feed_lag(self) -> Iterable[tuple[float, Attributes]]:
        """Tell how far the feed is behind that is behind the most."""
        given = [at for feed in self._seen.feeds if (at := feed.given) is not None]
        if given:
            yield max(0.0, self.cashier.clock() - min(given)), {}

    async def _outcome(
        self, call: Call, exchange: Exchange[T], *, again: bool
    ) -> T | BaseException:
        told = cast("_Told", call)
        told.send(exchange)
        try:
            return await super()._outcome(call, exchange, again=again)
        finally:
            if call.left is not None and call.left.sending.connected:
                told.leave()

    @contextmanager
    def _telling(self, name: str) -> Generator[_Told]:
        """Give a call its span, and measure it."""
        method = {"rpc.method": name if name in PATHS else _OTHER}
        call = _Told(self._deadline(), trace.INVALID_SPAN)
        self._begin_span(call, name, method)
        span = call.span
        began = time.perf_counter()
        outcome = "ok"
        failure: BaseException | None = None
        try:
            with trace.use_span(
                span, record_exception=False, set_status_on_exception=False
            ):
                yield call
        except Exception as error:
            outcome, failure = "error", error
            raise
        except BaseException as error:
            outcome, failure = "cancelled", error
            raise
        finally:
            took = time.perf_counter() - began
            told = {**self.attributes, **method, **call.end(outcome, failure)}
            # Its frames lead here.
            failure = None
            self._measure(call.waited, took, method, told)

    @_harmless
    def _begin_span(self, call: _Told, name: str, method: Attributes) -> None:
        call.span = self._tracer.start_span(
            name if name in PATHS else _SYSTEM,
            kind=trace.SpanKind.CLIENT,
            attributes={
                **self.attributes,
                **method,
                "agentapi.lane": self.settings.lane,
            },
        )
        if name not in PATHS:
            # A path that the caller wrote: on the span alone, and not with a token.
            path = _NAMES.sub("*", self._transport.scrub(name))
            call.span.set_attribute("rpc.method_original", path)

    @_harmless
    def _measure(
        self, waited: float, took: float, method: Attributes, told: Attributes
    ) -> None:
        self._instruments.duration.record(took, told)
        self._instruments.wait_time.record(
            waited, {**self.attributes, **method, "agentapi.lane": self.settings.lane}
        )

    def _look(self) -> None:
        """Let somebody look how many payments are unknown."""
        if self.is_open and not self._seen.looking:
            self._seen.looking = True
            self.spawn(self._count())

    async def _count(self) -> None:
        cashier = self.cashier
        try:
            # Looking is no reason to make a journal.
            if not getattr(cashier.store, "is_there", True):
                return
            account = await cashier.known_account()
            intents: list[Intent] = []
            if account is not None:
                intents = await cashier.store.intents(account, phases=OPEN)
        except (JournalError, UsageError) as error:
            _LOG.info("the unknown payments could not be counted: %s", error)
        else:
            counted = Counter(intent.phase for intent in intents)
            self._seen.unknown = {phase: counted[phase] for phase in sorted(OPEN)}
        finally:
            self._seen.looking = False


def watched(channel: Channel, base_url: str) -> Channel:
    """
    Return a channel that OpenTelemetry is told of, if anybody wants to know.

    Args:
        channel: Of a session that is being opened.

        base_url: Where its service is.

    Returns:
        The channel itself where the program has set no provider.
    """
    tracers, meters = trace.get_tracer_provider(), metrics.get_meter_provider()
    if not (_records(tracers) or _records(meters)):
        return channel
    if meters not in _KNOWN:
        _KNOWN[meters] = _Instruments(meters)
    instruments = _KNOWN[meters]
    parts = urlsplit(base_url)
    attributes: Attributes = {
        "rpc.system.name": _SYSTEM,
        "server.address": parts.hostname or "",
        "server.port": parts.port or (443 if parts.scheme == "https" else 80),
        "agentapi.account": channel.cashier.claim.label,
    }

    @_harmless
    def lost(method: str, count: int) -> None:
        instruments.lost.add(count, {**attributes, "rpc.method": method})

    channel.cashier.on_unknown = lambda intent: lost(intent.operation, 1)
    for method in PAYMENTS:
        # An alert on growth sees the first one only where there was a zero before.
        lost(method, 0)
    # All that it has, in a class that tells.
    told = Watched(
        **{str(f.alias): getattr(channel, f.name) for f in attrs.fields(Channel)},
        attributes=attributes,
        instruments=instruments,
        tracer=tracers.get_tracer(_NAME),
    )
    instruments.sessions.add(told)
    return told


def _records(provider: object) -> bool:
    """Tell a provider from what the API has in its place until there is one."""
    return not type(provider).__module__.startswith(_PLACEHOLDERS)
