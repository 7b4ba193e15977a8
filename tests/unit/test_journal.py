"""What is written down, in the words that files have."""

from __future__ import annotations

from aio_agentapi import Phase
from aio_agentapi._journal import PAYMENTS


def test_phases_are_stored_by_words_that_do_not_change() -> None:
    """Files of earlier versions have them, and so do queries of users."""
    assert {phase.name: str(phase) for phase in Phase} == {
        "INTENT": "intent",
        "SENT": "sent",
        "DONE": "done",
        "REFUSED": "refused",
        "NOT_SENT": "not_sent",
        "UNKNOWN": "unknown",
        "NEEDS_PERSON": "needs_person",
        "CONFIRMED": "confirmed",
        "ABSENT": "absent",
    }


def test_operations_are_stored_by_words_that_do_not_change() -> None:
    """A payment of an earlier version is still known as what it was."""
    assert {*PAYMENTS} == {
        "wallets.deposit",
        "wallets.withdraw",
        "wallets.withdraw_all",
    }
