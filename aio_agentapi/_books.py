"""
The rules of the journal as statements: see :mod:`aio_agentapi._journal`.

What must be so for all processes is an index of the file.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Final

import attrs

from aio_agentapi._journal import (
    FINAL,
    FREE,
    MOVES,
    OPEN,
    Clock,
    Cursor,
    Intent,
    Phase,
    Verdict,
    moment,
)
from aio_agentapi._types import Moved, UserCode
from aio_agentapi.errors import UsageError

VERSION: Final = 1
MARK: Final = 0x61674A31


def _words(phases: Collection[Phase]) -> str:
    return ", ".join(f"'{phase}'" for phase in sorted(phases))


# One turn of a user, one payment of a key and one intent of a row of the feed, for
# all processes: the unique ones refuse a second.
SCHEMA: Final = f"""
CREATE TABLE intents (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    account TEXT NOT NULL,
    operation TEXT NOT NULL,
    user INTEGER NOT NULL,
    amount TEXT,
    key TEXT,
    follows INTEGER,
    phase TEXT NOT NULL,
    owner INTEGER NOT NULL,
    moved TEXT,
    balance TEXT,
    trans_id INTEGER,
    note TEXT,
    created REAL NOT NULL,
    changed REAL NOT NULL,
    lost REAL,
    cursor INTEGER NOT NULL,
    cursor_made REAL,
    cursor_seen REAL,
    longest REAL NOT NULL
);
CREATE INDEX users ON intents (account, user, id);
CREATE UNIQUE INDEX turns ON intents (account, user) WHERE phase = 'sent';
CREATE INDEX keys ON intents (account, key, id) WHERE key IS NOT NULL;
CREATE UNIQUE INDEX paid ON intents (account, key)
    WHERE key IS NOT NULL AND phase NOT IN ({_words(FREE)});
CREATE UNIQUE INDEX resent ON intents (follows) WHERE follows IS NOT NULL;
CREATE INDEX open ON intents (account, user) WHERE phase IN ('unknown', 'needs_person');
CREATE UNIQUE INDEX proofs ON intents (account, trans_id) WHERE trans_id IS NOT NULL;
CREATE TABLE cursors (
    account TEXT PRIMARY KEY, trans_id INTEGER NOT NULL, made REAL, seen REAL
) WITHOUT ROWID;
"""

_INTENTS: Final = (
    "SELECT id, account, operation, user, amount, key, follows, phase, moved, balance,"
    " trans_id, note, created, changed, lost, longest, cursor, cursor_made, cursor_seen"
    " FROM intents "
)

_UNKNOWN: Final = (
    "SELECT 1 FROM intents WHERE account = ? AND user = ?"
    " AND phase IN ('unknown', 'needs_person') LIMIT 1"
)


def _change(phase: Phase) -> str:
    """Write the statement that gives an intent a phase, where the table allows it."""
    before = [known for known in Phase if phase in MOVES[known]]
    lost = ", lost = ?6" if phase is Phase.UNKNOWN else ""
    # A row of the feed proves one payment: a second one is ignored.
    return (
        f"UPDATE OR IGNORE intents SET phase = '{phase}', changed = ?1, moved = ?2,"  # noqa: S608 - words of our own
        f" balance = ?3, trans_id = ?4, note = ifnull(?5, note){lost}"
        f" WHERE id = ?7 AND phase IN ({_words(before)})"
    )


_CHANGES: Final[Mapping[Phase, str]] = MappingProxyType(
    {phase: _change(phase) for phase in Phase}
)

# Seconds after which the row of a cursor may soon be gone: the feed is then read
# from its oldest row.
_STALE: Final = 24 * 3600.0

# Rows that one look for old ones goes through.
_PRUNED: Final = 10_000


@attrs.define(eq=False)
class Books:
    """
    The journal on one connection, inside of a transaction that others begin and end.

    Args:
        sql: The connection, whose schema is there.

        owner: Who writes.

        alive: Whether another owner may still be at work.
    """

    sql: sqlite3.Connection
    owner: int
    alive: Callable[[int], bool]
    # How far the last look for old ones has come.
    _looked: int = attrs.field(init=False, default=0)

    def begin(self, intent: Intent, clock: Clock, *, block: bool) -> Intent | None:
        first = self._first(intent)
        if first is not None:
            if not first.same(intent):
                msg = (
                    f"key: {intent.key!r} stands for another payment: intent"
                    f" {first.id}. Nothing was sent"
                )
                raise UsageError(msg, intent=first.id)
            if first.phase is Phase.SENT and not self._orphaned(first.id, clock):
                return None
            if first.phase not in FREE:
                return self.one(first.id)
        # What its owner has left behind is nobody's turn.
        user = (intent.account, intent.user_code)
        turn = self.sql.execute(
            "SELECT id FROM intents WHERE account = ? AND user = ? AND phase = 'sent'",
            user,
        ).fetchone()
        if turn is not None and not self._orphaned(turn[0], clock):
            return None
        if block and self._is_unknown(user):
            return None
        return self._insert(intent, first, clock())

    def _first(self, intent: Intent) -> Intent | None:
        """Return the newest intent that stands for the same as this."""
        if intent.key is not None:
            return self.find(intent.account, intent.key)
        newest, row = None, (intent.follows,)
        while row is not None and row[0] is not None:
            # Each is followed by one at most: the last of them stands for all.
            newest = row[0]
            row = self.sql.execute(
                "SELECT id FROM intents WHERE follows = ?", (newest,)
            ).fetchone()
        return None if newest is None else self.one(newest)

    def _is_unknown(self, user: tuple[str, UserCode]) -> bool:
        return self.sql.execute(_UNKNOWN, user).fetchone() is not None

    def _orphaned(self, number: int, clock: Clock) -> bool:
        """Take over what a dead owner has left in ``sent``; tell whether it was so."""
        row = self.sql.execute(
            "SELECT owner FROM intents WHERE id = ?", (number,)
        ).fetchone()
        if row[0] == self.owner or self.alive(row[0]):
            return False
        verdict = Verdict(
            id=number,
            phase=Phase.UNKNOWN,
            note="whoever sent it has died before its answer was written down",
        )
        # The time after it was found dead: it may have sent until then.
        self.write([verdict], clock)
        return True

    def _insert(self, intent: Intent, first: Intent | None, now: float) -> Intent:
        cursor = self.cursor(intent.account)
        if cursor.made_at is None or now - cursor.made_at.timestamp() > _STALE:
            cursor = Cursor()
        follows = None if first is None else first.id
        added = self.sql.execute(
            "INSERT INTO intents (account, operation, user, amount, key, follows,"
            " phase, owner, created, changed, longest, cursor, cursor_made,"
            " cursor_seen) VALUES (?,?,?,?,?,?,'sent',?,?,?,?,?,?,?)",
            (
                intent.account,
                intent.operation,
                intent.user_code,
                None if intent.amount is None else f"{intent.amount:f}",
                intent.key,
                follows,
                self.owner,
                now,
                now,
                intent.longest,
                *_numbers(cursor),
            ),
        )
        return attrs.evolve(
            intent,
            id=added.lastrowid or 0,
            follows=follows,
            phase=Phase.SENT,
            created_at=moment(now),
            changed_at=moment(now),
            cursor=cursor,
        )

    def write(
        self,
        verdicts: Collection[Verdict],
        clock: Clock,
        given: Collection[Intent] = (),
    ) -> list[Intent]:
        if any(self._phase(intent.id) is not intent.phase for intent in given):
            return []
        now = clock()
        for verdict in verdicts:
            moved = verdict.moved
            self.sql.execute(
                _CHANGES[verdict.phase],
                (
                    now,
                    None if moved is None else f"{moved.amount:f}",
                    None if moved is None else f"{moved.balance:f}",
                    verdict.trans_id,
                    verdict.note,
                    now,
                    verdict.id,
                ),
            )
        return [self.one(verdict.id) for verdict in verdicts]

    def _phase(self, number: int) -> Phase | None:
        row = self.sql.execute(
            "SELECT phase FROM intents WHERE id = ?", (number,)
        ).fetchone()
        return None if row is None else Phase(row[0])

    def one(self, number: int) -> Intent:
        row = self.sql.execute(f"{_INTENTS}WHERE id = ?", (number,)).fetchone()
        if row is None:
            msg = f"the journal has no intent {number}"
            raise UsageError(msg, intent=number)
        return _intent(row)

    def intents(
        self,
        account: str | None,
        phases: Collection[Phase],
        user_code: UserCode | None,
        ids: Collection[int] | None,
        since: float | None,
    ) -> list[Intent]:
        terms, values = ["1"], list[object]()
        if account is not None:
            terms += ["account = ?"]
            values += [account]
        if user_code is not None:
            terms += ["user = ?"]
            values += [user_code]
        if phases:
            terms += [f"phase IN ({_words(phases)})"]
            if OPEN.issuperset(phases):
                # In the words of the index.
                terms += ["phase IN ('unknown', 'needs_person')"]
        if since is not None:
            terms += ["(created >= ? OR phase IN ('unknown', 'needs_person'))"]
            values += [since]
        if ids is not None:
            terms += ["id IN (SELECT value FROM json_each(?))"]
            values += [json.dumps([*ids])]
        where = " AND ".join(terms)
        rows = self.sql.execute(f"{_INTENTS}WHERE {where} ORDER BY id", values)
        return [_intent(row) for row in rows]

    def find(self, account: str, key: str) -> Intent | None:
        row = self.sql.execute(
            f"{_INTENTS}WHERE account = ? AND key = ? ORDER BY id DESC LIMIT 1",
            (account, key),
        ).fetchone()
        return None if row is None else _intent(row)

    def adopt(self, clock: Clock) -> int:
        rows = self.sql.execute("SELECT id FROM intents WHERE phase = 'sent'")
        return sum(self._orphaned(number, clock) for (number,) in rows.fetchall())

    def cursor(self, account: str) -> Cursor:
        row = self.sql.execute(
            "SELECT trans_id, made, seen FROM cursors WHERE account = ?", (account,)
        ).fetchone()
        return Cursor() if row is None else _cursor(*row)

    def keep_cursor(self, account: str, cursor: Cursor) -> None:
        self.sql.execute(
            "INSERT INTO cursors VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " trans_id = excluded.trans_id, made = excluded.made, seen = excluded.seen"
            " WHERE excluded.trans_id >= trans_id",
            (account, *_numbers(cursor)),
        )

    def prune(self, before: float) -> int:
        rows = self.sql.execute(
            "SELECT id, account, user, phase, changed, created FROM intents"
            " WHERE id > ? ORDER BY id LIMIT ?",
            (self._looked, _PRUNED),
        ).fetchall()
        gone, self._looked = 0, rows[-1][0] if len(rows) == _PRUNED else 0
        for number, account, user, phase, changed, created in rows:
            if created >= before:
                # The next look begins with the oldest again.
                self._looked = 0
                break
            final = Phase(phase) in FINAL and changed < before
            if final and not self._is_unknown((account, user)):
                self.sql.execute("DELETE FROM intents WHERE id = ?", (number,))
                gone += 1
        return gone


def _intent(row: tuple[Any, ...]) -> Intent:
    amount, moved = row[4], None
    if row[8] is not None:
        moved = Moved(amount=Decimal(row[8]), balance=Decimal(row[9]))
    return Intent(
        id=row[0],
        account=row[1],
        operation=row[2],
        user_code=row[3],
        amount=None if amount is None else Decimal(amount),
        key=row[5],
        follows=row[6],
        phase=Phase(row[7]),
        moved=moved,
        trans_id=row[10],
        note=row[11],
        created_at=moment(row[12]),
        changed_at=moment(row[13]),
        lost_at=_moment(row[14]),
        longest=row[15],
        cursor=_cursor(*row[16:]),
    )


def _cursor(trans_id: int, made: float | None, seen: float | None) -> Cursor:
    return Cursor(trans_id=trans_id, made_at=_moment(made), seen_at=_moment(seen))


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else moment(seconds)


def _numbers(cursor: Cursor) -> tuple[int, float | None, float | None]:
    made, seen = cursor.made_at, cursor.seen_at
    return (
        cursor.trans_id,
        None if made is None else made.timestamp(),
        None if seen is None else seen.timestamp(),
    )
