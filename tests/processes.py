"""
What is true of all tests: which of them start processes, and how long one may take.

Those that start processes are marked so, and no other: this sees to it.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import Any

import pytest

from tests.waiting import PATIENCE

# What is asked of the system when a process begins.
_BEGINNINGS = frozenset({"subprocess.Popen", "os.fork", "os.posix_spawn"})

_begun: list[str] = []


def _hear(event: str, args: tuple[object, ...]) -> None:
    if event in _BEGINNINGS:
        _begun.append(f"{event} {args[:1]}")


sys.addaudithook(_hear)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Note what a test and its fixtures start."""
    del item
    _begun.clear()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Fail a test without the mark that has started one."""
    yield
    if _begun and item.get_closest_marker("process") is None:
        pytest.fail(
            f"it starts a process ({_begun[0]}): mark it with pytest.mark.process,"
            " so that make quick leaves it out",
            pytrace=False,
        )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """
    Give tests more time where that is asked for, and keep some together.

    Tests of a module that sets something up once are run by one worker: others go
    wherever there is time.
    """
    for item in items:
        if PATIENCE != 1:
            mark = item.get_closest_marker("timeout")
            seconds = mark.args[0] if mark else float(item.config.getini("timeout"))
            item.add_marker(pytest.mark.timeout(seconds * PATIENCE), append=False)
        info: Any = getattr(item, "_fixtureinfo", None)
        made = () if info is None else info.name2fixturedefs.values()
        if any(each[-1].scope == "module" for each in made):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
