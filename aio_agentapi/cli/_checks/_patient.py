"""What all checks share: what they look at, find, and do not show."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Final, Literal, TypeAlias, TypeVar, cast
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment

import attrs

from aio_agentapi import AgentInfo, OnlineGame
from aio_agentapi._settings import UUID
from aio_agentapi.cli._account import Draft, Place
from aio_agentapi.errors import AgentAPIError

T = TypeVar("T")

# Seconds for a name, for a connection, for TLS, for a word of the store.
STEP: Final = 2.0
# Seconds before the end of all in which what hangs is told.
_TELLING: Final = 0.2

# Seconds by which clocks that somebody sets do not differ.
SKEW: Final = 30.0

# What is blotted out wherever it stands: shorter words stand in others.
_LONG: Final = 4

State: TypeAlias = Literal["ok", "note", "wrong", "skipped"]


@attrs.frozen
class Finding:
    """What a check has found: ``note`` is worth knowing, and nothing is wrong."""

    state: State
    told: str
    remedy: str | None = None
    facts: Mapping[str, object] = attrs.field(factory=dict[str, object])


def ok(told: str, **facts: object) -> Finding:
    """Return that all is well."""
    return Finding("ok", told, None, facts)


def wrong(told: str, remedy: str, **facts: object) -> Finding:
    """Return what is wrong, and what to do."""
    return Finding("wrong", told, remedy, facts)


@attrs.frozen(kw_only=True)
class Asked:
    """What the service answered, and how fast; None: no word of who plays."""

    outcome: AgentInfo | AgentAPIError
    seconds: list[float]
    busy: int
    online: list[OnlineGame] | None


@attrs.define(kw_only=True, eq=False, repr=False)
class Patient:
    """What the checks look at, and hand on to those that need them."""

    read: Callable[[], Draft]
    until: float
    draft: Draft = attrs.field(init=False)
    place: Place = attrs.field(init=False)
    # Where a connection goes: the service, or the proxy before it.
    target: tuple[str, int] = attrs.field(init=False)
    addresses: list[str] = attrs.field(init=False)
    link: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = attrs.field(
        init=False, default=None
    )
    parted: asyncio.Event = attrs.field(init=False, factory=asyncio.Event)
    own_address: str | None = attrs.field(init=False, default=None)
    asked: Asked = attrs.field(init=False)

    @property
    def end(self) -> float:
        """The loop's time at which a step ends, so that it is told what hung."""
        return self.until - _TELLING

    def step(self, seconds: float = STEP) -> asyncio.Timeout:
        """Bound what may hang."""
        now = asyncio.get_running_loop().time()
        return asyncio.timeout_at(min(now + seconds, self.end))

    def part(self) -> None:
        """Give up the connection, and not in peace: who hangs would have to agree."""
        if self.link is not None:
            self.link[1].transport.abort()
        self.parted.set()

    def hide(self, text: str) -> str:
        """Blot out of *text* what nobody is to see."""
        passwords = [url.password or "" for url in self._urls()]
        secrets = {*passwords, *map(unquote, passwords)}
        if hasattr(self, "draft"):
            token = self.draft.token
            secrets |= {re.sub(r"(?i)^\W*bearer\b|[^!-~]|[\"']", "", token)}
        for secret in sorted(secrets, key=len, reverse=True):
            if len(secret) >= _LONG:
                text = re.sub(re.escape(secret), "***", text, flags=re.IGNORECASE)
        return UUID.sub("***", text)

    def hide_in(self, value: object) -> object:
        """Blot it out of the texts in *value*, a fact."""
        if isinstance(value, str):
            # As it can be written, whatever bytes a path has.
            return self.hide(value).encode(errors="replace").decode()
        if isinstance(value, list | tuple):
            return [self.hide_in(each) for each in cast("list[object]", value)]
        return value

    def _urls(self) -> list[Any]:
        texts = [*proxies().values()]
        if hasattr(self, "draft"):
            draft = self.draft
            texts += [draft.base_url, draft.settings.proxy or ""]
            texts += [str((draft.gate or {}).get("url"))]
        found: list[Any] = []
        for text in texts:
            with contextlib.suppress(ValueError):
                found += [urlsplit(text)]
        return found


def proxies() -> dict[str, str]:
    """Return the proxies that the environment names, which nobody here uses."""
    found = getproxies_environment().items()
    return {kind: url for kind, url in found if kind in {"http", "https", "all"}}


async def aside(act: Callable[[], T]) -> T:
    """Do what may hang in a thread that nobody waits for at the end."""
    ended: Future[T] = Future()
    # Whoever is not waited for any more tells nobody.
    ended.set_running_or_notify_cancel()

    def work() -> None:
        try:
            ended.set_result(act())
        except Exception as error:  # noqa: BLE001 - whoever waits is told, whatever it is
            ended.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return await asyncio.wrap_future(ended)
