"""``agentapi call``: any path of the service."""

from __future__ import annotations

from decimal import Decimal
from typing import Final, Literal

import click
import msgspec

from aio_agentapi.cli import _show
from aio_agentapi.cli._command import last_words, open_session, runs
from aio_agentapi.errors import UsageError

_DECODER: Final = msgspec.json.Decoder(dict[str, object], float_hook=Decimal)


@click.command()
@click.argument("path")
@click.argument("body", metavar="[JSON]", default="{}")
@click.option("--read", is_flag=True, help="Sending it twice does no harm.")
@click.pass_context
@runs
async def call(context: click.Context, path: str, body: str, read: bool) -> None:
    """
    Call PATH, relative to /v4/, with a JSON object, and show the data as JSON.

    For what has no command of its own; numbers are exact both ways. Without --read it
    is not sent again after a lost answer.
    """
    try:
        members = _DECODER.decode(body)
    except (ValueError, ArithmeticError) as error:
        msg = f"JSON: an object, such as '{{\"user_code\": 5}}': {error}"
        raise UsageError(msg) from None
    async with open_session(context) as session:
        effect: Literal["read", "money"] = "read" if read else "money"
        answer = await session.call(path, members, effect=effect)
    with last_words():
        _show.line(answer)
