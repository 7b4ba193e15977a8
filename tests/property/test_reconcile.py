"""
What is concluded from the feed, against a simulated truth.

A user is paid in turns, some answers are lost, some calls run late, rows are seen late,
bets come between, cursors are of any age. Whatever a reading at any moment concludes
must be so; and in the end everything is concluded.

In strange worlds amounts are rounded, somebody else pays, attempts go on without their
callers, and this machine's clock is set: then more is for a person, and no verdict is
against the truth.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import attrs
import pytest

from aio_agentapi import Intent, Phase, Settings
from aio_agentapi._feed import Transaction, TransType
from aio_agentapi._journal import Cursor, Verdict
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
    """A row of the service, from when it can be seen, and whose payment it is."""

    row: Transaction
    at: float
    seen: float
    of: int = 0


@attrs.frozen
class Strange:
    """What is not as usual in a world."""

    rounds: bool = False
    others: bool = False
    runs: bool = False
    clocks: bool = False
    settings: Settings = SETTINGS


@attrs.define
class World:
    """One user, as he really is."""

    dice: random.Random
    strange: Strange = Strange()
    # By how much this machine's clock is wrong.
    wrong: timedelta = timedelta()
    # Attempts that go on without their callers, and until when.
    running: dict[int, float] = attrs.field(factory=dict)
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
        if self.strange.rounds:
            amount = amount.quantize(Decimal("0.01"))
        if kind != KINDS[0] and (amount > before or not amount):
            return None
        self.balance += amount if kind == KINDS[0] else -amount
        type_ = TransType.DEPOSIT if kind == KINDS[0] else TransType.WITHDRAW
        self.write(type_, before, amount, number)
        self.happened[number] = True
        return Moved(amount=amount, balance=self.balance)

    def write(
        self, type_: TransType, before: Decimal, amount: Decimal, number: int = 0
    ) -> None:
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
        self.made.append(Made(row, self.now, self.now + late, number))

    def wait(self, seconds: float) -> None:
        """Let time pass, and what runs late happen."""
        until = self.now + seconds
        for due in sorted(self.late):
            if due[0] <= until:
                self.late.remove(due)
                self.now = max(self.now, due[0])
                self.move(*due[1:])
        self.now = until
        for number in [n for n, end in self.running.items() if end <= until]:
            self.end(number)

    def end(self, number: int) -> None:
        """Let an attempt end whose caller was gone; its response may be lost."""
        del self.running[number]
        known = self.intents[number - 1]
        changed = attrs.evolve(known, quiet=self.now)
        executed = self.happened[number]
        if self.dice.random() < 0.5 and known.phase is Phase.UNKNOWN:
            row = next((m.row for m in self.made if m.of == number), None)
            moved = None
            if row is not None:
                moved = Moved(amount=row.trans_amount, balance=row.balance)
            changed = attrs.evolve(
                changed,
                phase=Phase.CONFIRMED if executed else Phase.ABSENT,
                moved=moved,
                changed_at=self.clock(),
                aged=self.now,
            )
        self.intents[number - 1] = changed

    def clock(self) -> datetime:
        """Return what this machine's clock shows."""
        return when(self.now) + self.wrong

    def set_clock(self) -> None:
        """Somebody sets this machine's clock, right or wrong."""
        days = self.dice.choice((0, 0, -400, 40, 0.02, -0.1, 3))
        self.wrong = timedelta(days=days)

    def pay_beside(self) -> None:
        """Somebody else pays the user an amount that none of ours has."""
        before, amount = self.balance, Decimal(7)
        self.balance += amount
        self.write(TransType.DEPOSIT, before, amount)

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
                seen=self.now,
            )

    def pay(self) -> None:
        """Make one payment, in his turn, with any outcome."""
        dice, number = self.dice, len(self.intents) + 1
        kind = dice.choices(KINDS, (6, 4, 1))[0]
        amounts = ("5.0055", "5.0055", 10) if self.strange.rounds else (5, 5, 10)
        amount = None if kind == KINDS[2] else Decimal(dice.choice(amounts))
        cursor = self.cursor if dice.random() < 0.8 else Cursor()
        intent = Intent(
            id=number,
            account="eur",
            operation=kind,
            user_code=1,
            amount=amount,
            phase=Phase.SENT,
            created_at=self.clock(),
            changed_at=self.clock(),
            cursor=cursor,
            longest=LONGEST,
            born=self.now,
            aged=self.now,
        )
        self.intents.append(intent)
        self.happened[number] = False
        self.wait(dice.uniform(0.01, 2))
        fate = dice.choices(("done", "lost", "dropped", "late"), (5, 2, 2, 1))[0]
        if self.strange.runs and dice.random() < 0.2:
            fate = "runs"
        moved, phase = None, Phase.UNKNOWN
        if fate in {"done", "lost"}:
            moved = self.move(number, kind, amount or Decimal(0))
            if fate == "done":
                phase = Phase.REFUSED if moved is None else Phase.DONE
        elif fate == "runs":
            # For longer than anybody expects: it may happen until its very end.
            end = self.now + dice.uniform(1, 20 * LONGEST)
            self.running[number] = end
            if dice.random() < 0.5:
                at = self.now + dice.random() * (end - self.now)
                self.late.append((at, number, kind, amount or Decimal(0)))
        elif fate == "late":
            at = self.now + dice.uniform(0, LONGEST * 0.9)
            self.late.append((at, number, kind, amount or Decimal(0)))
        self.wait(dice.uniform(0.01, 1))
        now = self.clock()
        self.intents[number - 1] = attrs.evolve(
            intent,
            phase=phase,
            moved=moved if phase is Phase.DONE else None,
            changed_at=now,
            aged=self.now,
            lost_at=now if phase is Phase.UNKNOWN else None,
            quiet=(
                self.now
                if phase is Phase.UNKNOWN and number not in self.running
                else None
            ),
        )

    def judge(self) -> None:
        """Read the feed, and believe what is concluded; it must be so."""
        unknown = [i for i in self.intents if i.phase is Phase.UNKNOWN]
        if not unknown:
            return
        anchor = anchor_of(self.intents, LAG)
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
            at=self.clock(),
            begun=self.now,
            ended=self.now,
            users=frozenset({1}),
            rows={1: rows},
        )
        case = Case(self.intents, look, anchor, self.strange.settings)
        for verdict in case.verdicts():
            place = verdict.id - 1
            if verdict.phase is Phase.ABSENT:
                assert verdict.id not in self.running, self.story()
            self.intents[place] = attrs.evolve(
                self.intents[place],
                phase=verdict.phase,
                moved=verdict.moved,
                trans_id=verdict.trans_id,
                note=verdict.note,
                changed_at=self.clock(),
                aged=self.now,
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


def live(seed: int, strange: Strange | None = None) -> Counter[str]:
    """Live through one history; tell what became of what was lost."""
    world = World(random.Random(seed), strange or Strange())  # noqa: S311 - the same for a seed
    dice = world.dice
    acts: dict[str, Callable[[], None]] = {
        "bet": world.bet,
        "cursor": world.note_cursor,
        "judge": world.judge,
        "wait": lambda: world.wait(dice.choice((0.5, 10, 70, 300))),
    }
    if world.strange.others:
        acts["pay beside"] = world.pay_beside
    if world.strange.clocks:
        acts["clock"] = world.set_clock
    for _ in range(dice.randint(2, 14)):
        for act in dice.sample([*acts], dice.randint(0, 3)):
            acts[act]()
        world.pay()
    if world.running:
        world.wait(20 * LONGEST)
    for _ in range(3):
        world.wait(LONGEST + LAG + 5)
        world.judge()
    last = [i for i in world.intents if i.phase is Phase.UNKNOWN]
    assert not last, world.story()
    return Counter(
        str(i.phase)
        for i in world.intents
        if (over := ready(i, LAG)) is not None and over <= world.now
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


OTHERS: Final = attrs.evolve(SETTINGS, sole_writer=False)
ROUNDED: Final = attrs.evolve(SETTINGS, amount_decimals=2)

# What may be strange, and how often at least something can be said all the same.
WORLDS: Final[Mapping[str, tuple[Strange, int]]] = {
    "runs": (Strange(runs=True), 100),
    "rounds": (Strange(rounds=True), 0),
    "rounds and knows": (Strange(rounds=True, settings=ROUNDED), 100),
    "others": (Strange(others=True, settings=OTHERS), 50),
    "others unexpected": (Strange(others=True), 50),
    "clocks": (Strange(clocks=True), 50),
    "all of it": (
        Strange(rounds=True, others=True, runs=True, clocks=True, settings=ROUNDED),
        5,
    ),
}


@pytest.mark.parametrize("name", WORLDS)
def test_no_verdict_is_against_the_truth_in_strange_worlds(name: str) -> None:
    """A thousand histories of each; where it can be said, it is said."""
    strange, least = WORLDS[name]
    ends: Counter[str] = Counter()
    for seed in range(1000):
        ends += live(seed, strange)
    assert ends.keys() <= {"confirmed", "absent", "needs_person"}
    assert ends["confirmed"] + ends["absent"] > least
    if strange.settings.sole_writer:
        assert min(ends["confirmed"], ends["absent"]) >= least / 5


def row(number: int, seconds: float, amount: str, balance: str) -> Transaction:
    """Make the row of a deposit."""
    return Transaction(
        trans_id=number,
        user_code=1,
        round_id="",
        trans_type=TransType.DEPOSIT,
        provider_id=0,
        provider_name="",
        game_code="",
        game_name="",
        category="",
        prebalance=Decimal(balance) - Decimal(amount),
        trans_amount=Decimal(amount),
        balance=Decimal(balance),
        regdate=when(seconds),
    )


def payment(number: int, at: float, phase: Phase, **given: Any) -> Intent:
    """Make a deposit of 5 that took a second."""
    fields: dict[str, Any] = {
        "id": number,
        "account": "eur",
        "operation": KINDS[0],
        "user_code": 1,
        "amount": Decimal(5),
        "phase": phase,
        "created_at": when(at),
        "changed_at": when(at + 1),
        "born": at,
        "aged": at + 1,
        "quiet": at + 1 if phase is Phase.UNKNOWN else None,
        "longest": LONGEST,
        **given,
    }
    return Intent(**fields)


def judge(
    intents: Sequence[Intent], rows: Sequence[Transaction], settings: Settings
) -> dict[int, Verdict]:
    """Return what a reading of all rows says, a day later."""
    look = Look(
        start=0,
        at=when(80_000),
        begun=80_000.0,
        ended=80_000.0,
        users=frozenset({1}),
        rows={1: rows},
    )
    verdicts = Case(intents, look, None, settings).verdicts()
    return {verdict.id: verdict for verdict in verdicts}


HOUR: Final = 3600.0


@pytest.mark.parametrize("told_by", ["nothing", "the time", "a cursor"])
def test_an_old_payment_does_not_take_the_row_of_a_new_one(told_by: str) -> None:
    """Lost at 12 and never executed; executed at 14 and lost: one row, at 14."""
    old = payment(1, 12 * HOUR, Phase.UNKNOWN)
    new = payment(2, 14 * HOUR, Phase.UNKNOWN)
    rows = [row(50, 14 * HOUR, "5", "5")]
    intents = [old, new]
    if told_by == "the time":
        # Its row says that both clocks agree.
        moved = Moved(amount=Decimal(9), balance=Decimal(14))
        done = payment(3, 15 * HOUR, Phase.DONE, amount=Decimal(9), moved=moved)
        intents += [done]
        rows += [row(51, 15 * HOUR, "9", "14")]
    if told_by == "a cursor":
        cursor = Cursor(trans_id=49, seen=14 * HOUR - 1)
        intents = [old, attrs.evolve(new, cursor=cursor)]
    found = judge(intents, rows, SETTINGS)
    assert found[2].phase is Phase.CONFIRMED
    assert found[2].trans_id == 50
    assert found[1].phase is Phase.ABSENT


def test_a_row_that_need_not_be_of_what_happened_explains_nothing() -> None:
    """Two rows fit it: the other one may be the lost payment's, rounded."""
    moved = Moved(amount=Decimal("5.01"), balance=Decimal("15.03"))
    given: dict[str, Any] = {"amount": Decimal("5.0055")}
    paid = payment(
        1, 1000, Phase.DONE, moved=moved, cursor=Cursor(trans_id=8, seen=995.0), **given
    )
    lost = payment(
        2, 1003, Phase.UNKNOWN, cursor=Cursor(trans_id=11, seen=1003.0), **given
    )
    # By the service's clock, which is half a minute behind: the second looks nearer.
    rows = [row(10, 970, "5.01", "15.03"), row(12, 1001, "5.01", "15.03")]
    assert judge([paid, lost], rows, SETTINGS)[2].phase is Phase.NEEDS_PERSON


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_what_is_concluded_is_so_for_long() -> None:
    """In a quarter of a million others, and in many strange ones."""
    for seed in range(10_000, 260_000):
        live(seed)
    for strange, _ in WORLDS.values():
        for seed in range(10_000, 30_000):
            live(seed, strange)
