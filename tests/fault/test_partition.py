"""
Payments that were on their way when the link was cut, and were given up meanwhile.

Such a payment is in the kernel of its machine, which cannot bring it to the service. It
is given up, or its process dies, and the link comes back: it does not arrive any more.
Beside each of them is a socket as any program has it, which is closed while its bytes
are under way: those do arrive, and so would the payment.

All cases are played at the same time, each on two hosts of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import attrs
import pytest
import trustme

from aio_agentapi import Intent, Settings, SqliteStore
from tests.namespaces import (
    PATIENCE,
    SHOP,
    Client,
    Cut,
    Pair,
    Shop,
    client,
    on,
    open_manager,
    pair,
    shop,
)
from tests.waiting import look_again

# For what waits while all cases are played.
pytestmark = [pytest.mark.timeout(120), pytest.mark.process, pytest.mark.realtime]

# Seconds after ``unacked`` until the kernel takes note of it: it counts from when it
# sends something again, and looks when it would do so once more.
SLACK: Final = 1.0

# Seconds for what takes no time: less than ``unacked``, for which the kernel would try.
SOON: Final = 3.0

# Seconds after a plain socket's bytes in which a payment's would have come, too.
SILENCE: Final = 1.0

# Settled as soon as it can be sure.
SETTLING: Final = {"longest_call": 0.2, "feed_lag": 0.1, "feed_interval": 0.1}


@attrs.define(eq=False)
class Scene:
    """
    A payment that is on its way, on a link that is cut.

    Attributes:
        link: The link.

        payer: Whose it is.

        unacked: Seconds for which the kernel may try to send it.

        left: How many bytes of it the kernel had when somebody looked last.
    """

    link: Pair
    payer: Client
    unacked: float
    left: int = 0
    _began: float = attrs.field(init=False, factory=time.monotonic)

    async def look(self, seconds: float = 0.0) -> None:
        """Look, for so long at most, whether the kernel has forgotten it."""
        over = time.monotonic() + seconds
        while True:
            self.left = await self.link.queued()
            if not self.left or time.monotonic() >= over:
                return
            await look_again()

    @property
    def trying(self) -> float:
        """For how long the kernel may go on, from now."""
        return max(0.0, self._began + self.unacked + SLACK - time.monotonic())


End: TypeAlias = Callable[[Scene], Awaitable[None]]


async def killed(scene: Scene) -> None:
    """Kill its process: with that the kernel has forgotten it."""
    await scene.payer.end(signal.SIGKILL)
    await scene.look()


async def killed_for_long(scene: Scene) -> None:
    """The same, and let the link be cut for longer than the kernel would try."""
    await killed(scene)
    # Nothing is to happen in that time, which is the kernel's.
    await asyncio.sleep(scene.trying)


async def killed_but_for_a_copy(scene: Scene) -> None:
    """Leave a process that has the connection, too: only the kernel ends it."""
    await scene.payer.ask("fork")
    await scene.payer.end(signal.SIGKILL)
    await scene.look()
    assert scene.left
    await scene.look(scene.trying)


async def stopped(scene: Scene) -> None:
    """Stop its process, which can do nothing about it: only the kernel ends it."""
    scene.payer.send(signal.SIGSTOP)
    await scene.look(scene.trying)


async def interrupted(scene: Scene) -> None:
    """End its program as a terminal does."""
    await scene.payer.end(signal.SIGINT)
    await scene.look()


async def given_up(scene: Scene) -> None:
    """Let the call be out of time, and then its exchange: long before the kernel."""
    assert await scene.payer.outcome() == "OutcomeUnknownError"
    await scene.look(SOON)


async def given_up_but_for_a_copy(scene: Scene) -> None:
    """The same, while a process that was forked has the connection, too."""
    await scene.payer.ask("fork")
    await given_up(scene)


async def closed_but_for_a_copy(scene: Scene) -> None:
    """Close its session, while a process that was forked has the connection."""
    await scene.payer.ask("fork")
    await closed(scene)


async def cancelled(scene: Scene) -> None:
    """Cancel its caller, after whom nobody waits for an answer."""
    assert await scene.payer.ask("cancel") == "cancelled"
    await scene.look(SOON)


async def closed(scene: Scene) -> None:
    """Close its session."""
    await scene.payer.ask("close")
    await scene.look()
    assert await scene.payer.outcome() == "OutcomeUnknownError"


async def all_closed(scene: Scene) -> None:
    """Close its manager."""
    await scene.payer.ask("close all")
    await scene.look()
    assert await scene.payer.outcome() == "OutcomeUnknownError"


async def waited_for(_: Scene) -> None:
    """Do nothing about it."""


# The kernel's time is that of the session; a call may have less.
SETTINGS: Final[Mapping[End, Mapping[str, Any]]] = {
    killed: {"timeout": 3},
    killed_for_long: {"timeout": 1.5},
    killed_but_for_a_copy: {"timeout": 1.5},
    stopped: {"timeout": 1.5},
    interrupted: {"timeout": 10, "drain": 0},
    given_up: {"timeout": 10, "abandon_after": 0.3},
    given_up_but_for_a_copy: {"timeout": 10, "abandon_after": 0.3},
    closed_but_for_a_copy: {"timeout": 10, "drain": 0},
    cancelled: {"timeout": 10, "abandon_after": 0},
    closed: {"timeout": 10, "drain": 0},
    all_closed: {"timeout": 10, "drain": 0},
    waited_for: {"timeout": 20},
}
OPTIONS: Final[Mapping[End, Mapping[str, Any]]] = {
    given_up: {"timeout": 0.4},
    given_up_but_for_a_copy: {"timeout": 0.4},
}

# The session can still be used after these.
GO_ON: Final = frozenset(
    {stopped, given_up, given_up_but_for_a_copy, cancelled, waited_for}
)


@attrs.frozen
class Case:
    """
    How a payment ends, and what way it was on.

    Attributes:
        end: What is done while the link is cut.

        cut: Where that is.

        road: Whether the library sends by itself, or by aiohttp.

        loop: Whose loop the client has.

        tls: Whether the shop has a certificate.
    """

    end: End
    cut: Cut = "here"
    road: Literal["short", "ordinary"] = "short"
    loop: Literal["asyncio", "uvloop"] = "asyncio"
    tls: bool = False

    def __str__(self) -> str:
        tls = "tls" if self.tls else "plain"
        return f"{self.end.__name__}-{self.cut}-{self.road}-{self.loop}-{tls}"


CASES: Final = [
    *(Case(end) for end in SETTINGS if end is not waited_for),
    *(Case(end, cut="there") for end in (killed, stopped, given_up)),
    *(
        case
        for end in (killed, killed_for_long, given_up, closed)
        for case in (Case(end, road="ordinary"), Case(end, loop="uvloop"))
    ),
    *(Case(end, tls=True) for end in (killed, given_up)),
    Case(given_up_but_for_a_copy, road="ordinary", loop="uvloop", tls=True),
    Case(given_up, cut="there", road="ordinary", loop="uvloop", tls=True),
]
PATIENT: Final = [
    Case(waited_for),
    Case(waited_for, cut="there", road="ordinary", loop="uvloop", tls=True),
]


@attrs.frozen(kw_only=True)
class Played:
    """
    What became of a payment, after another that was made before it.

    Attributes:
        left: How many bytes of it the kernel had when the link came back.

        late: What arrived at the API when the link was back, and before anything new
            was sent.

        intents: What the journal has of both then, as another process sees it.

        settled: What it has in the end.
    """

    left: int
    late: str
    intents: list[Intent]
    settled: list[Intent]


Results: TypeAlias = Mapping[Case, Played | BaseException]


@attrs.define(eq=False)
class Stage:
    """
    Where a case is played.

    Attributes:
        case: Which.

        folder: Of its own.

        ca: Who signs the shop's certificate.

        tls: What has it.

        turn: Kept while a client starts: the machine has few processors.
    """

    case: Case
    folder: Path
    ca: str | None
    tls: ssl.SSLContext | None
    turn: asyncio.Semaphore

    @property
    def settings(self) -> Mapping[str, Any]:
        """What is set for the client, and for who comes after it."""
        return {**SETTLING, **SETTINGS[self.case.end]}

    @property
    def file(self) -> str:
        """Where the journal is."""
        return str(self.folder / "journal.db")

    async def play(self) -> Played:
        """Open the shop, and start the client."""
        case = self.case
        with pair() as link:
            async with contextlib.AsyncExitStack() as stack:
                opened = await stack.enter_async_context(shop(link, self.tls))
                async with self.turn:
                    process = client(
                        link,
                        journal=self.file,
                        settings=self.settings,
                        road=case.road,
                        loop=case.loop,
                        ca=self.ca,
                    )
                    payer = await stack.enter_async_context(process)
                    # Its connection is there, and its account is known, from now on.
                    await payer.pay(1)
                    assert await payer.outcome() == "paid"
                return await self.part(link, opened, payer)

    async def part(self, link: Pair, opened: Shop, payer: Client) -> Played:
        """Cut the link, pay, let that end, and mend the link."""
        case = self.case
        with await link.plain() as plain:
            link.cut(case.cut)
            cut = time.monotonic()
            # First: when this arrives, the payment was to arrive as well.
            plain.send(b"plain")
        await payer.pay(2, **OPTIONS.get(case.end, {}))
        async with asyncio.timeout(PATIENCE):
            # More than it takes to connect.
            while await link.queued() < 100:
                await look_again()
        scene = Scene(link, payer, Settings(**SETTINGS[case.end]).unacked)
        await case.end(scene)
        assert not opened.came.is_set()
        link.mend(case.cut)
        async with asyncio.timeout(PATIENCE):
            await opened.came.wait()
        # What does not come can only be waited for.
        await asyncio.sleep(SILENCE)
        late = opened.since(cut)
        if case.end in GO_ON:
            payer.send(signal.SIGCONT)
            ends = {"OutcomeUnknownError", "paid", "cancelled"}
            assert await payer.outcome() in ends
        intents = await self.intents()
        if case.end in GO_ON:
            # The link is there, and the client.
            await payer.pay(3)
            assert await payer.outcome() == "paid"
            await payer.ask("settle")
        else:
            await on(link.client, lambda: asyncio.run(self.settle()))
        settled = await self.intents()
        return Played(left=scene.left, late=late, intents=intents, settled=settled)

    async def settle(self) -> None:
        """Settle what is open, as the next process does."""
        async with (
            asyncio.timeout(PATIENCE),
            open_manager(self.file, self.settings, self.ca) as manager,
        ):
            await manager.session("eur").payments.settle_all()

    async def intents(self) -> list[Intent]:
        """Return what the journal has of both payments."""
        store = SqliteStore(self.file)
        try:
            await store.adopt(time.time)
            return [i for i in await store.intents() if i.amount in {1, 2}]
        finally:
            await store.aclose()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Play all cases."""
    folder = tmp_path_factory.mktemp("partition")
    authority, ca = trustme.CA(), folder / "ca.pem"
    authority.cert_pem.write_to_path(ca)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(SHOP).configure_cert(tls)

    async def play(case: Case, turn: asyncio.Semaphore) -> Played:
        place = folder / str(case)
        place.mkdir()
        if case.tls:
            return await Stage(case, place, str(ca), tls, turn).play()
        return await Stage(case, place, None, None, turn).play()

    async def play_all(cases: list[Case]) -> Results:
        turn = asyncio.Semaphore(3)
        played = await asyncio.gather(
            *(play(case, turn) for case in cases), return_exceptions=True
        )
        return dict(zip(cases, played, strict=True))

    return asyncio.run(play_all([*CASES, *PATIENT]))


def result(results: Results, case: Case) -> Played:
    """Return what became of a case, or raise what kept it from its end."""
    found = results[case]
    if isinstance(found, BaseException):
        raise found
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_was_given_up_does_not_arrive(results: Results, case: Case) -> None:
    """Not a byte of it, and the journal knows that nobody is at work on it."""
    played = result(results, case)
    assert played.late == ""
    assert played.left == 0
    assert [intent.phase for intent in played.intents] == ["done", "unknown"]
    assert played.intents[1].quiet is not None
    assert [intent.phase for intent in played.settled] == ["done", "absent"]


@pytest.mark.parametrize("case", PATIENT, ids=str)
def test_what_is_waited_for_arrives(results: Results, case: Case) -> None:
    """It is sent once, and a link that comes back in time has taken nothing away."""
    played = result(results, case)
    assert played.late.count('{"user_code":7,"amount":2}') == 1
    assert [intent.phase for intent in played.intents] == ["done", "done"]
