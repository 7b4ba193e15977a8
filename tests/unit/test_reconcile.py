"""What is concluded from rows: windows of payments that are known to have happened."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import pytest

from aio_agentapi import Intent, Phase, Settings
from aio_agentapi._feed import Transaction, TransType
from aio_agentapi._journal import Cursor
from aio_agentapi._reconcile import Case, Look, Window, anchor_of
from aio_agentapi._types import Moved

BEGIN: Final = datetime(2026, 1, 1, tzinfo=UTC)
LAG: Final = 5.0
LONGEST: Final = 20.0
SETTINGS: Final = Settings(feed_lag=LAG, longest_call=LONGEST)
# When the feed is read, as the journal's age: long after all of it is over.
READ: Final = 10_000.0


def when(age: float) -> datetime:
    """Return the time at an age of the journal."""
    return BEGIN + timedelta(seconds=age)


def row(number: int, age: float, before: int = 0, after: int = 5) -> Transaction:
    """Make a row that changes a balance."""
    return Transaction(
        trans_id=number,
        user_code=1,
        round_id="",
        trans_type=TransType.DEPOSIT if before < after else TransType.WITHDRAW,
        provider_id=0,
        provider_name="",
        game_code="",
        game_name="",
        category="",
        prebalance=Decimal(before),
        trans_amount=Decimal(abs(after - before)),
        balance=Decimal(after),
        regdate=when(age),
    )


def payment(
    number: int, born: float, cursor: int, seen: float | None = None, **given: Any
) -> Intent:
    """Make a deposit of 5 that is done a second after it was written down."""
    seen = born if seen is None else seen
    fields: dict[str, Any] = {
        "id": number,
        "account": "eur",
        "operation": "wallets.deposit",
        "user_code": 1,
        "amount": Decimal(5),
        "phase": Phase.DONE,
        "moved": Moved(amount=Decimal(5), balance=Decimal(5)),
        "created_at": when(born),
        "changed_at": when(born + 1),
        "cursor": Cursor(trans_id=cursor, made_at=when(seen), seen=seen),
        "longest": LONGEST,
        "born": born,
        "aged": born + 1,
        "quiet": born + 1,
        **given,
    }
    return Intent(**fields)


def lost(number: int, born: float, cursor: int, seen: float | None = None) -> Intent:
    """Make a deposit of 5 whose response was lost."""
    fate = {"phase": Phase.UNKNOWN, "moved": None, "lost_at": when(born + 1)}
    return payment(number, born, cursor, seen, **fate)


def case(intents: Sequence[Intent], *rows: Transaction, read: float = READ) -> Case:
    """Return what is known of a user after a reading that has these rows."""
    anchor = anchor_of(intents, LAG)
    look = Look(
        start=0 if anchor is None else anchor.cursor.trans_id,
        at=when(read),
        begun=read,
        ended=read,
        users=frozenset({1}),
        rows={1: rows},
    )
    return Case(intents, look, anchor, SETTINGS)


def verdicts(judged: Case) -> dict[int, tuple[Phase, int | None]]:
    """Return what is said of which payment, and the row that proves it."""
    return {v.id: (v.phase, v.trans_id) for v in judged.verdicts()}


def test_the_window_of_a_payment_that_happened() -> None:
    """It ends with the first row that was the newest a lag after its response."""
    paid = payment(1, 1000.0, 10)
    # Its row may still have been invisible when the first one was the newest.
    early = payment(2, 1100.0, 20, 1001.0 + LAG - 0.1)
    late = payment(3, 1200.0, 30, 1001.0 + LAG)
    latest = payment(4, 1300.0, 40)
    judged = case([paid, early, late, latest])
    assert judged._window(paid) == Window(
        after=10,
        until=30,
        first=when(1000.0) - timedelta(hours=1),
        last=when(1001.0) + timedelta(hours=1),
    )
    assert judged._window(latest).until is None


def test_the_window_of_a_payment_that_is_not_over() -> None:
    """One that is lost is over later than one that is known; a running one is not."""
    known = payment(1, 1000.0, 10)
    gone = lost(2, 1000.0, 10)
    runs = payment(3, 1000.0, 10, phase=Phase.SENT, moved=None, quiet=None)
    after = payment(4, 2000.0, 50, 1001.0 + LAG)
    judged = case([known, gone, runs, after])
    hour = timedelta(hours=1)
    found = [judged._window(i) for i in (known, gone, runs)]
    assert [w.until for w in found] == [50, None, None]
    assert [w.last for w in found] == [
        when(1001.0) + hour,
        when(1001.0 + LONGEST) + hour,
        None,
    ]


@pytest.mark.parametrize(
    ("number", "age", "held"),
    [
        (10, 100.0, False),
        (11, 100.0, True),
        (30, 200.0, True),
        (31, 200.0, False),
        (20, 99.0, False),
        (20, 201.0, False),
    ],
)
def test_a_window_holds_its_edges(number: int, age: float, *, held: bool) -> None:
    """Not the row that was there before, but the last one; and both times."""
    window = Window(after=10, until=30, first=when(100.0), last=when(200.0))
    assert window.holds(row(number, age), timed=True) == held
    assert window.holds(row(number, age), timed=False) == (10 < number <= 30)


@pytest.mark.parametrize("order", [1, -1])
def test_a_row_before_a_known_payment_is_not_its_own(order: int) -> None:
    """It is the lost one's, though the known one lacks a row; it is not paid again."""
    first = lost(1, 1000.0, 10)
    # Behind the cursor of the second one its own row would have to be.
    intents = [first, payment(2, 3000.0, 20)]
    rows = [row(15, 1000.5), row(17, 2000.0, 5, 0)][::order]
    assert verdicts(case(intents, *rows)) == {1: (Phase.CONFIRMED, 15)}


def test_a_row_behind_a_known_payment_is_not_its_own() -> None:
    """What came when its own had long been visible is the row of the lost one."""
    paid = payment(1, 1000.0, 10)
    second = lost(2, 3000.0, 30)
    assert verdicts(case([paid, second], row(35, 3000.5))) == {2: (Phase.CONFIRMED, 35)}


def test_a_row_in_the_window_of_a_known_payment_is_its_own() -> None:
    """The lost one has none then: it did not happen, and may be paid again."""
    paid = payment(1, 1000.0, 10)
    second = lost(2, 1010.0, 10, 990.0)
    judged = case([paid, second], row(15, 1000.5))
    assert verdicts(judged) == {2: (Phase.ABSENT, None)}


def test_a_known_payment_without_a_row_keeps_an_equal_one_from_being_absent() -> None:
    """The feed lacks a row of what certainly happened: no row proves nothing."""
    paid = payment(1, 1000.0, 10)
    second = lost(2, 1010.0, 10, 990.0)
    assert verdicts(case([paid, second])) == {2: (Phase.NEEDS_PERSON, None)}


def test_a_row_of_another_time_is_nobodys_where_clocks_agree() -> None:
    """A known payment shows that they do; without one the row is the lost one's."""
    paid = payment(1, 1000.0, 10, 990.0)
    second = lost(2, 1010.0, 10, 990.0)
    # Two hours too old.
    strange, own = row(14, 1010.0 - 2 * 3600, 7, 12), row(15, 1000.5)
    known = case([paid, second], strange, own)
    assert verdicts(known) == {2: (Phase.ABSENT, None)}
    assert verdicts(case([second], strange)) == {2: (Phase.CONFIRMED, 14)}
