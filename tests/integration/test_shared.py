"""The shared gate where its users meet it: several workers, the command line."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncGenerator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from aio_agentapi import SessionManager
from aio_agentapi.redis import RedisGate, RedisGates
from aio_agentapi.sandbox import Sandbox, SandboxProcess, Switches
from tests.redis_server import RedisServer, redis_server

pytestmark = pytest.mark.process


EXAMPLES: Final = Path(__file__).parents[2] / "examples"


@pytest.fixture
async def store() -> AsyncGenerator[RedisServer]:
    """Start a store."""
    async with redis_server() as server:
        yield server


async def agentapi(*args: str, **env: str) -> tuple[int, str, str]:
    """Run the command line, with an environment of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aio_agentapi.cli", *args),
        env={**os.environ, "XDG_CONFIG_HOME": str(EXAMPLES), **env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


@pytest.mark.timeout(90)
async def test_four_workers_of_a_web_server(store: RedisServer) -> None:
    """The example, as its page says: all are served, and none is busy."""
    async with SandboxProcess(Switches(latency=0.02)) as box:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES)),
            *("--workers", "4", "--port", "0", "workers_app:app"),
            env={
                **os.environ,
                "AGENTAPI_BASE_URL": box.base_url,
                "AGENTAPI_TOKEN": box.tokens["operator"],
                "AGENTAPI_REDIS_URL": store.url,
            },
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr is not None
        try:
            found, ready = None, 0
            while ready < 4:
                line = (await process.stderr.readline()).decode()
                assert line
                found = re.search(r"running on (http://\S+)", line) or found
                ready += "Application startup complete" in line
            assert found is not None
            url = found[1]
            connector = aiohttp.TCPConnector(limit=400, force_close=True)
            async with aiohttp.ClientSession(connector=connector) as http:

                async def get(path: str) -> Any:
                    async with http.get(url + path) as response:
                        return await response.json()

                shown = await asyncio.gather(*(get("/points") for _ in range(1_200)))
                assert shown == [{"points": "500000.0000"}] * 1_200
                states = [await get("/health") for _ in range(40)]
        finally:
            process.send_signal(signal.SIGINT)
            await process.communicate()
        gauge = await box.gauge("operator")
    assert (gauge.served, gauge.busy) == (1_200, 0)
    assert gauge.peak <= 50
    by_process = {state["process"]: state for state in states}
    assert len(by_process) > 1
    assert {state["busy_answers"] for state in states} == {0}
    assert max(state["members"] for state in states) >= len(by_process)


@pytest.mark.timeout(60)
async def test_what_serves_all_calls_is_in_no_ones_context(
    store: RedisServer, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keeper and the listener outlive the call that began them, and its trace."""
    mine: ContextVar[str] = ContextVar("mine", default="nobody's")
    seen: dict[str, str] = {}
    keep, listen = RedisGate._keep, RedisGates._listen

    async def kept(self: RedisGate, gates: RedisGates) -> None:
        seen["keeper"] = mine.get()
        await keep(self, gates)

    async def heard(self: RedisGates, *args: Any) -> None:
        seen["listener"] = mine.get()
        await listen(self, *args)

    monkeypatch.setattr(RedisGate, "_keep", kept)
    monkeypatch.setattr(RedisGates, "_listen", heard)
    mine.set("the call's")
    gate, token = RedisGate.factory(store.url), box.token("operator")
    await store.age(token)
    async with SessionManager(box.base_url, gate=gate) as manager:
        await manager.session(token).agents.info()
    assert seen == {"keeper": "nobody's", "listener": "nobody's"}


async def test_the_command_line_shows_who_holds_what(
    store: RedisServer, tmp_path: Path
) -> None:
    """As a table and as JSON, from the environment and from the configuration."""
    async with SandboxProcess() as box:
        token = box.tokens["operator"]
        env = {"AGENTAPI_BASE_URL": box.base_url, "AGENTAPI_TOKEN": token}
        # A permit that is not used goes back after two heartbeats.
        gates = RedisGate.factory(store.url, lease=90, heartbeat=30)
        await store.age(token)
        async with SessionManager(box.base_url, gate=gates) as manager:
            await manager.session(token).agents.info()
            code, out, err = await agentapi("gate", **env, AGENTAPI_REDIS_URL=store.url)
            assert (code, err) == (0, "")
            assert f":{os.getpid()}" in out
            assert "50 permits: 1 held, 0 in quarantine, 49 free" in out
            config = tmp_path / "config.toml"
            config.write_text(f'[gate]\nurl = "{store.url}"\nquarantine = 20.0\n')
            code, out, err = await agentapi(
                "--config", str(config), "gate", "--json", **env
            )
            assert (code, err) == (0, "")
            budget = json.loads(out)
            assert (budget["held"], len(budget["members"])) == (1, 1)
            assert token not in out
            # A command takes its permits from the same budget.
            code, out, err = await agentapi(
                "--config", str(config), "info", "--json", **env
            )
            assert (code, json.loads(out)["name"]) == (0, "operator")


@pytest.mark.timeout(60)
async def test_the_command_line_watches(store: RedisServer) -> None:
    """A line for each look, until it is interrupted."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aio_agentapi.cli", "gate", "--watch", "--json"),
        env={
            **os.environ,
            "AGENTAPI_BASE_URL": "http://127.0.0.1:1",
            "AGENTAPI_TOKEN": "11111111-2222-3333-4444-555555555555",
            "AGENTAPI_REDIS_URL": store.url,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    for _ in range(2):
        assert json.loads(await process.stdout.readline())["held"] == 0
    process.send_signal(signal.SIGINT)
    assert await process.wait() == 130


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("", "no shared gate"),
        ("[gate]\nlease = 5.0\n", "needs a url"),
        ('[gate]\nurl = "redis://x"\nshare = 2\n', "a table with some of"),
        ('[gate]\nurl = "redis://x"\nlease = 0\n', "lease: more than 0"),
        ('gate = "redis://x"\n', "a table with some of"),
    ],
)
async def test_a_wrong_gate_is_said(tmp_path: Path, config: str, told: str) -> None:
    """In a line, and nothing was done."""
    file = tmp_path / "config.toml"
    file.write_text(config)
    env = {"AGENTAPI_BASE_URL": "http://127.0.0.1:1", "AGENTAPI_TOKEN": "x"}
    code, out, err = await agentapi("--config", str(file), "gate", **env)
    assert (code, out) == (2, "")
    assert told in err


async def test_a_store_that_is_not_reached_is_said() -> None:
    """As every service that is not reached."""
    code, _, err = await agentapi(
        "gate",
        AGENTAPI_BASE_URL="http://127.0.0.1:1",
        AGENTAPI_TOKEN="x",
        AGENTAPI_REDIS_URL="redis://127.0.0.1:9",
    )
    assert code == 3
    assert "is not reached" in err
