"""The document tells the truth of the stand-in: searched by schemathesis."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections.abc import Generator
from decimal import Decimal
from typing import Any, Final

import aiohttp
import attrs
import jsonschema_rs
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    ignored_auth,
    missing_required_header,
    negative_data_rejection,
    positive_data_acceptance,
)

from aio_agentapi.sandbox import SandboxThread, Switches, document
from tests.conftest import EXAMPLES, connect

DOCUMENT = document()
schema = schemathesis.openapi.from_dict(DOCUMENT)

# What the service finds wrong that JSON Schema has no words for, or other ones.
BEYOND: Final = (
    "is taken by another account there",
    "is at most one hour after start_time",
    "is a time: yyyy-MM-dd HH:mm:ss",
    "is a time of ISO 8601 with its zone",
    "is no address",
)


@attrs.frozen
class Place:
    """A stand-in where something has happened already."""

    base_url: str
    token: str
    tells_by_status: bool
    known: dict[str, Any]
    http: requests.Session

    def post(self, path: str, body: dict[str, Any]) -> requests.Response:
        """Post by hand."""
        return self.http.post(f"{self.base_url}{path}", json=body, headers=self.headers)

    @property
    def headers(self) -> dict[str, str]:
        """The three that every call has."""
        return {
            "Authorization": f"Bearer {self.token}",
            "Accept": "application/json",
            "Content-Type": "application/json",
        }


async def furnish(box: SandboxThread) -> dict[str, Any]:
    """Make what calls can be about; return their members."""
    async with connect(box) as session:
        me = await session.agents.info()
        user = await session.users.create("anna")
        await session.wallets.deposit(user.user_code, 1000)
        url = await session.games.launch_url(user.user_code, 1, "aurora_1")
        async with aiohttp.ClientSession() as http, http.get(url) as response:
            assert response.status == 200
        played = box.play("operator", user.user_code, 10, 5)
        agents = [agent async for agent in session.agents.list()]
    now = dt.datetime.now(dt.UTC)
    then = now - dt.timedelta(minutes=30)
    soon = now + dt.timedelta(minutes=29)
    return {
        "agent_code": agents[0].agent_code,
        "parent_code": me.agent_code,
        "user_code": user.user_code,
        "round_id": played,
        "provider_id": 1,
        "game_symbol": "aurora_1",
        "offset": 0,
        "last_id": 0,
        "amount": 1,
        "start_time": {True: f"{then:%Y-%m-%d %H:%M:%S}", False: then.isoformat()},
        "end_time": {True: f"{soon:%Y-%m-%d %H:%M:%S}", False: soon.isoformat()},
    }


@pytest.fixture(
    scope="module",
    params=[
        Switches(feed_spacing=0),
        Switches(
            generation="older",
            statuses="http",
            busy_status=503,
            optional="missing",
            extra=True,
            quoted_money=True,
            quoted_currency=True,
            dates="dotted",
            feed_spacing=0,
        ),
        Switches(optional="null", short_money=True, dates="iso", feed_spacing=0),
    ],
    ids=["usual", "older", "null"],
)
def place(request: pytest.FixtureRequest) -> Generator[Place]:
    """Run a stand-in in a thread of its own."""
    with SandboxThread(request.param) as box, requests.Session() as http:
        yield Place(
            box.base_url,
            box.token("operator"),
            request.param.statuses == "http",
            asyncio.run(furnish(box)),
            http,
        )


def speak_of_what_is_there(case: Case[Any], known: dict[str, Any]) -> None:
    """Let half of the calls be about something that exists."""
    if not isinstance(case.body, dict) or len(repr(case.body)) % 2:
        return
    body: dict[str, Any] = case.body
    for name in body.keys() & known.keys():
        value = known[name]
        if isinstance(value, dict):
            value = value[case.path.endswith("transaction")]
        if type(body[name]) is type(value):
            body[name] = value


def is_sound(case: Case[Any], sent: bytes) -> bool:
    """Tell whether a request is one by the document."""
    path = DOCUMENT["paths"][case.path]["post"]
    wanted = path["requestBody"]["content"]["application/json"]["schema"]
    try:
        body = json.loads(sent)
        exact = json.loads(sent, parse_float=Decimal)
    except ValueError:
        return False
    if not jsonschema_rs.is_valid(wanted, body):
        return False
    # Said in words there, since validators compute with floats.
    return "amount" not in body or not exact["amount"] % Decimal("0.0001")


# These judge by the HTTP status alone, which says little here.
BY_STATUS: Final = [
    ignored_auth,
    not_a_server_error,
    negative_data_rejection,
    positive_data_acceptance,
]
BLIND: Final = [*BY_STATUS, missing_required_header]


@schema.parametrize()  # pyright: ignore[reportUntypedFunctionDecorator]  # schemathesis's
@settings(
    max_examples=10 * EXAMPLES,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
def test_every_answer_is_as_the_document_says(case: Case[Any], place: Place) -> None:
    """
    Status, type and shape; and 1002 for what it calls wrong, and nothing else.

    With and without a token, under all positions of the switches.
    """
    speak_of_what_is_there(case, place.known)
    response = case.call(
        base_url=place.base_url,
        session=place.http,
        headers=place.headers,
    )
    case.validate_response(
        response,
        excluded_checks=(
            BY_STATUS
            if place.tells_by_status and response.status_code != 404
            else BLIND
        ),
    )
    if response.status_code in {404, 405}:
        return
    answer = response.json()
    sent: Any = response.request.body or b""
    text: bytes = sent.encode() if isinstance(sent, str) else sent
    if answer["code"] == 1002:
        reasons = [row["message"] for row in answer.get("data", [])]
        beyond = [r for r in reasons if r.endswith(BEYOND)]
        assert beyond or not is_sound(case, text)
    else:
        assert is_sound(case, text) or answer["code"] == 1009


MORE: Final = {
    "name": "bert",
    "role": "agent",
    "subtree": True,
    "limit": 10,
    "state": "active",
    "whitelist": [],
    "reference": "once",
    "lang": 1,
    "return_url": "https://example.com",
    "game_code": "aurora_1",
}


@pytest.mark.parametrize("path", DOCUMENT["paths"])
def test_a_success_has_the_shape_that_is_told(place: Place, path: str) -> None:
    """Of every path, with all members that its request can have."""
    told = DOCUMENT["paths"][path]["post"]
    wanted = told["requestBody"]["content"]["application/json"]["schema"]
    known: dict[str, Any] = place.known | MORE
    body = {name: known[name] for name in wanted["properties"]}
    for name in ("start_time", "end_time"):
        if name in body:
            body[name] = body[name][path.endswith("transaction")]
    if path == "/v4/points/reclaim":
        body["reference"] = "back"
    if path == "/v4/agent/create":
        body["name"] = f"shop_{place.base_url[-5:]}"
    if path.startswith("/v4/wallet"):
        place.post("/v4/wallet/deposit", body | {"amount": 2})
    response = place.post(path, body)
    if response.status_code == 404:
        assert told["x-generation"] == "newer"
        return
    answer = response.json()
    assert answer["code"] == 0, answer
    shape = told["responses"]["200"]["content"]["application/json"]["schema"]
    (success, _) = shape["anyOf"]
    jsonschema_rs.validate({**success, "components": DOCUMENT["components"]}, answer)
    rows = answer["data"]
    if isinstance(rows, dict) and "list" in rows:
        rows = rows["list"]
    assert rows, "an empty list has no shape"
