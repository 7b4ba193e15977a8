"""What members of a shared budget and its store say to each other."""

from __future__ import annotations

from inspect import Parameter, signature
from typing import Any, Final

import attrs
import pytest

from aio_agentapi._budget import (
    Member,
    Report,
    SharedBudget,
    Terms,
    budget_of,
)
from aio_agentapi.redis import RedisGate
from tests.property.test_shared import LEASE, Store

DOCUMENTED: Final = {
    "lease": 5.0,
    "heartbeat": 1.0,
    "quarantine": 30.0,
    "static_share": 0,
}


def test_both_places_of_the_defaults_say_what_is_documented() -> None:
    """What a manager shares with, and what a gate without one has."""
    given = signature(RedisGate.factory).parameters.values()
    defaults = {p.name: p.default for p in given if p.default is not Parameter.empty}
    assert defaults == DOCUMENTED
    assert attrs.asdict(Terms()) == DOCUMENTED
    assert RedisGate.factory("redis://127.0.0.1")._terms == Terms()


def test_who_holds_what() -> None:
    """The living have no end, the dead tell it, and who is free of both is gone."""
    row = "{} {} {} {} {} 1 {}".format
    rows = {
        # held, wanted, seen, ends, kept, in the store's milliseconds.
        "a": row(3, 5, 99_000, 104_000, 134_000, "host:1"),
        "b": row(2, 0, 90_000, 95_000, 125_000, "host:2"),
        "c": row(4, 4, 60_000, 65_000, 100_000, "host:3"),
    }
    assert budget_of(rows, 7, 100.0, 50) == SharedBudget(
        limit=50,
        held=3,
        quarantined=2,
        overdrawn=7,
        members=(
            Member(
                id="a",
                label="host:1",
                held=3,
                wanted=5,
                age=1.0,
                dead=False,
                frees=None,
            ),
            Member(
                id="b",
                label="host:2",
                held=2,
                wanted=0,
                age=10.0,
                dead=True,
                frees=25.0,
            ),
        ),
    )


class Script:
    """The script on a store, with members that report to it."""

    def __init__(self, *, began: float = -100.0) -> None:
        self.now = 0.0
        self.store = Store(lambda: self.now)
        self.store.reset(run="a", began=began)
        self.numbers: dict[str, int] = {}

    def report(self, member: str, held: int, wanted: int, **terms: float) -> Any:
        """Let a member report; return what it may hold, and the whole answer."""
        number = self.numbers[member] = self.numbers.get(member, 0) + 1
        report = Report(number=number, held=held, wanted=wanted, sent=self.now)
        answer, _ = self.store.carry(member, report, 5, **terms)
        return answer


def test_what_is_claimed_goes_round_while_an_empty_store_gives_nothing() -> None:
    """As much as members say that they hold, and no more, also when one says more."""
    script = Script(began=0.0)
    # A server that has just begun: a held two before, and three as it turns out.
    assert script.report("a", 2, 5)[:4] == (2, 1, 0, 0)
    assert script.report("a", 3, 5)[:4] == (3, 1, 0, 0)
    assert script.report("b", 0, 5)[0] == 0
    # What it gives back may be had by the other.
    assert script.report("a", 1, 1)[0] == 1
    assert script.report("b", 0, 5)[0] == 2
    script.now += LEASE
    assert script.report("b", 2, 5)[0] == 4


def test_another_server_that_kept_the_rows_counts_them_as_claimed() -> None:
    """A store that was moved gives what its rows have, and no more, for a lease."""
    script = Script()
    assert script.report("a", 0, 3)[0] == 3
    script.store.run = "b"
    assert script.report("b", 0, 5)[0] == 0
    assert script.report("a", 1, 1)[0] == 1
    assert script.report("b", 0, 5)[0] == 2


def test_two_that_want_all_have_an_even_part_each() -> None:
    """Whoever came first gives back what is more, as soon as another one asks."""
    script = Script()
    assert script.report("a", 0, 5)[0] == 5
    assert script.report("b", 0, 5)[0] == 0
    assert script.report("a", 5, 5)[0] == 2
    assert script.report("a", 2, 5)[0] == 2
    assert script.report("b", 0, 5)[0] == 3


@pytest.mark.parametrize("lease", [LEASE, 200.0])
def test_keys_outlive_every_quarantine(lease: float) -> None:
    """By a minute: what a dead member held is kept when others leave at once."""
    script = Script()
    terms = {"lease": lease, "quarantine": 90.0}
    script.report("a", 0, 5, **terms)
    assert script.store.expires == dict.fromkeys(
        ("members", "state"), round(lease + 90.0) * 1000 + 60_000
    )
    script.now = 10.0
    script.report("b", 0, 0, lease=0.0, quarantine=1.0)
    assert script.store.expires == dict.fromkeys(
        ("members", "state"), round(lease + 90.0 - 10.0) * 1000 + 60_000
    )
