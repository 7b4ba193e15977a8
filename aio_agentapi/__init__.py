"""An asyncio client of an agent API that moves points and allows 50 calls at a time."""

from aio_agentapi import errors
from aio_agentapi._batch import Outcome, run_many
from aio_agentapi._gate import Gate, GateStatistics, LocalGate
from aio_agentapi._session import Session, SessionManager
from aio_agentapi._settings import Settings
from aio_agentapi._types import Amount, Lane, Secret
from aio_agentapi.resources.agents import (
    Agent,
    AgentInfo,
    AgentNode,
    NewAgent,
    Role,
    State,
)
from aio_agentapi.resources.points import Distributed, PlanRow, PointMove
from aio_agentapi.resources.transactions import Transaction, TransType
from aio_agentapi.resources.users import NewUser, User
from aio_agentapi.resources.wallets import Moved

__all__ = [
    "Agent",
    "AgentInfo",
    "AgentNode",
    "Amount",
    "Distributed",
    "Gate",
    "GateStatistics",
    "Lane",
    "LocalGate",
    "Moved",
    "NewAgent",
    "NewUser",
    "Outcome",
    "PlanRow",
    "PointMove",
    "Role",
    "Secret",
    "Session",
    "SessionManager",
    "Settings",
    "State",
    "TransType",
    "Transaction",
    "User",
    "errors",
    "run_many",
]
