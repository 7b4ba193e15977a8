"""What time it is for the stand-in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Protocol

import attrs


class Clock(Protocol):
    """Tells the time."""

    def now(self) -> datetime:
        """Return the time, with its zone."""
        ...


@attrs.frozen
class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """Return the time, in UTC."""
        return datetime.now(UTC)


@attrs.define
class ManualClock:
    """A clock that stands still until it is moved."""

    _now: datetime = attrs.field(
        alias="now", factory=lambda: datetime(2024, 1, 1, tzinfo=UTC)
    )

    def now(self) -> datetime:
        """Return the time it was set to."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move the clock by *seconds*."""
        self._now += timedelta(seconds=seconds)
