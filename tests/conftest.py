"""What all tests share: a stand-in, sessions on it, and a server that misbehaves."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import aiohttp
import attrs
import hypothesis
import pytest
import uvloop

from aio_agentapi import Session, SessionManager, Settings, _store
from aio_agentapi.sandbox import Sandbox, SandboxProcess
from tests.waiting import PATIENCE, begin
from tests.watch import watch

pytest_plugins = ["tests.processes", "tests.scheduling"]

watch()

# A shell lets what it starts in the background ignore it, and so would the programs
# that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Workers are measured, and not each of the hundreds of processes that they start.
if "PYTEST_XDIST_WORKER" in os.environ:
    for name in [name for name in os.environ if name.startswith("COVERAGE_PROCESS")]:
        del os.environ[name]

# How many times as many examples a search looks at: make soak asks for more.
EXAMPLES = int(os.environ.get("AGENTAPI_TEST_EXAMPLES", "1"))

# The same examples in every run of a commit, and as long as they take.
hypothesis.settings.register_profile(
    "default",
    deadline=None,
    derandomize=True,
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.function_scoped_fixture,
    ],
)
hypothesis.settings.load_profile("default")

Script: TypeAlias = Callable[
    [asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]
]

OK_INFO = (
    b'{"code": 0, "message": null, "data": {"name": "x", "currency": 978,'
    b' "balance": 1.5000, "rtp": 95}}'
)
TOKEN = "11111111-2222-3333-4444-555555555555"


def limit(item: pytest.Item) -> float:
    """Return how many seconds a test may take."""
    mark = item.get_closest_marker("timeout")
    return float(mark.args[0] if mark else item.config.getini("timeout"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests more time where that is asked for."""
    if PATIENCE == 1:
        return
    for item in items:
        seconds = limit(item) * PATIENCE
        item.add_marker(pytest.mark.timeout(seconds), append=False)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Begin a test's time."""
    begin(limit(item))


def eager() -> asyncio.AbstractEventLoop:
    """Make a loop whose tasks begin where they are made."""
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
    return loop


# In which loops the tests run: AGENTAPI_TEST_LOOP names one. It stays there: workers
# look it up as well.
LOOPS: Mapping[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "eager": eager,
    "uvloop": uvloop.new_event_loop,
}
_LOOP = os.environ.get("AGENTAPI_TEST_LOOP", "asyncio")


def pytest_asyncio_loop_factories() -> Mapping[
    str, Callable[[], asyncio.AbstractEventLoop]
]:
    """Run async tests in the loop that is asked for."""
    return {_LOOP: LOOPS[_LOOP]}


@pytest.fixture(params=["short", "ordinary"])
def road(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Choose the road, as mocks and tracers do."""
    name: str = request.param
    if name == "ordinary":
        before = aiohttp.ClientSession._request

        async def traced(self: aiohttp.ClientSession, *args: Any, **kwargs: Any) -> Any:
            return await before(self, *args, **kwargs)

        monkeypatch.setattr(aiohttp.ClientSession, "_request", traced)
    return name


@attrs.define
class Ageing:
    """How much longer the machine has been up than it has."""

    passed: float = 0.0


@pytest.fixture
def ageing(monkeypatch: pytest.MonkeyPatch) -> Ageing:
    """Let time pass for journals, and for nothing else."""
    passing, uptime = Ageing(), _store._uptime
    monkeypatch.setattr(_store, "_uptime", lambda: uptime() + passing.passed)
    return passing


def trusted(session: Session) -> Session:
    """Take it for known whose payments a session makes: nobody is asked first."""
    session._channel.cashier._account = "eur"
    return session


@pytest.fixture
async def box() -> AsyncGenerator[Sandbox]:
    """Start a stand-in in the test's own loop."""
    async with Sandbox() as box:
        yield box


@pytest.fixture
async def session(box: Sandbox) -> AsyncGenerator[Session]:
    """Open the operator's session at the stand-in."""
    async with connect(box) as session:
        yield session


@asynccontextmanager
async def connect(
    box: Sandbox | SandboxProcess, name: str = "operator", **settings: object
) -> AsyncGenerator[Session]:
    """Open a session of an account of a stand-in."""
    token = box.tokens[name] if isinstance(box, SandboxProcess) else box.token(name)
    chosen = Settings(**settings)  # type: ignore[arg-type]  # any of them
    async with SessionManager(box.base_url, settings=chosen) as manager:
        yield manager.session(token)


@asynccontextmanager
async def serving(script: Script) -> AsyncGenerator[str]:
    """Run a server that does to each connection what *script* says."""
    server = await asyncio.start_server(script, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.close()


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """Read one request with its body."""
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            return head + await reader.readexactly(int(line.split(b":")[1]))
    return head


def answering(body: bytes, status: int = 200, extra: str = "") -> Script:
    """Make a script that gives every request the same answer."""

    async def script(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            while True:
                await read_request(reader)
                head = (
                    f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
                )
                writer.write(head.encode() + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    return script
