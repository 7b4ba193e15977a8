"""
The books of the stand-in: accounts, points, users and what moved them, in SQLite.

Points come into being only by :meth:`Ledger.mint`. Whatever else happens, the sum
of all points and balances is what was minted.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import uuid
import weakref
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import attrs

from aio_agentapi.sandbox._clock import Clock
from aio_agentapi.sandbox._records import (
    ACCOUNTS,
    DEPOSIT,
    FORBIDDEN,
    INVALID,
    MARK,
    MOVES,
    NO_AGENT,
    NO_BALANCE,
    NO_POINTS,
    NO_USER,
    ROWS,
    SCHEMA,
    USERS,
    VALIDATION,
    VERSION,
    WITHDRAW,
    Account,
    Move,
    RefusedCall,
    Row,
    User,
    read_account,
    read_move,
    read_row,
    read_user,
    stamp,
)

# The feed forgets after two days.
KEPT: Final = timedelta(days=2)


@attrs.define(eq=False)
class Ledger:
    """
    All state of the service.

    Args:
        clock: Tells when something happens.

        db: A file. None: memory.
    """

    clock: Clock
    _db: Path | None = attrs.field(alias="db", default=None)
    # Seconds after which a new row of the feed can be seen.
    row_delay: float = 0.0
    # The same for the rows of the call that is executed now.
    late: float = 0.0
    sql: sqlite3.Connection = attrs.field(init=False)
    _suspended: frozenset[int] = attrs.field(init=False, default=frozenset())

    def __attrs_post_init__(self) -> None:
        if self._db is not None and not self._db.exists():
            self._db.touch(mode=0o600)
        # One connection, used by one event loop; statements are explicit.
        self.sql = sqlite3.connect(
            self._db or ":memory:", isolation_level=None, check_same_thread=False
        )
        # Nobody closes one that was never started, or cannot be.
        weakref.finalize(self, self.sql.close)
        self._check_version()
        if self._db is not None:
            # The tokens are in it.
            self._db.chmod(0o600)
        self.sql.execute("PRAGMA journal_mode = WAL")
        self.sql.execute("PRAGMA synchronous = NORMAL")
        self.sql.executescript(SCHEMA)
        self._note_suspended()

    def close(self) -> None:
        """Close the file."""
        self.sql.close()

    # Accounts

    def accounts(self) -> list[Account]:
        """Return every account, parents before their children."""
        return [read_account(r) for r in self.sql.execute(ACCOUNTS + "ORDER BY path")]

    def account(self, code: int) -> Account:
        """Return an account; 2001 if there is none."""
        row = self.sql.execute(ACCOUNTS + "WHERE code = ?", (code,)).fetchone()
        if row is None:
            raise RefusedCall(NO_AGENT)
        return read_account(row)

    def account_of(self, token: str) -> Account | None:
        """Return the account with a token."""
        row = self.sql.execute(ACCOUNTS + "WHERE token = ?", (token,)).fetchone()
        return None if row is None else read_account(row)

    def account_named(self, name: str) -> Account | None:
        """Return the first account of that name, from the root downwards."""
        row = self.sql.execute(
            f"{ACCOUNTS} WHERE name = ? ORDER BY depth, path LIMIT 1", (name,)
        ).fetchone()
        return None if row is None else read_account(row)

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
        (total,) = self.sql.execute(
            f"SELECT count(*) FROM accounts WHERE {where}",  # noqa: S608 - one of two literals
            values,
        ).fetchone()
        rows = self.sql.execute(
            f"{ACCOUNTS} WHERE {where} ORDER BY path LIMIT ? OFFSET ?",
            (*values, limit, offset),
        )
        return total, [read_account(row) for row in rows]

    def update(
        self, account: Account, state: str | None, whitelist: Sequence[str] | None
    ) -> Account:
        """Change what is not None."""
        self.sql.execute(
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
        self.sql.execute(
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
        with self.all_or_nothing():
            (last,) = self.sql.execute(
                "SELECT ifnull(max(code), 1000) FROM accounts"
            ).fetchone()
            code = last + 1
            # Of one width, so that paths sort as codes do.
            step = f"{code:012}"
            try:
                self.sql.execute(
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
                        stamp(self.clock.now()),
                    ),
                )
            except sqlite3.IntegrityError:
                raise RefusedCall(
                    VALIDATION, name="is taken by another account there"
                ) from None
        return self.account(code)

    def _note_suspended(self) -> None:
        rows = self.sql.execute("SELECT code FROM accounts WHERE state = 'suspended'")
        self._suspended = frozenset(code for (code,) in rows)

    # Points

    def mint(self, code: int, amount: int) -> Move:
        """Bring points into being, as the back office does."""
        with self.all_or_nothing():
            return self._move(None, self.account(code), amount, None, None)

    def transfer(
        self, caller: Account, code: int, amount: int, reference: str | None
    ) -> Move:
        """Move points from the caller to a direct child."""
        with self.all_or_nothing():
            child = self._child(caller, code)
            return self._move(
                self.account(caller.code), child, amount, caller.code, reference
            )

    def reclaim(
        self, caller: Account, code: int, amount: int, reference: str | None
    ) -> Move:
        """Move points from a direct child to the caller."""
        with self.all_or_nothing():
            child = self._child(caller, code)
            return self._move(
                child, self.account(caller.code), amount, caller.code, reference
            )

    def history(self, caller: Account, last_id: int, limit: int) -> list[Move]:
        """Return the moves in which an account is either side, oldest first."""
        rows = self.sql.execute(
            f"{MOVES} WHERE source = :c AND id > :i UNION"
            f" {MOVES} WHERE target = :c AND id > :i ORDER BY id LIMIT :n",
            {"c": caller.code, "i": last_id, "n": limit},
        )
        return [read_move(row) for row in rows]

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
            row = self.sql.execute(
                f"{MOVES} WHERE caller = ? AND reference = ?", (caller, reference)
            ).fetchone()
            if row is not None:
                return _same(read_move(row), source, target, amount)
        left = None
        if source is not None:
            left = source.points - amount
            if left < 0:
                raise RefusedCall(NO_POINTS)
            self.set_points(source.code, left)
        self.set_points(target.code, target.points + amount)
        cursor = self.sql.execute(
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
                stamp(self.clock.now()),
            ),
        )
        row = self.sql.execute(f"{MOVES} WHERE id = ?", (cursor.lastrowid,))
        return read_move(row.fetchone())

    def set_points(self, code: int, points: int) -> None:
        self.sql.execute(
            "UPDATE accounts SET points = ? WHERE code = ?", (str(points), code)
        )

    # Users

    def create_user(self, caller: Account, name: str) -> tuple[User, bool]:
        """Return the user of that name, and whether it is new."""
        cursor = self.sql.execute(
            "INSERT INTO users (agent, name, balance) VALUES (?, ?, '0')"
            " ON CONFLICT DO NOTHING",
            (caller.code, name),
        )
        row = self.sql.execute(
            f"{USERS} WHERE agent = ? AND name = ?", (caller.code, name)
        ).fetchone()
        return read_user(row), cursor.rowcount == 1

    def user(self, caller: Account, code: int) -> User:
        """Return a user of the caller; 2002 and 1010 otherwise."""
        row = self.sql.execute(f"{USERS} WHERE code = ?", (code,)).fetchone()
        if row is None:
            raise RefusedCall(NO_USER)
        user = read_user(row)
        if user.agent != caller.code:
            raise RefusedCall(FORBIDDEN)
        return user

    def users(self, agent: Account) -> list[User]:
        """Return the users of an agent, as they were created."""
        rows = self.sql.execute(f"{USERS} WHERE agent = ? ORDER BY code", (agent.code,))
        return [read_user(row) for row in rows]

    def deposit(self, caller: Account, code: int, amount: int) -> User:
        """Move points of the caller to a user's balance."""
        with self.all_or_nothing():
            user = self.user(caller, code)
            left = self.account(caller.code).points - amount
            if left < 0:
                raise RefusedCall(NO_POINTS)
            return self._pay(user, DEPOSIT, amount, user.balance + amount, left)

    def withdraw(self, caller: Account, code: int, amount: int) -> User:
        """Move a user's balance to the caller's points."""
        with self.all_or_nothing():
            user = self.user(caller, code)
            if user.balance < amount:
                raise RefusedCall(NO_BALANCE)
            points = self.account(caller.code).points + amount
            return self._pay(user, WITHDRAW, amount, user.balance - amount, points)

    def _pay(
        self, user: User, kind: int, amount: int, balance: int, points: int
    ) -> User:
        self.set_points(user.agent, points)
        return self.book(user, kind, amount, balance)

    def book(
        self,
        user: User,
        kind: int,
        amount: int,
        balance: int,
        played: tuple[str, int, str] = ("", 0, ""),
    ) -> User:
        """Give a user another balance, and write the row that says why."""
        self.sql.execute(
            "UPDATE users SET balance = ? WHERE code = ?", (str(balance), user.code)
        )
        now = self.clock.now()
        self.sql.execute(
            "INSERT INTO feed (agent, user, kind, before, amount, after, at, visible,"
            " round, provider, game) VALUES (?,?,?,?,?,?,?,?,?,?,?)",
            (
                user.agent,
                user.code,
                kind,
                str(user.balance),
                str(amount),
                str(balance),
                stamp(now),
                stamp(now + timedelta(seconds=self.row_delay + self.late)),
                *played,
            ),
        )
        return attrs.evolve(user, balance=balance)

    # The feed

    def feed(self, caller: Account, last_id: int, limit: int) -> list[Row]:
        """Return what moved balances, oldest first: two days of it, once visible."""
        now = self.clock.now()
        rows = self.sql.execute(
            f"{ROWS} WHERE agent = ? AND id > ? AND visible <= ? AND at >= ?"
            " ORDER BY id LIMIT ?",
            (caller.code, last_id, stamp(now), stamp(now - KEPT), limit),
        )
        return [read_row(row) for row in rows]

    def feed_between(
        self, caller: Account, start: datetime, end: datetime
    ) -> list[Row]:
        """Return the rows of a while, as far as they are kept and visible."""
        now = self.clock.now()
        rows = self.sql.execute(
            f"{ROWS} WHERE agent = ? AND at >= ? AND at <= ? AND visible <= ?"
            " ORDER BY id",
            (caller.code, stamp(max(start, now - KEPT)), stamp(end), stamp(now)),
        )
        return [read_row(row) for row in rows]

    def audit(self) -> tuple[int, int]:
        """Return what was minted, and the sum of all points and balances."""
        minted = sum(
            int(amount)
            for (amount,) in self.sql.execute(
                "SELECT amount FROM moves WHERE source IS NULL"
            )
        )
        held = sum(
            int(amount)
            for (amount,) in self.sql.execute(
                "SELECT points FROM accounts UNION ALL SELECT balance FROM users"
            )
        )
        return minted, held

    def _check_version(self) -> None:
        try:
            (version,) = self.sql.execute("PRAGMA user_version").fetchone()
            (mark,) = self.sql.execute("PRAGMA application_id").fetchone()
            (tables,) = self.sql.execute(
                "SELECT count(*) FROM sqlite_master"
            ).fetchone()
            if tables and (version, mark) != (VERSION, MARK):
                msg = "the file is of another version of the stand-in, or not of one"
                raise sqlite3.DatabaseError(msg)
        except sqlite3.Error:
            self.sql.close()
            raise
        self.sql.execute(f"PRAGMA user_version = {VERSION}")
        self.sql.execute(f"PRAGMA application_id = {MARK}")

    @contextmanager
    def all_or_nothing(self) -> Generator[None]:
        self.sql.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.sql.execute("ROLLBACK")
            raise
        self.sql.execute("COMMIT")


def _same(first: Move, source: Account | None, target: Account, amount: int) -> Move:
    """Return the first move of a reference; 1012 where it was another one."""
    code = source.code if source else None
    if (first.source, first.target, first.amount) != (code, target.code, amount):
        raise RefusedCall(INVALID)
    return first
