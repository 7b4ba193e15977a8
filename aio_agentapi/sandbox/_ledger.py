"""
The books of the stand-in: accounts, points, users and what moved them, in SQLite.

Money is counted in whole ten-thousandths, as Python ints and as text in the
tables: the largest amount, 10^15, does not fit the 64 bits of SQLite's integers.

Points come into being only by :meth:`Ledger.mint`. Whatever else happens, the sum
of all points and balances is what was minted.
"""

from __future__ import annotations

import ipaddress
import json
import re
import secrets
import sqlite3
import uuid
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import attrs

from aio_agentapi.sandbox._clock import Clock

# Contract 4.
VALIDATION: Final = 1002
FORBIDDEN: Final = 1010
INVALID: Final = 1012
NO_AGENT: Final = 2001
NO_USER: Final = 2002
NO_POINTS: Final = 2005
NO_BALANCE: Final = 2006

DEPOSIT: Final = 4
WITHDRAW: Final = 8

# The feed forgets after two days.
_KEPT: Final = timedelta(days=2)

_NAME: Final = re.compile(r"[A-Za-z0-9_]{2,50}")

_SCHEMA: Final = """
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
    visible TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS feed_of ON feed (agent, id);
"""


class RefusedCall(Exception):  # noqa: N818 - not a fault: the answer is a code
    """The service says no: a code, and for 1002 which members are wrong."""

    def __init__(self, code: int, **fields: str) -> None:
        super().__init__(code)
        self.code = code
        self.fields = fields


@attrs.frozen(kw_only=True)
class Account:
    """One row of the hierarchy; points in ten-thousandths."""

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
    """One move of points; amounts in ten-thousandths."""

    id: int
    source: int | None
    target: int
    amount: int
    source_after: int | None
    target_after: int
    reference: str | None
    created: datetime


@attrs.frozen(kw_only=True)
class User:
    """One player; its balance in ten-thousandths."""

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


@attrs.define(eq=False)
class Ledger:
    """
    All state of the service.

    Args:
        clock: Tells when something happens.

        db: A file. None: memory.
    """

    _clock: Clock = attrs.field(alias="clock")
    _db: Path | None = attrs.field(alias="db", default=None)
    # Seconds after which a new row of the feed can be seen.
    row_delay: float = 0.0
    _sql: sqlite3.Connection = attrs.field(init=False)
    _suspended: frozenset[int] = attrs.field(init=False, default=frozenset())

    def __attrs_post_init__(self) -> None:
        if self._db is not None:
            # The tokens are in it.
            self._db.touch()
            self._db.chmod(0o600)
        # One connection, used by one event loop; statements are explicit.
        self._sql = sqlite3.connect(
            self._db or ":memory:", isolation_level=None, check_same_thread=False
        )
        self._sql.execute("PRAGMA journal_mode = WAL")
        self._sql.execute("PRAGMA synchronous = NORMAL")
        self._sql.executescript(_SCHEMA)
        self._note_suspended()

    def close(self) -> None:
        """Close the file."""
        self._sql.close()

    # Accounts

    def accounts(self) -> list[Account]:
        """Return every account, parents before their children."""
        return [_account(r) for r in self._sql.execute(_ACCOUNTS + "ORDER BY path")]

    def account(self, code: int) -> Account:
        """Return an account; 2001 if there is none."""
        row = self._sql.execute(_ACCOUNTS + "WHERE code = ?", (code,)).fetchone()
        if row is None:
            raise RefusedCall(NO_AGENT)
        return _account(row)

    def account_of(self, token: str) -> Account | None:
        """Return the account with a token."""
        row = self._sql.execute(_ACCOUNTS + "WHERE token = ?", (token,)).fetchone()
        return None if row is None else _account(row)

    def account_named(self, name: str) -> Account | None:
        """Return the first account of that name, from the root downwards."""
        row = self._sql.execute(
            f"{_ACCOUNTS} WHERE name = ? ORDER BY depth, path LIMIT 1", (name,)
        ).fetchone()
        return None if row is None else _account(row)

    def is_suspended(self, account: Account) -> bool:
        """Tell whether the account or one above it is suspended."""
        return not self._suspended.isdisjoint(account.lineage)

    def below(self, caller: Account, code: int) -> Account:
        """Return the caller or an account below it; 2001 and 1010 otherwise."""
        account = self.account(code)
        if caller.code not in account.lineage:
            raise RefusedCall(FORBIDDEN)
        return account

    def create_root(self, name: str, role: str, currency: int) -> Account:
        """Create an account with nobody above it, as the back office does."""
        return self._insert(name, role, None, currency, ())

    def create(
        self,
        caller: Account,
        name: str,
        role: str,
        parent_code: int | None,
        whitelist: Sequence[str],
    ) -> Account:
        """Create an account below the caller."""
        if caller.role == "agent":
            raise RefusedCall(FORBIDDEN)
        parent = self.below(caller, caller.code if parent_code is None else parent_code)
        if parent.role == "agent":
            raise RefusedCall(FORBIDDEN)
        if role not in {"operator", "agent"}:
            raise RefusedCall(VALIDATION, role="is operator or agent")
        return self._insert(name, role, parent, parent.currency, whitelist)

    def children(
        self, parent: Account, *, subtree: bool, offset: int, limit: int
    ) -> tuple[int, list[Account]]:
        """Return how many are below an account, and one page of them."""
        where, values = "parent = ?", [str(parent.code)]
        if subtree:
            # Everything whose path goes on behind the parent's; '0' follows '/'.
            where = "path > ? AND path < ?"
            values = [f"{parent.path}/", f"{parent.path}0"]
        (total,) = self._sql.execute(
            f"SELECT count(*) FROM accounts WHERE {where}",  # noqa: S608 - one of two literals
            values,
        ).fetchone()
        rows = self._sql.execute(
            f"{_ACCOUNTS} WHERE {where} ORDER BY path LIMIT ? OFFSET ?",
            (*values, limit, offset),
        )
        return total, [_account(row) for row in rows]

    def update(
        self, account: Account, state: str | None, whitelist: Sequence[str] | None
    ) -> Account:
        """Change what is not None."""
        if state not in {None, "active", "suspended"}:
            raise RefusedCall(VALIDATION, state="is active or suspended")
        if whitelist is not None:
            _check_addresses(whitelist)
        self._sql.execute(
            "UPDATE accounts SET state = ifnull(?, state),"
            " whitelist = ifnull(?, whitelist) WHERE code = ?",
            (
                state,
                None if whitelist is None else json.dumps([*whitelist]),
                account.code,
            ),
        )
        self._note_suspended()
        return self.account(account.code)

    def reissue_token(self, account: Account) -> str:
        """Give an account another token."""
        token = str(uuid.UUID(bytes=secrets.token_bytes(16), version=4))
        self._sql.execute(
            "UPDATE accounts SET token = ? WHERE code = ?", (token, account.code)
        )
        return token

    def _insert(
        self,
        name: str,
        role: str,
        parent: Account | None,
        currency: int,
        whitelist: Sequence[str],
    ) -> Account:
        if not _NAME.fullmatch(name):
            raise RefusedCall(
                VALIDATION, name="is 2 to 50 letters, digits and underscores"
            )
        _check_addresses(whitelist)
        with self._all_or_nothing():
            (last,) = self._sql.execute(
                "SELECT ifnull(max(code), 1000) FROM accounts"
            ).fetchone()
            code = last + 1
            # Of one width, so that paths sort as codes do.
            step = f"{code:012}"
            try:
                self._sql.execute(
                    "INSERT INTO accounts VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
                    (
                        code,
                        name,
                        role,
                        parent.code if parent else None,
                        f"{parent.path}/{step}" if parent else step,
                        parent.depth + 1 if parent else 0,
                        currency,
                        "0",
                        "active",
                        json.dumps([*whitelist]),
                        str(uuid.UUID(bytes=secrets.token_bytes(16), version=4)),
                        _stamp(self._clock.now()),
                    ),
                )
            except sqlite3.IntegrityError:
                raise RefusedCall(
                    VALIDATION, name="is taken by another account there"
                ) from None
        return self.account(code)

    def _note_suspended(self) -> None:
        rows = self._sql.execute("SELECT code FROM accounts WHERE state = 'suspended'")
        self._suspended = frozenset(code for (code,) in rows)

    # Points

    def mint(self, code: int, amount: int) -> Move:
        """Bring points into being, as the back office does."""
        with self._all_or_nothing():
            return self._move(None, self.account(code), amount, None, None)

    def transfer(
        self, caller: Account, code: int, amount: int, reference: str | None
    ) -> Move:
        """Move points from the caller to a direct child."""
        with self._all_or_nothing():
            child = self._child(caller, code)
            return self._move(
                self.account(caller.code), child, amount, caller.code, reference
            )

    def reclaim(
        self, caller: Account, code: int, amount: int, reference: str | None
    ) -> Move:
        """Move points from a direct child to the caller."""
        with self._all_or_nothing():
            child = self._child(caller, code)
            return self._move(
                child, self.account(caller.code), amount, caller.code, reference
            )

    def history(self, caller: Account, last_id: int, limit: int) -> list[Move]:
        """Return the moves in which an account is either side, oldest first."""
        rows = self._sql.execute(
            f"{_MOVES} WHERE source = :c AND id > :i UNION"
            f" {_MOVES} WHERE target = :c AND id > :i ORDER BY id LIMIT :n",
            {"c": caller.code, "i": last_id, "n": limit},
        )
        return [_move(row) for row in rows]

    def _child(self, caller: Account, code: int) -> Account:
        child = self.account(code)
        if child.parent != caller.code:
            raise RefusedCall(FORBIDDEN)
        return child

    def _move(
        self,
        source: Account | None,
        target: Account,
        amount: int,
        caller: int | None,
        reference: str | None,
    ) -> Move:
        if reference is not None:
            row = self._sql.execute(
                f"{_MOVES} WHERE caller = ? AND reference = ?", (caller, reference)
            ).fetchone()
            if row is not None:
                return _same(_move(row), source, target, amount)
        left = None
        if source is not None:
            left = source.points - amount
            if left < 0:
                raise RefusedCall(NO_POINTS)
            self._set_points(source.code, left)
        self._set_points(target.code, target.points + amount)
        cursor = self._sql.execute(
            "INSERT INTO moves (source, target, amount, source_after, target_after,"
            " caller, reference, created) VALUES (?,?,?,?,?,?,?,?)",
            (
                source.code if source else None,
                target.code,
                str(amount),
                None if left is None else str(left),
                str(target.points + amount),
                caller,
                reference,
                _stamp(self._clock.now()),
            ),
        )
        row = self._sql.execute(f"{_MOVES} WHERE id = ?", (cursor.lastrowid,))
        return _move(row.fetchone())

    def _set_points(self, code: int, points: int) -> None:
        self._sql.execute(
            "UPDATE accounts SET points = ? WHERE code = ?", (str(points), code)
        )

    # Users

    def create_user(self, caller: Account, name: str) -> tuple[User, bool]:
        """Return the user of that name, and whether it is new."""
        if not _NAME.fullmatch(name):
            raise RefusedCall(
                VALIDATION, name="is 2 to 50 letters, digits and underscores"
            )
        cursor = self._sql.execute(
            "INSERT INTO users (agent, name, balance) VALUES (?, ?, '0')"
            " ON CONFLICT DO NOTHING",
            (caller.code, name),
        )
        row = self._sql.execute(
            f"{_USERS} WHERE agent = ? AND name = ?", (caller.code, name)
        ).fetchone()
        return _user(row), cursor.rowcount == 1

    def user(self, caller: Account, code: int) -> User:
        """Return a user of the caller; 2002 and 1010 otherwise."""
        row = self._sql.execute(f"{_USERS} WHERE code = ?", (code,)).fetchone()
        if row is None:
            raise RefusedCall(NO_USER)
        user = _user(row)
        if user.agent != caller.code:
            raise RefusedCall(FORBIDDEN)
        return user

    def deposit(self, caller: Account, code: int, amount: int) -> User:
        """Move points of the caller to a user's balance."""
        with self._all_or_nothing():
            user = self.user(caller, code)
            left = self.account(caller.code).points - amount
            if left < 0:
                raise RefusedCall(NO_POINTS)
            return self._pay(user, DEPOSIT, amount, user.balance + amount, left)

    def withdraw(self, caller: Account, code: int, amount: int) -> User:
        """Move a user's balance to the caller's points."""
        with self._all_or_nothing():
            user = self.user(caller, code)
            if user.balance < amount:
                raise RefusedCall(NO_BALANCE)
            points = self.account(caller.code).points + amount
            return self._pay(user, WITHDRAW, amount, user.balance - amount, points)

    def _pay(
        self, user: User, kind: int, amount: int, balance: int, points: int
    ) -> User:
        self._set_points(user.agent, points)
        self._sql.execute(
            "UPDATE users SET balance = ? WHERE code = ?", (str(balance), user.code)
        )
        now = self._clock.now()
        self._sql.execute(
            "INSERT INTO feed (agent, user, kind, before, amount, after, at, visible)"
            " VALUES (?,?,?,?,?,?,?,?)",
            (
                user.agent,
                user.code,
                kind,
                str(user.balance),
                str(amount),
                str(balance),
                _stamp(now),
                _stamp(now + timedelta(seconds=self.row_delay)),
            ),
        )
        return attrs.evolve(user, balance=balance)

    # The feed

    def feed(self, caller: Account, last_id: int, limit: int) -> list[Row]:
        """Return what moved balances, oldest first: two days of it, once visible."""
        now = self._clock.now()
        rows = self._sql.execute(
            "SELECT id, user, kind, before, amount, after, at FROM feed"
            " WHERE agent = ? AND id > ? AND visible <= ? AND at >= ?"
            " ORDER BY id LIMIT ?",
            (
                caller.code,
                last_id,
                _stamp(now),
                _stamp(now - _KEPT),
                limit,
            ),
        )
        return [_row(row) for row in rows]

    def audit(self) -> tuple[int, int]:
        """Return what was minted, and the sum of all points and balances."""
        minted = sum(
            int(amount)
            for (amount,) in self._sql.execute(
                "SELECT amount FROM moves WHERE source IS NULL"
            )
        )
        held = sum(
            int(amount)
            for (amount,) in self._sql.execute(
                "SELECT points FROM accounts UNION ALL SELECT balance FROM users"
            )
        )
        return minted, held

    @contextmanager
    def _all_or_nothing(self) -> Generator[None]:
        self._sql.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._sql.execute("ROLLBACK")
            raise
        self._sql.execute("COMMIT")


_ACCOUNTS: Final = (
    "SELECT code, name, role, parent, path, depth, currency, points, state,"
    " whitelist, token, created FROM accounts "
)
_MOVES: Final = (
    "SELECT id, source, target, amount, source_after, target_after, reference,"
    " created FROM moves "
)
_USERS: Final = "SELECT code, agent, name, balance FROM users "


def _stamp(moment: datetime) -> str:
    """Write a time so that texts sort as times do."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def _account(row: Sequence[Any]) -> Account:
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


def _move(row: Sequence[Any]) -> Move:
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


def _user(row: Sequence[str]) -> User:
    code, agent, name, balance = row
    return User(code=int(code), agent=int(agent), name=name, balance=int(balance))


def _row(row: Sequence[str]) -> Row:
    number, user, kind, before, amount, after, at = row
    return Row(
        id=int(number),
        user=int(user),
        kind=int(kind),
        before=int(before),
        amount=int(amount),
        after=int(after),
        at=datetime.fromisoformat(at),
    )


def _same(first: Move, source: Account | None, target: Account, amount: int) -> Move:
    """Return the first move of a reference; 1012 where it was another one."""
    code = source.code if source else None
    if (first.source, first.target, first.amount) != (code, target.code, amount):
        raise RefusedCall(INVALID)
    return first


def _check_addresses(whitelist: Sequence[str]) -> None:
    for address in whitelist:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise RefusedCall(
                VALIDATION, whitelist=f"{address[:40]!r} is no address"
            ) from None
