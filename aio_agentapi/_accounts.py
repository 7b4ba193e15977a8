"""
The accounts of the journal as statements: see :mod:`aio_agentapi._identity`.

An account is called by its label in every row. It is changed by a person alone, who
merges two: names, tokens and services are linked to it beside that.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping
from functools import partial
from typing import Final

import attrs

from aio_agentapi import _identity
from aio_agentapi._identity import Account, Agent, Ask, Claim, Evidence, alike
from aio_agentapi._journal import FREE, HAPPENED, words
from aio_agentapi._types import UserCode
from aio_agentapi.errors import UsageError

# A name and a token lead to one account; a service has any number of them.
SCHEMA: Final = """
CREATE TABLE accounts (
    label TEXT PRIMARY KEY, name TEXT, currency TEXT, agent_code INTEGER
) WITHOUT ROWID;
CREATE TABLE links (
    kind TEXT NOT NULL, value TEXT NOT NULL, account TEXT NOT NULL,
    PRIMARY KEY (kind, value, account)
) WITHOUT ROWID;
CREATE TABLE merged (label TEXT PRIMARY KEY, account TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX linking ON links (account);
CREATE UNIQUE INDEX linked ON links (kind, value) WHERE kind IN ('name', 'token');
"""


def recognise(sql: sqlite3.Connection, claim: Claim, seen: Evidence) -> Account | Ask:
    """Find the account that a session is, and write down what it is linked to."""
    agent = seen.agent if isinstance(seen.agent, Agent) else None
    labels = _linked(sql, claim) | {
        row[0]
        for row in sql.execute(
            "SELECT label FROM accounts WHERE name IS NULL OR agent_code = ?"
            " OR (name = ? AND currency = ?)"
            " OR label IN (SELECT account FROM links WHERE kind = 'url'"
            " AND value = ? AND ?)",
            (
                None if agent is None else agent.agent_code,
                None if agent is None else agent.name,
                None if agent is None else str(agent.currency),
                claim.url,
                agent is None,
            ),
        )
    }
    found = _identity.recognise(
        claim,
        accounts(sql, labels),
        seen,
        partial(_witness, sql),
        partial(_free_label, sql),
    )
    if isinstance(found, Account):
        keep(sql, found)
    return found


def linked(sql: sqlite3.Connection, claim: Claim) -> Account | None:
    """Return the account that a session is linked to, verified or not."""
    labels = _linked(sql, claim)
    if len(labels) > 1:
        # Nothing to ask: it says which two.
        _identity.recognise(
            claim, accounts(sql, labels), Evidence(), partial(_witness, sql)
        )
    found = next(iter(accounts(sql, labels)), None)
    return None if found is None else _identity.check_service(claim, found)


def accounts(
    sql: sqlite3.Connection, labels: Collection[str] | None = None
) -> list[Account]:
    """Return accounts by their labels; all, where none are named."""
    rows = sql.execute(
        "SELECT label, name, currency, agent_code FROM accounts"
        " WHERE :labels IS NULL OR label IN (SELECT value FROM json_each(:labels))"
        " ORDER BY label",
        {"labels": None if labels is None else json.dumps([*labels])},
    )
    return [_account(sql, *row) for row in rows.fetchall()]


def keep(sql: sqlite3.Connection, account: Account) -> None:
    """Write an account down as it is now."""
    agent = account.agent
    sql.execute(
        "INSERT OR REPLACE INTO accounts VALUES (?, ?, ?, ?)",
        (account.label, None, None, None)
        if agent is None
        else (account.label, agent.name, str(agent.currency), agent.agent_code),
    )
    sql.execute("DELETE FROM links WHERE account = ?", (account.label,))
    kinds = {"url": account.urls, "name": account.names, "token": account.tokens}
    sql.executemany(
        "INSERT INTO links VALUES (?, ?, ?)",
        [
            (kind, value, account.label)
            for kind, values in kinds.items()
            for value in sorted(values)
        ],
    )


def allow(sql: sqlite3.Connection, label: str, more: Mapping[str, str]) -> Account:
    """Link an account to what a person says, if nothing else is."""
    (known,) = accounts(sql, (label,)) or (None,)
    if known is None:
        raise _no_account(sql)
    agent = known.agent
    if "agent" in more and agent is not None:
        agent = attrs.evolve(agent, name=more["agent"])
    changed = attrs.evolve(
        known,
        agent=agent,
        urls=known.urls | {v for k, v in more.items() if k == "url"},
        names=known.names | {v for k, v in more.items() if k == "name"},
        tokens=known.tokens | {v for k, v in more.items() if k == "token"},
    )
    for other in accounts(sql):
        taken = (other.names & changed.names) | (other.tokens & changed.tokens)
        if taken and other.label != label:
            msg = f"{', '.join(sorted(taken))} is of {other}. Nothing was changed"
            raise UsageError(msg)
    keep(sql, changed)
    return changed


def merge(sql: sqlite3.Connection, source: str, into: str) -> None:
    """Let the payments of one account, and its links, go over to another."""
    both = {account.label: account for account in accounts(sql, (source, into))}
    if len(both) != 2:  # noqa: PLR2004 - one account of each label
        raise _no_account(sql)
    running = (
        "SELECT 1 FROM intents WHERE account IN (?, ?) AND (phase = 'sent' OR runs)"
    )
    if sql.execute(running, (source, into)).fetchone() is not None:
        msg = "a payment of one of them is under way: later. Nothing was changed"
        raise UsageError(msg)
    old, new = both[source], both[into]
    if old.agent and new.agent and alike(old.agent, new.agent) == "no":
        msg = f"{old} is not {new}. Nothing was changed"
        raise UsageError(msg)
    free = words(FREE)
    # A key or a row of the feed that both have stands in the one that stays.
    sql.execute(
        "UPDATE intents SET successor = (SELECT max(id) FROM intents other"  # noqa: S608 - words of our own
        " WHERE other.account = :into AND other.key = intents.key)"
        f" WHERE account = :source AND successor IS NULL AND phase NOT IN ({free})"
        " AND key IN (SELECT key FROM intents"
        f" WHERE account = :into AND phase NOT IN ({free}))",
        {"source": source, "into": into},
    )
    sql.execute(
        "UPDATE intents SET trans_id = NULL WHERE account = :source AND trans_id IN"
        " (SELECT trans_id FROM intents WHERE account = :into)",
        {"source": source, "into": into},
    )
    sql.execute("UPDATE intents SET account = ? WHERE account = ?", (into, source))
    for table, name in (
        ("accounts", "label"),
        ("links", "account"),
        ("cursors", "account"),
    ):
        sql.execute(f"DELETE FROM {table} WHERE {name} = ?", (source,))  # noqa: S608 - words of our own
    # A program that runs goes on with the old name.
    sql.execute("UPDATE merged SET account = ? WHERE account = ?", (into, source))
    sql.execute("INSERT OR REPLACE INTO merged VALUES (?, ?)", (source, into))
    keep(
        sql,
        attrs.evolve(
            new,
            agent=new.agent or old.agent,
            urls=new.urls | old.urls,
            names=new.names | old.names,
            tokens=new.tokens | old.tokens,
        ),
    )


def current(sql: sqlite3.Connection, label: str) -> str:
    """Return what an account is called by now, if it has gone over to another."""
    row = sql.execute("SELECT account FROM merged WHERE label = ?", (label,)).fetchone()
    return label if row is None else row[0]


def _free_label(sql: sqlite3.Connection, wanted: str) -> str:
    """Return a label that no account has, nor had."""
    taken = (
        "SELECT 1 FROM accounts WHERE label = :label UNION ALL"
        " SELECT 1 FROM merged WHERE label = :label UNION ALL"
        " SELECT 1 FROM intents WHERE account = :label LIMIT 1"
    )
    label, number = wanted, 1
    while sql.execute(taken, {"label": label}).fetchone() is not None:
        number += 1
        label = f"{wanted} ({number})"
    return label


def _linked(sql: sqlite3.Connection, claim: Claim) -> set[str]:
    rows = sql.execute(
        "SELECT account FROM links WHERE kind = 'token' AND value = ?"
        " OR kind = 'name' AND value IN (SELECT value FROM json_each(?))",
        (claim.token, json.dumps(claim.names)),
    )
    return {label for (label,) in rows}


def _witness(sql: sqlite3.Connection, label: str) -> tuple[UserCode | None, bool]:
    mine = "SELECT user FROM intents WHERE account = ? AND"
    paid = sql.execute(
        f"{mine} phase IN ({words(HAPPENED)}) ORDER BY id DESC LIMIT 1", (label,)
    ).fetchone()
    used = sql.execute(
        f"{mine} phase NOT IN ({words(FREE)}) LIMIT 1", (label,)
    ).fetchone()
    return None if paid is None else paid[0], used is not None


def _account(
    sql: sqlite3.Connection,
    label: str,
    name: str | None,
    currency: str,
    code: int | None,
) -> Account:
    links = sql.execute(
        "SELECT kind, value FROM links WHERE account = ?", (label,)
    ).fetchall()
    urls, names, tokens = (
        frozenset(value for kind, value in links if kind == wanted)
        for wanted in ("url", "name", "token")
    )
    agent = None
    if name is not None:
        agent = Agent(name=name, currency=int(currency), agent_code=code)
    return Account(label=label, agent=agent, urls=urls, names=names, tokens=tokens)


def _no_account(sql: sqlite3.Connection) -> UsageError:
    known = ", ".join(repr(account.label) for account in accounts(sql))
    return UsageError(
        f"the journal has the accounts {known or 'none'}. Nothing was changed"
    )
