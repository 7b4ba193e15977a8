"""The journal of payments."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections import Counter
from pathlib import Path

from aio_agentapi import Phase
from aio_agentapi._books import MARK, VERSION, Books
from aio_agentapi._journal import OPEN
from aio_agentapi.cli._checks._patient import STEP, Finding, Patient, aside, ok, wrong


async def journal(patient: Patient) -> Finding:
    place = patient.place
    if place.journal is None:
        return Finding("skipped", "no journal is named")
    path = place.journal
    try:
        return await aside(lambda: _look_into(path, place.label))
    except (OSError, sqlite3.Error) as error:
        told = getattr(error, "strerror", None) or error
        remedy = "it is to be a journal of this version, on a disk of this machine"
        return wrong(f"{path}: {told}", f"{remedy}, which you may read and write")


def _look_into(path: Path, account: str) -> Finding:
    """Look at the files of a journal, and at what is open in it; change nothing."""
    if not path.exists():
        if os.access(path.parent, os.W_OK | os.X_OK):
            return ok(f"{path}: the first payment makes it")
        return wrong(f"{path}: cannot be made", "make its folder, writable for you")
    phases = _count_open(path, account)
    facts = {phase: phases[phase] for phase in sorted({*OPEN, Phase.SENT})}
    told = ", ".join(f"{n} {phase}" for phase, n in facts.items() if n)
    told = told or "nothing is open"
    remedies: list[str] = []
    if sum(phases[phase] for phase in OPEN):
        remedies += ["agentapi payments settle finds out, payments decide tells"]
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


def _count_open(path: Path, account: str) -> Counter[Phase]:
    # Nobody has it open without this file. Then it is read without locks, which would
    # leave files beside it.
    is_used = path.with_name(path.name + "-wal").exists()
    how = "mode=ro" if is_used else "mode=ro&immutable=1"
    uri = f"{path.absolute().as_uri()}?{how}"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=STEP)) as sql:
        (version,) = sql.execute("PRAGMA user_version").fetchone()
        (mark,) = sql.execute("PRAGMA application_id").fetchone()
        if (version, mark) != (VERSION, MARK):
            msg = "it is of another version of this library, or no journal"
            raise sqlite3.DatabaseError(msg)
        books = Books(sql, 0, lambda _: True)
        wanted = {*OPEN, Phase.SENT}
        return Counter(
            i.phase for i in books.intents(account, wanted, None, None, None)
        )
