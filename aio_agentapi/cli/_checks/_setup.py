"""What stands on this machine: packages, configuration, token, base URL."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import re
from typing import Final

from aio_agentapi._settings import UUID, check_base_url
from aio_agentapi.cli._checks._patient import Finding, Patient, aside, ok, wrong
from aio_agentapi.errors import UsageError

_LEAST: Final = re.compile(r"([\w-]+)[^;]*?>=([\d.]+)")

_PACKAGES: Final = ("aio-agentapi", "aiohttp", "attrs", "cattrs", "msgspec", "redis")

# What goes wrong where a token is copied.
_SLIPS: Final = (
    (r"[\r\n]", "a line end"),
    (r"[\"'\u2018-\u201f]", "quotes"),
    (r"[^\S\r\n]", "white space"),
    (r"(?i)^\W*bearer\b", "the word Bearer"),
    (r"[^\x00-\x7f]", "characters that are not ASCII"),
)


async def versions(_: Patient) -> Finding:
    found = {"Python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    told = ", ".join(f"{name} {number}" for name, number in found.items())
    try:
        wanted = importlib.metadata.requires("aio-agentapi") or []
    except importlib.metadata.PackageNotFoundError:
        told += "; this library is not installed, only found"
        return Finding("note", told, "pip install 'aio-agentapi[cli]'", found)
    least = {m[1]: m[2] for m in map(_LEAST.match, wanted) if m}
    old = [
        f"{name}>={least[name]}"
        for name in found.keys() & least.keys()
        if _number(found[name]) < _number(least[name])
    ]
    if old:
        return wrong(told, f"pip install -U {' '.join(map(repr, sorted(old)))}")
    return ok(told, **found)


def _number(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:3]]


async def config(patient: Patient) -> Finding:
    try:
        # A file may hang, and the rest is not to.
        patient.draft = draft = await aside(patient.read)
    except UsageError as error:
        return wrong(str(error), "set it right in the environment or that file")
    if draft.name is None:
        return ok("the account of AGENTAPI_TOKEN")
    return ok(f"the account {draft.name} of the configuration file")


async def token(patient: Patient) -> Finding:
    token = patient.draft.token
    try:
        patient.place = patient.draft.place()
    except UsageError:
        slips = [told for form, told in _SLIPS if re.search(form, token)]
        told = ", ".join(slips) or "characters that no token has"
        remedy = "set it to the 36 characters alone, as the service gave them out"
        return wrong(f"has {told} in or around it", remedy)
    if UUID.fullmatch(token):
        return ok("36 characters, in the form of a UUID")
    told = f"{len(token)} characters, which are not in the form of a UUID"
    return Finding("note", told, "if it is refused, copy it again, all of it")


async def base_url(patient: Patient) -> Finding:
    draft = patient.draft
    remedy = "set AGENTAPI_BASE_URL, or base_url in the configuration file"
    if draft.base_url != draft.base_url.strip():
        return wrong("white space around it", remedy)
    try:
        plain = check_base_url(
            draft.base_url, allow_plain_http=draft.settings.allow_plain_http
        )
    except UsageError as error:
        with contextlib.suppress(UsageError):
            check_base_url(draft.base_url, allow_plain_http=True)
            # So it is that alone.
            remedy += "; or, on a network you trust, allow_plain_http = true under"
            remedy += " [settings] of that file"
        return wrong(str(error).removeprefix("base_url: "), remedy)
    return ok(plain)
