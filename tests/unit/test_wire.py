"""Text to values and back."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, TypeVar

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aio_agentapi import AgentInfo, NewAgent, Role, Secret, Transaction, TransType
from aio_agentapi._types import Effect, Operation, exact
from aio_agentapi._wire import CODES, wire
from aio_agentapi.errors import (
    AgentAPIError,
    CredentialError,
    DecodeError,
    FundsError,
    InvalidError,
    IpNotAllowedError,
    MaintenanceError,
    OutcomeUnknownError,
    RefusedError,
    UnsupportedError,
    UsageError,
)

T = TypeVar("T")

INFO = Operation(name="agents.info", effect="read", returns=AgentInfo)
WIRE = wire("UTC")


def answer(data: object, code: int = 0, message: object = None) -> bytes:
    """Write an envelope."""
    return json.dumps({"code": code, "message": message, "data": data}).encode()


def info(**members: object) -> dict[str, object]:
    """Make what agent/info answers with."""
    return {"name": "x", "currency": 978, "balance": 1, **members}


def plain(text: str) -> str:
    """Blot out nothing."""
    return text


def read(operation: Operation[T], text: bytes, status: int = 200) -> T:
    """Return the record in an answer."""
    found = WIRE.decode(operation, status, text, plain)
    assert not isinstance(found, AgentAPIError), found
    return found


def raises(operation: Operation[Any], text: bytes, status: int = 200) -> AgentAPIError:
    """Return the error that an answer becomes."""
    found = WIRE.decode(operation, status, text, plain)
    assert isinstance(found, AgentAPIError)
    assert found.__context__ is None
    return found


def test_members_that_are_none_are_left_out() -> None:
    """What the caller did not say is not sent, and amounts are plain numbers."""
    body = {"amount": exact("250.00"), "reference": None, "agent_code": 2**62}
    assert WIRE.encode(body) == b'{"amount":250.00,"agent_code":4611686018427387904}'


def test_what_has_no_json_form_is_the_callers_mistake() -> None:
    """It is found before anything is sent."""
    with pytest.raises(UsageError, match="cannot be written as JSON"):
        WIRE.encode({"name": object()})


@given(st.integers(1, 10**19))
def test_money_is_exact_in_every_form(units: int) -> None:
    """With a dot, quoted, with four decimals or none, an amount is what it was."""
    amount = Decimal(units).scaleb(-4)
    forms = [f"{amount:f}", f'"{amount:f}"', f"{amount:f}".rstrip("0").rstrip(".")]
    for form in forms:
        text = b'{"code":0,"data":{"name":"x","currency":1,"balance":%s}}'
        found = read(INFO, text % form.encode()).balance
        assert amount == found
        assert isinstance(found, Decimal)


def test_whole_amounts_are_decimals_too() -> None:
    """A number without a dot arrives as an int, and is a Decimal in the record."""
    found = read(INFO, answer(info(balance=7))).balance
    assert (Decimal, Decimal(7)) == (type(found), found)


def test_codes_beyond_53_bits_survive() -> None:
    """Codes are 64-bit integers, and stay exact."""
    code = 2**63 - 1
    assert code == read(INFO, answer(info(agent_code=code))).agent_code


@pytest.mark.parametrize("sign", ["", "-"])
@pytest.mark.parametrize("whole", [2**62, 2**62 + 1, 2**63 - 1])
def test_whole_numbers_of_64_bits_survive_every_form(whole: int, sign: str) -> None:
    """Also with a dot, which makes a decimal of them; beyond that they are refused."""
    for form in (f"{sign}{whole}", f"{sign}{whole}.0", f'"{sign}{whole}"'):
        text = (
            b'{"code":0,"data":{"name":"x","currency":1,"balance":1,"agent_code":%s}}'
        )
        assert read(INFO, text % form.encode()).agent_code == int(f"{sign}{whole}")


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 2**64])
def test_whole_numbers_beyond_64_bits_are_no_codes(number: int) -> None:
    """In the form that would take long to work out, where it is short to write."""
    text = b'{"code":0,"data":{"name":"x","currency":1,"balance":1,"agent_code":%d.0}}'
    assert isinstance(raises(INFO, text % number), DecodeError)


def test_both_generations_give_equal_records() -> None:
    """Message, ratio, quotes, missing and extra members make no difference."""
    newer = answer(info(rtp=95.5, whitelist=None, client_ip=None, extra={"a": [1]}))
    older = answer(
        info(win_ratio=95.50, currency="978", balance="1.0000"), message="OK"
    )
    assert read(INFO, newer) == read(INFO, older, 429)


def test_a_null_does_not_hide_the_other_generations_member() -> None:
    """Either name of the ratio is found when the other is null."""
    text = answer(info(win_ratio=None, rtp=95))
    assert Decimal(95) == read(INFO, text).win_ratio


def test_unknown_words_are_kept_in_records() -> None:
    """A new role does not break a client that has not heard of it."""
    assert read(INFO, answer(info(role="auditor"))).role == Role("auditor")


def test_a_new_agents_token_is_a_secret() -> None:
    """It stands among the agent's members, and does not show itself."""
    create = Operation(name="agents.create", effect="create", returns=NewAgent)
    members = info(
        agent_code=5,
        role="agent",
        parent_code=1,
        depth=1,
        state="active",
        whitelist=["1.1.1.1"],
        created_at="2024-05-31T12:00:00.000Z",
        token="canary",
    )
    new = read(create, answer(members))
    assert (new.agent.agent_code, new.agent.whitelist) == (5, ("1.1.1.1",))
    assert new.token.reveal() == "canary"
    assert "canary" not in repr(new)


@pytest.mark.parametrize(
    ("zone", "written"),
    [
        ("UTC", "2024-05-31 12:00:00"),
        ("UTC", "2024.05.31 12:00:00"),
        ("UTC", "2024-05-31T12:00:00.000Z"),
        ("Asia/Seoul", "2024-05-31 21:00:00"),
        ("Asia/Seoul", "2024-05-31T12:00:00Z"),
    ],
)
def test_every_form_of_a_time_is_the_same_moment(zone: str, written: str) -> None:
    """A time without a zone is in the one that is set."""
    row = {
        "trans_id": 1,
        "user_code": 2,
        "round_id": "9" * 30,
        "trans_type": 4,
        "provider_id": 0,
        "provider_name": "",
        "game_code": "",
        "game_name": "",
        "category": "",
        "prebalance": 0,
        "trans_amount": "5.0000",
        "balance": 5.0,
        "regdate": written,
    }
    feed = Operation(
        name="transactions.since", effect="read", returns=list[Transaction]
    )
    rows = wire(zone).decode(feed, 200, answer([row]), plain)
    assert not isinstance(rows, AgentAPIError)
    (found,) = rows
    assert datetime(2024, 5, 31, 12, tzinfo=UTC) == found.regdate
    assert found.regdate.utcoffset() in {
        timedelta(0),
        timezone(timedelta(hours=9)).utcoffset(None),
    }
    assert (found.trans_type, found.round_id) == (TransType.DEPOSIT, "9" * 30)


@pytest.mark.parametrize("code", sorted(CODES))
@pytest.mark.parametrize("status", [200, 401, 403, 429, 500, 503])
def test_a_code_decides_whatever_the_status(code: int, status: int) -> None:
    """Each code is its error, with number and name, under every status."""
    name, kind = CODES[code]
    error = raises(INFO, answer(None, code, name), status)
    assert kind is type(error)
    assert isinstance(error, RefusedError | OutcomeUnknownError)
    assert (code, name) == (error.code, error.name)


@pytest.mark.parametrize(
    ("effect", "kind"),
    [
        ("read", RefusedError),
        ("idempotent", OutcomeUnknownError),
        ("create", OutcomeUnknownError),
        ("money", OutcomeUnknownError),
    ],
)
def test_an_unknown_code_proves_nothing(
    effect: Effect, kind: type[AgentAPIError]
) -> None:
    """Only a call that changes nothing may take it for a refusal; it is kept."""
    operation = Operation(name="x", effect=effect, returns=AgentInfo)
    error = raises(operation, answer(None, 4711, "NEW_ONE"))
    assert kind is type(error)
    assert isinstance(error, RefusedError | OutcomeUnknownError)
    assert (error.code, error.name) == (4711, None)
    assert "NEW_ONE" in str(error)


def test_wrong_members_are_named() -> None:
    """A 1002 says which members are wrong, in the error and in its text."""
    rows = [{"field": "amount", "message": "is too large"}, "noise", {"x": 1}]
    error = raises(INFO, answer(rows, 1002))
    assert isinstance(error, InvalidError)
    assert error.fields == (("amount", "is too large"), ("", ""))
    assert "amount: is too large" in str(error)


def test_a_forbidden_address_is_told_what_to_do() -> None:
    """With the address that the service saw, where it says."""
    error = raises(INFO, answer({"client_ip": "9.9.9.9"}, 1020))
    assert isinstance(error, IpNotAllowedError)
    assert error.client_ip == "9.9.9.9"
    assert "back office" in str(error)
    again = raises(INFO, answer(None, 1020))
    assert isinstance(again, CredentialError)
    assert isinstance(again, IpNotAllowedError)
    assert again.client_ip is None


def test_a_long_message_is_cut() -> None:
    """A service's text does not fill the log."""
    error = raises(INFO, answer(None, 2005, "x" * 10_000))
    assert isinstance(error, FundsError)
    assert len(str(error)) < 300


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"<html>502 Bad Gateway</html>",
        b'{"code": 0, "data": {"na',
        b"[]",
        b"null",
        b"{}",
        b'{"code": "0"}',
        b'{"code": true}',
        b'{"code": 0.0}',
        b'{"code": null}',
        b'\xff\xfe{"code": 0}',
        b'{"code": 0, "data": NaN}',
        b'{"code": 0, "data": 1e99999999999999999999}',
        b'{"code": 0, "data": ' + b"[" * 100_000,
        b'{"code": 0} trailing',
    ],
)
def test_what_is_no_envelope_may_have_happened(text: bytes) -> None:
    """Whatever the status, but for those that speak of the path."""
    for status in (200, 400, 500, 502, 503):
        error = raises(INFO, text, status)
        assert type(error) is OutcomeUnknownError
        assert (None, status) == (error.code, error.status)
        assert len(str(error)) < 1000


@pytest.mark.parametrize("status", [301, 302, 307, 308, 404, 405])
def test_no_envelope_and_no_such_path(status: int) -> None:
    """Of a read it says that the path is missing; of any other call nothing."""
    assert isinstance(raises(INFO, b"404: Not Found", status), UnsupportedError)
    effects: tuple[Effect, ...] = ("idempotent", "create", "money")
    for effect in effects:
        error = raises(attrs.evolve(INFO, effect=effect), b"404: Not Found", status)
        assert (type(error), error.happened) == (OutcomeUnknownError, "maybe")
        assert "may lack the path" in str(error)
    # An envelope decides, also here.
    assert isinstance(raises(INFO, answer(None, 1), status), MaintenanceError)


@pytest.mark.parametrize(
    ("members", "path"),
    [
        ({"balance": "much"}, "$.balance"),
        ({"balance": None}, "$.balance"),
        ({"balance": True}, "$.balance"),
        ({"balance": "NaN"}, "$.balance"),
        ({"currency": 1.5}, "$.currency"),
        ({"currency": True}, "$.currency"),
        ({"currency": "x"}, "$.currency"),
        ({"name": None}, "$.name"),
        ({"name": 5}, "$.name"),
        ({"role": 5}, "$.role"),
        ({"whitelist": "1.1.1.1"}, "$.whitelist"),
        ({"whitelist": [1]}, "$.whitelist"),
    ],
)
def test_another_shape_is_named_by_its_path(
    members: dict[str, object], path: str
) -> None:
    """Without the values: one of them could be a token."""
    error = raises(INFO, answer(info(**members)))
    assert isinstance(error, DecodeError)
    assert any(path in found for found in error.paths), error.paths
    assert "much" not in str(error)


@pytest.mark.parametrize("data", [None, 5, "x", [], {}, [1]])
def test_success_without_its_record_is_no_success(data: object) -> None:
    """The call was executed, perhaps; what came back cannot be used."""
    assert isinstance(raises(INFO, answer(data)), DecodeError)


def test_what_a_service_echoes_is_blotted_out_before_it_is_cut() -> None:
    """Half a token at the end of an excerpt is too much, and so is the other case."""
    secret = Secret("11111111-2222-3333-4444-abcdefabcdef")
    for length in range(150, 215):
        echo = "x" * length + secret.reveal().upper()
        for text in (
            echo.encode(),
            answer(None, 2005, echo),
            answer([{"field": echo, "message": echo}], 1002),
            answer({"client_ip": echo}, 1020),
            answer(None, 1, echo),
        ):
            error = WIRE.decode(INFO, 502, text, secret.scrub)
            assert isinstance(error, AgentAPIError)
            told = f"{error} {error!r} {error.args}".lower()
            assert "1111" not in told
            assert "abcd" not in told


def test_a_number_that_is_long_to_work_out() -> None:
    """It is another shape, and does not stop the program."""
    text = b'{"code":0,"data":{"name":"x","currency":1e999999,"balance":1}}'
    assert isinstance(raises(INFO, text), DecodeError)
