"""What the back office looks up in the books, a page at a time."""

from __future__ import annotations

from typing import Final

from aio_agentapi.sandbox._ledger import KEPT, Ledger
from aio_agentapi.sandbox._records import (
    ACCOUNTS,
    MOVES,
    ROWS,
    USERS,
    Account,
    Move,
    Row,
    User,
    read_account,
    read_move,
    read_row,
    read_user,
    stamp,
)

# Rows of a page. Each question asks for one more, which tells whether there are more.
PAGE: Final = 100
_ROWS: Final = PAGE + 1


def accounts(
    ledger: Ledger, top: Account | None, words: str, offset: int
) -> list[Account]:
    """Return *top* and all below it, or everybody, whose name has *words* in it."""
    low, high = ("", "~") if top is None else (top.path, f"{top.path}0")
    rows = ledger.sql.execute(
        # '0' follows the '/' of paths; '~' follows every digit.
        f"{ACCOUNTS} WHERE path >= ? AND path < ? AND instr(name, ?)"
        " ORDER BY path LIMIT ? OFFSET ?",
        (low, high, words, _ROWS, offset),
    )
    return [read_account(row) for row in rows]


def moves(ledger: Ledger, account: Account, before: int) -> list[Move]:
    """Return the moves in which an account is either side, newest first."""
    rows = ledger.sql.execute(
        f"{MOVES} WHERE source = :c AND id < :b UNION"
        f" {MOVES} WHERE target = :c AND id < :b ORDER BY id DESC LIMIT :n",
        {"c": account.code, "b": before, "n": _ROWS},
    )
    return [read_move(row) for row in rows]


def users(ledger: Ledger, account: Account, before: int) -> list[User]:
    """Return an account's users, newest first."""
    rows = ledger.sql.execute(
        f"{USERS} WHERE agent = ? AND code < ? ORDER BY code DESC LIMIT ?",
        (account.code, before, _ROWS),
    )
    return [read_user(row) for row in rows]


def feed(ledger: Ledger, account: Account, before: int) -> list[tuple[Row, str]]:
    """Return what the feed has, newest first, each row with the user's name."""
    now = ledger.clock.now()
    rows = ledger.sql.execute(
        f"SELECT found.*, name FROM ({ROWS} WHERE agent = ? AND id < ?"  # noqa: S608 - a literal
        " AND visible <= ? AND at >= ? ORDER BY id DESC LIMIT ?) AS found"
        " JOIN users ON code = user ORDER BY id DESC",
        (account.code, before, stamp(now), stamp(now - KEPT), _ROWS),
    )
    return [(read_row(row[:-1]), str(row[-1])) for row in rows]
