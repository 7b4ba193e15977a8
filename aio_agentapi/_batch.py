"""Many calls: bounded memory, and each result as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Iterable,
)
from typing import Generic, TypeVar

import attrs

from aio_agentapi.errors import UsageError

A = TypeVar("A")
T = TypeVar("T")


@attrs.frozen
class Outcome(Generic[A, T]):
    """
    What became of one of many calls.

    Attributes:
        item: What it was called with.

        value: What it returned, None where it raised.

        error: What it raised, None where it returned. A CancelledError where
            something that it awaited was cancelled by others.
    """

    item: A
    value: T | None = None
    error: BaseException | None = None


async def run_many(
    call: Callable[[A], Awaitable[T]],
    items: Iterable[A] | AsyncIterable[A],
    *,
    window: int = 200,
    ordered: bool = False,
) -> AsyncGenerator[Outcome[A, T]]:
    """
    Call for each of many items, some at once, and yield each outcome as it comes.

    Items are taken only as fast as results are fetched, so neither a long source
    nor a slow reader fills the memory: at most twice *window* items are taken and
    not yet yielded. An exception of a call is an outcome and stops nothing. When
    the iterator is closed, the calls that still run are cancelled.

    Args:
        call: A coroutine function of one argument.

        items: Any iterable; an asynchronous one is read by one task at a time.

        window: How many calls run at once, 1 or more. More than the gate admits
            is fine: the others wait there.

        ordered: Yield in the order of the items; one slow call then holds back
            those behind it.

    Yields:
        One Outcome for each item.

    Raises:
        UsageError: The window is less than 1. Nothing was called.

        Exception: What the source raised, after the outcomes of all before it.
    """
    if window < 1:
        msg = f"window: at least 1, not {window}"
        raise UsageError(msg)
    source = _each(items)
    fan = _Fan(call, source, window, ordered)
    # Tasks of our own and no task group: a generator may be closed by another
    # task than the one that started it, which a group's scope does not survive.
    workers = [asyncio.create_task(fan.work()) for _ in range(window)]
    try:
        while (outcome := await fan.next()) is not None:
            yield outcome
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        await source.aclose()
    if fan.failure is not None:
        raise fan.failure


async def _each(items: Iterable[A] | AsyncIterable[A]) -> AsyncGenerator[A]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


@attrs.define(eq=False)
class _Fan(Generic[A, T]):
    """
    What the workers of one fan-out share.

    The line holds a slot for each outcome: put there when its item is taken if
    the order counts, and when it is known if not.
    """

    _call: Callable[[A], Awaitable[T]] = attrs.field(alias="call")
    _source: AsyncGenerator[A] = attrs.field(alias="source")
    _window: int = attrs.field(alias="window")
    _ordered: bool = attrs.field(alias="ordered")
    failure: BaseException | None = attrs.field(init=False, default=None)
    # One worker at a time reads the source, and only while there is room.
    _turn: asyncio.Lock = attrs.field(init=False, factory=asyncio.Lock)
    _room: asyncio.Semaphore = attrs.field(init=False)
    _line: asyncio.Queue[asyncio.Future[Outcome[A, T]] | None] = attrs.field(
        init=False, factory=asyncio.Queue
    )
    _working: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._room = asyncio.Semaphore(2 * self._window)
        self._working = self._window

    async def next(self) -> Outcome[A, T] | None:
        """Return the next outcome, None after the last."""
        slot = await self._line.get()
        if slot is None:
            return None
        outcome = await slot
        self._room.release()
        return outcome

    async def work(self) -> None:
        """Take an item and call for it, until there is none left."""
        try:
            while (taken := await self._take()) is not None:
                slot, item = taken
                slot.set_result(await self._outcome(item))
                if not self._ordered:
                    self._line.put_nowait(slot)
        finally:
            # Room for the next worker to find that the source is at its end.
            self._room.release()
            self._working -= 1
            if not self._working:
                self._line.put_nowait(None)

    async def _take(self) -> tuple[asyncio.Future[Outcome[A, T]], A] | None:
        slot: asyncio.Future[Outcome[A, T]] = asyncio.get_running_loop().create_future()
        async with self._turn:
            await self._room.acquire()
            try:
                item = await anext(self._source)
            except StopAsyncIteration:
                return None
            except BaseException as error:
                if _is_ours(error):
                    raise
                self.failure = error
                return None
            if self._ordered:
                self._line.put_nowait(slot)
        return slot, item

    async def _outcome(self, item: A) -> Outcome[A, T]:
        try:
            return Outcome[A, T](item, value=await self._call(item))
        except BaseException as error:
            if _is_ours(error):
                raise
            return Outcome[A, T](item, error=error)


def _is_ours(error: BaseException) -> bool:
    """Tell whether an error ends the worker: it was cancelled, or the program is."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0
    return not isinstance(error, Exception)
