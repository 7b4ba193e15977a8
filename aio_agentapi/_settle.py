"""
The journal, as a user has it: what is open, and how it comes to an end.

All who settle share one reader of the feed: whoever finds that a reading was begun late
enough for him, and looked for his users, takes it. Over all processes on a journal
there is one who reads for an agent; it judges what is open of all. A verdict is a phase
that the journal gives or refuses, so that several may come to it, in several processes,
and one of them is written.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncGenerator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Final

import attrs

from aio_agentapi._channel import Channel
from aio_agentapi._feed import KEPT, PAGE, PASSING, Feed, Transaction, TransType
from aio_agentapi._identity import INFO
from aio_agentapi._journal import (
    FREE,
    OPEN,
    Cursor,
    Intent,
    Phase,
    Verdict,
    moment,
)
from aio_agentapi._reconcile import Case, Look, anchor_of, ready
from aio_agentapi._types import Moved, Query, UserCode
from aio_agentapi.errors import (
    AgentAPIError,
    FeedGapError,
    JournalError,
    NotFoundError,
    RefusedError,
    UnsupportedError,
    UsageError,
)
from aio_agentapi.resources.users import Users

__all__ = ["Payments"]

_LOG: Final = logging.getLogger("aio_agentapi.payments")

# Seconds between two readings that keep the cursor warm, and pages of one.
_WARM: Final = 60.0
_PAGES: Final = 100

# Seconds between two looks whether an equal payment is still under way.
_SOON: Final = 0.05

# Seconds between two looks whether another process has settled them, and how many looks
# before that is said.
_ELSEWHERE: Final = 0.25
_LOOKS: Final = 40

# Seconds for the journal to tell what is known when the time is over.
_LAST: Final = 0.5

# The code that says that there is no such user; others may mean anything.
_NO_USER: Final = 2002

# Answers that there is no feed, before that is believed.
_TRIES: Final = 3

# What the service keeps, and by how much clocks may differ.
_KEPT: Final = timedelta(seconds=KEPT)
_MARGIN: Final = timedelta(hours=2)

_INT64: Final = 2**63

_PAID: Final = frozenset({TransType.DEPOSIT, TransType.WITHDRAW})


@attrs.define(eq=False)
class Settler:
    """
    What all views of a session share to settle its payments.

    Args:
        channel: Whose feed, and whose journal.
    """

    _channel: Channel = attrs.field(alias="channel")
    # One reads the feed, the others wait for what he finds.
    _turn: asyncio.Lock = attrs.field(init=False, factory=asyncio.Lock)
    # How many have joined this one where it is the one of all processes that reads.
    _door: asyncio.Lock = attrs.field(init=False, factory=asyncio.Lock)
    _inside: int = attrs.field(init=False, default=0)
    _look: Look | None = attrs.field(init=False, default=None)
    _warming: asyncio.Task[None] | None = attrs.field(init=False, default=None)
    _warmed: float | None = attrs.field(init=False, default=None)
    # How far a reading has come that had more pages than its part.
    _reached: int = attrs.field(init=False, default=0)
    # Accounts of others of which it was said that something is open.
    _told_of: set[str] = attrs.field(init=False, factory=set[str])
    # Up to which row the feed has forgotten them.
    _gone: int = attrs.field(init=False, default=0)

    def now(self) -> datetime:
        """Return the time, by this machine's clock."""
        return moment(self._channel.cashier.clock())

    async def _age(self) -> float:
        return await self._channel.cashier.store.age()

    async def account(self) -> str | None:
        """Return what the journal calls the agent; None: it has none."""
        return await self._channel.cashier.known_account()

    def keep_warm(self) -> None:
        """Look for a newer row of the feed, in the background and now and then."""
        now = self._channel.cashier.clock()
        last, due = self._warmed, False
        if last is None or not 0 <= now - last < _WARM:
            self._warmed = now
            # Not at once: a program may pay and be gone.
            due = last is not None
        if due and self._warming is None:
            self._warming = self._channel.spawn(self._warm())
            self._warming.add_done_callback(self._cooled)

    async def open(self) -> list[Intent]:
        """Return the payments whose outcome is open, those of the dead included."""
        cashier, account = self._channel.cashier, await self.account()
        if account is None:
            return []
        await cashier.store.adopt(cashier.clock)
        return await cashier.store.intents(account, phases=OPEN)

    async def tell_of_strangers(self) -> None:
        """Say once in the log what is open of accounts that nobody here settles."""
        for account, number in (await self._channel.cashier.strangers()).items():
            if account.label not in self._told_of:
                self._told_of.add(account.label)
                plural = "" if number == 1 else "s"
                _LOG.warning(
                    "%d payment%s of another account open: %s", number, plural, account
                )

    async def settle(self, ids: Collection[int]) -> None:
        """
        Settle payments until nothing more can be found out about them.

        Args:
            ids: Which.
        """
        await self._settle(frozenset(ids), await self.open())

    async def _settle(self, ids: frozenset[int], opened: Sequence[Intent]) -> None:
        settings = self._channel.settings
        opened = [i for i in opened if i.phase is Phase.UNKNOWN]
        if not any(intent.id in ids for intent in opened):
            return
        cashier = self._channel.cashier
        told, looked = False, 0
        while True:
            try:
                # Nothing that the service says of another agent leads to a verdict.
                account = await cashier.account(self._channel.call)
                break
            except PASSING as error:
                if not told:
                    _LOG.warning("%s; it is tried again until it works", error)
                told = True
                await asyncio.sleep(settings.feed_interval)
        while opened and any(intent.id in ids for intent in opened):
            async with self._alone(account) as alone:
                if alone:
                    await self._read_and_judge(ids, opened)
                    return
            # Another process does, and for these as well.
            looked += 1
            if looked == _LOOKS:
                _LOG.warning("another program settles payments of %r: waiting", account)
            await asyncio.sleep(_ELSEWHERE)
            opened = await self._left(ids)

    async def _read_and_judge(
        self, ids: frozenset[int], opened: Sequence[Intent]
    ) -> None:
        """Read the feed, and judge by it, until nothing is left of some payments."""
        settings = self._channel.settings
        since = await self._age()
        first, told, missing = True, False, 0
        while any(intent.id in ids for intent in opened):
            try:
                look = await self._reading(opened, since)
            except FeedGapError as error:
                await self._skip(error, opened)
                opened = await self._left(ids)
                continue
            except (*PASSING, UnsupportedError, RefusedError) as error:
                if isinstance(error, RefusedError) and error.name is not None:
                    raise
                if not told:
                    _LOG.warning("%s; it is tried again until it works", error)
                told = True
                is_missing = isinstance(error, UnsupportedError)
                is_missing = is_missing and await self._has_no_feed()
                missing = missing + 1 if is_missing else 0
                if missing == _TRIES:
                    note = "this deployment has no feed that could be read"
                    await self._give_up(opened, note)
                    return
                await asyncio.sleep(settings.feed_interval)
                continue
            told = False
            running = await self._judge(look, opened)
            left = await self._left(ids)
            if first and left:
                await self._ask(left, look)
                left = await self._left(ids)
            first = False
            if not left:
                return
            if running and await self._age() - look.ended < settings.feed_interval:
                await asyncio.sleep(_SOON)
                continue
            since = await self._wait(left, look)
            opened = [i for i in await self.open() if i.phase is Phase.UNKNOWN]

    async def _has_no_feed(self) -> bool:
        """Tell whether its path is missing, and not a front in the place of it."""
        cashier = self._channel.cashier
        known = await cashier.store.cursor(await cashier.account(self._channel.call))
        if known.trans_id or self._look is not None:
            return False
        try:
            # What every deployment has: a front that is sick answers for this as well.
            await self._channel.call(Query(INFO, {}))
        except AgentAPIError:
            return False
        return True

    async def _wait(self, left: Sequence[Intent], look: Look) -> float:
        """Wait until another reading may tell more; return when it may begin."""
        interval = self._channel.settings.feed_interval
        # A row may be there before; when it is over, it is all there is.
        later = [at for i in left if (at := ready(i, self._lag)) is not None]
        since = min([look.begun + interval, *(at for at in later if at > look.begun)])
        while (seconds := since - await self._age()) > 0:  # noqa: ASYNC110 - for a time
            await asyncio.sleep(min(seconds, interval))
        return since

    async def _left(self, ids: Collection[int]) -> list[Intent]:
        """Return which of them are still unknown."""
        if not ids:
            return []
        store = self._channel.cashier.store
        return await store.intents(
            await self.account(), phases=[Phase.UNKNOWN], ids=ids
        )

    async def _reading(self, opened: Sequence[Intent], since: float) -> Look:
        """Return a reading for the users of payments, begun since a journal's age."""
        users = frozenset(intent.user_code for intent in opened)
        anchors = [self._anchor(i) for i in await self._of(users)]
        start = min(0 if a is None else a.cursor.trans_id for a in anchors)
        async with self._turn:
            look = self._look
            if look is None or not look.covers(users, start, since):
                look = self._look = await self._read(users, start)
        return look

    @asynccontextmanager
    async def _alone(self, account: str) -> AsyncGenerator[bool]:
        """Be the only session over all processes that reads the feed, if none is."""
        store = self._channel.cashier.store
        async with self._door:
            alone = self._inside > 0 or await self._taken(account)
            self._inside += alone
        try:
            yield alone
        finally:
            self._inside -= alone
            if alone and not self._inside:
                store.leave_feed(account)

    async def _taken(self, account: str) -> bool:
        store = self._channel.cashier.store
        taking = asyncio.ensure_future(store.take_feed(account))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:

            def leave(_: object) -> None:
                failed = taking.cancelled() or taking.exception() is not None
                if not failed and taking.result():
                    store.leave_feed(account)

            # It may be taken only now.
            taking.add_done_callback(leave)
            raise

    @property
    def _lag(self) -> float:
        return self._channel.settings.feed_lag

    def _anchor(self, intents: Sequence[Intent]) -> Intent | None:
        """Return what counts for a user; None where its row is gone by its age."""
        anchor = anchor_of(intents, self._lag)
        if anchor is None or anchor.cursor.trans_id <= self._gone:
            return None
        return anchor

    async def _skip(self, error: FeedGapError, opened: Sequence[Intent]) -> None:
        """Read from the oldest row where one was too old; else ask a person."""
        users = sorted({intent.user_code for intent in opened})
        anchors = [self._anchor(i) for i in await self._of(users)]
        here = {
            user: anchor.cursor
            for user, anchor in zip(users, anchors, strict=True)
            if anchor is not None and anchor.cursor.trans_id == error.after
        }
        made = [cursor.made_at for cursor in here.values()]
        if all(m is not None and self.now() - m > _KEPT - _MARGIN for m in made):
            self._gone = max(self._gone, error.after)
            return
        await self._give_up(
            [intent for intent in opened if intent.user_code in here],
            f"rows of the feed are gone that should still be there: {error}",
        )

    async def _give_up(self, intents: Iterable[Intent], note: str) -> None:
        await self._write(
            [Verdict(id=i.id, phase=Phase.NEEDS_PERSON, note=note) for i in intents]
        )

    async def _of(self, users: Iterable[UserCode]) -> list[list[Intent]]:
        """Return what the feed may have rows of, for each user in their order."""
        store, account = self._channel.cashier.store, await self.account()
        # By its age, which is never more than has passed: none is left out.
        since = await self._age() - (_KEPT + _MARGIN).total_seconds()
        return [
            await store.intents(account, user_code=user, since=since)
            for user in sorted(users)
        ]

    async def _read(self, users: frozenset[UserCode], start: int) -> Look:
        """Read the feed from a row to its end, and keep what users were paid."""
        at, begun = self.now(), await self._age()
        rows: dict[UserCode, list[Transaction]] = defaultdict(list)
        feed = Feed(self._channel)
        cursor = start
        while True:
            seen = await self._age()
            page = await feed.page(cursor)
            for row in page:
                if row.user_code in users and row.trans_type in _PAID:
                    known = rows[row.user_code]
                    # Each page begins with the last row of the one before.
                    if not known or known[-1].trans_id < row.trans_id:
                        known.append(row)
            if len(page) < PAGE:
                break
            cursor = page[-1].trans_id
        await self._keep(page, seen)
        return Look(
            start=start,
            at=at,
            begun=begun,
            ended=await self._age(),
            users=users,
            rows=rows,
        )

    async def _keep(self, page: Sequence[Transaction], seen: float) -> None:
        """
        Remember the newest row of the feed, as payments note it.

        Args:
            page: The last page of a reading.

            seen: When it was asked for: what was there then is in it.
        """
        if page:
            newest, cashier = page[-1], self._channel.cashier
            cursor = Cursor(trans_id=newest.trans_id, made_at=newest.regdate, seen=seen)
            account = await cashier.account(self._channel.call)
            await cashier.store.keep_cursor(account, cursor)

    async def _judge(self, look: Look, opened: Sequence[Intent]) -> bool:
        """Write down what a reading says; tell whether to ask again soon."""
        cashier, running = self._channel.cashier, False
        await cashier.store.adopt(cashier.clock)
        users = sorted({intent.user_code for intent in opened})
        for intents in await self._of(users):
            anchor = self._anchor(intents)
            start = 0 if anchor is None else anchor.cursor.trans_id
            if start < look.start:
                # Something became unknown meanwhile that it does not reach back to.
                continue
            case = Case(intents, look, anchor, self._channel.settings)
            verdicts = case.verdicts()
            # Where one of them has gone on meanwhile, all of it is judged again.
            is_stale = verdicts and not await self._write(verdicts, intents)
            running = running or bool(is_stale) or case.running
        return running

    async def _write(
        self, verdicts: Sequence[Verdict], given: Sequence[Intent] = ()
    ) -> bool:
        """Write verdicts down, if what they come from is still so; tell whether."""
        if not verdicts:
            return True
        cashier = self._channel.cashier
        written = await cashier.store.write(verdicts, cashier.clock, given=given)
        for intent in written:
            if intent.phase is Phase.NEEDS_PERSON:
                _LOG.error("intent %d needs a person: %s", intent.id, intent.note)
        return bool(written)

    async def _ask(self, left: Sequence[Intent], look: Look) -> None:
        """Ask for users of whom the feed has nothing: one that is not got nothing."""
        users = Users(self._channel)
        unseen = {i.user_code for i in left} - look.rows.keys()
        for user in sorted(unseen):
            try:
                await users.info(user)
            except (RefusedError, UnsupportedError) as error:
                if isinstance(error, NotFoundError) and error.code == _NO_USER:
                    note = "there is no such user"
                    await self._write(
                        [
                            Verdict(id=i.id, phase=Phase.ABSENT, note=note)
                            for i in left
                            if i.user_code == user and i.quiet is not None
                        ]
                    )
            except PASSING:
                return

    async def _warm(self) -> None:
        account = await self._channel.cashier.account(self._channel.call)
        async with self._alone(account) as alone:
            if alone:
                await self._read_ahead()

    async def _read_ahead(self) -> None:
        cashier = self._channel.cashier
        feed = Feed(self._channel)
        known = await cashier.store.cursor(await cashier.account(self._channel.call))
        cursor = max(known.trans_id, self._reached)
        for _ in range(_PAGES):
            try:
                # Without a row to begin with, not from 0, where others may read.
                seen = await self._age()
                page = await feed.page(cursor or 1, anchored=cursor > 0)
            except FeedGapError:
                # Its row is gone.
                cursor = self._reached = 0
                continue
            if len(page) < PAGE:
                self._reached = 0
                await self._keep(page, seen)
                return
            cursor = self._reached = page[-1].trans_id

    def _cooled(self, task: asyncio.Task[None]) -> None:
        self._warming = None
        if not task.cancelled() and (error := task.exception()) is not None:
            # No payment depends on it; settling has more to read then.
            _LOG.info("the feed could not be read ahead: %s", error)


@attrs.frozen(eq=False)
class Payments:
    """
    The payments of an account whose outcome is open, and how they come to an end.

    The journal has every deposit and withdrawal from before it was sent. One whose
    answer was lost is ``unknown`` there, and is not sent again by itself: settling
    finds out from the service's feed whether it happened.
    """

    _channel: Channel = attrs.field(alias="channel", repr=False)
    _settler: Settler = attrs.field(alias="settler", repr=False)

    async def unknown(self) -> list[Intent]:
        """
        Return the payments of which nobody knows whether they happened.

        Returns:
            The oldest first, those that need a person included, and those that a
            process has left behind that died.

        Raises:
            UsageError: The session's name and its token are of two accounts of the
                journal, or its service is another. Nothing was sent.

            JournalError: The journal cannot be read.

        Source:
            Contract 6.
        """
        return await self._settler.open()

    async def find(self, key: str) -> Intent | None:
        """
        Return the newest payment of a key.

        Args:
            key: The caller's own name for it.

        Returns:
            The payment, None if there is none, or none any more.

        Raises:
            UsageError: The session's name and its token are of two accounts of the
                journal, or its service is another. Nothing was sent.

            JournalError: The journal cannot be read.

        Source:
            Contract 6.
        """
        account = await self._settler.account()
        if account is None:
            return None
        return await self._channel.cashier.store.find(account, key)

    async def settle(self, intent: Intent | int) -> Intent:
        """
        Find out whether a payment happened.

        It reads the feed, at once and as often as it takes: a payment that happened
        is mostly found at the first reading, and that one did not happen is sure
        only ``longest_call`` and ``feed_lag`` after it was lost. Any number may be
        settled at once; they share the readings. With a ``deadline`` in the settings
        it ends then, and the payment may still be ``unknown``.

        Args:
            intent: The payment, or its number, as OutcomeUnknownError names it.

        Returns:
            The payment as it is then, ``confirmed``, ``absent``, or
            ``needs_person`` with a note of all that is known; as it was, if it was
            not unknown.

        Raises:
            UsageError: The journal has no such payment of this account, or it is not
                sure whose payments these are. Nothing was changed.

            JournalError: The journal cannot be read or written.

            CredentialError: The service does not accept the token.

        Source:
            Contract 5, transactions, and 6.
        """
        known = await self._known(intent)
        if known.phase is Phase.UNKNOWN or known.phase is Phase.SENT:
            (known,) = await self._settled([known.id])
        return known

    async def settle_all(self) -> list[Intent]:
        """
        Find out of all unknown payments whether they happened; see :meth:`settle`.

        Returns:
            Those that were open when it began, as they are then, the oldest first.

        Raises:
            UsageError: It is not sure whose payments these are. Nothing was changed.

            JournalError: The journal cannot be read or written.

            CredentialError: The service does not accept the token.

        Source:
            Contract 5, transactions, and 6.
        """
        return await self._settled(None)

    async def resend(self, intent: Intent | int) -> Moved:
        """
        Pay anew what certainly did not happen.

        It becomes a payment of its own, which names the one that it follows; a key
        goes over to it. Called twice, it pays once.

        Args:
            intent: A payment that is ``refused``, ``not_sent`` or ``absent``, or its
                number.

        Returns:
            What moved, and the user's balance after it.

        Raises:
            UsageError: It happened, or nobody knows whether it did; or the journal
                has no such payment of this account. Nothing was sent.

            AgentAPIError: As the payment itself: ``happened`` says whether it may
                have happened. It may have happened where the answer was lost again.

        Source:
            Contract 6.
        """
        known = await self._known(intent)
        if known.phase not in FREE:
            msg = (
                f"intent {known.id} is {known.phase}: only what certainly did not"
                " happen is paid anew. Nothing was sent"
            )
            raise UsageError(msg, intent=known.id)
        anew = Intent(
            operation=known.operation,
            user_code=known.user_code,
            amount=known.amount,
            key=known.key,
            follows=known.id,
        )
        return await self._channel.pay(anew)

    async def decide(self, intent: Intent | int, happened: bool, note: str) -> Intent:  # noqa: FBT001 - what is decided
        """
        Say what became of a payment that needs a person.

        Args:
            intent: A payment that is ``needs_person``, or its number.

            happened: Whether money moved.

            note: How that is known, for whoever asks later.

        Returns:
            The payment, ``confirmed`` or ``absent``.

        Raises:
            UsageError: It does not need a person: settle it; or the journal has no
                such payment of this account. Nothing was changed.

            JournalError: The journal cannot be read or written. Nothing was changed.

            AgentAPIError: The service could not be asked whose payments these are.
                Nothing was changed.

        Source:
            Contract 6.
        """
        known = await self._known(intent)
        if known.phase is not Phase.NEEDS_PERSON:
            msg = f"intent {known.id} is {known.phase}, and needs no person"
            raise UsageError(msg, intent=known.id)
        if not isinstance(happened, bool) or not isinstance(note, str) or not note:
            msg = "happened: True or False; note: how that is known"
            raise UsageError(msg, intent=known.id)
        phase = Phase.CONFIRMED if happened else Phase.ABSENT
        cashier = self._channel.cashier
        # Not by a name alone, which another agent may have.
        await cashier.account(self._channel.call)
        verdict = Verdict(id=known.id, phase=phase, note=f"{known.note}; {note}")
        written = await cashier.store.write([verdict], cashier.clock)
        return written[0]

    async def _known(self, intent: Intent | int) -> Intent:
        number = intent.id if isinstance(intent, Intent) else intent
        if not isinstance(number, int) or not 0 < number < _INT64:
            msg = f"a payment is named by its number, not {str(number)[:40]!r}"
            raise UsageError(msg)
        store, account = self._channel.cashier.store, await self._settler.account()
        found = [] if account is None else await store.intents(account, ids=[number])
        if not found:
            msg = f"the journal has no payment {number} of this account"
            raise UsageError(msg)
        return found[0]

    async def _settled(self, ids: Collection[int] | None) -> list[Intent]:
        """Settle payments, all that are open if None, and return them as they are."""
        store, loop = self._channel.cashier.store, asyncio.get_running_loop()
        deadline = self._channel.settings.deadline
        until = None if deadline is None else loop.time() + deadline
        try:
            async with asyncio.timeout_at(until):
                if ids is None:
                    ids = [intent.id for intent in await self._settler.open()]
                    await self._settler.tell_of_strangers()
                await self._settler.settle(ids)
        except TimeoutError:
            pass
        msg = "the journal: it is busy, and the time is over"
        if ids is not None:
            try:
                async with asyncio.timeout_at(until and loop.time() + _LAST):
                    account = await self._settler.account()
                    return await store.intents(account, ids=ids)
            except TimeoutError:
                pass
        raise JournalError(msg)
