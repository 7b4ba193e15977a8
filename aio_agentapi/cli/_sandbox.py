"""``agentapi sandbox``: the stand-in service in the foreground."""

from __future__ import annotations

import asyncio
import json
import math
import signal
import sqlite3
from pathlib import Path

import click

from aio_agentapi.cli._command import runs
from aio_agentapi.errors import UsageError
from aio_agentapi.sandbox import Sandbox, Switches, document


@click.command()
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    show_default="a free one",
    help="Port of 127.0.0.1.",
)
@click.option("--limit", default=50, show_default=True, help="Calls at once.")
@click.option(
    "--latency", default=0.0, show_default=True, help="Seconds that a call takes."
)
@click.option(
    "--db", type=click.Path(path_type=Path), help="Keep the state in this file."
)
@click.option(
    "--login",
    is_flag=True,
    help="Let its pages ask for an account and its token, and show what is below it.",
)
@click.option(
    "--openapi", is_flag=True, help="Write the OpenAPI document, and do nothing else."
)
@runs
async def sandbox(
    port: int, limit: int, latency: float, db: Path | None, login: bool, openapi: bool
) -> None:
    """
    Run a stand-in for the service, with a small hierarchy ready to use.

    It answers on this machine only, until it is interrupted. The tokens that it
    prints are its own, and worth nothing elsewhere. Its address, opened in a browser,
    shows its back office.
    """
    if openapi:
        click.echo(json.dumps(document(), indent=2))
        return
    if limit < 1 or not 0 <= latency < math.inf:
        msg = "--limit is at least 1, and --latency at least 0"
        raise UsageError(msg)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        switches = Switches(limit=limit, latency=latency)
        box = Sandbox(switches, db=db, port=port, login=login)
        await box.__aenter__()
    except (OSError, sqlite3.Error) as error:
        msg = f"the stand-in cannot start: {error}"
        raise UsageError(msg) from None
    try:
        click.echo(f"export AGENTAPI_BASE_URL={box.base_url}")
        for account in box.accounts()[:20]:
            mark = "export" if account.name == "operator" else "#     "
            click.echo(
                f"{mark} AGENTAPI_TOKEN={account.token}"
                f"  # {account.role} {account.name}, agent_code {account.code}"
            )
        click.echo(f"# The back office: {box.base_url}/")
        click.echo("# Ctrl-C ends it", err=True)
        await stop.wait()
    finally:
        await box.__aexit__()
