"""The gate's account, checked at each change of every gate in every test."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from aio_agentapi import LocalGate

# Everything that changes a gate: what others call, and what its timers do.
CHANGES = (
    "release",
    "refused",
    "give_up",
    "detach",
    "land",
    "resize",
    "close",
    "_expire",
    "_return",
    "_probe",
    "_strike",
)


def check(gate: LocalGate) -> None:
    """Every permit is in exactly one place, and nobody waits beside a free one."""
    state = gate.statistics()
    free = gate._free._value
    assert state.in_use + free + state.withheld == state.limit, gate
    assert min(free, gate._kept_back, gate._lingering, state.detached) >= 0, gate
    assert gate._interactive.in_use + gate._batch.in_use == state.in_use, gate
    assert len(gate._interactive) + len(gate._batch) == state.waiting, gate
    assert not (free and state.waiting), gate
    assert state.in_use <= state.peak <= state.admitted, gate
    assert min(1, state.limit) <= state.share <= state.limit, gate
    # What waits will be moved: by a call that ends, a timer, or more permits.
    moving = state.in_use or gate._lingering or gate._timer
    assert moving or not (state.waiting and state.limit), gate


def watch() -> None:
    """Check after each change from now on."""
    for name in CHANGES:
        setattr(LocalGate, name, _checked(getattr(LocalGate, name)))
    LocalGate.acquire = _acquired(LocalGate.acquire)  # type: ignore[method-assign]


def _checked(change: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(change)
    def checked(self: LocalGate, *args: Any, **options: Any) -> Any:
        result = change(self, *args, **options)
        check(self)
        return result

    return checked


def _acquired(acquire: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(acquire)
    async def acquired(self: LocalGate, *args: Any, **options: Any) -> None:
        try:
            await acquire(self, *args, **options)
        finally:
            check(self)

    return acquired
