"""What is given away: built, installed where nothing else is, and used there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs
import pytest

ROOT: Final = Path(__file__).parents[2]

# The package index may take its time.
pytestmark = [pytest.mark.timeout(300), pytest.mark.process]

# For each way to run async tests, without the other plugin: pytest's settings.
INI: Final = "[pytest]\nfilterwarnings = error\naddopts = -q -p no:cacheprovider"
ASYNCIO: Final = f"""{INI} -p no:anyio
asyncio_default_fixture_loop_scope = function
asyncio_mode ="""
FORMS: Final[Mapping[str, str]] = {
    "auto": f"{ASYNCIO} auto\n",
    "strict": f"{ASYNCIO} strict\n",
    "anyio": f"{INI} -p no:asyncio\n",
}
TESTS: Final = (
    ROOT / "tests" / "integration" / "test_testing.py",
    ROOT / "examples" / "test_lost_payment.py",
    ROOT / "examples" / "test_one_stand_in.py",
)

# It is the wheel that is used, and not this checkout.
CONFTEST: Final = """
import sys
from pathlib import Path

import pytest

import aio_agentapi

assert Path(aio_agentapi.__file__).is_relative_to(sys.prefix)


@pytest.fixture
def anyio_backend():
    return "asyncio"
"""

WRONG: Final = """
from aio_agentapi.testing import assert_points


async def test_too_much(agentapi, agentapi_sandbox):
    shop = agentapi_sandbox.account("shop_1")
    await agentapi.session("operator").points.transfer(shop.code, "5")
    assert_points(agentapi_sandbox, {"shop_1": 1000, "shop_2": 1000})


def test_without_a_loop(agentapi):
    raise AssertionError("never comes here")
"""

MANY: Final = """
import pytest


@pytest.mark.parametrize("turn", range(200))
async def test_it_is_fresh(agentapi, agentapi_sandbox, turn):
    shop = agentapi_sandbox.account("shop_1")
    move = await agentapi.session("operator").points.transfer(shop.code, 1)
    assert move.balance == 499_999
"""


@attrs.frozen
class Clean:
    """An environment with the wheel in it, and nothing of this checkout."""

    home: Path

    def run(self, *args: str | Path, cwd: Path, code: int = 0) -> str:
        """Run one of its programs elsewhere; return what it wrote."""
        ran = run(self.home / "bin" / args[0], *args[1:], cwd=cwd)
        assert ran.returncode == code, ran.stdout + ran.stderr
        assert ran.stderr == ""
        return ran.stdout

    def test(self, project: Path, form: str, code: int = 0) -> tuple[str, Outcomes]:
        """Run pytest on a project; return what it wrote, and how many ended how."""
        (project / "pytest.ini").write_text(FORMS[form])
        (project / "conftest.py").write_text(CONFTEST)
        told = self.run("python", "-m", "pytest", cwd=project, code=code)
        counts = re.findall(r"(\d+) ([a-z]+)", told.splitlines()[-1].split(" in ")[0])
        return told, {outcome: int(count) for count, outcome in counts}


Outcomes = dict[str, int]


def run(*args: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in an environment that leads to nothing of ours."""
    ours = ("AGENTAPI_", "COVERAGE", "PYTEST", "PYTHON", "VIRTUAL_ENV")
    env = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    return subprocess.run(  # noqa: S603 - our own programs
        args, cwd=cwd, env=env, capture_output=True, text=True, check=False
    )


def done(*args: str | Path, cwd: Path) -> None:
    """Run a program to its good end."""
    ran = run(*args, cwd=cwd)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def adapted(path: Path, form: str) -> str:
    """Return a test file as it is written for a form; it is there for ``auto``."""
    text = path.read_text()
    if form == "auto":
        return text
    mark = "anyio" if form == "anyio" else "asyncio"
    text = re.sub(
        r"^( *)async def test_",
        rf"\1@pytest.mark.{mark}\n\g<0>",
        text,
        flags=re.MULTILINE,
    )
    if form == "strict":
        text = text.replace(
            "@pytest.fixture\nasync def", "@pytest_asyncio.fixture\nasync def"
        ).replace("import pytest\n", "import pytest\nimport pytest_asyncio\n", 1)
    return text


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build what the sources are given away as."""
    dist = tmp_path_factory.mktemp("sdist")
    hatchling = (sys.executable, "-m", "hatchling")
    done(*hatchling, "build", "-t", "sdist", "-d", dist, cwd=ROOT)
    (built,) = dist.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel, from the sources as they are given away."""
    dist, sources = (tmp_path_factory.mktemp(name) for name in ("wheel", "sources"))
    with tarfile.open(sdist) as archive:
        archive.extractall(sources, filter="data")
    (home,) = sources.iterdir()
    hatchling = (sys.executable, "-m", "hatchling")
    done(*hatchling, "build", "-t", "wheel", "-d", dist, cwd=home)
    (built,) = dist.iterdir()
    return built


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Clean:
    """Install the wheel, and what tests need, where there is nothing else."""
    home = tmp_path_factory.mktemp("clean") / "venv"
    done(sys.executable, "-m", "venv", "--without-pip", home, cwd=home.parent)
    pip = (sys.executable, "-m", "pip", "--python", home / "bin" / "python")
    tools = ("pytest", "pytest-asyncio", "anyio")
    done(*pip, "install", "-q", f"{wheel}[cli]", *tools, cwd=home.parent)
    return Clean(home)


def test_the_wheel_has_the_package_and_nothing_else(wheel: Path) -> None:
    """Every file of it, ``py.typed`` among them, and what pip needs to know."""
    names = zipfile.ZipFile(wheel).namelist()
    package = ROOT / "aio_agentapi"
    assert {name for name in names if ".dist-info/" not in name} == {
        str(path.relative_to(ROOT))
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "aio_agentapi/py.typed" in names
    (info,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
    assert {name.partition("/")[2] for name in names if name.startswith(info)} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
    }


def test_the_sources_have_the_tests_and_the_docs(sdist: Path) -> None:
    """And nothing that only this checkout has."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "docs/testing.md"} <= names
    assert "tests/integration/test_plugin.py" in names
    assert not [name for name in names if re.match(r"\.venv|\.git/|dist", name)]


def test_the_command_runs_from_the_wheel(clean: Clean, tmp_path: Path) -> None:
    """With what the extra brings; without redis-py, which it does without."""
    told = clean.run("agentapi", "--version", cwd=tmp_path)
    assert told.startswith("agentapi, version ")
    assert told.endswith("redis is not installed\n")


def test_the_plugin_loads_little(clean: Clean, tmp_path: Path) -> None:
    """What every run of pytest loads brings neither the stand-in nor other plugins."""
    code = (
        "import sys, aio_agentapi.testing\n"
        "print({'pytest_asyncio', 'anyio.pytest_plugin', 'aio_agentapi.sandbox',"
        " 'click'} & set(sys.modules))"
    )
    assert clean.run("python", "-c", code, cwd=tmp_path) == "set()\n"


def test_every_form_of_async_tests(clean: Clean, tmp_path: Path) -> None:
    """Every fixture, with pytest-asyncio, auto and strict, and with anyio's plugin."""
    ended: dict[str, Outcomes] = {}
    for form in FORMS:
        project = tmp_path / form
        project.mkdir()
        for path in TESTS:
            (project / path.name).write_text(adapted(path, form))
        _, ended[form] = clean.test(project, form)
    written = sum(len(re.findall("def test_", path.read_text())) for path in TESTS)
    assert ended["auto"].keys() == {"passed"}
    # Some run more than once.
    assert ended["auto"]["passed"] >= written
    assert ended == dict.fromkeys(FORMS, ended["auto"])


def test_what_a_failure_tells(clean: Clean, tmp_path: Path) -> None:
    """Who, what was expected and what was found, at the line of the test."""
    (tmp_path / "test_wrong.py").write_text(WRONG)
    told, outcomes = clean.test(tmp_path, "auto", code=1)
    assert outcomes == {"failed": 1, "error": 1}
    page = (ROOT / "docs" / "testing.md").read_text()
    (shown,) = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    assert "  shop_1: expected 1000.0000, found 1005.0000, 5.0000 too much\n" in shown
    assert f"{shown}\ntest_wrong.py:8: AssertionError\n" in told
    assert "agentapi: its sessions live in the loop of an async test" in told
    assert "never comes here" not in told


def test_two_hundred_stand_ins(clean: Clean, tmp_path: Path) -> None:
    """A fresh one for each test, one after the other."""
    (tmp_path / "test_many.py").write_text(MANY)
    _, outcomes = clean.test(tmp_path, "auto")
    assert outcomes == {"passed": 200}
