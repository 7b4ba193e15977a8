"""The points of agents: what is in the wallets, and how they move down and up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Final, TypeAlias

import attrs

from aio_agentapi._batch import run_many
from aio_agentapi._channel import Channel
from aio_agentapi._progress import End, Noted, Progress, canonical
from aio_agentapi._types import AgentCode, Amount, Operation, Query, exact
from aio_agentapi.errors import AgentAPIError, RefusedError, UsageError

__all__ = [
    "Distributed",
    "Plan",
    "PlanRow",
    "PointMove",
    "Points",
]

# The service's own bound on the rows of a page.
_PAGE: Final = 2000

# Rows of a plan that are read at a stretch.
_TURN: Final = 1000

# Of a reference of 64 characters, what is left beside the position of a row.
_RUN: Final = re.compile(r"[!-~]{1,40}")


@attrs.frozen(kw_only=True)
class PointMove:
    """
    One move of points between two accounts.

    Attributes:
        move_id: The service's number of it, growing.

        from_code: Whose points they were; None: minted by the back office.

        to_code: Whose points they are.

        amount: How many, in major units.

        balance: The caller's points after it.

        reference: The name that made it repeatable, None where it had none.

        created_at: When, with its zone.
    """

    move_id: int
    from_code: AgentCode | None = None
    to_code: AgentCode
    amount: Decimal
    balance: Decimal
    reference: str | None = None
    created_at: datetime


@attrs.frozen
class PlanRow:
    """
    One row of a plan of points.

    Attributes:
        agent_code: A direct child of the caller.

        amount: How many points it gets, in major units.

        reference: The caller's own name for the move. None: one is made.

        line: Where it stands in its file. None: its position in the plan, from 1.
    """

    agent_code: AgentCode
    amount: Amount
    reference: str | None = None
    line: int | None = None


Plan: TypeAlias = (
    Iterable[PlanRow | tuple[AgentCode, Amount]]
    | AsyncIterable[PlanRow | tuple[AgentCode, Amount]]
)


@attrs.frozen(kw_only=True)
class Distributed:
    """
    What became of one row of a plan.

    Attributes:
        line: The row's own, or its position in the plan, from 1.

        row: What the plan says.

        reference: What makes it repeatable: sent again with this, it moves nothing
            a second time.

        move: The move, None where there is an error.

        error: Why there is none; its ``happened`` says whether it still may be.
    """

    line: int
    row: PlanRow
    reference: str
    move: PointMove | None = None
    error: AgentAPIError | None = None

    @property
    def end(self) -> End:
        """Its end is ``moved``, ``refused``, ``not_sent`` or ``unknown``."""
        if self.error is None:
            return "moved"
        if self.error.happened == "maybe":
            return "unknown"
        return "refused" if isinstance(self.error, RefusedError) else "not_sent"


@attrs.frozen(kw_only=True)
class _Balance:
    balance: Decimal


_BALANCE: Final = Operation(name="points.balance", effect="read", returns=_Balance)
_TRANSFER: Final = Operation(
    name="points.transfer",
    effect="idempotent",
    returns=PointMove,
    echoes={"agent_code": "to_code", "amount": "amount", "reference": "reference"},
)
_RECLAIM: Final = Operation(
    name="points.reclaim",
    effect="idempotent",
    returns=PointMove,
    echoes={"agent_code": "from_code", "amount": "amount", "reference": "reference"},
)
_HISTORY: Final = Operation(
    name="points.history", effect="read", returns=list[PointMove]
)


@attrs.frozen(eq=False)
class Points:
    """
    The caller's points, and those of its direct children.

    Every move carries a reference, the caller's or one made here. The service
    answers a reference that it has seen with the first move and moves nothing, so
    a move is safe to send again, and is sent again when an answer was lost.
    """

    _channel: Channel = attrs.field(alias="channel", repr=False)

    async def balance(self) -> Decimal:
        """
        Return the caller's points.

        Returns:
            Major units, exact.

        Raises:
            CredentialError: The token, or this machine's address, is not accepted.

        Source:
            Contract 5, agents: ``agent/info``.
        """
        return (await self._channel.call(Query(_BALANCE, {}))).balance

    async def transfer(
        self, agent_code: AgentCode, amount: Amount, *, reference: str | None = None
    ) -> PointMove:
        """
        Move points from the caller to a direct child.

        Args:
            agent_code: Who gets them.

            amount: Major units, more than zero, at most four decimals.

            reference: Up to 64 visible ASCII characters, new for each move: the
                same again moves nothing. None: one is made.

        Returns:
            The move, with the caller's points after it.

        Raises:
            AmountError: The amount is not one. Nothing was sent.

            FundsError: The caller has too few points. Nothing moved.

            ForbiddenError: Not a direct child. Nothing moved.

            NotFoundError: There is no such account. Nothing moved.

            InvalidError: The reference stands for another move. Nothing moved.

            OutcomeUnknownError: Every answer was lost. It may have happened: call
                again with the ``reference`` that the error carries.

        Source:
            Contract 5, points: ``points/transfer``.
        """
        return await self._move(_TRANSFER, agent_code, amount, reference)

    async def reclaim(
        self, agent_code: AgentCode, amount: Amount, *, reference: str | None = None
    ) -> PointMove:
        """
        Move points from a direct child back to the caller.

        Args:
            agent_code: Who gives them.

            amount: Major units, more than zero, at most four decimals.

            reference: Up to 64 visible ASCII characters, new for each move: the
                same again moves nothing. None: one is made.

        Returns:
            The move, with the caller's points after it.

        Raises:
            AmountError: The amount is not one. Nothing was sent.

            FundsError: The child has too few points. Nothing moved.

            ForbiddenError: Not a direct child. Nothing moved.

            NotFoundError: There is no such account. Nothing moved.

            InvalidError: The reference stands for another move. Nothing moved.

            OutcomeUnknownError: Every answer was lost. It may have happened: call
                again with the ``reference`` that the error carries.

        Source:
            Contract 5, points: ``points/reclaim``.
        """
        return await self._move(_RECLAIM, agent_code, amount, reference)

    async def history(self, after: int = 0) -> AsyncIterator[PointMove]:
        """
        Iterate over the moves in which the caller is either side.

        Args:
            after: A move_id; it and those before it are left out. 0: from the start.

        Yields:
            The oldest first.

        Raises:
            CredentialError: The token, or this machine's address, is not accepted.

        Source:
            Contract 5, points: ``points/history``.
        """
        while True:
            body = {"last_id": after, "limit": _PAGE}
            page = await self._channel.call(Query(_HISTORY, body))
            for move in page:
                yield move
            if len(page) < _PAGE:
                return
            after = page[-1].move_id

    async def distribute(
        self,
        plan: Plan,
        *,
        journal: str | os.PathLike[str] | None = None,
        run: str | None = None,
    ) -> AsyncGenerator[Distributed]:
        """
        Move points to many direct children, at full speed in the batch lane.

        The plan may be of any length: rows are taken as there is room for them,
        and memory does not grow with it. A row that fails stops no other.

        With a journal it goes on where it was stopped, by whatever: the same plan
        with the same journal moves what has not moved, and nothing twice. A run
        that has come to its end yields nothing when it is run again, unless rows
        failed: those are tried again.

        Args:
            plan: Rows, or pairs of agent_code and amount.

            journal: A file that keeps what became of each row, made if it is not
                there. None: nothing is kept.

            run: A name of this run, up to 40 visible ASCII characters: a row
                without a reference gets this and its position, so the same plan
                under the same name moves nothing twice. None: a new one, or that
                of the journal.

        Yields:
            What became of each row, as it comes, not in the order of the plan; of
            those that have moved before, nothing.

        Raises:
            UsageError: A name of the run that cannot be, or is not the journal's;
                or the plan is another than the journal's, with the first line that
                differs. Nothing was sent.

            JournalError: The journal cannot be read or written. Nothing was sent,
                or, in the middle of a run, it is safe to run it again: nothing
                moved twice.

            Exception: What the plan raised while it was read, after what became
                of the rows before it.

        Source:
            Contract 5, points: ``points/transfer``.
        """
        if run is not None and not _RUN.fullmatch(run):
            msg = "run: 1 to 40 visible ASCII characters"
            raise UsageError(msg)
        channel = attrs.evolve(
            self._channel, settings=attrs.evolve(self._channel.settings, lane="batch")
        )
        batch = Points(channel)
        async with contextlib.AsyncExitStack() as stack:
            progress = None
            if journal is not None:
                progress = await Progress.open(Path(journal), run)
                stack.push_async_callback(progress.aclose)
                run = progress.run
            jobs = _jobs(plan, run or secrets.token_hex(8))
            if progress is not None:
                jobs = _unfinished(progress, jobs)
            outcomes = await stack.enter_async_context(
                contextlib.aclosing(run_many(batch._give, jobs))
            )
            async for outcome in outcomes:
                if outcome.error is not None:
                    raise outcome.error
                if outcome.value is None:
                    continue
                if progress is not None and outcome.item.noted is not None:
                    _note(progress, outcome.item.noted, outcome.value)
                    if progress.is_due:
                        await progress.write()
                yield outcome.value

    async def _give(self, job: _Job) -> Distributed:
        move, error = None, None
        try:
            move = await self.transfer(
                job.row.agent_code, job.row.amount, reference=job.reference
            )
        except AgentAPIError as caught:
            error = caught
        return Distributed(
            line=job.line,
            row=job.row,
            reference=job.reference,
            move=move,
            error=error,
        )

    async def _move(
        self,
        operation: Operation[PointMove],
        agent_code: AgentCode,
        amount: Amount,
        reference: str | None,
    ) -> PointMove:
        body = {
            "agent_code": agent_code,
            "amount": exact(amount, self._channel.settings.amount_decimals),
            "reference": secrets.token_hex(16) if reference is None else reference,
        }
        return await self._channel.call(Query(operation, body))


@attrs.frozen
class _Job:
    """A row of a plan, with all that its move needs."""

    position: int
    line: int
    row: PlanRow
    reference: str
    # What a journal has of it.
    noted: Noted | None = None


async def _jobs(plan: Plan, run: str) -> AsyncGenerator[_Job]:
    position = 0
    if isinstance(plan, AsyncIterable):
        async for row in plan:
            position += 1
            yield _job(position, row, run)
    else:
        for row in plan:
            position += 1
            yield _job(position, row, run)


def _job(position: int, row: PlanRow | tuple[AgentCode, Amount], run: str) -> _Job:
    full = row if isinstance(row, PlanRow) else PlanRow(*row)
    line = position if full.line is None else full.line
    # By position: lines are the caller's, and two rows may have the same.
    return _Job(position, line, full, full.reference or f"{run}-{position}")


async def _unfinished(
    progress: Progress, jobs: AsyncGenerator[_Job]
) -> AsyncGenerator[_Job]:
    """Leave out what has moved already, and note what is taken."""

    async def notes() -> AsyncGenerator[Noted]:
        async for job in jobs:
            yield _noted(job)
            if job.position % _TURN == 0:
                # A long plan that is compared leaves the loop to others.
                await asyncio.sleep(0)

    async with contextlib.aclosing(progress.through(notes())) as rows:
        async for noted in rows:
            yield _as_job(noted)


def _noted(job: _Job) -> Noted:
    row = job.row
    return Noted(
        job.position,
        job.line,
        row.agent_code,
        canonical(row.amount),
        job.reference,
        row.reference is not None,
        row=row,
    )


def _as_job(noted: Noted) -> _Job:
    row = noted.row
    if not isinstance(row, PlanRow):
        # Of an earlier run.
        reference = noted.reference if noted.own else None
        row = PlanRow(noted.agent_code, noted.amount, reference, noted.line)
    return _Job(noted.position, noted.line, row, noted.reference, noted)


def _note(progress: Progress, noted: Noted, done: Distributed) -> None:
    noted.phase = done.end
    noted.code = noted.reason = None
    if done.move is not None:
        noted.move_id = done.move.move_id
    if done.error is not None:
        noted.reason = done.error.message
    if isinstance(done.error, RefusedError):
        noted.code = done.error.code
    progress.note(noted)
