"""``agentapi points``."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from aio_agentapi import PointMove
from aio_agentapi.cli import _show
from aio_agentapi.cli._agents import as_json_option
from aio_agentapi.cli._command import (
    WRONG,
    draft_of,
    guarded,
    last_words,
    open_session,
    runs,
    tell_reference,
)
from aio_agentapi.cli._distribute import Files, Summary, distribute
from aio_agentapi.cli._plan import Checked, Form, PlanFile
from aio_agentapi.errors import UsageError

_COLUMNS = (
    "move_id",
    "created_at",
    "from_code",
    "to_code",
    "amount",
    "balance",
    "reference",
)


@click.group()
def points() -> None:
    """Show and move points."""


@points.command()
@as_json_option
@click.pass_context
@runs
async def balance(context: click.Context, as_json: bool) -> None:
    """Show your points."""
    async with open_session(context) as session:
        amount = await session.points.balance()
    if as_json:
        _show.line({"balance": amount})
    else:
        click.echo(_show.money(amount))


@points.command()
@click.argument("agent_code", type=int)
@click.argument("amount")
@click.option("--reference", help="Your own name for the move: it moves once.")
@as_json_option
@click.pass_context
@runs
async def transfer(
    context: click.Context,
    agent_code: int,
    amount: str,
    reference: str | None,
    as_json: bool,
) -> None:
    """Move points from you to one of your children."""
    async with open_session(context) as session:
        await _move(
            session.points.transfer, agent_code, amount, reference, as_json=as_json
        )


@points.command()
@click.argument("agent_code", type=int)
@click.argument("amount")
@click.option("--reference", help="Your own name for the move: it moves once.")
@as_json_option
@click.pass_context
@runs
async def reclaim(
    context: click.Context,
    agent_code: int,
    amount: str,
    reference: str | None,
    as_json: bool,
) -> None:
    """Move points from one of your children back to you."""
    async with open_session(context) as session:
        await _move(
            session.points.reclaim, agent_code, amount, reference, as_json=as_json
        )


@points.command()
@click.option("--after", default=0, metavar="MOVE_ID", help="Only later moves.")
@as_json_option
@click.pass_context
@runs
async def history(context: click.Context, after: int, as_json: bool) -> None:
    """List the moves of points to and from you, the oldest first."""
    async with open_session(context) as session:
        await _show.rows(session.points.history(after), _COLUMNS, as_json=as_json)


@points.command("distribute")
@click.argument("plan", metavar="PLAN")
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    help="Where every row's outcome goes; beside the plan.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["csv", "jsonl"]),
    help="Of the plan; by the ending of its name.",
)
@click.option(
    "--journal",
    type=click.Path(path_type=Path),
    help="What keeps the state of the run; beside the plan.",
)
@as_json_option
@click.pass_context
@guarded
def distribute_(
    context: click.Context,
    plan: str,
    results: Path | None,
    form: Form | None,
    journal: Path | None,
    as_json: bool,
) -> int:
    """
    Move points to many of your children by a plan.

    PLAN is a CSV file with the columns agent_code, amount and, if wanted,
    reference; or JSON Lines with these members; or - for standard input, which
    needs --results. The whole plan is checked before anything is sent; if a row is
    malformed, nothing is.

    A run that was stopped, however hard, goes on with the same command: what has
    moved moves only once.
    """
    if plan == "-" and results is None:
        msg = "a plan from standard input needs --results"
        raise UsageError(msg)
    # Before there is an event loop: reading a long plan can be interrupted.
    file = PlanFile.open(plan, form)
    try:
        target = results or Path(f"{plan}.results.{file.form}")
        beside = f"{target if plan == '-' else plan}.journal"
        files = Files(journal or Path(beside), target)
        files.check()
        checked = file.check(draft_of(context).settings.amount_decimals)
        if checked.wrong_rows:
            _tell_wrong(file.name, checked)
            return WRONG
        summary = asyncio.run(_distribute(context, file, checked, files))
    finally:
        file.close()
    with last_words():
        if as_json:
            _show.line(summary.as_dict())
        else:
            click.echo("\n".join(summary_lines(summary)))
    return summary.code


async def _distribute(
    context: click.Context, file: PlanFile, checked: Checked, files: Files
) -> Summary:
    async with open_session(context) as session:
        # Before the journal is made: whatever is wrong with the account or the
        # service is said once, not on every row.
        await session.agents.info()
        with bar(checked.rows) as tell:
            return await distribute(session, file.rows(), files, tell)


def summary_lines(summary: Summary) -> Iterator[str]:
    """Write the end of a run for people."""
    ends = summary.ends
    if summary.before:
        yield f"had moved   {summary.before:,} rows in an earlier run"
    if summary.is_finished:
        yield "This run is finished: every row of the plan has moved."
        return
    yield f"moved       {ends['moved']:,} rows, {_show.money(summary.total)} points"
    for end, label in (
        ("refused", "refused   "),
        ("not_sent", "not sent  "),
        ("unknown", "unknown   "),
    ):
        if ends[end] or end == "refused":
            yield f"{label}  {ends[end]:,} rows"
    yield f"time        {summary.seconds:.2f} s, {summary.rate:,.0f} calls/s"
    yield f"1018 met    {summary.busy:,}"
    yield f"results     {summary.files.results}"
    if summary.stopped:
        stopped = _show.printable(summary.stopped)
        yield f"stopped     {stopped}; the rows behind were not sent"
    if summary.interrupted:
        yield "interrupted, the rows behind were not sent"
    if summary.stopped or summary.interrupted or ends["not_sent"] or ends["unknown"]:
        yield "The same command goes on: what has moved moves only once."


@contextmanager
def bar(rows: int) -> Generator[Callable[[Summary], None]]:
    """Show a progress bar while a plan runs, where somebody can see it."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    with Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:>6,.0f} calls/s"),
        TimeRemainingColumn(),
        console=console,
        refresh_per_second=10,
    ) as progress:
        task = progress.add_task("", total=rows, rate=0.0)
        yield lambda summary: progress.update(
            task, completed=summary.rows, rate=summary.rate
        )


def _tell_wrong(name: str, checked: Checked) -> None:
    for line, reason in checked.wrong:
        click.echo(f"{name}:{line}: {reason}", err=True)
    more = checked.wrong_rows - len(checked.wrong)
    if more:
        click.echo(f"and {more:,} more", err=True)
    click.echo(
        f"agentapi: {checked.wrong_rows:,} of"
        f" {checked.wrong_rows + checked.rows:,} rows cannot be used."
        " Nothing was sent.",
        err=True,
    )


async def _move(
    call: Callable[..., Awaitable[PointMove]],
    agent_code: int,
    amount: str,
    reference: str | None,
    *,
    as_json: bool,
) -> None:
    # Made here, so that it can be told whatever happens.
    reference = secrets.token_hex(16) if reference is None else reference
    try:
        move = await call(agent_code, amount, reference=reference)
    except asyncio.CancelledError:
        tell_reference(reference)
        raise
    with last_words():
        if as_json:
            _show.line(move)
        else:
            _show.facts([(column, getattr(move, column)) for column in _COLUMNS])
