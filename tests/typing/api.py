"""
The library as its users write it, for type checkers: checked, and never run.

mypy and basedpyright find here when a call is not possible any more, or has another
type. ``tests/test_api.py`` finds what is public and not used here.

This folder has no ``__init__.py``: as a package it would stand in the place of the
standard ``typing`` for a program whose path begins with ``tests``.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, assert_type

import pytest

from aio_agentapi import (
    Agent,
    AgentInfo,
    AgentNode,
    Amount,
    Category,
    Distributed,
    Game,
    Gate,
    GateStatistics,
    Intent,
    Lane,
    Language,
    LocalGate,
    MemoryStore,
    Moved,
    NewAgent,
    NewUser,
    OnlineGame,
    Outcome,
    Phase,
    PlanRow,
    PointMove,
    Provider,
    ProviderStatus,
    Role,
    Secret,
    Session,
    SessionManager,
    Settings,
    SqliteStore,
    State,
    Transaction,
    TransType,
    User,
    UserStatistics,
    errors,
    redis,
    run_many,
    sandbox,
    testing,
)
from aio_agentapi.resources.agents import Agents
from aio_agentapi.resources.games import Games
from aio_agentapi.resources.points import Plan, Points
from aio_agentapi.resources.transactions import Transactions
from aio_agentapi.resources.users import Users
from aio_agentapi.resources.wallets import Wallets

NOW = datetime(2026, 1, 1, tzinfo=UTC)


async def opens_sessions(token: str, path: Path) -> None:
    """Open sessions in each way that there is."""
    async with SessionManager("https://api.example.com") as plain:
        assert_type(plain, SessionManager)
    settings = Settings(timeout=10, lane="batch", zone="Asia/Seoul", max_wait=None)
    manager = SessionManager(
        "https://api.example.com",
        accounts={"eur": token, "usd": Secret(token)},
        settings=settings,
        gate=redis.RedisGate.factory("redis://127.0.0.1"),
        store=SqliteStore(path),
    )
    await uses_a_manager(manager, Secret(token))
    SessionManager("https://api.example.com", store=MemoryStore())
    SessionManager("https://api.example.com", gate=makes_a_gate)


async def uses_a_manager(manager: SessionManager, token: Secret) -> None:
    """Take sessions by the name of an account, and by a token."""
    async with manager as same:
        assert_type(same, SessionManager)
        assert_type(manager.session("eur"), Session)
        assert_type(manager.session(token), Session)
    assert_type(await manager.aclose(), None)


def makes_a_gate(secret: Secret, settings: Settings) -> Gate:
    """Make the gate of a token, as a session manager asks for it."""
    assert_type(secret.reveal(), str)
    assert_type(secret.digest, str)
    assert_type(secret.scrub("text"), str)
    return LocalGate.of(settings)


async def uses_a_session(session: Session) -> None:
    """Use what stands on the session itself."""
    view = session.with_options(
        lane="batch", timeout=5.0, max_wait=None, deadline=60, attempts=1
    )
    assert_type(view, Session)
    found = await session.call("game/round-details", {"user_code": 1}, effect="read")
    assert_type(found, object)
    assert_type(await session.call("agent/new", {"amount": Decimal(1)}), object)
    assert_type(session.gate, Gate)
    assert_type(session.gate.statistics(), GateStatistics)
    assert_type(session.settings, Settings)
    assert_type(session.agents, Agents)
    assert_type(session.points, Points)
    assert_type(session.users, Users)
    assert_type(session.wallets, Wallets)
    assert_type(session.transactions, Transactions)
    assert_type(session.games, Games)
    assert_type(await session.aclose(), None)


async def uses_agents(session: Session) -> None:
    """Create, read and change accounts."""
    info = await session.agents.info()
    assert_type(info, AgentInfo)
    assert_type(info.balance, Decimal)
    assert_type(info.role, Role | None)
    assert_type(info.whitelist, tuple[str, ...] | None)
    created = await session.agents.create(
        "shop_7", role="agent", parent_code=1, whitelist=["203.0.113.7"]
    )
    assert_type(created, NewAgent)
    assert_type(created.token, Secret)
    assert_type(created.agent.agent_code, int)
    assert_type(await session.agents.create("shop_8", role=Role.OPERATOR), NewAgent)
    async for agent in session.agents.list(parent_code=1, subtree=True):
        assert_type(agent, Agent)
        assert_type(agent.created_at, datetime)
        assert_type(agent.state, State)
    node = await session.agents.tree()
    assert_type(node, AgentNode)
    assert_type(node.agent, Agent | AgentInfo)
    assert_type(node.children, tuple[AgentNode, ...])
    assert_type(await session.agents.update(1, state=State.ACTIVE), Agent)
    assert_type(await session.agents.update(1, state="active", whitelist=()), Agent)
    assert_type(await session.agents.suspend(1), Agent)
    assert_type(await session.agents.resume(1), Agent)
    assert_type(await session.agents.reissue_token(1), Secret)


async def uses_points(session: Session, plan: Plan, path: Path) -> None:
    """Move points, one by one and by a plan."""
    assert_type(await session.points.balance(), Decimal)
    amount: Amount = "250.00"
    move = await session.points.transfer(1, amount, reference="r-1")
    assert_type(move, PointMove)
    assert_type(move.amount, Decimal)
    assert_type(move.from_code, int | None)
    assert_type(await session.points.reclaim(1, Decimal("0.5")), PointMove)
    async for each in session.points.history(after=7):
        assert_type(each, PointMove)
    own = PlanRow(2, 3, reference="r-2", line=2)
    done = session.points.distribute([own, (3, "1")], journal=path, run="may")
    async for row in done:
        assert_type(row, Distributed)
        reads_a_row(row)
    await done.aclose()
    async for row in session.points.distribute(plan):
        assert_type(row.row, PlanRow)


def reads_a_row(row: Distributed) -> None:
    """Read what became of a row of a plan."""
    assert_type(row.end, Literal["moved", "refused", "not_sent", "unknown"])
    assert_type(row.move, PointMove | None)
    assert_type(row.error, errors.AgentAPIError | None)


async def uses_users(session: Session) -> None:
    """Create users, and read what is known of them."""
    made = await session.users.create("ann")
    assert_type(made, NewUser)
    assert_type(made.user_code, int)
    assert_type(made.is_new_user, bool | None)
    user = await session.users.info(made.user_code)
    assert_type(user, User)
    assert_type(user.balance, Decimal)
    async for row in session.users.statistics(NOW, NOW):
        assert_type(row, UserStatistics)
        assert_type(row.slot_bet, Decimal)


async def uses_wallets(session: Session) -> None:
    """Pay, with and without a key."""
    paid = await session.wallets.deposit(1, "9.99", key="order-1")
    assert_type(paid, Moved)
    assert_type(paid.balance, Decimal)
    assert_type(await session.wallets.withdraw(1, 5, key=None), Moved)
    assert_type(await session.wallets.withdraw_all(1, key="close-1"), Moved)


async def uses_payments(session: Session) -> None:
    """Find out about payments whose answer was lost."""
    unknown = await session.payments.unknown()
    assert_type(unknown, list[Intent])
    assert_type(await session.payments.find("order-1"), Intent | None)
    intent = await session.payments.settle(unknown[0])
    assert_type(intent, Intent)
    assert_type(intent.moved, Moved | None)
    assert_type(intent.amount, Decimal | None)
    if intent.phase is Phase.ABSENT:
        assert_type(await session.payments.resend(intent.id), Moved)
    if intent.phase is Phase.NEEDS_PERSON:
        decided = await session.payments.decide(intent, True, "seen in the back office")
        assert_type(decided, Intent)
    assert_type(await session.payments.settle_all(), list[Intent])


def reads_a_payment(intent: Intent, other: Intent) -> None:
    """Read what the journal has of a payment."""
    assert_type(intent.body, Mapping[str, object])
    assert_type(intent.same(other), bool)
    assert_type(intent.id, int)
    assert_type(intent.key, str | None)
    assert_type(intent.phase, Phase)
    assert_type(intent.created_at, datetime | None)


async def uses_transactions(session: Session) -> None:
    """Read the feed: once, of a while, and for good."""
    async for row in session.transactions.since(0):
        assert_type(row, Transaction)
        assert_type(row.trans_type, TransType)
        assert_type(row.trans_amount, Decimal)
        assert_type(row.regdate, datetime)
    async for row in session.transactions.between(NOW, NOW):
        assert_type(row, Transaction)
    feed = session.transactions.follow(7)
    async for row in feed:
        assert_type(row, Transaction)
    await feed.aclose()


async def uses_games(session: Session) -> None:
    """Look at games, and send a user into one."""
    providers = await session.games.providers(lang=Language.KO)
    assert_type(providers, list[Provider])
    assert_type(providers[0].status, ProviderStatus)
    assert_type(await session.games.list(1, lang=2), list[Game])
    games = await session.games.all()
    assert_type(games, list[Game])
    assert_type(games[0].category, Category)
    url = await session.games.launch_url(
        1, 2, "aurora_1", lang=Language.EN, return_url="https://example.com"
    )
    assert_type(url, str)
    assert_type(await session.games.online(), list[OnlineGame])
    shown = await session.games.round_details_url(
        1, "round", provider_id=2, game_code="aurora_1"
    )
    assert_type(shown, str | None)


async def runs_many(session: Session, names: list[str]) -> None:
    """Call for each of many items."""
    outcomes = run_many(session.users.create, names, window=50, ordered=True)
    async for outcome in outcomes:
        assert_type(outcome, Outcome[str, NewUser])
        assert_type(outcome.item, str)
        assert_type(outcome.value, NewUser | None)
        assert_type(outcome.error, BaseException | None)
    await outcomes.aclose()


def reads_settings(settings: Settings) -> None:
    """Read what settings say."""
    assert_type(settings.lane, Lane)
    assert_type(settings.limit, int)
    assert_type(settings.deadline, float | None)
    assert_type(settings.paths, Mapping[str, str])
    assert_type(settings.unacked, float)
    assert_type(settings.longest, float)


class OwnGate:
    """A gate of a user's own, which a session manager takes."""

    async def acquire(
        self, lane: Lane, until: float | None = None, *, again: bool = False
    ) -> None:
        """Wait for a permit."""

    def release(self, lane: Lane, took: float | None = None) -> None:
        """Give a permit back."""

    def refused(self, lane: Lane) -> None:
        """Give back a permit after 1018."""

    def give_up(self, lane: Lane, linger: float) -> None:
        """Give back the permit of an unfinished call."""

    def detach(self) -> None:
        """Note that a caller has left."""

    def land(self, *, answered: bool) -> None:
        """Note that a detached call has ended."""

    def statistics(self) -> GateStatistics:
        """Tell what the gate is doing."""
        raise NotImplementedError

    def close(self) -> None:
        """Let nobody in any more."""

    async def idle(self, until: float) -> bool:
        """Wait until no permit is in use."""
        return until > 0


async def uses_a_gate(gate: Gate, local: LocalGate) -> None:
    """Use a gate as the library does."""
    own: Gate = OwnGate()
    same: Gate = LocalGate(50, batch_floor=10, max_waiting=None)
    assert own is not same
    assert_type(await gate.acquire("batch", None, again=True), None)
    gate.release("batch", 0.5)
    gate.refused("interactive")
    gate.give_up("interactive", 1.0)
    gate.detach()
    gate.land(answered=True)
    gate.close()
    assert_type(await gate.idle(0.0), bool)
    assert_type(gate.statistics().waiting_by_lane, Mapping[Lane, int])
    assert_type(await local.acquire("batch", 1.0), None)
    local.release("batch")
    local.refused("batch")
    local.give_up("batch", 1.0)
    local.detach()
    local.land(answered=False)
    local.resize(20)
    local.close()
    assert_type(await local.idle(0.0), bool)
    assert_type(local.statistics(), GateStatistics)


async def shares_a_gate(token: Secret) -> None:
    """Share permits with other processes."""
    made = redis.RedisGate.factory(
        "redis://127.0.0.1",
        lease=5.0,
        heartbeat=1.0,
        quarantine=30.0,
        static_share=5,
    )
    assert_type(made, redis.RedisGates)
    assert_type(made(token, Settings()), redis.RedisGate)
    manager = SessionManager("https://api.example.com", gate=made)
    await uses_a_manager(manager, token)


async def looks_at_a_shared_gate(
    gates: redis.RedisGates, gate: redis.RedisGate, token: Secret
) -> None:
    """See who holds which permits."""
    budget = await gates.look(token, limit=50)
    assert_type(budget, redis.SharedBudget)
    assert_type(budget.members, tuple[redis.Member, ...])
    assert_type(gate.budget, int)
    assert_type(await gate.acquire("batch", None, again=False), None)
    gate.release("batch", 0.5)
    gate.refused("batch")
    gate.give_up("batch", 1.0)
    statistics = gate.statistics()
    assert_type(statistics, redis.RedisGateStatistics)
    assert_type(statistics.connected, bool)
    assert_type(await gate.aclose(), None)


async def uses_a_journal(store: SqliteStore, memory: MemoryStore) -> None:
    """Look into a journal, and keep it in order."""
    assert_type(store.durable, bool)
    assert_type(store.is_there, bool)
    found = await store.intents(
        "eur", phases=[Phase.UNKNOWN], user_code=1, ids=[1], since=0.0
    )
    assert_type(found, list[Intent])
    assert_type(await store.find("eur", "order-1"), Intent | None)
    assert_type(await store.begin(found[0], time.time), Intent | None)
    assert_type(store.adopt(time.time), Awaitable[int])
    assert_type(await store.prune(3600.0), int)
    assert_type(await store.age(), float)
    assert_type((await store.cursor("eur")).trans_id, int)
    accounts = await store.accounts()
    assert_type(accounts[0].label, str)
    assert_type((await store.allow("eur", url="https://new.example.com")).label, str)
    assert_type(await store.merge("eur", "euro"), None)
    assert_type(await store.take_feed("eur"), bool)
    store.leave_feed("eur")
    store.forget()
    assert_type(await store.aclose(), None)
    assert_type(memory.durable, bool)
    assert_type(await memory.intents(), list[Intent])
    assert_type(await memory.find("eur", "order-1"), Intent | None)
    assert_type(await memory.begin(found[0], time.time), Intent | None)
    assert_type(memory.adopt(time.time), Awaitable[int])
    assert_type(await memory.prune(3600.0), int)
    assert_type(await memory.age(), float)
    assert_type((await memory.cursor("eur")).trans_id, int)
    assert_type((await memory.accounts())[0].label, str)
    assert_type((await memory.allow("eur", name="euro")).label, str)
    assert_type(await memory.merge("eur", "euro"), None)
    assert_type(await memory.take_feed("eur"), bool)
    memory.leave_feed("eur")
    assert_type(await memory.aclose(), None)


def reads_any_error(error: errors.AgentAPIError) -> None:
    """Read what every error says."""
    assert_type(error.happened, errors.Happened)
    assert_type(error.message, str)
    assert_type(error.operation, str | None)
    assert_type(error.attempts, int)
    assert_type(error.reference, str | None)
    assert_type(error.intent, int | None)


def reads_errors(
    late: errors.GateTimeoutError,
    gap: errors.FeedGapError,
    refused: errors.RefusedError,
    address: errors.IpNotAllowedError,
    unknown: errors.OutcomeUnknownError,
    shape: errors.DecodeError,
) -> None:
    """Read what errors of their own fields say."""
    assert_type(late.waited, float)
    assert_type(gap.after, int)
    assert_type(gap.before, int | None)
    assert_type(refused.code, int)
    assert_type(refused.name, str | None)
    assert_type(refused.fields, tuple[tuple[str, str], ...])
    assert_type(address.client_ip, str | None)
    assert_type(address.code, int)
    assert_type(unknown.code, int | None)
    assert_type(unknown.name, str | None)
    assert_type(unknown.status, int | None)
    assert_type(shape.paths, tuple[str, ...])


async def tells_errors_apart(session: Session) -> None:
    """Catch each error by what a program does next; those above come last."""
    try:
        await session.points.transfer(1, 1)
    except (errors.AmountError, errors.ClosedError, errors.UsageError):
        raise
    except (errors.GateTimeoutError, errors.GateFullError, errors.GateLostError):
        raise
    except (errors.GateError, errors.JournalError, errors.FeedGapError):
        raise
    except (errors.NotSentError, errors.UnsupportedError, errors.BusyError):
        raise
    except (errors.IpNotAllowedError, errors.CredentialError, errors.ConflictError):
        raise
    except (errors.ForbiddenError, errors.NotFoundError, errors.InvalidError):
        raise
    except (errors.FundsError, errors.RefusedError) as refused:
        assert_type(refused, errors.FundsError | errors.RefusedError)
    except (errors.MaintenanceError, errors.OutcomeUnknownError, errors.DecodeError):
        raise
    except errors.AgentAPIError as error:
        assert_type(error, errors.AgentAPIError)


def raises_errors() -> None:
    """Make errors in a fake of the library."""
    raise errors.FundsError("too few points", code=2005, name="POINT_NOT_ENOUGH")


async def runs_a_sandbox(path: Path) -> None:
    """Start the stand-in in each of its three places."""
    switches = sandbox.Switches(limit=5, latency=0.02, early_feed="empty")
    clock: sandbox.Clock = sandbox.ManualClock()
    async with sandbox.Sandbox(
        switches, db=path, port=0, clock=clock, seed=1, login=True
    ) as box:
        assert_type(box, sandbox.Sandbox)
    with sandbox.SandboxThread(switches, clock=sandbox.SystemClock()) as thread:
        assert_type(thread, sandbox.SandboxThread)
    async with sandbox.SandboxProcess(switches, db=path, seed=1) as process:
        assert_type(process, sandbox.SandboxProcess)


def uses_a_sandbox(box: sandbox.Sandbox, manual: sandbox.ManualClock) -> None:
    """Change what the stand-in holds, and look at it."""
    assert_type(box.base_url, str)
    assert_type(box.clock, sandbox.Clock)
    assert_type(box.faults, sandbox.Faults)
    assert_type(box.switches, sandbox.Switches)
    box.switches = sandbox.Switches(empty_wallet="refused")
    assert_type(box.executed, Mapping[str, int])
    assert_type(box.received, Mapping[str, int])
    assert_type(box.token("shop_1"), str)
    assert_type(box.gauge("shop_1"), sandbox.Gauge)
    assert_type(box.gauge("shop_1").peak, int)
    box.foreign("shop_1", 20)
    account = box.add(
        "shop_7", "agent", parent="operator", points=Decimal("2.5"), currency=978
    )
    assert_type(account, sandbox.Account)
    assert_type(box.account("shop_7"), sandbox.Account)
    assert_type(box.accounts(), list[sandbox.Account])
    users = box.users("shop_7")
    assert_type(users, list[sandbox.User])
    assert_type(box.mint(account, 100).amount, int)
    played = box.play(
        "shop_7", users[0].code, 1, Decimal("1.5"), provider_id=1, game_code="aurora_1"
    )
    assert_type(played, str)
    box.allow("shop_7", "203.0.113.7")
    assert_type(box.audit(), tuple[Decimal, Decimal])
    assert_type(sandbox.document(), dict[str, Any])
    clocks: list[sandbox.Clock] = [manual, sandbox.SystemClock()]
    assert_type(clocks[0].now(), datetime)
    assert_type(manual.now(), datetime)
    manual.advance(30.0)


def reads_an_account(account: sandbox.Account, user: sandbox.User) -> None:
    """Read what the stand-in has in its books."""
    assert_type(account.lineage, tuple[int, ...])
    assert_type(account.points, int)
    assert_type(user.balance, int)


def uses_clocks(clock: sandbox.Clock, system: sandbox.SystemClock) -> None:
    """Ask what time it is."""
    assert_type(clock.now(), datetime)
    assert_type(system.now(), datetime)


def uses_faults(faults: sandbox.Faults, fault: sandbox.Fault) -> None:
    """Let things go wrong."""
    faults.add(sandbox.Fault("delay", "wallet/deposit", times=1, seconds=0.5))
    faults.drop_before("wallet/deposit", times=1)
    faults.drop_after("wallet/deposit", times=1, share=0.5)
    faults.delay(0.5, "wallet/deposit")
    faults.hold(times=1)
    faults.late_row(2.0, "wallet/deposit")
    faults.cut_json("agent/info", executed=False)
    faults.html("agent/info", status=503)
    faults.empty("agent/info", times=None)
    faults.wrong_shape("agent/info")
    faults.code(2005, "points/transfer", times=2)
    faults.busy(3, "agent/info", share=1.0)
    assert_type(faults.on, tuple[sandbox.Fault, ...])
    assert_type(fault.runs, bool)
    faults.clear()


async def uses_a_process(box: sandbox.SandboxProcess) -> None:
    """Do the same to a stand-in in another process."""
    assert_type(box.base_url, str)
    assert_type(box.tokens, Mapping[str, str])
    assert_type(box.pid, int)
    assert_type(await box.gauge("shop_1"), sandbox.Gauge)
    assert_type(await box.audit(), tuple[Decimal, Decimal])
    assert_type(await box.received(), Mapping[str, int])
    assert_type(await box.foreign("shop_1", 20), None)
    assert_type(await box.mint("shop_1", Decimal(1)), None)
    assert_type(await box.play("shop_1", 1, 2, Decimal("2.5")), str)
    assert_type(await box.switch(sandbox.Switches()), None)
    assert_type(await box.fault(sandbox.Fault("hold")), None)
    assert_type(await box.clear_faults(), None)


@pytest.fixture(scope="session")
def agentapi_switches() -> sandbox.Switches:
    """Override a fixture of the plugin."""
    return sandbox.Switches(generation="older")


@pytest.fixture(scope="session")
def agentapi_settings() -> Settings:
    """Override another one."""
    return Settings(attempts=1)


async def has_fixtures(
    agentapi: SessionManager,
    agentapi_faults: sandbox.Faults,
    agentapi_sandbox: sandbox.Sandbox,
    agentapi_clock: sandbox.ManualClock,
) -> None:
    """Use the fixtures as a test does, which pytest gives them to by their names."""
    user = await agentapi.session("shop_1").users.create("ann")
    agentapi_faults.drop_after("wallets.deposit", times=1)
    agentapi_clock.advance(60)
    testing.assert_points(agentapi_sandbox, {"shop_1": "1000", "shop_2": 1000})
    testing.assert_balances(
        agentapi_sandbox, "shop_1", {"ann": Decimal(0), user.user_code: 0}
    )


# Named, so that whoever renames a fixture finds this.
FIXTURES = (
    testing.agentapi,
    testing.agentapi_clock,
    testing.agentapi_faults,
    testing.agentapi_run_sandbox,
    testing.agentapi_sandbox,
    testing.agentapi_settings,
    testing.agentapi_switches,
)
