"""The site of the docs: it is built, leads nowhere wrong, and tells what is true."""

from __future__ import annotations

import asyncio
import importlib
import os
import re
import runpy
import subprocess
import sys
import xml.etree.ElementTree as ET
import zlib
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import attrs
import pytest

from aio_agentapi import LocalGate, SessionManager, SqliteStore
from aio_agentapi._settings import PATHS
from aio_agentapi.redis import RedisGateStatistics
from aio_agentapi.sandbox import SandboxProcess, Switches
from tests.test_house import PUBLIC
from tests.waiting import look_again

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def script(name: str) -> dict[str, Any]:
    """Return what a script of the docs defines."""
    return runpy.run_path(str(DOCS / name))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site as ``make docs`` does, every warning an error."""
    pytest.importorskip("sphinx")
    folder = tmp_path_factory.mktemp("site")
    # Where coverage is measured, this is not what is to be covered.
    env = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE")}
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q"]
    built = subprocess.run(  # noqa: S603 - our own interpreter
        [*command, "-d", str(folder / "cache"), str(DOCS), str(folder / "html")],
        capture_output=True,
        text=True,
        check=False,
        env=env,
    )
    assert built.returncode == 0, built.stderr
    return folder / "html"


class Page(HTMLParser):
    """What a page leads to, and what it can be led to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors = {""}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take note of both."""
        del tag
        told = dict(attrs)
        self.links += [v for k in ("href", "src") if (v := told.get(k)) is not None]
        self.anchors |= {v for k in ("id", "name") if (v := told.get(k)) is not None}


# It is built for whichever comes first.
@pytest.mark.timeout(180)
@pytest.mark.process
def test_no_link_of_the_site_is_dead(site: Path) -> None:
    """Each that does not lead outside leads to a file, and to a place in it."""
    pages = {path: Page(path.read_text()) for path in site.rglob("*.html")}
    assert len(pages) > 20
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve()
            if not parts.path:
                target = path
            assert target.is_file(), (path.name, link)
            if target in pages and "genindex" not in target.name:
                assert unquote(parts.fragment) in pages[target].anchors, (path, link)


@pytest.mark.timeout(180)
@pytest.mark.process
def test_the_reference_has_every_public_name(site: Path) -> None:
    """What can be imported is described, with where the contract says so."""
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    names = {
        line.split()[0]
        for line in zlib.decompress(inventory).decode().split("\n")
        if line
    }
    for home in PUBLIC:
        if home.startswith("aio_agentapi.cli"):
            continue
        module = importlib.import_module(home)
        for name in getattr(module, "__all__", ()):
            # What is imported from elsewhere is described there.
            made_in = getattr(getattr(module, name), "__module__", home)
            assert {f"{home}.{name}", f"{made_in}.{name}"} & names, (home, name)
    for operation in PATHS:
        namespace, method = operation.split(".")
        page = (site / "reference" / f"{namespace}.html").read_text()
        assert f".{method}" in page, operation
    wallets = (site / "reference" / "wallets.html").read_text()
    assert wallets.count('<p class="rubric">Source</p>') == 3


@pytest.mark.parametrize("name", ["diagrams.py", "tables.py"])
def test_what_is_drawn_is_what_the_code_says_now(name: str) -> None:
    """Pictures and tables are those that ``make draw`` makes."""
    drawn = script(name)
    if name == "tables.py":
        now: dict[Path, str] = drawn["pages"]()
    else:
        now = {DOCS / "pictures" / n: text for n, text in drawn["pictures"]().items()}
    for path, text in now.items():
        assert text == path.read_text(), f"{path.name}: make draw"


@pytest.mark.parametrize(
    "path", sorted((DOCS / "pictures").glob("*.svg")), ids=lambda path: path.name
)
def test_a_picture_stands_alone(path: Path) -> None:
    """It is sound XML, and loads nothing, neither from here nor from elsewhere."""
    for element in ET.parse(path).iter():  # noqa: S314 - our own file
        assert element.tag.partition("}")[2] not in {"image", "script"}
        for name, value in element.attrib.items():
            assert not name.endswith("href") or value.startswith("#")
    assert not re.search(r"@import|@font-face|url\((?!#)", path.read_text())


class Walk:
    """A permit on its way through a real gate, along the lines of the picture."""

    def __init__(self, limit: int) -> None:
        self.gate = LocalGate(limit=limit)
        self.methods = {
            (start, end): how for start, end, _, how in script("diagrams.py")["PERMIT"]
        }
        self.walked: set[tuple[str, str]] = set()

    def places(self) -> Counter[str]:
        """Return how many permits are where."""
        state = self.gate.statistics()
        return Counter(
            {
                "in use": state.in_use - state.detached,
                "detached": state.detached,
                "kept back": state.foreign_estimate,
                "lingering": state.withheld - state.foreign_estimate,
                "free": state.limit - state.in_use - state.withheld,
            }
        )

    async def go(self, start: str, end: str, *also: tuple[str, str]) -> None:
        """Call what stands at a line, and see one permit move along it."""
        expected = self.places()
        for before, after in ((start, end), *also):
            expected[before] -= 1
            expected[after] += 1
        for method in filter(None, self.methods[start, end].split(", ")):
            if method == "acquire":
                await self.gate.acquire("batch")
            elif method == "release":
                self.gate.release("batch", 0.01)
            elif method == "refused":
                self.gate.refused("batch")
            elif method == "give_up":
                self.gate.give_up("batch", 0.0)
            elif method == "land":
                self.gate.land(answered=False)
            else:
                assert method == "detach"
                self.gate.detach()
        if not self.methods[start, end]:
            # Its time is over within some turns of the loop.
            for _ in range(100):
                await asyncio.sleep(0)
        assert expected == self.places(), (start, end)
        self.walked.add((start, end))


async def test_the_life_of_a_permit_is_true() -> None:
    """Each line of the picture is what its method does to a real gate."""
    walk = Walk(1)
    await walk.go("free", "in use")
    await walk.go("in use", "free")
    await walk.go("free", "in use")
    await walk.go("in use", "detached")
    await walk.go("detached", "free")
    await walk.go("free", "in use")
    await walk.go("in use", "detached")
    await walk.go("detached", "lingering")
    await walk.go("lingering", "free")
    await walk.go("free", "in use")
    await walk.go("in use", "kept back")
    await walk.go("kept back", "in use")
    two = Walk(2)
    await two.go("free", "in use")
    await two.go("free", "in use")
    await two.go("in use", "kept back")
    # The good answer that lets the share grow frees its own permit, too.
    await two.go("kept back", "free", ("in use", "free"))
    assert walk.walked | two.walked == walk.methods.keys()


@pytest.mark.process
def test_the_terminal_of_the_readme_is_that_of_the_demo() -> None:
    """Word for word; the numbers are of the day on which it was drawn."""
    demo = script("demo.py")
    printed = demo["run"]("--agents", "3", "--rows", "60", "--latency", "0.001")
    now = demo["draw"](printed)
    kept = (DOCS / "pictures" / "demo.svg").read_text()
    assert words(now) == words(kept)
    assert "pictures/demo.svg" in (ROOT / "README.md").read_text()


def words(drawn: str) -> list[str]:
    """Return the lines of a drawn terminal, all numbers alike."""
    lines: dict[str, str] = {}
    for text in ET.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text"):  # noqa: S314 - our own
        row = text.get("clip-path", "")
        lines[row] = lines.get(row, "") + (text.text or "")
    plain = [line.replace("\xa0", " ") for line in lines.values()]
    return [" ".join(re.sub(r"\d[\d.,]*", "0", line).split()) for line in plain]


def test_the_page_of_tuning_is_true() -> None:
    """Little's law is worked out right, and what to watch is there."""
    page = (DOCS / "tuning.md").read_text()
    rows = re.findall(
        r"^\| (\d+) (ms|s) \| ([\d,]+)(?: calls/s)? \| ([\d,]+) \|$", page, re.MULTILINE
    )
    assert len(rows) == 4
    for number, unit, *rates in rows:
        seconds = int(number) / (1000 if unit == "ms" else 1)
        for permits, rate in zip((50, 12), rates, strict=True):
            assert int(rate.replace(",", "")) == round(permits / seconds)
    watched = page.partition("## What to watch")[2].partition("## ")[0]
    fields = {field.name for field in attrs.fields(RedisGateStatistics)}
    first = [row.split("|")[1] for row in watched.splitlines() if row.startswith("| `")]
    told = set(re.findall(r"`(\w+)`", "".join(first)))
    assert told <= fields
    assert {"waiting", "busy_answers", "detached", "lost"} <= told


@pytest.mark.process
async def test_a_token_has_as_many_connections_as_permits(tmp_path: Path) -> None:
    """And a journal fewer than ten files, as the page of tuning says."""

    def count() -> int:
        return len([*Path("/proc/self/fd").iterdir()])

    async with SandboxProcess(Switches(latency=0.05)) as box:
        before = count()
        async with SessionManager(
            box.base_url, store=SqliteStore(tmp_path / "journal.db")
        ) as manager:
            session = manager.session(box.tokens["shop_1"])
            users = await asyncio.gather(
                *(session.users.create(f"user_{n}") for n in range(120))
            )
            most = 0
            async with asyncio.TaskGroup() as group:
                for user in users:
                    group.create_task(session.wallets.deposit(user.user_code, 1))
                while session.gate.statistics().admitted < 120 + len(users):
                    most = max(most, count())
                    await look_again()
    assert session.gate.statistics().peak == 50
    assert 50 <= most - before < 60
