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
import logging
import os
import random
import secrets
import socket
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, TypeAlias, cast

import attrs
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from aio_agentapi._gate import GateStatistics, LocalGate
from aio_agentapi._settings import Settings
from aio_agentapi._types import Lane, Secret
from aio_agentapi.errors import GateLostError, UsageError

__all__ = ["Member", "RedisGate", "RedisGateStatistics", "RedisGates", "SharedBudget"]

_log: Final = logging.getLogger("aio_agentapi.redis")

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

# A clock that goes on while the machine is suspended, where there is one.
_BOOTTIME: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def _now() -> float:
    return time.clock_gettime(_BOOTTIME)


# A member tells what it holds and wants, and is told what it may hold.
#
# KEYS[1] the members: id -> "held wanted seen ends kept number label"; times are the
#         store's, in milliseconds, and `kept` is the end of the quarantine
# KEYS[2] the state: run (of which server), grace (until when nothing new is given),
#         claimed (what may go round until then), overdrawn
# ARGV    id, number of the report, held, wanted, lease, quarantine, limit, label,
#         channel. A lease of 0: the member leaves, and what it still holds is kept
#         for the quarantine.
#
# Answers {what it may hold, members, in quarantine, overdrawn, grace left in ms};
# {-1} to a report that a later one has overtaken.
SCRIPT: Final = """
local id, number = ARGV[1], tonumber(ARGV[2])
local held, wanted = tonumber(ARGV[3]), tonumber(ARGV[4])
local lease, quarantine = tonumber(ARGV[5]), tonumber(ARGV[6])
local limit, label, channel = tonumber(ARGV[7]), ARGV[8], ARGV[9]
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local state = redis.call('HMGET', KEYS[2], 'run', 'grace', 'claimed', 'overdrawn')
local run, grace = state[1], tonumber(state[2] or '0')
local claimed, overdrawn = tonumber(state[3] or '0'), tonumber(state[4] or '0')

-- Every row; the dead ones whose quarantine is over are struck.
local rows, me, flat = {}, nil, redis.call('HGETALL', KEYS[1])
for i = 1, #flat, 2 do
  local h, w, s, e, k, n, l =
    string.match(flat[i + 1], '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (.*)$')
  local row = {id = flat[i], held = tonumber(h), wanted = tonumber(w),
    seen = tonumber(s), ends = tonumber(e), kept = tonumber(k), number = tonumber(n),
    label = l}
  if row.id == id then
    me = row
    rows[#rows + 1] = row
  elseif now >= row.kept or (row.held == 0 and now >= row.ends) then
    redis.call('HDEL', KEYS[1], row.id)
  else
    rows[#rows + 1] = row
  end
end
if me and number <= me.number then return {-1} end

-- Another server, or one that is empty: what its rows say is all that is known.
local info = redis.pcall('INFO', 'server')
if type(info) == 'string' then
  local server = string.match(info, 'run_id:(%w+)') or ''
  local up = tonumber(string.match(info, 'uptime_in_seconds:(%d+)') or '0')
  if run ~= server then
    -- One that has been up for longer than a lease and knows nothing was not used.
    local since = now
    if not run then since = now - up * 1000 end
    grace, claimed = since + math.max(lease, 1), 0
    for _, row in ipairs(rows) do claimed = claimed + row.held end
    redis.call('HSET', KEYS[2], 'run', server, 'grace', string.format('%d', grace))
  end
end

local sum = 0
for _, row in ipairs(rows) do sum = sum + row.held end
local before = me and me.held or 0
if not me then
  me = {id = id}
  rows[#rows + 1] = me
end
if held > before then
  -- A fact that the store did not know of.
  claimed = claimed + held - before
  local over = math.min(held - before, sum + held - before - limit)
  if over > 0 then
    overdrawn = overdrawn + over
    redis.call('HSET', KEYS[2], 'overdrawn', overdrawn)
  end
end
me.held, me.wanted, me.label, me.number = held, wanted, label, number
me.seen, me.ends, me.kept = now, now + lease, now + lease + quarantine
sum = sum + held - before

-- Max-min fair: whoever wants less than an even part has it, the others share.
local budget = limit
if now < grace then budget = math.min(limit, claimed) end
local alive, asking, left, dead = 0, {}, budget, 0
for _, row in ipairs(rows) do
  row.fair = 0
  if row.ends > now then
    alive = alive + 1
    if row.wanted > 0 then asking[#asking + 1] = row end
  else
    left, dead = left - row.held, dead + row.held
  end
end
if left < 0 then left = 0 end
table.sort(asking, function(a, b)
  if a.wanted ~= b.wanted and left >= #asking then return a.wanted < b.wanted end
  return a.id < b.id
end)
-- With fewer permits than members they go round, a step in a second.
local turn = 0
if left < #asking then turn = math.floor(now / 1000) end
for i = 1, #asking do
  local row = asking[(i - 1 + turn) % #asking + 1]
  row.fair = math.min(row.wanted, math.floor(left / (#asking - i + 1)))
  left = left - row.fair
end

local room, target = math.max(0, budget - sum), held
if me.fair > held then
  target = held + math.min(me.fair - held, room)
  room = room - (target - held)
end
local need = 0
for _, row in ipairs(asking) do
  local has = row.held
  if row == me then has = target end
  if row.fair > has then need = need + row.fair - has end
end
-- What nobody needs may stay where it is.
if need > room and me.fair < target then target = me.fair end
me.held = math.max(held, target)

local news = {}
for _, row in ipairs(rows) do
  if row ~= me and row.ends > now then
    if (need > room and row.held > row.fair) or (room > 0 and row.held < row.fair) then
      news[#news + 1] = row.id .. ':' .. row.fair
    end
  end
end
if #news > 0 then redis.call('PUBLISH', channel, table.concat(news, ' ')) end

if lease == 0 and held == 0 then
  redis.call('HDEL', KEYS[1], id)
else
  redis.call('HSET', KEYS[1], id, string.format('%d %d %d %d %d %d %s',
    me.held, me.wanted, me.seen, me.ends, me.kept, me.number, me.label))
end
if now < grace then redis.call('HSET', KEYS[2], 'claimed', claimed) end
-- Both are gone when nobody has used them for a while.
local last = now + lease + quarantine
for _, row in ipairs(rows) do last = math.max(last, row.kept) end
redis.call('PEXPIRE', KEYS[1], string.format('%d', last - now + 60000))
redis.call('PEXPIRE', KEYS[2], string.format('%d', last - now + 60000))
return {target, alive, dead, overdrawn, math.max(0, grace - now)}
"""


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


@attrs.frozen(kw_only=True)
class Report:
    """What a member tells the store, numbered."""

    number: int
    held: int
    wanted: int
    # By the member's clock, before it was sent: the lease counts from here.
    sent: float


@attrs.frozen(kw_only=True)
class Terms:
    """How long things last, in seconds, and what is left without the store."""

    lease: float = 5.0
    heartbeat: float = 1.0
    quarantine: float = 30.0
    static_share: int = 0

    def __attrs_post_init__(self) -> None:
        for name in ("lease", "heartbeat", "quarantine"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                msg = f"{name}: seconds, not {value!r}"
                raise UsageError(msg)
            if not 0 < value < float("inf"):
                msg = f"{name}: more than 0 seconds, not {value!r}"
                raise UsageError(msg)
        if self.lease < 3 * self.heartbeat:
            msg = "lease: three heartbeats at least, so that one may be missed"
            raise UsageError(msg)
        share = self.static_share
        if isinstance(share, bool) or not isinstance(share, int) or share < 0:
            msg = f"static_share: a whole number, 0 or more, not {share!r}"
            raise UsageError(msg)


@attrs.define(eq=False, repr=False)
class RedisGate(LocalGate):
    """
    A gate whose permits are leased from a budget that processes share.

    Made by what :meth:`factory` returns, one for each token.

    Args:
        settings: Limit, lanes and bounds, as of a local gate.

        store: What carries its reports.

        key: What the store calls the token.

        terms: How long a lease lasts, and what comes after.

        clock: Seconds that go on in suspend.
    """

    _settings: Settings = attrs.field(alias="settings", kw_only=True)
    _store: RedisGates | None = attrs.field(alias="store", default=None, kw_only=True)
    _key: str = attrs.field(alias="key", default="", kw_only=True)
    _terms: Terms = attrs.field(alias="terms", factory=Terms, kw_only=True)
    _clock: Callable[[], float] = attrs.field(alias="clock", default=_now, kw_only=True)
    _id: str = attrs.field(init=False, factory=lambda: secrets.token_hex(8))
    # The number of the last report, and what the store has in the row at least.
    _number: int = attrs.field(init=False, default=0)
    _known: int = attrs.field(init=False, default=0)
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

    def acquire(
        self, lane: Lane, until: float | None = None, *, again: bool = False
    ) -> Coroutine[Any, Any, None]:
        """Wait for a permit; see :meth:`Gate.acquire`."""
        # No coroutine of its own: each would be kept by every call that waits.
        if self._keeper is None:
            self._begin()
        self._look()
        if self._lost and not self._terms.static_share:
            raise self._gone()
        return super().acquire(lane, until, again=again)

    def release(self, lane: Lane, took: float | None = None) -> None:
        """Give a permit back; see :meth:`Gate.release`."""
        self._look()
        super().release(lane, took)
        if self._limit < self._known:
            self._asked.set()

    def refused(self, lane: Lane) -> None:
        """Give a refused permit back; see :meth:`Gate.refused`."""
        self._look()
        super().refused(lane)
        if self._limit < self._known:
            self._asked.set()

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
            budget=self._settings.limit,
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
        keeper.cancel()
        await asyncio.wait([keeper])
        # What is in flight now, or was cut, may still run.
        self.resize(0)
        report = self.report(held=self._limit + self._cut, wanted=0)
        with contextlib.suppress(*_STORE_ERRORS):
            async with asyncio.timeout(self._terms.heartbeat):
                await self._store.carry(self, report, leaves=True)
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
        self._known = max(self._known, held)
        return Report(number=self._number, held=held, wanted=wanted, sent=self._clock())

    def answered(self, report: Report, answer: tuple[int, int, int, int, int]) -> None:
        """
        Take over what the store answered.

        Args:
            report: What it was told.

            answer: As the script gives it.
        """
        target, self._members, self._quarantined, overdrawn, grace = answer
        if overdrawn > self._overdrawn and self._number > 1:
            _log.warning("the shared budget was overdrawn by %d so far", overdrawn)
        self._overdrawn = overdrawn
        self._grace = grace / 1000
        self._failures = 0
        self._ends = report.sent + self._terms.lease - self._terms.heartbeat
        if self._lost:
            self._lost = False
            _log.warning("the store of the shared gate answers again")
        self._known = max(report.held, target)
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
            _log.warning(
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
            if member == self._id and share.isdigit():
                if int(share) < self._target and not self._lost:
                    self.resize(int(share))
                self._asked.set()

    def _begin(self) -> None:
        if self._store is None or self._closed:
            return
        self._ends = self._clock() + self._terms.lease - self._terms.heartbeat
        self._keeper = asyncio.get_running_loop().create_task(self._keep(self._store))

    async def _keep(self, store: RedisGates) -> None:
        """Talk to the store, until the gate is closed."""
        loop = asyncio.get_running_loop()
        await store.enter(self)
        beat = 0.0
        pause = _PAUSE
        while True:
            self._asked.clear()
            due = loop.time() >= beat
            report = self.report(beat=due)
            if due:
                beat = loop.time() + self._terms.heartbeat
            try:
                async with asyncio.timeout(self._terms.heartbeat):
                    answer = await store.carry(self, report)
            except _STORE_ERRORS:
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
        if self._limit < self._known:
            self._asked.set()

    def _probe(self) -> None:
        self._look()
        super()._probe()

    def _gone(self) -> GateLostError:
        msg = "the store of the shared gate is gone, and so is the lease. Nothing was"
        return GateLostError(f"{msg} sent")

    def __repr__(self) -> str:
        lost = "; the store is gone" if self._lost else ""
        plain = super().__repr__()[len("<LocalGate ") : -1]
        return f"<RedisGate of {self._settings.limit}: {plain}{lost}>"


_Answer: TypeAlias = tuple[int, int, int, int, int]


@attrs.frozen(kw_only=True)
class Member:
    """
    One gate of a shared budget, as the store has it.

    Attributes:
        id: Of the gate, new with each.

        label: Its machine and process.

        held: Permits that it holds.

        wanted: Permits that it would use.

        age: Seconds since it was last heard.

        dead: Whether its lease is over; what it held is in quarantine.

        frees: Seconds until that is over. None: it lives.
    """

    id: str
    label: str
    held: int
    wanted: int
    age: float
    dead: bool
    frees: float | None


@attrs.frozen(kw_only=True)
class SharedBudget:
    """
    Who holds what of a token's permits.

    Attributes:
        limit: Permits in all.

        held: By members that live.

        quarantined: Kept for dead ones.

        overdrawn: Permits that members came back with too late, so far.

        members: By label.
    """

    limit: int
    held: int
    quarantined: int
    overdrawn: int
    members: tuple[Member, ...]


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
            redis.asyncio.ConnectionPool.from_url(self._url)
        except (ValueError, TypeError, AttributeError):
            # Without the address: it may have a password.
            msg = "the store's address begins with redis://, rediss:// or unix://"
            raise UsageError(msg) from None

    def __call__(self, secret: Secret, settings: Settings) -> RedisGate:
        """Make the gate of a token."""
        return RedisGate(
            limit=0,
            batch_floor=settings.batch_floor,
            max_waiting=settings.max_waiting,
            settings=settings,
            store=self,
            key=_key(secret),
            terms=self._terms,
        )

    async def carry(
        self, gate: RedisGate, report: Report, *, leaves: bool = False
    ) -> _Answer:
        """
        Tell the store a report, and return its answer.

        Raises:
            RedisError: It was not reached, or has a later one.
        """
        lease, quarantine = self._terms.lease, self._terms.quarantine
        if self._script is None:
            self._script = self._connection().register_script(SCRIPT)
        answer = await self._script(
            keys=[f"{gate._key}:members", f"{gate._key}:state"],  # noqa: SLF001 - the gate's other half
            args=arguments(
                gate._id,  # noqa: SLF001 - as above
                report,
                lease=0.0 if leaves else lease,
                quarantine=quarantine,
                limit=gate._settings.limit,  # noqa: SLF001 - as above
                channel=_channel(gate._key),  # noqa: SLF001 - as above
            ),
        )
        if answer[0] < 0:
            msg = "a later report has overtaken it"
            raise RedisError(msg)
        return cast("_Answer", tuple(answer))

    async def enter(self, gate: RedisGate) -> None:
        """Let a gate hear what the store says; a heartbeat is enough without."""
        channel = _channel(gate._key)  # noqa: SLF001 - the gate's other half
        self._gates[channel] = gate
        if self._listener is None:
            loop = asyncio.get_running_loop()
            self._ear = _client(self._url, self._terms).pubsub()
            heard = loop.create_future()
            self._listener = loop.create_task(self._listen(heard))
            async with contextlib.AsyncExitStack() as stack:
                stack.enter_context(contextlib.suppress(TimeoutError))
                await stack.enter_async_context(asyncio.timeout(self._terms.heartbeat))
                await heard
        else:
            with contextlib.suppress(*_STORE_ERRORS):
                await self._ear.subscribe(channel)

    async def forget(self, gate: RedisGate) -> None:
        """Part from a gate; with the last one the connections are closed."""
        self._gates.pop(_channel(gate._key), None)  # noqa: SLF001 - the gate's other half
        if self._gates:
            return
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.cancel()
            await asyncio.wait([listener])
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
        key, client = _key(secret), _client(self._url, self._terms)
        error = None
        try:
            async with asyncio.timeout(self._terms.lease):
                async with client.pipeline(transaction=True) as pipe:
                    pipe.hgetall(f"{key}:members").hget(f"{key}:state", "overdrawn")
                    pipe.time()
                    rows, overdrawn, (seconds, micros) = await pipe.execute()
        except _STORE_ERRORS as caught:
            error = type(caught).__name__
        finally:
            with contextlib.suppress(*_STORE_ERRORS):
                await client.aclose()
        if error is not None:
            msg = f"the store of the shared gate is not reached ({error})"
            raise GateLostError(f"{msg}. Nothing was sent")
        return _budget(rows, int(overdrawn or 0), seconds + micros / 1e6, limit)

    async def _listen(self, heard: asyncio.Future[None]) -> None:
        """Hand each message to its gate, on a new connection when one breaks."""
        pause = _PAUSE
        while True:
            try:
                await self._ear.subscribe(*self._gates)
                async for message in self._ear.listen():
                    if message["type"] == "subscribe" and not heard.done():
                        heard.set_result(None)
                    gate = self._gates.get(message["channel"])
                    if gate is not None and message["type"] == "message":
                        gate.told(message["data"])
                    pause = _PAUSE
            except _STORE_ERRORS:
                pass
            finally:
                with contextlib.suppress(*_STORE_ERRORS):
                    await self._ear.aclose()
            await asyncio.sleep(pause)
            pause = min(self._terms.heartbeat, pause * 2)

    def _connection(self) -> Any:
        if self._client is None:
            self._client = _client(self._url, self._terms)
        return self._client

    def __repr__(self) -> str:
        return f"<RedisGates {len(self._gates)} gates>"


def arguments(
    member: str,
    report: Report,
    *,
    lease: float,
    quarantine: float,
    limit: int,
    channel: str,
) -> list[str | int]:
    """Return what the script is told of a report."""
    return [
        member,
        report.number,
        report.held,
        report.wanted,
        int(lease * 1000),
        int(quarantine * 1000),
        limit,
        f"{socket.gethostname()}:{os.getpid()}",
        channel,
    ]


def _client(url: str, terms: Terms) -> Any:
    """Return a client with a single connection, which repeats nothing by itself."""
    pool = redis.asyncio.BlockingConnectionPool.from_url(
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


def _key(secret: Secret) -> str:
    # In braces: a cluster keeps together what has the same between them.
    return f"agentapi:{{{secret.digest}}}"


def _channel(key: str) -> str:
    return f"{key}:news"


def _budget(
    rows: Mapping[str, str], overdrawn: int, now: float, limit: int
) -> SharedBudget:
    members: list[Member] = []
    for name, row in rows.items():
        held, wanted, seen, ends, kept, _, label = row.split(" ", 6)
        dead = now >= int(ends) / 1000
        frees = max(0.0, int(kept) / 1000 - now)
        if dead and not frees:
            continue
        members.append(
            Member(
                id=name,
                label=label,
                held=int(held),
                wanted=int(wanted),
                age=max(0.0, now - int(seen) / 1000),
                dead=dead,
                frees=frees if dead else None,
            )
        )
    members.sort(key=lambda member: (member.label, member.id))
    return SharedBudget(
        limit=limit,
        held=sum(m.held for m in members if not m.dead),
        quarantined=sum(m.held for m in members if m.dead),
        overdrawn=overdrawn,
        members=tuple(members),
    )
