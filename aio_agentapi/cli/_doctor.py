"""
``agentapi doctor``: what is wrong between here and the service, and what to do.

A table of checks, each of which looks at one thing and names those that it needs. They
run side by side as far as these allow, all of them before one end: whatever hangs, the
doctor does not. What a failed check stands in the way of is skipped, not failed.

Nothing is written and nothing moved. The service is asked ``agent/info`` a few times,
one after the other, and ``game/online-games`` once. These calls go past a shared gate,
which may be what is ill.

The token, and the passwords of proxy and store, are looked at and not told: no finding
is made of them, and what others say is written only after they were blotted out.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

import click
import msgspec

from aio_agentapi.cli._agents import as_json_option
from aio_agentapi.cli._checks import _journal, _network, _service, _setup, _store
from aio_agentapi.cli._checks._patient import Finding, Patient, State, aside, wrong
from aio_agentapi.cli._command import DONE, UNWELL, alone, draft_of, runs
from aio_agentapi.cli._payments import any_journal_option
from aio_agentapi.cli._show import printable

# Seconds for all checks: ten with the start and the end of Python on a busy machine.
_ALL: Final = 5.5

_COLOURS: Final[Mapping[State, str]] = {
    "ok": "green",
    "note": "yellow",
    "wrong": "red",
    "skipped": "bright_black",
}


async def _look_up(host: Any, port: Any, **terms: Any) -> Any:  # noqa: ANN401 - as the loop's own
    return await aside(lambda: socket.getaddrinfo(host, port, **terms))


_Look: TypeAlias = Callable[[Patient], Awaitable[Finding]]

# Each check, what it looks with, and those that it needs, which stand above it.
_CHECKS: Final[Mapping[str, tuple[_Look, tuple[str, ...]]]] = {
    "versions": (_setup.versions, ()),
    "config": (_setup.config, ()),
    "token": (_setup.token, ("config",)),
    "base_url": (_setup.base_url, ("config",)),
    "proxy": (_network.proxy, ("base_url",)),
    "name": (_network.name, ("proxy",)),
    "connection": (_network.connection, ("name",)),
    "tls": (_network.tls, ("connection",)),
    "clock": (_network.clock, ("tls",)),
    "answer": (_service.answer, ("tls", "token")),
    "others": (_service.others, ("answer",)),
    "accepted": (_service.accepted, ("others",)),
    "allowed_ip": (_service.allowed_ip, ("accepted",)),
    "account": (_service.account, ("allowed_ip",)),
    "zone": (_service.zone, ("account", "clock")),
    "latency": (_service.latency, ("account",)),
    "gate": (_store.gate, ("token",)),
    "journal": (_journal.journal, ("token",)),
}


async def _examine(
    patient: Patient, tell: Callable[[str, Finding], None]
) -> Collection[Finding]:
    """Carry out all checks, and tell each as soon as it and those above are done."""
    tasks: dict[str, asyncio.Task[Finding]] = {}
    try:
        async with asyncio.TaskGroup() as group:
            for name, (look, needs) in _CHECKS.items():
                needed = {other: tasks[other] for other in needs}
                tasks[name] = group.create_task(_check(look, needed, patient))
            for name, task in tasks.items():
                tell(name, await task)
    finally:
        patient.part()
    return [task.result() for task in tasks.values()]


async def _check(
    look: _Look, needed: Mapping[str, asyncio.Task[Finding]], patient: Patient
) -> Finding:
    for name, task in needed.items():
        if (await task).state in {"wrong", "skipped"}:
            return Finding("skipped", f"needs {name}")
    try:
        async with asyncio.timeout_at(patient.until):
            return await look(patient)
    except TimeoutError:
        return wrong("not done in time", "see what is slow above")
    except Exception as error:  # noqa: BLE001 - the others go on, and a line says it
        # Not its text, which may quote anything.
        told = f"this check failed by itself ({type(error).__name__})"
        return wrong(told, "look at what it reads; if that is right, report it")


@click.command()
@any_journal_option
@as_json_option
@click.pass_context
@runs
async def doctor(context: click.Context, journal: Path | None, as_json: bool) -> int:
    """
    Find out what is wrong between here and the service, and what to do.

    A line for each check, within ten seconds in all: ok, note (worth knowing), wrong
    (with what to do), or skipped. It moves and changes nothing, and shows no secret.

    The exit code is 5 when something is wrong.
    """
    patient = Patient(
        read=lambda: draft_of(context, journal),
        until=asyncio.get_running_loop().time() + _ALL,
    )

    def tell(name: str, finding: Finding) -> None:
        if as_json:
            row: dict[str, object] = {"check": name, "state": finding.state}
            row |= {k: patient.hide_in(getattr(finding, k)) for k in ("told", "remedy")}
            row["facts"] = {k: patient.hide_in(v) for k, v in finding.facts.items()}
            click.echo(msgspec.json.encode(row).decode())
            return
        mark = click.style(f"{finding.state:<7}", fg=_COLOURS[finding.state])
        told = printable(" ".join(patient.hide(finding.told).split()))
        click.echo(f"{mark}  {name:<10}  {told}")
        if finding.remedy:
            click.echo(f"{'':<21}-> {printable(patient.hide(finding.remedy))}")

    loop: Any = asyncio.get_running_loop()
    # The loop's own threads are waited for at the end, whoever looks up a name there.
    loop.getaddrinfo = _look_up
    with alone():
        found = await _examine(patient, tell)
    return UNWELL if any(f.state == "wrong" for f in found) else DONE
