"""The shapes of the answers, in JSON Schema: what the document says of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aio_agentapi.sandbox._members import Schema

_INT: Final[Schema] = {"type": "integer", "format": "int64"}
_TEXT: Final[Schema] = {"type": "string"}
_FLAG: Final[Schema] = {"type": "boolean"}
_RATIO: Final[Schema] = {"type": "number"}
_MONEY: Final[Schema] = {
    "type": ["number", "string"],
    "pattern": r"^\d+(\.\d{1,4})?$",
    "description": "Major units with at most four decimals; quoted at times.",
}
_LOCAL: Final[Schema] = {
    "type": "string",
    "pattern": r"^\d{4}[-.]\d\d[-.]\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?$",
    "description": "In the zone of the deployment where it names none.",
}
_INSTANT: Final[Schema] = {"type": "string", "format": "date-time"}
_TEXTS: Final[Schema] = {"type": "array", "items": _TEXT}


def _or_null(schema: Schema) -> Schema:
    kinds = schema["type"]
    wider = {
        **schema,
        "type": [*([kinds] if isinstance(kinds, str) else kinds), "null"],
    }
    if "enum" in schema:
        wider["enum"] = [*schema["enum"], None]
    return wider


_AGENT: Final[Mapping[str, Schema]] = {
    "agent_code": _INT,
    "name": _TEXT,
    "role": _TEXT,
    "parent_code": _or_null(_INT),
    "depth": _INT,
    "currency": _INT,
    "balance": _MONEY,
    "state": _TEXT,
    "whitelist": _TEXTS,
    "created_at": _INSTANT,
}

# A name that ends in '?' may be left out or null.
RECORDS: Final[Mapping[str, Mapping[str, Schema]]] = {
    "AgentInfo": {
        "name": _TEXT,
        "currency": {"type": ["integer", "string"], "pattern": r"^\d+$"},
        "balance": _MONEY,
        "win_ratio?": _RATIO,
        "rtp?": _RATIO,
        "whitelist?": _TEXTS,
        "client_ip?": _TEXT,
        "agent_code?": _INT,
        "role?": _TEXT,
        "parent_code?": _INT,
        "state?": _TEXT,
    },
    "Agent": _AGENT,
    "NewAgent": {**_AGENT, "token": _TEXT},
    "NewToken": {"token": _TEXT},
    "PointMove": {
        "move_id": _INT,
        "from_code": _or_null(_INT),
        "to_code": _INT,
        "amount": _MONEY,
        "balance": _MONEY,
        "reference": _or_null(_TEXT),
        "created_at": _INSTANT,
    },
    "NewUser": {"user_code": _INT, "is_new_user?": _FLAG},
    "User": {"name": _TEXT, "balance": _MONEY},
    "Moved": {"balance": _MONEY, "amount": _MONEY},
    "Transaction": {
        "trans_id": _INT,
        "user_code": _INT,
        "round_id": _TEXT,
        "trans_type": {
            **_INT,
            "description": "1 Bet, 2 Win, 4 Deposit, 8 Withdraw, 16 BetCancel,"
            " 32 BonusCall; others may appear.",
        },
        "provider_id": _INT,
        "provider_name": _TEXT,
        "game_code": _TEXT,
        "game_name": _TEXT,
        "category": _TEXT,
        "prebalance": _MONEY,
        "trans_amount": _MONEY,
        "balance": _MONEY,
        "regdate": _LOCAL,
        "time_stamp?": _INT,
    },
    "UserStatistics": {
        "user_code": _INT,
        "user_name": _or_null(_TEXT),
        "slot_bet": _MONEY,
        "slot_win": _MONEY,
        "live_bet": _MONEY,
        "live_win": _MONEY,
        "mini_bet": _MONEY,
        "mini_win": _MONEY,
    },
    "Provider": {
        "provider_id": _INT,
        "provider_name": _TEXT,
        "locale_name": _TEXT,
        "status": {**_INT, "description": "1 normal, 2 maintenance."},
    },
    "Game": {
        "provider_id": _INT,
        "game_code": _TEXT,
        "game_name": _TEXT,
        "locale_name": _TEXT,
        "game_image": _TEXT,
        "game_image_narrow?": _TEXT,
        "launch_enable": _FLAG,
        "category": _TEXT,
        "reg_date": _LOCAL,
    },
    "GameUrl": {"game_url": _TEXT},
    "OnlineGame": {
        "gplay_id": _INT,
        "user_code": _INT,
        "user_name": _TEXT,
        "provider_id": _INT,
        "provider_name": _TEXT,
        "game_code": _TEXT,
        "game_name": _TEXT,
        "category": _INT,
        "last_round_bet": _MONEY,
        "spend": _MONEY,
        "win": _MONEY,
        "start_time": _LOCAL,
        "last_update": _LOCAL,
    },
    "RoundDetails": {"url": _or_null(_TEXT)},
}


def ref(name: str) -> Schema:
    """Refer to a record."""
    return {"$ref": f"#/components/schemas/{name}"}


def list_of(name: str) -> Schema:
    """Describe a list of a record."""
    return {"type": "array", "items": ref(name)}


def page_of(name: str) -> Schema:
    """Describe one page of a list of a record."""
    members: Mapping[str, Schema] = {
        "total": _INT,
        "offset": _INT,
        "count": _INT,
        "list": list_of(name),
    }
    return object_of(members)


def object_of(members: Mapping[str, Schema]) -> dict[str, Any]:
    """Describe an object; a name that ends in '?' may be left out or null."""
    return {
        "type": "object",
        "required": [name for name in members if not name.endswith("?")],
        "properties": {
            name.removesuffix("?"): _or_null(schema) if name.endswith("?") else schema
            for name, schema in members.items()
        },
    }
