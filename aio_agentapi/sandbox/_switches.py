"""How a deployment behaves where they differ, or nobody knows."""

from __future__ import annotations

import functools
from typing import Any, Literal, TypeAlias, get_args, get_type_hints
from zoneinfo import ZoneInfo

import attrs
from attrs.validators import ge

Dates: TypeAlias = Literal["dashed", "dotted", "iso"]


@functools.cache
def _words(name: str) -> tuple[str, ...]:
    """Return what a switch may be; it takes long to read that from its type."""
    return get_args(get_type_hints(Switches)[name])


def _listed(_: object, field: attrs.Attribute[Any], value: object) -> None:
    words = _words(field.name)
    if value not in words:
        msg = f"{field.name}: one of {words}, not {value!r}"
        raise ValueError(msg)


def _known_zone(_: object, __: object, value: str) -> None:
    ZoneInfo(value)


@attrs.frozen(kw_only=True)
class Switches:
    """
    Where deployments of the service differ, or nobody knows.

    A value that cannot be is refused with a ValueError that names it.

    Attributes:
        limit: Calls in flight, beyond which 1018 is answered.

        scope: What the limit counts by: the token, or the caller's address.

        latency: Seconds that a call takes before it is executed.

        jitter: Seconds by which that differs at most, either way.

        release_lag: Seconds for which a call still counts after its answer.

        statuses: ``"ok"``: HTTP 200 for every answer. ``"http"``: 401 for a bad
            token, 403 for a bad address, and ``busy_status`` for 1018.

        busy_status: Of 1018 under ``"http"``.

        generation: ``"newer"`` or ``"older"`` form of the answers; ``game/all``
            is there only in the newer one.

        optional: Members that may be left out: there with their ``"value"``, as
            ``"null"``, or ``"missing"``.

        extra: Members that nobody has heard of, in every object.

        quoted_money: Amounts as texts.

        short_money: Amounts without zeros at their end: 5.5 and not 5.5000.

        decimals: How many an amount keeps: it is rounded to them when it comes, half
            up; one of nothing then is refused.

        quoted_currency: The currency in ``agent/info`` as a text.

        told_codes: Whether ``agent/info`` tells ``agent_code``, ``role``,
            ``parent_code`` and ``state``.

        dates: Times without a zone as ``"dashed"`` (2024-05-31 12:00:00) or
            ``"dotted"`` (2024.05.31 12:00:00); or in ISO 8601, with one.

        online_dates: The same for ``game/online-games``, where dots have been seen.

        zone: The zone of times that are written without one.

        early_feed: What a feed read too early answers: 1018, or an empty list.

        feed_spacing: Seconds between two readings from the same cursor, and
            between any two of ``game/transaction``.

        end_included: Whether ``game/transaction`` tells rows of the last second of
            its window.

        row_delay: Seconds after which a new row of the feed can be seen.

        empty_wallet: What ``wallet/withdraw-all`` of an empty one gives: an
            amount of zero, or 2006.
    """

    limit: int = attrs.field(default=50, validator=ge(1))
    scope: Literal["token", "ip"] = attrs.field(default="token", validator=_listed)
    latency: float = attrs.field(default=0.0, validator=ge(0))
    jitter: float = attrs.field(default=0.0, validator=ge(0))
    release_lag: float = attrs.field(default=0.0, validator=ge(0))
    statuses: Literal["ok", "http"] = attrs.field(default="ok", validator=_listed)
    busy_status: Literal[429, 503] = attrs.field(default=429, validator=_listed)
    generation: Literal["newer", "older"] = attrs.field(
        default="newer", validator=_listed
    )
    optional: Literal["value", "null", "missing"] = attrs.field(
        default="value", validator=_listed
    )
    extra: bool = False
    quoted_money: bool = False
    short_money: bool = False
    decimals: Literal[4, 2, 0] = attrs.field(default=4, validator=_listed)
    quoted_currency: bool = False
    told_codes: bool = True
    dates: Dates = attrs.field(default="dashed", validator=_listed)
    online_dates: Dates = attrs.field(default="dashed", validator=_listed)
    zone: str = attrs.field(default="UTC", validator=_known_zone)
    early_feed: Literal["busy", "empty"] = attrs.field(
        default="busy", validator=_listed
    )
    feed_spacing: float = attrs.field(default=30.0, validator=ge(0))
    end_included: bool = True
    row_delay: float = attrs.field(default=0.0, validator=ge(0))
    empty_wallet: Literal["zero", "refused"] = attrs.field(
        default="zero", validator=_listed
    )
