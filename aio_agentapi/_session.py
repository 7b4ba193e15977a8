"""What a user holds: the manager of all accounts, and the session of one."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import re
import sys
import time
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final, Literal, Self, cast

import anyio
import attrs

from aio_agentapi._cashier import Cashier
from aio_agentapi._channel import Channel, Home
from aio_agentapi._connections import Connections
from aio_agentapi._exchange import Exchanges
from aio_agentapi._gate import Gate, LocalGate
from aio_agentapi._identity import Claim, spelled
from aio_agentapi._journal import OPEN, Store
from aio_agentapi._pace import Pace
from aio_agentapi._settings import PATHS, UUID, Settings, check_base_url
from aio_agentapi._settle import Payments, Settler
from aio_agentapi._store import MemoryStore
from aio_agentapi._transport import Transport
from aio_agentapi._types import Json, Operation, Query, Secret
from aio_agentapi._wire import wire
from aio_agentapi.errors import ClosedError, UsageError
from aio_agentapi.resources.agents import Agents
from aio_agentapi.resources.games import Games
from aio_agentapi.resources.points import Points
from aio_agentapi.resources.transactions import Transactions
from aio_agentapi.resources.users import Users
from aio_agentapi.resources.wallets import Wallets

_LOG: Final = logging.getLogger("aio_agentapi.telemetry")
_PAYMENTS: Final = logging.getLogger("aio_agentapi.payments")

# Seconds by which a connection may outlive its bound, and for which a packet may wait
# for the address of its next hop.
_IN_THE_NETWORK: Final = 3.0

# What a view may set for itself; the rest belongs to the gate and the pool.
_OPTIONS: Final = frozenset({"attempts", "deadline", "lane", "max_wait", "timeout"})

# One name for each path: no dots, escapes or doubled slashes that a service might
# read as another.
_PATH: Final = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)+")

# What moves money, and the feeds, go through their methods, which know how often
# they may be sent.
_OWN_METHOD: Final = tuple(
    name
    for name in PATHS
    if name.startswith(("points.", "wallets.", "transactions."))
    and name != "points.balance"
)


@attrs.frozen(eq=False, repr=False)
class Session:
    """
    One token: its connections, its gate, and the calls on them.

    Got from :meth:`SessionManager.session`. Any number of tasks may use it at once;
    at most ``Settings.limit`` calls of it are in flight, the others wait their turn.

    Attributes:
        agents: The caller's account and those below it.

        points: Points of the caller and its children.

        users: The caller's users.

        wallets: Money of users.

        transactions: The feed of what moved it.

        games: What they can play, and who plays now.

        payments: The journal of what moved users' money, and what is open in it.
    """

    _channel: Channel = attrs.field(alias="channel")
    _settler: Settler = attrs.field(alias="settler")
    agents: Agents
    points: Points
    users: Users
    wallets: Wallets
    transactions: Transactions
    games: Games
    payments: Payments

    @classmethod
    def on(cls, channel: Channel, settler: Settler) -> Self:
        """Make the session of a channel; :meth:`SessionManager.session` does it."""
        return cls(
            channel,
            settler,
            Agents(channel),
            Points(channel),
            Users(channel),
            Wallets(channel),
            Transactions(channel),
            Games(channel),
            Payments(channel, settler),
        )

    @property
    def gate(self) -> Gate:
        """The token's admission gate; ``gate.statistics()`` tells its state."""
        return self._channel.gate

    @property
    def settings(self) -> Settings:
        """How its calls behave; those of a view are its own."""
        return self._channel.settings

    def with_options(self, **options: float | str | None) -> Session:
        """
        Return a view of this session with other settings for its calls.

        The view shares connections and gate with this session.

        Args:
            **options: Any of ``attempts``, ``deadline``, ``lane``, ``max_wait`` and
                ``timeout``, as in Settings.

        Returns:
            The view; there is no need to close it.

        Raises:
            UsageError: Another setting, or a value out of range.
        """
        wrong = sorted(options.keys() - _OPTIONS)
        if wrong:
            msg = f"not for a view: {', '.join(wrong)}; it takes {sorted(_OPTIONS)}"
            raise UsageError(msg)
        settings = attrs.evolve(self._channel.settings, **cast("Any", options))
        return Session.on(attrs.evolve(self._channel, settings=settings), self._settler)

    async def call(
        self,
        path: str,
        body: Mapping[str, Json],
        *,
        effect: Literal["read", "money"] = "money",
    ) -> Json:
        """
        Call a path that this library has no method for.

        It takes a permit and is met by the same answers as every other call. It is
        sent again only when it surely was not executed, and after a lost answer
        only as ``"read"``.

        Args:
            path: Relative to ``/v4/``, such as ``"game/round-details"``.

            body: The members of the request; Decimals are written as numbers, and
                members that are None are left out.

            effect: ``"read"`` if sending it twice does no harm.

        Returns:
            The ``data`` of the answer as JSON has it; numbers with a dot are
            Decimals.

        Raises:
            UsageError: The path is none, or that of a method of points, wallets
                or transactions, which the message names; or the body has no JSON
                form. Nothing was sent.

            UnsupportedError: There is no such path, for a ``"read"``. Nothing
                happened.

            RefusedError: The service said no. Nothing happened.

            OutcomeUnknownError: The answer was lost, or has no envelope. It may have
                happened.

        Source:
            Contract 5 and 6.
        """
        operation = self._unlisted(path, effect)
        if not isinstance(body, Mapping) or not _is_finite(body):
            msg = "a body is a mapping of names to what JSON can hold, NaN not included"
            raise UsageError(msg)
        return await self._channel.call(Query(operation, body))

    async def aclose(self) -> None:
        """
        Close the session: no new call, none in line, no connection.

        Calls in line get ``ClosedError``; those in flight have ``Settings.drain``
        seconds to end, and are then cut: they raise ``OutcomeUnknownError``.
        """
        await self._channel.aclose()

    def _unlisted(self, path: str, effect: Literal["read", "money"]) -> Operation[Json]:
        if effect not in {"read", "money"}:
            msg = f"effect: 'read' or 'money', not {effect!r}"
            raise UsageError(msg)
        if not isinstance(path, str) or not _PATH.fullmatch(path):
            # Without the path: it may be a token that went astray.
            msg = "a path is relative to /v4/, such as 'agent/info'"
            raise UsageError(msg)
        paths = self._channel.settings.paths
        for name in _OWN_METHOD:
            # In any case of letters: a service may not tell them apart.
            taken = {paths[name].strip("/").lower(), PATHS[name]}
            if path.lower() in taken:
                msg = (
                    f"{path}: use session.{name}(), which knows how often it may be"
                    " sent"
                )
                raise UsageError(msg)
        return Operation(name=path, effect=effect, returns=object)

    def __repr__(self) -> str:
        return f"<Session {self._channel.gate!r}>"


def _is_finite(value: object) -> bool:
    """Tell whether every number in a body has a JSON form: msgspec writes null."""
    if isinstance(value, float | Decimal):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(map(_is_finite, cast("Mapping[object, object]", value).values()))
    if isinstance(value, list | tuple):
        return all(map(_is_finite, cast("list[object]", value)))
    return True


async def _settled(session: Session) -> None:
    """Settle what is open of one account; what goes wrong is told in the log."""
    try:
        await session.payments.settle_all()
    except ClosedError:
        return
    except Exception as error:  # noqa: BLE001 - the next time may be better
        told = f"{type(error).__name__}: {error}"
        _PAYMENTS.warning("open payments could not be settled: %s", told)


def _secrets(accounts: Mapping[str, str | Secret] | None) -> dict[str, Secret]:
    for name in accounts or {}:
        if not isinstance(name, str) or not name or not name.isprintable():
            msg = f"accounts: a name is printable characters, not {str(name)[:40]!r}"
            raise UsageError(msg)
    return {name: _secret(name, token) for name, token in (accounts or {}).items()}


def _secret(name: str, token: str | Secret) -> Secret:
    if isinstance(token, Secret):
        return token
    try:
        return Secret(token)
    except UsageError as error:
        msg = f"accounts: {name!r}: {error}"
        raise UsageError(msg) from None


def _watched(channel: Channel, base_url: str) -> Channel:
    """Return a channel that OpenTelemetry is told of, in a program that uses it."""
    # Whoever has set a provider has imported this; nobody else pays for the import.
    if not {"opentelemetry.metrics", "opentelemetry.trace"} & sys.modules.keys():
        return channel
    try:
        from aio_agentapi import _telemetry  # noqa: PLC0415 - as above

        return _telemetry.watched(channel, base_url)
    except Exception as error:  # noqa: BLE001 - an older version, a provider that is none: a session is opened all the same
        _LOG.warning(
            "OpenTelemetry is not told of this session: %s: %s. The extra otel says"
            " which version it has to be",
            type(error).__name__,
            error,
        )
        return channel


def _or_default(settings: Settings | None) -> Settings:
    return settings or Settings()


@attrs.define(eq=False, repr=False)
class SessionManager:
    """
    The sessions of one service: one pool and one gate for each token.

    Use it as ``async with``, one manager for each event loop; connections are
    opened at their first use.

    Args:
        base_url: ``https://`` and a host, without ``/v4``; ``http://`` only to
            this machine, unless the settings allow it.

        accounts: Names of your own for tokens.

        settings: How the sessions behave. None: the defaults.

        gate: Makes the gate of a token. None: a gate of this process alone.

        store: Where payments are written down, opened at the first one, and closed
            with the manager. None: memory, which a crash empties.

    Raises:
        UsageError: A name, token, address or setting that cannot be. Nothing was
            sent.
    """

    _base_url: str = attrs.field(alias="base_url")
    _accounts: Mapping[str, Secret] = attrs.field(
        alias="accounts", default=None, converter=_secrets, kw_only=True
    )
    _settings: Settings = attrs.field(
        alias="settings", default=None, converter=_or_default, kw_only=True
    )
    _make_gate: Callable[[Secret, Settings], Gate] | None = attrs.field(
        alias="gate", default=None, kw_only=True
    )
    _store: Store = attrs.field(alias="store", factory=MemoryStore, kw_only=True)
    _home: Home = attrs.field(init=False, factory=Home)
    _sessions: dict[Secret, Session] = attrs.field(init=False, factory=dict)
    _channels: list[Channel] = attrs.field(init=False, factory=list)
    _closed: bool = attrs.field(init=False, default=False)
    _connections: Connections = attrs.field(
        init=False,
        default=attrs.Factory(
            lambda self: Connections(self._settings), takes_self=True
        ),
    )
    # Settles open payments now and then, where that is wanted.
    _resolving: asyncio.Task[None] | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        allowed = self._settings.allow_plain_http
        self._base_url = check_base_url(self._base_url, allow_plain_http=allowed)

    async def __aenter__(self) -> Self:
        self._resolve()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def session(self, account: str | Secret) -> Session:
        """
        Return the session of an account, always the same one for a token.

        Args:
            account: A name in ``accounts``, a Secret, or a token in the form of a
                UUID. A mistyped name is never sent as a token.

        Returns:
            The session, which the manager closes.

        Raises:
            UsageError: None of the three. Nothing was sent.

            ClosedError: The manager is closed.
        """
        if self._closed:
            msg = "the manager is closed. Nothing was sent"
            raise ClosedError(msg)
        secret = self._find(account)
        session = self._sessions.get(secret)
        if session is None:
            session = self._sessions[secret] = self._open(secret)
        return session

    async def aclose(self) -> None:
        """
        Close every session at once; see :meth:`Session.aclose`.

        Whoever was cancelled while he closed may close again.

        Raises:
            UsageError: Another loop, or a forked process. Nothing is closed.
        """
        self._home.check()
        self._closed = True
        if self._resolving is not None:
            self._resolving.cancel()
        for channel in self._channels:
            # At once, also where this task gets no further.
            channel.close()
        try:
            if self._resolving is not None:
                await asyncio.wait([self._resolving])
            async with asyncio.TaskGroup() as group:
                for channel in self._channels:
                    group.create_task(channel.aclose())
        finally:
            with anyio.CancelScope(shield=True):
                for channel in self._channels:
                    # Each payment is told by now, and what it writes down is to be
                    # in the store.
                    await channel.cashier.idle(self._settings.drain)
                await self._store.aclose()

    def __repr__(self) -> str:
        closed = ", closed" if self._closed else ""
        return (
            f"<SessionManager {self._base_url}, {len(self._accounts)} accounts,"
            f" {len(self._sessions)} sessions{closed}>"
        )

    def _find(self, account: str | Secret) -> Secret:
        if isinstance(account, Secret):
            return account
        if account in self._accounts:
            return self._accounts[account]
        if isinstance(account, str) and UUID.fullmatch(account):
            return Secret(account)
        # Without what was given: it may be a token with a slip in it.
        msg = (
            "neither a name in accounts, a Secret, nor a token in the form of a UUID;"
            f" the names are {sorted(self._accounts)}"
        )
        raise UsageError(msg)

    def _open(self, secret: Secret) -> Session:
        settings = self._settings
        gate = (
            LocalGate.of(settings)
            if self._make_gate is None
            else self._make_gate(secret, settings)
        )
        transport = Transport(self._base_url, secret, settings, self._connections)
        reader = wire(settings.zone)
        channel = Channel(
            settings,
            gate,
            self._home,
            transport,
            reader,
            Exchanges(settings, gate, transport, reader),
            Pace(settings.feed_interval),
            Cashier(
                self._store,
                self._claim(secret),
                settings.keep_intents,
                longest=settings.longest,
                unacked=settings.unacked + _IN_THE_NETWORK,
                siblings=lambda: map(self._claim, {*self._accounts.values()}),
            ),
        )
        channel = _watched(channel, self._base_url)
        settler = Settler(channel)

        def paid() -> None:
            self._resolve()
            settler.keep_warm()

        channel.cashier.on_payment = paid
        self._channels.append(channel)
        return Session.on(channel, settler)

    def _resolve(self) -> None:
        """Begin to settle open payments in the background, if that is wanted."""
        loop = self._home.check()
        every = self._settings.resolve_every
        if every is not None and self._resolving is None and not self._closed:
            # Not in the context of a call, whose trace it would go on with.
            self._resolving = loop.create_task(
                self._resolve_all(every), context=contextvars.Context()
            )

    async def _resolve_all(self, every: float) -> None:
        """Settle what is open of all accounts, again and again."""
        under_way: dict[Session, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as group:
            while True:
                try:
                    for session in await self._unsettled():
                        # One that takes long keeps no other from it.
                        if (task := under_way.get(session)) is None or task.done():
                            under_way[session] = group.create_task(_settled(session))
                except Exception as error:  # noqa: BLE001 - of any store; the next time may be better
                    told = "open payments could not be looked for: %s"
                    _PAYMENTS.warning(told, error)
                if self._closed:
                    # The store's driver has missed that it was cancelled.
                    return
                await asyncio.sleep(every)

    async def _unsettled(self) -> list[Session]:
        """Return the sessions that have something open, what the dead left included."""
        store = self._store
        await store.adopt(time.time)
        labels = {intent.account for intent in await store.intents(phases=OPEN)}
        found: list[Session] = []
        # A session that nobody has asked for yet is opened only for that.
        for secret in {*self._accounts.values(), *self._sessions} if labels else ():
            try:
                account = await store.linked(self._claim(secret))
            except UsageError as error:
                # Of this account alone: the others are settled.
                _PAYMENTS.warning("open payments could not be looked for: %s", error)
                continue
            if account is not None and account.label in labels:
                found.append(self.session(secret))
        return found

    def _claim(self, secret: Secret) -> Claim:
        """Return what the journal is told of an account: never its token."""
        names = [name for name, known in self._accounts.items() if known == secret]
        return Claim(
            names=tuple(names), token=secret.digest, url=spelled(self._base_url)
        )
