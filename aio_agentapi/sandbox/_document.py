"""The OpenAPI 3.1 document, made from the tables that the service answers by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aio_agentapi.sandbox._members import Schema
from aio_agentapi.sandbox._records import NAMES
from aio_agentapi.sandbox._routes import ROUTES, Route
from aio_agentapi.sandbox._shapes import RECORDS, list_of, object_of

_INFO: Final = """\
Moves points between operators, agents and users.

Every call is a POST of a JSON object. Every answer is an envelope: code 0 is success,
anything else a failure, whatever the HTTP status says. At most 50 calls of one token
run at a time; one more is answered 1018, was not executed, and wants to be sent again
when one of the running calls has ended. Members that stand nowhere here may come with
any answer.

The headers Authorization, Accept: application/json and Content-Type: application/json
are required. Calls are accepted only from the addresses that are set as Allowed IP, if
any are; others are answered 1020.

x-effect says what sending a call twice would do: read and idempotent calls may be
sent again after a lost answer, create and money not; x-effect-without-reference says it
for a move of points that carries none. x-generation names the paths that older
deployments lack.
"""

# Deployments differ: a failure comes with 200, or with one of these.
_STATUSES: Final = {
    "401": "Code 1007 or 1009, where deployments use HTTP statuses.",
    "403": "Code 1020, where deployments use HTTP statuses.",
    "429": "Code 1018, where deployments use HTTP statuses.",
    "503": "Code 1018, where deployments use HTTP statuses.",
}

_FAILURE: Final[Schema] = {
    "type": "object",
    "required": ["code"],
    "properties": {
        "code": {
            "type": "integer",
            "not": {"const": 0},
            "description": "; ".join(f"{code} {name}" for code, name in NAMES.items()),
        },
        "message": {"type": ["string", "null"]},
        "data": {
            "description": "Which members were wrong, for 1002.",
            "anyOf": [list_of("WrongMember"), {"type": "null"}],
        },
    },
}

_FAILURE_REF: Final = {"$ref": "#/components/schemas/Failure"}


def document() -> dict[str, Any]:
    """Return the document, fit for JSON."""
    records = {name: object_of(members) for name, members in RECORDS.items()}
    wrong = object_of({"field": {"type": "string"}, "message": {"type": "string"}})
    return {
        "openapi": "3.1.0",
        "info": {"title": "Agent API", "version": "4", "description": _INFO},
        "security": [{"token": []}],
        "paths": {
            f"/v4/{path}": {"post": _post(path, route)}
            for path, route in ROUTES.items()
        },
        "components": {
            "schemas": {**records, "WrongMember": wrong, "Failure": _FAILURE},
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The token of the account, a UUID.",
                }
            },
        },
    }


def _post(path: str, route: Route) -> dict[str, Any]:
    answers: dict[str, Any] = {
        "200": {
            "description": "The envelope, with the answer or a failure in it.",
            **_content({"anyOf": [_success(route.answer), _FAILURE_REF]}),
        }
    }
    for status, why in _STATUSES.items():
        answers[status] = {"description": why, **_content(_FAILURE_REF)}
    if route.newer:
        answers["404"] = {
            "description": "In an older deployment.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        }
    return {
        "operationId": path.replace("/", "-"),
        "tags": [path.partition("/")[0]],
        "summary": route.summary,
        "x-effect": route.effect,
        **_without_reference(route),
        "x-generation": "newer" if route.newer else "any",
        "requestBody": {
            "required": True,
            **_content(
                object_of({name: m.schema for name, m in route.members.items()})
            ),
        },
        "responses": answers,
    }


def _without_reference(route: Route) -> dict[str, str]:
    # Contract 6: what makes them repeatable is theirs to leave out.
    has_one = "reference?" in route.members
    return {"x-effect-without-reference": "money"} if has_one else {}


def _success(answer: Schema) -> Schema:
    return object_of(
        {"code": {"const": 0}, "message": {"type": ["string", "null"]}, "data": answer}
    )


def _content(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}
