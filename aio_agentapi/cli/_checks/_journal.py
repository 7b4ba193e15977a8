"""The journal of payments."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Final

from aio_agentapi import Intent, Phase, _accounts
from aio_agentapi._books import MARK, VERSION, Books
from aio_agentapi._identity import Claim
from aio_agentapi._journal import OPEN
from aio_agentapi.cli._checks._patient import STEP, Finding, Patient, aside, ok, wrong
from aio_agentapi.errors import UsageError

# Seconds for a lock that somebody has: then a copy is read.
_LOCKED: Final = 0.3
# Steps of sqlite between two looks at the clock: some milliseconds.
_STRIDE: Final = 10_000


class _DamagedError(Exception):
    """What is in the file, nobody of ours has written."""


async def journal(patient: Patient) -> Finding:
    place = patient.place
    if place.journal is None:
        return Finding("skipped", "no journal is named")
    path = place.journal
    try:
        return await aside(lambda: _look_into(path, place.claim))
    except _DamagedError as error:
        remedy = "restore it from a copy, and look up what was paid since then"
        return wrong(f"{path}: {error}", f"{remedy} (transactions since)")
    except (OSError, sqlite3.Error) as error:
        reason = getattr(error, "strerror", None) or error
        remedy = "it is to be a journal of this version, on a disk of this machine"
        return wrong(f"{path}: {reason}", f"{remedy}, which you may read and write")
    except ValueError:
        return wrong("its path has a NUL", "name another file")


def _look_into(path: Path, claim: Claim) -> Finding:
    """Look at the files of a journal, and at what is open in it; change nothing."""
    if path.is_dir():
        return wrong(f"{path}: is a folder", "name a file in it")
    if not path.exists():
        if os.access(path.parent, os.W_OK | os.X_OK):
            return ok(f"{path}: the first payment makes it")
        return wrong(f"{path}: cannot be made", "make its folder, writable for you")
    with _open(path) as sql:
        opened = _open_ones(sql)
        account = _account_of(sql, claim)
    mine = Counter(i.phase for i in opened if i.account == account)
    facts = {phase: mine[phase] for phase in sorted({*OPEN, Phase.SENT})}
    told = ", ".join(f"{n} {phase}" for phase, n in facts.items() if n)
    told = told or "nothing is open"
    remedies: list[str] = []
    if sum(mine[phase] for phase in OPEN):
        remedies += ["agentapi payments settle finds out, payments decide tells"]
    others = Counter(
        i.account for i in opened if i.account != account and i.phase in OPEN
    )
    if others:
        told += "".join(f"; {n} open of {name!r}" for name, n in others.items())
        remedies += ["agentapi payments account list says whose the others are"]
    files = [path.with_name(path.name + end) for end in ("", "-wal", "-shm", "-owners")]
    open_to = [file for file in files if file.exists() and file.stat().st_mode & 0o77]
    if open_to:
        told += "; others may read or write it"
        remedies += [f"chmod 600 {' '.join(map(str, open_to))}"]
    if not os.access(path, os.R_OK | os.W_OK):
        told += "; you may not write it"
        remedies += ["give it to whoever runs this"]
    if remedies:
        return wrong(f"{path}: {told}", "; ".join(remedies), **facts)
    return ok(f"{path}: {told}", **facts)


@contextlib.contextmanager
def _open(path: Path) -> Generator[sqlite3.Connection]:
    """Open a journal to be read; leave nothing beside it, and stop nobody."""
    wal, index = (path.with_name(path.name + end) for end in ("-wal", "-shm"))
    if not wal.exists():
        # Nobody has it open without this file. Then it is read without locks, which
        # would leave files beside it.
        with _connect(path, "mode=ro&immutable=1") as sql:
            yield sql
    elif index.exists() and not _is_locked(path):
        with _connect(path, "mode=ro") as sql:
            yield sql
    else:
        # Reading would make the index, which then is not that of who pays.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            copy = Path(folder, "journal")
            shutil.copyfile(path, copy)
            shutil.copyfile(wal, copy.with_name("journal-wal"))
            with _connect(copy, "mode=rw") as sql:
                yield sql


@contextlib.contextmanager
def _connect(path: Path, how: str) -> Generator[sqlite3.Connection]:
    uri = f"{path.absolute().as_uri()}?{how}"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=_LOCKED)) as sql:
        yield sql


def _is_locked(path: Path) -> bool:
    try:
        with _connect(path, "mode=ro") as sql:
            sql.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        if _number(error) != sqlite3.SQLITE_BUSY:
            raise
        return True
    return False


def _number(error: sqlite3.Error) -> int:
    """Return sqlite's number of an error, without its finer parts."""
    return error.sqlite_errorcode & 0xFF


def _open_ones(sql: sqlite3.Connection) -> list[Intent]:
    """Return what is open of any account, or under way."""
    (version,) = sql.execute("PRAGMA user_version").fetchone()
    (mark,) = sql.execute("PRAGMA application_id").fetchone()
    if (version, mark) != (VERSION, MARK):
        msg = "it is of another version of this library, or no journal"
        raise sqlite3.DatabaseError(msg)
    _find_damage(sql)
    try:
        return _books(sql).intents(None, {*OPEN, Phase.SENT}, None, None, None)
    except (ArithmeticError, TypeError, ValueError, UsageError):
        msg = "a payment in it cannot be read"
        raise _DamagedError(msg) from None


def _account_of(sql: sqlite3.Connection, claim: Claim) -> str | None:
    """Return what the journal calls an account; None: not at all, or by two names."""
    try:
        found = _accounts.linked(sql, claim)
    except UsageError:
        return None
    return None if found is None else found.label


def _books(sql: sqlite3.Connection) -> Books:
    return Books(sql, 0, lambda _: True, lambda: 0.0)


def _find_damage(sql: sqlite3.Connection) -> None:
    """Look through the file, as far as there is time for it."""
    end = time.monotonic() + STEP
    sql.set_progress_handler(lambda: time.monotonic() > end, _STRIDE)
    try:
        (told,) = sql.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        if _number(error) == sqlite3.SQLITE_INTERRUPT:
            return
        if _number(error) != sqlite3.SQLITE_CORRUPT:
            raise
        told = error
    finally:
        sql.set_progress_handler(None, 0)
    if told != "ok":
        msg = f"the file is damaged: {told}"
        raise _DamagedError(msg)
