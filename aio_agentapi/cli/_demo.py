"""``agentapi demo``: the main job on the stand-in, from nothing."""

from __future__ import annotations

import asyncio
import csv
import math
import random
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Final

import attrs
import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from aio_agentapi import NewAgent, Session, SessionManager, run_many
from aio_agentapi.cli._command import REFUSED, runs
from aio_agentapi.cli._distribute import Files, Summary, distribute
from aio_agentapi.cli._plan import PlanFile
from aio_agentapi.cli._points import summary_lines
from aio_agentapi.errors import UsageError
from aio_agentapi.sandbox import Gauge, SandboxProcess, Switches

_OPERATOR: Final = "operator"
_FOREIGN: Final = 20
_POINTS: Final = 100_000_000
# Seconds between two looks at the gauge.
_LOOK: Final = 0.1


@attrs.define(eq=False)
class _Check:
    """What is found at the end, and whether it is as promised."""

    failed: int = 0

    def that(self, *, holds: bool, text: str) -> None:
        self.failed += not holds
        mark = click.style("ok", fg="green") if holds else click.style("NO", fg="red")
        click.echo(f"  {mark}  {text}")


@click.command()
@click.option("--agents", default=500, show_default=True, help="How many agents.")
@click.option("--rows", default=5000, show_default=True, help="Rows of each plan.")
@click.option(
    "--latency", default=0.02, show_default=True, help="Seconds that a call takes."
)
@runs
async def demo(agents: int, rows: int, latency: float) -> int:
    """
    Show the main job on a stand-in service of its own: no account is needed.

    An operator with many agents distributes points by a plan; then somebody else
    takes 20 of the token's 50 permits, and a second plan runs all the same.
    """
    if agents < 1 or rows < 1 or not 0 <= latency < math.inf:
        msg = "--agents and --rows are at least 1, and --latency at least 0"
        raise UsageError(msg)
    check = _Check()
    with tempfile.TemporaryDirectory(prefix="agentapi-demo-") as folder:
        async with SandboxProcess(Switches(latency=latency)) as box:
            click.echo(f"A stand-in service runs at {box.base_url}.")
            await box.mint(_OPERATOR, _POINTS)
            async with SessionManager(box.base_url, accounts={**box.tokens}) as manager:
                show = _Show(box, manager.session(_OPERATOR), Path(folder), check)
                await show.run(agents, rows)
    if check.failed:
        click.echo(f"{check.failed} of the promises did not hold.", err=True)
        return REFUSED
    click.echo("Every promise held.")
    return 0


@attrs.define(eq=False)
class _Show:
    """One run of the demo."""

    _box: SandboxProcess = attrs.field(alias="box")
    _session: Session = attrs.field(alias="session")
    _folder: Path = attrs.field(alias="folder")
    _check: _Check = attrs.field(alias="check")
    _expected: dict[int, Decimal] = attrs.field(init=False, factory=dict)

    async def run(self, agents: int, rows: int) -> None:
        began = time.monotonic()
        async for outcome in run_many(self._create, range(agents)):
            if outcome.error is not None:
                raise outcome.error
            if outcome.value is not None:
                self._expected[outcome.value.agent.agent_code] = Decimal(0)
        took = time.monotonic() - began
        click.echo(f"The operator has {agents} new agents, made in {took:.1f} s.")

        click.echo(f"\nA plan of {rows:,} rows, the token to itself:")
        await self._plan("first", rows)

        click.echo(f"\nOthers hold {_FOREIGN} of its 50 permits, and a second plan:")
        await self._box.foreign(_OPERATOR, _FOREIGN)
        await self._plan("second", rows)
        await self._box.foreign(_OPERATOR, 0)

        click.echo("\nWhat the service has in its books:")
        gauge = await self._box.gauge(_OPERATOR)
        self._check.that(
            holds=gauge.foreign_peak <= 50,  # noqa: PLR2004 - the service's number
            text=f"never more than 50 in flight: the peak was {gauge.foreign_peak}",
        )
        found = {
            agent.agent_code: agent.balance
            async for agent in self._session.agents.list()
        }
        wrong = sum(found[code] != points for code, points in self._expected.items())
        total = sum(self._expected.values())
        self._check.that(
            holds=not wrong,
            text=f"all {agents} agents have what the plans say, {total:,} in all",
        )
        minted, held = await self._box.audit()
        self._check.that(
            holds=minted == held,
            text=f"{minted:,f} points were minted, and {held:,f} are there",
        )

    async def _create(self, number: int) -> NewAgent:
        return await self._session.agents.create(f"shop_{number + 1000}")

    async def _plan(self, name: str, rows: int) -> None:
        """Write a plan to a file, and carry it out."""
        path = self._folder / f"{name}.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("agent_code", "amount"))
            for code, amount in self._random_rows(name, rows):
                self._expected[code] += amount
                writer.writerow((code, amount))
        plan = PlanFile.open(str(path), None)
        plan.check()
        files = Files(path.with_suffix(".journal"), path.with_suffix(".results.csv"))
        async with self._progress(rows) as state:
            summary = await distribute(self._session, plan.rows(), files, state.tell)
        plan.close()
        for text in summary_lines(summary):
            if not text.startswith("results"):
                click.echo(f"  {text}")
        click.echo(f"  in flight   {state.seen} at the most, as the service saw it")
        self._check.that(
            holds=summary.ends["moved"] == rows,
            text=f"{summary.ends['moved']:,} of {rows:,} rows moved, none failed",
        )

    def _random_rows(self, name: str, rows: int) -> Iterator[tuple[int, Decimal]]:
        dice = random.Random(name)  # noqa: S311 - the same plan each time
        codes = [*self._expected]
        for _ in range(rows):
            yield dice.choice(codes), Decimal(dice.randint(1, 10_000_000)).scaleb(-4)

    @asynccontextmanager
    async def _progress(self, rows: int) -> AsyncGenerator[_Progress]:
        """Look at the gauge of the service while a plan runs."""
        console = Console(stderr=True)
        # Narrow enough for a terminal of 80 columns.
        bar = Progress(
            BarColumn(10),
            TextColumn("{task.completed:>6,}", table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[rate]:>6,.0f} calls/s"),
            TextColumn("in flight {task.fields[gauge]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        state = _Progress(bar, bar.add_task("", total=rows, rate=0.0, gauge=""))
        with bar:
            looking = asyncio.create_task(self._look(state))
            try:
                yield state
            finally:
                looking.cancel()
                await asyncio.wait([looking])

    async def _look(self, state: _Progress) -> None:
        while True:
            state.look(await self._box.gauge(_OPERATOR))
            await asyncio.sleep(_LOOK)


@attrs.define(eq=False)
class _Progress:
    """The bar of one plan, and the most calls that were seen in flight."""

    _bar: Progress = attrs.field(alias="bar")
    _task: int = attrs.field(alias="task")
    seen: int = attrs.field(init=False, default=0)

    def tell(self, summary: Summary) -> None:
        self._bar.update(self._task, completed=summary.rows, rate=summary.rate)  # type: ignore[arg-type]  # TaskID is an int

    def look(self, gauge: Gauge) -> None:
        self.seen = max(self.seen, gauge.in_flight)
        total = gauge.in_flight + gauge.foreign
        # One mark for two permits: ours, others', free.
        ours, others, free = gauge.in_flight, gauge.foreign, max(0, 50 - total)
        bars = "#" * (ours // 2) + "x" * (others // 2) + "." * (free // 2)
        self._bar.update(self._task, gauge=f"{gauge.in_flight:>2} {bars}")  # type: ignore[arg-type]  # as above
