"""What became of the rows of a plan: kept, compared, gone on with."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import threading
from collections.abc import AsyncGenerator, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from aio_agentapi import Distributed, PlanRow, Session
from aio_agentapi._progress import Noted, Progress, canonical
from aio_agentapi.errors import JournalError, UsageError
from aio_agentapi.sandbox import Sandbox


def plan(box: Sandbox, rows: int) -> list[tuple[int, str]]:
    """Make a plan for two shops."""
    codes = [box.account(name).code for name in ("shop_1", "shop_2")]
    return [(codes[number % 2], "0.5") for number in range(rows)]


async def carry_out(session: Session, rows: Any, path: Path) -> list[Distributed]:
    """Run a plan to its end."""
    return [done async for done in session.points.distribute(rows, journal=path)]


async def test_a_run_goes_on_where_it_was_stopped(
    box: Sandbox, session: Session, tmp_path: Path
) -> None:
    """By leaving it; what has moved is left out, and all of it moves once."""
    path, rows = tmp_path / "plan.journal", plan(box, 1500)
    seen = 0
    async for done in session.points.distribute(iter(rows), journal=path):
        assert done.end == "moved"
        seen += 1
        if seen == 700:
            break
    rest = await carry_out(session, rows, path)
    assert 300 < len(rest) <= 800
    assert await session.points.balance() == 500_000 - 750
    assert await carry_out(session, rows, path) == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    progress = await Progress.open(path, None)
    noted = list(progress.rows())
    await progress.aclose()
    assert progress.finished == 1500
    assert [row.position for row in noted] == [*range(1, 1501)]
    assert len({row.move_id for row in noted}) == 1500


async def test_rows_that_failed_are_tried_again(
    box: Sandbox, session: Session, tmp_path: Path
) -> None:
    """Refused ones, and such as cannot be; with the line and the row they had."""
    path, shop = tmp_path / "j", box.account("shop_1").code
    rows = [
        PlanRow(shop, Decimal("1.50"), "mine", line=7),
        PlanRow(shop, 10**9, line=8),
        PlanRow(shop, 0.5, line=9),  # type: ignore[arg-type]  # a float
    ]
    ends = {d.line: d for d in await carry_out(session, rows, path)}
    assert [ends[line].end for line in (7, 8, 9)] == ["moved", "refused", "not_sent"]
    box.mint(box.account("operator"), 10**9)
    (again, wrong) = sorted(await carry_out(session, rows, path), key=lambda d: d.line)
    assert (again.line, again.end, again.row.amount) == (8, "moved", "1000000000")
    assert (wrong.line, wrong.end) == (9, "not_sent")


async def test_another_plan_is_refused(
    box: Sandbox, session: Session, tmp_path: Path
) -> None:
    """With the first line that differs, and before anything of it is sent."""
    path, rows = tmp_path / "j", plan(box, 10)
    await carry_out(session, rows, path)
    served = box.gauge("operator").served
    shop = rows[0][0]
    for other, said in (
        ([*rows[:4], (shop, "0.6"), *rows[5:]], "line 5: "),
        ([*rows[:4], PlanRow(shop, "0.5", "x"), *rows[5:]], "0.5 for .* as x"),
        (rows[:9], "line 10: .* ends before it"),
        ([*rows, (shop, 1)], "line 11: "),
    ):
        with pytest.raises(UsageError, match=said):
            await carry_out(session, other, path)
    assert box.gauge("operator").served == served
    assert await carry_out(session, [(c, Decimal("0.50")) for c, _ in rows], path) == []


async def test_a_run_has_one_name(
    box: Sandbox, session: Session, tmp_path: Path
) -> None:
    """That of its journal."""
    path, rows = tmp_path / "j", plan(box, 2)
    run = session.points.distribute(rows, journal=path, run="mine")
    assert sorted([d.reference async for d in run]) == ["mine-1", "mine-2"]
    with pytest.raises(UsageError, match="'mine', not 'other'"):
        await anext(session.points.distribute(rows, journal=path, run="other"))


async def test_two_runs_of_a_plan_at_once_are_one(
    box: Sandbox, session: Session, tmp_path: Path
) -> None:
    """The second is told, and sends nothing."""
    path, rows = tmp_path / "j", plan(box, 400)
    run = session.points.distribute(rows, journal=path)
    await anext(run)
    with pytest.raises(UsageError, match="another run"):
        await carry_out(session, rows, path)
    await run.aclose()
    await carry_out(session, rows, path)
    assert await session.points.balance() == 500_000 - 200


async def test_what_is_no_journal_is_not_taken_for_one(
    session: Session, tmp_path: Path
) -> None:
    """Another database, a text, a folder, no folder."""
    foreign = tmp_path / "foreign"
    with sqlite3.connect(foreign) as sql:
        sql.execute("CREATE TABLE x (y)")
    sql.close()
    text = tmp_path / "text"
    text.write_text("agent_code,amount\n" * 100)
    for path, kind in (
        (foreign, UsageError),
        (text, JournalError),
        (tmp_path, JournalError),
        (tmp_path / "no" / "j", JournalError),
    ):
        with pytest.raises(kind, match="Nothing was sent"):
            await carry_out(session, [(1, 1)], path)
    assert text.read_text().startswith("agent_code")


async def test_a_group_that_cannot_be_written_stops_the_run(
    box: Sandbox, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written without it; the next run goes on, and all moves once."""
    path, rows = tmp_path / "j", plan(box, 2500)
    write, calls = Progress._write, 0

    def full(self: Progress, group: list[tuple[object, ...]]) -> None:
        nonlocal calls
        calls += 1
        if calls in {2, 3}:
            msg = "database or disk is full"
            raise sqlite3.OperationalError(msg)
        write(self, group)

    monkeypatch.setattr(Progress, "_write", full)
    with pytest.raises(JournalError, match=r"full.*safe to send again"):
        await carry_out(session, rows, path)
    await carry_out(session, rows, path)
    assert await session.points.balance() == 500_000 - 1250
    progress = await Progress.open(path, None)
    assert len(list(progress.rows())) == 2500
    await progress.aclose()


async def test_rows_that_were_not_noted_are_sent(
    box: Sandbox, session: Session, tmp_path: Path
) -> None:
    """A hole in the journal is filled from the plan."""
    path, rows = tmp_path / "j", plan(box, 10)
    await carry_out(session, rows, path)
    with sqlite3.connect(path) as sql:
        sql.execute("DELETE FROM rows WHERE position IN (3, 4, 10)")
        sql.execute("UPDATE run SET rows = NULL")
    sql.close()
    again = await carry_out(session, rows, path)
    assert sorted(done.line for done in again) == [3, 4, 10]
    assert await session.points.balance() == 500_000 - 5


async def test_what_the_plan_raises_is_no_end_of_it(
    box: Sandbox, session: Session, tmp_path: Path
) -> None:
    """The run is not finished: the same plan goes on, whole."""
    path, rows = tmp_path / "j", plan(box, 10)

    def broken() -> Iterator[tuple[int, str]]:
        yield from rows[:5]
        msg = "the source is gone"
        raise OSError(msg)

    async def whole() -> AsyncGenerator[tuple[int, str]]:
        for row in rows:
            yield row

    with pytest.raises(OSError, match="the source"):
        await carry_out(session, broken(), path)
    assert len(await carry_out(session, whole(), path)) == 5


def noted(position: int, phase: Any = "taken") -> Noted:
    """Make what is kept of a row."""
    return Noted(position, position, 7, "5", f"run-{position}", own=False, phase=phase)


async def test_a_group_whose_writing_is_cancelled_is_written_with_the_next(
    tmp_path: Path,
) -> None:
    """In its place, and each row as it was noted last."""
    progress = await Progress.open(tmp_path / "j", "run")
    busy = threading.Event()
    # The disk takes its time.
    progress._thread.submit(busy.wait)
    for position in (1, 2):
        progress.note(noted(position))
    writing = asyncio.ensure_future(progress.write())
    while progress._fresh:
        await asyncio.sleep(0)
    # Both have gone to the thread, where nothing of them is written yet.
    progress.note(noted(3))
    progress.note(noted(2, "moved"))
    writing.cancel()
    await asyncio.wait([writing])
    assert writing.cancelled()
    busy.set()
    assert [row.position for row in progress._fresh.values()] == [1, 2, 3]
    await progress.write()
    found = [(row.position, row.phase) for row in progress.rows()]
    assert found == [(1, "taken"), (2, "moved"), (3, "taken")]
    await progress.aclose()


@pytest.mark.parametrize(
    ("one", "other"),
    [("5", Decimal("5.0000")), (5, "5."), ("0.50", ".5"), (100, Decimal(100))],
)
def test_equal_amounts_read_the_same(one: Any, other: Any) -> None:
    """However they are written."""
    assert canonical(one) == canonical(other)
