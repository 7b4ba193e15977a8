"""What the shell asks: ``--version``, and how to complete what is typed."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import click
from click.shell_completion import BashComplete, FishComplete, ZshComplete

# What a report of an error should name; redis is there only for some.
_MATTER: Final = ("aiohttp", "attrs", "cattrs", "msgspec", "redis")

_SHELLS: Final = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}


def tell_versions(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    """Write the versions of what matters, and end: the callback of ``--version``."""
    if not wanted:
        return
    click.echo(f"agentapi, version {version('aio-agentapi')}")
    click.echo(f"Python {platform.python_version()}")
    for name in _MATTER:
        try:
            click.echo(f"{name} {version(name)}")
        except PackageNotFoundError:
            click.echo(f"{name} is not installed")
    context.exit()


@click.command()
@click.argument("shell", type=click.Choice([*_SHELLS]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """
    Write what makes a shell complete the commands and options of agentapi.

    In bash and zsh: eval "$(agentapi completion bash)", with the name of the shell;
    in fish: agentapi completion fish | source. The same line in the file that the
    shell starts from (.bashrc, .zshrc, config.fish) makes it last.
    """
    main = context.find_root().command
    # click answers to this variable, which it makes of the program's name.
    asked = _SHELLS[shell](main, {}, "agentapi", "_AGENTAPI_COMPLETE")
    click.echo(asked.source())
