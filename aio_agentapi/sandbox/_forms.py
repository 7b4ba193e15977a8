"""How a deployment writes what it answers: amounts, times, members that may lack."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, cast
from zoneinfo import ZoneInfo

import attrs
import msgspec

from aio_agentapi.sandbox._members import Body
from aio_agentapi.sandbox._records import Account, Move, User
from aio_agentapi.sandbox._switches import Dates, Switches

_UNIT: Final = 10_000


@attrs.frozen
class Forms:
    """Writes records as the switches say."""

    _switches: Switches = attrs.field(alias="switches")

    def money(self, units: int) -> object:
        """Write an amount of ten-thousandths in major units."""
        text = digits(units)
        if self._switches.short_money:
            text = text.rstrip("0").rstrip(".")
        return text if self._switches.quoted_money else msgspec.Raw(text.encode())

    def local(self, moment: datetime, dates: Dates | None = None) -> str:
        """Write a time that the contract has without a zone."""
        dates = dates or self._switches.dates
        if dates == "iso":
            return iso(moment)
        form = "%Y-%m-%d" if dates == "dashed" else "%Y.%m.%d"
        return self.wall(moment).strftime(f"{form} %H:%M:%S")

    def wall(self, moment: datetime) -> datetime:
        """Return what a clock of the deployment shows, in whole seconds."""
        zone = ZoneInfo(self._switches.zone)
        return moment.astimezone(zone).replace(tzinfo=None, microsecond=0)

    def optional(self, **members: object) -> Body:
        """Write members that may be left out."""
        if self._switches.optional == "missing":
            return {}
        if self._switches.optional == "null":
            return dict.fromkeys(members)
        return members

    def envelope(self, code: int, message: str | None, data: object = None) -> Body:
        """Wrap an answer; without data there is no such member."""
        envelope: Body = {"code": code, "message": message}
        if data is not None:
            envelope["data"] = data
        return _with_extra(envelope) if self._switches.extra else envelope

    def account(self, account: Account) -> Body:
        """Write an Agent."""
        return {
            "agent_code": account.code,
            "name": account.name,
            "role": account.role,
            "parent_code": account.parent,
            "depth": account.depth,
            "currency": account.currency,
            "balance": self.money(account.points),
            "state": account.state,
            "whitelist": account.whitelist,
            "created_at": iso(account.created),
        }

    def point_move(self, move: Move, caller: Account) -> Body:
        """Write a PointMove, with the points of the caller after it."""
        return {
            "move_id": move.id,
            "from_code": move.source,
            "to_code": move.target,
            "amount": self.money(move.amount),
            "balance": self.money(move.after(caller.code)),
            "reference": move.reference,
            "created_at": iso(move.created),
        }

    def moved(self, user: User, amount: int) -> Body:
        """Write what a payment moved."""
        return {"balance": self.money(user.balance), "amount": self.money(amount)}


def digits(units: int) -> str:
    """Write an amount of ten-thousandths in major units, with all four decimals."""
    whole, rest = divmod(abs(units), _UNIT)
    return f"{'-' if units < 0 else ''}{whole}.{rest:04}"


def page(rows: list[Body], total: int, offset: int) -> Body:
    """Write one page of a list."""
    return {"total": total, "offset": offset, "count": len(rows), "list": rows}


def iso(moment: datetime) -> str:
    """Write a time of ISO 8601 with milliseconds."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _with_extra(value: object) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(value, dict):
        members = cast("Body", value)
        more = {"newer_member": {"id": 1, "name": "x", "list": [None]}}
        return {name: _with_extra(part) for name, part in members.items()} | more
    if isinstance(value, list):
        return [_with_extra(part) for part in cast("list[object]", value)]
    return value
