"""What the users of the stand-in do in its games, on the same books."""

from __future__ import annotations

import secrets
from collections import defaultdict
from datetime import datetime, timedelta
from typing import Final

import attrs

from aio_agentapi.sandbox._ledger import Ledger
from aio_agentapi.sandbox._records import (
    BET,
    NO_BALANCE,
    NO_POINTS,
    PLAYS,
    WIN,
    Account,
    Play,
    RefusedCall,
    User,
    read_play,
    stamp,
)

# A link into a game works once, and who came in is online for half an hour.
_LINK_LIVES: Final = timedelta(minutes=10)
_ONLINE: Final = timedelta(minutes=30)

# A round can be looked up for so long.
_ROUNDS_KEPT: Final = timedelta(days=30)


@attrs.frozen(eq=False)
class Arcade:
    """
    Links into games, the rounds that are played, and what comes of them.

    Args:
        ledger: The books.
    """

    _ledger: Ledger = attrs.field(alias="ledger")

    def sums(
        self, caller: Account, start: datetime, end: datetime
    ) -> dict[tuple[int, str], list[tuple[int, int, int]]]:
        """Return what each user bet and won: by code and name, kind, provider, sum."""
        found: defaultdict[tuple[int, str], list[tuple[int, int, int]]]
        found = defaultdict(list)
        for user, name, kind, provider, amount in self._ledger.sql.execute(
            "SELECT user, name, kind, provider, amount FROM feed"
            " JOIN users ON users.code = user WHERE feed.agent = ?"
            " AND at >= ? AND at < ? AND kind IN (?, ?) ORDER BY user",
            (caller.code, stamp(start), stamp(end), BET, WIN),
        ):
            found[user, name] += [(int(kind), int(provider), int(amount))]
        return dict(found)

    def link(self, caller: Account, code: int, provider: int, game: str) -> str:
        """Make a link into a game for a user."""
        user = self._ledger.user(caller, code)
        key = secrets.token_hex(16)
        self._ledger.sql.execute(
            "INSERT INTO links (key, agent, user, provider, game, at)"
            " VALUES (?,?,?,?,?,?)",
            (
                key,
                caller.code,
                user.code,
                provider,
                game,
                stamp(self._ledger.clock.now()),
            ),
        )
        return key

    def enter(self, key: str) -> bool:
        """Let a user in by a link; False if it is unknown, used or too old."""
        now = self._ledger.clock.now()
        with self._ledger.all_or_nothing():
            row = self._ledger.sql.execute(
                "UPDATE links SET used = 1 WHERE key = ? AND used = 0 AND at > ?"
                " RETURNING agent, user, provider, game",
                (key, stamp(now - _LINK_LIVES)),
            ).fetchone()
            if row is not None:
                self._begin(row, now)
        return row is not None

    def play(
        self, caller: Account, code: int, bet: int, win: int, provider: int, game: str
    ) -> str:
        """
        Play one round; return its number.

        What is lost goes to the agent's points and what is won comes from them, so
        that nothing comes into being.
        """
        with self._ledger.all_or_nothing():
            user = self._ledger.user(caller, code)
            points = self._ledger.account(caller.code).points + bet - win
            if user.balance < bet:
                raise RefusedCall(NO_BALANCE)
            if points < 0:
                raise RefusedCall(NO_POINTS)
            self._ledger.set_points(caller.code, points)
            played = (secrets.token_hex(10), provider, game)
            user = self._ledger.book(user, BET, bet, user.balance - bet, played)
            self._ledger.book(user, WIN, win, user.balance + win, played)
            self._note_round(user, bet, win, provider, game)
        return played[0]

    def online(self, caller: Account) -> list[Play]:
        """Return who has been in a game during the last half hour."""
        rows = self._ledger.sql.execute(
            f"{PLAYS} WHERE plays.agent = ? AND updated > ? ORDER BY id",
            (caller.code, stamp(self._ledger.clock.now() - _ONLINE)),
        )
        return [read_play(row) for row in rows]

    def knows_round(self, user: User, number: str) -> bool:
        """Tell whether a user has played a round, in the last thirty days."""
        row = self._ledger.sql.execute(
            "SELECT 1 FROM feed WHERE user = ? AND round = ? AND round <> ''"
            " AND at >= ? LIMIT 1",
            (user.code, number, stamp(self._ledger.clock.now() - _ROUNDS_KEPT)),
        ).fetchone()
        return row is not None

    def _note_round(
        self, user: User, bet: int, win: int, provider: int, game: str
    ) -> None:
        """Add a round to what the user plays; who came in by no link begins there."""
        row = self._ledger.sql.execute(
            "SELECT id, spend, win FROM plays WHERE user = ? AND provider = ?"
            " AND game = ? AND updated > ? ORDER BY id DESC LIMIT 1",
            (
                user.code,
                provider,
                game,
                stamp(self._ledger.clock.now() - _ONLINE),
            ),
        ).fetchone()
        now = self._ledger.clock.now()
        if row is None:
            place = (user.agent, user.code, provider, game)
            row = (self._begin(place, now), 0, 0)
        number, spend, won = row
        self._ledger.sql.execute(
            "UPDATE plays SET last_bet = ?, spend = ?, win = ?, updated = ?"
            " WHERE id = ?",
            (str(bet), str(int(spend) + bet), str(int(won) + win), stamp(now), number),
        )

    def _begin(self, place: tuple[int, int, int, str], now: datetime) -> int | None:
        """Put a user into a game, by agent, user, provider and game."""
        cursor = self._ledger.sql.execute(
            "INSERT INTO plays (agent, user, provider, game, last_bet, spend, win,"
            " started, updated) VALUES (?,?,?,?,'0','0','0',?,?)",
            (*place, stamp(now), stamp(now)),
        )
        return cursor.lastrowid
