"""How tests wait: for what happens, and never for time to pass."""

from __future__ import annotations

import asyncio
import functools
import math
import os
import selectors
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, ParamSpec, TypeVar

import pytest

P = ParamSpec("P")
T = TypeVar("T")

# How many times slower the machine may be than one that has nothing else to do:
# bounds of real time are multiplied by it.
PATIENCE: Final = float(os.environ.get("AGENTAPI_TEST_PATIENCE", "1"))

# Seconds between two looks: short beside anything that is waited for.
_LOOK: Final = 0.002


class _Limit:
    """Until when the test that runs may wait, by the system's clock."""

    over = math.inf


_limit = _Limit()


def begin(seconds: float) -> None:
    """Begin the time limit of a test; none where it is zero."""
    _limit.over = time.monotonic() + (seconds or math.inf)


async def look_again() -> None:
    """
    Let others run before a test looks once more whether something has happened.

    A test says ``while not there: await look_again()``. How long that may last is the
    time limit of the test, which it does not come near: it is only for what hangs. It
    is looked at here as well, since a loop may swallow what an alarm raises in it.
    """
    if time.monotonic() > _limit.over:
        pytest.fail("what is waited for has not happened within the test's time limit")
    # The one place where a test waits for a while.
    await asyncio.sleep(_LOOK)


class _Jumping(selectors.DefaultSelector):
    """Waits for no time: it tells how much was to be waited for."""

    waited = 0.0

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if not found and timeout is not None:
            self.waited += timeout
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose time is what its timers wanted to wait: nothing in it is late."""

    def __init__(self) -> None:
        self.jumping = _Jumping()
        super().__init__(self.jumping)

    def time(self) -> float:
        """Return the seconds that have passed."""
        return self.jumping.waited


def in_virtual_time(
    test: Callable[P, Coroutine[Any, Any, T]],
) -> Callable[P, T]:
    """Run a coroutine function in a loop of its own, where time costs nothing."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            return runner.run(test(*args, **kwargs))

    return run
