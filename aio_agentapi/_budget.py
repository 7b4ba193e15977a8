"""
What the members of a shared budget and its store say to each other.

The theory is in :mod:`aio_agentapi.redis`; this knows no connection and no gate.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Final, TypeAlias

import attrs

from aio_agentapi._types import Secret
from aio_agentapi.errors import UsageError

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
    -- One that has been up for longer than a lease and knows nothing was not used. It
    -- tells the difference of two times in whole seconds: up to one more than it is.
    local since = now
    if not run then since = now - math.max(0, up - 1) * 1000 end
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
class Report:
    """
    What a member tells the store.

    Attributes:
        number: Of the report, growing: an older one than the last is not carried out.

        held: Permits that it holds.

        wanted: Permits that it would use.

        sent: When, in seconds of the member's clock: its lease counts from here.
    """

    number: int
    held: int
    wanted: int
    sent: float


@attrs.frozen(kw_only=True)
class Terms:
    """
    How long things last, in seconds, and what is left without the store.

    Attributes:
        lease: For which permits are held without a word to the store.

        heartbeat: Between two words to the store.

        quarantine: For which the permits of a dead member are kept behind its lease.

        static_share: Permits of this process while the store is gone. 0: none.

    Raises:
        UsageError: A value that cannot be. Nothing was sent.
    """

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
        # 0.3 is three times 0.1, and less than 3 * 0.1.
        if self.lease < 3 * self.heartbeat * (1 - 1e-9):
            msg = "lease: three heartbeats at least, so that one may be missed"
            raise UsageError(msg)
        share = self.static_share
        if isinstance(share, bool) or not isinstance(share, int) or share < 0:
            msg = f"static_share: a whole number, 0 or more, not {share!r}"
            raise UsageError(msg)


# What it may hold, members, in quarantine, overdrawn, milliseconds of grace left.
Answer: TypeAlias = tuple[int, int, int, int, int]


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


def arguments(
    member: str,
    report: Report,
    *,
    lease: float,
    quarantine: float,
    limit: int,
    channel: str,
) -> list[str | int]:
    """
    Return what the script is told of a report.

    Args:
        member: Who reports.

        report: What he says.

        lease: Seconds for which he has what he is given. 0: he leaves.

        quarantine: Seconds for which it is kept behind that.

        limit: Permits in all.

        channel: Where the others are told.
    """
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


def key_of(secret: Secret) -> str:
    """Return what the store calls a token: a hash of it."""
    # In braces: a cluster keeps together what has the same between them.
    return f"agentapi:{{{secret.digest}}}"


def channel_of(key: str) -> str:
    """Return where members of a budget are told news."""
    return f"{key}:news"


def budget_of(
    rows: Mapping[str, str], overdrawn: int, now: float, limit: int
) -> SharedBudget:
    """
    Return who holds what.

    Args:
        rows: Of the members.

        overdrawn: So far.

        now: The store's time, in seconds.

        limit: Permits in all.
    """
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
