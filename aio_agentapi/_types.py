"""The words that all layers speak."""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Final, Generic, Literal, NoReturn, TypeAlias, TypeVar

import attrs

from aio_agentapi.errors import AmountError, UsageError

T = TypeVar("T")

Amount: TypeAlias = Decimal | int | str
AgentCode: TypeAlias = int
UserCode: TypeAlias = int
Json: TypeAlias = object

Lane: TypeAlias = Literal["interactive", "batch"]

# What may be done after an outcome that nobody knows: a read and an idempotent
# call are sent again, a create and money are not.
Effect: TypeAlias = Literal["read", "idempotent", "create", "money"]
REPEATABLE: Final = frozenset[Effect]({"read", "idempotent"})


class Secret:
    """
    A token that does not show itself.

    Its ``repr`` and ``str`` are constant, it cannot be pickled, and equal tokens are
    equal secrets, in either case of letters. The service knows an agent by its token
    alone, so whoever has it is the agent.

    Args:
        token: What the service gave out: visible ASCII characters.

    Raises:
        UsageError: Empty, or with characters that no header can carry (a
            trailing new line, for example). Nothing was sent.
    """

    __slots__ = ("_token",)

    def __init__(self, token: str) -> None:
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            # Without the cause's value: it could be most of a real token.
            msg = (
                "a token is one or more visible ASCII characters, without spaces,"
                " quotes or line ends around it"
            )
            raise UsageError(msg)
        self._token = token

    def reveal(self) -> str:
        """Return the token itself, to store it where secrets are stored."""
        return self._token

    @property
    def digest(self) -> str:
        """A name of the token that does not tell it."""
        return hashlib.sha256(self._token.lower().encode()).hexdigest()[:16]

    def scrub(self, text: str) -> str:
        """Return *text* with the token blotted out wherever it stands."""
        # In either case of letters: a service may echo it in its own form.
        return re.sub(re.escape(self._token), "***", text, flags=re.IGNORECASE)

    def __repr__(self) -> str:
        return "Secret('***')"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        # As the service compares them.
        if not isinstance(other, Secret):
            return False
        return self._token.lower() == other._token.lower()

    def __hash__(self) -> int:
        return hash(self._token.lower())

    def __reduce__(self) -> NoReturn:
        msg = "a Secret is not pickled: pass the name of the account instead"
        raise TypeError(msg)


_TOKEN: Final = re.compile(r"[!#-&(-~]+")


@attrs.frozen(kw_only=True)
class Operation(Generic[T]):
    """
    One endpoint: its name here, what sending it twice would do, its answer.

    Attributes:
        name: Such as ``"points.transfer"``; the settings map it to a path.

        effect: Whether it may be sent again after an unknown outcome.

        returns: What the answer is structured into.

        paced: For a feed, which may be read again only after a while: by which
            member of the body the readings are told apart; ``""``: not at all,
            any two are. None: no feed.

        echoes: Members of the body that the answer repeats, and under which name.
            One that repeats them otherwise is the answer of something else.
    """

    name: str
    effect: Effect
    returns: type[T]
    paced: str | None = None
    echoes: Mapping[str, str] = attrs.field(factory=dict[str, str], hash=False)


@attrs.frozen
class Query(Generic[T]):
    """
    A call that no journal has to know of.

    It moves no money, or the service itself makes it repeatable, or its effect says
    that it is sent once.
    """

    operation: Operation[T]
    body: Mapping[str, Json]


@attrs.frozen(kw_only=True)
class Moved:
    """
    What a payment moved.

    Attributes:
        amount: How much, in major units.

        balance: The user's balance after it.

    Where a person has decided that a payment happened, nobody knows the balance: it
    is NaN then, and so is an amount that the payment did not name.
    """

    amount: Decimal
    balance: Decimal


class OpenStr(enum.StrEnum):
    """Words of the service; one that we do not know is kept as it came."""

    @classmethod
    def _missing_(cls, value: object) -> OpenStr | None:
        if not isinstance(value, str):
            return None
        member = str.__new__(cls, value)
        member._name_ = "UNKNOWN"
        member._value_ = value
        return member


class OpenInt(enum.IntEnum):
    """Numbers of the service; one that we do not know is kept as it came."""

    @classmethod
    def _missing_(cls, value: object) -> OpenInt | None:
        if not isinstance(value, int):
            return None
        member = int.__new__(cls, value)
        member._name_ = "UNKNOWN"
        member._value_ = value
        return member


MAX_AMOUNT: Final = 10**15
DECIMALS: Final = 4
_RANGE: Final = "an amount is more than 0 and at most 10^15"
_SHORT: Final = 40
_STEPS: Final = tuple(Decimal(1).scaleb(-decimals) for decimals in range(DECIMALS + 1))
_STEP: Final = _STEPS[DECIMALS]
_PLAIN_EXPONENTS: Final = frozenset(range(-DECIMALS, 1))
# Of our own: the caller's may round, or trap.
_CONTEXT: Final = Context(prec=40, rounding=ROUND_HALF_EVEN, traps=[])
_PLAIN: Final = re.compile(r"[0-9]+(\.[0-9]*)?|\.[0-9]+")


def exact(amount: Amount, decimals: int | None = None) -> Decimal:
    """
    Return *amount* as the service takes it: exact, in plain notation.

    Args:
        amount: Major units as a Decimal, an int, or digits with at most one dot.

        decimals: How many the deployment keeps. None: four.

    Returns:
        The same value with at most so many decimals and no exponent.

    Raises:
        AmountError: A float, not more than zero, more decimals (zeros at the end do
            not count), over 10^15, or no number. Nothing was sent.
    """
    value = _number(amount)
    if not value.is_finite():
        msg = f"an amount is a finite number, not {value}"
        raise AmountError(msg)
    # Compared before anything is computed: Decimal("1e999999999") is one small
    # object, and a huge one as soon as it is written out.
    if not 0 < value <= MAX_AMOUNT:
        msg = f"{_RANGE}, not {_short(value)}"
        raise AmountError(msg)
    if (
        decimals is not None
        and value.quantize(_STEPS[decimals], context=_CONTEXT) != value
    ):
        msg = (
            f"an amount has at most {decimals} decimals here (amount_decimals in the"
            f" settings), not {_short(value)}. Nothing was sent"
        )
        raise AmountError(msg)
    if value.as_tuple().exponent in _PLAIN_EXPONENTS:
        return value
    fitted = value.quantize(_STEP, context=_CONTEXT)
    if fitted != value:
        msg = f"an amount has at most four decimals, not {_short(value)}"
        raise AmountError(msg)
    return fitted


def span(start: datetime, end: datetime) -> tuple[datetime, datetime]:
    """
    Return both ends of a while in UTC.

    Raises:
        UsageError: A time without a zone, or an end before the start. Nothing was
            sent.
    """
    msg = "a while has a start and a later end, each with its zone (tzinfo)"
    if start.tzinfo is None or end.tzinfo is None:
        raise UsageError(msg)
    try:
        first, last = start.astimezone(UTC), end.astimezone(UTC)
    except OverflowError:
        raise UsageError(msg) from None
    # In UTC: two times of one zone are compared as a clock there shows them.
    if last < first:
        raise UsageError(msg)
    return first, last


def _number(amount: Amount) -> Decimal:
    if isinstance(amount, Decimal):
        return amount
    if isinstance(amount, str):
        # Stricter than Decimal, which takes spaces, underscores, exponents (what
        # a spreadsheet writes when it has already lost digits) and any script.
        if not _PLAIN.fullmatch(amount):
            msg = f"an amount is written as digits and one dot, not {amount[:40]!r}"
            raise AmountError(msg)
        return Decimal(amount)
    if isinstance(amount, int) and not isinstance(amount, bool):
        # Before the conversion, which is quadratic in the number of digits.
        if abs(amount) > MAX_AMOUNT:
            raise AmountError(_RANGE)
        return Decimal(amount)
    if isinstance(amount, float):
        msg = (
            "a float is not exact (0.1 + 0.2 is 0.30000000000000004):"
            " pass a Decimal, an int or a str"
        )
        raise AmountError(msg)
    msg = f"an amount is a Decimal, an int or a str, not {type(amount).__name__}"
    raise AmountError(msg)


def _short(value: Decimal) -> str:
    text = str(value)
    return text if len(text) <= _SHORT else f"{text[:_SHORT]}…"
