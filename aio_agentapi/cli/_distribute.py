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

# Seconds between two flushes: what a crash may leave out of the file. The rows have
# moved all the same, and their references say so to the service.
_FLUSH: Final = 0.2

# Rows in a row that did not reach the service, after which it is taken for gone.
_GONE: Final = 100

_INTERRUPTS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_ENCODER: Final = msgspec.json.Encoder(decimal_format="number")


@attrs.define(eq=False)
class Results:
    """The file of outcomes: CSV, or JSON Lines by the ending of its name."""

    path: Path
    _file: TextIO = attrs.field(alias="file")
    _flushed: float = attrs.field(init=False, default=0.0)
    _csv: Any = attrs.field(init=False, default=None)

    @staticmethod
    def check(path: Path) -> None:
        """
        Tell that the file is not there yet.

        Raises:
            UsageError: It is.
        """
        if path.exists():
            msg = (
                f"{path}: exists and tells of an earlier run, which may have moved"
                f" points. To go on with that, give the name in {_run_file(path)} as"
                " --resume, and other --results; else move it away"
            )
            raise UsageError(msg)

    @classmethod
    def create(cls, path: Path, run: str) -> Results:
        """
        Make a new file, and beside it one that names the run, for good.

        Raises:
            UsageError: It exists already, or cannot be written.
        """
        cls.check(path)
        try:
            # On disk before anything is sent: it makes a second try harmless.
            with _run_file(path).open("w", encoding="utf-8") as name:
                name.write(run + "\n")
                name.flush()
                os.fsync(name.fileno())
            file = path.open("x", encoding="utf-8", newline="")
        except OSError as error:
            msg = f"{path}: {error.strerror}"
            raise UsageError(msg) from None
        results = cls(path, file)
        if path.suffix not in {".jsonl", ".ndjson"}:
            results._csv = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
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
        now = time.monotonic()
        if now - self._flushed > _FLUSH:
            self._file.flush()
            self._flushed = now

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
            # A name that is no UTF-8 has no JSON form.
            "results": os.fsencode(self.results).decode("utf-8", "replace"),
            **{end: self.ends[end] for end in ("moved", "refused")},
            **{end: self.ends[end] for end in ("not_sent", "unknown")},
            "total": self.total,
            "busy_answers": self.busy,
            "seconds": round(self.seconds, 3),
            "calls_per_second": round(self.rate, 1),
            "stopped": self.stopped,
            "interrupted": self.interrupted,
        }


def _run_file(results: Path) -> Path:
    return results.with_name(results.name + ".run")


@attrs.define(eq=False)
class _Stop:
    """Whether the plan is read on."""

    reason: str | None = None
    interrupted: bool = False
    _missed: int = attrs.field(init=False, default=0)

    def interrupt(self, task: asyncio.Task[object] | None) -> None:
        """Read no more; the second time, give up what is under way as well."""
        if self.interrupted and task is not None:
            task.cancel()
        self.interrupted = True

    def note(self, done: Distributed, end: End) -> None:
        """Stop where the rows behind have no chance."""
        if isinstance(done.error, CredentialError | UnsupportedError):
            self.reason = str(done.error)
        self._missed = self._missed + 1 if end == "not_sent" else 0
        if self._missed >= _GONE:
            self.reason = f"{_GONE} rows in a row were not sent: {done.error}"

    def through(self, rows: Iterator[PlanRow]) -> Iterator[PlanRow]:
        for row in rows:
            if self.reason or self.interrupted:
                return
            yield row


async def distribute(
    session: Session,
    rows: Iterator[PlanRow],
    results: Results,
    run: str,
    tell: Callable[[Summary], None],
) -> Summary:
    """
    Carry out a plan that has been checked.

    An interrupt (Ctrl-C, SIGTERM, SIGHUP) stops the reading of the plan; the rows
    that are under way end, and are in the results. A second one gives them up. A
    refusal of the token, and a service that is gone, stop it as well.

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
    task = asyncio.current_task()
    for number in _INTERRUPTS:
        loop.add_signal_handler(number, stop.interrupt, task)
    try:
        async for done in session.points.distribute(stop.through(rows), run=run):
            end = _end(done)
            try:
                results.add(done, end)
            except OSError as error:
                # The rows under way end all the same, and are counted.
                stop.reason = f"{results.path}: {error.strerror}; it is not complete"
            summary.ends[end] += 1
            if done.move is not None:
                summary.total += done.move.amount
            stop.note(done, end)
            summary.seconds = time.monotonic() - began
            summary.busy = session.gate.statistics().busy_answers - before
            tell(summary)
    finally:
        for number in _INTERRUPTS:
            loop.remove_signal_handler(number)
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
