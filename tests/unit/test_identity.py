"""Whose payments they are: what links a session to an account, and what refuses it."""

from __future__ import annotations

import itertools
from typing import Any, Final

import attrs
import pytest

from aio_agentapi._identity import (
    UNTOLD,
    Account,
    Agent,
    Ask,
    Claim,
    Evidence,
    recognise,
    spelled,
)
from aio_agentapi.errors import UsageError

HERE: Final = "https://play.example"
SHOP: Final = Agent(name="shop", currency=978, agent_code=7)
CLAIM: Final = Claim(names=("eur",), token="t1", url=HERE)
KNOWN: Final = Account(
    label="eur",
    agent=SHOP,
    urls=frozenset({HERE}),
    names=frozenset({"eur"}),
    tokens=frozenset({"t1"}),
)
LATER: Final = attrs.evolve(CLAIM, token="t2")
UNNAMED: Final = attrs.evolve(LATER, names=())


@attrs.frozen
class Payments:
    """What each account has paid: to which user, and whether anything at all."""

    user: int | None = 5
    is_used: bool = True

    def __call__(self, _: str) -> tuple[int | None, bool]:
        """Tell it of any account."""
        return self.user, self.is_used


def found(
    claim: Claim,
    *accounts: Account,
    paid: Payments | None = None,
    **seen: Any,
) -> Account | Ask:
    """Recognise a session."""
    return recognise(claim, accounts, Evidence(**seen), paid or Payments())


def refused(claim: Claim, *accounts: Account, **seen: Any) -> str:
    """Return why a session is refused."""
    with pytest.raises(UsageError, match="Nothing was sent") as caught:
        found(claim, *accounts, **seen)
    return str(caught.value)


def test_a_known_token_needs_no_question() -> None:
    """Under its name, without one, and under another; which is noted."""
    assert found(CLAIM, KNOWN) == KNOWN
    assert found(attrs.evolve(CLAIM, names=()), KNOWN) == KNOWN
    more = found(attrs.evolve(CLAIM, names=("main",)), KNOWN)
    assert isinstance(more, Account)
    assert (more.label, {*more.names}) == ("eur", {"eur", "main"})


def test_a_new_token_of_the_same_agent_is_the_same_account() -> None:
    """By its name, or by the agent's number alone; the new one is noted."""
    for claim in (LATER, UNNAMED):
        assert found(claim, KNOWN) == Ask()
        same = found(claim, KNOWN, agent=SHOP)
        assert isinstance(same, Account)
        assert (same.label, {*same.tokens}) == ("eur", {"t1", "t2"})


@pytest.mark.parametrize(
    "other",
    [
        Agent(name="shop", currency=978, agent_code=8),
        Agent(name="shop", currency=840, agent_code=7),
        Agent(name="other", currency=978),
    ],
    ids=str,
)
def test_another_agent_under_a_known_name_is_refused(other: Agent) -> None:
    """Both sides are named."""
    told = refused(LATER, KNOWN, agent=other)
    assert str(other) in told
    assert str(KNOWN) in told
    # Without the name it is an account of its own.
    new = found(UNNAMED, KNOWN, agent=other)
    assert isinstance(new, Account)
    assert (new.label, new.agent) == ("t2", other)


@pytest.mark.parametrize("claim", [CLAIM, LATER, attrs.evolve(CLAIM, names=())])
def test_a_known_name_or_token_at_another_service_is_refused(claim: Claim) -> None:
    """Whatever that tells: nothing is even asked."""
    elsewhere = attrs.evolve(claim, url="https://staging.example")
    assert "another service" in refused(elsewhere, KNOWN)


def test_a_name_and_a_token_of_two_accounts_are_refused() -> None:
    """Whichever is asked first."""
    other = attrs.evolve(KNOWN, label="b", names=frozenset(), tokens=frozenset({"t2"}))
    told = refused(LATER, KNOWN, other)
    assert "two accounts" in told
    assert str(other) in told


def test_two_services_have_two_accounts() -> None:
    """With names and tokens of their own, an equal agent is another one."""
    claim = Claim(names=("staging",), token="t9", url="https://staging.example")
    new = found(claim, KNOWN, agent=SHOP)
    assert isinstance(new, Account)
    assert (new.label, {*new.urls}) == ("staging", {"https://staging.example"})


@pytest.mark.parametrize("claim", [LATER, UNNAMED], ids=["named", "unnamed"])
@pytest.mark.parametrize("untold", ["account", "service", "both"])
def test_without_a_number_a_paid_user_tells(claim: Claim, untold: str) -> None:
    """It is the agent's, or it is not; without one a person says."""
    plain = attrs.evolve(SHOP, agent_code=None)
    known = KNOWN if untold == "service" else attrs.evolve(KNOWN, agent=plain)
    told = SHOP if untold == "account" else plain
    assert found(claim, known, agent=told) == Ask("eur", 5)
    same = found(claim, known, agent=told, users={"eur": True})
    assert isinstance(same, Account)
    assert same.label == "eur"
    if claim is LATER:
        assert "another agent" in refused(
            claim, known, agent=told, users={"eur": False}
        )
    else:
        new = found(claim, known, agent=told, users={"eur": False})
        assert isinstance(new, Account)
        assert new.label == "t2"
    only_open = Payments(None, is_used=True)
    assert "or another" in refused(claim, known, agent=told, paid=only_open)


def test_an_account_that_has_paid_nothing_is_taken_by_its_name() -> None:
    """Nothing depends on it."""
    plain = attrs.evolve(SHOP, agent_code=None)
    unused = Payments(None, is_used=False)
    same = found(LATER, attrs.evolve(KNOWN, agent=plain), agent=plain, paid=unused)
    assert isinstance(same, Account)
    assert same.tokens == {"t1", "t2"}


def test_a_service_that_does_not_tell_links_only_what_is_known() -> None:
    """A known token, and the first account of all; a new token is refused."""
    unverified = attrs.evolve(KNOWN, agent=None)
    assert found(CLAIM, unverified) == Ask()
    assert found(CLAIM, unverified, agent=UNTOLD) == unverified
    first = found(CLAIM, agent=UNTOLD)
    assert isinstance(first, Account)
    assert (first.label, first.agent) == ("eur", None)
    assert "cannot be verified" in refused(LATER, KNOWN, agent=UNTOLD)
    assert "does not tell" in refused(UNNAMED, KNOWN, agent=UNTOLD)


@pytest.mark.parametrize("label", ["eur", "0123456789abcdef"])
def test_an_account_of_the_first_version_is_verified_by_a_user(label: str) -> None:
    """It has its label alone, which is a name or the hash of a token."""
    is_token = label != "eur"
    old = Account(
        label=label,
        names=frozenset() if is_token else frozenset({label}),
        tokens=frozenset({label}) if is_token else frozenset(),
    )
    claim = attrs.evolve(CLAIM, token=label) if is_token else CLAIM
    if is_token:
        same = found(attrs.evolve(claim, names=()), old, agent=SHOP)
    else:
        assert found(claim, old, agent=SHOP) == Ask(label, 5)
        same = found(claim, old, agent=SHOP, users={label: True})
    assert isinstance(same, Account)
    assert (same.label, same.agent, {*same.urls}) == (label, SHOP, {HERE})
    # Whatever else comes: it may be this one, and is asked about.
    other = Claim(names=("x",), token="t5", url=HERE)
    assert found(other, old, agent=SHOP) == Ask(label, 5)
    new = found(other, old, agent=SHOP, users={label: False})
    assert isinstance(new, Account)
    assert new.label == "x"


def test_an_agent_that_was_renamed_is_known_by_its_number() -> None:
    """And a user; its new name is noted; who tells no number takes none away."""
    renamed = attrs.evolve(SHOP, name="shop_2")
    # One number may be told of all agents.
    assert found(LATER, KNOWN, agent=renamed) == Ask("eur", 5)
    same = found(LATER, KNOWN, agent=renamed, users={"eur": True})
    assert isinstance(same, Account)
    assert same.agent == renamed
    assert "another agent" in refused(LATER, KNOWN, agent=renamed, users={"eur": False})
    older = attrs.evolve(SHOP, agent_code=None)
    same = found(attrs.evolve(LATER), KNOWN, agent=older, users={"eur": True})
    assert isinstance(same, Account)
    assert same.agent == SHOP


@pytest.mark.parametrize(
    "url",
    [
        "https://play.example",
        "HTTPS://Play.Example",
        "https://play.example:443",
        "https://play.example./",
        "https://play.example:443//",
    ],
)
def test_a_service_has_one_spelling(url: str) -> None:
    """However the base URL is written."""
    assert spelled(url) == HERE


def test_spellings_of_two_services_differ() -> None:
    """Scheme, host, port and path each tell them apart."""
    urls = [
        "http://a.example",
        "https://a.example",
        "https://a.example:8443",
        "https://a.example/x",
        "https://b.example",
        "https://[::1]",
        "https://bücher.example",
    ]
    for one, two in itertools.combinations(urls, 2):
        assert spelled(one) != spelled(two)
    assert spelled("https://bücher.example") == "https://xn--bcher-kva.example"
    assert spelled("https://[::1]:443") == "https://[::1]"
