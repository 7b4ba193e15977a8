"""The tree answers whether it happened, and survives a pickle."""

from __future__ import annotations

import pickle

import attrs
import pytest

from aio_agentapi import errors

ALL = [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]
MAYBE = {"OutcomeUnknownError", "MaintenanceError", "DecodeError", "AgentAPIError"}


@pytest.mark.parametrize("kind", ALL)
def test_every_error_says_whether_it_happened(
    kind: type[errors.AgentAPIError],
) -> None:
    """Only those whose answer was lost or unreadable say maybe."""
    assert ("maybe" if kind.__name__ in MAYBE else "no") == kind.happened


@pytest.mark.parametrize("kind", ALL)
def test_every_error_survives_a_pickle(kind: type[errors.AgentAPIError]) -> None:
    """With what was filled in after it was made."""
    error = kind("why")
    error.operation, error.attempts, error.reference = "points.transfer", 3, "r"
    if isinstance(error, errors.RefusedError):
        error.fields = (("amount", "is too large"),)
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert type(error) is type(copy)
    assert attrs.asdict(error) == attrs.asdict(copy)
    assert str(copy) == "points.transfer: why"


def test_errors_are_not_equal_to_others_of_the_same_text() -> None:
    """As of any exception, identity counts."""
    assert errors.UsageError("x") != errors.UsageError("x")
    assert str(errors.UsageError("x")) == "x"
