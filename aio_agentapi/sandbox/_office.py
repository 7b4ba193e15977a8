"""
The back office: pages over the stand-in's own books, for people.

It listens where the service does, on this machine, and keeps nothing of its own but
who is logged in and what a page has still to say. What other pages in the same
browser could do to it is refused: a post has to come from one of its own pages, and
a request has to name this machine as its host, or a foreign name that is made to
lead here would read and post as they do.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files
from typing import Any, Final, Generic, TypeAlias, TypeVar

import attrs
from aiohttp import web
from yarl import URL

from aio_agentapi.sandbox import _account_pages, _lookup, _pages, _typed
from aio_agentapi.sandbox._forms import digits
from aio_agentapi.sandbox._ledger import Ledger
from aio_agentapi.sandbox._lookup import PAGE
from aio_agentapi.sandbox._markup import Html
from aio_agentapi.sandbox._members import ADDRESSES, REFERENCE, STATE
from aio_agentapi.sandbox._pages import Note, Shown, Viewer
from aio_agentapi.sandbox._parts import Typed
from aio_agentapi.sandbox._records import (
    FORBIDDEN,
    NO_AGENT,
    NO_POINTS,
    Account,
    RefusedCall,
)
from aio_agentapi.sandbox._service import Service
from aio_agentapi.sandbox._typed import Wrong

# Names of this machine. Not their ports: a tunnel may lead here from another one.
_HOSTS: Final = frozenset({"127.0.0.1", "localhost", "::1"})

_HEADERS: Final = {
    "Cache-Control": "no-store",
    # Nothing from elsewhere, nothing inline, and in nobody's frame.
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src"
    " 'self'; connect-src 'self'; img-src data:; form-action 'self'; base-uri 'none';"
    " frame-ancestors 'none'",
    # With no-referrer, browsers would not tell where a post comes from.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}

_FILES: Final = {"style.css": "text/css", "script.js": "text/javascript"}

# Seconds between two looks at the gauges; after so many, a browser asks again.
_LOOK: Final = 0.1
_LOOKS: Final = 6000

# Logins, and notes that nobody has read, beyond which the oldest are forgotten.
_KEPT: Final = 1000

_REFUSALS: Final = {
    NO_AGENT: ("Not found", "There is no such account.", 404),
    FORBIDDEN: ("Not done", "An account above can do this, or nobody.", 403),
}

_NEWEST: Final = 2**63 - 1

_T = TypeVar("_T")
_Handler: TypeAlias = Callable[
    [web.Request, Viewer], Awaitable[web.StreamResponse | Html]
]


@attrs.define
class _Shelf(Generic[_T]):
    """Keeps things under keys that nobody guesses; the oldest go first."""

    _kept: dict[str, _T] = attrs.field(init=False, factory=dict)

    def put(self, thing: _T) -> str:
        key = secrets.token_urlsafe(24)
        self._kept[key] = thing
        if len(self._kept) > _KEPT:
            del self._kept[next(iter(self._kept))]
        return key

    def get(self, key: str) -> _T | None:
        return self._kept.get(key)

    def take(self, key: str) -> _T | None:
        return self._kept.pop(key, None)

    def replace(self, key: str, thing: _T) -> None:
        self._kept[key] = thing


@attrs.frozen(eq=False)
class Office:
    """
    Answers what is no call of the service.

    Args:
        service: What is looked at and changed.

        login: Whether somebody has to say who it is, and then sees his own account
            and those below it. What is the service's own doing, minting and faults,
            is there without it only.
    """

    _service: Service = attrs.field(alias="service")
    _login: bool = attrs.field(alias="login")
    # The token of who is logged in: with another one, the login ends.
    _tokens: _Shelf[str] = attrs.field(init=False, factory=_Shelf[str])
    _notes: _Shelf[Note] = attrs.field(init=False, factory=_Shelf[Note])
    _closing: asyncio.Event = attrs.field(init=False, factory=asyncio.Event)

    def join(self, app: web.Application) -> None:
        """Let it answer beside the service."""
        app.add_routes(self._routes())
        # Streams would be waited for.
        app.on_shutdown.append(self._close)

    def _routes(self) -> list[web.RouteDef]:
        place = "/accounts/{code:[0-9]{1,18}}"
        owner = [
            web.get("/service", self._guarded(self._service_page)),
            web.post("/service/{act:switches|fault|clear}", self._guarded(self._serve)),
            web.get("/service/{act:switches|fault|clear}", self._open(self._up)),
        ]
        door = [
            web.get("/login", self._open(self._login_page)),
            web.post("/login", self._open(self._log_in)),
            web.post("/logout", self._open(self._log_out)),
        ]
        return [
            web.get("/", self._guarded(self._tree)),
            web.get(place, self._guarded(self._account)),
            web.get(place + "/{what:moves|users|feed}", self._guarded(self._list)),
            web.post(place + "/{act:[a-z]+}", self._guarded(self._act)),
            # A form that was refused leaves its address in the browser.
            web.get(place + "/{act:[a-z]+}", self._open(self._up)),
            # A look at the head would not end.
            web.get("/events", self._guarded(self._events), allow_head=False),
            web.get("/office/{file}", self._open(self._file)),
            *(door if self._login else owner),
        ]

    @staticmethod
    def check_host(request: web.Request) -> None:
        """Refuse a request that does not name this machine as its host."""
        try:
            host = URL(f"http://{request.host}").host
        except ValueError:
            host = None
        if host not in _HOSTS:
            raise web.HTTPMisdirectedRequest(text="This is not the host it is for.\n")

    # Who may come in

    def _open(
        self, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Make a handler refuse what other pages send."""

        async def opened(request: web.Request) -> web.StreamResponse:
            self.check_host(request)
            if request.method == "POST":
                _check_origin(request)
            return await handler(request)

        return opened

    def _guarded(
        self, handler: _Handler
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Make a handler of one that wants to know who looks."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            viewer = self._viewer(request)
            if viewer is None:
                return _elsewhere("/login")
            try:
                answer = await handler(request, viewer)
            except RefusedCall as refusal:
                title, text, status = _REFUSALS[refusal.code]
                return _page(_pages.refused(title, text, viewer), status)
            except sqlite3.Error as error:
                text = f"The books cannot be used: {error}"
                page = _pages.refused("Not done", text, viewer)
                return _page(page, 500)
            return _page(answer) if isinstance(answer, Html) else answer

        return self._open(guarded)

    def _viewer(self, request: web.Request) -> Viewer | None:
        """Return who looks, with what is still to be said; None: log in first."""
        account = None
        if self._login:
            token = self._tokens.get(request.cookies.get(_cookie(request), ""))
            account = self._let_in(token or "")
            if account is None:
                return None
        # Only now, and not for a look at the head: it is said once.
        said = request.query.get("note", "") if request.method == "GET" else ""
        return Viewer(account=account, note=self._notes.take(said))

    def _let_in(self, token: str) -> Account | None:
        account = self._ledger.account_of(token)
        if account is None or self._ledger.is_suspended(account):
            return None
        return account

    async def _login_page(self, _: web.Request) -> web.Response:
        return _page(_pages.login(None))

    async def _log_in(self, request: web.Request) -> web.Response:
        sent = await _typed.read(request)
        # A token has too many values to be guessed: nobody has to wait.
        token = sent.get("token", "").strip()
        account = self._let_in(token)
        names = () if account is None else (account.name, str(account.code))
        if sent.get("account", "").strip() not in names:
            text = "No active account has this name or code, and this token."
            return _page(_pages.login(Typed("login", sent, {"": text})), 403)
        response = _elsewhere("/")
        self._tokens.take(request.cookies.get(_cookie(request), ""))
        key = self._tokens.put(token)
        response.set_cookie(_cookie(request), key, httponly=True, samesite="Strict")
        return response

    async def _log_out(self, request: web.Request) -> web.Response:
        self._tokens.take(request.cookies.get(_cookie(request), ""))
        response = _elsewhere("/login")
        response.del_cookie(_cookie(request), httponly=True, samesite="Strict")
        return response

    # What is shown

    async def _up(self, request: web.Request) -> web.Response:
        return _elsewhere(request.path.rpartition("/")[0])

    async def _file(self, request: web.Request) -> web.Response:
        name = request.match_info["file"]
        if name not in _FILES:
            raise web.HTTPNotFound
        body = (files("aio_agentapi.sandbox") / "office" / name).read_bytes()
        return web.Response(
            body=body, content_type=_FILES[name], charset="utf-8", headers=_HEADERS
        )

    async def _tree(self, request: web.Request, viewer: Viewer) -> Html:
        words, offset = request.query.get("find", ""), _number(request, "offset", 0)
        found = _lookup.accounts(self._ledger, viewer.account, words, offset)
        shown = [self._shown(request, account) for account in found[:PAGE]]
        more = len(found) > PAGE
        return _pages.tree(viewer, shown, words=words, offset=offset, more=more)

    async def _account(self, request: web.Request, viewer: Viewer) -> Html:
        account = self._find(request.match_info["code"], viewer)
        return _account_pages.account(
            viewer,
            self._shown(request, account),
            self._above(account, viewer),
            address=request.remote or "",
            once=f"office-{secrets.token_hex(8)}",
        )

    async def _list(self, request: web.Request, viewer: Viewer) -> Html:
        account = self._find(request.match_info["code"], viewer)
        above = self._above(account, viewer)
        before = _number(request, "before", _NEWEST)
        what = request.match_info["what"]
        if what == "users":
            users = _lookup.users(self._ledger, account, before)
            return _account_pages.users(viewer, account, above, users)
        if what == "feed":
            rows = _lookup.feed(self._ledger, account, before)
            return _account_pages.feed(viewer, account, above, rows)
        moves = _lookup.moves(self._ledger, account, before)
        codes = {move.source for move in moves} | {move.target for move in moves}
        sides = [self._ledger.account(code) for code in codes if code is not None]
        # Of one above him, he hears what the service tells him: its code.
        names = {s.code: s.name if viewer.sees(s) else str(s.code) for s in sides}
        return _account_pages.moves(viewer, account, above, moves, names)

    async def _service_page(self, _: web.Request, viewer: Viewer) -> Html:
        switches = self._service.deployment.switches
        return _pages.service(viewer, switches, self._service.faults.on)

    async def _events(self, request: web.Request, viewer: Viewer) -> web.StreamResponse:
        """Tell what the gauges of some accounts show, as often as it changes."""
        codes = request.query.getall("code", [])[:PAGE]
        accounts = [self._find(code, viewer) for code in codes]
        response = web.StreamResponse(headers=_HEADERS)
        response.content_type = "text/event-stream"
        await response.prepare(request)
        told: dict[int, Any] = {}
        for _ in range(_LOOKS):
            now = {a.code: self._shown(request, a).live for a in accounts}
            changed = {code: now[code] for code in now if now[code] != told.get(code)}
            told = now
            try:
                if changed:
                    await response.write(f"data: {json.dumps(changed)}\n\n".encode())
            except ConnectionError:
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), _LOOK)
            gone = request.transport is None or request.transport.is_closing()
            if gone or self._closing.is_set() or self._viewer(request) is None:
                break
        return response

    async def _close(self, _: web.Application) -> None:
        self._closing.set()

    # What is done

    async def _act(
        self, request: web.Request, viewer: Viewer
    ) -> web.StreamResponse | Html:
        account = self._find(request.match_info["code"], viewer)
        acts = {
            "move": self._move,
            "allow": self._allow,
            "state": self._state,
            "token": self._token,
        }
        if viewer.account is None:
            acts |= {"mint": self._mint, "foreign": self._foreign}
        name = request.match_info["act"]
        if name not in acts:
            raise web.HTTPNotFound
        sent = await _typed.read(request)
        try:
            note = acts[name](_Asked(request, viewer, account, sent))
        except Wrong as error:
            again = attrs.evolve(viewer, typed=Typed(name, sent, error.fields))
            return _page(await self._account(request, again), 400)
        return self._done(f"/accounts/{account.code}", note)

    def _move(self, asked: _Asked) -> Note:
        account, sent = asked.account, asked.sent
        above = self._above(account, asked.viewer)
        if not above:
            raise RefusedCall(FORBIDDEN)
        ways = {"give": self._ledger.transfer, "take": self._ledger.reclaim}
        move = ways.get(sent.get("way", ""))
        if move is None:
            raise Wrong("Which way?")
        amount, reference = _typed.amount(sent), sent.get("reference") or None
        try:
            if reference is not None:
                REFERENCE.check(reference)
        except ValueError as error:
            text = f"The reference {error}."
            raise Wrong(text) from None
        try:
            move(above[-1], account.code, amount, reference)
        except RefusedCall as refusal:
            if refusal.code == NO_POINTS:
                raise Wrong(amount="There are too few points.") from None
            text = "This form was sent before, with something else in it."
            raise Wrong(text) from None
        return Note(f"Moved {digits(amount)}.")

    def _mint(self, asked: _Asked) -> Note:
        if asked.account.parent is not None:
            raise RefusedCall(FORBIDDEN)
        amount = _typed.amount(asked.sent)
        self._ledger.mint(asked.account.code, amount)
        return Note(f"Minted {digits(amount)}.")

    def _allow(self, asked: _Asked) -> Note:
        if "addresses" not in asked.sent:
            # Blank means from anywhere; nothing means that this is not the form.
            raise Wrong(addresses="No addresses were sent.")
        addresses = asked.sent["addresses"].split()
        try:
            ADDRESSES.check(addresses)
        except ValueError as error:
            raise Wrong(addresses=str(error)) from None
        self._ledger.update(asked.account, None, addresses)
        several = "address" if len(addresses) == 1 else "addresses"
        calls = f"from {len(addresses)} {several}" if addresses else "from anywhere"
        return Note(f"Saved: calls are accepted {calls}.")

    def _state(self, asked: _Asked) -> Note:
        if asked.viewer.is_(asked.account):
            # Nobody could take it back.
            raise RefusedCall(FORBIDDEN)
        state = asked.sent.get("state")
        try:
            STATE.check(state)
        except ValueError as error:
            raise Wrong(str(error)) from None
        account = self._ledger.update(asked.account, state, None)
        return Note(f"{account.name} and all below it: {account.state}.")

    def _token(self, asked: _Asked) -> Note:
        if asked.sent.get("sure") != "yes":
            raise Wrong(sure="Say that the old one may stop working.")
        token = self._ledger.reissue_token(asked.account)
        if asked.viewer.is_(asked.account):
            key = asked.request.cookies[_cookie(asked.request)]
            self._tokens.replace(key, token)
        return Note(f"The new token of {asked.account.name}, shown this once:", token)

    def _foreign(self, asked: _Asked) -> Note:
        held = _typed.whole(asked.sent, "held", 0)
        gauge = self._service.gauge(asked.account, asked.request.remote or "")
        gauge.foreign = held
        return Note(f"Others hold {held}.")

    async def _serve(
        self, request: web.Request, viewer: Viewer
    ) -> web.StreamResponse | Html:
        name, sent = request.match_info["act"], await _typed.read(request)
        try:
            note = self._serve_now(name, sent)
        except Wrong as error:
            again = attrs.evolve(viewer, typed=Typed(name, sent, error.fields))
            return _page(await self._service_page(request, again), 400)
        return self._done("/service", note)

    def _serve_now(self, name: str, sent: Mapping[str, str]) -> Note:
        if name == "switches":
            self._service.deployment.switch(_typed.switches(sent))
            return Note("The switches are set.")
        if name == "clear":
            self._service.faults.clear()
            return Note("All faults are off.")
        fault = _typed.fault(sent)
        try:
            self._service.faults.add(fault)
        except ValueError as error:
            raise Wrong(str(error)) from None
        return Note(f"{fault.kind} is on.")

    def _done(self, path: str, note: Note) -> web.Response:
        return _elsewhere(f"{path}?note={self._notes.put(note)}")

    # What is asked of the books

    @property
    def _ledger(self) -> Ledger:
        return self._service.deployment.ledger

    def _find(self, code: str, viewer: Viewer) -> Account:
        """Return an account; of those that are not his, he hears that there is none."""
        if not re.fullmatch("[0-9]{1,18}", code):
            raise RefusedCall(NO_AGENT)
        account = self._ledger.account(int(code))
        if not viewer.sees(account):
            raise RefusedCall(NO_AGENT)
        return account

    def _above(self, account: Account, viewer: Viewer) -> list[Account]:
        """Return the accounts above one, from the top, as far as they are his."""
        lineage = [self._ledger.account(code) for code in account.lineage[:-1]]
        return [one for one in lineage if viewer.sees(one)]

    def _shown(self, request: web.Request, account: Account) -> Shown:
        return Shown(
            account=account,
            gauge=self._service.gauge(account, request.remote or ""),
            limit=self._service.deployment.switches.limit,
            suspended=self._ledger.is_suspended(account),
        )


@attrs.frozen
class _Asked:
    """One thing to do: by whom, to which account, and what was typed."""

    request: web.Request
    viewer: Viewer
    account: Account
    sent: Mapping[str, str]


def _check_origin(request: web.Request) -> None:
    """Refuse a post that comes from another page, or does not tell where from."""
    headers = request.headers
    own = headers.get("Origin") == f"http://{request.host}"
    if not own or headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
        raise web.HTTPForbidden(text="Only its own pages may send this.\n")


def _cookie(request: web.Request) -> str:
    # Cookies do not tell ports apart, and a second stand-in may run.
    return f"office_{URL(f'http://{request.host}').port}"


def _page(page: Html, status: int = 200) -> web.Response:
    return web.Response(
        text=page, status=status, content_type="text/html", headers=_HEADERS
    )


def _elsewhere(path: str) -> web.Response:
    return web.Response(status=303, headers={**_HEADERS, "Location": path})


def _number(request: web.Request, name: str, usual: int) -> int:
    text = request.query.get(name, "")
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else usual
