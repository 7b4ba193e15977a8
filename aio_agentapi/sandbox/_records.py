"""
What the books of the stand-in hold: its records, and how each is read from a row.

Money is counted in whole ten-thousandths, as Python ints and as text in the
tables: the largest amount, 10^15, does not fit the 64 bits of SQLite's integers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import attrs

# Of the tables below: a file of another version is not touched.
VERSION: Final = 2
MARK: Final = 0x41504921

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS accounts (
    code INTEGER PRIMARY KEY, name TEXT NOT NULL, role TEXT NOT NULL,
    parent INTEGER REFERENCES accounts, path TEXT NOT NULL UNIQUE,
    depth INTEGER NOT NULL, currency INTEGER NOT NULL, points TEXT NOT NULL,
    state TEXT NOT NULL, whitelist TEXT NOT NULL, token TEXT NOT NULL UNIQUE,
    created TEXT NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS siblings ON accounts (ifnull(parent, 0), name);
CREATE INDEX IF NOT EXISTS names ON accounts (name);
CREATE TABLE IF NOT EXISTS moves (
    id INTEGER PRIMARY KEY AUTOINCREMENT, source INTEGER, target INTEGER NOT NULL,
    amount TEXT NOT NULL, source_after TEXT, target_after TEXT NOT NULL,
    caller INTEGER, reference TEXT, created TEXT NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS move_once ON moves (caller, reference)
    WHERE reference IS NOT NULL;
CREATE INDEX IF NOT EXISTS moves_from ON moves (source, id);
CREATE INDEX IF NOT EXISTS moves_to ON moves (target, id);
CREATE TABLE IF NOT EXISTS users (
    code INTEGER PRIMARY KEY, agent INTEGER NOT NULL REFERENCES accounts,
    name TEXT NOT NULL, balance TEXT NOT NULL, UNIQUE (agent, name));
CREATE TABLE IF NOT EXISTS feed (
    id INTEGER PRIMARY KEY AUTOINCREMENT, agent INTEGER NOT NULL,
    user INTEGER NOT NULL, kind INTEGER NOT NULL, before TEXT NOT NULL,
    amount TEXT NOT NULL, after TEXT NOT NULL, at TEXT NOT NULL,
    visible TEXT NOT NULL, round TEXT NOT NULL, provider INTEGER NOT NULL,
    game TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS feed_of ON feed (agent, id);
CREATE INDEX IF NOT EXISTS feed_at ON feed (agent, at);
CREATE INDEX IF NOT EXISTS rounds ON feed (user, round);
CREATE TABLE IF NOT EXISTS links (
    key TEXT PRIMARY KEY, agent INTEGER NOT NULL, user INTEGER NOT NULL,
    provider INTEGER NOT NULL, game TEXT NOT NULL, at TEXT NOT NULL,
    used INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS plays (
    id INTEGER PRIMARY KEY AUTOINCREMENT, agent INTEGER NOT NULL,
    user INTEGER NOT NULL, provider INTEGER NOT NULL, game TEXT NOT NULL,
    last_bet TEXT NOT NULL, spend TEXT NOT NULL, win TEXT NOT NULL,
    started TEXT NOT NULL, updated TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS plays_of ON plays (agent, updated);
"""

# Contract 4.
UNDER_MAINTENANCE: Final = 1
BROKEN: Final = 1001
VALIDATION: Final = 1002
NO_TOKEN: Final = 1007
BAD_TOKEN: Final = 1009
FORBIDDEN: Final = 1010
INVALID: Final = 1012
BUSY: Final = 1018
BAD_IP: Final = 1020
NO_AGENT: Final = 2001
NO_USER: Final = 2002
NO_GAME: Final = 2003
NO_POINTS: Final = 2005
NO_BALANCE: Final = 2006
NO_PROVIDER: Final = 2007
NO_ROUND: Final = 2013

NAMES: Final[Mapping[int, str]] = {
    UNDER_MAINTENANCE: "UNDER_MAINTENANCE",
    BROKEN: "INTERNAL_SERVER_ERROR",
    VALIDATION: "VALIDATION_ERROR",
    1003: "SERVICE_EXCEPTION",
    1005: "RESOURCE_NOT_FOUND",
    NO_TOKEN: "TOKEN_NOT_FOUND",
    BAD_TOKEN: "TOKEN_INVALID",
    FORBIDDEN: "PERMISSION_ERROR",
    1011: "PROVIDER_ERROR",
    INVALID: "PARAMETERS_INVALID",
    1015: "CALLBACK_ERROR",
    BUSY: "SERVER_IS_BUSY",
    BAD_IP: "IP_NOT_ALLOWED",
    NO_AGENT: "AGENT_NOT_FOUND",
    NO_USER: "USER_NOT_FOUND",
    NO_GAME: "GAME_NOT_FOUND",
    NO_POINTS: "POINT_NOT_ENOUGH",
    NO_BALANCE: "BALANCE_NOT_ENOUGH",
    NO_PROVIDER: "PROVIDER_NOT_FOUND",
    2011: "BONUSCALL_DOUBLE",
    2012: "BONUSCALL_ALEADY_ENDED",
    NO_ROUND: "ROUND_NOT_FOUND",
    2014: "CURRENCY_NOT_SUPPORTED",
    2020: "FREEROUND_NO_EXIST",
}

# What a row of the feed is.
BET: Final = 1
WIN: Final = 2
DEPOSIT: Final = 4
WITHDRAW: Final = 8


class RefusedCall(Exception):  # noqa: N818 - not a fault: the answer is a code
    """The service says no: a code, and for 1002 which members are wrong."""

    def __init__(self, code: int, **fields: str) -> None:
        super().__init__(code)
        self.code = code
        self.fields = fields


@attrs.frozen(kw_only=True)
class Account:
    """
    One row of the hierarchy.

    Attributes:
        code: Its number.

        name: Unique among its siblings.

        role: ``"broker"``, ``"operator"`` or ``"agent"``.

        parent: The code of the account above it, None at a root.

        path: The codes from the root down to it, with slashes between them.

        depth: How many accounts are above it.

        currency: The service's number of it.

        points: In ten-thousandths.

        state: ``"active"`` or ``"suspended"``.

        whitelist: The addresses it may call from; empty: any.

        token: What its calls are signed with.

        created: When, in UTC.
    """

    code: int
    name: str
    role: str
    parent: int | None
    path: str
    depth: int
    currency: int
    points: int
    state: str
    whitelist: tuple[str, ...]
    token: str = attrs.field(repr=False)
    created: datetime

    @property
    def lineage(self) -> tuple[int, ...]:
        """The codes from the root down to this account."""
        return tuple(int(code) for code in self.path.split("/"))


@attrs.frozen(kw_only=True)
class Move:
    """
    One move of points; amounts in ten-thousandths.

    Attributes:
        id: Its number, growing.

        source: The code of the account that had them. None: they were minted.

        target: The code of the account that has them.

        amount: How many.

        source_after: The points of the source after it, None without a source.

        target_after: The points of the target after it.

        reference: What makes it repeatable, None where it had none.

        created: When, in UTC.
    """

    id: int
    source: int | None
    target: int
    amount: int
    source_after: int | None
    target_after: int
    reference: str | None
    created: datetime

    def after(self, code: int) -> int:
        """Return the points that one of the two sides had then."""
        if code == self.source and self.source_after is not None:
            return self.source_after
        return self.target_after


@attrs.frozen(kw_only=True)
class User:
    """
    One player.

    Attributes:
        code: Its number.

        agent: The code of the account that it is a user of.

        name: Unique among the users of its agent.

        balance: In ten-thousandths.
    """

    code: int
    agent: int
    name: str
    balance: int


@attrs.frozen(kw_only=True)
class Row:
    """One row of the feed; amounts in ten-thousandths."""

    id: int
    user: int
    kind: int
    before: int
    amount: int
    after: int
    at: datetime
    round: str
    provider: int
    game: str


@attrs.frozen(kw_only=True)
class Play:
    """Somebody in a game; amounts in ten-thousandths."""

    id: int
    user: int
    name: str
    provider: int
    game: str
    last_bet: int
    spend: int
    win: int
    started: datetime
    updated: datetime


ACCOUNTS: Final = (
    "SELECT code, name, role, parent, path, depth, currency, points, state,"
    " whitelist, token, created FROM accounts "
)
MOVES: Final = (
    "SELECT id, source, target, amount, source_after, target_after, reference,"
    " created FROM moves "
)
USERS: Final = "SELECT code, agent, name, balance FROM users "
ROWS: Final = (
    "SELECT id, user, kind, before, amount, after, at, round, provider, game FROM feed"
)
PLAYS: Final = (
    "SELECT id, user, name, provider, game, last_bet, spend, win, started, updated"
    " FROM plays JOIN users ON users.code = plays.user"
)


def stamp(moment: datetime) -> str:
    """Write a time so that texts sort as times do."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def read_account(row: Sequence[Any]) -> Account:
    code, name, role, parent, path, depth, currency, points, state = row[:9]
    whitelist, token, created = row[9:]
    return Account(
        code=int(code),
        name=name,
        role=role,
        parent=None if parent is None else int(parent),
        path=path,
        depth=int(depth),
        currency=int(currency),
        points=int(points),
        state=state,
        whitelist=tuple(json.loads(whitelist)),
        token=token,
        created=datetime.fromisoformat(created),
    )


def read_move(row: Sequence[Any]) -> Move:
    number, source, target, amount, source_after, target_after = row[:6]
    reference, created = row[6:]
    return Move(
        id=int(number),
        source=None if source is None else int(source),
        target=int(target),
        amount=int(amount),
        source_after=None if source_after is None else int(source_after),
        target_after=int(target_after),
        reference=reference,
        created=datetime.fromisoformat(created),
    )


def read_user(row: Sequence[str]) -> User:
    code, agent, name, balance = row
    return User(code=int(code), agent=int(agent), name=name, balance=int(balance))


def read_row(row: Sequence[Any]) -> Row:
    number, user, kind, before, amount, after, at = row[:7]
    played, provider, game = row[7:]
    return Row(
        id=int(number),
        user=int(user),
        kind=int(kind),
        before=int(before),
        amount=int(amount),
        after=int(after),
        at=datetime.fromisoformat(at),
        round=played,
        provider=int(provider),
        game=game,
    )


def read_play(row: Sequence[Any]) -> Play:
    number, user, name, provider, game, last_bet, spend, win = row[:8]
    started, updated = row[8:]
    return Play(
        id=int(number),
        user=int(user),
        name=name,
        provider=int(provider),
        game=game,
        last_bet=int(last_bet),
        spend=int(spend),
        win=int(win),
        started=datetime.fromisoformat(started),
        updated=datetime.fromisoformat(updated),
    )
