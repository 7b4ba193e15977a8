"""The main job: a plan of points, carried out, with every row's outcome on file."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Final, TextIO

import attrs
import msgspec

from aio_agentapi import Distributed, PlanRow, Session
from aio_agentapi._progress import Noted, Progress
from aio_agentapi.cli._command import (
    DONE,
    INTERRUPTED,
    NOT_REACHED,
    REFUSED,
    UNKNOWN,
)
from aio_agentapi.errors import (
    CredentialError,
    JournalError,
    UsageError,
)

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

# Rows in a row that were not sent, or whose outcome is unknown, after which the service
# is taken for gone, or for one that lacks the path.
_GONE: Final = 100

_INTERRUPTS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_ENCODER: Final = msgspec.json.Encoder(decimal_format="number")


@attrs.frozen
class Files:
    """
    What a run leaves beside its plan.

    Attributes:
        journal: What became of each row, while it runs and afterwards.

        results: The same for people and other programs, made from the journal when
            the run ends: CSV, or JSON Lines by the ending of its name.
    """

    journal: Path
    results: Path

    def check(self) -> None:
        """
        Tell that no results are in the way that the journal does not tell of.

        Raises:
            UsageError: They are.
        """
        if self.results.exists() and not self.journal.exists():
            msg = (
                f"{self.results}: exists, and without {self.journal} it is not of a run"
                " that can go on. Move it away, or give other --results"
            )
            raise UsageError(msg)
        if not self.results.parent.is_dir():
            msg = f"{self.results}: there is no such folder"
            raise UsageError(msg)

    async def write(self) -> Counter[str]:
        """
        Make the results from the journal, all at once; return how rows ended.

        Raises:
            OSError: They cannot be written. The journal has them all the same.
        """
        progress = await Progress.open(self.journal, None)
        ends: Counter[str] = Counter()
        try:
            with _replacing(self.results) as file:
                write = self._writer(file)
                for row in progress.rows():
                    # Whoever was interrupted twice has left some under way.
                    end = "unknown" if row.phase == "taken" else row.phase
                    ends[end] += 1
                    write(_told(row, end))
        finally:
            await progress.aclose()
        return ends

    def _writer(self, file: TextIO) -> Callable[[dict[str, object]], object]:
        if self.results.suffix in {".jsonl", ".ndjson"}:
            return lambda row: file.write(_line(row))
        writer: csv.DictWriter[str] = csv.DictWriter(
            file, _COLUMNS, lineterminator="\n"
        )
        writer.writeheader()
        return writer.writerow


def _told(row: Noted, end: str) -> dict[str, object]:
    return {
        "line": row.line,
        "agent_code": row.agent_code,
        "amount": row.amount,
        "reference": row.reference,
        "outcome": end,
        "move_id": row.move_id,
        "code": row.code,
        "reason": row.reason,
    }


def _line(row: dict[str, object]) -> str:
    # A number, as exact as it is.
    return (
        _ENCODER.encode({**row, "amount": Decimal(str(row["amount"]))}).decode() + "\n"
    )


@contextmanager
def _replacing(path: Path) -> Generator[TextIO]:
    """Write a file that is there as a whole, or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@attrs.define(eq=False)
class Summary:
    """How a run ended."""

    files: Files
    ends: Counter[str] = attrs.field(factory=Counter)
    total: Decimal = Decimal(0)
    # Of all runs of the plan.
    all_ends: Counter[str] = attrs.field(factory=Counter)
    busy: int = 0
    seconds: float = 0.0
    stopped: str | None = None
    interrupted: bool = False

    @property
    def rows(self) -> int:
        """How many rows came to an end."""
        return self.ends.total()

    @property
    def before(self) -> int:
        """How many rows an earlier run had moved."""
        return self.all_ends["moved"] - self.ends["moved"]

    @property
    def is_finished(self) -> bool:
        """Whether there was nothing left to do."""
        return not (self.ends or self.stopped or self.interrupted)

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
            # A name that is no UTF-8 has no JSON form.
            "journal": os.fsencode(self.files.journal).decode("utf-8", "replace"),
            "results": os.fsencode(self.files.results).decode("utf-8", "replace"),
            "moved_before": self.before,
            **{end: self.ends[end] for end in ("moved", "refused")},
            **{end: self.ends[end] for end in ("not_sent", "unknown")},
            "total": self.total,
            "busy_answers": self.busy,
            "seconds": round(self.seconds, 3),
            "calls_per_second": round(self.rate, 1),
            "stopped": self.stopped,
            "interrupted": self.interrupted,
        }


class _Stopped(Exception):  # noqa: N818 - no error: somebody wants it so
    """The plan is not read on."""


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

    def note(self, done: Distributed) -> None:
        """Stop where the rows behind have no chance."""
        if isinstance(done.error, CredentialError):
            self.reason = str(done.error)
        missed = done.end in {"not_sent", "unknown"}
        self._missed = self._missed + 1 if missed else 0
        if self._missed >= _GONE:
            self.reason = f"{_GONE} rows in a row did not get through: {done.error}"

    def through(self, rows: Iterator[PlanRow]) -> Iterator[PlanRow]:
        for row in rows:
            if self.reason or self.interrupted:
                # No end of the plan: the journal would take it for one.
                raise _Stopped
            yield row


async def distribute(
    session: Session,
    rows: Iterator[PlanRow],
    files: Files,
    tell: Callable[[Summary], None],
) -> Summary:
    """
    Carry out a plan that has been checked, or what is left of it.

    An interrupt (Ctrl-C, SIGTERM, SIGHUP) stops the reading of the plan; the rows
    that are under way end, and are in the results. A second one gives them up. A
    refusal of the token, and a service that is gone, stop it as well.

    Args:
        session: Whose points are moved.

        rows: The plan.

        files: Its journal, and where every row's outcome is written.

        tell: Called after each row.

    Returns:
        How it ended.

    Raises:
        UsageError: The plan is another than the journal's. Nothing was sent.
    """
    stop = _Stop()
    summary = Summary(files)
    before = session.gate.statistics().busy_answers
    began = time.monotonic()
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    for number in _INTERRUPTS:
        loop.add_signal_handler(number, stop.interrupt, task)
    try:
        run = session.points.distribute(stop.through(rows), journal=files.journal)
        async with contextlib.aclosing(run) as ended:
            async for done in ended:
                summary.ends[done.end] += 1
                if done.move is not None:
                    summary.total += done.move.amount
                stop.note(done)
                summary.seconds = time.monotonic() - began
                summary.busy = session.gate.statistics().busy_answers - before
                tell(summary)
    except _Stopped:
        pass
    except JournalError as error:
        stop.reason = str(error)
    finally:
        for number in _INTERRUPTS:
            loop.remove_signal_handler(number)
    try:
        summary.all_ends = await files.write()
    except (OSError, JournalError) as error:
        summary.all_ends = summary.ends
        why = getattr(error, "strerror", None) or error
        stop.reason = stop.reason or f"{files.results}: {why}; the journal has it all"
    summary.stopped, summary.interrupted = stop.reason, stop.interrupted
    return summary
