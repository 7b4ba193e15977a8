"""
The service of the contract over HTTP: headers, tokens, the limit, the envelope.

A call counts as in flight from when its body has been read until its answer is
written, or a while longer; a client that hangs up does not make it stop.
"""

from __future__ import annotations

import asyncio
import random
import re
import sqlite3
from collections import Counter
from typing import Final

import attrs
import msgspec
from aiohttp import web

from aio_agentapi.sandbox._endpoints import Asked, Deployment
from aio_agentapi.sandbox._faults import Fault, Faults
from aio_agentapi.sandbox._members import Body, parse
from aio_agentapi.sandbox._records import (
    BAD_IP,
    BAD_TOKEN,
    BROKEN,
    BUSY,
    FORBIDDEN,
    NAMES,
    NO_TOKEN,
    VALIDATION,
    Account,
    RefusedCall,
)
from aio_agentapi.sandbox._routes import ROUTES, Route

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
        deployment: What they do.

        faults: What goes wrong.
    """

    deployment: Deployment
    faults: Faults
    executed: Counter[str] = attrs.field(init=False, factory=Counter)
    received: Counter[str] = attrs.field(init=False, factory=Counter)
    _gauges: dict[str, Gauge] = attrs.field(init=False, factory=dict)
    # Addresses with ports, of which there are at most so many.
    _peers: set[object] = attrs.field(init=False, factory=set[object])
    _dice: random.Random = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._dice = random.Random(self.faults.seed)  # noqa: S311 - spreads latency

    def gauge(self, account: Account, address: str = "127.0.0.1") -> Gauge:
        """Return the gauge that an account's calls are counted by."""
        by_token = self.deployment.switches.scope == "token"
        key = str(account.code) if by_token else address
        return self._gauges.setdefault(key, Gauge())

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one call."""
        text = await request.read()
        path = request.match_info["path"]
        route = ROUTES.get(path)
        older = self.deployment.switches.generation == "older"
        if route is None or (route.newer and older):
            return web.Response(status=404, text="404: Not Found")
        try:
            account = self._admit(request)
        except RefusedCall as refusal:
            return self._refuse(refusal)
        gauge = self.gauge(account, request.remote or "")
        if (peer := request.get_extra_info("peername")) not in self._peers:
            self._peers.add(peer)
            gauge.connections += 1
        full = gauge.in_flight + gauge.foreign >= self.deployment.switches.limit
        clearings = self.faults.clearings
        # A call that is refused anyway uses no fault up.
        fault = None if full else self.faults.take(path)
        if full or (fault is not None and fault.kind == "busy"):
            gauge.busy += 1
            return self._refuse(RefusedCall(BUSY))
        self.received[path] += 1
        gauge.in_flight += 1
        gauge.served += 1
        gauge.peak = max(gauge.peak, gauge.in_flight)
        total = gauge.in_flight + gauge.foreign
        gauge.foreign_peak = max(gauge.foreign_peak, total)
        try:
            await asyncio.sleep(self._latency(fault))
            if fault is not None and fault.kind == "hold":
                await self.faults.held(clearings)
            response = self._execute(route, account, path, request, text, fault)
            await response.prepare(request)
            await response.write_eof()
        except ConnectionError:
            # The client has hung up; its call was executed all the same.
            response = web.Response()
        finally:
            if lag := self.deployment.switches.release_lag:
                asyncio.get_running_loop().call_later(lag, _end, gauge)
            else:
                _end(gauge)
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
            raise RefusedCall(BAD_TOKEN)
        account = self.deployment.ledger.account_of(token)
        if account is None:
            raise RefusedCall(NO_TOKEN)
        if account.whitelist and request.remote not in account.whitelist:
            raise RefusedCall(BAD_IP)
        if self.deployment.ledger.is_suspended(account):
            raise RefusedCall(FORBIDDEN)
        return account

    def _latency(self, fault: Fault | None) -> float:
        spread = self.deployment.switches.jitter * (2 * self._dice.random() - 1)
        extra = fault.seconds if fault is not None and fault.kind == "delay" else 0.0
        return max(0.0, self.deployment.switches.latency + spread) + extra

    def _execute(
        self,
        route: Route,
        account: Account,
        path: str,
        request: web.Request,
        text: bytes,
        fault: Fault | None,
    ) -> web.StreamResponse:
        if fault is not None and fault.kind == "drop_before":
            _hang_up(request)
        if fault is not None and not fault.runs:
            return self._spoil(fault, self._reply(None))
        if fault is not None and fault.kind == "late_row":
            self.deployment.ledger.late = fault.seconds
        refused = True
        try:
            body = parse(text, route.members)
            answer = route.run(self.deployment, Asked(account, body, request.remote))
            self.executed[path] += 1
            response = self._reply(answer)
            refused = False
        except RefusedCall as refusal:
            response = self._refuse(refusal)
        except sqlite3.Error:
            # No room for the books, say: nothing was done.
            response = self._refuse(RefusedCall(BROKEN))
        finally:
            # Of this call alone.
            self.deployment.ledger.late = 0.0
        if fault is None or (refused and fault.kind == "wrong_shape"):
            return response
        if fault.kind == "drop_after":
            _hang_up(request)
        return self._spoil(fault, response)

    def _spoil(self, fault: Fault, response: web.Response) -> web.Response:
        """Make of an answer what a fault wants."""
        status = fault.status or response.status
        if fault.kind == "html":
            # Where nothing is: who follows it has lost the call.
            headers = {"Location": "/elsewhere"} if 300 <= status < 400 else None  # noqa: PLR2004 - redirects
            return web.Response(
                status=status,
                text=f"<html><h1>{status}</h1></html>",
                content_type="text/html",
                headers=headers,
            )
        if fault.kind == "code":
            return self._refuse(RefusedCall(fault.code), fault.status)
        if fault.kind == "wrong_shape":
            return self._reply("unexpected", status)
        body = response.body if isinstance(response.body, bytes) else b""
        if fault.kind == "cut_json":
            body = body[: len(body) // 2]
        if fault.kind == "empty":
            body = b""
        return web.Response(status=status, body=body, content_type="application/json")

    def _refuse(self, refusal: RefusedCall, status: int | None = None) -> web.Response:
        code, switches = refusal.code, self.deployment.switches
        if status is None and switches.statuses == "http":
            statuses = {NO_TOKEN: 401, BAD_TOKEN: 401, BAD_IP: 403}
            status = {**statuses, BUSY: switches.busy_status}.get(code)
        fields = [{"field": k, "message": v} for k, v in refusal.fields.items()]
        envelope = self.deployment.forms.envelope(code, NAMES.get(code), fields or None)
        return _json(envelope, status or 200)

    def _reply(self, answer: object, status: int = 200) -> web.Response:
        older = self.deployment.switches.generation == "older"
        message = "OK" if older else None
        return _json(self.deployment.forms.envelope(0, message, answer), status)


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


def _end(gauge: Gauge) -> None:
    gauge.in_flight -= 1
