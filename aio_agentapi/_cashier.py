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
    anything else              unknown                   stays unknown, and has ended

An exchange that goes on without its caller is noted in the journal, so that nobody
calls its payment absent meanwhile; when it ends, what it says is weighed against what
was found out by then.

Whose payments they are is found out before the first one, and before anything is read
from the service that leads to a verdict: see :mod:`aio_agentapi._identity`. A caller
that is cancelled, or out of time, while its intent is being written down leaves nobody
who would send it: what is written in the end is ``not_sent`` at once.

A user's turn is a place in a line here, for the tasks of one process, and the row in
``sent`` for all processes: whoever finds one there asks again a little later.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any, Final, TypeAlias

import attrs

from aio_agentapi._identity import INFO, UNTOLD, USER, Account, Ask, Claim, Evidence
from aio_agentapi._journal import HAPPENED, OPEN, Intent, Phase, Store, Verdict
from aio_agentapi._types import Moved, Query, UserCode
from aio_agentapi.errors import (
    AgentAPIError,
    BusyError,
    ForbiddenError,
    JournalError,
    NotFoundError,
    NotSentError,
    OutcomeUnknownError,
    RefusedError,
    UnsupportedError,
    UsageError,
)

_LOG: Final = logging.getLogger("aio_agentapi.payments")

# Seconds between two looks for intents that are older than they are kept.
_PRUNING: Final = 3600.0

# Calls the service.
Asks: TypeAlias = Callable[[Query[Any]], Awaitable[Any]]

_NAN: Final = Decimal("NaN")

# Another agent's user, and no user at all.
_ANOTHERS: Final = frozenset({1010, 2002})


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
            phase = Phase.DONE if waiting else Phase.CONFIRMED
            self._note(phase, moved=outcome, late=not waiting)
            return
        told = str(outcome)
        sure = isinstance(outcome, AgentAPIError) and outcome.happened == "no"
        if not waiting:
            self._note(Phase.ABSENT if sure else Phase.UNKNOWN, note=told, late=True)
        elif not sure:
            self._note(Phase.UNKNOWN, note=told)
        elif isinstance(outcome, RefusedError) and not isinstance(outcome, BusyError):
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
            self._note(Phase.UNKNOWN, note=note, runs=True)
        else:
            self._note(Phase.NOT_SENT)

    async def written(self, until: float | None) -> None:
        """Wait until all of it is on disk, as far as the disk takes it in time."""
        if self._written is None:
            return
        # It has happened, or not, all the same: the caller is told what.
        try:
            async with _until(until):
                await asyncio.shield(self._written)
        except TimeoutError:
            _LOG.warning(
                "intent %d is %s, and not written down yet: the journal is busy",
                self.intent.id,
                self._phase,
            )
        except Exception as error:  # noqa: BLE001 - of any store
            _LOG.error(
                "intent %d is %s, and not written down yet: %s",
                self.intent.id,
                self._phase,
                error,
            )

    def _note(
        self,
        phase: Phase,
        *,
        moved: Moved | None = None,
        note: str | None = None,
        runs: bool = False,
        late: bool = False,
    ) -> None:
        verdict = Verdict(
            id=self.intent.id,
            phase=phase,
            moved=moved,
            note=note,
            runs=runs,
            late=late,
        )
        cashier = self._cashier
        self._phase = phase
        try:
            write = cashier.store.write([verdict], cashier.clock)
            self._written = asyncio.ensure_future(write)
        except Exception as error:  # noqa: BLE001 - of any store; the outcome stands
            _LOG.error(
                "intent %d is %s, and not written down: %s",
                verdict.id,
                phase,
                error,
            )
        else:
            # Whoever does not wait for it is not to be told at the end of the program.
            self._written.add_done_callback(_look)
        if phase is Phase.UNKNOWN and not late and cashier.on_unknown is not None:
            cashier.on_unknown(self.intent)


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

        claim: What its session says of itself.

        longest: Seconds in which the service may execute what can be sent no more.

        unacked: Seconds for which the machine may go on sending for a dead process.

        siblings: What all accounts of its manager say of themselves.

        keep: Seconds for which final intents are kept.

        clock: Tells the time, in seconds since 1970.
    """

    store: Store
    claim: Claim
    _keep: float = attrs.field(alias="keep")
    clock: Callable[[], float] = time.time
    longest: float = 0.0
    unacked: float = 0.0
    siblings: Callable[[], Iterable[Claim]] = tuple[Claim, ...]
    # Told of each payment, before it is sent.
    on_payment: Callable[[], None] | None = attrs.field(init=False, default=None)
    # Told of each payment whose outcome nobody knows any more.
    on_unknown: Callable[[Intent], None] | None = attrs.field(init=False, default=None)
    _lines: dict[UserCode, _Line] = attrs.field(init=False, factory=dict)
    _pruned: float = attrs.field(init=False, default=0.0)
    # What is being written down, and what of it nobody waits for any more.
    _begun: set[asyncio.Future[Intent | None]] = attrs.field(init=False, factory=set)
    _lost: set[asyncio.Future[Intent | None]] = attrs.field(init=False, factory=set)
    # What the journal calls the agent, once that is verified.
    _account: str | None = attrs.field(init=False, default=None)
    _verifying: asyncio.Lock = attrs.field(init=False, factory=asyncio.Lock)
    # For whoever waits until no payment is under way.
    _quiet: asyncio.Event | None = attrs.field(init=False, default=None)

    async def account(self, ask: Asks) -> str:
        """
        Return what the journal calls the agent, verified by the service.

        Args:
            ask: Calls the service.

        Raises:
            UsageError: It is not sure whose payments these are. Nothing was sent.

            AgentAPIError: The service could not be asked. Nothing was sent.
        """
        if self._account is None:
            # One asks, the others wait for what it finds.
            async with self._verifying:
                self._account = self._account or await self._verify(ask)
        return self._account

    async def known_account(self) -> str | None:
        """
        Return what the journal calls the agent, without asking; None: it has none.

        Raises:
            UsageError: Its name and its token are of two accounts, or it is at another
                service.
        """
        if self._account is not None:
            return self._account
        found = await self.store.linked(self.claim)
        return None if found is None else found.label

    async def strangers(self) -> dict[Account, int]:
        """Return accounts of the journal that no session here is, with what is open."""
        store = self.store
        opened = Counter(i.account for i in await store.intents(phases=OPEN))
        for claim in (self.claim, *self.siblings()) if opened else ():
            # One that is refused has none of them, and is no matter of this one.
            with contextlib.suppress(UsageError):
                if (known := await store.linked(claim)) is not None:
                    opened.pop(known.label, None)
        if not opened:
            return {}
        return {a: opened[a.label] for a in await store.accounts() if a.label in opened}

    async def _verify(self, ask: Asks) -> str:
        seen = Evidence()
        while isinstance(found := await self.store.recognise(self.claim, seen), Ask):
            seen = await _asked(found, seen, ask)
        return found.label

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

    async def begin(
        self, intent: Intent, *, block_unknown: bool, until: float | None
    ) -> Entry | None:
        """
        Write an intent down, for whoever has the user's turn here.

        Args:
            intent: What is to be paid.

            block_unknown: Whether an unknown payment of the user keeps his turn.

            until: The loop's time at which to give up. None: when the store does.

        Returns:
            The entry of the intent: in ``sent`` it is to be carried out; otherwise it
            is what its key stands for already. None: another process has the turn.

        Raises:
            UsageError: The key stands for another payment. Nothing was sent.

            JournalError: It cannot be written down, or not in time. Nothing was sent.
        """
        now = self.clock()
        if self.on_payment is not None:
            self.on_payment()
        if not 0 <= now - self._pruned < _PRUNING:
            self._pruned = now
            asyncio.ensure_future(self.store.prune(self._keep)).add_done_callback(_look)
        work = asyncio.ensure_future(
            self.store.begin(intent, self.clock, block_unknown=block_unknown)
        )
        self._begun.add(work)
        work.add_done_callback(self._ended)
        try:
            async with _until(until):
                written = await asyncio.shield(work)
        except AgentAPIError:
            raise
        except BaseException as error:
            # It may be written all the same, with nobody to send it.
            self._drop(work)
            if not isinstance(error, Exception):
                raise
            busy = isinstance(error, TimeoutError) and not work.done()
            told = "it is busy, and the time is over" if busy else f"{error!r}"
        else:
            return None if written is None else Entry(written, self)
        msg = f"the journal: {told}. Nothing was sent"
        raise JournalError(msg)

    def _drop(self, work: asyncio.Future[Intent | None]) -> None:
        """Let nobody be at work on what is being written down."""
        if not work.done():
            self._lost.add(work)
        elif not work.cancelled() and work.exception() is None:
            written = work.result()
            if written is not None and written.phase is Phase.SENT:
                Entry(written, self).leave(running=False)

    def _ended(self, work: asyncio.Future[Intent | None]) -> None:
        self._begun.discard(work)
        if work in self._lost:
            self._lost.discard(work)
            self._drop(work)
        self._tell_quiet()

    def _tell_quiet(self) -> None:
        if self._quiet is not None and not (self._lines or self._begun):
            self._quiet.set()


def _until(time: float | None) -> contextlib.AbstractAsyncContextManager[object]:
    # A time-out costs more than waiting without one.
    return contextlib.nullcontext() if time is None else asyncio.timeout_at(time)


def _look(work: asyncio.Future[Any]) -> None:
    """Take note of how something ended that nobody waits for."""
    if not work.cancelled():
        work.exception()


async def _asked(found: Ask, seen: Evidence, ask: Asks) -> Evidence:
    """Ask the service what the journal has to know."""
    try:
        if found.label is None:
            return attrs.evolve(seen, agent=await ask(Query(INFO, {})))
        await ask(Query(USER, {"user_code": found.user_code}))
        same = True
    except UnsupportedError:
        if found.label is not None:
            raise
        return attrs.evolve(seen, agent=UNTOLD)
    except (ForbiddenError, NotFoundError) as error:
        if found.label is None or error.code not in _ANOTHERS:
            raise
        same = False
    except AgentAPIError as error:
        if error.happened == "no":
            raise
        msg = f"the service did not say whose token it is ({error}). Nothing was sent"
        raise NotSentError(msg) from None
    assert found.label is not None  # noqa: S101 - it was asked for a user
    return attrs.evolve(seen, users={**seen.users, found.label: same})


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
