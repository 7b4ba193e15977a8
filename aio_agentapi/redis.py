"""
One budget of permits for all processes that use a token, on Redis or Valkey.

Theory of operation
-------------------

A shared gate is the gate of one process whose limit is what it has on lease. Lanes,
lines, 1018 and the account of permits are :class:`LocalGate`'s; a task of the gate,
the keeper, talks to the store and resizes it. A call costs the store nothing: it is
asked when more is wanted than is held, when somebody else needs some of it, and once
in a heartbeat.

The store keeps a row for each member: what it holds, what it wants, when it was last
heard, until when its lease runs, and until when what it holds is kept for it. One
script changes a row and answers what the member may hold: its fair share of what all
want (max-min: whoever wants little gets it, the others share the rest evenly), as far
as there is room. Who is to give some back, or can have more, is named in a message;
a message that gets lost costs a heartbeat.

What is true at each moment, whichever messages are late, lost or doubled:

    what the store has in a member's row  >=  what the member has as its limit

A grant is in the row before its answer leaves. What is given back is gone from the
limit before the report of it leaves, and a report that is older than the last one
(each has a number) is not carried out. So the sum of the rows, which the script keeps
within the limit, is never less than what is in flight.

A lease ends for its holder one heartbeat before it ends in the store, counted from
before the question was sent, by a clock that goes on in suspend. From then on it
holds what is in flight, and no call starts; the row is kept for the quarantine after
that, since the calls of a dead process may still be running. A holder that comes back
tells what it has, whatever the store thinks: that is a fact, and counted as overdrawn
where it does not fit.

A store that another server answers for, or that lost what it knew, gives nothing new
for the time of a lease: within that, everybody who lives has said what he holds, and
what is given back meanwhile goes round.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import random
import secrets
import time
from collections.abc import Callable
from types import CoroutineType
from typing import Any, Final, cast

import attrs
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from aio_agentapi._budget import (
    SCRIPT,
    Answer,
    Member,
    Report,
    SharedBudget,
    Terms,
    arguments,
    budget_of,
    channel_of,
    key_of,
)
from aio_agentapi._gate import GateStatistics, LocalGate
from aio_agentapi._settings import Settings
from aio_agentapi._types import Lane, Secret
from aio_agentapi.errors import GateLostError, UsageError

__all__ = ["Member", "RedisGate", "RedisGateStatistics", "RedisGates", "SharedBudget"]

_LOG: Final = logging.getLogger("aio_agentapi.redis")

# Whatever redis-py raises, and what it lets through.
_STORE_ERRORS: Final = (RedisError, OSError, TimeoutError, asyncio.IncompleteReadError)

# Attempts that fail in a row before the store counts as gone: the first may be that
# this process was stopped, not the store.
_FAILURES: Final = 2
# Seconds between attempts to reach a store that is gone, doubled up to a heartbeat.
_PAUSE: Final = 0.05
# Seconds between two reports that nobody asked for: permits that come back one after
# the other go together.
_GATHER: Final = 0.001

# Its parameters have no types.
_Pool: Final[Any] = redis.asyncio.BlockingConnectionPool

# Seconds after which a task that was cancelled and goes on is cancelled again.
_AGAIN: Final = 0.1

# A clock that goes on while the machine is suspended, where there is one.
_BOOTTIME: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def _now() -> float:
    return time.clock_gettime(_BOOTTIME)


@attrs.frozen(kw_only=True)
class RedisGateStatistics(GateStatistics):
    """
    What a shared gate is doing, at one moment; ``limit`` is what it holds now.

    Attributes:
        budget: Permits of the token in all.

        members: Gates that share it, this one included, as last told.

        quarantined: Permits kept for members that were not heard of, as last told.

        overdrawn: Permits that members came back with when they had been given to
            others, so far.

        connected: Whether the store answered when it was last asked.

        lost: Whether the lease is over and the store does not answer: no more than
            ``static_share`` calls start.

        store_calls: Questions to the store so far.
    """

    budget: int
    members: int
    quarantined: int
    overdrawn: int
    connected: bool
    lost: bool
    store_calls: int


@attrs.define(eq=False, repr=False)
class RedisGate(LocalGate):
    """
    A gate whose permits are leased from a budget that processes share.

    Made by what :meth:`factory` returns, one for each token.

    Args:
        limit: Permits that it holds at first. 0: it asks the store for all.

        batch_floor: As of :class:`LocalGate`.

        max_waiting: As of :class:`LocalGate`.

        settings: Whose ``limit`` is the number of permits of the token in all.

        store: What carries its reports.

        key: What the store calls the token.

        terms: How long a lease lasts, and what comes after.

        clock: Seconds that go on in suspend.

    Attributes:
        id: What the store calls this gate, new with each.
    """

    _settings: Settings = attrs.field(alias="settings", kw_only=True)
    _store: RedisGates | None = attrs.field(alias="store", default=None, kw_only=True)
    key: str = attrs.field(default="", kw_only=True)
    _terms: Terms = attrs.field(alias="terms", factory=Terms, kw_only=True)
    _clock: Callable[[], float] = attrs.field(alias="clock", default=_now, kw_only=True)
    id: str = attrs.field(init=False, factory=lambda: secrets.token_hex(8))
    # The number of the last report.
    _number: int = attrs.field(init=False, default=0)
    # What was last asked for, and the most that was wanted a heartbeat ago.
    _told_wanted: int = attrs.field(init=False, default=0)
    _wanted_before: int = attrs.field(init=False, default=0)
    _peak_before: int = attrs.field(init=False, default=0)
    _most_waiting: int = attrs.field(init=False, default=0)
    # When the lease ends here; infinite: not begun.
    _ends: float = attrs.field(init=False, default=float("inf"))
    _failures: int = attrs.field(init=False, default=0)
    _lost: bool = attrs.field(init=False, default=False)
    # Calls that were cut when the session was closed, and may still run.
    _cut: int = attrs.field(init=False, default=0)
    _members: int = attrs.field(init=False, default=0)
    _quarantined: int = attrs.field(init=False, default=0)
    _overdrawn: int = attrs.field(init=False, default=0)
    _grace: float = attrs.field(init=False, default=0.0)
    _asked: asyncio.Event = attrs.field(init=False, factory=asyncio.Event)
    _keeper: asyncio.Task[None] | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        # What the lanes are scaled by.
        self._whole = self._settings.limit

    @classmethod
    def factory(
        cls,
        url: str,
        *,
        lease: float = 5.0,
        heartbeat: float = 1.0,
        quarantine: float = 30.0,
        static_share: int = 0,
    ) -> RedisGates:
        """
        Return what makes the gates of one manager: ``SessionManager(gate=...)``.

        All processes that use a token say the same here. Connected at first use.

        Args:
            url: As redis-py takes it: ``redis://``, ``rediss://`` or ``unix://``.

            lease: Seconds for which permits are held without a word to the store:
                three heartbeats at least.

            heartbeat: Seconds between two words to the store; a question that has
                no answer for so long has failed.

            quarantine: Seconds for which the permits of a dead process are kept
                behind its lease: longer than its calls run.

            static_share: Permits of this process while the store is gone. 0: none,
                calls get ``GateLostError``.

        Returns:
            A maker of gates, with one connection for all its accounts.

        Raises:
            UsageError: A value that cannot be. Nothing was sent.
        """
        terms = Terms(
            lease=lease,
            heartbeat=heartbeat,
            quarantine=quarantine,
            static_share=static_share,
        )
        return RedisGates(url=url, terms=terms)

    @property
    def budget(self) -> int:
        """Permits of the token in all, whoever holds them."""
        return self._settings.limit

    def acquire(
        self, lane: Lane, until: float | None = None, *, again: bool = False
    ) -> CoroutineType[Any, Any, None]:
        """Wait for a permit; see :meth:`Gate.acquire`."""
        # No coroutine of its own: each would be kept by every call that waits.
        if self._keeper is None:
            self._begin()
        self._look()
        if self._lost and not self._terms.static_share:
            raise self._gone()
        # For mypy a coroutine is not of a type of its own.
        return super().acquire(lane, until, again=again)  # type: ignore[return-value]

    def release(self, lane: Lane, took: float | None = None) -> None:
        """Give a permit back; see :meth:`Gate.release`."""
        self._look()
        super().release(lane, took)

    def refused(self, lane: Lane) -> None:
        """Give a refused permit back; see :meth:`Gate.refused`."""
        self._look()
        super().refused(lane)

    def give_up(self, lane: Lane, linger: float) -> None:
        """Give back the permit of an unfinished call; see :meth:`Gate.give_up`."""
        self._cut += self._closed
        super().give_up(lane, linger)

    def statistics(self) -> RedisGateStatistics:
        """Tell what the gate is doing; ``limit`` is what it holds now."""
        plain = super().statistics()
        known = {f.name: getattr(plain, f.name) for f in attrs.fields(GateStatistics)}
        known["peak"] = max(self._peak, self._peak_before)
        return RedisGateStatistics(
            **known,
            budget=self.budget,
            members=self._members,
            quarantined=self._quarantined,
            overdrawn=self._overdrawn,
            connected=self._failures == 0 and self._members > 0,
            lost=self._lost,
            store_calls=self._number,
        )

    async def aclose(self) -> None:
        """Give back what is held; what was cut is kept for the quarantine."""
        self.close()
        keeper, self._keeper = self._keeper, None
        if keeper is None or self._store is None:
            return
        try:
            await _stop(keeper)
            # What is in flight now, or was cut, may still run.
            self.resize(0)
            report = self.report(held=self._limit + self._cut, wanted=0)
            with contextlib.suppress(*_STORE_ERRORS):
                async with asyncio.timeout(self._terms.heartbeat):
                    await self._store.carry(self, report, leaves=True)
        finally:
            # Also where whoever closes is cancelled: no connection stays.
            await self._store.forget(self)

    def report(
        self, *, held: int | None = None, wanted: int | None = None, beat: bool = False
    ) -> Report:
        """
        Say what is held and wanted; what is given back is gone from here on.

        Args:
            held: Another number than the limit.

            wanted: Another number than what was wanted lately.

            beat: Whether a heartbeat has gone by: what was wanted before the last
                one does not count any more.
        """
        self._look()
        if wanted is None:
            wanted = self._wants(beat=beat)
            if beat and wanted < self._target:
                # Nobody has missed it for a while, and it would be missed elsewhere
                # if this process died.
                self.resize(wanted)
        self._told_wanted = wanted
        self._number += 1
        if held is None:
            held = self._limit
        return Report(number=self._number, held=held, wanted=wanted, sent=self._clock())

    def answered(self, report: Report, answer: Answer) -> None:
        """
        Take over what the store answered.

        Args:
            report: What it was told.

            answer: As the script gives it.
        """
        target, self._members, self._quarantined, overdrawn, grace = answer
        if overdrawn > self._overdrawn and self._number > 1:
            _LOG.warning("the shared budget was overdrawn by %d so far", overdrawn)
        self._overdrawn = overdrawn
        self._grace = grace / 1000
        self._failures = 0
        self._ends = report.sent + self._terms.lease - self._terms.heartbeat
        if self._lost:
            self._lost = False
            _LOG.warning("the store of the shared gate answers again")
        self.resize(target)
        # Also where the answer was under way for longer than the lease.
        self._look()

    def failed(self) -> None:
        """Take note that the store did not answer."""
        self._failures += 1
        self._look()
        over = self._clock() >= self._ends
        if over and self._failures >= _FAILURES and not self._lost:
            self._lost = True
            share = min(self._terms.static_share, self._settings.limit)
            _LOG.warning(
                "the store of the shared gate is gone; calls at once from here: %d",
                share,
            )
            self.resize(share)
            if not share:
                self._dismiss(self._gone)

    def told(self, news: str) -> None:
        """
        Take over a message of the store.

        Args:
            news: Pairs of a member and its fair share, ``id:share``.
        """
        for pair in news.split():
            member, _, share = pair.partition(":")
            if member == self.id and share.isdigit():
                if int(share) < self._target and not self._lost:
                    self.resize(int(share))
                self._asked.set()

    def _begin(self) -> None:
        if self._store is None or self._closed:
            return
        self._ends = self._clock() + self._terms.lease - self._terms.heartbeat
        # For all calls, so not in the context, and the trace, of one.
        self._keeper = asyncio.get_running_loop().create_task(
            self._keep(self._store), context=contextvars.Context()
        )

    async def _keep(self, store: RedisGates) -> None:
        """Talk to the store, until the gate is closed."""
        loop = asyncio.get_running_loop()
        await store.enter(self)
        beat = 0.0
        pause = _PAUSE
        while not _cancelled():
            self._asked.clear()
            due = loop.time() >= beat
            report = self.report(beat=due)
            if due:
                beat = loop.time() + self._terms.heartbeat
            try:
                async with asyncio.timeout(self._terms.heartbeat):
                    answer = await store.carry(self, report)
            except Exception as error:  # noqa: BLE001 - whatever ails the driver, who waits is not forgotten
                _LOG.debug("the store of the shared gate: %s", type(error).__name__)
                self.failed()
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load
                pause = min(self._terms.heartbeat, pause * 2)
                continue
            pause = _PAUSE
            self.answered(report, answer)
            await asyncio.sleep(_GATHER)
            patience = beat
            if self._grace and self._waiting:
                patience = min(beat, loop.time() + self._grace)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(patience):
                    await self._asked.wait()

    def _wants(self, *, beat: bool) -> int:
        """Return how many permits were wanted at once, now and a heartbeat ago."""
        demand = self._in_use + self._lingering + self._waiting
        latest = max(self._peak + self._lingering, self._most_waiting, demand)
        wanted = min(self._settings.limit, max(latest, self._wanted_before))
        if beat:
            self._wanted_before = min(self._settings.limit, latest)
            self._peak_before = max(self._peak_before, self._peak)
            self._peak = self._in_use
            self._most_waiting = 0
        return wanted

    def _watch(self) -> None:
        # Somebody has come into a line.
        super()._watch()
        if self._waiting:
            demand = self._in_use + self._lingering + self._waiting
            self._most_waiting = max(self._most_waiting, demand)
            if min(demand, self._settings.limit) > self._told_wanted:
                self._asked.set()

    def _look(self) -> None:
        """See whether the lease is over; no call starts then."""
        if self._clock() < self._ends or self._lost:
            return
        if self._target:
            self.resize(0)
            self._asked.set()

    def _return(self) -> None:
        self._look()
        super()._return()

    def _shrink(self) -> None:
        # Somebody waits for what has come back here.
        super()._shrink()
        self._asked.set()

    def _probe(self) -> None:
        self._look()
        super()._probe()

    def _gone(self) -> GateLostError:
        told = "the store of the shared gate is gone, and so is the lease"
        return GateLostError(f"{told}. Nothing was sent")

    def __repr__(self) -> str:
        lost = "; the store is gone" if self._lost else ""
        plain = super().__repr__()[len("<LocalGate ") : -1]
        return f"<RedisGate of {self._settings.limit}: {plain}{lost}>"


@attrs.define(eq=False, repr=False)
class RedisGates:
    """
    Makes the gates of one manager, which share a connection to the store.

    Made by :meth:`RedisGate.factory`, and closed with the last of its gates.
    """

    _url: str = attrs.field(alias="url", kw_only=True)
    _terms: Terms = attrs.field(alias="terms", factory=Terms, kw_only=True)
    _client: Any = attrs.field(init=False, default=None)
    _script: Any = attrs.field(init=False, default=None)
    # For messages: a connection that listens can say nothing else.
    _ear: Any = attrs.field(init=False, default=None)
    _listener: asyncio.Task[None] | None = attrs.field(init=False, default=None)
    _gates: dict[str, RedisGate] = attrs.field(init=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        try:
            pool = _Pool.from_url(self._url)
        except (ValueError, TypeError, AttributeError):
            # Without the address: it may have a password.
            msg = "the store's address begins with redis://, rediss:// or unix://"
            raise UsageError(msg) from None
        try:
            # Not connected: what its query has, redis-py looks at here.
            pool.connection_class(**pool.connection_kwargs)
        except (TypeError, ValueError, RedisError):
            msg = "the query of the store's address has what redis-py does not know"
            raise UsageError(msg) from None

    def __call__(self, secret: Secret, settings: Settings) -> RedisGate:
        """Make the gate of a token."""
        return RedisGate(
            limit=0,
            batch_floor=settings.batch_floor,
            max_waiting=settings.max_waiting,
            settings=settings,
            store=self,
            key=key_of(secret),
            terms=self._terms,
        )

    async def carry(
        self, gate: RedisGate, report: Report, *, leaves: bool = False
    ) -> Answer:
        """
        Tell the store a report, and return its answer.

        Raises:
            RedisError: It was not reached, or has a later one.
        """
        lease, quarantine = self._terms.lease, self._terms.quarantine
        if self._script is None:
            self._script = self._connection().register_script(SCRIPT)
        answer = await self._script(
            keys=[f"{gate.key}:members", f"{gate.key}:state"],
            args=arguments(
                gate.id,
                report,
                lease=0.0 if leaves else lease,
                quarantine=quarantine,
                limit=gate.budget,
                channel=channel_of(gate.key),
            ),
        )
        if answer[0] < 0:
            msg = "a later report has overtaken it"
            raise RedisError(msg)
        return cast("Answer", tuple(answer))

    async def enter(self, gate: RedisGate) -> None:
        """Let a gate hear what the store says; a heartbeat is enough without."""
        channel = channel_of(gate.key)
        self._gates[channel] = gate
        if self._listener is None:
            loop = asyncio.get_running_loop()
            self._ear = _client(self._url, self._terms).pubsub()
            heard = loop.create_future()
            self._listener = loop.create_task(
                self._listen(heard), context=contextvars.Context()
            )
            async with contextlib.AsyncExitStack() as stack:
                stack.enter_context(contextlib.suppress(TimeoutError))
                await stack.enter_async_context(asyncio.timeout(self._terms.heartbeat))
                await heard
        else:
            with contextlib.suppress(*_STORE_ERRORS):
                await self._ear.subscribe(channel)

    async def forget(self, gate: RedisGate) -> None:
        """Part from a gate; with the last one the connections are closed."""
        self._gates.pop(channel_of(gate.key), None)
        if self._gates:
            return
        listener, self._listener = self._listener, None
        if listener is not None:
            await _stop(listener)
        client, self._client, self._script = self._client, None, None
        if client is not None:
            with contextlib.suppress(*_STORE_ERRORS):
                await client.aclose()

    async def look(self, secret: Secret, limit: int = 50) -> SharedBudget:
        """
        Tell who holds what of a token's permits; changes nothing.

        Args:
            secret: The token.

            limit: Permits in all.

        Returns:
            What the store has, at one moment.

        Raises:
            GateLostError: The store is not reached. Nothing was sent.
        """
        key, client = key_of(secret), _client(self._url, self._terms)
        told, error = None, ""
        try:
            async with asyncio.timeout(self._terms.lease):
                async with client.pipeline(transaction=True) as pipe:
                    pipe.hgetall(f"{key}:members").hget(f"{key}:state", "overdrawn")
                    pipe.time()
                    told = await pipe.execute()
        except _STORE_ERRORS as caught:
            error = type(caught).__name__
        finally:
            with contextlib.suppress(*_STORE_ERRORS):
                await client.aclose()
        if told is None:
            what = f"the store of the shared gate is not reached ({error})"
            msg = f"{what}. Nothing was sent"
            raise GateLostError(msg)
        rows, overdrawn, (seconds, micros) = told
        return budget_of(rows, int(overdrawn or 0), seconds + micros / 1e6, limit)

    async def _listen(self, heard: asyncio.Future[None]) -> None:
        """Hand each message to its gate, on a new connection when one breaks."""
        pause = _PAUSE
        while not _cancelled():
            try:
                await self._ear.subscribe(*self._gates)
                async for message in self._ear.listen():
                    if message["type"] == "subscribe" and not heard.done():
                        heard.set_result(None)
                    gate = self._gates.get(message["channel"])
                    if gate is not None and message["type"] == "message":
                        gate.told(message["data"])
                    pause = _PAUSE
            except Exception as error:  # noqa: BLE001 - as in the keeper; it is tried again
                _LOG.debug("news of the shared gate: %s", type(error).__name__)
            finally:
                with contextlib.suppress(*_STORE_ERRORS):
                    await self._ear.aclose()
            await asyncio.sleep(pause)
            pause = min(self._terms.heartbeat, pause * 2)

    def _connection(self) -> Any:  # noqa: ANN401 - redis-py's types are not complete
        if self._client is None:
            self._client = _client(self._url, self._terms)
        return self._client

    def __repr__(self) -> str:
        return f"<RedisGates {len(self._gates)} gates>"


def _cancelled() -> bool:
    """
    Tell whether this task has been cancelled, also where a driver has missed it.

    ``asyncio.wait_for`` of Python 3.11 does so when a response comes at that moment.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _stop(task: asyncio.Task[None]) -> None:
    """End a task that may be in a driver's hands, which may miss a cancellation."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_AGAIN)


def _client(url: str, terms: Terms) -> Any:  # noqa: ANN401 - as above
    """Return a client with a single connection, which repeats nothing by itself."""
    pool = _Pool.from_url(
        url,
        max_connections=1,
        timeout=terms.heartbeat,
        # A message in answer shows that a silent connection still works.
        health_check_interval=terms.heartbeat,
        socket_connect_timeout=terms.heartbeat,
        decode_responses=True,
        retry=Retry(NoBackoff(), 0),
    )
    return redis.asyncio.Redis.from_pool(pool)
