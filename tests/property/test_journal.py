"""
The journal as a state machine: processes that pay, settle, and die between any writes.

Several owners share one file. A crash drops an owner with all that he holds in memory;
what the file has stays. The model knows what was handed to the service, and what the
file has acknowledged.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from aio_agentapi import Intent, Phase, SqliteStore
from aio_agentapi._journal import FREE, HAPPENED, MOVES, OPEN, Verdict
from aio_agentapi._types import Moved
from aio_agentapi.errors import UsageError

T = TypeVar("T")

USERS = st.integers(1, 3)
KEYS = st.sampled_from([None, "a", "b"])
AMOUNTS = st.sampled_from([Decimal(5), Decimal(6)])
MOVED = Moved(amount=Decimal(5), balance=Decimal(5))


@attrs.define(eq=False)
class Owner:
    """One process: its store, and the intents that it is to carry out."""

    store: SqliteStore
    alive: bool = True


@attrs.define(eq=False)
class Payment:
    """An intent in the hands of an owner, and how often it went to the service."""

    owner: Owner
    intent: Intent
    sendings: int = 0
    maybe: bool = False
    phase: Phase = Phase.SENT


class Journal(RuleBasedStateMachine):
    """Owners that begin, send, lose, learn, settle, and die."""

    owners = Bundle("owners")
    sent = Bundle("sent")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "j.db"
        self.reader = SqliteStore(self.path)
        self.all: list[Owner] = []
        self.payments: dict[int, Payment] = {}
        # What the file has acknowledged of each intent.
        self.phases: dict[int, Phase] = {}
        self.now = 100.0

    def clock(self) -> float:
        """Return the time."""
        return self.now

    def do(self, work: Awaitable[T]) -> T:
        """Wait for something of a store."""

        async def waited() -> T:
            return await work

        return self.loop.run_until_complete(waited())

    def ask(self, call: Any, *args: Any, **given: Any) -> Any:
        """Call a store in the loop, and wait."""

        async def called() -> Any:
            return await call(*args, **given)

        self.now += 1
        return self.loop.run_until_complete(called())

    def teardown(self) -> None:
        """End what is left."""
        for owner in [*self.all, Owner(self.reader)]:
            self.loop.run_until_complete(owner.store.aclose())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        self.folder.cleanup()

    @initialize(target=owners)
    def first(self) -> Any:
        """Two processes to begin with."""
        return multiple(self.start(), self.start())

    def start(self) -> Owner:
        """Start a process."""
        owner = Owner(SqliteStore(self.path))
        self.all.append(owner)
        return owner

    @rule(target=owners)
    def another(self) -> Owner:
        """A process starts."""
        return self.start()

    @rule(
        target=sent,
        owner=owners,
        user=USERS,
        key=KEYS,
        amount=AMOUNTS,
        block=st.booleans(),
    )
    def begin(
        self, owner: Owner, user: int, key: str | None, amount: Decimal, block: bool
    ) -> Any:
        """An owner writes an intent down, and may send it then, and only then."""
        if not owner.alive:
            return multiple()
        wanted = Intent(
            account="eur",
            operation="wallets.deposit",
            user_code=user,
            amount=amount,
            key=key,
        )
        return self.begun(owner, wanted, block=block)

    @precondition(lambda self: self.payments)
    @rule(target=sent, owner=owners, number=st.integers(0, 1000), block=st.booleans())
    def resend(self, owner: Owner, number: int, block: bool) -> Any:
        """An owner pays anew what did not happen."""
        known = [*self.payments.values()]
        first = known[number % len(known)].intent
        phase = self.phases[first.id]
        if not owner.alive or phase not in FREE:
            return multiple()
        anew = attrs.evolve(first, id=0, phase=Phase.INTENT, follows=first.id)
        return self.begun(owner, anew, block=block)

    def begun(self, owner: Owner, wanted: Intent, *, block: bool) -> Any:
        """Write an intent down, and note who may send it."""
        before = self.ask(self.reader.intents)
        try:
            written = self.ask(
                owner.store.begin, wanted, self.clock, block_unknown=block
            )
        except UsageError:
            assert any(i.key == wanted.key and not i.same(wanted) for i in before)
            return multiple()
        if written is None or written.phase is not Phase.SENT:
            return multiple()
        assert written.id not in {i.id for i in before}
        self.phases[written.id] = Phase.SENT
        payment = self.payments[written.id] = Payment(owner, written)
        return payment

    @rule(payment=sent)
    def send(self, payment: Payment) -> None:
        """It goes to the service, as often as it surely was not executed."""
        if payment.owner.alive and payment.phase is Phase.SENT and not payment.maybe:
            assert self.stored(payment) is Phase.SENT
            payment.sendings += 1

    @rule(
        payment=consumes(sent),
        end=st.sampled_from([Phase.DONE, Phase.REFUSED, Phase.NOT_SENT, Phase.UNKNOWN]),
        late=st.sampled_from([None, Phase.CONFIRMED, Phase.ABSENT]),
        crash=st.booleans(),
    )
    def end(
        self, payment: Payment, end: Phase, late: Phase | None, crash: bool
    ) -> None:
        """Its outcome is written, a late one too, or the owner dies before that."""
        owner = payment.owner
        if not owner.alive:
            return
        payment.maybe = end is Phase.UNKNOWN
        if crash:
            payment.maybe = True
            self.crash(owner)
            return
        self.told(payment, end)
        if end is Phase.UNKNOWN and late is not None:
            self.told(payment, late)

    def told(self, payment: Payment, phase: Phase) -> None:
        """Write an outcome, and wait until that is acknowledged."""
        moved = MOVED if phase in HAPPENED else None
        verdict = Verdict(id=payment.intent.id, phase=phase, moved=moved)
        (written,) = self.ask(payment.owner.store.write, [verdict], self.clock)
        assert written.phase is phase
        payment.phase = phase
        self.phases[written.id] = phase

    @rule(owner=owners)
    def crash(self, owner: Owner) -> None:
        """A process dies: no more of it, and its lock is gone."""
        if owner.alive:
            owner.alive = False
            # As the kernel does it: the file stays as it is.
            self.loop.run_until_complete(owner.store.aclose())

    @rule(owner=owners)
    def adopt(self, owner: Owner) -> None:
        """Another process looks for what the dead have left."""
        if owner.alive:
            self.ask(owner.store.adopt, self.clock)

    @rule(
        owner=owners,
        end=st.sampled_from([Phase.CONFIRMED, Phase.ABSENT, Phase.NEEDS_PERSON]),
        number=st.integers(0, 1000),
    )
    def settle(self, owner: Owner, end: Phase, number: int) -> None:
        """Somebody finds out about an open one."""
        opened = self.ask(self.reader.intents, phases=OPEN)
        if not owner.alive or not opened:
            return
        chosen = opened[number % len(opened)]
        moved = MOVED if end is Phase.CONFIRMED else None
        trans_id = chosen.id if end is Phase.CONFIRMED else None
        verdict = Verdict(id=chosen.id, phase=end, moved=moved, trans_id=trans_id)
        (written,) = self.ask(owner.store.write, [verdict], self.clock)
        assert written.phase is end or end not in MOVES[chosen.phase]

    def stored(self, payment: Payment) -> Phase:
        """Return the phase that the file has."""
        (found,) = self.ask(self.reader.intents, ids=[payment.intent.id])
        phase = found.phase
        assert isinstance(phase, Phase)
        return phase

    @invariant()
    def the_file_keeps_its_promises(self) -> None:
        """Turns, keys, and phases that only go forward."""
        intents = self.ask(self.reader.intents)
        assert {i.id for i in intents} == self.phases.keys()
        turns = [(i.account, i.user_code) for i in intents if i.phase is Phase.SENT]
        assert len(turns) == len(set(turns))
        live = [i.key for i in intents if i.key and i.phase not in FREE]
        assert len(live) == len(set(live))
        following = [i.follows for i in intents if i.follows and i.phase not in FREE]
        assert len(following) == len(set(following))
        for intent in intents:
            before = self.phases[intent.id]
            assert intent.phase in reachable(before)
            self.phases[intent.id] = intent.phase
            payment = self.payments[intent.id]
            # After a doubt it never was in the hands of somebody who may send it.
            assert not (payment.maybe and payment.owner.alive) or (
                intent.phase is not Phase.SENT
            )
            if intent.follows:
                first = next(i for i in intents if i.id == intent.follows)
                assert first.phase in FREE
                assert first.id < intent.id


def reachable(phase: Phase) -> set[Phase]:
    """Return a phase and all that may come after it."""
    found = {phase}
    for later in MOVES[phase]:
        found |= reachable(later)
    return found


def test_whoever_dies_when_the_journal_holds() -> None:
    """Short: some hundred histories."""
    run_state_machine_as_test(
        Journal, settings=settings(max_examples=60, stateful_step_count=25)
    )


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_whoever_dies_when_the_journal_holds_for_long() -> None:
    """Some thousand longer histories."""
    run_state_machine_as_test(
        Journal, settings=settings(max_examples=2000, stateful_step_count=60)
    )
