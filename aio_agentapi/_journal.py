"""
What is written down about payments, and the rules that it follows.

Theory of operation
-------------------

A payment is an intent until it is written down. From then on its phase is a row of
:data:`MOVES`, and no phase goes back, but for :data:`CONTRADICTED`.

    intent        in memory only; nothing was sent
    sent          on disk before the first byte leaves; the user's turn is held
    done          the answer said that it happened
    refused       the answer said no
    not_sent      it ended before it was sent: no permit in time, no connection
    unknown       the answer was lost, or whoever waited for it is gone
    confirmed     it happened: a late answer, the feed, or a person says so
    absent        it did not happen: the same
    needs_person  what the service records does not tell

What holds at every moment, whichever process dies between any two writes:

- An intent is sent only in ``sent``. Who finds one there and did not write it waits
  for its owner; when the owner is dead, it is unknown. Nothing leads from unknown
  back to sent.
- A user has at most one intent in ``sent``: his turn is that row.
- A key has at most one intent that may have happened. Paying it anew, like a
  ``resend``, makes a new intent, which names the one it follows.
- An intent in ``unknown`` whose attempt still runs says so, and is not called absent.
  What a late response says is never dropped: it decides an open intent, and one that
  it contradicts is for a person.

Two clocks are used. The times that people see are seconds since 1970, and come from
whoever knows them. What must not depend on a clock that somebody sets counts the
journal's *age*: seconds that have certainly passed since the journal was made. It
advances with the machine's time since boot, stands still while the machine is down, and
is never faster than real time. How long an intent is kept, and from when it is over,
are ages.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeAlias

import attrs

from aio_agentapi._identity import Account, Ask, Claim, Evidence
from aio_agentapi._types import Json, Moved, Operation, UserCode
from aio_agentapi.errors import UsageError


class Phase(enum.StrEnum):
    """How far a payment has come, and what is known of it."""

    INTENT = "intent"
    SENT = "sent"
    DONE = "done"
    REFUSED = "refused"
    NOT_SENT = "not_sent"
    UNKNOWN = "unknown"
    NEEDS_PERSON = "needs_person"
    CONFIRMED = "confirmed"
    ABSENT = "absent"


DEPOSIT: Final = Operation(
    name="wallets.deposit", effect="money", returns=Moved, echoes={"amount": "amount"}
)
WITHDRAW: Final = Operation(
    name="wallets.withdraw", effect="money", returns=Moved, echoes={"amount": "amount"}
)
WITHDRAW_ALL: Final = Operation(
    name="wallets.withdraw_all", effect="money", returns=Moved
)

# All that is written down. Anything else can be asked again, or names itself.
PAYMENTS: Final[Mapping[str, Operation[Moved]]] = MappingProxyType(
    {operation.name: operation for operation in (DEPOSIT, WITHDRAW, WITHDRAW_ALL)}
)

# What may follow each phase.
MOVES: Final[Mapping[Phase, tuple[Phase, ...]]] = MappingProxyType(
    {
        Phase.INTENT: (Phase.SENT,),
        Phase.SENT: (Phase.DONE, Phase.REFUSED, Phase.NOT_SENT, Phase.UNKNOWN),
        Phase.DONE: (),
        Phase.REFUSED: (),
        Phase.NOT_SENT: (),
        Phase.UNKNOWN: (Phase.CONFIRMED, Phase.ABSENT, Phase.NEEDS_PERSON),
        Phase.NEEDS_PERSON: (Phase.CONFIRMED, Phase.ABSENT),
        Phase.CONFIRMED: (),
        Phase.ABSENT: (),
    }
)

# Where a late response proves a verdict wrong: for a person, and the key stays closed.
CONTRADICTED: Final[Mapping[Phase, Phase]] = MappingProxyType(
    {Phase.ABSENT: Phase.CONFIRMED, Phase.CONFIRMED: Phase.ABSENT}
)

# It certainly happened; it certainly did not; nobody knows yet.
HAPPENED: Final = frozenset({Phase.DONE, Phase.CONFIRMED})
FREE: Final = frozenset({Phase.REFUSED, Phase.NOT_SENT, Phase.ABSENT})
OPEN: Final = frozenset({Phase.UNKNOWN, Phase.NEEDS_PERSON})
FINAL: Final = HAPPENED | FREE


def words(phases: Collection[Phase]) -> str:
    """Return phases as a list of SQL."""
    return ", ".join(f"'{phase}'" for phase in sorted(phases))


_INT64: Final = 2**63
_LONGEST_KEY: Final = 255


def _whole(_: object, __: object, value: Any) -> None:  # noqa: ANN401 - from anywhere
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not -_INT64 <= value < _INT64:
        msg = (
            f"user_code: a whole number of 64 bits, not {str(value)[:40]!r}."
            " Nothing was sent"
        )
        raise UsageError(msg)


def _name(_: object, __: object, value: Any) -> None:  # noqa: ANN401 - from anywhere
    if value is None:
        return
    printable = isinstance(value, str) and value.isprintable()
    if not printable or not 0 < len(value) <= _LONGEST_KEY:
        msg = "key: 1 to 255 printable characters. Nothing was sent"
        raise UsageError(msg)


@attrs.frozen(kw_only=True)
class Cursor:
    """
    A row of an account's feed that was its newest at some time.

    Attributes:
        trans_id: Its number. 0: none is known, so the feed is read from its oldest.

        made_at: When it was made, by the service.

        seen: When it was read, as the journal's age.
    """

    trans_id: int = 0
    made_at: datetime | None = None
    seen: float = 0.0


@attrs.frozen(kw_only=True)
class Intent:
    """
    One payment: what the channel carries out, and what the journal has of it.

    Attributes:
        id: Its number in the journal, growing; 0 before it is written down.

        account: Whose points: what the journal calls the agent; empty before that is
            found out.

        operation: Such as ``"wallets.deposit"``.

        user_code: Whose balance.

        amount: What was to be moved, in major units. None: all there is.

        key: The caller's own name for it, None where he gave none.

        follows: The intent that it pays anew, None for a first one.

        phase: How far it has come.

        moved: What moved, and the balance after it. None unless it is known that
            it happened.

        trans_id: The row of the feed that proves it, None where there is none.

        note: Why it was refused, or what is known where a person is needed.

        created_at: When it was written down, in UTC.

        changed_at: When it got its phase, in UTC.

        cursor: A row of the feed that was there before it was sent.

        longest: Seconds for which the service may still execute it after nothing of
            it can leave this machine any more.

        unacked: Seconds for which the machine may go on sending it when its process
            has died.

        lost_at: When it became unknown, in UTC; None if it never was.

        successor: The intent that pays it anew, None where there is none.

        born: When it was written down, as the journal's age.

        aged: When it got its phase, likewise.

        quiet: From when nothing of it can leave this machine any more, likewise. None:
            an attempt of it may still run.
    """

    id: int = 0
    account: str = ""
    operation: str
    user_code: UserCode = attrs.field(validator=_whole)
    amount: Decimal | None
    key: str | None = attrs.field(default=None, validator=_name)
    follows: int | None = None
    phase: Phase = Phase.INTENT
    moved: Moved | None = None
    trans_id: int | None = None
    note: str | None = None
    created_at: datetime | None = None
    changed_at: datetime | None = None
    cursor: Cursor = attrs.field(factory=Cursor)
    longest: float = 0.0
    unacked: float = 0.0
    lost_at: datetime | None = None
    successor: int | None = None
    born: float = 0.0
    aged: float = 0.0
    quiet: float | None = None

    @property
    def body(self) -> Mapping[str, Json]:
        """What is sent."""
        return {"user_code": self.user_code, "amount": self.amount}

    def same(self, other: Intent) -> bool:
        """Tell whether both pay the same: to a user, an amount, in a direction."""
        mine = (self.account, self.operation, self.user_code, self.amount)
        return mine == (other.account, other.operation, other.user_code, other.amount)


@attrs.frozen(kw_only=True)
class Verdict:
    """
    What is found out about an intent.

    Attributes:
        id: Which.

        phase: The phase that it gets.

        moved: What moved, where it happened.

        trans_id: The row of the feed that says so.

        note: What is to be told of it.

        runs: With unknown: its attempt goes on without its caller.

        late: It comes from the end of such an attempt. With unknown: that has ended
            and says nothing. Otherwise it may contradict what was said meanwhile.
    """

    id: int
    phase: Phase
    moved: Moved | None = None
    trans_id: int | None = None
    note: str | None = None
    runs: bool = False
    late: bool = False


# Tells the time, in seconds since 1970.
Clock: TypeAlias = Callable[[], float]


class Store(Protocol):
    """
    Where the journal lives.

    Each method hands its work over before it returns, and works are done in the
    order in which they were handed over; awaiting tells how one ended. What a
    method that writes has returned is on disk, where there is one.

    Every method raises JournalError when the store cannot be read or written. What
    it was to write is not written then, but for verdicts: those are kept, and are
    written before anything else as soon as that can be done.
    """

    @property
    def durable(self) -> bool:
        """Whether it outlives the process."""
        ...

    def begin(
        self, intent: Intent, clock: Clock, *, block_unknown: bool = False
    ) -> Awaitable[Intent | None]:
        """
        Write an intent down as sent, unless there is one that stands for it.

        Args:
            intent: What is to be paid, in phase ``intent``.

            clock: Asked when it is written.

            block_unknown: Whether an unknown payment of the user keeps his turn.

        Returns:
            The intent as written, in ``sent``, with its number. Or the one that its
            key, or the intent that it follows, stands for: it happened, or nobody
            knows. None: somebody else has the user's turn.

        Raises:
            UsageError: The key stands for another payment.
        """
        ...

    def write(
        self,
        verdicts: Collection[Verdict],
        clock: Clock,
        *,
        given: Collection[Intent] = (),
    ) -> Awaitable[list[Intent]]:
        """
        Give intents their next phase.

        A verdict that is no move of the table changes nothing, and neither does one
        with a row of the feed that another intent has. The outcome of an attempt is
        late where its intent is no longer ``sent``, whoever took it for lost. A late
        one that contradicts the phase makes the intent one for a person, and is logged
        as an error.

        Args:
            verdicts: What is found out.

            clock: Asked when it is written.

            given: What it was found out from: nothing is written if one of these has
                another phase by now, or its attempt has ended.

        Returns:
            The intents as they are then; none where nothing was written.
        """
        ...

    def intents(
        self,
        account: str | None = None,
        *,
        phases: Collection[Phase] = (),
        user_code: UserCode | None = None,
        ids: Collection[int] | None = None,
        since: float | None = None,
    ) -> Awaitable[list[Intent]]:
        """
        Return intents, in their order.

        Args:
            account: Whose. None: of all.

            phases: Which phases. None given: all.

            user_code: Whose balance. None: of all.

            ids: Which numbers. None: all.

            since: As the journal's age: not those that were written down before,
                unless they are open.
        """
        ...

    def find(self, account: str, key: str) -> Awaitable[Intent | None]:
        """Return the newest intent of a key, None if there is none."""
        ...

    def adopt(self, clock: Clock) -> Awaitable[int]:
        """
        Take over what dead owners have left: nobody is at work on it any more.

        Returns:
            How many were in ``sent``, and are unknown now.
        """
        ...

    def recognise(self, claim: Claim, seen: Evidence) -> Awaitable[Account | Ask]:
        """
        Find the account that a session is, and write down what it is linked to.

        Args:
            claim: What the session says of itself.

            seen: What the service was asked.

        Returns:
            The account, which is there from now on; or what to ask first.

        Raises:
            UsageError: See :func:`aio_agentapi._identity.recognise`.
        """
        ...

    def linked(self, claim: Claim) -> Awaitable[Account | None]:
        """
        Return the account that a session is linked to, verified or not; or None.

        Raises:
            UsageError: Its name and its token are of two accounts.
        """
        ...

    def accounts(self) -> Awaitable[list[Account]]:
        """Return all accounts, by their labels."""
        ...

    def take_feed(self, account: str) -> Awaitable[bool]:
        """Become the one who reads the feed of an account; tell whether that is so."""
        ...

    def leave_feed(self, account: str) -> None:
        """Let others read it."""
        ...

    def age(self) -> Awaitable[float]:
        """Return the journal's age, in seconds."""
        ...

    def cursor(self, account: str) -> Awaitable[Cursor]:
        """Return the newest row of an account's feed that is known."""
        ...

    def keep_cursor(self, account: str, cursor: Cursor) -> Awaitable[None]:
        """Remember a row of an account's feed, if it is newer than the known one."""
        ...

    def prune(self, keep: float) -> Awaitable[int]:
        """
        Forget final intents that have been so for longer than *keep* seconds.

        By the journal's age: a clock that is set wrong makes it forget nothing.

        Those that settling an open one may need are kept.

        Returns:
            How many are gone.
        """
        ...

    async def aclose(self) -> None:
        """Write what is left, and close it."""
        ...


def moment(seconds: float) -> datetime:
    """Return a time as people have it."""
    return datetime.fromtimestamp(seconds, UTC)
