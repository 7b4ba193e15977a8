"""The gate against a simple model, over any sequence of what can befall it."""

from __future__ import annotations

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aio_agentapi import LocalGate
from aio_agentapi._types import Lane
from aio_agentapi.errors import ClosedError, GateTimeoutError

LIMIT = 4
LANES = st.sampled_from(["interactive", "batch"])


class GateMachine(RuleBasedStateMachine):
    """Callers that come, go, are cancelled, refused and served, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.loop = self.runner.get_loop()
        self.gate = LocalGate(limit=LIMIT, batch_floor=1)
        self.waiting: list[tuple[Lane, asyncio.Task[None]]] = []
        self.holding: list[Lane] = []
        self.closed = False

    def teardown(self) -> None:
        """Release and cancel everything: then all permits are there."""
        for _, task in self.waiting:
            task.cancel()
        self.turn()
        while self.holding:
            self.gate.release(self.holding.pop())
            self.turn()
        assert self.gate.statistics().in_use == 0
        self.runner.close()

    def turn(self) -> None:
        """Let everything that is ready run, and sort out who has a permit now."""

        async def turns() -> None:
            for _ in range(4):
                await asyncio.sleep(0)

        self.runner.run(turns())
        still: list[tuple[Lane, asyncio.Task[None]]] = []
        for lane, task in self.waiting:
            if not task.done():
                still.append((lane, task))
            elif not task.cancelled():
                error = task.exception()
                if error is None:
                    self.holding.append(lane)
                else:
                    assert isinstance(error, GateTimeoutError | ClosedError)
        self.waiting = still

    @rule(lane=LANES, timed=st.booleans())
    def arrive(self, lane: Lane, *, timed: bool) -> None:
        """Somebody asks; some have no time at all."""
        until = self.loop.time() if timed else None
        task = self.loop.create_task(self.gate.acquire(lane, until))
        self.waiting.append((lane, task))

    @precondition(lambda self: self.holding)
    @rule(data=st.data(), good=st.booleans())
    def release(self, data: st.DataObject, *, good: bool) -> None:
        """A call ends, with an answer or without."""
        lane = self.holding.pop(data.draw(st.integers(0, len(self.holding) - 1)))

        async def release() -> None:
            self.gate.release(lane, 0.01 if good else None)

        self.runner.run(release())

    @precondition(lambda self: self.holding)
    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        """A call is answered with 1018."""
        lane = self.holding.pop(data.draw(st.integers(0, len(self.holding) - 1)))
        task = self.loop.create_task(self.gate.refused(lane))
        self.waiting.append((lane, task))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """A caller goes, maybe in the very turn in which he is served."""
        _, task = data.draw(st.sampled_from(self.waiting))
        task.cancel()

    @rule()
    def settle(self) -> None:
        """Time for everybody to notice."""
        self.turn()

    @precondition(lambda self: self.waiting)
    @rule()
    def probe(self) -> None:
        """The probe's timer fires."""

        async def fire() -> None:
            self.gate._completed = -1e9
            if self.gate._timer is not None:
                self.gate._timer.cancel()
                self.gate._probe()

        self.runner.run(fire())

    @precondition(lambda self: not self.closed)
    @rule(really=st.integers(0, 20))
    def close(self, really: int) -> None:
        """The session ends, seldom."""
        if really == 0:
            self.closed = True
            self.gate.close()

    @invariant()
    def every_permit_is_in_one_place(self) -> None:
        """In use, free or withheld; never more than the limit."""
        state = self.gate.statistics()
        free = self.gate._free._value
        assert state.in_use + free + state.withheld == LIMIT
        assert min(state.in_use, free, state.withheld) >= 0
        assert 1 <= state.share <= LIMIT
        assert state.in_use <= state.share
        lanes = self.gate._interactive.in_use, self.gate._batch.in_use
        assert sum(lanes) == state.in_use

    @invariant()
    def nobody_waits_beside_a_free_permit(self) -> None:
        """Who waits is served by a release, a growing share or a probe."""
        self.turn()
        state = self.gate.statistics()
        assert state.in_use == len(self.holding)
        assert state.waiting == len(self.waiting)
        if state.waiting:
            assert self.gate._free._value == 0
            assert state.in_use or self.gate._timer is not None
        elif not self.closed:
            assert state.in_use + self.gate._free._value == state.share


GateMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestGate = GateMachine.TestCase
