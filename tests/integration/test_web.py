"""The examples of web servers, on real servers, with clients that hang up."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import aiohttp
import attrs
import pytest

from aio_agentapi.sandbox import Fault, SandboxProcess, Switches
from tests.conftest import connect
from tests.waiting import look_again

pytestmark = pytest.mark.process


EXAMPLES: Final = Path(__file__).parents[2] / "examples"
UVICORN: Final = ("-m", "uvicorn", "--app-dir", str(EXAMPLES), "--port", "0")
CANCELLING: Final = (
    " from aiohttp import web;"
    " web.run_app(app.make_app(), host='127.0.0.1', port=0, handler_cancellation=True)"
)
SERVING: Final = " import uvicorn; uvicorn.run(app.app, port=0)"


def script(app: str, runs: str, deadline: float = 10.0) -> tuple[str, ...]:
    """Return how Python runs an example with other settings."""
    begin = (
        f"import attrs, sys; sys.path.insert(0, sys.argv[1]); import {app} as app;"
        f" app.SETTINGS = attrs.evolve(app.SETTINGS, deadline={deadline});"
    )
    return "-c", begin + runs, str(EXAMPLES)


SERVERS: Final[dict[str, tuple[str, ...]]] = {
    "fastapi": (*UVICORN, "fastapi_app:app"),
    "starlette": (*UVICORN, "starlette_app:app"),
    "aiohttp": (str(EXAMPLES / "aiohttp_app.py"), "0"),
    # Where a visitor that is gone cancels what is done for him.
    "aiohttp, cancelling": script("aiohttp_app", CANCELLING),
    # Where a call takes longer at times than there is patience for it.
    "fastapi, hurried": script("fastapi_app", SERVING, 0.3),
    "starlette, hurried": script("starlette_app", SERVING, 0.3),
    "aiohttp, cancelling, hurried": script("aiohttp_app", CANCELLING, 0.3),
}
VISITORS: Final = 400


@attrs.frozen
class Server:
    """One of the examples, running."""

    port: int
    http: aiohttp.ClientSession

    async def get(self, path: str) -> Any:
        """Get what is there."""
        async with self.http.get(f"http://127.0.0.1:{self.port}{path}") as response:
            return await response.json()

    async def give(self, code: int, amount: object, reference: str) -> tuple[int, Any]:
        """Give points to an agent."""
        url = f"http://127.0.0.1:{self.port}/agents/{code}/points"
        gift = {"amount": amount, "reference": reference}
        async with self.http.post(url, json=gift) as response:
            return response.status, await response.json()


@asynccontextmanager
async def running(name: str, box: SandboxProcess) -> AsyncGenerator[Server]:
    """Start an example; it ends well, and has nothing to complain of in its log."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *SERVERS[name],
        env=dict(os.environ)
        | {
            "AGENTAPI_BASE_URL": box.base_url,
            "AGENTAPI_TOKEN": box.tokens["operator"],
            # Says what was left open, or was never awaited.
            "PYTHONWARNINGS": "always::ResourceWarning",
            "PYTHONUNBUFFERED": "1",
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    log = b""
    try:
        while not (found := re.search(rb"http://127\.0\.0\.1:(\d+)", log)):
            line = await process.stdout.readline()
            assert line, log.decode()
            log += line
        async with aiohttp.ClientSession() as http:
            yield Server(int(found[1]), http)
    finally:
        process.send_signal(signal.SIGINT)
        rest, _ = await process.communicate()
        log += rest
    text = log.decode()
    for sign in ("Traceback", "ERROR", "Error", "Unclosed", "never", "Warning"):
        assert sign not in text, text
    assert box.tokens["operator"] not in text
    # uvicorn raises the signal once more when it has ended well.
    assert process.returncode in {0, -signal.SIGINT, 128 + signal.SIGINT}


async def visit(port: int, request: bytes, seconds: float) -> None:
    """Send a request, and hang up in the middle of it; by an RST every other time."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    await writer.drain()
    # At any moment of what the server does for it.
    await asyncio.sleep(seconds)
    if random.random() < 0.5:  # noqa: S311 - either will do
        writer.transport.abort()
    else:
        writer.close()


def request(path: str, body: str | None = None) -> bytes:
    """Write a request by hand."""
    if body is None:
        return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "name", ["fastapi", "starlette", "aiohttp", "aiohttp, cancelling"]
)
async def test_visitors_that_hang_up_leave_no_trace(name: str) -> None:
    """Every permit comes back, no point is lost, the log is clean, the next works."""
    async with (
        SandboxProcess(Switches(latency=0.03, jitter=0.02)) as box,
        running(name, box) as server,
    ):
        async with connect(box) as session:
            shop = await session.agents.create("shop_7")
        code = shop.agent.agent_code
        assert await server.get("/points") == {"points": "500000.0000"}
        dice = random.Random(7)  # noqa: S311 - repeatable
        visits = [
            visit(
                server.port,
                request("/points")
                if number % 2
                else request(
                    f"/agents/{code}/points",
                    f'{{"amount": "1", "reference": "gift-{number}"}}',
                ),
                dice.uniform(0, 0.2),
            )
            for number in range(VISITORS)
        ]
        # Others have a part of the permits meanwhile.
        await box.foreign("operator", 20)
        await asyncio.gather(*visits)
        await box.foreign("operator", 0)
        async with asyncio.timeout(20):
            while True:
                state = await server.get("/health")
                gauge = await box.gauge("operator")
                if not (state["in_use"] or state["waiting"] or gauge.in_flight):
                    break
                await look_again()
        assert state["limit"] == 50
        # Each gift once or not at all, and never a part of it.
        async with connect(box) as session:
            moves = [move async for move in session.points.history()]
        gifts = [m for m in moves if m.to_code == code]
        asked = {f"gift-{number}" for number in range(0, VISITORS, 2)}
        assert {m.reference for m in gifts} <= asked
        assert len({m.reference for m in gifts}) == len(gifts)
        assert {m.amount for m in gifts} <= {Decimal(1)}
        # Who is not cancelled brings to its end what was begun for him.
        assert gifts or "cancelling" in name
        status, told = await server.give(code, "0.0001", "the-next")
        assert status == 200
        assert Decimal(told["moved"]) == Decimal("0.0001")
        minted, held = await box.audit()
        assert minted == held


@pytest.mark.realtime
@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", [name for name in SERVERS if "hurried" in name])
async def test_who_leaves_never_fills_the_service(name: str) -> None:
    """No 1018 where every tenth call is slow, and all late answers are read."""
    async with (
        SandboxProcess(Switches(latency=0.02)) as box,
        running(name, box) as server,
    ):
        assert await server.get("/points") == {"points": "500000.0000"}
        await box.fault(Fault("delay", share=0.1, seconds=0.6))
        dice = random.Random(7)  # noqa: S311 - repeatable
        late = 0

        async def stay() -> None:
            nonlocal late
            # They do not all come at once.
            await asyncio.sleep(dice.uniform(0, 0.5))
            answer = await server.get("/points")
            late += answer.get("error") == "OutcomeUnknownError"

        async def hang_up() -> None:
            # As above.
            await asyncio.sleep(dice.uniform(0, 0.5))
            await visit(server.port, request("/points"), dice.uniform(0, 0.1))

        visits = [stay() if number % 2 else hang_up() for number in range(VISITORS)]
        await asyncio.gather(*visits)
        async with asyncio.timeout(20):
            while True:
                state = await server.get("/health")
                gauge = await box.gauge("operator")
                if not (state["in_use"] or gauge.in_flight):
                    break
                await look_again()
        assert (gauge.busy, state["busy_answers"]) == (0, 0)
        assert gauge.peak <= 50
        assert 0 < late <= state["late_answers"]
        assert (state["waiting"], state["share"]) == (0, 50)
        await box.clear_faults()
        assert await server.get("/points") == {"points": "500000.0000"}


@pytest.mark.parametrize("name", ["fastapi", "starlette", "aiohttp"])
async def test_an_error_becomes_an_answer(name: str) -> None:
    """By one table; a maybe says with which reference it is safe to ask again."""
    async with SandboxProcess() as box, running(name, box) as server:
        async with connect(box) as session:
            codes = [agent.agent_code async for agent in session.agents.list()]
        for code, amount, status, error in (
            (codes[0], "999999999", 409, "FundsError"),
            (999, "1", 404, "NotFoundError"),
            (codes[0], "0.00001", 422, "AmountError"),
            (codes[0], "0", 422, "AmountError"),
        ):
            found, told = await server.give(code, amount, "a")
            assert (found, told["error"], told["happened"]) == (status, error, "no")
        await box.fault(Fault("drop_after", "points/transfer", times=3))
        found, told = await server.give(codes[0], "5", "b")
        assert (found, told["error"]) == (504, "OutcomeUnknownError")
        assert (told["happened"], told["reference"]) == ("maybe", "b")
        found, told = await server.give(codes[0], "5", told["reference"])
        assert (found, Decimal(told["left"])) == (200, Decimal(499_995))
        await box.fault(Fault("code", code=1009, executed=False))
        found, told = await server.give(codes[0], "5", "c")
        assert (found, told["error"]) == (502, "CredentialError")
