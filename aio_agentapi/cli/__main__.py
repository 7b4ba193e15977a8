"""Where ``agentapi`` and ``python -m aio_agentapi.cli`` start."""

from __future__ import annotations

import sys


def run() -> None:
    """Run the command line, or say what it needs."""
    try:
        from aio_agentapi.cli._main import main  # noqa: PLC0415 - may be missing
    except ModuleNotFoundError as error:
        if error.name not in {"click", "rich", "platformdirs"}:
            raise
        sys.exit(f"agentapi needs {error.name}: pip install 'aio-agentapi[cli]'")
    main()


if __name__ == "__main__":
    run()
