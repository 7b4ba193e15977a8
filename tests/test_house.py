"""The house: public names, a lean import, and the tables of calls."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import cast

import pytest

import aio_agentapi
from aio_agentapi import resources
from aio_agentapi._settings import PATHS
from aio_agentapi._types import Operation

ROOT = Path(aio_agentapi.__file__).parent
RESOURCES: list[ModuleType] = [
    importlib.import_module(f"aio_agentapi.resources.{module.name}")
    for module in pkgutil.iter_modules(resources.__path__)
]


# Every module without an underscore: what users may import.
PUBLIC = [
    "aio_agentapi",
    *(
        module.name
        for module in pkgutil.walk_packages(aio_agentapi.__path__, "aio_agentapi.")
        if not any(part.startswith("_") for part in module.name.split("."))
    ),
]


@pytest.mark.parametrize("name", PUBLIC)
def test_all_is_true(name: str) -> None:
    """What is in __all__ is there, sorted, and nothing else looks public."""
    module = importlib.import_module(name)
    # A package shows what is below it; a module what is defined in it.
    home = name if hasattr(module, "__path__") else f"{name}#"
    visible = {
        key
        for key, value in vars(module).items()
        if not key.startswith("_")
        and not inspect.ismodule(value)
        and f"{getattr(value, '__module__', '')}#".startswith(home)
    }
    told = getattr(module, "__all__", [])
    assert sorted(set(told)) == sorted(told)
    assert visible <= set(told)
    for key in told:
        assert hasattr(module, key)


@pytest.mark.process
def test_the_import_is_lean() -> None:
    """Importing the library loads neither the stand-in, the CLI nor their packages."""
    code = (
        "import sys, aio_agentapi\n"
        "heavy = {'click', 'rich', 'redis', 'platformdirs', 'pytest',"
        " 'aiohttp.web', 'aio_agentapi.sandbox', 'aio_agentapi.cli',"
        " 'aio_agentapi.testing'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    # Where coverage is measured it loads things of its own.
    env = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE")}
    ran = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=env,
    )
    # aiohttp itself loads its server.
    assert ran.stdout.strip() in {"[]", "['aiohttp.web']"}


def test_every_module_keeps_the_rules_of_the_house() -> None:
    """Annotations are not evaluated, and nothing is kept in globals."""
    for path in ROOT.rglob("*.py"):
        tree = ast.parse(path.read_text())
        imports = [n for n in tree.body if isinstance(n, ast.ImportFrom)]
        code = [n for n in tree.body if not isinstance(n, ast.Expr)]
        if path.name != "__init__.py" and code:
            assert any(n.module == "__future__" for n in imports), path
        assert not [n for n in ast.walk(tree) if isinstance(n, ast.Global)], path


def operations() -> list[tuple[ModuleType, Operation[object]]]:
    """Return what stands in the tables of the resources."""
    return [
        (module, cast("Operation[object]", value))
        for module in RESOURCES
        for value in vars(module).values()
        if isinstance(value, Operation)
    ]


def test_every_operation_has_a_path_and_every_path_an_operation() -> None:
    """The tables of the resources and of the settings are the same."""
    found = operations()
    assert sorted(PATHS) == sorted(operation.name for _, operation in found)
    for module, operation in found:
        assert operation.name.split(".")[0] == module.__name__.rsplit(".", 1)[1]


def test_only_what_the_contract_calls_repeatable_is_repeated() -> None:
    """Money is sent once, creates too; all the rest may be repeated."""
    effects = {operation.name: operation.effect for _, operation in operations()}
    assert {name: effect for name, effect in effects.items() if effect != "read"} == {
        "wallets.deposit": "money",
        "wallets.withdraw": "money",
        "wallets.withdraw_all": "money",
        "agents.create": "create",
        "agents.reissue_token": "create",
        "agents.update": "idempotent",
        "points.transfer": "idempotent",
        "points.reclaim": "idempotent",
        "users.create": "idempotent",
    }


def test_tests_wait_for_what_happens() -> None:
    """And not for time: each sleep that is left says in a comment why it is there."""
    silent: list[str] = []
    tests = Path(__file__).parent
    for path in sorted(tests.rglob("*.py")):
        text = path.read_text()
        if "import in_virtual_time" in text or "import VirtualLoop" in text:
            # There it costs nothing, and is exact.
            continue
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text)):
            if not (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "sleep"
            ):
                continue
            (seconds,) = node.args
            if isinstance(seconds, ast.Constant) and seconds.value == 0:
                continue
            above = lines[node.lineno - 2].strip()
            said = above.startswith("#") or "#" in lines[node.lineno - 1]
            if not said:
                silent.append(f"{path.relative_to(tests)}:{node.lineno}")
    assert not silent, "why does it sleep? Say so above, or wait for what happens"
