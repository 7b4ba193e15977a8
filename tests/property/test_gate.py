"""The gate against a simple model, over any sequence of what can befall it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from aio_agentapi import LocalGate, Settings
from aio_agentapi._types import Lane
from aio_agentapi.errors import ClosedError, GateTimeoutError
from aio_agentapi.redis import RedisGate
from tests.watch import check

LIMIT: Final = 4
FLOOR: Final = 2
LANES: Final[tuple[Lane, ...]] = ("interactive", "batch")


class Caller:
    """Somebody who asks for a permit, and how far he has come."""

    def __init__(self, lane: Lane, *, again: bool) -> None:
        self.lane: Lane = lane
        self.again = again
        self.waiter: asyncio.Future[Any] | None = None
        self.task: asyncio.Task[None] | None = None
        self.detached = False

    @property
    def waits(self) -> bool:
        """Whether he stands in line."""
        return self.waiter is not None and not self.waiter.done()


class Loop(asyncio.SelectorEventLoop):
    """A loop whose clock is the test's, that goes on by single turns."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        # Whose waiter the next future is.
        self.asking: Caller | None = None

    def time(self) -> float:
        """Tell the test's time."""
        return self.now

    def create_future(self) -> asyncio.Future[Any]:
        """Make a future; the model wants to know a caller's."""
        future = super().create_future()
        if self.asking is not None:
            self.asking.waiter, self.asking = future, None
        return future

    def turn(self) -> None:
        """Run what is ready, and no more."""
        timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        due = timers and timers[0].when() <= self.now
        if not (due or self._ready):  # type: ignore[attr-defined]
            # Nothing is done in it, and beginning it would be most of a search.
            return
        self.stop()
        self.run_forever()

    @contextmanager
    def running(self) -> Generator[None]:
        """Let the gate be called from outside of a turn."""
        asyncio._set_running_loop(self)
        try:
            yield
        finally:
            asyncio._set_running_loop(None)


class Watching(LocalGate):
    """What compares a gate's choices with the model's."""

    # In the order in which they came.
    callers: list[Caller]

    def head(self, lane: Lane) -> Caller | None:
        """Return who is next in a lane: refused ones first, then by arrival."""
        line = [c for c in self.callers if c.lane == lane and c.waits]
        return next((c for c in line if c.again), None) or next(iter(line), None)

    def _hand_over(self) -> bool:
        heads = [head for lane in LANES if (head := self.head(lane)) is not None]
        held = self._batch.in_use
        given = super()._hand_over()
        served = [head for head in heads if not head.waits]
        assert given == bool(heads), "nobody waits beside a permit"
        assert len(served) == len(heads[:1]), "one of those whose turn it is"
        if len(heads) == len(LANES) and served == [heads[1]]:
            assert self._share() == 1 or held < FLOOR, "batch is beyond its floor"
        return given


class Watched(Watching):
    """The gate of one process."""


class WatchedShared(Watching, RedisGate):
    """A shared gate, with all that it wants on lease."""


def shared() -> WatchedShared:
    """Make one that has its permits, and whose lease does not end."""
    gate = WatchedShared(
        limit=0, batch_floor=FLOOR, settings=Settings(limit=LIMIT, batch_floor=FLOOR)
    )
    report = gate.report(wanted=LIMIT)
    gate.answered(report, (LIMIT, 1, 0, 0, 0))
    gate._ends = float("inf")
    return gate


class GateMachine(RuleBasedStateMachine):
    """Callers that come, go, are cancelled, refused and served, in any order."""

    steps = 0

    @staticmethod
    def make() -> Watching:
        """Make the gate that is searched."""
        return Watched(limit=LIMIT, batch_floor=FLOOR)

    def __init__(self) -> None:
        super().__init__()
        self.loop = Loop()
        self.gate: Watching = self.make()
        self.gate.callers = []
        self.waiting: list[Caller] = []
        self.holding: list[Caller] = []
        self.closed = False
        # How many permits there are to be, and how many had been given before.
        self.target = LIMIT
        self.admitted = 0

    async def call(self, caller: Caller, until: float | None) -> None:
        """Ask for a permit, and keep it."""
        nobody = self.gate.statistics().waiting == 0
        self.gate.callers.append(caller)
        self.loop.asking = caller
        try:
            await self.gate.acquire(caller.lane, until, again=caller.again)
        finally:
            self.loop.asking = None
            self.gate.callers.remove(caller)
        assert nobody or caller.waiter is not None, "a newcomer has overtaken"
        self.holding.append(caller)

    def arrive_as(self, caller: Caller, patience: float | None) -> None:
        """Let a caller ask in the next turn."""
        until = None if patience is None else self.loop.now + patience
        caller.task = self.loop.create_task(self.call(caller, until))
        self.waiting.append(caller)

    def draw(self, data: st.DataObject, among: list[Caller]) -> Caller:
        """Choose one."""
        return among[data.draw(st.integers(0, len(among) - 1))]

    @rule(
        lanes=st.lists(st.sampled_from(LANES), min_size=1, max_size=5),
        patience=st.sampled_from([None, None, None, 0.0, 0.05]),
        now=st.booleans(),
    )
    def arrive(self, lanes: list[Lane], patience: float | None, *, now: bool) -> None:
        """Some ask, in this turn or the next; some have little time, or none."""
        for lane in lanes:
            self.arrive_as(Caller(lane, again=False), patience)
        if now:
            self.turn(0.0)

    def leave(self, caller: Caller, *, answered: bool) -> None:
        """End what a caller had begun, if he was gone."""
        self.holding.remove(caller)
        if caller.detached:
            self.gate.land(answered=answered)

    @precondition(lambda self: self.holding)
    @rule(data=st.data(), took=st.sampled_from([0.01, 0.01, 0.3, None]))
    def release(self, data: st.DataObject, took: float | None) -> None:
        """A call ends, with an answer or without."""
        with self.loop.running():
            caller = self.draw(data, self.holding)
            self.leave(caller, answered=took is not None)
            self.gate.release(caller.lane, took)

    @precondition(lambda self: self.holding)
    @rule(data=st.data(), stays=st.booleans(), whole=st.booleans())
    def refuse(self, data: st.DataObject, *, stays: bool, whole: bool) -> None:
        """Some or all are answered with 1018; they wait again, or have gone."""
        for _ in range(len(self.holding) if whole else 1):
            with self.loop.running():
                caller = self.draw(data, self.holding)
                self.leave(caller, answered=True)
                self.gate.refused(caller.lane)
            if stays and not caller.detached:
                self.arrive_as(Caller(caller.lane, again=True), None)

    @precondition(lambda self: self.holding)
    @rule(data=st.data())
    def detach(self, data: st.DataObject) -> None:
        """A caller leaves his call, which goes on."""
        caller = self.draw(data, self.holding)
        if not caller.detached:
            caller.detached = True
            self.gate.detach()

    @precondition(lambda self: self.holding)
    @rule(data=st.data(), linger=st.sampled_from([0.0, 0.2]))
    def give_up(self, data: st.DataObject, linger: float) -> None:
        """A call is given up."""
        with self.loop.running():
            caller = self.draw(data, self.holding)
            self.leave(caller, answered=False)
            self.gate.give_up(caller.lane, linger)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """A caller goes, maybe in the very turn in which he is served."""
        caller = self.draw(data, self.waiting)
        assert caller.task is not None
        caller.task.cancel()

    @rule(lane=st.sampled_from(LANES), again=st.booleans())
    def vanish(self, lane: Lane, *, again: bool) -> None:
        """A coroutine is begun, and closed before it comes to its end."""
        with self.loop.running():
            asking = self.gate.acquire(lane, None, again=again)
            try:
                asking.send(None)
            except StopIteration:
                self.gate.release(lane)
            except ClosedError:
                pass
            else:
                asking.close()

    @rule(seconds=st.sampled_from([0.0, 0.0, 0.0, 0.05, 0.5]))
    def turn(self, seconds: float) -> None:
        """One turn of the loop; time may have gone by."""
        self.loop.now += seconds
        self.loop.turn()
        for caller in [*self.waiting]:
            assert caller.task is not None
            if caller.task.done():
                self.waiting.remove(caller)
                if not caller.task.cancelled():
                    error = caller.task.exception()
                    assert error is None or isinstance(
                        error, GateTimeoutError | ClosedError
                    )

    @rule(limit=st.sampled_from([0, 1, 2, LIMIT + 2]), really=st.integers(0, 9))
    def resize(self, limit: int, really: int) -> None:
        """There are more permits, or fewer, at times."""
        if really < 2:
            self.target = LIMIT if really else limit
            with self.loop.running():
                self.gate.resize(self.target)

    @precondition(lambda self: not self.closed)
    @rule(really=st.integers(0, 60))
    def close(self, really: int) -> None:
        """The session ends, seldom."""
        if really == 0:
            self.closed = True
            self.gate.close()

    @invariant()
    def all_is_accounted_for(self) -> None:
        """Each permit in one place, each caller in one line or none."""
        GateMachine.steps += 1
        check(self.gate)
        state = self.gate.statistics()
        detached = sum(caller.detached for caller in self.holding)
        assert state.detached == detached
        # Some were served, or cancelled, and have not had their turn yet.
        waits = sum(caller.waits for caller in self.gate.callers)
        assert waits <= state.waiting <= len(self.waiting)
        served = sum(
            caller.waiter is not None and not caller.waits for caller in self.waiting
        )
        assert len(self.holding) <= state.in_use <= len(self.holding) + served
        if state.admitted > self.admitted:
            # Those in use when there were more may be more: nobody joins them.
            assert state.in_use <= self.target, "beyond what there is to be"
        self.admitted = state.admitted

    def teardown(self) -> None:
        """Let everything end, and leave nothing where a fault was found."""
        try:
            self.end()
        finally:
            tasks = asyncio.all_tasks(self.loop)
            for task in tasks:
                task.cancel()
            for _ in range(3):
                self.loop.turn()
            for caller in self.waiting:
                if caller.task in tasks and not caller.task.cancelled():
                    caller.task.exception()
            self.loop.close()

    def end(self) -> None:
        """All are served or told, and all permits are there."""
        with self.loop.running():
            self.gate.resize(LIMIT)
        for _ in range(200):
            while self.holding:
                caller = self.holding[0]
                with self.loop.running():
                    self.leave(caller, answered=True)
                    self.gate.release(caller.lane, 0.01)
            self.turn(0.0)
            if not (self.waiting or self.holding or self.gate._lingering):
                break
            if not self.holding:
                # Nothing of ours runs: a probe, or what lingers, comes next.
                self.turn(0.05)
        state = self.gate.statistics()
        assert (state.waiting, state.in_use, state.detached) == (0, 0, 0)
        assert state.limit == LIMIT
        assert self.gate._free._value + state.withheld == LIMIT


class SharedMachine(GateMachine):
    """The same, of a shared gate."""

    @staticmethod
    def make() -> Watching:
        """Make the gate that is searched."""
        return shared()


SOAK: Final = 1_000_000
BOTH: Final = pytest.mark.parametrize("machine", [GateMachine, SharedMachine])


def search(steps: int, machine: type[GateMachine] = GateMachine, **chosen: Any) -> None:
    """Search so many steps, some more or less."""
    many = settings(max_examples=steps // 100, stateful_step_count=100, **chosen)
    run_state_machine_as_test(machine, settings=many)


@BOTH
def test_a_gate_over_any_sequence(machine: type[GateMachine]) -> None:
    """A short search, the same in each run of a commit."""
    search(8_000, machine)


@BOTH
@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_gate_over_a_million_steps(machine: type[GateMachine]) -> None:
    """A long one, another one each time."""
    before = GateMachine.steps
    while GateMachine.steps < before + SOAK:
        search(100_000, machine, derandomize=False, database=None)


def is_found() -> None:
    """See the search find what was planted; it need not be made small."""
    try:
        with pytest.raises(AssertionError):
            search(20_000, phases=[Phase.generate], report_multiple_bugs=False)
    finally:
        # What is left of it ends here, and not while the next search reads its own
        # source: Python 3.11 does not bear that.
        gc.collect()


def test_the_search_finds_a_lost_wake_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who is taken out of the line and never told."""

    def lose(self: LocalGate, line: Any, waiter: asyncio.Future[bool]) -> None:
        # As if whoever was cancelled had been served.
        if waiter in line:
            del line[waiter]
            self._waiting -= 1
            if line:
                line.popitem(last=False)
                self._waiting -= 1

    monkeypatch.setattr(LocalGate, "_strike", lose)
    is_found()


def test_the_search_finds_a_line_that_nothing_moves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Refused, the last of ours ends, and nobody is sent to see."""

    def rest(_: LocalGate) -> None:
        pass

    monkeypatch.setattr(LocalGate, "_watch", rest)
    is_found()


def test_the_search_finds_a_double_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """A permit that lingered comes back twice."""
    once = LocalGate._return

    def twice(self: LocalGate) -> None:
        once(self)
        self._put()

    monkeypatch.setattr(LocalGate, "_return", twice)
    is_found()


def test_the_search_finds_a_barging_newcomer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last in line is served first."""

    def barge(self: LocalGate) -> bool:
        queue = self._next()
        line = queue.refused or queue.fresh
        waiter, _ = line.popitem(last=True)
        self._waiting -= 1
        if waiter.done():
            return False
        self._admit(queue)
        waiter.set_result(True)
        return True

    monkeypatch.setattr(LocalGate, "_hand_over", barge)
    is_found()


def test_the_search_finds_a_shrunk_gate_that_admits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A permit that comes back above the limit is given to the next in line."""

    def put(self: LocalGate) -> None:
        if self._waiting and self._hand_over():
            pass
        elif self._limit > self._target:
            self._shrink()
        else:
            self._free.release()
        if self._drained is not None:
            self._check_drained()

    monkeypatch.setattr(LocalGate, "_put", put)
    is_found()
