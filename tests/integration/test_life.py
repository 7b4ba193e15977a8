"""How managers and sessions begin and end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest

from aio_agentapi import SessionManager, Settings
from aio_agentapi.errors import (
    AgentAPIError,
    ClosedError,
    OutcomeUnknownError,
    UsageError,
)
from aio_agentapi.sandbox import Fault, Sandbox, SandboxProcess
from tests.conftest import TOKEN
from tests.waiting import look_again


def sockets() -> int:
    """Count the sockets that this process has open."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        # The one that the listing itself used is gone by then.
        with contextlib.suppress(OSError):
            found += str(entry.readlink()).startswith("socket:")
    return found


@pytest.mark.process
@pytest.mark.parametrize("cut", [False, True])
async def test_closing_in_the_middle(*, cut: bool) -> None:
    """Those in flight end or are told, those in line get ClosedError, nothing stays."""
    async with SandboxProcess() as box:
        await box.fault(Fault("hold"))
        tasks_before, before = asyncio.all_tasks(), sockets()
        settings = Settings(drain=0.05 if cut else 30)
        manager = SessionManager(box.base_url, settings=settings)
        session = manager.session(box.tokens["operator"])
        loop = asyncio.get_running_loop()
        calls = [loop.create_task(session.agents.info()) for _ in range(1050)]
        while (await box.gauge("operator")).in_flight < 50:
            await look_again()
        assert sockets() >= before + 50
        closing = loop.create_task(manager.aclose())
        while session.gate.statistics().waiting:
            await asyncio.sleep(0)
        if not cut:
            await box.clear_faults()
        await closing
        results = await asyncio.gather(*calls, return_exceptions=True)
        ends = Counter(type(result).__name__ for result in results)
        in_flight = "OutcomeUnknownError" if cut else "AgentInfo"
        assert ends == {in_flight: 50, "ClosedError": 1000}
        assert tasks_before == asyncio.all_tasks()
        # One connection to the stand-in is this test's own, for the gauge.
        assert sockets() <= before + 1
        state = session.gate.statistics()
        assert (state.in_use, state.waiting) == (0, 0)


@pytest.mark.process
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


@pytest.mark.process
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


@pytest.mark.process
def test_a_fork_is_refused() -> None:
    """The child gets an error and not the parent's connections."""
    with asyncio.Runner() as home:
        manager = SessionManager("https://api.example.com")

        async def begin() -> None:
            async with asyncio.timeout(20):
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


@pytest.mark.process
async def test_a_cancelled_closing_leaves_nothing_open() -> None:
    """All is cut at once, whatever ``drain`` says, and closing again is complete."""
    async with SandboxProcess() as box:
        await box.fault(Fault("hold"))
        before = sockets()
        loop = asyncio.get_running_loop()
        for number, native in enumerate((True, False)):
            manager = SessionManager(box.base_url, settings=Settings(drain=3600.0))
            session = manager.session(box.tokens["operator"])
            call = loop.create_task(session.agents.info())
            while (await box.gauge("operator")).served <= number:
                await look_again()
            # The call is held for as long as the test lasts: only a cut ends it.
            async with asyncio.timeout(20):
                if native:
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.05):
                            await manager.aclose()
                else:
                    with anyio.move_on_after(0.05):
                        await manager.aclose()
                with pytest.raises(OutcomeUnknownError):
                    await call
                await manager.aclose()
            assert sockets() <= before + 1


async def test_all_who_close_may_go(box: Sandbox) -> None:
    """The last one cuts what runs, in no time, and nothing reaches the loop."""
    unhandled = watched()
    box.faults.hold()
    loop = asyncio.get_running_loop()
    manager = SessionManager(box.base_url, settings=Settings(drain=3600.0))
    session = manager.session(box.token("operator"))
    call = loop.create_task(session.agents.info())
    while not box.gauge("operator").in_flight:
        await look_again()
    closing = [loop.create_task(session.aclose()) for _ in range(3)]
    # All wait after their first turn.
    await asyncio.sleep(0)
    assert session._channel._closing.closers == len(closing)
    async with asyncio.timeout(20):
        for closer in closing:
            assert not call.done()
            closer.cancel()
            await asyncio.wait([closer])
        with pytest.raises(OutcomeUnknownError):
            await call
    ending = session._channel._closing.task
    assert ending is not None
    assert ending.done()
    assert session._channel._closing.closers == 0
    box.faults.clear()
    assert unhandled == []


async def test_what_goes_on_in_the_background_ends_with_the_session() -> None:
    """It is cancelled and waited for; what has ended before is not kept."""
    unhandled = watched()
    async with SessionManager("http://127.0.0.1:9") as manager:
        channel = manager.session(TOKEN)._channel
        ends, goes_on, fails = (
            channel.spawn(work) for work in (nothing(), for_ever(), failing())
        )
        await asyncio.wait([ends, fails])
        assert isinstance(fails.exception(), ValueError)
        # Their callbacks come a turn later.
        await asyncio.sleep(0)
        assert channel._closing.background == {goes_on}
        async with asyncio.timeout(20):
            await manager.aclose()
        assert goes_on.cancelled()
        assert channel._closing.background == set()
    assert unhandled == []


async def nothing() -> None:
    """End at once."""


async def for_ever() -> None:
    """Come to no end."""
    await asyncio.Event().wait()


async def failing() -> None:
    """Raise an error."""
    raise ValueError


def watched() -> list[dict[str, Any]]:
    """Return what reaches the handler of the running loop, from now on."""
    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: unhandled.append(context)
    )
    return unhandled


async def test_one_of_two_who_close_may_go(box: Sandbox) -> None:
    """The other one still waits for what runs; only the last one cuts it."""
    box.faults.hold()
    loop = asyncio.get_running_loop()
    manager = SessionManager(box.base_url)
    session = manager.session(box.token("operator"))
    call = loop.create_task(session.agents.info())
    while not box.gauge("operator").in_flight:
        await look_again()
    first, second = (loop.create_task(session.aclose()) for _ in range(2))
    # Both wait after their first turn.
    await asyncio.sleep(0)
    assert session._channel._closing.closers == 2
    first.cancel()
    await asyncio.wait([first])
    # What it would have cut ends in a turn.
    await look_again()
    assert not call.done()
    box.faults.clear()
    assert (await call).name == "operator"
    await second
    assert first.cancelled()


@pytest.mark.parametrize("turns", range(8))
async def test_closing_is_complete_whenever_it_is_cancelled(
    box: Sandbox, turns: int
) -> None:
    """Also twice, and before it has had its first turn."""
    loop, before = asyncio.get_running_loop(), sockets()
    box.faults.hold()
    manager = SessionManager(box.base_url, settings=Settings(drain=3600.0))
    session = manager.session(box.token("operator"))
    call = loop.create_task(session.agents.info())
    while not box.gauge("operator").in_flight:
        await asyncio.sleep(0)
    closing = loop.create_task(manager.aclose())
    await asyncio.sleep(0)
    for _ in range(2):
        closing.cancel()
        for _ in range(turns):
            await asyncio.sleep(0)
    # It is held for as long as the test lasts: only a cut ends it.
    async with asyncio.timeout(20):
        await asyncio.gather(closing, call, return_exceptions=True)
        assert isinstance(call.exception(), OutcomeUnknownError)
        ending = session._channel._closing.task
        assert ending is not None
        await asyncio.wait([ending])
    assert session._channel._transport._closed
    # The stand-in is in this process too: both ends of a connection.
    box.faults.clear()
    while box.gauge("operator").in_flight:
        await look_again()
    assert sockets() <= before + 1


@pytest.mark.process
def test_a_program_that_ends_while_it_closes(capfd: pytest.CaptureFixture[str]) -> None:
    """What asyncio.run cancels at its end leaves nothing open."""

    async def main() -> None:
        async with SandboxProcess() as box:
            await box.fault(Fault("hold"))
            manager = SessionManager(box.base_url)
            session = manager.session(box.tokens["operator"])
            loop = asyncio.get_running_loop()
            loop.set_debug(True)
            call = loop.create_task(session.agents.info())
            while not (await box.gauge("operator")).in_flight:
                await look_again()
            closing = loop.create_task(manager.aclose())
            await asyncio.sleep(0)
            assert not call.done()
            assert not closing.done()

    asyncio.run(main())
    gc.collect()
    assert capfd.readouterr().err == ""


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
    for _ in range(10):
        await asyncio.sleep(0)
    assert all(reading.done() for reading in readings)
    ends = await asyncio.gather(*readings, return_exceptions=True)
    assert [type(end) for end in ends] == [ClosedError, ClosedError]
    assert box.gauge("shop_1").served == 1
    assert not place.users


@pytest.mark.process
def test_closing_from_another_loop_closes_nothing() -> None:
    """The owner's calls go on."""
    with asyncio.Runner() as home:

        async def begin() -> tuple[
            SandboxProcess, SessionManager, asyncio.Task[object]
        ]:
            box = await SandboxProcess().__aenter__()
            await box.fault(Fault("hold"))
            manager = SessionManager(box.base_url, accounts=box.tokens)
            call = home.get_loop().create_task(
                manager.session("operator").agents.info()
            )
            while not (await box.gauge("operator")).in_flight:
                await look_again()
            return box, manager, call

        async def end() -> None:
            await box.clear_faults()
            await call
            await manager.aclose()
            await box.__aexit__()

        box, manager, call = home.run(begin())
        for close in (manager.aclose, manager.session("operator").aclose):
            with asyncio.Runner() as other, pytest.raises(UsageError, match="another"):
                other.run(close())
        home.run(end())
