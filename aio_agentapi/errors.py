"""
Every error that this library raises.

The tree answers *did it happen?* before *what was it?*: each class carries
``happened``, ``"no"`` where it is certain that the service did nothing, and
``"maybe"`` where an answer was lost or cannot be understood. Catch
:class:`OutcomeUnknownError` and :class:`DecodeError` before you send anything
a second time; everything else did not happen.

Errors carry the operation, how often it was sent and what the service said, and
never the token. They survive pickling.
"""

from __future__ import annotations

from typing import ClassVar, Literal, TypeAlias

import attrs

__all__ = [
    "AgentAPIError",
    "AmountError",
    "BusyError",
    "ClosedError",
    "ConflictError",
    "CredentialError",
    "DecodeError",
    "FeedGapError",
    "ForbiddenError",
    "FundsError",
    "GateError",
    "GateFullError",
    "GateLostError",
    "GateTimeoutError",
    "Happened",
    "InvalidError",
    "IpNotAllowedError",
    "JournalError",
    "MaintenanceError",
    "NotFoundError",
    "NotSentError",
    "OutcomeUnknownError",
    "RefusedError",
    "UnsupportedError",
    "UsageError",
]

Happened: TypeAlias = Literal["no", "maybe"]


# Fields are positional with defaults all the way down: an exception is rebuilt
# from its arguments when it is unpickled.
@attrs.define
class AgentAPIError(Exception):
    """
    Something went wrong; ``happened`` says whether the call took effect.

    Attributes:
        message: What went wrong, for people.

        operation: The call, such as ``"points.transfer"``; None outside of one.

        attempts: How often sending it was tried, the last time included; another
            wait for the answer of one is none.

        reference: The reference of a points move, None for other calls.

        intent: The number of a payment in the journal, None for other calls, and
            for a payment that did not come that far.
    """

    happened: ClassVar[Happened] = "maybe"

    message: str = ""
    operation: str | None = None
    attempts: int = 0
    reference: str | None = None
    intent: int | None = None

    def __str__(self) -> str:
        return f"{self.operation}: {self.message}" if self.operation else self.message

    def __reduce__(self) -> tuple[type[AgentAPIError], tuple[object, ...]]:
        # Not the default: it would rebuild from the arguments of the first
        # moment, and the operation and the attempts are filled in later.
        fields = attrs.fields(type(self))
        return type(self), tuple(getattr(self, field.name) for field in fields)


class UsageError(AgentAPIError):
    """The library was called wrongly. Nothing was sent."""

    happened: ClassVar[Happened] = "no"


class ClosedError(UsageError):
    """The manager or the session is closed. Nothing was sent."""


class AmountError(UsageError):
    """A float, not positive, too many decimals or too large. Nothing was sent."""


class GateError(AgentAPIError):
    """No permit, so the call did not start. Nothing was sent."""

    happened: ClassVar[Happened] = "no"


@attrs.define
class GateTimeoutError(GateError):
    """
    No permit came free in time. Nothing was sent.

    Attributes:
        waited: Seconds that the call stood in line.
    """

    waited: float = 0.0


class GateFullError(GateError):
    """As many calls as ``max_waiting`` allows wait already. Nothing was sent."""


class GateLostError(GateError):
    """
    The store of a shared gate cannot be reached. Nothing was sent.

    What was on lease is over, and no static share was agreed on.
    """


class JournalError(AgentAPIError):
    """
    The journal of payments cannot be read or written. Nothing was sent.

    A disk that is full, a file that may not be written, or that is no journal.
    """

    happened: ClassVar[Happened] = "no"


@attrs.define
class FeedGapError(AgentAPIError):
    """
    Rows of the feed are gone that were not read. Nothing happened.

    The service deletes them after two days. What moved in between is not to be had
    from the feed; from 0 it is read from its oldest row.

    Attributes:
        after: The trans_id behind which rows are missing.

        before: The first row that is still there, None where there is none.
    """

    happened: ClassVar[Happened] = "no"

    after: int = 0
    before: int | None = None


class NotSentError(AgentAPIError):
    """Looking up the name, connecting or TLS failed. Nothing was sent."""

    happened: ClassVar[Happened] = "no"


class UnsupportedError(AgentAPIError):
    """
    A read got 404, 405 or a redirect without an envelope. Nothing happened.

    Either this deployment names the path differently (see ``Settings.paths``) or
    the base URL is wrong. Of any other call such a response proves nothing, since a
    front may have put it in the place of a lost one: OutcomeUnknownError.
    """

    happened: ClassVar[Happened] = "no"


@attrs.define
class RefusedError(AgentAPIError):
    """
    The service said no, and surely did nothing.

    Attributes:
        code: The service's number.

        name: The service's name of it, or None for a number without one.

        fields: Which members were wrong, as pairs of name and reason, where told.
    """

    happened: ClassVar[Happened] = "no"

    code: int = 0
    name: str | None = None
    fields: tuple[tuple[str, str], ...] = ()


class BusyError(RefusedError):
    """All permits of the token were in use until the caller's time was over."""


class CredentialError(RefusedError):
    """The service does not accept the token."""


@attrs.define
class IpNotAllowedError(CredentialError):
    """
    This machine's address is not in the account's list of allowed ones.

    Add it in the back office: addresses separated by spaces or new lines.

    Attributes:
        client_ip: The address that the service saw, None where it did not say.
    """

    client_ip: str | None = None


class ForbiddenError(RefusedError):
    """The account is not yours to use, suspended, or may not do this."""


class InvalidError(RefusedError):
    """A member of the request is wrong; ``fields`` says which, where known."""


class NotFoundError(RefusedError):
    """The service knows no such agent, user, game, provider or round."""


class FundsError(RefusedError):
    """The points of the agent, or the balance of the user, are too low."""


class ConflictError(RefusedError):
    """What was asked for exists already, or has ended."""


@attrs.define
class OutcomeUnknownError(AgentAPIError):
    """
    It may have happened: the answer was lost, or does not say.

    Attributes:
        code: The service's number, None where there was no readable answer.

        name: The service's name of it, None for a number without one.

        status: The HTTP status, None where no answer arrived.
    """

    code: int | None = None
    name: str | None = None
    status: int | None = None


class MaintenanceError(OutcomeUnknownError):
    """The service is under maintenance. It may have happened all the same."""


@attrs.define
class DecodeError(AgentAPIError):
    """
    It may have happened: the answer has another shape, or is too large.

    Attributes:
        paths: What was wrong and where in the answer, without its values.
    """

    paths: tuple[str, ...] = ()
