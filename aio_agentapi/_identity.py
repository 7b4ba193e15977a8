"""
Whose payments they are: which account of the journal a token stands for.

Whatever lasts longer than a token belongs to the agent: payments, and the keys that pay
once. The service tells an agent by its name and currency, and mostly by a number; a
name is unique among siblings only, so that it verifies an agent and does not make one.
So an account of the journal has sets of names, tokens (as hashes) and services, and
what the service told of it:

    linked      by a name of ``accounts``, or by the hash of the token
    verified    by what ``agent/info`` tells, once for each token at each service; where
                that has no number, a new token also by a user whom the account has paid
    refused     where both do not agree: nothing is sent, and a person says which it is

This module computes; the journal gives it the accounts in question, and writes down
what it finds, in one transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final, Literal, TypeAlias
from urllib.parse import urlsplit

import attrs

from aio_agentapi._types import Operation, UserCode
from aio_agentapi.errors import UsageError


@attrs.frozen(kw_only=True)
class Agent:
    """
    What the service tells of the agent of a token.

    Attributes:
        name: Unique among its siblings.

        currency: The service's number of its currency.

        agent_code: Its number. None where it is not told.
    """

    name: str
    currency: int
    agent_code: int | None = None

    def __str__(self) -> str:
        code = "" if self.agent_code is None else f", agent_code {self.agent_code}"
        return f"agent {self.name!r} (currency {self.currency}{code})"


# For a service that does not tell.
UNTOLD: Final = "untold"
Told: TypeAlias = Agent | Literal["untold"] | None

INFO: Final = Operation(name="agents.info", effect="read", returns=Agent)
USER: Final = Operation(name="users.info", effect="read", returns=object)


@attrs.frozen(kw_only=True)
class Claim:
    """
    What a session says of itself.

    Attributes:
        names: Those that ``accounts`` has for its token.

        token: The token's hash.

        url: Of its service, in one spelling.
    """

    names: tuple[str, ...]
    token: str
    url: str

    @property
    def label(self) -> str:
        """What a new account is called."""
        return self.names[0] if self.names else self.token

    def __str__(self) -> str:
        names = f"{', '.join(map(repr, self.names))}, " if self.names else ""
        return f"{names}token {self.token}, at {self.url}"


@attrs.frozen(kw_only=True)
class Account:
    """
    An account of the journal.

    Attributes:
        label: What intents call it.

        agent: What the service told of it. None: nothing yet.

        urls: Where it is.

        names: What ``accounts`` has called it.

        tokens: The hashes of its tokens.
    """

    label: str
    agent: Agent | None = None
    urls: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    tokens: frozenset[str] = frozenset()

    def __str__(self) -> str:
        agent = "an agent that was never verified" if self.agent is None else self.agent
        where = ", ".join(sorted(self.urls)) or "a service that was not written down"
        return f"account {self.label!r} of the journal: {agent}, at {where}"


@attrs.frozen
class Ask:
    """
    What has to be asked of the service first.

    Attributes:
        label: The account whose user it is. None: ask ``agent/info``.

        user_code: Whether this one is the token's, by ``user/info``.
    """

    label: str | None = None
    user_code: UserCode | None = None


@attrs.frozen(kw_only=True)
class Evidence:
    """
    What the service was asked.

    Attributes:
        agent: What ``agent/info`` tells. None: not asked.

        users: Of accounts, whether a user whom they paid is the token's.
    """

    agent: Told = None
    users: Mapping[str, bool] = attrs.field(factory=dict[str, bool])


# A user whom an account has paid. None: nobody; and whether there are payments that may
# have happened, or still may.
Witness: TypeAlias = Callable[[str], tuple[UserCode | None, bool]]


def recognise(
    claim: Claim,
    accounts: Collection[Account],
    seen: Evidence,
    witness: Witness,
    free: Callable[[str], str] = str,
) -> Account | Ask:
    """
    Find the account of the journal that a session is.

    Args:
        claim: What the session says.

        accounts: Those that are linked to it, that were told the same name or number,
            and those that were never verified.

        seen: What the service has been asked.

        witness: Finds a user whom an account has paid.

        free: Makes of a label one that no account has.

    Returns:
        The account, with all that it is linked to from now on; or what to ask first.

    Raises:
        UsageError: It is linked to two, or is another agent, or at another service, or
            nobody can tell. Nothing was sent.
    """
    linked = [account for account in accounts if _is_linked(claim, account)]
    if len(linked) > 1:
        raise _refused(
            claim, seen, linked, "its name and its token are of two accounts"
        )
    for account in linked:
        check_service(claim, account)
        token = claim.token in account.tokens
        if token and claim.url in account.urls and account.agent is not None:
            return _joined(claim, account, account.agent)
        if seen.agent is None:
            return Ask()
        return _verified(claim, account, seen, witness, token=token)
    if seen.agent is None:
        return Ask()
    found = _found(claim, accounts, seen, witness)
    if found is not None:
        return found
    agent = seen.agent if isinstance(seen.agent, Agent) else None
    return _joined(claim, Account(label=free(claim.label)), agent)


def _verified(
    claim: Claim, account: Account, seen: Evidence, witness: Witness, *, token: bool
) -> Account | Ask:
    """Compare an account with what the service tells."""
    if not isinstance(seen.agent, Agent):
        if token:
            return _joined(claim, account, account.agent)
        raise _refused(claim, seen, [account], "its new token cannot be verified")
    likeness = alike(account.agent, seen.agent)
    if likeness == "no":
        raise _refused(claim, seen, [account], "its token is of another agent")
    if likeness == "yes" or token:
        return _joined(claim, account, seen.agent)
    found = _by_user(claim, account, seen, witness)
    if found is None:
        raise _refused(claim, seen, [account], "its token is of another agent")
    return found


def _found(
    claim: Claim, accounts: Collection[Account], seen: Evidence, witness: Witness
) -> Account | Ask | None:
    """Find an account that nothing but the agent itself leads to."""
    here = [a for a in accounts if not a.urls or claim.url in a.urls]
    if not isinstance(seen.agent, Agent):
        if here:
            why = (
                "the service does not tell who it is, and the journal has others there"
            )
            raise _refused(claim, seen, here[:1], why)
        return None
    likeness = {account.label: alike(account.agent, seen.agent) for account in here}
    for account in here:
        if likeness[account.label] == "yes":
            return _joined(claim, account, seen.agent)
    for account in here:
        if likeness[account.label] == "maybe":
            found = _by_user(claim, account, seen, witness)
            if found is not None:
                return found
    return None


def _by_user(
    claim: Claim, account: Account, seen: Evidence, witness: Witness
) -> Account | Ask | None:
    """Compare by a user whom the account has paid; None: it is another agent."""
    agent = seen.agent if isinstance(seen.agent, Agent) else None
    if (same := seen.users.get(account.label)) is not None:
        return _joined(claim, account, agent) if same else None
    user, is_used = witness(account.label)
    if user is not None:
        return Ask(account.label, user)
    if is_used:
        raise _refused(claim, seen, [account], "it may be the same agent, or another")
    # Nothing depends on it.
    return _joined(claim, account, agent) if _is_linked(claim, account) else None


def _is_linked(claim: Claim, account: Account) -> bool:
    return claim.token in account.tokens or not account.names.isdisjoint(claim.names)


def alike(known: Agent | None, told: Agent) -> Literal["yes", "no", "maybe"]:
    """Tell whether both are one agent, as far as that can be told of them."""
    if known is None:
        return "maybe"
    if known.currency != told.currency:
        return "no"
    same = known.name == told.name
    if known.agent_code is None or told.agent_code is None:
        return "maybe" if same else "no"
    if known.agent_code != told.agent_code:
        return "no"
    # Renamed, or one number for all of them: a user tells.
    return "yes" if same else "maybe"


def _joined(claim: Claim, account: Account, agent: Agent | None) -> Account:
    """Return an account with all that a session says of itself."""
    known = account.agent
    if agent is not None and known is not None and agent.agent_code is None:
        # An older deployment has been told more of it before.
        agent = attrs.evolve(agent, agent_code=known.agent_code)
    return attrs.evolve(
        account,
        agent=agent or known,
        urls=account.urls | {claim.url},
        names=account.names | {*claim.names},
        tokens=account.tokens | {claim.token},
    )


def _refused(
    claim: Claim, seen: Evidence, accounts: Collection[Account], why: str
) -> UsageError:
    told = f", {seen.agent}" if isinstance(seen.agent, Agent) else ""
    return UsageError(
        f"whose payments these are is not sure: {why}. The session is {claim}{told};"
        f" {'; '.join(map(str, accounts))}. Nothing was sent. If both are one agent at"
        " one service, say so: agentapi payments account --help"
    )


_PORTS: Final = {"http": 80, "https": 443}


def check_service(claim: Claim, account: Account) -> Account:
    """
    Return an account that a session is linked to, if it is at its service.

    Raises:
        UsageError: It is at another one.
    """
    if account.urls and claim.url not in account.urls:
        raise _refused(claim, Evidence(), [account], "it is at another service")
    return account


def spelled(base_url: str) -> str:
    """Return a service's address in the one spelling that the journal has."""
    parts = urlsplit(base_url)
    host = (parts.hostname or "").rstrip(".")
    if not host.isascii():
        host = host.encode("idna").decode()
    host = f"[{host}]" if ":" in host else host
    port = parts.port
    place = host if port in {None, _PORTS.get(parts.scheme)} else f"{host}:{port}"
    return f"{parts.scheme}://{place}{parts.path.rstrip('/')}"
