"""
The service of the contract over HTTP: headers, tokens, the limit, the envelope.

A call counts as in flight from when its body has been read until its answer is
written; a client that hangs up does not make it stop.
"""

from __future__ import annotations

import asyncio
import random
import re
import sqlite3
from collections import Counter
from collections.abc import Mapping
from typing import Final

import attrs
import msgspec
from aiohttp import web

from aio_agentapi.sandbox._endpoints import BUSY, ROUTES, Endpoints, Route
from aio_agentapi.sandbox._faults import Fault, Faults
from aio_agentapi.sandbox._ledger import VALIDATION, Account, RefusedCall
from aio_agentapi.sandbox._members import Body, parse

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
_BAD_IP: Final = 1020
_BROKEN: Final = 1001

_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


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
        endpoints: What they do.

        faults: What goes wrong.
    """

    endpoints: Endpoints
    faults: Faults
    executed: Counter[str] = attrs.field(init=False, factory=Counter)
    _gauges: dict[str, Gauge] = attrs.field(init=False, factory=dict)
    # Addresses with ports, of which there are at most so many.
    _peers: set[object] = attrs.field(init=False, factory=set[object])
    _dice: random.Random = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._dice = random.Random(self.faults.seed)  # noqa: S311 - spreads latency

    def gauge(self, account: Account, address: str = "127.0.0.1") -> Gauge:
        """Return the gauge that an account's calls are counted by."""
        by_token = self.endpoints.switches.scope == "token"
        key = str(account.code) if by_token else address
        return self._gauges.setdefault(key, Gauge())

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one call."""
        text = await request.read()
        path = request.match_info["path"]
        route = ROUTES.get(path)
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
        full = gauge.in_flight + gauge.foreign >= self.endpoints.switches.limit
        # A call that is refused anyway uses no fault up.
        fault = None if full else self.faults.take(path)
        if full or (fault is not None and fault.kind == "busy"):
            gauge.busy += 1
            return self._refuse(RefusedCall(BUSY))
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
        account = self.endpoints.ledger.account_of(token)
        if account is None:
            raise RefusedCall(_NO_TOKEN)
        if account.whitelist and request.remote not in account.whitelist:
            raise RefusedCall(_BAD_IP)
        if self.endpoints.ledger.is_suspended(account):
            raise RefusedCall(_FORBIDDEN)
        return account

    def _latency(self, fault: Fault | None) -> float:
        spread = self.endpoints.switches.jitter * (2 * self._dice.random() - 1)
        extra = fault.seconds if fault is not None and fault.kind == "delay" else 0.0
        return max(0.0, self.endpoints.switches.latency + spread) + extra

    def _execute(
        self,
        route: Route,
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
            body = parse(text, route.members)
            answer = route.run(self.endpoints, account, body, request.remote)
            self.executed[path] += 1
            response = self._reply(0, answer)
        except RefusedCall as refusal:
            response = self._refuse(refusal)
        except sqlite3.Error:
            # No room for the books, say: nothing was done.
            response = self._refuse(RefusedCall(_BROKEN))
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
        if self.endpoints.switches.statuses == "http":
            status = {_NO_TOKEN: 401, _BAD_TOKEN: 401, _BAD_IP: 403, BUSY: 429}.get(
                code, 200
            )
        fields = [{"field": k, "message": v} for k, v in refusal.fields.items()]
        envelope: Body = {"code": code, "message": NAMES[code]}
        if fields:
            envelope["data"] = fields
        return _json(envelope, status)

    def _reply(self, code: int, answer: object) -> web.Response:
        message = "OK" if self.endpoints.switches.generation == "older" else None
        return _json({"code": code, "message": message, "data": answer}, 200)


def _json(envelope: Body, status: int) -> web.Response:
    return web.Response(
        status=status,
        body=msgspec.json.encode(envelope),
        content_type="application/json",
    )


def _hang_up(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
    raise ConnectionResetError
