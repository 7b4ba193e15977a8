"""
What is concluded from the feed, against a simulated truth.

A user is paid in turns, some answers are lost, some calls run late, rows are seen late,
bets come between, cursors are of any age. Whatever a reading at any moment concludes
must be so; and in the end everything is concluded.
"""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final

import attrs
import pytest

from aio_agentapi import Intent, Phase, Settings
from aio_agentapi._feed import Transaction, TransType
from aio_agentapi._journal import Cursor
from aio_agentapi._reconcile import Case, Look, anchor_of, ready
from aio_agentapi._types import Moved

BEGIN: Final = datetime(2026, 1, 1, tzinfo=UTC)
LAG: Final = 5.0
LONGEST: Final = 20.0
SETTINGS: Final = Settings(feed_lag=LAG, longest_call=LONGEST)
KINDS: Final = ("wallets.deposit", "wallets.withdraw", "wallets.withdraw_all")


def when(seconds: float) -> datetime:
    """Return a moment."""
    return BEGIN + timedelta(seconds=seconds)


@attrs.frozen
class Made:
    """A row of the service, and from when it can be seen."""

    row: Transaction
    at: float
    seen: float


@attrs.define
class World:
    """One user, as he really is."""

    dice: random.Random
    now: float = 1000.0
    balance: Decimal = Decimal(0)
    made: list[Made] = attrs.field(factory=list)
    # What runs at the service: when, which intent, and its call.
    late: list[tuple[float, int, str, Decimal]] = attrs.field(factory=list)
    intents: list[Intent] = attrs.field(factory=list)
    happened: dict[int, bool] = attrs.field(factory=dict)
    cursor: Cursor = attrs.field(factory=Cursor)

    def move(self, number: int, kind: str, amount: Decimal) -> Moved | None:
        """Carry a payment out; None where the service refuses it."""
        before = self.balance
        if kind == KINDS[2]:
            amount = before
        if kind != KINDS[0] and (amount > before or not amount):
            return None
        self.balance += amount if kind == KINDS[0] else -amount
        type_ = TransType.DEPOSIT if kind == KINDS[0] else TransType.WITHDRAW
        self.write(type_, before, amount)
        self.happened[number] = True
        return Moved(amount=amount, balance=self.balance)

    def write(self, type_: TransType, before: Decimal, amount: Decimal) -> None:
        """Make a row."""
        late = self.dice.choice((0.0, 0.0, self.dice.uniform(0, LAG * 0.99)))
        row = Transaction(
            trans_id=5000 + len(self.made),
            user_code=1,
            round_id="",
            trans_type=type_,
            provider_id=0,
            provider_name="",
            game_code="",
            game_name="",
            category="",
            prebalance=before,
            trans_amount=amount,
            balance=self.balance,
            regdate=when(self.now).replace(microsecond=0),
        )
        self.made.append(Made(row, self.now, self.now + late))

    def wait(self, seconds: float) -> None:
        """Let time pass, and what runs late happen."""
        until = self.now + seconds
        for due in sorted(self.late):
            if due[0] <= until:
                self.late.remove(due)
                self.now = max(self.now, due[0])
                self.move(*due[1:])
        self.now = until

    def bet(self) -> None:
        """Play: his balance moves without a payment."""
        before, amount = self.balance, Decimal(self.dice.choice((5, 10)))
        if amount <= before:
            self.balance -= amount
            self.write(TransType.BET, before, amount)

    def note_cursor(self) -> None:
        """Read the newest row that can be seen."""
        seen = [made.row for made in self.made if made.seen <= self.now]
        if seen:
            newest = max(seen, key=lambda row: row.trans_id)
            self.cursor = Cursor(
                trans_id=newest.trans_id,
                made_at=newest.regdate,
                seen_at=when(self.now),
            )

    def pay(self) -> None:
        """Make one payment, in his turn, with any outcome."""
        dice, number = self.dice, len(self.intents) + 1
        kind = dice.choices(KINDS, (6, 4, 1))[0]
        amount = None if kind == KINDS[2] else Decimal(dice.choice((5, 5, 10)))
        cursor = self.cursor if dice.random() < 0.8 else Cursor()
        intent = Intent(
            id=number,
            account="eur",
            operation=kind,
            user_code=1,
            amount=amount,
            phase=Phase.SENT,
            created_at=when(self.now),
            changed_at=when(self.now),
            cursor=cursor,
            longest=LONGEST,
        )
        self.intents.append(intent)
        self.happened[number] = False
        self.wait(dice.uniform(0.01, 2))
        fate = dice.choices(("done", "lost", "dropped", "late"), (5, 2, 2, 1))[0]
        moved, phase = None, Phase.UNKNOWN
        if fate in {"done", "lost"}:
            moved = self.move(number, kind, amount or Decimal(0))
            if fate == "done":
                phase = Phase.REFUSED if moved is None else Phase.DONE
        elif fate == "late":
            at = self.now + dice.uniform(0, LONGEST * 0.9)
            self.late.append((at, number, kind, amount or Decimal(0)))
        self.wait(dice.uniform(0.01, 1))
        now = when(self.now)
        self.intents[-1] = attrs.evolve(
            intent,
            phase=phase,
            moved=moved if phase is Phase.DONE else None,
            changed_at=now,
            lost_at=now if phase is Phase.UNKNOWN else None,
        )

    def judge(self) -> None:
        """Read the feed, and believe what is concluded; it must be so."""
        unknown = [i for i in self.intents if i.phase is Phase.UNKNOWN]
        if not unknown:
            return
        anchor = anchor_of(self.intents, timedelta(seconds=LAG))
        start = 0 if anchor is None else anchor.cursor.trans_id
        rows = [
            made.row
            for made in self.made
            if made.seen <= self.now
            and made.row.trans_id >= start
            and made.row.trans_type in {TransType.DEPOSIT, TransType.WITHDRAW}
        ]
        look = Look(
            start=start,
            begun=when(self.now),
            ended=when(self.now),
            users=frozenset({1}),
            rows={1: rows},
        )
        for verdict in Case(self.intents, look, anchor, SETTINGS).verdicts():
            place = verdict.id - 1
            self.intents[place] = attrs.evolve(
                self.intents[place],
                phase=verdict.phase,
                moved=verdict.moved,
                trans_id=verdict.trans_id,
                note=verdict.note,
                changed_at=when(self.now),
            )
        self.check()

    def check(self) -> None:
        """Of equal payments as many happened as were confirmed, and no more."""
        said: Counter[tuple[str, Decimal | None]] = Counter()
        true: Counter[tuple[str, Decimal | None]] = Counter()
        open_: Counter[tuple[str, Decimal | None]] = Counter()
        for intent in self.intents:
            kind = intent.operation, intent.amount
            is_open = intent.phase in {Phase.UNKNOWN, Phase.NEEDS_PERSON}
            open_[kind] += is_open
            said[kind] += intent.phase in {Phase.DONE, Phase.CONFIRMED}
            true[kind] += self.happened[intent.id]
            due = [late for late in self.late if late[1] == intent.id]
            true[kind] += len(due)
            open_[kind] += len(due)
        for kind, count in true.items():
            assert said[kind] <= count <= said[kind] + open_[kind], self.story()

    def story(self) -> str:
        """Tell all of it, for whoever has to understand a failure."""
        return "\n".join(
            [f"now {self.now}"]
            + [f"{i} happened {self.happened[i.id]}" for i in self.intents]
            + [f"{made}" for made in self.made]
        )


def live(seed: int) -> Counter[str]:
    """Live through one history; tell what became of what was lost."""
    world = World(random.Random(seed))  # noqa: S311 - the same for a seed
    dice = world.dice
    for _ in range(dice.randint(2, 14)):
        for act in dice.sample(("bet", "cursor", "judge", "wait"), dice.randint(0, 3)):
            if act == "bet":
                world.bet()
            elif act == "cursor":
                world.note_cursor()
            elif act == "judge":
                world.judge()
            else:
                world.wait(dice.choice((0.5, 10, 70, 300)))
        world.pay()
    for _ in range(3):
        world.wait(LONGEST + LAG + 5)
        world.judge()
    last = [i for i in world.intents if i.phase is Phase.UNKNOWN]
    assert not last, world.story()
    lag = timedelta(seconds=LAG)
    return Counter(
        str(i.phase)
        for i in world.intents
        if i.lost_at is not None and ready(i, lag) <= when(world.now)
    )


@pytest.mark.parametrize("first", range(0, 4000, 1000))
def test_what_is_concluded_is_so(first: int) -> None:
    """In thousands of histories; and hardly ever is a person needed."""
    ends: Counter[str] = Counter()
    for seed in range(first, first + 1000):
        ends += live(seed)
    assert ends.keys() <= {"confirmed", "absent", "needs_person"}
    assert min(ends["confirmed"], ends["absent"]) > 500
    assert ends["needs_person"] < ends.total() / 20


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_what_is_concluded_is_so_for_long() -> None:
    """In a quarter of a million others."""
    for seed in range(10_000, 260_000):
        live(seed)
