"""The loops that the tests can be run in."""

from __future__ import annotations

import asyncio
import os
import sys

import uvloop


async def test_tests_run_in_the_loop_that_is_asked_for() -> None:
    """A mode that changes nothing would prove nothing."""
    loop = asyncio.get_running_loop()
    if isinstance(loop, uvloop.Loop):
        found = "uvloop"
    else:
        found = "asyncio" if loop.get_task_factory() is None else "eager"
    assert loop.get_debug() == sys.flags.dev_mode
    assert os.environ.get("AGENTAPI_TEST_LOOP", "asyncio") == found
