"""What the paths of games, the feed and statistics answer."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from aio_agentapi.sandbox import _catalogue
from aio_agentapi.sandbox._catalogue import MAINTENANCE, PROVIDERS, Game, Provider
from aio_agentapi.sandbox._endpoints import Asked, Deployment
from aio_agentapi.sandbox._forms import page
from aio_agentapi.sandbox._members import Body
from aio_agentapi.sandbox._records import (
    BET,
    BUSY,
    NO_GAME,
    NO_PROVIDER,
    NO_ROUND,
    UNDER_MAINTENANCE,
    VALIDATION,
    RefusedCall,
    Row,
)

_WINDOW: Final = timedelta(hours=1)
# No zone is further from UTC.
_ZONES: Final = timedelta(hours=26)
_NONE: Final = timedelta(0)
_REGISTERED: Final = datetime(2024, 1, 15, 9, 30, tzinfo=UTC)
_SLOTS: Final = "Slots"
_SUMS: Final = (
    "slot_bet",
    "slot_win",
    "live_bet",
    "live_win",
    "mini_bet",
    "mini_win",
)
# What online-games calls the categories.
_CATEGORIES: Final = {_SLOTS: 1, "Live": 2}


def transaction_id(here: Deployment, asked: Asked) -> list[Body]:
    """Answer ``game/transaction-id``."""
    last_id = asked.body["last_id"]
    if _too_early(here, asked, "game/transaction-id", last_id):
        return []
    rows = here.ledger.feed(asked.caller, last_id, asked.body["limit"])
    return [_transaction(here, row) for row in rows]


def transaction(here: Deployment, asked: Asked) -> Body:
    """Answer ``game/transaction``."""
    body, forms = asked.body, here.forms
    start, end = body["start_time"], body["end_time"]
    if start > end or end - start > _WINDOW:
        raise RefusedCall(VALIDATION, end_time="is at most one hour after start_time")
    offset = body["offset"]
    # More than 30 s, where the other feed wants at least as many.
    if _too_early(here, asked, "game/transaction", 0, more=True):
        return page([], 0, offset)
    # By the clock, as the rows tell it: an hour that comes twice is both of them.
    near = here.ledger.feed_between(
        asked.caller, _utc(start, -_ZONES), _utc(end, _ZONES)
    )
    included = here.switches.end_included
    rows = [
        row
        for row in near
        if start <= (wall := forms.wall(row.at)) < end or (included and wall == end)
    ]
    written = rows[offset : offset + body["limit"]]
    return page([_transaction(here, row) for row in written], len(rows), offset)


def user_statistics(here: Deployment, asked: Asked) -> Body:
    """Answer ``statistics/user``."""
    body, forms = asked.body, here.forms
    sums = here.arcade.sums(asked.caller, body["start_time"], body["end_time"])
    rows: list[Body] = []
    offset = body["offset"]
    for (code, name), moved in [*sums.items()][offset : offset + body["limit"]]:
        units: dict[str, int] = dict.fromkeys(_SUMS, 0)
        for kind, provider, amount in moved:
            game = "slot" if PROVIDERS[provider].category == _SLOTS else "live"
            units[f"{game}_{'bet' if kind == BET else 'win'}"] += amount
        written = {member: forms.money(units[member]) for member in units}
        rows += [{"user_code": code, "user_name": name, **written}]
    return page(rows, len(sums), offset)


def providers(here: Deployment, asked: Asked) -> list[Body]:
    """Answer ``game/providers``."""
    del here
    return [
        {
            "provider_id": provider.id,
            "provider_name": provider.name,
            "locale_name": _localised(provider.name, asked),
            "status": provider.status,
        }
        for provider in PROVIDERS.values()
    ]


def games(here: Deployment, asked: Asked) -> list[Body]:
    """Answer ``game/games``."""
    provider = _provider(asked.body["provider_id"])
    return [_game(here, game, asked) for game in _catalogue.games(provider)]


def all_games(here: Deployment, asked: Asked) -> list[Body]:
    """Answer ``game/all``."""
    return [
        _game(here, game, asked)
        for provider in PROVIDERS.values()
        for game in _catalogue.games(provider)
    ]


def game_url(here: Deployment, asked: Asked) -> Body:
    """Answer ``game/game-url``."""
    body = asked.body
    user = here.ledger.user(asked.caller, body["user_code"])
    provider = _provider(body["provider_id"])
    if _catalogue.game(provider, body["game_symbol"]) is None:
        raise RefusedCall(NO_GAME)
    if provider.status == MAINTENANCE:
        raise RefusedCall(UNDER_MAINTENANCE)
    key = here.arcade.link(asked.caller, user.code, provider.id, body["game_symbol"])
    return {"game_url": f"{here.base_url}/play/{key}"}


def online_games(here: Deployment, asked: Asked) -> list[Body]:
    """Answer ``game/online-games``."""
    forms = here.forms
    return [
        {
            "gplay_id": play.id,
            "user_code": play.user,
            "user_name": play.name,
            **_played(play.provider, play.game),
            "category": _CATEGORIES[PROVIDERS[play.provider].category],
            "last_round_bet": forms.money(play.last_bet),
            "spend": forms.money(play.spend),
            "win": forms.money(play.win),
            "start_time": forms.local(play.started, here.switches.online_dates),
            "last_update": forms.local(play.updated, here.switches.online_dates),
        }
        for play in here.arcade.online(asked.caller)
    ]


def round_details(here: Deployment, asked: Asked) -> Body:
    """Answer ``game/round-details``."""
    user = here.ledger.user(asked.caller, asked.body["user_code"])
    number = asked.body["round_id"]
    if not here.arcade.knows_round(user, number):
        raise RefusedCall(NO_ROUND)
    return {"url": f"{here.base_url}/rounds/{number}"}


def _utc(wall: datetime, more: timedelta) -> datetime:
    moment = wall.replace(tzinfo=UTC)
    try:
        return moment + more
    except OverflowError:
        return moment


def _provider(number: int) -> Provider:
    provider = PROVIDERS.get(number)
    if provider is None:
        raise RefusedCall(NO_PROVIDER)
    return provider


def _localised(name: str, asked: Asked) -> str:
    language = asked.body.get("lang", 1)
    return name if language == 1 else f"{name} ({language})"


def _game(here: Deployment, game: Game, asked: Asked) -> Body:
    image = f"https://img.invalid/{game.code}"
    return {
        "provider_id": game.provider.id,
        "game_code": game.code,
        "game_name": game.name,
        "locale_name": _localised(game.name, asked),
        "game_image": f"{image}.png",
        **here.forms.optional(game_image_narrow=f"{image}_narrow.png"),
        "launch_enable": game.enabled,
        "category": game.provider.category,
        "reg_date": here.forms.local(_REGISTERED),
    }


def _played(number: int, code: str) -> Body:
    """Write which game it was; money that no game moved has none."""
    provider = PROVIDERS.get(number)
    game = None if provider is None else _catalogue.game(provider, code)
    return {
        "provider_id": number,
        "provider_name": "" if provider is None else provider.name,
        "game_code": code,
        "game_name": "" if game is None else game.name,
    }


def _transaction(here: Deployment, row: Row) -> Body:
    forms, provider = here.forms, PROVIDERS.get(row.provider)
    return {
        "trans_id": row.id,
        "user_code": row.user,
        "round_id": row.round,
        "trans_type": row.kind,
        **_played(row.provider, row.game),
        "category": "" if provider is None else provider.category,
        "prebalance": forms.money(row.before),
        "trans_amount": forms.money(row.amount),
        "balance": forms.money(row.after),
        "regdate": forms.local(row.at),
        **forms.optional(time_stamp=int(row.at.timestamp())),
    }


def _too_early(
    here: Deployment, asked: Asked, path: str, cursor: int, *, more: bool = False
) -> bool:
    """Note a reading; tell whether it came too soon after the one before."""
    now, key = here.clock.now(), (asked.caller.code, path, cursor)
    spacing = timedelta(seconds=here.switches.feed_spacing)
    before = here.read_at.get(key)
    gap = None if before is None else now - before
    if gap is not None and (gap < spacing or (more and gap == spacing > _NONE)):
        if here.switches.early_feed == "busy":
            raise RefusedCall(BUSY)
        return True
    # What has had its time is forgotten: a reader leaves a cursor for each page.
    for old in [k for k, at in here.read_at.items() if now - at > spacing]:
        del here.read_at[old]
    here.read_at[key] = now
    return False
