"""Records that msgspec reads by itself are those that the other passes make."""

from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal
from typing import Any, get_args

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aio_agentapi._feed import SINCE
from aio_agentapi._types import Moved, OpenInt, OpenStr, Operation, Secret
from aio_agentapi._wire import _direct, _is_list, _is_optional, wire
from aio_agentapi.errors import AgentAPIError
from aio_agentapi.resources.agents import Agent
from aio_agentapi.resources.games import Game
from aio_agentapi.resources.points import PointMove
from aio_agentapi.resources.users import User
from tests.conftest import EXAMPLES

SHAPES: list[Any] = [
    SINCE.returns,
    Moved,
    Agent,
    Game,
    PointMove,
    User,
    tuple[PointMove, ...],
]

WHOLE = st.integers(-(10**20), 10**20).map(str)
NUMBERS = st.one_of(
    WHOLE,
    st.decimals(allow_nan=False, allow_infinity=False).map(str),
    st.sampled_from(["1.10", "-0.0", "1e3", "5.0", "9007199254740993.0", "1e999999"]),
)
TIMES = st.one_of(
    st.datetimes().map(lambda t: t.replace(microsecond=0).isoformat() + "Z"),
    st.datetimes().map(lambda t: t.isoformat(" ", "milliseconds")),
    st.sampled_from(
        [
            "2024.05.31 12:00:00",
            "2024-05-31T12:00:00+02:00",
            "2024-05-31",
            "20240531T120000Z",
            "no time",
        ]
    ),
)
QUOTED = st.one_of(
    st.text(max_size=5),
    NUMBERS,
    TIMES,
    st.sampled_from(["NaN", "Infinity", "sNaN", " 1 ", "1_000", "true"]),
).map(json.dumps)
ANYTHING = st.one_of(
    QUOTED, NUMBERS, st.sampled_from(["null", "true", "false", "[]", "{}", '[{"a":1}]'])
)


def text(shape: Any) -> st.SearchStrategy[str]:
    """Write JSON that is nearly, or just, of a shape."""
    if _is_optional(shape):
        (kind,) = (k for k in get_args(shape) if k is not type(None))
        return st.one_of(st.just("null"), text(kind))
    if _is_list(shape):
        rows = st.lists(text(get_args(shape)[0]), max_size=3)
        return rows.map(lambda each: f"[{','.join(each)}]")
    if attrs.has(shape):
        return members(shape)
    if shape is str or issubclass(shape, OpenStr):
        right = QUOTED
    elif shape is int or issubclass(shape, OpenInt):
        right = WHOLE
    elif shape is Decimal:
        quoted = st.sampled_from(["1.50", "NaN", "-Infinity", "sNaN"]).map(json.dumps)
        right = st.one_of(NUMBERS, NUMBERS, quoted)
    elif shape is datetime:
        right = TIMES.map(json.dumps)
    else:
        right = st.sampled_from(["true", "false"])
    # Mostly right: a record has many members, and one that is wrong is enough.
    return st.integers(0, 19).flatmap(lambda n: ANYTHING if n == 7 else right)


def members(record: type[Any]) -> st.SearchStrategy[str]:
    """Write an object with the members of a record, most of them."""
    fields = attrs.fields(attrs.resolve_types(record))

    @st.composite
    def draw(drawn: st.DrawFn) -> str:
        pairs = [
            f'"{field.name}":{drawn(text(field.type))}'
            for field in fields
            if drawn(st.integers(0, 29)) != 7
        ]
        return "{" + ",".join([*pairs, '"unknown":1.5']) + "}"

    return draw()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@given(data=st.data())
@settings(max_examples=80 * EXAMPLES, deadline=None)
def test_one_reader_is_as_the_other(shape: Any, data: st.DataObject) -> None:
    """To the last digit and the zone; or it is left to the other."""
    body = data.draw(text(shape))
    answer = f'{{"code":0,"message":null,"data":{body}}}'.encode()
    direct = _direct(shape)
    assert direct is not None
    record = direct.decode(answer)
    if record is None:
        return
    reader = wire.__wrapped__("Asia/Seoul")
    reader._direct[shape] = None
    operation: Operation[Any] = Operation(name="x", effect="read", returns=shape)
    expected = reader.decode(operation, 200, answer, Secret("token").scrub)
    assert not isinstance(expected, AgentAPIError), expected
    assert repr(record) == repr(expected)
    assert record == expected
