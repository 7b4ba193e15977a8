"""What is public: its signatures, its docstrings, and that types are checked of it."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable
from enum import Enum
from functools import cache, wraps
from pathlib import Path
from typing import TypeAlias

import griffe
import pytest

from aio_agentapi import errors
from tests import api
from tests.test_house import operations

Check: TypeAlias = Callable[[api.Item], None]


@cache
def items() -> list[api.Item]:
    """Return all that is public; a second of reading, for the worker that tests it."""
    return api.items()


def classes() -> list[api.Item]:
    """Return the public classes."""
    return [item for item in items() if isinstance(item.source, griffe.Class)]


def each(found: Callable[[], list[api.Item]]) -> Callable[[Check], Callable[[], None]]:
    """Make a test of a check, which all items have to pass."""

    def decorate(check: Check) -> Callable[[], None]:
        @wraps(check)
        def test() -> None:
            failed: dict[str, str] = {}
            for item in found():
                try:
                    check(item)
                except AssertionError as error:
                    failed[item.name] = str(error)
            assert failed == {}

        # Otherwise pytest sees the item, and looks for a fixture.
        del test.__wrapped__
        return test

    return decorate


def test_the_public_signatures_are_those_on_record() -> None:
    """What users can reach is what tests/api.txt says, line by line."""
    recorded, found = api.FILE.read_text(), api.snapshot(items())
    if recorded != found:
        pytest.fail(
            "the public signatures are not those of tests/api.txt. If that is meant,"
            f" run {api.COMMAND}\n{api.difference(recorded, found)}",
            pytrace=False,
        )


def test_a_change_that_breaks_programs_is_told_from_one_that_does_not() -> None:
    """What is new breaks no program; what is gone, or has to be given, does."""
    before = (
        "m.f [async](a: int) -> str\n"
        "m.g [async](a: int, *, b: int = 1) -> str\n"
        "m.h [async]() -> int\n"
        "m.C [class, frozen](*, a: int)\n"
        "m.C.a [field]: int\n"
        "m.E.A [value] = 'a'\n"
    )
    harmless = (
        "m.f [async](a: int, *, b: int = 1) -> str\n"
        "m.g [async](a: int, *, b: int = 1) -> str\n"
        "m.h [async]() -> int\n"
        "m.i [async]() -> None\n"
        "m.C [class, frozen](*, a: int, b: int = 1)\n"
        "m.C.a [field]: int\n"
        "m.C.b [field]: int\n"
        "m.E.A [value] = 'a'\n"
    )
    harmful = (
        "m.f [async](a: int, b: int) -> str\n"
        "m.g [function](a: int, *, b: int = 1) -> str\n"
        "m.h [async]() -> int | None\n"
        "m.C.a [field]: str\n"
        "m.E.A [value] = 'b'\n"
    )
    assert api.breaking(before, harmless) == []
    assert api.breaking(before, harmful) == [
        "`m.f(b)`: *Parameter was added as required*",
        "m.C.a: was: int, is: str",
        "m.C: is gone",
        "m.E.A: was = 'a', is = 'b'",
        "m.g: was [async], is [function]",
        "m.h: returned int, returns int | None",
    ]


@each(classes)
def test_constructors_on_record_are_the_real_ones(item: api.Item) -> None:
    """The record, which is read without attrs, has what attrs makes of a class."""
    assert item.source is not None
    module = importlib.import_module(item.source.module.path)
    kind = getattr(module, item.source.name)
    if not item.signature:
        assert getattr(kind, "_is_protocol", False) or issubclass(kind, dict | Enum)
        return
    real = inspect.signature(kind).parameters.values()
    assert [(p.name, p.kind and p.kind.value, p.required) for p in item.parameters] == [
        (p.name, p.kind.description, p.default is p.empty) for p in real
    ]


def docstring(item: api.Item) -> str:
    """Return the docstring of an item; empty if it has none."""
    assert item.source is not None
    return item.source.docstring.value if item.source.docstring else ""


def section(text: str, title: str) -> str:
    """Return one section of a docstring."""
    found = re.search(rf"^{title}:\n((?:    .*\n|\n)*)", text + "\n", re.MULTILINE)
    return found[1] if found else ""


def entries(text: str, title: str) -> set[str]:
    """Return the names that a section of a docstring has an entry for."""
    lines = section(text, title)
    return set(re.findall(r"^    \*{0,2}(\w+):", lines, re.MULTILINE))


def documented() -> list[api.Item]:
    """Return all that has a docstring of its own: no fields, values or dunders."""
    return [
        item
        for item in items()
        if item.source is not None
        and item.what not in {"field", "value"}
        and not item.name.endswith("__")
    ]


@each(documented)
def test_every_docstring_has_its_form(item: api.Item) -> None:
    """A sentence, and where there are arguments or errors, all of them."""
    text = docstring(item)
    first = text.split("\n\n", maxsplit=1)[0]
    assert first.endswith(".")
    assert first[0].isupper() or first[0].isdigit()
    assert entries(text, "Args") in ({p.name for p in item.parameters}, set())
    for error in entries(text, "Raises"):
        assert error in errors.__all__ or hasattr(builtins, error) or error in FOREIGN
    if "see :meth:" not in text:
        assert raised(item) <= entries(text, "Raises")


# What other packages raise through ours.
FOREIGN = {"RedisError"}


def raised(item: api.Item) -> set[str]:
    """Return the errors that a function makes and raises itself."""
    if isinstance(item.source, griffe.Class):
        return set()
    assert item.source is not None
    tree = ast.parse(textwrap.dedent(item.source.source))
    return {
        part.exc.func.id
        for part in ast.walk(tree)
        if isinstance(part, ast.Raise)
        and isinstance(part.exc, ast.Call)
        and isinstance(part.exc.func, ast.Name)
        # Others are functions that make one.
        and part.exc.func.id[0].isupper()
    }


# Its fields have a comment each, with the unit and the reason of the default.
COMMENTED = {"aio_agentapi.Settings"}


@each(lambda: [item for item in classes() if item.name not in COMMENTED])
def test_every_field_of_a_class_is_described(item: api.Item) -> None:
    """Among its attributes, or the arguments that it is made from."""
    text = docstring(item)
    fields = {
        found.name.rpartition(".")[2]
        for found in items()
        if found.what == "field" and found.name.rpartition(".")[0] == item.name
    }
    assert entries(text, "Attributes") <= fields
    assert fields <= entries(text, "Attributes") | entries(text, "Args")


def calls() -> list[api.Item]:
    """Return every call of the service."""
    rooms = {
        field.signature.removeprefix(": ")
        for field in items()
        if field.what == "field" and field.name.startswith("aio_agentapi.Session.")
    }
    return [
        item
        for item in items()
        if item.name == "aio_agentapi.Session.call"
        or (
            isinstance(item.source, griffe.Function)
            and "async" in item.what
            and item.name.split(".")[-2] in rooms
        )
    ]


EFFECTS = {
    **{operation.name: operation.effect for _, operation in operations()},
    "agents.suspend": "idempotent",
    "agents.resume": "idempotent",
    "points.distribute": "idempotent",
    "payments.resend": "money",
    "payments.decide": "idempotent",
    "session.call": "money",
}


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


@each(calls)
def test_every_call_says_what_it_does(item: api.Item) -> None:
    """Arguments, result, errors with what they mean for money, and the source."""
    text = docstring(item)
    assert entries(text, "Args") == {p.name for p in item.parameters}
    assert section(text, "Source")
    assert section(text, "Returns") or section(text, "Yields")
    raises = re.split(r"\n\n", section(text, "Raises").strip())
    assert raises != [""]
    kind, verb = item.name.split(".")[-2:]
    if EFFECTS.get(f"{kind.lower()}.{verb}", "read") == "read":
        return
    for entry in raises:
        assert any(words in " ".join(entry.split()) for words in SURE), entry


# Public by name, and called by the library alone.
INTERNAL = {
    "aio_agentapi.Session": {"on"},
    "aio_agentapi.MemoryStore": {"keep_cursor", "linked", "recognise", "write"},
    "aio_agentapi.SqliteStore": {"keep_cursor", "linked", "recognise", "write"},
    "aio_agentapi.redis.RedisGate": {"answered", "failed", "report", "told"},
    "aio_agentapi.redis.RedisGates": {"carry", "enter", "forget"},
    "aio_agentapi.sandbox.Faults": {"held", "take"},
}

# A session has one, and no module exports it.
HELD = "Payments"


def for_users() -> list[str]:
    """Return what programs import, and what they call on it or read of an error."""
    kinds = {item.name for item in classes()}
    found: list[str] = []
    for item in items():
        home, _, name = item.name.rpartition(".")
        is_read = item.what == "field" and home.startswith("aio_agentapi.errors.")
        is_called = item.what not in {"field", "value"} and not name.startswith("__")
        if (
            item.source is not None
            and (home.startswith("aio_agentapi") or home == HELD)
            and (home not in kinds or is_read or is_called)
            and name not in INTERNAL.get(home, ())
        ):
            found.append(item.name)
    return found


@cache
def used() -> frozenset[str]:
    """Return what tests/typing/api.py uses, by the names on record."""
    tree = ast.parse((Path(__file__).parent / "typing" / "api.py").read_text())
    first = {
        item.name: item.what.removeprefix("the same as ")
        for item in items()
        if item.what.startswith("the same as ")
    }
    imported = {
        alias.name: first.get(full := f"{part.module}.{alias.name}", full)
        for part in tree.body
        if isinstance(part, ast.ImportFrom)
        for alias in part.names
    }
    # By their last names; those that can be imported count before others.
    kinds = {item.name.rpartition(".")[2]: item.name for item in classes()}
    types = {
        item.name: kinds.get(item.signature.removeprefix(": "), "") for item in items()
    }
    found: set[str] = set()
    for part in tree.body:
        scope = dict(imported)
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
            for argument in part.args.args:
                words = ast.unparse(argument.annotation or argument).split(".")
                words[0] = imported.get(words[0], words[0])
                scope[argument.arg] = ".".join(words)
        for node in ast.walk(part):
            words = ast.unparse(node).split(".")
            # Names with dots alone: what a call returns is not followed.
            if isinstance(node, ast.expr) and all(map(str.isidentifier, words)):
                name = scope.get(words[0], "")
                found.add(name)
                for word in words[1:]:
                    found.add(name := f"{name}.{word}")
                    name = types.get(name) or name
    return frozenset(found)


def test_everything_for_users_is_used_where_types_are_checked() -> None:
    """A call whose type changes is seen, since tests/typing/api.py has it."""
    assert [name for name in for_users() if name not in used()] == []
