"""
The rules of the journal as statements: see :mod:`aio_agentapi._journal`.

What must be so for all processes is an index of the file.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Final

import attrs

from aio_agentapi._accounts import SCHEMA as ACCOUNTS
from aio_agentapi._accounts import current
from aio_agentapi._journal import (
    CONTRADICTED,
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
    words,
)
from aio_agentapi._types import Moved, UserCode
from aio_agentapi.errors import UsageError

_LOG: Final = logging.getLogger("aio_agentapi.payments")

VERSION: Final = 2
MARK: Final = 0x61674A31


# A line through the machine's uptime, since a boot.
_AGES: Final = "CREATE TABLE ages (boot TEXT, uptime REAL NOT NULL, age REAL NOT NULL);"

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
    longest REAL NOT NULL,
    unacked REAL NOT NULL DEFAULT 0,
    successor INTEGER,
    runs INTEGER NOT NULL DEFAULT 0,
    born REAL NOT NULL DEFAULT 0,
    aged REAL NOT NULL DEFAULT 0,
    quiet REAL
);
CREATE INDEX users ON intents (account, user, id);
CREATE UNIQUE INDEX turns ON intents (account, user) WHERE phase = 'sent';
CREATE INDEX keys ON intents (account, key, id) WHERE key IS NOT NULL;
CREATE UNIQUE INDEX paid ON intents (account, key)
    WHERE key IS NOT NULL AND phase NOT IN ({words(FREE)}) AND successor IS NULL;
CREATE UNIQUE INDEX resent ON intents (follows) WHERE follows IS NOT NULL;
CREATE INDEX open ON intents (account, user) WHERE phase IN ('unknown', 'needs_person');
CREATE UNIQUE INDEX proofs ON intents (account, trans_id) WHERE trans_id IS NOT NULL;
CREATE INDEX running ON intents (runs) WHERE runs != 0;
CREATE TABLE cursors (
    account TEXT PRIMARY KEY, trans_id INTEGER NOT NULL, made REAL, seen REAL
) WITHOUT ROWID;
{ACCOUNTS}
{_AGES}
"""

# From the first version: all accounts are unverified, and what is over is so from now
# on.
UPGRADE: Final = f"""
ALTER TABLE intents ADD COLUMN unacked REAL NOT NULL DEFAULT 0;
ALTER TABLE intents ADD COLUMN successor INTEGER;
ALTER TABLE intents ADD COLUMN runs INTEGER NOT NULL DEFAULT 0;
ALTER TABLE intents ADD COLUMN born REAL NOT NULL DEFAULT 0;
ALTER TABLE intents ADD COLUMN aged REAL NOT NULL DEFAULT 0;
ALTER TABLE intents ADD COLUMN quiet REAL;
UPDATE intents SET quiet = 0 WHERE phase != 'sent';
UPDATE intents SET successor =
    (SELECT id FROM intents later WHERE later.follows = intents.id);
UPDATE cursors SET seen = 0;
DROP INDEX paid;
CREATE UNIQUE INDEX paid ON intents (account, key)
    WHERE key IS NOT NULL AND phase NOT IN ({words(FREE)}) AND successor IS NULL;
CREATE INDEX running ON intents (runs) WHERE runs != 0;
{ACCOUNTS}
{_AGES}
INSERT INTO accounts (label)
    SELECT account FROM intents UNION SELECT account FROM cursors;
INSERT INTO links SELECT 'name', label, label FROM accounts;
INSERT INTO links SELECT 'token', label, label FROM accounts
    WHERE length(label) = 16 AND label NOT GLOB '*[^0-9a-f]*';
"""  # noqa: S608 - words of our own

_INTENTS: Final = (
    "SELECT id, account, operation, user, amount, key, follows, phase, moved, balance,"
    " trans_id, note, created, changed, lost, longest, cursor, cursor_made,"
    " cursor_seen, unacked, successor, born, aged, quiet FROM intents "
)

# In the words of the index.
_OPEN: Final = "('unknown', 'needs_person')"

_UNKNOWN: Final = (
    "SELECT 1 FROM intents WHERE account = ? AND user = ?"  # noqa: S608 - as above
    f" AND phase IN {_OPEN} LIMIT 1"
)


def _change(phase: Phase, before: Collection[Phase]) -> str:
    """Write the statement that gives an intent a phase, where it has one *before*."""
    lost = ", lost = :now, runs = :runs, quiet = :quiet"
    # A row of the feed proves one payment: a second one is ignored.
    return (
        f"UPDATE OR IGNORE intents SET phase = '{phase}', changed = :now, aged = :age,"  # noqa: S608 - words of our own
        " moved = :moved, balance = :balance, trans_id = :trans_id,"
        f" note = ifnull(:note, note){lost if phase is Phase.UNKNOWN else ''}"
        f" WHERE id = :id AND phase IN ({words(before)})"
    )


_CHANGES: Final[Mapping[Phase, str]] = MappingProxyType(
    {
        phase: _change(phase, [known for known in Phase if phase in MOVES[known]])
        for phase in Phase
    }
)

# What the outcome of an attempt is worth for an intent that is no longer sent.
_HEARD: Final[Mapping[Phase, Phase]] = MappingProxyType(
    {
        Phase.DONE: Phase.CONFIRMED,
        Phase.REFUSED: Phase.ABSENT,
        Phase.NOT_SENT: Phase.ABSENT,
    }
)

_CONTRADICT: Final = _change(Phase.NEEDS_PERSON, CONTRADICTED)

# The attempt of an intent has ended: from now on nothing of it can leave this machine.
_ENDED: Final = "UPDATE intents SET runs = 0, quiet = :age WHERE id = :id AND runs != 0"

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

        age: Tells the journal's age.
    """

    sql: sqlite3.Connection
    owner: int
    alive: Callable[[int], bool]
    age: Callable[[], float]
    # The last intent that was written down here.
    last: int = attrs.field(init=False, default=0)
    # How far the last look for old ones has come.
    _looked: int = attrs.field(init=False, default=0)

    @property
    def highest(self) -> int:
        """The highest number that an intent ever had."""
        row = self.sql.execute(
            "SELECT seq FROM sqlite_sequence WHERE name = 'intents'"
        ).fetchone()
        return 0 if row is None else row[0]

    def begin(self, intent: Intent, clock: Clock, *, block: bool) -> Intent | None:
        account = current(self.sql, intent.account)
        if account != intent.account:
            intent = attrs.evolve(intent, account=account)
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
        owner, unacked = self.sql.execute(
            "SELECT owner, unacked FROM intents WHERE id = ?", (number,)
        ).fetchone()
        if self._is_at_work(owner):
            return False
        verdict = Verdict(
            id=number,
            phase=Phase.UNKNOWN,
            note="whoever sent it has died before its answer was written down",
        )
        # The time after it was found dead: it may have sent until then, and the kernel
        # goes on with what it was given.
        self.write([verdict], clock)
        self._quieten("id = ?", (number,), unacked)
        return True

    def _is_at_work(self, owner: int) -> bool:
        return owner == self.owner or self.alive(owner)

    def _quieten(self, where: str, values: tuple[object, ...], later: float) -> None:
        self.sql.execute(
            f"UPDATE intents SET runs = 0, quiet = ? WHERE {where}",  # noqa: S608 - words of our own
            (self.age() + later, *values),
        )

    def _insert(self, intent: Intent, first: Intent | None, now: float) -> Intent:
        cursor = self.cursor(intent.account)
        if cursor.made_at is None or now - cursor.made_at.timestamp() > _STALE:
            cursor = Cursor()
        follows, age = None if first is None else first.id, self.age()
        added = self.sql.execute(
            "INSERT INTO intents (account, operation, user, amount, key, follows,"
            " phase, owner, created, changed, longest, unacked, born, aged, cursor,"
            " cursor_made, cursor_seen)"
            " VALUES (?,?,?,?,?,?,'sent',?,?,?,?,?,?,?,?,?,?)",
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
                intent.unacked,
                age,
                age,
                *_numbers(cursor),
            ),
        )
        self.last = number = added.lastrowid or 0
        if first is not None:
            self.sql.execute(
                "UPDATE intents SET successor = ? WHERE id = ?", (number, first.id)
            )
        return attrs.evolve(
            intent,
            id=number,
            follows=follows,
            phase=Phase.SENT,
            created_at=moment(now),
            changed_at=moment(now),
            cursor=cursor,
            born=age,
            aged=age,
        )

    def write(
        self,
        verdicts: Collection[Verdict],
        clock: Clock,
        given: Collection[Intent] = (),
    ) -> list[Intent]:
        if any(self._has_gone_on(intent) for intent in given):
            return []
        now = clock()
        written: list[Intent] = []
        for verdict in verdicts:
            if verdict.late:
                written += self._hear(verdict, now)
                continue
            values = self._values(verdict, now)
            changed = self.sql.execute(_CHANGES[verdict.phase], values).rowcount
            if not changed and verdict.phase in _HEARD:
                # Its attempt says so, and somebody else took it for lost before that.
                late = attrs.evolve(verdict, phase=_HEARD[verdict.phase], late=True)
                written += self._hear(late, now)
            else:
                written.append(self.one(verdict.id))
        return written

    def _values(self, verdict: Verdict, now: float) -> dict[str, object]:
        moved, age = verdict.moved, self.age()
        return {
            "id": verdict.id,
            "now": now,
            "age": age,
            "moved": None if moved is None else f"{moved.amount:f}",
            "balance": None if moved is None else f"{moved.balance:f}",
            "trans_id": verdict.trans_id,
            "note": verdict.note,
            "runs": self.owner if verdict.runs else 0,
            "quiet": None if verdict.runs else age,
        }

    def _hear(self, verdict: Verdict, now: float) -> list[Intent]:
        """Take what the end of an attempt says whose caller was gone."""
        values = self._values(verdict, now)
        row = self.sql.execute(f"{_INTENTS}WHERE id = ?", (verdict.id,)).fetchone()
        if row is None:
            _LOG.error(
                "intent %d is gone from the journal; its late response says %s (%s)",
                verdict.id,
                verdict.phase,
                verdict.note or verdict.moved,
            )
            return []
        known = _intent(row)
        if known.phase is Phase.SENT:
            # That its caller was gone could not be written before.
            self.sql.execute(_CHANGES[Phase.UNKNOWN], values)
            known = attrs.evolve(known, phase=Phase.UNKNOWN)
        self.sql.execute(_ENDED, values)
        if known.phase in OPEN:
            self.sql.execute(_CHANGES[verdict.phase], values)
        elif verdict.phase is CONTRADICTED.get(known.phase):
            values["note"] = note = _contradiction(known, verdict)
            # Both are worth nothing now: what moved is for a person to say.
            values |= {"moved": None, "balance": None, "trans_id": None}
            self.sql.execute(_CONTRADICT, values)
            _LOG.error("intent %d needs a person: %s", known.id, note)
        return [self.one(verdict.id)]

    def _has_gone_on(self, intent: Intent) -> bool:
        row = self.sql.execute(
            "SELECT phase, quiet FROM intents WHERE id = ?", (intent.id,)
        ).fetchone()
        return row is None or (row[0], row[1]) != (intent.phase, intent.quiet)

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
            values += [current(self.sql, account)]
        if user_code is not None:
            terms += ["user = ?"]
            values += [user_code]
        if phases:
            terms += [f"phase IN ({words(phases)})"]
            if OPEN.issuperset(phases):
                terms += [f"phase IN {_OPEN}"]
        if since is not None:
            terms += [f"(born >= ? OR phase IN {_OPEN})"]
            values += [since]
        if ids is not None:
            terms += ["id IN (SELECT value FROM json_each(?))"]
            values += [json.dumps([*ids])]
        where = " AND ".join(terms)
        rows = self.sql.execute(f"{_INTENTS}WHERE {where} ORDER BY id", values)
        return [_intent(row) for row in rows]

    def find(self, account: str, key: str) -> Intent | None:
        row = self.sql.execute(
            # The one that counts: not paid anew, and not free where another is not.
            f"{_INTENTS}WHERE account = ? AND key = ? ORDER BY successor IS NOT NULL,"
            f" phase IN ({words(FREE)}), id DESC LIMIT 1",
            (current(self.sql, account), key),
        ).fetchone()
        return None if row is None else _intent(row)

    def adopt(self, clock: Clock) -> int:
        rows = self.sql.execute("SELECT id FROM intents WHERE phase = 'sent'")
        found = sum(self._orphaned(number, clock) for (number,) in rows.fetchall())
        running = self.sql.execute(
            "SELECT runs, max(unacked) FROM intents WHERE runs != 0 GROUP BY runs"
        ).fetchall()
        for owner, unacked in running:
            if not self._is_at_work(owner):
                self._quieten("runs = ?", (owner,), unacked)
        # Of a process with an older version, which does not say when an attempt ended.
        self._quieten(f"quiet IS NULL AND runs = 0 AND phase IN {_OPEN}", (), 0.0)
        return found

    def cursor(self, account: str) -> Cursor:
        row = self.sql.execute(
            "SELECT trans_id, made, seen FROM cursors WHERE account = ?",
            (current(self.sql, account),),
        ).fetchone()
        return Cursor() if row is None else _cursor(*row)

    def keep_cursor(self, account: str, cursor: Cursor) -> None:
        self.sql.execute(
            "INSERT INTO cursors VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " trans_id = excluded.trans_id, made = excluded.made, seen = excluded.seen"
            " WHERE excluded.trans_id >= trans_id",
            (current(self.sql, account), *_numbers(cursor)),
        )

    def prune(self, keep: float) -> int:
        before = self.age() - keep
        rows = self.sql.execute(
            "SELECT id, account, user, phase, aged, born FROM intents"
            " WHERE id > ? ORDER BY id LIMIT ?",
            (self._looked, _PRUNED),
        ).fetchall()
        gone, self._looked = 0, rows[-1][0] if len(rows) == _PRUNED else 0
        for number, account, user, phase, aged, born in rows:
            if born >= before:
                # The next look begins with the oldest again.
                self._looked = 0
                break
            final = Phase(phase) in FINAL and aged < before
            if final and not self._is_unknown((account, user)):
                self.sql.execute("DELETE FROM intents WHERE id = ?", (number,))
                gone += 1
        return gone


def _contradiction(known: Intent, verdict: Verdict) -> str:
    """Tell what a late response says against what was found out before."""
    moved = verdict.moved
    said = verdict.note if moved is None else f"{moved.amount:f} moved"
    told = (
        f"it was {known.phase} ({known.note}), and its late response says otherwise"
        f" ({said})"
    )
    if known.successor is None:
        return told
    return f"{told}; it was paid anew by intent {known.successor}: look at both"


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
        cursor=_cursor(*row[16:19]),
        unacked=row[19],
        successor=row[20],
        born=row[21],
        aged=row[22],
        quiet=row[23],
    )


def _cursor(trans_id: int, made: float | None, seen: float | None) -> Cursor:
    return Cursor(trans_id=trans_id, made_at=_moment(made), seen=seen or 0.0)


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else moment(seconds)


def _numbers(cursor: Cursor) -> tuple[int, float | None, float]:
    made = cursor.made_at
    return cursor.trans_id, None if made is None else made.timestamp(), cursor.seen
