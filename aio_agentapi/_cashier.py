"""
The payments of one account that are under way: turns, and what is written down.

A payment has three states to keep together: the task that waits for it, the exchange
that goes on without that task, and its intent in the journal. The exchange tells its
end here, whoever waits or not, and here it is handed to the journal in the same turn
of the loop; the task is told when that is on disk.

    the exchange ends with     and its caller waits      and its caller has left
    a record                   done                      confirmed
    a refusal                  refused                   absent
    a sure "not sent"          (he may send again)       absent
    anything else              unknown                   stays unknown

A user's turn is a place in a line here, for the tasks of one process, and the row in
``sent`` for all processes: whoever finds one there asks again a little later.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Final

import attrs

from aio_agentapi._journal import HAPPENED, Intent, Phase, Store, Verdict
from aio_agentapi._types import Moved, UserCode
from aio_agentapi.errors import (
    AgentAPIError,
    BusyError,
    JournalError,
    OutcomeUnknownError,
    RefusedError,
    UnsupportedError,
)

_LOG: Final = logging.getLogger("aio_agentapi.payments")

# Seconds between two looks for intents that are older than they are kept.
_PRUNING: Final = 3600.0

# Of an answer. After anything else that is sure, it may be sent again.
_REFUSALS: Final = (RefusedError, UnsupportedError)

_NAN: Final = Decimal("NaN")


@attrs.define(eq=False)
class Entry:
    """One payment that is under way, and what the journal has been told of it."""

    intent: Intent
    _cashier: Cashier = attrs.field(alias="cashier")
    _phase: Phase = attrs.field(init=False)
    _written: asyncio.Future[list[Intent]] | None = attrs.field(
        init=False, default=None
    )

    def __attrs_post_init__(self) -> None:
        self._phase = self.intent.phase

    def landed(self, outcome: object) -> None:
        """Note what an exchange ended with, the moment it does."""
        waiting = self._phase is Phase.SENT
        if isinstance(outcome, Moved):
            self._note(Phase.DONE if waiting else Phase.CONFIRMED, moved=outcome)
            return
        told = str(outcome)
        sure = isinstance(outcome, AgentAPIError) and outcome.happened == "no"
        if not waiting:
            if sure:
                self._note(Phase.ABSENT, note=told)
        elif not sure:
            self._note(Phase.UNKNOWN, note=told)
        elif isinstance(outcome, _REFUSALS) and not isinstance(outcome, BusyError):
            self._note(Phase.REFUSED, note=told)

    def leave(self, *, running: bool) -> None:
        """
        Note that nobody waits for it any more.

        Args:
            running: Whether an exchange goes on, which may have been sent.
        """
        if self._phase is not Phase.SENT:
            return
        if running:
            note = "whoever waited for the answer has left"
            self._note(Phase.UNKNOWN, note=note)
        else:
            self._note(Phase.NOT_SENT)

    async def written(self) -> None:
        """Wait until all of it is on disk, as far as the disk takes it."""
        if self._written is None:
            return
        try:
            await asyncio.shield(self._written)
        except JournalError as error:
            # It has happened, or not, all the same: the caller is told what.
            _LOG.error(
                "intent %d is %s, and not written down yet: %s",
                self.intent.id,
                self._phase,
                error,
            )

    def _note(
        self, phase: Phase, *, moved: Moved | None = None, note: str | None = None
    ) -> None:
        self._phase = phase
        verdict = Verdict(id=self.intent.id, phase=phase, moved=moved, note=note)
        self._written = asyncio.ensure_future(
            self._cashier.store.write([verdict], self._cashier.clock)
        )
        if phase is Phase.UNKNOWN and self._cashier.on_unknown is not None:
            self._cashier.on_unknown(self.intent)


@attrs.define(eq=False)
class _Line:
    """The tasks that wait for a user's turn."""

    turn: asyncio.Lock = attrs.field(factory=asyncio.Lock)
    users: int = 0


@attrs.define(eq=False)
class Cashier:
    """
    What all payments of one account share.

    Args:
        store: The journal.

        account: What the journal calls the account.

        keep: Seconds for which final intents are kept.

        clock: Tells the time, in seconds since 1970.
    """

    store: Store
    account: str
    _keep: float = attrs.field(alias="keep")
    clock: Callable[[], float] = time.time
    # Told of each payment, before it is sent.
    on_payment: Callable[[], None] | None = attrs.field(init=False, default=None)
    # Told of each payment whose outcome nobody knows any more.
    on_unknown: Callable[[Intent], None] | None = attrs.field(init=False, default=None)
    _lines: dict[UserCode, _Line] = attrs.field(init=False, factory=dict)
    _pruned: float = attrs.field(init=False, default=0.0)
    # What is being written down, and what of it nobody waits for any more.
    _begun: set[asyncio.Future[Intent | None]] = attrs.field(init=False, factory=set)
    _lost: set[asyncio.Future[Intent | None]] = attrs.field(init=False, factory=set)
    # For whoever waits until no payment is under way.
    _quiet: asyncio.Event | None = attrs.field(init=False, default=None)

    @asynccontextmanager
    async def turn(self, user: UserCode, until: float | None) -> AsyncGenerator[None]:
        """
        Wait for a user's turn among the tasks of this process, and keep it.

        Args:
            user: Whose balance.

            until: The loop's time at which to give up. None: never.

        Raises:
            TimeoutError: The turn did not come in time.
        """
        line = self._lines.setdefault(user, _Line())
        line.users += 1
        try:
            async with asyncio.timeout_at(until):
                await line.turn.acquire()
            try:
                yield
            finally:
                line.turn.release()
        finally:
            line.users -= 1
            if not line.users:
                del self._lines[user]
                self._tell_quiet()

    async def idle(self, seconds: float) -> None:
        """Wait until no payment is under way, so many seconds at most."""
        if not (self._lines or self._begun):
            return
        self._quiet = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._quiet.wait()

    async def begin(self, intent: Intent, *, block_unknown: bool) -> Entry | None:
        """
        Write an intent down, for whoever has the user's turn here.

        Args:
            intent: What is to be paid.

            block_unknown: Whether an unknown payment of the user keeps his turn.

        Returns:
            The entry of the intent: in ``sent`` it is to be carried out; otherwise it
            is what its key stands for already. None: another process has the turn.

        Raises:
            UsageError: The key stands for another payment. Nothing was sent.

            JournalError: It cannot be written down. Nothing was sent.
        """
        now = self.clock()
        if self.on_payment is not None:
            self.on_payment()
        if not 0 <= now - self._pruned < _PRUNING:
            self._pruned = now
            self.store.prune(now - self._keep)
        work = asyncio.ensure_future(
            self.store.begin(intent, self.clock, block_unknown=block_unknown)
        )
        self._begun.add(work)
        work.add_done_callback(self._written)
        try:
            written = await asyncio.shield(work)
        except AgentAPIError:
            raise
        except BaseException:
            # It may be written all the same, with nobody to send it.
            self._lost.add(work)
            raise
        return None if written is None else Entry(written, self)

    def _written(self, work: asyncio.Future[Intent | None]) -> None:
        self._begun.discard(work)
        if work in self._lost:
            self._lost.discard(work)
            written = None if work.cancelled() or work.exception() else work.result()
            if written is not None and written.phase is Phase.SENT:
                Entry(written, self).leave(running=False)
        self._tell_quiet()

    def _tell_quiet(self) -> None:
        if self._quiet is not None and not (self._lines or self._begun):
            self._quiet.set()


def recall(intent: Intent) -> Moved:
    """
    Return what a payment moved that was made before.

    Raises:
        OutcomeUnknownError: Nobody knows whether it was. It may have happened.
    """
    if intent.phase not in HAPPENED:
        told = (
            f"intent {intent.id} stands for it, which is {intent.phase}: settle it"
            " before you pay again. It may have happened"
        )
        raise OutcomeUnknownError(told, intent=intent.id)
    if intent.moved is None:
        # On a person's word.
        amount = _NAN if intent.amount is None else intent.amount
        return Moved(amount=amount, balance=_NAN)
    return intent.moved
