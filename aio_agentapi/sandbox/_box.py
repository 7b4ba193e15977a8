"""The stand-in in three places: this loop, a process of its own, the foreground."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Self

import aiohttp
import attrs
from aiohttp import web

from aio_agentapi.sandbox import _catalogue
from aio_agentapi.sandbox._catalogue import PROVIDERS
from aio_agentapi.sandbox._clock import Clock, SystemClock
from aio_agentapi.sandbox._document import document
from aio_agentapi.sandbox._endpoints import Deployment
from aio_agentapi.sandbox._faults import Fault, Faults
from aio_agentapi.sandbox._ledger import Ledger
from aio_agentapi.sandbox._members import ADDRESSES, NAME
from aio_agentapi.sandbox._office import Office
from aio_agentapi.sandbox._records import NAMES, Account, Move, RefusedCall, User
from aio_agentapi.sandbox._service import Gauge, Service
from aio_agentapi.sandbox._switches import Switches

# Of the ready-made hierarchy: euro, and enough points for any example.
_CURRENCY: Final = 978
_POINTS: Final = 1_000_000
_UNIT: Final = 10_000

_ROLES: Final = ("broker", "operator", "agent")

# Seconds for a process to start, and to stop when asked.
_PATIENCE: Final = 20.0


@attrs.define(eq=False, repr=False)
class Sandbox:
    """
    The stand-in service inside this event loop, on a free port of 127.0.0.1.

    Used as ``async with Sandbox() as box``. It comes with a small hierarchy, unless
    the file has one already: ``broker`` above ``operator`` above ``shop_1`` and
    ``shop_2``, each with points.

    Args:
        switches: How this deployment behaves. None: the defaults.

        db: A file that keeps the state. None: memory.

        port: 0: a free one.

        clock: What time it is for the service. None: the machine's clock.

        seed: Of the dice of latency and faults.

        login: Whether its back office, the pages at its address, asks who it is.
    """

    _switches: Switches | None = attrs.field(alias="switches", default=None)
    _db: Path | None = attrs.field(
        alias="db",
        default=None,
        kw_only=True,
        converter=attrs.converters.optional(Path),
    )
    _port: int = attrs.field(alias="port", default=0, kw_only=True)
    _clock: Clock | None = attrs.field(alias="clock", default=None, kw_only=True)
    _seed: int = attrs.field(alias="seed", default=0, kw_only=True)
    _login: bool = attrs.field(alias="login", default=False, kw_only=True)
    _service: Service = attrs.field(init=False)
    _runner: web.AppRunner | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        clock = self._clock or SystemClock()
        switches = self._switches or Switches()
        ledger = Ledger(clock, self._db)
        self._service = Service(Deployment(ledger, clock, switches), Faults(self._seed))
        if not ledger.accounts():
            self._furnish()

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=2**20)
        app.router.add_post("/v4/{path:.+}", self._service.handle)
        app.router.add_get("/openapi.json", self._show_document)
        # A look at the link does not use it up.
        app.router.add_get("/play/{key}", self._enter, allow_head=False)
        app.router.add_get("/rounds/{number}", self._show_round)
        if not self._login:
            # They do what a login is to keep from others.
            app.router.add_get("/sandbox/{what}", self._tell)
            app.router.add_post("/sandbox/{what}", self._set)
        Office(self._service, self._login).join(app)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, backlog=1024)
        await site.start()
        self._port = self._runner.addresses[0][1]
        self._service.deployment.base_url = self.base_url
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        self._service.deployment.ledger.close()

    @property
    def base_url(self) -> str:
        """Where it answers; known once it has started."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def clock(self) -> Clock:
        """What time it is for the service."""
        return self._service.deployment.clock

    @property
    def faults(self) -> Faults:
        """What goes wrong."""
        return self._service.faults

    @property
    def switches(self) -> Switches:
        """How this deployment behaves."""
        return self._service.deployment.switches

    @switches.setter
    def switches(self, switches: Switches) -> None:
        self._service.deployment.switch(switches)

    @property
    def executed(self) -> Mapping[str, int]:
        """How many calls of each path were executed with success."""
        return self._service.executed

    @property
    def received(self) -> Mapping[str, int]:
        """How many calls of each path were let in, whatever became of them."""
        return self._service.received

    def account(self, name: str) -> Account:
        """
        Return the first account of that name, from the root downwards.

        Args:
            name: Of the account.

        Returns:
            The account as it is now; it does not change with the books.

        Raises:
            KeyError: There is no such account.
        """
        account = self._service.deployment.ledger.account_named(name)
        if account is None:
            raise KeyError(name)
        return account

    def accounts(self) -> list[Account]:
        """Return all accounts, parents before their children."""
        return self._service.deployment.ledger.accounts()

    def token(self, name: str) -> str:
        """
        Return the token of the account of that name.

        Raises:
            KeyError: There is no such account.
        """
        return self.account(name).token

    def users(self, name: str) -> list[User]:
        """
        Return the users of the agent of that name, in the order of their creation.

        Raises:
            KeyError: There is no such account.
        """
        return self._service.deployment.ledger.users(self.account(name))

    def gauge(self, name: str) -> Gauge:
        """
        Return the gauge of the account of that name, which goes on counting.

        Raises:
            KeyError: There is no such account.
        """
        return self._service.gauge(self.account(name))

    def foreign(self, name: str, held: int) -> None:
        """
        Let others hold so many of an account's permits.

        Args:
            name: Of the account.

            held: How many, 0 or more.

        Raises:
            KeyError: There is no such account.

            ValueError: Not a whole number of 0 or more. Nothing was changed.
        """
        if not isinstance(held, int) or held < 0:
            msg = f"held: 0 or more, not {held!r}"
            raise ValueError(msg)
        self.gauge(name).foreign = held

    def add(
        self,
        name: str,
        role: str = "agent",
        *,
        parent: str | None = None,
        points: Decimal | int = 0,
        currency: int = _CURRENCY,
    ) -> Account:
        """
        Create an account as the back office does, with points.

        Points of an account that has a parent are minted at its root and moved
        down, so that they are in every book on the way.

        Args:
            name: 2 to 50 letters, digits and underscores.

            role: Broker, operator or agent.

            parent: The name of the account above. None: a new root.

            points: What it has in the end, in major units.

            currency: Of a new root; others have their parent's.

        Returns:
            The account.

        Raises:
            ValueError: The name, or the role, is not allowed there, or the name is
                taken.

            KeyError: There is no such parent.
        """
        NAME.check(name)
        if role not in _ROLES:
            msg = f"a role is one of {', '.join(_ROLES)}, not {role!r}"
            raise ValueError(msg)
        ledger = self._service.deployment.ledger
        try:
            if parent is None:
                account = ledger.create_root(name, role, currency)
            else:
                above = self.account(parent)
                account = ledger.create(above, name, role, above.code, ())
        except RefusedCall as refusal:
            reason = refusal.fields or NAMES[refusal.code]
            msg = f"{name}: {reason}"
            raise ValueError(msg) from None
        if points:
            self.mint(account, points)
        return ledger.account(account.code)

    def mint(self, account: Account, points: Decimal | int) -> Move:
        """
        Bring points into being at the root of an account, and move them to it.

        Args:
            account: Who has them in the end.

            points: How many, in major units, more than 0, at most four decimals.

        Returns:
            The last move, which has brought them to the account.

        Raises:
            ValueError: Not such an amount. Nothing was minted.
        """
        ledger = self._service.deployment.ledger
        units = _units(points, least=1)
        lineage = account.lineage
        move = ledger.mint(lineage[0], units)
        for above, below in pairwise(lineage):
            move = ledger.transfer(ledger.account(above), below, units, None)
        return move

    def play(
        self,
        name: str,
        user_code: int,
        bet: Decimal | int,
        win: Decimal | int = 0,
        *,
        provider_id: int = 1,
        game_code: str = "aurora_1",
    ) -> str:
        """
        Let a user play one round, in an agent's game.

        Args:
            name: The agent.

            user_code: The user, with a balance that covers the bet.

            bet: What goes from his balance to the agent's points.

            win: What comes back, for which these must be enough.

            provider_id: Whose game.

            game_code: Which game.

        Returns:
            The round_id, which the two rows of the feed have.

        Raises:
            KeyError: There is no such agent, provider or game.

            ValueError: There is no such user, or not enough money.
        """
        if _catalogue.game(PROVIDERS[provider_id], game_code) is None:
            raise KeyError(game_code)
        units = _units(bet), _units(win)
        try:
            return self._service.deployment.arcade.play(
                self.account(name), user_code, *units, provider_id, game_code
            )
        except RefusedCall as refusal:
            msg = f"code {refusal.code} ({NAMES[refusal.code]})"
            raise ValueError(msg) from None

    def allow(self, name: str, addresses: str) -> None:
        """Set an account's Allowed IP: separated by spaces or new lines; blank: any."""
        allowed = addresses.split()
        ADDRESSES.check(allowed)
        self._service.deployment.ledger.update(self.account(name), None, allowed)

    def audit(self) -> tuple[Decimal, Decimal]:
        """Return what was minted, and the sum of all points and balances."""
        minted, held = self._service.deployment.ledger.audit()
        return Decimal(minted) / _UNIT, Decimal(held) / _UNIT

    def __repr__(self) -> str:
        return f"<Sandbox {self.base_url}>"

    def _furnish(self) -> None:
        self.add("broker", "broker", points=_POINTS)
        self.add("operator", "operator", parent="broker", points=_POINTS // 2)
        for name in ("shop_1", "shop_2"):
            self.add(name, parent="operator", points=1000)

    async def _show_document(self, _: web.Request) -> web.Response:
        return web.json_response(document())

    async def _enter(self, request: web.Request) -> web.Response:
        if not self._service.deployment.arcade.enter(request.match_info["key"]):
            raise web.HTTPGone(text="this link was used, or is too old\n")
        return web.Response(text="the game begins\n")

    async def _show_round(self, request: web.Request) -> web.Response:
        return web.Response(text=f"round {request.match_info['number']}\n")

    # For a stand-in in another process: what the methods above do, over HTTP.

    async def _tell(self, request: web.Request) -> web.Response:
        Office.check_host(request)
        what = request.match_info["what"]
        if what == "gauge":
            try:
                gauge = self.gauge(request.query["name"])
            except KeyError as error:
                raise web.HTTPBadRequest(text=f"KeyError: {error}\n") from None
            return web.json_response(attrs.asdict(gauge))
        if what == "received":
            return web.json_response(self.received)
        if what == "audit":
            return web.json_response([str(amount) for amount in self.audit()])
        raise web.HTTPNotFound

    async def _set(self, request: web.Request) -> web.Response:
        Office.check_host(request)
        # A page in a browser cannot send this type across origins unasked.
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType
        try:
            return self._do(request.match_info["what"], await request.json())
        except (ValueError, LookupError, TypeError, ArithmeticError) as error:
            reason = f"{type(error).__name__}: {error}\n"
            raise web.HTTPBadRequest(text=reason) from None

    def _do(self, what: str, sent: Any) -> web.Response:  # noqa: ANN401 - any JSON
        if what == "foreign":
            self.foreign(sent["name"], sent["held"])
        elif what == "mint":
            self.mint(self.account(sent["name"]), Decimal(sent["points"]))
        elif what == "play":
            bet, win = Decimal(sent["bet"]), Decimal(sent["win"])
            number = self.play(sent["name"], sent["user_code"], bet, win)
            return web.json_response(number)
        elif what == "switches":
            self.switches = Switches(**sent)
        elif what == "fault":
            self.faults.add(Fault(**sent))
        elif what == "clear":
            self.faults.clear()
        else:
            raise web.HTTPNotFound
        return web.json_response({})


def _units(amount: Decimal | int, least: int = 0) -> int:
    """Return an amount in ten-thousandths; ValueError where it is none of them."""
    if isinstance(amount, Decimal | int):
        units = amount * _UNIT
        if units == units // 1 and units >= least:
            return int(units)
    msg = f"an amount has at most four decimals and is not below 0, not {amount}"
    raise ValueError(msg)


async def serve(box: Sandbox) -> None:
    """Run a stand-in until standard input ends or it is interrupted; tell where."""
    async with box:
        greeting = {
            "base_url": box.base_url,
            # Of a name that there is twice, the one that the others mean, too.
            "tokens": {a.name: box.token(a.name) for a in box.accounts()[:100]},
        }
        sys.stdout.write(json.dumps(greeting) + "\n")
        sys.stdout.flush()
        loop = asyncio.get_running_loop()
        # The parent holds the other end: it closes when the parent is gone.
        await loop.run_in_executor(None, sys.stdin.buffer.read)


@attrs.define(eq=False, repr=False)
class SandboxProcess:
    """
    The stand-in service in a process of its own, on a free port of 127.0.0.1.

    Used as ``async with SandboxProcess() as box``; the process ends with the block,
    and also when this process is killed.

    Args:
        switches: How this deployment behaves. None: the defaults.

        db: A file that keeps the state. None: memory.

        seed: Of the dice of latency and faults.

    Attributes:
        base_url: Where it answers; known once it has started.

        tokens: Of its accounts, by name, as they were when it started: the first
            hundred.
    """

    _switches: Switches | None = attrs.field(alias="switches", default=None)
    _db: Path | None = attrs.field(alias="db", default=None, kw_only=True)
    _seed: int = attrs.field(alias="seed", default=0, kw_only=True)
    base_url: str = attrs.field(init=False, default="")
    tokens: Mapping[str, str] = attrs.field(init=False, factory=dict[str, str])
    _process: asyncio.subprocess.Process = attrs.field(init=False)
    _http: aiohttp.ClientSession = attrs.field(init=False)
    _stack: AsyncExitStack = attrs.field(init=False, factory=AsyncExitStack)

    async def __aenter__(self) -> Self:
        options: dict[str, Any] = {
            "switches": attrs.asdict(self._switches or Switches()),
            "seed": self._seed,
        }
        if self._db is not None:
            options["db"] = str(self._db)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "aio_agentapi.sandbox",
            json.dumps(options),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self._stack.push_async_callback(self._stop)
        try:
            await self._meet()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    async def gauge(self, name: str) -> Gauge:
        """Return the gauge of the account of that name, as it is now."""
        return Gauge(**await self._ask("GET", "gauge", params={"name": name}))

    async def audit(self) -> tuple[Decimal, Decimal]:
        """Return what was minted, and the sum of all points and balances."""
        minted, held = await self._ask("GET", "audit")
        return Decimal(minted), Decimal(held)

    async def received(self) -> Mapping[str, int]:
        """Return how many calls of each path were let in, whatever became of them."""
        return dict(await self._ask("GET", "received"))

    async def foreign(self, name: str, held: int) -> None:
        """Let others hold so many of an account's permits."""
        await self._ask("POST", "foreign", json={"name": name, "held": held})

    async def mint(self, name: str, points: Decimal | int) -> None:
        """Bring points into being, and move them to the account of that name."""
        await self._ask("POST", "mint", json={"name": name, "points": str(points)})

    async def play(
        self, name: str, user_code: int, bet: Decimal | int, win: Decimal | int = 0
    ) -> str:
        """Let a user play one round; return its round_id."""
        sent = {"name": name, "user_code": user_code, "bet": str(bet), "win": str(win)}
        return str(await self._ask("POST", "play", json=sent))

    async def switch(self, switches: Switches) -> None:
        """Behave as another deployment from now on."""
        await self._ask("POST", "switches", json=attrs.asdict(switches))

    async def fault(self, fault: Fault) -> None:
        """Turn a fault on."""
        await self._ask("POST", "fault", json=attrs.asdict(fault))

    async def clear_faults(self) -> None:
        """Turn all faults off."""
        await self._ask("POST", "clear", json={})

    async def _meet(self) -> None:
        if self._process.stdout is None:
            msg = "the process has no standard output"
            raise RuntimeError(msg)
        async with asyncio.timeout(_PATIENCE):
            line = await self._process.stdout.readline()
        if not line:
            msg = "the stand-in did not start"
            raise RuntimeError(msg)
        greeting = json.loads(line)
        self.base_url = greeting["base_url"]
        self.tokens = greeting["tokens"]
        self._http = await self._stack.enter_async_context(aiohttp.ClientSession())

    async def _stop(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def _ask(self, method: str, what: str, **kwargs: Any) -> Any:  # noqa: ANN401 - any JSON
        url = f"{self.base_url}/sandbox/{what}"
        async with self._http.request(method, url, **kwargs) as response:
            if response.status == web.HTTPBadRequest.status_code:
                raise ValueError((await response.text()).strip())
            response.raise_for_status()
            return await response.json()
