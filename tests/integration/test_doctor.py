"""``agentapi doctor``, on real faults: each gives its line, what to do, and code 5."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import socket
import sqlite3
import ssl
import stat
import sys
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import attrs
import pytest
import redis.asyncio
import trustme

from aio_agentapi import Secret, Session, SessionManager, SqliteStore
from aio_agentapi._budget import key_of
from aio_agentapi.errors import OutcomeUnknownError
from aio_agentapi.redis import RedisGate
from aio_agentapi.sandbox import ManualClock, Sandbox, Switches
from tests.cli import Ran, environment, run, run_process
from tests.conftest import OK_INFO, TOKEN, Script, answering, read_request, serving
from tests.redis_server import redis_server

PASSWORD = "pass-word-of-nobody"

_CHECKS = [
    "versions",
    "config",
    "token",
    "base_url",
    "proxy",
    "name",
    "connection",
    "tls",
    "clock",
    "answer",
    "others",
    "accepted",
    "allowed_ip",
    "account",
    "zone",
    "latency",
    "gate",
    "journal",
]


@attrs.frozen
class Told:
    """What the doctor says, for people and for programs, and how it ends."""

    code: int
    text: str
    rows: Mapping[str, Mapping[str, Any]]

    def having(self, state: str) -> set[str]:
        """Return the checks of that state."""
        return {name for name, row in self.rows.items() if row["state"] == state}

    def wrong(self, check: str, said: str, remedy: str) -> None:
        """See that this check alone is wrong, why, what to do, and the code."""
        assert ({check}, 5) == (self.having("wrong"), self.code), self.text
        row = self.rows[check]
        assert said in row["told"], row
        assert remedy in row["remedy"], row
        if not self.text:
            return
        (line,) = (x for x in self.text.splitlines() if x.split()[1:2] == [check])
        assert line.split()[0] == "wrong"
        assert f"-> {row['remedy']}" in self.text


async def examine(
    env: Mapping[str, str],
    *args: str | Path,
    secrets: tuple[str, ...] = (),
    process: bool = False,
) -> Told:
    """
    Run the doctor in both forms; no secret is in what it says.

    In a thread, or, where it matters how Python starts and ends, in a process of its
    own: in the form for programs alone, for the other is made of the same rows.
    """
    if process:
        # What hangs does so for ten minutes and more.
        async with asyncio.timeout(50):
            (rows, took), (_, start) = await asyncio.gather(
                timed(*args, "doctor", "--json", env=env),
                timed("--version", env=env),
            )
        # Beside what it takes here and now to start Python.
        assert took <= 10 + start
        plain = Ran(rows.code, "", "")
    else:
        plain = await run(None, *args, "doctor", env=env)
        rows = await run(None, *args, "doctor", "--json", env=env)
    assert (plain.code, plain.err, rows.err) == (rows.code, "", "")
    told = [json.loads(line) for line in rows.out.splitlines()]
    assert [row["check"] for row in told] == _CHECKS
    token = env.get("AGENTAPI_TOKEN", TOKEN)
    for secret in {token, token.strip("\"' \n"), TOKEN, PASSWORD, *secrets}:
        for said in (plain.out, rows.out):
            assert not secret or secret.lower() not in said.lower()
    assert all(row["remedy"] for row in told if row["state"] == "wrong")
    return Told(plain.code, plain.out, {row["check"]: row for row in told})


async def timed(*args: str | Path, env: Mapping[str, str]) -> tuple[Ran, float]:
    """Run a command in a process of its own; tell the seconds that it took."""
    began = time.monotonic()
    ran = await run_process(None, *args, env=env)
    return ran, time.monotonic() - began


def at(base_url: str, token: str = TOKEN, **more: str) -> dict[str, str]:
    """Return the environment that names a service and a token."""
    return {"AGENTAPI_BASE_URL": base_url, "AGENTAPI_TOKEN": token, **more}


def of(box: Sandbox, name: str = "operator", **more: str) -> dict[str, str]:
    """Return the environment that names an account of a stand-in."""
    return at(box.base_url, box.token(name), **more)


@asynccontextmanager
async def paying(
    box: Sandbox, journal: Path, account: str | None = None
) -> AsyncGenerator[tuple[Session, int]]:
    """Let a program pay into a journal, while the test runs; tell it a user."""
    token, store = box.token("operator"), SqliteStore(journal)
    accounts = {} if account is None else {account: token}
    async with SessionManager(box.base_url, accounts=accounts, store=store) as manager:
        session = manager.session(token)
        user = (await session.users.create("anna")).user_code
        await session.wallets.deposit(user, 100)
        yield session, user


@pytest.mark.process
async def test_all_is_well(box: Sandbox, tmp_path: Path) -> None:
    """Every check is done and none is wrong; nothing but two reads is asked."""
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(redis_server())
        journal = tmp_path / "journal.db"
        _, user = await stack.enter_async_context(paying(box, journal))
        box.play("operator", user, 4)
        gate = RedisGate.factory(store.url, lease=5.0, heartbeat=0.25)
        await store.age(box.token("operator"))
        manager = SessionManager(box.base_url, gate=gate)
        await stack.enter_async_context(manager)
        await manager.session(box.token("operator")).agents.info()
        before, books = dict(box.received), box.audit()
        files = {path: path.stat() for path in tmp_path.iterdir()}
        more = {"AGENTAPI_REDIS_URL": store.url, "AGENTAPI_JOURNAL": str(journal)}
        told = await examine(of(box, **more))
        assert (told.code, told.having("ok")) == (0, {*_CHECKS}), told.text
        assert "Python" in told.rows["versions"]["told"]
        assert "127.0.0.1; allowed: any" in told.rows["allowed_ip"]["told"]
        assert told.rows["gate"]["facts"]["members"] == 1
        assert abs(told.rows["gate"]["facts"]["ahead"]) < 1
        assert abs(told.rows["clock"]["facts"]["ahead"]) < 2
        latency = told.rows["latency"]["facts"]
        assert latency["calls_per_second"] == pytest.approx(50 / latency["seconds"])
        assert "50 in flight give" in told.text
        asked = {k: n for k, n in box.received.items() if n > before.get(k, 0)}
        assert asked.keys() == {"agent/info", "game/online-games"}
        assert box.audit() == books
        after = {path: path.stat() for path in tmp_path.iterdir()}
        assert {p: s.st_size for p, s in files.items()} == {
            p: s.st_size for p, s in after.items()
        }


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (f"{TOKEN}\n", "a line end"),
        (f"\r\n{TOKEN}", "a line end"),
        (f'"{TOKEN}"', "quotes"),
        (f"'{TOKEN}'", "quotes"),
        (f" {TOKEN}", "white space"),
        (f"{TOKEN[:20]} {TOKEN[20:]}", "white space"),
        (f"Bearer {TOKEN}", "white space, the word Bearer"),
        (f"\ufeff{TOKEN}", "characters that are not ASCII"),
        (f"{TOKEN}\x01", "characters that no token has"),
    ],
)
async def test_the_form_of_the_token(box: Sandbox, token: str, said: str) -> None:
    """What was copied with it is named, and it is not sent; the rest is looked at."""
    before = dict(box.received)
    told = await examine(at(box.base_url, token))
    told.wrong("token", said, "36 characters alone")
    assert told.rows["answer"]["told"] == "needs token"
    assert told.rows["tls"]["state"] == "ok"
    assert {"answer", "accepted", "zone", "gate", "journal"} <= told.having("skipped")
    assert box.received == before


async def test_half_a_token(box: Sandbox) -> None:
    """Its length is told, and the service says what it thinks of it."""
    told = await examine(of(box) | {"AGENTAPI_TOKEN": TOKEN[:30]})
    told.wrong("accepted", "code 1009", "present token")
    assert (told.rows["token"]["state"], told.rows["token"]["told"][:14]) == (
        "note",
        "30 characters,",
    )


async def test_a_token_that_is_not_accepted(box: Sandbox) -> None:
    """What comes before it is well, and what comes behind it is not known."""
    told = await examine(at(box.base_url))
    told.wrong("accepted", "code 1007", "reissued")
    assert {"answer", "others"} <= told.having("ok")
    assert {"allowed_ip", "account", "zone", "latency"} <= told.having("skipped")


@pytest.mark.parametrize(
    ("base_url", "said"),
    [
        ("http://127.0.0.1:9/v4", "leave out /v4"),
        ("http://api.example.com", "readable by others"),
        ("api.example.com", "'https://' and a host"),
        ("'https://api.example.com'", "'https://' and a host"),
        ("https://api.example.com ", "white space"),
        (f"https://anna:{PASSWORD}@api.example.com", "no user and no password"),
        (f"https://api.example.com?token={TOKEN}", "no query"),
        (TOKEN, "'https://' and a host"),
    ],
)
async def test_the_form_of_the_base_url(base_url: str, said: str) -> None:
    """It is told what is wrong with it, and no name is looked up."""
    told = await examine(at(base_url))
    told.wrong("base_url", said, "AGENTAPI_BASE_URL")
    is_plain = said == "readable by others"
    told_how = "allow_plain_http = true under [settings]" in told.text
    assert told_how == is_plain
    assert {"name", "connection", "tls", "answer"} <= told.having("skipped")


async def test_where_the_account_comes_from(box: Sandbox, tmp_path: Path) -> None:
    """Named in the file, or not at all; what is wrong with the file is told."""
    both = "AGENTAPI_BASE_URL is not set, and AGENTAPI_TOKEN is not set"
    (await examine({})).wrong("config", both, "environment")
    for env, lack in (
        ({"AGENTAPI_BASE_URL": box.base_url}, "no account: AGENTAPI_TOKEN is not set."),
        (at(box.base_url, ""), "AGENTAPI_TOKEN is empty. Set AGENTAPI_TOKEN, or"),
        (at(""), "AGENTAPI_BASE_URL is empty. Set AGENTAPI_BASE_URL, or"),
    ):
        (await examine(env)).wrong("config", lack, "environment")
    config, token = tmp_path / "config.toml", tmp_path / "token"
    config.write_text(
        f'base_url = "{box.base_url}"\n[accounts.eur]\ntoken_file = "{token}"\n'
    )
    args = ("--config", config, "--account")
    told = await examine({}, *args, TOKEN)
    told.wrong("config", "which has: eur", "that file")
    assert told.having("skipped") == {*_CHECKS} - {"versions", "config"}
    token.write_text(f'"{box.token("operator")}"\n')
    told = await examine({}, *args, "eur", secrets=(box.token("operator"),))
    told.wrong("token", "has quotes in", "alone")
    token.write_text(f"{box.token('operator')}\n")
    told = await examine({}, *args, "eur", secrets=(box.token("operator"),))
    assert (told.code, told.rows["config"]["told"][:15]) == (0, "the account eur")


async def test_a_name_that_nobody_has() -> None:
    """Whether the name servers say so, or say nothing."""
    told = await examine(at("https://nowhere.invalid"))
    told.wrong("name", "nowhere.invalid", "name servers")
    assert told.rows["connection"]["told"] == "needs name"


async def test_nobody_listens() -> None:
    """The port is closed."""
    told = await examine(at("http://127.0.0.1:9"))
    told.wrong("connection", "127.0.0.1 port 9: Connection refused", "host and port")


@pytest.mark.parametrize(
    ("token", "path"),
    [
        (TOKEN, TOKEN.replace("1", "A")),
        ("token_of_another_form", "token_of_another_form"),
        ("'quoted_token'", "quoted_token"),
        ("Bearer of_another_form", "OF_another_form"),
    ],
)
async def test_a_token_that_went_astray(token: str, path: str) -> None:
    """What looks like a token is not told, wherever it stands."""
    told = await examine(at(f"http://127.0.0.1:9/{path}", token), secrets=(path,))
    assert told.rows["base_url"]["told"] == "http://127.0.0.1:9/***"


async def test_an_address_that_is_not_ours(box: Sandbox, tmp_path: Path) -> None:
    """The settings name a local address that this machine does not have."""
    config = tmp_path / "config.toml"
    config.write_text('[settings]\nlocal_address = "192.0.2.1"\n')
    told = await examine(of(box), "--config", config)
    told.wrong("connection", "Cannot assign requested address", "local_address")
    for address in ("x" * 70, "127.0.0.1\\u0000"):
        config.write_text(f'[settings]\nlocal_address = "{address}"\n')
        told = await examine(of(box), "--config", config)
        told.wrong("connection", "local_address is no address", "of this machine")


async def test_a_base_url_that_is_no_text(tmp_path: Path) -> None:
    """In the configuration file there may be anything."""
    config = tmp_path / "config.toml"
    config.write_text("base_url = 3\n")
    told = await examine({"AGENTAPI_TOKEN": TOKEN}, "--config", config)
    told.wrong("config", "a text in quotes", "that file")


@asynccontextmanager
async def serving_tls(authority: trustme.CA, name: str) -> AsyncGenerator[int]:
    """Run a service with a certificate for *name*; return its port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    script = answering(OK_INFO, extra="Date: Thu, 01 Jan 1970 00:00:00\r\n")
    server = await asyncio.start_server(script, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@pytest.mark.process
async def test_certificates(tmp_path: Path) -> None:
    """Of an authority that nobody knows, of another name, and a good one."""
    authority, trusted = trustme.CA(), tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(trusted)
    more = {"SSL_CERT_FILE": str(trusted)}
    # A name has several addresses, and one of them is enough.
    async with serving_tls(authority, "localhost") as port:
        told = await examine(at(f"https://localhost:{port}"))
        told.wrong("tls", "certificate: ", "SSL_CERT_FILE")
        assert {"clock", "answer"} <= told.having("skipped")
        told = await examine(at(f"https://localhost:{port}", **more), process=True)
        # Its clock is another fault, seen behind the connection.
        told.wrong("clock", "s behind", "NTP")
        assert told.rows["tls"]["told"].startswith("TLS")
        assert told.rows["latency"]["state"] == "ok"
    async with serving_tls(authority, "api.example.com") as port:
        told = await examine(at(f"https://127.0.0.1:{port}", **more), process=True)
        told.wrong("tls", "IP address mismatch", "right name")


async def test_no_tls_there() -> None:
    """The base URL says https, and the port does not speak it."""

    async def refuse(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with serving(refuse) as url:
        told = await examine(at(url.replace("http:", "https:")))
    told.wrong("tls", "not agreed on: WRONG_VERSION_NUMBER", "speaks TLS")


@pytest.mark.realtime
@pytest.mark.process
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_service_that_hangs(scheme: str) -> None:
    """It accepts, and says nothing: the doctor ends all the same, in ten seconds."""
    held: list[asyncio.StreamWriter] = []

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)
        await reader.read()
        writer.close()

    async with serving(hang) as url:
        told = await examine(at(url.replace("http", scheme, 1)), process=True)
    assert held
    if scheme == "http":
        told.wrong("answer", "no answer within ", "slow, or hangs")
        waited = float(told.rows["answer"]["told"].split()[-2])
        assert 3.0 <= waited <= 5.5
        assert told.rows["clock"]["told"] == "the service does not tell the time"
    else:
        told.wrong("tls", "not agreed on: no answer", "in between")


@asynccontextmanager
async def slow(
    info: bytes = OK_INFO, seconds: float = 0.0, *, plays: bool = True
) -> AsyncGenerator[str]:
    """Run a service that takes its time, or hangs when it is asked who plays."""

    async def script(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            while request := await read_request(reader):
                if b"online-games" in request and not plays:
                    await reader.read()
                    break
                is_head = request.startswith(b"HEAD")
                # So slow is that service.
                await asyncio.sleep(0.0 if is_head else seconds)
                body = b"" if is_head else info
                writer.write(b"HTTP/1.1 200 X\r\nContent-Length: %d\r\n" % len(body))
                writer.write(b"Date: %s\r\n\r\n%s" % (_now(), body))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async with serving(script) as url:
        yield url


def _now() -> bytes:
    return format_datetime(datetime.now(UTC), usegmt=True).encode()


@pytest.mark.realtime
async def test_who_plays_is_not_told() -> None:
    """What was answered before that call hung is not lost."""
    async with slow(plays=False) as url:
        told = await examine(at(url))
    assert (told.code, told.having("wrong")) == (0, set()), told.text
    assert {"answer", "account", "latency"} <= told.having("ok")
    assert told.rows["zone"]["told"].endswith("who plays was not told in time")


@pytest.mark.realtime
async def test_a_service_that_is_late() -> None:
    """It answers, later than anybody waits: nobody else is in between."""
    async with slow(seconds=4) as url:
        told = await examine(at(url))
    told.wrong("answer", "no answer within", "the service is slow")


@pytest.mark.realtime
async def test_others_use_a_slow_service() -> None:
    """That they have all permits is told, though no call comes to its end."""
    busy = b'{"code": 1018, "message": "busy", "data": null}'
    async with slow(busy, 1.4) as url:
        told = await examine(at(url))
    told.wrong("others", "1018 to every call, ", "share one gate")
    # Two, where the machine has time.
    assert told.rows["others"]["told"].split()[-3] in {"1", "2"}
    assert told.rows["answer"]["state"] == "ok"


async def test_one_connection_at_a_time() -> None:
    """The one that asked for the time does not stand in the way of the calls."""
    one, script = asyncio.Lock(), answering(OK_INFO, extra="Date: now\r\n")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with one:
            await script(reader, writer)

    async with serving(serve) as url:
        told = await examine(at(url))
    assert (told.code, told.rows["latency"]["state"]) == (0, "ok"), told.text


def resolving(folder: Path, name: str, body: str) -> dict[str, str]:
    """Return an environment in which the look-up of a name does something else."""
    (folder / "sitecustomize.py").write_text(
        "import socket, time\n"
        "usual = socket.getaddrinfo\n"
        "def look_up(host, port, *args, **terms):\n"
        f"    if host == {name!r}:\n"
        f"        {body}\n"
        "    return usual(host, port, *args, **terms)\n"
        "socket.getaddrinfo = look_up\n"
    )
    return {"PYTHONPATH": str(folder)}


@pytest.mark.realtime
@pytest.mark.process
async def test_a_name_that_hangs(box: Sandbox, tmp_path: Path) -> None:
    """The service's, or the store's: nobody waits for it, also at the end."""
    more = resolving(tmp_path, "slow.invalid", "time.sleep(600)")
    told = await examine(at("https://slow.invalid", **more), process=True)
    told.wrong("name", "no answer in time", "name servers")
    url = f"redis://:{PASSWORD}@slow.invalid"
    told = await examine(of(box, AGENTAPI_REDIS_URL=url, **more), process=True)
    told.wrong("gate", "did not answer in time", "whether it runs")
    assert told.rows["latency"]["state"] == "ok"


@pytest.mark.realtime
@pytest.mark.process
async def test_addresses_that_say_nothing(tmp_path: Path) -> None:
    """Several share the time of a step: it is told what may be in the way."""
    three = "return [(2, 1, 6, '', (f'127.0.0.{n}', port)) for n in (1, 2, 3)]"
    more = resolving(tmp_path, "three.invalid", three)
    async with AsyncExitStack() as stack:
        # A queue that is full: the system drops who else wants to connect.
        full = stack.enter_context(socket.create_server(("", 0), backlog=0))
        port = full.getsockname()[1]
        for _ in range(8):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        told = await examine(at(f"https://three.invalid:{port}", **more), process=True)
    told.wrong("connection", f"127.0.0.3 port {port}: none in time", "firewall")


async def test_a_page_instead_of_an_answer() -> None:
    """A proxy's, with what it says; or none at all there."""
    page = f"<html>Bearer {TOKEN}: please log in</html>".encode()
    async with serving(answering(page, 502)) as url:
        told = await examine(at(url))
    told.wrong("answer", "please log in", "a proxy or a login is in between")
    assert {"others", "accepted", "latency"} <= told.having("skipped")
    async with serving(answering(page, 404)) as url:
        told = await examine(at(f"{url}/api"))
    told.wrong("answer", "HTTP 404", "without /v4")


async def test_answers_of_other_kinds(box: Sandbox) -> None:
    """Maintenance, another shape, a code that nobody knows."""
    for code, said, remedy in (
        (1, "code 1 (", "wait"),
        (1001, "code 1001", "is ill"),
        (7777, "code 7777", "look the code up"),
    ):
        box.faults.code(code, "agent/info")
        (await examine(of(box))).wrong("answer", said, remedy)
        box.faults.clear()
    box.faults.wrong_shape("agent/info")
    (await examine(of(box))).wrong("answer", "another shape", "newer version")


async def test_an_address_that_is_not_allowed(box: Sandbox) -> None:
    """The address that the service sees is told, where it says so, beside our own."""
    box.allow("operator", "203.0.113.9 127.0.0.1")
    told = await examine(of(box))
    seen = "the service sees 127.0.0.1; allowed: 203.0.113.9 127.0.0.1"
    assert (told.code, told.rows["allowed_ip"]["told"]) == (0, seen)
    box.allow("operator", "203.0.113.9")
    told = await examine(of(box))
    told.wrong("allowed_ip", "this machine has 127.0.0.1", "Allowed IP")
    assert {"answer", "accepted"} <= told.having("ok")
    assert {"account", "latency"} <= told.having("skipped")
    refusal = b'{"code": 1020, "message": "no", "data": {"client_ip": "198.51.100.7"}}'
    async with serving(answering(refusal)) as url:
        told = await examine(at(url))
    told.wrong("allowed_ip", "the service sees 198.51.100.7", "back office")


async def test_a_suspended_account(box: Sandbox) -> None:
    """Or one above it: its own list and token are well."""
    async with SessionManager(box.base_url) as manager:
        broker = manager.session(box.token("broker"))
        (operator,) = [agent async for agent in broker.agents.list()]
        await broker.agents.suspend(operator.agent_code)
    told = await examine(of(box, "shop_1"))
    told.wrong("account", "code 1010", "agents resume")
    assert {"accepted", "allowed_ip"} <= told.having("ok")


async def test_others_use_the_token(box: Sandbox) -> None:
    """All of it, or now and then."""
    box.foreign("operator", 50)
    told = await examine(of(box))
    told.wrong("others", "code 1018", "share one gate")
    assert {"accepted", "latency"} <= told.having("skipped")
    box.foreign("operator", 0)
    box.faults.busy(2)
    told = await examine(of(box))
    assert told.code == 0
    assert "note" in {told.rows["others"]["state"]} | {
        line.split()[0] for line in told.text.splitlines() if " others " in line
    }


async def test_the_clock() -> None:
    """As the service's Date tells it; where there is none, nothing is said of it."""
    for late in (timedelta(hours=1), -timedelta(minutes=2)):
        date = format_datetime(datetime.now(UTC) - late, usegmt=True)
        async with serving(answering(OK_INFO, extra=f"Date: {date}\r\n")) as url:
            told = await examine(at(url))
        told.wrong("clock", "behind" if late > timedelta() else "ahead", "NTP")
        ahead = told.rows["clock"]["facts"]["ahead"]
        assert ahead == pytest.approx(-late.total_seconds(), abs=9)
        assert told.rows["zone"]["told"] == "needs clock"
    for extra in ("", "Date: tomorrow\r\n"):
        async with serving(answering(OK_INFO, extra=extra)) as url:
            told = await examine(at(url))
        assert (told.code, told.rows["clock"]["state"]) == (0, "note")


@pytest.mark.process
async def test_a_date_without_a_zone() -> None:
    """It is of UTC, wherever this machine is; and may be of any year."""
    for date, state in (
        (format_datetime(datetime.now(UTC).replace(tzinfo=None)), "ok"),
        ("Fri, 31 Dec 9999 23:59:59 -0000", "wrong"),
    ):
        async with serving(answering(OK_INFO, extra=f"Date: {date}\r\n")) as url:
            told = await examine(at(url, TZ="Asia/Tokyo"), process=True)
        assert told.rows["clock"]["state"] == state
    told.wrong("clock", "s ahead", "NTP")


@pytest.mark.parametrize("ahead", [-20, 20])
async def test_the_zone(tmp_path: Path, ahead: int) -> None:
    """As the times of those who play tell it, a little ahead of ours or behind."""
    config = tmp_path / "config.toml"
    config.write_text('[settings]\nzone = "Asia/Seoul"\n')
    clock = ManualClock(datetime.now(UTC) + timedelta(seconds=ahead))
    async with Sandbox(Switches(zone="Asia/Seoul"), clock=clock) as box:
        async with paying(box, tmp_path / "journal.db") as (_, user):
            box.play("operator", user, 4)
        told = await examine(of(box))
        told.wrong("zone", "UTC is set; the service's times are +9 h", "set zone")
        told = await examine(of(box), "--config", config)
        assert (told.code, told.rows["zone"]["state"]) == (0, "ok")
        box.switches = Switches(zone="America/New_York")
        told = await examine(of(box), "--config", config)
        assert told.rows["zone"]["facts"]["ahead"] in {-13, -14}


@pytest.mark.realtime
async def test_a_slow_service(box: Sandbox) -> None:
    """One call has to do for the latency; how many it gives is told."""
    box.switches = Switches(latency=1.6)
    told = await examine(of(box))
    assert told.code == 0
    latency = told.rows["latency"]["facts"]
    # Of one call: two are twice as long.
    assert 1.6 <= latency["seconds"] < 3.0
    assert latency["calls_per_second"] == pytest.approx(50 / latency["seconds"])


async def test_proxies(box: Sandbox, tmp_path: Path) -> None:
    """Those of the environment are not used, and said; ours is looked at."""
    proxy = f"http://anna:{PASSWORD}@127.0.0.1:9"
    told = await examine(of(box, https_proxy=proxy, all_proxy=proxy))
    assert told.code == 0
    assert told.rows["proxy"]["state"] == "note"
    said = "ALL_PROXY, HTTPS_PROXY of the environment not used"
    assert said in told.rows["proxy"]["told"]
    config = tmp_path / "config.toml"

    async def through(proxy: str, **more: str) -> Told:
        config.write_text(f'[settings]\nproxy = "{proxy}"\n')
        return await examine(of(box, **more), "--config", config)

    told = await through(proxy, http_proxy="http://other:1")
    told.wrong("connection", "port 9: Connection refused", "host and port")
    assert told.rows["proxy"]["told"] == (
        "127.0.0.1:9; HTTP_PROXY of the environment not used"
    )
    for wrong in ("socks5://127.0.0.1:9", "127.0.0.1:9"):
        (await through(wrong)).wrong("config", "proxy: needs 'http://'", "set it right")
    for wrong in ("http://a:b", "http://a..b"):
        (await through(wrong)).wrong("proxy", "no address of a proxy", "http://")
    refusal = answering(f"<p>{PASSWORD}</p>".encode(), 407)
    async with serving(refusal) as url:
        told = await through(url.replace("//", f"//anna:{PASSWORD}@"))
    told.wrong("answer", "the proxy wants a user", "settings of proxy")
    async with serving(_forwarding(box)) as url:
        told = await through(url)
    assert (told.code, told.rows["clock"]["told"]) == (0, "not seen through a proxy")


def _forwarding(box: Sandbox) -> Script:
    """Make a script that hands each request on to a stand-in."""

    async def forward(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        port = int(box.base_url.rpartition(":")[2])
        far, there = await asyncio.open_connection("127.0.0.1", port)

        async def back() -> None:
            while text := await far.read(65536):
                writer.write(text)

        async with asyncio.TaskGroup() as group:
            group.create_task(back())
            try:
                while True:
                    request = await read_request(reader)
                    there.write(request.replace(box.base_url.encode(), b"", 1))
            except (asyncio.IncompleteReadError, ConnectionError):
                there.close()
        writer.close()

    return forward


async def test_a_tunnel_of_a_proxy(tmp_path: Path) -> None:
    """TLS is spoken through it: what it refuses is the answer's fault."""
    config = tmp_path / "config.toml"
    async with serving(answering(b"no", 403)) as url:
        config.write_text(f'[settings]\nproxy = "{url}"\n')
        told = await examine(at("https://api.example.com"), "--config", config)
    told.wrong("answer", "no connection (ClientHttpProxyError)", "settings of proxy")
    assert told.rows["tls"]["told"] == "through the proxy: the answer shows it"


@pytest.mark.realtime
@pytest.mark.process
async def test_the_store_of_the_gate(box: Sandbox) -> None:
    """Gone, hanging, locked, or somebody else's; the service is asked all the same."""
    async with redis_server() as store:
        told = await examine(of(box, AGENTAPI_REDIS_URL=store.url))
        assert (told.code, told.rows["gate"]["facts"]["members"]) == (0, 0)
        async with store.paused():
            told = await examine(of(box, AGENTAPI_REDIS_URL=store.url))
        told.wrong("gate", "did not answer in time", "whether it runs")
        driver: Any = redis.asyncio.Redis
        async with driver.from_url(store.url) as client:
            members = f"{key_of(Secret(box.token('operator')))}:members"
            await client.set(members, "of somebody else")
            told = await examine(of(box, AGENTAPI_REDIS_URL=store.url))
            told.wrong("gate", "holds something else", "a database of its own")
            await client.config_set("requirepass", "something-else")
        place = store.url.replace("//", f"//:{PASSWORD}@")
        for url, said in (
            (store.url, "it needs user and password"),
            (place, "it needs another user and password"),
        ):
            told = await examine(of(box, AGENTAPI_REDIS_URL=url))
            told.wrong("gate", said, "user and password")
        await store.kill()
        told = await examine(of(box, AGENTAPI_REDIS_URL=place))
    told.wrong("gate", "not reached: Error 111", "whether it runs")
    assert told.rows["latency"]["state"] == "ok"
    told = await examine(of(box, AGENTAPI_REDIS_URL=f"http://:{PASSWORD}@127.0.0.1"))
    told.wrong("gate", "begins with redis://", "AGENTAPI_REDIS_URL")
    told = await examine(of(box, AGENTAPI_REDIS_URL="redis://127.0.0.1?foo=bar"))
    told.wrong("gate", "redis-py does not know", "AGENTAPI_REDIS_URL")


@pytest.mark.parametrize("word", ["0000", "state"])
async def test_a_password_that_stands_everywhere(box: Sandbox, word: str) -> None:
    """It is blotted out of what is told, and not of how it is told."""
    url = f"redis://:{word}@127.0.0.1:9/{word}"
    told = await examine(of(box, AGENTAPI_REDIS_URL=url))
    told.wrong("gate", "not reached: Error 111", "whether it runs")


async def test_a_payment_that_is_unknown(box: Sandbox, tmp_path: Path) -> None:
    """It is counted, also while the program that paid runs; nothing is settled."""
    journal = tmp_path / "journal.db"
    env = of(box, AGENTAPI_JOURNAL=str(journal))
    async with paying(box, journal) as (session, user):
        box.faults.drop_after("wallet/deposit", times=1)
        with pytest.raises(OutcomeUnknownError):
            await session.wallets.deposit(user, 1)
        told = await examine(env)
        told.wrong("journal", "1 unknown", "payments settle")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    told = await examine(env)
    told.wrong("journal", "1 unknown", "payments settle")
    assert told.rows["journal"]["facts"]["unknown"] == 1
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("change", ["amount = 'abc'", "user = 'x'"])
async def test_a_payment_that_nobody_can_read(
    box: Sandbox, tmp_path: Path, change: str
) -> None:
    """Somebody else has written into the journal."""
    journal = tmp_path / "journal.db"
    async with paying(box, journal):
        pass
    with contextlib.closing(sqlite3.connect(journal)) as sql, sql:
        sql.execute(f"UPDATE intents SET phase = 'unknown', {change}")  # noqa: S608 - as above
    told = await examine(of(box, AGENTAPI_JOURNAL=str(journal)))
    told.wrong("journal", "a payment in it cannot be read", "restore it")


async def test_a_journal_that_is_damaged(box: Sandbox, tmp_path: Path) -> None:
    """Also where that is not seen from what is open."""
    journal = tmp_path / "journal.db"
    async with paying(box, journal):
        pass
    with contextlib.closing(sqlite3.connect(journal)) as sql:
        (size,) = sql.execute("PRAGMA page_size").fetchone()
        query = "SELECT rootpage FROM sqlite_master WHERE name = 'keys'"
        (page,) = sql.execute(query).fetchone()
    with journal.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    told = await examine(of(box, AGENTAPI_JOURNAL=str(journal)))
    told.wrong("journal", "the file is damaged", "restore it")


async def test_a_journal_without_its_index(box: Sandbox, tmp_path: Path) -> None:
    """Nothing is left beside it: who pays could not open what is another's."""
    folder = tmp_path / "copy"
    folder.mkdir()
    async with paying(box, tmp_path / "journal.db") as (session, user):
        box.faults.drop_after("wallet/deposit", times=1)
        with pytest.raises(OutcomeUnknownError):
            await session.wallets.deposit(user, 1)
        for name in ("journal.db", "journal.db-wal"):
            shutil.copy(tmp_path / name, folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert before[folder / "journal.db-wal"]
    told = await examine(of(box, AGENTAPI_JOURNAL=str(folder / "journal.db")))
    told.wrong("journal", "1 unknown", "payments settle")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.process
@pytest.mark.parametrize("early", [True, False])
async def test_a_journal_that_is_locked(
    box: Sandbox, tmp_path: Path, *, early: bool
) -> None:
    """Somebody has it for himself, from the start or since he has it open."""
    journal = tmp_path / "journal.db"
    async with paying(box, journal):
        pass
    with contextlib.closing(sqlite3.connect(journal)) as sql:
        if early:
            sql.execute("PRAGMA locking_mode = EXCLUSIVE")
        sql.execute("SELECT * FROM intents").fetchall()
        sql.execute("PRAGMA locking_mode = EXCLUSIVE")
        sql.execute("UPDATE intents SET phase = 'unknown'")
        sql.commit()
        assert journal.with_name("journal.db-shm").exists() != early
        env = of(box, AGENTAPI_JOURNAL=str(journal))
        told = await examine(env, process=True)
    told.wrong("journal", "1 unknown", "payments settle")


@pytest.mark.process
async def test_the_path_of_the_journal(box: Sandbox, tmp_path: Path) -> None:
    """A folder, or bytes that are no text: its line tells it."""
    told = await examine(of(box, AGENTAPI_JOURNAL=str(tmp_path)))
    told.wrong("journal", "is a folder", "name a file in it")
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff/journal.db")
    told = await examine(of(box, AGENTAPI_JOURNAL=odd), process=True)
    told.wrong("journal", "?/journal.db: cannot be made", "make its folder")


async def test_what_would_steer_the_terminal() -> None:
    """Of what the service says, it is not written."""
    info = OK_INFO.replace(b'"x"', rb'"x\u001b]0;y\u0007\u202ez"')
    async with serving(answering(info)) as url:
        told = await examine(at(url))
    assert "account x?]0;y??z, currency" in told.text


async def test_the_file_of_the_journal(box: Sandbox, tmp_path: Path) -> None:
    """Readable by others, none at all, not there yet, or in no place."""
    journal = tmp_path / "journal.db"
    async with paying(box, journal):
        pass
    env = of(box, AGENTAPI_JOURNAL=str(journal))
    assert (await examine(env)).code == 0
    journal.chmod(0o640)
    (await examine(env)).wrong("journal", "others may read", f"chmod 600 {journal}")
    assert stat.S_IMODE(journal.stat().st_mode) == 0o640
    other = tmp_path / "other"
    told = await examine(of(box, AGENTAPI_JOURNAL=str(other)))
    assert (told.code, other.exists()) == (0, False)
    assert "the first payment makes it" in told.rows["journal"]["told"]
    told = await examine(of(box, AGENTAPI_JOURNAL=str(other / "journal.db")))
    told.wrong("journal", "cannot be made", "make its folder")
    other.write_bytes(b"no journal at all" * 99)
    told = await examine(of(box, AGENTAPI_JOURNAL=str(other)))
    told.wrong("journal", "file is not a database", "of this version")
    journal.chmod(0o600)
    with contextlib.closing(sqlite3.connect(journal)) as sql:
        sql.execute("PRAGMA user_version = 99")
    told = await examine(env)
    told.wrong("journal", "of another version", "of this version")


async def test_a_library_that_is_not_installed(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found somewhere: what it needs is not known then."""
    usual = importlib.metadata.distribution

    def lacking(name: str) -> importlib.metadata.Distribution:
        if name == "aio-agentapi":
            raise importlib.metadata.PackageNotFoundError(name)
        return usual(name)

    monkeypatch.setattr(importlib.metadata, "distribution", lacking)
    told = await examine(of(box))
    assert (told.code, told.rows["versions"]["state"]) == (0, "note"), told.text
    assert "is not installed" in told.rows["versions"]["told"]


@pytest.mark.process
async def test_an_old_package(box: Sandbox, tmp_path: Path) -> None:
    """One that was put in the place of what this library needs."""
    folder = tmp_path / "aiohttp-3.1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: aiohttp\nVersion: 3.1.0\n"
    )
    told = await examine(of(box, PYTHONPATH=str(tmp_path)), process=True)
    told.wrong("versions", "aiohttp 3.1.0", "pip install -U 'aiohttp>=")


@pytest.mark.realtime
@pytest.mark.process
async def test_a_file_that_hangs(box: Sandbox, tmp_path: Path) -> None:
    """What opens it is not waited for, also at the end of the program."""
    config = tmp_path / "config.toml"
    os.mkfifo(config, 0o600)
    told = await examine(of(box), "--config", config, process=True)
    told.wrong("config", "not done in time", "slow")
    journal = tmp_path / "journal.db"
    os.mkfifo(journal, 0o600)
    told = await examine(of(box, AGENTAPI_JOURNAL=str(journal)), process=True)
    told.wrong("journal", "not done in time", "slow")


@pytest.mark.process
async def test_whoever_has_read_enough(box: Sandbox) -> None:
    """Nobody reads what it says: no traceback, and no fault."""
    reading, writing = os.pipe()
    os.close(reading)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aio_agentapi.cli", "doctor"),
        env=environment(box),
        stdout=writing,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(writing)
    _, err = await process.communicate()
    assert (err, process.returncode) == (b"", 0)


async def test_the_page_is_true(box: Sandbox, tmp_path: Path) -> None:
    """Every check, in its order, and what the doctor says of a case of two faults."""
    page = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text()
    section = page.partition("## The doctor")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == _CHECKS
    journal, config = tmp_path / "payments.db", tmp_path / "config.toml"
    async with paying(box, journal, "eur") as (session, user):
        box.faults.drop_after("wallet/deposit", times=1)
        with pytest.raises(OutcomeUnknownError):
            await session.wallets.deposit(user, 1)
    box.allow("operator", "203.0.113.9")
    config.write_text(
        f'base_url = "{box.base_url}"\njournal = "payments.db"\n'
        '[accounts.eur]\ntoken_env = "EUR_TOKEN"\n'
    )
    token, proxy = box.token("operator"), "http://proxy.example.com:3128"
    env = {"EUR_TOKEN": token, "https_proxy": proxy}
    args = ("--config", config, "--account", "eur")
    told = await examine(env, *args, secrets=(token,))
    shown = re.findall(
        r"^    ((?:ok|note|wrong|skipped| +->) .*)", section, re.MULTILINE
    )
    assert [_bare(line) for line in shown] == [
        _bare(line).replace(str(tmp_path), "/tmp/shop")  # noqa: S108 - as on the page
        for line in told.text.splitlines()
    ]


def _bare(line: str) -> str:
    """Return a line without what differs from run to run."""
    told = re.sub(r"\bahead\b", "behind", line)
    if "versions" in line:
        return re.sub(r"[\d.]+", "#", told)
    return re.sub(r":\d{4,}|port \d+|[\d.]+ (?=m?s\b)", "#", told)
