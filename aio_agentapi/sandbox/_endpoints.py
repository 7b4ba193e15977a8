"""What each path of the contract answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final, Literal
from zoneinfo import ZoneInfo

import attrs
import msgspec

from aio_agentapi.sandbox import _members
from aio_agentapi.sandbox._clock import Clock
from aio_agentapi.sandbox._ledger import Account, Ledger, Move, RefusedCall, Row, User
from aio_agentapi.sandbox._members import Body, Check

BUSY: Final = 1018


@attrs.frozen(kw_only=True)
class Switches:
    """
    Where deployments of the service differ, or nobody knows.

    Attributes:
        limit: Calls in flight, beyond which 1018 is answered.

        scope: What the limit counts by: the token, or the caller's address.

        latency: Seconds that a call takes before it is executed.

        jitter: Seconds by which that differs at most, either way.

        statuses: ``"ok"``: HTTP 200 for every answer. ``"http"``: 401, 403, 429.

        generation: ``"newer"`` or ``"older"`` form of the answers.

        quoted_money: Amounts as texts.

        zone: The zone of times that are written without one.

        early_feed: What a feed read too early answers: 1018, or an empty list.

        feed_spacing: Seconds between two readings from the same cursor.

        row_delay: Seconds after which a new row of the feed can be seen.

        empty_wallet: What ``wallet/withdraw-all`` of an empty one gives: an
            amount of zero, or 2006.
    """

    limit: int = 50
    scope: Literal["token", "ip"] = "token"
    latency: float = 0.0
    jitter: float = 0.0
    statuses: Literal["ok", "http"] = "ok"
    generation: Literal["newer", "older"] = "newer"
    quoted_money: bool = False
    zone: str = "UTC"
    early_feed: Literal["busy", "empty"] = "busy"
    feed_spacing: float = 30.0
    row_delay: float = 0.0
    empty_wallet: Literal["zero", "refused"] = "zero"


@attrs.define(eq=False)
class Endpoints:
    """
    Does what a call asks for, once it has been let in.

    Args:
        ledger: The books.

        clock: Tells the time.

        switches: How this deployment behaves; may be changed at any time.
    """

    ledger: Ledger
    clock: Clock
    switches: Switches
    _read_at: dict[tuple[int, int], datetime] = attrs.field(
        init=False, factory=dict[tuple[int, int], datetime]
    )

    def money(self, units: int) -> object:
        """Write an amount with its four decimals."""
        text = f"{units // 10000}.{units % 10000:04}"
        return text if self.switches.quoted_money else msgspec.Raw(text.encode())

    def _local(self, moment: datetime) -> str:
        return f"{moment.astimezone(ZoneInfo(self.switches.zone)):%Y-%m-%d %H:%M:%S}"

    def _agent(self, account: Account) -> Body:
        return {
            "agent_code": account.code,
            "name": account.name,
            "role": account.role,
            "parent_code": account.parent,
            "depth": account.depth,
            "currency": account.currency,
            "balance": self.money(account.points),
            "state": account.state,
            "whitelist": account.whitelist,
            "created_at": _iso(account.created),
        }

    def _point_move(self, move: Move, caller: Account) -> Body:
        after = move.target_after
        if move.source == caller.code and move.source_after is not None:
            after = move.source_after
        return {
            "move_id": move.id,
            "from_code": move.source,
            "to_code": move.target,
            "amount": self.money(move.amount),
            "balance": self.money(after),
            "reference": move.reference,
            "created_at": _iso(move.created),
        }

    def _transaction(self, row: Row) -> Body:
        return {
            "trans_id": row.id,
            "user_code": row.user,
            "round_id": "",
            "trans_type": row.kind,
            "provider_id": 0,
            "provider_name": "",
            "game_code": "",
            "game_name": "",
            "category": "",
            "prebalance": self.money(row.before),
            "trans_amount": self.money(row.amount),
            "balance": self.money(row.after),
            "regdate": self._local(row.at),
            "time_stamp": int(row.at.timestamp()),
        }

    # Endpoints

    def agent_info(self, caller: Account, _: Body, address: str | None) -> Body:
        """Answer ``agent/info``."""
        answer = {
            "name": caller.name,
            "currency": caller.currency,
            "balance": self.money(caller.points),
            "agent_code": caller.code,
            "role": caller.role,
            "parent_code": caller.parent,
            "state": caller.state,
        }
        if self.switches.generation == "older":
            return answer | {"win_ratio": 95}
        return answer | {
            "rtp": 95,
            "whitelist": caller.whitelist,
            "client_ip": address,
        }

    def agent_create(self, caller: Account, body: Body, _: str | None) -> Body:
        """Answer ``agent/create``."""
        account = self.ledger.create(
            caller,
            body["name"],
            body["role"],
            body.get("parent_code"),
            body.get("whitelist") or (),
        )
        return self._agent(account) | {"token": account.token}

    def agent_list(self, caller: Account, body: Body, _: str | None) -> Body:
        """Answer ``agent/list``."""
        code = body.get("parent_code")
        parent = caller if code is None else self.ledger.below(caller, code)
        total, rows = self.ledger.children(
            parent,
            subtree=body.get("subtree") or False,
            offset=body["offset"],
            limit=body["limit"],
        )
        return {
            "total": total,
            "offset": body["offset"],
            "count": len(rows),
            "list": [self._agent(row) for row in rows],
        }

    def agent_update(self, caller: Account, body: Body, _: str | None) -> Body:
        """Answer ``agent/update``."""
        account = self.ledger.below(caller, body["agent_code"])
        return self._agent(
            self.ledger.update(account, body.get("state"), body.get("whitelist"))
        )

    def agent_token(self, caller: Account, body: Body, _: str | None) -> Body:
        """Answer ``agent/token``."""
        account = self.ledger.below(caller, body["agent_code"])
        return {"token": self.ledger.reissue_token(account)}

    def points_transfer(self, caller: Account, body: Body, _: str | None) -> Body:
        """Answer ``points/transfer``."""
        move = self.ledger.transfer(
            caller, body["agent_code"], body["amount"], body.get("reference")
        )
        return self._point_move(move, caller)

    def points_reclaim(self, caller: Account, body: Body, _: str | None) -> Body:
        """Answer ``points/reclaim``."""
        move = self.ledger.reclaim(
            caller, body["agent_code"], body["amount"], body.get("reference")
        )
        return self._point_move(move, caller)

    def points_history(self, caller: Account, body: Body, _: str | None) -> list[Body]:
        """Answer ``points/history``."""
        moves = self.ledger.history(caller, body["last_id"], body["limit"])
        return [self._point_move(move, caller) for move in moves]

    def user_create(self, caller: Account, body: Body, _: str | None) -> Body:
        """Answer ``user/create``."""
        user, is_new = self.ledger.create_user(caller, body["name"])
        return {"user_code": user.code, "is_new_user": is_new}

    def user_info(self, caller: Account, body: Body, _: str | None) -> Body:
        """Answer ``user/info``."""
        user = self.ledger.user(caller, body["user_code"])
        return {"name": user.name, "balance": self.money(user.balance)}

    def wallet_deposit(self, caller: Account, body: Body, _: str | None) -> Body:
        """Answer ``wallet/deposit``."""
        user = self.ledger.deposit(caller, body["user_code"], body["amount"])
        return self._moved(user, body["amount"])

    def wallet_withdraw(self, caller: Account, body: Body, _: str | None) -> Body:
        """Answer ``wallet/withdraw``."""
        user = self.ledger.withdraw(caller, body["user_code"], body["amount"])
        return self._moved(user, body["amount"])

    def wallet_withdraw_all(self, caller: Account, body: Body, _: str | None) -> Body:
        """Answer ``wallet/withdraw-all``."""
        user = self.ledger.user(caller, body["user_code"])
        if user.balance == 0 and self.switches.empty_wallet == "zero":
            return self._moved(user, 0)
        # An empty one is refused by an amount that it does not have.
        amount = user.balance or 1
        return self._moved(self.ledger.withdraw(caller, user.code, amount), amount)

    def game_transaction_id(
        self, caller: Account, body: Body, _: str | None
    ) -> list[Body]:
        """Answer ``game/transaction-id``."""
        last_id, now = body["last_id"], self.clock.now()
        before = self._read_at.get((caller.code, last_id))
        spacing = self.switches.feed_spacing
        if before is not None and (now - before).total_seconds() < spacing:
            if self.switches.early_feed == "busy":
                raise RefusedCall(BUSY)
            return []
        self._read_at[caller.code, last_id] = now
        rows = self.ledger.feed(caller, last_id, body["limit"])
        return [self._transaction(row) for row in rows]

    def _moved(self, user: User, amount: int) -> Body:
        return {"balance": self.money(user.balance), "amount": self.money(amount)}


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@attrs.frozen
class Route:
    """What answers a path, and what its request must have."""

    run: Callable[[Endpoints, Account, Body, str | None], object]
    members: Mapping[str, Check]


# Contract 5; a name that ends in '?' may be left out or null.
ROUTES: Final[Mapping[str, Route]] = {
    "agent/info": Route(Endpoints.agent_info, {}),
    "agent/create": Route(
        Endpoints.agent_create,
        {
            "name": _members.text,
            "role": _members.text,
            "whitelist?": _members.texts,
            "parent_code?": _members.code,
        },
    ),
    "agent/list": Route(
        Endpoints.agent_list,
        {
            "parent_code?": _members.code,
            "subtree?": _members.flag,
            "offset": _members.from_zero,
            "limit": _members.count(1),
        },
    ),
    "agent/update": Route(
        Endpoints.agent_update,
        {
            "agent_code": _members.code,
            "state?": _members.text,
            "whitelist?": _members.texts,
        },
    ),
    "agent/token": Route(Endpoints.agent_token, {"agent_code": _members.code}),
    "points/transfer": Route(
        Endpoints.points_transfer,
        {
            "agent_code": _members.code,
            "amount": _members.amount,
            "reference?": _members.reference,
        },
    ),
    "points/reclaim": Route(
        Endpoints.points_reclaim,
        {
            "agent_code": _members.code,
            "amount": _members.amount,
            "reference?": _members.reference,
        },
    ),
    "points/history": Route(
        Endpoints.points_history,
        {"last_id": _members.from_zero, "limit": _members.count(1)},
    ),
    "user/create": Route(Endpoints.user_create, {"name": _members.text}),
    "user/info": Route(Endpoints.user_info, {"user_code": _members.code}),
    "wallet/deposit": Route(
        Endpoints.wallet_deposit,
        {"user_code": _members.code, "amount": _members.amount},
    ),
    "wallet/withdraw": Route(
        Endpoints.wallet_withdraw,
        {"user_code": _members.code, "amount": _members.amount},
    ),
    "wallet/withdraw-all": Route(
        Endpoints.wallet_withdraw_all, {"user_code": _members.code}
    ),
    "game/transaction-id": Route(
        Endpoints.game_transaction_id,
        {"last_id": _members.from_zero, "limit": _members.count(10)},
    ),
}
