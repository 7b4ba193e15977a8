"""The examples run as they are, and the README shows what they say."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import get_args

import attrs
import pytest

from aio_agentapi import GateStatistics, LocalGate, Phase, Settings, errors, testing
from aio_agentapi._settings import PATHS
from aio_agentapi._types import Lane
from aio_agentapi._wire import CODES
from aio_agentapi.cli._main import main
from aio_agentapi.sandbox import SandboxProcess, Switches
from aio_agentapi.sandbox._faults import Kind

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "benchmarks" / "README.md",
]


async def run(example: str, *args: str, **env: str) -> str:
    """Run an example, and return what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        ROOT / "examples" / example,
        *args,
        env=dict(os.environ) | env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    return out.decode()


@pytest.mark.process
async def test_the_first_program() -> None:
    """It runs alone, and prints what the README says."""
    printed = await run("first_program.py")
    assert printed == "moved 250.0000, left 499750.0000\n"
    assert printed.strip() in (ROOT / "README.md").read_text()


@pytest.mark.process
async def test_the_batch(tmp_path: Path) -> None:
    """Every agent gets its points, once, however often it is run."""
    async with SandboxProcess() as box:
        env = {
            "AGENTAPI_BASE_URL": box.base_url,
            "AGENTAPI_TOKEN": box.tokens["operator"],
        }
        printed = await run("batch.py", str(tmp_path / "batch.journal"), **env)
        assert await run("batch.py", str(tmp_path / "batch.journal"), **env) == ""
    lines = printed.splitlines()
    assert {line.split()[0] for line in lines} == {"1", "2"}
    assert all(line.endswith("has its points") for line in lines)


@pytest.mark.process
async def test_payments(tmp_path: Path) -> None:
    """What is lost is found out, and the list can be run again."""
    printed = await run("payments.py", str(tmp_path / "journal.db"))
    assert printed.splitlines() == [
        "order-1 is unknown",
        "order-2 has moved 20.0000",
        "order-1 is confirmed",
        "order-1 has moved 20.0000",
        "order-2 has moved 20.0000",
        "balance 40.0000",
    ]


def test_the_page_of_money_is_true() -> None:
    """It has every phase, and its settings have their defaults."""
    page = (ROOT / "docs" / "money.md").read_text()
    phases = page.partition("## The phases")[2].partition("## ")[0]
    assert {f"`{phase}`" for phase in Phase} == set(
        re.findall(r"^\| (`\w+`) \|", phases, re.MULTILINE)
    )
    section = page.partition("## Settings")[2].partition("## ")[0]
    told = dict(re.findall(r"^\| `(\w+)` \| (\S+)", section, re.MULTILINE))
    assert {"sole_writer", "keep_intents", "longest_call"} <= told.keys()
    for name, default in told.items():
        value = getattr(Settings(), name)
        number = f"{value:.0f}" if isinstance(value, float) else str(value).lower()
        assert default == number, name


@pytest.mark.process
async def test_the_evening(tmp_path: Path) -> None:
    """It ends as the tutorial shows, and nobody is paid twice."""
    printed = await run("evening.py", str(tmp_path / "journal.db"))
    page = (ROOT / "docs" / "tutorial.md").read_text()
    shown = re.search(r"```text\n(.*?)```", page, re.DOTALL)
    assert shown is not None
    told, lines = shown[1].splitlines(), printed.splitlines()
    # Rows of a plan are told as they end.
    assert sorted(told[1:3]) == sorted(lines[1:3])
    assert told[3:] == lines[3:]
    assert told[0] == lines[0]


@pytest.mark.process
async def test_two_currencies() -> None:
    """Each from its own account, in its own currency."""
    printed = await run("two_currencies.py")
    assert sorted(printed.splitlines()) == [
        "eur: currency 978, left 49750.0000",
        "usd: currency 840, left 49750.0000",
    ]


@pytest.mark.process
async def test_many_users() -> None:
    """One that is refused stops no other."""
    printed = await run("many_users.py")
    anna, bert, wrong = sorted(printed.splitlines())
    assert {anna, bert} in ({"anna 1", "bert 2"}, {"anna 2", "bert 1"})
    assert wrong.startswith("no name failed: users.create: code 1002")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_the_docs_show_are_parts_of_files(page: Path) -> None:
    """Every Python block stands in an example, to the letter."""
    examples = [path.read_text() for path in (ROOT / "examples").glob("*.py")]
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        assert any(block in example for example in examples), block


def test_the_readme_begins_with_a_whole_program() -> None:
    """Which is an example, to the letter."""
    (block, *_) = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    assert block == (ROOT / "examples" / "first_program.py").read_text()


def test_links_inside_lead_somewhere() -> None:
    """Each relative link of README, docs and benchmarks is a file, and a heading."""
    for page in PAGES:
        for link in re.findall(r"\]\(([^):]+)\)", page.read_text()):
            path, _, heading = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), (page, link)
            if heading:
                heads = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
                slugs = {
                    re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in heads
                }
                assert heading in slugs, (page, link)


async def test_the_page_of_the_gate_is_true() -> None:
    """Its settings with their defaults, its fields, and the line that it shows."""
    page = (ROOT / "docs" / "gate.md").read_text()
    section = page.partition("## Settings")[2].partition("## ")[0]
    told: dict[str, str] = {}
    for names, defaults in re.findall(r"^\| (`.*?) \| (.*?) \|", section, re.MULTILINE):
        told |= dict(zip(names.split(", "), defaults.split(", "), strict=True))
    for name, default in told.items():
        value = getattr(Settings(), name.strip("`"))
        number = f"{value:g}" if isinstance(value, float | int) else str(value).lower()
        assert default.removesuffix(" s").strip('`"') == number, name
    assert {"`abandon_after`", "`linger`", "`max_wait`", "`limit`"} <= {*told}
    table = page.partition("## When calls are slow")[2]
    fields = {field.name for field in attrs.fields(GateStatistics)} - {"admitted"}
    assert {name for name in fields if f"`{name}" in table} == fields
    gate = LocalGate(limit=50)
    for _ in range(50):
        await gate.acquire("interactive")
    for _ in range(20):
        gate.refused("interactive")
    for _ in range(4):
        gate.detach()
    for _ in range(2):
        gate.land(answered=True)
    loop = asyncio.get_running_loop()
    lanes: dict[Lane, int] = {"interactive": 20, "batch": 100}
    waiting = [
        loop.create_task(gate.acquire(lane))
        for lane, count in lanes.items()
        for _ in range(count)
    ]
    await asyncio.sleep(0)
    assert f"    {gate!r}\n" in page
    gate.close()
    await asyncio.gather(*waiting, return_exceptions=True)


def test_the_errors_page_has_the_whole_tree() -> None:
    """Every class, where it stands, and whether it happened; each with what to do."""
    page = (ROOT / "docs" / "errors.md").read_text()
    tree = re.search(r"```text\n(.*?)```", page, re.DOTALL)
    assert tree is not None
    above: list[str] = []
    told: dict[str, tuple[str | None, str]] = {}
    for line in tree[1].splitlines():
        name, happened = re.sub("[│├└─ ]+", " ", line).split()
        depth = (len(line) - len(line.lstrip("│├└─ "))) // 4
        above = [*above[:depth], name]
        told[name] = (above[depth - 1] if depth else None, happened)
    classes = [getattr(errors, name) for name in errors.__all__ if name != "Happened"]
    assert told == {
        kind.__name__: (
            None if kind is errors.AgentAPIError else kind.__base__.__name__,
            kind.happened,
        )
        for kind in classes
    }
    # Those that a code becomes are in the table of codes.
    for kind in classes[1:]:
        if not kind.__subclasses__():
            assert f"| `{kind.__name__}` |" in page


def test_the_errors_page_has_every_code() -> None:
    """With its name, its error, and whether it happened."""
    page = (ROOT / "docs" / "errors.md").read_text()
    rows = re.findall(r"\| (\d+) \| (\w+) \| `(\w+)` \| (\w+) \|", page)
    assert rows == [
        (str(code), name, kind.__name__, kind.happened)
        for code, (name, kind) in CODES.items()
    ]


def test_the_commands_are_told() -> None:
    """Every command of the command line is on its page."""
    page = (ROOT / "docs" / "command-line.md").read_text()
    for group, command in main.commands.items():
        names = getattr(command, "commands", None)
        for name in names or [""]:
            assert f"`{f'{group} {name}'.strip()}" in page


def test_the_settings_of_the_stand_in_are_told() -> None:
    """Every switch and every fault is on its page."""
    page = (ROOT / "docs" / "stand-in.md").read_text()
    names = [field.name for field in attrs.fields(Switches)]
    for name in [*names, *get_args(Kind)]:
        assert re.search(rf"`{name}\b", page), name


def test_the_fixtures_are_told() -> None:
    """Whatever tests may use is on the page of testing."""
    page = (ROOT / "docs" / "testing.md").read_text()
    for name in testing.__all__:
        assert f"`{name}`" in page, name


def test_the_start_page_and_the_readme_have_every_call() -> None:
    """Each operation of the client is told to whoever begins."""
    start = (ROOT / "docs" / "start.md").read_text()
    readme = (ROOT / "README.md").read_text()
    for operation in PATHS:
        method = operation.split(".")[1]
        assert re.search(rf"`(\w+\.)?{method}\(", start), operation
        assert f"`{method}`" in readme
