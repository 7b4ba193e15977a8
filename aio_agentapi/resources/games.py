"""The games of the service: what there is, links into them, and who plays."""

from __future__ import annotations

import builtins
from datetime import datetime
from decimal import Decimal
from typing import Final

import attrs

from aio_agentapi._channel import Channel
from aio_agentapi._types import OpenInt, OpenStr, Operation, Query, UserCode

__all__ = [
    "Category",
    "Game",
    "Games",
    "Language",
    "OnlineGame",
    "Provider",
    "ProviderStatus",
]


class Language(OpenInt):
    """In which names are told; a number we do not know is kept."""

    EN = 1
    KO = 2
    TH = 3
    ES = 4
    JA = 5
    PT = 6
    TR = 7
    DE = 8
    ID = 9
    MS = 10
    ZH = 11


class ProviderStatus(OpenInt):
    """Whether a provider's games can be played; a number we do not know is kept."""

    NORMAL = 1
    MAINTENANCE = 2


class Category(OpenStr):
    """What kind of game it is; a word we do not know is kept."""

    SLOTS = "Slots"
    LIVE = "Live"


@attrs.frozen(kw_only=True)
class Provider:
    """
    Whose games there are.

    Attributes:
        provider_id: The service's number of it.

        provider_name: In English.

        locale_name: In the language that was asked for.

        status: Normal or under maintenance.
    """

    provider_id: int
    provider_name: str
    locale_name: str
    status: ProviderStatus


@attrs.frozen(kw_only=True)
class Game:
    """
    One game.

    Attributes:
        provider_id: Whose.

        game_code: The provider's code of it; it can stand there twice.

        game_name: In English.

        locale_name: In the language that was asked for.

        game_image: The address of a picture.

        game_image_narrow: Of a narrow one. None where not told.

        launch_enable: Whether it can be played.

        category: Slots or Live.

        reg_date: Since when there is the game, with its zone.
    """

    provider_id: int
    game_code: str
    game_name: str
    locale_name: str
    game_image: str
    game_image_narrow: str | None = None
    launch_enable: bool
    category: Category
    reg_date: datetime


@attrs.frozen(kw_only=True)
class OnlineGame:
    """
    A user in a game during the last 30 minutes; amounts in major units.

    Attributes:
        gplay_id: The service's number of it.

        user_code: Who plays.

        user_name: Its name.

        provider_id: Whose game.

        provider_name: Its name.

        game_code: The game.

        game_name: Its name.

        category: The service's number of its kind.

        last_round_bet: What was bet last.

        spend: What was bet in all.

        win: What was won in all.

        start_time: Since when, with its zone.

        last_update: When something last happened.
    """

    gplay_id: int
    user_code: UserCode
    user_name: str
    provider_id: int
    provider_name: str
    game_code: str
    game_name: str
    category: int
    last_round_bet: Decimal
    spend: Decimal
    win: Decimal
    start_time: datetime
    last_update: datetime


@attrs.frozen(kw_only=True)
class _GameUrl:
    game_url: str


@attrs.frozen(kw_only=True)
class _RoundDetails:
    url: str | None = None


_PROVIDERS: Final = Operation(
    name="games.providers", effect="read", returns=list[Provider]
)
_LIST: Final = Operation(name="games.list", effect="read", returns=list[Game])
_ALL: Final = Operation(name="games.all", effect="read", returns=list[Game])
_LAUNCH_URL: Final = Operation(name="games.launch_url", effect="read", returns=_GameUrl)
_ONLINE: Final = Operation(name="games.online", effect="read", returns=list[OnlineGame])
_ROUND: Final = Operation(
    name="games.round_details_url", effect="read", returns=_RoundDetails
)


@attrs.frozen(eq=False)
class Games:
    """The games that the caller's users can play."""

    _channel: Channel = attrs.field(alias="channel", repr=False)

    async def providers(self, *, lang: Language | int = Language.EN) -> list[Provider]:
        """
        Return whose games there are.

        Args:
            lang: The language of ``locale_name``.

        Returns:
            All of them, those under maintenance too.

        Raises:
            InvalidError: The service has no such language.

        Source:
            Contract 5, games: ``game/providers``.
        """
        return await self._channel.call(Query(_PROVIDERS, {"lang": int(lang)}))

    async def list(
        self, provider_id: int, *, lang: Language | int = Language.EN
    ) -> builtins.list[Game]:
        """
        Return the games of a provider.

        Args:
            provider_id: Whose.

            lang: The language of ``locale_name``.

        Returns:
            All of them; a code can stand there twice.

        Raises:
            NotFoundError: There is no such provider.

            InvalidError: The service has no such language.

        Source:
            Contract 5, games: ``game/games``.
        """
        body = {"provider_id": provider_id, "lang": int(lang)}
        return await self._channel.call(Query(_LIST, body))

    async def all(self) -> builtins.list[Game]:
        """
        Return the games of all providers, thousands of them.

        Returns:
            All of them; a code can stand there twice.

        Raises:
            UnsupportedError: An older deployment, which lacks this call: ask for
                each provider's.

        Source:
            Contract 5, games: ``game/all``.
        """
        return await self._channel.call(Query(_ALL, {}))

    async def launch_url(
        self,
        user_code: UserCode,
        provider_id: int,
        game_code: str,
        *,
        lang: Language | int = Language.EN,
        return_url: str | None = None,
    ) -> str:
        """
        Return an address that lets a user into a game.

        Whoever has it plays as that user: once, and within ten minutes.

        Args:
            user_code: Who is to play.

            provider_id: Whose game.

            game_code: Which one; a ``Game``'s game_code.

            lang: Of the game.

            return_url: Where the game leads back to. None: nowhere.

        Returns:
            The address.

        Raises:
            NotFoundError: There is no such user, provider or game.

            ForbiddenError: It is another agent's user.

            MaintenanceError: The game cannot be played now.

        Source:
            Contract 5, games: ``game/game-url``.
        """
        body = {
            "user_code": user_code,
            "provider_id": provider_id,
            "game_symbol": game_code,
            "lang": int(lang),
            "return_url": return_url,
        }
        answer = await self._channel.call(Query(_LAUNCH_URL, body))
        return answer.game_url

    async def online(self) -> builtins.list[OnlineGame]:
        """
        Return who has been in a game during the last 30 minutes.

        Returns:
            One for each user and game.

        Raises:
            CredentialError: The token, or this machine's address, is not accepted.

        Source:
            Contract 5, games: ``game/online-games``.
        """
        return await self._channel.call(Query(_ONLINE, {}))

    async def round_details_url(
        self,
        user_code: UserCode,
        round_id: str,
        *,
        provider_id: int | None = None,
        game_code: str | None = None,
    ) -> str | None:
        """
        Return an address at which a round can be looked at.

        Args:
            user_code: Who played it.

            round_id: Of a Transaction, of the last 30 days.

            provider_id: Whose game it was. None: left out.

            game_code: Which game. None: left out.

        Returns:
            The address, None where the provider has none.

        Raises:
            NotFoundError: There is no such user or round.

            ForbiddenError: It is another agent's user.

        Source:
            Contract 5, games: ``game/round-details``.
        """
        body = {
            "user_code": user_code,
            "round_id": round_id,
            "provider_id": provider_id,
            "game_code": game_code,
        }
        answer = await self._channel.call(Query(_ROUND, body))
        return answer.url
