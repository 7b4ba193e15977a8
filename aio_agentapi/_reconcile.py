"""
What became of payments whose answer was lost.

The service records each payment as a row of its feed: user, amount, balance before and
after. So the feed is read from a row that was there before the payment, to its end, and
what the journal knows is taken off. What is left are the rows of the payments that
nobody knows about. Each such payment has a window, in which its row must be: behind the
row that was the newest when it was written down, not behind one that was the newest
when it was over, and, where a payment that is known to have happened shows that both
clocks agree, not far from its time by the service's clock. Rows are matched to windows,
as many as possible, and where windows and rows hang together a count of both says what
happened:

    as many rows as payments          all of them happened
    none, and none can come any more  none of them did
    some, and none can come any more  so many did: which of equal payments it was,
                                      nothing tells, and nothing depends on
    more, or no feed to count in      a person

None can come any more when the reading began later than ``longest_call`` and
``feed_lag`` after nothing of the payment could leave this machine, by the journal's
age. A payment that is under way may have made a row that its answer does not tell of
yet: while there is an equal one, nothing is said.

That a payment is absent is said only where everything is explained: a row of the same
user and direction that fits no payment may be this one, with an amount that the
deployment has rounded, or at a time that a clock shows wrong. It is for a person then.

It proves something only while the journal has all payments of the user
(``sole_writer``). Otherwise a row may be anybody's: only that there is none says
something.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final, Literal, TypeAlias

import attrs

from aio_agentapi._feed import KEPT, Transaction, TransType
from aio_agentapi._journal import (
    DEPOSIT,
    HAPPENED,
    Intent,
    Phase,
    Verdict,
)
from aio_agentapi._settings import Settings
from aio_agentapi._types import DECIMALS, Moved, UserCode

# By how much the service's clock may differ from ours, and what is safe at the end of
# what the feed keeps.
_MARGIN: Final = timedelta(hours=1)
_KEPT: Final = timedelta(seconds=KEPT)

_Place: TypeAlias = Literal["before", "behind", "either"]

# Seconds around the time at which a cursor was seen: a payment so close to it may have
# its row on either side.
_NEAR: Final = 60.0

# Rows that a note names.
_NAMED: Final = 10

_Class: TypeAlias = tuple[TransType, Decimal | None]

# Direction, amount and the balance after it: what a row has of a known payment.
_Move: TypeAlias = tuple[TransType, Decimal, Decimal]


@attrs.frozen(kw_only=True)
class Look:
    """
    One reading of the feed, from a row to its end.

    Attributes:
        start: The row that it began with. 0: the oldest there is.

        at: When it began, by this machine's clock.

        begun: When it began, as the journal's age.

        ended: When it ended, likewise.

        users: Whose payments were looked for.

        rows: Their deposits and withdrawals, oldest first.
    """

    start: int
    at: datetime
    begun: float
    ended: float
    users: frozenset[UserCode]
    rows: Mapping[UserCode, Sequence[Transaction]]

    def covers(self, users: Collection[UserCode], start: int, begun: float) -> bool:
        """Tell whether it is as good as another, or better."""
        return self.users.issuperset(users) and (
            self.start <= start and self.begun >= begun
        )


@attrs.frozen
class Window:
    """
    Where the row of a payment must be, if there is one.

    Attributes:
        after: It has a higher number than this.

        until: It has this number at most. None: not known.

        first: It was made at this time at the earliest, by the service's clock.

        last: At the latest. None: it may still be made.
    """

    after: int
    until: int | None
    first: datetime
    last: datetime | None

    def holds(self, row: Transaction, *, timed: bool) -> bool:
        """Tell whether a row is in it; *timed*: by its time as well."""
        if row.trans_id <= self.after:
            return False
        if self.until is not None and row.trans_id > self.until:
            return False
        if not timed:
            return True
        return self.first <= row.regdate and (
            self.last is None or row.regdate <= self.last
        )


@attrs.frozen
class Case:
    """
    What is known of one user: all there is to judge by.

    Attributes:
        intents: His payments in the journal, in their order, after the reading.

        look: The reading.

        anchor: The payment whose cursor it counts from, at or behind the start of the
            reading. None: it counts from the oldest row.

        settings: ``sole_writer``, ``feed_lag`` and ``amount_decimals``.
    """

    intents: Sequence[Intent]
    look: Look
    anchor: Intent | None
    settings: Settings

    @property
    def start(self) -> int:
        """The row that it counts from."""
        return 0 if self.anchor is None else self.anchor.cursor.trans_id

    def verdicts(self) -> list[Verdict]:
        """Return what can be said by now, of as many as it can be said of."""
        rows, opened, paid = list(self._rows()), self._open(), self._paid()
        windows = {i.id: self._window(i) for i in [*paid, *opened]}
        moves: dict[_Move | None, list[Transaction]] = defaultdict(list)
        for row in rows:
            moves[_move_of(row)].append(row)
        edges = {
            i.id: [
                row
                for row in moves.get(_moved(i), ())
                if windows[i.id].holds(row, timed=False)
            ]
            for i in paid
        }
        timed = self._timed(paid, opened, edges)
        edges |= {
            i.id: [
                row
                for row in rows
                if self.fits(_class(i), row)
                and windows[i.id].holds(row, timed=i.id in timed)
            ]
            for i in opened
        }
        # What has happened has its row for certain, and so it is the first to get one;
        # then whoever is nearest to one.
        nearest = sorted(opened, key=lambda intent: _nearest(intent, edges[intent.id]))
        taken = _matched([*paid, *nearest], edges)
        facts = _Facts(
            timed=timed,
            windows=windows,
            taken=taken,
            spare=[row for row in rows if row.trans_id not in taken],
            missing=self._missing(paid, taken),
            doubtful=self._doubtful(paid, taken, rows),
        )
        said: list[Verdict] = []
        gone = {row for row, intent in taken.items() if intent.moved is not None}
        asked = {intent.id for intent in opened}
        for group, mine in _components(
            [*paid, *opened], edges | self._loose(opened, rows, edges)
        ):
            left = [row for row in mine if row.trans_id not in gone]
            if wanted := [intent for intent in group if intent.id in asked]:
                said += _Group(self, wanted, left, facts).verdicts()
        # What was found in the feed is not too old for it.
        return list({verdict.id: verdict for verdict in said}.values())

    def _loose(
        self,
        opened: Sequence[Intent],
        rows: Sequence[Transaction],
        edges: Mapping[int, Sequence[Transaction]],
    ) -> dict[int, Sequence[Transaction]]:
        """Return for payments the rows that they may have made, rounded or not."""
        if self.settings.amount_decimals is not None:
            return {}
        return {
            i.id: [
                row
                for row in rows
                if row in edges[i.id]
                or (row.trans_id > i.cursor.trans_id and _is_rounded(_class(i), row))
            ]
            for i in opened
        }

    @property
    def running(self) -> bool:
        """Whether a payment is under way that may have made one of the rows."""
        kinds = {_class(i) for i in self.intents if i.phase is Phase.UNKNOWN}
        sent = [i for i in self._open() if i.phase is Phase.SENT]
        return any(_class(i) in kinds for i in sent)

    def _open(self) -> list[Intent]:
        """Return what may have made a row that no answer tells of."""
        running = {Phase.UNKNOWN, Phase.SENT}
        return [
            intent
            for intent in self.seen()
            if intent.phase in running
            or (_is_for_person(intent) and self.place(intent) != "before")
        ]

    def seen(self) -> list[Intent]:
        """Return what was begun before the reading ended: the rest has no row there."""
        return [i for i in self.intents if i.born <= self.look.ended]

    def _rows(self) -> Iterable[Transaction]:
        proofs = {intent.trans_id for intent in self.intents}
        user = self.intents[0].user_code
        for row in self.look.rows.get(user, ()):
            if row.trans_id > self.start and row.trans_id not in proofs:
                yield row

    def _window(self, intent: Intent) -> Window:
        """Return where the row of a payment must be."""
        begun = _known(intent.created_at)
        until: int | None = None
        last: datetime | None = None
        over = _end(intent)
        if over is not None:
            # How long it took, by a clock that nobody sets.
            last = begun + timedelta(seconds=over - intent.born) + _MARGIN
            late = over + self.settings.feed_lag
            numbers = [
                other.cursor.trans_id
                for other in self.intents
                if other.cursor.trans_id and other.cursor.seen >= late
            ]
            until = min(numbers, default=None)
        return Window(intent.cursor.trans_id, until, begun - _MARGIN, last)

    def fits(self, kind: _Class, row: Transaction) -> bool:
        """Tell whether a row may be of a kind of payment."""
        direction, amount = kind
        if row.trans_type != direction:
            return False
        if amount is None:
            return row.balance == 0
        # Some may write what is taken with a sign.
        moved, decimals = abs(row.trans_amount), self.settings.amount_decimals
        if moved == amount or decimals is None:
            return moved == amount
        return _is_rounded(kind, row, [decimals])

    def may_be(self, intent: Intent, row: Transaction) -> bool:
        """Tell whether a row that fits no payment may be one with another amount."""
        if (
            row.trans_type != _class(intent)[0]
            or row.trans_id <= intent.cursor.trans_id
        ):
            return False
        if self.settings.sole_writer or intent.amount is None:
            # Nobody else makes any: something is not as the journal has it.
            return True
        return abs(abs(row.trans_amount) - intent.amount) < 1

    def is_too_old(self, intent: Intent) -> bool:
        """Tell whether its row may be deleted by now, by either clock."""
        age = timedelta(seconds=self.look.begun - intent.born)
        passed = max(age, self.look.at - _known(intent.created_at))
        return passed >= _KEPT - _MARGIN

    def _paid(self) -> list[Intent]:
        """Return what is known to have happened, and has its row in the reading."""
        return [
            intent
            for intent in self.seen()
            if intent.phase in HAPPENED
            and intent.moved is not None
            and intent.moved.amount
            and not intent.trans_id
            and self.place(intent) != "before"
        ]

    def _timed(
        self,
        paid: Sequence[Intent],
        opened: Sequence[Intent],
        edges: Mapping[int, Sequence[Transaction]],
    ) -> frozenset[int]:
        """
        Return the payments of whose time both clocks agree, by their numbers.

        Nobody else says so than a payment of the same clock that is known to have
        happened, whose row tells the same time.
        """
        right: list[float] = []
        wrong: list[float] = []
        for intent in paid:
            if len(edges[intent.id]) == 1:
                apart = edges[intent.id][0].regdate - _known(intent.created_at)
                took = timedelta(seconds=intent.aged - intent.born)
                agrees = -_MARGIN <= apart <= took + _MARGIN
                (right if agrees else wrong).append(_offset(intent))

        def is_near(intent: Intent, offsets: Sequence[float]) -> bool:
            return any(abs(_offset(intent) - offset) < _NEAR for offset in offsets)

        return frozenset(
            i.id for i in opened if is_near(i, right) and not is_near(i, wrong)
        )

    def _is_visible(self, intent: Intent) -> bool:
        return intent.aged + self.settings.feed_lag <= self.look.begun

    def _missing(
        self, paid: Sequence[Intent], taken: Mapping[int, Intent]
    ) -> set[_Class]:
        """Return the kinds of what should have a row by now, and has not."""
        found = {intent.id for intent in taken.values()}
        return {
            _class(intent)
            for intent in paid
            if intent.id not in found
            and self._is_visible(intent)
            and self.place(intent) == "behind"
        }

    def _doubtful(
        self,
        paid: Sequence[Intent],
        taken: Mapping[int, Intent],
        rows: Sequence[Transaction],
    ) -> list[Transaction]:
        """Return rows of what happened so late that its own may still be to come."""
        young = {intent.id for intent in paid if not self._is_visible(intent)}
        return [
            row
            for row in rows
            if (of := taken.get(row.trans_id)) is not None and of.id in young
        ]

    def place(self, intent: Intent) -> _Place:
        """Tell where the row of a payment is, seen from where it counts from."""
        if self.anchor is not None and self.anchor.cursor.trans_id:
            # By their order: see anchor_of. A cursor says less, it may be none.
            return "behind" if intent.id >= self.anchor.id else "before"
        # By the journal's age: it says less than has passed, never more.
        oldest = self.look.begun - KEPT
        margin = _MARGIN.total_seconds()
        if _there(intent) < oldest - margin:
            return "before"
        gone = self.look.at - _KEPT + _MARGIN
        late = intent.born > oldest + margin and _known(intent.created_at) > gone
        return "behind" if late else "either"

    def is_over(self, intent: Intent) -> bool:
        """Tell whether a payment has its row in the reading, if it has one."""
        at = ready(intent, self.settings.feed_lag)
        return at is not None and self.look.begun >= at


@attrs.frozen(kw_only=True)
class _Facts:
    """
    What is so for all groups of a user.

    Attributes:
        timed: Payments whose windows are told by the time as well.

        windows: Of payments, by their numbers.

        taken: Which row goes to which payment, by its number.

        spare: The rows that go to none.

        missing: What should have a row and has not.

        doubtful: Rows that may be of one that happened, or of one that is asked for.
    """

    timed: Collection[int]
    windows: Mapping[int, Window]
    taken: Mapping[int, Intent]
    spare: Sequence[Transaction]
    missing: Collection[_Class]
    doubtful: Sequence[Transaction]


@attrs.frozen
class _Group:
    """
    Payments and rows that hang together by their windows.

    Attributes:
        case: Whose.

        intents: In their order.

        rows: Those in the window of one of them that are of nothing else, in their
            order.

        facts: What is so for all groups.
    """

    case: Case
    intents: Sequence[Intent]
    rows: Sequence[Transaction]
    facts: _Facts

    def verdicts(self) -> list[Verdict]:
        """Return what can be said of these."""
        case = self.case
        unknown = [i for i in self.intents if i.phase is Phase.UNKNOWN]
        old = [i for i in unknown if case.is_too_old(i)]
        said = [_person(i, "the feed does not reach back to it any more") for i in old]
        rest = [i for i in unknown if i not in old]
        # Rows of a payment so young that its own may be still to come, and they
        # another's.
        sure = [
            i
            for i in rest
            if not any(case.may_be(i, row) for row in self.facts.doubtful)
        ]
        over = [i for i in sure if case.is_over(i)]
        if len({_class(i) for i in self.intents}) > 1:
            note = f"equal rows fit payments of other amounts, too: {_name(self.rows)}"
            return said + [_person(i, note) for i in rest if case.is_over(i)]
        return said + self._count(rest, over)

    def _count(  # noqa: PLR0911 - one for each thing that can be said
        self, unknown: Sequence[Intent], over: Sequence[Intent]
    ) -> list[Verdict]:
        """Compare payments with the rows that are left."""
        doubt = self._doubt()
        if doubt is not None:
            return [_person(i, f"{doubt}: {_name(self.rows)}") for i in over]
        running = any(intent.phase is Phase.SENT for intent in self.intents)
        if self.rows and running:
            return []
        happened = {
            i.id: row for row in self.rows if (i := self.facts.taken.get(row.trans_id))
        }
        happened = self._in_order(happened)
        if len(happened) == len(self.intents):
            note = "the feed has its row"
            return [_confirmed(i, happened[i.id], note) for i in unknown]
        if self.rows and len(over) < len(unknown):
            return []
        note = "the feed has no row of it, and none can come any more"
        if self.rows:
            note = f"{len(self.rows)} of {len(self.intents)} equal payments happened"
            if len(unknown) < len(self.intents):
                return [_person(i, f"{note}: {_name(self.rows)}") for i in over]
        elif _class(self.intents[0]) in self.facts.missing:
            told = "the feed lacks a row of an equal payment that has happened"
            return [_person(intent, told) for intent in over]
        return [
            _confirmed(i, happened[i.id], note)
            if i.id in happened
            else self._absent(i, note)
            for i in over
        ]

    def _in_order(self, happened: dict[int, Transaction]) -> dict[int, Transaction]:
        """Give the first payment the first row, if each is in its window then."""
        numbers = sorted(happened)
        rows = sorted(happened.values(), key=lambda row: row.trans_id)
        ordered = dict(zip(numbers, rows, strict=True))
        facts = self.facts
        fits = all(
            facts.windows[number].holds(row, timed=number in facts.timed)
            for number, row in ordered.items()
        )
        return ordered if fits else happened

    def _absent(self, intent: Intent, note: str) -> Verdict:
        """Say that a payment did not happen, where everything is explained."""
        facts, first = self.facts, self.facts.windows[intent.id].first
        strange = [
            row
            for row in facts.spare
            if self.case.may_be(intent, row)
            and not (intent.id in facts.timed and row.regdate < first)
        ]
        if strange:
            told = "no payment of the journal explains what may be this one"
            return _person(intent, f"{told}: {_name(strange)}")
        return Verdict(id=intent.id, phase=Phase.ABSENT, note=note)

    def _doubt(self) -> str | None:
        """Say why rows do not count, if they do not."""
        case = self.case
        if not self.rows:
            return None
        if not case.settings.sole_writer:
            return "others may have made the rows that fit it"
        if not all(map(_adds_up, self.rows)):
            return "a row that fits it does not add up"
        if any(row.trans_id not in self.facts.taken for row in self.rows):
            return "the feed has more rows that fit it than the journal has payments"
        edge = [i for i in case.seen() if case.place(i) == "either"]
        if {_moved(i) for i in edge} & {_move_of(row) for row in self.rows}:
            return "rows that fit it may be of payments two days ago"
        return None


def _matched(
    intents: Sequence[Intent], edges: Mapping[int, Sequence[Transaction]]
) -> dict[int, Intent]:
    """
    Give rows to payments, each one at most, to as many as possible.

    Returns:
        Which row goes to which, by its number. A payment that got one keeps one,
        whatever those behind it get.
    """
    taken: dict[int, Intent] = {}
    held: dict[int, int] = {}
    for intent in intents:
        # Breadth first: whoever has a row may give it away for another one.
        asking, came = deque([intent]), dict[int, Intent]()
        while asking:
            asked = asking.popleft()
            # The nearest first: nothing depends on it, and it is what people expect.
            for row in sorted(edges[asked.id], key=lambda row: _distance(asked, row)):
                if row.trans_id not in came:
                    came[row.trans_id] = asked
                    if (holder := taken.get(row.trans_id)) is None:
                        _pass_on(row.trans_id, came, taken, held)
                        asking.clear()
                        break
                    asking.append(holder)
    return taken


def _pass_on(
    row: int, came: Mapping[int, Intent], taken: dict[int, Intent], held: dict[int, int]
) -> None:
    """Give a free row to whoever asked for it, and what that had to the next."""
    free: int | None = row
    while free is not None:
        asked = came[free]
        taken[free], held[asked.id], free = asked, free, held.get(asked.id)


def _offset(intent: Intent) -> float:
    """Return by how much the clock and the age of the journal differed."""
    return _known(intent.created_at).timestamp() - intent.born


def _distance(intent: Intent, row: Transaction) -> tuple[float, int]:
    """Return by how much a row is outside of a payment's time, in seconds."""
    apart = (row.regdate - _known(intent.created_at)).total_seconds()
    end = _end(intent)
    late = 0.0 if end is None else apart - (end - intent.born)
    return max(0.0, -apart, late), row.trans_id


def _nearest(intent: Intent, rows: Sequence[Transaction]) -> tuple[float, int]:
    """Return the least distance of a payment to one of its rows, and its number."""
    distances = [_distance(intent, row)[0] for row in rows]
    return min(distances, default=0.0), intent.id


def _end(intent: Intent) -> float | None:
    """Return the age by which a payment was executed, if it was; None: not yet over."""
    if intent.phase in HAPPENED and intent.moved is not None:
        # By then its answer was there.
        return intent.aged
    return None if intent.quiet is None else intent.quiet + intent.longest


def _components(
    intents: Sequence[Intent], edges: Mapping[int, Sequence[Transaction]]
) -> list[tuple[list[Intent], list[Transaction]]]:
    """Divide payments and rows into those that hang together."""
    group_of: dict[int, int] = {}
    groups: dict[int, tuple[list[Intent], dict[int, Transaction]]] = {}
    for intent in intents:
        mine = {row.trans_id: row for row in edges[intent.id]}
        group = [intent]
        for other in {group_of[number] for number in mine if number in group_of}:
            others, rows = groups.pop(other)
            group, mine = others + group, rows | mine
        groups[intent.id] = group, mine
        group_of |= dict.fromkeys(mine, intent.id)
    return [
        (sorted(group, key=lambda i: i.id), [rows[n] for n in sorted(rows)])
        for group, rows in groups.values()
    ]


def _known(time: datetime | None) -> datetime:
    """Return a time that an intent has by now."""
    if time is None:
        msg = "an intent that is not written down has no time"
        raise TypeError(msg)
    return time


def _class(intent: Intent) -> _Class:
    """Tell by what the rows of a payment are recognised."""
    kind = TransType.DEPOSIT if intent.operation == DEPOSIT.name else TransType.WITHDRAW
    return kind, intent.amount


def _moved(intent: Intent) -> _Move | None:
    moved = intent.moved
    return None if moved is None else (_class(intent)[0], moved.amount, moved.balance)


def _is_rounded(
    kind: _Class, row: Transaction, decimals: Iterable[int] = range(DECIMALS)
) -> bool:
    """Tell whether a row has an amount that was rounded to some decimals, or cut."""
    direction, amount = kind
    if row.trans_type != direction or amount is None:
        return False
    moved = abs(row.trans_amount)
    # Up or down: nobody knows how.
    return any(
        amount % step != 0 and moved % step == 0 and abs(moved - amount) < step
        for step in (Decimal(1).scaleb(-kept) for kept in decimals)
    )


def _move_of(row: Transaction) -> _Move | None:
    return row.trans_type, abs(row.trans_amount), row.balance


def _adds_up(row: Transaction) -> bool:
    amount = abs(row.trans_amount)
    sign = 1 if row.trans_type == TransType.DEPOSIT else -1
    return row.prebalance + sign * amount == row.balance


def ready(intent: Intent, lag: float) -> float | None:
    """
    Return from when a reading has the row of a payment, if there is one.

    Args:
        intent: One that is, or was, unknown.

        lag: How late a row may appear, in seconds.

    Returns:
        The journal's age at which the reading may begin. None: an attempt of it may
        still run.
    """
    return None if intent.quiet is None else intent.quiet + intent.longest + lag


def anchor_of(intents: Sequence[Intent], lag: float) -> Intent | None:
    """
    Return the payment whose cursor a reading for a user has to begin with.

    Behind that row are the rows of this payment and of all that came later, and none
    of those that came before. Its cursor may be none: then the reading begins with the
    oldest row there is.

    Args:
        intents: His payments, in their order.

        lag: How late a row may appear, in seconds.
    """
    anchor: Intent | None = None
    for intent in reversed(intents):
        if anchor is not None and not anchor.cursor.trans_id:
            break
        if intent.phase is Phase.UNKNOWN:
            lower = anchor is None or (intent.cursor.trans_id < anchor.cursor.trans_id)
            anchor = intent if lower else anchor
        elif anchor is not None and intent.phase in HAPPENED | {Phase.NEEDS_PERSON}:
            # Its row had been there when the cursor was the newest, or may have come
            # later: then it has to be counted as well.
            late = _there(intent) >= anchor.cursor.seen - lag - _NEAR
            anchor = intent if late else anchor
    return anchor


def _is_for_person(intent: Intent) -> bool:
    """Tell whether only a person knows, or is to know, whether it has a row."""
    decided = intent.phase is Phase.CONFIRMED and intent.moved is None
    return decided or intent.phase is Phase.NEEDS_PERSON


def _there(intent: Intent) -> float:
    """Return by which age the row of a payment was made, if it was."""
    if _is_for_person(intent) and intent.quiet is not None:
        return intent.quiet + intent.longest
    return intent.aged


def _confirmed(intent: Intent, row: Transaction, note: str) -> Verdict:
    return Verdict(
        id=intent.id,
        phase=Phase.CONFIRMED,
        moved=Moved(amount=abs(row.trans_amount), balance=row.balance),
        trans_id=row.trans_id,
        note=note,
    )


def _person(intent: Intent, note: str) -> Verdict:
    return Verdict(id=intent.id, phase=Phase.NEEDS_PERSON, note=note)


def _name(rows: Sequence[Transaction]) -> str:
    """Name rows, for people."""
    named = [
        f"{row.trans_id} ({abs(row.trans_amount)}, {row.prebalance} to {row.balance},"
        f" {row.regdate:%F %T})"
        for row in rows[:_NAMED]
    ]
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    return "rows " + ", ".join(named) + more if named else "no row"
