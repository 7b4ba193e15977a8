"""
A front that has something else in the place of an answer: nginx, and HAProxy.

Both are real. The service behind them executes a call and then is slow, or dies; what
they make of their own 502 and 504 has the look of a path that is not there. It proves
nothing, and every execution is counted where it happens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import attrs
import pytest

from aio_agentapi import Moved, Phase, Session, SessionManager, Settings
from aio_agentapi.errors import (
    AgentAPIError,
    OutcomeUnknownError,
    RefusedError,
    UnsupportedError,
)
from aio_agentapi.sandbox import Sandbox, Switches
from tests.fronts import ELSEWHERE, End, Service, Site, haproxy, nginx, service
from tests.waiting import look_again

pytestmark = pytest.mark.process


# Sendings of a call that may be sent again.
ATTEMPTS: Final = 2
# Real times scaled down; what is slow is so for the front, and not for us.
SETTINGS: Final = Settings(
    attempts=ATTEMPTS,
    timeout=20.0,
    abandon_after=0.6,
    linger=0.05,
    longest_call=0.6,
    feed_interval=0.06,
    feed_lag=0.1,
)
SWITCHES: Final = Switches(feed_spacing=0.05)
KEY: Final = "k"


@attrs.frozen
class Face:
    """
    What a front shows in the place of an answer.

    Attributes:
        name: Its own.

        lines: How that is configured.

        status: What it shows it with; None: it hangs up.

        read: What that is for a read; for any other call it is an unknown outcome.
    """

    name: str
    lines: str
    status: int | None
    read: type[AgentAPIError] = UnsupportedError


NGINX: Final = (
    # A page that somebody has forgotten to put there.
    Face("forgotten", "error_page 502 504 /missing.html;", 404),
    Face(
        "missing",
        "proxy_next_upstream off; error_page 502 504 =404 /missing.html;",
        404,
    ),
    Face("page_404", "error_page 502 504 =404 /page.html;", 404),
    Face("page_405", "error_page 502 504 =405 /page.html;", 405),
    # A page is there, and cannot be posted to.
    Face("posted", "error_page 502 504 = @page;", 405),
    Face("to_301", f"error_page 502 504 =301 {ELSEWHERE};", 301),
    Face("to_302", f"error_page 502 504 =302 {ELSEWHERE};", 302),
    Face("to_303", f"error_page 502 504 =303 {ELSEWHERE};", 303, OutcomeUnknownError),
    Face("to_307", f"error_page 502 504 =307 {ELSEWHERE};", 307),
    Face("to_308", f"error_page 502 504 =308 {ELSEWHERE};", 308),
    Face("elsewhere", "error_page 502 504 = @elsewhere;", 302),
    Face("json_404", "error_page 502 504 =404 /error.json;", 404),
    Face("json_200", "error_page 502 504 =200 /error.json;", 200, OutcomeUnknownError),
    # Something with a code that is not the service's.
    Face("code_404", "error_page 502 504 =404 /code.json;", 404, RefusedError),
    Face("nothing", "error_page 502 504 = @nothing;", None, OutcomeUnknownError),
)
# One of each kind.
SOME: Final = [
    face
    for face in NGINX
    if face.name in {"forgotten", "to_302", "json_200", "code_404", "nothing"}
]


def both(directive: str, what: str) -> str:
    """Write what HAProxy shows in the place of its 502 and its 504."""
    return f"{directive} 502 {what}\n    {directive} 504 {what}"


HAPROXY: Final = (
    Face("loc_302", both("errorloc302", ELSEWHERE), 302),
    Face("loc_303", both("errorloc303", ELSEWHERE), 303, OutcomeUnknownError),
    Face("file_404", both("errorfile", "404.http"), 404),
    Face("file_405", both("errorfile", "405.http"), 405),
    Face("json_404", both("errorfile", "json-404.http"), 404),
    Face("json_200", both("errorfile", "json-200.http"), 200, OutcomeUnknownError),
)


class Front(Protocol):
    """Runs a front."""

    def __call__(
        self, folder: Path, sites: Sequence[Site], *, patience: str
    ) -> AbstractAsyncContextManager[str]:
        """Run it while a test runs, and say where it answers."""
        ...


@attrs.frozen
class Scene:
    """A service with a front, and a session that knows the front alone."""

    face: Face
    behind: Service
    session: Session
    user: int
    shop: int
    other: int

    @property
    def received(self) -> int:
        """How many points the shop has had, by the service's books."""
        ledger = self.behind.box._service.deployment.ledger
        return ledger.account(self.shop).points // 10_000

    def pay(self) -> Awaitable[Moved]:
        """Make the payment, always under the same key."""
        return self.session.wallets.deposit(self.user, 5, key=KEY)

    async def lose(self, effect: str, end: End) -> tuple[AgentAPIError, Fate]:
        """Make a call whose answer is lost; return how it failed, and its fate."""
        path, executes, call = CALLS[effect]
        came, executed = self.behind.came[path], self.behind.box.executed
        ran = executed[executes]
        self.behind.ends[path] = end
        with pytest.raises(AgentAPIError) as caught:
            await call(self)
        error = caught.value
        # The front may be done with a call before the service has even looked at it.
        async with asyncio.timeout(20):
            while (
                self.behind.came[path] - came < error.attempts or self.behind.executing
            ):
                await look_again()
        fate = Fate(
            type(error),
            error.happened,
            getattr(error, "status", None),
            error.attempts,
            executed[executes] - ran,
        )
        return error, fate


@attrs.frozen
class Fate:
    """How a call failed, and how often it was executed."""

    kind: type[AgentAPIError]
    happened: str
    status: int | None
    attempts: int
    executed: int

    @classmethod
    def of(cls, face: Face, effect: str) -> Fate:
        """Return what has to become of a call."""
        kind = face.read if effect == "read" else OutcomeUnknownError
        unknown = kind is OutcomeUnknownError
        again = unknown and effect in {"read", "idempotent"}
        attempts = ATTEMPTS if again else 1
        return cls(
            kind,
            "maybe" if unknown else "no",
            face.status if unknown else None,
            attempts,
            attempts,
        )


# One call of each effect: its path, the one that executes it, and the call.
Call = Callable[[Scene], Awaitable[object]]
CALLS: Final[Mapping[str, tuple[str, str, Call]]] = {
    "read": ("agent/info", "agent/info", lambda here: here.session.agents.info()),
    "idempotent": (
        "points/transfer",
        "points/transfer",
        lambda here: here.session.points.transfer(here.shop, 1),
    ),
    "create": (
        "agent/create",
        "agent/create",
        lambda here: here.session.agents.create("new_one"),
    ),
    "money": ("wallet/deposit", "wallet/deposit", lambda here: here.pay()),
    # The service has it under a name that nobody has heard of.
    "unlisted": (
        "x/y",
        "points/reclaim",
        lambda here: here.session.call(
            "x/y", {"agent_code": here.other, "amount": 1, "reference": "r"}
        ),
    ),
}


@asynccontextmanager
async def scenes(
    front: Front, folder: Path, faces: Sequence[Face], road: str, patience: str = "20s"
) -> AsyncGenerator[list[Scene]]:
    """Set up a service, a user and a session for each face of a front."""
    async with AsyncExitStack() as stack:
        services = [
            await stack.enter_async_context(
                service(await stack.enter_async_context(Sandbox(SWITCHES)))
            )
            for _ in faces
        ]
        sites = [
            Site(face.name, face.lines, behind.port)
            for face, behind in zip(faces, services, strict=True)
        ]
        base_url = await stack.enter_async_context(
            front(folder, sites, patience=patience)
        )
        found: list[Scene] = []
        for face, behind in zip(faces, services, strict=True):
            behind.also["x/y"] = "points/reclaim"
            manager = await stack.enter_async_context(
                SessionManager(
                    f"{base_url}/{face.name}",
                    accounts={"eur": behind.box.token("operator")},
                    settings=SETTINGS,
                )
            )
            session = manager.session("eur")
            user = (await session.users.create("anna")).user_code
            shops = [behind.box.account(name).code for name in ("shop_1", "shop_2")]
            found.append(Scene(face, behind, session, user, *shops))
            resumable = session._channel._transport.sending().resumable
            assert resumable == (road == "short")
        yield found


async def look(here: Scene, lost: Mapping[str, AgentAPIError]) -> None:
    """Check what is true of a lost payment, and of a lost move, from then on."""
    payments, came = here.session.payments, here.behind.came
    ran = here.behind.box.executed
    unknown = await payments.find(KEY)
    assert unknown is not None
    assert (unknown.id, unknown.phase) == (lost["money"].intent, Phase.UNKNOWN)
    paid = came["wallet/deposit"], ran["wallet/deposit"]
    # Also when the service is well again.
    for _ in range(2):
        with pytest.raises(OutcomeUnknownError, match="settle it") as again:
            await here.pay()
        assert (again.value.intent, again.value.attempts) == (unknown.id, 0)
        here.behind.ends.clear()
    settled = await payments.settle(unknown)
    assert settled.phase is Phase.CONFIRMED
    assert settled.moved is not None
    assert settled.moved.amount == 5
    assert await here.pay() == settled.moved
    assert await payments.unknown() == []
    assert (came["wallet/deposit"], ran["wallet/deposit"]) == paid
    if "idempotent" in lost:
        reference = lost["idempotent"].reference
        received = here.received
        await here.session.points.transfer(here.shop, 1, reference=reference)
        assert here.received == received
    state = here.session.gate.statistics()
    assert (state.in_use, state.waiting) == (0, 0)


async def lose_all(
    front: Front, folder: Path, faces: Sequence[Face], road: str, end: End
) -> None:
    """Lose a call of each effect behind each face; look at what comes of it."""
    # Whatever the machine does: only what does not come at all is slow.
    patience = "2000ms" if end == "slow" else "20s"
    async with scenes(front, folder, faces, road, patience) as all_of_them:
        received = {here.face.name: here.received for here in all_of_them}
        for here in all_of_them:
            # Whose payments they are is known by then; and all is well.
            await here.session.wallets.deposit(here.user, 2)
        rows = [(here, effect) for here in all_of_them for effect in CALLS]
        lost = await asyncio.gather(*(here.lose(effect, end) for here, effect in rows))
        found, expected = {}, {}
        for (here, effect), (_, fate) in zip(rows, lost, strict=True):
            found[here.face.name, effect] = fate
            expected[here.face.name, effect] = Fate.of(here.face, effect)
        assert found == expected
        for here in all_of_them:
            errors = {
                effect: error
                for (one, effect), (error, _) in zip(rows, lost, strict=True)
                if one is here
            }
            await look(here, errors)
            assert here.behind.box.executed["wallet/deposit"] == 2
            assert here.received == received[here.face.name] + 1


@pytest.mark.parametrize(
    ("end", "faces"),
    [("slow", NGINX), ("closed", NGINX), ("reset", SOME), ("gateway", SOME)],
    ids=["slow", "closed", "reset", "gateway"],
)
async def test_a_page_of_nginx_proves_nothing(
    tmp_path: Path, road: str, end: End, faces: Sequence[Face]
) -> None:
    """Executed once and never a no; unknown, not paid again, and then settled."""
    await lose_all(nginx, tmp_path, faces, road, end)


@pytest.mark.parametrize(
    ("end", "faces"),
    [("slow", HAPROXY), ("closed", HAPROXY), ("reset", HAPROXY[:2])],
    ids=["slow", "closed", "reset"],
)
async def test_a_page_of_haproxy_proves_nothing(
    tmp_path: Path, road: str, end: End, faces: Sequence[Face]
) -> None:
    """Executed once and never a no; unknown, not paid again, and then settled."""
    await lose_all(haproxy, tmp_path, faces, road, end)


@pytest.mark.parametrize("front", [nginx, haproxy])
async def test_an_answer_that_is_cut_behind_a_front(
    tmp_path: Path, road: str, front: Front
) -> None:
    """It has the status and the head of a success, and is none."""
    face = Face("cut", "", None, OutcomeUnknownError)
    await lose_all(front, tmp_path, [face], road, "cut")


@pytest.mark.parametrize("end", ["reset", "closed"])
async def test_haproxy_hangs_up_on_a_connection_that_it_keeps(
    tmp_path: Path, road: str, end: End
) -> None:
    """It wants the call to be sent again, and what may have happened is not."""
    front = partial(haproxy, kept=True)
    face = Face("kept", both("errorfile", "404.http"), None)
    async with scenes(front, tmp_path, [face], road) as (here,):
        await here.session.wallets.deposit(here.user, 2)
        for effect in ("create", "unlisted", "money"):
            # On a connection that has had a call.
            await here.session.users.info(here.user)
            error, fate = await here.lose(effect, end)
            assert fate == Fate.of(face, effect)
        await look(here, {"money": error})


async def test_a_page_in_the_place_of_whose_token_it_is(
    tmp_path: Path, road: str
) -> None:
    """The first payment asks for that: it is sent, or it is a sure no; and once."""
    async with scenes(nginx, tmp_path, SOME, road) as all_of_them:
        for here in all_of_them:
            came = here.behind.came
            here.behind.ends["agent/info"] = "closed"
            try:
                await here.pay()
            except AgentAPIError as error:
                assert (error.happened, came["wallet/deposit"]) == ("no", 0)
            assert came["agent/info"] >= 1
            here.behind.ends.clear()
            assert (await here.pay()).balance == 5
            assert here.behind.box.executed["wallet/deposit"] == 1


async def test_nginx_that_is_told_to_repeat_payments(tmp_path: Path) -> None:
    """What it has executed twice is a maybe, and nothing but a person confirms it."""
    face = Face(
        "repeats",
        "proxy_next_upstream error timeout non_idempotent;"
        " error_page 502 504 =404 /page.html;",
        404,
    )
    async with scenes(nginx, tmp_path, [face], "short") as (here,):
        await here.session.wallets.deposit(here.user, 2)
        error, fate = await here.lose("money", "closed")
        assert fate == attrs.evolve(Fate.of(face, "money"), executed=2)
        here.behind.ends.clear()
        assert error.intent is not None
        settled = await here.session.payments.settle(error.intent)
        assert settled.phase is Phase.NEEDS_PERSON
        with pytest.raises(OutcomeUnknownError):
            await here.pay()
        assert here.behind.box.executed["wallet/deposit"] == 3
