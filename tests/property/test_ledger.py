"""The stand-in's books: whatever is called, no point is made or lost."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aio_agentapi.sandbox import ManualClock
from aio_agentapi.sandbox._ledger import Ledger
from aio_agentapi.sandbox._records import RefusedCall

UNITS = st.one_of(st.integers(1, 3), st.integers(1, 30), st.integers(1, 10**19))
SOMEBODY = st.integers(0, 6)
# Who may move points to whom, and often enough anybody to anybody.
PAIRS = st.one_of(
    st.sampled_from([(0, 1), (0, 2), (1, 3), (1, 4)]),
    st.tuples(st.integers(0, 4), SOMEBODY),
)


class LedgerMachine(RuleBasedStateMachine):
    """Any sequence of calls by anybody about anybody."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.ledger = Ledger(self.clock)
        root = self.ledger.create_root("broker", "broker", 978)
        operator = self.ledger.create(root, "operator", "operator", None, ())
        self.codes = [root.code, operator.code]
        for parent in (root, operator, operator):
            name = f"shop_{len(self.codes)}"
            shop = self.ledger.create(parent, name, "agent", None, ())
            self.codes.append(shop.code)
        self.ledger.mint(root.code, 100)
        self.minted = 100
        self.users: list[int] = []
        self.references: dict[tuple[int, str], object] = {}

    def code(self, number: int) -> int:
        """Return an account's number, sometimes of none."""
        return self.codes[number] if number < len(self.codes) else 999_999

    def teardown(self) -> None:
        """Close the books."""
        self.ledger.close()

    @rule(to=SOMEBODY, units=UNITS)
    def mint(self, to: int, units: int) -> None:
        """The back office makes points."""
        try:
            self.ledger.mint(self.code(to), units)
            self.minted += units
        except RefusedCall as refusal:
            assert refusal.code == 2001

    @rule(
        pair=PAIRS,
        units=UNITS,
        up=st.booleans(),
        reference=st.sampled_from([None, "a", "b"]),
    )
    def move(
        self, pair: tuple[int, int], units: int, reference: str | None, *, up: bool
    ) -> None:
        """Anybody moves points to or from anybody; a reference moves once."""
        caller, to = pair
        account = self.ledger.account(self.code(caller))
        call = self.ledger.reclaim if up else self.ledger.transfer
        before = self.ledger.history(account, 0, 2000)
        try:
            move = call(account, self.code(to), units, reference)
        except RefusedCall as refusal:
            assert refusal.code in {1010, 1012, 2001, 2005}
            assert before == self.ledger.history(account, 0, 2000)
            return
        if reference is not None:
            first = self.references.setdefault((account.code, reference), move)
            assert first == move
        assert move.amount == units
        assert move in self.ledger.history(account, 0, 2000)

    @rule(caller=st.integers(0, 4), name=st.sampled_from(["anna", "bert"]))
    def create_user(self, caller: int, name: str) -> None:
        """A name gives the same user each time."""
        account = self.ledger.account(self.code(caller))
        user, is_new = self.ledger.create_user(account, name)
        assert is_new == (user.code not in self.users)
        self.users += [user.code] if is_new else []

    @rule(
        caller=st.integers(0, 4), user=st.integers(1, 4), units=UNITS, up=st.booleans()
    )
    def pay(self, caller: int, user: int, units: int, *, up: bool) -> None:
        """Anybody deposits to or withdraws from anybody's user."""
        account = self.ledger.account(self.code(caller))
        call = self.ledger.withdraw if up else self.ledger.deposit
        rows = self.ledger.feed(account, 0, 2000)
        try:
            after = call(account, user, units)
        except RefusedCall as refusal:
            assert refusal.code in {1010, 2002, 2005, 2006}
            assert rows == self.ledger.feed(account, 0, 2000)
            return
        *before, row = self.ledger.feed(account, 0, 2000)
        assert rows == before
        sign = -1 if up else 1
        assert row.before + sign * row.amount == row.after == after.balance

    @invariant()
    def no_point_is_made_or_lost(self) -> None:
        """What was minted is there, and nobody has less than nothing."""
        minted, held = self.ledger.audit()
        assert self.minted == minted == held
        assert all(account.points >= 0 for account in self.ledger.accounts())


LedgerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestLedger = LedgerMachine.TestCase


def test_the_largest_amounts_do_not_overflow() -> None:
    """Sixty-four bits do not hold them: the books count in Python's integers."""
    ledger = Ledger(ManualClock())
    root = ledger.create_root("broker", "broker", 978)
    for _ in range(3):
        ledger.mint(root.code, 10**19)
    assert ledger.account(root.code).points == 3 * 10**19
    assert ledger.audit() == (3 * 10**19, 3 * 10**19)
    assert Decimal(3 * 10**19) / 10_000 == 3 * 10**15
    ledger.close()
