"""What can be made to go wrong at the stand-in, by name."""

from __future__ import annotations

import random
from typing import Final, Literal, TypeAlias

import attrs

Kind: TypeAlias = Literal[
    "drop_before", "drop_after", "delay", "cut_json", "html_502", "empty", "busy"
]

KINDS: Final[tuple[Kind, ...]] = (
    "drop_before",
    "drop_after",
    "delay",
    "cut_json",
    "html_502",
    "empty",
    "busy",
)


@attrs.define
class Fault:
    """
    One thing that goes wrong.

    Attributes:
        kind: What.

        path: For which calls, such as ``"wallet/deposit"``. None: all.

        times: How often still. None: until the faults are cleared.

        share: With which probability a call is hit.

        seconds: How long, for a delay.
    """

    kind: Kind
    path: str | None = None
    times: int | None = None
    share: float = 1.0
    seconds: float = 0.0


@attrs.define
class Faults:
    """
    The faults that are on; a call is hit by the first that fits.

    Args:
        seed: Of the dice for faults that hit a share of the calls.
    """

    seed: int = 0
    _on: list[Fault] = attrs.field(init=False, factory=list)
    _dice: random.Random = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._dice = random.Random(self.seed)  # noqa: S311 - repeatable, not secret

    def add(self, fault: Fault) -> None:
        """Turn a fault on."""
        if fault.kind not in KINDS:
            msg = f"there is no fault {fault.kind!r}; there are {', '.join(KINDS)}"
            raise ValueError(msg)
        self._on.append(fault)

    def drop_before(
        self, path: str | None = None, *, times: int | None = None, share: float = 1.0
    ) -> None:
        """Close the connection instead of executing the call."""
        self.add(Fault("drop_before", path, times, share))

    def drop_after(
        self, path: str | None = None, *, times: int | None = None, share: float = 1.0
    ) -> None:
        """Execute the call and close the connection instead of answering."""
        self.add(Fault("drop_after", path, times, share))

    def delay(
        self,
        seconds: float,
        path: str | None = None,
        *,
        times: int | None = None,
        share: float = 1.0,
    ) -> None:
        """Execute the call so many seconds later than usual."""
        self.add(Fault("delay", path, times, share, seconds))

    def cut_json(
        self, path: str | None = None, *, times: int | None = None, share: float = 1.0
    ) -> None:
        """Execute the call and answer with the first half of the JSON."""
        self.add(Fault("cut_json", path, times, share))

    def html_502(
        self, path: str | None = None, *, times: int | None = None, share: float = 1.0
    ) -> None:
        """Execute the call and answer with a proxy's page of HTTP 502."""
        self.add(Fault("html_502", path, times, share))

    def empty(
        self, path: str | None = None, *, times: int | None = None, share: float = 1.0
    ) -> None:
        """Execute the call and answer with an empty body."""
        self.add(Fault("empty", path, times, share))

    def busy(self, times: int, path: str | None = None, *, share: float = 1.0) -> None:
        """Answer the next *times* calls with 1018."""
        self.add(Fault("busy", path, times, share))

    def clear(self) -> None:
        """Turn all faults off."""
        self._on.clear()

    def take(self, path: str) -> Fault | None:
        """Return the fault that hits this call, used up by one, if there is one."""
        for fault in self._on:
            if fault.path not in {None, path} or self._dice.random() >= fault.share:
                continue
            if fault.times is not None:
                fault.times -= 1
                if fault.times <= 0:
                    self._on.remove(fault)
            return fault
        return None
