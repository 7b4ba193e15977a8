"""
``agentapi doctor``: what is wrong between here and the service, and what to do.

A table of checks, each of which looks at one thing and names those that it needs. They
run side by side as far as these allow, all of them before one end: whatever hangs, the
doctor does not. What a failed check stands in the way of is skipped, not failed.

Nothing is written and nothing moved. The service is asked ``agent/info`` a few times,
one after the other, and ``game/online-games`` once. These calls go past a shared gate,
which may be what is ill.

The token, and the passwords of proxy and store, are looked at and not told: no finding
is made of them, and what others say is written only after they were blotted out.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib.metadata
import math
import os
import platform
import re
import socket
import sqlite3
import ssl
import statistics
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from concurrent.futures import Future
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypeVar
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment

import attrs
import click
import msgspec

from aio_agentapi import AgentInfo, OnlineGame, Phase, Session
from aio_agentapi._books import MARK, VERSION, Books
from aio_agentapi._journal import OPEN
from aio_agentapi._settings import check_base_url
from aio_agentapi.cli._account import Draft, Place
from aio_agentapi.cli._agents import as_json_option
from aio_agentapi.cli._command import (
    DONE,
    UNWELL,
    alone,
    draft_of,
    open_place,
    runs,
    shared,
)
from aio_agentapi.cli._payments import journal_option
from aio_agentapi.errors import (
    AgentAPIError,
    BusyError,
    CredentialError,
    DecodeError,
    ForbiddenError,
    GateLostError,
    IpNotAllowedError,
    MaintenanceError,
    NotSentError,
    OutcomeUnknownError,
    UnsupportedError,
    UsageError,
)

T = TypeVar("T")

# Seconds for all checks: ten with the start and the end of Python on a busy machine.
_ALL: Final = 5.5
# Seconds for a name, for a connection, for TLS, for a word of the store.
_STEP: Final = 2.0
# Seconds for one answer of the service, and for a permit where it is busy.
_PATIENCE: Final = 3.0
# Calls whose latency is taken, after the one that connects; seconds for all of them.
_CALLS: Final = 5
_CALLING: Final = 1.5
# Addresses of one name that are tried.
_TRIED: Final = 3
# Seconds by which clocks that somebody sets do not differ.
_SKEW: Final = 30.0
# Contract 5: what online games has, in seconds.
_ONLINE: Final = 1800.0
# Days before its end at which a certificate should have been renewed.
_RENEWED: Final = 14
# What is blotted out wherever it stands: shorter words stand in others.
_LONG: Final = 4

_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_DATE: Final = re.compile(rb"^date:(.*)$", re.IGNORECASE | re.MULTILINE)
_LEAST: Final = re.compile(r"([\w-]+)>=([\d.]+)")

_PACKAGES: Final = ("aio-agentapi", "aiohttp", "attrs", "cattrs", "msgspec", "redis")

# What goes wrong where a token is copied.
_SLIPS: Final = (
    (r"[\r\n]", "a line end"),
    (r"[\"'\u2018-\u201f]", "quotes"),
    (r"[^\S\r\n]", "white space"),
    (r"(?i)^\W*bearer\b", "the word Bearer"),
    (r"[^\x00-\x7f]", "characters that are not ASCII"),
)

# Why there is no connection, where the machine says it.
_NO_WAY: Final[Mapping[int | None, str]] = {
    errno.ECONNREFUSED: "nothing listens there: look at the host and port",
    errno.EADDRNOTAVAIL: "local_address is to be an address of this machine, and of"
    " the same kind as the service's",
    errno.ENETUNREACH: "there is no way there: look at this machine's network",
}
_NO_WORD: Final = "a firewall may be in the way, or a proxy is needed (proxy)"

# Which check an error of the service belongs to: the first that fits. Those before it
# are well then, as the service has come that far.
_BLAMES: Final[tuple[tuple[type[AgentAPIError], str], ...]] = (
    (BusyError, "others"),
    (IpNotAllowedError, "allowed_ip"),
    (CredentialError, "accepted"),
    (ForbiddenError, "account"),
    (AgentAPIError, "answer"),
)

# What to do about one, whichever check it belongs to.
_REMEDIES: Final[Mapping[type[AgentAPIError], str]] = {
    BusyError: "have fewer calls at once elsewhere, or share one gate among all"
    " programs that use the token (agentapi gate shows them)",
    IpNotAllowedError: "add this machine's address to Allowed IP in the back office"
    " (separated by spaces or new lines); if it has several, set local_address",
    CredentialError: "take the account's present token (a reissued one replaces the"
    " old at once), and see that it is of the service at this base URL",
    ForbiddenError: "the account, or one above it, is suspended, or may not do this:"
    " whoever is above resumes it (agentapi agents resume)",
    NotSentError: "see the lines above, and the settings of proxy and TLS",
    UnsupportedError: "look at the base URL, which is without /v4; or the deployment"
    " calls the path differently (paths)",
    MaintenanceError: "wait: the service is being worked on",
    OutcomeUnknownError: "a proxy or a login is in between, the base URL is not that of"
    " the API, or the service is ill: ask its people",
    DecodeError: "look at the base URL, and for a newer version of this library",
    AgentAPIError: "look the code up in the service's own documents",
}

_State: TypeAlias = Literal["ok", "note", "wrong", "skipped"]

_COLOURS: Final[Mapping[_State, str]] = {
    "ok": "green",
    "note": "yellow",
    "wrong": "red",
    "skipped": "bright_black",
}


@attrs.frozen
class _Finding:
    """What a check has found: ``note`` is worth knowing, and nothing is wrong."""

    state: _State
    told: str
    remedy: str | None = None
    facts: Mapping[str, object] = attrs.field(factory=dict[str, object])


def _ok(told: str, **facts: object) -> _Finding:
    return _Finding("ok", told, None, facts)


def _wrong(told: str, remedy: str, **facts: object) -> _Finding:
    return _Finding("wrong", told, remedy, facts)


@attrs.frozen(kw_only=True)
class _Asked:
    """What the service answered, and how fast."""

    outcome: AgentInfo | AgentAPIError
    seconds: list[float]
    busy: int
    online: list[OnlineGame]


@attrs.define(kw_only=True, eq=False, repr=False)
class _Patient:
    """What the checks look at, and hand on to those that need them."""

    read: Callable[[], Draft]
    until: float
    draft: Draft = attrs.field(init=False)
    place: Place = attrs.field(init=False)
    # Where a connection goes: the service, or the proxy before it.
    target: tuple[str, int] = attrs.field(init=False)
    addresses: list[str] = attrs.field(init=False)
    link: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = attrs.field(
        init=False, default=None
    )
    own_address: str | None = attrs.field(init=False, default=None)
    asked: _Asked = attrs.field(init=False)

    def fault(self, check: str) -> _Finding | None:
        """Return what the service's answer says is wrong with what *check* looks at."""
        error = self.asked.outcome
        if isinstance(error, AgentInfo):
            return None
        blamed = next(name for kind, name in _BLAMES if isinstance(error, kind))
        if blamed != check:
            return None
        kinds = [kind for kind in type(error).__mro__ if kind in _REMEDIES]
        return _wrong(str(error), _REMEDIES[kinds[0]])

    def hide(self, text: str) -> str:
        """Blot out of *text* what nobody is to see."""
        passwords = [url.password or "" for url in self._urls()]
        secrets = {*passwords, *map(unquote, passwords)}
        if hasattr(self, "draft"):
            token = self.draft.token
            secrets |= {re.sub(r"(?i)^\W*bearer\b|[^!-~]|[\"']", "", token)}
        for secret in sorted(secrets, key=len, reverse=True):
            if len(secret) >= _LONG:
                text = re.sub(re.escape(secret), "***", text, flags=re.IGNORECASE)
        return _UUID.sub("***", text)

    def hide_in(self, value: Any) -> Any:
        if isinstance(value, str):
            # As it can be written, whatever bytes a path has.
            return self.hide(value).encode(errors="replace").decode()
        if isinstance(value, Mapping):
            return {key: self.hide_in(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide_in(each) for each in value]
        return value

    def _urls(self) -> list[Any]:
        texts = [*_proxies().values()]
        if hasattr(self, "draft"):
            draft = self.draft
            texts += [draft.base_url, draft.settings.proxy or ""]
            texts += [str((draft.gate or {}).get("url"))]
        found: list[Any] = []
        for text in texts:
            with contextlib.suppress(ValueError):
                found += [urlsplit(text)]
        return found


def _proxies() -> dict[str, str]:
    """Return the proxies that the environment names, which nobody here uses."""
    found = getproxies_environment().items()
    return {kind: url for kind, url in found if kind in {"http", "https", "all"}}


# The checks, in the order of the table at the end.


async def _versions(_: _Patient) -> _Finding:
    found = {"Python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    told = ", ".join(f"{name} {number}" for name, number in found.items())
    wanted = importlib.metadata.requires("aio-agentapi") or []
    least = {m[1]: m[2] for m in map(_LEAST.match, wanted) if m}
    old = [
        f"{name}>={least[name]}"
        for name in found.keys() & least.keys()
        if _number(found[name]) < _number(least[name])
    ]
    if old:
        return _wrong(told, f"pip install -U {' '.join(map(repr, sorted(old)))}")
    return _ok(told, **found)


def _number(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:3]]


async def _config(patient: _Patient) -> _Finding:
    try:
        # A file may hang, and the rest is not to.
        patient.draft = draft = await _aside(patient.read)
    except UsageError as error:
        return _wrong(str(error), "set it right in the environment or that file")
    if draft.name is None:
        return _ok("the account of AGENTAPI_TOKEN")
    return _ok(f"the account {draft.name} of the configuration file")


async def _token(patient: _Patient) -> _Finding:
    token = patient.draft.token
    try:
        patient.place = patient.draft.place()
    except UsageError:
        slips = [told for form, told in _SLIPS if re.search(form, token)]
        told = ", ".join(slips) or "characters that no token has"
        remedy = "set it to the 36 characters alone, as the service gave them out"
        return _wrong(f"has {told} in or around it", remedy)
    if _UUID.fullmatch(token):
        return _ok("36 characters, in the form of a UUID")
    told = f"{len(token)} characters, which are not in the form of a UUID"
    return _Finding("note", told, "if it is refused, copy it again, all of it")


async def _base_url(patient: _Patient) -> _Finding:
    draft = patient.draft
    remedy = "set AGENTAPI_BASE_URL, or base_url in the configuration file"
    if draft.base_url != draft.base_url.strip():
        return _wrong("white space around it", remedy)
    try:
        plain = check_base_url(
            draft.base_url, allow_plain_http=draft.settings.allow_plain_http
        )
    except UsageError as error:
        # Not the address: whoever mixed them up has the token in it.
        return _wrong(str(error).removeprefix("base_url: "), remedy)
    patient.target = _target(plain)
    return _ok(plain)


def _target(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


async def _proxy(patient: _Patient) -> _Finding:
    proxy = patient.draft.settings.proxy
    unused = sorted(f"{name.upper()}_PROXY" for name in _proxies())
    told = f"; {', '.join(unused)} of the environment not used" if unused else ""
    if proxy is None:
        if not unused:
            return _ok("none")
        remedy = "where there is no other way out, set proxy in [settings]"
        return _Finding("note", f"none{told}", remedy, {"unused": unused})
    try:
        host, port = _target(proxy)
        # As it is looked up.
        host.encode("idna")
    except ValueError:
        host, port = "", 0
    if not host or urlsplit(proxy).scheme not in {"http", "https"}:
        return _wrong("is no address of a proxy", "proxy: http:// and host and port")
    patient.target = host, port
    return _ok(f"{host}:{port}{told}", unused=unused)


async def _name(patient: _Patient) -> _Finding:
    host, port = patient.target
    stream = socket.SOCK_STREAM
    try:
        async with asyncio.timeout(_STEP):
            rows = await _aside(lambda: socket.getaddrinfo(host, port, type=stream))
    except TimeoutError:
        remedy = "see whether the name servers of this machine answer"
        return _wrong(f"{host}: no answer within {_STEP:g} s", remedy)
    except OSError as error:
        remedy = "look for a slip in the name, and at this machine's name servers"
        return _wrong(f"{host}: {error.strerror}", remedy)
    patient.addresses = [*dict.fromkeys(str(row[4][0]) for row in rows)]
    told = ", ".join(patient.addresses[:_TRIED])
    return _ok(f"{host} is {told}", addresses=patient.addresses)


async def _connection(patient: _Patient) -> _Finding:
    _, port = patient.target
    local = patient.draft.settings.local_address
    place, why = "", OSError()
    for address in patient.addresses[:_TRIED]:
        place = f"{address} port {port}"
        began = time.monotonic()
        try:
            async with asyncio.timeout(_STEP):
                patient.link = await asyncio.open_connection(
                    address, port, local_addr=(local, 0) if local else None
                )
        except OSError as error:
            why = error
            continue
        patient.own_address = patient.link[1].get_extra_info("sockname")[0]
        took = time.monotonic() - began
        told = f"to {place} in {took * 1000:.1f} ms, from {patient.own_address}"
        return _ok(told, seconds=took, own_address=patient.own_address)
    if isinstance(why, TimeoutError):
        return _wrong(f"to {place}: none within {_STEP:g} s", _NO_WORD)
    # asyncio tells several failures in its own words, and leaves the number.
    told = os.strerror(why.errno) if why.errno else str(why)
    return _wrong(f"to {place}: {told}", _NO_WAY.get(why.errno, _NO_WORD))


async def _tls(patient: _Patient) -> _Finding:
    base = urlsplit(patient.draft.base_url)
    if base.scheme == "http":
        # Checked with the base URL.
        return _ok("none: plain http, to this machine or as the settings allow it")
    if patient.draft.settings.proxy is not None or patient.link is None:
        return _ok("through the proxy: the answer shows it")
    writer = patient.link[1]
    try:
        async with asyncio.timeout(_STEP):
            await writer.start_tls(
                ssl.create_default_context(), server_hostname=base.hostname
            )
    except ssl.SSLCertVerificationError as error:
        remedy = (
            "see that the base URL has the right name, that this machine's clock is"
            " right, and that no proxy reads along; an authority of your own goes into"
            " the file that SSL_CERT_FILE names"
        )
        return _wrong(f"certificate: {error.verify_message}", remedy)
    except OSError as error:
        # Others than TLS's own have no reason: a time-out, a connection that broke.
        told = getattr(error, "reason", None) or "no answer to a greeting"
        remedy = "see whether the port speaks TLS, and what stands in between"
        return _wrong(f"not agreed on: {told}", remedy)
    end = ssl.cert_time_to_seconds(writer.get_extra_info("peercert")["notAfter"])
    days = math.floor((end - time.time()) / 86400)
    told = f"{writer.get_extra_info('cipher')[1]}, certificate good for {days} days"
    if days < _RENEWED:
        return _Finding("note", told, "tell the service's people", {"days": days})
    return _ok(told, days=days)


async def _answer(patient: _Patient) -> _Finding:
    place = patient.place
    settings = attrs.evolve(
        place.settings,
        attempts=1,
        timeout=min(place.settings.timeout, _PATIENCE),
        max_wait=_PATIENCE,
        deadline=None,
        connect_timeout=min(place.settings.connect_timeout, _STEP),
        drain=0.0,
    )
    async with open_place(attrs.evolve(place, gate=None, settings=settings)) as session:
        patient.asked = await _ask(session)
    return patient.fault("answer") or _ok("the service's own")


async def _ask(session: Session) -> _Asked:
    """Ask a few times what changes nothing, one call after the other."""
    seconds: list[float] = []
    online: list[OnlineGame] = []
    end = time.monotonic() + _CALLING
    try:
        while True:
            began = time.monotonic()
            outcome: AgentInfo | AgentAPIError = await session.agents.info()
            seconds.append(time.monotonic() - began)
            if len(seconds) > _CALLS or time.monotonic() > end:
                break
        with contextlib.suppress(AgentAPIError):
            # Who has no such call, or may not do it, plays no games.
            online = await session.games.online()
    except AgentAPIError as error:
        outcome = error
    busy = session.gate.statistics().busy_answers
    return _Asked(outcome=outcome, seconds=seconds, busy=busy, online=online)


async def _others(patient: _Patient) -> _Finding:
    if fault := patient.fault("others"):
        return fault
    busy, limit = patient.asked.busy, patient.draft.settings.limit
    if not busy:
        return _ok("no call met 1018: others leave some permits", busy_answers=0)
    told = f"{busy} calls met 1018: others had all {limit} permits in use"
    return _Finding("note", told, _REMEDIES[BusyError], {"busy_answers": busy})


async def _accepted(patient: _Patient) -> _Finding:
    return patient.fault("accepted") or _ok("the service knows the token")


async def _allowed_ip(patient: _Patient) -> _Finding:
    outcome = patient.asked.outcome
    if (fault := patient.fault("allowed_ip")) is not None:
        seen = getattr(outcome, "client_ip", None)
        told = (
            f"1020, not in the account's list: this machine has {patient.own_address}"
        )
        told += f"; the service sees {seen}" if seen else ", maybe another one outside"
        facts = {"client_ip": seen, "own_address": patient.own_address}
        return attrs.evolve(fault, told=told, facts=facts)
    if not isinstance(outcome, AgentInfo):
        return _ok("not refused")
    allowed, seen = outcome.whitelist, outcome.client_ip
    listed = "a list that it does not tell" if allowed is None else " ".join(allowed)
    told = f"the service sees {seen or 'an address that it does not tell'}"
    return _ok(f"{told}; allowed: {listed or 'any'}", client_ip=seen, whitelist=allowed)


async def _account(patient: _Patient) -> _Finding:
    if fault := patient.fault("account"):
        return fault
    outcome = patient.asked.outcome
    if not isinstance(outcome, AgentInfo):
        return _ok("not refused")
    told = f"{outcome.role or 'account'} {outcome.name}, currency {outcome.currency}"
    return _ok(told, agent_code=outcome.agent_code, name=outcome.name)


async def _clock(patient: _Patient) -> _Finding:
    if patient.draft.settings.proxy is not None or patient.link is None:
        return _Finding("note", "not seen through a proxy")
    reader, writer = patient.link
    host = urlsplit(patient.draft.base_url).netloc
    began = time.time()
    try:
        async with asyncio.timeout(_STEP):
            # Without a token: no call, only a word on what time it is.
            writer.write(f"HEAD / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
    except (OSError, EOFError, asyncio.LimitOverrunError):
        head = b""
    found = _DATE.search(head)
    try:
        date = parsedate_to_datetime(found[1].decode("ascii", "replace").strip())  # type: ignore[index]  # no date: as one that is none
    except (TypeError, ValueError):
        return _Finding("note", "the service does not tell the time")
    # It tells whole seconds.
    ahead = date.timestamp() + 0.5 - (began + time.time()) / 2
    told = f"the service's is {abs(ahead):.1f} s {'ahead' if ahead > 0 else 'behind'}"
    if abs(ahead) > _SKEW:
        return _wrong(told, "set this machine's clock (NTP)", ahead=ahead)
    return _ok(told, ahead=ahead)


async def _zone(patient: _Patient) -> _Finding:
    online, zone = patient.asked.online, patient.draft.settings.zone
    if not online:
        return _Finding("skipped", f"{zone} is set; nobody plays, whose times show it")
    newest = max(game.last_update.timestamp() for game in online)
    age = time.time() - newest
    if -_SKEW <= age <= _ONLINE + _SKEW:
        return _ok(f"{zone}, as its times show", ahead=0.0)
    # By whole half hours, from who may have played up to one ago.
    ahead = math.ceil((-age - _SKEW) / _ONLINE) / 2
    told = f"{zone} is set; the service's times are {ahead:+g} h from it"
    return _wrong(told, "set zone in [settings] to the service's", ahead=ahead)


async def _latency(patient: _Patient) -> _Finding:
    # The first one connects; where it takes all the time there is, it has to do.
    usual = statistics.median(patient.asked.seconds[1:] or patient.asked.seconds)
    limit = patient.draft.settings.limit
    rate = limit / usual
    told = (
        f"{usual * 1000:.1f} ms, so {limit} in flight give {rate:,.0f} calls a second"
    )
    return _ok(told, seconds=usual, calls_per_second=rate)


async def _gate(patient: _Patient) -> _Finding:
    place = patient.place
    if place.gate is None:
        return _Finding("skipped", "no shared gate is named")
    try:
        store = shared(place)
    except UsageError as error:
        return _wrong(str(error), "see AGENTAPI_REDIS_URL, and the [gate] table")
    try:
        async with asyncio.timeout(_STEP):
            took, ahead = await _ask_store(place.gate["url"])
            budget = await store.look(place.token, place.settings.limit)
    except (GateLostError, TimeoutError) as error:
        told = str(error) or f"the store did not answer within {_STEP:g} s"
        remedy = "see whether it runs, and the url: host, port, user and password"
        return _wrong(told.removesuffix(". Nothing was sent"), remedy)
    except ValueError:
        # What is in its place there, nobody of ours has written.
        return _wrong("the store holds something else", "use a database of its own")
    side = "ahead" if ahead > 0 else "behind"
    told = (
        f"the store answers in {took * 1000:.1f} ms, its clock is {abs(ahead):.1f} s"
        f" {side}; {len(budget.members)} members hold {budget.held} of {budget.limit},"
        f" {budget.quarantined} in quarantine"
    )
    facts = {"seconds": took, "ahead": ahead, "members": len(budget.members)}
    return _ok(told, **facts, held=budget.held, quarantined=budget.quarantined)


async def _ask_store(url: str) -> tuple[float, float]:
    """
    Ask the store for the time.

    Returns:
        Seconds that it took, and by which its clock is ahead.

    Raises:
        GateLostError: It is not reached, or does not let us in.
    """
    # Only here: who shares no gate needs no redis-py.
    import redis.asyncio  # noqa: PLC0415 - as above
    from redis.asyncio.retry import Retry  # noqa: PLC0415 - as above
    from redis.backoff import NoBackoff  # noqa: PLC0415 - as above
    from redis.exceptions import RedisError  # noqa: PLC0415 - as above

    # Its types are not complete. Asked once: with pauses and more attempts the time
    # would be over before the reason is told.
    driver: Any = redis.asyncio.Redis
    client = driver.from_url(url, retry=Retry(NoBackoff(), 0))
    try:
        await client.ping()
        began, start = time.time(), time.monotonic()
        seconds, micros = await client.time()
        took = time.monotonic() - start
    except (RedisError, OSError) as error:
        msg = f"the store is not reached: {error}"
    else:
        return took, seconds + micros / 1e6 - began - took / 2
    finally:
        await client.aclose()
    raise GateLostError(msg)


async def _journal(patient: _Patient) -> _Finding:
    place = patient.place
    if place.journal is None:
        return _Finding("skipped", "no journal is named")
    path = place.journal
    try:
        return await _aside(lambda: _look_into(path, place.label))
    except (OSError, sqlite3.Error) as error:
        told = getattr(error, "strerror", None) or error
        remedy = "it is to be a journal of this version, on a disk of this machine"
        return _wrong(f"{path}: {told}", f"{remedy}, which you may read and write")


def _look_into(path: Path, account: str) -> _Finding:
    """Look at the files of a journal, and at what is open in it; change nothing."""
    if not path.exists():
        if os.access(path.parent, os.W_OK | os.X_OK):
            return _ok(f"{path}: the first payment makes it")
        return _wrong(f"{path}: cannot be made", "make its folder, writable for you")
    phases = _count_open(path, account)
    facts = {phase: phases[phase] for phase in sorted({*OPEN, Phase.SENT})}
    told = ", ".join(f"{n} {phase}" for phase, n in facts.items() if n)
    told = told or "nothing is open"
    remedies: list[str] = []
    if sum(phases[phase] for phase in OPEN):
        remedies += ["agentapi payments settle finds out, payments decide tells"]
    files = [path.with_name(path.name + end) for end in ("", "-wal", "-shm", "-owners")]
    open_to = [file for file in files if file.exists() and file.stat().st_mode & 0o77]
    if open_to:
        told += "; others may read or write it"
        remedies += [f"chmod 600 {' '.join(map(str, open_to))}"]
    if not os.access(path, os.R_OK | os.W_OK):
        told += "; you may not write it"
        remedies += ["give it to whoever runs this"]
    if remedies:
        return _wrong(f"{path}: {told}", "; ".join(remedies), **facts)
    return _ok(f"{path}: {told}", **facts)


def _count_open(path: Path, account: str) -> Counter[Phase]:
    # Nobody has it open without this file. Then it is read without locks, which would
    # leave files beside it.
    is_used = path.with_name(path.name + "-wal").exists()
    how = "mode=ro" if is_used else "mode=ro&immutable=1"
    uri = f"{path.absolute().as_uri()}?{how}"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=_STEP)) as sql:
        (version,) = sql.execute("PRAGMA user_version").fetchone()
        (mark,) = sql.execute("PRAGMA application_id").fetchone()
        if (version, mark) != (VERSION, MARK):
            msg = "it is of another version of this library, or no journal"
            raise sqlite3.DatabaseError(msg)
        books = Books(sql, 0, lambda _: True)
        wanted = {*OPEN, Phase.SENT}
        return Counter(
            i.phase for i in books.intents(account, wanted, None, None, None)
        )


async def _aside(act: Callable[[], T]) -> T:
    """Do what may hang in a thread that nobody waits for at the end."""
    ended: Future[T] = Future()
    # Whoever is not waited for any more tells nobody.
    ended.set_running_or_notify_cancel()

    def work() -> None:
        try:
            ended.set_result(act())
        except Exception as error:  # noqa: BLE001 - whoever waits is told, whatever it is
            ended.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return await asyncio.wrap_future(ended)


async def _look_up(host: Any, port: Any, **terms: Any) -> Any:
    return await _aside(lambda: socket.getaddrinfo(host, port, **terms))


_Look: TypeAlias = Callable[[_Patient], Awaitable[_Finding]]

# Each check, what it looks with, and those that it needs, which stand above it.
_CHECKS: Final[Mapping[str, tuple[_Look, tuple[str, ...]]]] = {
    "versions": (_versions, ()),
    "config": (_config, ()),
    "token": (_token, ("config",)),
    "base_url": (_base_url, ("config",)),
    "proxy": (_proxy, ("base_url",)),
    "name": (_name, ("proxy",)),
    "connection": (_connection, ("name",)),
    "tls": (_tls, ("connection",)),
    "clock": (_clock, ("tls",)),
    "answer": (_answer, ("tls", "token")),
    "others": (_others, ("answer",)),
    "accepted": (_accepted, ("others",)),
    "allowed_ip": (_allowed_ip, ("accepted",)),
    "account": (_account, ("allowed_ip",)),
    "zone": (_zone, ("account", "clock")),
    "latency": (_latency, ("account",)),
    "gate": (_gate, ("token",)),
    "journal": (_journal, ("token",)),
}


async def _examine(
    patient: _Patient, tell: Callable[[str, _Finding], None]
) -> Collection[_Finding]:
    """Carry out all checks, and tell each as soon as it and those above are done."""
    tasks: dict[str, asyncio.Task[_Finding]] = {}
    try:
        async with asyncio.TaskGroup() as group:
            for name, (look, needs) in _CHECKS.items():
                needed = {other: tasks[other] for other in needs}
                tasks[name] = group.create_task(_check(look, needed, patient))
            for name, task in tasks.items():
                tell(name, await task)
    finally:
        if patient.link is not None:
            # Not closed in peace: who hangs would have to agree.
            patient.link[1].transport.abort()
    return [task.result() for task in tasks.values()]


async def _check(
    look: _Look, needed: Mapping[str, asyncio.Task[_Finding]], patient: _Patient
) -> _Finding:
    for name, task in needed.items():
        if (await task).state in {"wrong", "skipped"}:
            return _Finding("skipped", f"needs {name}")
    try:
        async with asyncio.timeout_at(patient.until):
            return await look(patient)
    except TimeoutError:
        return _wrong("not done in time", "see what is slow above")
    except Exception as error:  # noqa: BLE001 - the others go on, and a line says it
        # Not its text, which may quote anything.
        told = f"this check failed by itself ({type(error).__name__})"
        return _wrong(told, "look at what it reads; if that is right, report it")


@click.command()
@journal_option
@as_json_option
@click.pass_context
@runs
async def doctor(context: click.Context, journal: Path | None, as_json: bool) -> int:
    """
    Find out what is wrong between here and the service, and what to do.

    A line for each check, within ten seconds in all: ok, note (worth knowing), wrong
    (with what to do), or skipped. It moves and changes nothing, and shows no secret.

    The exit code is 5 when something is wrong.
    """
    patient = _Patient(
        read=lambda: draft_of(context, journal),
        until=asyncio.get_running_loop().time() + _ALL,
    )

    def tell(name: str, finding: _Finding) -> None:
        if as_json:
            row = {"check": name, **attrs.asdict(finding)}
            row |= {k: patient.hide_in(row[k]) for k in ("told", "remedy", "facts")}
            click.echo(msgspec.json.encode(row).decode())
            return
        mark = click.style(f"{finding.state:<7}", fg=_COLOURS[finding.state])
        told = " ".join(finding.told.split())
        click.echo(patient.hide(f"{mark}  {name:<10}  {told}"))
        if finding.remedy:
            click.echo(patient.hide(f"{'':<21}-> {finding.remedy}"))

    loop: Any = asyncio.get_running_loop()
    # The loop's own threads are waited for at the end, whoever looks up a name there.
    loop.getaddrinfo = _look_up
    with alone():
        found = await _examine(patient, tell)
    return UNWELL if any(f.state == "wrong" for f in found) else DONE
