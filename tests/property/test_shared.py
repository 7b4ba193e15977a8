"""
The shared gate in a simulation: members, a store, a service, and one virtual clock.

The store runs the real script, in an interpreter of its own. Messages are late, lost,
and overtake each other; members stop for a while, are killed and started; the store is
not reached for a while, or comes back empty. At the service there are never more than
the limit, and in the end everybody is served and everything is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import math
import random
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import pytest

from aio_agentapi import Settings
from aio_agentapi._budget import SCRIPT, Report, Terms, arguments
from aio_agentapi.errors import GateLostError
from aio_agentapi.redis import RedisGate
from tests.property.test_gate import Loop

if sys.version_info >= (3, 15):
    # It comes with none for that yet.
    lua51 = pytest.importorskip("lupa.lua51", reason="lupa is missing: no Lua")
else:
    from lupa import lua51

LEASE: Final = 1.0
BEAT: Final = 0.2
QUARANTINE: Final = 2.0
# Longer than the service takes, shorter than the quarantine.
PAUSES: Final = (0.05, 0.3, 0.9)
LONGEST: Final = 1.0
HORIZON: Final = 4.0

# What is promised of each schedule, as it is said where it is not so.
OVER: Final = "more than the service admits"
STRANDED: Final = "calls are stranded"
GONE: Final = "permits are gone"


class BrokenPromiseError(AssertionError):
    """What the shared gate promises is not so: which of it, in a word."""


class Store:
    """Hashes, a clock, messages, and the script."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.lua: Any = lua51.LuaRuntime(unpack_returned_tuples=True)
        table = self.lua.table_from
        self.lua.globals().redis = table({"call": self.call, "pcall": self.call})
        self.script = self.lua.eval(f"function(KEYS, ARGV) {SCRIPT} end")
        self.reset(run="a", began=-100.0)
        self.news: list[str] = []

    def reset(self, *, run: str, began: float) -> None:
        """Begin anew with nothing."""
        self.run, self.began = run, began
        self.hashes: dict[str, dict[str, str]] = {"members": {}, "state": {}}
        # Milliseconds that each is kept for, as last said.
        self.expires: dict[str, int] = {}

    def call(self, name: str, *args: Any) -> Any:  # noqa: PLR0911 - one for each command
        """Do what a command of the store does."""
        table = self.lua.table_from
        words = [str(a) if not isinstance(a, float) else f"{a:.0f}" for a in args]
        if name == "TIME":
            now = self.clock() + 1_000_000
            return table([str(int(now)), str(int(now % 1 * 1e6))])
        if name == "INFO":
            # Two times that are cut to whole seconds: up to one more than it was.
            up = math.floor(self.clock()) - math.floor(self.began)
            return f"run_id:{self.run}\r\nuptime_in_seconds:{up}\r\n"
        if name == "PUBLISH":
            self.news.append(words[1])
            return 1
        if name == "PEXPIRE":
            self.expires[words[0]] = int(words[1])
            return 1
        rows = self.hashes[words[0]]
        if name == "HGETALL":
            return table([word for pair in rows.items() for word in pair])
        if name == "HMGET":
            return table([rows.get(word, False) for word in words[1:]])
        if name == "HSET":
            rows.update(zip(words[1::2], words[2::2], strict=True))
            return 1
        assert name == "HDEL"
        return int(rows.pop(words[1], None) is not None)

    def carry(
        self,
        member: str,
        report: Report,
        limit: int,
        lease: float = LEASE,
        quarantine: float = QUARANTINE,
    ) -> tuple[Any, list[str]]:
        """Run the script; return its answer, and what it told others."""
        args = arguments(
            member,
            report,
            lease=lease,
            quarantine=quarantine,
            limit=limit,
            channel="news",
        )
        table = self.lua.table_from
        self.news = []
        answer = self.script(table(["members", "state"]), table([str(a) for a in args]))
        return tuple(int(n) for n in answer.values()), self.news


class Member:
    """One process: a gate, a loop of its own, and a keeper of few lines."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.loop = sim.loops.pop()
        self.loop.now = sim.now
        with self.loop.running():
            self.gate = RedisGate(
                limit=0,
                settings=Settings(limit=sim.limit),
                terms=Terms(lease=LEASE, heartbeat=BEAT, quarantine=QUARANTINE),
                clock=lambda: sim.now,
            )
        self.gate.id = f"{sim.dice.getrandbits(32):08x}"
        self.gate._ends = sim.now + LEASE - BEAT
        # What has arrived and is not read yet.
        self.inbox: list[Callable[[], None]] = []
        self.stopped_until = 0.0
        self.dead = False
        self.asking: int | None = None
        self.asked_at = self.beat = -1.0
        self.calls: list[asyncio.Task[None]] = []

    async def call(self) -> None:
        """Wait for a permit, and send."""
        with contextlib.suppress(GateLostError):
            await self.gate.acquire("interactive")
            self.sim.send(self)

    @property
    def is_due(self) -> bool:
        """Whether the keeper has something to do."""
        if self.asking is not None:
            return self.sim.now >= self.asked_at + BEAT
        return self.sim.now >= self.beat or self.gate._asked.is_set()

    def ask(self) -> None:
        """Be the keeper: one report at a time, and none that is waited for too long."""
        now, gate = self.sim.now, self.gate
        if self.asking is not None:
            self.asking = None
            gate.failed()
            return
        due = now >= self.beat
        gate._asked.clear()
        report = gate.report(beat=due)
        if due:
            self.beat = now + BEAT
        self.asking, self.asked_at = report.number, now
        self.sim.post(self, report)

    def step(self) -> None:
        """Do what is to be done by now, in this order: what was ready comes first."""
        if self.dead or self.sim.now < self.stopped_until:
            return
        self.loop.now = self.sim.now
        self.loop.turn()
        if self.inbox or self.is_due:
            with self.loop.running():
                inbox, self.inbox = self.inbox, []
                for read in inbox:
                    read()
                if self.is_due:
                    self.ask()
        self.loop.turn()


class Simulation:
    """One schedule, drawn from a seed."""

    def __init__(self, seed: int, loops: list[Loop], store: Store) -> None:
        self.dice = random.Random(seed)  # noqa: S311 - a schedule
        self.now = 0.0
        self.loops = [*loops]
        self.limit = self.dice.choice((1, 3, 5, 8))
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.count = 0
        self.store = store
        store.clock = lambda: self.now
        store.reset(run="a", began=-100.0)
        self.away_until = 0.0
        self.in_flight = self.peak = self.served = 0
        self.faults = True
        self.gone: list[Member] = []
        # A store that loses what it knew does not go with members that stop: who
        # stops then cannot say what he holds.
        self.wipes = self.dice.random() < 0.4
        self.members = [Member(self) for _ in range(self.dice.randint(1, 3))]

    def at(self, when: float, act: Callable[[], None]) -> None:
        """Do something later."""
        self.count += 1
        heapq.heappush(self.events, (when, self.count, act))

    def send(self, member: Member) -> None:
        """Begin a call at the service, which counts it to its end."""
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)

        def end() -> None:
            self.in_flight -= 1
            self.served += 1
            member.inbox.append(lambda: member.gate.release("interactive", 0.1))

        # Without a quarantine, what the dead left behind must not take longer than
        # the time in which an empty store gives nothing.
        slow = self.faults and not self.wipes and self.dice.random() < 0.15
        self.at(self.now + self.dice.uniform(0.005, LONGEST if slow else 0.2), end)

    def trip(self) -> float:
        """Return when a message arrives: mostly soon, at times very late."""
        late = self.faults and self.dice.random() < 0.05
        return self.now + self.dice.uniform(0.0005, 1.5 if late else 0.03)

    def lost(self, share: float) -> bool:
        """Tell whether a message gets lost."""
        return self.faults and self.dice.random() < share

    def post(self, member: Member, report: Report) -> None:  # noqa: C901 - one trip
        """Carry a report to the store, and its answer back, or not."""

        def arrive() -> None:
            if self.now < self.away_until:
                return
            answer, news = self.store.carry(member.gate.id, report, self.limit)
            for text in news:
                for other in self.members:
                    if not self.lost(0.2):
                        self.at(self.trip(), partial(self.tell, other, text))
            if answer[0] >= 0 and not self.lost(0.1):
                self.at(self.trip(), lambda: back(answer))

        def back(answer: Any) -> None:
            def read() -> None:
                # Of a connection that was given up nothing is read any more.
                if member.asking == report.number:
                    member.asking = None
                    member.gate.answered(report, answer)

            member.inbox.append(read)

        if not self.lost(0.1):
            # It may be carried out when nobody waits for it any more.
            self.at(self.trip(), arrive)

    @staticmethod
    def tell(member: Member, text: str) -> None:
        """Bring a message of the store."""
        member.inbox.append(lambda: member.gate.told(text))

    def fault(self) -> None:
        """Let something happen to somebody."""
        kind, member = self.dice.random(), self.dice.choice(self.members)
        if kind < 0.35:
            pause = self.dice.choice(PAUSES[:1] if self.wipes else PAUSES)
            # Two stops one after the other would be one that is too long.
            if self.now >= member.stopped_until:
                member.stopped_until = self.now + pause
        elif kind < 0.5 and self.loops:
            member.dead = True
            self.members.remove(member)
            self.gone.append(member)
            self.members.append(Member(self))
        elif kind < 0.6:
            self.away_until = self.now + self.dice.uniform(0.05, 2.0)
            if self.wipes:
                self.store.reset(run=str(self.now), began=self.away_until)
        else:
            for _ in range(self.dice.randint(0, len(member.calls))):
                self.dice.choice(member.calls).cancel()

    def arrive(self) -> None:
        """Let calls come in."""
        member = self.dice.choice(self.members)
        for _ in range(self.dice.randint(1, self.limit + 2)):
            member.calls.append(member.loop.create_task(member.call()))

    def run_until(self, end: float) -> None:
        """Let time go by."""
        while self.now < end:
            self.now += self.dice.expovariate(1 / 0.02)
            while self.events and self.events[0][0] <= self.now:
                heapq.heappop(self.events)[2]()
            if self.faults:
                if self.dice.random() < 0.08:
                    self.fault()
                if self.dice.random() < 0.3:
                    self.arrive()
            for member in self.dice.sample(self.members, len(self.members)):
                member.step()
            # Here, and not in a task, whose errors nobody would see.
            if self.peak > self.limit:
                raise BrokenPromiseError(OVER)

    def close(self) -> None:
        """Leave no call behind; asking for all tasks there are takes far longer."""
        for member in (*self.members, *self.gone):
            for call in member.calls:
                call.cancel()

    def run(self) -> None:
        """Search one schedule, and see that nothing is left behind."""
        self.run_until(HORIZON)
        self.faults, self.away_until = False, 0.0
        # Whoever was told that the store is gone has gone; the others are served.
        waiting = sum(not call.done() for m in self.members for call in m.calls)
        patience = 4.0 + waiting * LONGEST / self.limit
        self.run_until(HORIZON + LEASE + QUARANTINE + patience)
        for member in self.members:
            state = member.gate.statistics()
            if state.waiting or state.in_use or not all(t.done() for t in member.calls):
                raise BrokenPromiseError(STRANDED)
        # All permits are to be had again, by whoever wants them.
        last, before = self.members[0], self.served
        assert not self.in_flight
        last.calls += [last.loop.create_task(last.call()) for _ in range(self.limit)]
        self.run_until(self.now + 2.0)
        if self.served != before + self.limit:
            raise BrokenPromiseError(GONE)


def search(seeds: range) -> tuple[int, int]:
    """Search schedules; return how many calls were served, and how many lapsed."""
    served, full = 0, 0
    for base in range(seeds.start, seeds.stop, 500):
        store = Store(lambda: 0.0)
        for seed in range(base, min(base + 500, seeds.stop)):
            loops = [Loop() for _ in range(8)]
            simulation = Simulation(seed, loops, store)
            try:
                simulation.run()
            except AssertionError as error:
                error.add_note(f"seed {seed}")
                raise
            finally:
                simulation.close()
                for loop in loops:
                    loop.turn()
                    loop.turn()
                    loop.close()
            served += simulation.served
            full += simulation.peak == simulation.limit
    return served, full


def test_never_over_and_nobody_stranded() -> None:
    """A short search; most schedules fill the budget to the last permit."""
    served, full = search(range(60))
    assert served > 60 * 50
    assert full > 40


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_never_over_in_a_hundred_thousand_schedules() -> None:
    """The long one."""
    search(range(1_000, 101_000))


@pytest.fixture
def mutant(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Change a place of the script."""

    def change(old: str, new: str) -> None:
        found = SCRIPT.count(old)
        assert found == 1, f"not in the script any more, or twice: {old}"
        monkeypatch.setattr(f"{__name__}.SCRIPT", SCRIPT.replace(old, new))

    return change


@pytest.mark.parametrize(
    ("old", "new", "seed"),
    [
        # The permits of the dead are there when their lease is over.
        ("now >= row.kept or", "now >= row.ends or", 15),
        # What is late is carried out all the same.
        ("if me and number <= me.number then return {-1} end", "", 78),
        # An empty store gives at once.
        ("grace, claimed = since + math.max(lease, 1), 0", "grace, claimed = 0, 0", 57),
        # What is given is not written down.
        ("me.held = math.max(held, target)", "me.held = held", 0),
        # One that is up for less than a second has been up for one.
        ("now - math.max(0, up - 1) * 1000", "now - up * 1000", 530),
    ],
)
def test_the_search_finds_what_is_wrong(
    mutant: Callable[[str, str], None], old: str, new: str, seed: int
) -> None:
    """Each of these lets too many calls start, and is found."""
    mutant(old, new)
    # From where it is known to be found soon; the search goes on where it is not.
    with pytest.raises(BrokenPromiseError, match=OVER):
        search(range(seed, seed + 400))
