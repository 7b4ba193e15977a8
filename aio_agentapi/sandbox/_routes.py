"""The table of the contract: each path, what it takes, does and answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, TypeAlias

import attrs

from aio_agentapi.sandbox import _endpoints, _games, _shapes
from aio_agentapi.sandbox._endpoints import Asked, Deployment
from aio_agentapi.sandbox._members import (
    ADDRESSES,
    AMOUNT,
    ANY_LIMIT,
    CODE,
    CURSOR,
    FEED_LIMIT,
    FLAG,
    INSTANT,
    LANGUAGE,
    MOMENT,
    NAME,
    NEW_ROLE,
    REFERENCE,
    STATE,
    TEXT,
    Member,
    Schema,
)

Effect: TypeAlias = Literal["read", "idempotent", "create", "money"]


@attrs.frozen(kw_only=True)
class Route:
    """
    One path.

    Attributes:
        run: What answers it.

        summary: What it does, for people.

        members: What its request must have; a name that ends in '?' may be left
            out or null.

        answer: The shape of its data.

        effect: What sending it twice would do.

        newer: It is there only in the newer generation.
    """

    run: Callable[[Deployment, Asked], Any]
    summary: str
    members: Mapping[str, Member] = attrs.field(factory=dict[str, Member])
    answer: Schema
    effect: Effect = "read"
    newer: bool = False


_MOVE: Final = {"agent_code": CODE, "amount": AMOUNT, "reference?": REFERENCE}
_USER: Final = {"user_code": CODE}

# Contract 5 and 6. Points are idempotent only with a reference.
ROUTES: Final[Mapping[str, Route]] = {
    "agent/info": Route(
        run=_endpoints.agent_info,
        summary="The caller's own account.",
        answer=_shapes.ref("AgentInfo"),
    ),
    "agent/create": Route(
        run=_endpoints.agent_create,
        summary="Create an account below the caller.",
        members={
            "name": NAME,
            "role": NEW_ROLE,
            "whitelist?": ADDRESSES,
            "parent_code?": CODE,
        },
        answer=_shapes.ref("NewAgent"),
        effect="create",
    ),
    "agent/list": Route(
        run=_endpoints.agent_list,
        summary="Accounts below one, parents before their children.",
        members={
            "parent_code?": CODE,
            "subtree?": FLAG,
            "offset": CURSOR,
            "limit": ANY_LIMIT,
        },
        answer=_shapes.page_of("Agent"),
    ),
    "agent/update": Route(
        run=_endpoints.agent_update,
        summary="Change the state or the allowed addresses of an account.",
        members={"agent_code": CODE, "state?": STATE, "whitelist?": ADDRESSES},
        answer=_shapes.ref("Agent"),
        effect="idempotent",
    ),
    "agent/token": Route(
        run=_endpoints.agent_token,
        summary="Give an account a new token; the old one stops working at once.",
        members={"agent_code": CODE},
        answer=_shapes.ref("NewToken"),
        effect="create",
    ),
    "points/transfer": Route(
        run=_endpoints.points_transfer,
        summary="Move points from the caller to a direct child.",
        members=_MOVE,
        answer=_shapes.ref("PointMove"),
        effect="idempotent",
    ),
    "points/reclaim": Route(
        run=_endpoints.points_reclaim,
        summary="Move points from a direct child to the caller.",
        members=_MOVE,
        answer=_shapes.ref("PointMove"),
        effect="idempotent",
    ),
    "points/history": Route(
        run=_endpoints.points_history,
        summary="Moves in which the caller is either side, oldest first.",
        members={"last_id": CURSOR, "limit": ANY_LIMIT},
        answer=_shapes.list_of("PointMove"),
    ),
    "user/create": Route(
        run=_endpoints.user_create,
        summary="Create a user, or find the one of that name.",
        members={"name": NAME},
        answer=_shapes.ref("NewUser"),
        effect="idempotent",
    ),
    "user/info": Route(
        run=_endpoints.user_info,
        summary="A user's name and balance.",
        members=_USER,
        answer=_shapes.ref("User"),
    ),
    "wallet/deposit": Route(
        run=_endpoints.wallet_deposit,
        summary="Move points of the caller to a user's balance.",
        members={**_USER, "amount": AMOUNT},
        answer=_shapes.ref("Moved"),
        effect="money",
    ),
    "wallet/withdraw": Route(
        run=_endpoints.wallet_withdraw,
        summary="Move a user's balance to the caller's points.",
        members={**_USER, "amount": AMOUNT},
        answer=_shapes.ref("Moved"),
        effect="money",
    ),
    "wallet/withdraw-all": Route(
        run=_endpoints.wallet_withdraw_all,
        summary="Move all of a user's balance to the caller's points.",
        members=_USER,
        answer=_shapes.ref("Moved"),
        effect="money",
    ),
    "game/transaction-id": Route(
        run=_games.transaction_id,
        summary="What moved balances after a row, oldest first, for two days; at least"
        " 30 s between two calls with one last_id.",
        members={"last_id": CURSOR, "limit": FEED_LIMIT},
        answer=_shapes.list_of("Transaction"),
    ),
    "game/transaction": Route(
        run=_games.transaction,
        summary="What moved balances in at most an hour of the last two days; more than"
        " 30 s between two calls.",
        members={
            "start_time": MOMENT,
            "end_time": MOMENT,
            "offset": CURSOR,
            "limit": FEED_LIMIT,
        },
        answer=_shapes.page_of("Transaction"),
    ),
    "statistics/user": Route(
        run=_games.user_statistics,
        summary="What each user bet and won.",
        members={
            "start_time": INSTANT,
            "end_time": INSTANT,
            "offset": CURSOR,
            "limit": FEED_LIMIT,
        },
        answer=_shapes.page_of("UserStatistics"),
    ),
    "game/providers": Route(
        run=_games.providers,
        summary="Whose games there are.",
        members={"lang": LANGUAGE},
        answer=_shapes.list_of("Provider"),
    ),
    "game/games": Route(
        run=_games.games,
        summary="The games of a provider.",
        members={"provider_id": CODE, "lang": LANGUAGE},
        answer=_shapes.list_of("Game"),
    ),
    "game/all": Route(
        run=_games.all_games,
        summary="The games of all providers.",
        answer=_shapes.list_of("Game"),
        newer=True,
    ),
    "game/game-url": Route(
        run=_games.game_url,
        summary="A link that lets a user into a game: once, for ten minutes.",
        members={
            **_USER,
            "provider_id": CODE,
            "game_symbol": TEXT,
            "lang": LANGUAGE,
            "return_url?": TEXT,
        },
        answer=_shapes.ref("GameUrl"),
    ),
    "game/online-games": Route(
        run=_games.online_games,
        summary="Who has been in a game during the last half hour.",
        answer=_shapes.list_of("OnlineGame"),
    ),
    "game/round-details": Route(
        run=_games.round_details,
        summary="Where a round can be looked at, for thirty days.",
        members={
            **_USER,
            "round_id": TEXT,
            "provider_id?": CODE,
            "game_code?": TEXT,
        },
        answer=_shapes.ref("RoundDetails"),
    ),
}
