"""
The public signatures of the library, one a line, as griffe reads them from its source.

``python -m tests.api`` writes them to ``tests/api.txt``. A test in
``tests/test_api.py`` compares that file with the source.

A line is ``name [what it is] signature``. A name with a module can be imported from it.
A name without a module cannot be imported: an attribute, a parameter or a result of
something public has it as its type. The signature of a class is its constructor's;
``converted[f]`` is whatever the converter *f* takes.
"""

from __future__ import annotations

import ast
import difflib
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import attrs
import griffe

ROOT: Final = Path(__file__).parent.parent
FILE: Final = Path(__file__).with_name("api.txt")
COMMAND: Final = "python -m tests.api"

# Public parameters have these types, but only the library itself makes them.
_INTERNAL: Final = frozenset(
    {"aio_agentapi._channel.Channel", "aio_agentapi._settle.Settler"}
)

# Dunders that do not say how a class is used.
_SILENT: Final = frozenset(
    {
        "__attrs_post_init__",
        "__getattribute__",
        "__init__",
        "__reduce__",
        "__repr__",
        "__slots__",
        "__str__",
    }
)

_ATTRS: Final = re.compile(r"attrs\.(frozen|define)\b")
_LINE: Final = re.compile(r"(\S+) \[(.*?)\](.*)")


@attrs.frozen
class Item:
    """
    One public object.

    Attributes:
        name: As the snapshot calls it.

        what: The words in brackets.

        signature: What stands behind them.

        parameters: Of a function without ``self``, or of a constructor.

        source: What griffe has of it. None for a module, and for a second name.
    """

    name: str
    what: str
    signature: str = ""
    parameters: tuple[griffe.Parameter, ...] = ()
    source: griffe.Class | griffe.Function | griffe.Attribute | None = None

    def __str__(self) -> str:
        return f"{self.name} [{self.what}]{self.signature}"


def items() -> list[Item]:
    """Return all that is public, by name."""
    return sorted(_Reader().items(), key=lambda item: item.name)


def snapshot(found: Iterable[Item]) -> str:
    """Return the file as it should be."""
    return "".join(f"{item}\n" for item in found)


def difference(before: str, after: str) -> str:
    """Return a diff of two snapshots, and what of it breaks programs."""
    diff = difflib.unified_diff(
        before.splitlines(), after.splitlines(), FILE.name, "source", n=0, lineterm=""
    )
    broken = [f"  {line}" for line in breaking(before, after)]
    return "\n".join(
        [
            *diff,
            "breaks programs (types of parameters are not compared):",
            *(broken or ["  nothing found"]),
        ]
    )


def breaking(before: str, after: str) -> list[str]:
    """Return the changes from one snapshot to another that break programs."""
    old, new = _parsed(before), _parsed(after)
    found = [f"{name}: is gone" for name in old.keys() - new.keys()]
    functions: set[str] = set()
    for name in old.keys() & new.keys():
        (was, signature), (now, other) = old[name], new[name]
        if was != now:
            found.append(f"{name}: was [{was}], is [{now}]")
        elif signature.startswith("("):
            functions.add(name)
            # griffe does not compare these.
            returned, returns = (s.rpartition(") -> ")[2] for s in (signature, other))
            if " -> " in signature and returned != returns:
                found.append(f"{name}: returned {returned}, returns {returns}")
        elif signature != other:
            found.append(f"{name}: was{signature}, is{other}")
    # griffe compares modules: each line becomes a function of one.
    stubs = [
        griffe.visit(
            "api",
            Path("api.py"),
            "\n".join(
                f"def {name.replace('.', '__dot__')}{lines[name][1]}: ..."
                for name in sorted(functions)
            ),
        )
        for lines in (old, new)
    ]
    for breakage in griffe.find_breaking_changes(*stubs):
        told = breakage.explain(griffe.ExplanationStyle.MARKDOWN)
        found.append(told.removeprefix("- ").replace("__dot__", "."))
    return sorted(found)


def _parsed(lines: str) -> dict[str, tuple[str, str]]:
    found = [_LINE.fullmatch(line) for line in lines.splitlines()]
    return {line[1]: (line[2], line[3]) for line in found if line}


class _Reader:
    """What is read of the package: public names first, then what they lead to."""

    def __init__(self) -> None:
        package = griffe.load(
            "aio_agentapi", search_paths=[ROOT], allow_inspection=False
        )
        assert isinstance(package, griffe.Module)
        self._package = package
        # By where they are defined: the name that users know.
        self._names: dict[str, str] = {}
        self._second: dict[str, str] = {}
        self._found: list[Item] = []

    def items(self) -> list[Item]:
        """Return all items, in no order."""
        for module in _public(self._package):
            for name in module.exports or ():
                self._name(f"{module.path}.{name}")
        # Longer while it is gone through: a type leads to others.
        for path in (paths := [*self._names]):
            paths += [new for new in self._describe(path) if self._add(new)]
        for second, first in self._second.items():
            self._found.append(Item(second, f"the same as {first}"))
        return self._found

    def _name(self, public: str) -> None:
        path = self._target(public).path
        if path in self._names:
            self._second[public] = self._names[path]
        else:
            self._names[path] = public

    def _add(self, path: str) -> bool:
        """Name a type that no public module exports; tell whether it is new."""
        name = path.rsplit(".", maxsplit=1)[1]
        if path in self._names:
            return False
        assert name not in self._names.values(), f"two types are called {name}"
        self._names[path] = name
        return True

    def _target(self, path: str) -> griffe.Object:
        found = self._package[path.removeprefix("aio_agentapi.")]
        return found.final_target if isinstance(found, griffe.Alias) else found

    def _describe(self, path: str) -> list[str]:
        """Add the lines of an object, and return the types that they name."""
        source, name = self._target(path), self._names[path]
        if isinstance(source, griffe.Module):
            self._found.append(Item(name, "module"))
            return []
        if isinstance(source, griffe.Class):
            return self._class(source, name)
        assert isinstance(source, griffe.Function | griffe.Attribute)
        return self._member(source, name, field=False)

    def _class(self, source: griffe.Class, name: str) -> list[str]:
        parameters = self._constructor(source)
        words = ["class"]
        if source.bases:
            bases = [
                *map(str, source.bases),
                *(f"{key}={value}" for key, value in source.keywords.items()),
            ]
            words[0] += f" of {' and '.join(bases)}"
        words += [
            kind[1]
            for decorator in source.decorators
            if (kind := _ATTRS.match(str(decorator.value)))
        ]
        signature = "" if parameters is None else _signature(parameters, None)
        made_of = tuple(parameters or ())
        item = Item(name, ", ".join(words), signature, made_of, source)
        self._found.append(item)
        annotations = [parameter.annotation for parameter in made_of]
        known = [base for base in source.bases if not str(base).startswith("_")]
        types = self._types(*known, *annotations)
        # What a base has that users do not know is as good as its own.
        hidden = [base for base in source.mro() if base.name.startswith("_")]
        members = {
            key: member
            for kind in [*reversed(hidden), source]
            for key, member in kind.members.items()
            if not key.startswith("_") or (key.endswith("__") and key not in _SILENT)
        }
        is_enum = any("Enum" in str(base) for base in _bases(source))
        for key, member in members.items():
            assert isinstance(member, griffe.Function | griffe.Attribute), member.path
            types += self._member(member, f"{name}.{key}", field=not is_enum)
        return types

    def _member(
        self, source: griffe.Function | griffe.Attribute, name: str, *, field: bool
    ) -> list[str]:
        if isinstance(source, griffe.Function):
            what = ", ".join(_words(source))
            parameters = [p for p in source.parameters if p.name not in {"self", "cls"}]
            signature = _signature(parameters, source.returns)
            item = Item(name, what, signature, tuple(parameters), source)
            self._found.append(item)
            return self._types(source.returns, *(p.annotation for p in parameters))
        annotation = source.annotation
        if "property" in source.labels:
            writable = ", writable" if "writable" in source.labels else ""
            item = Item(name, f"property{writable}", f": {annotation}", source=source)
        elif field and _is_field(source):
            item = Item(name, "field", f": {annotation}", source=source)
        else:
            item = Item(name, "value", f" = {source.value}", source=source)
            is_alias = str(annotation) == "TypeAlias"
            annotation = source.value if is_alias else annotation
        self._found.append(item)
        return self._types(annotation)

    def _types(self, *annotations: griffe.Expr | str | None) -> list[str]:
        """Return the types of this package that annotations name."""
        found: list[str] = []
        for annotation in annotations:
            if not isinstance(annotation, griffe.Expr):
                continue
            for part in annotation.iterate(flat=True):
                if not isinstance(part, griffe.ExprName):
                    continue
                if not part.canonical_path.startswith("aio_agentapi."):
                    continue
                target = self._target(part.canonical_path)
                is_type = isinstance(target, griffe.Class) or (
                    isinstance(target, griffe.Attribute)
                    and str(target.annotation) == "TypeAlias"
                )
                if is_type and target.path not in _INTERNAL:
                    found.append(target.path)
        return found

    def _constructor(self, source: griffe.Class) -> list[griffe.Parameter] | None:
        """Return the parameters of a constructor; None where users call none."""
        if any(base in {"Protocol", "TypedDict"} for base in map(str, source.bases)):
            return None
        kinds = [source, *source.mro()]
        own = next((k for k in kinds if "__init__" in k.members or _is_attrs(k)), None)
        if own is None:
            return None
        if "__init__" in own.members:
            function = own.members["__init__"]
            assert isinstance(function, griffe.Function)
            return [*function.parameters][1:]
        fields: dict[str, griffe.Parameter] = {}
        for kind in reversed([own, *own.mro()]):
            if _is_attrs(kind):
                for key, field in kind.members.items():
                    if (made := self._parameter(kind, field)) is not None:
                        fields.pop(key, None)
                        fields[key] = made
        keyword = griffe.ParameterKind.keyword_only
        return sorted(fields.values(), key=lambda p: p.kind is keyword)

    @staticmethod
    def _parameter(
        kind: griffe.Class, field: griffe.Object | griffe.Alias
    ) -> griffe.Parameter | None:
        """Return what attrs makes of a field in the constructor, if it does."""
        if not isinstance(field, griffe.Attribute) or not _is_field(field):
            return None
        options: dict[str, str | griffe.Expr] = {}
        value = field.value
        if isinstance(value, griffe.ExprCall) and str(value.function) == "attrs.field":
            options = {
                argument.name: argument.value
                for argument in value.arguments
                if isinstance(argument, griffe.ExprKeyword)
            }
            value = options.get("default")
            if "factory" in options:
                value = f"{options['factory']}()"
        if str(options.get("init")) == "False":
            return None
        annotation = field.annotation
        converter = options.get("converter")
        if converter is not None:
            annotation = f"converted[{converter}]"
            ours = kind.module.members.get(str(converter))
            if isinstance(ours, griffe.Function):
                annotation = ours.parameters[0].annotation or annotation
        whole = str(kind.decorators[0].value)
        by_name = "kw_only=True" in whole or str(options.get("kw_only")) == "True"
        return griffe.Parameter(
            str(options.get("alias", field.name.lstrip("_"))).strip("'"),
            annotation=annotation,
            kind=griffe.ParameterKind.keyword_only
            if by_name
            else griffe.ParameterKind.positional_or_keyword,
            default=value,
        )


def _public(module: griffe.Module) -> Iterator[griffe.Module]:
    """Yield a module and those below it that have no underscore."""
    yield module
    for below in module.modules.values():
        if isinstance(below, griffe.Module) and not below.name.startswith("_"):
            yield from _public(below)


def _bases(source: griffe.Class) -> Iterator[str]:
    for kind in [source, *source.mro()]:
        yield from map(str, kind.bases)


def _is_field(attribute: griffe.Attribute) -> bool:
    # griffe takes ClassVar off an annotation, but no instance has it then.
    is_kept = "instance-attribute" in attribute.labels
    return is_kept and attribute.annotation is not None


def _is_attrs(kind: griffe.Class) -> bool:
    return any(_ATTRS.match(str(d.value)) for d in kind.decorators)


def _words(function: griffe.Function) -> list[str]:
    """Return what a function is beside its signature."""
    words = [
        f"@{decorator.value}"
        for decorator in function.decorators
        if str(decorator.value) not in {"classmethod", "staticmethod"}
    ]
    words += sorted(function.labels & {"async", "classmethod", "staticmethod"})
    (node,) = ast.parse(textwrap.dedent(function.source or "")).body
    if any(isinstance(part, ast.Yield | ast.YieldFrom) for part in ast.walk(node)):
        # An async one is iterated over, and not awaited.
        words.append("generator")
    return words or ["function"]


def _signature(
    parameters: list[griffe.Parameter], returns: str | griffe.Expr | None
) -> str:
    function = griffe.Function(
        "_", parameters=griffe.Parameters(*parameters), returns=returns
    )
    return function.signature().removeprefix("_")


if __name__ == "__main__":
    FILE.write_text(snapshot(items()))
