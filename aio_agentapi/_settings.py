"""Every default, with its unit and its reason."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from ssl import SSLContext
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import attrs

from aio_agentapi._types import DECIMALS, Lane
from aio_agentapi.errors import UsageError

# The path of every operation, relative to /v4/.
PATHS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "agents.info": "agent/info",
        "agents.create": "agent/create",
        "agents.list": "agent/list",
        "agents.update": "agent/update",
        "agents.reissue_token": "agent/token",
        "points.balance": "agent/info",
        "points.transfer": "points/transfer",
        "points.reclaim": "points/reclaim",
        "points.history": "points/history",
        "users.create": "user/create",
        "users.info": "user/info",
        "users.statistics": "statistics/user",
        "wallets.deposit": "wallet/deposit",
        "wallets.withdraw": "wallet/withdraw",
        "wallets.withdraw_all": "wallet/withdraw-all",
        "transactions.since": "game/transaction-id",
        "transactions.between": "game/transaction",
        "games.providers": "game/providers",
        "games.list": "game/games",
        "games.all": "game/all",
        "games.launch_url": "game/game-url",
        "games.online": "game/online-games",
        "games.round_details_url": "game/round-details",
    }
)

_PATH: Final = re.compile(r"[!-.0-~][!-~]*")

_PROXY: Final = re.compile(r"https?://[^/]", re.IGNORECASE)

# The form of a token.
UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

# What may be secret in an address, or be taken for one.
_USER: Final = re.compile(r"^([a-z]*://)?.*@", re.IGNORECASE | re.DOTALL)
_QUERY: Final = re.compile(r"([?#]).*", re.DOTALL)
# Seconds after which a peer that takes nothing is gone, give or take a retransmission.
# What a process that has died had given to the kernel arrives within them, or never.
_UNACKED: Final = 10.0
# Characters of a host with its path: a signed token has more.
_NAME: Final = 64

_Check = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def _number(*, least: float, open_end: bool = False, none: bool = False) -> _Check:
    """Make a check that a field is a number from *least* (excluded if *open_end*)."""

    def check(_: object, field: attrs.Attribute[Any], value: object) -> None:
        if value is None and none:
            return
        sound = isinstance(value, int | float) and not isinstance(value, bool)
        # Written so that NaN fails.
        if sound and (value > least if open_end else value >= least):  # type: ignore[operator]  # narrowed by `sound`
            return
        bound = f"more than {least:g}" if open_end else f"at least {least:g}"
        end = ", or None" if none else ""
        msg = f"{field.name}: a number of {bound}{end}, not {value!r}"
        raise UsageError(msg)

    return check


def _whole(*, least: int, none: bool = False) -> _Check:
    """Make a check that a field is an int of at least *least*."""

    def check(_: object, field: attrs.Attribute[Any], value: object) -> None:
        if value is None and none:
            return
        if isinstance(value, int) and not isinstance(value, bool) and value >= least:
            return
        end = ", or None" if none else ""
        msg = f"{field.name}: a whole number of at least {least}{end}, not {value!r}"
        raise UsageError(msg)

    return check


def _decimals(_: object, field: attrs.Attribute[Any], value: object) -> None:
    _whole(least=0, none=True)(_, field, value)
    if isinstance(value, int) and value > DECIMALS:
        msg = f"{field.name}: at most {DECIMALS}, the service's own, not {value!r}"
        raise UsageError(msg)


def _text(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if not (value is None or (isinstance(value, str) and value)):
        msg = f"{field.name}: a text, or None, not {value!r}"
        raise UsageError(msg)


def _known_proxy(_: object, field: attrs.Attribute[Any], value: object) -> None:
    _text(_, field, value)
    if isinstance(value, str) and not _PROXY.match(value):
        wanted = "'http://' or 'https://' and a host, or None"
        msg = f"{field.name}: needs {wanted}, not {_shown(value)}"
        raise UsageError(msg)


def _flag(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, bool):
        msg = f"{field.name}: True or False, not {value!r}"
        raise UsageError(msg)


def _known_lane(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if value not in {"interactive", "batch"}:
        msg = f"{field.name}: 'interactive' or 'batch', not {value!r}"
        raise UsageError(msg)


def _known_zone(_: object, field: attrs.Attribute[Any], value: object) -> None:
    try:
        ZoneInfo(value)  # type: ignore[arg-type]  # a wrong type is told below
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        msg = f"{field.name}: the name of a time zone, not {value!r}"
        raise UsageError(msg) from None


def _all_paths(changed: Mapping[str, str]) -> Mapping[str, str]:
    """Put the paths that a deployment names differently over the usual ones."""
    if changed is PATHS:
        return PATHS
    if not isinstance(changed, Mapping):
        msg = f"paths: operations with their paths, not {changed!r}"
        raise UsageError(msg)
    for operation, path in changed.items():
        if operation not in PATHS:
            msg = f"paths: there is no operation {operation!r}"
            raise UsageError(msg)
        if not isinstance(path, str) or not _PATH.fullmatch(path):
            msg = f"paths: {operation!r} needs a path relative to /v4/, not {path!r}"
            raise UsageError(msg)
    return MappingProxyType({**PATHS, **changed})


@attrs.frozen(kw_only=True)
class Settings:
    """
    How a manager and its sessions behave; seconds are floats.

    Everything is checked at construction.

    Raises:
        UsageError: A value is out of range; the message names the field.
    """

    # The service's own number of calls that one token may have in flight.
    limit: int = attrs.field(default=50, validator=_whole(least=1))
    # Seconds from one sending to its whole answer, and for each further wait for
    # it; game providers take their time.
    timeout: float = attrs.field(
        default=30.0, validator=_number(least=0, open_end=True)
    )
    # Seconds in all that a call may wait for a permit, the drain after 1018
    # included. None: as long as it takes, since the service does come free.
    max_wait: float | None = attrs.field(
        default=None, validator=_number(least=0, none=True)
    )
    # Seconds for the whole call, waiting and all sendings. None: no end.
    deadline: float | None = attrs.field(
        default=None, validator=_number(least=0, open_end=True, none=True)
    )
    # Calls of one token that may wait at once. None: memory is the bound.
    max_waiting: int | None = attrs.field(
        default=None, validator=_whole(least=0, none=True)
    )
    # Somebody is looking at an interactive call; a batch call gives way to it.
    lane: Lane = attrs.field(default="interactive", validator=_known_lane)
    # Permits that the batch lane keeps while it has work: a fifth, so that a
    # busy web server cannot stop the night's job.
    batch_floor: int = attrs.field(default=10, validator=_whole(least=0))
    # Sendings in all of a call that may be sent again after an unknown outcome,
    # and of any call that certainly was not sent. One that is late and still runs
    # is waited for once more instead.
    attempts: int = attrs.field(default=3, validator=_whole(least=1))
    # Seconds for which the answer to a caller who has left is still waited for,
    # from when he left: longer than any call is known to take.
    abandon_after: float = attrs.field(default=60.0, validator=_number(least=0))
    # Seconds that a permit stays withheld after its call was given up: the service
    # may still be busy with it.
    linger: float = attrs.field(default=1.0, validator=_number(least=0))
    # Seconds in which the service, or a front, may still execute a call of which
    # nothing can leave this machine any more. None: timeout, abandon_after and linger
    # together, after which we give it up.
    longest_call: float | None = attrs.field(
        default=None, validator=_number(least=0, none=True)
    )
    # Decimals that the deployment keeps of an amount. One with more is refused before
    # it is sent, and a row of the feed that was rounded to them is recognised. None:
    # not known, so four are sent, and a rounded amount is for a person.
    amount_decimals: int | None = attrs.field(default=None, validator=_decimals)
    # Seconds between two looks for open payments, which are then settled in the
    # background. None: never; whoever wants it calls settle_all().
    resolve_every: float | None = attrs.field(
        default=None, validator=_number(least=0, open_end=True, none=True)
    )
    # Seconds that running exchanges get when a session is closed.
    drain: float = attrs.field(default=5.0, validator=_number(least=0))
    # Seconds between two readings of a feed from one cursor, the service's rule.
    feed_interval: float = attrs.field(
        default=30.0, validator=_number(least=0, open_end=True)
    )
    # Seconds that a row of a feed may become visible late, behind higher numbers.
    feed_lag: float = attrs.field(default=5.0, validator=_number(least=0))
    # Whether the journal has all payments of its users: others that nobody wrote
    # down make a count of them prove nothing.
    sole_writer: bool = attrs.field(default=True, validator=_flag)
    # Whether a user's next payment waits until an unknown one is settled.
    block_unknown: bool = attrs.field(default=False, validator=_flag)
    # Seconds that payments whose end is known are kept, and their keys with them.
    keep_intents: float = attrs.field(
        default=30 * 24 * 3600.0, validator=_number(least=0, open_end=True)
    )
    # Seconds for name, connection and TLS together.
    connect_timeout: float = attrs.field(
        default=10.0, validator=_number(least=0, open_end=True)
    )
    # Seconds that an idle connection is kept: less than the service keeps it,
    # since a payment that meets a closing connection has an unknown outcome.
    keepalive: float = attrs.field(
        default=15.0, validator=_number(least=0, open_end=True)
    )
    # Seconds after which a connection is not used again, so that an address that has
    # moved is looked up anew. None: as long as it lasts.
    max_connection_age: float | None = attrs.field(
        default=300.0, validator=_number(least=0, open_end=True, none=True)
    )
    # Connections of all sessions of a manager at once. Idle ones of any session are
    # closed for new ones; then one waits. None: three quarters of the descriptors that
    # the process may have, since the program has files of its own.
    max_connections: int | None = attrs.field(
        default=None, validator=_whole(least=1, none=True)
    )
    # As aiohttp takes them. A fixed local address matters on a machine with
    # several, where the account's list of allowed addresses has one of them.
    # A proxy's address may have a user and a password in it.
    proxy: str | None = attrs.field(
        default=None,
        validator=_known_proxy,
        repr=lambda url: _shown(url) if url else "None",
    )
    ssl: SSLContext | bool | None = None
    local_address: str | None = attrs.field(default=None, validator=_text)
    # The zone of times that come without one.
    zone: str = attrs.field(default="UTC", validator=_known_zone)
    # Operation to path, where a deployment names one differently.
    paths: Mapping[str, str] = attrs.field(
        default=PATHS, converter=_all_paths, repr=False
    )
    # The token travels readable over plain HTTP: loopback only, unless allowed.
    allow_plain_http: bool = attrs.field(default=False, validator=_flag)
    # Bytes of one answer: the largest known list is some MiB.
    max_answer: int = attrs.field(default=64 * 1024 * 1024, validator=_whole(least=1))
    # Bytes of one header of a response: fronts put cookies and policies there, and a
    # response that is not read is an unknown outcome.
    max_header_size: int = attrs.field(default=64 * 1024, validator=_whole(least=1))

    @property
    def unacked(self) -> float:
        """Seconds that a connection may wait for its peer to take what was sent."""
        return min(_UNACKED, self.timeout)

    @property
    def longest(self) -> float:
        """Seconds after its sending in which the service may still execute a call."""
        if self.longest_call is not None:
            return self.longest_call
        return self.timeout + self.abandon_after + self.linger


def check_base_url(base_url: str, *, allow_plain_http: bool) -> str:
    """
    Return *base_url* without a slash at its end.

    Raises:
        UsageError: Not an http or https address, with credentials, a query or
            the version in it, or plain HTTP to another machine.
    """
    wrong = UsageError(
        "base_url: needs 'https://' and a host, and a path if it has one, not"
        f" {_shown(base_url)}"
    )
    try:
        parts = urlsplit(base_url)
        host, _ = parts.hostname, parts.port
        # What cannot be looked up: an empty label, or one of over 63 characters.
        (host or "").encode("idna")
    except (ValueError, TypeError, AttributeError):
        raise wrong from None
    if not host or parts.scheme not in {"http", "https"} or not base_url.isprintable():
        raise wrong
    if parts.username is not None or parts.password is not None:
        found = _shown(base_url)
        msg = (
            f"base_url: no user and no password in it, as {found} has; the token is the"
            " identity"
        )
        raise UsageError(msg)
    # Also empty ones, which urlsplit() keeps no trace of.
    if "?" in base_url or "#" in base_url:
        msg = f"base_url: no query and no fragment in it, as {_shown(base_url)} has"
        raise UsageError(msg)
    if parts.scheme == "http" and not (allow_plain_http or _is_loopback(host)):
        msg = (
            f"base_url: http:// to {host} would send the token readable by others;"
            " use https://, or on a network you trust allow_plain_http in the settings"
        )
        raise UsageError(msg)
    plain = base_url.rstrip("/")
    if plain.endswith("/v4"):
        msg = "base_url: leave out /v4, it is put behind it"
        raise UsageError(msg)
    return plain


def _shown(base_url: object) -> str:
    """Quote what was given as an address, without what may be secret in it."""
    if not isinstance(base_url, str):
        return f"of type {type(base_url).__name__}"
    plain = _USER.sub(r"\1***@", base_url)
    plain = UUID.sub("***", _QUERY.sub(r"\1***", plain))
    if "://" not in plain and ("." not in plain or len(plain) > _NAME):
        # A token in the wrong place looks so.
        return f"a text of {len(base_url)} characters"
    return repr(plain)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
