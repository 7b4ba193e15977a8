"""Which tests start processes: those that are marked so, and this sees to it."""

from __future__ import annotations

import sys
from collections.abc import Generator

import pytest

# What is asked of the system when a process begins.
_BEGINNINGS = frozenset({"subprocess.Popen", "os.fork", "os.posix_spawn"})

# griffe asks git about the package.
_QUICK = {("git",)}

_begun: list[str] = []


def _hear(event: str, args: tuple[object, ...]) -> None:
    if event in _BEGINNINGS and args[:1] not in _QUICK:
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
