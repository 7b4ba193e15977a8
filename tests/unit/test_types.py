"""Amounts, secrets and the words of the service."""

from __future__ import annotations

import pickle
from decimal import Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aio_agentapi import Role, Secret, TransType
from aio_agentapi._types import Amount, exact
from aio_agentapi.errors import AmountError, UsageError


@pytest.mark.parametrize(
    ("given_amount", "written"),
    [
        ("250.00", "250.00"),
        ("0.0001", "0.0001"),
        (".5", "0.5"),
        ("5.", "5"),
        (7, "7"),
        (10**15, "1000000000000000"),
        ("999999999999999.9999", "999999999999999.9999"),
        (Decimal("1E+3"), "1000.0000"),
        (Decimal("1.50000000"), "1.5000"),
        (Decimal("0.00010"), "0.0001"),
    ],
)
def test_an_amount_is_written_plainly(given_amount: Amount, written: str) -> None:
    """What has a value with four decimals is taken, and written without exponent."""
    assert written == str(exact(given_amount))


@pytest.mark.parametrize(
    "wrong",
    [
        0.1,
        1.0,
        True,
        None,
        0,
        -1,
        "0",
        "-1",
        "+1",
        "1e3",
        "1_000",
        "1,5",
        " 1",
        "1\n",
        "",
        ".",
        "NaN",
        "Infinity",
        "٣",
        "0.00001",
        "1000000000000000.0001",
        10**15 + 1,
        10**5000,
        -(10**5000),
        Decimal("NaN"),
        Decimal("sNaN"),
        Decimal("Infinity"),
        Decimal("1E+999999"),
        Decimal("1E-999999"),
        Decimal("-0"),
        b"1",
    ],
    ids=lambda wrong: type(wrong).__name__,
)
def test_what_is_no_amount_is_refused(wrong: object) -> None:
    """A float, a sign, an exponent, another script: each gets a clear error."""
    with pytest.raises(AmountError) as caught:
        exact(wrong)  # type: ignore[arg-type]  # that is the point
    assert caught.value.happened == "no"
    assert len(str(caught.value)) < 150


def test_a_float_is_told_why() -> None:
    """The message says what is wrong with floats, and what to pass instead."""
    with pytest.raises(
        AmountError, match=r"a float is not exact.*Decimal, an int or a"
    ):
        exact(0.1)  # type: ignore[arg-type]  # that is the point


@given(st.integers(1, 10**19))
def test_the_callers_decimal_context_does_not_matter(units: int) -> None:
    """A context with two digits neither rounds an amount nor refuses it."""
    value = Decimal(units).scaleb(-4)
    with localcontext() as context:
        context.prec = 2
        assert exact(value) == value
        assert exact(Decimal(f"{value}0000")) == value


@pytest.mark.parametrize("wrong", ["", "a b", "abc\n", '"abc"', "'abc'", "ä", None, 5])
def test_a_token_that_no_header_can_carry_is_refused(wrong: object) -> None:
    """The usual slips of copying are found, and the value is not in the message."""
    with pytest.raises(UsageError) as caught:
        Secret(wrong)  # type: ignore[arg-type]  # that is the point
    assert "abc" not in str(caught.value)


def test_a_secret_does_not_show_itself() -> None:
    """Neither repr, str, format nor pickle has the token; reveal does."""
    secret = Secret("canary")
    assert f"{secret!r} {secret}" == "Secret('***') Secret('***')"
    assert secret.reveal() == "canary"
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(secret)


def test_equal_tokens_are_equal_secrets() -> None:
    """Secrets are keys: by value, and not equal to the text."""
    assert {Secret("a"): 1}[Secret("a")] == 1
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"


def test_words_that_we_do_not_know_are_kept() -> None:
    """An unknown role or type is its own value, in its own class, and pickles."""
    assert Role("agent") is Role.AGENT
    assert Role("auditor") == "auditor"
    assert isinstance(Role("auditor"), Role)
    assert TransType(4) is TransType.DEPOSIT
    assert TransType(64) == 64
    assert pickle.loads(pickle.dumps(TransType(64))) == 64  # noqa: S301 - our own
    with pytest.raises(ValueError, match="5"):
        Role(5)  # type: ignore[arg-type]  # that is the point
    with pytest.raises(ValueError, match="x"):
        TransType("x")  # type: ignore[arg-type]  # that is the point
