"""The client speaks what the document says: paths, effects, members, shapes, codes."""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import NoneType, UnionType
from typing import Any, Final, cast, get_args, get_origin, get_type_hints

import attrs
import jsonschema_rs
import pytest

from aio_agentapi import Secret, Session, SessionManager, Settings
from aio_agentapi._settings import PATHS
from aio_agentapi._transport import Answer, Transport
from aio_agentapi._types import OpenInt, OpenStr, Operation
from aio_agentapi._wire import CODES
from aio_agentapi.errors import NotSentError
from aio_agentapi.sandbox import document
from aio_agentapi.sandbox._records import NAMES
from tests.conftest import TOKEN, trusted
from tests.test_house import operations

DOCUMENT: Final = document()
TOLD: Final[Mapping[str, Any]] = {
    path.removeprefix("/v4/"): methods["post"]
    for path, methods in DOCUMENT["paths"].items()
}
OPERATIONS: Final = [operation for _, operation in operations()]


def test_both_have_the_same_paths() -> None:
    """What the client calls is told, and what is told the client calls."""
    assert set(PATHS.values()) == set(TOLD)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda o: o.name)
def test_the_effect_is_the_same(operation: Operation[object]) -> None:
    """What sending a call twice would do: the heart of all that is said here."""
    assert operation.effect == TOLD[PATHS[operation.name]]["x-effect"]


def test_both_have_the_same_codes() -> None:
    """Numbers and names, in the client, the stand-in and the document."""
    assert {code: name for code, (name, _) in CODES.items()} == dict(NAMES)
    failure = DOCUMENT["components"]["schemas"]["Failure"]
    told = failure["properties"]["code"]["description"].split("; ")
    assert told == [f"{code} {name}" for code, (name, _) in CODES.items()]


# Shapes: both sides are brought into one form, in which a record is its members with
# a word for each, and '?' behind it where it may be null or missing.

WORDS: Final[Mapping[type, str]] = {
    OpenInt: "integer",
    OpenStr: "text",
    Secret: "text",
    bool: "boolean",
    int: "integer",
    Decimal: "number",
    str: "text",
    datetime: "time",
}


def client_shape(kind: Any) -> object:
    """Bring a type of the client into the common form."""
    if isinstance(kind, UnionType):
        (inner,) = (member for member in get_args(kind) if member is not NoneType)
        return f"{client_shape(inner)}?"
    if get_origin(kind) in {list, tuple}:
        return [client_shape(get_args(kind)[0])]
    if attrs.has(kind):
        return client_members(kind)
    return next(word for base, word in WORDS.items() if issubclass(kind, base))


def client_members(record: Any) -> dict[str, object]:
    """Bring a record of the client into the common form."""
    hints = get_type_hints(record)
    found: dict[str, object] = {}
    for field in attrs.fields(record):
        shape = client_shape(hints[field.name])
        if field.metadata.get("inline"):
            found |= cast("dict[str, object]", shape)
            continue
        found[field.name] = shape
        if "also" in field.metadata:
            found[field.metadata["also"]] = shape
    return found


def told_shape(schema: Mapping[str, Any]) -> object:
    """Bring a schema of the document into the common form."""
    if "$ref" in schema:
        schema = DOCUMENT["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if "object" in kinds:
        required = set(schema["required"])
        return {
            name: _marked(told_shape(member), missing=name not in required)
            for name, member in schema["properties"].items()
        }
    if "array" in kinds:
        return _marked([told_shape(schema["items"])], missing="null" in kinds)
    is_time = schema.get("format") == "date-time" or r"\d{4}" in schema.get(
        "pattern", ""
    )
    word = "time" if is_time else "text"
    for kind in ("integer", "number", "boolean"):
        if kind in kinds:
            word = kind
    return _marked(word, missing="null" in kinds)


def _marked(shape: object, *, missing: bool) -> object:
    return f"{shape}?" if missing and not str(shape).endswith("?") else shape


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda o: o.name)
def test_the_answer_has_the_same_shape(operation: Operation[object]) -> None:
    """Each member, its kind and whether it may lack."""
    told = TOLD[PATHS[operation.name]]["responses"]["200"]
    (success, _) = told["content"]["application/json"]["schema"]["anyOf"]
    shape = told_shape(success["properties"]["data"])
    if isinstance(shape, dict) and "list" in shape:
        # Of a page the client needs no more than these.
        shape = {name: shape[name] for name in ("total", "list")}
    if isinstance(shape, dict) and operation.name == "points.balance":
        # The same path as agents.info, for one member of it.
        shape = {"balance": shape["balance"]}
    assert client_shape(operation.returns) == shape


# Requests: each call is made with all its arguments and with as few as can be.

NOW: Final = datetime(2024, 1, 1, tzinfo=UTC)
LATER: Final = NOW + timedelta(minutes=5)
Call = Callable[[Session], Any]
FULL: Final[Mapping[str, Call]] = {
    "agents.info": lambda s: s.agents.info(),
    "agents.create": lambda s: s.agents.create(
        "shop_7", role="operator", parent_code=5, whitelist=["1.1.1.1"]
    ),
    "agents.list": lambda s: s.agents.list(parent_code=5, subtree=True),
    "agents.update": lambda s: s.agents.update(5, state="active", whitelist=["::1"]),
    "agents.reissue_token": lambda s: s.agents.reissue_token(5),
    "points.balance": lambda s: s.points.balance(),
    "points.transfer": lambda s: s.points.transfer(5, "0.5", reference="x"),
    "points.reclaim": lambda s: s.points.reclaim(5, "0.5", reference="x"),
    "points.history": lambda s: s.points.history(7),
    "users.create": lambda s: s.users.create("anna"),
    "users.info": lambda s: s.users.info(5),
    "users.statistics": lambda s: s.users.statistics(NOW, LATER),
    "wallets.deposit": lambda s: s.wallets.deposit(5, "0.5"),
    "wallets.withdraw": lambda s: s.wallets.withdraw(5, "0.5"),
    "wallets.withdraw_all": lambda s: s.wallets.withdraw_all(5),
    "transactions.since": lambda s: s.transactions.since(7),
    "transactions.between": lambda s: s.transactions.between(NOW, LATER),
    "games.providers": lambda s: s.games.providers(lang=2),
    "games.list": lambda s: s.games.list(1, lang=2),
    "games.all": lambda s: s.games.all(),
    "games.launch_url": lambda s: s.games.launch_url(
        5, 1, "aurora_1", lang=2, return_url="https://example.com"
    ),
    "games.online": lambda s: s.games.online(),
    "games.round_details_url": lambda s: s.games.round_details_url(
        5, "7", provider_id=1, game_code="aurora_1"
    ),
}
LEAST: Final[Mapping[str, Call]] = {
    "agents.create": lambda s: s.agents.create("shop_7"),
    "agents.list": lambda s: s.agents.list(),
    "agents.update": lambda s: s.agents.update(5),
    "points.transfer": lambda s: s.points.transfer(5, 10**15),
    "points.reclaim": lambda s: s.points.reclaim(5, "0.0001"),
    "points.history": lambda s: s.points.history(),
    "games.providers": lambda s: s.games.providers(),
    "games.list": lambda s: s.games.list(1),
    "games.launch_url": lambda s: s.games.launch_url(5, 1, "aurora_1"),
    "games.round_details_url": lambda s: s.games.round_details_url(5, "7"),
}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Collect what would be sent."""
    found: list[tuple[str, Any]] = []

    async def send(_: Transport, path: str, text: bytes, until: float) -> Answer:
        del until
        found.append((path, json.loads(text)))
        msg = "nowhere"
        raise NotSentError(msg)

    monkeypatch.setattr(Transport, "send", send)
    return found


def wanted(path: str) -> Mapping[str, Any]:
    """Return the schema of a request."""
    told = TOLD[path]["requestBody"]["content"]["application/json"]["schema"]
    return cast("Mapping[str, Any]", told)


CALLS: Final[list[tuple[str, Call, bool]]] = [
    *((name, call, True) for name, call in FULL.items()),
    *((name, call, False) for name, call in LEAST.items()),
]


def test_every_operation_is_tried() -> None:
    """The table above is whole."""
    assert set(FULL) == set(PATHS)


@pytest.mark.parametrize(("name", "call", "full"), CALLS)
async def test_the_request_has_the_members_that_are_told(
    sent: list[tuple[str, Any]], name: str, call: Call, *, full: bool
) -> None:
    """No other is ever sent, and those that are required always."""
    async with SessionManager(
        "https://example.com", settings=Settings(attempts=1)
    ) as manager:
        made = call(trusted(manager.session(TOKEN)))
        with pytest.raises(NotSentError):
            if inspect.isasyncgen(made):
                await anext(cast("AsyncIterator[object]", made))
            else:
                await made
    ((path, body),) = sent
    schema = wanted(PATHS[name])
    assert path == PATHS[name]
    jsonschema_rs.validate(cast("Any", schema), body)
    assert set(body) <= set(schema["properties"])
    if full:
        assert set(body) == set(schema["properties"])
