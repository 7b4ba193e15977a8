"""Every call of the client against the stand-in."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from decimal import Decimal

import pytest

from aio_agentapi import (
    Distributed,
    LocalGate,
    PlanRow,
    Role,
    Secret,
    Session,
    SessionManager,
    Settings,
    State,
    TransType,
)
from aio_agentapi._transport import Answer, Sending, Transport
from aio_agentapi.errors import (
    AmountError,
    CredentialError,
    ForbiddenError,
    FundsError,
    InvalidError,
    IpNotAllowedError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from aio_agentapi.sandbox import ManualClock, Sandbox, Switches
from tests.conftest import connect


async def test_info_tells_who_one_is(box: Sandbox, session: Session) -> None:
    """The caller's own account, its points and addresses included."""
    me = await session.agents.info()
    assert (
        me.name,
        me.currency,
        me.role,
        me.state,
    ) == ("operator", 978, Role.OPERATOR, State.ACTIVE)
    assert box.account("operator").code == me.agent_code
    assert await session.points.balance() == me.balance == Decimal(500_000)
    assert me.client_ip == "127.0.0.1"


async def test_both_generations_answer_the_same(box: Sandbox, session: Session) -> None:
    """But for what only the newer one tells."""
    newer = await session.agents.info()
    box.switches = Switches(generation="older", quoted_money=True, statuses="http")
    older = await session.agents.info()
    assert newer.win_ratio == older.win_ratio == Decimal(95)
    assert newer.balance == older.balance
    assert (older.whitelist, older.client_ip) == (None, None)


async def test_an_agent_is_created_and_can_log_in(box: Sandbox) -> None:
    """Its token is shown once, and works at once, from its addresses alone."""
    async with SessionManager(
        box.base_url, accounts={"operator": box.token("operator")}
    ) as manager:
        session = manager.session("operator")
        new = await session.agents.create("shop_7", whitelist=["127.0.0.1"])
        me = await manager.session(new.token).agents.info()
        assert (new.agent.agent_code, ("127.0.0.1",)) == (me.agent_code, me.whitelist)
        deeper = await session.agents.create(
            "area", role=Role.OPERATOR, parent_code=session_code(box)
        )
        assert (
            deeper.agent.role,
            deeper.agent.depth,
            deeper.agent.currency,
        ) == (Role.OPERATOR, 2, 978)


def session_code(box: Sandbox) -> int:
    """Return the operator's number."""
    return box.account("operator").code


@pytest.mark.parametrize("name", ["x", "a b", "shop_1", "ä" * 5, "x" * 51])
async def test_a_name_must_be_sound_and_new(session: Session, name: str) -> None:
    """The service says which member is wrong."""
    with pytest.raises(InvalidError) as caught:
        await session.agents.create(name)
    assert [field for field, _ in caught.value.fields] == ["name"]


async def test_agents_are_listed_page_by_page(box: Sandbox, session: Session) -> None:
    """Parents before children, siblings by number, over more than one page."""
    for number in range(2100):
        box.add(f"bulk_{number}", parent="operator")
    box.add("deep", parent="operator", role="operator")
    box.add("deeper", parent="deep")
    children = [agent async for agent in session.agents.list()]
    codes = [agent.agent_code for agent in children]
    assert len(codes) == 2103
    assert sorted(codes) == codes
    below = [agent async for agent in session.agents.list(subtree=True)]
    assert (len(below), below[-1].name) == (2104, "deeper")
    deep = box.account("deep").code
    assert [a.name async for a in session.agents.list(parent_code=deep)] == ["deeper"]


async def test_a_page_that_moves_gives_nobody_twice(
    box: Sandbox, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that is created between two pages moves the rows behind it."""
    monkeypatch.setattr("aio_agentapi.resources.agents._PAGE", 2)
    box.add("area", parent="operator", role="operator")
    for number in range(3):
        box.add(f"bulk_{number}", parent="operator")
    found: list[str] = []
    async for agent in session.agents.list(subtree=True):
        found.append(agent.name)
        if agent.name == "area":
            box.add("deep", parent="area")
    assert len(set(found)) == len(found)
    assert {"shop_1", "shop_2", "area", "bulk_0", "bulk_1", "bulk_2"} <= set(found)


async def test_the_tree_has_everybody_in_its_place(box: Sandbox) -> None:
    """The caller on top, each account below its parent, in order."""
    box.add("area", parent="operator", role="operator")
    box.add("deep_2", parent="area")
    box.add("deep_1", parent="area")
    async with connect(box, "broker") as session:
        top = await session.agents.tree()
    (operator,) = top.children
    assert (top.agent.name, operator.agent.name) == ("broker", "operator")
    assert [n.agent.name for n in operator.children] == ["shop_1", "shop_2", "area"]
    area = operator.children[2]
    assert [node.agent.name for node in area.children] == ["deep_2", "deep_1"]


async def test_suspension_reaches_the_whole_subtree(box: Sandbox) -> None:
    """The account's calls and those below it are refused until it is resumed."""
    async with connect(box, "broker") as broker, connect(box, "shop_1") as shop:
        operator = session_code(box)
        suspended = await broker.agents.suspend(operator)
        assert suspended.state is State.SUSPENDED
        with pytest.raises(ForbiddenError):
            await shop.agents.info()
        resumed = await broker.agents.resume(operator)
        assert resumed.state is State.ACTIVE
        assert (await shop.agents.info()).name == "shop_1"


async def test_allowed_ip_is_kept(box: Sandbox, session: Session) -> None:
    """Addresses separated by spaces or new lines; blank: no restriction."""
    box.allow("operator", "1.1.1.1 2.2.2.2\n3.3.3.3")
    assert box.account("operator").whitelist == ("1.1.1.1", "2.2.2.2", "3.3.3.3")
    with pytest.raises(IpNotAllowedError, match="Allowed IP"):
        await session.agents.info()
    box.allow("operator", "1.1.1.1\n127.0.0.1")
    assert (await session.agents.info()).whitelist == ("1.1.1.1", "127.0.0.1")
    box.allow("operator", "")
    assert (await session.agents.info()).whitelist == ()
    code = box.account("shop_1").code
    assert (await session.agents.update(code, whitelist=["::1"])).whitelist == ("::1",)
    with pytest.raises(InvalidError, match="whitelist"):
        await session.agents.update(code, whitelist=["nowhere"])


async def test_a_reissued_token_replaces_the_old_one(box: Sandbox) -> None:
    """The old one stops working at once."""
    async with SessionManager(box.base_url) as manager:
        operator = manager.session(box.token("operator"))
        old = manager.session(box.token("shop_1"))
        token = await operator.agents.reissue_token(box.account("shop_1").code)
        assert isinstance(token, Secret)
        with pytest.raises(CredentialError):
            await old.agents.info()
        assert (await manager.session(token).agents.info()).name == "shop_1"


async def test_a_token_that_is_none_is_refused(box: Sandbox) -> None:
    """Unknown or malformed: the service's two codes, one error."""
    async with SessionManager(box.base_url) as manager:
        for token, code in (
            ("0" * 8 + "-0000" * 3 + "-" + "0" * 12, 1007),
            ("x", 1009),
        ):
            with pytest.raises(CredentialError) as caught:
                await manager.session(Secret(token)).agents.info()
            assert code == caught.value.code


async def test_points_move_down_and_up(box: Sandbox, session: Session) -> None:
    """Exact to the last digit, and in the history of both sides."""
    code = box.account("shop_1").code
    down = await session.points.transfer(code, "250.0001", reference="a-1")
    up = await session.points.reclaim(code, Decimal("0.0001"))
    assert (Decimal("250.0001"), "a-1", code) == (
        down.amount,
        down.reference,
        down.to_code,
    )
    assert down.balance + up.amount == up.balance
    assert up.reference is not None
    assert len(up.reference) == 32
    history = [move async for move in session.points.history()]
    assert [down, up] == history[-2:]
    assert [up] == [move async for move in session.points.history(down.move_id)]
    async with connect(box, "shop_1") as shop:
        theirs = [move async for move in shop.points.history(down.move_id - 1)]
    assert [Decimal("1250.0001"), Decimal(1250)] == [move.balance for move in theirs]


async def test_history_goes_over_pages(
    box: Sandbox, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each move once, oldest first, also when the last page is full."""
    monkeypatch.setattr("aio_agentapi.resources.points._PAGE", 3)
    code = box.account("shop_1").code
    start = [move async for move in session.points.history()][-1].move_id
    for _ in range(6):
        await session.points.transfer(code, 1)
    moves = [move.move_id async for move in session.points.history(start)]
    assert (6, sorted(set(moves))) == (len(moves), moves)


async def test_a_reference_moves_once(box: Sandbox, session: Session) -> None:
    """The same again gives the first move; with another amount it is refused."""
    code = box.account("shop_1").code
    first = await session.points.transfer(code, 5, reference="once")
    assert first == await session.points.transfer(code, "5.00", reference="once")
    with pytest.raises(InvalidError) as caught:
        await session.points.transfer(code, 6, reference="once")
    assert (caught.value.code, caught.value.reference) == (1012, "once")
    with pytest.raises(InvalidError):
        await session.points.reclaim(code, 5, reference="once")
    assert await session.points.balance() == first.balance


@pytest.mark.parametrize(
    ("path", "was", "becomes"),
    [
        ("points/transfer", b'"reference":"', b'"reference":"not-'),
        ("points/transfer", b'"amount":1.5', b'"amount":1.25'),
        ("points/transfer", b'"to_code":', b'"to_code":1'),
        ("points/reclaim", b'"from_code":', b'"from_code":1'),
    ],
)
async def test_the_answer_of_another_call_is_asked_for_again(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch, path: str, was: bytes, becomes: bytes
) -> None:
    """What it repeats has to be what was asked for; it moves once all the same."""
    send, asked = Transport.send, 0

    async def mixed_up(
        self: Transport, to: str, text: bytes, sending: Sending
    ) -> Answer:
        nonlocal asked
        status, answer = await send(self, to, text, sending)
        if to == path:
            asked += 1
            assert was in answer
            answer = answer.replace(was, becomes, 1) if asked == 1 else answer
        return Answer(status, answer)

    async with connect(box, "operator") as operator, connect(box, "shop_1") as shop:
        child = box.account("shop_1").code
        before = await shop.points.balance()
        monkeypatch.setattr(Transport, "send", mixed_up)
        move = await operator.points.transfer(child, "1.5")
        assert (move.to_code, move.amount) == (child, Decimal("1.5"))
        assert await shop.points.balance() == before + Decimal("1.5")
        await operator.points.reclaim(child, "1.5")
        assert await shop.points.balance() == before
        assert asked == 2


async def test_a_deployment_that_repeats_no_reference(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing to compare, and nothing to complain of."""
    send = Transport.send

    async def silent(self: Transport, to: str, text: bytes, sending: Sending) -> Answer:
        status, answer = await send(self, to, text, sending)
        return Answer(status, answer.replace(b'"reference":"r-1"', b'"reference":null'))

    monkeypatch.setattr(Transport, "send", silent)
    async with connect(box, "operator") as operator:
        child = box.account("shop_1").code
        move = await operator.points.transfer(child, 1, reference="r-1")
        assert move.reference is None


async def test_points_go_only_to_direct_children(box: Sandbox) -> None:
    """Not further down, not up, not elsewhere, not to nobody."""
    async with connect(box, "broker") as broker, connect(box) as operator:
        with pytest.raises(ForbiddenError):
            await broker.points.transfer(box.account("shop_1").code, 1)
        with pytest.raises(ForbiddenError):
            await operator.points.transfer(box.account("broker").code, 1)
        with pytest.raises(NotFoundError):
            await operator.points.transfer(999_999, 1)
        with pytest.raises(FundsError):
            await operator.points.reclaim(box.account("shop_1").code, "1000.0001")
        with pytest.raises(AmountError):
            await operator.points.transfer(box.account("shop_1").code, 0.5)  # type: ignore[arg-type]  # that is the point


async def test_an_agent_creates_nobody(box: Sandbox) -> None:
    """Only brokers and operators do."""
    async with connect(box, "shop_1") as shop:
        with pytest.raises(ForbiddenError):
            await shop.agents.create("below")
    async with connect(box) as operator:
        with pytest.raises(ForbiddenError):
            await operator.agents.create("x1", parent_code=box.account("shop_1").code)
        with pytest.raises(InvalidError, match="role"):
            await operator.agents.create("x1", role="broker")
        with pytest.raises(ForbiddenError):
            await operator.agents.suspend(box.account("broker").code)
        with pytest.raises(InvalidError, match="state"):
            await operator.agents.update(box.account("shop_1").code, state="asleep")


async def test_users_and_their_money(box: Sandbox) -> None:
    """Deposit, withdraw, withdraw all; points and balance always add up."""
    async with connect(box, "shop_1") as shop:
        new = await shop.users.create("anna")
        again = await shop.users.create("anna")
        assert (new.user_code, True, False) == (
            again.user_code,
            new.is_new_user,
            again.is_new_user,
        )
        code = new.user_code
        assert (await shop.wallets.deposit(code, "55.93")).balance == Decimal("55.93")
        moved = await shop.wallets.withdraw(code, "0.93")
        assert (Decimal("0.93"), Decimal(55)) == (moved.amount, moved.balance)
        assert (await shop.users.info(code)).balance == 55
        assert await shop.points.balance() == 945
        assert (await shop.wallets.withdraw_all(code)).amount == 55
        assert (await shop.wallets.withdraw_all(code)).amount == 0
        box.switches = Switches(empty_wallet="refused")
        with pytest.raises(FundsError):
            await shop.wallets.withdraw_all(code)
        with pytest.raises(FundsError):
            await shop.wallets.withdraw(code, 1)
        with pytest.raises(FundsError):
            await shop.wallets.deposit(code, 1001)
        with pytest.raises(NotFoundError):
            await shop.users.info(999)
    async with connect(box, "shop_2") as other:
        with pytest.raises(ForbiddenError):
            await other.wallets.withdraw(code, 1)
        with pytest.raises(InvalidError):
            await other.users.create("not a name")
    minted, held = box.audit()
    assert minted == held


async def test_the_feed_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Page by page, oldest first, each row once."""
    monkeypatch.setattr("aio_agentapi.resources.transactions.PAGE", 10)
    async with Sandbox(clock=ManualClock()) as box, connect(box, "shop_1") as shop:
        user = (await shop.users.create("anna")).user_code
        for _ in range(12):
            await shop.wallets.deposit(user, 2)
        await shop.wallets.withdraw(user, 1)
        rows = [row async for row in shop.transactions.since(0)]
    assert len(rows) == 13
    assert sorted({row.trans_id for row in rows}) == [row.trans_id for row in rows]
    assert {TransType.DEPOSIT, TransType.WITHDRAW} == {row.trans_type for row in rows}
    assert [row.balance for row in rows[:-1]] == [row.prebalance for row in rows[1:]]
    assert rows[0].regdate.isoformat() == "2024-01-01T00:00:00+00:00"


async def test_a_feed_read_too_early_is_read_again(box: Sandbox) -> None:
    """The 1018 of the feed waits for the interval, and leaves the share alone."""
    box.switches = Switches(feed_spacing=0.2)
    async with (
        connect(box, "shop_1", feed_interval=0.25) as other,
        connect(box, "shop_1", feed_interval=0.25) as shop,
    ):
        # Another process, say: what it has read is not known here.
        first = [row async for row in other.transactions.since(0)]
        again = [row async for row in shop.transactions.since(0)]
        assert first == again == []
        state = shop.gate.statistics()
        assert (state.share, state.busy_answers, state.in_use) == (50, 0, 0)
    async with connect(box, "shop_1", feed_interval=30, max_wait=1) as shop:
        with pytest.raises(Exception, match="1018"):
            [row async for row in shop.transactions.since(0)]


async def test_a_plan_is_distributed(box: Sandbox, session: Session) -> None:
    """Pairs or rows, from any iterable; a row that fails stops no other."""
    one, two = box.account("shop_1").code, box.account("shop_2").code

    async def plan() -> object:
        yield (one, "1.5")
        yield PlanRow(two, 2, "mine")
        yield (999_999, 1)
        yield (one, 0.1)

    done = {d.line: d async for d in session.points.distribute(plan(), run="r")}  # type: ignore[arg-type]  # one is wrong on purpose
    assert [done[line].reference for line in (1, 2, 3, 4)] == [
        "r-1",
        "mine",
        "r-3",
        "r-4",
    ]
    assert done[1].move is not None
    assert (Decimal("1.5"), "r-1") == (done[1].move.amount, done[1].move.reference)
    assert isinstance(done[3].error, NotFoundError)
    assert isinstance(done[4].error, AmountError)
    again = [d async for d in session.points.distribute([(one, "1.5")], run="r")]
    assert again[0].move == done[1].move
    assert session.gate.statistics().in_use == 0


async def test_a_plan_that_breaks_off_says_so(box: Sandbox, session: Session) -> None:
    """After what became of the rows before."""
    one = box.account("shop_1").code

    def plan() -> Iterator[tuple[int, int]]:
        yield (one, 1)
        msg = "torn"
        raise OSError(msg)

    seen: list[Distributed] = []
    with pytest.raises(OSError, match="torn"):
        async for done in session.points.distribute(plan()):
            seen.append(done)  # noqa: PERF401 - kept although it raises
    assert [done.line for done in seen] == [1]


async def test_a_path_that_the_service_lacks(box: Sandbox) -> None:
    """It is told apart from a refusal, and can be set right."""
    async with connect(box, paths={"agents.info": "agent/me"}) as session:
        with pytest.raises(UnsupportedError, match="404"):
            await session.agents.info()


async def test_a_session_is_found_by_name_secret_or_uuid(box: Sandbox) -> None:
    """Always the same one for a token; a mistyped name is never sent."""
    token = box.token("operator")
    async with SessionManager(box.base_url, accounts={"eur": token}) as manager:
        session = manager.session("eur")
        assert session is manager.session(token) is manager.session(Secret(token))
        assert token not in repr(manager) + repr(session) + repr(session.agents)
        for wrong in ("usd", token[:-1], "", token.replace("-", "")):
            with pytest.raises(UsageError) as caught:
                manager.session(wrong)
            assert token[:-1] not in str(caught.value)
    assert box.gauge("operator").served == 0


async def test_an_account_with_a_broken_token_is_named() -> None:
    """The message has the account's name and not the token."""
    with pytest.raises(UsageError, match="'eur'") as caught:
        SessionManager("https://x", accounts={"eur": "secret-token\n"})
    assert "secret-token" not in str(caught.value)


async def test_a_view_has_its_own_clocks(session: Session) -> None:
    """And shares the gate; what belongs to the pool cannot be set."""
    view = session.with_options(lane="batch", timeout=10, max_wait=60)
    assert view.gate is session.gate
    assert view is not session
    with pytest.raises(UsageError, match="limit"):
        session.with_options(limit=3)
    with pytest.raises(UsageError, match=r"^timeout: "):
        session.with_options(timeout=-1)


async def test_a_gate_of_ones_own(box: Sandbox) -> None:
    """The factory is called once for a token, with its secret and the settings."""
    made: list[tuple[Secret, Settings]] = []

    def factory(secret: Secret, settings: Settings) -> LocalGate:
        made.append((secret, settings))
        return LocalGate(limit=2)

    async with SessionManager(box.base_url, gate=factory) as manager:
        session = manager.session(box.token("operator"))
        await asyncio.gather(*(session.agents.info() for _ in range(10)))
        assert session.gate.statistics().peak == 2
    assert [Secret(box.token("operator"))] == [secret for secret, _ in made]


@pytest.mark.parametrize("run", ["", "x" * 41, "a b", "ä"])
async def test_a_run_has_a_name_that_references_can_have(
    box: Sandbox, session: Session, run: str
) -> None:
    """Otherwise each row would be refused."""
    rows = session.points.distribute([(box.account("shop_1").code, 1)], run=run)
    with pytest.raises(UsageError, match="run"):
        await anext(rows)
    assert box.gauge("operator").served == 0
