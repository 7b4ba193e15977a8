"""The main job: a plan of points, carried out, with every row's outcome on file."""

from __future__ import annotations

import asyncio
import csv
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Literal, TextIO, TypeAlias

import attrs
import msgspec

from aio_agentapi import Distributed, PlanRow, Session
from aio_agentapi.cli._command import (
    DONE,
    INTERRUPTED,
    NOT_REACHED,
    REFUSED,
    UNKNOWN,
)
from aio_agentapi.errors import (
    CredentialError,
    RefusedError,
    UnsupportedError,
    UsageError,
)

End: TypeAlias = Literal["moved", "refused", "not_sent", "unknown"]

_COLUMNS: Final = (
    "line",
    "agent_code",
    "amount",
    "reference",
    "outcome",
    "move_id",
    "code",
    "reason",
)

# Rows between two flushes: what a crash may leave out of the file. The rows have
# moved all the same, and their references say so to the service.
_FLUSH: Final = 100

_ENCODER: Final = msgspec.json.Encoder(decimal_format="number")


@attrs.define(eq=False)
class Results:
    """The file of outcomes: CSV, or JSON Lines by the ending of its name."""

    path: Path
    _file: TextIO = attrs.field(alias="file")
    _rows: int = attrs.field(init=False, default=0)
    _csv: Any = attrs.field(init=False, default=None)

    @classmethod
    def create(cls, path: Path) -> Results:
        """
        Make a new file.

        Raises:
            UsageError: It exists already, or cannot be written.
        """
        try:
            file = path.open("x", encoding="utf-8", newline="")
        except FileExistsError:
            msg = (
                f"{path}: exists and tells of an earlier run, which may have moved"
                " points; read it, and then move it away or name another (--results)"
            )
            raise UsageError(msg) from None
        except OSError as error:
            msg = f"{path}: {error.strerror}"
            raise UsageError(msg) from None
        results = cls(path, file)
        if path.suffix not in {".jsonl", ".ndjson"}:
            results._csv = csv.DictWriter(file, _COLUMNS)
            results._csv.writeheader()
        file.flush()
        return results

    def add(self, done: Distributed, end: End) -> None:
        """Write what became of one row."""
        error = done.error
        row = {
            "line": done.line,
            "agent_code": done.row.agent_code,
            "amount": done.row.amount,
            "reference": done.reference,
            "outcome": end,
            "move_id": None if done.move is None else done.move.move_id,
            "code": error.code if isinstance(error, RefusedError) else None,
            "reason": None if error is None else error.message,
        }
        if self._csv is not None:
            self._csv.writerow({**row, "amount": f"{row['amount']:f}"})
        else:
            self._file.write(_ENCODER.encode(row).decode() + "\n")
        self._rows += 1
        if self._rows % _FLUSH == 0:
            self._file.flush()

    def close(self) -> None:
        """Put everything on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


@attrs.define(eq=False)
class Summary:
    """How a run ended."""

    run: str
    results: Path
    ends: Counter[str] = attrs.field(factory=Counter)
    total: Decimal = Decimal(0)
    busy: int = 0
    seconds: float = 0.0
    stopped: str | None = None
    interrupted: bool = False

    @property
    def rows(self) -> int:
        """How many rows came to an end."""
        return self.ends.total()

    @property
    def rate(self) -> float:
        """Calls in a second."""
        return self.rows / self.seconds if self.seconds else 0.0

    @property
    def code(self) -> int:
        """What the command ends with: the gravest of all rows."""
        if self.ends["unknown"]:
            return UNKNOWN
        if self.interrupted:
            return INTERRUPTED
        if self.ends["not_sent"] or self.stopped:
            return NOT_REACHED
        return REFUSED if self.ends["refused"] else DONE

    def as_dict(self) -> dict[str, object]:
        """Return it for programs."""
        return {
            "run": self.run,
            "results": str(self.results),
            **{end: self.ends[end] for end in ("moved", "refused")},
            **{end: self.ends[end] for end in ("not_sent", "unknown")},
            "total": self.total,
            "busy_answers": self.busy,
            "seconds": round(self.seconds, 3),
            "calls_per_second": round(self.rate, 1),
            "stopped": self.stopped,
            "interrupted": self.interrupted,
        }


@attrs.define(eq=False)
class _Stop:
    """Whether the plan is read on."""

    reason: str | None = None
    interrupted: bool = False

    def interrupt(self) -> None:
        self.interrupted = True

    def through(self, rows: Iterator[PlanRow]) -> Iterator[PlanRow]:
        try:
            for row in rows:
                if self.reason or self.interrupted:
                    return
                yield row
        except UsageError as error:
            self.reason = str(error)


async def distribute(
    session: Session,
    rows: Iterator[PlanRow],
    results: Results,
    run: str,
    tell: Callable[[Summary], None],
) -> Summary:
    """
    Carry out a plan that has been checked.

    An interrupt (Ctrl-C) stops the reading of the plan; the rows that are under way
    end, and are in the results. So does a refusal of the token itself.

    Args:
        session: Whose points are moved.

        rows: The plan.

        results: Where every row's outcome is written.

        run: The name that makes the rows repeatable.

        tell: Called after each row.

    Returns:
        How it ended.
    """
    stop = _Stop()
    summary = Summary(run, results.path)
    before = session.gate.statistics().busy_answers
    began = time.monotonic()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, stop.interrupt)
    try:
        async for done in session.points.distribute(stop.through(rows), run=run):
            end = _end(done)
            try:
                results.add(done, end)
            except OSError as error:
                # The rows under way end all the same, and are counted.
                stop.reason = f"{results.path}: {error.strerror}"
            summary.ends[end] += 1
            if done.move is not None:
                summary.total += done.move.amount
            if isinstance(done.error, CredentialError | UnsupportedError):
                stop.reason = str(done.error)
            summary.seconds = time.monotonic() - began
            summary.busy = session.gate.statistics().busy_answers - before
            tell(summary)
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        try:
            results.close()
        except OSError as error:
            stop.reason = f"{results.path}: {error.strerror}"
    summary.stopped, summary.interrupted = stop.reason, stop.interrupted
    return summary


def _end(done: Distributed) -> End:
    if done.error is None:
        return "moved"
    if done.error.happened == "maybe":
        return "unknown"
    if isinstance(done.error, RefusedError):
        return "refused"
    return "not_sent"
