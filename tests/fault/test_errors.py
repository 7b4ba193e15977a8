"""
Every error, tried: its class, whether it happened, how often it was sent.

Each row is a way for a call to fail, made to happen at a real service, and compared
with what the service has really done: no "no" may be a "yes". And none of it may show
the token, however it is looked at.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import attrs
import pytest
import trustme

from aio_agentapi import Session, SessionManager, Settings
from aio_agentapi.errors import (
    AgentAPIError,
    BusyError,
    ConflictError,
    CredentialError,
    DecodeError,
    ForbiddenError,
    FundsError,
    InvalidError,
    IpNotAllowedError,
    MaintenanceError,
    NotFoundError,
    NotSentError,
    OutcomeUnknownError,
    RefusedError,
    UnsupportedError,
)
from aio_agentapi.sandbox import Fault, Sandbox
from aio_agentapi.sandbox._faults import Kind
from tests.conftest import answering, read_request, serving, trusted
from tests.leak import is_in, told
from tests.waiting import look_again

# Sendings of a call that may be sent again.
ATTEMPTS: Final = 2

Effect = str
Call = Callable[[Session, int, int], Awaitable[object]]


async def transfer(session: Session, user: int, shop: int) -> object:
    """Move a point to the shop."""
    del user
    return await session.points.transfer(shop, 1)


async def create(session: Session, user: int, shop: int) -> object:
    """Create an agent."""
    del user, shop
    return await session.agents.create("new_one")


# One call of each effect, with its path; money moves one point.
CALLS: Final[Mapping[Effect, tuple[str, Call]]] = {
    "read": ("user/info", lambda s, user, _: s.users.info(user)),
    "idempotent": ("points/transfer", transfer),
    "create": ("agent/create", create),
    "money": ("wallet/deposit", lambda s, user, _: s.wallets.deposit(user, 1)),
}
EFFECTS: Final = ("read", "idempotent", "create", "money")
REPEATED: Final = ("read", "idempotent")


@attrs.frozen
class Scene:
    """A stand-in with a user, and the session that calls it."""

    box: Sandbox
    session: Session
    user: int
    shop: int

    def state(self, effect: Effect) -> tuple[int, int]:
        """Return how often the call was executed, and what it has changed in all."""
        path, _ = CALLS[effect]
        ledger = self.box._service.deployment.ledger
        account = self.box.account("operator")
        changed = {
            "read": 0,
            "idempotent": ledger.account(self.shop).points // 10_000,
            "create": len(self.box.accounts()),
            "money": ledger.user(account, self.user).balance // 10_000,
        }
        return self.box.executed[path], changed[effect]

    async def fail(self, effect: Effect) -> tuple[AgentAPIError, int, int]:
        """Make a call that fails; return how, how often it ran, and what it changed."""
        _, call = CALLS[effect]
        ran, changed = self.state(effect)
        error = await failure(call(self.session, self.user, self.shop))
        if any(fault.kind == "hold" for fault in self.box.faults.on):
            self.box.faults.clear()
        # Whatever is still under way comes to its end.
        while self.box.gauge("operator").in_flight:
            await look_again()
        ran_after, changed_after = self.state(effect)
        return error, ran_after - ran, changed_after - changed


async def failure(call: Awaitable[object]) -> AgentAPIError:
    """Return what a call raises."""
    with pytest.raises(AgentAPIError) as caught:
        await call
    return caught.value


@asynccontextmanager
async def scene(**settings: Any) -> AsyncGenerator[Scene]:
    """Set up a stand-in with a user, and a session on it."""
    async with Sandbox() as box:
        token = box.token("operator")
        chosen = attrs.evolve(Settings(attempts=ATTEMPTS), **settings)
        usual = Settings()
        async with (
            SessionManager(box.base_url, settings=usual) as first,
            SessionManager(box.base_url, settings=chosen) as manager,
        ):
            user = (await first.session(token).users.create("anna")).user_code
            session = trusted(manager.session(token))
            yield Scene(box, session, user, box.account("shop_1").code)


def look(error: AgentAPIError, effect: Effect, ran: int, changed: int) -> None:
    """Check what is true of every failure, whatever its row says."""
    if error.happened == "no":
        # A read that ran has changed nothing.
        assert changed == 0, "a no that was a yes"
        assert ran == 0 or effect == "read", "a no that was a yes"
    assert changed <= 1, "it has happened twice"
    if effect not in REPEATED:
        assert ran <= 1, "it was executed twice"
    assert error.operation is not None
    assert (error.reference is not None) == (effect == "idempotent")


@pytest.fixture(autouse=True)
def debug(caplog: pytest.LogCaptureFixture) -> None:
    """Have everything that anybody logs."""
    caplog.set_level(logging.DEBUG)


# Codes

REFUSALS: Final[Mapping[int, type[RefusedError]]] = {
    1002: InvalidError,
    1005: NotFoundError,
    1007: CredentialError,
    1009: CredentialError,
    1010: ForbiddenError,
    1012: InvalidError,
    1020: IpNotAllowedError,
    2001: NotFoundError,
    2002: NotFoundError,
    2003: NotFoundError,
    2005: FundsError,
    2006: FundsError,
    2007: NotFoundError,
    2011: ConflictError,
    2012: ConflictError,
    2013: NotFoundError,
    2014: InvalidError,
    2020: NotFoundError,
}
DOUBTS: Final[Mapping[int, type[OutcomeUnknownError]]] = {
    1: MaintenanceError,
    1001: OutcomeUnknownError,
    1003: OutcomeUnknownError,
    1011: OutcomeUnknownError,
    1015: OutcomeUnknownError,
}
STATUSES: Final = (200, 401, 403, 429, 503)


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("code", REFUSALS)
async def test_a_refusal_is_a_sure_no(
    caplog: pytest.LogCaptureFixture, code: int, status: int
) -> None:
    """Whatever the status and the call: sent once, and nothing was done."""
    async with scene() as here:
        for effect in EFFECTS:
            path, _ = CALLS[effect]
            here.box.faults.code(code, path, status=status, executed=False)
            error, ran, changed = await here.fail(effect)
            assert type(error) is REFUSALS[code]
            assert isinstance(error, RefusedError)
            assert (error.code, error.happened, error.attempts) == (code, "no", 1)
            look(error, effect, ran, changed)
            assert not is_in(told(error), here.box.token("operator"))
        assert not is_in(caplog.text, here.box.token("operator"))


@pytest.mark.parametrize("executed", [False, True])
@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("code", DOUBTS)
async def test_a_code_that_does_not_tell_is_a_maybe(
    caplog: pytest.LogCaptureFixture, code: int, status: int, *, executed: bool
) -> None:
    """Both are true of it; only what does no harm twice is sent twice."""
    async with scene() as here:
        for effect in EFFECTS:
            path, _ = CALLS[effect]
            here.box.faults.code(code, path, status=status, executed=executed)
            error, ran, changed = await here.fail(effect)
            sent = ATTEMPTS if effect in REPEATED else 1
            assert type(error) is DOUBTS[code]
            assert isinstance(error, OutcomeUnknownError)
            assert (error.code, error.happened) == (code, "maybe")
            assert (error.attempts, error.status) == (sent, status)
            assert ran == (sent if executed else 0)
            assert changed == (executed and effect != "read")
            look(error, effect, ran, changed)
            assert not is_in(told(error), here.box.token("operator"))
        assert not is_in(caplog.text, here.box.token("operator"))


@pytest.mark.parametrize("status", STATUSES)
async def test_busy_is_told_only_when_the_time_is_over(status: int) -> None:
    """And then it is a sure no, which counts as no attempt."""
    async with scene(max_wait=0.05) as here:
        for effect in EFFECTS:
            path, _ = CALLS[effect]
            here.box.faults.code(1018, path, status=status, executed=False)
            error, ran, changed = await here.fail(effect)
            assert type(error) is BusyError
            assert (error.happened, error.attempts) == ("no", 0)
            look(error, effect, ran, changed)
            assert not is_in(told(error), here.box.token("operator"))


@pytest.mark.parametrize("executed", [False, True])
async def test_a_code_that_nobody_knows(*, executed: bool) -> None:
    """A refusal of what changes nothing; of anything else, a maybe."""
    async with scene() as here:
        for effect in EFFECTS:
            path, _ = CALLS[effect]
            here.box.faults.code(4711, path, executed=executed)
            error, ran, changed = await here.fail(effect)
            if effect == "read":
                # It may have run, which is the same as not having run.
                assert (type(error), error.happened) == (RefusedError, "no")
                continue
            assert type(error) is OutcomeUnknownError
            assert error.code == 4711
            assert error.attempts == (ATTEMPTS if effect in REPEATED else 1)
            look(error, effect, ran, changed)


# Answers that are none


@attrs.frozen
class Spoilt:
    """An answer, and what becomes of it."""

    kind: Kind
    status: int | None
    error: type[AgentAPIError]
    executed: tuple[bool, ...] = (False, True)
    settings: Mapping[str, Any] = attrs.field(factory=dict)


NO_PATH: Final = (301, 302, 307, 308, 404, 405)
SPOILT: Final = [
    *(
        Spoilt("html", status, OutcomeUnknownError)
        for status in (200, 400, 401, 403, 407, 413, 429, 500, 502, 503, 504)
    ),
    *(Spoilt("html", status, OutcomeUnknownError) for status in NO_PATH),
    *(Spoilt("empty", status, OutcomeUnknownError) for status in STATUSES),
    *(Spoilt("empty", status, OutcomeUnknownError) for status in (302, 404)),
    *(Spoilt("cut_json", status, OutcomeUnknownError) for status in STATUSES),
    *(Spoilt("wrong_shape", status, DecodeError) for status in STATUSES),
    Spoilt("delay", None, DecodeError, (True,), {"max_answer": 10}),
    Spoilt("drop_before", None, OutcomeUnknownError, (False,)),
    Spoilt("drop_after", None, OutcomeUnknownError, (True,)),
]


@pytest.mark.parametrize(
    "row", SPOILT, ids=lambda row: f"{row.kind}-{row.status}-{row.error.__name__}"
)
async def test_an_answer_that_is_none(
    caplog: pytest.LogCaptureFixture, row: Spoilt
) -> None:
    """No envelope, no record: a maybe, but for a read that lacks its path."""
    async with scene(**row.settings) as here:
        for executed in row.executed:
            for effect in EFFECTS:
                path, _ = CALLS[effect]
                here.box.faults.clear()
                here.box.faults.add(
                    Fault(
                        row.kind,
                        path,
                        status=row.status,
                        # Where there is a status; the name of the others says it.
                        executed=executed if row.status else None,
                    )
                )
                error, ran, changed = await here.fail(effect)
                missing = effect == "read" and row.status in NO_PATH
                expected = UnsupportedError if missing else row.error
                assert type(error) is expected
                again = effect in REPEATED and expected is OutcomeUnknownError
                assert error.attempts == (ATTEMPTS if again else 1)
                assert error.happened == ("no" if missing else "maybe")
                assert ran == (error.attempts if executed else 0)
                look(error, effect, ran, changed)
                assert not is_in(told(error), here.box.token("operator"))
        assert not is_in(caplog.text, here.box.token("operator"))


async def test_an_answer_that_comes_too_late() -> None:
    """It is executed all the same, once: a query waits for that one again."""
    async with scene(timeout=0.1) as here:
        for effect in EFFECTS:
            path, _ = CALLS[effect]
            here.box.faults.hold(path)
            error, ran, changed = await here.fail(effect)
            assert type(error) is OutcomeUnknownError
            assert (error.happened, error.status) == ("maybe", None)
            assert ran == error.attempts == 1
            assert changed == (effect != "read")
            look(error, effect, ran, changed)
            assert not is_in(told(error), here.box.token("operator"))
        # Executed, which the service counts, is not yet answered.
        assert await here.session.gate.idle(asyncio.get_running_loop().time() + 10)
        assert here.session.gate.statistics().late_answers == len(EFFECTS)


# Connections


async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read a request, and hang up."""
    await read_request(reader)
    writer.close()


async def stops(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with less than was announced."""
    await read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
    await writer.drain()
    writer.close()


async def raves(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with what is no HTTP."""
    await read_request(reader)
    writer.write(b"220 mail.example.com ESMTP\r\n")
    await writer.drain()
    writer.close()


async def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Break the connection, so that the other side gets an RST."""
    await read_request(reader)
    writer.transport.get_extra_info("socket").setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
    )
    writer.transport.abort()


async def is_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say nothing."""
    await reader.read(1)
    await reader.read()
    writer.close()


TOKEN: Final = "c0ffee00-1234-4321-9876-feedfacecafe"


async def fails(
    base_url: str, caplog: pytest.LogCaptureFixture, **settings: Any
) -> dict[str, AgentAPIError]:
    """Make a call of each effect that fails; look for the token in all of it."""
    chosen = attrs.evolve(Settings(attempts=ATTEMPTS), **settings)
    found: dict[str, AgentAPIError] = {}
    async with SessionManager(
        base_url, accounts={"eur": TOKEN}, settings=chosen
    ) as manager:
        session = trusted(manager.session("eur"))
        for effect in EFFECTS:
            _, call = CALLS[effect]
            error = await failure(call(session, 1, 1))
            report = told(error)
            assert "_channel.py" in report
            assert not is_in(report, TOKEN)
            found[effect] = error
    assert not is_in(caplog.text, TOKEN)
    return found


@pytest.mark.parametrize("script", [closes, stops, raves, resets, is_silent])
async def test_a_connection_that_ends_in_the_middle(
    caplog: pytest.LogCaptureFixture, script: Any
) -> None:
    """The request has left: a maybe, whatever ended it."""
    async with serving(script) as base_url:
        timeout = 0.2 if script is is_silent else 10
        found = await fails(base_url, caplog, timeout=timeout, drain=0.1)
    for effect, error in found.items():
        assert type(error) is OutcomeUnknownError
        # Where nothing ended it, it still runs: one that is repeated waits for it.
        again = effect in REPEATED and script is not is_silent
        assert error.attempts == (ATTEMPTS if again else 1)


async def test_a_connection_that_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing was sent, so everything is tried again; then it is a sure no."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        found = await fails(f"http://127.0.0.1:{port}", caplog)
    for error in found.values():
        assert (type(error), error.attempts) == (NotSentError, ATTEMPTS)


async def test_a_name_that_nobody_knows(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without asking the network for it."""

    async def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)
    found = await fails("https://nowhere.invalid", caplog)
    for error in found.values():
        assert (type(error), error.attempts) == (NotSentError, ATTEMPTS)
        assert "nowhere.invalid" in str(error) or "Name or service" in str(error)


async def speaks_plainly(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Answer whatever comes as a server does that expects no TLS."""
    await reader.read(1)
    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    await writer.drain()
    writer.close()


async def test_a_service_without_tls(caplog: pytest.LogCaptureFixture) -> None:
    """Plain HTTP where TLS was wanted: not a byte of the request left."""
    async with serving(speaks_plainly) as base_url:
        found = await fails(base_url.replace("http:", "https:"), caplog)
    for error in found.values():
        assert (type(error), error.attempts) == (NotSentError, ATTEMPTS)


async def test_a_certificate_that_nobody_trusts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The same; and the reason is told, for whoever has to mend it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    server = await asyncio.start_server(closes, "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        found = await fails(f"https://127.0.0.1:{port}", caplog)
    for error in found.values():
        assert (type(error), error.attempts) == (NotSentError, ATTEMPTS)
        assert "certificate" in str(error).lower()


async def test_a_handshake_that_does_not_end(caplog: pytest.LogCaptureFixture) -> None:
    """Its time-out is ours for connecting, and nothing was sent."""
    async with serving(is_silent) as base_url:
        secure = base_url.replace("http:", "https:")
        for limits in ({"connect_timeout": 0.1}, {"timeout": 0.1}):
            found = await fails(secure, caplog, **limits)
            for error in found.values():
                assert (type(error), error.attempts) == (NotSentError, ATTEMPTS)


async def test_a_path_that_is_named_differently(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A 404 of the service itself says which setting to look at, and proves nothing."""
    async with Sandbox() as box:
        paths = {
            "users.info": "user/who",
            "points.transfer": "credits/give",
            "agents.create": "agent/new",
            "wallets.deposit": "wallet/put",
        }
        found = await fails(box.base_url, caplog, paths=paths)
    for effect, error in found.items():
        expected = UnsupportedError if effect == "read" else OutcomeUnknownError
        assert type(error) is expected
        assert "lack" in str(error)


async def test_an_answer_that_echoes_the_token(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In any place of any kind of answer, in either case of letters."""
    echo = TOKEN.upper()
    for body in (
        f"<html>Authorization: Bearer {echo}</html>",
        f'{{"code": 2005, "message": "for {echo}"}}',
        f'{{"code": 1002, "data": [{{"field": "{echo}", "message": "{echo}"}}]}}',
        f'{{"code": 1020, "data": {{"client_ip": "{echo}"}}}}',
        f'{{"code": 1, "message": "{echo}"}}',
        f'{{"code": 4711, "message": "{echo}"}}',
        f'{{"code": 0, "data": "{echo}"}}',
        f'{{"code": 0, "data": {{"name": 1, "balance": "{echo}", "{echo}": 1}}}}',
        f'{{"code": 0, "data": {{"{echo}',
    ):
        async with serving(answering(body.encode())) as base_url:
            await fails(base_url, caplog, attempts=1)


@pytest.mark.realtime
async def test_a_callers_own_time_out_shows_no_token(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At any moment of a call, cold or warm, its chain of errors is clean."""
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    late = 0
    async with scene() as here:
        token = here.box.token("operator")
        here.box.faults.delay(0.03)
        for step in range(12):
            for effect in EFFECTS:
                try:
                    await impatient(here, effect, step * 0.004)
                except TimeoutError as error:
                    late += 1
                    report = told(error)
                    assert not is_in(report, token)
                    assert "/aiohttp/" not in report
                except AgentAPIError as error:
                    assert not is_in(told(error), token)
        assert late > 20
        assert not is_in(caplog.text, token)
        here.box.faults.clear()
        await here.session.agents.info()
        await here.session.gate.idle(loop.time() + 20)
        statistics = here.session.gate.statistics()
        assert (statistics.in_use, statistics.waiting) == (0, 0)


async def impatient(here: Scene, effect: Effect, seconds: float) -> None:
    """Call with a time-out of the caller's own."""
    _, call = CALLS[effect]
    async with asyncio.timeout(seconds):
        await call(here.session, here.user, here.shop)
