"""How managers and sessions begin and end."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from pathlib import Path

import anyio
import pytest

from aio_agentapi import SessionManager, Settings
from aio_agentapi.errors import (
    AgentAPIError,
    ClosedError,
    OutcomeUnknownError,
    UsageError,
)
from aio_agentapi.sandbox import Sandbox, SandboxProcess, Switches


def sockets() -> int:
    """Count the sockets that this process has open."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        # The one that the listing itself used is gone by then.
        with contextlib.suppress(OSError):
            found += str(entry.readlink()).startswith("socket:")
    return found


@pytest.mark.parametrize(
    ("drain", "ends"),
    [
        (5.0, Counter({"AgentInfo": 50, "ClosedError": 1000})),
        (0.05, Counter({"OutcomeUnknownError": 50, "ClosedError": 1000})),
    ],
)
async def test_closing_in_the_middle(drain: float, ends: Counter[str]) -> None:
    """Those in flight end or are told, those in line get ClosedError, nothing stays."""
    async with SandboxProcess(Switches(latency=0.4)) as box:
        tasks_before, before = asyncio.all_tasks(), sockets()
        manager = SessionManager(box.base_url, settings=Settings(drain=drain))
        session = manager.session(box.tokens["operator"])
        loop = asyncio.get_running_loop()
        calls = [loop.create_task(session.agents.info()) for _ in range(1050)]
        while (await box.gauge("operator")).in_flight < 50:
            await asyncio.sleep(0.01)
        assert sockets() >= before + 50
        await manager.aclose()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert ends == Counter(type(result).__name__ for result in results)
        assert tasks_before == asyncio.all_tasks()
        # One connection to the stand-in is this test's own, for the gauge.
        assert sockets() <= before + 1
        state = session.gate.statistics()
        assert (state.in_use, state.waiting) == (0, 0)


async def test_a_closed_manager_says_so() -> None:
    """The session that it gave out too, at every call, and closing again is fine."""
    async with SandboxProcess() as box:
        async with SessionManager(box.base_url) as manager:
            session = manager.session(box.tokens["operator"])
            await session.agents.info()
        with pytest.raises(ClosedError):
            await session.agents.info()
        with pytest.raises(ClosedError):
            manager.session(box.tokens["operator"])
        await manager.aclose()
        assert repr(manager).endswith("closed>")


async def test_nothing_is_opened_before_it_is_needed() -> None:
    """A manager that is not used has no socket and leaves nothing."""
    before = sockets()
    async with SessionManager("https://api.example.com") as manager:
        manager.session("11111111-2222-3333-4444-555555555555")
        assert before == sockets()


def test_another_loop_is_refused() -> None:
    """The call raises, it does not hang, and the manager's own loop goes on."""
    with asyncio.Runner() as home:

        async def begin() -> tuple[SandboxProcess, SessionManager]:
            box = await SandboxProcess().__aenter__()
            manager = SessionManager(box.base_url, accounts=box.tokens)
            await manager.session("operator").agents.info()
            return box, manager

        box, manager = home.run(begin())
        with asyncio.Runner() as other, pytest.raises(UsageError, match="another"):
            other.run(manager.session("operator").agents.info())
        assert home.run(manager.session("operator").agents.info()).name == "operator"
        home.run(manager.aclose())
        home.run(box.__aexit__())


def test_a_fork_is_refused() -> None:
    """The child gets an error and not the parent's connections."""
    with asyncio.Runner() as home:
        manager = SessionManager("https://api.example.com")

        async def begin() -> None:
            async with asyncio.timeout(5):
                await manager.__aenter__()

        home.run(begin())
        session = manager.session("11111111-2222-3333-4444-555555555555")
        child = os.fork()
        if child == 0:
            code = 1
            try:
                asyncio.run(session.agents.info())
            except AgentAPIError as error:
                code = (
                    0 if isinstance(error, UsageError) and "fork" in str(error) else 2
                )
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        home.run(manager.aclose())


async def test_a_cancelled_closing_leaves_nothing_open() -> None:
    """Connections are closed all the same, and closing again is complete."""
    async with SandboxProcess(Switches(latency=0.5)) as box:
        before = sockets()
        loop = asyncio.get_running_loop()
        for scope in (asyncio.timeout(0.05), anyio.move_on_after(0.05)):
            manager = SessionManager(box.base_url)
            session = manager.session(box.tokens["operator"])
            call = loop.create_task(session.agents.info())
            while (await box.gauge("operator")).in_flight < 1:
                await asyncio.sleep(0.01)
            if isinstance(scope, asyncio.Timeout):
                with pytest.raises(TimeoutError):
                    async with scope:
                        await manager.aclose()
            else:
                with scope:
                    await manager.aclose()
            with pytest.raises(OutcomeUnknownError):
                await call
            await manager.aclose()
            assert sockets() <= before + 1


async def test_closing_ends_a_pause(box: Sandbox) -> None:
    """Calls that wait for their turn to read a feed are told at once."""
    manager = SessionManager(box.base_url)
    shop = manager.session(box.token("shop_1"))
    assert [row async for row in shop.transactions.since(0)] == []

    async def read() -> None:
        async for _ in shop.transactions.since(0):
            pass

    loop = asyncio.get_running_loop()
    readings = [loop.create_task(read()) for _ in range(2)]
    (place,) = shop._channel._pace._places.values()
    while place.users < len(readings):
        await asyncio.sleep(0)
    await manager.aclose()
    async with asyncio.timeout(1):
        ends = await asyncio.gather(*readings, return_exceptions=True)
    assert [type(end) for end in ends] == [ClosedError, ClosedError]
    assert box.gauge("shop_1").served == 1
    assert not place.users


def test_closing_from_another_loop_closes_nothing() -> None:
    """The owner's calls go on."""
    with asyncio.Runner() as home:

        async def begin() -> tuple[
            SandboxProcess, SessionManager, asyncio.Task[object]
        ]:
            box = await SandboxProcess(Switches(latency=0.3)).__aenter__()
            manager = SessionManager(box.base_url, accounts=box.tokens)
            call = home.get_loop().create_task(
                manager.session("operator").agents.info()
            )
            await asyncio.sleep(0.1)
            return box, manager, call

        async def end() -> None:
            await call
            await manager.aclose()
            await box.__aexit__()

        box, manager, call = home.run(begin())
        for close in (manager.aclose, manager.session("operator").aclose):
            with asyncio.Runner() as other, pytest.raises(UsageError, match="another"):
                other.run(close())
        home.run(end())
