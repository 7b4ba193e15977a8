"""The examples run as they are, and the README shows what they say."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

from aio_agentapi.sandbox import SandboxProcess

ROOT = Path(__file__).parents[2]


async def run(example: str, **env: str) -> str:
    """Run an example, and return what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        ROOT / "examples" / example,
        env=dict(os.environ) | env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    return out.decode()


async def test_the_first_program() -> None:
    """It runs alone, and prints what the README says."""
    printed = await run("first_program.py")
    assert printed == "moved 250.0000, left 499750.0000\n"
    assert printed.strip() in (ROOT / "README.md").read_text()


async def test_the_batch() -> None:
    """Every agent gets its points, and the last call is refused."""
    async with SandboxProcess() as box:
        token = box.tokens["operator"]
        printed = await run(
            "batch.py", AGENTAPI_BASE_URL=box.base_url, AGENTAPI_TOKEN=token
        )
    lines = printed.splitlines()
    assert {line.split()[0] for line in lines[:2]} == {"1", "2"}
    assert all(line.endswith("has its points") for line in lines[:2])
    assert lines[2:] == ["FundsError no"]


def test_the_readme_shows_files() -> None:
    """Every Python block of the README is an example, to the letter."""
    examples = {path.read_text() for path in (ROOT / "examples").glob("*.py")}
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    assert blocks
    assert set(blocks) <= examples


def test_links_inside_lead_somewhere() -> None:
    """Each relative link of README, docs and benchmarks is a file."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("*/*.md")]
    for page in pages:
        if ".venv" in page.parts:
            continue
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), (page, link)
