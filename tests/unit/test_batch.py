"""Many calls: bounded, in order or as they come, and none lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from aio_agentapi import Outcome, run_many
from aio_agentapi.errors import UsageError


async def double(number: int) -> int:
    """Take a turn and answer; every seventh fails."""
    await asyncio.sleep(0)
    if number % 7 == 6:
        raise ValueError(number)
    return number * 2


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("window", [1, 3, 200])
async def test_every_item_has_its_outcome(window: int, *, ordered: bool) -> None:
    """A value or an error for each, and a failure stops nothing."""
    found = [
        o async for o in run_many(double, range(100), window=window, ordered=ordered)
    ]
    assert list(range(100)) == sorted(outcome.item for outcome in found)
    if ordered:
        assert list(range(100)) == [outcome.item for outcome in found]
    for outcome in found:
        if outcome.item % 7 == 6:
            assert isinstance(outcome.error, ValueError)
            assert outcome.value is None
        else:
            assert Outcome(outcome.item, outcome.item * 2) == outcome


async def test_at_most_the_window_runs_at_once() -> None:
    """And the window is used to the full."""
    running = most = 0

    async def call(_: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    assert len([o async for o in run_many(call, range(500), window=7)]) == 500
    assert most == 7


@pytest.mark.parametrize("ordered", [False, True])
async def test_items_are_taken_only_as_results_are_fetched(*, ordered: bool) -> None:
    """A reader that stops does not let the source run on."""
    taken = 0

    def source() -> Iterator[int]:
        nonlocal taken
        for number in range(10_000):
            taken += 1
            yield number

    results = run_many(double, source(), window=10, ordered=ordered)
    await anext(results)
    for _ in range(100):
        await asyncio.sleep(0)
    assert taken <= 21
    await results.aclose()


async def test_an_asynchronous_source_is_read_by_one_at_a_time() -> None:
    """A generator that is asked twice at once would raise."""

    async def source() -> AsyncIterator[int]:
        for number in range(50):
            await asyncio.sleep(0)
            yield number

    found = {o.item async for o in run_many(double, source(), window=8)}
    assert set(range(50)) == found


async def test_a_slow_source_does_not_hold_results_back() -> None:
    """What is done is yielded while the next item is awaited."""
    more = asyncio.Event()

    async def source() -> AsyncIterator[int]:
        yield 1
        await more.wait()
        yield 2

    results = run_many(double, source(), window=3)
    assert (await anext(results)).item == 1
    more.set()
    assert [outcome.item async for outcome in results] == [2]


@pytest.mark.parametrize("ordered", [False, True])
async def test_an_error_of_the_source_comes_last(*, ordered: bool) -> None:
    """The outcomes of all items before it are yielded first."""

    def source() -> Iterator[int]:
        yield from range(5)
        msg = "torn"
        raise OSError(msg)

    found: list[int] = []
    with pytest.raises(OSError, match="torn"):
        async for outcome in run_many(double, source(), window=2, ordered=ordered):
            found.append(outcome.item)  # noqa: PERF401 - kept although it raises
    assert list(range(5)) == sorted(found)


async def test_closing_cancels_what_runs() -> None:
    """No task is left behind, and each was told."""
    cancelled = 0

    async def call(number: int) -> None:
        nonlocal cancelled
        if number:
            try:
                # To its end it does not come.
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled += 1
                raise

    results = run_many(call, range(100), window=5)
    await anext(results)
    await asyncio.sleep(0)
    await results.aclose()
    assert cancelled == 5
    assert {asyncio.current_task()} == asyncio.all_tasks()


async def test_nothing_to_do_is_done_at_once() -> None:
    """An empty source has no outcomes."""
    assert [o async for o in run_many(double, list[int]())] == []


async def test_a_window_of_nothing_is_refused() -> None:
    """It could never end."""
    with pytest.raises(UsageError, match="window"):
        await anext(run_many(double, [1], window=0))


@pytest.mark.parametrize("ordered", [False, True])
async def test_a_call_that_others_cancelled_is_an_outcome(*, ordered: bool) -> None:
    """Nobody asked this fan-out to end, so it goes on."""

    async def call(number: int) -> int:
        if number == 2:
            # As above.
            inner = asyncio.get_running_loop().create_task(asyncio.sleep(60))
            inner.cancel()
            await inner
        return number

    async with asyncio.timeout(20):
        found = [o async for o in run_many(call, range(5), window=2, ordered=ordered)]
    assert sorted(outcome.item for outcome in found) == list(range(5))
    (error,) = [o.error for o in found if o.error is not None]
    assert isinstance(error, asyncio.CancelledError)


async def test_a_source_that_others_cancelled_ends_the_fan_out() -> None:
    """With its error, after the outcomes before it."""

    async def source() -> AsyncIterator[int]:
        yield 1
        raise asyncio.CancelledError

    found: list[int] = []
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(20):
            async for outcome in run_many(double, source(), window=3):
                found.append(outcome.item)  # noqa: PERF401 - kept although it raises
    assert found == [1]


async def test_cancelling_the_reader_ends_everything() -> None:
    """The cancellation comes through, and no task stays."""

    async def read() -> None:
        async for _ in run_many(asyncio.sleep, [60.0] * 10, window=3):
            pass

    reader = asyncio.get_running_loop().create_task(read())
    # The reader, and the three that it has begun.
    while len(asyncio.all_tasks()) < 1 + 1 + 3:
        await asyncio.sleep(0)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert asyncio.all_tasks() == {asyncio.current_task()}
