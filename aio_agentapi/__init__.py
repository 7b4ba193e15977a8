"""An asyncio client of an agent API that moves points and allows 50 calls at a time."""

from aio_agentapi import errors
from aio_agentapi._batch import Outcome, run_many
from aio_agentapi._gate import Gate, GateStatistics, LocalGate
from aio_agentapi._journal import Intent, Phase
from aio_agentapi._session import Session, SessionManager
from aio_agentapi._settings import Settings
from aio_agentapi._store import MemoryStore, SqliteStore
from aio_agentapi._types import Amount, Lane, Moved, Secret
from aio_agentapi.resources.agents import (
    Agent,
    AgentInfo,
    AgentNode,
    NewAgent,
    Role,
    State,
)
from aio_agentapi.resources.games import (
    Category,
    Game,
    Language,
    OnlineGame,
    Provider,
    ProviderStatus,
)
from aio_agentapi.resources.points import Distributed, PlanRow, PointMove
from aio_agentapi.resources.transactions import Transaction, TransType
from aio_agentapi.resources.users import NewUser, User, UserStatistics

__all__ = [
    "Agent",
    "AgentInfo",
    "AgentNode",
    "Amount",
    "Category",
    "Distributed",
    "Game",
    "Gate",
    "GateStatistics",
    "Intent",
    "Lane",
    "Language",
    "LocalGate",
    "MemoryStore",
    "Moved",
    "NewAgent",
    "NewUser",
    "OnlineGame",
    "Outcome",
    "Phase",
    "PlanRow",
    "PointMove",
    "Provider",
    "ProviderStatus",
    "Role",
    "Secret",
    "Session",
    "SessionManager",
    "Settings",
    "SqliteStore",
    "State",
    "TransType",
    "Transaction",
    "User",
    "UserStatistics",
    "errors",
    "run_many",
]
