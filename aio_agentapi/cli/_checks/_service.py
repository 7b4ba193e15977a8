"""What the service answers to whom."""

from __future__ import annotations

import asyncio
import contextlib
import math
import statistics
import time
from collections.abc import Mapping
from typing import Final

import attrs

from aio_agentapi import AgentInfo, OnlineGame, Session
from aio_agentapi.cli._checks._patient import (
    SKEW,
    STEP,
    Asked,
    Finding,
    Patient,
    ok,
    wrong,
)
from aio_agentapi.cli._command import open_place
from aio_agentapi.errors import (
    AgentAPIError,
    BusyError,
    CredentialError,
    DecodeError,
    ForbiddenError,
    IpNotAllowedError,
    MaintenanceError,
    NotSentError,
    OutcomeUnknownError,
    UnsupportedError,
)

# Seconds for one answer of the service, and for a permit where it is busy.
_PATIENCE: Final = 3.0

# Calls whose latency is taken, after the one that connects; seconds for all of them.
_CALLS: Final = 5

_CALLING: Final = 1.5

# Contract 5: what online games has, in seconds.
_ONLINE: Final = 1800.0


class _LateError(OutcomeUnknownError):
    """The service did not answer in time."""


# Which check an error of the service belongs to: the first that fits. Those before it
# are well then, as the service has come that far.
_BLAMES: Final[tuple[tuple[type[AgentAPIError], str], ...]] = (
    (BusyError, "others"),
    (IpNotAllowedError, "allowed_ip"),
    (CredentialError, "accepted"),
    (ForbiddenError, "account"),
    (AgentAPIError, "answer"),
)

# What to do about one, whichever check it belongs to.
_REMEDIES: Final[Mapping[type[AgentAPIError], str]] = {
    BusyError: "have fewer calls at once elsewhere, or share one gate among all"
    " programs that use the token (agentapi gate shows them)",
    IpNotAllowedError: "add this machine's address to Allowed IP in the back office"
    " (separated by spaces or new lines); if it has several, set local_address",
    CredentialError: "take the account's present token (a reissued one replaces the"
    " old at once), and see that it is of the service at this base URL",
    ForbiddenError: "the account, or one above it, is suspended, or may not do this:"
    " whoever is above resumes it (agentapi agents resume)",
    NotSentError: "see the lines above, and the settings of proxy and TLS",
    UnsupportedError: "look at the base URL, which is without /v4; or the deployment"
    " calls the path differently (paths)",
    _LateError: "the service is slow, or hangs: see whether it does elsewhere, and"
    " ask its people",
    MaintenanceError: "wait: the service is being worked on",
    OutcomeUnknownError: "a proxy or a login is in between, the base URL is not that of"
    " the API, or the service is ill: ask its people",
    DecodeError: "look at the base URL, and for a newer version of this library",
    AgentAPIError: "look the code up in the service's own documents",
}


def _fault(patient: Patient, check: str) -> Finding | None:
    """Return what the service's answer says is wrong with what *check* looks at."""
    error = patient.asked.outcome
    if isinstance(error, AgentInfo):
        return None
    blamed = next(name for kind, name in _BLAMES if isinstance(error, kind))
    if blamed != check:
        return None
    kinds = [kind for kind in type(error).__mro__ if kind in _REMEDIES]
    return wrong(str(error), _REMEDIES[kinds[0]])


async def answer(patient: Patient) -> Finding:
    await patient.parted.wait()
    place = patient.place
    # What hangs is given up here, not there: then it is known what was answered.
    settings = attrs.evolve(
        place.settings,
        attempts=1,
        timeout=2 * _PATIENCE,
        max_wait=None,
        deadline=None,
        connect_timeout=min(place.settings.connect_timeout, STEP),
        drain=0.0,
    )
    async with open_place(attrs.evolve(place, gate=None, settings=settings)) as session:
        patient.asked = await _ask(session, patient.end)
    return _fault(patient, "answer") or ok("the service's own")


async def _ask(session: Session, end: float) -> Asked:
    """Ask a few times what changes nothing, one call after the other."""
    now = asyncio.get_running_loop().time
    began, seconds = now(), list[float]()
    outcome: AgentInfo | AgentAPIError | None = None
    online: list[OnlineGame] | None = None
    try:
        async with asyncio.timeout_at(min(began + _PATIENCE, end)):
            while len(seconds) <= _CALLS and now() < began + _CALLING:
                start = now()
                outcome = await session.agents.info()
                seconds.append(now() - start)
    except AgentAPIError as error:
        outcome = error
    except TimeoutError:
        # What was answered before is kept.
        pass
    if outcome is None:
        outcome = _late(session, now() - began)
    if isinstance(outcome, AgentInfo):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(min(now() + STEP, end)):
                online = await _who_plays(session)
    busy = session.gate.statistics().busy_answers
    return Asked(outcome=outcome, seconds=seconds, busy=busy, online=online)


def _late(session: Session, waited: float) -> AgentAPIError:
    """Return what went wrong where no call came to its end."""
    if busy := session.gate.statistics().busy_answers:
        return BusyError(f"code 1018 to every call, {busy} so far", code=1018)
    return _LateError(f"no answer within {waited:.1f} s")


async def _who_plays(session: Session) -> list[OnlineGame]:
    try:
        return await session.games.online()
    except AgentAPIError:
        # Who has no such call, or may not do it, plays no games.
        return []


async def others(patient: Patient) -> Finding:
    if fault := _fault(patient, "others"):
        return fault
    busy, limit = patient.asked.busy, patient.draft.settings.limit
    if not busy:
        return ok("no call met 1018: others leave some permits", busy_answers=0)
    told = f"{busy} calls met 1018: others had all {limit} permits in use"
    return Finding("note", told, _REMEDIES[BusyError], {"busy_answers": busy})


async def accepted(patient: Patient) -> Finding:
    return _fault(patient, "accepted") or ok("the service knows the token")


async def allowed_ip(patient: Patient) -> Finding:
    outcome = patient.asked.outcome
    if (fault := _fault(patient, "allowed_ip")) is not None:
        seen = getattr(outcome, "client_ip", None)
        told = (
            f"1020, not in the account's list: this machine has {patient.own_address}"
        )
        told += f"; the service sees {seen}" if seen else ", maybe another one outside"
        facts = {"client_ip": seen, "own_address": patient.own_address}
        return attrs.evolve(fault, told=told, facts=facts)
    if not isinstance(outcome, AgentInfo):
        return ok("not refused")
    allowed, seen = outcome.whitelist, outcome.client_ip
    listed = "a list that it does not tell" if allowed is None else " ".join(allowed)
    told = f"the service sees {seen or 'an address that it does not tell'}"
    return ok(f"{told}; allowed: {listed or 'any'}", client_ip=seen, whitelist=allowed)


async def account(patient: Patient) -> Finding:
    if fault := _fault(patient, "account"):
        return fault
    outcome = patient.asked.outcome
    if not isinstance(outcome, AgentInfo):
        return ok("not refused")
    told = f"{outcome.role or 'account'} {outcome.name}, currency {outcome.currency}"
    return ok(told, agent_code=outcome.agent_code, name=outcome.name)


async def zone(patient: Patient) -> Finding:
    online, zone = patient.asked.online, patient.draft.settings.zone
    if online is None:
        return Finding("note", f"{zone} is set; who plays was not told in time")
    if not online:
        return Finding("skipped", f"{zone} is set; nobody plays, whose times show it")
    newest = max(game.last_update.timestamp() for game in online)
    age = time.time() - newest
    if -SKEW <= age <= _ONLINE + SKEW:
        return ok(f"{zone}, as its times show", ahead=0.0)
    # By whole half hours, from who may have played up to one ago.
    ahead = math.ceil((-age - SKEW) / _ONLINE) / 2
    told = f"{zone} is set; the service's times are {ahead:+g} h from it"
    return wrong(told, "set zone in [settings] to the service's", ahead=ahead)


async def latency(patient: Patient) -> Finding:
    # The first one connects; where it takes all the time there is, it has to do.
    usual = statistics.median(patient.asked.seconds[1:] or patient.asked.seconds)
    limit = patient.draft.settings.limit
    rate = limit / usual
    told = (
        f"{usual * 1000:.1f} ms, so {limit} in flight give {rate:,.0f} calls a second"
    )
    return ok(told, seconds=usual, calls_per_second=rate)
