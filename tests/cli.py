"""The command line in tests: in a thread of this process, or in one of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import traceback
from collections.abc import Generator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest import mock

import attrs
from click.testing import CliRunner

from aio_agentapi.cli._main import main
from aio_agentapi.sandbox import Sandbox, SandboxProcess


@attrs.frozen
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The output as one document."""
        return json.loads(self.out, parse_float=Decimal)


async def run(
    box: Sandbox | SandboxProcess | None,
    *args: str | Path,
    name: str = "operator",
    send: bytes | None = None,
    env: Mapping[str, str] | None = None,
) -> Ran:
    """
    Run ``agentapi`` in a thread, with its real calls and files; one at a time.

    That is quicker than a process by what it takes to start Python and to import the
    library. What only a process shows (signals, pipes, a kill, standard input that is
    no file) is for :func:`begin` and :func:`run_process`.
    """
    words = [*map(str, args)]
    own = environment(box, name, env)
    return await asyncio.to_thread(invoke, words, own, send)


def invoke(words: list[str], env: Mapping[str, str], send: bytes | None = None) -> Ran:
    """Run a command in this thread, with this environment and no other."""
    gone = dict.fromkeys(name for name in os.environ if name not in env)
    with _deaf():
        ran = CliRunner().invoke(main, words, input=send, env={**gone, **env})
    err = ran.stderr
    if ran.exc_info is not None and not isinstance(ran.exception, SystemExit | None):
        err += "".join(traceback.format_exception(*ran.exc_info))
    return Ran(ran.exit_code, ran.stdout, err)


@contextlib.contextmanager
def _deaf() -> Generator[None]:
    """Let a loop in a thread, which signals do not reach, take handlers for them."""
    loop = asyncio.SelectorEventLoop
    with (
        mock.patch.object(loop, "add_signal_handler"),
        mock.patch.object(loop, "remove_signal_handler"),
    ):
        yield


async def run_process(
    box: Sandbox | SandboxProcess | None,
    *args: str | Path,
    name: str = "operator",
    send: bytes | None = None,
    env: Mapping[str, str] | None = None,
) -> Ran:
    """Run ``agentapi`` in a process of its own."""
    process = await begin(box, *args, name=name, env=env)
    try:
        out, err = await process.communicate(send)
    finally:
        if process.returncode is None:
            # The test has given it up.
            process.kill()
            await process.communicate()
    return Ran(process.returncode or 0, out.decode(), err.decode())


async def begin(
    box: Sandbox | SandboxProcess | None,
    *args: str | Path,
    name: str = "operator",
    env: Mapping[str, str] | None = None,
) -> asyncio.subprocess.Process:
    """Start ``agentapi`` in a process of its own."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "aio_agentapi.cli",
        *args,
        env=environment(box, name, env),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


def environment(
    box: Sandbox | SandboxProcess | None,
    name: str = "operator",
    env: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return this process's environment, without accounts and proxies of its own."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("AGENTAPI_") and not name.lower().endswith("_proxy")
    }
    if box is not None:
        token = box.token(name) if isinstance(box, Sandbox) else box.tokens[name]
        kept |= {"AGENTAPI_BASE_URL": box.base_url, "AGENTAPI_TOKEN": token}
    return kept | {"XDG_CONFIG_HOME": "/nonexistent"} | dict(env or {})
