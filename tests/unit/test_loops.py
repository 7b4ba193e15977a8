"""What the tests run in: their loops, their time, and who runs which."""

from __future__ import annotations

import asyncio
import os
import sys

import pytest
import uvloop

from tests import waiting
from tests.scheduling import Scheduler


async def test_tests_run_in_the_loop_that_is_asked_for() -> None:
    """A mode that changes nothing would prove nothing."""
    loop = asyncio.get_running_loop()
    if isinstance(loop, uvloop.Loop):
        found = "uvloop"
    else:
        found = "asyncio" if loop.get_task_factory() is None else "eager"
    assert loop.get_debug() == sys.flags.dev_mode
    assert os.environ.get("AGENTAPI_TEST_LOOP", "asyncio") == found


async def test_a_wait_ends_with_the_time_of_its_test(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An alarm that is raised in a callback is swallowed by the loop."""
    await waiting.look_again()
    monkeypatch.setattr(waiting._limit, "over", 0.0)
    with pytest.raises(pytest.fail.Exception):
        await waiting.look_again()


@pytest.mark.parametrize(
    ("test", "scope"),
    [
        ("tests/fault/test_partition.py::test_a[b]", "tests/fault/test_partition.py"),
        ("tests/unit/test_gate.py::test_a[b]", "tests/unit/test_gate.py::test_a[b]"),
    ],
)
def test_what_sets_something_up_once_stays_together(test: str, scope: str) -> None:
    """All others go wherever there is time."""
    # Without the workers that it would ask for.
    assert Scheduler.__new__(Scheduler)._split_scope(test) == scope
