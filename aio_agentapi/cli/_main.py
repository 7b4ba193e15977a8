"""The commands, gathered."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from aio_agentapi.cli import (
    _agents,
    _call,
    _demo,
    _doctor,
    _games,
    _gate,
    _payments,
    _points,
    _sandbox,
    _shell,
    _users,
)
from aio_agentapi.cli._command import EXIT_CODES, keep_account


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXIT_CODES,
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_shell.tell_versions,
    help="Show the versions of agentapi and of what it stands on, and exit.",
)
@click.option(
    "--account",
    envvar="AGENTAPI_ACCOUNT",
    metavar="NAME",
    help="An account of the configuration file.",
)
@click.option(
    "--config",
    envvar="AGENTAPI_CONFIG",
    type=click.Path(path_type=Path),
    help="The configuration file (TOML).",
)
@click.option("--token", hidden=True, is_flag=False, flag_value="", default=None)
@click.pass_context
def main(
    context: click.Context, account: str | None, config: Path | None, token: str | None
) -> None:
    """
    Move points and money, and manage agents, from the command line.

    The service and the token come from AGENTAPI_BASE_URL and AGENTAPI_TOKEN, or
    from an account in the configuration file (--account). A token is never given
    on the command line: others on the machine can read it there.
    """
    # What is worth knowing, the commands say themselves.
    logging.getLogger("aio_agentapi").addHandler(logging.NullHandler())
    keep_account(context, account, config, token)


main.add_command(_demo.demo)
main.add_command(_sandbox.sandbox)
main.add_command(_agents.info)
main.add_command(_agents.agents)
main.add_command(_points.points)
main.add_command(_users.users)
main.add_command(_payments.wallets)
main.add_command(_payments.payments)
main.add_command(_users.transactions)
main.add_command(_games.games)
main.add_command(_gate.gate)
main.add_command(_doctor.doctor)
main.add_command(_call.call)
main.add_command(_shell.completion)
