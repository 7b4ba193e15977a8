"""The stand-in as a process of its own: options as JSON, ended by its parent."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from aio_agentapi.sandbox._box import Sandbox, serve
from aio_agentapi.sandbox._switches import Switches


def run() -> None:
    """Serve as the one argument says."""
    options = json.loads(sys.argv[1])
    db = Path(options["db"]) if "db" in options else None
    switches, seed = Switches(**options["switches"]), options["seed"]
    asyncio.run(serve(Sandbox(switches, db=db, seed=seed)))


if __name__ == "__main__":
    run()
