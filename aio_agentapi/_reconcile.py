"""
What became of payments whose answer was lost.

The service records each payment as a row of its feed: user, amount, balance before and
after. So the feed is read from a row that was there before the payment, to its end,
and what the journal knows is taken off. What is left are the rows of the payments that
nobody knows about, and a count of both says what happened:

    as many rows as payments          all of them happened
    none, and none can come any more  none of them did
    some, and none can come any more  so many did: the first of equal payments, since
                                      nothing tells them apart, and nothing depends
                                      on which
    more, or no feed to count in      a person

None can come any more when the reading began later than the last sending, and
``longest_call``, and ``feed_lag``. A payment that is under way may have made a row
that its answer does not tell of yet: while there is an equal one, nothing is said.

It proves something only while the journal has all payments of the user
(``sole_writer``). Otherwise a row may be anybody's: only that there is none says
something.
"""

from __future__ import annotations

from collections import defaultdict
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
from aio_agentapi._types import Moved, UserCode

# By how much clocks may differ, and what is safe at the end of what the feed keeps.
_MARGIN: Final = timedelta(hours=1)
_KEPT: Final = timedelta(seconds=KEPT)

_Place: TypeAlias = Literal["before", "behind", "either"]

# Around the time at which a cursor was seen: a payment so close to it may have its row
# on either side.
_NEAR: Final = timedelta(seconds=60)

# Rows that a note names.
_NAMED: Final = 10

_Class: TypeAlias = tuple[TransType, Decimal | None]


@attrs.frozen(kw_only=True)
class Look:
    """
    One reading of the feed, from a row to its end.

    Attributes:
        start: The row that it began with. 0: the oldest there is.

        begun: When.

        ended: When.

        users: Whose payments were looked for.

        rows: Their deposits and withdrawals, oldest first.
    """

    start: int
    begun: datetime
    ended: datetime
    users: frozenset[UserCode]
    rows: Mapping[UserCode, Sequence[Transaction]]

    def covers(self, users: Collection[UserCode], start: int, begun: datetime) -> bool:
        """Tell whether it is as good as another, or better."""
        return self.users.issuperset(users) and (
            self.start <= start and self.begun >= begun
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

        settings: ``sole_writer`` and ``feed_lag``.
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
        rows = list(self._rows())
        missing, doubtful = self._take_off(rows)
        classes: dict[_Class, list[Intent]] = defaultdict(list)
        for intent in self._open():
            classes[_class(intent)].append(intent)
        found: dict[int, Verdict] = {}
        for kind, group in classes.items():
            mine = [row for row in rows if _fits(kind, row)]
            unknown = [intent for intent in group if intent.phase is Phase.UNKNOWN]
            old = [intent for intent in unknown if self._is_too_old(intent)]
            note = "the feed does not reach back to it any more"
            said = [_person(intent, note) for intent in old]
            rest = [intent for intent in unknown if intent not in old]
            if self._is_shared(kind, classes, mine):
                note = f"equal rows fit a withdrawal of everything, too: {_name(mine)}"
                said += [_person(i, note) for i in rest if self._is_over(i)]
            elif unknown:
                # Rows of a payment so young that its own may not be seen yet, and
                # they another's.
                sure = not any(_fits(kind, row) for row in doubtful)
                over = [i for i in rest if sure and self._is_over(i)]
                said += self._count(group, rest, over, mine, missing)
            # What was found in the feed is not too old for it.
            found |= {verdict.id: verdict for verdict in said}
        return list(found.values())

    @property
    def running(self) -> bool:
        """Whether a payment is under way that may have made one of the rows."""
        kinds = {_class(i) for i in self._unknown()}
        sent = [i for i in self._open() if i.phase is Phase.SENT]
        return any(_class(i) in kinds for i in sent)

    def _unknown(self) -> list[Intent]:
        return [i for i in self.intents if i.phase is Phase.UNKNOWN]

    def _open(self) -> list[Intent]:
        """Return what may have made a row that no answer tells of."""
        running = {Phase.UNKNOWN, Phase.SENT}
        return [
            intent
            for intent in self._seen()
            if intent.phase in running
            or (_is_for_person(intent) and self._place(intent) != "before")
        ]

    def _seen(self) -> list[Intent]:
        """Return what was begun before the reading ended: the rest has no row there."""
        return [i for i in self.intents if _known(i.created_at) <= self.look.ended]

    def _rows(self) -> Iterable[Transaction]:
        proofs = {intent.trans_id for intent in self.intents}
        user = self.intents[0].user_code
        for row in self.look.rows.get(user, ()):
            if row.trans_id > self.start and row.trans_id not in proofs:
                yield row

    def _is_too_old(self, intent: Intent) -> bool:
        """Tell whether its row may be deleted by now."""
        return self.look.begun - _known(intent.created_at) >= _KEPT - _MARGIN

    def _take_off(
        self, rows: list[Transaction]
    ) -> tuple[set[_Class], list[Transaction]]:
        """
        Remove the rows of what is known to have happened.

        Returns:
            What should have a row and has not; and the rows that were removed for
            payments whose own may be later ones.
        """
        missing: set[_Class] = set()
        doubtful: list[Transaction] = []
        lag = timedelta(seconds=self.settings.feed_lag)
        for intent in self._seen():
            moved = intent.moved
            if intent.phase not in HAPPENED or moved is None or intent.trans_id:
                continue
            place = self._place(intent)
            if place == "before" or not moved.amount:
                continue
            visible = _known(intent.changed_at) + lag <= self.look.begun
            found = next((row for row in rows if _is_row_of(intent, moved, row)), None)
            if found is not None:
                rows.remove(found)
                if not visible:
                    doubtful.append(found)
            elif place == "behind" and visible:
                missing.add(_class(intent))
        return missing, doubtful

    def _is_shared(
        self,
        kind: _Class,
        classes: Mapping[_Class, Sequence[Intent]],
        mine: Sequence[Transaction],
    ) -> bool:
        """Tell whether rows may be of another kind of payment as well."""
        others = [other for other in classes if other != kind]
        return any(_fits(other, row) for other in others for row in mine)

    def _count(  # noqa: PLR0911 - one for each thing that can be said
        self,
        group: Sequence[Intent],
        unknown: Sequence[Intent],
        over: Sequence[Intent],
        rows: Sequence[Transaction],
        missing: set[_Class],
    ) -> list[Verdict]:
        """Compare equal payments with the rows that are left."""
        rows = [row for row in rows if row.trans_id > group[0].cursor.trans_id]
        running = any(intent.phase is Phase.SENT for intent in group)
        doubt = self._doubt(group, rows)
        if doubt is not None:
            return [_person(i, f"{doubt}: {_name(rows)}") for i in over]
        if not rows:
            if _class(group[0]) in missing:
                note = "the feed lacks a row of an equal payment that has happened"
                return [_person(intent, note) for intent in over]
            note = "the feed has no row of it, and none can come any more"
            return [Verdict(id=i.id, phase=Phase.ABSENT, note=note) for i in over]
        if running:
            return []
        if len(rows) == len(group):
            return [
                _confirmed(intent, row, "the feed has its row")
                for intent, row in zip(group, rows, strict=True)
                if intent.phase is Phase.UNKNOWN
            ]
        if len(over) < len(unknown):
            return []
        if len(unknown) < len(group):
            note = f"{len(rows)} of {len(group)} equal payments happened"
            return [_person(i, f"{note}: {_name(rows)}") for i in over]
        note = f"{len(rows)} of {len(group)} equal payments happened, the first"
        happened = zip(group, rows, strict=False)
        return [
            *(_confirmed(intent, row, note) for intent, row in happened),
            *(
                Verdict(id=i.id, phase=Phase.ABSENT, note=note)
                for i in group[len(rows) :]
            ),
        ]

    def _doubt(  # noqa: PLR0911 - one for each reason
        self, group: Sequence[Intent], rows: Sequence[Transaction]
    ) -> str | None:
        """Say why rows do not count, if they do not."""
        if not rows:
            return None
        if not self.settings.sole_writer:
            return "others may have made the rows that fit it"
        if not all(map(_adds_up, rows)):
            return "a row that fits it does not add up"
        if len(rows) > len(group):
            return "the feed has more rows that fit it than the journal has payments"
        pairs = zip(group, rows, strict=False)
        if any(row.trans_id <= i.cursor.trans_id for i, row in pairs):
            return "a row that fits it was there before it was sent"
        edge = [i for i in self._seen() if self._place(i) == "either"]
        if any(_is_row_of(i, i.moved, row) for i in edge for row in rows if i.moved):
            return "rows that fit it may be of payments two days ago"
        return None

    def _place(self, intent: Intent) -> _Place:
        """Tell where the row of a payment is, seen from where it counts from."""
        if self.anchor is not None and self.anchor.cursor.trans_id:
            # By their order: see anchor_of. A cursor says less, it may be none.
            return "behind" if intent.id >= self.anchor.id else "before"
        oldest = self.look.begun - _KEPT
        if _there(intent) < oldest - _MARGIN:
            return "before"
        return "behind" if _known(intent.created_at) > oldest + _MARGIN else "either"

    def _is_over(self, intent: Intent) -> bool:
        lag = timedelta(seconds=self.settings.feed_lag)
        return self.look.begun >= ready(intent, lag)


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


def _fits(kind: _Class, row: Transaction) -> bool:
    direction, amount = kind
    if row.trans_type != direction:
        return False
    # Some may write what is taken with a sign.
    return row.balance == 0 if amount is None else abs(row.trans_amount) == amount


def _is_row_of(intent: Intent, moved: Moved, row: Transaction) -> bool:
    same = abs(row.trans_amount) == moved.amount and row.balance == moved.balance
    return same and row.trans_type == _class(intent)[0]


def _adds_up(row: Transaction) -> bool:
    amount = abs(row.trans_amount)
    sign = 1 if row.trans_type == TransType.DEPOSIT else -1
    return row.prebalance + sign * amount == row.balance


def ready(intent: Intent, lag: timedelta) -> datetime:
    """
    Return when a reading may begin that has the row of a payment, if there is one.

    Args:
        intent: One that is, or was, unknown.

        lag: How late a row may appear.
    """
    return _known(intent.lost_at) + timedelta(seconds=intent.longest) + lag


def anchor_of(intents: Sequence[Intent], lag: timedelta) -> Intent | None:
    """
    Return the payment whose cursor a reading for a user has to begin with.

    Behind that row are the rows of this payment and of all that came later, and none
    of those that came before. Its cursor may be none: then the reading begins with the
    oldest row there is.

    Args:
        intents: His payments, in their order.

        lag: How late a row may appear.
    """
    anchor: Intent | None = None
    for intent in reversed(intents):
        if anchor is not None and not anchor.cursor.trans_id:
            break
        if intent.phase is Phase.UNKNOWN:
            lower = anchor is None or (intent.cursor.trans_id < anchor.cursor.trans_id)
            anchor = intent if lower else anchor
        elif anchor is not None and (
            intent.phase in HAPPENED or _is_for_person(intent)
        ):
            seen = _known(anchor.cursor.seen_at)
            # Its row had been there when the cursor was the newest, or may have come
            # later: then it has to be counted as well.
            if _there(intent) >= seen - lag - _NEAR:
                anchor = intent
    return anchor


def _is_for_person(intent: Intent) -> bool:
    """Tell whether only a person knows, or is to know, whether it has a row."""
    decided = intent.phase is Phase.CONFIRMED and intent.moved is None
    return decided or intent.phase is Phase.NEEDS_PERSON


def _there(intent: Intent) -> datetime:
    """Return when the row of a payment was made at the latest, if it has one."""
    if _is_for_person(intent) and intent.lost_at is not None:
        return intent.lost_at + timedelta(seconds=intent.longest)
    return _known(intent.changed_at)


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
        f"{row.trans_id} ({row.prebalance} to {row.balance}, {row.regdate:%F %T})"
        for row in rows[:_NAMED]
    ]
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    return "rows " + ", ".join(named) + more if named else "no row"
