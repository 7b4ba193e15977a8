"""Accounts of the hierarchy: the caller's own, and those below it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from datetime import datetime
from decimal import Decimal
from typing import Final

import attrs

from aio_agentapi._channel import Channel
from aio_agentapi._types import AgentCode, OpenStr, Operation, Query, Secret

__all__ = [
    "Agent",
    "AgentInfo",
    "AgentNode",
    "Agents",
    "NewAgent",
    "Role",
    "State",
]

# The service's own bound on the rows of a page.
_PAGE: Final = 2000


class Role(OpenStr):
    """What an account may do; a word we do not know is kept."""

    BROKER = "broker"
    OPERATOR = "operator"
    AGENT = "agent"


class State(OpenStr):
    """Whether an account's calls are accepted; a word we do not know is kept."""

    ACTIVE = "active"
    SUSPENDED = "suspended"


@attrs.frozen(kw_only=True)
class AgentInfo:
    """
    What the service tells an account about itself.

    Attributes:
        name: Unique among its siblings.

        currency: The service's number of its currency.

        balance: Its points, in major units.

        win_ratio: In per cent; newer deployments call it rtp. None where not told.

        whitelist: The addresses it may call from; empty: any. None where not told.

        client_ip: The address that the service sees. None where not told.

        agent_code: Its number. None where not told, as the three below.

        role: Broker, operator or agent.

        parent_code: The account above it; None at the root too.

        state: Active or suspended.
    """

    name: str
    currency: int
    balance: Decimal
    win_ratio: Decimal | None = attrs.field(default=None, metadata={"also": "rtp"})
    whitelist: tuple[str, ...] | None = None
    client_ip: str | None = None
    agent_code: AgentCode | None = None
    role: Role | None = None
    parent_code: AgentCode | None = None
    state: State | None = None


@attrs.frozen(kw_only=True)
class Agent:
    """
    An account below the caller.

    Attributes:
        agent_code: Its number.

        name: Unique among its siblings.

        role: Operator or agent.

        parent_code: The account above it, None at the root.

        depth: How many accounts are above it.

        currency: The service's number of its currency, its parent's.

        balance: Its points, in major units.

        state: Active or suspended.

        whitelist: The addresses it may call from; empty: any.

        created_at: When, with its zone.
    """

    agent_code: AgentCode
    name: str
    role: Role
    parent_code: AgentCode | None = None
    depth: int
    currency: int
    balance: Decimal
    state: State
    whitelist: tuple[str, ...]
    created_at: datetime


@attrs.frozen(kw_only=True)
class NewAgent:
    """
    An account that was just created.

    Attributes:
        agent: The account.

        token: Its token, which the service shows this once: store it.
    """

    agent: Agent = attrs.field(metadata={"inline": True})
    token: Secret


@attrs.frozen(kw_only=True)
class AgentNode:
    """
    An account and those below it.

    Attributes:
        agent: The account; that at the top of a tree is the caller itself.

        children: Those directly below it, by agent_code.
    """

    agent: Agent | AgentInfo
    children: tuple[AgentNode, ...]


@attrs.frozen(kw_only=True)
class _Page:
    total: int
    list: tuple[Agent, ...]


@attrs.frozen(kw_only=True)
class _Token:
    token: Secret


_INFO: Final = Operation(name="agents.info", effect="read", returns=AgentInfo)
# One for all calls: a hundred thousand may wait, and each would keep a body.
_OWN: Final = Query(_INFO, {})
_CREATE: Final = Operation(name="agents.create", effect="create", returns=NewAgent)
_LIST: Final = Operation(name="agents.list", effect="read", returns=_Page)
_UPDATE: Final = Operation(name="agents.update", effect="idempotent", returns=Agent)
_TOKEN: Final = Operation(name="agents.reissue_token", effect="create", returns=_Token)


@attrs.frozen(eq=False)
class Agents:
    """The accounts that a token can see and manage."""

    _channel: Channel = attrs.field(alias="channel", repr=False)

    async def info(self) -> AgentInfo:
        """
        Return what the service knows of the caller, its points included.

        Returns:
            The caller's own account.

        Raises:
            CredentialError: The token, or this machine's address, is not accepted.

        Source:
            Contract 5, agents: ``agent/info``.
        """
        return await self._channel.call(_OWN)

    async def create(
        self,
        name: str,
        *,
        role: Role | str = Role.AGENT,
        parent_code: AgentCode | None = None,
        whitelist: Iterable[str] = (),
    ) -> NewAgent:
        """
        Create an account below the caller.

        Args:
            name: 2 to 50 letters, digits and underscores, new among its siblings.

            role: ``"agent"`` or ``"operator"``.

            parent_code: The account above the new one. None: the caller.

            whitelist: The addresses it may call from. Empty: any.

        Returns:
            The account, and its token, shown this once.

        Raises:
            InvalidError: The name is not allowed, or taken. Nothing was created.

            ForbiddenError: Not allowed to create there. Nothing was created.

            NotFoundError: There is no such parent. Nothing was created.

            OutcomeUnknownError: The answer was lost. It may have happened: look
                for the name among the children before you create it again, and
                if it is there, have its token reissued.

        Source:
            Contract 5, agents: ``agent/create``.
        """
        body = {
            "name": name,
            "role": str(role),
            "whitelist": list(whitelist) or None,
            "parent_code": parent_code,
        }
        return await self._channel.call(Query(_CREATE, body))

    async def list(
        self, *, parent_code: AgentCode | None = None, subtree: bool = False
    ) -> AsyncIterator[Agent]:
        """
        Iterate over the accounts below one, page by page.

        An account that is created meanwhile may be left out; none comes twice.

        Args:
            parent_code: Whose children. None: the caller's.

            subtree: Those further below too.

        Yields:
            Parents before their children, siblings by agent_code.

        Raises:
            ForbiddenError: *parent_code* is not the caller or below it.

            NotFoundError: There is no such parent.

        Source:
            Contract 5, agents: ``agent/list``.
        """
        # One that is created meanwhile moves the rows behind it, so that the end
        # of a page stands at the head of the next once more.
        before: frozenset[AgentCode] = frozenset()
        body = {"parent_code": parent_code, "subtree": subtree}
        async for page in self._channel.pages(Query(_LIST, body), _PAGE):
            for agent in page.list:
                if agent.agent_code not in before:
                    yield agent
            before = frozenset(agent.agent_code for agent in page.list)

    async def tree(self) -> AgentNode:
        """
        Return the caller and all below it.

        Returns:
            The caller's node; each account stands below its parent.

        Raises:
            CredentialError: The token, or this machine's address, is not accepted.

        Source:
            Contract 5, agents: ``agent/info``, ``agent/list``.
        """
        top = await self.info()
        found: list[Agent] = [agent async for agent in self.list(subtree=True)]
        children: dict[AgentCode | None, list[AgentNode]] = {}
        codes = {agent.agent_code for agent in found}
        # From the last to the first: whoever comes before stands above.
        for agent in reversed(found):
            below = children.pop(agent.agent_code, [])
            node = AgentNode(agent=agent, children=tuple(reversed(below)))
            parent = agent.parent_code if agent.parent_code in codes else None
            children.setdefault(parent, []).append(node)
        return AgentNode(agent=top, children=tuple(reversed(children.get(None, []))))

    async def update(
        self,
        agent_code: AgentCode,
        *,
        state: State | str | None = None,
        whitelist: Iterable[str] | None = None,
    ) -> Agent:
        """
        Change the state or the allowed addresses of an account below the caller.

        Args:
            agent_code: Which account.

            state: ``"active"`` or ``"suspended"``. None: as it is.

            whitelist: The addresses it may call from; empty: any. None: as it is.

        Returns:
            The account after the change.

        Raises:
            ForbiddenError: Not the caller or below it. Nothing was changed.

            NotFoundError: There is no such account. Nothing was changed.

            InvalidError: A value is not allowed. Nothing was changed.

        Source:
            Contract 5, agents: ``agent/update``.
        """
        body = {
            "agent_code": agent_code,
            "state": None if state is None else str(state),
            "whitelist": None if whitelist is None else [*whitelist],
        }
        return await self._channel.call(Query(_UPDATE, body))

    async def suspend(self, agent_code: AgentCode) -> Agent:
        """
        Have the calls of an account, and of all below it, refused.

        Args:
            agent_code: Which account.

        Returns:
            The account after the change.

        Raises:
            ForbiddenError: Not below the caller. Nothing was changed.

            NotFoundError: There is no such account. Nothing was changed.

        Source:
            Contract 5, agents: ``agent/update``.
        """
        return await self.update(agent_code, state=State.SUSPENDED)

    async def resume(self, agent_code: AgentCode) -> Agent:
        """
        Have the calls of a suspended account accepted again.

        Args:
            agent_code: Which account.

        Returns:
            The account after the change.

        Raises:
            ForbiddenError: Not below the caller. Nothing was changed.

            NotFoundError: There is no such account. Nothing was changed.

        Source:
            Contract 5, agents: ``agent/update``.
        """
        return await self.update(agent_code, state=State.ACTIVE)

    async def reissue_token(self, agent_code: AgentCode) -> Secret:
        """
        Give an account a new token; the old one stops working at once.

        Args:
            agent_code: Which account.

        Returns:
            The new token, shown this once.

        Raises:
            ForbiddenError: Not the caller or below it. Nothing was changed.

            NotFoundError: There is no such account. Nothing was changed.

            OutcomeUnknownError: The answer was lost. It may have happened: the old
                token may be gone; have it reissued once more.

        Source:
            Contract 5, agents: ``agent/token``.
        """
        answer = await self._channel.call(Query(_TOKEN, {"agent_code": agent_code}))
        return answer.token
