"""What can be made to go wrong at the stand-in, by name."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import Final, Literal, TypeAlias, TypedDict, Unpack, get_args

import attrs

from aio_agentapi.sandbox._records import NAMES
from aio_agentapi.sandbox._routes import ROUTES

Kind: TypeAlias = Literal[
    "drop_before",
    "drop_after",
    "delay",
    "hold",
    "late_row",
    "cut_json",
    "html",
    "empty",
    "wrong_shape",
    "code",
    "busy",
]

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

# Of HTTP, that an answer can have.
STATUSES: Final = range(200, 600)

_ANSWERING: Final = frozenset({"cut_json", "html", "empty", "wrong_shape", "code"})

# Contract 4: the codes that say that the call was not executed.
_REFUSING: Final = NAMES.keys() - {1, 1001, 1003, 1011, 1015}


@attrs.define
class Fault:
    """
    One thing that goes wrong.

    Attributes:
        kind: What.

        path: For which calls, such as ``"wallet/deposit"``. None: all.

        times: How often still. None: until the faults are cleared.

        share: With which probability a call is hit.

        seconds: How long, for a delay and a late row.

        status: The HTTP status of the answer. None: the usual one.

        executed: Whether the call is executed before it is answered so. None: yes,
            but for a code that says no.

        code: The code of the answer, for ``"code"``.
    """

    kind: Kind
    path: str | None = None
    times: int | None = None
    share: float = 1.0
    seconds: float = attrs.field(default=0.0, kw_only=True)
    status: int | None = attrs.field(default=None, kw_only=True)
    executed: bool | None = attrs.field(default=None, kw_only=True)
    code: int = attrs.field(default=1001, kw_only=True)

    @property
    def runs(self) -> bool:
        """Whether the call is executed in the end."""
        if self.executed is None:
            return self.kind != "code" or self.code not in _REFUSING
        return self.executed


class Which(TypedDict, total=False):
    """
    Which calls a fault hits and what becomes of them, as in :class:`Fault`.

    Attributes:
        times: How often still. None: until the faults are cleared.

        share: With which probability a call is hit.

        status: The HTTP status of the answer. None: the usual one.

        executed: Whether the call is executed. None: as the fault does by itself.
    """

    times: int | None
    share: float
    status: int | None
    executed: bool | None


@attrs.define
class Faults:
    """
    The faults that are on; a call is hit by the first that fits.

    Each method turns one on, and takes ``times``, ``share``, ``status`` and
    ``executed`` as :class:`Fault` does.

    Args:
        seed: Of the dice for faults that hit a share of the calls.

    Attributes:
        aliases: Other names that a path may be given by.

        clearings: How often they were cleared.
    """

    seed: int = 0
    aliases: dict[str, str] = attrs.field(
        init=False, factory=dict[str, str], repr=False
    )
    clearings: int = attrs.field(init=False, default=0, repr=False)
    _on: list[Fault] = attrs.field(init=False, factory=list)
    _held: list[asyncio.Future[None]] = attrs.field(
        init=False, factory=list, repr=False
    )
    _dice: random.Random = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._dice = random.Random(self.seed)  # noqa: S311 - repeatable, not secret

    @property
    def on(self) -> tuple[Fault, ...]:
        """The faults that are on, in the order in which they are looked at."""
        return tuple(self._on)

    def add(self, fault: Fault) -> None:
        """
        Turn a fault on.

        Args:
            fault: Which; its path may be one of ``aliases``.

        Raises:
            ValueError: There is no such kind or path, or a value does not go with
                the kind. No fault was turned on.
        """
        if fault.kind not in KINDS:
            msg = f"there is no fault {fault.kind!r}; there are {', '.join(KINDS)}"
            raise ValueError(msg)
        if fault.path in self.aliases:
            fault = attrs.evolve(fault, path=self.aliases[fault.path])
        if fault.path is not None and fault.path not in ROUTES:
            msg = f"there is no path {fault.path!r}; there are {', '.join(ROUTES)}"
            raise ValueError(msg)
        if fault.executed is not None and fault.kind not in _ANSWERING:
            msg = f"executed: not for {fault.kind!r}, whose name says it"
            raise ValueError(msg)
        if fault.status is not None and fault.kind not in _ANSWERING:
            msg = f"status: not for {fault.kind!r}, which makes no answer"
            raise ValueError(msg)
        if fault.status is not None and fault.status not in STATUSES:
            msg = (
                f"status: {STATUSES[0]} to {STATUSES[-1]}, or None, not {fault.status}"
            )
            raise ValueError(msg)
        if fault.times is not None and fault.times < 1:
            msg = f"times: at least 1, or None, not {fault.times}"
            raise ValueError(msg)
        self._on.append(fault)

    def drop_before(self, path: str | None = None, **which: Unpack[Which]) -> None:
        """Close the connection instead of executing the call."""
        self.add(Fault("drop_before", path, **which))

    def drop_after(self, path: str | None = None, **which: Unpack[Which]) -> None:
        """Execute the call and close the connection instead of answering."""
        self.add(Fault("drop_after", path, **which))

    def delay(
        self, seconds: float, path: str | None = None, **which: Unpack[Which]
    ) -> None:
        """Execute the call so many seconds later than usual."""
        self.add(Fault("delay", path, seconds=seconds, **which))

    def hold(self, path: str | None = None, **which: Unpack[Which]) -> None:
        """Keep the call in flight until the faults are cleared; execute it then."""
        self.add(Fault("hold", path, **which))

    def late_row(
        self, seconds: float, path: str | None = None, **which: Unpack[Which]
    ) -> None:
        """Let the row of a payment be seen so many seconds later than others."""
        self.add(Fault("late_row", path, seconds=seconds, **which))

    def cut_json(self, path: str | None = None, **which: Unpack[Which]) -> None:
        """Answer with the first half of the JSON."""
        self.add(Fault("cut_json", path, **which))

    def html(self, path: str | None = None, **which: Unpack[Which]) -> None:
        """Answer with a page, as a proxy does: 502, or under 3xx one elsewhere."""
        which.setdefault("status", 502)
        self.add(Fault("html", path, **which))

    def empty(self, path: str | None = None, **which: Unpack[Which]) -> None:
        """Answer with an empty body."""
        self.add(Fault("empty", path, **which))

    def wrong_shape(self, path: str | None = None, **which: Unpack[Which]) -> None:
        """Answer with success, and data that nobody expects."""
        self.add(Fault("wrong_shape", path, **which))

    def code(self, code: int, path: str | None = None, **which: Unpack[Which]) -> None:
        """Answer with a code, known or not."""
        self.add(Fault("code", path, code=code, **which))

    def busy(self, times: int, path: str | None = None, *, share: float = 1.0) -> None:
        """Answer the next *times* calls with 1018."""
        self.add(Fault("busy", path, times, share))

    def clear(self) -> None:
        """Turn all faults off, and let those go on that are held."""
        self._on.clear()
        self.clearings += 1
        held, self._held = self._held, []
        for call in held:
            # A test clears them from its own thread, or when that loop is over.
            with suppress(RuntimeError):
                call.get_loop().call_soon_threadsafe(_let_go, call)

    async def held(self, clearings: int) -> None:
        """Wait until the faults were cleared more often than so."""
        call = asyncio.get_running_loop().create_future()
        self._held.append(call)
        # Looked at after that: another thread may clear them in between.
        if self.clearings == clearings:
            await call

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


def _let_go(call: asyncio.Future[None]) -> None:
    if not call.done():
        call.set_result(None)
