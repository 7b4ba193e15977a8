"""What is typed into the back office's forms, and what may be wrong with it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, cast, get_args
from urllib.parse import parse_qsl
from zoneinfo import ZoneInfo

from aiohttp import web

from aio_agentapi.sandbox._faults import STATUSES, Fault, Kind
from aio_agentapi.sandbox._members import AMOUNT
from aio_agentapi.sandbox._pages import switch_kinds
from aio_agentapi.sandbox._switches import Switches

_MOST: Final = 1_000_000


class Wrong(Exception):  # noqa: N818 - not a fault: the form is shown again
    """A form cannot be accepted: what is wrong with all of it, or by field."""

    def __init__(self, text: str | None = None, /, **fields: str) -> None:
        super().__init__(text, fields)
        self.fields = fields if text is None else {"": text}


async def read(request: web.Request) -> dict[str, str]:
    """Read a form."""
    text = (await request.read()).decode(errors="replace")
    return dict(parse_qsl(text, keep_blank_values=True))


def amount(typed: Mapping[str, str]) -> int:
    """Read an amount, in ten-thousandths."""
    text = typed.get("amount", "").strip()
    if not re.fullmatch(r"[0-9]{1,40}(\.[0-9]{1,40})?", text):
        raise Wrong(amount="An amount is digits, with a dot before the decimals.")
    try:
        units = AMOUNT.check(Decimal(text))
    except ValueError as error:
        raise Wrong(amount=f"An amount {error}.") from None
    return int(str(units))


def whole(typed: Mapping[str, str], name: str, least: int, most: int = _MOST) -> int:
    """Read a whole number."""
    text = typed.get(name, "").strip()
    if not re.fullmatch("[0-9]{1,7}", text) or not least <= int(text) <= most:
        raise Wrong(**{name: f"A whole number, {least} to {most}."})
    return int(text)


def _real(typed: Mapping[str, str], name: str, most: float = math.inf) -> float:
    text = typed.get(name, "").strip()
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) or float(text) > most:
        limit = " or more" if math.isinf(most) else f" to {most:g}"
        raise Wrong(**{name: f"A number, 0{limit}."})
    return float(text)


def fault(typed: Mapping[str, str]) -> Fault:
    """Read a fault."""
    # Whether there is such a kind is asked where it is turned on.
    kind = cast("Kind", typed.get("kind"))
    times = whole(typed, "times", 1) if typed.get("times") else None
    if kind == "busy" and times is None:
        raise Wrong(times="How often is always said for busy.")
    status = (
        whole(typed, "status", STATUSES[0], STATUSES[-1])
        if typed.get("status")
        else None
    )
    if status is None and kind == "html":
        status = 502
    return Fault(
        kind,
        typed.get("path") or None,
        times,
        _real(typed, "share", 1),
        seconds=_real(typed, "seconds"),
        status=status,
        executed={"yes": True, "no": False}.get(typed.get("executed", "")),
        code=whole(typed, "code", 0),
    )


def switches(typed: Mapping[str, str]) -> Switches:
    """Read all switches; those of a list are checked where they are kept."""
    read: dict[str, Any] = {}
    for name, kind in switch_kinds().items():
        text = typed.get(name, "").strip()
        if kind is bool:
            read[name] = text == "True"
        elif kind is int:
            read[name] = whole(typed, name, 1)
        elif kind is float:
            read[name] = _real(typed, name)
        else:
            # Of a closed list, which may be one of numbers; or a text.
            words = {str(word): word for word in get_args(kind)}
            read[name] = words.get(text, text)
    try:
        ZoneInfo(read["zone"])
    except (ValueError, LookupError, OSError):
        raise Wrong(zone=f"There is no zone {read['zone']!r}.") from None
    try:
        return Switches(**read)
    except ValueError as error:
        raise Wrong(str(error)) from None
