"""The games that the stand-in offers: made up, the same in every run."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Final

import attrs

NORMAL: Final = 1
MAINTENANCE: Final = 2


@attrs.frozen(kw_only=True)
class Provider:
    """Whose games they are; one under maintenance lets nobody in."""

    id: int
    name: str
    status: int
    category: str
    games: int


@attrs.frozen(kw_only=True)
class Game:
    """One game of a provider."""

    provider: Provider
    code: str
    name: str
    enabled: bool


PROVIDERS: Final[Mapping[int, Provider]] = {
    provider.id: provider
    for provider in (
        Provider(id=1, name="Aurora", status=NORMAL, category="Slots", games=40),
        Provider(id=2, name="Borealis", status=NORMAL, category="Live", games=12),
        Provider(id=3, name="Cirrus", status=MAINTENANCE, category="Slots", games=5),
        Provider(id=4, name="Drizzle", status=NORMAL, category="Slots", games=2500),
    )
}


@cache
def games(provider: Provider) -> tuple[Game, ...]:
    """Return the games of a provider; the first stands there twice, as can happen."""
    found = [
        Game(
            provider=provider,
            code=f"{provider.name.lower()}_{number}",
            name=f"{provider.name} {number}",
            enabled=number % 10 != 0,
        )
        for number in range(1, provider.games + 1)
    ]
    return (*found, found[0])


def game(provider: Provider, code: str) -> Game | None:
    """Return a provider's game of that code."""
    return _by_code(provider).get(code)


@cache
def _by_code(provider: Provider) -> Mapping[str, Game]:
    return {game.code: game for game in games(provider)}
