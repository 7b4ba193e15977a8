"""``agentapi games``."""

from __future__ import annotations

import click

from aio_agentapi.cli import _show
from aio_agentapi.cli._agents import as_json_option
from aio_agentapi.cli._command import open_session, runs

_PROVIDER = ("provider_id", "provider_name", "locale_name", "status")
_GAME = ("provider_id", "game_code", "game_name", "locale_name", "category", "reg_date")
_ONLINE = (
    "gplay_id",
    "user_code",
    "user_name",
    "provider_name",
    "game_name",
    "last_round_bet",
    "spend",
    "win",
    "start_time",
    "last_update",
)

_language_option = click.option(
    "--lang",
    default=1,
    show_default=True,
    help="The service's number of a language: 1 en, 2 ko, 3 th, 4 es, 5 ja, 6 pt,"
    " 7 tr, 8 de, 9 id, 10 ms, 11 zh.",
)


@click.group()
def games() -> None:
    """Show what your users can play, and who plays."""


@games.command()
@_language_option
@as_json_option
@click.pass_context
@runs
async def providers(context: click.Context, lang: int, as_json: bool) -> None:
    """List whose games there are."""
    async with open_session(context) as session:
        found = await session.games.providers(lang=lang)
    _show.table(found, _PROVIDER, as_json=as_json)


@games.command("list")
@click.argument("provider_id", type=int)
@_language_option
@as_json_option
@click.pass_context
@runs
async def list_(
    context: click.Context, provider_id: int, lang: int, as_json: bool
) -> None:
    """List the games of a provider."""
    async with open_session(context) as session:
        found = await session.games.list(provider_id, lang=lang)
    _show.table(found, _GAME, as_json=as_json)


@games.command("launch-url")
@click.argument("user_code", type=int)
@click.argument("provider_id", type=int)
@click.argument("game_code")
@_language_option
@click.option("--return-url", help="Where the game leads back to.")
@as_json_option
@click.pass_context
@runs
async def launch_url(
    context: click.Context,
    user_code: int,
    provider_id: int,
    game_code: str,
    lang: int,
    return_url: str | None,
    as_json: bool,
) -> None:
    """
    Show an address that lets a user into a game.

    Whoever has it plays as that user: once, and within ten minutes.
    """
    async with open_session(context) as session:
        url = await session.games.launch_url(
            user_code, provider_id, game_code, lang=lang, return_url=return_url
        )
    if as_json:
        _show.line({"game_url": url})
    else:
        click.echo(url)


@games.command()
@as_json_option
@click.pass_context
@runs
async def online(context: click.Context, as_json: bool) -> None:
    """List who has been in a game during the last half hour."""
    async with open_session(context) as session:
        found = await session.games.online()
    _show.table(found, _ONLINE, as_json=as_json)
