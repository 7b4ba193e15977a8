"""The gate: lanes, hand-over, refusals, limits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

import pytest

from aio_agentapi import GateStatistics, LocalGate, Settings
from aio_agentapi._types import Lane
from aio_agentapi.errors import ClosedError, GateFullError, GateTimeoutError
from aio_agentapi.redis import RedisGate
from tests.waiting import in_virtual_time

Make: TypeAlias = Callable[..., LocalGate]


def leased(limit: int, **bounds: Any) -> RedisGate:
    """Make a shared gate that has all its permits, and whose lease does not end."""
    settings = Settings(limit=limit)
    gate = RedisGate(limit=0, settings=settings, clock=lambda: 0.0, **bounds)
    gate.answered(gate.report(wanted=limit), (limit, 1, 0, 0, 0))
    return gate


@pytest.fixture(params=[LocalGate, leased], ids=["local", "shared"])
def make(request: pytest.FixtureRequest) -> Make:
    """Return what makes a gate: each promise is one of both kinds."""
    kind: Make = request.param
    return kind


async def turns(count: int = 5) -> None:
    """Let everything that is ready run."""
    for _ in range(count):
        await asyncio.sleep(0)


def start(call: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Run a call beside the test."""
    return asyncio.get_running_loop().create_task(call)


async def refuse(gate: LocalGate, lane: Lane, until: float | None = None) -> None:
    """Be refused by the service, and wait again."""
    gate.refused(lane)
    await gate.acquire(lane, until, again=True)


@in_virtual_time
async def test_permits_are_given_until_there_are_none() -> None:
    """The limit holds, and the next one waits for a release."""
    gate = LocalGate(limit=2)
    await gate.acquire("interactive")
    await gate.acquire("batch")
    third = start(gate.acquire("interactive"))
    await turns()
    assert not third.done()
    assert repr(gate) == "<LocalGate 2 permits, 2 in use, 1 waiting>"
    assert gate.statistics() == GateStatistics(
        limit=2,
        share=2,
        in_use=2,
        detached=0,
        withheld=0,
        waiting=1,
        waiting_by_lane={"interactive": 1, "batch": 0},
        admitted=2,
        busy_answers=0,
        late_answers=0,
        foreign_estimate=0,
        peak=2,
    )
    gate.release("batch")
    await third
    assert (gate.statistics().in_use, gate.statistics().waiting) == (2, 0)


@in_virtual_time
async def test_first_come_first_served_within_a_lane(make: Make) -> None:
    """Permits are handed over in the order of arrival."""
    gate = make(limit=1)
    await gate.acquire("interactive")
    served: list[int] = []

    async def call(number: int) -> None:
        await gate.acquire("interactive")
        served.append(number)
        gate.release("interactive")

    calls = [start(call(number)) for number in range(20)]
    await turns()
    gate.release("interactive")
    await asyncio.gather(*calls)
    assert list(range(20)) == served


@in_virtual_time
async def test_a_newcomer_does_not_overtake(make: Make) -> None:
    """A permit that was released is its receiver's before anybody else can ask."""
    gate = make(limit=1)
    await gate.acquire("interactive")
    waiting = start(gate.acquire("interactive"))
    await turns()
    gate.release("interactive")
    newcomer = start(gate.acquire("interactive"))
    await turns()
    assert waiting.done()
    assert not newcomer.done()
    newcomer.cancel()
    await turns()


@in_virtual_time
async def test_interactive_goes_first(make: Make) -> None:
    """The batch lane gets what the other one leaves, without a floor."""
    gate = make(limit=1)
    await gate.acquire("batch")
    batch = start(gate.acquire("batch"))
    await turns()
    interactive = start(gate.acquire("interactive"))
    await turns()
    gate.release("batch")
    await turns()
    assert (interactive.done(), batch.done()) == (True, False)
    gate.release("interactive")
    await batch


async def saturate(gate: LocalGate, permits: int, rounds: int) -> dict[Lane, int]:
    """Let both lanes ask without end, and count what each holds in the end."""
    held: dict[Lane, int] = {"interactive": 0, "batch": 0}
    taken: list[Lane] = []

    async def call(lane: Lane) -> None:
        await gate.acquire(lane)
        taken.append(lane)

    calls = [start(call(lane)) for _ in range(rounds) for lane in held]
    await turns()
    for _ in range(rounds - permits):
        gate.release(taken.pop(0))
        await turns()
    for lane in taken:
        held[lane] += 1
    for task in calls:
        task.cancel()
    await turns()
    return held


@in_virtual_time
async def test_the_batch_lane_keeps_its_floor(make: Make) -> None:
    """However much the other lane asks for, and never more than the floor then."""
    gate = make(limit=10, batch_floor=3)
    assert await saturate(gate, 10, 100) == {"interactive": 7, "batch": 3}


@pytest.mark.parametrize("limit", [2, 5, 10])
@in_virtual_time
async def test_a_floor_above_the_limit_leaves_one_permit(
    limit: int, make: Make
) -> None:
    """The other lane is not starved by a default that was made for fifty."""
    gate = make(limit=limit, batch_floor=10)
    held = await saturate(gate, limit, 60)
    assert held == {"interactive": 1, "batch": limit - 1}


@in_virtual_time
async def test_the_floor_scales_with_the_share(make: Make) -> None:
    """At a fifth of the permits the batch lane keeps a fifth of its floor."""
    gate = make(limit=50, batch_floor=10)
    for _ in range(11):
        await gate.acquire("interactive")
    gate.refused("interactive")
    for _ in range(10):
        gate.release("interactive")
    assert await saturate(gate, 10, 60) == {"interactive": 8, "batch": 2}


@in_virtual_time
async def test_with_one_permit_the_batch_lane_gets_every_fifth(make: Make) -> None:
    """A single permit cannot be divided, but taken in turns."""
    gate = make(limit=1, batch_floor=1)
    await gate.acquire("interactive")
    served: list[str] = []

    async def call(lane: Lane) -> None:
        await gate.acquire(lane)
        served.append(lane[0])
        gate.release(lane)

    calls = [start(call(lane)) for _ in range(20) for lane in ("interactive", "batch")]
    await turns()
    gate.release("interactive")
    await asyncio.gather(*calls)
    assert "".join(served).startswith("iiiibiiiibiiiibiiiib")


@in_virtual_time
async def test_max_wait_ends_the_waiting(make: Make) -> None:
    """The error says how long, and the line is as if nobody had come."""
    gate = make(limit=1)
    await gate.acquire("interactive")
    loop = asyncio.get_running_loop()
    with pytest.raises(GateTimeoutError) as caught:
        await gate.acquire("interactive", loop.time() + 0.01)
    assert caught.value.waited >= 0.005
    assert (gate.statistics().waiting, gate.statistics().in_use) == (0, 1)
    gate.release("interactive")
    # A time that is over does not matter where a permit is free.
    await gate.acquire("interactive", loop.time() - 1)


@in_virtual_time
async def test_a_full_line_refuses_at_once(make: Make) -> None:
    """One more than max_waiting does not wait; a free permit needs no place."""
    gate = make(limit=1, max_waiting=1)
    await gate.acquire("interactive")
    waiting = start(gate.acquire("interactive"))
    await turns()
    with pytest.raises(GateFullError):
        await gate.acquire("batch")
    gate.release("interactive")
    await waiting
    assert gate.statistics().waiting == 0


@in_virtual_time
async def test_a_cancel_while_waiting_leaves_the_line_in_order(make: Make) -> None:
    """Those behind move up, whoever goes."""
    gate = make(limit=1)
    await gate.acquire("interactive")
    calls = [start(gate.acquire("interactive")) for _ in range(5)]
    await turns()
    for number in (0, 2, 4):
        calls[number].cancel()
    await turns()
    assert gate.statistics().waiting == 2
    gate.release("interactive")
    await turns()
    assert calls[1].done()
    assert not calls[3].done()
    gate.release("interactive")
    await calls[3]


@in_virtual_time
async def test_a_cancel_in_the_turn_of_the_hand_over_passes_it_on(make: Make) -> None:
    """A permit that meets a cancellation goes to the next in line."""
    gate = make(limit=1)
    await gate.acquire("interactive")
    first, second = (start(gate.acquire("interactive")) for _ in range(2))
    await turns()
    gate.release("interactive")
    first.cancel()
    await turns()
    assert first.cancelled()
    assert second.done()


@in_virtual_time
async def test_a_hand_over_in_the_turn_of_the_cancel_passes_it_by(make: Make) -> None:
    """The other order: the waiter is cancelled and still in line."""
    gate = make(limit=1)
    await gate.acquire("interactive")
    first, second = (start(gate.acquire("interactive")) for _ in range(2))
    await turns()
    first.cancel()
    gate.release("interactive")
    await turns()
    assert first.cancelled()
    assert second.done()


@in_virtual_time
async def test_a_coroutine_that_is_closed_leaves_nothing_in_line(make: Make) -> None:
    """As one whose task was never run to its end; served already or not."""
    gate = make(limit=1)
    await gate.acquire("interactive")
    loop = asyncio.get_running_loop()
    for served in (False, True):
        asking = gate.acquire("interactive", loop.time() + 5)
        asking.send(None)
        if served:
            gate.release("interactive")
        asking.close()
        assert gate.statistics().waiting == 0
    assert gate.statistics().in_use == 0


@in_virtual_time
async def test_a_cancel_in_the_turn_of_the_close_is_a_cancel(make: Make) -> None:
    """Somebody who is cancelled and told of the closing is cancelled."""
    gate = make(limit=1)
    await gate.acquire("interactive")
    waiting = start(gate.acquire("interactive"))
    await turns()
    gate.close()
    waiting.cancel()
    await turns()
    assert waiting.cancelled()


@in_virtual_time
async def test_a_refused_call_waits_for_a_completion(make: Make) -> None:
    """Before those that were never sent, and nobody is woken by the refusal."""
    gate = make(limit=2)
    await gate.acquire("interactive")
    await gate.acquire("interactive")
    fresh = start(gate.acquire("interactive"))
    await turns()
    refused = start(refuse(gate, "interactive"))
    await turns()
    assert not fresh.done()
    assert not refused.done()
    state = gate.statistics()
    assert (
        state.share,
        state.in_use,
        state.withheld,
        state.busy_answers,
    ) == (1, 1, 1, 1)
    # Without a good answer, so that the share does not grow as well.
    gate.release("interactive")
    await turns()
    assert refused.done()
    assert not fresh.done()
    fresh.cancel()
    await turns()


@in_virtual_time
async def test_a_refusal_whose_caller_has_gone_strands_nobody(make: Make) -> None:
    """Those in line are probed, though nobody stands there anew."""
    gate = make(limit=1)
    await gate.acquire("interactive")
    waiting = start(gate.acquire("interactive"))
    await turns()
    gate.refused("interactive")
    async with asyncio.timeout(20):
        await waiting


@in_virtual_time
async def test_the_share_grows_back_step_by_step(make: Make) -> None:
    """After `share` good answers one permit more is admitted, up to the limit."""
    gate = make(limit=4)
    for _ in range(4):
        await gate.acquire("interactive")
    refused = start(refuse(gate, "interactive"))
    await turns()
    gate.release("interactive", 0.01)
    await refused
    shares: list[int] = []
    for _ in range(12):
        gate.release("interactive", 0.01)
        shares.append(gate.statistics().share)
        await gate.acquire("interactive")
    assert shares[:3] == [3, 4, 4]
    assert gate.statistics().withheld == 0


@in_virtual_time
async def test_steps_that_hold_become_larger(make: Make) -> None:
    """Where the others have gone, the permits are back after a few rounds."""
    gate = make(limit=50)
    await gate.acquire("interactive")
    for _ in range(2):
        await gate.acquire("interactive")
        gate.refused("interactive")
        shares: list[int] = []
        while gate.statistics().share < 50:
            gate.release("interactive", 0.01)
            await gate.acquire("interactive")
            if shares[-1:] != [gate.statistics().share]:
                shares.append(gate.statistics().share)
        # After a refusal they are small again.
        assert shares[-6:] == [2, 4, 8, 16, 32, 50]


@in_virtual_time
async def test_a_refused_step_makes_the_next_wait_longer(make: Make) -> None:
    """Four times as many good answers; it stays at that."""
    gate = make(limit=3)
    for _ in range(2):
        await gate.acquire("interactive")

    async def good_until(share: int) -> int:
        count = 0
        while gate.statistics().share < share:
            count += 1
            gate.release("interactive", 0.01)
            await gate.acquire("interactive")
        return count

    async def be_refused() -> None:
        await gate.acquire("interactive")
        gate.refused("interactive")

    counts: list[int] = []
    await be_refused()
    for _ in range(4):
        counts.append(await good_until(3))
        await be_refused()
    assert counts == [2, 8, 8, 8]


@in_virtual_time
async def test_a_line_that_nothing_moves_is_probed(make: Make) -> None:
    """With nothing of ours in flight, one call is tried after a tenth of a second."""
    gate = make(limit=5)
    await gate.acquire("interactive")
    loop = asyncio.get_running_loop()
    pauses: list[float] = []
    for _ in range(3):
        before = loop.time()
        await refuse(gate, "interactive")
        pauses.append(loop.time() - before)
        assert gate.statistics().in_use == 1
    # Doubled each time, since none was admitted; clocks may be a little early.
    assert pauses[0] >= 0.09
    assert pauses[1] >= 0.19
    assert pauses[2] >= 0.39
    gate.release("interactive", 0.01)
    await gate.acquire("interactive")


@in_virtual_time
async def test_a_probe_does_not_wait_for_a_slow_call_of_ours(make: Make) -> None:
    """What others gave back is found while a call of ours still runs."""
    gate = make(limit=5)
    await gate.acquire("interactive")
    await gate.acquire("interactive")
    await refuse(gate, "interactive", asyncio.get_running_loop().time() + 5)
    state = gate.statistics()
    assert (state.share, state.in_use) == (2, 2)


@in_virtual_time
async def test_a_newcomer_after_a_refusal_that_gave_up_is_not_stuck(make: Make) -> None:
    """With nothing in flight and nobody in line, whoever comes next is the probe."""
    gate = make(limit=5)
    await gate.acquire("interactive")
    refused = start(refuse(gate, "interactive"))
    await turns()
    refused.cancel()
    await turns()
    async with asyncio.timeout(0.05):
        await gate.acquire("interactive")


@in_virtual_time
async def test_a_refused_call_has_max_wait_too(make: Make) -> None:
    """Its permit is back, and it has left the line."""
    gate = make(limit=1)
    await gate.acquire("interactive")
    with pytest.raises(GateTimeoutError):
        await refuse(gate, "interactive", asyncio.get_running_loop().time() + 0.01)
    assert (gate.statistics().in_use, gate.statistics().waiting) == (0, 0)


@in_virtual_time
async def test_closing_tells_those_in_line_and_lets_nobody_in(make: Make) -> None:
    """Those that hold a permit keep it, and may be waited for."""
    gate = make(limit=1)
    await gate.acquire("interactive")
    waiting = start(gate.acquire("batch"))
    await turns()
    gate.close()
    with pytest.raises(ClosedError):
        await waiting
    with pytest.raises(ClosedError):
        await gate.acquire("interactive")
    loop = asyncio.get_running_loop()
    assert not await gate.idle(loop.time() + 0.01)
    idle = loop.create_task(gate.idle(loop.time() + 20))
    await turns()
    with pytest.raises(ClosedError):
        await refuse(gate, "interactive")
    assert await idle
    assert await gate.idle(loop.time())
    assert repr(gate).endswith("closed>")


@in_virtual_time
async def test_a_permit_cannot_be_given_back_twice(make: Make) -> None:
    """A mistake of the caller's is told and changes nothing."""
    gate = make(limit=2)
    await gate.acquire("interactive")
    gate.release("interactive")
    with pytest.raises(RuntimeError, match="twice"):
        gate.release("interactive")
    with pytest.raises(RuntimeError, match="twice"):
        await refuse(gate, "interactive")


@in_virtual_time
async def test_cancelling_many_leaves_nothing_behind(make: Make) -> None:
    """Ten thousand in line, all cancelled: the permits are whole, the line empty."""
    gate = make(limit=50)
    calls = [start(gate.acquire("batch")) for _ in range(10_050)]
    await turns()
    assert gate.statistics().waiting == 10_000
    for call in reversed(calls):
        call.cancel()
    await turns()
    assert gate.statistics().waiting == 0
    for _ in range(50):
        gate.release("batch")
    assert gate.statistics().in_use == 0


@in_virtual_time
async def test_a_permit_that_was_given_up_lingers(make: Make) -> None:
    """Nobody gets it for a while, and then the next in line does."""
    gate = make(limit=2)
    await gate.acquire("interactive")
    await gate.acquire("batch")
    gate.detach()
    gate.detach()
    assert gate.statistics().detached == 2
    waiting = start(gate.acquire("interactive"))
    await turns()
    gate.land(answered=False)
    gate.give_up("interactive", 0.05)
    state = gate.statistics()
    # Others have nothing to do with it.
    assert (state.in_use, state.withheld, state.share) == (1, 1, 2)
    assert (state.detached, state.late_answers, state.foreign_estimate) == (1, 0, 0)
    await turns()
    assert not waiting.done()
    began = asyncio.get_running_loop().time()
    await waiting
    assert asyncio.get_running_loop().time() - began >= 0.03
    assert gate.statistics().withheld == 0
    gate.land(answered=True)
    gate.release("batch", 0.01)
    state = gate.statistics()
    assert (state.detached, state.late_answers, state.in_use) == (0, 1, 1)


@in_virtual_time
async def test_what_lingers_is_nothing_to_wait_for_at_closing(make: Make) -> None:
    """It has been given up."""
    gate = make(limit=1)
    await gate.acquire("interactive")
    idle = asyncio.get_running_loop().create_task(
        gate.idle(asyncio.get_running_loop().time() + 100)
    )
    await turns()
    gate.give_up("interactive", 100)
    async with asyncio.timeout(20):
        assert await idle


@in_virtual_time
async def test_a_refusal_says_what_others_seem_to_hold(make: Make) -> None:
    """Those not in flight with us when the service refused, until it admits more."""
    gate = make(limit=50)
    for _ in range(31):
        await gate.acquire("interactive")
    gate.refused("interactive")
    state = gate.statistics()
    assert (state.share, state.foreign_estimate, state.withheld) == (30, 20, 20)
    assert repr(gate).endswith(
        " 50 permits, share 30, 30 in use, 20 withheld, 0 waiting,"
        " 1 busy answers, 0 late answers>"
    )
    for _ in range(30):
        gate.release("interactive", 0.01)
    assert gate.statistics().foreign_estimate == 19


@in_virtual_time
async def test_more_permits_are_there_at_once(make: Make) -> None:
    """For those in line first."""
    gate = make(limit=1, batch_floor=1)
    await gate.acquire("interactive")
    calls = [start(gate.acquire("batch")) for _ in range(3)]
    await turns()
    gate.resize(3)
    await turns()
    assert [call.done() for call in calls] == [True, True, False]
    gate.resize(5)
    await calls[2]
    assert (gate.statistics().limit, gate.statistics().in_use) == (5, 4)
    async with asyncio.timeout(20):
        await gate.acquire("interactive")


@in_virtual_time
async def test_fewer_permits_take_nothing_from_anybody(make: Make) -> None:
    """Free ones are gone at once, those in use when they come back."""
    gate = make(limit=5)
    for _ in range(3):
        await gate.acquire("interactive")
    gate.resize(1)
    assert (gate.statistics().limit, gate.statistics().in_use) == (3, 3)
    waiting = start(gate.acquire("interactive"))
    await turns()
    gate.release("interactive")
    gate.refused("interactive")
    await turns()
    assert not waiting.done()
    assert (gate.statistics().limit, gate.statistics().in_use) == (1, 1)
    gate.release("interactive")
    await waiting
    gate.resize(0)
    gate.give_up("interactive", 0.0)
    last = start(gate.acquire("interactive"))
    await turns()
    state = gate.statistics()
    assert (state.limit, state.share, state.waiting) == (0, 0, 1)
    gate.resize(2)
    await last


@in_virtual_time
async def test_what_is_kept_back_goes_first(make: Make) -> None:
    """The service admits no more because of it, and no less."""
    gate = make(limit=10)
    for _ in range(5):
        await gate.acquire("interactive")
    gate.refused("interactive")
    assert gate.statistics().share == 4
    gate.resize(6)
    assert (gate.statistics().share, gate.statistics().foreign_estimate) == (4, 2)
    gate.resize(3)
    assert (gate.statistics().share, gate.statistics().limit) == (4, 4)
