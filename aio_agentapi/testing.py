"""
Fixtures for pytest: the stand-in, sessions on it, and what goes wrong there.

pytest finds this plugin by itself once the library is installed. It works with
pytest-asyncio, with anyio's plugin and with neither: the stand-in has a thread of its
own, and no fixture is async. So it is there while other fixtures are set up, for
code of any event loop, and for code without one.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal, localcontext
from typing import TYPE_CHECKING, Final

import pytest

from aio_agentapi import SessionManager, Settings
from aio_agentapi._settings import PATHS
from aio_agentapi._types import Amount, UserCode

# pytest loads this module in every run, and the stand-in brings a server along.
if TYPE_CHECKING:
    from aio_agentapi.sandbox import (
        Faults,
        ManualClock,
        Sandbox,
        Switches,
    )

__all__ = [
    "agentapi",
    "agentapi_clock",
    "agentapi_faults",
    "agentapi_run_sandbox",
    "agentapi_sandbox",
    "agentapi_settings",
    "agentapi_switches",
    "assert_balances",
    "assert_points",
]

_UNIT: Final = 10_000


@pytest.fixture(scope="session")
def agentapi_switches() -> Switches:
    """
    How the stand-in behaves: override it for another deployment.

    By default it lets a feed be read again at once.
    """
    from aio_agentapi.sandbox import Switches  # noqa: PLC0415 - only where it is used

    return Switches(feed_spacing=0)


@pytest.fixture(scope="session")
def agentapi_settings() -> Settings:
    """
    How the sessions of ``agentapi`` behave: override it for others.

    By default a lost payment is settled within a second: a feed is read every 0.05 s,
    and a call that the service has not executed after 0.2 s never is. A test that
    delays calls for longer says so in ``longest_call``.
    """
    return Settings(feed_interval=0.05, feed_lag=0.05, longest_call=0.2)


@pytest.fixture
def agentapi_sandbox(
    request: pytest.FixtureRequest, agentapi_switches: Switches
) -> Generator[Sandbox]:
    """
    A stand-in for this test alone, with a broker, an operator and two agents.

    It is a :class:`aio_agentapi.sandbox.Sandbox`. Its clock stands still if the test
    has ``agentapi_clock``.
    """
    from aio_agentapi.sandbox import (  # noqa: PLC0415 - only where it is used
        ManualClock,
        SandboxThread,
    )

    by_hand = "agentapi_clock" in request.fixturenames
    clock = ManualClock(datetime.now(UTC)) if by_hand else None
    with SandboxThread(agentapi_switches, clock=clock) as box:
        yield box


@pytest.fixture(scope="session")
def agentapi_run_sandbox(agentapi_switches: Switches) -> Generator[Sandbox]:
    """
    One stand-in for all tests of a run, which keeps what they do to it.

    It begins with the ``agentapi_switches`` of the first test that asks for it. Where
    tests have it instead of one of their own, ``agentapi_sandbox`` is overridden to
    return it.
    """
    from aio_agentapi.sandbox import SandboxThread  # noqa: PLC0415 - as above

    with SandboxThread(agentapi_switches) as box:
        yield box


@pytest.fixture
def agentapi(
    request: pytest.FixtureRequest,
    agentapi_sandbox: Sandbox,
    agentapi_settings: Settings,
) -> Generator[SessionManager]:
    """
    Sessions at the stand-in by name: ``agentapi.session("shop_1")``.

    There is one for each account that the stand-in has when the test begins. They
    belong to the loop of the test and end with the test function: a fixture that
    calls after its ``yield`` opens a SessionManager of its own.
    """
    box = agentapi_sandbox
    manager = SessionManager(
        box.base_url,
        accounts={a.name: box.token(a.name) for a in box.accounts()},
        settings=agentapi_settings,
    )
    with _closed_by(request.node, manager):
        yield manager


@pytest.fixture
def agentapi_faults(agentapi_sandbox: Sandbox) -> Generator[Faults]:
    """
    What goes wrong at the stand-in, by the names of the calls.

    ``agentapi_faults.drop_after("wallets.deposit", times=1)`` executes the next
    deposit and loses its answer. A path of the service does as well
    (``"wallet/deposit"``). All faults end with the test.
    """
    faults = agentapi_sandbox.faults
    faults.aliases.update(PATHS)
    yield faults
    faults.clear()


@pytest.fixture
def agentapi_clock(agentapi_sandbox: Sandbox) -> ManualClock:
    """
    The stand-in's clock, which stands still until ``agentapi_clock.advance(seconds)``.

    It begins with the time of the machine. The client's waiting is real.
    """
    from aio_agentapi.sandbox import ManualClock  # noqa: PLC0415 - as above

    clock = agentapi_sandbox.clock
    if not isinstance(clock, ManualClock):
        pytest.fail(
            "agentapi_clock: this stand-in goes by the machine's clock. Name"
            " agentapi_clock among the arguments of the test, and do not override"
            " agentapi_sandbox, or give that one a ManualClock",
            pytrace=False,
        )
    return clock


def assert_points(box: Sandbox, expected: Mapping[str, Amount]) -> None:
    """
    Fail unless the accounts of a stand-in have exactly these points.

    It looks into the stand-in's books, without a call.

    Args:
        box: The stand-in.

        expected: For each account by its name, the points in major units, as a
            Decimal, an int or digits.

    Raises:
        AssertionError: Some have others: a line for each of them tells who, what was
            expected, what was found, and by how much they differ.

        TypeError: A float, which is not exact.

        KeyError: There is no such account.
    """
    __tracebackhide__ = True
    found = {name: box.account(name).points for name in expected}
    _compare("points", expected, found)


def assert_balances(
    box: Sandbox, agent: str, expected: Mapping[str | UserCode, Amount]
) -> None:
    """
    Fail unless the users of an agent have exactly these balances.

    It looks into the stand-in's books, without a call.

    Args:
        box: The stand-in.

        agent: The name of the account that they are users of.

        expected: For each user by its name or user_code, the balance in major units,
            as a Decimal, an int or digits.

    Raises:
        AssertionError: Some have others: a line for each of them tells who, what was
            expected, what was found, and by how much they differ.

        TypeError: A float, which is not exact.

        KeyError: There is no such account, or no such user of it.
    """
    __tracebackhide__ = True
    users = box.users(agent)
    known = {u.name: u.balance for u in users} | {u.code: u.balance for u in users}
    found = {who: known[who] for who in expected}
    _compare(f"balances of the users of {agent}", expected, found)


def _compare(
    what: str,
    expected: Mapping[str, Amount] | Mapping[str | UserCode, Amount],
    found: Mapping[str, int] | Mapping[str | UserCode, int],
) -> None:
    __tracebackhide__ = True
    lines: list[str] = []
    # Whatever the test has made of the precision: 10^15 with four decimals, and more.
    with localcontext(prec=40):
        for (who, amount), units in zip(expected.items(), found.values(), strict=True):
            if isinstance(amount, float):
                msg = f"{who}: a float is not exact: a Decimal, an int or digits"
                raise TypeError(msg)
            wanted, there = Decimal(amount), Decimal(units) / _UNIT
            if wanted != there:
                difference = _written(abs(there - wanted))
                lines.append(
                    f"  {who}: expected {_written(wanted)}, found {_written(there)},"
                    f" {difference} too {'much' if there > wanted else 'little'}"
                )
    if lines:
        raise AssertionError("\n".join([f"{what} differ:", *lines]))


def _written(amount: Decimal) -> str:
    """Write an amount with four decimals, or with all that it has."""
    text = f"{amount:.4f}"
    return text if Decimal(text) == amount else f"{amount:f}"


@contextmanager
def _closed_by(node: pytest.Function, manager: SessionManager) -> Generator[None]:
    """
    Let an async test close a manager as its last act.

    Nobody else can: its loop is gone before a fixture that is not async is torn
    down, and whose plugin runs it we do not know.
    """
    test = node.obj
    if not inspect.iscoroutinefunction(test):
        pytest.fail(
            "agentapi: its sessions live in the loop of an async test, and this test is"
            " none. Use agentapi_sandbox, and open a SessionManager in the loop that"
            " you bring",
            pytrace=False,
        )

    @functools.wraps(test)
    async def closing(*args: object, **kwargs: object) -> object:
        async with manager:
            return await test(*args, **kwargs)

    node.obj = closing
    try:
        yield
    finally:
        # Some plugins run a test more than once.
        node.obj = test
