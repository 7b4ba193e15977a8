"""
Text to values and back: exact decimals, the envelope, codes to errors, records.

An envelope decides, whatever the HTTP status says. Money never passes through a
binary float: the decoder hands every number with a dot to Decimal as text.

Records are structured three times at most. msgspec makes those that need nothing but
its own types while it reads the text, in a quarter of the time: what it takes is what
the next pass would give, but for numbers in quotes that are none and times without a
zone, which are looked for, and for what a time has beyond the microsecond, which it
rounds. The next takes what any generation of the service writes,
and stops at the first thing wrong; only the last names all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from functools import cache, partial
from itertools import chain
from operator import attrgetter
from types import NoneType, UnionType
from typing import (
    Any,
    Final,
    Generic,
    TypeAlias,
    TypeVar,
    cast,
    get_args,
    get_origin,
)
from zoneinfo import ZoneInfo

import attrs
import msgspec
from cattrs import Converter, transform_error
from cattrs.cols import list_structure_factory
from cattrs.gen import make_dict_structure_fn

from aio_agentapi._types import Json, OpenInt, OpenStr, Operation, Secret
from aio_agentapi.errors import (
    AgentAPIError,
    BusyError,
    ConflictError,
    CredentialError,
    DecodeError,
    ForbiddenError,
    FundsError,
    InvalidError,
    IpNotAllowedError,
    MaintenanceError,
    NotFoundError,
    OutcomeUnknownError,
    RefusedError,
    UnsupportedError,
    UsageError,
)

T = TypeVar("T")

# Contract 4: what each code is called and becomes.
CODES: Final[Mapping[int, tuple[str, type[RefusedError | OutcomeUnknownError]]]] = {
    1: ("UNDER_MAINTENANCE", MaintenanceError),
    1001: ("INTERNAL_SERVER_ERROR", OutcomeUnknownError),
    1002: ("VALIDATION_ERROR", InvalidError),
    1003: ("SERVICE_EXCEPTION", OutcomeUnknownError),
    1005: ("RESOURCE_NOT_FOUND", NotFoundError),
    1007: ("TOKEN_NOT_FOUND", CredentialError),
    1009: ("TOKEN_INVALID", CredentialError),
    1010: ("PERMISSION_ERROR", ForbiddenError),
    1011: ("PROVIDER_ERROR", OutcomeUnknownError),
    1012: ("PARAMETERS_INVALID", InvalidError),
    1015: ("CALLBACK_ERROR", OutcomeUnknownError),
    1018: ("SERVER_IS_BUSY", BusyError),
    1020: ("IP_NOT_ALLOWED", IpNotAllowedError),
    2001: ("AGENT_NOT_FOUND", NotFoundError),
    2002: ("USER_NOT_FOUND", NotFoundError),
    2003: ("GAME_NOT_FOUND", NotFoundError),
    2005: ("POINT_NOT_ENOUGH", FundsError),
    2006: ("BALANCE_NOT_ENOUGH", FundsError),
    2007: ("PROVIDER_NOT_FOUND", NotFoundError),
    2011: ("BONUSCALL_DOUBLE", ConflictError),
    2012: ("BONUSCALL_ALEADY_ENDED", ConflictError),
    2013: ("ROUND_NOT_FOUND", NotFoundError),
    2014: ("CURRENCY_NOT_SUPPORTED", InvalidError),
    2020: ("FREEROUND_NO_EXIST", NotFoundError),
}

# Statuses that tell of a read that its path is missing. Not 303: it tells where to look
# when a call was carried out.
_NO_SUCH_PATH: Final = frozenset({301, 302, 307, 308, 404, 405})

_INT64: Final = 2**63

# Of a foreign text in a message of ours: enough to recognise a proxy's page.
_EXCERPT: Final = 200


class Envelope(msgspec.Struct, Generic[T]):
    """What every answer of the service is wrapped in."""

    code: int
    message: Any = None
    data: T | None = None


Scrub: TypeAlias = Callable[[str], str]

_DECODER: Final = msgspec.json.Decoder(Envelope[Any], float_hook=Decimal)
_ENCODER: Final = msgspec.json.Encoder(decimal_format="number")


@attrs.frozen
class Wire:
    """The one converter between what we hold and what travels."""

    _fast: Converter
    _slow: Converter
    # What msgspec reads by itself, by what the answer is structured into.
    _direct: dict[object, _Direct | None] = attrs.field(factory=dict)

    def encode(self, body: Mapping[str, Json]) -> bytes:
        """
        Write *body* as JSON, leaving out members that are None.

        Raises:
            UsageError: Something in it has no JSON form. Nothing was sent.
        """
        try:
            return _ENCODER.encode({k: v for k, v in body.items() if v is not None})
        except (TypeError, ValueError, RecursionError) as error:
            msg = f"the request cannot be written as JSON: {error}"
            raise UsageError(msg) from None

    def decode(
        self, operation: Operation[T], status: int, text: bytes, scrub: Scrub
    ) -> T | AgentAPIError:
        """
        Read an answer.

        The error is returned and not raised: the frames of this module hold the
        text, in which there may be a token.

        Args:
            operation: Whose answer it is.

            status: Of HTTP.

            text: The whole body.

            scrub: Blots the token out of what a service may have echoed.

        Returns:
            The record. Or what the answer says instead: RefusedError for a code
            that means no; OutcomeUnknownError for one that does not tell, or for
            no envelope; UnsupportedError for a read without one under a status that
            means no such path; DecodeError for success with data of another shape.
        """
        shape: Any = operation.returns
        try:
            direct = self._direct[shape]
        except KeyError:
            direct = self._direct[shape] = _direct(shape)
        if direct is not None and (known := direct.decode(text)) is not None:
            return cast("T", known)
        try:
            envelope = _DECODER.decode(text)
        except (ValueError, ArithmeticError, RecursionError):
            envelope = None
        if envelope is None:
            return _no_envelope(operation, status, text, scrub)
        if envelope.code != 0:
            return _refusal(envelope, status, operation, scrub)
        try:
            record = self._fast.structure(envelope.data, shape)
        except Exception:  # noqa: BLE001 - a bad answer fails in many ways; the pass below names it
            return self._misshapen(envelope.data, shape)
        # This deployment writes it otherwise, and will do so again.
        self._direct[shape] = None
        return cast("T", record)

    def _misshapen(self, data: object, shape: Any) -> DecodeError:  # noqa: ANN401 - any type form
        paths: list[str] = []
        try:
            self._slow.structure(data, shape)
        except Exception as error:  # noqa: BLE001 - as above
            paths = transform_error(error)
        shown = "; ".join(paths[:5])[:_EXCERPT]
        msg = f"the answer has another shape: {shown}. It may have happened"
        return DecodeError(msg, paths=tuple(paths))


Doubt: TypeAlias = Callable[[Sequence[Any]], bool]


@attrs.frozen
class _Direct:
    """What msgspec makes of an answer, and whether that has to be looked at again."""

    decoder: msgspec.json.Decoder[Any]
    doubt: Doubt | None

    def decode(self, text: bytes) -> object:
        """Return the record, or None where the other passes have to say."""
        try:
            envelope = self.decoder.decode(text)
        except (ValueError, ArithmeticError, RecursionError):
            return None
        if envelope.code != 0 or envelope.data is None:
            return None
        record: object = envelope.data
        return None if self.doubt is not None and self.doubt((record,)) else record


class _NotDirectError(Exception):
    """A shape that has something in it which msgspec does not know."""


def _direct(shape: Any) -> _Direct | None:  # noqa: ANN401 - any type form
    try:
        doubt = _doubt(shape)
        decoder = msgspec.json.Decoder(Envelope[shape], float_hook=Decimal)
    except (_NotDirectError, TypeError, RecursionError):
        return None
    return _Direct(decoder, doubt)


# What msgspec takes as the hooks below do, given to this type.
_SAME: Final = (object, bool, int, str)


def _doubt(shape: Any) -> Doubt | None:  # noqa: ANN401 - any type form
    """
    Return what finds, among values, one that the hooks below would not take so.

    Among many at once: a page of the feed has ten thousand, and a frame of Python for
    each would be a third of what the page costs.
    """
    if shape in _SAME or _is_open(shape):
        return None
    if shape is Decimal:
        return _infinite
    if shape is datetime:
        return _without_zone
    if attrs.has(shape):
        return _member_doubt(shape)
    if not (_is_optional(shape) or _is_list(shape)):
        raise _NotDirectError
    inner = _doubt(next(kind for kind in get_args(shape) if kind is not NoneType))
    several = _is_list(shape)

    def doubt(values: Sequence[Any]) -> bool:
        found = chain.from_iterable(values) if several else values
        return inner is not None and inner([v for v in found if v is not None])

    return inner and doubt


def _is_open(shape: object) -> bool:
    return isinstance(shape, type) and issubclass(shape, OpenStr | OpenInt)


def _infinite(values: Sequence[Any]) -> bool:
    return not all(map(Decimal.is_finite, values))


def _without_zone(values: Sequence[Any]) -> bool:
    return None in map(attrgetter("tzinfo"), values)


def _member_doubt(record: type[Any]) -> Doubt | None:
    doubts: list[tuple[Callable[[Any], Any], Doubt]] = []
    for field in attrs.fields(attrs.resolve_types(record)):
        if field.metadata:
            raise _NotDirectError
        if (inner := _doubt(field.type)) is not None:
            doubts.append((attrgetter(field.name), inner))

    def doubt(values: Sequence[Any]) -> bool:
        return any(inner([*map(member, values)]) for member, inner in doubts)

    return doubt if doubts else None


def _excerpt(text: str, scrub: Scrub) -> str:
    # Blotted out before it is cut anywhere: half a token is too much.
    return scrub(text)[:_EXCERPT]


def _no_envelope(
    operation: Operation[Any], status: int, text: bytes, scrub: Scrub
) -> AgentAPIError:
    """
    Return what a response without an envelope says of a call.

    Nothing, under any status: a front (nginx ``error_page``, HAProxy ``errorloc``)
    turns the 502 or 504 of a call that was executed into a 404 or a redirect. Only of
    a read does it not matter.
    """
    why = ""
    if status in _NO_SUCH_PATH:
        if operation.effect == "read":
            msg = (
                f"HTTP {status} without an envelope: this deployment lacks the path, or"
                " the base URL is wrong. Nothing happened"
            )
            return UnsupportedError(msg)
        why = (
            "; this deployment may lack the path (agentapi doctor looks), or a front"
            " has put this in the place of a lost response"
        )
    said = text.decode("utf-8", "replace")
    excerpt = " ".join(_excerpt(said, scrub).split())
    msg = f"HTTP {status} without an envelope ({excerpt!r}){why}. It may have happened"
    return OutcomeUnknownError(msg, status=status)


def _refusal(
    envelope: Envelope[Any], status: int, operation: Operation[Any], scrub: Scrub
) -> AgentAPIError:
    code = envelope.code
    name, kind = CODES.get(code, (None, None))
    words = name or "a code that this library does not know"
    if isinstance(envelope.message, str) and envelope.message not in {"", name}:
        words = f"{words}, {_excerpt(envelope.message, scrub)!r}"
    if kind is None:
        # A code that nobody has explained can mean anything; for a call that
        # changes nothing the difference does not matter.
        kind = RefusedError if operation.effect == "read" else OutcomeUnknownError
    if issubclass(kind, OutcomeUnknownError):
        msg = f"code {code} ({words}). It may have happened"
        return kind(msg, code=code, name=name, status=status)
    fields = _fields(envelope.data, scrub)
    if fields:
        words += "; " + ", ".join(f"{field}: {why}" for field, why in fields[:5])
    if kind is IpNotAllowedError:
        words += (
            "; add this machine's address to the account's Allowed IP in the back"
            " office (addresses separated by spaces or new lines)"
        )
    msg = f"code {code} ({words}). Nothing happened"
    refusal = kind(msg, code=code, name=name, fields=fields)
    if isinstance(refusal, IpNotAllowedError):
        refusal.client_ip = _client_ip(envelope.data, scrub)
    return refusal


def _fields(data: object, scrub: Scrub) -> tuple[tuple[str, str], ...]:
    rows = cast("list[object]", data) if isinstance(data, list) else []
    members = [cast("dict[str, object]", row) for row in rows if isinstance(row, dict)]
    return tuple(
        (
            _excerpt(str(row.get("field", "")), scrub),
            _excerpt(str(row.get("message", "")), scrub),
        )
        for row in members
    )


def _client_ip(data: object, scrub: Scrub) -> str | None:
    members = cast("dict[str, object]", data) if isinstance(data, dict) else {}
    address = members.get("client_ip")
    return _excerpt(address, scrub) if isinstance(address, str) else None


@cache
def wire(zone: str) -> Wire:
    """Return the wire whose times without a zone are in *zone*."""
    return Wire(
        _converter(ZoneInfo(zone), detailed=False),
        _converter(ZoneInfo(zone), detailed=True),
    )


def _converter(zone: ZoneInfo, *, detailed: bool) -> Converter:
    converter = Converter(detailed_validation=detailed)
    # cattrs would call int(value), str(value) and so on: int("1.9" as Decimal)
    # is 1, and str(None) is "None".
    for kind, hook in _PLAIN.items():
        converter.register_structure_hook(kind, hook)
    converter.register_structure_hook(datetime, lambda v, _: _datetime(v, zone))
    # What nobody has given a shape stays as it came.
    converter.register_structure_hook_func(lambda t: t is object, lambda v, _: v)
    converter.register_structure_hook_factory(
        attrs.has, partial(_record_hook, converter)
    )
    converter.register_structure_hook_factory(
        _is_optional, partial(_optional_hook, converter)
    )
    converter.register_structure_hook_factory(_is_list, partial(_list_hook, converter))
    return converter


def _decimal(value: object, _: object) -> Decimal:
    # An amount without a dot arrives as an int; a quoted one has been seen.
    if isinstance(value, Decimal):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return Decimal(value)
    if isinstance(value, str):
        try:
            number = Decimal(value)
        except ArithmeticError:
            number = Decimal("NaN")
        if number.is_finite():
            return number
    msg = "not a number"
    raise ValueError(msg)


def _int(value: object, _: object) -> int:
    # A quoted currency has been seen; 5.0 is 5.
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value.isascii() and value.removeprefix("-").isdigit():
        return int(value)
    # The size first: 1e999999999 is short to write, and as an int it is not.
    if isinstance(value, Decimal) and abs(value) < _INT64 and value == int(value):
        return int(value)
    msg = "not a whole number"
    raise ValueError(msg)


def _str(value: object, _: object) -> str:
    if isinstance(value, str):
        return value
    msg = "not a text"
    raise ValueError(msg)


def _bool(value: object, _: object) -> bool:
    if isinstance(value, bool):
        return value
    msg = "not a boolean"
    raise ValueError(msg)


def _word(value: object, kind: type[OpenStr]) -> OpenStr:
    return kind(_str(value, kind))


def _number(value: object, kind: type[OpenInt]) -> OpenInt:
    return kind(_int(value, kind))


def _secret(value: object, _: object) -> Secret:
    return Secret(_str(value, _))


_PLAIN: Final[Mapping[type, Callable[[object, Any], object]]] = {
    Decimal: _decimal,
    int: _int,
    str: _str,
    bool: _bool,
    Secret: _secret,
    # cattrs finds a hook by the nearest base: these stand before str and int.
    OpenStr: _word,
    OpenInt: _number,
}


def _datetime(value: object, zone: ZoneInfo) -> datetime:
    text = _str(value, None)
    # The third form of the service has dots in its date: 2024.05.31 12:00:00.
    moment = datetime.fromisoformat(text[:10].replace(".", "-") + text[10:])
    return moment if moment.tzinfo else moment.replace(tzinfo=zone)


def _is_optional(shape: object) -> bool:
    members = get_args(shape)
    return isinstance(shape, UnionType) and len(members) == 2 and NoneType in members  # noqa: PLR2004 - something or None


def _optional_hook(
    converter: Converter, shape: UnionType
) -> Callable[[Any, Any], object]:
    """Structure what may be null; cattrs would look its hook up at every value."""
    (kind,) = (member for member in get_args(shape) if member is not NoneType)
    hook = converter.get_structure_hook(kind)
    return lambda value, _: None if value is None else hook(value, kind)


def _is_list(shape: object) -> bool:
    origin: object = get_origin(shape)
    return origin is list or origin is tuple


def _list_hook(converter: Converter, shape: Any) -> Callable[[Any, Any], object]:  # noqa: ANN401 - any type form
    """Structure a list, and nothing else: cattrs would take a text letter by letter."""
    plain = list_structure_factory(shape, converter)
    kind = get_origin(shape)

    def structure(value: object, _: object) -> object:
        if not isinstance(value, list):
            msg = "not a list"
            raise ValueError(msg)  # noqa: TRY004 - as the other hooks, for cattrs
        return kind(plain(value, shape))

    return structure


def _record_hook(
    converter: Converter, record: type[Any]
) -> Callable[[Any, Any], object]:
    """
    Structure a record; two words in a field's metadata change how.

    ``also``: the member's name in another generation of the service. ``inline``:
    the field is a record whose members stand among those of this one.
    """
    plain = make_dict_structure_fn(record, converter)
    fields = attrs.fields(record)
    also = {f.metadata["also"]: f.name for f in fields if "also" in f.metadata}
    inline = [f.name for f in fields if f.metadata.get("inline")]
    if not also and not inline:
        return plain

    def structure(value: Any, kind: Any) -> object:  # noqa: ANN401 - what JSON holds
        members = dict(value)
        for other, name in also.items():
            if members.get(name) is None and other in members:
                members[name] = members[other]
        for name in inline:
            members[name] = value
        return plain(members, kind)

    return structure
