"""
Bytes to records, beside msgspec's own structs with the same members.

``python -m benchmarks.wire`` prints the table that benchmarks/README.md shows. Both
keep amounts exact; ours checks every member as well, takes the forms in which other
generations of the service write them, and says of bad data all that is wrong.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec

from aio_agentapi import AgentInfo, Secret
from aio_agentapi._feed import Transaction
from aio_agentapi._types import Operation
from aio_agentapi._wire import wire
from benchmarks.server import BODY

BLOCKS = 15


class Info(msgspec.Struct):
    """An account."""

    name: str
    currency: int
    balance: Decimal
    rtp: Decimal
    whitelist: list[str]
    client_ip: str
    agent_code: int
    role: str
    parent_code: int
    state: str


class InfoAnswer(msgspec.Struct):
    """Its envelope."""

    code: int
    message: str | None
    data: Info


class Row(msgspec.Struct):
    """A transaction."""

    trans_id: int
    user_code: int
    round_id: str
    trans_type: int
    provider_id: int
    provider_name: str
    game_code: str
    game_name: str
    category: str
    prebalance: Decimal
    trans_amount: Decimal
    balance: Decimal
    regdate: datetime
    time_stamp: int


class RowsAnswer(msgspec.Struct):
    """Their envelope."""

    code: int
    message: str | None
    data: list[Row]


def rows(count: int) -> bytes:
    """Write an answer of the feed."""
    each = (
        b'{"trans_id":%d,"user_code":7001,"round_id":"r-%d","trans_type":1,'
        b'"provider_id":3,"provider_name":"Acme","game_code":"acme_dice",'
        b'"game_name":"Dice","category":"table","prebalance":1250.2500,'
        b'"trans_amount":-1.2500,"balance":1249.0000,'
        b'"regdate":"2024-05-31T12:00:00.000Z","time_stamp":1717156800000}'
    )
    listed = b",".join(each % (number, number) for number in range(count))
    return b'{"code":0,"message":null,"data":[' + listed + b"]}"


def took(work: Callable[[], object], times: int) -> float:
    """Return the microseconds of a call."""
    began = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - began) / times * 1e6


def compare(
    name: str, text: bytes, returns: Any, plain: type[msgspec.Struct], times: int
) -> None:
    """Print a line of the table."""
    reader = wire("UTC")
    operation: Operation[Any] = Operation(name=name, effect="read", returns=returns)
    scrub = Secret("token").scrub
    decoder = msgspec.json.Decoder(plain)
    if isinstance(found := reader.decode(operation, 200, text, scrub), Exception):
        raise found
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(BLOCKS):
        ours.append(took(lambda: reader.decode(operation, 200, text, scrub), times))
        theirs.append(took(lambda: decoder.decode(text), times))
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    mine, structs = statistics.median(ours), statistics.median(theirs)
    over = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    print(f"| {name} | {mine:,.1f} us | {structs:,.1f} us | {over} |")


def main() -> None:
    """Print the table."""
    print("| answer | this library | msgspec | ratio |\n| --- | --- | --- | --- |")
    compare("an account", BODY, AgentInfo, InfoAnswer, 2_000)
    compare("2,000 transactions", rows(2_000), list[Transaction], RowsAnswer, 3)


if __name__ == "__main__":
    main()
