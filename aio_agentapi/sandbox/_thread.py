"""The stand-in in a thread of its own, for tests that bring any loop, or none."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

import attrs

from aio_agentapi.sandbox._box import Sandbox

P = ParamSpec("P")
T = TypeVar("T")


@attrs.define(eq=False, repr=False)
class SandboxThread(Sandbox):
    """
    The stand-in service in a thread of its own, on a free port of 127.0.0.1.

    Used as ``with SandboxThread() as box``; it is there before the first line of the
    block, for code of any event loop and for code without one. It is a
    :class:`Sandbox`, takes the same arguments, and is asked the same things: each is
    answered between two of its calls, so that nobody sees the half of a payment.
    """

    _thread: threading.Thread = attrs.field(init=False)
    _end: asyncio.Event = attrs.field(init=False, factory=asyncio.Event)
    # While it runs.
    _loop: asyncio.AbstractEventLoop | None = attrs.field(init=False, default=None)

    def __enter__(self) -> Self:
        started: Future[None] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(started)),
            name="agentapi-sandbox",
            # Whoever forgets to close it can end all the same.
            daemon=True,
        )
        self._thread.start()
        try:
            started.result()
        except Exception:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    # Hidden from type checkers, for which any attribute would exist otherwise.
    if not TYPE_CHECKING:

        def __getattribute__(self, name: str) -> Any:  # noqa: ANN401 - any attribute
            if name.startswith("_"):
                return object.__getattribute__(self, name)
            value = self._ask(object.__getattribute__, self, name)
            return partial(self._ask, value) if inspect.ismethod(value) else value

    async def _serve(self, started: Future[None]) -> None:
        try:
            await self.__aenter__()
            self._loop = asyncio.get_running_loop()
            started.set_result(None)
            await self._end.wait()
        except Exception as error:  # noqa: BLE001 - raised where it was entered
            started.set_exception(error)
        finally:
            await self.__aexit__()

    def _ask(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function where the books are kept, and return what it returns."""
        loop = self._loop
        if loop is None or threading.current_thread() is self._thread:
            return function(*args, **kwargs)

        async def ask() -> T:
            return function(*args, **kwargs)

        return asyncio.run_coroutine_threadsafe(ask(), loop).result()
