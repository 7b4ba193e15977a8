"""What a member of a request must be; each check raises ValueError with the reason."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, TypeAlias, cast

from aio_agentapi.sandbox._ledger import VALIDATION, RefusedCall

Body: TypeAlias = dict[str, Any]
Check: TypeAlias = Callable[[object], object]

_PAGE: Final = 2000
_INT64: Final = 2**63


def parse(text: bytes, members: Mapping[str, Check]) -> Body:
    """Read a request; 1002 with every member that is wrong."""
    try:
        sent = json.loads(text, parse_float=Decimal)
    except (ValueError, ArithmeticError, RecursionError):
        raise RefusedCall(VALIDATION, body="is no JSON") from None
    if not isinstance(sent, dict):
        raise RefusedCall(VALIDATION, body="is no object")
    sent = cast("dict[str, object]", sent)
    body: Body = {}
    wrong: dict[str, str] = {}
    for key, check in members.items():
        name = key.removesuffix("?")
        if sent.get(name) is None:
            if name == key:
                wrong[name] = "is missing"
            continue
        try:
            body[name] = check(sent[name])
        except ValueError as error:
            wrong[name] = str(error)
    if wrong:
        raise RefusedCall(VALIDATION, **wrong)
    return body


def code(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= _INT64:
        msg = "is a whole number"
        raise ValueError(msg)
    return value


def count(least: int) -> Callable[[object], int]:
    def check(value: object) -> int:
        if not least <= code(value) <= _PAGE:
            msg = f"is {least} to 2000"
            raise ValueError(msg)
        return code(value)

    return check


def from_zero(value: object) -> int:
    if code(value) < 0:
        msg = "is 0 or more"
        raise ValueError(msg)
    return code(value)


def text(value: object) -> str:
    if not isinstance(value, str):
        msg = "is a text"
        raise ValueError(msg)  # noqa: TRY004 - one kind of error for every reason
    return value


def texts(value: object) -> Sequence[str]:
    if not isinstance(value, list):
        msg = "is a list of texts"
        raise ValueError(msg)  # noqa: TRY004 - one kind of error for every reason
    return [text(part) for part in cast("list[object]", value)]


def flag(value: object) -> bool:
    if not isinstance(value, bool):
        msg = "is true or false"
        raise ValueError(msg)  # noqa: TRY004 - one kind of error for every reason
    return value


def reference(value: object) -> str:
    name = text(value)
    if not re.fullmatch(r"[!-~]{1,64}", name):
        msg = "is 1 to 64 visible ASCII characters"
        raise ValueError(msg)
    return name


def amount(value: object) -> int:
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
