"""
The mutation score: of many small faults in the library, how many the tests find.

    python -m tests.mutants --count 200 --seed 1 [--module _gate] [--file survivors]

A mutant is a copy of the library with one fault: another comparison, a statement less,
a condition that is always true. It is killed if a test fails with it or ends too late,
and survives if none does. Faults are chosen at random, as many in each module; those
that make no difference are listed in ``mutants.toml``, with the reason.

1. Each test file is run once with coverage: which lines does each test cover? Kept in
   ``build/mutants/map.json`` until the library or the file changes.
2. Each mutant is run with tests that cover its line, the quickest first: some seconds
   of them, and more if it survives those.

Neither changes the source tree: a mutant is written to a temporary copy of the project,
which is the first on the path of the tests and of the programs that they start. Each
run is a fork of a process that has imported pytest and other large packages.

mutmut and cosmic-ray were considered. mutmut leaves out decorated functions and all
that stands outside of functions, cosmic-ray does not choose tests by line; neither
mutates Lua or SQL.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import importlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, TypeAlias

import attrs
import coverage
import pytest

ROOT: Final = Path(__file__).parents[1]
PACKAGE: Final = "aio_agentapi"
# The script of the shared gate is a string of _budget; it counts as a module.
LUA: Final = "_budget.lua"
MODULES: Final = (
    *("_gate", "_exchange", "_channel", "_wire", "_transport"),
    *("_journal", "_books", "_accounts", "_store", "_identity"),
    *("_cashier", "_settle", "_reconcile", "_progress"),
    *("redis", "_budget", LUA),
)
# Slow, or about what runs in processes of its own.
LEFT_OUT: Final = (
    *("contract/test_document", "fault/test_fire", "fault/test_fronts"),
    *("integration/test_docs", "integration/test_examples", "integration/test_office"),
    *("integration/test_office_http", "integration/test_plugin"),
    *("integration/test_cli_shell", "integration/test_web", "test_mutants"),
)
ENOUGH: Final = 0.95

# Seconds of tests for a mutant at first; how many if it survives those, is an option.
_FIRST: Final = 5.0
# A run may take so many times longer than its tests did, and some seconds.
_SLOWER: Final = 4
_START: Final = 40.0
# Seconds for all tests of a file, and for one of them.
_FILE: Final = 900.0
_TEST: Final = 15.0

_IMPORTS: Final = ("aiohttp", "anyio", "attrs", "cattrs", "hypothesis", "redis.asyncio")
_PYTEST: Final = (
    *("-q", "-p", "no:randomly", "-p", "no:cacheprovider", "-p", "no:xdist"),
    *("-p", "no:schemathesis", "-k", "not storm", "--tb=line"),
    # What is imported before the fork is not rewritten; it has no asserts of ours.
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),
)


Key: TypeAlias = tuple[str, str, str, int, str, str]


@attrs.frozen(kw_only=True)
class Mutant:
    """
    One fault.

    Attributes:
        module: Where.

        line: The number of its line.

        start: Its first byte in the file.

        end: The byte after it.

        new: What is there instead.

        old: What is there, in one line.

        where: The names of the class and the function that it is in.

        text: The line of the source, without what is around it.

        column: Where it begins in that.

        first: The line of its statement; of a default value, of the function's body.

        name: What its statement defines outside of a function, else empty.
    """

    module: str
    line: int
    start: int
    end: int
    new: str
    old: str
    where: str
    text: str
    column: int
    first: int
    name: str = ""

    @property
    def file(self) -> str:
        """Its file, relative to the project."""
        return f"{PACKAGE}/{self.module.partition('.')[0]}.py"

    @property
    def key(self) -> Key:
        """What it is known by when lines move."""
        new = _flat(self.new)
        return self.module, self.where, self.text, self.column, self.old, new

    def write(self, root: Path) -> None:
        """Put it in place of the original in a copy of the project."""
        path = root / self.file
        source = path.read_bytes()
        path.write_bytes(source[: self.start] + self.new.encode() + source[self.end :])
        # Compiled code is found to be old by its time, in whole seconds.
        os.utime(path, (0, 0))


def _flat(text: str) -> str:
    return " ".join(text.split())


# Where a fault is, and what is there instead.
Fault: TypeAlias = tuple[ast.AST, str]

_COMPARED: Final[dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_COMPUTED: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


def _compare(node: ast.Compare) -> Iterator[Fault]:
    for place, op in enumerate(node.ops):
        for other in _COMPARED[type(op)]:
            ops = [*node.ops[:place], other(), *node.ops[place + 1 :]]
            yield (
                node,
                f"({ast.unparse(ast.Compare(node.left, ops, node.comparators))})",
            )


def _bool_op(node: ast.BoolOp) -> Iterator[Fault]:
    other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    yield node, f"({ast.unparse(ast.BoolOp(other, node.values))})"


def _bin_op(node: ast.BinOp) -> Iterator[Fault]:
    other = _COMPUTED.get(type(node.op))
    if other is not None and not _is_text(node.left) and not _is_text(node.right):
        yield node, f"({ast.unparse(ast.BinOp(node.left, other(), node.right))})"


def _is_text(node: ast.expr) -> bool:
    text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return text or isinstance(node, ast.JoinedStr)


def _unary_op(node: ast.UnaryOp) -> Iterator[Fault]:
    yield node, f"({ast.unparse(node.operand)})"


def _constant(node: ast.Constant) -> Iterator[Fault]:
    value = node.value
    if value is None:
        yield node, "0"
    elif isinstance(value, bool):
        yield node, repr(not value)
    elif isinstance(value, int | float):
        yield node, repr(value + 1)
        yield node, repr(value - 1)
    elif isinstance(value, bytes):
        yield node, repr(b"xx" + value)
    # One with a space is a message.
    elif isinstance(value, str) and " " not in value:
        yield node, repr(f"xx{value}")


def _condition(
    node: ast.If | ast.IfExp | ast.While, values: Sequence[bool] = (True, False)
) -> Iterator[Fault]:
    if not isinstance(node.test, ast.Constant):
        yield from ((node.test, repr(value)) for value in values)


def _filter(node: ast.comprehension) -> Iterator[Fault]:
    yield from ((test, "True") for test in node.ifs)


def _call(node: ast.Call) -> Iterator[Fault]:
    if _callee(node) != "attrs.field":
        yield from ((keyword, "") for keyword in node.keywords if keyword.arg)


def _callee(node: ast.AST) -> str:
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def _delete(node: ast.stmt) -> Iterator[Fault]:
    yield node, "pass"


def _expression(node: ast.Expr) -> Iterator[Fault]:
    message = _callee(node.value).startswith(("_LOG.debug", "_LOG.info"))
    if not message and not isinstance(node.value, ast.Constant | ast.Yield):
        yield node, "pass"


def _assign(node: ast.Assign) -> Iterator[Fault]:
    # Without a name there would be an error, which anything finds.
    if not isinstance(node.targets[0], ast.Name | ast.Tuple):
        yield node, "pass"


def _augmented(node: ast.AugAssign) -> Iterator[Fault]:
    yield node, "pass"
    if (other := _COMPUTED.get(type(node.op))) and not _is_text(node.value):
        yield node, ast.unparse(ast.AugAssign(node.target, other(), node.value))


def _return(node: ast.Return) -> Iterator[Fault]:
    if node.value is not None and not isinstance(node.value, ast.Constant):
        yield node.value, "None"


_FAULTS: Final[dict[type[ast.AST], Callable[[Any], Iterable[Fault]]]] = {
    ast.Compare: _compare,
    ast.BoolOp: _bool_op,
    ast.BinOp: _bin_op,
    ast.UnaryOp: _unary_op,
    ast.Constant: _constant,
    ast.If: _condition,
    ast.IfExp: _condition,
    ast.While: partial(_condition, values=[False]),
    ast.comprehension: _filter,
    ast.Call: _call,
    ast.Expr: _expression,
    ast.Raise: _delete,
    ast.Continue: _delete,
    ast.Break: _delete,
    ast.Assign: _assign,
    ast.AugAssign: _augmented,
    ast.Return: _return,
}


def _parts(node: ast.AST) -> Iterator[ast.AST]:  # noqa: C901, PLR0912 - a table of what has no faults
    """Yield what is looked through; not types, names, texts and messages."""
    match node:
        case ast.FunctionDef(name="__repr__") | ast.FunctionDef(name="__str__"):
            return
        case ast.FunctionDef() | ast.AsyncFunctionDef() if _is_empty(node):
            return
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            yield from (d for d in node.args.kw_defaults if d is not None)
            yield from (*node.args.defaults, *node.body)
        case ast.Import() | ast.ImportFrom() | ast.JoinedStr() | ast.Assert():
            return
        case ast.ClassDef():
            yield from node.body
        case ast.AnnAssign(annotation=ast.Name(id="TypeAlias")):
            return
        case ast.Assign(targets=[ast.Name(id="__slots__" | "__all__")]):
            return
        case ast.AnnAssign():
            yield from () if node.value is None else (node.value,)
        case ast.Expr(value=ast.Constant()):
            return
        case ast.Raise():
            yield from () if node.exc is None else (node.exc,)
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            yield from node.orelse
        case ast.Compare():
            sides = (node.left, *node.comparators)
            yield from (side for side in sides if not _is_none(side))
        case ast.Call():
            yield from _arguments(node)
        case _:
            yield from ast.iter_child_nodes(node)


def _is_empty(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Tell whether a function is only described, as those of a protocol are."""
    return all(
        isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant)
        for each in node.body
    )


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _arguments(node: ast.Call) -> Iterator[ast.AST]:
    name = _callee(node)
    if name.startswith("_LOG.") or name in {"TypeVar", "logging.getLogger"}:
        return
    if name == "attrs.field":
        yield from (k.value for k in node.keywords if k.arg in {"default", "factory"})
        return
    yield node.func
    # The first of cast() is a type; that of an error is its message.
    message = name == "cast" or name.endswith("Error")
    yield from node.args[1:] if message else node.args
    yield from (keyword.value for keyword in node.keywords)


# Faults of Lua and SQL: a pattern, and what it becomes.
_WORDS: Final = (
    (r"==", "~="),
    (r"~=", "=="),
    (r"<=", "<"),
    (r">=", ">"),
    (r"(?<=\s)<(?=\s)", "<="),
    (r"(?<=\s)>(?=\s)", ">="),
    (r"!=", "="),
    (r"(?<=\s)\+(?=\s)", "-"),
    (r"(?<=\s)-(?=\s)", "+"),
    (r"(?<=\s)\*(?=\s)", "/"),
    (r"\band\b", "or"),
    (r"\bor\b", "and"),
    (r"\bnot ", ""),
    (r"\bAND\b", "OR"),
    (r"\bOR\b", "AND"),
    (r"\bIS NOT\b", "IS"),
    (r"\bIS (?!NOT)", "IS NOT "),
    (r"(?<!IS )\bNOT (?!NULL)", ""),
    (r" DESC\b", ""),
    (r"\bmin\(", "max("),
    (r"\bmax\(", "min("),
    (r"\bfloor\(", "ceil("),
)
_NUMBER: Final = re.compile(r"(?<![\w?:])\d+(?!\w)")
# Texts, comments, and what an f-string puts in.
_MASKED: Final = re.compile(r"'[^'\n]*'|--.*|\{[^{}\n]*\}")
_SQL: Final = re.compile(r"\b(SELECT|UPDATE|DELETE|INSERT|WHERE|CREATE|ALTER|AND) ")
# A statement of Lua that fills a line, and needs nothing of the next.
_STATEMENT: Final = re.compile(
    r"^ *((?:redis\.call|table\.sort)\([^()\n]*(?:\([^()\n]*\)[^()\n]*)*\)"
    r"|[\w.]+(?:\[[^\]\n]*\])?(?:, [\w.]+)* = [^\n]*[\w)\]}])$",
    re.MULTILINE,
)


def _masked(text: str) -> str:
    return _MASKED.sub(lambda found: " " * len(found[0]), text)


def words(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield the faults of Lua or SQL: start, end, and what is there instead."""
    masked = _masked(text)
    for pattern, new in _WORDS:
        for found in re.finditer(pattern, masked):
            yield found.start(), found.end(), new
    for found in _NUMBER.finditer(masked):
        yield found.start(), found.end(), str(int(found[0]) + 1)


def statements(script: str) -> Iterator[tuple[int, int, str]]:
    """Yield the statements of a script that can be left out."""
    for found in _STATEMENT.finditer(script):
        yield found.start(1), found.end(1), ""


@attrs.frozen
class _Owner:
    """The statement of a fault: its first line, and what it defines."""

    line: int
    name: str = ""


@attrs.define
class Finder:
    """Finds the faults of one module."""

    module: str
    source: bytes
    found: list[Mutant] = attrs.field(init=False, factory=list)
    _where: list[str] = attrs.field(init=False, factory=list)
    _starts: list[int] = attrs.field(init=False)
    _lines: list[bytes] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._lines = self.source.splitlines(keepends=True)
        self._starts = [0, *accumulate(map(len, self._lines))]

    def find(self) -> list[Mutant]:
        """Return all faults that are known of, in the order of their places."""
        for node in ast.parse(self.source).body:
            self._visit(node, _Owner(node.lineno, _target(node)), inside=False)
        self.found.sort(key=lambda mutant: (mutant.start, mutant.end))
        return self.found

    def _visit(self, node: ast.AST, owner: _Owner, *, inside: bool) -> None:
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if isinstance(node, ast.stmt):
            owner = _Owner(node.lineno, "" if inside else _target(node))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # For default values; behind the docstring.
            owner = _Owner((node.body[1:] or node.body)[0].lineno)
        if isinstance(node, ast.JoinedStr | ast.Constant):
            self._text(node, owner)
        # A fault outside of functions deletes nothing: there would be no such name.
        elif inside or not isinstance(node, ast.stmt):
            self._add_all(node, owner)
        depth = len(self._where)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            self._where.append(node.name)
        for part in _parts(node):
            self._visit(part, owner, inside=inside or is_function)
        del self._where[depth:]

    def _add_all(self, node: ast.AST, owner: _Owner) -> None:
        for where, new in _FAULTS.get(type(node), lambda _: ())(node):
            start, end = self._span(where)
            if isinstance(where, ast.keyword):
                rest = re.match(rb"\s*,\s*", self.source[end:])
                end += rest.end() if rest is not None else 0
            self._add(start, end, new, owner)

    def _text(self, node: ast.JoinedStr | ast.Constant, owner: _Owner) -> None:
        start, end = self._span(node)
        text = self.source[start:end].decode()
        if owner.name == "SCRIPT":
            if self.module == LUA:
                self._add_texts(start, text, owner, [*words(text), *statements(text)])
        elif _SQL.search(text):
            self._add_texts(start, text, owner, words(text))
        elif self.module != LUA:
            self._add_all(node, owner)

    def _add_texts(
        self,
        start: int,
        text: str,
        owner: _Owner,
        faults: Iterable[tuple[int, int, str]],
    ) -> None:
        for first, last, new in faults:
            before = len(text[:first].encode())
            self._add(start + before, start + len(text[:last].encode()), new, owner)

    def _span(self, node: Any) -> tuple[int, int]:
        return (
            self._starts[node.lineno - 1] + node.col_offset,
            self._starts[node.end_lineno - 1] + node.end_col_offset,
        )

    def _add(self, start: int, end: int, new: str, owner: _Owner) -> None:
        line = self.source.count(b"\n", 0, start) + 1
        text = self._lines[line - 1]
        margin = len(text) - len(text.lstrip())
        self.found.append(
            Mutant(
                module=self.module,
                line=line,
                start=start,
                end=end,
                new=new,
                old=_flat(self.source[start:end].decode()),
                where=".".join(self._where),
                text=text.strip().decode(),
                column=start - self._starts[line - 1] - margin,
                first=owner.line,
                name=owner.name,
            )
        )


def _target(node: ast.AST) -> str:
    """Return the name that a statement defines."""
    match node:
        case ast.AnnAssign(target=ast.Name(id=name)):
            return name
        case ast.Assign(targets=[ast.Name(id=name), *_]):
            return name
        case ast.ClassDef(name=name):
            return name
        case _:
            return ""


def find(root: Path, module: str) -> list[Mutant]:
    """Return all faults of a module of a project that has it."""
    path = root / PACKAGE / f"{module.partition('.')[0]}.py"
    if not path.exists():
        return []
    found = Finder(module, path.read_bytes()).find()
    return [m for m in found if (m.name == "SCRIPT") == (module == LUA)]


def choose(found: Sequence[Mutant], count: int, seed: str) -> list[Mutant]:
    """Return so many faults at random, one of each place."""
    mixed = random.Random(seed).sample(found, len(found))  # noqa: S311 - no secret
    places = {(mutant.start, mutant.end): mutant for mutant in reversed(mixed)}
    return [m for m in mixed if places[m.start, m.end] is m][:count]


class Recorder:
    """A plugin of pytest that notes how long each test is, and what it covers."""

    def __init__(self, root: Path) -> None:
        self._package = root / PACKAGE
        self._coverage = coverage.Coverage(
            data_file=None, config_file=False, source=[str(self._package)]
        )
        self._seconds: Counter[str] = Counter()
        self._left_out: set[str] = set()

    def start(self) -> None:
        """Measure from now on."""
        self._coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item
    ) -> Generator[None, object, object]:
        """Take what runs from here on as covered by this test."""
        self._coverage.switch_context(item.nodeid)
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add the time of a setup, a call or a teardown."""
        self._seconds[report.nodeid] += report.duration  # type: ignore[assignment]  # counts seconds
        if not report.passed:
            self._left_out.add(report.nodeid)

    def end(self) -> Tests:
        """Return the tests that passed."""
        self._coverage.stop()
        data = self._coverage.get_data()
        lines: defaultdict[str, dict[str, list[int]]] = defaultdict(dict)
        for path in data.measured_files():
            module = Path(path).stem
            if Path(path).parent != self._package or module not in MODULES:
                continue
            for line, contexts in data.contexts_by_lineno(path).items():
                for test in contexts:
                    lines[test].setdefault(module, []).append(line)
        return {
            test: (round(seconds, 3), lines[test])
            for test, seconds in self._seconds.items()
            if test not in self._left_out and test in lines
        }


# By its name in pytest: the seconds that a test takes, and its lines by module.
Tests: TypeAlias = dict[str, tuple[float, dict[str, list[int]]]]


@attrs.define
class Coverage:
    """Which tests cover which lines."""

    root: Path
    tests: Tests
    # Of tests for each mutant.
    seconds: float
    _by_line: defaultdict[tuple[str, int], list[str]] = attrs.field(
        init=False, factory=lambda: defaultdict(list)
    )

    def __attrs_post_init__(self) -> None:
        for test, (_, modules) in self.tests.items():
            for module, lines in modules.items():
                for line in lines:
                    self._by_line[module, line].append(test)

    def of(self, mutant: Mutant) -> list[str]:
        """Return the tests that cover a mutant, or what uses it, or its module."""
        module = Path(mutant.file).stem
        # What runs at import is not covered by the test that happens to import it.
        lines = [n for n in (mutant.line, mutant.first) if n >= mutant.first]
        found = [self._by_line.get((module, line)) or [] for line in lines]
        return (self._using(mutant.name) if mutant.name else found[0] or found[-1]) or [
            test for test, (_, lines) in self.tests.items() if module in lines
        ]

    def _using(self, name: str) -> list[str]:
        """Return the tests that cover a line with a name, or have it in their file."""
        word, found = re.compile(rf"\b{name}\b"), set[str]()
        for path in self.root.glob(f"{PACKAGE}/*.py"):
            for line, text in enumerate(path.read_text().splitlines(), 1):
                if word.search(text):
                    found.update(self._by_line.get((path.stem, line), ()))
        files = {test.partition("::")[0] for test in self.tests}
        named = {f for f in files if word.search((self.root / f).read_text())}
        found.update(t for t in self.tests if t.partition("::")[0] in named)
        return sorted(found)

    def batches(self, mutant: Mutant) -> list[Batch]:
        """Return what a mutant is run with: some seconds of tests, then the others."""
        tests = self.of(mutant)
        module = Path(mutant.file).stem
        # Half of them are those that cover little else, and half the quickest: one of
        # each function, then the others.
        near = sorted(tests, key=lambda t: (-self._share(t, module), self.tests[t][0]))
        quick = sorted(tests, key=lambda test: self.tests[test][0])
        turns, places = Counter[str](), dict[str, int]()
        for test in quick:
            places[test] = turns[test.partition("[")[0]]
            turns[test.partition("[")[0]] += 1
        quick.sort(key=lambda test: places[test])
        found: list[Batch] = []
        done = set[str]()
        for seconds in (_FIRST, self.seconds):
            chosen = {*self._fitting(near, seconds / 2), *quick[:1]}
            chosen = (chosen | {*self._fitting(quick, seconds / 2)}) - done
            done |= chosen
            if chosen:
                ordered = sorted(chosen, key=lambda test: self.tests[test][0])
                found.append(Batch(ordered, [self.tests[t][0] for t in ordered]))
        return found

    def _share(self, test: str, module: str) -> float:
        modules = self.tests[test][1]
        return len(modules.get(module, ())) / sum(map(len, modules.values()))

    def _fitting(self, tests: Iterable[str], seconds: float) -> Iterator[str]:
        for test in tests:
            if self.tests[test][0] <= seconds:
                seconds -= self.tests[test][0]
                yield test


@attrs.frozen
class Batch:
    """Tests in the order of their time, and their seconds."""

    tests: list[str]
    seconds: list[float]

    @property
    def args(self) -> list[str]:
        """What pytest is told: no test may take much longer than it did."""
        return ["-x", f"--timeout={_TEST + _SLOWER * max(self.seconds)}", *self.tests]

    @property
    def timeout(self) -> float:
        """Seconds after which it is stopped."""
        return _START + _SLOWER * sum(self.seconds)


def run(
    home: Path, args: Sequence[str], timeout: float, *, record: Path | None = None
) -> int | None:
    """
    Run pytest in a fork, in a copy of the project.

    Args:
        home: The copy.

        args: Tests, and options.

        timeout: Seconds.

        record: Where it is written down which lines tests cover.

    Returns:
        What it exits with. None: it was stopped when its time was over.
    """
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=_forked, args=(home, args, record))
    process.start()
    process.join(timeout)
    over = process.is_alive()
    # It leads a group: nothing that its tests have started stays.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.join()
    return None if over else process.exitcode


def _forked(home: Path, args: Sequence[str], record: Path | None) -> None:
    os.setsid()
    log = home.with_suffix(".log").open("w")
    for number in (1, 2):
        os.dup2(log.fileno(), number)
    os.chdir(home)
    os.environ["PYTHONPATH"] = str(home)
    sys.path.insert(0, str(home))
    for name in [*sys.modules]:
        if name.partition(".")[0] in {"tests", PACKAGE}:
            del sys.modules[name]
    if record is None:
        # What is compiled of a mutant is not kept.
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        code = pytest.main([*_PYTEST, *args])
    else:
        plugin = Recorder(home)
        plugin.start()
        code = pytest.main([*_PYTEST, *args], [plugin])
        record.write_text(json.dumps(plugin.end()))
    sys.stdout.flush()
    # Threads of tests that hang are not waited for.
    os._exit(code)


def _home(original: Path) -> Path:
    """Return the copy of this process, made at first use."""
    home = original.with_name(f"copy{os.getpid()}")
    if not home.exists():
        shutil.copytree(original, home, symlinks=True)
    return home


def _map(original: Path, name: str) -> tuple[str, Tests]:
    """Run the tests of a file; return what they cover."""
    home = _home(original)
    record = home.with_suffix(".json")
    record.unlink(missing_ok=True)
    run(home, [name], _FILE, record=record)
    return name, json.loads(record.read_text()) if record.exists() else {}


def _try(original: Path, mutant: Mutant, batches: Sequence[Batch]) -> bool:
    """Return whether tests find a fault."""
    home = _home(original)
    mutant.write(home)
    try:
        return any(run(home, batch.args, batch.timeout) != 0 for batch in batches)
    finally:
        shutil.copy2(original / mutant.file, home / mutant.file)


def measure(root: Path, original: Path, pool: ProcessPoolExecutor) -> Tests:
    """Return which lines tests cover; run those whose files have changed."""
    kept = root / "build" / "mutants" / "map.json"
    known: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    tests = root / "tests"
    left_out = {tests / f"{name}.py" for name in LEFT_OUT}
    files = sorted({*tests.rglob("test_*.py")} - left_out)
    helpers = {*tests.rglob("*.py")} - {*tests.rglob("test_*.py")}
    helpers.discard(tests / "mutants.py")
    shared = hashlib.sha256()
    for path in sorted({*(root / PACKAGE).rglob("*.py"), *helpers}):
        shared.update(path.read_bytes())
    fresh: dict[str, Any] = {}
    jobs = {}
    for path in files:
        name, key = str(path.relative_to(root)), shared.copy()
        key.update(path.read_bytes())
        fresh[name] = {"key": key.hexdigest(), "tests": {}}
        if known.get(name, {}).get("key") == key.hexdigest():
            fresh[name] = known[name]
        else:
            jobs[name] = pool.submit(_map, original, name)
    for done in as_completed(jobs.values()):
        name, fresh[name]["tests"] = done.result()
        say(f"{name}: {len(fresh[name]['tests'])} tests")
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(fresh))
    return {t: tuple(v) for f in fresh.values() for t, v in f["tests"].items()}


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)  # noqa: T201 - a tool


_FIELDS: Final = ("module", "where", "line", "column", "old", "new")


def listed(path: Path) -> set[Key]:
    """Return the mutants of a file like ``mutants.toml``."""
    text = path.read_text() if path.exists() else ""
    entries = tomllib.loads(text).get("mutant", [])
    return {tuple(entry[field] for field in _FIELDS) for entry in entries}


def _entry(mutant: Mutant) -> str:
    """Return a survivor as ``mutants.toml`` would have it, but for the reason."""
    pairs = zip((*_FIELDS, "reason"), (*mutant.key, ""), strict=True)
    fields = "\n".join(f"{name} = {json.dumps(value)}" for name, value in pairs)
    return f"[[mutant]]\n{fields}\n"


@attrs.define
class Score:
    """How a run ended, by module."""

    killed: Counter[str] = attrs.field(factory=Counter)
    equivalent: Counter[str] = attrs.field(factory=Counter)
    survived: list[Mutant] = attrs.field(factory=list)

    def print(self) -> float:
        """Print a table; return the score of all."""
        alive = Counter(mutant.module for mutant in self.survived)
        say(f"{'module':<14} {'killed':>7} {'of':>5} {'equivalent':>11} {'score':>8}")
        for module in (*MODULES, "all"):
            counts = (self.killed, alive, self.equivalent)
            killed, left, equal = (
                each.total() if module == "all" else each[module] for each in counts
            )
            score = killed / (killed + left) if killed + left else 1.0
            if killed + left + equal:
                say(
                    f"{module:<14} {killed:>7} {killed + left:>5} {equal:>11}"
                    f" {score:>8.1%}"
                )
        total = self.killed.total() + len(self.survived)
        return self.killed.total() / total if total else 1.0


def sample(root: Path, options: argparse.Namespace) -> list[Mutant]:
    """Return the mutants that are asked for, as many of each module."""
    modules = [m for m in MODULES if options.module in {None, m}]
    found = {m: mutants for m in modules if (mutants := find(root, m))}
    if options.again is not None:
        keys = listed(options.again)
        return [m for mutants in found.values() for m in mutants if m.key in keys]
    chosen: list[Mutant] = []
    for place, (module, mutants) in enumerate(found.items()):
        # What does not divide goes to the first of them.
        count = (options.count + len(found) - 1 - place) // len(found)
        chosen += choose(mutants, count, f"{options.seed} {module}")
    return chosen


def main(args: Sequence[str] | None = None) -> int:
    """Measure and print the score; return 1 where it is too low."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("--count", type=int, default=200, help="mutants in all")
    parser.add_argument("--seed", default="1", help="of their choice")
    parser.add_argument("--module", choices=MODULES, help="of this one alone")
    parser.add_argument("--file", type=Path, help="where survivors are written to")
    parser.add_argument(
        "--again", type=Path, help="those of such a file, and no others"
    )
    parser.add_argument("--seconds", type=float, default=40.0, help="of tests for each")
    parser.add_argument("--root", type=Path, default=ROOT, help="another project")
    options = parser.parse_args(args)
    root: Path = options.root.resolve()
    chosen = sample(root, options)
    if not chosen:
        parser.error("there is nothing to mutate")
    for name in _IMPORTS:
        importlib.import_module(name)
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        original = Path(folder) / "original"
        without = shutil.ignore_patterns(".*", "build", "dist")
        shutil.copytree(root, original, ignore=without, symlinks=True)
        with ProcessPoolExecutor(2, mp_context=fork) as pool:
            tests = measure(root, original, pool)
            covered = Coverage(root, tests, options.seconds)
            score = _run_all(chosen, root, original, covered, pool)
    if options.file is not None:
        options.file.write_text("\n".join(map(_entry, score.survived)))
    return 0 if score.print() >= ENOUGH else 1


def _run_all(
    chosen: Sequence[Mutant],
    root: Path,
    original: Path,
    covered: Coverage,
    pool: ProcessPoolExecutor,
) -> Score:
    score = Score()
    equivalent = listed(root / "tests" / "mutants.toml")
    jobs = {}
    for mutant in chosen:
        if mutant.key in equivalent:
            score.equivalent[mutant.module] += 1
        else:
            batches = covered.batches(mutant)
            jobs[pool.submit(_try, original, mutant, batches)] = mutant, batches
    for done in as_completed(jobs):
        mutant, batches = jobs[done]
        if done.result():
            score.killed[mutant.module] += 1
        else:
            score.survived.append(mutant)
            tried = sum(len(batch.tests) for batch in batches)
            where = f"{mutant.file}:{mutant.line}"
            new = _flat(mutant.new) or "nothing"
            say(f"{where}  {mutant.old}  ->  {new}  ({tried} tests)")
    return score


if __name__ == "__main__":
    sys.exit(main())
