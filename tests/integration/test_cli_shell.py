"""What the shell asks of the command line."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

pytestmark = pytest.mark.process


BIN = Path(sys.executable).parent


def run(*args: str | Path, **env: str) -> str:
    """Run a program that finds ``agentapi`` on its path; return what it wrote."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(  # noqa: S603 - our own programs
        args,
        env=os.environ | {"PATH": path} | env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stderr == ""
    return ran.stdout


def test_the_versions_of_what_matters() -> None:
    """One line for each, of what is installed."""
    told = run(BIN / "agentapi", "--version").splitlines()
    assert told == [
        f"agentapi, version {version('aio-agentapi')}",
        f"Python {platform.python_version()}",
        *(
            f"{name} {version(name)}"
            for name in ("aiohttp", "attrs", "cattrs", "msgspec", "redis")
        ),
    ]


def test_bash_completes() -> None:
    """In bash itself, with the line that the help tells."""
    bash = shutil.which("bash")
    assert bash is not None
    script = (
        'set -eu; eval "$(agentapi completion bash)"\n'
        "COMP_WORDS=(agentapi points tr); COMP_CWORD=2\n"
        '_agentapi_completion agentapi; echo "${COMPREPLY[@]}"\n'
        "complete -p agentapi\n"
    )
    completed, bound = run(bash, "-c", script).splitlines()
    assert completed == "transfer"
    assert bound.endswith("-F _agentapi_completion agentapi")


@pytest.mark.parametrize(
    ("shell", "word", "told"),
    [
        ("bash", "1", "plain,points\n"),
        ("zsh", "1", "plain\npoints\nShow and move points.\n"),
        ("fish", "poi", "plain,points\tShow and move points.\n"),
    ],
)
def test_what_the_scripts_ask_is_answered(shell: str, word: str, told: str) -> None:
    """Each script names our function and our variable, and its question is answered."""
    script = run(BIN / "agentapi", "completion", shell)
    assert f"_AGENTAPI_COMPLETE={shell}_complete" in script
    assert "_agentapi_completion" in script
    answer = run(
        BIN / "agentapi",
        _AGENTAPI_COMPLETE=f"{shell}_complete",
        COMP_WORDS="agentapi poi",
        COMP_CWORD=word,
    )
    assert answer == told
