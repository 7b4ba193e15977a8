"""
What coverage is measured of: all tests but searches, and not what they start.

A search runs the same lines some thousand times, and measuring makes that twice as
slow. Other tests run those lines as well; that a search finds what is wrong is shown by
a mutant, not by coverage.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator

import pytest


def only_here() -> None:
    """Let the hundreds of processes that tests start go without."""
    for name in [name for name in os.environ if name.startswith("COVERAGE_PROCESS")]:
        del os.environ[name]


# What starts the workers has to tell them.
if "PYTEST_XDIST_WORKER" in os.environ:
    only_here()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Measure nothing while a search runs."""
    coverage = sys.modules.get("coverage")
    measuring = None if coverage is None else coverage.Coverage.current()
    if measuring is None or item.get_closest_marker("search") is None:
        return (yield)
    measuring.stop()
    try:
        return (yield)
    finally:
        measuring.start()
        only_here()
