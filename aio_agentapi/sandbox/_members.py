"""
What a member of a request must be.

Each has a check, which raises ValueError with the reason, and the same said in JSON
Schema for the document.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, TypeAlias, cast

import attrs

from aio_agentapi.sandbox._records import VALIDATION, RefusedCall

Body: TypeAlias = dict[str, Any]
Schema: TypeAlias = Mapping[str, Any]

_PAGE: Final = 2000
_INT64: Final = 2**63
_NAME: Final = "[A-Za-z0-9_]{2,50}"
_MOMENT: Final = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


@attrs.frozen
class Member:
    """What one member must be, for the service and for the document."""

    check: Callable[[object], object]
    schema: Schema


def parse(sent_text: bytes, members: Mapping[str, Member]) -> Body:
    """Read a request; 1002 with every member that is wrong."""
    try:
        sent = json.loads(sent_text, parse_float=Decimal)
    except (ValueError, ArithmeticError, RecursionError):
        raise RefusedCall(VALIDATION, body="is no JSON") from None
    if not isinstance(sent, dict):
        raise RefusedCall(VALIDATION, body="is no object")
    sent = cast("dict[str, object]", sent)
    body: Body = {}
    wrong: dict[str, str] = {}
    for key, member in members.items():
        name = key.removesuffix("?")
        if sent.get(name) is None:
            if name == key:
                wrong[name] = "is missing"
            continue
        try:
            body[name] = member.check(sent[name])
        except ValueError as error:
            wrong[name] = str(error)
    if wrong:
        raise RefusedCall(VALIDATION, **wrong)
    return body


def _code(value: object) -> int:
    # The size first: 1e999999999 is short to write. 5.0 is whole, too.
    if isinstance(value, int | Decimal) and -_INT64 < value < _INT64:
        number = int(value)
        if number == value and not isinstance(value, bool):
            return number
    msg = "is a whole number"
    raise ValueError(msg)


def _within(least: int, most: int, description: str | None = None) -> Member:
    def check(value: object) -> int:
        if not least <= _code(value) <= most:
            msg = f"is {least} to {most}"
            raise ValueError(msg)
        return _code(value)

    schema = {"type": "integer", "minimum": least, "maximum": most}
    told = {} if description is None else {"description": description}
    return Member(check, schema | told)


def _text(value: object) -> str:
    msg = "is a text"
    if not isinstance(value, str):
        raise ValueError(msg)  # noqa: TRY004 - one kind of error for every reason
    try:
        # Half of a surrogate pair can be written in JSON, and nowhere else.
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(msg) from None
    return value


def _matching(pattern: str, reason: str) -> Member:
    def check(value: object) -> str:
        if not re.fullmatch(pattern, _text(value)):
            raise ValueError(reason)
        return _text(value)

    return Member(check, {"type": "string", "pattern": f"^{pattern}$"})


def _one_of(*words: str) -> Member:
    def check(value: object) -> str:
        if value not in words:
            msg = f"is {' or '.join(words)}"
            raise ValueError(msg)
        return _text(value)

    return Member(check, {"type": "string", "enum": list(words)})


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        msg = "is true or false"
        raise ValueError(msg)  # noqa: TRY004 - one kind of error for every reason
    return value


def _addresses(value: object) -> Sequence[str]:
    if not isinstance(value, list):
        msg = "is a list of texts"
        raise ValueError(msg)  # noqa: TRY004 - one kind of error for every reason
    found = [_text(part) for part in cast("list[object]", value)]
    for address in found:
        msg = f"{address[:40]!r} is no address"
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise ValueError(msg) from None
        if "%" in address:
            # Of one machine's interface.
            raise ValueError(msg)
    return found


def _amount(value: object) -> int:
    msg = "is more than 0, at most 10^15, with at most four decimals"
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise ValueError(msg)  # noqa: TRY004 - one kind of error for every reason
    # The size first: 1e999999999 is short to write and long to work out.
    if not 0 < value <= 10**15:
        raise ValueError(msg)
    # Digit by digit: a product would be rounded to the digits of the context.
    _, digits, exponent = Decimal(value).as_tuple()
    number = "".join(map(str, digits))
    shift = int(exponent) + 4
    if shift < 0 and set(number[shift:]) <= {"0"} and len(number) >= -shift:
        return int(number[:shift] or 0)
    if shift < 0:
        raise ValueError(msg)
    return int(number + "0" * shift)


def _moment(value: object) -> datetime:
    # Without a zone: whoever reads it knows the deployment's.
    text = _text(value)
    try:
        if re.fullmatch(_MOMENT, text):
            return datetime.fromisoformat(text)
    except ValueError:
        pass
    msg = "is a time: yyyy-MM-dd HH:mm:ss"
    raise ValueError(msg)


def _instant(value: object) -> datetime:
    text = _text(value)
    try:
        if re.match(r"\d{4}-\d\d-\d\dT", text):
            moment = datetime.fromisoformat(text)
            if moment.tzinfo is not None:
                return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    msg = "is a time of ISO 8601 with its zone"
    raise ValueError(msg)


CODE: Final = Member(
    _code,
    {
        "type": "integer",
        "format": "int64",
        "minimum": 1 - _INT64,
        "maximum": _INT64 - 1,
    },
)
CURSOR: Final = _within(0, _INT64 - 1)
ANY_LIMIT: Final = _within(1, _PAGE)
FEED_LIMIT: Final = _within(10, _PAGE)
# Twelve and thirteen exist, and nobody has a name for them.
LANGUAGE: Final = _within(
    1,
    13,
    "1 en, 2 ko, 3 th, 4 es, 5 ja, 6 pt, 7 tr, 8 de, 9 id, 10 ms, 11 zh; 12 and 13"
    " have no name.",
)
NAME: Final = _matching(_NAME, "is 2 to 50 letters, digits and underscores")
REFERENCE: Final = _matching("[!-~]{1,64}", "is 1 to 64 visible ASCII characters")
TEXT: Final = Member(_text, {"type": "string"})
NEW_ROLE: Final = _one_of("operator", "agent")
STATE: Final = _one_of("active", "suspended")
FLAG: Final = Member(_flag, {"type": "boolean"})
ADDRESSES: Final = Member(
    _addresses,
    {
        "type": "array",
        "items": {
            "type": "string",
            "anyOf": [{"format": "ipv4"}, {"format": "ipv6"}],
        },
    },
)
AMOUNT: Final = Member(
    _amount,
    # No multipleOf: validators compute with binary floats, and refuse 0.0003.
    {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 10**15,
        "description": "Major units, with at most four decimals.",
    },
)
MOMENT: Final = Member(
    _moment,
    {
        "type": "string",
        "pattern": f"^{_MOMENT}$",
        "description": "In the zone of the deployment.",
    },
)
INSTANT: Final = Member(_instant, {"type": "string", "format": "date-time"})
