"""The house: public names, a lean import, docstrings, and no token anywhere."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest

import aio_agentapi
from aio_agentapi import errors, resources
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


def public_callables() -> list[tuple[str, Any]]:
    """Return every public function and method of the library, with its name."""
    found: list[tuple[str, Any]] = []
    for home in ("aio_agentapi", "aio_agentapi.sandbox", "aio_agentapi.testing"):
        module = importlib.import_module(home)
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isfunction(value):
                found.append((name, value))
            if inspect.isclass(value):
                found += [(f"{name}.{n}", m) for n, m in methods(value)]
    for module in RESOURCES:
        for kind in vars(module).values():
            if inspect.isclass(kind) and kind.__module__ == module.__name__:
                found += [(f"{kind.__name__}.{n}", m) for n, m in methods(kind)]
    return sorted(dict(found).items())


def methods(kind: type) -> list[tuple[str, Any]]:
    """Return the public methods that a class has of its own."""
    plain = {
        name: value.__func__ if isinstance(value, classmethod) else value
        for name, value in vars(kind).items()
    }
    return [
        (name, value)
        for name, value in plain.items()
        if inspect.isfunction(value) and not name.startswith("_")
    ]


CALLABLES = public_callables()


def section(text: str, title: str) -> str:
    """Return one section of a docstring."""
    found = re.search(rf"^{title}:\n((?:    .*\n|\n)*)", text + "\n", re.MULTILINE)
    return found[1] if found else ""


@pytest.mark.parametrize(
    ("name", "method"), CALLABLES, ids=[name for name, _ in CALLABLES]
)
def test_every_docstring_has_its_form(name: str, method: Any) -> None:
    """A sentence, and where there is an Args section, each argument in it."""
    text = inspect.getdoc(method) or ""
    first = text.split("\n\n", maxsplit=1)[0]
    assert first.endswith("."), name
    assert first[0].isupper(), name
    parameters = set(inspect.signature(method).parameters) - {"self", "cls"}
    told = set(re.findall(r"^    \*{0,2}(\w+):", section(text, "Args"), re.MULTILINE))
    assert told in (parameters, set()), name


def calls() -> list[tuple[str, str, set[str]]]:
    """Return every call of the service: its docstring and its arguments."""
    found: list[tuple[str, str, set[str]]] = []
    for name, method in CALLABLES:
        is_call = inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(
            method
        )
        if is_call and method.__module__.startswith("aio_agentapi.resources"):
            arguments = set(inspect.signature(method).parameters) - {"self"}
            found.append((name, inspect.getdoc(method) or "", arguments))
    text = inspect.getdoc(aio_agentapi.Session.call) or ""
    return [*found, ("Session.call", text, {"path", "body", "effect"})]


# What an error says of the caller's money, or of what else he wanted.
SURE = (
    "Nothing was sent",
    "Nothing moved",
    "Nothing was created",
    "Nothing was changed",
    "Nothing happened",
    "It may have happened",
    "what became of the rows before it",
)


@pytest.mark.parametrize(
    ("name", "text", "arguments"), calls(), ids=[name for name, *_ in calls()]
)
def test_every_call_says_what_it_does(
    name: str, text: str, arguments: set[str]
) -> None:
    """Arguments, result, errors with what they mean for money, and the source."""
    told = set(re.findall(r"^    (\w+):", section(text, "Args"), re.MULTILINE))
    assert told == arguments, name
    assert section(text, "Source"), name
    assert section(text, "Returns") or section(text, "Yields"), name
    raises = re.split(r"\n\n", section(text, "Raises").strip())
    assert raises != [""], name
    kind, verb = name.split(".")
    effect = EFFECTS.get(f"{kind.lower()}.{verb}", "read")
    for entry in raises:
        error = entry.strip().split(":")[0]
        assert error in errors.__all__ or error == "Exception", (name, error)
        if effect != "read":
            assert any(words in " ".join(entry.split()) for words in SURE), entry


def operations() -> list[tuple[ModuleType, Operation[object]]]:
    """Return what stands in the tables of the resources."""
    return [
        (module, cast("Operation[object]", value))
        for module in RESOURCES
        for value in vars(module).values()
        if isinstance(value, Operation)
    ]


EFFECTS = {
    **{operation.name: operation.effect for _, operation in operations()},
    "agents.suspend": "idempotent",
    "agents.resume": "idempotent",
    "points.distribute": "idempotent",
    "session.call": "money",
}


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
