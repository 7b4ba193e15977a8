"""What a web server answers when a call of the library has failed: one table."""

from __future__ import annotations

from aio_agentapi.errors import (
    AgentAPIError,
    AmountError,
    BusyError,
    ClosedError,
    CredentialError,
    ForbiddenError,
    GateError,
    InvalidError,
    NotFoundError,
    NotSentError,
    RefusedError,
    UnsupportedError,
    UsageError,
)

# The first that fits. What is left may have happened.
STATUSES: tuple[tuple[type[AgentAPIError], int], ...] = (
    (AmountError, 422),
    (ClosedError, 503),
    (UsageError, 500),
    # No permit in time: more work than the service admits. Try again later.
    (GateError, 503),
    (BusyError, 503),
    (NotSentError, 502),
    (UnsupportedError, 502),
    # Our own token, not the visitor's.
    (CredentialError, 502),
    (ForbiddenError, 403),
    (NotFoundError, 404),
    (InvalidError, 422),
    (RefusedError, 409),
)
MAYBE = 504


def answer(error: AgentAPIError) -> tuple[int, dict[str, str | None]]:
    """Return the HTTP status and the body that tell a visitor of an error."""
    status = next((n for kind, n in STATUSES if isinstance(error, kind)), MAYBE)
    body = {
        "error": type(error).__name__,
        "happened": error.happened,
        "message": error.message,
        # Whoever sends the same reference again moves the points once.
        "reference": error.reference,
    }
    return status, body
