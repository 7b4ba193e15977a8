"""
The service of the contract over HTTP: headers, tokens, the limit, the envelope.

A call counts as in flight from when its body has been read until its answer is
written; a client that hangs up does not make it stop.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Literal, TypeAlias, cast
from zoneinfo import ZoneInfo

import attrs
import msgspec
from aiohttp import web

from aio_agentapi.sandbox._clock import Clock
from aio_agentapi.sandbox._faults import Fault, Faults
from aio_agentapi.sandbox._ledger import (
    VALIDATION,
    Account,
    Ledger,
    Move,
    RefusedCall,
    Row,
    User,
)

# Contract 4.
NAMES: Final[Mapping[int, str]] = {
    1: "UNDER_MAINTENANCE",
    1001: "INTERNAL_SERVER_ERROR",
    1002: "VALIDATION_ERROR",
    1003: "SERVICE_EXCEPTION",
    1005: "RESOURCE_NOT_FOUND",
    1007: "TOKEN_NOT_FOUND",
    1009: "TOKEN_INVALID",
    1010: "PERMISSION_ERROR",
    1011: "PROVIDER_ERROR",
    1012: "PARAMETERS_INVALID",
    1015: "CALLBACK_ERROR",
    1018: "SERVER_IS_BUSY",
    1020: "IP_NOT_ALLOWED",
    2001: "AGENT_NOT_FOUND",
    2002: "USER_NOT_FOUND",
    2005: "POINT_NOT_ENOUGH",
    2006: "BALANCE_NOT_ENOUGH",
}
_NO_TOKEN: Final = 1007
_BAD_TOKEN: Final = 1009
_FORBIDDEN: Final = 1010
_BUSY: Final = 1018
_BAD_IP: Final = 1020
_BROKEN: Final = 1001

_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

_UNIT: Final = Decimal(10000)
_LARGEST: Final = 10**15 * 10000
_PAGE: Final = 2000
_INT64: Final = 2**63

Body: TypeAlias = dict[str, Any]


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


@attrs.define
class Gauge:
    """
    What one token's limit sees.

    Attributes:
        in_flight: Calls that run now.

        peak: The most that ran at once.

        served: Calls that were let in.

        busy: Calls that were answered 1018.

        foreign: Permits that others hold, by the fault of that name.

        foreign_peak: The most that ran at once, those of others included.

        connections: Connections that carried a call so far.
    """

    in_flight: int = 0
    peak: int = 0
    served: int = 0
    busy: int = 0
    foreign: int = 0
    foreign_peak: int = 0
    connections: int = 0


@attrs.define(eq=False)
class Service:
    """
    Answers calls.

    Args:
        ledger: The books.

        clock: Tells the time.

        switches: How this deployment behaves; may be changed at any time.

        faults: What goes wrong.
    """

    ledger: Ledger
    clock: Clock
    switches: Switches
    faults: Faults
    executed: Counter[str] = attrs.field(init=False, factory=Counter)
    _gauges: dict[str, Gauge] = attrs.field(init=False, factory=dict)
    _read_at: dict[tuple[int, int], datetime] = attrs.field(init=False, factory=dict)
    # Addresses with ports, of which there are at most so many.
    _peers: set[object] = attrs.field(init=False, factory=set[object])
    _dice: random.Random = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._dice = random.Random(self.faults.seed)  # noqa: S311 - spreads latency

    def gauge(self, account: Account, address: str = "127.0.0.1") -> Gauge:
        """Return the gauge that an account's calls are counted by."""
        by_token = self.switches.scope == "token"
        key = str(account.code) if by_token else address
        return self._gauges.setdefault(key, Gauge())

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one call."""
        text = await request.read()
        path = request.match_info["path"]
        route = _ROUTES.get(path)
        if route is None:
            return web.Response(status=404, text="404: Not Found")
        try:
            account = self._admit(request)
        except RefusedCall as refusal:
            return self._refuse(refusal)
        gauge = self.gauge(account, request.remote or "")
        if (peer := request.get_extra_info("peername")) not in self._peers:
            self._peers.add(peer)
            gauge.connections += 1
        fault = self.faults.take(path)
        full = gauge.in_flight + gauge.foreign >= self.switches.limit
        if full or (fault is not None and fault.kind == "busy"):
            gauge.busy += 1
            return self._refuse(RefusedCall(_BUSY))
        gauge.in_flight += 1
        gauge.served += 1
        gauge.peak = max(gauge.peak, gauge.in_flight)
        total = gauge.in_flight + gauge.foreign
        gauge.foreign_peak = max(gauge.foreign_peak, total)
        try:
            await asyncio.sleep(self._latency(fault))
            response = self._execute(route, account, path, request, text, fault)
            await response.prepare(request)
            await response.write_eof()
        except ConnectionError:
            # The client has hung up; its call was executed all the same.
            response = web.Response()
        finally:
            gauge.in_flight -= 1
        return response

    def _admit(self, request: web.Request) -> Account:
        """Check headers, token, address and state."""
        headers = request.headers
        wrong = {
            name: "is application/json"
            for name in ("Accept", "Content-Type")
            if headers.get(name, "").split(";")[0].strip() != "application/json"
        }
        if wrong:
            raise RefusedCall(VALIDATION, **wrong)
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or not _UUID.fullmatch(token):
            raise RefusedCall(_BAD_TOKEN)
        account = self.ledger.account_of(token)
        if account is None:
            raise RefusedCall(_NO_TOKEN)
        if account.whitelist and request.remote not in account.whitelist:
            raise RefusedCall(_BAD_IP)
        if self.ledger.is_suspended(account):
            raise RefusedCall(_FORBIDDEN)
        return account

    def _latency(self, fault: Fault | None) -> float:
        spread = self.switches.jitter * (2 * self._dice.random() - 1)
        extra = fault.seconds if fault is not None and fault.kind == "delay" else 0.0
        return max(0.0, self.switches.latency + spread) + extra

    def _execute(
        self,
        route: _Route,
        account: Account,
        path: str,
        request: web.Request,
        text: bytes,
        fault: Fault | None,
    ) -> web.StreamResponse:
        kind = fault.kind if fault is not None else None
        if kind == "drop_before":
            _hang_up(request)
        try:
            body = _parse(text, route.members)
            answer = route.run(self, account, body, request)
            self.executed[path] += 1
            response = self._reply(0, answer)
        except RefusedCall as refusal:
            response = self._refuse(refusal)
        if kind == "drop_after":
            _hang_up(request)
        if kind == "cut_json" and isinstance(response.body, bytes):
            half = response.body[: len(response.body) // 2]
            return web.Response(body=half, content_type="application/json")
        if kind == "html_502":
            return web.Response(
                status=502,
                text="<html><h1>502 Bad Gateway</h1></html>",
                content_type="text/html",
            )
        if kind == "empty":
            return web.Response(content_type="application/json")
        return response

    def _refuse(self, refusal: RefusedCall) -> web.Response:
        code = refusal.code
        status = 200
        if self.switches.statuses == "http":
            status = {_NO_TOKEN: 401, _BAD_TOKEN: 401, _BAD_IP: 403, _BUSY: 429}.get(
                code, 200
            )
        fields = [{"field": k, "message": v} for k, v in refusal.fields.items()]
        envelope: Body = {"code": code, "message": NAMES[code]}
        if fields:
            envelope["data"] = fields
        return _json(envelope, status)

    def _reply(self, code: int, answer: object) -> web.Response:
        message = "OK" if self.switches.generation == "older" else None
        return _json({"code": code, "message": message, "data": answer}, 200)

    # What the answers are made of

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

    def agent_info(self, caller: Account, _: Body, request: web.Request) -> Body:
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
            "client_ip": request.remote,
        }

    def agent_create(self, caller: Account, body: Body, _: web.Request) -> Body:
        """Answer ``agent/create``."""
        account = self.ledger.create(
            caller,
            body["name"],
            body["role"],
            body.get("parent_code"),
            body.get("whitelist") or (),
        )
        return self._agent(account) | {"token": account.token}

    def agent_list(self, caller: Account, body: Body, _: web.Request) -> Body:
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

    def agent_update(self, caller: Account, body: Body, _: web.Request) -> Body:
        """Answer ``agent/update``."""
        account = self.ledger.below(caller, body["agent_code"])
        return self._agent(
            self.ledger.update(account, body.get("state"), body.get("whitelist"))
        )

    def agent_token(self, caller: Account, body: Body, _: web.Request) -> Body:
        """Answer ``agent/token``."""
        account = self.ledger.below(caller, body["agent_code"])
        return {"token": self.ledger.reissue_token(account)}

    def points_transfer(self, caller: Account, body: Body, _: web.Request) -> Body:
        """Answer ``points/transfer``."""
        move = self.ledger.transfer(
            caller, body["agent_code"], body["amount"], body.get("reference")
        )
        return self._point_move(move, caller)

    def points_reclaim(self, caller: Account, body: Body, _: web.Request) -> Body:
        """Answer ``points/reclaim``."""
        move = self.ledger.reclaim(
            caller, body["agent_code"], body["amount"], body.get("reference")
        )
        return self._point_move(move, caller)

    def points_history(self, caller: Account, body: Body, _: web.Request) -> list[Body]:
        """Answer ``points/history``."""
        moves = self.ledger.history(caller, body["last_id"], body["limit"])
        return [self._point_move(move, caller) for move in moves]

    def user_create(self, caller: Account, body: Body, _: web.Request) -> Body:
        """Answer ``user/create``."""
        user, is_new = self.ledger.create_user(caller, body["name"])
        return {"user_code": user.code, "is_new_user": is_new}

    def user_info(self, caller: Account, body: Body, _: web.Request) -> Body:
        """Answer ``user/info``."""
        user = self.ledger.user(caller, body["user_code"])
        return {"name": user.name, "balance": self.money(user.balance)}

    def wallet_deposit(self, caller: Account, body: Body, _: web.Request) -> Body:
        """Answer ``wallet/deposit``."""
        user = self.ledger.deposit(caller, body["user_code"], body["amount"])
        return self._moved(user, body["amount"])

    def wallet_withdraw(self, caller: Account, body: Body, _: web.Request) -> Body:
        """Answer ``wallet/withdraw``."""
        user = self.ledger.withdraw(caller, body["user_code"], body["amount"])
        return self._moved(user, body["amount"])

    def wallet_withdraw_all(self, caller: Account, body: Body, _: web.Request) -> Body:
        """Answer ``wallet/withdraw-all``."""
        user = self.ledger.user(caller, body["user_code"])
        if user.balance == 0 and self.switches.empty_wallet == "zero":
            return self._moved(user, 0)
        # An empty one is refused by an amount that it does not have.
        amount = user.balance or 1
        return self._moved(self.ledger.withdraw(caller, user.code, amount), amount)

    def game_transaction_id(
        self, caller: Account, body: Body, _: web.Request
    ) -> list[Body]:
        """Answer ``game/transaction-id``."""
        last_id, now = body["last_id"], self.clock.now()
        before = self._read_at.get((caller.code, last_id))
        spacing = self.switches.feed_spacing
        if before is not None and (now - before).total_seconds() < spacing:
            if self.switches.early_feed == "busy":
                raise RefusedCall(_BUSY)
            return []
        self._read_at[caller.code, last_id] = now
        rows = self.ledger.feed(caller, last_id, body["limit"])
        return [self._transaction(row) for row in rows]

    def _moved(self, user: User, amount: int) -> Body:
        return {"balance": self.money(user.balance), "amount": self.money(amount)}


# What a member of a request must be; each raises ValueError with the reason.


def _code(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= _INT64:
        msg = "is a whole number"
        raise ValueError(msg)
    return value


def _count(least: int) -> Callable[[object], int]:
    def check(value: object) -> int:
        if not least <= _code(value) <= _PAGE:
            msg = f"is {least} to 2000"
            raise ValueError(msg)
        return _code(value)

    return check


def _from_zero(value: object) -> int:
    if _code(value) < 0:
        msg = "is 0 or more"
        raise ValueError(msg)
    return _code(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        msg = "is a text"
        raise ValueError(msg)  # noqa: TRY004 - one kind of error for every reason
    return value


def _texts(value: object) -> Sequence[str]:
    if not isinstance(value, list):
        msg = "is a list of texts"
        raise ValueError(msg)  # noqa: TRY004 - one kind of error for every reason
    return [_text(part) for part in cast("list[object]", value)]


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        msg = "is true or false"
        raise ValueError(msg)  # noqa: TRY004 - one kind of error for every reason
    return value


def _reference(value: object) -> str:
    text = _text(value)
    if not re.fullmatch(r"[!-~]{1,64}", text):
        msg = "is 1 to 64 visible ASCII characters"
        raise ValueError(msg)
    return text


def _amount(value: object) -> int:
    msg = "is more than 0, at most 10^15, with at most four decimals"
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise ValueError(msg)  # noqa: TRY004 - one kind of error for every reason
    # The size first: 1e999999999 is short to write and long to work out.
    if not 0 < value <= 10**15:
        raise ValueError(msg)
    scaled = value * _UNIT
    if scaled != int(scaled):
        raise ValueError(msg)
    return int(scaled)


@attrs.frozen
class _Route:
    run: Callable[[Service, Account, Body, web.Request], object]
    members: Mapping[str, Callable[[object], object]]


# Contract 5; a name that ends in '?' may be left out or null.
_ROUTES: Final[Mapping[str, _Route]] = {
    "agent/info": _Route(Service.agent_info, {}),
    "agent/create": _Route(
        Service.agent_create,
        {"name": _text, "role": _text, "whitelist?": _texts, "parent_code?": _code},
    ),
    "agent/list": _Route(
        Service.agent_list,
        {
            "parent_code?": _code,
            "subtree?": _flag,
            "offset": _from_zero,
            "limit": _count(1),
        },
    ),
    "agent/update": _Route(
        Service.agent_update,
        {"agent_code": _code, "state?": _text, "whitelist?": _texts},
    ),
    "agent/token": _Route(Service.agent_token, {"agent_code": _code}),
    "points/transfer": _Route(
        Service.points_transfer,
        {"agent_code": _code, "amount": _amount, "reference?": _reference},
    ),
    "points/reclaim": _Route(
        Service.points_reclaim,
        {"agent_code": _code, "amount": _amount, "reference?": _reference},
    ),
    "points/history": _Route(
        Service.points_history, {"last_id": _from_zero, "limit": _count(1)}
    ),
    "user/create": _Route(Service.user_create, {"name": _text}),
    "user/info": _Route(Service.user_info, {"user_code": _code}),
    "wallet/deposit": _Route(
        Service.wallet_deposit, {"user_code": _code, "amount": _amount}
    ),
    "wallet/withdraw": _Route(
        Service.wallet_withdraw, {"user_code": _code, "amount": _amount}
    ),
    "wallet/withdraw-all": _Route(Service.wallet_withdraw_all, {"user_code": _code}),
    "game/transaction-id": _Route(
        Service.game_transaction_id, {"last_id": _from_zero, "limit": _count(10)}
    ),
}


def _parse(text: bytes, members: Mapping[str, Callable[[object], object]]) -> Body:
    """Read a request; 1002 with every member that is wrong."""
    try:
        sent = json.loads(text, parse_float=Decimal)
    except (ValueError, ArithmeticError, RecursionError):
        raise RefusedCall(VALIDATION, body="is no JSON") from None
    if not isinstance(sent, dict):
        raise RefusedCall(VALIDATION, body="is no object")
    sent = cast("dict[str, object]", sent)
    body: Body = {}
    wrong: dict[str, str] = {}
    for key, check in members.items():
        name = key.removesuffix("?")
        if sent.get(name) is None:
            if name == key:
                wrong[name] = "is missing"
            continue
        try:
            body[name] = check(sent[name])
        except ValueError as error:
            wrong[name] = str(error)
    if wrong:
        raise RefusedCall(VALIDATION, **wrong)
    return body


def _json(envelope: Body, status: int) -> web.Response:
    return web.Response(
        status=status,
        body=msgspec.json.encode(envelope),
        content_type="application/json",
    )


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _hang_up(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
    raise ConnectionResetError
