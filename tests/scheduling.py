"""
Which worker runs which test.

The tests of a module that sets something up once are run by one worker, for each other
one would set it up again; all others go wherever there is time. Modules come first:
what takes long has not to be waited for at the end.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling  # pyright: ignore[reportMissingTypeStubs]

ROOT = Path(__file__).parents[1]


@functools.cache
def sets_up_once(module: str) -> bool:
    """Tell whether a module, by its path from the root, has fixtures of its own."""
    return 'scope="module"' in (ROOT / module).read_text()


class Scheduler(LoadScopeScheduling):  # type: ignore[misc]  # has no types
    """Deals tests out one by one, but for modules that set something up once."""

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return module if sets_up_once(module) else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduler | None:
    """
    Deal tests out so, unless another way is asked for.

    Marks with groups would do, too, if pytest 9.2 did not ignore them without a word.
    """
    return Scheduler(config, log) if config.option.dist == "load" else None
