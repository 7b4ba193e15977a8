"""Real fronts of a test's own, and a service behind them that has no answer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
from collections import Counter
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Literal, TypeAlias

import attrs

from aio_agentapi.sandbox import Sandbox
from tests.conftest import read_request
from tests.waiting import look_again

# What becomes of a call that was executed. Its answer does not come in time; its
# connection is reset, or closed, without one, or in the middle of it; or another front,
# further behind, says 502.
End: TypeAlias = Literal["slow", "reset", "closed", "cut", "gateway"]

# Nothing listens there.
ELSEWHERE: Final = "http://127.0.0.1:1/sorry"

HTML: Final = "<html><body>We are sorry.</body></html>"
JSON: Final = '{"error": "bad gateway"}'
# It looks as if the service had said it, and it did not.
CODE: Final = '{"code": 404, "message": "Not Found", "data": null}'

_GATEWAY: Final = (
    b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\n"
    b"Content-Length: 11\r\n\r\nBad Gateway"
)


@attrs.define(eq=False)
class Service:
    """
    A stand-in that a front has behind it.

    Attributes:
        box: What executes the calls.

        port: Where it answers.

        ends: What becomes of the calls of a path when they are executed; all others
            are answered.

        also: Paths that it has under other names as well.

        came: How many calls of each path came through the front.

        executing: How many of them are not executed yet.
    """

    box: Sandbox
    port: int = 0
    ends: dict[str, End] = attrs.field(factory=dict[str, End])
    also: dict[str, str] = attrs.field(factory=dict[str, str])
    came: Counter[str] = attrs.field(factory=Counter[str])
    executing: int = 0
    # Nothing else keeps a task whose front has hung up.
    _tasks: set[asyncio.Task[None]] = attrs.field(init=False, factory=set)

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Execute one call after the other, and answer where there is an answer."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while not writer.is_closing():
                request = await read_request(reader)
                target = request.split(b" ", 2)[1].decode()
                path = target.removeprefix("/v4/")
                self.came[path] += 1
                named = f"/v4/{self.also.get(path, path)}"
                request = request.replace(target.encode(), named.encode(), 1)
                answer = await self._execute(request)
                await self._end(self.ends.get(path), answer, reader, writer)
        writer.close()

    async def _execute(self, request: bytes) -> bytes:
        _, _, port = self.box.base_url.rpartition(":")
        self.executing += 1
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
            try:
                writer.write(request)
                # The head of an answer says how long it is as that of a request does.
                return await read_request(reader)
            finally:
                writer.close()
        finally:
            self.executing -= 1

    async def _end(
        self,
        end: End | None,
        answer: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        if end == "slow":
            # Until the front has had enough of it.
            await reader.read()
            writer.close()
        elif end == "reset":
            writer.transport.abort()
        elif end == "closed":
            writer.close()
        elif end == "cut":
            writer.write(answer[:-10])
            writer.close()
        else:
            writer.write(_GATEWAY if end == "gateway" else answer)
            await writer.drain()


@asynccontextmanager
async def service(box: Sandbox) -> AsyncGenerator[Service]:
    """Run a service that executes its calls at a stand-in."""
    behind = Service(box)
    server = await asyncio.start_server(behind.serve, "127.0.0.1", 0)
    behind.port = server.sockets[0].getsockname()[1]
    try:
        yield behind
    finally:
        server.close()


@attrs.frozen
class Site:
    """
    What a front serves under ``/name/``.

    Attributes:
        name: Its own.

        lines: What is configured for it, in the front's own words.

        port: Of the service behind it.
    """

    name: str
    lines: str
    port: int


@asynccontextmanager
async def nginx(
    folder: Path, sites: Iterable[Site], *, patience: str
) -> AsyncGenerator[str]:
    """
    Run nginx while a test runs.

    Each site has two servers behind it and keeps its connections to them, so that
    there is somebody to repeat a call at.

    Args:
        folder: All that it writes is there.

        sites: What it serves.

        patience: How long it waits for an answer.

    Yields:
        Where it answers.
    """
    port = _free_port()
    for name, text in (("page.html", HTML), ("error.json", JSON), ("code.json", CODE)):
        (folder / name).write_text(text)
    sites = [*sites]
    upstreams = "".join(
        f"""
    upstream {site.name} {{
        server 127.0.0.1:{site.port} max_fails=0;
        server 127.0.0.1:{site.port} max_fails=0;
        keepalive 8;
    }}"""
        for site in sites
    )
    locations = "".join(
        f"""
        location /{site.name}/ {{
            proxy_pass http://{site.name}/;
            {site.lines}
        }}"""
        for site in sites
    )
    temporary = "".join(
        f"\n    {kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(f"""
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 1000; }}
http {{
    access_log off;{temporary}
    types {{ text/html html; application/json json; }}
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_read_timeout {patience};
    proxy_intercept_errors on;{upstreams}
    server {{
        listen 127.0.0.1:{port};
        root {folder};{locations}
        location @page {{ try_files /page.html =404; }}
        location @elsewhere {{ return 302 {ELSEWHERE}; }}
        location @nothing {{ return 444; }}
    }}
}}
""")
    log = str(folder / "error.log")
    arguments = ("-p", str(folder), "-e", log, "-c", str(folder / "nginx.conf"))
    async with _running("nginx", arguments, folder, port):
        yield f"http://127.0.0.1:{port}"


@asynccontextmanager
async def haproxy(
    folder: Path, sites: Iterable[Site], *, patience: str, kept: bool = False
) -> AsyncGenerator[str]:
    """
    Run HAProxy while a test runs.

    Each site has two servers behind it, and may try three times to reach them.

    Args:
        folder: All that it reads is there: for ``errorfile`` there are ``404.http``,
            ``405.http``, and with JSON in them ``json-404.http`` and
            ``json-200.http``.

        sites: What it serves.

        patience: How long it waits for an answer.

        kept: Whether it keeps connections. On those it shows nothing in the place of
            an answer that is lost with its connection: it hangs up.

    Yields:
        Where it answers.
    """
    port = _free_port()
    for name, status, kind, text in (
        ("404", "404 Not Found", "text/html", HTML),
        ("405", "405 Method Not Allowed", "text/html", HTML),
        ("json-404", "404 Not Found", "application/json", JSON),
        ("json-200", "200 OK", "application/json", JSON),
    ):
        (folder / f"{name}.http").write_bytes(
            f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {len(text)}\r\n\r\n{text}".encode()
        )
    sites = [*sites]
    uses = "".join(
        f"\n    use_backend {site.name} if {{ path_beg /{site.name}/ }}"
        for site in sites
    )
    backends = "".join(
        f"""
backend {site.name}
    http-request replace-path /{site.name}/(.*) /\\1
    {site.lines}
    server one 127.0.0.1:{site.port}
    server two 127.0.0.1:{site.port}
"""
        for site in sites
    )
    (folder / "haproxy.cfg").write_text(f"""
global
    nbthread 1
    maxconn 1000
defaults
    mode http
    {"option http-keep-alive" if kept else "option httpclose"}
    option redispatch
    retries 3
    timeout connect 20s
    timeout client 20s
    timeout server {patience}
frontend front
    bind 127.0.0.1:{port}{uses}
{backends}""")
    arguments = ("-db", "-f", str(folder / "haproxy.cfg"))
    async with _running("haproxy", arguments, folder, port):
        yield f"http://127.0.0.1:{port}"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@asynccontextmanager
async def _running(
    name: str, arguments: tuple[str, ...], folder: Path, port: int
) -> AsyncGenerator[None]:
    """Run a program in the foreground; it is ready when it takes a connection."""
    # Where a system has them that a user's PATH has not.
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    program = shutil.which(name, path=places)
    assert program, f"{name} is missing: apt-get install {name}"
    said = folder / f"{name}.said"
    with said.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            program, *arguments, cwd=folder, stdout=output, stderr=output
        )
    try:
        async with asyncio.timeout(20):
            while True:
                assert process.returncode is None, said.read_text()
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    await writer.wait_closed()
                    break
                await look_again()
        yield
        assert process.returncode is None, said.read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
