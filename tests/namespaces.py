"""
Two hosts of a test's own with a link between them, and the programs that run on them.

Hosts are network namespaces of this machine, for which a test has to be root. A client
is a process on one of them. A shop listens on the other, in the test's own process: a
socket stays where it was made, whoever uses it. The link is cut, and mended, at any
moment.

As a program it is that client: ``python -m tests.namespaces JSON``.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import json
import logging
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypeVar

import aiohttp
import attrs
import uvloop

from aio_agentapi import Session, SessionManager, Settings, SqliteStore
from tests.waiting import look_again

T = TypeVar("T")

ROOT: Final = Path(__file__).parents[1]

TOKEN: Final = "11111111-2222-3333-4444-555555555555"

# How a link is cut: at the client's end, so that its machine has no way to the shop any
# more; or somewhere else, so that what it sends is lost.
Cut: TypeAlias = Literal["here", "there"]

# The same in each pair: the hosts of one do not know those of others.
CLIENT: Final = "10.77.0.1"
SHOP: Final = "10.77.0.2"
API: Final = 8000
# Where the shop only listens.
PLAIN: Final = 8001

# Seconds for what other processes do.
PATIENCE: Final = 20.0

_NEW_NET: Final = 0x40000000
_LIBC: Final = ctypes.CDLL(None, use_errno=True)

_NUMBERS: Final = itertools.count()


async def on(host: str, act: Callable[[], T]) -> T:
    """Do something on a host, in a thread that goes there and does not come back."""

    def there() -> T:
        with Path("/run/netns", host).open("rb") as file:
            if _LIBC.setns(file.fileno(), _NEW_NET):
                raise OSError(ctypes.get_errno(), f"cannot go to {host}")
        return act()

    thread = ThreadPoolExecutor(1)
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, there)
    finally:
        # It may need this loop to come to its end.
        thread.shutdown(wait=False)


@attrs.define(eq=False)
class Pair:
    """
    Two hosts and their link.

    Attributes:
        client: The namespace of one.

        shop: Of the other.
    """

    client: str
    shop: str

    def cut(self, how: Cut) -> None:
        """Let nothing through."""
        if how == "here":
            _ip("-n", self.client, "link", "set", "v", "down")
        else:
            # Nobody has this one.
            place = ("lladdr", "02:00:00:00:00:99", "nud", "permanent")
            _ip("-n", self.client, "neigh", "replace", SHOP, "dev", "v", *place)

    def mend(self, how: Cut) -> None:
        """Let all through again."""
        if how == "here":
            _ip("-n", self.client, "link", "set", "v", "up")
        else:
            _ip("-n", self.client, "neigh", "del", SHOP, "dev", "v")

    async def queued(self) -> int:
        """Return how many bytes the client's kernel has still to bring to the API."""
        text = await on(self.client, Path("/proc/thread-self/net/tcp").read_text)
        # Of all connections: also those of the dead.
        return sum(
            int(queues.partition(":")[0], 16)
            for _, _, there, _, queues, *_ in map(str.split, text.splitlines()[1:])
            if int(there.partition(":")[2], 16) == API
        )

    async def plain(self) -> socket.socket:
        """Connect to the shop from the client's host, as any program does."""
        return await on(self.client, lambda: socket.create_connection((SHOP, PLAIN)))


@contextmanager
def pair() -> Generator[Pair]:
    """Make two hosts with a link."""
    number = next(_NUMBERS)
    hosts = [f"agentapi-{os.getpid()}-{number}-{end}" for end in ("client", "shop")]
    with contextlib.ExitStack() as stack:
        for host in hosts:
            stack.enter_context(_namespace(host))
        ends = ("netns", hosts[0], "type", "veth", "peer", "v", "netns", hosts[1])
        _ip("link", "add", "v", *ends)
        for host, address in zip(hosts, (CLIENT, SHOP), strict=True):
            _ip("-n", host, "address", "add", f"{address}/24", "dev", "v")
            _ip("-n", host, "link", "set", "v", "up")
        yield Pair(*hosts)


@contextmanager
def _namespace(name: str) -> Generator[None]:
    try:
        try:
            _ip("netns", "add", name)
        except (OSError, subprocess.CalledProcessError) as error:
            told = getattr(error, "stderr", None) or error
            msg = f"no network namespace: be root, and install iproute2 ({told})"
            raise RuntimeError(msg) from None
        yield
    finally:
        if Path("/run/netns", name).exists():
            _ip("netns", "delete", name)


def _ip(*args: str) -> None:
    subprocess.run(  # noqa: S603 - what a test says
        ["ip", *args],  # noqa: S607 - of the system
        check=True,
        capture_output=True,
        text=True,
        # Whoever interrupts the tests does not interrupt this.
        start_new_session=True,
    )


@attrs.define(eq=False)
class Shop:
    """
    A small service, which notes every byte that arrives.

    Attributes:
        heard: What arrived at the API: when, by the machine's clock, and what.

        came: Whether anything arrived where it only listens.
    """

    heard: list[tuple[float, str]] = attrs.field(factory=list)
    came: asyncio.Event = attrs.field(factory=asyncio.Event)
    _rows: list[dict[str, Any]] = attrs.field(init=False, factory=list)
    # Most connections never hear of their end.
    _guests: dict[asyncio.Task[Any], asyncio.StreamWriter] = attrs.field(
        init=False, factory=dict
    )

    def since(self, moment: float) -> str:
        """Return what has arrived at the API since then."""
        return "".join(text for at, text in self.heard if at >= moment)

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Answer one request after the other."""
        text = b""
        async with self._guest(writer):
            while piece := await reader.read(65536):
                self.heard.append((time.monotonic(), piece.decode()))
                text += piece
                while (request := _request(text)) is not None:
                    path, body, text = request
                    data = self._answer(path, json.loads(body))
                    told = json.dumps({"code": 0, "message": None, "data": data})
                    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(told)}\r\n\r\n"
                    writer.write(f"{head}{told}".encode())

    async def listen(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Say nothing."""
        async with self._guest(writer):
            while await reader.read(65536):
                self.came.set()

    @asynccontextmanager
    async def _guest(self, writer: asyncio.StreamWriter) -> AsyncGenerator[None]:
        task = asyncio.current_task()
        assert task is not None
        self._guests[task] = writer
        try:
            with contextlib.suppress(OSError):
                yield
        finally:
            del self._guests[task]
            writer.close()

    async def aclose(self) -> None:
        """Hang up."""
        for writer in self._guests.values():
            writer.transport.abort()
        if self._guests:
            await asyncio.wait([*self._guests])

    def _answer(self, path: str, body: Mapping[str, Any]) -> Any:
        if path == "agent/info":
            name = {"name": "shop", "agent_code": 5}
            return {**name, "currency": 978, "balance": 1000}
        if path == "game/transaction-id":
            return [row for row in self._rows if row["trans_id"] > body["last_id"]]
        assert path == "wallet/deposit", path
        before = self._rows[-1]["balance"] if self._rows else 0
        after = before + body["amount"]
        nothing = ("round_id", "provider_name", "game_code", "game_name", "category")
        self._rows.append(
            {
                **dict.fromkeys(nothing, ""),
                "provider_id": 0,
                "trans_id": 1001 + len(self._rows),
                "user_code": body["user_code"],
                "trans_type": 4,
                "prebalance": before,
                "trans_amount": body["amount"],
                "balance": after,
                "regdate": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}",
            }
        )
        return {"balance": after, "amount": body["amount"]}


def _request(text: bytes) -> tuple[str, bytes, bytes] | None:
    """Return the path and the body of a request, and what is behind it."""
    head, end, rest = text.partition(b"\r\n\r\n")
    if not end:
        return None
    length = int(head.lower().partition(b"content-length:")[2].split()[0])
    path = head.split(b" ")[1].decode().removeprefix("/v4/")
    return None if len(rest) < length else (path, rest[:length], rest[length:])


@asynccontextmanager
async def shop(link: Pair, tls: ssl.SSLContext | None) -> AsyncGenerator[Shop]:
    """Open a shop on its host."""
    opened = Shop()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(opened.aclose)
        for port, serve, context in (
            (API, opened.serve, tls),
            (PLAIN, opened.listen, None),
        ):
            place = (SHOP, port)
            bound = await on(link.shop, lambda place=place: socket.create_server(place))  # type: ignore[misc]  # of a loop
            server = await asyncio.start_server(serve, sock=bound, ssl=context)
            stack.callback(server.close)
        yield opened


@attrs.frozen(eq=False)
class Client:
    """A process on the client's host, which answers each line that it is told."""

    process: asyncio.subprocess.Process

    async def ask(self, word: str, **more: Any) -> Any:
        """Say a word to it, and return what it answers."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"word": word, **more}).encode() + b"\n")
        async with asyncio.timeout(PATIENCE):
            line = await self.process.stdout.readline()
        assert line, "it has ended"
        return json.loads(line)

    async def pay(self, amount: int, **options: Any) -> None:
        """Let it begin to pay."""
        await self.ask("pay", amount=amount, options=options)

    async def outcome(self) -> str:
        """Wait until a payment has ended, and return how."""
        return str(await self.ask("outcome"))

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    async def end(self, number: signal.Signals) -> None:
        """Send it a signal that it ends with, and wait until its kernel has it back."""
        self.send(number)
        async with asyncio.timeout(PATIENCE):
            # Not wait(), which also waits for a copy of it that has its pipes.
            while self.process.returncode is None:
                await look_again()


@asynccontextmanager
async def client(link: Pair, **told: Any) -> AsyncGenerator[Client]:
    """Start a client, which is killed in the end."""
    process = await asyncio.create_subprocess_exec(
        *("ip", "netns", "exec", link.client),
        *(sys.executable, "-m", "tests.namespaces", json.dumps(told)),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Client(process)
    finally:
        if process.returncode is None:
            process.kill()
        assert process.stdin is not None
        # A copy that it has left ends with it, and has the other pipe until then.
        process.stdin.close()
        await process.communicate()


@attrs.define(eq=False)
class _Payer:
    """What the process does: one payment at a time, and whatever ends it."""

    manager: SessionManager
    session: Session
    paying: asyncio.Task[object] | None = attrs.field(init=False, default=None)

    async def answer(self, word: str, **more: Any) -> Any:
        """Do what is asked for."""
        if word == "pay":
            view = self.session.with_options(**more["options"])
            self.paying = asyncio.ensure_future(view.wallets.deposit(7, more["amount"]))
        elif word == "fork":
            _fork()
        elif word == "close":
            await self.session.aclose()
        elif word == "close all":
            await self.manager.aclose()
        elif word == "settle":
            return [intent.phase for intent in await self.session.payments.settle_all()]
        else:
            assert self.paying is not None
            if word == "cancel":
                self.paying.cancel()
            await asyncio.wait([self.paying])
            if self.paying.cancelled():
                return "cancelled"
            error = self.paying.exception()
            return "paid" if error is None else type(error).__name__
        return None


def _fork() -> None:
    """Leave a copy of this process, which has all that it has, and does nothing."""
    if os.fork():
        return
    # It ends when nobody can write to it any more.
    watch = select.poll()
    watch.register(0, 0)
    watch.poll()
    os._exit(0)


def open_manager(
    journal: str, settings: Mapping[str, Any], ca: str | None
) -> SessionManager:
    """Return a manager that pays at the shop."""
    return SessionManager(
        f"{'http' if ca is None else 'https'}://{SHOP}:{API}",
        accounts={"eur": TOKEN},
        settings=Settings(
            allow_plain_http=True,
            ssl=None if ca is None else ssl.create_default_context(cafile=ca),
            **settings,
        ),
        store=SqliteStore(journal),
    )


async def pay(told: Mapping[str, Any]) -> None:
    """Do what is asked for, until the end."""
    reader, loop = asyncio.StreamReader(), asyncio.get_running_loop()
    await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    async with open_manager(told["journal"], told["settings"], told["ca"]) as manager:
        payer = _Payer(manager, manager.session("eur"))
        while line := await reader.readline():
            answer = await payer.answer(**json.loads(line))
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


def take_the_ordinary_road() -> None:
    """Put something in the place of what aiohttp sends with, as mocks do."""
    before = aiohttp.ClientSession._request

    async def traced(self: aiohttp.ClientSession, *args: Any, **kwargs: Any) -> Any:
        return await before(self, *args, **kwargs)

    aiohttp.ClientSession._request = traced  # type: ignore[method-assign]


def main(told: Mapping[str, Any]) -> None:
    """Be the client."""
    logging.disable(logging.ERROR)
    if told["road"] == "ordinary":
        take_the_ordinary_road()
    factory = uvloop.new_event_loop if told["loop"] == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(pay(told))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
