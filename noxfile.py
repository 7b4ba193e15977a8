"""
The tests on each Python of this machine: ``make matrix``.

Interpreters are found by their names on the path and among pyenv's versions, and each
is asked for its version before it is believed: a shim is not yet an interpreter.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nox

WANTED = ("3.11", "3.12", "3.13", "3.14", "3.15")

# The one that runs this.
OWN = "{}.{}".format(*sys.version_info)

# What has to hold wherever the library runs, without what only tools need.
CORE = (
    "tests/unit",
    "tests/contract",
    *(
        f"tests/integration/test_{name}.py"
        for name in ("calls", "connections", "gate", "payments", "roads", "life")
    ),
    "tests/fault/test_cancel.py",
    "tests/fault/test_own_responses.py",
    "tests/fault/test_late.py",
)

# Other ways to run a loop; on one of the newer ones.
MODES = {
    "eager": {"AGENTAPI_TEST_LOOP": "eager"},
    "uvloop": {"AGENTAPI_TEST_LOOP": "uvloop"},
    # pytest-asyncio sets its own loops to no debug mode.
    "debug": {"PYTHONDEVMODE": "1", "PYTEST_ADDOPTS": "--asyncio-debug"},
}

HELP = (
    "On Debian: make pythons (a sid in a folder of its own has 3.13 and newer), or"
    " pyenv install VERSION"
)

nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = True


def version_of(program: str | Path) -> str | None:
    """Return which Python a program is, or None where it does not run."""
    code = "import sys; print('{}.{}'.format(*sys.version_info))"
    try:
        ran = subprocess.run(  # noqa: S603 - an interpreter of this machine
            [program, "-c", code],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ran.stdout.strip() if ran.returncode == 0 else None


def found() -> dict[str, str]:
    """Return where the wanted interpreters are, by their versions."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    places: dict[str, str] = {}
    for wanted in WANTED:
        named = shutil.which(f"python{wanted}")
        kept = sorted(root.glob(f"versions/{wanted}*/bin/python3"), reverse=True)
        asked = [sys.executable] if wanted == OWN else []
        for program in (*asked, *filter(None, [named]), *kept):
            if version_of(program) == wanted:
                places[wanted] = str(program)
                break
    return places


FOUND = found()
OTHERS = [program for version, program in FOUND.items() if version != OWN]
# Eager tasks are not older than that.
NEWER = [program for version, program in FOUND.items() if version != "3.11"]


def tell() -> None:
    """Say what is there and what is not."""
    missing = [wanted for wanted in WANTED if wanted not in FOUND]
    print("Found:", ", ".join(f"{v} ({p})" for v, p in FOUND.items()) or "none")
    if missing:
        print(f"Missing: {', '.join(missing)}. {HELP}")


def prepare(session: nox.Session, *groups: str) -> None:
    """Install the library and what its tests import."""
    session.install("-q", "--upgrade", "pip")
    wanted = [word for group in groups for word in ("--group", group)]
    session.install("-q", "-e", ".[cli,redis]", *wanted)


def run(session: nox.Session, *args: str, env: dict[str, str] | None = None) -> None:
    """Run tests, all that is told against them, two at a time."""
    session.run(
        *("python", "-m", "pytest", "-q", "-n", "2"),
        *args,
        env={"PYTHONWARNINGS": "error", **(env or {})},
    )


@nox.session(python=False)
def interpreters(session: nox.Session) -> None:
    """Say which Pythons are there, and which are missing."""
    tell()
    if not FOUND:
        session.error("No interpreter was found, and so nothing was tested.")


@nox.session(python=[*FOUND.values()])
def tests(session: nox.Session) -> None:
    """Run all tests."""
    prepare(session, "test", "docs")
    run(session, *session.posargs)


@nox.session(python=[*FOUND.values()])
def core(session: nox.Session) -> None:
    """Run what has to hold wherever the library runs."""
    prepare(session, "core")
    run(session, *CORE, *session.posargs)


@nox.session(python=OTHERS or False)
def others(session: nox.Session) -> None:
    """Run that on each Python but this one, which runs all tests anyway."""
    if not OTHERS:
        session.skip(f"There is no other Python here than {OWN}. {HELP}")
    prepare(session, "core")
    run(session, *CORE, *session.posargs)


@nox.session(python=NEWER[-1:] or False)
@nox.parametrize("mode", [*MODES])
def modes(session: nox.Session, mode: str) -> None:
    """Run that in other loops, on the newest Python that is there."""
    if not NEWER:
        session.skip(f"There is no newer Python here than 3.11. {HELP}")
    prepare(session, "core")
    run(session, *CORE, *session.posargs, env=MODES[mode])
