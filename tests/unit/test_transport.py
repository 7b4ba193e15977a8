"""One request: what is sent, and what each foreign error becomes."""

from __future__ import annotations

import asyncio
import ssl
from inspect import signature
from typing import Any
from unittest.mock import Mock

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey
from aioresponses import aioresponses

from aio_agentapi import Secret, Settings
from aio_agentapi._transport import Sending, Transport
from aio_agentapi.errors import (
    AgentAPIError,
    ClosedError,
    DecodeError,
    NotSentError,
    OutcomeUnknownError,
)
from tests.conftest import TOKEN
from tests.leak import told

URL = "https://api.example.com/v4/agent/info"


class Response(aiohttp.ClientResponse):
    """aioresponses does not yet give what aiohttp wants since 3.14."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "stream_writer" in signature(aiohttp.ClientResponse).parameters:
            kwargs.setdefault("stream_writer", Mock())
        super().__init__(*args, **kwargs)


def transport(**settings: Any) -> Transport:
    """Make a transport to nowhere."""
    return Transport("https://api.example.com", Secret(TOKEN), Settings(**settings))


async def send(sender: Transport) -> Any:
    """Send an empty request."""
    try:
        return await sender.send("agent/info", b"{}", Sending())
    finally:
        await sender.aclose()


async def test_the_request_is_what_the_contract_says() -> None:
    """POST, the three headers, the body as given, no redirect followed."""
    with aioresponses() as mocked:
        mocked.post(URL, status=302, body=b"x", response_class=Response)
        answer = await send(transport())
        ((_, url), (call,)), *rest = mocked.requests.items()
    assert answer == (302, b"x")
    assert not rest
    assert str(url) == URL
    assert call.kwargs["data"] == b"{}"
    assert call.kwargs["allow_redirects"] is False
    assert dict(call.kwargs["headers"]) == {
        "Accept": "application/json",
        "Content-Type": "application/json",
        "Authorization": f"Bearer {TOKEN}",
    }


async def test_the_pool_has_no_queue_and_does_not_know_the_token() -> None:
    """The gate is the queue; the token goes with each request alone."""
    sender = transport(limit=7)
    http = sender._open()
    assert "Authorization" not in http.headers
    assert http.connector is not None
    assert (http.connector.limit, http.connector.limit_per_host) == (0, 0)
    await sender.aclose()


KEY = ConnectionKey("h", 1, True, True, None, None, None)


@pytest.mark.parametrize(
    "foreign",
    [
        aiohttp.ClientConnectorError(KEY, OSError(111, "refused")),
        aiohttp.ClientConnectorDNSError(KEY, OSError(-2, "unknown")),
        aiohttp.ClientConnectorSSLError(KEY, OSError(1, "ssl")),
        aiohttp.ClientConnectorCertificateError(KEY, Exception("self-signed")),
        aiohttp.ClientProxyConnectionError(KEY, OSError(111, "refused")),
        aiohttp.ClientHttpProxyError(Mock(), (), status=407),
        aiohttp.ConnectionTimeoutError("late"),
        aiohttp.ServerFingerprintMismatch(b"a", b"b", "h", 1),
        aiohttp.InvalidURL("x"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_without_a_connection_nothing_was_sent(foreign: Exception) -> None:
    """Only errors that come before the first byte are a sure no."""
    assert type(await failure(foreign)) is NotSentError


@pytest.mark.parametrize(
    "foreign",
    [
        aiohttp.ServerDisconnectedError(),
        aiohttp.ClientOSError(104, "reset"),
        aiohttp.ClientPayloadError("cut"),
        aiohttp.ClientResponseError(Mock(), ()),
        aiohttp.SocketTimeoutError("late"),
        aiohttp.ServerTimeoutError("late"),
        aiohttp.ClientConnectionResetError("reset"),
        aiohttp.ClientConnectionError("closed"),
        aiohttp.ClientError("new kind"),
        ConnectionResetError(104, "reset"),
        BrokenPipeError(32, "broken"),
        TimeoutError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_after_it_anything_may_have_happened(foreign: Exception) -> None:
    """A kind of error that nobody has heard of is no sure no."""
    error = await failure(foreign)
    assert type(error) is OutcomeUnknownError
    assert error.status is None


async def failure(foreign: Exception) -> AgentAPIError:
    """Return what a foreign error becomes, free of it."""
    with aioresponses() as mocked:
        mocked.post(URL, exception=foreign)
        sender = transport()
        with pytest.raises(AgentAPIError) as caught:
            await send(sender)
    assert not sender._without
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None
    return caught.value


class Odd(asyncio.CancelledError):
    """A cancellation that is not made of its ``args``."""

    def __init__(self, *, reason: str) -> None:
        super().__init__("odd", reason)


async def test_an_odd_cancellation_is_no_way_out_for_the_token() -> None:
    """It is raised as it is, without what it came from and what it came upon."""
    odd = Odd(reason="why")
    odd.__cause__, odd.__context__ = ValueError(TOKEN), KeyError(TOKEN)
    with aioresponses() as mocked:
        mocked.post(URL, exception=odd)
        with pytest.raises(Odd) as caught:
            await send(transport())
    assert caught.value.args == ("odd", "why")
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert TOKEN not in told(caught.value).replace(repr(TOKEN), "")


@pytest.mark.parametrize(
    ("foreign", "reason"),
    [
        (
            aiohttp.ClientConnectorError(KEY, OSError(111, "refused")),
            "[Errno 111] refused",
        ),
        (aiohttp.ClientConnectorSSLError(KEY, OSError(1, "ssl")), "[Errno 1] ssl"),
        (
            aiohttp.ClientConnectorCertificateError(
                KEY, ssl.SSLCertVerificationError(1, "self-signed")
            ),
            "self-signed",
        ),
        (
            aiohttp.ClientConnectorError(KEY, OSError(5, f"of {TOKEN}")),
            "[Errno 5] of ***",
        ),
        (aiohttp.ConnectionTimeoutError("late"), None),
        (aiohttp.InvalidURL("x"), None),
    ],
    ids=lambda given: type(given).__name__,
)
async def test_why_there_is_no_connection_is_told(
    foreign: Exception, reason: str | None
) -> None:
    """By the class of the error and its cause, where it has one, without the token."""
    error = await failure(foreign)
    why = "" if reason is None else f": {reason}"
    name = type(foreign).__name__
    assert str(error) == f"no connection ({name}{why}). Nothing was sent"


async def test_an_error_that_nobody_expects_is_no_way_out_for_the_token() -> None:
    """Its frames would have it: ours names the class, and nobody knows the rest."""
    error = await failure(KeyError(TOKEN))
    assert type(error) is OutcomeUnknownError
    assert "KeyError" in str(error)
    assert TOKEN not in str(error)


async def test_what_had_a_connection_may_have_happened() -> None:
    """Whatever the error's name says."""
    foreign = aiohttp.ClientConnectorError(KEY, OSError(111, "refused"))
    error = transport()._translate(foreign, Sending(connected=True))
    assert type(error) is OutcomeUnknownError


@pytest.mark.parametrize(
    "kind", [KeyboardInterrupt, SystemExit, asyncio.CancelledError]
)
async def test_an_interrupt_is_no_way_out_for_the_token(
    kind: type[BaseException],
) -> None:
    """It is raised anew, without the frames that have it."""
    with aioresponses() as mocked:
        mocked.post(URL, exception=kind("mine"))
        with pytest.raises(kind) as caught:
            await send(transport())
    assert caught.value.args == ("mine",)
    assert caught.value.__context__ is None
    assert TOKEN not in told(caught.value).replace(repr(TOKEN), "")


async def test_a_name_that_cannot_be_looked_up_was_not_reached() -> None:
    """Python raises a UnicodeError for it."""
    assert type(await failure(UnicodeError("label too long"))) is NotSentError


async def test_an_answer_of_any_length_is_bounded() -> None:
    """Announced or not, more than max_answer is not read."""
    for headers in ({"Content-Length": "1001"}, {}):
        with aioresponses() as mocked:
            mocked.post(URL, body=b"x" * 1001, headers=headers, response_class=Response)
            with pytest.raises(DecodeError, match="max_answer"):
                await send(transport(max_answer=1000))


async def test_a_closed_transport_sends_nothing() -> None:
    """Also when it was never opened."""
    sender = transport()
    await sender.aclose()
    with pytest.raises(ClosedError):
        await send(sender)
