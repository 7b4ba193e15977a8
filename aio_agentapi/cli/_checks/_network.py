"""The way to the service, up to TLS, and the time that it has there."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import re
import socket
import ssl
import time
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urlsplit

from aio_agentapi.cli._checks._patient import (
    SKEW,
    STEP,
    Finding,
    Patient,
    aside,
    ok,
    proxies,
    wrong,
)

# Addresses of one name that are tried.
_TRIED: Final = 3

# Seconds for a word on the time, for which the calls wait.
_HEAD: Final = 1.0
# Days before its end at which a certificate should have been renewed.
_RENEWED: Final = 14

_DATE: Final = re.compile(rb"^date:(.*)$", re.IGNORECASE | re.MULTILINE)

# Why there is no connection, where the machine says it.
_NO_WAY: Final[Mapping[int | None, str]] = {
    errno.ECONNREFUSED: "nothing listens there: look at the host and port",
    errno.EADDRNOTAVAIL: "local_address is to be an address of this machine, and of"
    " the same kind as the service's",
    errno.ENETUNREACH: "there is no way there: look at this machine's network",
}

_NO_WORD: Final = "a firewall may be in the way, or a proxy is needed (proxy)"


def _target(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


async def proxy(patient: Patient) -> Finding:
    proxy = patient.draft.settings.proxy
    unused = sorted(f"{name.upper()}_PROXY" for name in proxies())
    told = f"; {', '.join(unused)} of the environment not used" if unused else ""
    if proxy is None:
        patient.target = _target(patient.draft.base_url)
        if not unused:
            return ok("none")
        remedy = "where there is no other way out, set proxy in [settings]"
        return Finding("note", f"none{told}", remedy, {"unused": unused})
    try:
        host, port = _target(proxy)
        # As it is looked up.
        host.encode("idna")
    except ValueError:
        host, port = "", 0
    if not host or urlsplit(proxy).scheme not in {"http", "https"}:
        return wrong("is no address of a proxy", "proxy: http:// and host and port")
    patient.target = host, port
    return ok(f"{host}:{port}{told}", unused=unused)


async def name(patient: Patient) -> Finding:
    host, port = patient.target
    stream = socket.SOCK_STREAM
    try:
        async with patient.step():
            rows = await aside(lambda: socket.getaddrinfo(host, port, type=stream))
    except TimeoutError:
        remedy = "see whether the name servers of this machine answer"
        return wrong(f"{host}: no answer in time", remedy)
    except OSError as error:
        remedy = "look for a slip in the name, and at this machine's name servers"
        return wrong(f"{host}: {error.strerror}", remedy)
    patient.addresses = [*dict.fromkeys(str(row[4][0]) for row in rows)]
    told = ", ".join(patient.addresses[:_TRIED])
    return ok(f"{host} is {told}", addresses=patient.addresses)


async def connection(patient: Patient) -> Finding:
    _, port = patient.target
    local = patient.draft.settings.local_address
    place, why = "", OSError()
    tried = patient.addresses[:_TRIED]
    now = asyncio.get_running_loop().time
    end = min(now() + STEP, patient.end)
    for left, address in zip(range(len(tried), 0, -1), tried, strict=True):
        place = f"{address} port {port}"
        began = time.monotonic()
        try:
            # One that is silent leaves the others their share of the step.
            async with asyncio.timeout((end - now()) / left):
                patient.link = await asyncio.open_connection(
                    address, port, local_addr=(local, 0) if local else None
                )
        except OSError as error:
            why = error
            continue
        except ValueError:
            # It is looked up as well: too long for a name, or with a NUL.
            return wrong("local_address is no address", _NO_WAY[errno.EADDRNOTAVAIL])
        patient.own_address = patient.link[1].get_extra_info("sockname")[0]
        took = time.monotonic() - began
        told = f"to {place} in {took * 1000:.1f} ms, from {patient.own_address}"
        return ok(told, seconds=took, own_address=patient.own_address)
    if isinstance(why, TimeoutError):
        return wrong(f"to {place}: none in time", _NO_WORD)
    # asyncio tells several failures in its own words, and leaves the number.
    told = os.strerror(why.errno) if why.errno else str(why)
    return wrong(f"to {place}: {told}", _NO_WAY.get(why.errno, _NO_WORD))


async def tls(patient: Patient) -> Finding:
    base = urlsplit(patient.draft.base_url)
    if base.scheme == "http":
        # Checked with the base URL.
        return ok("none: plain http, to this machine or as the settings allow it")
    if patient.draft.settings.proxy is not None or patient.link is None:
        return ok("through the proxy: the answer shows it")
    writer = patient.link[1]
    try:
        async with patient.step():
            await writer.start_tls(
                ssl.create_default_context(), server_hostname=base.hostname
            )
    except ssl.SSLCertVerificationError as error:
        remedy = (
            "see that the base URL has the right name, that this machine's clock is"
            " right, and that no proxy reads along; an authority of your own goes into"
            " the file that SSL_CERT_FILE names"
        )
        return wrong(f"certificate: {error.verify_message}", remedy)
    except OSError as error:
        # Others than TLS's own have no reason: a time-out, a connection that broke.
        told = getattr(error, "reason", None) or "no answer to a greeting"
        remedy = "see whether the port speaks TLS, and what stands in between"
        return wrong(f"not agreed on: {told}", remedy)
    end = ssl.cert_time_to_seconds(writer.get_extra_info("peercert")["notAfter"])
    days = math.floor((end - time.time()) / 86400)
    told = f"{writer.get_extra_info('cipher')[1]}, certificate good for {days} days"
    if days < _RENEWED:
        return Finding("note", told, "tell the service's people", {"days": days})
    return ok(told, days=days)


async def clock(patient: Patient) -> Finding:
    try:
        return await _clock(patient)
    finally:
        # Where there is one connection at a time, it is that of the calls now.
        patient.part()


async def _clock(patient: Patient) -> Finding:
    if patient.draft.settings.proxy is not None or patient.link is None:
        return Finding("note", "not seen through a proxy")
    reader, writer = patient.link
    host = urlsplit(patient.draft.base_url).netloc
    began = time.time()
    try:
        async with patient.step(_HEAD):
            # Without a token: no call, only a word on what time it is.
            words = "HEAD / HTTP/1.1", f"Host: {host}", "Connection: close", "", ""
            writer.write("\r\n".join(words).encode())
            head = await reader.readuntil(b"\r\n\r\n")
    except (OSError, EOFError, asyncio.LimitOverrunError):
        head = b""
    found = _DATE.search(head)
    try:
        date = parsedate_to_datetime(found[1].decode("ascii", "replace").strip())  # type: ignore[index]  # no date: as one that is none
    except (TypeError, ValueError):
        return Finding("note", "the service does not tell the time")
    # Without a zone, or with one that says nothing, it is of UTC.
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    # It tells whole seconds.
    ahead = date.timestamp() + 0.5 - (began + time.time()) / 2
    told = f"the service's is {abs(ahead):.1f} s {'ahead' if ahead > 0 else 'behind'}"
    if abs(ahead) > SKEW:
        return wrong(told, "set this machine's clock (NTP)", ahead=ahead)
    return ok(told, ahead=ahead)
